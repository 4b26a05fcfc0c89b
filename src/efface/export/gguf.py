"""How does a checkpoint become GGUF for llama.cpp? By its own converter; a steering vector as a control vector.

llama.cpp adds the tensor `direction.N` of a control vector to what its block N gives, counted from 0 (`build_cvec`,
`llama_adapter_cvec`): where efface's intervention after block N is. It has none for block 0. LEACE multiplies the
hidden states, which no vector that is added can do, and no weights could hold: the next thing that reads the stream is
a norm, which is not linear, and the stream itself goes on past every block.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from efface.errors import RunError, UserError, explained, one_line
from efface.files.digests import file_sha256
from efface.files.io import is_regular_file, renamed_when_whole
from efface.files.output import check_output_file
from efface.files.results import read_json, write_json

if TYPE_CHECKING:
    import numpy as np

    from efface.model.interventions import Intervention

CONVERTER = "convert_hf_to_gguf.py"
PLACE = "LLAMA_CPP"
"""The environment variable that names a clone of llama.cpp."""
TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
"""The converter's names of what weights are stored in."""
ARCHITECTURE = "controlvector"
WHAT = "a GGUF file that efface has exported"
"""What the file beside an export says."""


def export_gguf(
    directory: Path, output: Path, *, overwrite: bool = False, say: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Write a checkpoint as a GGUF file, in the precision that it is stored in.

    Beside it lies a small file, `NAME.gguf.json`, with its SHA-256: by that an export is known that may be replaced.

    One whose edit is a steering vector becomes a control vector; the weights that it belongs to, which lie in a folder
    below, are an ordinary checkpoint and a file of their own.

    Args:
        directory: of the checkpoint.
        output: the file, which is new, or of an earlier export.
        overwrite: replace that.
        say: what takes the lines that a user should read.

    Returns:
        The files that were written.

    Raises:
        UserError: if it is no checkpoint directory, an adapter or of a kind that llama.cpp cannot be told; if there is
            no converter; if a file is there that no export has written, or without `overwrite`.
        RunError: if the converter fails, or the file cannot be written.
    """
    from efface.model.interventions import FILE
    from efface.model.load import ordinary_checkpoint

    if not directory.is_dir():
        raise UserError(f"{str(directory)!r} is no checkpoint directory: only one can be exported to GGUF.")
    weights, steered = ordinary_checkpoint(directory), (directory / FILE).exists()
    if (weights / "adapter_config.json").exists():
        raise UserError(
            f"{str(directory)!r} is an adapter, and GGUF is of a whole model: `efface merge {directory} -o DIR` "
            "first, and export DIR."
        )
    if not (weights / "config.json").exists() or (steered and weights == directory):
        raise UserError(
            f"{str(directory)!r} is no finished checkpoint (no config.json, or one within a run). Pass the directory "
            "that a run, or save_model, has written."
        )
    mark = _mark_of(output)
    check_output_file(output, _is_own, "a GGUF file", beside={mark: _is_mark}, overwrite=overwrite)
    if steered:
        _write_control_vector(directory / FILE, weights, output)
        say(
            f"a control vector for the weights in {weights}: export that folder too, and give llama.cpp both "
            f"(-m WEIGHTS.gguf --control-vector {output}); those weights alone are the untouched model"
        )
    else:
        _convert(_converter(), weights, output, say)
    write_json(mark, {"schema": 1, "what": WHAT, "sha256": file_sha256(output)})
    return [output]


def _convert(converter: Path, checkpoint: Path, output: Path, say: Callable[[str], None]) -> None:
    config = read_json(checkpoint / "config.json")
    dtype = config.get("dtype") or config.get("torch_dtype")
    if dtype not in TYPES:
        raise UserError(
            f"the weights in {checkpoint} are stored as {dtype!r} by their config.json: only {', '.join(TYPES)} are "
            "exported. Save the model in one of these."
        )
    say(f"converting with {converter}")
    with renamed_when_whole(output) as temporary:
        # Without -P: it imports what lies beside it, and a script has its own folder on the path, not the current one.
        command = [sys.executable, str(converter), str(checkpoint.absolute())]
        command += ["--outfile", str(temporary.absolute()), "--outtype", TYPES[dtype]]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
        if done.returncode or not _is_gguf(temporary):
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it wrote no GGUF file"]
            hint = ". Install what its requirements.txt lists" if "ModuleNotFoundError" in lines[-1] else ""
            raise RunError(f"{CONVERTER} failed on {checkpoint}: {one_line(lines[-1], 500)}{hint}")


def _converter() -> Path:
    """llama.cpp's script, in the clone that `LLAMA_CPP` names or on the PATH."""
    clone = os.environ.get(PLACE)
    found = Path(clone).expanduser() / CONVERTER if clone else shutil.which(CONVERTER, mode=os.F_OK)
    if found and is_regular_file(found):
        return Path(found).absolute()
    where = f"{PLACE}={clone} has none" if clone else f"{PLACE} is not set, and the PATH has none"
    raise UserError(
        f"GGUF is written by llama.cpp's {CONVERTER}, and {where}. `git clone https://github.com/ggml-org/llama.cpp`, "
        f"and set {PLACE} to that folder."
    )


def _write_control_vector(file: Path, weights: Path, output: Path) -> None:
    import gguf
    from transformers import AutoConfig

    from efface.model.interventions import check_interventions, read_interventions

    with explained(f"model directory {str(weights)!r}"):
        config = AutoConfig.from_pretrained(weights, trust_remote_code=False).get_text_config(decoder=True)
    interventions = read_interventions(file)
    check_interventions(interventions, config.num_hidden_layers, config.hidden_size)
    directions = _directions(interventions, file)
    with renamed_when_whole(output) as temporary:
        writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", config.model_type)
        writer.add_int32(f"{ARCHITECTURE}.layer_count", len(directions))
        for layer, direction in sorted(directions.items()):
            writer.add_tensor(f"direction.{layer}", direction)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _directions(interventions: "Sequence[Intervention]", file: Path) -> "dict[int, np.ndarray]":
    """Block -> (d,) what is added after it, if nothing but adding is done."""
    multiplied = sorted({one.layer for one in interventions if one.left.any() and one.right.any()})
    if multiplied:
        raise UserError(
            f"{file} multiplies the hidden states after block {', '.join(map(str, multiplied))} (LEACE), and "
            "llama.cpp can only add to them: it would run the untouched model. Load it with efface.load_model, or "
            "train leace with --mode edit, which changes the weights."
        )
    added: dict[int, np.ndarray] = {}
    for one in interventions:
        vector = one.bias.float().numpy()
        added[one.layer] = added[one.layer] + vector if one.layer in added else vector
    if 0 in added:
        raise UserError(
            f"{file} adds a vector after block 0, where llama.cpp has none: its control vectors begin after block 1. "
            "Steer after a later block."
        )
    return added


def _mark_of(output: Path) -> Path:
    """Where it is noted that a file is of an export."""
    return output.with_name(f"{output.name}.json")


def _is_mark(path: Path) -> bool:
    try:
        return read_json(path, {"what": str, "sha256": str})["what"] == WHAT
    except UserError:
        return False


def _is_own(output: Path) -> bool:
    """Whether an export has written this very file: any other begins with the same four letters."""
    mark = _mark_of(output)
    return is_regular_file(output) and _is_mark(mark) and read_json(mark)["sha256"] == file_sha256(output)


def _is_gguf(path: Path) -> bool:
    if not is_regular_file(path):
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"
