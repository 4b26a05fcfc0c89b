"""Does llama.cpp get the checkpoint that it should, does a steering vector stand where it is added, and is the rest
refused?"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from efface.errors import RunError, UserError
from efface.export.gguf import CONVERTER, export_gguf
from efface.methods.steering import steering_intervention
from efface.model.interventions import BELOW, FILE, Intervention, attach_
from efface.model.save import save_model

WORKS = """
import json, sys
import beside
out = sys.argv[sys.argv.index("--outfile") + 1]
open(out, "wb").write(b"GGUF" + json.dumps(sys.argv[1:]).encode())
"""
FAILS = "import sys\nsys.stderr.write('a warning\\nNotImplementedError: no such architecture\\n')\nsys.exit(1)\n"
VECTOR = np.linspace(-1, 1, 32, dtype=np.float32)  # (d,)
STRENGTH = 2.5


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a clone of llama.cpp, whose converter writes down how it was called."""
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    (folder / CONVERTER).write_text(WORKS)
    (folder / "beside.py").write_text("")  # llama.cpp's own script imports a package that lies beside it
    monkeypatch.setenv("LLAMA_CPP", str(folder))
    return folder


def saved(directory: Path, *interventions: Intervention, dtype: torch.dtype = torch.float32) -> Path:
    model = tiny_model("llama").to(dtype)
    attach_(model, interventions)
    save_model(model, tiny_tokenizer(), directory)
    return directory


def steer(layer: int) -> Intervention:
    return steering_intervention(layer, -STRENGTH * VECTOR)


@pytest.mark.parametrize(("dtype", "told"), [(torch.float32, "f32"), (torch.bfloat16, "bf16")])
def test_the_converter_is_asked_for_the_precision_of_the_checkpoint(
    dtype: torch.dtype, told: str, clone: Path, tmp_path: Path
) -> None:
    model, output, lines = saved(tmp_path / "model", dtype=dtype), tmp_path / "out" / "model.gguf", []
    assert export_gguf(model, output, say=lines.append) == [output]
    asked = json.loads(output.read_bytes().removeprefix(b"GGUF"))
    assert asked[0] == str(model) and asked[-2:] == ["--outtype", told]
    assert sorted(os.listdir(output.parent)) == ["model.gguf", "model.gguf.json"] and lines == [
        f"converting with {clone / CONVERTER}"
    ]


def test_a_converter_on_the_path_is_found_too(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CPP")
    monkeypatch.setenv("PATH", str(clone))
    assert export_gguf(saved(tmp_path / "model"), tmp_path / "model.gguf")


def test_a_file_that_is_there_stays_unless_it_is_to_go(clone: Path, tmp_path: Path) -> None:
    model, output = saved(tmp_path / "model"), tmp_path / "model.gguf"
    output.write_text("mine")
    with pytest.raises(UserError, match="is not a GGUF file"):
        export_gguf(model, output, overwrite=True)
    output.unlink()
    mark = tmp_path / "model.gguf.json"
    mark.write_text("{}")
    with pytest.raises(UserError, match="model.gguf.json is there, which a GGUF file at .* would replace"):
        export_gguf(model, output)
    mark.unlink()
    assert export_gguf(model, output)
    with pytest.raises(UserError, match="already holds a GGUF file"):
        export_gguf(model, output)
    assert export_gguf(model, output, overwrite=True)


@pytest.mark.parametrize("marked", [True, False])
def test_the_gguf_file_of_somebody_else_is_never_replaced(marked: bool, clone: Path, tmp_path: Path) -> None:
    """Nor where an export of ours once lay."""
    model, output = saved(tmp_path / "model"), tmp_path / "model.gguf"
    if marked:
        export_gguf(model, output)
    output.write_bytes(b"GGUF of another")
    with pytest.raises(UserError, match="is not a GGUF file as efface wrote it. It is left alone"):
        export_gguf(model, output, overwrite=True)
    assert output.read_bytes() == b"GGUF of another"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (FAILS, "no such architecture$"),
        ("", "it wrote no GGUF file"),
        ("import absent_here", "No module named 'absent_here'. Install what its requirements.txt lists"),
    ],
)
def test_what_the_converter_says_last_is_told(script: str, said: str, clone: Path, tmp_path: Path) -> None:
    (clone / CONVERTER).write_text(script)
    with pytest.raises(RunError, match=f"{CONVERTER} failed on .*{said}"):
        export_gguf(saved(tmp_path / "model"), tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*"))


def test_where_to_get_a_converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved(tmp_path / "model")
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="LLAMA_CPP is not set, and the PATH has none. `git clone https://"):
        export_gguf(model, tmp_path / "model.gguf")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(UserError, match=f"LLAMA_CPP={tmp_path} has none"):
        export_gguf(model, tmp_path / "model.gguf")


def test_a_steering_vector_becomes_a_control_vector(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    model, output, lines = saved(tmp_path / "model", steer(1)), tmp_path / "steer.gguf", []
    assert export_gguf(model, output, say=lines.append) == [output]
    reader = gguf.GGUFReader(output)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert fields["general.architecture"] == "controlvector" and fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == 1
    [tensor] = reader.tensors
    assert tensor.name == "direction.1" and tensor.tensor_type == gguf.GGMLQuantizationType.F32
    np.testing.assert_array_equal(tensor.data, -STRENGTH * VECTOR)
    [line] = lines
    assert str(model / BELOW) in line and f"--control-vector {output}" in line


def test_two_vectors_after_a_block_are_added_up(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    export_gguf(saved(tmp_path / "model", steer(1), steer(1)), tmp_path / "steer.gguf")
    [tensor] = gguf.GGUFReader(tmp_path / "steer.gguf").tensors
    np.testing.assert_array_equal(tensor.data, -2 * STRENGTH * VECTOR)


def test_the_weights_beside_a_control_vector_can_be_exported(clone: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", steer(1))
    export_gguf(model / BELOW, tmp_path / "weights.gguf")
    assert str(model / BELOW).encode() in (tmp_path / "weights.gguf").read_bytes()


def test_what_llama_cpp_cannot_be_told_is_refused(tmp_path: Path) -> None:
    column = torch.ones(32, 1)
    leace, output = Intervention(1, -column, column.T, torch.zeros(32)), tmp_path / "x.gguf"
    with pytest.raises(UserError, match=r"multiplies the hidden states after block 1 \(LEACE\).*efface.load_model"):
        export_gguf(saved(tmp_path / "leace", steer(1), leace), output)
    with pytest.raises(UserError, match="after block 0, where llama.cpp has none"):
        export_gguf(saved(tmp_path / "first", steer(0)), output)
    assert not output.exists()


def test_what_is_no_whole_checkpoint_is_refused(clone: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.gguf"
    with pytest.raises(UserError, match="is no checkpoint directory"):
        export_gguf(tmp_path / "absent", output)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="is an adapter, and GGUF is of a whole model: `efface merge"):
        export_gguf(tmp_path / "adapter", output)
    with pytest.raises(UserError, match="is no finished checkpoint"):
        export_gguf(clone, output)
    within = saved(tmp_path / "steered", steer(1)) / BELOW
    (within.parent / FILE).rename(within / FILE)
    with pytest.raises(UserError, match="is no finished checkpoint"):
        export_gguf(within, output)
    model = saved(tmp_path / "eight")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"dtype": "int8", "torch_dtype": "int8"}))
    with pytest.raises(UserError, match="are stored as 'int8'"):
        export_gguf(model, output)
