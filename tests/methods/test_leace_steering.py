"""Do interventions do what they say, travel with the model, and erase or shift exactly?

Of: methods/leace.py, methods/steering.py, methods/hooked.py, model/interventions.py
"""

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from trained import ROWS
from transformers import AutoModelForCausalLM, PreTrainedModel

from efface.analysis.directions import LeaceEraser, difference_of_means
from efface.analysis.states import TokenStates, token_states
from efface.cli import main
from efface.data.batch import PairCollator
from efface.data.pair_tokens import tokenize_pair
from efface.errors import UserError
from efface.files.results import write_jsonl
from efface.methods.leace import LeaceConfig, LeaceEditor, leace_intervention, least_squares_probe
from efface.methods.steering import SteeringConfig, SteeringEditor, steering_intervention
from efface.model.blocks import capture_residuals, decoder_blocks
from efface.model.fingerprint import fingerprint_of
from efface.model.interventions import (
    BELOW,
    FILE,
    Intervention,
    attach_,
    attach_from_hub_,
    attached,
    detach_,
    place_on_hub,
)
from efface.model.load import load_model
from efface.model.projections import attention_output_projection, mlp_output_projection
from efface.model.save import save_model
from efface.training.finetune import finetune
from efface.training.passes import policy_forward

D = 32
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
FOLDABLE = ["gpt2", "llama", "gemma", "qwen2", "gpt_neox", "opt", "phi"]
# More tokens than dimensions, or a probe would separate anything.
PAIRS = ROWS + [
    {"prompt": row["rejected"].strip(), "chosen": " " + other["prompt"], "rejected": other["rejected"] + row["chosen"]}
    for row, other in zip(ROWS, ROWS[1:] + ROWS[:1], strict=True)
]


def some(layer: int = 0, rank: int = 2, width: int = D, seed: int = 0) -> Intervention:
    generator = torch.Generator().manual_seed(seed)
    left, right, bias = (
        torch.randn(shape, generator=generator) / 2 for shape in ((width, rank), (rank, width), (width,))
    )
    return Intervention(layer, left, right, bias)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=IDS.to(next(model.parameters()).device)).logits.float()


@torch.no_grad()
def residuals(model: nn.Module, layers: tuple[int, ...] = (0, 1)) -> dict[int, Tensor]:
    with capture_residuals(model, layers) as captured:
        model(input_ids=IDS)
    return captured


def states_of(model: PreTrainedModel, layer: int) -> TokenStates:
    return token_states(model, tiny_tokenizer(), PAIRS, [layer])[layer]


def leace(model: PreTrainedModel | str, tmp_path: Path, **config: Any) -> LeaceEditor:
    return LeaceEditor(model, LeaceConfig(str(tmp_path / "out"), disable_tqdm=True, **config), PAIRS, tiny_tokenizer())


def steering(model: PreTrainedModel | str, tmp_path: Path, **config: Any) -> SteeringEditor:
    return SteeringEditor(
        model, SteeringConfig(str(tmp_path / "out"), disable_tqdm=True, **config), PAIRS, tiny_tokenizer()
    )


# Interventions


@given(st.integers(0, 3), st.integers(0, 10))
@settings(max_examples=20, deadline=None)
def test_the_formula(rank: int, seed: int) -> None:
    it = some(rank=rank, seed=seed)
    hidden = torch.randn(2, 3, D, generator=torch.Generator().manual_seed(seed + 1))
    expected = torch.stack([h + it.left @ (it.right @ h) + it.bias for h in hidden.flatten(0, 1)])
    torch.testing.assert_close(it(hidden).flatten(0, 1), expected)
    assert it(hidden.bfloat16()).dtype == torch.bfloat16 and it(hidden.double()).dtype == torch.float64


def test_autocast_does_not_round_it() -> None:
    hidden = torch.randn(3, D)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = some()(hidden)
    assert torch.equal(rounded, some()(hidden))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "opt"])
def test_attach_and_detach(family: str) -> None:
    model = tiny_model(family)
    base, plain = residuals(model), logits(model)
    attach_(model, [some(1), some(0, seed=1), some(1, rank=0, seed=2)])
    assert [it.layer for it in attached(model)] == [0, 1, 1] and attached(model)[2].left.shape == (D, 0)
    changed = residuals(model)  # what looks at the stream later sees it changed
    torch.testing.assert_close(changed[0], some(0, seed=1)(base[0]))
    assert not torch.allclose(logits(model), plain, atol=1e-2)
    detach_(model)
    assert attached(model) == [] and torch.equal(logits(model), plain)


def test_several_after_one_block_apply_in_order() -> None:
    model = tiny_model("llama")
    base = residuals(model)[1]
    attach_(model, [some(1)])
    attach_(model, [some(1, seed=1)])
    torch.testing.assert_close(residuals(model)[1], some(seed=1)(some()(base)))


def test_a_block_that_gives_a_tuple() -> None:
    class Block(nn.Module):
        def forward(self, hidden: Tensor) -> tuple[Tensor, str]:
            return hidden, "attention weights"

    model = nn.Module()
    model.layers = nn.ModuleList([Block(), Block()])
    text_config = SimpleNamespace(num_hidden_layers=2, hidden_size=D, model_type="made up")
    model.config = SimpleNamespace(get_text_config=lambda decoder: text_config)  # type: ignore[assignment]
    attach_(model, [some(1)])
    hidden = torch.randn(1, 4, D)
    changed, rest = model.layers[1](hidden)
    assert torch.equal(changed, some()(hidden)) and rest == "attention weights"


def test_deep_copies_have_their_own() -> None:
    model = tiny_model("gpt2")
    plain = logits(model)
    attach_(model, [some()])
    changed = logits(model)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), changed)
    detach_(twin)
    assert torch.equal(logits(twin), plain) and torch.equal(logits(model), changed) and len(attached(model)) == 1
    other = copy.deepcopy(model)
    detach_(model)
    assert torch.equal(logits(other), changed) and torch.equal(logits(model), plain)


def test_device_and_dtype_follow_the_model() -> None:
    model = tiny_model("llama")
    attach_(model, [some(1)])
    low = copy.deepcopy(model).bfloat16()
    assert residuals(low)[1].dtype == torch.bfloat16
    full = residuals(model)[1]
    assert (residuals(low)[1] - full).norm() < 0.1 * full.norm()
    low.to("meta")
    assert low(input_ids=IDS.to("meta")).logits.device.type == "meta"
    assert attached(low)[0].bias.device.type == "meta" and attached(model)[0].bias.device.type == "cpu"


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_generation_is_the_same_with_and_without_a_cache(family: str) -> None:
    model = tiny_model(family)
    attach_(model, [some(0), some(1, rank=0)])
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    cached = model.generate(IDS, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(IDS, use_cache=False, **settings))
    detach_(model)
    assert not torch.equal(cached, model.generate(IDS, use_cache=True, **settings))


def test_the_shared_layout_and_a_forward_that_stops_early_see_it() -> None:
    model = tiny_model("llama")
    base = states_of(model, 0).hidden
    attach_(model, [some(0)])
    batch = PairCollator(pad_token_id=0)([tokenize_pair(row, tiny_tokenizer()) for row in PAIRS])
    nothing = torch.zeros_like(batch["continuation_mask"])
    with torch.no_grad():
        for layout in ("plain", "shared"):
            found = policy_forward(model, batch, nothing, [0], batch["continuation_mask"], layout).residuals[0]
            order = np.argsort(states_of(model, 0).labels, kind="stable")  # one batch: chosen first there too
            torch.testing.assert_close(found, some()(torch.from_numpy(base[order])), atol=1e-4, rtol=1e-4)


def test_gradients_flow_through_it_also_with_checkpointing() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model("llama").train()
        attach_(model, [some(0)])
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=IDS).logits.square().mean().backward()
        gradients.append(next(decoder_blocks(model)[0].parameters()).grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0])


def test_it_does_not_fit() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(UserError, match="after layer 2 does not fit a model of 2 layers, 0 to 1"):
        attach_(model, [some(0), some(2)])
    with pytest.raises(UserError, match="width 16 does not fit a model whose hidden states have 32"):
        attach_(model, [some(width=16)])
    assert attached(model) == []
    left, right, bias = some().left, some().right, some().bias
    with pytest.raises(UserError, match=r"\(32, 2\), \(2, 31\) and \(32,\): \(d, r\), \(r, d\) and \(d,\) are needed"):
        Intervention(0, left, right[:, 1:], bias)
    with pytest.raises(UserError, match="after layer 0 has numbers that are not finite"):
        attach_(model, [Intervention(0, left, right, bias * torch.inf)])
    assert attached(model) == []
    with pytest.raises(UserError, match="layer -1 of an intervention: count blocks from 0"):
        Intervention(-1, left, right, bias)


# Checkpoints


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_saved_and_loaded(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    plain = logits(model)
    attach_(model, [some(0), some(1, rank=0), some(1, seed=1)])
    changed = logits(model)
    save_model(model, tiny_tokenizer(), tmp_path)
    loaded, _ = load_model(tmp_path, device="cpu")
    assert torch.equal(logits(loaded), changed) and [it.layer for it in attached(loaded)] == [0, 1, 1]
    # What the documentation says of the plain loader.
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / BELOW)), plain)
    # Either kind takes the place of the other, wholly.
    detach_(loaded)
    save_model(loaded, tiny_tokenizer(), tmp_path)
    assert not (tmp_path / FILE).exists() and not (tmp_path / BELOW).exists()
    assert torch.equal(logits(load_model(tmp_path, device="cpu")[0]), plain)
    save_model(model, tiny_tokenizer(), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {FILE, BELOW}
    (tmp_path / FILE).unlink()
    with pytest.raises(UserError, match=f"lacks {FILE}, without which it is the untouched model"):
        load_model(tmp_path, device="cpu")


def test_a_checkpoint_of_an_earlier_version_loads(tmp_path: Path) -> None:
    model = tiny_model("llama")
    attach_(model, [some(0)])
    save_model(model, tiny_tokenizer(), tmp_path, within_run=True)  # it had both in one folder, as within a run
    assert (tmp_path / "config.json").exists() and (tmp_path / FILE).exists()
    assert torch.equal(logits(load_model(tmp_path, device="cpu")[0]), logits(model))


@pytest.mark.parametrize("lora", [[], ["--lora_r", "2"]])
def test_training_of_an_intervened_model_is_resumed(lora: list[str], tmp_path: Path) -> None:
    model = tiny_model("llama")
    attach_(model, [some(0)])
    save_model(model, tiny_tokenizer(), tmp_path / "steered")
    rows = [{"prompt": f"The town {i}", "chosen": " is old.", "rejected": " is a fool."} for i in range(8)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    argv = ["train", "sft", str(tmp_path / "steered"), str(tmp_path / "pairs.jsonl"), "--max_steps", "4", *lora]
    argv += ["--save_strategy", "steps", "--save_steps", "2", "--per_device_train_batch_size", "2"]
    for out in ("whole", "resumed"):
        assert main([*argv, "-o", str(tmp_path / out)]) == 0
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-4")
    for file in ("results.json", FILE):
        (tmp_path / "resumed" / file).unlink()
    shutil.rmtree(tmp_path / "resumed" / BELOW)
    assert main([*argv, "-o", str(tmp_path / "resumed"), "--resume"]) == 0
    whole, resumed = (load_model(tmp_path / out, device="cpu")[0] for out in ("whole", "resumed"))
    assert len(attached(resumed)) == 1
    torch.testing.assert_close(logits(resumed), logits(whole))


def test_parts_that_share_memory_are_saved(tmp_path: Path) -> None:
    model, right = tiny_model("gpt2"), torch.randn(2, D)
    twins = [Intervention(layer, -right.T, right, right[0]) for layer in (0, 1)]
    attach_(model, [Intervention(0, right.T, right, right[0]), *twins])
    save_model(model, tiny_tokenizer(), tmp_path)
    assert torch.equal(logits(load_model(tmp_path, device="cpu")[0]), logits(model))


def test_an_adapter_keeps_those_of_its_base_once(tmp_path: Path) -> None:
    model = tiny_model("llama")
    attach_(model, [some(0)])
    save_model(model, tiny_tokenizer(), tmp_path / "base")
    base, tokenizer = load_model(tmp_path / "base", device="cpu")
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    attach_(adapted, [some(1)])
    changed = logits(adapted)
    with adapted.disable_adapter():
        assert not torch.allclose(logits(adapted), changed) and len(attached(adapted)) == 2
    save_model(adapted, tokenizer, tmp_path / "adapter")
    loaded, _ = load_model(tmp_path / "adapter", device="cpu")
    torch.testing.assert_close(logits(loaded), changed)
    assert [it.layer for it in attached(loaded)] == [0, 1]
    adapted.save_pretrained(tmp_path / "by_peft")
    assert [it.layer for it in attached(load_model(tmp_path / "by_peft", device="cpu")[0])] == [0]


def test_a_file_that_is_damaged_or_of_another_model(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    attach_(model, [some()])
    save_model(model, tiny_tokenizer(), tmp_path)
    file = tmp_path / FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    with pytest.raises(UserError, match=f"{FILE} holds no interventions .*Save the model again"):
        load_model(tmp_path, device="cpu")
    bad: list[tuple[dict[str, Tensor], dict[str, str] | None]] = [
        ({"weight": torch.ones(2)}, None),  # no file of ours
        ({"0.left": torch.ones(D, 1), "0.right": torch.ones(1, D)}, {"layers": "[0]"}),
        ({"0.left": torch.ones(D, 1), "0.right": torch.ones(D, 1), "0.bias": torch.ones(D)}, {"layers": "[0]"}),
        ({}, {"layers": "[0"}),
    ]
    for tensors, metadata in bad:
        safetensors.torch.save_file(tensors, file, metadata=metadata)
        with pytest.raises(UserError, match=f"{FILE} holds no interventions"):
            load_model(tmp_path, device="cpu")
    narrow = {"0.left": torch.ones(16, 1), "0.right": torch.ones(1, 16), "0.bias": torch.ones(16)}
    safetensors.torch.save_file(narrow, file, metadata={"layers": "[0]"})
    with pytest.raises(UserError, match=f"{FILE}: an intervention of width 16 does not fit"):
        load_model(tmp_path, device="cpu")


def test_a_file_that_the_hub_does_not_give_is_not_taken_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that was busy, or a network that was gone, made the untouched model of it."""

    def busy(name: str, file: str, **given: Any) -> str:
        if file.endswith(FILE):
            raise LocalEntryNotFoundError("503: try again")
        raise RemoteEntryNotFoundError("no such file", response=mock.MagicMock(status_code=404, headers={}))

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", busy)
    model = tiny_model("gpt2")
    for folder in (BELOW, ""):
        with pytest.raises(OSError, match="503"):
            attach_from_hub_(model, "some/erased", None, "", folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # where the same error says: not there
    attach_from_hub_(model, "some/plain", None, "", "")
    with pytest.raises(UserError, match=f"'some/erased' lacks {FILE}"):
        attach_from_hub_(model, "some/erased", None, "", BELOW)


def test_a_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    attach_(model, [some()])
    save_model(model, None, tmp_path)
    asked: list[Any] = []

    def download(name: str, file: str, revision: str | None) -> str:
        asked.append((name, file, revision))
        if name == "some/erased" and not (tmp_path / file).exists() or name == "some/plain" and file != "config.json":
            raise RemoteEntryNotFoundError("no such file", response=mock.MagicMock(status_code=404, headers={}))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert place_on_hub("some/erased", None, "") == (BELOW, "config.json")
    assert place_on_hub("some/plain", None, "") == ("", "config.json")
    asked.clear()
    fresh = tiny_model("gpt2")
    attach_from_hub_(fresh, "some/plain", None, "", "")
    assert attached(fresh) == []
    attach_from_hub_(fresh, "some/erased", "v2", "", BELOW)
    assert torch.equal(logits(fresh), logits(model)) and asked[1] == ("some/erased", FILE, "v2")


def test_fine_tuning_an_intervened_model() -> None:
    model = tiny_model("gpt2")
    attach_(model, [some()])
    before = logits(model)
    student = finetune(model, tiny_tokenizer(), ["The old town", "She went to the market"], steps=2, batch_size=2)
    assert len(attached(student)) == 1 and not torch.equal(logits(student), before)
    assert torch.equal(logits(model), before)
    detach_(student)
    assert len(attached(model)) == 1


# LEACE


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_a_least_squares_probe_does_no_better_than_the_larger_class(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    before = states_of(model, 1)
    eraser = LeaceEraser.fit(before.hidden, before.labels)
    editor = leace(model, tmp_path)
    editor.train()
    after = states_of(model, 1)
    torch.testing.assert_close(after.hidden, eraser(before.hidden), atol=1e-4, rtol=1e-4)
    # By hand: least squares with an intercept, on the directions that single precision resolves.
    centred = after.hidden - after.hidden.mean(0, dtype=np.float64)
    target = after.labels - after.labels.mean()
    fitted = centred @ np.linalg.lstsq(centred, target, rcond=1e-5)[0]
    larger = max(after.labels.mean(), 1 - after.labels.mean())
    assert np.abs(fitted).max() < 1e-3
    assert ((fitted + after.labels.mean() > 0.5) == after.labels).mean() == pytest.approx(larger)
    found = editor.found["layers"]["1"]
    assert found["before"]["accuracy"] > larger + 0.02 and found["before"]["auc"] > 0.7
    assert found["after"] == {"accuracy": pytest.approx(larger), "auc": 0.5} and found["rank"] == 1
    assert found["larger_class"] == pytest.approx(larger) and found["tokens"] == len(after.labels)
    moved = np.linalg.norm(after.hidden - before.hidden, axis=1).mean()
    assert found["shift"] == pytest.approx(moved / np.linalg.norm(before.hidden, axis=1).mean(), rel=1e-4)
    json.dumps(editor.record())


def test_several_layers_are_erased_each_with_those_below_in_place(tmp_path: Path) -> None:
    model = tiny_model("llama")
    below = states_of(model, 0)
    editor = leace(model, tmp_path, layers="all")
    editor.train()
    assert set(editor.found["layers"]) == {"0", "1"}
    for layer in (0, 1):
        states = states_of(model, layer)
        assert least_squares_probe(states.hidden, states.labels)["auc"] == 0.5
    by_hand = tiny_model("llama")
    attach_(by_hand, [leace_intervention(0, LeaceEraser.fit(below.hidden, below.labels))])
    next_states = states_of(by_hand, 1)
    attach_(by_hand, [leace_intervention(1, LeaceEraser.fit(next_states.hidden, next_states.labels))])
    assert torch.equal(logits(model), logits(by_hand))


def test_leace_saved_and_loaded(tmp_path: Path) -> None:
    save_model(tiny_model("gpt2"), tiny_tokenizer(), tmp_path / "base")
    editor = leace(str(tmp_path / "base"), tmp_path, use_cpu=True)
    editor.train()
    editor.save_model()
    loaded, _ = load_model(tmp_path / "out", device="cpu")
    states = states_of(loaded, 1)
    assert least_squares_probe(states.hidden, states.labels)["auc"] == 0.5
    assert torch.equal(logits(loaded), logits(editor.model))


@pytest.mark.parametrize("family", FOLDABLE)
def test_an_edited_block_writes_nothing_along_the_erased_directions(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    base, before, below = residuals(model), states_of(model, 1), states_of(model, 0)
    erased = LeaceEraser.fit(before.hidden, before.labels).right  # (1, d)
    editor = leace(model, tmp_path, mode="edit")
    editor.train()
    assert attached(model) == [] and (editor.found["layers"]["1"]["rank"], editor.found["mode"]) == (1, "edit")
    now, after = residuals(model), states_of(model, 1)
    assert torch.equal(now[0], base[0]) and not torch.allclose(now[1], base[1], atol=1e-3)
    written = (after.hidden - below.hidden) @ erased.T  # (N, 1)
    assert np.ptp((before.hidden - below.hidden) @ erased.T) > 0.1 and np.ptp(written) < 1e-3
    if mlp_output_projection(decoder_blocks(model)[1]).bias is None:
        np.testing.assert_allclose(written, 0, atol=1e-3)
    else:  # a constant: what the block wrote on the average
        np.testing.assert_allclose(after.hidden.mean(0) @ erased.T, before.hidden.mean(0) @ erased.T, atol=1e-3)
    moved = np.linalg.norm(after.hidden - before.hidden, axis=1).mean()
    assert editor.found["layers"]["1"]["shift"] == pytest.approx(
        moved / np.linalg.norm(before.hidden, axis=1).mean(), rel=1e-3
    )


def test_an_edit_is_an_ordinary_checkpoint_of_few_changed_weights(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    old = {name: value.clone() for name, value in model.state_dict().items()}
    editor = leace(model, tmp_path, mode="edit", layers="0")
    editor.train()
    editor.save_model()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(plain), logits(model))
    assert not (tmp_path / "out" / FILE).exists()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, old[name])}
    assert changed == {
        f"transformer.h.0.{part}.c_proj.{kind}" for part in ("attn", "mlp") for kind in ("weight", "bias")
    }


def test_an_edit_merges_an_adapter_first(tmp_path: Path) -> None:
    adapted = get_peft_model(
        tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    )
    before = logits(adapted)
    editor = leace(adapted, tmp_path, mode="edit")
    torch.testing.assert_close(logits(editor.model), before)
    editor.train()
    assert not torch.allclose(logits(editor.model), before, atol=1e-3)
    assert type(attention_output_projection(decoder_blocks(editor.model)[1])) is nn.Linear


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_a_block_with_a_norm_after_its_projections_cannot_be_edited(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    plain = logits(model)
    with pytest.raises(UserError, match="mode='edit': block 1 of Gemma.ForCausalLM.*Use mode=hook"):
        leace(model, tmp_path, mode="edit")
    assert torch.equal(logits(model), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_nothing_is_done_where_there_is_nothing_to_erase(tmp_path: Path) -> None:
    rows = [
        {"prompt": "He is", "chosen": " a cat", "rejected": " a dog"},
        {"prompt": "He is", "chosen": " a dog", "rejected": " a cat"},
    ]
    model = tiny_model("gpt2")
    plain = logits(model)
    editor = LeaceEditor(model, LeaceConfig(str(tmp_path), disable_tqdm=True), rows, tiny_tokenizer())
    editor.train()
    found = editor.found["layers"]["1"]
    assert found["rank"] == 0 and found["shift"] == 0 and found["before"] == {"accuracy": 0.5, "auc": 0.5}
    assert torch.equal(logits(model), plain)


def test_the_probe_finds_what_is_there() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(500) < 0.6).astype(int)
    hidden = (100 + rng.standard_normal((500, 4)) * [1, 1e-2, 1, 1]).astype(np.float32)
    nothing = least_squares_probe(hidden, labels)
    hidden[:, 1] += 0.03 * labels  # three standard deviations, in a small feature
    found = least_squares_probe(hidden, labels)
    assert found["accuracy"] > 0.9 and found["auc"] > 0.95 and nothing["auc"] < 0.6


# Steering


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_states_are_shifted_by_the_vector_and_nothing_else(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    before, stream = states_of(model, 1), residuals(model)
    vector = -0.5 * difference_of_means(before.hidden, before.labels)
    editor = steering(model, tmp_path, strength=0.5)
    editor.train()
    assert editor.layers == [1]  # half of two
    torch.testing.assert_close(residuals(model)[1], stream[1] + torch.from_numpy(vector).float())
    assert torch.equal(residuals(model)[0], stream[0])
    (found,) = editor.found["layers"].values()
    length = np.linalg.norm(vector)
    assert found["length"] == pytest.approx(length)
    assert found["relative_length"] == pytest.approx(length / np.linalg.norm(before.hidden, axis=1).mean())
    json.dumps(editor.record())


def test_one_strength_moves_the_toxic_mean_onto_the_benign_one(tmp_path: Path) -> None:
    model = tiny_model("llama")
    before = states_of(model, 0)
    steering(model, tmp_path, layers="0").train()
    after = states_of(model, 0)
    toxic, benign = after.hidden[after.labels == 1], before.hidden[before.labels == 0]
    np.testing.assert_allclose(toxic.mean(0), benign.mean(0), atol=1e-4)


def test_several_layers_are_steered_each_with_those_below_in_place(tmp_path: Path) -> None:
    model, whole = tiny_model("llama"), tiny_model("llama")
    steering(model, tmp_path, layers="0").train()
    before = states_of(model, 1)
    steering(whole, tmp_path, layers="all").train()
    after = states_of(whole, 1)
    toxic, benign = after.hidden[after.labels == 1], before.hidden[before.labels == 0]
    np.testing.assert_allclose(toxic.mean(0), benign.mean(0), atol=1e-4)


def test_steering_saved_and_loaded(tmp_path: Path) -> None:
    save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "base")
    editor = steering(str(tmp_path / "base"), tmp_path, layers="all", use_cpu=True)
    editor.train()
    editor.save_model()
    loaded, _ = load_model(tmp_path / "out", device="cpu")
    assert torch.equal(logits(loaded), logits(editor.model)) and len(attached(loaded)) == 2
    assert not torch.allclose(logits(loaded), logits(load_model(tmp_path / "base", device="cpu")[0]), atol=1e-2)


# Settings


def test_pairs_are_drawn_and_the_note_is_said(tmp_path: Path) -> None:
    drawn = [steering(tiny_model("gpt2"), tmp_path, max_pairs=5, seed=seed).rows for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 5 and all(row in PAIRS for row in drawn[2])
    pairs, note = leace(tiny_model("gpt2"), tmp_path, max_pairs=5).describe()
    assert pairs == f"5 of {len(PAIRS)} pairs, no training steps; after block 1"
    assert FILE in note and "plain transformers" in note
    assert len(leace(tiny_model("gpt2"), tmp_path, mode="edit").describe()) == 1


def test_wrong_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="layer 7 does not exist: the model has 2 layers"):
        leace(tiny_model("gpt2"), tmp_path, layers="7")
    with pytest.raises(UserError, match="mode='weights' is unknown. Choose one of hook, edit"):
        LeaceConfig("out", mode="weights")
    with pytest.raises(UserError, match="strength=0: it must be a finite number above 0"):
        SteeringConfig("out", strength=0)
    with pytest.raises(UserError, match="max_pairs=0"):
        LeaceConfig("out", max_pairs=0)


def test_an_intervened_model_is_another_model_than_its_base() -> None:
    model = tiny_model("llama")
    plain = fingerprint_of(model)
    attach_(model, [steering_intervention(0, np.ones(32))])
    assert fingerprint_of(model) != plain
    detach_(model)
    assert fingerprint_of(model) == plain
