"""Is an edit extrapolated as LoX says, by a strength or up to a budget, and left alone where nothing fits?"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import on_grid_, saved
from tiny import tiny_model, tiny_tokenizer
from trained import PASSAGES, ROWS

from efface.cli import main
from efface.errors import RunError, UserError
from efface.evaluation.divergence import kl_to_reference
from efface.files.results import read_json, write_json, write_jsonl
from efface.methods.lox import LoxConfig, LoxEditor
from efface.model.edit import scaled_copy, top_part
from efface.model.save import save_model


def edited_model(family: str, size: float = 0.02) -> Any:
    model = tiny_model(family)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return model


def editor(folder: Path, family: str, model: Any = None, **settings: Any) -> LoxEditor:
    write_jsonl(folder / "passages.jsonl", [{"text": text} for text in PASSAGES])
    defaults = {"base": str(saved(folder / "base", family)), "retain_text": str(folder / "passages.jsonl")}
    config = LoxConfig(str(folder / "out"), use_cpu=True, disable_tqdm=True, **defaults | settings)
    return LoxEditor(edited_model(family) if model is None else model, config, ROWS, tiny_tokenizer())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_by_a_strength_it_is_the_formula(family: str, tmp_path: Path) -> None:
    base, start = tiny_model(family), edited_model(family)
    whole, part = editor(tmp_path / "a", family, strength=1.25), editor(tmp_path / "b", family, strength=1.25, top_k=2)
    whole.train()
    part.train()
    expected = scaled_copy(start, base, 2.25)
    embeddings = {id(part.model.get_input_embeddings().weight), id(part.model.get_output_embeddings().weight)}
    for name, parameter in part.model.named_parameters():
        torch.testing.assert_close(whole.model.get_parameter(name), expected.get_parameter(name))
        old, edit = start.get_parameter(name), start.get_parameter(name) - base.get_parameter(name)
        added = parameter.ndim == 2 and id(parameter) not in embeddings
        torch.testing.assert_close(parameter, old + 1.25 * top_part(edit, 2) if added else old)
    assert part.found["strength"] == 1.25 and part.record()["steps"] == 0


@pytest.mark.parametrize("top_k", [None, 3])
def test_without_a_strength_it_ends_at_the_budget(top_k: int | None, tmp_path: Path) -> None:
    base, start = tiny_model("llama"), edited_model("llama")
    spent = kl_to_reference(start, base, tiny_tokenizer(), PASSAGES)
    found = editor(tmp_path, "llama", max_kl=1.3 * spent, max_perplexity_increase=9.0, top_k=top_k)
    found.train()
    kl = kl_to_reference(found.model, base, tiny_tokenizer(), PASSAGES)
    assert found.found["strength"] > 0 and found.found["fitted"]["binding"] == ["kl"]
    assert 0.93 * 1.3 * spent < kl <= 1.3 * spent


def test_where_nothing_fits_the_model_is_as_it_was(tmp_path: Path) -> None:
    start = edited_model("llama")
    found = editor(tmp_path, "llama", copy.deepcopy(start), max_kl=0.0, max_perplexity_increase=0.0, top_k=2)
    with pytest.raises(RunError, match="keeps within the budget"):
        found.train()
    for name, parameter in found.model.named_parameters():
        assert torch.equal(parameter, start.get_parameter(name))


def test_the_base_is_named_by_the_run_or_by_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Pass base=MODEL"):
        editor(tmp_path, "llama", base=None)
    trained = saved(tmp_path / "trained", seed=1)
    write_json(trained / "results.json", {"model": str(saved(tmp_path / "base"))})
    found = editor(tmp_path, "llama", str(trained), base=None, strength=0.5)
    assert torch.equal(found.base.lm_head.weight, tiny_model("llama").lm_head.weight)
    with pytest.raises(UserError, match="top_k=0"):
        LoxConfig("out", top_k=0)


def test_the_command_line_finds_the_base(tmp_path: Path, fails: Any) -> None:
    """It asked for --base always: the method got the loaded model, which has no results beside it."""
    start, pairs, base, trained = (tmp_path / name for name in ("start", "pairs.jsonl", "base", "trained"))
    save_model(on_grid_(tiny_model("llama")), tiny_tokenizer(), start)
    write_jsonl(pairs, ROWS)
    for before, after, rate in ((start, base, "0"), (base, trained, "1e-3")):  # base stays on the grid
        argv = ["train", "dpo", str(before), str(pairs), "-o", str(after), "--max_steps", "1"]
        assert main([*argv, "--learning_rate", rate]) == 0
    for method, more in (("lox", ["--strength", "1"]), ("gptq", [])):
        out = tmp_path / method
        assert main(["train", method, str(trained), str(pairs), "-o", str(out), *more]) == 0
        assert read_json(out / "results.json")["found"]["base"] == str(base)
        said = fails(2, "train", method, trained, pairs, "-o", base, "--overwrite", *more)
        assert f"{str(base)!r} lies in the output directory" in said
        assert "Pass --base MODEL" in fails(2, "train", method, start, pairs, "-o", tmp_path / "no", *more)
