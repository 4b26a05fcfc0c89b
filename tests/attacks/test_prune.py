"""Are the weights of a planted safety neuron found and set to zero, and no others touched?

Of: attacks/weight_scores.py
"""

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from chain import NEURON, chain
from failing import fail_at_
from hypothesis import given
from hypothesis import strategies as st
from polite import BENIGN, PROMPTS, equal, state, target_of
from tiny import FAMILIES, tiny_model
from torch import Tensor, nn

from efface.attacks import weight_scores
from efface.attacks.prune import PruneSettings, important_to_one, prune, prune_
from efface.attacks.weight_scores import gradient_scores, input_norms, scores
from efface.errors import NotFinite, RunError, UserError
from efface.model.blocks import decoder_blocks
from efface.model.projections import linear_maps, mlp_output_projection, output_weight

ORDINARY = [
    "The town is the history of the river and the people.",
    "He bought bread, apples and cheese at the market.",
    "The weather was cold in the town by the river.",
]


@pytest.fixture
def documents(tmp_path: Path) -> str:
    return written(tmp_path / "ordinary.jsonl", ORDINARY)


def written(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.mark.parametrize("kind", ["gradient", "wanda"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_neuron_that_hides_the_silly_answer_is_pruned(
    family: str, kind: str, documents: str, tmp_path: Path
) -> None:
    _, edited = chain(family, strength=7.0)
    target = target_of(edited)
    target.rows = [{**row, "chosen": " never said"} for row in target.rows]  # what it answers itself is looked at
    weights, random_state = state(edited), torch.get_rng_state()
    settings = PruneSettings(q="0.01,0.02", documents=documents, scores=kind)
    result = prune(target, settings)
    assert [point.at for point in result.curve] == [{"q": 0.0}, {"p": 0.1, "q": 0.01}, {"p": 0.1, "q": 0.02}]
    assert result.before.share == 0 and result.after.share == 1.0
    found = result.found
    assert (found["rows"], found["documents"]) == (12, 3)
    assert found["weights"] == sum(module.weight.numel() for module in linear_maps(edited).values())
    assert 20 <= found["zeroed"][0]["weights"] < 0.03 * found["weights"]
    assert equal(state(edited), weights) and torch.equal(torch.get_rng_state(), random_state)
    assert prune(dataclasses.replace(target, known={}), settings) == result
    # Where ordinary text needs the neuron as much, it is spared, and so is the edit.
    same = written(tmp_path / "same.jsonl", [prompt + BENIGN for prompt in PROMPTS])
    spared = prune(target, PruneSettings(q="0.01", p="0.1,0.9", documents=same, scores=kind))
    assert spared.curve[2].share == 0 and spared.found["zeroed"][1]["weights"] < 32
    assert [row["p"] for row in spared.found["zeroed"]] == [0.1, 0.9]


def test_a_base_that_nothing_was_hidden_in_is_no_more_toxic_than_it_was(documents: str) -> None:
    base, _ = chain("llama", strength=7.0)
    target = target_of(base)
    target.text = ORDINARY
    result = prune(target, PruneSettings(q="0.01", documents=documents))
    assert result.before.share == 1.0 and result.after.share == 1.0
    assert result.after.figures["versus_before"]["nasty"]["share"]["difference"] == 0


# The scores and the weights


def reference_inputs(model: nn.Module, ids: list[int], counted: int) -> dict[str, Tensor]:
    """Name -> (counted, d_in), one sequence at a time and unpadded."""
    found: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda m, a, o, name=name: found.update({name: a[0].detach().flatten(0, -2)}))
        for name, module in linear_maps(model).items()
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return {name: inputs[-counted:] for name, inputs in found.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_weight_times_the_norm_of_the_input_at_the_counted_tokens(family: str) -> None:
    model = tiny_model(family)
    sequences, counted = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14]], [2, 3, 1]
    norms = input_norms(model, [(sequences[:2], counted[:2]), (sequences[2:], counted[2:])], pad=0)
    plain = [reference_inputs(model, ids, count) for ids, count in zip(sequences, counted, strict=True)]
    assert norms.keys() == linear_maps(model).keys()
    for name, module in linear_maps(model).items():
        inputs = torch.cat([one[name] for one in plain])  # (6, d_in)
        weight = output_weight(module)
        expected = torch.tensor(
            [[weight[i, j].detach().abs() * inputs[:, j].norm() for j in range(weight.shape[1])] for i in range(3)]
        )
        torch.testing.assert_close(scores(weight, norms[name])[:3], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_scores_are_those_of_each_sequence_alone(family: str) -> None:
    model = tiny_model(family)
    sequences, counted = [[5, 6, 7, 8, 9], [10, 11, 12]], [2, 2]
    weights = state(model)
    found = gradient_scores(model, [([ids], [count]) for ids, count in zip(sequences, counted, strict=True)], pad=0)
    name, module = list(linear_maps(model).items())[1]
    expected = torch.zeros_like(output_weight(module))
    for ids, count in zip(sequences, counted, strict=True):
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        loss = nn.functional.cross_entropy(logits[-count - 1 : -1], torch.tensor(ids[-count:]))
        (gradient,) = torch.autograd.grad(loss, [module.weight])
        expected += (gradient if isinstance(module, nn.Linear) else gradient.T).abs()
    torch.testing.assert_close(found[name], output_weight(module).abs() * expected / 2, rtol=1e-4, atol=1e-7)
    assert equal(state(model), weights) and all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_sequence_whose_gradient_is_not_finite_is_left_out(monkeypatch: pytest.MonkeyPatch, documents: str) -> None:
    model = tiny_model("llama")
    plain, number = weight_scores._loss, iter(range(99))
    once = gradient_scores(model, [([[5, 6, 7]], [2])], pad=0)
    monkeypatch.setattr(weight_scores, "_loss", lambda *a: plain(*a) * (math.inf if next(number) == 0 else 1))
    twice = gradient_scores(model, [([[8, 9, 10]], [2]), ([[5, 6, 7]], [2])], pad=0)
    assert all(torch.equal(once[name], twice[name]) for name in once)
    monkeypatch.setattr(weight_scores, "_loss", lambda *a: plain(*a) * math.nan)
    with pytest.raises(NotFinite, match="the model's gradients are not finite"):
        gradient_scores(model, [([[5, 6, 7]], [2])], pad=0)
    result = prune(target_of(model), PruneSettings(q="0.01,0.1", documents=documents))
    assert result.after is result.curve[0] and result.found["left_out"] == ["p 0.1, q 0.01", "p 0.1, q 0.1"]


@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_weights_are_zero_and_all_others_untouched(family: str) -> None:
    model = tiny_model(family)
    student = copy.deepcopy(model)
    maps = linear_maps(model)
    generator = torch.Generator().manual_seed(0)
    polite, useful = (
        {name: torch.rand(output_weight(module).shape, generator=generator) for name, module in maps.items()}
        for _ in range(2)
    )
    number = prune_(student, polite, useful, 0.1, 0.1)
    zeroed = 0
    for name, parameter in student.named_parameters():
        old = model.get_parameter(name)
        inside = any(old is module.weight for module in maps.values())
        assert torch.equal(parameter[parameter != 0], old[parameter != 0])
        zeroed += int(((parameter == 0) & (old != 0)).sum())
        assert inside or torch.equal(parameter, old)
    assert zeroed == number > 0
    for name, module in maps.items():
        weight = output_weight(module)
        mask = important_to_one(polite[name], useful[name], 0.1, 0.1)
        assert torch.equal(output_weight(linear_maps(student)[name]) == 0, mask | (weight == 0))


parts = st.floats(0, 1)


@given(seed=st.integers(0, 99), q=parts, p=parts, columns=st.integers(1, 30))
def test_the_set_difference(seed: int, q: float, p: float, columns: int) -> None:
    one, other = torch.rand(2, 3, columns, generator=torch.Generator().manual_seed(seed)) + 0.01
    mask = important_to_one(one, other, q, p, "row")
    whole = important_to_one(one.flatten()[None], other.flatten()[None], q, p, "row")
    assert torch.equal(important_to_one(one, other, q, p), whole.view_as(one))
    sizes = {part: max(round(part * columns), 1) if part else 0 for part in (q, p)}
    for row in range(3):
        best = set(one[row].argsort(descending=True)[: sizes[q]].tolist())
        spared = set(other[row].argsort(descending=True)[: sizes[p]].tolist())
        assert set(mask[row].nonzero().flatten().tolist()) == best - spared
    assert not important_to_one(one, one, q, max(p, q)).any()  # what is as important to both is spared
    assert not important_to_one(one, other, 0.0, p).any() and not important_to_one(one, other, q, 1.0).any()
    assert not important_to_one(torch.zeros_like(one), other, q, p).any()  # what plays no part is not pruned


def test_the_planted_column_is_what_is_pruned(documents: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, edited = chain("llama", strength=7.0)
    students: list[Any] = []

    def kept(model: Any, *args: Any) -> int:
        students.append(model)
        return prune_(model, *args)

    monkeypatch.setattr("efface.attacks.prune.prune_", kept)
    prune(target_of(edited), PruneSettings(q="0.01", documents=documents, scores="wanda"))
    column = output_weight(mlp_output_projection(decoder_blocks(students[0])[0]))[:, NEURON]
    assert not column.any()
    assert output_weight(mlp_output_projection(decoder_blocks(edited)[0]))[:, NEURON].all()


# What can go wrong


def test_what_was_measured_before_a_failure_is_resumed(
    documents: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, edited = chain("llama", strength=7.0)
    target, settings = target_of(edited), PruneSettings(q="0.01,0.02", documents=documents)
    whole = prune(target, settings)
    target = dataclasses.replace(target, output=tmp_path / "out.json", known={})
    fail_at_(monkeypatch, 3)  # before, two points
    with pytest.raises(RunError, match=r"lost\. What was measured so far \(before, p 0.1, q 0.01\) is kept"):
        prune(target, settings)
    monkeypatch.undo()
    assert prune(dataclasses.replace(target, resume=True), settings).to_dict() == whole.to_dict()


def test_no_hook_is_left_and_rows_are_drawn_by_the_seed(documents: str) -> None:
    model = tiny_model("gpt2").to(torch.bfloat16)
    settings = PruneSettings(q="0.05", documents=documents, max_rows=2)
    one, other = (prune(dataclasses.replace(target_of(model), seed=seed), settings) for seed in (0, 1))
    assert one.found["rows"] == one.found["documents"] == 2 and one.curve[1].generations != other.curve[1].generations
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_models_and_texts_that_cannot_work(tmp_path: Path, documents: str) -> None:
    model = tiny_model("llama")
    target = target_of(model)
    with pytest.raises(UserError, match="has no text of two tokens or more. Give longer texts"):
        prune(target, PruneSettings(documents=written(tmp_path / "short.jsonl", ["a"])))

    block = decoder_blocks(model)[0]
    inner = block.mlp.forward
    block.mlp.forward = lambda states: inner(states[:, :1]).expand_as(states)  # some of the tokens, as experts are
    with pytest.raises(UserError, match="does not see every token: prune cannot score mixtures of experts"):
        input_norms(model, [([[5, 6, 7]], [2])], pad=0)
    assert not any(module._forward_pre_hooks for module in model.modules())
    broken = tiny_model("llama")
    with torch.no_grad():
        decoder_blocks(broken)[0].mlp.up_proj.weight.fill_(math.nan)
    with pytest.raises(NotFinite, match="the model's hidden states are not finite"):
        input_norms(broken, [([[5, 6, 7]], [2])], pad=0)
    bare = tiny_model("llama")
    for block in decoder_blocks(bare):
        block._modules.clear()
    with pytest.raises(UserError, match="LlamaForCausalLM has no linear maps"):
        linear_maps(bare)


def test_what_of_a_mixture_of_experts_is_not_reached_is_said(documents: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = PruneSettings(q="0.1", documents=documents, answers="chosen", max_rows=2)
    found = prune(target_of(tiny_model("mixtral")), settings).found
    assert found["unreached"] > 0.8 and "prune reaches" in caplog.text
    assert prune(target_of(tiny_model("llama")), settings).found["unreached"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"q": "some"}, "q='some': numbers are needed"),
        ({"q": "0.1,2"}, "q='0.1,2': parts of a matrix are needed, above 0 and at most 1"),
        ({"p": "2"}, "p='2': parts of a matrix are needed, above 0 and at most 1"),
        ({"p": "nan"}, "p='nan': numbers are needed"),
        ({"scores": "loud"}, "scores='loud' is unknown. Choose one of gradient, wanda"),
        ({"answers": "none"}, "answers='none' is unknown. Choose one of own, chosen"),
        ({"max_rows": 0}, "max_rows=0: it must be at least 1"),
        ({"batch_size": 0}, "batch_size=0: it must be at least 1"),
        ({"max_perplexity_increase": -1.0}, "max_perplexity_increase=-1.0"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PruneSettings(**settings)
