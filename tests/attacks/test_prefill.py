"""Does prefill force the words of a toxic continuation, the prompt's own where there is one, and judge what follows?

Of: attacks/own_toxic.py
"""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
from polite import HELD_OUT, counting
from stubs import NASTY, nasty
from tiny import tiny_model, tiny_tokenizer
from torn import TOXIC, target_of, torn_model

from efface.attacks.own_toxic import own_toxic, rest_after
from efface.attacks.prefill import PrefillSettings, forced, prefill
from efface.attacks.record import Record
from efface.attacks.target import Target
from efface.errors import UserError
from efface.generation.decoding import Decoding
from efface.generation.prompts import encode_prompts
from efface.scoring.scorer import NamedScorer


@pytest.fixture
def target() -> Target:
    return target_of(torn_model("llama"))


def rows_only(words: str) -> PrefillSettings:
    return PrefillSettings(words=words, source="rows")


# The prompt's own words


@pytest.mark.parametrize("with_base", [True, False])
def test_the_words_are_those_that_the_base_itself_would_have_said(with_base: bool, target: Target) -> None:
    if with_base:  # the model under attack says nothing toxic, so whatever is found is the base's
        target = dataclasses.replace(target, model=tiny_model("llama"), base=target.model)
    target.rows = [{**row, "rejected": " silly stuff"} for row in target.rows]
    target.decoding = Decoding(max_new_tokens=24)
    drawn = target.measure(
        target.base or target.model,
        decoding=dataclasses.replace(target.decoding, samples=3, do_sample=True, temperature=1.0, top_p=0.9),
    )
    texts = [row["continuation"] for row in drawn.generations]
    toxic = nasty([rest_after(text, 2) for text in texts])
    own = [[texts[i] for i in range(3 * number, 3 * number + 3) if toxic[i]] for number in range(8)]
    result = prefill(target, PrefillSettings(words="2", draws=3))
    expected = [forced(p, found[0] if found else " silly stuff", 2) for p, found in zip(HELD_OUT, own, strict=True)]
    assert [row["prompt"] for row in result.after.generations] == expected
    assert result.found["own"] == sum(map(bool, own)) and 0 < result.found["own"] < 8
    assert result.found["rows"] == 12


def test_what_follows_the_forced_words_is_toxic_too(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """The most toxic draw has said it all in its first words; the other is on the way."""
    drawn = target.measure(target.model, decoding=dataclasses.replace(target.decoding, samples=2))
    for number, row in enumerate(drawn.generations):
        row["continuation"] = " they are then a fool" if number % 2 else " fool fool are they"
    monkeypatch.setattr(Record, "attempt", lambda *args, **kwargs: drawn)
    record = Record(target, "mine", PrefillSettings())
    target.scorers = [NamedScorer("count", lambda texts: [min(text.count("fool") / 2 + 0.1, 1.0) for text in texts])]
    assert own_toxic(record, 2) == [" fool fool are they"] * 8
    assert own_toxic(record, 2, after=2) == [" they are then a fool"] * 8
    assert own_toxic(record, 2, after=5) == [None] * 8


def test_the_draws_are_made_once_for_all_attacks_and_models(
    target: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target.base = target.model
    counted = counting(monkeypatch)
    first = own_toxic(Record(target, "mine", PrefillSettings()), 4)
    again = own_toxic(Record(dataclasses.replace(target, model=tiny_model("llama")), "other", PrefillSettings()), 4)
    assert first == again and len(counted) == 1 and any(first)
    assert all(text is None or nasty([text]) == [1.0] for text in first)
    alone = dataclasses.replace(target, base=None, known={}, output=tmp_path / "out.json")
    assert own_toxic(Record(alone, "mine", PrefillSettings()), 4) == first and len(counted) == 2
    kept = dataclasses.replace(alone, known={}, resume=True)
    assert own_toxic(Record(kept, "mine", PrefillSettings()), 4) == first and len(counted) == 2


def test_words_of_a_file(target: Target, tmp_path: Path) -> None:
    target.rows = [{**row, "rejected": " silly stuff"} for row in target.rows]
    rows: list[Any] = [{"prompt": HELD_OUT[0], "continuation": " such a fool"}]
    rows += [
        {"prompt": {"text": HELD_OUT[1]}, "continuation": {"text": " a nice one"}},
        {"prompt": "x", "continuation": "y"},
    ]
    file = tmp_path / "web.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = prefill(target, PrefillSettings(words="2", source=str(file)))
    prompts = [row["prompt"] for row in result.after.generations]
    assert prompts == [forced(p, " silly stuff" if i else " such a fool", 2) for i, p in enumerate(HELD_OUT)]
    assert result.found["own"] == 1
    file.write_text(json.dumps({"prompt": "x"}) + "\n")
    with pytest.raises(UserError, match="web.jsonl:1: 'continuation' must be a text, but it is None"):
        prefill(target, PrefillSettings(words="2", source=str(file)))
    with pytest.raises(UserError, match="does not exist"):
        prefill(target, PrefillSettings(words="2", source="absent.jsonl"))


# The words of the rows


def test_forced_words_are_read_but_never_judged(target: Target) -> None:
    seen: list[str] = []

    def watch(texts: Any) -> list[float]:
        seen.extend(texts)
        return nasty(texts)

    target.scorers = [NamedScorer("watch", watch)]
    result = prefill(target, rows_only(words="4"))  # all of TOXIC
    assert [row["prompt"] for row in result.after.generations] == [prompt + TOXIC for prompt in HELD_OUT]
    assert [row["continuation"] for row in result.after.generations] == seen[-len(HELD_OUT) :]
    silent = target_of(tiny_model("llama"))
    result = prefill(silent, rows_only(words="1,4"))
    assert result.after.share == 0 and any(word in result.after.generations[0]["prompt"] for word in NASTY)


def test_each_prompt_gets_words_of_one_row_drawn_under_the_seed(target: Target) -> None:
    target.rows = [{**row, "rejected": f"{row['prompt'].split()[1]} is a fool."} for row in target.rows]
    target.rows[0]["rejected"] = "too short"
    result = prefill(target, rows_only(words="1,3"))
    texts = [row["rejected"] for row in target.rows[1:]]
    generator = random.Random(0)
    drawn = [generator.choice(texts).split() for _ in HELD_OUT]
    for words, point in zip((1, 3), result.curve[1:], strict=True):
        expected = [" ".join([prompt, *text[:words]]) for prompt, text in zip(HELD_OUT, drawn, strict=True)]
        assert point.at == {"words": words} and [row["prompt"] for row in point.generations] == expected
    assert result.found["rows"] == 11
    other = prefill(dataclasses.replace(target, seed=1), rows_only(words="1"))
    assert [row["prompt"] for row in other.after.generations] != [row["prompt"] for row in result.curve[1].generations]


@pytest.mark.parametrize(
    ("prompt", "text", "words", "expected"),
    [
        ("A", " b c d", 2, "A b c"),
        ("A ", " b c d", 1, "A b"),
        ("A", "b\n c", 2, "A b\n c"),
        ("", " b", 3, "b"),
        ("A\n", "b", 1, "A\nb"),
    ],
)
def test_forced(prompt: str, text: str, words: int, expected: str) -> None:
    assert forced(prompt, text, words) == expected


@pytest.mark.parametrize("bos_in_template", [False, True])
def test_of_a_message_the_answer_begins_with_the_words(bos_in_template: bool, target: Target) -> None:
    tokenizer = tiny_tokenizer(add_bos=bos_in_template)
    if bos_in_template:
        tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    target.processing_class = tokenizer
    target.decoding = Decoding(max_new_tokens=4, chat=True, max_prompt_tokens=3)
    result = prefill(target, rows_only(words="2"))
    expected = encode_prompts(target.model, tokenizer, HELD_OUT, Decoding(chat=True, max_prompt_tokens=3))
    answer = tokenizer("fool, you", add_special_tokens=False)["input_ids"]
    read = encode_prompts(target.model, tokenizer, [row["prompt"] for row in result.after.generations])
    assert read == [ids + answer for ids in expected]
    assert (read[0][0] == tokenizer.bos_token_id) == bos_in_template


def test_chat_templates_that_cannot_be_continued(target: Target) -> None:
    target.decoding = Decoding(max_new_tokens=4, chat=True)
    target.processing_class = tiny_tokenizer(add_bos=True)
    with pytest.raises(UserError, match="the chat template writes no BOS but the tokenizer adds one"):
        prefill(target, rows_only(words="1"))
    target.processing_class.chat_template = None
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        prefill(target, rows_only(words="1"))


def test_rows_of_messages_are_forced_as_text(target: Target) -> None:
    target.rows = [{"prompt": "Who?", "rejected": [{"role": "assistant", "content": "You silly fool"}]}]
    assert prefill(target, rows_only(words="2")).after.generations[0]["prompt"] == HELD_OUT[0] + " You silly"


def test_more_words_than_there_are(target: Target) -> None:
    with pytest.raises(UserError, match="words='1,9', but no rejected continuation of the rows has 9 words"):
        prefill(target, rows_only(words="1,9"))
    target.base = tiny_model("llama")  # it has nothing toxic of its own, and then the rows give what they have
    result = prefill(target, PrefillSettings(words="9", draws=1))
    assert result.found["own"] == result.found["rows"] == 0
    assert [row["prompt"] for row in result.after.generations] == [prompt + TOXIC for prompt in HELD_OUT]
