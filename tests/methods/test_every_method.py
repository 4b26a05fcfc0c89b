"""Does every method work on every family, with every other setting that goes with any method? The grid."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from every_method import TRAINED, build
from tiny import FAMILIES, tiny_model
from torch import nn
from trained import PASSAGES

from efface.errors import UserError
from efface.files.results import write_jsonl
from efface.methods import METHODS, load_method
from efface.model.load import load_model
from efface.training.settings import build_config, parse_settings
from efface.training.trainer import PairTrainer

ROOT = Path(__file__).parents[2]
TWO = ("gpt2", "llama")  # every method runs on these
THREE = ("repo", "dpo", "rmu")  # these run on every family
GRID = [
    pytest.param(method, family, marks=[] if family in TWO or method in THREE else [pytest.mark.full])
    for method in METHODS
    for family in FAMILIES
]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 15)[None]).logits


@pytest.mark.parametrize(("method", "family"), GRID)
def test_every_method_changes_every_family_and_only_what_it_may(method: str, family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    before = logits(model)
    trainer = build(method, model, tmp_path / "out")
    start = weights(trainer.model)
    # Asked now: `train` hands the caller's flags back.
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    trainer.train()
    trainer.save_model()
    if isinstance(trainer, PairTrainer):
        moved = {
            name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, start[name])
        }
        # A unit may be dead; what is frozen must not move at all.
        assert moved and moved <= trained, f"frozen but moved: {sorted(moved - trained)}"
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert len(losses) == 2 and all(map(math.isfinite, losses))
    after = logits(trainer.model.eval())
    assert torch.isfinite(after).all() and not torch.allclose(after, before, atol=1e-6)
    if not (tmp_path / "out" / "adapter_config.json").exists():  # an adapter names its base, which was never saved
        loaded, _ = load_model(str(tmp_path / "out"), device="cpu")
        torch.testing.assert_close(logits(loaded), after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", TRAINED)
def test_every_trained_method_takes_ordinary_passages(method: str, tmp_path: Path) -> None:
    passages = tmp_path / "passages.jsonl"
    write_jsonl(passages, [{"text": text} for text in PASSAGES])
    trainer = build(method, tiny_model("llama"), tmp_path, retain_text=str(passages), w_retain_text=3.0)
    trainer.train()
    found_kl = [entry["retain_text_loss"] for entry in trainer.state.log_history if "retain_text_loss" in entry]
    assert len(found_kl) == 2 and found_kl[1] > 0


@pytest.mark.parametrize(("family", "withstand"), [("llama", "sharpness:0.5"), ("gpt2", "relearn:1e-2/2/2")])
@pytest.mark.parametrize("method", TRAINED)
def test_every_trained_method_goes_with_perturbed_steps(
    method: str, family: str, withstand: str, tmp_path: Path
) -> None:
    plain = build(method, tiny_model(family), tmp_path)
    plain.train()
    perturbed = build(method, tiny_model(family), tmp_path, withstand=withstand)
    perturbed.train()
    pairs = list(zip(plain.model.parameters(), perturbed.model.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert all(torch.isfinite(b).all() for _, b in pairs)
    for trainer in (plain, perturbed):  # logged as often
        assert sum("loss" in row for row in trainer.state.log_history) == 2


@pytest.mark.parametrize("method", TRAINED)
def test_a_coefficient_that_is_no_number_is_refused(method: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="w_retain_text=nan: it must be a finite number"):
        build(method, tiny_model("llama"), tmp_path, w_retain_text=math.nan)


def test_every_entry_says_where_it_is_from() -> None:
    for name, method in METHODS.items():
        assert method.source and method.what and method.memory, name
        assert load_method(name).__name__ in method.path


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_presets_are_settings_of_their_method(file: Path, tmp_path: Path) -> None:
    config_class: Any = load_method(file.stem).config_class
    settings = parse_settings(config_class, str(file), ["--use_cpu"])
    config = build_config(config_class, settings, tmp_path)
    assert len(settings) > 5 and all(getattr(config, name) == value for name, value in settings.items())
