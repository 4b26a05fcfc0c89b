"""Is a pair cut so that its template stays whole, inside the model's positions, counted, and never against itself?"""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tiny import BOS_ID, MAX_POSITIONS, tiny_model, tiny_tokenizer

from efface.data.conversation import fitting, in_template
from efface.data.pair_tokens import Cuts, PairTokenizer, lengths_within, tokenize_pair, tokenize_pairs
from efface.data.pairs import PairReader, load_pairs, tokenized
from efface.data.store import PairStore
from efface.errors import UserError

LONG = "The history of the town is the history of its river and its people. "
SYSTEM = {"role": "system", "content": "You are silent."}
COLD = [{"role": "assistant", "content": "It is cold."}]
FOOL = [{"role": "assistant", "content": "You silly fool."}]
TEXT = {"prompt": "The weather", "chosen": " was cold", "rejected": " is for fools"}
TAIL = "<eos>\n<|assistant|>\n"


def chat(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": list(turns), "chosen": COLD, "rejected": FOOL}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def prompt_of(row: dict[str, Any], limit: int, tokenizer: Any = None) -> str:
    tokenizer = tokenizer or tiny_tokenizer()
    ids = tokenize_pair(row, tokenizer, max_prompt_length=limit).prompt_ids
    assert len(ids) <= limit
    return str(tokenizer.decode(ids))


def test_a_long_message_loses_its_beginning_and_the_template_nothing() -> None:
    text = prompt_of(chat(SYSTEM, user(LONG * 5 + "Is it cold?")), 60)
    assert text.startswith("<|system|>\nYou are silent.<eos>\n<|user|>\n") and text.endswith("Is it cold?" + TAIL)
    assert len(tiny_tokenizer()(text)["input_ids"]) > 50  # no more is cut than has to be


def test_the_oldest_turns_go_first() -> None:
    turns = [user("First. " + LONG), *COLD, user("Second. " + LONG), *COLD, user("Is it cold there?")]
    whole = len(tiny_tokenizer()(in_template(tiny_tokenizer(), turns, answer=True))["input_ids"])
    text = prompt_of(chat(SYSTEM, *turns), whole)
    assert "First." not in text and "Second." in text and text.startswith("<|system|>\nYou are silent.")
    left = f"<|system|>\nYou are silent.<eos>\n<|user|>\nIs it cold there?{TAIL}"
    assert prompt_of(chat(SYSTEM, *turns), len(tiny_tokenizer()(left)["input_ids"])) == left


def test_the_system_turn_is_cut_last_and_at_its_end() -> None:
    text = prompt_of(chat({"role": "system", "content": "Be kind. " + LONG * 3}, user("Is it cold?")), 48)
    assert text.startswith("<|system|>\nBe kind.") and text.endswith(f"<|user|>\n?{TAIL}")


def test_a_template_longer_than_the_prompt_may_be() -> None:
    with pytest.raises(
        UserError, match="the chat template alone takes .* and the prompt may have 8. Raise max_prompt"
    ):
        tokenize_pair(chat(user("Is it cold?")), tiny_tokenizer(), max_prompt_length=8)


def test_the_continuation_follows_the_shortened_conversation() -> None:
    tokenizer = tiny_tokenizer()
    pair = tokenize_pair(chat(user(LONG * 5 + "Is it cold?")), tokenizer, max_prompt_length=40)
    assert tokenizer.decode(pair.chosen_ids) == "It is cold.<eos>\n"


def test_tools_and_settings_reach_the_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if tools %}tools: {% for tool in tools %}{{ tool['function']['name'] }}{% endfor %}; {% endif %}"
        "{% if calm %}calm; {% endif %}" + str(tokenizer.chat_template)
    )
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    row = chat(user("Cold?")) | {"tools": tools, "chat_template_kwargs": {"calm": True}}
    assert prompt_of(row, 128, tokenizer).startswith("tools: weather; calm; <|user|>")
    assert prompt_of(row | {"prompt": [user(LONG * 9)]}, 60, tokenizer).startswith("tools: weather; calm; <|user|>")


TEMPLATES = {
    "raises": "{{ raise_exception('this model knows no system turn') }}",
    "broken": "{% for message in messages %}",
    "lacks a key": "{{ messages[0]['content'] + 3 }}",
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_that_does_not_take_the_conversation(kind: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATES[kind]
    with pytest.raises(UserError, match="the chat template does not take the conversation"):
        fitting(tokenizer, [user("Cold?")], 128)
    from efface.generation.decoding import Decoding
    from efface.generation.prompts import encode_prompts

    with pytest.raises(UserError, match="prompt 0: the chat template does not take"):
        encode_prompts(tiny_model("gpt2"), tokenizer, ["Cold?"], Decoding(chat=True))


@pytest.mark.parametrize("name", ["turns", "answer", "tokenize"])
def test_settings_of_the_template_that_are_none(name: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ " + name + " }}" + str(tokenizer.chat_template)
    row = chat(user("Cold?")) | {"chat_template_kwargs": {name: "x"}}
    if name == "tokenize":  # an argument of ours
        with pytest.raises(UserError, match="the chat template does not take the conversation"):
            tokenize_pair(row, tokenizer)
    else:
        assert prompt_of(row, 128, tokenizer).startswith("x<|user|>")


def no_system() -> Any:
    tokenizer = tiny_tokenizer()
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    tokenizer.chat_template = refusal + str(tokenizer.chat_template)
    return tokenizer


def without_zero_width() -> Any:
    from tokenizers import normalizers

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    return tokenizer


@pytest.mark.parametrize(
    ("good", "bad", "make", "message"),
    [
        (chat(user("Cold?")), chat(SYSTEM, user("Cold?")), no_system, r"the chat template .* \(no system turn\)"),
        (TEXT, TEXT | {"chosen": "\u200b"}, without_zero_width, "chosen has no tokens under this tokenizer"),
    ],
)
def test_a_row_that_is_bad_only_to_the_tokenizer(good: Any, bad: Any, make: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, bad, good)))
    lengths = {"max_prompt_length": 128, "max_completion_length": 128}
    with pytest.raises(UserError, match=f"pairs.jsonl:2: {message}"):
        PairStore.build(PairReader(path), make(), **lengths)
    reader = PairReader(path, skip_bad_rows=True)
    assert len(PairStore.build(reader, make(), **lengths)) == 2 and reader.skipped == 1
    with pytest.raises(UserError, match=rf"no usable pairs \(1 bad rows; the last: row 0: {message}"):
        PairStore.build(PairReader([bad], skip_bad_rows=True), make(), **lengths)
    with pytest.raises(UserError, match=f"row 1: {message}"):
        tokenize_pairs([good, bad], make())


def test_pairs_that_truncation_makes_equal_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    late = {"prompt": "The weather", "chosen": " " + LONG + "Yes.", "rejected": " " + LONG + "No."}
    with caplog.at_level(logging.WARNING):
        store = PairStore.build(
            PairReader([late, TEXT, late]), tiny_tokenizer(), max_prompt_length=128, max_completion_length=12
        )
    assert len(store) == 1 and store.dropped == {"equal after truncation": 2}
    assert store.truncated == {"continuations": 4}
    assert "2 of 3 pairs were left out" in caplog.text and "4 of 6 continuations were cut" in caplog.text
    with pytest.raises(UserError, match="none of the 1 pairs is left: .* Raise max_completion_length"):
        PairStore.build([late], tiny_tokenizer(), max_prompt_length=128, max_completion_length=12)
    assert len(PairStore.build([late], tiny_tokenizer(), max_prompt_length=128, max_completion_length=99)) == 1


def test_pairs_that_the_template_makes_equal_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = str(tokenizer.chat_template).replace("['content']", "['content'] | trim")
    row = chat(user("Cold?")) | {"rejected": [{"role": "assistant", "content": "It is cold. "}]}
    reader = PairReader([row, chat(user("Cold?"))])
    found = PairTokenizer(tokenizer)
    assert len(list(tokenized(reader, found))) == 1 and found.dropped == {"equal token ids": 1}
    assert "1 of 2 pairs were left out: chosen and rejected differ as texts" in caplog.text


def test_nothing_is_said_of_pairs_that_fit(caplog: pytest.LogCaptureFixture) -> None:
    store = PairStore.build([TEXT], tiny_tokenizer(), max_prompt_length=128, max_completion_length=128)
    assert not store.dropped and not store.truncated and not caplog.records


@pytest.mark.parametrize("positions", [2, 3, 64, 100, 128, 1000])
@pytest.mark.parametrize("prompt", [1, 128, 1024])
@pytest.mark.parametrize("completion", [1, 128, 1024])
def test_lengths_within_the_positions(positions: int, prompt: int, completion: int) -> None:
    found = lengths_within(positions, prompt, completion)
    assert min(found) >= 1 and sum(found) <= positions and found[0] <= prompt and found[1] <= completion
    if prompt + completion <= positions:
        assert found == (prompt, completion)
    else:
        assert sum(found) == positions


def test_only_a_pair_beyond_the_positions_is_cut_to_them(caplog: pytest.LogCaptureFixture) -> None:
    long = {"prompt": LONG * 9, "chosen": " was cold" * 99, "rejected": " fool" * 99}
    narrow = {"prompt": "The", "chosen": " was cold" * 13, "rejected": " fools"}
    tokenizer, cuts = tiny_tokenizer(), Cuts()
    pair = tokenize_pair(long, tokenizer, max_positions=MAX_POSITIONS, cuts=cuts)
    assert [len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)] == [64, 64, 64] and cuts.beyond == 1
    assert tokenize_pair(narrow, tokenizer, max_positions=MAX_POSITIONS) == tokenize_pair(narrow, tokenizer)
    assert len(tokenize_pair(narrow, tokenizer).chosen_ids) > 64
    with caplog.at_level(logging.WARNING):
        tokenize_pairs([long, narrow], tokenizer, max_positions=MAX_POSITIONS)
    assert "1 of 2 pairs were longer than the model's 128 positions" in caplog.text
    with pytest.raises(UserError, match="the model has 1 positions"):
        lengths_within(1, 8, 8)


def test_a_prompt_that_begins_with_a_bos_has_one() -> None:
    ids = tokenize_pair(TEXT | {"prompt": "<bos>The weather"}, tiny_tokenizer(add_bos=True)).prompt_ids
    assert ids.count(BOS_ID) == 1 and ids == tokenize_pair(TEXT, tiny_tokenizer(add_bos=True)).prompt_ids


def test_what_a_reader_has_begun_is_tokenised_once() -> None:
    reader = PairReader(iter([TEXT] * 3))
    reader.begin()
    assert len(PairStore.build(reader, tiny_tokenizer(), max_prompt_length=9, max_completion_length=9)) == 3
    assert len(load_pairs(TEXT for _ in range(3))) == 3
