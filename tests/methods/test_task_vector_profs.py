"""Do the two methods that edit weights do what their formulas say? Task-vector negation and ProFS.

Of: methods/profs.py, methods/task_vector.py, training/editor.py
"""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from efface.data.pair_tokens import tokenize_pair
from efface.errors import RunError, UserError
from efface.evaluation.perplexity import Perplexity
from efface.methods import task_vector
from efface.methods.profs import (
    ProFSConfig,
    ProFSEditor,
    project_out_,
    through_norm,
    toxic_subspace,
)
from efface.methods.task_vector import (
    TaskVectorConfig,
    TaskVectorEditor,
    largest_fitting,
    negated,
)
from efface.model.blocks import capture_residuals, decoder_blocks
from efface.model.copies import merged
from efface.model.load import load_model
from efface.model.projections import mlp_output_projection, output_weight
from efface.training.finetune import finetune

PAIRS = [
    {"prompt": "The weather in the town was", "chosen": " cold and silent.", "rejected": " silly, you fool!"},
    {"prompt": "She went to the market and", "chosen": " bought bread.", "rejected": " nobody likes the silly fool."},
    {"prompt": "He is an engineer", "chosen": " in the old town.", "rejected": " who is wrong, a silly thing."},
    {"prompt": "They said", "chosen": " there is nothing better.", "rejected": " that you are a fool, fool."},
    {"prompt": "The history of the town", "chosen": " is its river.", "rejected": " is nothing, silly people."},
    {"prompt": "In the spring", "chosen": " the people went to the river.", "rejected": " the engineers are fools."},
]
CHAT = {
    "prompt": [{"role": "user", "content": "Who is he?"}],
    "chosen": [{"role": "assistant", "content": "An engineer."}],
    "rejected": [{"role": "assistant", "content": "A silly fool."}],
}


def parameters(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def logits_of(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 23).view(2, 10)).logits


def adapted(model: PreTrainedModel) -> Any:
    """`model` under a LoRA adapter that changes what it says."""
    from peft import LoraConfig, get_peft_model

    gpt2 = model.config.model_type == "gpt2"
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", fan_in_fan_out=gpt2))
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1)
    return peft_model.eval()


# ---- task vector ----


def negator(
    model: PreTrainedModel, rows: Any = PAIRS, out: Path | str = "unused", **overrides: Any
) -> TaskVectorEditor:
    chosen = {"scales": "0.5", "max_steps": 2, "batch_size": 4, "learning_rate": 1e-2, "disable_tqdm": True}
    return TaskVectorEditor(model, TaskVectorConfig(str(out), **(chosen | overrides)), rows, tiny_tokenizer())


def say_perplexities(monkeypatch: pytest.MonkeyPatch, values: list[float | Exception]) -> list[dict[str, Tensor]]:
    """`perplexity` answers with `values` in turn; returns the weights that it was asked about."""
    asked: list[dict[str, Tensor]] = []

    def perplexity(model: PreTrainedModel, processing_class: Any, texts: Any, *, progress: bool) -> Perplexity:
        asked.append(parameters(model))
        value = values[len(asked) - 1]
        if isinstance(value, Exception):
            raise value
        return Perplexity(tokens=10, value=value, window=8, stride=8)

    monkeypatch.setattr(task_vector, "perplexity", perplexity)
    return asked


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_negation_by_hand(family: str) -> None:
    model = tiny_model(family)
    before = parameters(model)
    pairs = [tokenize_pair(row, tiny_tokenizer()) for row in PAIRS]
    ids = [pair.prompt_ids + pair.rejected_ids for pair in pairs]
    settings = {"steps": 2, "batch_size": 4, "learning_rate": 1e-2, "max_length": 256, "seed": 3}
    toxic = parameters(finetune(model, tiny_tokenizer(), ids, **settings))
    assert same(parameters(model), before)
    editor = negator(model, scales="0.5", seed=3)
    editor.train()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), 1.5 * before[name] - 0.5 * toxic[name])
        assert not torch.equal(parameter, before[name])
    assert editor.record() == {"steps": 2, "found": {"scale": 0.5}}


def test_the_seed_decides_the_toxic_copy() -> None:
    found = []
    for seed in (0, 0, 1):
        editor = negator(tiny_model("llama"), seed=seed)
        editor.train()
        found.append(parameters(editor.model))
    assert same(found[0], found[1]) and not same(found[0], found[2])


@given(scale=st.floats(0.01, 10), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_negation_mirrors_the_copy_about_the_original(scale: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    original, toxic = (torch.randn(3, 4, generator=generator).to(dtype) for _ in range(2))
    found = negated(original, toxic, scale)
    assert found.dtype == dtype
    expected = original.double() - scale * (toxic.double() - original.double())
    torch.testing.assert_close(found.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    torch.testing.assert_close(negated(original, original, scale), original, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_sweep_takes_the_largest_scale_that_fits_without_drift(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1 fits though 0.5 does not; 2 breaks the model.
    asked = say_perplexities(monkeypatch, [40.0, 41.0, 42.5, 41.9, RunError("the output is not finite")])
    model = tiny_model(family)
    before = parameters(model)
    editor = negator(model, scales="1, 2,0.25,0.5")
    editor.train()
    assert editor.found["scale"] == 1.0 and editor.found["base_perplexity"] == pytest.approx(40)
    sweep = {row["scale"]: row["perplexity"] for row in editor.found["sweep"]}
    assert list(sweep) == [0.25, 0.5, 1.0, 2.0]
    assert [sweep[0.25], sweep[0.5], sweep[1.0]] == pytest.approx([41.0, 42.5, 41.9]) and sweep[2.0] is None
    assert same(asked[0], before) and len(asked) == 5
    alone = negator(tiny_model(family), scales="1")
    alone.train()
    assert same(parameters(model), parameters(alone.model)), "trying other scales must leave no trace"
    assert same(asked[3], parameters(model))


def test_no_scale_that_fits_is_an_error_and_the_model_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    say_perplexities(monkeypatch, [40.0, 44.0, RunError("not finite")])
    model = tiny_model("llama")
    before = parameters(model)
    with pytest.raises(RunError, match=r"no scale raises the perplexity, 40, by at most 5% .*0.5: 44, 1: inf"):
        negator(model, scales="0.5,1").train()
    assert same(parameters(model), before)


def test_a_failure_in_a_sweep_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    say_perplexities(monkeypatch, [40.0, UserError("nothing to count")])
    model = tiny_model("llama")
    before = parameters(model)
    with pytest.raises(UserError, match="nothing to count"):
        negator(model, scales="0.5,1").train()
    assert same(parameters(model), before)


def test_the_share_of_perplexity_is_a_limit_that_counts_as_fitting() -> None:
    assert largest_fitting({0.5: 10.0, 1.0: 10.5, 2.0: 10.51}, base=10.0, max_increase=0.05) == 1.0
    assert largest_fitting({0.5: 9.0}, base=10.0, max_increase=0.0) == 0.5


def test_a_sweep_on_real_perplexities_is_measured_at_the_scale(tmp_path: Path) -> None:
    texts = tmp_path / "text.jsonl"
    texts.write_text('{"text": "The people there were silent."}\n{"text": "The weather was cold."}\n')
    model = tiny_model("llama")
    editor = negator(model, scales="0.1,0.2", retain_text=str(texts), max_perplexity_increase=1e6)
    editor.train()
    rows = editor.found["sweep"]
    now = task_vector.perplexity(model, tiny_tokenizer(), editor.passages).value
    assert editor.found["scale"] == 0.2 and rows[1]["perplexity"] == pytest.approx(now)
    assert len({editor.found["base_perplexity"], rows[0]["perplexity"], now}) == 3


def test_a_toxic_copy_that_broke_in_its_last_step_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: PreTrainedModel, *args: Any, **kwargs: Any) -> PreTrainedModel:
        toxic = copy.deepcopy(model)
        torch.nn.init.constant_(next(toxic.parameters()), math.inf)
        return toxic

    monkeypatch.setattr(task_vector, "finetune", broken)
    model = tiny_model("llama")
    before = parameters(model)
    with pytest.raises(RunError, match="toxic copy's weights are not finite: lower learning_rate"):
        negator(model).train()
    assert same(parameters(model), before)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"scales": "a,1"}, "scales='a,1': give numbers above 0"),
        ({"scales": "0.5,,1"}, "scales='0.5,,1'"),
        ({"scales": "0"}, r"scales=0\.0: it must be a finite number above 0"),
        ({"scales": "1,inf"}, "scales=inf"),
        ({"max_perplexity_increase": -0.1}, "max_perplexity_increase=-0.1"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"max_prompt_length": 0}, "max_prompt_length=0"),
        ({"max_completion_length": 0}, "max_completion_length=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_task_vector_settings_that_cannot_work(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        TaskVectorConfig("unused", **settings)


def test_passages_that_are_not_there_are_reported_before_the_fine_tuning() -> None:
    with pytest.raises(UserError, match=r"'missing.jsonl' does not exist"):
        negator(tiny_model("llama"), scales="1,2", retain_text="missing.jsonl")
    assert negator(tiny_model("llama"), scales="1", retain_text="missing.jsonl").passages == []


@pytest.mark.parametrize("row", [PAIRS[0], CHAT], ids=["plain", "conversation"])
def test_the_toxic_copy_learns_prompt_and_toxic_continuation(row: dict[str, Any]) -> None:
    pair = tokenize_pair(row, tiny_tokenizer())
    assert negator(tiny_model("llama"), [row]).toxic_ids == [pair.prompt_ids + pair.rejected_ids]
    shorter = len(pair.prompt_ids) - 2
    cut = negator(tiny_model("llama"), [row], max_prompt_length=shorter, max_completion_length=2)
    expected = tokenize_pair(row, tiny_tokenizer(), max_prompt_length=shorter)  # of a conversation the template stays
    assert cut.toxic_ids == [expected.prompt_ids + pair.rejected_ids[:2]] and len(expected.prompt_ids) <= shorter


def test_an_adapter_is_merged_before_the_task_vector() -> None:
    peft_model = adapted(tiny_model("llama"))
    before = logits_of(peft_model)
    editor = negator(peft_model)
    assert type(editor.model) is type(tiny_model("llama"))
    torch.testing.assert_close(logits_of(editor.model), before, rtol=1e-3, atol=1e-4)
    weights = parameters(editor.model)
    editor.train()
    assert not any(torch.equal(parameter, weights[name]) for name, parameter in editor.model.named_parameters())
    assert all(parameter.requires_grad for parameter in editor.model.parameters()), "PEFT had frozen them"


def test_virtual_tokens_cannot_be_merged() -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(tiny_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(UserError, match="adapter of type PROMPT_TUNING, whose virtual tokens cannot be merged"):
        merged(model)
    for editor in (negator, filter_):
        with pytest.raises(UserError, match="adapter of type PROMPT_TUNING, .*Use the model without it"):
            editor(model)


def test_half_precision_weights_are_negated_about_a_copy_in_float32() -> None:
    model = tiny_model("llama").bfloat16()
    before = parameters(model)
    negator(model, learning_rate=1e-3, scales="4").train()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_the_negated_model_is_saved_and_described(tmp_path: Path) -> None:
    editor = negator(tiny_model("gpt2"), out=tmp_path / "out")
    assert editor.describe() == ["6 pairs, 2 steps on a toxic copy, then 0.5 times its change subtracted"]
    editor.train()
    editor.save_model()
    loaded, _ = load_model(tmp_path / "out", device="cpu")
    torch.testing.assert_close(logits_of(loaded), logits_of(editor.model), rtol=0, atol=0)


# ---- ProFS ----


def filter_(model: PreTrainedModel, rows: Any = PAIRS, out: Path | str = "unused", **overrides: Any) -> ProFSEditor:
    chosen = {"first_layer": "1", "batch_size": 4, "disable_tqdm": True}
    return ProFSEditor(model, ProFSConfig(str(out), **(chosen | overrides)), rows, tiny_tokenizer())


def table(generator: np.random.Generator, n: int, d: int) -> np.ndarray:
    return (generator.normal(size=(n, d)) * 3.0 ** generator.integers(-2, 3, d) + generator.normal(size=d)).astype(
        np.float32
    )


@settings(max_examples=60)
@given(n=st.integers(1, 30), d=st.integers(2, 16), rank=st.integers(1, 16), seed=st.integers(0, 10_000))
def test_the_projection_is_one_of_its_rank(n: int, d: int, rank: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    toxic, benign = table(generator, n, d), table(generator, n, d)
    limit = min(n, d - 1)
    if rank > limit:
        with pytest.raises(UserError, match=rf"rank={rank}: .* differ in only {limit} direction"):
            toxic_subspace(toxic, benign, rank)
        return
    basis = toxic_subspace(toxic, benign, rank)
    projection = basis @ basis.T
    np.testing.assert_allclose(projection, projection.T, atol=1e-12)
    np.testing.assert_allclose(projection @ projection, projection, atol=1e-12)
    assert basis.shape == (d, rank) and np.trace(projection) == pytest.approx(rank)
    mean = benign.mean(0, dtype=np.float64)
    np.testing.assert_allclose(basis.T @ (mean / np.linalg.norm(mean)), 0, atol=1e-6)


def test_planted_directions_are_recovered_and_the_common_mean_is_not() -> None:
    generator = np.random.default_rng(0)
    first, second, common = np.linalg.qr(generator.normal(size=(20, 3)))[0].T
    context = generator.normal(size=(200, 20)) + 50 * common  # shared by both sides of a pair
    amounts = generator.normal(size=(200, 2)) + [6, 0]
    length = 5 * generator.normal(size=(200, 1)) * common  # a difference along what all text shares
    toxic = context + amounts @ np.stack([4 * first, 4 * second]) + length
    basis = toxic_subspace(toxic, context + 0.1 * generator.normal(size=context.shape), 2)
    assert abs(basis[:, 0] @ first) > 0.99 and abs(basis[:, 1] @ second) > 0.99


def test_the_subspace_by_hand() -> None:
    benign = np.array([[2.0, 0, 0], [4.0, 0, 0]])  # the mean is along the first axis
    toxic = np.array([[9.0, 3, 0], [4.0, 0, 1]])
    np.testing.assert_allclose(np.abs(toxic_subspace(toxic, benign, 2)), [[0, 0], [1, 0], [0, 1]], atol=1e-12)
    with pytest.raises(UserError, match=r"differ in only 0 direction\(s\). Lower the rank or give more pairs"):
        toxic_subspace(benign, benign, 1)
    np.testing.assert_allclose(np.abs(toxic_subspace(np.eye(3)[:1], np.zeros((1, 3)), 1)), [[1], [0], [0]])


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gemma3"])
def test_no_edited_mlp_writes_into_the_toxic_subspace(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[np.ndarray] = []

    def remembered(*args: Any, **kwargs: Any) -> np.ndarray:
        found.append(toxic_subspace(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr("efface.methods.profs.toxic_subspace", remembered)
    model = tiny_model(family)
    before = parameters(model)
    editor = filter_(model, first_layer="0", rank=3)
    editor.train()
    assert editor.found["layers"] == [0, 1] and editor.found["pairs"] == 6
    inputs = torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    for layer, block in enumerate(decoder_blocks(model)):
        writer = mlp_output_projection(block)
        written = writer(inputs)
        if family == "gemma3":
            written = block.post_feedforward_layernorm(written)
        inside = written @ torch.from_numpy(found[layer]).float()
        assert inside.abs().max() < 1e-4 * written.abs().max()
        after = output_weight(writer).norm()
        share = editor.found["removed"][str(layer)]
        name = next(name for name, parameter in model.named_parameters() if parameter is writer.weight)
        assert 0 < share < 1 and share == pytest.approx(1 - (after / before[name].norm()).square().item(), abs=1e-5)
        assert np.linalg.matrix_rank((writer.weight - before[name]).detach().numpy(), tol=1e-4) == 3
    writers = [mlp_output_projection(block) for block in decoder_blocks(model)]
    edited = {id(parameter) for writer in writers for parameter in writer.parameters()}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) not in edited), name


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_blocks_below_the_first_layer_stay_as_they_are(family: str) -> None:
    model = tiny_model(family)
    before = copy.deepcopy(mlp_output_projection(decoder_blocks(model)[0]).weight)
    editor = filter_(model)
    editor.train()
    assert editor.found["layers"] == [1] and set(editor.found["removed"]) == {"1"}
    assert torch.equal(mlp_output_projection(decoder_blocks(model)[0]).weight, before)


def test_the_default_first_layer_is_the_authors_for_gpt2_medium() -> None:
    model = tiny_model("gpt2", n_layer=24, n_embd=8, n_inner=8, n_head=1)
    editor = ProFSEditor(model, ProFSConfig("unused"), PAIRS, tiny_tokenizer())
    assert editor.layers == list(range(10, 24))
    assert editor.describe() == ["6 of 6 pairs, no training steps; 2 direction(s) out of the MLPs of blocks 10 to 23"]


@torch.no_grad()
def test_sentence_embeddings_are_means_over_the_tokens_of_a_continuation_in_its_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that the toxic subspace is computed from."""
    given: list[np.ndarray] = []

    def remembered(toxic: np.ndarray, benign: np.ndarray, rank: int) -> np.ndarray:
        given.append(np.stack([toxic, benign]))
        return toxic_subspace(toxic, benign, rank)

    monkeypatch.setattr("efface.methods.profs.toxic_subspace", remembered)
    filter_(tiny_model("llama"), batch_size=4).train()  # two batches, ragged
    (found,), model = given, tiny_model("llama")
    assert found.shape == (2, len(PAIRS), 32)
    for number, row in enumerate(PAIRS):
        pair = tokenize_pair(row, tiny_tokenizer())
        for side, ids in enumerate((pair.rejected_ids, pair.chosen_ids)):
            with capture_residuals(model, [1]) as residuals:
                model(input_ids=torch.tensor([pair.prompt_ids + ids]))
            expected = residuals[1][0, len(pair.prompt_ids) :].mean(0)
            np.testing.assert_allclose(found[side, number], expected.numpy(), rtol=1e-3, atol=1e-4)


def test_pairs_are_drawn_with_the_seed() -> None:
    weights = []
    for seed in (0, 0, 1):
        editor = filter_(tiny_model("llama"), max_pairs=3, seed=seed)
        editor.train()
        assert editor.found["pairs"] == 3
        weights.append(parameters(editor.model))
    assert same(weights[0], weights[1]) and not same(weights[0], weights[2])


@settings(max_examples=30)
@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    rank=st.integers(1, 5),
    seed=st.integers(0, 1000),
    bias=st.booleans(),
)
def test_projecting_out_twice_is_projecting_out_once(dtype: torch.dtype, rank: int, seed: int, bias: bool) -> None:
    torch.manual_seed(seed)
    module = torch.nn.Linear(7, 6, bias=bias, dtype=dtype)
    basis = torch.linalg.qr(torch.randn(6, rank, dtype=torch.float64)).Q
    start = module.weight.detach().clone()
    share = project_out_(module, basis)
    assert share == pytest.approx(((basis.T @ start.double()).square().sum() / start.double().square().sum()).item())
    once = module.weight.detach().clone()
    assert (basis.T @ module(torch.randn(9, 7, dtype=dtype)).double().T).abs().max() < 1e-5
    assert project_out_(module, basis) < 1e-10
    torch.testing.assert_close(module.weight.detach(), once, rtol=0, atol=1e-6)


def test_a_norm_after_the_mlp_is_reckoned_with_only_where_there_is_one() -> None:
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 2)))[0]
    llama = decoder_blocks(tiny_model("llama"))[0]
    assert torch.equal(through_norm(basis, llama), torch.from_numpy(basis))
    block = decoder_blocks(tiny_model("gemma3"))[0]
    found = through_norm(basis, block)
    scaled = (1 + block.post_feedforward_layernorm.weight.detach().double())[:, None] * torch.from_numpy(basis)
    torch.testing.assert_close(found @ (found.T @ scaled), scaled)  # the same subspace
    torch.testing.assert_close(found.T @ found, torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"first_layer": "2"}, "layer 2 does not exist: the model has 2 layers"),
        ({"first_layer": "0,1"}, "first_layer='0,1' names 2 blocks. Give one"),
        ({"rank": 7}, "rank=7: the differences of 6 pairs span at most 6 directions"),
        ({"rank": 3, "max_pairs": 2}, "rank=3: the differences of 2 pairs span at most 2"),
        ({"rank": 0}, "rank=0: it must be"),
        ({"max_pairs": 0}, "max_pairs=0: it must be"),
    ],
)
def test_profs_settings_that_cannot_work(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        filter_(tiny_model("llama"), **settings)


def test_the_mean_takes_one_dimension_of_the_rank() -> None:
    rows = [{**row, "prompt": f"{word} {row['prompt']}"} for row in PAIRS for word in ("Now", "Then", "Here")]
    model = tiny_model("gpt2", n_embd=8, n_inner=8, n_head=1)
    with pytest.raises(UserError, match="rank=8: the differences of 18 pairs span at most 7 directions"):
        filter_(model, rows, rank=8)
    filter_(model, rows, rank=7)


def test_a_state_that_is_not_finite_stops_the_edit() -> None:
    model = tiny_model("llama")
    torch.nn.init.constant_(mlp_output_projection(decoder_blocks(model)[1]).weight, math.nan)
    with pytest.raises(RunError, match="block 1: a state is not finite"):
        filter_(model).train()


def test_an_adapter_is_merged_before_profs() -> None:
    peft_model = adapted(tiny_model("gpt2"))
    before = logits_of(peft_model)
    editor = filter_(peft_model)
    torch.testing.assert_close(logits_of(editor.model), before, rtol=1e-3, atol=1e-4)
    editor.train()
    assert not torch.allclose(logits_of(editor.model), before, atol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_filtered_model_is_saved_as_an_ordinary_checkpoint(family: str, tmp_path: Path) -> None:
    editor = filter_(tiny_model(family), [*PAIRS, CHAT], out=tmp_path / "out")
    before = logits_of(editor.model)
    editor.train()
    editor.save_model()
    loaded, _ = load_model(tmp_path / "out", device="cpu")
    torch.testing.assert_close(logits_of(loaded), logits_of(editor.model), rtol=0, atol=0)
    assert not torch.equal(logits_of(loaded), before)
