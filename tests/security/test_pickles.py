"""Is any pickle read, or written, that could run code? Weights are safetensors, states of a run numbers.

Of: model/checkpoint_files.py
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import edit, saved
from hostile import Runs
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import tiny_model

from efface.cli import main
from efface.errors import UserError
from efface.model.load import load_model
from efface.scoring import load_scorer

TRAIN = ["--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1", "--use_cpu", "true"]


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "code-has-run"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [{"prompt": f"Town {i}", "chosen": " is by the river", "rejected": " is silly"} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "pairs.jsonl"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickled_weights_are_refused_by_name(name: str, tmp_path: Path, mark: Path) -> None:
    path = saved(tmp_path / "model")
    (path / "model.safetensors").unlink()
    torch.save({**tiny_model("llama").state_dict(), "x": Runs(mark)}, path / name)
    for load in (load_model, lambda where: load_scorer(f"llm:{where}"), lambda where: load_scorer(f"hf:{where}")):
        with pytest.raises(UserError, match="a pickle, which is not read|no file named model.safetensors"):
            load(str(path))
    assert not mark.exists()


def test_an_index_of_pickles_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "model")
    names = dict.fromkeys(load_file(path / "model.safetensors"), "pytorch_model.bin")
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(UserError, match="has weights in 'pytorch_model.bin' .*, and only safetensors are read"):
        load_model(path)


def test_a_pickled_adapter_is_refused(model: Path, tmp_path: Path, mark: Path) -> None:
    get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "a")  # type: ignore[arg-type]
    edit(tmp_path / "a" / "adapter_config.json", base_model_name_or_path=os.fspath(model))
    file = tmp_path / "a" / "adapter_model.safetensors"
    torch.save({**load_file(file), "x": Runs(mark)}, file.with_suffix(".bin"))
    load_model(tmp_path / "a")  # the safetensors beside it
    file.unlink()
    with pytest.raises(UserError, match="has its weights in adapter_model.bin, a pickle, which is not read"):
        load_model(tmp_path / "a")
    assert not mark.exists()


def test_a_run_writes_no_pickle_but_states_of_numbers_and_resumes_from_no_other(
    model: Path, pairs: Path, tmp_path: Path, mark: Path, fails: Any
) -> None:
    command = ["train", "sft", str(model), str(pairs), "-o", str(tmp_path / "run"), *TRAIN]
    assert main(command) == 0
    pickles = {file for suffix in ("bin", "pt", "pth", "pkl") for file in (tmp_path / "run").rglob(f"*.{suffix}")}
    assert {file.name for file in pickles} == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    for file in pickles:
        torch.load(file, weights_only=True) if file.name != "rng_state.pth" else None
    checkpoint = tmp_path / "run" / "checkpoint-1"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        before = (checkpoint / name).read_bytes()
        for late in (tmp_path / "run" / "results.json", tmp_path / "run" / "checkpoint-2" / "scheduler.pt"):
            late.unlink(missing_ok=True)
        torch.save({"state": Runs(mark)}, checkpoint / name)
        assert "checkpoint-1 asks for code when it is read, and such is never run" in fails(2, *command, "--resume")
        (checkpoint / name).write_bytes(before)
    torch.save(Runs(mark), checkpoint / "training_args.bin")  # which transformers writes, and nobody reads
    assert main([*command, "--resume"]) == 0
    assert not mark.exists()
