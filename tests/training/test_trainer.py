"""Does the trainer keep its word about precision, the caller's models, evaluation and what it saves?

Of: training/account.py, training/config.py, training/evaluating.py, training/inputs.py, training/prepare.py,
training/reference_check.py
"""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from every_method import TRAINED, build
from peft import LoraConfig, get_peft_model
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from trained import PASSAGES, ROWS, assert_same, weights, whole_batch
from transformers import AutoModelForCausalLM

from efface.errors import RunError, UserError
from efface.files.results import write_jsonl
from efface.methods import load_method
from efface.methods.repo import REPOConfig, REPOTrainer
from efface.model.copies import merged_copy
from efface.model.load import load_model
from efface.model.save import save_model
from efface.training import reference_cache
from efface.training.evaluating import share_of
from efface.training.reference import LiveReference
from efface.training.step import Counts

Trainer = Any


def retained(trainer: Trainer) -> tuple[float, float]:
    """The KL to the reference on the first batch, passages included, and the length of its gradient, as the policy's
    own forward in training gives them (with accelerate's autocast around it)."""
    model = trainer.accelerator.prepare_model(trainer.model)
    batch = trainer._prepare_inputs(whole_batch(trainer))
    counts = Counts.of(batch)
    loss, _ = kl_loss(trainer, model, batch, counts)
    model.zero_grad()
    loss.backward()
    norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    return loss.item(), torch.stack(norms).norm().item()


def kl_loss(trainer: Trainer, model: nn.Module, batch: Any, counts: Counts) -> tuple[Tensor, Any]:
    """The retain term alone, through the trainer's own `compute_loss`."""
    whole = trainer.loss

    trainer.loss = lambda step: step.retain(1.0 if "chosen" in trainer.sides else 0.0)
    try:
        return trainer.compute_loss(model, batch, num_items_in_batch=torch.stack(list(counts))), None
    finally:
        trainer.loss = whole


PRECISIONS = [pytest.param(False, id="fp32"), pytest.param(True, id="bf16")]


@pytest.mark.parametrize("bf16", PRECISIONS)
@pytest.mark.parametrize("reference", ["on", "off", "lora"])
@pytest.mark.parametrize("layout", ["plain", "shared"])
def test_the_untrained_policy_is_its_own_reference_to_the_bit(
    bf16: bool, reference: str, layout: str, tmp_path: Path
) -> None:
    adapter = {"lora_r": 2, "lora_target_modules": "q_proj"} if reference == "lora" else {}
    trainer = REPOTrainer(
        tiny_model("llama"),
        REPOConfig(
            str(tmp_path),
            bf16=bf16,
            layout=layout,
            precompute_reference="off" if reference == "lora" else reference,
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            retain_text_per_pair=0.5,
            w_retain_text=20.0,
            **adapter,
        ),
        ROWS,
        processing_class=tiny_tokenizer(),
        retain_text=PASSAGES,
    )
    assert retained(trainer) == (0.0, 0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_family_bf16_gives_no_kl_at_the_first_step(family: str, tmp_path: Path) -> None:
    trainer = build("retain", tiny_model(family), tmp_path, bf16=True, precompute_reference="off")
    trainer = type(trainer)(
        tiny_model(family), trainer.args, ROWS, processing_class=tiny_tokenizer(), retain_text=PASSAGES
    )
    assert retained(trainer) == (0.0, 0.0)


@pytest.mark.parametrize("method", TRAINED)
def test_every_method_trains_under_bf16_autocast(method: str, tmp_path: Path) -> None:
    passages = tmp_path / "passages.jsonl"
    write_jsonl(passages, [{"text": text} for text in PASSAGES])
    trainer = build(method, tiny_model("llama"), tmp_path / "out", bf16=True, retain_text=str(passages))
    start = weights(trainer.model)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    assert any(not torch.equal(parameter, start[name]) for name, parameter in trainer.model.named_parameters())


@pytest.mark.parametrize("method", [name for name in TRAINED if name not in ("retain", "undo")])
def test_the_kl_of_every_method_begins_at_zero_in_bf16(method: str, tmp_path: Path) -> None:
    kind: Any = load_method(method)
    args = build(method, tiny_model("llama"), tmp_path, bf16=True, w_retain_text=1.0).args
    trainer = kind(
        tiny_model("llama"), args, ROWS, processing_class=tiny_tokenizer(), retain_text=[PASSAGES[0], PASSAGES[2]]
    )
    assert retained(trainer) == (0.0, 0.0)


# The caller's models


def test_a_given_reference_stays_as_it_is(tmp_path: Path) -> None:
    reference = tiny_model("llama", seed=1).train()
    before = weights(reference)
    for how in ("on", "off"):
        trainer = REPOTrainer(
            tiny_model("llama"),
            REPOConfig(str(tmp_path), max_steps=1, use_cpu=True, disable_tqdm=True, precompute_reference=how),
            ROWS,
            processing_class=tiny_tokenizer(),
            ref_model=reference,
        )
        trainer.train()
    assert_same(weights(reference), before, rtol=0, atol=0)
    assert reference.training and all(parameter.requires_grad for parameter in reference.parameters())


def test_a_reference_that_is_the_policy_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with pytest.raises(UserError, match="model and ref_model are the same object"):
        REPOTrainer(model, REPOConfig(str(tmp_path)), ROWS, processing_class=tiny_tokenizer(), ref_model=model)
    with pytest.raises(UserError, match="ref_model has a vocabulary of 320 and model one of 300"):
        other = tiny_model("llama", vocab_size=320)
        REPOTrainer(model, REPOConfig(str(tmp_path)), ROWS, processing_class=tiny_tokenizer(), ref_model=other)


def test_models_are_named_by_path_or_text(tmp_path: Path) -> None:
    save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "model")
    save_model(tiny_model("llama", seed=1), tiny_tokenizer(), tmp_path / "reference")
    args = REPOConfig(str(tmp_path / "out"), use_cpu=True, disable_tqdm=True, precompute_reference="off")
    trainer = REPOTrainer(tmp_path / "model", args, ROWS, ref_model=str(tmp_path / "reference"))
    assert isinstance(trainer.reference, LiveReference)
    assert_same(weights(trainer.reference.model), weights(tiny_model("llama", seed=1)), rtol=0, atol=0)
    with pytest.raises(UserError, match="model is a int; it must be a causal language model"):
        REPOTrainer(5, args, ROWS)
    with pytest.raises(UserError, match="LlamaForCausalLM names no checkpoint with a tokenizer"):
        REPOTrainer(tiny_model("llama"), args, ROWS)


# Those that choose weights for themselves, perturb them, or train what they are given; the others behind --full.
CHOOSING = [
    pytest.param(name, marks=[] if name in ("repo", "rmu", "undo", "dpo") else [pytest.mark.full]) for name in TRAINED
]


@pytest.mark.parametrize("method", CHOOSING)
def test_no_method_leaves_the_callers_flags_changed(method: str, tmp_path: Path) -> None:
    if method == "circuit_breakers":
        pytest.skip("trains an adapter, which PEFT puts into the model")
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    trainer = build(method, model, tmp_path)
    trainer.train()
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    trained = weights(model)
    trainer.args.max_steps = 3
    trainer.train(resume_from_checkpoint=None)  # and it still trains what it trained
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, trained[name])}
    assert moved and "model.layers.1.mlp.up_proj.weight" not in moved


def test_repo_after_rmu_trains_everything(tmp_path: Path) -> None:
    model = tiny_model("llama")
    build("rmu", model, tmp_path).train()
    before = weights(model)
    build("repo", model, tmp_path).train()
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert not still


def test_a_policy_without_trainable_parameters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of the parameters of LlamaForCausalLM is trainable .* Unfreeze some"):
        build("repo", tiny_model("llama").requires_grad_(False), tmp_path)
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(UserError, match="Load its adapter with is_trainable=True"):
        build("dpo", adapted.requires_grad_(False), tmp_path)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """The directory of a LoRA adapter that changes its model."""
    save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "base")
    base, tokenizer = load_model(tmp_path / "base", device="cpu")
    made = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    save_model(made, tokenizer, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("method", CHOOSING)
def test_an_adapter_that_is_named_is_trained_on(method: str, adapter: Path, tmp_path: Path) -> None:
    if method in ("undo", "circuit_breakers"):
        pytest.skip("takes no adapter, or makes its own")
    trainer = build(method, adapter, tmp_path / "out")
    before = weights(trainer.model)
    assert any(p.requires_grad for n, p in trainer.model.named_parameters() if "lora_" in n)
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all("lora_" in name for name in moved)


def test_of_an_adapter_only_the_chosen_blocks_are_trained(adapter: Path, tmp_path: Path) -> None:
    """The base's own weights in these blocks were trained as well, and not saved."""
    trainer = build("dpo", adapter, tmp_path / "out", trainable_layers="last")
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 4 and all("lora_" in name and ".layers.1." in name for name in trained)
    trainer.train()
    trainer.save_model()
    assert_same(weights(load_model(tmp_path / "out", device="cpu")[0]), weights(trainer.model))
    base, _ = load_model(adapter.parent / "base", device="cpu")
    partly = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[0], task_type="CAUSAL_LM")
    with pytest.raises(UserError, match="trainable_layers must name blocks that it adapts"):
        build("dpo", get_peft_model(base, partly), tmp_path / "out", trainable_layers="last")


def test_an_adapter_that_transformers_has_put_into_a_model_is_refused(adapter: Path, tmp_path: Path) -> None:
    """It ended in a traceback, and merging left it where it was."""
    model = AutoModelForCausalLM.from_pretrained(adapter)
    for attempt in (lambda: build("dpo", model, tmp_path / "out"), lambda: merged_copy(model)):
        with pytest.raises(UserError, match="LlamaForCausalLM holds an adapter .* Pass what load_model gives"):
            attempt()


@pytest.mark.parametrize("named", [True, False])
def test_a_new_adapter_on_an_old_one_is_refused(named: bool, adapter: Path, tmp_path: Path) -> None:
    """It would be saved as an adapter of the base, and without the old one compute something else."""
    model = adapter if named else load_model(adapter, device="cpu")[0]
    with pytest.raises(UserError, match="the model has an adapter already"):
        build("repo", model, tmp_path / "out", lora_r=2)


def test_what_is_trained_is_counted(tmp_path: Path) -> None:
    trainer = build("rmu", tiny_model("llama"), tmp_path)
    total = sum(parameter.numel() for parameter in trainer.model.parameters())
    trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    assert 0 < trained < total
    assert f"trains {trained:,} of {total:,} parameters" in trainer.describe()


def test_half_precision_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build("repo", tiny_model("llama").bfloat16(), tmp_path)
    assert "the trained weights are bfloat16: an optimizer's small steps round away" in caplog.text
    with pytest.raises(UserError, match="the trained weights are float16"):
        build("repo", tiny_model("llama").half(), tmp_path)


@pytest.mark.parametrize("adapted", [False, True])
def test_a_model_in_half_precision_is_its_own_reference_to_the_bit(
    adapted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an autocast as well: the rounding of other batches was taken for a model that looks at padding."""
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))
    passages = tmp_path / "passages.jsonl"
    write_jsonl(passages, [{"text": text} for text in PASSAGES])
    more: dict[str, Any] = {"lora_r": 2} if adapted else {}
    for layout in ("plain", "shared"):
        model = tiny_model("llama").bfloat16()
        trainer = build("dpo", model, tmp_path / "out", layout=layout, retain_text=str(passages), **more)
        assert trainer.reference.kept_in is None and trainer.reference.layout == layout
        assert retained(trainer) == (0.0, 0.0)
    cached = build("dpo", tiny_model("llama").bfloat16(), tmp_path / "out", precompute_reference="on", **more)
    assert cached.reference.kept_in == "float32"


@pytest.mark.parametrize(
    ("method", "setting", "more"),
    [("repo", "erase_layers", {}), ("repo", "erase_layers", {"npo_weight": 1.0}), ("repnoise", "noise_layers", {})],
)
def test_weights_that_cannot_reach_what_is_erased_are_refused(
    method: str, setting: str, more: dict[str, float], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"all lie in blocks above 0, the highest of {setting}"):
        build(method, tiny_model("llama"), tmp_path, trainable_layers="last", **{setting: "0"}, **more)
    build(method, tiny_model("llama"), tmp_path, trainable_layers="0", **{setting: "0"})


# The reference's cache


def test_a_cache_that_says_something_else_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the key forgets: here all models have one."""
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reference_cache, "_key", lambda *parts: "the-same")
    for seed, warned in ((0, False), (0, False), (1, True)):
        caplog.clear()
        trainer = build("repo", tiny_model("llama", seed=seed), tmp_path / "out", precompute_reference="on")
        assert retained(trainer)[0] == 0.0
        assert ("is not this one" in caplog.text) == warned


# Evaluation during training


def rows_of(trainer: Trainer, evaluation: bool) -> list[dict[str, float]]:
    found = [row for row in trainer.state.log_history if any(name.startswith("eval") for name in row) == evaluation]
    return [row for row in found if "train_runtime" not in row]


def evaluated(method: str, tmp_path: Path, **settings: Any) -> Trainer:
    args: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2, "logging_steps": 2}
    others = {name: settings.pop(name) for name in ("eval_dataset", "compute_metrics") if name in settings}
    kind: Any = load_method(method)
    common = {"use_cpu": True, "disable_tqdm": True, "retain_text": None, "learning_rate": 1e-3, "report_to": "none"}
    config = kind.config_class(str(tmp_path), **(common | args | settings))
    return kind(
        tiny_model("llama"),
        config,
        ROWS,
        processing_class=tiny_tokenizer(),
        ref_model=tiny_model("llama", seed=1),
        **({"eval_dataset": ROWS[:5]} | others),
    )


@pytest.mark.parametrize("method", TRAINED)
def test_an_evaluation_has_terms_of_its_own(method: str, tmp_path: Path) -> None:
    if method == "circuit_breakers":
        pytest.skip("its reference is the model without the adapter")
    trainer = evaluated(method, tmp_path, per_device_eval_batch_size=2)
    trainer.train()
    for row in rows_of(trainer, evaluation=True):
        assert all(name.startswith("eval_") or name in ("epoch", "step") for name in row), row
    training = rows_of(trainer, evaluation=False)
    terms = {name for name in training[-1] if name not in ("learning_rate", "grad_norm", "epoch", "step")}
    assert {f"eval_{name}" for name in terms} <= set(rows_of(trainer, evaluation=True)[-1])


def test_the_terms_of_an_evaluation_are_means_over_all_of_it(tmp_path: Path) -> None:
    at_once = evaluated("dpo", tmp_path, per_device_eval_batch_size=8).evaluate()
    in_parts = evaluated("dpo", tmp_path, per_device_eval_batch_size=2).evaluate()
    names = [name for name in at_once if "rewards" in name or name.endswith("loss")]
    assert len(names) >= 4
    for name in names:
        assert at_once[name] == pytest.approx(in_parts[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(
    ("n", "size", "processes"), [(4, 2, 2), (5, 4, 2), (7, 1, 3), (1, 8, 2), (2, 3, 4), (9, 2, 1)]
)
def test_processes_share_the_pairs_of_an_evaluation(n: int, size: int, processes: int) -> None:
    shares = [share_of(n, size, process, processes) for process in range(processes)]
    assert len({len(batches) for batches, _ in shares}) == 1
    counted = [pair for batches, own in shares for batch in batches[:own] for pair in batch]
    assert counted == list(range(n))
    assert all(0 < len(batch) <= size for batches, _ in shares for batch in batches)


def test_several_evaluation_sets_and_new_rows(tmp_path: Path) -> None:
    trainer = evaluated("npo", tmp_path, eval_dataset={"a": ROWS[:3], "b": ROWS[3:]})
    found = trainer.evaluate()
    assert {"eval_a_loss", "eval_b_loss"} <= set(found) and found["eval_a_loss"] != found["eval_b_loss"]
    assert trainer.evaluate(ROWS[:3])["eval_loss"] == pytest.approx(found["eval_a_loss"], rel=1e-5)
    assert trainer.evaluate({"c": ROWS[:3]})["eval_c_loss"] == pytest.approx(found["eval_a_loss"], rel=1e-5)
    with pytest.raises(UserError, match="row 0: field 'chosen' is missing"):
        trainer.evaluate([{"prompt": "The weather"}])


def test_a_reference_that_is_gone_says_so(tmp_path: Path) -> None:
    trainer = build("repo", tiny_model("llama"), tmp_path, precompute_reference="on", eval_dataset=ROWS[:2])
    before = trainer.evaluate(ROWS[4:6])  # the model is still its own reference
    assert before["eval_retain_loss"] == pytest.approx(0, abs=1e-6)
    trainer.train()
    for known in (ROWS[:2], ROWS[4:6]):  # which it was asked of then
        assert trainer.evaluate(known)["eval_retain_loss"] > 1e-6
    assert trainer.evaluate(ROWS[:2])["eval_retain_loss"] == trainer.evaluate()["eval_retain_loss"]
    with pytest.raises(UserError, match="the reference was asked of the pairs that the trainer was made with"):
        trainer.evaluate(ROWS[2:4])
    kept = build("repo", tiny_model("llama"), tmp_path, precompute_reference="off")
    kept.train()
    assert math.isfinite(kept.evaluate(ROWS[2:4])["eval_loss"])


def test_bad_rows_of_an_evaluation_set_are_skipped_as_those_of_training(tmp_path: Path) -> None:
    rows = [*ROWS[:2], {"prompt": "a", "chosen": "b", "rejected": "b"}]
    assert len(evaluated("npo", tmp_path, eval_dataset=rows, skip_bad_rows=True).eval_dataset) == 2


def test_what_cannot_select_a_model_is_refused(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(UserError, match="lowest where the adversary wins.* by eval_retain_loss or eval_npo_loss"):
        evaluated("repo", tmp_path, **best)
    trainer = evaluated("repo", tmp_path, metric_for_best_model="retain_loss", **best)
    trainer.train()
    found = [row["eval_retain_loss"] for row in rows_of(trainer, evaluation=True)]
    assert trainer.state.best_metric == min(found)
    evaluated("dpo", tmp_path, **best).train()
    with pytest.raises(UserError, match="compute_metrics would get predictions and labels"):
        evaluated("dpo", tmp_path, compute_metrics=lambda prediction: {})


# What is saved


def test_a_last_step_that_ruins_the_weights_is_not_saved(tmp_path: Path) -> None:
    for name, settings in (
        ("plain", {}),
        ("checkpoint", {"save_strategy": "steps", "save_steps": 1}),
    ):
        trainer = build("dpo", tiny_model("llama"), tmp_path / name, max_steps=1, learning_rate=1e39, **settings)
        with pytest.raises(RunError, match="the weights are not finite after step 1"):
            trainer.train()
        assert not list((tmp_path / name).glob("**/*.safetensors"))


def test_every_passage_is_used_and_every_micro_batch_has_as_many(tmp_path: Path) -> None:
    seen: list[int] = []

    texts = [f"The town had {word} and the river." for word in ("bread", "apples", "people", "cheese", "weather")]
    trainer: Any = build("retain", tiny_model("llama"), tmp_path, max_steps=5, per_device_train_batch_size=4)
    trainer = type(trainer)(
        tiny_model("llama"), trainer.args, ROWS, processing_class=tiny_tokenizer(), retain_text=texts
    )
    used: set[tuple[int, ...]] = set()
    whole = trainer.compute_loss

    def watched(model: nn.Module, inputs: Any, **kwargs: Any) -> Any:
        passages = inputs["input_ids"][2 * inputs["n_pairs"] :]
        masks = inputs["attention_mask"][2 * inputs["n_pairs"] :]
        seen.append(len(passages))
        used.update(tuple(row[mask > 0].tolist()) for row, mask in zip(passages, masks, strict=True))
        return whole(model, inputs, **kwargs)

    trainer.compute_loss = watched
    trainer.train()
    assert seen == [1] * 5 and len(used) == 5


def test_a_reference_that_says_something_else_is_found_in_the_first_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the cause: here the cache holds another model's states, and has passed its own test."""
    other = tiny_model("llama", seed=1)
    honest = LiveReference.forward
    monkeypatch.setattr(
        LiveReference,
        "forward",
        lambda self, *asked: honest(LiveReference(other, False), *asked),
    )
    for how in ("on", "off"):
        with pytest.raises(UserError, match="the untrained LlamaForCausalLM differs from its own reference by"):
            build("repo", tiny_model("llama"), tmp_path, precompute_reference=how)
