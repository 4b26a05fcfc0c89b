"""Is a merged adapter the model that both were, with its card, and may a result of LoRA be robustified?

Of: commands/merge.py
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from efface.cli import main
from efface.files.jsonl import Row
from efface.files.results import read_json, write_json, write_jsonl
from efface.model.load import load_model
from efface.model.save import save_model

IDS = torch.arange(8)[None]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of a base in bfloat16."""
    folder = tmp_path_factory.mktemp("merge")
    save_model(tiny_model("llama").bfloat16(), tiny_tokenizer(), folder / "base")
    rows: list[Row] = [{"prompt": f"The town {i}", "chosen": " is old.", "rejected": " is a fool."} for i in range(8)]
    write_jsonl(folder / "pairs.jsonl", rows)
    argv = ["train", "sft", str(folder / "base"), str(folder / "pairs.jsonl"), "-o", str(folder / "adapter")]
    assert main([*argv, "--max_steps", "2", "--lora_r", "4", "--learning_rate", "1e-1"]) == 0
    return folder / "adapter"


def test_both_together_in_the_precision_of_the_base(adapter: Path, tmp_path: Path) -> None:
    assert main(["merge", str(adapter), "-o", str(tmp_path / "out")]) == 0
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    base = AutoModelForCausalLM.from_pretrained(adapter.parent / "base", dtype="auto")
    together, _ = load_model(adapter, dtype="auto", device="cpu")
    with torch.no_grad():
        expected, found, before = (one(IDS).logits.float() for one in (together, whole, base))
    assert whole.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.1 * (expected - before).abs().max()
    result = read_json(tmp_path / "out" / "results.json")
    assert result["merged"] is True and result["method"] == "sft"
    assert "library_name: transformers" in (tmp_path / "out" / "README.md").read_text()


def test_a_record_of_somebody_elses_is_none(adapter: Path, tmp_path: Path) -> None:
    """It ended in a traceback, with half of the output written."""
    shutil.copytree(adapter, tmp_path / "theirs")
    write_json(tmp_path / "theirs" / "results.json", {"accuracy": 0.5})
    assert main(["merge", str(tmp_path / "theirs"), "-o", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "results.json").exists()


def test_what_cannot_be_merged(adapter: Path, fails: Any, tmp_path: Path) -> None:
    base = adapter.parent / "base"
    assert "has no adapter: there is nothing to merge" in fails(2, "merge", base, "-o", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "is left alone" in fails(2, "merge", adapter, "-o", tmp_path / "mine", "--overwrite")
    assert main(["merge", str(adapter), "-o", str(tmp_path / "out")]) == 0
    assert "or pass --overwrite." in fails(2, "merge", adapter, "-o", tmp_path / "out")


def test_a_result_of_lora_is_robustified(adapter: Path, tmp_path: Path) -> None:
    argv = ["robustify", str(adapter), str(adapter.parent / "pairs.jsonl"), "-o", str(tmp_path / "out")]
    assert main([*argv, "--max_steps", "1", "--alpha", "0", "--learning_rate", "0"]) == 0  # no damage, no repair
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    together, found = (load_model(one, device="cpu")[0] for one in (adapter, tmp_path / "out"))
    with torch.no_grad():
        torch.testing.assert_close(found(IDS).logits, together(IDS).logits, atol=1e-4, rtol=1e-3)
