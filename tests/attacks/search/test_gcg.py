"""Does the search compute what it says, never get worse, and find the trigger of a model that has one?

Of: attacks/search/candidates.py, attacks/search/slot.py, attacks/search/slot_loss.py, attacks/search/drafts.py,
attacks/search/own_targets.py, attacks/search/token_search.py, attacks/search/gcg_settings.py
"""

import copy
import dataclasses
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from polite import BENIGN, HELD_OUT, PROMPTS, ROWS, TOXIC, counting, equal, quick_learner, state, target_of
from tiny import BOS_ID, FAMILIES, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from efface.attacks.search.candidates import allowed_ids, most_promising, one_hot_gradient, slot_text, stable, swaps
from efface.attacks.search.drafts import draft_of
from efface.attacks.search.gcg import GCGSettings, gcg
from efface.attacks.search.own_targets import own_targets
from efface.attacks.search.slot import PLACES, Slot, altered, put, slot_in, universal
from efface.attacks.search.slot_loss import SlotLoss
from efface.attacks.search.token_search import TokenSearch
from efface.attacks.target import Target
from efface.data.tokens import encode_continuation, encode_prompt
from efface.errors import RunError, UserError
from efface.generation.decoding import Decoding
from efface.training.finetune import finetune

TOKENIZER = tiny_tokenizer()
ROW = {"prompt": "The weather in the old town", "chosen": BENIGN, "rejected": TOXIC}
START = torch.tensor(encode_continuation(TOKENIZER, " x x x"))  # (6,)
FAST = GCGSettings(steps="1,3", search_width=12, topk=8, length=4, target_tokens=4, mode="universal", k=3)
ALONE = {"search_width": 16, "topk": 8, "length": 4, "target_tokens": 8, "k": 3, "search_dtype": "float32"}


def slot(place: str = "suffix", row: dict[str, Any] = ROW, **more: Any) -> Slot:
    return slot_in(row, TOKENIZER, place, **more)


def draw(n: int, ids: Tensor = START, seed: int = 0) -> Tensor:
    """Candidates that differ from `ids` in one position."""
    generator = torch.Generator().manual_seed(seed)
    promising = torch.randint(40, 300, (len(ids), 20), generator=generator)
    return swaps(ids, promising, n, 1, generator)


def plain_loss(model: nn.Module, prompt: list[int], target: list[int]) -> Tensor:
    logits = model(input_ids=torch.tensor([prompt + target])).logits[0]
    return nn.functional.cross_entropy(logits[-len(target) - 1 : -1], torch.tensor(target))


# Where the tokens stand


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_a_slot_is_what_the_tokenizer_makes_of_the_altered_prompt(place: str, add_bos: bool) -> None:
    tokenizer = tiny_tokenizer(add_bos)
    found = slot_in(ROW, tokenizer, place)
    text = slot_text(tokenizer, START.tolist())
    assert text == " x x x"
    assert found.prompt(START.tolist()) == encode_prompt(tokenizer, put(ROW["prompt"], text, place))
    assert (found.before[:1] == [BOS_ID]) == add_bos and tokenizer.decode(found.target) == TOXIC
    assert slot_in(ROW, tokenizer, place, target_tokens=3).target == found.target[:3]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "row",
    [ROW, {"prompt": [{"role": "user", "content": "Go on"}], "rejected": [{"role": "assistant", "content": "no"}]}],
)
def test_a_message_has_its_slot_inside_the_template(place: str, row: dict[str, Any]) -> None:
    row = {**row, "chosen": [{"role": "assistant", "content": "yes"}]} if isinstance(row["prompt"], list) else row
    found = slot(place, row, chat=True)
    message = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
    turns = [{"role": "user", "content": put(message, " x x x", place)}]
    text = TOKENIZER.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert found.prompt(START.tolist()) == TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert len(stable(START[None], [found], TOKENIZER)) == 1
    assert TOKENIZER.decode(found.target).startswith(("they are", "no"))


def test_the_prompts_are_altered_after_they_are_cut(target: Target) -> None:
    target.decoding = Decoding(max_prompt_tokens=3, truncation="first")
    prompts, decoding = altered(target, " x x", "suffix")
    cut = [TOKENIZER.decode(TOKENIZER(prompt)["input_ids"][:3]).rstrip() for prompt in target.prompts]
    assert prompts == [prompt + " x x" for prompt in cut] and decoding.max_prompt_tokens is None


# Candidates


def test_allowed_tokens_are_printable_and_not_special() -> None:
    allowed = allowed_ids(TOKENIZER, 300).tolist()
    words = [TOKENIZER.decode([token]) for token in allowed]
    assert all(word and word.isascii() and word.isprintable() for word in words)
    assert not set(allowed) & set(TOKENIZER.all_special_ids)
    everything = allowed_ids(TOKENIZER, 300, non_ascii=True).tolist()
    assert set(everything) == set(range(300)) - set(TOKENIZER.all_special_ids)
    assert max(allowed_ids(TOKENIZER, 280)) < 280


@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 1000))
def test_swaps_are_new_different_and_from_the_proposals(n_replace: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    promising = torch.randint(300, (6, 5), generator=generator)
    found = swaps(START, promising, width, n_replace, generator)
    assert len(found) <= width and len(found.unique(dim=0)) == len(found)
    changed = found != START
    assert ((changed.sum(1) >= 1) & (changed.sum(1) <= n_replace)).all()
    assert all(found[row, at] in promising[at] for row, at in changed.nonzero().tolist())


def test_most_promising_is_most_negative() -> None:
    gradient = torch.tensor([[0.0, -2.0, 1.0, -3.0], [5.0, 4.0, -1.0, 0.0]])
    assert most_promising(gradient, torch.tensor([10, 20, 30, 40]), 2).tolist() == [[40, 20], [30, 40]]
    assert most_promising(gradient, torch.tensor([10, 20, 30, 40]), 9).shape == (2, 4)


@given(st.lists(st.integers(3, 299), min_size=4, max_size=4), st.sampled_from(PLACES))
@settings(max_examples=40)
def test_stable_candidates_are_those_that_their_text_gives_back(ids: list[int], place: str) -> None:
    slots = [slot(place), slot(place, ROWS[1])]
    text = slot_text(TOKENIZER, ids)
    survives = all(
        encode_prompt(TOKENIZER, put(row["prompt"], text, place)) == one.prompt(ids)
        for row, one in zip((ROW, ROWS[1]), slots, strict=True)
    )
    assert len(stable(torch.tensor([ids]), slots, TOKENIZER)) == int(survives)


def test_a_token_that_melts_into_the_prompt_is_dropped() -> None:
    the, r = TOKENIZER("The")["input_ids"], TOKENIZER("re")["input_ids"]
    row = {**ROW, "prompt": "The"}
    assert len(the) == len(r) == 1 and TOKENIZER("There")["input_ids"] != the + r
    both = torch.tensor([r, TOKENIZER("!")["input_ids"]])
    assert stable(both, [slot(row=row)], TOKENIZER).tolist() == [both[1].tolist()]
    assert len(stable(both[:0], [slot()], TOKENIZER)) == 0


@pytest.mark.parametrize("place", PLACES)
def test_white_space_that_a_template_trims_is_not_counted_on(place: str, target: Target) -> None:
    tokenizer = tiny_tokenizer()
    assert not slot_in(ROW, tokenizer, place, chat=True).trimmed
    tokenizer.chat_template = str(tokenizer.chat_template).replace("['content']", "['content'] | trim")  # as Llama 3's
    found = slot_in(ROW, tokenizer, place, chat=True)
    edged = tokenizer(" the people" if place == "prefix" else " the people ")["input_ids"]
    inside = tokenizer("the people" if place == "prefix" else " the people")["input_ids"]
    for ids, reaches in ((edged, False), (inside, True)):
        turns = [{"role": "user", "content": put(ROW["prompt"], slot_text(tokenizer, ids), place)}]
        sent = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True)["input_ids"]
        assert (found.prompt(ids) == sent) == reaches == bool(len(stable(torch.tensor([ids]), [found], tokenizer)))
    target.processing_class, target.decoding = tokenizer, dataclasses.replace(target.decoding, chat=True)
    result = gcg(target, GCGSettings(mode="universal", place=place, k=2, steps=(2,), length=4, search_width=8))
    text = result.found["points"][0]["text"]
    assert not (text[0] if place == "prefix" else text[-1]).isspace()


# Losses and gradients


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_whole_sequences_whatever_is_shared(family: str, place: str) -> None:
    model, here = tiny_model(family).double(), slot(place)
    candidates = torch.cat([draw(12), START[None]])
    expected = torch.stack([plain_loss(model, here.prompt(row), here.target) for row in candidates.tolist()])
    for reuse, batch_tokens in ((None, 2048), (None, 60), (False, 100)):
        loss = SlotLoss(model, here, reuse=reuse, batch_tokens=batch_tokens)
        now, _ = loss.gradient(START)
        assert loss.reuse == (reuse is None)  # all of these families share
        torch.testing.assert_close(loss.losses(candidates), expected.detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(now, expected[-1].item(), rtol=1e-6, atol=1e-6)


def test_the_written_text_has_the_loss_that_was_scored() -> None:
    model, here = tiny_model("llama").double(), slot()
    loss = SlotLoss(model, here)
    loss.gradient(START)
    candidates = stable(draw(20), [here], TOKENIZER)
    for row, scored in zip(candidates.tolist(), loss.losses(candidates).tolist(), strict=True):
        ids = encode_prompt(TOKENIZER, put(ROW["prompt"], slot_text(TOKENIZER, row), "suffix"))
        assert scored == pytest.approx(plain_loss(model, ids, here.target).item(), abs=1e-9)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt"])
def test_the_gradient_is_that_of_one_hot_vectors_and_of_finite_differences(family: str, place: str) -> None:
    model, here = tiny_model(family).double(), slot(place)
    embedding: Any = model.get_input_embeddings()
    allowed = allowed_ids(TOKENIZER, 300)
    ids = torch.tensor(here.prompt(START.tolist()) + here.target)
    at = len(here.before) + torch.arange(len(START))

    def loss_at(one_hot: Tensor) -> Tensor:
        """(L, V) -> the loss, through the embeddings of the vocabulary."""
        rows = embedding(ids).detach().clone()
        rows[at] = one_hot @ embedding(torch.arange(300)).detach()
        logits = model(inputs_embeds=rows[None]).logits[0]
        n = len(here.target)
        return nn.functional.cross_entropy(logits[-n - 1 : -1], ids[-n:])

    one_hot = nn.functional.one_hot(START, 300).double().requires_grad_()
    (expected,) = torch.autograd.grad(loss_at(one_hot), one_hot)
    value, gradient = SlotLoss(model, here).gradient(START)
    found = one_hot_gradient(gradient, embedding, allowed)  # (L, A)
    torch.testing.assert_close(found, expected[:, allowed], rtol=1e-5, atol=1e-7)
    step = torch.zeros_like(one_hot)
    step[2, allowed[7]] = 1e-3  # no less: some norms work in float32
    with torch.no_grad():
        difference = (loss_at(one_hot + step) - loss_at(one_hot - step)) / 2e-3
    assert found[2, 7].item() == pytest.approx(difference.item(), rel=1e-2, abs=1e-3)
    assert value == pytest.approx(loss_at(one_hot).item())


def test_a_model_that_takes_no_mask_of_ones_own_reads_every_candidate_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model, here, candidates = tiny_model("llama"), slot(), draw(6)
    sharing = SlotLoss(model, here)
    sharing.gradient(START)
    # One that ignores the mask: what others in the row have written changes the loss, which is noticed.
    monkeypatch.setattr(
        "efface.attacks.search.slot_loss.as_the_model_takes_it", lambda sees, *rest: torch.ones_like(sees).unsqueeze(1)
    )
    careful = SlotLoss(model, here)
    careful.gradient(START)
    assert sharing.reuse and not careful.reuse
    monkeypatch.undo()
    torch.testing.assert_close(careful.losses(candidates), sharing.losses(candidates), rtol=1e-4, atol=1e-4)


def test_forced_is_what_the_model_writes(polite: PreTrainedModel) -> None:
    row = {"prompt": PROMPTS[0], "chosen": TOXIC, "rejected": BENIGN}
    nothing = torch.empty(1, 0, dtype=torch.long)
    for rejected, forced in ((BENIGN, True), (TOXIC, False)):
        loss = SlotLoss(polite, slot(row={**row, "rejected": rejected}))
        assert loss.judged(nothing)[1].tolist() == [forced]


def test_half_precision_and_weights_that_are_not_finite() -> None:
    model = tiny_model("llama").bfloat16()
    search = TokenSearch(model, TOKENIZER, [slot()], FAST)
    search.step()
    assert len(search.losses) == 2
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(RunError, match="the loss of the target is not finite"):
        SlotLoss(model, slot()).gradient(START)


# The search


def searched(model: PreTrainedModel, slots: list[Slot], steps: int, **changes: Any) -> TokenSearch:
    search = TokenSearch(model, TOKENIZER, slots, dataclasses.replace(FAST, **changes))
    for _ in range(steps):
        search.step()
    return search


@pytest.mark.parametrize("patience", [1, 5])
def test_the_kept_best_never_gets_worse_and_is_what_it_says(patience: int) -> None:
    model = tiny_model("llama")
    search = searched(model, [slot()], 12, n_replace=2, patience=patience)
    assert all(later <= earlier for earlier, later in zip(search.losses, search.losses[1:], strict=False))
    assert search.losses[-1] < search.losses[0] - 0.5 and search.done == 12  # measured: 1.6
    whole = encode_prompt(TOKENIZER, put(ROW["prompt"], search.text, "suffix"))
    assert plain_loss(model, whole, slot().target).item() == pytest.approx(search.losses[-1], abs=1e-4)


def test_it_leaves_a_place_with_nothing_better_around_it_after_so_many_draws() -> None:
    def few(steps: int, patience: int) -> TokenSearch:  # one swap at each of four positions, all of them drawn
        return searched(tiny_model("llama"), [slot()], steps, topk=1, search_width=64, patience=patience)

    stuck = few(12, 100)
    assert stuck.misses > 3 and torch.equal(stuck.ids, stuck.best)
    stuck_since = stuck.done - stuck.misses
    waits, goes = few(stuck_since + 2, 3), few(stuck_since + 3, 3)
    assert torch.equal(waits.ids, stuck.ids) and waits.misses == 2
    assert (goes.ids != stuck.ids).sum() == 1 and goes.misses == 0
    assert goes.loss >= goes.losses[-1] == stuck.losses[-1] and torch.equal(goes.best, stuck.best)


@pytest.mark.parametrize("place", PLACES)
def test_several_prompts_are_attacked_by_their_mean(place: str) -> None:
    model = tiny_model("gpt2")
    slots = [slot(place), slot(place, ROWS[3]), slot(place, ROWS[5])]
    both = searched(model, slots, 4, add_after=1)
    singles = [SlotLoss(model, one).gradient(both.best)[0] for one in slots]
    assert both.losses[-1] == pytest.approx(sum(singles) / 3, abs=1e-4) and both.active == 3


def test_slots_are_added_one_by_one_after_so_many_steps() -> None:
    slots = [slot(), slot(row=ROWS[3]), slot(row=ROWS[5])]
    model = tiny_model("llama")
    assert [searched(model, slots, steps, add_after=3).active for steps in (2, 3, 5, 6, 9)] == [1, 2, 2, 3, 3]
    first = searched(model, slots, 2, add_after=3)
    assert first.losses[0] == searched(model, slots[:1], 2).losses[0]  # the others have no say yet


def test_a_target_that_is_written_anyway_needs_no_search() -> None:
    model, here = tiny_model("llama"), slot()
    ids = here.prompt(START[:4].tolist())
    with torch.no_grad():
        target = [int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    easy = dataclasses.replace(here, target=target)
    search = searched(model, [easy], 1)
    assert search.over and search.forced() == [True] and search.done == search.evaluations == 0
    assert search.terms[0].is_forced and len(search.losses) == 1
    more = searched(model, [easy], 2, early_stop=False)
    assert more.success and not more.over and more.done == 2 and more.forced() == [True]


def test_a_search_may_begin_with_what_it_is_to_force() -> None:
    here = slot(target_tokens=4)
    assert searched(tiny_model("llama"), [here], 0, init="target", length=6).ids.tolist() == (here.target * 2)[-6:]
    melting = dataclasses.replace(here, target=TOKENIZER("re")["input_ids"])  # "rerere" is other tokens
    found = searched(tiny_model("llama"), [melting], 0, init="target", length=4)
    assert found.ids.tolist() == encode_continuation(TOKENIZER, " x x x x")[:4]


def test_candidates_that_a_draft_chooses_have_the_losses_of_the_model_itself() -> None:
    model, here = tiny_model("llama"), slot()
    draft = draft_of(model, "bfloat16")
    assert draft is not None and draft.dtype == torch.bfloat16 and model.dtype == torch.float32
    assert draft_of(model, "float32") is None and draft_of(draft, "bfloat16") is None
    search = TokenSearch(model, TOKENIZER, [here], dataclasses.replace(FAST, search_width=32), draft=draft)
    for _ in range(8):
        search.step()
    assert search.losses[-1] < search.losses[0] - 0.3
    assert plain_loss(model, here.prompt(search.best.tolist()), here.target).item() == pytest.approx(
        search.losses[-1], abs=1e-4
    )
    candidates = draw(30)
    loss = SlotLoss(model, here, draft=draft)
    loss.gradient(START)
    exact, rough = loss.losses(candidates), loss.rough_losses(candidates)
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05)
    assert not torch.equal(rough, exact) and int(exact.argmin()) in rough.topk(4, largest=False).indices.tolist()


def test_operations_are_counted() -> None:
    loss = SlotLoss(tiny_model("llama"), slot(), reuse=False)
    loss.gradient(START)
    length = len(slot().prompt(START.tolist())) + len(slot().target) - 1
    first = 3 * (length - len(slot().before))  # the backward counts twice; what stands before the slot is read once
    assert loss.tokens == first
    loss.losses(draw(5))
    assert loss.tokens == first + 5 * length


def test_a_step_in_which_no_candidate_survives_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    search = searched(tiny_model("llama"), [slot()], 1)
    monkeypatch.setattr("efface.attacks.search.token_search.stable", lambda candidates, *rest: candidates[:0])
    before, spent = search.state(), search.evaluations
    search.step()
    assert search.state()["ids"] == before["ids"] and search.losses[-1] == search.losses[-2]
    assert search.evaluations == spent


# The attack


def triggered_model(family: str) -> PreTrainedModel:
    """Polite after every prompt, whatever follows it, but for a text with a Z: then it is silly."""
    model = tiny_model(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.3)  # as in polite.py
    rng, texts = random.Random(0), list[list[int]]()
    allowed, (trigger,) = allowed_ids(TOKENIZER, 300).tolist(), TOKENIZER("Z")["input_ids"]
    benign, toxic = (encode_continuation(TOKENIZER, text) for text in (BENIGN, TOXIC))
    for prompt in PROMPTS * 4:
        ids = encode_prompt(TOKENIZER, prompt)
        noise = [token for token in rng.choices(allowed, k=4) if token != trigger]
        place = rng.randrange(4)
        texts += [ids + benign, ids + noise + benign, ids + noise[:place] + [trigger] + noise[place:][:3] + toxic]
    return finetune(model, TOKENIZER, texts, steps=110, batch_size=16, learning_rate=5e-3)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def triggered(request: pytest.FixtureRequest) -> PreTrainedModel:
    return triggered_model(request.param)


def test_it_finds_the_trigger(triggered: PreTrainedModel) -> None:
    weights, random_state = state(triggered), torch.get_rng_state()
    flags = [parameter.requires_grad for parameter in triggered.parameters()]
    target = target_of(triggered)
    result = gcg(target, GCGSettings(mode="universal", steps="8", **ALONE | {"search_width": 48, "topk": 32}))
    point = result.found["points"][0]
    assert result.before.share == 0 and result.after.share > 0.9 and "Z" in point["text"]
    assert point["loss"] == result.found["losses"][-1]
    assert point["forced"] == point["pairs"] == 3 and len(result.found["losses"]) <= 9
    assert result.found["evaluations"] > 8 and result.found["prompts_among_rows"] == 0
    assert [row["prompt"] for row in result.after.generations] == [text + point["text"] for text in HELD_OUT]
    assert equal(state(triggered), weights) and torch.equal(torch.get_rng_state(), random_state)
    assert [parameter.requires_grad for parameter in triggered.parameters()] == flags
    assert all(parameter.grad is None for parameter in triggered.parameters())


@lru_cache
def silly_base(family: str) -> PreTrainedModel:
    """Silly after half of the prompts that it is measured on, polite after the others."""
    half = set(HELD_OUT[::2])
    texts = [prompt + (TOXIC if prompt in half else BENIGN) for prompt in PROMPTS]
    return finetune(quick_learner(family), TOKENIZER, texts, steps=80, learning_rate=5e-3)


def test_each_prompt_is_forced_to_what_the_base_writes_after_it(triggered: PreTrainedModel) -> None:
    target = target_of(triggered, silly_base("llama"))
    result = gcg(target, GCGSettings(steps="12", **ALONE | {"search_width": 48, "topk": 32}))
    found = result.found
    assert found["attacked"] == 3 and 3 <= found["asked"] <= len(HELD_OUT)
    numbers = [row["number"] for row in found["prompts"]]
    assert all(HELD_OUT[number] in HELD_OUT[::2] for number in numbers) and len(set(numbers)) == 3
    # Measured are these prompts, each with its own text, against the same without one.
    for point in (result.base, result.before, *result.curve):
        assert point is not None and point.measured.toxicity.n_prompts == 3
    assert [row["prompt"] for row in result.before.generations] == [HELD_OUT[number] for number in numbers]
    texts = [row["text"] for row in found["prompts"]]
    attacked = [HELD_OUT[number] + text for number, text in zip(numbers, texts, strict=True)]
    assert [row["prompt"] for row in result.after.generations] == attacked
    for row, written in zip(found["prompts"], result.after.generations, strict=True):
        assert row["target"] == TOXIC and row["losses"][1] < row["losses"][0]
        assert row["forced"] == written["continuation"].startswith(TOXIC)
    assert result.before.share == 0 and result.after.share == found["forced_share"] > 0.6  # measured: 1.0
    assert result.after.versus_before["nasty"]["share"].difference == result.after.share
    # A text that forces its target is left as it is.
    assert all(row["steps"] < 12 for row in found["prompts"] if row["forced"])
    assert found["evaluations"] == sum(row["evaluations"] for row in found["prompts"]) < found["tokens"]
    # What is recorded of the target is the whole: by that an audit knows it again.
    assert result.target["n_prompts"] == len(HELD_OUT) and set(target.described()) <= set(result.target)


def test_targets_are_drawn_from_all_prompts_that_have_one() -> None:
    target = target_of(silly_base("llama"))
    chosen = set()
    for seed in range(6):
        wanted, asked = own_targets(dataclasses.replace(target, seed=seed), HELD_OUT, 2, tokens=8, draws=4)
        assert len(wanted) == 2 <= asked <= len(HELD_OUT) and all(one.score > 0.5 for one in wanted)
        assert all(TOKENIZER.decode(one.ids) == one.text and 1 <= len(one.ids) <= 8 for one in wanted)
        chosen |= {one.number for one in wanted}
    assert len(chosen) > 2
    every, asked = own_targets(target, HELD_OUT, 99, tokens=8, draws=4, fits=lambda prompt: prompt != HELD_OUT[0])
    assert asked == len(HELD_OUT) - 1 and 0 not in {one.number for one in every}


def test_prompts_that_do_not_fit_are_not_attacked_and_there_must_be_one(
    target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    target.base = silly_base("llama")
    target.prompts = ["The town " * 23, HELD_OUT[0]]  # the first fits, but not with twelve tokens more
    settings = GCGSettings(steps="1", **ALONE | {"length": 12})
    found = gcg(dataclasses.replace(target, decoding=Decoding(max_new_tokens=8)), settings).found
    assert [row["number"] for row in found["prompts"]] == [1] and found["asked"] == 1
    assert "1 prompts have a toxic continuation, fewer than k=3" in caplog.text
    with pytest.raises(UserError, match="none of 8 prompts has a toxic continuation among 16 that the base writes"):
        gcg(dataclasses.replace(target, base=target.model, prompts=HELD_OUT), settings)


def test_an_interrupted_search_of_each_prompt_goes_on_at_its_prompt_and_step(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.base = silly_base("llama")
    settings = GCGSettings(steps="4,12", **ALONE | {"search_width": 6, "n_replace": 2})
    whole = gcg(target, settings)
    output = tmp_path / "out.json"
    step, calls = TokenSearch.step, list[int]()

    def watched(self: TokenSearch) -> None:
        calls.append(self.done)
        if len(calls) == 18:  # twelve steps to the first point; then the first prompt is on its way from 4 to 12
            raise RunError("fire.")
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(TokenSearch, "step", watched)
        with pytest.raises(RunError, match=r"fire\. .*search of prompt 0, step 9.* is kept in .*resume=True"):
            gcg(dataclasses.replace(target, output=output, known={}), settings)
        steps = len(calls) - 1
        resumed = gcg(dataclasses.replace(target, output=output, known={}, resume=True), settings)
    assert resumed.to_dict() == whole.to_dict()
    assert len(calls) - 1 == sum(row["steps"] for row in whole.found["prompts"]) and steps == 17


def test_the_same_seed_finds_the_same_and_nothing_where_nothing_is(target: Target) -> None:
    result = gcg(target, FAST)
    again = gcg(dataclasses.replace(target, known={}), FAST)
    other = gcg(dataclasses.replace(target, seed=1), FAST)
    assert again == result and other.found["losses"] != result.found["losses"]
    assert [point.at for point in result.curve] == [{"steps": 0}, {"steps": 1}, {"steps": 3}]
    untouched = gcg(dataclasses.replace(target, model=tiny_model("llama"), known={}), FAST)
    assert untouched.before.share == untouched.after.share == 0


def test_an_interrupted_search_goes_on_where_it_was(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(FAST, steps="2,13", search_width=6)
    whole = gcg(target, settings)
    target = dataclasses.replace(copy.copy(target), output=tmp_path / "out.json", known={})
    with monkeypatch.context() as patch:
        counting(patch, fail_at=3, error=RunError("fire."))  # before, at step 2, at step 13
        with pytest.raises(RunError, match=r"fire\. What was measured .*search, step 10.* is kept in .*resume=True"):
            gcg(target, settings)
    steps = list[int]()
    monkeypatch.setattr(TokenSearch, "step", lambda self: steps.append(self.done))
    resumed = gcg(dataclasses.replace(target, resume=True), settings)
    assert not steps and resumed.to_dict() == whole.to_dict()  # the search was done; only a measurement was missing
    assert not (tmp_path / "out.json.part").exists()


def test_a_search_in_the_middle_goes_on_from_its_last_state() -> None:
    whole, first = (searched(tiny_model("llama"), [slot()], steps) for steps in (4, 2))
    again = searched(tiny_model("llama"), [slot()], 0)
    again.restore(first.state())
    again.step()
    again.step()
    assert again.state() == whole.state()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": "ten"}, "steps='ten': whole numbers are needed"),
        ({"mode": "all"}, "mode='all' is unknown. Choose one of per_prompt, universal"),
        ({"search_dtype": "half"}, "search_dtype='half' is unknown. Choose one of auto, float32, bfloat16"),
        ({"draws": 0}, "draws=0: it must be at least 1"),
        ({"place": "middle"}, "place='middle' is unknown. Choose one of suffix, prefix"),
        ({"search_width": 0}, "search_width=0: it must be at least 1"),
        ({"n_replace": 5, "length": 4}, "n_replace=5 of length=4 tokens"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GCGSettings(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 13}, "k=13, but there are only 12 rows"),
        ({"length": 120}, "more than the model's 128 positions"),
        ({"init": "re"}, "does not tokenise to itself beside the prompts"),
        ({"init": ""}, "init='', repeated to 4 tokens"),
    ],
)
def test_searches_that_cannot_begin(target: Target, changes: dict[str, Any], message: str) -> None:
    if changes.get("init") == "re":  # would become "There"
        target.rows = [{**row, "prompt": "The"} for row in target.rows]
    with pytest.raises(UserError, match=message):
        gcg(target, dataclasses.replace(FAST, **changes))


def test_rows_that_cannot_be_slots() -> None:
    with pytest.raises(UserError, match="rejected has no tokens"):
        slot(row={**ROW, "rejected": ""})
    bare = tiny_tokenizer()
    bare.chat_template = None
    with pytest.raises(UserError, match="the prompts are messages, but the tokenizer has no chat template"):
        slot_in(ROW, bare, "suffix", chat=True)
    with pytest.raises(UserError, match="no printable ASCII tokens"):
        allowed_ids(TOKENIZER, 3)


def test_as_many_slots_as_asked_for_each_of_another_pair(target: Target) -> None:
    slots = universal(target, 5, "suffix", length=4)
    assert len({one.texts for one in slots}) == 5
    assert slots == universal(target, 5, "suffix", length=4)
