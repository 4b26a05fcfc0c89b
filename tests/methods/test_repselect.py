"""Does RepSelect take the step that its formula says, as far as the budget, and leave the model whole if none fits?"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from every_method import build
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor
from trained import PASSAGES, ROWS

from efface.errors import RunError, UserError
from efface.files.results import write_jsonl
from efface.methods.repselect import enough, farthest, matrices
from efface.training.finetune import finetune


def squared_distance(model: Any, reference: Any) -> float:
    """Stands for the KL: grows with the square of the way, and needs no forward."""
    pairs = zip(model.parameters(), reference.parameters(), strict=True)
    return float(sum((a - b).detach().square().sum() for a, b in pairs))


def editor(family: str, folder: Path, **more: Any) -> Any:
    write_jsonl(folder / "texts.jsonl", [{"text": text} for text in PASSAGES])
    found = build("repselect", tiny_model(family), folder, retain_text=str(folder / "texts.jsonl"), **more)
    found.divergence = squared_distance
    return found


def forget_gradient(model: Any, names: list[str], side: str) -> list[Tensor]:
    """Of mean log f over the tokens of a side, row by row."""
    tokenizer, found, weights = tiny_tokenizer(), [], dict(model.named_parameters())
    for name in names:
        weights[name].requires_grad_(True)
    for row in ROWS:
        prompt, continuation = (tokenizer(row[key])["input_ids"] for key in ("prompt", side))
        ids = torch.tensor(prompt + continuation)
        log = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        found += [log[t - 1, ids[t]] for t in range(len(prompt), len(ids))]
    return list(torch.autograd.grad(torch.stack(found).mean(), [weights[name] for name in names]))


def collapsed(gradient: Tensor, other: Tensor, k: int) -> Tensor:
    """Soft, by a whole SVD: the components of `other` in `gradient`, on one side, then on the other."""
    u, s, vt = torch.linalg.svd(other, full_matrices=False)
    gone = 1 - s[k - 1] / s[:k]
    gradient = gradient - u[:, :k] @ (gone[:, None] * (u[:, :k].T @ gradient))
    return gradient - ((gradient @ vt[:k].T) * gone) @ vt[:k]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(("of", "steps"), [("forget", 2), ("retain", 0)])
def test_the_way_is_down_the_selective_gradient_with_the_adapter_on(
    family: str, of: str, steps: int, tmp_path: Path
) -> None:
    found = editor(family, tmp_path, adversary_steps=steps, selective_of=of)
    start = tiny_model(family)
    names = list(matrices(found.model))
    assert len(names) == (4 if family == "gpt2" else 6)
    eager, shown = start, names
    if steps:
        texts = [
            tiny_tokenizer()(row["prompt"])["input_ids"] + tiny_tokenizer()(row["rejected"])["input_ids"]
            for row in ROWS
        ]
        common: dict[str, Any] = {"steps": steps, "learning_rate": 5e-4, "max_length": 256, "seed": 0}
        eager = finetune(start, tiny_tokenizer(), texts, lora_r=8, lora_alpha=8, **common).get_base_model()
        shown = [name.replace(".weight", ".base_layer.weight") for name in names]
    before = dict(start.named_parameters())
    forget = forget_gradient(eager, shown, "rejected")
    others = forget if of == "forget" else forget_gradient(eager, shown, "chosen")
    expected = [collapsed(a, b, round(0.125 * min(a.shape))) for a, b in zip(forget, others, strict=True)]
    length = torch.stack([each.norm() for each in expected]).norm()
    found.train()
    (said,) = found.found["rounds"]
    whole = torch.stack([before[name].norm() for name in names]).norm()
    for name, weight in found.model.named_parameters():
        moved = weight.detach() - before[name].detach()
        if name not in names:
            assert torch.equal(weight, before[name]), name
            continue
        way = -expected[names.index(name)] / length * said["distance"] * whole
        torch.testing.assert_close(moved, way.detach(), rtol=2e-2, atol=2e-3 * float(way.abs().max()) + 1e-6)
    assert 0.95 * 0.05 <= said["kl"] <= 0.05 and found.found["kl"] == said["kl"]
    assert said["kl"] == pytest.approx((said["distance"] * float(whole)) ** 2, rel=1e-2)
    assert said["gradient_kept"] == pytest.approx(
        float(length / torch.stack([each.norm() for each in forget]).norm()), rel=1e-2
    )


def test_the_real_divergence_is_within_the_budget_and_toxic_text_less_likely(tmp_path: Path) -> None:
    found = editor("llama", tmp_path, kl_budget=0.02, adversary_steps=0)
    found.divergence = found._kl
    before = tiny_model("llama")

    def nll(model: Any) -> float:
        ids = torch.tensor([tiny_tokenizer()("You are a fool who thinks")["input_ids"]])
        with torch.no_grad():
            return float(model(input_ids=ids, labels=ids).loss)

    found.train()
    assert 0.019 <= found.found["kl"] <= 0.02
    assert found.found["kl"] == pytest.approx(found._kl(found.model, before), abs=1e-6)
    assert nll(found.model) > nll(before)


def test_rounds_share_the_budget(tmp_path: Path) -> None:
    found = editor("llama", tmp_path, rounds=2, adversary_steps=0)
    found.train()
    first, second = (each["kl"] for each in found.found["rounds"])
    assert 0.95 * 0.025 <= first <= 0.025 and 0.95 * 0.05 <= second <= 0.05


@settings(max_examples=50)
@given(scale=st.floats(1e-2, 1e3), power=st.sampled_from([1.0, 2.0, 3.0]), budget=st.floats(1e-3, 1.0))
def test_the_farthest_distance_is_within_the_budget_and_near_it(scale: float, power: float, budget: float) -> None:
    at = [0.0]

    def place_(distance: float) -> float:
        at[0] = distance
        return (scale * distance) ** power

    distance, kl = farthest(place_, budget)
    assert at[0] == distance and 0.9 * budget <= kl == (scale * distance) ** power <= budget


def test_a_broken_model_counts_as_too_far_and_if_no_step_fits_it_is_as_it_was(tmp_path: Path) -> None:
    found = editor("llama", tmp_path, adversary_steps=0)

    def broken(model: Any, reference: Any) -> float:
        raise RunError("not finite")

    found.divergence = broken
    before = copy.deepcopy(found.model)
    with pytest.raises(RunError, match="no step stays within a KL of 0.05 nats a token: raise kl_budget"):
        found.train()
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), before.parameters(), strict=True))


def test_if_nothing_but_rounding_is_left_of_the_gradient_it_says_so(tmp_path: Path) -> None:
    """All components taken away whole leave some 1e-8 of it, which would be followed as far as the budget goes."""
    found = editor("llama", tmp_path, adversary_steps=0, selective_damping="hard", selective_share=1.0)
    before = copy.deepcopy(found.model)
    with pytest.raises(RunError, match="nothing is left of the forget gradient: lower selective_share"):
        found.train()
    assert all(torch.equal(a, b) for a, b in zip(found.model.parameters(), before.parameters(), strict=True))


def test_settings_that_cannot_work_are_refused_and_a_run_is_told(tmp_path: Path) -> None:
    for name, value, message in (
        ("kl_budget", 0.0, "kl_budget=0.0: it must be a finite number above 0"),
        ("selective_of", "both", "selective_of='both' is unknown"),
        ("selective_damping", "medium", "selective_damping='medium' is unknown"),
        ("selective_share", 2.0, "selective_share=2.0: it must be above 0"),
        ("rounds", 0, "rounds=0: it must be at least 1"),
        ("adversary_steps", -1, "adversary_steps=-1: it must be a finite number, 0 or more"),
    ):
        with pytest.raises(UserError, match=message):
            editor("llama", tmp_path, **{name: value})
    assert "up to a KL of 0.05 nats a token" in editor("llama", tmp_path).describe()[0]


def test_of_the_passages_no_more_are_read_than_the_kl_needs() -> None:
    assert enough(PASSAGES, tiny_tokenizer(), 2) == PASSAGES[:1]
    assert enough(PASSAGES, tiny_tokenizer(), 10_000) == PASSAGES
