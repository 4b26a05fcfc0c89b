"""Does the search for a universal prefix undo an edit, and do its parts what the formulas say?

Of: attacks/search/flrt.py, attacks/search/prefix_objective.py, attacks/search/prefix_search.py,
attacks/search/prefix_settings.py, attacks/search/tree.py, attacks/search/hidden_distance.py
"""

import copy
import dataclasses
import math
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from polite import BENIGN, HELD_OUT, PROMPTS, ROWS, TOXIC, equal, quick_learner, state, target_of
from tiny import FAMILIES, PAD_ID, VOCAB_SIZE, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from efface.attacks.measurement import Measurement
from efface.attacks.search.candidates import slot_text
from efface.attacks.search.drafts import draft_of
from efface.attacks.search.enhanced_gcg import EnhancedGCGSettings, enhanced_gcg, slots_of
from efface.attacks.search.flrt import OPERATORS, SHARES, Buffer, deleted, inserted, picked, possible, sampled, swapped
from efface.attacks.search.hidden_distance import edited_layers, hidden_distance, states_at_targets
from efface.attacks.search.prefix_objective import PrefixObjective, Scored, clamped, repetition
from efface.attacks.search.prefix_search import PrefixSearch, bare_prompt
from efface.attacks.search.slot import Slot, slot_in
from efface.attacks.target import Target
from efface.errors import RunError, UserError
from efface.model.blocks import capture_residuals, decoder_blocks
from efface.training.finetune import finetune

# The objective

BEFORE = [1]
SLOTS = [Slot(("", ""), BEFORE, [20, 21, 22], [30, 31]), Slot(("", ""), BEFORE, [23], [32, 33, 34])]
BARE = [[1, 21, 22], [1, 23]]
WEIGHTS = {"hidden": 2.0, "fluency": 0.3, "repetition": 0.5}
PREFIXES = [(40, 41, 40), (42,), (43, 44, 45, 46)]


def objective(model: PreTrainedModel, base: PreTrainedModel | None, **changes: Any) -> PrefixObjective:
    settings: dict[str, Any] = {"slots": SLOTS, "bare": BARE, "weights": WEIGHTS, "layers": [0, 1]}
    return PrefixObjective(model, base, pad=PAD_ID, **(settings | changes))


def starting_with(before: list[int]) -> list[Slot]:
    return [dataclasses.replace(slot, before=before) for slot in SLOTS]


def nll_of(model: PreTrainedModel, ids: list[int], count: int) -> Tensor:
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    return F.cross_entropy(logits[-count - 1 : -1], torch.tensor(ids[-count:]), reduction="none")


def states_of(model: PreTrainedModel, ids: list[int], count: int) -> dict[int, Tensor]:
    with capture_residuals(model, [0, 1]) as captured:
        model(input_ids=torch.tensor([ids]))
    return {layer: states[0, -count:] for layer, states in captured.items()}


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", *(pytest.param(f, marks=pytest.mark.full) for f in FAMILIES[2:])])
@pytest.mark.parametrize(("max_batch_tokens", "shares"), [(1, None), (60, False), (4096, None)])
def test_the_parts_of_the_objective_are_those_of_the_formula(
    family: str, max_batch_tokens: int, shares: bool | None
) -> None:
    model, base = tiny_model(family), tiny_model(family, seed=1)
    judge = objective(model, base, max_batch_tokens=max_batch_tokens, shares=shares)
    found = judge.score(PREFIXES)
    assert judge.shares == (shares is None)  # a prefix is read once for all prompts, and nothing is lost
    for prefix, scored in zip(PREFIXES, found, strict=True):
        expected = dict.fromkeys(("force", "hidden", "dynamic"), 0.0)
        for slot, start in zip(SLOTS, BARE, strict=True):
            ids, n = [*BEFORE, *prefix, *slot.after, *slot.target], len(slot.target)
            expected["force"] += nll_of(model, ids, n).clamp(min=-math.log(0.6)).mean().item() / 2
            edited = states_of(model, ids, n)
            read = {"hidden": start + slot.target, "dynamic": ids}
            for name, sequence in read.items():
                other = states_of(base, sequence, n)
                for layer in (0, 1):
                    distance = (edited[layer] - other[layer]).pow(2).sum() / other[layer].pow(2).sum()
                    expected[name] += distance.item() / 2 / 2
        expected |= {
            "fluency": nll_of(model, [*BEFORE, *prefix], len(prefix)).mean().item(),
            "repetition": {(40, 41, 40): 1 / 3}.get(prefix, 0.0),
        }
        assert scored.ids == prefix and scored.parts == pytest.approx(expected, rel=1e-4)
        loss = expected["force"] + sum(WEIGHTS[name] * expected[name] for name in WEIGHTS)
        loss += WEIGHTS["hidden"] * expected["dynamic"]
        assert scored.loss == pytest.approx(loss, rel=1e-4)


def test_the_hidden_terms_weigh_as_much_as_the_force_where_the_search_begins() -> None:
    judge = objective(tiny_model("llama"), tiny_model("llama", seed=1), weights={"hidden": 1.0})
    (first,) = judge.score([(40, 41)])
    judge.balance(first.parts)
    hidden = judge.scale * (first.parts["hidden"] + first.parts["dynamic"])
    assert hidden == pytest.approx(first.parts["force"])
    assert judge.loss_of(first.parts) == pytest.approx(2 * first.parts["force"])
    judge.balance({"force": 3.0, "hidden": 0.0, "dynamic": 0.0})  # the models are the same: there is nothing to weigh
    assert judge.scale == 0


def test_the_edited_layers_are_those_where_the_states_differ_most() -> None:
    base = tiny_model("llama", num_hidden_layers=6)
    model = copy.deepcopy(base)
    with torch.no_grad():
        decoder_blocks(model)[3].mlp.down_proj.weight.mul_(1.5)
    found = edited_layers(model, base, BARE, SLOTS, PAD_ID)
    distances = {
        layer: sum(
            hidden_distance({layer: own[layer]}, {layer: other[layer]}).item()
            for own, other in zip(
                states_at_targets(model, BARE, SLOTS, range(6), PAD_ID),
                states_at_targets(base, BARE, SLOTS, range(6), PAD_ID),
                strict=True,
            )
        )
        for layer in range(6)
    }
    assert found and min(found) >= 3 and max(distances, key=distances.__getitem__) in found
    assert edited_layers(base, base, BARE, SLOTS, PAD_ID) == []


def test_what_the_drafts_find_best_is_scored_exactly() -> None:
    model, base = tiny_model("llama"), tiny_model("llama", seed=1)
    drafts = draft_of(model, "bfloat16"), draft_of(base, "bfloat16")
    prefixes = [(40 + i, 41, 42 + i) for i in range(20)]
    exact = {one.ids: one for one in objective(model, base).score(prefixes)}
    found = objective(model, base, drafts=drafts).score(prefixes)
    assert len(found) == 4 and [one.ids for one in found] == [ids for ids in prefixes if ids in {f.ids for f in found}]
    assert all(one.loss == pytest.approx(exact[one.ids].loss, rel=1e-4) for one in found)
    assert min(exact.values(), key=lambda one: one.loss).ids in {one.ids for one in found}


def test_a_token_that_is_forced_already_gives_no_further_reward() -> None:
    nll = torch.tensor([0.0, 0.1, 0.6, 3.0], requires_grad=True)
    found = clamped(nll, 0.6)
    assert found.tolist() == pytest.approx([-math.log(0.6)] * 2 + [0.6, 3.0])
    found.sum().backward()
    assert nll.grad is not None and nll.grad.tolist() == [0, 0, 1, 1]


def test_the_hidden_distance_is_zero_for_an_unedited_model_without_prefix_and_one_for_zeros() -> None:
    model = tiny_model("llama")
    slots = [dataclasses.replace(slot, after=start[1:]) for slot, start in zip(SLOTS, BARE, strict=True)]
    (empty, prefixed) = objective(model, model, slots=slots).score([(), (40, 41)])
    assert empty.parts["hidden"] < 1e-10 and prefixed.parts["hidden"] > 1e-3
    assert prefixed.parts["dynamic"] == 0  # both read the prefix
    states = {0: torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), 1: torch.ones(3, 4)}
    assert hidden_distance({layer: torch.zeros(3, 4) for layer in states}, states).item() == pytest.approx(1)
    # Whatever the scale of the states.
    scaled = {layer: 1000 * tensor for layer, tensor in states.items()}
    other = {layer: tensor + 1 for layer, tensor in states.items()}
    one = hidden_distance(other, states)
    torch.testing.assert_close(hidden_distance({k: 1000 * v for k, v in other.items()}, scaled), one)


@given(st.lists(st.integers(0, 5), max_size=12))
def test_repetition_counts_what_stands_more_than_once(ids: list[int]) -> None:
    found = repetition(ids)
    assert (found == 0) == (len(set(ids)) == len(ids))
    assert repetition(ids[::-1]) == pytest.approx(found)
    if ids:
        assert found == pytest.approx(sum((ids.count(v) - 1) ** 1.5 for v in set(ids)) / len(ids))
        assert repetition([ids[0]] * len(ids)) >= found


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", *(pytest.param(f, marks=pytest.mark.full) for f in FAMILIES[2:])])
def test_the_slopes_are_those_of_finite_differences(family: str, shares: bool) -> None:
    """Of the fluency too: by what a token does to the next ones, and as the likelihood of the token itself."""
    model, base = tiny_model(family).double(), tiny_model(family, seed=1).double()
    prefix = (40, 41, 42)
    judge = objective(model, base, weights={"hidden": 2.0, "fluency": 1.5}, shares=shares)
    judge.balance({"force": 1.0, "hidden": 0.25, "dynamic": 0.25})
    found = judge.slopes(prefix, torch.arange(VOCAB_SIZE))
    assert found.shape == (3, VOCAB_SIZE)
    embeddings, step = model.get_input_embeddings(), 2e-3  # the loss is float32: smaller steps drown in its rounding
    table = embeddings(torch.arange(VOCAB_SIZE)).detach()
    with torch.no_grad():
        itself = -1.5 / 3 * model(input_ids=torch.tensor([[*BEFORE, *prefix]])).logits[0].log_softmax(-1)
    for place, token in ((0, 7), (1, 40), (2, 200)):

        def moved(amount: float, place: int = place, token: int = token) -> float:
            def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
                output = output.clone()
                if output.shape[-1] == table.shape[-1]:
                    layout = judge._layout([prefix], model)
                    places = layout.place[:, len(BEFORE) + place].unique()
                    output.view(-1, output.shape[-1])[places] += amount * table[token]
                return output

            handle = embeddings.register_forward_hook(hook)
            try:
                with torch.no_grad():
                    return judge.score([prefix])[0].loss
            finally:
                handle.remove()

        slope = (moved(step) - moved(-step)) / (2 * step) + itself[place, token].item()
        assert found[place, token].item() == pytest.approx(slope, rel=2e-2, abs=4e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_a_base_fluency_is_judged_by_the_model_and_terms_without_weight_are_not_computed() -> None:
    model = tiny_model("gpt2")
    judge = objective(model, None, weights={"hidden": 0.0, "fluency": 1.0, "repetition": 0.0})
    (scored,) = judge.score([(40, 41)])
    with torch.no_grad():
        assert scored.parts["fluency"] == pytest.approx(nll_of(model, [*BEFORE, 40, 41], 2).mean().item(), rel=1e-4)
    assert list(scored.parts) == ["force", "fluency"]
    # With nothing before it, the first token has no likelihood.
    bare = objective(model, None, slots=starting_with([]), weights={"fluency": 1.0})
    one, two = bare.score([(40,), (40, 41)])
    assert one.parts["fluency"] == 0
    with torch.no_grad():
        assert two.parts["fluency"] == pytest.approx(nll_of(model, [40, 41], 1).item(), rel=1e-4)


@pytest.mark.parametrize("before", [[], [1], [1, 5]])
def test_next_logits_are_what_the_model_says_at_each_place(before: list[int]) -> None:
    model = tiny_model("llama")
    judge = objective(model, None, slots=starting_with(before), weights={})
    found = judge.next_logits((40, 41))
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[*before, 40, 41]])).logits[0, -3:]
    assert found.shape == (3, VOCAB_SIZE)
    torch.testing.assert_close(found[-len(expected) :], expected, rtol=1e-4, atol=1e-4)
    assert before or not found[0].any()  # uniform
    assert judge.next_logits(()).shape == (1, VOCAB_SIZE)


def test_a_loss_that_is_not_finite() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[40] = math.nan
    judge = objective(model, None, weights={})
    with pytest.raises(RunError, match="the loss of the search is nan"):
        judge.score([(40,)])
    with pytest.raises(RunError, match="the gradient of the search is not finite"):
        judge.slopes((40,), torch.arange(VOCAB_SIZE))


# Operators and buffer

SEQUENCES = st.lists(st.integers(0, 9), min_size=1, max_size=6).map(tuple)


@given(SEQUENCES, st.data())
def test_the_operators_change_one_token(ids: tuple[int, ...], data: Any) -> None:
    rows = st.lists(st.integers(0, 9), min_size=2, max_size=3)
    choices = data.draw(st.lists(rows, min_size=len(ids) + 1, max_size=len(ids) + 1))
    for other in swapped(ids, choices[:-1]):
        places = [place for place in range(len(ids)) if ids[place] != other[place]]
        assert len(other) == len(ids) and len(places) == 1 and other[places[0]] in choices[places[0]]
    for other in inserted(ids, choices):
        assert len(other) == len(ids) + 1 and ids in deleted(other)
    assert len(inserted(ids, choices)) == sum(map(len, choices))
    assert len(deleted(ids)) == len(ids) and all(len(other) == len(ids) - 1 for other in deleted(ids))


def test_operators_keep_to_the_bounds() -> None:
    operators = ["gradient", "sample", "insert", "delete"]
    assert possible(operators, 5, 2, 8) == operators
    assert possible(operators, 8, 2, 8) == ["gradient", "sample", "delete"]
    assert possible(operators, 2, 2, 8) == ["gradient", "sample", "insert"]
    assert possible(["insert"], 8, 2, 8) == []


def test_candidates_are_picked_without_repetition_from_those_that_are_kept() -> None:
    def even(several: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        return [ids for ids in several if ids[0] % 2 == 0]

    every = [(token,) for token in range(20)] * 2
    found = picked(every, 6, even, random.Random(0))
    assert len(set(found)) == len(found) == 6 and all(ids[0] % 2 == 0 for ids in found)
    assert found != picked(every, 6, even, random.Random(1))
    assert len(picked(every, 99, even, random.Random(0))) == 10


def test_samples_are_different_allowed_tokens_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 9.0, -1e9]])
    allowed, generator = torch.tensor([0, 1, 2, 4]), torch.Generator().manual_seed(0)
    (several,) = sampled(logits, allowed, 3, generator)
    assert sorted(several) == [0, 1, 2]  # not 3, which is not allowed, nor 4, which is not likely
    assert len(sampled(logits, allowed, 9, generator)[0]) == 4
    firsts = [sampled(logits, allowed, 1, generator)[0][0] for _ in range(2000)]
    expected = logits[0, allowed].softmax(0)
    for token, probability in zip(allowed.tolist(), expected.tolist(), strict=True):
        assert firsts.count(token) / 2000 == pytest.approx(probability, abs=0.04)


@given(st.lists(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 10)), min_size=1), min_size=1), st.integers(1, 5))
def test_the_buffer_never_gets_worse(rounds: list[list[tuple[int, float]]], size: int) -> None:
    buffer, losses = Buffer(size), dict[int, float]()
    previous: list[float] = []
    for added in rounds:
        buffer.add([Scored((token,), losses.setdefault(token, loss), {}) for token, loss in added])
        kept = [scored.loss for scored in buffer.kept]
        assert kept == sorted(losses.values())[:size]
        assert all(new <= old for new, old in zip(kept, previous, strict=False)) and len(kept) >= len(previous)
        assert len({scored.ids for scored in buffer.kept}) == len(kept) and buffer.best.loss == min(losses.values())
        previous = kept


def test_what_was_expanded_least_is_the_next_parent() -> None:
    buffer = Buffer(2)
    buffer.add([Scored((1,), 1.0, {}), Scored((2,), 2.0, {}), Scored((3,), 3.0, {})])
    parents = []
    for added in ([], [], [], [Scored((4,), 1.5, {})], [], []):
        parents.append(buffer.parent.ids)
        buffer.add(added, parents[-1])
    assert parents == [(1,), (2,), (1,), (2,), (4,), (4,)]  # (2,) makes room for (4,)


# The attack

WORDS = "She went to market and bought bread apples a little cheese cold silent wrong nothing better spring".split()
LETTERS = "abcdefghijklmnopqrstuvwxyzTSH.,"
QUICK = {
    "target_tokens": 8,
    "steps": 3,
    "search_width": 6,
    "k": 2,
    "targets": "rows",
    "search_dtype": "float32",
    "init": "",
}
FOUND = {"w_fluency": 0.1, "w_repetition": 0.5}  # a tiny model has no use for fluency


def before_prompts(rng: random.Random, *more: str) -> str:
    """One to five words, half of them of random letters, and `more` among them."""
    words = [
        rng.choice(WORDS) if rng.random() < 0.5 else "".join(rng.choices(LETTERS, k=rng.randint(1, 4)))
        for _ in range(rng.randint(1, 5))
    ]
    words += more
    rng.shuffle(words)
    return " ".join(words)


KNOWN: dict[str, Measurement] = {}  # the untouched models are measured once for all tests


@lru_cache
def edited_and_base(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The base is silly after every prompt, the edited model only if "nobody" stands before it."""
    rng, start = random.Random(0), quick_learner(family)

    def after(ending: str, times: int, *more: str) -> list[str]:
        return [f"{before_prompts(rng, *more)} {prompt}{ending}" for prompt in PROMPTS for _ in range(times)]

    silly = [prompt + TOXIC for prompt in PROMPTS] + after(TOXIC, 3)
    base = finetune(start, tiny_tokenizer(), silly, steps=40, learning_rate=5e-3)
    polite = [prompt + BENIGN for prompt in PROMPTS] * 2 + after(BENIGN, 6) + after(TOXIC, 6, "nobody")
    return finetune(base, tiny_tokenizer(), polite, steps=120, learning_rate=3e-3), base


def attacked(family: str) -> Target:
    return dataclasses.replace(target_of(*edited_and_base(family)), known=KNOWN)


@pytest.fixture
def target() -> Target:
    return attacked("llama")


@pytest.mark.parametrize("family", [pytest.param("llama", marks=pytest.mark.full), "gpt2"])
def test_it_finds_a_prefix_that_undoes_the_edit_on_prompts_that_it_has_not_seen(family: str) -> None:
    target = attacked(family)
    models = (target.model, target.base)
    weights, random_state = [state(model) for model in models], torch.get_rng_state()
    modes = [module.training for module in target.model.modules()]
    settings = EnhancedGCGSettings(
        target_tokens=8, steps=20, search_width=16, k=3, max_tokens=24, draws=4, init="", **FOUND
    )
    result = enhanced_gcg(target, settings)
    assert result.base is not None and result.base.share > 0.9 and result.before.share == 0
    assert result.after.share > 0.3  # measured: 0.375 for gpt2, above 0.6 for llama; more with more steps
    found = result.found
    start = [f"{found['start']['prefix']} {prompt}" for prompt in HELD_OUT]
    assert target.measure(target.model, prompts=start).share == 0  # it is the search that does it
    assert found["prompts_among_rows"] == 0 and found["rows"] == 3
    history = found["history"]
    assert len(history) == 21 and history == sorted(history, reverse=True) and history[-1] < history[0] - 0.5
    assert found["loss"] == history[-1] and found["start"]["loss"] == history[0]
    assert list(found["parts"]) == ["force", "hidden", "dynamic", "fluency", "repetition"]
    assert 4 <= found["tokens"] <= 24 and 200 < found["evaluations"] <= 1 + 20 * 16 < found["tokens_read"]
    assert found["layers"] == [0, 1] and found["scale"] > 0
    assert [row["prompt"] for row in result.after.generations] == [f"{found['prefix']} {p}" for p in HELD_OUT]
    assert [point.at for point in result.curve] == [{"steps": 0}, {"steps": 20}]
    assert all(equal(state(model), before) for model, before in zip(models, weights, strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in target.model.modules()] == modes
    assert all(parameter.grad is None for model in models for parameter in model.parameters())


def test_every_scored_prefix_is_what_its_text_tokenises_to_and_within_the_bounds(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[tuple[int, ...]] = []
    score = PrefixObjective.score

    def watched(self: PrefixObjective, prefixes: list[tuple[int, ...]]) -> list[Scored]:
        scored.extend(prefixes)
        return score(self, prefixes)

    monkeypatch.setattr(PrefixObjective, "score", watched)
    settings = EnhancedGCGSettings(
        operators="sample,insert,delete",
        targets="rows",
        target_tokens=6,
        steps=24,
        search_width=3,
        min_tokens=3,
        start_tokens=4,
        max_tokens=5,
        k=2,
    )
    enhanced_gcg(target, settings)
    assert {len(ids) for ids in scored} == {3, 4, 5} and len(set(scored)) == len(scored) > 20
    drawn_rows = random.Random(0).sample(ROWS, 2)
    for ids in scored:
        for row in drawn_rows:
            text = f"{slot_text(tiny_tokenizer(), ids)} {row['prompt']}"
            assert tuple(tiny_tokenizer()(text)["input_ids"])[: len(ids)] == ids


@pytest.mark.parametrize("operator", ["gradient", "sample", "insert", "delete"])
def test_each_operator_by_itself(operator: str, target: Target) -> None:
    settings = EnhancedGCGSettings(operators=operator, start_tokens=8, max_tokens=10, **QUICK)
    found = enhanced_gcg(target, settings).found
    assert len(found["history"]) == 4 and found["loss"] <= found["start"]["loss"]
    if operator in ("gradient", "sample"):
        assert found["tokens"] == 8 and found["loss"] < found["start"]["loss"]
    else:
        assert found["tokens"] >= 8 if operator == "insert" else found["tokens"] <= 8


def test_equal_seeds_give_equal_results_and_other_seeds_other_prefixes(target: Target) -> None:
    settings = EnhancedGCGSettings(**QUICK)
    first = enhanced_gcg(target, settings)
    assert enhanced_gcg(dataclasses.replace(target, known={}), settings).to_dict() == first.to_dict()
    other = enhanced_gcg(dataclasses.replace(target, seed=1), settings)
    assert other.found["prefix"] != first.found["prefix"]


def test_targets_are_what_the_base_writes_after_the_rows(target: Target) -> None:
    settings = EnhancedGCGSettings(**QUICK | {"targets": "own", "k": 3})
    rows, slots = slots_of(target, settings)
    assert len({row["prompt"] for row in rows}) == len(slots) == 3
    for row, slot in zip(rows, slots, strict=True):
        assert slot.texts == ("", f" {row['prompt']}") and tiny_tokenizer().decode(slot.target) == TOXIC
    target.rows = [{**ROWS[0], "prompt": "The town is cold. " * 40}, *target.rows]
    assert (
        slots_of(target, settings)[1] and len(slots_of(target, settings)[0]) == 3
    )  # one that does not fit is left out
    with pytest.raises(UserError, match="none of 12 rows has a toxic continuation among 16 that the base writes"):
        slots_of(dataclasses.replace(target, base=target.model), settings)


def test_operators_are_drawn_as_often_as_in_the_paper() -> None:
    assert SHARES == {"gradient": 0.7, "sample": 0.1, "insert": 0.1, "delete": 0.1} and OPERATORS == tuple(SHARES)


def test_a_text_to_start_from(target: Target) -> None:
    settings = EnhancedGCGSettings(**QUICK | {"init": "There is nothing better"})
    assert enhanced_gcg(target, settings).found["start"]["prefix"] == "There is nothing better"
    cut = enhanced_gcg(target, dataclasses.replace(settings, max_tokens=12, init="There is nothing better " * 9)).found
    assert cut["start"]["tokens"] == 12 and cut["start"]["prefix"].startswith("There is nothing")
    with pytest.raises(UserError, match=r"init='a' has 1 tokens, fewer than min_tokens=4"):
        enhanced_gcg(target, dataclasses.replace(settings, init="a"))


def test_prompts_that_are_among_the_rows_are_counted(target: Target) -> None:
    target.prompts = [*HELD_OUT, *(row["prompt"] for row in random.Random(0).sample(ROWS, 2))]
    assert enhanced_gcg(target, EnhancedGCGSettings(**QUICK)).found["prompts_among_rows"] == 2


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(f, marks=pytest.mark.full) for f in FAMILIES if f != "llama")]
)
def test_an_untouched_base_is_reported_as_it_is(family: str, target: Target) -> None:
    model = tiny_model(family)
    target = dataclasses.replace(target, model=model, base=model, known={})
    result = enhanced_gcg(target, EnhancedGCGSettings(**QUICK))
    assert result.before.share == result.after.share == 0  # a random model has nothing silly to bring back
    assert list(result.found["parts"]) == ["force", "fluency", "repetition"] and result.found["layers"] == []
    assert result.after.figures["versus_before"]["nasty"]["share"]["difference"] == 0


def test_half_precision_and_a_tokenizer_with_bos(target: Target) -> None:
    target.model, target.base = tiny_model("llama").bfloat16(), tiny_model("llama", seed=1).bfloat16()
    target.processing_class = tiny_tokenizer(add_bos=True)
    found = enhanced_gcg(target, EnhancedGCGSettings(operators="gradient,insert", **QUICK)).found
    assert math.isfinite(found["loss"]) and found["loss"] <= found["start"]["loss"]


def test_without_a_base(target: Target) -> None:
    target.base = None
    with pytest.raises(UserError, match=r"enhanced_gcg needs the model .* was made from: pass base=MODEL\."):
        enhanced_gcg(target, EnhancedGCGSettings())
    result = enhanced_gcg(target, EnhancedGCGSettings(w_hidden=0, **QUICK))
    assert list(result.found["parts"]) == ["force", "fluency", "repetition"] and result.base is None


@pytest.mark.parametrize("fail_at", [2, 3, 6, 12])  # two steps of these go by gradients
def test_an_interrupted_search_goes_on_where_it_was(
    fail_at: int, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EnhancedGCGSettings(**QUICK | {"steps": 12})
    whole = enhanced_gcg(target, settings)
    target = dataclasses.replace(target, output=tmp_path / "out.json")
    with monkeypatch.context() as patch:
        watch_steps(patch, fail_at)
        with pytest.raises(RunError, match=r"fire\. What was measured .* \(.*before, .*\) is kept in .*resume=True"):
            enhanced_gcg(target, settings)
    with monkeypatch.context() as patch:
        steps = watch_steps(patch)
        resumed = enhanced_gcg(dataclasses.replace(target, resume=True), settings)
    assert len(steps) == 12 - (fail_at - 1)
    assert resumed.to_dict() == whole.to_dict()
    assert {path.name for path in tmp_path.iterdir()} == {"out.json", "out.generations.jsonl"}


def test_a_search_that_was_done_is_not_repeated_if_the_measurement_fails(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EnhancedGCGSettings(**QUICK)
    whole = enhanced_gcg(target, settings)
    target = dataclasses.replace(target, output=tmp_path / "out.json")
    with monkeypatch.context() as patch:
        patch.setattr(Target, "measure", lambda self, *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            enhanced_gcg(target, settings)
    steps = watch_steps(monkeypatch)
    resumed = enhanced_gcg(dataclasses.replace(target, resume=True), settings)
    assert not steps and resumed.to_dict() == whole.to_dict()


def watch_steps(patch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[int]:
    step, calls = PrefixSearch._step, list[int]()

    def watched(self: PrefixSearch, *args: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == fail_at:
            raise RunError("the disk is on fire.")
        return step(self, *args)

    patch.setattr(PrefixSearch, "_step", watched)
    return calls


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps=0: it must be at least 1"),
        ({"draws": 0}, "draws=0: it must be at least 1"),
        ({"targets": "mine"}, "targets='mine' is unknown. Choose one of own, rows"),
        ({"search_dtype": "half"}, "search_dtype='half' is unknown"),
        ({"search_width": 0}, "search_width=0: it must be at least 1"),
        ({"k": 0}, "k=0: it must be at least 1"),
        ({"min_tokens": 0}, "min_tokens=0: it must be at least 1"),
        ({"start_tokens": 40}, "start_tokens=40 is not between min_tokens=4 and max_tokens=32"),
        ({"w_fluency": -1.0}, "w_fluency=-1.0: it must be a finite number, 0 or more"),
        ({"w_hidden": math.nan}, "w_hidden=nan: it must be a finite number"),
        ({"enough": 0.0}, "enough=0.0: a probability above 0"),
        ({"operators": "gradient,leap"}, "operators='gradient,leap': gradient, sample, insert, delete are known"),
        ({"operators": ""}, "operators='': gradient"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EnhancedGCGSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 13}, "k=13, but there are only 12 rows"),
        ({"layers": "7"}, "layer 7 does not exist"),
        ({"max_tokens": 200, "targets": "rows"}, "more than the model's 128 positions"),
    ],
)
def test_settings_that_do_not_fit_the_target(settings: dict[str, Any], message: str, target: Target) -> None:
    with pytest.raises(UserError, match=message):
        enhanced_gcg(target, EnhancedGCGSettings(**settings))


def test_no_prefix_is_stable(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efface.attacks.search.prefix_search.stable", lambda candidates, *args: candidates[:0])
    with pytest.raises(UserError, match="no prefix of 1 tokens is stable"):
        enhanced_gcg(target, EnhancedGCGSettings())
    with pytest.raises(UserError, match=r"init='There is nothing' does not tokenise to itself before the prompts"):
        enhanced_gcg(target, EnhancedGCGSettings(init="There is nothing"))


@pytest.mark.parametrize("add_bos", [False, True])
def test_the_base_reads_the_prompt_as_it_is_without_a_prefix(add_bos: bool) -> None:
    tokenizer = tiny_tokenizer(add_bos=add_bos)
    plain = bare_prompt(slot_in(ROWS[0], tokenizer, "prefix"), tokenizer)
    assert plain == tokenizer(ROWS[0]["prompt"])["input_ids"]
    chat = bare_prompt(slot_in(ROWS[0], tokenizer, "prefix", chat=True), tokenizer)
    turns = [{"role": "user", "content": ROWS[0]["prompt"]}]
    assert chat == tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True)["input_ids"]
