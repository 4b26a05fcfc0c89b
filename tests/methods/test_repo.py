"""Does REPO train what it should, on what it should, and come back from an interruption as if nothing had happened?

Of: training/metrics.py
"""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from tiny import FAMILIES, VOCAB_SIZE, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from trained import (
    PASSAGES,
    ROWS,
    Build,
    StopAfterSave,
    assert_moved,
    assert_same,
    build,
    logged,
    logits_of,
    weights,
    whole_batch,
)
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments

from efface.data.batch import PairBatch
from efface.errors import RunError, UserError
from efface.methods import METHODS, load_method
from efface.methods.adversary import Domains
from efface.methods.functional import LN2, dann_ramp
from efface.methods.repo import DISCRIMINATORS, REPOConfig, REPOTrainer
from efface.model.blocks import decoder_blocks
from efface.model.load import load_model
from efface.model.save import save_model
from efface.training.editor import PairEditor
from efface.training.prepare import disable_dropout_
from efface.training.reference import LiveReference
from efface.training.step import Counts, Loss, Step
from efface.training.trainer import PairTrainer

__all__ = ["build"]  # the fixture

# What moves


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains(family: str, build: Build) -> None:
    model = tiny_model(family)
    before = weights(model)
    trainer = build(model, precompute_reference="off")
    assert all(parameter.requires_grad for parameter in model.parameters())
    trainer.train()
    assert_moved(model, before)
    assert logged(trainer, "retain_loss")[0] < 1e-6 < logged(trainer, "retain_loss")[-1]
    assert isinstance(trainer.reference, LiveReference)
    assert_same(weights(trainer.reference.model), before, rtol=0, atol=0)


@pytest.mark.parametrize(("layers", "expected"), [("last", [1]), ("0", [0]), ("all", [0, 1])])
def test_only_the_trainable_layers_move(layers: str, expected: list[int], build: Build) -> None:
    model = tiny_model("llama")
    before = weights(model)
    trainer = build(model, trainable_layers=layers)
    blocks = decoder_blocks(model)
    trainable = {id(p) for layer in expected for p in blocks[layer].parameters()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == trainable
    trainer.train()
    moved = {id(p) for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trainable


def test_only_the_adapter_moves(build: Build) -> None:
    model = tiny_model("llama")
    before = weights(model)
    trainer = build(model, lora_r=2, precompute_reference="off")
    start = weights(trainer.model)
    trainer.train()
    assert_moved(trainer.model, start)
    adapter = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in adapter) and len(adapter) == 2 * 2 * 7  # all linear maps of two blocks
    frozen = {
        name.replace(".base_layer", "").removeprefix("base_model.model."): p
        for name, p in weights(trainer.model).items()
    }
    assert_same({name: frozen[name] for name in before}, before, rtol=0, atol=0)
    assert trainer.reference.kind == "with the adapter off"
    assert logged(trainer, "retain_loss")[0] < 1e-6 < logged(trainer, "retain_loss")[-1]


def test_lora_settings(build: Build) -> None:
    trainer = build(lora_r=3, lora_target_modules="q_proj,v_proj")
    config = trainer.model.peft_config["default"]  # type: ignore[union-attr,index]
    assert (config.r, config.lora_alpha, set(config.target_modules)) == (3, 6, {"q_proj", "v_proj"})
    assert build(lora_r=3, lora_alpha=5).model.peft_config["default"].lora_alpha == 5  # type: ignore[union-attr,index]
    own = build(peft_config=LoraConfig(r=1, target_modules=["q_proj"]))
    assert own.model.peft_config["default"].r == 1  # type: ignore[union-attr,index]


# The loss


def test_the_logged_kl_is_the_kl_to_the_untouched_model(build: Build) -> None:
    untouched = tiny_model("llama")
    trainer = build(retain_text_list=PASSAGES)
    calls: list[tuple[PairBatch, dict[str, Tensor]]] = []
    loss = trainer.loss

    def record(step: Step) -> Loss:
        calls.append((step.batch, weights(trainer.model)))
        return loss(step)

    trainer.loss = record  # type: ignore[method-assign]
    trainer.train()
    student = tiny_model("llama")
    for step, (batch, state) in enumerate(calls):
        student.load_state_dict(state, strict=False)
        p, q = (logits_of(model, batch).double().log_softmax(-1) for model in (untouched, student))
        kl = (p.exp() * (p - q)).sum(-1)  # (2B + R, T), at every position of every row
        mask, n = batch["continuation_mask"], batch["n_pairs"]
        for name, rows in (("retain_loss", slice(0, n)), ("retain_text_loss", slice(2 * n, None))):
            # the token at t is predicted at t - 1
            direct = kl[rows][:, :-1][mask[rows][:, 1:]].mean().item()
            assert logged(trainer, name)[step] == pytest.approx(direct, rel=1e-3, abs=1e-6)
            assert (direct > 1e-5) == (step > 0)


@pytest.mark.parametrize("family", ["gpt2", "opt", "phi", "gpt_neox", "llama"])
def test_without_dropout_the_kl_starts_at_zero(family: str, build: Build) -> None:
    config = tiny_model(family).config
    for name in (
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "dropout",
        "attention_dropout",
        "hidden_dropout",
        "layerdrop",
    ):
        if hasattr(config, name):
            setattr(config, name, 0.1)
    model = AutoModelForCausalLM.from_config(config)
    with_dropout = build(model, max_steps=1, disable_dropout=False)
    with_dropout.train()
    assert logged(with_dropout, "retain_loss")[0] > 1e-6  # the control: this model has dropout
    trainer = build(AutoModelForCausalLM.from_config(config), max_steps=1)
    trainer.train()
    assert logged(trainer, "retain_loss") == [pytest.approx(0, abs=1e-7)]


def test_the_loss_is_the_weighted_sum_of_its_terms(build: Build) -> None:
    trainer = build(w_retain=3.0, w_erase=0.5, w_retain_text=2.0, retain_text_list=PASSAGES)
    trainer.train()
    names = ("loss", "retain_loss", "erase_loss", "retain_text_loss")
    for loss, retain, erase, text in zip(*(logged(trainer, name) for name in names), strict=True):
        assert loss == pytest.approx(3 * retain + 0.5 * erase + 2 * text, rel=1e-5)


@pytest.mark.parametrize("unit", ["token", "sequence"])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_loss_of_a_batch_is_the_sum_of_its_pairs(family: str, unit: str, build: Build) -> None:
    trainer = build(tiny_model(family), erase_unit=unit, erase_layers="all")
    trainer.train()
    model: nn.Module = trainer.model.eval()
    batch = whole_batch(trainer)
    counts = torch.stack(Counts.of(batch))
    whole = trainer.compute_loss(model, batch, num_items_in_batch=counts)
    dataset: Any = trainer.train_dataset
    single = [
        trainer.compute_loss(model, trainer.data_collator([dataset[i]]), num_items_in_batch=counts)  # type: ignore[arg-type]
        for i in range(len(dataset))
    ]
    torch.testing.assert_close(torch.stack(single).sum(), whole, rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]


def test_counts() -> None:
    mask = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 1, 1]], dtype=torch.bool)
    batch = PairBatch(input_ids=mask.long(), attention_mask=mask.long(), continuation_mask=mask, n_pairs=2)
    assert [int(count) for count in Counts.of(batch)] == [3, 2, 2, 2]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("settings", [{}, {"erase_unit": "sequence", "bound": "token", "erase_side": "both"}])
def test_accumulated_micro_batches_equal_one_large_batch(family: str, settings: dict[str, Any], build: Build) -> None:
    results = []
    for size, accumulate in ((8, 1), (4, 2), (3, 3)):
        trainer = build(
            tiny_model(family),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulate,
            retain_text_list=PASSAGES,
            retain_text_per_pair=0.75,  # a step then has six passages, however it is cut up
            erase_layers="all",
            optim="sgd",  # Adam would blow rounding up to a whole step
            learning_rate=0.05,
            **settings,
        )
        trainer.train()
        results.append((trainer, weights(trainer.model), dict(trainer.adversaries.discriminators.state_dict())))
    (one, *one_state), *others = results
    start = weights(tiny_model(family))
    assert max((one_state[0][name] - start[name]).abs().max() for name in start) > 1e-3
    for trainer, *state in others:
        for mine, theirs in zip(state, one_state, strict=True):
            assert_same(mine, theirs, rtol=1e-3, atol=2e-5)
        for name in ("loss", "retain_loss", "retain_text_loss", "adversary/bce/0", "adversary/balanced_accuracy/1"):
            assert logged(trainer, name) == pytest.approx(logged(one, name), rel=1e-3, abs=1e-5), name


# No waste: toxic rows need hidden states only


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("layout", ["plain", "shared", "apart"])
def test_toxic_rows_never_reach_a_head_nor_the_reference(layout: str, lora: bool, build: Build) -> None:
    trainer = build(
        layout=layout,
        erase_layers="0",
        lora_r=2 if lora else None,
        retain_text_list=PASSAGES,
        precompute_reference="off",
    )
    batch = whole_batch(trainer)
    n, mask = batch["n_pairs"], batch["continuation_mask"]
    asked = int(mask[:n].sum() + mask[2 * n :].sum())
    assert mask[n : 2 * n].sum() > 0 and isinstance(trainer.reference, LiveReference)
    head_rows: list[int] = []
    projected: list[int] = []
    asked_of_reference: list[Tensor] = []
    trainer.model.get_output_embeddings().register_forward_hook(  # type: ignore[union-attr,operator]
        lambda module, args, out: head_rows.append(out.numel())
    )
    for head in (trainer.head, trainer.reference.head):
        head.finish = lambda scores: (projected.append(len(scores)), scores)[1]  # type: ignore[func-returns-value]
    call = trainer.reference.forward
    trainer.reference.forward = lambda layout, *rest: (  # type: ignore[method-assign]
        asked_of_reference.append(layout.input_ids),
        call(layout, *rest),
    )[1]
    trainer.compute_loss(trainer.model, batch)
    assert head_rows and set(head_rows) == {0}
    assert projected == [asked, asked]  # of the reference and of the policy, in one piece each
    assert len(asked_of_reference) == 1
    assert torch.equal(asked_of_reference[0], torch.cat([batch["input_ids"][:n], batch["input_ids"][2 * n :]]))


def test_where_the_loss_asks_for_logits(build: Build) -> None:
    batch = whole_batch(build(retain_text_list=PASSAGES))
    project = build().project(batch)
    for row, (asked, continuation) in enumerate(zip(project, batch["continuation_mask"], strict=True)):
        toxic = batch["n_pairs"] <= row < 2 * batch["n_pairs"]
        expected = [] if toxic else [t - 1 for t in continuation.nonzero().flatten().tolist()]
        assert asked.nonzero().flatten().tolist() == expected


# The adversary in the loop


def test_which_states_the_discriminators_see(build: Build) -> None:
    for unit in ("token", "sequence"):
        trainer = build(erase_unit=unit, erase_layers="0", max_steps=1)
        seen: list[Domains] = []
        loss = trainer.adversaries.loss

        def record(domains: dict[int, Domains], strength: float, *, train: bool, seen=seen, loss=loss) -> Any:  # type: ignore[no-untyped-def]
            seen.append(domains[0])
            return loss(domains, strength, train=train)

        trainer.adversaries.loss = record  # type: ignore[method-assign]
        batch = whole_batch(trainer)
        trainer.compute_loss(trainer.model, batch)
        with torch.no_grad():
            states = trainer.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
            ).hidden_states[1]
        n, mask = batch["n_pairs"], batch["continuation_mask"]
        rows = [states[i][mask[i]] for i in range(2 * n)]  # the tokens that are the continuation
        if unit == "sequence":
            rows = [row.mean(0, keepdim=True) for row in rows]
        torch.testing.assert_close(seen[0].benign.detach(), torch.cat(rows[:n]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(seen[0].toxic.detach(), torch.cat(rows[n:]), rtol=1e-5, atol=1e-5)
        assert (int(seen[0].n_benign), int(seen[0].n_toxic)) == (len(seen[0].benign), len(seen[0].toxic))


def test_metrics_are_logged_per_layer(build: Build) -> None:
    trainer = build(erase_layers="all", logging_steps=1)
    trainer.train()
    for layer in (0, 1):
        assert logged(trainer, f"adversary/bce/{layer}")[0] == pytest.approx(LN2, abs=0.3)
        assert all(0 <= value <= 1 for value in logged(trainer, f"adversary/balanced_accuracy/{layer}"))
        drift = logged(trainer, f"norm_drift/{layer}")
        assert len(drift) == 3 and abs(drift[0]) < 1e-6 < abs(drift[-1])
    bce = [logged(trainer, f"adversary/bce/{layer}") for layer in (0, 1)]
    assert logged(trainer, "erase_loss") == pytest.approx([(a + b) / 2 for a, b in zip(*bce, strict=True)])
    assert not logged(trainer, "retain_text_loss")


def test_logged_figures_are_means_over_the_steps_since_the_last(build: Build) -> None:
    every, third = build(), build(logging_steps=3)
    every.train()
    third.train()
    for name in ("retain_loss", "adversary/bce/1", "norm_drift/1"):
        assert logged(third, name) == [pytest.approx(sum(logged(every, name)) / 3, rel=1e-4)]


def test_gradients_of_the_discriminators_do_not_carry_over(build: Build) -> None:
    trainer = build(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    parameters = list(trainer.adversaries.discriminators.parameters())
    update, left = trainer.adversaries.update, []

    def check(*args: Any) -> None:
        assert any(parameter.grad is not None for parameter in parameters)  # what the model's backward left
        update(*args)
        left.append([parameter.grad for parameter in parameters])

    trainer.adversaries.update = check  # type: ignore[method-assign]
    trainer.train()
    assert len(left) == 3 and all(grad is None for grads in left for grad in grads)
    # So the weight of the loss that fed them is nothing to the discriminators.
    heavy, light = build(w_erase=100.0, max_steps=1), build(w_erase=0.01, max_steps=1)
    heavy.train()
    light.train()
    states = [dict(each.adversaries.discriminators.state_dict()) for each in (heavy, light)]
    assert_same(*states, rtol=0, atol=0)


@pytest.mark.parametrize("schedule", ["dann", "constant"])
def test_the_strength_follows_the_schedule(schedule: str, build: Build) -> None:
    trainer = build(grl_schedule=schedule, grl_lambda=2.0, max_steps=4)
    strengths: list[float] = []
    loss = trainer.adversaries.loss
    trainer.adversaries.loss = lambda domains, strength, train: (
        strengths.append(strength)
        or loss(  # type: ignore[method-assign,func-returns-value]
            domains, strength, train=train
        )
    )
    trainer.train()
    ramp = [2 * dann_ramp(step / 4) for step in (1, 2, 3, 4)]
    assert strengths == (pytest.approx(ramp) if schedule == "dann" else [2.0] * 4)


def test_swapped_classes_are_reported_once(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    trainer = build()
    with caplog.at_level(logging.WARNING, logger="efface.methods.repo"):
        trainer.log({"adversary/bce/1": 0.7, "adversary/balanced_accuracy/1": 0.3})
        trainer.log({"adversary/bce/1": 2.0, "adversary/balanced_accuracy/1": 0.6})
        assert not caplog.records
        for _ in range(2):
            trainer.log({"adversary/bce/1": 2.0, "adversary/balanced_accuracy/1": 0.1})
    assert len(caplog.records) == 1
    assert "layer 1: the adversary is swapped, not confused (BCE 2.00 above ln 2 = 0.69" in caplog.text


def test_evaluation_leaves_the_game_alone(build: Build) -> None:
    trainer = build(eval_dataset=ROWS[:3], per_device_eval_batch_size=2)
    trainer.train()
    before = dict(trainer.adversaries.discriminators.state_dict()), dict(trainer.adversaries.last_bce)
    model_before, loss, kept = weights(trainer.model), trainer.adversaries.loss, list[bool]()

    def watched(domains: Any, strength: float, *, train: bool) -> Any:
        kept.append(train)
        return loss(domains, strength, train=train)

    trainer.adversaries.loss = watched  # type: ignore[method-assign]
    metrics = trainer.evaluate()
    assert 0 < metrics["eval_loss"] < 100
    assert kept == [False] * 2 and trainer.adversaries.last_bce == before[1]
    assert_same(dict(trainer.adversaries.discriminators.state_dict()), before[0], rtol=0, atol=0)
    assert_same(weights(trainer.model), model_before, rtol=0, atol=0)


# Ordinary text


def test_retain_text_from_a_file(build: Build, tmp_path: Path) -> None:
    path = tmp_path / "passages.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in PASSAGES))
    from_file = build(retain_text=str(path), retain_text_tokens=6, retain_text_per_pair=1.0)
    batch = whole_batch(from_file)
    assert batch["input_ids"].shape[0] == 3 * len(ROWS)
    assert batch["attention_mask"][2 * len(ROWS) :].sum(1).tolist()[:3] == [
        min(6, len(tiny_tokenizer()(text)["input_ids"])) for text in PASSAGES
    ]
    from_file.train()
    assert len(logged(from_file, "retain_text_loss")) == 3
    with pytest.raises(UserError, match="retain_text has no passage of two tokens or more"):
        build(retain_text_list=["a", ""])


def test_retain_text_holds_the_model_on_ordinary_text(build: Build) -> None:
    drift = {}
    for weight in (0.0, 100.0):
        trainer = build(w_retain_text=weight, retain_text_list=PASSAGES, max_steps=8, grl_lambda=3.0)
        trainer.train()
        drift[weight] = logged(trainer, "retain_text_loss")[-1]
    assert drift[100.0] < 0.5 * drift[0.0]


# Interruptions and failures


@pytest.mark.parametrize("settings", [{}, {"lora_r": 2}, {"bound": "confusion", "discriminator": "linear"}])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    settings: dict[str, Any], build: Build, tmp_path: Path
) -> None:
    settings = settings | {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "per_device_train_batch_size": 3,
        "lr_scheduler_type": "linear",
        "grl_schedule": "dann",
        "retain_text_list": PASSAGES,
    }
    whole = build(output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    killed = build(output_dir=str(tmp_path / "killed"), callbacks=[StopAfterSave()], **settings)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    checkpoint = tmp_path / "killed" / "checkpoint-2"
    assert (checkpoint / DISCRIMINATORS).exists() and not (checkpoint.parent / "checkpoint-4").exists()
    resumed = build(output_dir=str(tmp_path / "killed"), **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 4
    assert_same(weights(resumed.model), weights(whole.model), rtol=0, atol=0)
    states = [dict(each.adversaries.discriminators.state_dict()) for each in (resumed, whole)]
    assert_same(*states, rtol=0, atol=0)
    assert resumed.adversaries.last_bce == whole.adversaries.last_bce
    assert logged(resumed, "retain_loss") == logged(whole, "retain_loss")


def test_a_checkpoint_of_the_model_alone_is_not_resumed(build: Build, tmp_path: Path) -> None:
    settings = {"output_dir": str(tmp_path), "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    build(save_only_model=True, **settings).train()
    with pytest.raises(UserError, match=f"holds no {DISCRIMINATORS} .saved with save_only_model"):
        build(**settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_loss_that_is_not_finite_stops_before_the_step(build: Build, tmp_path: Path) -> None:
    trainer = build(max_steps=6, save_strategy="steps", save_steps=2)
    loss = trainer.loss

    def diverge(step: Step) -> Loss:
        value, metrics = loss(step)
        return (value / 0 if trainer.state.global_step == 3 else value), metrics

    trainer.loss = diverge  # type: ignore[method-assign]
    steps: list[dict[str, Tensor]] = []

    class Record(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            steps.append(weights(trainer.model))

    trainer.add_callback(Record())
    with pytest.raises(
        RunError, match=r"the loss is inf at step 3 \(retain_loss .*adversary/.*\); stopped before the opt"
    ):
        trainer.train()
    assert len(steps) == 3
    assert_same(weights(trainer.model), steps[2], rtol=0, atol=0)
    loaded, _ = load_model(tmp_path / "out" / "checkpoint-2")
    assert_same(weights(loaded), steps[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
    ],
)
def test_a_checkpoint_that_cannot_be_written_is_not_left_half(
    error: Exception, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(max_steps=4, save_strategy="steps", save_steps=2)
    save = trainer.adversaries.save

    def full(path: Path) -> None:
        if "checkpoint-4" in str(path):
            raise error
        save(path)

    monkeypatch.setattr(trainer.adversaries, "save", full)
    with pytest.raises(RunError, match="checkpoint-4 was not written: .*Earlier checkpoints are untouched"):
        trainer.train()
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["checkpoint-2"]
    assert load_model(tmp_path / "out" / "checkpoint-2")[0].num_parameters() == trainer.model.num_parameters()  # type: ignore[union-attr]


def test_weights_that_are_not_finite_are_noticed(build: Build) -> None:
    """`logging_nan_inf_filter` of transformers would hide them."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(RunError, match="the loss is nan at step 0"):
        build(model).train()


# Checkpoints


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_saved_model_is_the_trained_one(family: str, build: Build, tmp_path: Path) -> None:
    trainer = build(tiny_model(family))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    batch = whole_batch(trainer)
    expected = logits_of(trainer.model.eval(), batch)
    loaded, tokenizer = load_model(tmp_path / "saved")
    torch.testing.assert_close(logits_of(loaded, batch), expected, rtol=0, atol=0)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(logits_of(plain, batch), expected, rtol=0, atol=0)
    assert tokenizer("The town")["input_ids"] == tiny_tokenizer()("The town")["input_ids"]
    assert not torch.allclose(expected, logits_of(tiny_model(family), batch), atol=1e-3)
    if family == "llama":
        assert json.loads((tmp_path / "saved" / "config.json").read_text())["rope_theta"] == 10000.0


def test_a_saved_adapter_reloads(build: Build, tmp_path: Path) -> None:
    save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "base")
    trainer = build(str(tmp_path / "base"), lora_r=2, learning_rate=1e-2)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    batch = whole_batch(trainer)
    expected = logits_of(trainer.model.eval(), batch)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with_peft = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits_of(with_peft, batch), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits_of(load_model(tmp_path / "adapter")[0], batch), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, logits_of(tiny_model("llama"), batch), atol=1e-3)


def test_models_by_path_and_tokenizers_by_origin(build: Build, tmp_path: Path) -> None:
    save_model(tiny_model("gpt2"), tiny_tokenizer(), tmp_path / "base")
    assert build(str(tmp_path / "base"), processing_class=None).processing_class.vocab_size == VOCAB_SIZE  # type: ignore[union-attr]
    model, _ = load_model(tmp_path / "base")
    assert build(model, processing_class=None).processing_class.vocab_size == VOCAB_SIZE  # type: ignore[union-attr]


def test_a_reference_of_ones_own(build: Build) -> None:
    for precompute in ("off", "on"):
        trainer = build(ref_model=tiny_model("llama", seed=1), max_steps=1, precompute_reference=precompute)
        live = trainer.reference if isinstance(trainer.reference, LiveReference) else None
        assert (live is None) == (precompute == "on")
        before = None if live is None else weights(live.model)
        trainer.train()
        if live is not None and before is not None:
            assert_same(weights(live.model), before, rtol=0, atol=0)
            assert all(parameter.grad is None for parameter in live.model.parameters())
        assert logged(trainer, "retain_loss")[0] > 0.1


# Gradient checkpointing


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("lora_r", [None, 2])
def test_gradient_checkpointing_changes_nothing(lora_r: int | None, family: str, build: Build) -> None:
    results = []
    for checkpointing in (False, True):
        trainer = build(
            tiny_model(family),
            lora_r=lora_r,
            gradient_checkpointing=checkpointing,
            max_steps=2,
            erase_layers="all",
            optim="sgd",
            learning_rate=0.1,
        )
        start = weights(trainer.model)
        block: Any = decoder_blocks(trainer.model)[0]
        forwards: list[int] = []
        block.mlp.register_forward_pre_hook(lambda module, args, forwards=forwards: forwards.append(1))
        trainer.train()
        results.append((weights(trainer.model), len(forwards)))
    (plain, n_plain), (checkpointed, n_checkpointed) = results
    assert n_checkpointed == n_plain + 2  # each step ran the block once more, in the backward pass
    assert_same(checkpointed, plain, rtol=1e-5, atol=1e-6)
    assert max((plain[name] - start[name]).abs().max() for name in plain) > 1e-4


# Settings that cannot work


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"erase_side": "benign"}, "erase_side='benign' is unknown. Choose one of toxic, both"),
        ({"erase_unit": "word"}, "erase_unit='word' is unknown. Choose one of token, sequence"),
        ({"bound": "tight"}, "bound='tight' is unknown. Choose one of layer, token, confusion, none"),
        ({"grl_schedule": "cosine"}, "grl_schedule='cosine' is unknown. Choose one of dann, constant"),
        ({"discriminator": "forest"}, "discriminator='forest' is unknown. Choose one of mlp, linear"),
        ({"discriminator_steps": 0}, "discriminator_steps=0: the discriminators need at least one update"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "use_reentrant=True cuts captured hidden states"),
        ({"max_steps": 0}, "max_steps=0 trains nothing. Give a number of steps"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0: it must be at least 1"),
        ({"fp16": True}, "fp16 scales the loss, which the discriminators cannot follow. Use bf16"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        REPOConfig("out", use_cpu=True, **settings)


def test_several_gpus_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(UserError, match="2 GPUs in one process would split pairs apart. Launch with `torchrun`"):
        REPOConfig("out", use_cpu=True)


def test_arguments_that_cannot_work(build: Build) -> None:
    with pytest.raises(UserError, match="REPOTrainer needs train_dataset: a pairs file"):
        REPOTrainer(tiny_model("llama"), REPOConfig("out", use_cpu=True))
    with pytest.raises(UserError, match="trainable_layers is for full fine-tuning; with LoRA choose"):
        build(lora_r=2, trainable_layers="last")
    with pytest.raises(UserError, match="the LoRA adapter does not fit the model: .*no_such_proj"):
        build(lora_r=2, lora_target_modules="no_such_proj")
    with pytest.raises(UserError, match="layer 2 does not exist: the model has 2 layers"):
        build(erase_layers="2")
    with pytest.raises(UserError, match="row 1: field 'prompt' is missing"):
        build(rows=[ROWS[0], {}])


def test_bad_rows_are_dropped_and_counted(build: Build) -> None:
    trainer = build(rows=[ROWS[0], {}, ROWS[1]], skip_bad_rows=True)
    assert trainer.n_skipped_rows == 1 and len(trainer.train_dataset) == 2  # type: ignore[arg-type]
    assert build().n_skipped_rows == 0


def test_the_base_trainer_has_no_loss_of_its_own(tmp_path: Path) -> None:
    trainer = PairTrainer(
        tiny_model("llama"),
        PairTrainer.config_class(str(tmp_path), use_cpu=True),
        ROWS,
        processing_class=tiny_tokenizer(),
    )
    with pytest.raises(NotImplementedError):
        trainer.compute_loss(trainer.model, whole_batch(trainer))  # type: ignore[arg-type]


def test_helpers() -> None:
    net = nn.Sequential(nn.Dropout(0.3), nn.Sequential(nn.Dropout(0.1)))
    disable_dropout_(net)
    assert [module.p for module in net.modules() if isinstance(module, nn.Dropout)] == [0.0, 0.0]


# Methods by name


def test_methods_by_name() -> None:
    assert load_method("repo") is REPOTrainer
    assert all(issubclass(load_method(name), PairTrainer | PairEditor) for name in METHODS)
    assert load_method("efface.methods.repo:REPOTrainer") is REPOTrainer
    with pytest.raises(UserError, match="method 'magic' is unknown. There are: repo"):
        load_method("magic")
    for path in ("no_such_module:X", "efface.methods.repo:Missing"):
        with pytest.raises(UserError, match=f"method '{path}' cannot be imported: .*Write package.module:Class"):
            load_method(path)
    with pytest.raises(UserError, match="'json:dumps' is no trainer class of efface. Derive it from"):
        load_method("json:dumps")
