"""Is a pair cut so that its template stays whole, inside the model's positions, counted, and never against itself?

Of: data/conversation.py
"""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import BOS_ID, EOS_ID, MAX_POSITIONS, tiny_model, tiny_tokenizer

from efface.data.batch import PairCollator
from efface.data.conversation import fitting, in_template
from efface.data.pair_tokens import Cuts, PairTokenizer, lengths_within, tokenize_pair, tokenize_pairs
from efface.data.pairs import PairReader, load_pairs, tokenized
from efface.data.store import PairStore
from efface.data.tokens import encode_continuation, encode_prompt
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


GOOD = {"prompt": "The weather", "chosen": " was cold", "rejected": " is for fools"}


CHAT = {
    "prompt": [{"role": "user", "content": "How is the weather?"}],
    "chosen": [{"role": "assistant", "content": "It is cold."}],
    "rejected": [{"role": "assistant", "content": "Look, you fool."}],
}


@pytest.mark.parametrize("add_bos", [False, True])
def test_the_boundary_is_stable(add_bos: bool) -> None:
    tokenizer = tiny_tokenizer(add_bos=add_bos)
    # " the" is one token of this tokenizer and "the" splits otherwise: tokenised as one text, the boundary would move.
    row = {"prompt": "They said that t", "chosen": "he weather is cold", "rejected": "hey are wrong"}
    pair = tokenize_pair(row, tokenizer)
    assert pair.prompt_ids == tokenizer(row["prompt"])["input_ids"]
    assert pair.prompt_ids.count(BOS_ID) == add_bos and (pair.prompt_ids[0] == BOS_ID) == add_bos
    for side, ids in (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids)):
        assert ids == tokenizer(row[side], add_special_tokens=False)["input_ids"]
        assert BOS_ID not in ids and EOS_ID not in ids
        assert tokenizer.decode(ids) == row[side]
    whole = tokenizer(row["prompt"] + row["chosen"])["input_ids"]
    assert whole != pair.prompt_ids + pair.chosen_ids  # the example is one where it matters
    batch = PairCollator(pad_token_id=0)([pair])
    starts = batch["continuation_mask"].int().argmax(1)
    assert starts.tolist() == [len(pair.prompt_ids)] * 2


def test_a_tokenizer_that_closes_every_text_does_not_close_the_prompt() -> None:
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS_ID), ("<eos>", EOS_ID)]
    )
    assert tokenizer("The town")["input_ids"][-1] == EOS_ID
    prompt_ids = encode_prompt(tokenizer, "The town")
    assert prompt_ids[0] == BOS_ID and EOS_ID not in prompt_ids
    assert encode_prompt(tokenizer, "The town<eos>")[-1] == EOS_ID  # the user's own stays


@pytest.mark.parametrize("add_bos", [False, True])
def test_truncation_keeps_the_end_of_the_prompt_and_the_bos(add_bos: bool) -> None:
    tokenizer = tiny_tokenizer(add_bos=add_bos)
    row = {
        "prompt": "The history of the town is its river",
        "chosen": " and its people",
        "rejected": " and silly fools",
    }
    whole = tokenize_pair(row, tokenizer)
    short = tokenize_pair(row, tokenizer, max_prompt_length=4, max_completion_length=2)
    assert len(short.prompt_ids) == 4 and len(whole.prompt_ids) > 5
    if add_bos:
        assert short.prompt_ids == [BOS_ID, *whole.prompt_ids[-3:]]
        assert tokenize_pair(row, tokenizer, max_prompt_length=1).prompt_ids == [BOS_ID]
    else:
        assert short.prompt_ids == whole.prompt_ids[-4:]
    assert short.chosen_ids == whole.chosen_ids[:2] and short.rejected_ids == whole.rejected_ids[:2]
    assert tokenize_pair(row, tokenizer, max_prompt_length=len(whole.prompt_ids)) == whole


def test_an_empty_prompt_still_has_a_token_to_predict_from() -> None:
    row = GOOD | {"prompt": ""}
    assert tokenize_pair(row, tiny_tokenizer()).prompt_ids == [BOS_ID]
    assert tokenize_pair(row, tiny_tokenizer(add_bos=True)).prompt_ids == [BOS_ID]
    assert tokenize_pair(row, tiny_tokenizer(bos_token=None)).prompt_ids == [EOS_ID]
    with pytest.raises(UserError, match="the prompt has no tokens and the tokenizer no BOS or EOS"):
        tokenize_pair(row, tiny_tokenizer(bos_token=None, eos_token=None))


def test_a_continuation_without_tokens() -> None:
    with pytest.raises(UserError, match="chosen has no tokens under this tokenizer: ' was cold'"):
        tokenize_pair(GOOD, tiny_tokenizer(), max_completion_length=0)


def test_a_continuation_gets_no_invented_space() -> None:
    """SentencePiece-style tokenizers put a space before every text; a continuation stands as it is."""
    from tokenizers import pre_tokenizers

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert tokenizer.decode(tokenizer("cheese")["input_ids"]) == " cheese"
    assert tokenizer.decode(encode_continuation(tokenizer, "cheese")) == "cheese"
    assert tokenizer.decode(encode_continuation(tokenizer, " cheese")) == " cheese"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=20))
def test_any_text_survives_as_a_continuation(text: str) -> None:
    tokenizer = tiny_tokenizer()
    if any(str(token) in text for token in tokenizer.all_special_tokens):
        return
    assert tokenizer.decode(encode_continuation(tokenizer, text)) == text


@pytest.mark.parametrize("add_bos", [False, True])
def test_conversations_go_through_the_chat_template(add_bos: bool) -> None:
    tokenizer = tiny_tokenizer(add_bos=add_bos)
    tokenizer.chat_template = "{{ bos_token }}" + str(tokenizer.chat_template)
    pair = tokenize_pair(CHAT, tokenizer)
    assert pair.prompt_ids.count(BOS_ID) == 1  # the template's own, not a second one of the tokenizer
    text = tokenizer.decode(pair.prompt_ids, skip_special_tokens=False)
    assert text == "<bos><|user|>\nHow is the weather?<eos>\n<|assistant|>\n"
    assert tokenizer.decode(pair.chosen_ids, skip_special_tokens=False) == "It is cold.<eos>\n"
    assert tokenizer.decode(pair.rejected_ids, skip_special_tokens=False) == "Look, you fool.<eos>\n"


def test_conversations_without_a_chat_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="the pairs are conversations but the tokenizer has no chat template"):
        tokenize_pair(CHAT, tokenizer)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] }}{% endfor %}{{ messages | length }}"
    )
    with pytest.raises(UserError, match="does not continue its own generation prompt with chosen"):
        tokenize_pair(CHAT, tokenizer)
