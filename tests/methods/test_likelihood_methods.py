"""Do the methods that speak of likelihoods alone have the published losses? sft, retain, graddiff, npo, simnpo, dpo

Of: methods/dpo.py, methods/graddiff.py, methods/npo.py, methods/retain.py, methods/sft.py, methods/simnpo.py
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from formulas import token_kl, token_log_probabilities
from hypothesis import given
from hypothesis import strategies as st
from tiny import PAD_ID, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from trained import PASSAGES, ROWS, whole_batch

from efface.data.batch import PairBatch
from efface.errors import UserError
from efface.methods import PLAIN
from efface.methods.dpo import DPOConfig, DPOTrainer, dpo_loss
from efface.methods.graddiff import GradDiffConfig, GradDiffTrainer
from efface.methods.npo import NPOConfig, NPOTrainer, npo_loss
from efface.methods.repo import REPOTrainer
from efface.methods.retain import RetainConfig, RetainTrainer
from efface.methods.sft import SFTConfig, SFTTrainer
from efface.methods.simnpo import SimNPOConfig, SimNPOTrainer, simnpo_loss
from efface.training.config import PairConfig
from efface.training.trainer import Counts, PairTrainer

TRAINERS: dict[str, type[PairTrainer]] = {
    "sft": SFTTrainer,
    "retain": RetainTrainer,
    "graddiff": GradDiffTrainer,
    "npo": NPOTrainer,
    "simnpo": SimNPOTrainer,
    "dpo": DPOTrainer,
    "repo": REPOTrainer,
}
Build = Callable[..., PairTrainer]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """A trainer on a tiny model whose reference is another one, so that nothing is 0 by chance."""

    def make(method: str, rows: Any = ROWS, passages: list[str] | None = None, **settings: Any) -> PairTrainer:
        its_own = settings.pop("its_own_reference", False)
        defaults = {
            "output_dir": str(tmp_path),
            "max_steps": 3,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
        }
        return TRAINERS[method](
            tiny_model("llama"),
            TRAINERS[method].config_class(**(defaults | settings)),
            rows,
            processing_class=tiny_tokenizer(),
            ref_model=None if its_own else tiny_model("llama", seed=1),
            retain_text=passages,
        )

    return make


def loss_and_gradients(trainer: PairTrainer) -> tuple[Tensor, dict[str, Tensor]]:
    loss = trainer.compute_loss(trainer.model, whole_batch(trainer))  # type: ignore[arg-type]
    assert isinstance(loss, Tensor)
    return loss.detach(), gradients(loss, trainer.model)  # type: ignore[arg-type]


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of all gradients together, relative to the length of the expected."""
    assert found.keys() == expected.keys()
    difference = torch.stack([(found[name] - expected[name]).norm() for name in found]).norm()
    return (difference / torch.stack([gradient.norm() for gradient in expected.values()]).norm()).item()


class Direct:
    """What the formulas speak of, from the logits of whole rows: under f, `logp[side]`, and under f0, `ref[side]`,
    of each pair the (tokens,) log-probabilities; `kl[part]` (tokens,) of all rows of a part."""

    def __init__(self, model: nn.Module, untouched: nn.Module, batch: PairBatch):
        ids, n = batch["input_ids"], batch["n_pairs"]
        logits = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits
        with torch.no_grad():
            expected = untouched(input_ids=ids, attention_mask=batch["attention_mask"]).logits
        self.logp: dict[str, list[Tensor]] = {}
        self.ref: dict[str, list[Tensor]] = {}
        self.kl: dict[str, Tensor] = {}
        parts = {"chosen": range(n), "rejected": range(n, 2 * n), "passages": range(2 * n, len(ids))}
        for part, rows in parts.items():
            # The token at t is predicted at t - 1.
            where = {row: batch["continuation_mask"][row].nonzero().flatten() for row in rows}
            for found, source in ((self.logp, logits), (self.ref, expected)):
                found[part] = [token_log_probabilities(source[row, t - 1], ids[row, t]) for row, t in where.items()]
            self.kl[part] = torch.cat(
                [
                    logits.new_zeros(0),
                    *(token_kl(expected[row, t - 1], logits[row, t - 1]) for row, t in where.items()),
                ]
            )

    def nll(self, side: str) -> Tensor:
        return -torch.cat(self.logp[side]).mean()

    def ratio(self, side: str) -> Tensor:
        """(pairs,) log f(y | x) - log f0(y | x)"""
        return torch.stack([a.sum() - b.sum() for a, b in zip(self.logp[side], self.ref[side], strict=True)])

    def margin(self, beta: float) -> Tensor:
        return beta * (self.ratio("chosen") - self.ratio("rejected"))


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def npo_formula(of: Direct, beta: float) -> Tensor:
    return 2 / beta * (1 + of.ratio("rejected").exp() ** beta).log().mean()  # the second form of eq. 3


def simnpo_formula(of: Direct, beta: float, gamma: float) -> Tensor:
    means = torch.stack([tokens.mean() for tokens in of.logp["rejected"]])
    return -2 / beta * sigmoid(-beta * means - gamma).log().mean()


CASES: list[tuple[str, dict[str, Any], Callable[[Direct], Tensor]]] = [
    ("sft", {}, lambda of: of.nll("chosen")),
    ("retain", {"w_retain": 0.7}, lambda of: 0.7 * of.kl["chosen"].mean()),
    ("graddiff", {}, lambda of: -of.nll("rejected") + of.nll("chosen")),
    (
        "graddiff",
        {"retain": "kl", "w_retain": 3.0, "w_forget": 0.5},
        lambda of: -0.5 * of.nll("rejected") + 3 * of.kl["chosen"].mean(),
    ),
    ("graddiff", {"retain": "none"}, lambda of: -of.nll("rejected")),
    ("npo", {}, lambda of: npo_formula(of, 0.1) + of.kl["chosen"].mean()),
    (
        "npo",
        {"beta": 0.05, "retain": "nll", "w_retain": 2.0, "w_forget": 0.3},
        lambda of: 0.3 * npo_formula(of, 0.05) + 2 * of.nll("chosen"),
    ),
    ("npo", {"w_retain": 0.0}, lambda of: npo_formula(of, 0.1)),
    ("simnpo", {}, lambda of: simnpo_formula(of, 0.7, 0.0) + of.nll("chosen")),
    (
        "simnpo",
        {"beta": 1.5, "gamma": 0.4, "retain": "kl"},
        lambda of: simnpo_formula(of, 1.5, 0.4) + of.kl["chosen"].mean(),
    ),
    ("dpo", {}, lambda of: -sigmoid(of.margin(0.1)).log().mean()),
    (
        "dpo",
        {"beta": 0.05, "label_smoothing": 0.2},
        lambda of: -(0.8 * sigmoid(of.margin(0.05)).log() + 0.2 * sigmoid(-of.margin(0.05)).log()).mean(),
    ),
]


@pytest.mark.parametrize("passages", [None, PASSAGES], ids=["", "passages"])
@pytest.mark.parametrize(("method", "settings", "formula"), CASES)
def test_loss_and_gradient_are_those_of_the_formula(
    method: str,
    settings: dict[str, Any],
    formula: Callable[[Direct], Tensor],
    passages: list[str] | None,
    build: Build,
) -> None:
    trainer = build(method, passages=passages, **({"retain_text": None, "w_retain_text": 2.0} | settings))
    loss, found = loss_and_gradients(trainer)
    model = tiny_model("llama")
    direct = Direct(model, tiny_model("llama", seed=1), whole_batch(trainer))
    expected = formula(direct)
    if passages:
        expected = expected + 2 * direct.kl["passages"].mean()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-5)
    assert distance(found, gradients(expected, model)) < 1e-3


@pytest.mark.parametrize("settings", [{}, {"loss_type": "robust", "label_smoothing": 0.1, "beta": 0.02}])
def test_dpo_is_that_of_trl(settings: dict[str, Any], build: Build, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="the yardstick is in the extra `trl`")
    from datasets import Dataset

    ours = build("dpo", **settings)
    ours.model.train()  # type: ignore[union-attr]  # only then are metrics recorded
    loss, found = loss_and_gradients(ours)
    ours.log({})
    theirs = trl.DPOTrainer(
        tiny_model("llama"),
        ref_model=tiny_model("llama", seed=1),
        args=trl.DPOConfig(
            str(tmp_path / "trl"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tiny_tokenizer(),
    )
    pairs: Any = ours.train_dataset
    # Our token ids through their collator: TRL itself would put EOS after every continuation.
    batch = theirs.data_collator([vars(pairs.pairs[i]) for i in range(len(pairs))])
    assert torch.equal(batch["input_ids"], whole_batch(ours)["input_ids"])
    theirs.model.train()
    expected = theirs.compute_loss(theirs.model, batch)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-5)
    assert distance(found, gradients(expected, theirs.model)) < 1e-4
    theirs.log({})
    ours_logged, theirs_logged = (trainer.state.log_history[-1] for trainer in (ours, theirs))
    names = [name for name in ours_logged if "/" in name]
    assert len(names) == 6
    for name in names:
        assert ours_logged[name] == pytest.approx(theirs_logged[name], rel=1e-3, abs=1e-4), name
    assert 0 < ours_logged["rewards/accuracies"] < 1


def test_npo_tends_to_gradient_ascent_as_beta_falls(build: Build) -> None:
    """Proposition 1 of Zhang et al. 2024, away from the reference."""
    model = tiny_model("llama")
    batch = whole_batch(build("npo", retain="none"))
    ascent = gradients(torch.stack([row.sum() for row in Direct(model, model, batch).logp["rejected"]]).mean(), model)
    distances = []
    for beta in (0.1, 1e-2, 1e-3, 1e-4):
        _, found = loss_and_gradients(build("npo", retain="none", beta=beta))
        distances.append(distance(found, ascent))
    assert distances[0] > 0.1 and distances[-1] < 1e-2
    assert distances == sorted(distances, reverse=True)
    # At the reference itself they are equal, whatever beta is.
    _, found = loss_and_gradients(build("npo", retain="none", beta=0.5, its_own_reference=True))
    assert distance(found, ascent) < 1e-3


@given(ratio=st.floats(-50, 50), beta=st.floats(1e-3, 2))
def test_npo_weighs_ascent_by_the_share_of_the_model(ratio: float, beta: float) -> None:
    """2 f^beta / (f^beta + f0^beta): Zhang et al. 2024, section 3."""
    log_ratio = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    npo_loss(log_ratio, beta).sum().backward()
    share = math.exp(beta * ratio) / (math.exp(beta * ratio) + 1)
    assert log_ratio.grad is not None and log_ratio.grad.item() == pytest.approx(2 * share, rel=1e-9)


@given(margin=st.floats(-30, 30), smoothing=st.floats(0, 0.45))
def test_what_label_smoothing_does(margin: float, smoothing: float) -> None:
    m = torch.tensor([margin], dtype=torch.float64)
    clean, swapped = -F.logsigmoid(m), -F.logsigmoid(-m)
    assert torch.equal(dpo_loss(m), clean)
    torch.testing.assert_close(dpo_loss(m, smoothing), (1 - smoothing) * clean + smoothing * swapped)
    # Theorem of robust DPO: over labels that are swapped at that rate, its mean is DPO's loss.
    robust = (1 - smoothing) * dpo_loss(m, smoothing, "robust") + smoothing * dpo_loss(-m, smoothing, "robust")
    torch.testing.assert_close(robust, clean)


@given(mean=st.floats(-10, -0.01), length=st.integers(1, 50))
def test_simnpo_does_not_see_the_length(mean: float, length: int) -> None:
    sums, lengths = torch.tensor([mean, mean * length], dtype=torch.float64), torch.tensor([1, length])
    one, many = simnpo_loss(sums, lengths, beta=0.7, gamma=0.3)
    torch.testing.assert_close(one, many)


def test_retain_is_repo_without_its_adversary(build: Build) -> None:
    """As the erasure alone has it (a reference gives something to retain): loss, gradient, three steps."""
    found = []
    for method, settings in (("retain", {}), ("repo", PLAIN | {"w_erase": 0.0, "max_steps": 3})):
        trainer = build(method, optim="sgd", learning_rate=1e-3, per_device_train_batch_size=4, **settings)
        loss, gradient = loss_and_gradients(trainer)
        assert loss > 0.1
        trainer.train()
        found.append((loss, gradient, dict(trainer.model.named_parameters())))  # type: ignore[union-attr]
    (loss, gradient, end), (expected_loss, expected_gradient, expected_end) = found
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    assert distance(gradient, expected_gradient) < 1e-4
    start = dict(tiny_model("llama").named_parameters())
    assert max((end[name] - start[name]).abs().max() for name in start) > 1e-4
    for name in start:
        torch.testing.assert_close(end[name], expected_end[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [name for name in TRAINERS if name != "repo"])
def test_the_loss_of_a_batch_is_the_sum_over_its_micro_batches(method: str, build: Build) -> None:
    trainer = build(method, passages=PASSAGES)
    counts = torch.stack(Counts.of(whole_batch(trainer)))
    dataset: Any = trainer.train_dataset
    first, second = trainer.passage_stream.numbers(0)
    shares = [((0, 1, 2), [first]), ((3,), []), ((4, 5, 6, 7), [second])]
    parts = [
        dataset.add_passages(trainer.data_collator([dataset[i] for i in rows]), passages, PAD_ID)
        for rows, passages in shares
    ]
    losses = [trainer.compute_loss(trainer.model, part, num_items_in_batch=counts) for part in parts]  # type: ignore[arg-type]
    summed = torch.stack(losses).sum()  # type: ignore[arg-type]
    found = gradients(summed, trainer.model)  # type: ignore[arg-type]
    whole, expected = loss_and_gradients(trainer)
    torch.testing.assert_close(summed.detach(), whole, rtol=1e-5, atol=1e-5)
    assert distance(found, expected) < 1e-4


@pytest.mark.parametrize("method", ["npo", "dpo"])
def test_accumulated_micro_batches_equal_one_large_batch(method: str, build: Build) -> None:
    results = []
    for size, accumulate in ((8, 1), (4, 2)):
        trainer = build(
            method,
            passages=PASSAGES,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulate,
            optim="sgd",  # Adam would blow rounding up to a whole step
            learning_rate=0.05,
        )
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        results.append((dict(trainer.model.named_parameters()), logs))  # type: ignore[union-attr]
    (one, logs_of_one), (other, logs_of_other) = results
    start = dict(tiny_model("llama").named_parameters())
    assert max((one[name] - start[name]).abs().max() for name in start) > 1e-3
    for name in one:
        torch.testing.assert_close(
            other[name], one[name], rtol=1e-3, atol=2e-5, msg=lambda text, name=name: name + text
        )
    for mine, its in zip(logs_of_other, logs_of_one, strict=True):
        for name in set(its) - {"grad_norm"}:
            assert mine[name] == pytest.approx(its[name], rel=1e-3, abs=1e-4), name


def test_dpo_starts_at_ln_2_with_its_own_reference(build: Build) -> None:
    for settings in ({"precompute_reference": "on"}, {"precompute_reference": "off"}, {"lora_r": 2}):
        trainer = build("dpo", its_own_reference=True, learning_rate=1e-3, **settings)
        trainer.train()
        first, *_, last = (entry for entry in trainer.state.log_history if "loss" in entry)
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert last["loss"] < first["loss"] and last["rewards/margins"] > first["rewards/margins"] + 1e-3


# What is not needed is not computed


@pytest.mark.parametrize(
    ("method", "settings", "sides", "asks"),
    [
        ("sft", {}, ("chosen",), False),
        ("retain", {"retain_text": None}, ("chosen",), True),
        ("graddiff", {}, ("chosen", "rejected"), False),
        ("graddiff", {"retain": "kl"}, ("chosen", "rejected"), True),
        ("graddiff", {"retain": "none"}, ("rejected",), False),
        ("graddiff", {"retain": "kl", "w_retain": 0.0}, ("rejected",), False),
        ("npo", {"retain": "none"}, ("rejected",), True),
        ("simnpo", {}, ("chosen", "rejected"), False),
        ("dpo", {}, ("chosen", "rejected"), True),
    ],
)
def test_what_is_projected_and_whether_the_reference_is_asked(
    method: str, settings: dict[str, Any], sides: tuple[str, ...], asks: bool, build: Build
) -> None:
    trainer = build(method, **settings)
    assert (trainer.reference.kind != "not needed") is asks
    n = len(ROWS)
    project = trainer.project(whole_batch(trainer))
    assert [bool(project[rows].any()) for rows in (slice(0, n), slice(n, 2 * n))] == [
        side in sides for side in ("chosen", "rejected")
    ]
    with_passages = build(method, passages=PASSAGES, **settings)
    assert with_passages.reference.kind != "not needed"
    without_weight = build(method, passages=PASSAGES, **(settings | {"w_retain_text": 0.0}))
    assert (without_weight.reference.kind != "not needed") is asks
    without_weight.compute_loss(without_weight.model, whole_batch(without_weight))  # type: ignore[arg-type]


# Settings that cannot work


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (GradDiffConfig, {"retain": "l2"}, "retain='l2' is unknown. Choose one of kl, nll, none"),
        (GradDiffConfig, {"w_forget": 0.0}, "w_forget=0.0: it must be a finite number above 0"),
        (SimNPOConfig, {"w_retain": -1.0}, "w_retain=-1.0: it must be a finite number, 0 or more"),
        (RetainConfig, {"w_retain": 0.0}, "w_retain=0.0: it must be a finite number above 0"),
        (NPOConfig, {"beta": 0.0}, "beta=0.0: it must be a finite number above 0"),
        (NPOConfig, {"retain": "ce"}, "retain='ce' is unknown"),
        (SimNPOConfig, {"beta": -0.1}, "beta=-0.1: it must be a finite number above 0"),
        (SimNPOConfig, {"gamma": -1.0}, "gamma=-1.0: it must be a finite number, 0 or more"),
        (DPOConfig, {"beta": float("nan")}, "beta=nan: it must be a finite number"),
        (DPOConfig, {"loss_type": "ipo"}, "loss_type='ipo' is unknown. Choose one of sigmoid, robust"),
        (DPOConfig, {"label_smoothing": 0.5}, r"label_smoothing=0.5: it must be in \[0, 0.5\), as labels that"),
        (DPOConfig, {"label_smoothing": -0.1}, r"label_smoothing=-0.1: it must be in \[0, 0.5\)"),
        (SFTConfig, {"w_retain_text": -1.0}, "w_retain_text=-1.0: it must be a finite number, 0 or more"),
    ],
)
def test_settings_that_cannot_work(config: type[PairConfig], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config("out", use_cpu=True, **settings)
