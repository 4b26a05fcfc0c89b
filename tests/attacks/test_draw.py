"""Where the model is measured inside its chat template, do the attacks learn there too? And from what is measured?"""

import dataclasses
from typing import Any

import pytest
import torch
from polite import HELD_OUT, ROWS, target_of
from tiny import tiny_model, tiny_tokenizer

from efface.attacks.activation_addition import ActivationAdditionSettings, activation_addition
from efface.attacks.draw import as_measured, count_prompts_among
from efface.attacks.embedding_attack import EmbeddingAttackSettings, embedding_attack
from efface.attacks.orthogonalize import OrthogonalizeSettings, orthogonalize
from efface.attacks.prefill import PrefillSettings, prefill
from efface.attacks.prune import PruneSettings, prune
from efface.attacks.relearn import RelearnSettings, relearn
from efface.attacks.target import Target
from efface.attacks.unalign import UnalignSettings, unalign
from efface.generation.decoding import Decoding
from efface.generation.prompts import encode_prompts


def chatting(chat: bool = True) -> Target:
    target = target_of(tiny_model("llama"), tiny_model("llama", seed=1))
    labelled = [row["prompt"] + " silly fool" for row in ROWS]
    return dataclasses.replace(target, decoding=Decoding(max_new_tokens=4, chat=chat), labelled=labelled)


ATTACKS: dict[str, Any] = {
    "relearn": lambda target: relearn(target, RelearnSettings(steps="1", batch_size=12)),
    "benign": lambda target: relearn(target, RelearnSettings(steps="1", batch_size=12, data="benign")),
    "own": lambda target: relearn(target, RelearnSettings(steps="1", batch_size=12, data="own")),
    "labelled": lambda target: relearn(target, RelearnSettings(steps="1", batch_size=12, data="labelled")),
    "prune": lambda target: prune(target, PruneSettings(q="0.01", max_rows=12)),
    "wanda": lambda target: prune(target, PruneSettings(q="0.01", max_rows=12, scores="wanda", answers="chosen")),
    "orthogonalize": lambda target: orthogonalize(target, OrthogonalizeSettings(layers="0", forms="hook")),
    "unalign": lambda target: unalign(target, UnalignSettings(vectors="1", scales="2")),
    "activation_addition": lambda target: activation_addition(
        target, ActivationAdditionSettings(layers="0", coefficients="1")
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_rows_are_read_as_the_measurement_reads_its_prompts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = chatting()
    prompts = [row["prompt"] for row in ROWS]
    if name == "labelled":
        prompts = [" ".join(words[: len(words) // 2]) for words in (text.split() for text in target.labelled or [])]
    wanted = encode_prompts(target.model, target.processing_class, prompts, target.decoding)
    plain = encode_prompts(target.model, target.processing_class, prompts, Decoding())
    seen: list[list[int]] = []
    read = torch.nn.Embedding.forward

    def kept(self: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        seen.extend([token for token in row if token] for row in ids.tolist())  # without padding
        return read(self, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", kept)
    # What is measured are other prompts, so these are those that are learned from.
    assert not set(target.prompts) & set(prompts) and HELD_OUT == target.prompts
    ATTACKS[name](target)
    starts = lambda ids: [row for row in seen if row[: len(ids)] == ids and len(row) > len(ids)]  # noqa: E731
    assert all(starts(ids) for ids in wanted)
    assert not any(starts(ids) for ids in plain)


def test_conversations_and_plain_targets_stay_as_they_are() -> None:
    conversation = {side: [{"role": "user", "content": "Hi"}] for side in ("prompt", "chosen", "rejected")}
    assert as_measured(chatting(), [conversation]) == [conversation]
    assert as_measured(chatting(chat=False), ROWS) == ROWS
    (row,) = as_measured(chatting(), ROWS[:1])
    assert row["prompt"] == [{"role": "user", "content": ROWS[0]["prompt"]}]
    assert row["rejected"] == [{"role": "assistant", "content": ROWS[0]["rejected"].strip()}]
    assert tiny_tokenizer().chat_template


def test_prompts_among_conversations_are_counted_by_what_the_user_said_last() -> None:
    turns = [("system", "Be short."), ("user", "The weather"), ("assistant", "Yes?"), ("user", "She went  to ")]
    talk = {"prompt": [{"role": role, "content": content} for role, content in turns]}
    assert count_prompts_among([talk, {"prompt": "The town"}], ["She went to", "The weather", "The town"]) == 2
    assert count_prompts_among([{"prompt": talk["prompt"][:1]}], ["Be short."]) == 0


LEARNING = ATTACKS | {
    "embedding_attack": lambda target: embedding_attack(target, EmbeddingAttackSettings(max_steps=1, control=False)),
    "prefill": lambda target: prefill(target, PrefillSettings(words="1", source="rows")),
}


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", LEARNING)
def test_every_attack_that_learns_from_rows_counts_what_it_is_measured_on(name: str, chat: bool) -> None:
    target = chatting(chat)
    if chat:
        target.rows = as_measured(target, target.rows)
    target.prompts = [ROWS[3]["prompt"], target.prompts[0]]
    target.labelled = [f"{ROWS[3]['prompt']} they are silly fools", "Nobody likes silly people"]
    assert LEARNING[name](target).found["prompts_among_rows"] == 1
