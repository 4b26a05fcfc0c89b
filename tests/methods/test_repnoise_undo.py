"""Do RepNoise and UNDO compute what their papers say, and does `efface robustify` do what `efface train undo` does?

Of: methods/repnoise.py, methods/undo.py
"""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from trained import PASSAGES, ROWS, whole_batch

from efface.cli import main
from efface.data.batch import PairBatch
from efface.errors import UserError
from efface.files.results import read_json
from efface.methods import METHODS, Method
from efface.methods.repnoise import RepNoiseTrainer, gaussian_mmd, noise_like
from efface.methods.undo import UNDOTrainer, shrink_and_perturb_
from efface.model.blocks import capture_residuals, decoder_blocks
from efface.training.step import Counts


def build(trainer_class: Any, folder: Path, model: Any = None, **given: Any) -> Any:
    """A trainer on a tiny model, without passages unless `passages` gives some."""
    keywords = {name: given.pop(name) for name in ("peft_config", "ref_model") if name in given}
    defaults: dict[str, Any] = {
        "max_steps": 3,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "retain_text": None,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return trainer_class(
        tiny_model("llama") if model is None else model,
        trainer_class.config_class(str(folder), **defaults | {k: v for k, v in given.items() if k != "passages"}),
        ROWS,
        processing_class=tiny_tokenizer(),
        retain_text=given.get("passages"),
        **keywords,
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def logged(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def log_softmax_of(model: nn.Module, batch: PairBatch) -> Tensor:
    """(rows, T, V), at every position."""
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits.log_softmax(-1)


def places(batch: PairBatch, first: int, last: int) -> list[tuple[int, int]]:
    """(row, position) of every continuation token of the rows from `first` to before `last`."""
    found = batch["continuation_mask"][first:last].nonzero().tolist()
    return [(first + row, position) for row, position in found]


def direct_kl(teacher: nn.Module, student: nn.Module, batch: PairBatch, first: int, last: int) -> float:
    p, q = log_softmax_of(teacher, batch), log_softmax_of(student, batch)
    at = [(p[row, t - 1], q[row, t - 1]) for row, t in places(batch, first, last)]
    return float(torch.stack([(a.exp() * (a - b)).sum() for a, b in at]).mean())


# MMD


def direct_mmd(x: Tensor, y: Tensor) -> Tensor:
    """With loops: five Gaussians, 1/4 to 4 times the mean squared distance."""
    both = [*x, *y]
    distances = [[(a - b).square().sum() for b in both] for a in both]
    mean = sum(float(value.detach()) for row in distances for value in row) / (len(both) ** 2 - len(both))
    total = torch.zeros((), dtype=x.dtype)
    for i, row in enumerate(distances):
        for j, distance in enumerate(row):
            kernel = sum(torch.exp(-distance / (mean * width)) for width in (0.25, 0.5, 1.0, 2.0, 4.0))
            sizes = [len(x) if k < len(x) else len(y) for k in (i, j)]
            same = (i < len(x)) == (j < len(x))
            total = total + kernel * (1 if same else -1) / (sizes[0] * sizes[1])
    return total


def samples(seed: int, n: int, m: int, d: int, scale: float, shift: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(size, d, generator=generator, dtype=torch.float64) * scale for size in (n, m))
    return x + shift, y


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 5),
    m=st.integers(1, 5),
    d=st.integers(1, 4),
    scale=st.sampled_from([1e-3, 1.0, 300.0]),
    shift=st.sampled_from([0.0, 2.0]),
)
def test_mmd_and_its_gradient_equal_brute_force(seed: int, n: int, m: int, d: int, scale: float, shift: float) -> None:
    x, y = samples(seed, n, m, d, scale, shift * scale)
    x.requires_grad_()
    found, expected = gaussian_mmd(x, y), direct_mmd(x, y)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    mine, theirs = (torch.autograd.grad(value, x)[0] * scale for value in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 20), shift=st.floats(0.5, 50))
def test_mmd_is_zero_for_equal_samples_and_positive_for_shifted_ones(seed: int, n: int, shift: float) -> None:
    x, y = samples(seed, n, n, 8, 1.0, 0.0)
    assert gaussian_mmd(x, x.flip(0)) == pytest.approx(0.0, abs=1e-12)
    apart = float(gaussian_mmd(x + shift, x))
    assert apart > 0.05 / n
    assert float(gaussian_mmd(x, x + shift)) == pytest.approx(apart, rel=1e-9)  # symmetric
    assert float(gaussian_mmd(x + shift + 1e4, x + 1e4)) == pytest.approx(apart, rel=1e-6)  # blind to the origin
    assert float(gaussian_mmd(x, y)) >= 0


def test_mmd_of_states_that_are_all_the_same_is_zero_and_has_a_gradient() -> None:
    x = torch.full((3, 4), 0.1, requires_grad=True)
    value = gaussian_mmd(x, torch.full((3, 4), 0.1))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6) and torch.isfinite(x.grad).all()  # type: ignore[arg-type]


def test_the_scale_of_the_noise() -> None:
    states = 50 * torch.randn(400, 16, generator=torch.Generator().manual_seed(1))
    noise = {scale: noise_like(states, scale, torch.Generator().manual_seed(2)) for scale in ("matched", "standard")}
    assert float(noise["standard"].std()) == pytest.approx(1, rel=0.05)
    torch.testing.assert_close(noise["matched"], noise["standard"] * states.square().mean().sqrt())


# RepNoise


def direct_repnoise(trainer: Any, teacher: nn.Module, batch: PairBatch) -> float:
    """The published sum, with loops, on the logits and residuals of a plain forward."""
    args, model, n = trainer.args, trainer.model, batch["n_pairs"]
    with capture_residuals(model, range(len(decoder_blocks(model)))) as residuals:
        predicted = log_softmax_of(model, batch)

    def nll(first: int, last: int) -> float:
        found = [-predicted[row, t - 1, batch["input_ids"][row, t]] for row, t in places(batch, first, last)]
        return float(torch.stack(found).mean())

    kl = direct_kl(teacher, model, batch, 0, n)
    loss = args.w_retain * (kl if args.retain == "kl" else nll(0, n))
    if len(batch["input_ids"]) > 2 * n:
        loss += args.w_retain_text * direct_kl(teacher, model, batch, 2 * n, len(batch["input_ids"]))
    toxic = places(batch, n, 2 * n)
    seed = np.random.SeedSequence([args.seed, trainer.state.global_step]).generate_state(1)[0]
    generator = torch.Generator().manual_seed(int(seed))
    drawn = torch.randperm(len(toxic), generator=generator)[: args.mmd_tokens].tolist()
    distances = []
    for layer in trainer.layers:
        states = torch.stack([residuals[layer][toxic[i]] for i in drawn]).detach()
        noise = torch.randn(states.shape, generator=generator)
        if args.noise_scale == "matched":
            noise *= states.square().mean().sqrt()
        distances.append(float(direct_mmd(states, noise)))
    return loss + args.beta * sum(distances) / len(distances) - args.alpha * float(np.log(1 + nll(n, 2 * n)))


@pytest.mark.parametrize(
    "given",
    [
        {"passages": PASSAGES, "mmd_tokens": 6},
        {"retain": "nll", "noise_scale": "standard", "noise_layers": "0", "mmd_tokens": 9, "seed": 3},
    ],
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_of_repnoise_equals_a_direct_formula(family: str, given: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(family)
    teacher = copy.deepcopy(model)
    given = {"alpha": 0.7, "beta": 2.0, "w_retain": 3.0, "w_retain_text": 5.0} | given
    trainer = build(RepNoiseTrainer, tmp_path, model, **given)
    with torch.no_grad():
        for parameter in trainer.model.parameters():  # or the KL would be zero
            parameter.mul_(1.05)
    batch = whole_batch(trainer)
    found = trainer.compute_loss(trainer.model, batch)
    assert found.item() == pytest.approx(direct_repnoise(trainer, teacher, batch), rel=1e-4)
    # Half of a step's tokens weigh half, in every term.
    twice = torch.stack(Counts.of(batch)) * 2
    half = trainer.compute_loss(trainer.model, batch, num_items_in_batch=twice)
    assert half.item() == pytest.approx(found.item() / 2, rel=1e-5)
    # Another step draws other noise, the same one the same; nobody else's random numbers are used up.
    state = torch.random.get_rng_state()
    assert torch.equal(trainer.compute_loss(trainer.model, batch), found)
    trainer.state.global_step = 1
    other = trainer.compute_loss(trainer.model, batch)
    assert abs(other - found) > 1e-4
    assert other.item() == pytest.approx(direct_repnoise(trainer, teacher, batch), rel=1e-4)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_repnoise_turns_toxic_states_into_noise_and_toxic_text_unlikely(tmp_path: Path) -> None:
    noised = build(RepNoiseTrainer, tmp_path, alpha=0.0, beta=1.0, max_steps=30)
    noised.train()
    assert not logged(noised, "rejected_nll")  # a term of weight 0 is not computed
    first, last = np.mean(logged(noised, "noise_loss")[:3]), np.mean(logged(noised, "noise_loss")[-3:])
    assert last < 0.7 * first
    raised = build(RepNoiseTrainer, tmp_path, alpha=1.0, beta=0.0, max_steps=10)
    raised.train()
    assert raised.layers == [] and not logged(raised, "noise_loss")
    assert logged(raised, "rejected_nll")[-1] > logged(raised, "rejected_nll")[0] + 0.2


def test_repnoise_has_a_reference_only_where_it_asks_one(tmp_path: Path) -> None:
    assert build(RepNoiseTrainer, tmp_path).reference.kind == "from its cache"
    for setting in ({"retain": "nll"}, {"w_retain": 0.0}):
        trainer = build(RepNoiseTrainer, tmp_path, **setting, max_steps=2)
        assert trainer.reference.kind == "not needed"
        trainer.train()
        assert ("nll_loss" in trainer.state.log_history[0]) == ("retain" in setting)
    trainer = build(RepNoiseTrainer, tmp_path, retain="nll", passages=PASSAGES, precompute_reference="off")
    assert trainer.reference.kind == "in memory"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": -1.0}, "alpha=-1.0: it must be a finite number, 0 or more"),
        ({"beta": float("nan")}, "beta=nan: it must be a finite number"),
        ({"alpha": 0.0, "beta": 0.0}, "alpha and beta are both 0: nothing is forgotten"),
        ({"noise_scale": "big"}, "noise_scale='big' is unknown. Choose one of matched, standard"),
        ({"mmd_tokens": 0}, "mmd_tokens=0: it must be a finite number above 0"),
        ({"noise_layers": "7"}, "layer 7 does not exist: the model has 2 layers"),
    ],
)
def test_settings_of_repnoise_that_cannot_work(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        build(RepNoiseTrainer, tmp_path, **given)


# UNDO


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "opt"])
def test_the_student_is_the_teacher_shrunk_and_perturbed(family: str, tmp_path: Path) -> None:
    """Tied (llama, gpt2, opt) or not; a tied weight is damaged once."""
    model = tiny_model(family)
    parameters = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    student = build(UNDOTrainer, tmp_path, model, alpha=0.3, beta=0.5, seed=7).model
    generator = torch.Generator().manual_seed(7)
    for name, parameter in student.named_parameters():
        noise = torch.zeros(parameter.shape)
        if parameter.ndim == 2:
            bound = (6 / sum(parameter.shape)) ** 0.5
            noise.uniform_(-bound, bound, generator=generator)
        torch.testing.assert_close(parameter, 0.7 * parameters[name] + 0.3 * 0.5 * noise, rtol=1e-5, atol=1e-7)
    assert_same(dict(student.named_buffers()), buffers)
    assert (student.get_input_embeddings().weight is student.get_output_embeddings().weight) == tied


def test_what_is_not_trained_is_not_damaged(tmp_path: Path) -> None:
    before = weights(tiny_model("llama"))
    model = build(UNDOTrainer, tmp_path, trainable_layers="last", alpha=0.5).model
    changed = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if ".layers.1." in name}


def test_the_damage_depends_on_its_seed_alone() -> None:
    models = [tiny_model("llama") for _ in range(3)]
    state = torch.random.get_rng_state()
    for model, seed in zip(models, (0, 0, 1), strict=True):
        shrink_and_perturb_(model, 0.2, 1.0, seed)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_same(weights(models[0]), weights(models[1]))
    assert not torch.equal(models[0].get_input_embeddings().weight, models[2].get_input_embeddings().weight)


@pytest.mark.parametrize("precompute", ["on", "off"])
def test_without_damage_nothing_is_to_be_learned(precompute: str, tmp_path: Path) -> None:
    trainer = build(UNDOTrainer, tmp_path, alpha=0.0, passages=PASSAGES, precompute_reference=precompute)
    assert_same(weights(trainer.model), weights(tiny_model("llama")))
    assert abs(trainer.compute_loss(trainer.model, whole_batch(trainer)).item()) < 1e-6


@pytest.mark.parametrize("precompute", ["on", "off"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_teacher_is_the_model_as_it_was(family: str, precompute: str, tmp_path: Path) -> None:
    teacher = tiny_model(family)
    given = {"alpha": 0.2, "w_retain": 2.0, "w_retain_text": 3.0, "passages": PASSAGES}
    trainer = build(UNDOTrainer, tmp_path, tiny_model(family), precompute_reference=precompute, **given)
    batch = whole_batch(trainer)
    n, rows = batch["n_pairs"], len(batch["input_ids"])
    assert rows > 2 * n
    expected = 2 * direct_kl(teacher, trainer.model, batch, 0, n)
    expected += 3 * direct_kl(teacher, trainer.model, batch, 2 * n, rows)
    assert expected > 0.1
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=1e-4)
    trainer.train()
    assert (trainer.reference.kind == "from its cache") == (precompute == "on")
    if precompute == "off":
        assert_same(weights(trainer.reference.model), weights(teacher))


def test_distillation_repairs_the_student(tmp_path: Path) -> None:
    trainer = build(UNDOTrainer, tmp_path, alpha=0.2, max_steps=30, learning_rate=3e-3, passages=PASSAGES)
    trainer.train()
    for name in ("retain_loss", "retain_text_loss"):
        assert np.mean(logged(trainer, name)[-3:]) < 0.3 * logged(trainer, name)[0]
    assert not torch.equal(trainer.model.get_input_embeddings().weight, tiny_model("llama").lm_head.weight)


def test_a_resumed_student_is_not_damaged_again(tmp_path: Path) -> None:
    given: dict[str, Any] = {"alpha": 0.2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = build(UNDOTrainer, tmp_path, **given)
    whole.train()
    resumed = build(UNDOTrainer, tmp_path, **given)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(weights(resumed.model), weights(whole.model))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": 1.5}, "alpha=1.5: it must be between 0"),
        ({"alpha": float("nan")}, "alpha=nan: it must be a finite number"),
        ({"beta": -0.1}, "beta=-0.1: it must be a finite number, 0 or more"),
        ({"lora_r": 2}, "lora_r=2: undo damages the weights themselves.*Train without LoRA"),
        ({"peft_config": LoraConfig(r=1, target_modules=["q_proj"])}, "the model has an adapter: undo damages"),
    ],
)
def test_settings_of_undo_that_cannot_work(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        build(UNDOTrainer, tmp_path, **given)


# The command


@pytest.fixture
def undo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "undo", Method("efface.methods.undo:UNDOTrainer", "", "", ""))


@pytest.mark.usefixtures("undo")
def test_robustify_is_train_undo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, pairs = tmp_path / "model", tmp_path / "pairs.jsonl"
    tiny_model("llama").save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    pairs.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    flags = ["--max_steps", "2", "--alpha", "0.25", "--retain_text", "none", "--use_cpu"]
    results = {}
    for name, command in {"a": ["robustify"], "b": ["train", "undo"]}.items():
        assert main([*command, str(model), str(pairs), "-o", str(tmp_path / name), *flags]) == 0
        results[name] = read_json(tmp_path / name / "results.json")
        assert f"{tmp_path / name}: undo trained for 2 steps" in capsys.readouterr().out
    assert results["a"]["settings"] == results["b"]["settings"] and results["a"]["settings"]["alpha"] == 0.25
    saved = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert saved[0] == saved[1]
    assert results["a"]["environment"]["command"].startswith("efface robustify ")


@pytest.mark.usefixtures("undo")
def test_robustify_says_what_is_missing_or_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for argv, message in (
        ([], "`efface robustify` needs MODEL: efface robustify MODEL PAIRS -o DIR, then other flags."),
        (["a", "b"], "`efface robustify` needs OUTPUT"),
        (["a", "b", "-o", str(tmp_path / "out"), "--grl_lambda", "1"], "unknown flag '--grl_lambda'"),
        (["a", "b", "-o", str(tmp_path / "out"), "--lora_r", "4"], "lora_r=4: undo damages the weights"),
    ):
        assert main(["robustify", *argv]) == 2
        assert message in capsys.readouterr().err
    assert main(["robustify", "--list-flags"]) == 0
    assert "--alpha (default: 0.1)" in capsys.readouterr().out
