"""Is every form in which TRL takes a preference pair read, and is what is wrong with a row said by turn and key?"""

import json
from typing import Any

import pytest

from efface.data.pairs import load_pairs
from efface.data.preferences import check_row
from efface.errors import UserError

USER = {"role": "user", "content": "How is the weather?"}
COLD = {"role": "assistant", "content": "It is cold."}
FOOL = {"role": "assistant", "content": "Look, you fool."}
PAIR = {"prompt": [USER], "chosen": [COLD], "rejected": [FOOL]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


def parts(row: Any) -> dict[str, Any]:
    return {field: check_row(row, "here")[field] for field in ("prompt", "chosen", "rejected")}


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {"chosen": [USER, COLD], "rejected": [USER, FOOL]},  # ultrafeedback
        {"prompt": USER["content"], "chosen": [USER, COLD], "rejected": [USER, FOOL]},  # and its prompt beside it
        {"prompt": USER["content"], "chosen": [COLD], "rejected": [FOOL]},
        {"prompt": [USER], "chosen": [USER, COLD], "rejected": [USER, FOOL]},
        {"prompt": None, "chosen": [USER, COLD], "rejected": [USER, FOOL]},
    ],
)
def test_a_conversation_in_any_form(row: dict[str, Any]) -> None:
    assert parts(row) == PAIR


TEXTS = [
    ("\n\nHuman: Is it cold?\n\nAssistant: It is cold.", "\n\nHuman: Is it cold?\n\nAssistant: You fool."),
    ("The man said yes", "The man said no"),
    ("The car", "The cat"),
    ("The man", "The man said"),
    ("a b", "a c"),
]


@pytest.mark.parametrize(("chosen", "rejected"), TEXTS)
def test_the_prompt_that_two_texts_share_is_trls(chosen: str, rejected: str) -> None:
    trl = pytest.importorskip("trl.data_utils")
    given = {"chosen": chosen, "rejected": rejected}
    assert parts(given) == trl.extract_prompt(given)


def test_the_prompt_that_two_texts_share() -> None:
    row = {"chosen": "The man said yes", "rejected": "The man said no"}
    assert parts(row) == {"prompt": "The man said", "chosen": " yes", "rejected": " no"}


def test_turns_that_both_sides_share_belong_to_the_prompt() -> None:
    more = [COLD, {"role": "user", "content": "And there?"}]
    row = {"prompt": [USER], "chosen": [*more, COLD], "rejected": [*more, FOOL]}
    assert parts(row) == {"prompt": [USER, *more], "chosen": [COLD], "rejected": [FOOL]}


def test_content_in_parts_and_tool_calls_without_any() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]}
    asked = {"role": "user", "content": [{"type": "text", "text": "How is "}, {"type": "text", "text": "it?"}]}
    row = {"prompt": [asked], "chosen": [call], "rejected": [FOOL | {"tool_calls": None}]}
    found = parts(row)
    assert found["prompt"] == [{"role": "user", "content": "How is it?"}]
    assert found["chosen"] == [call | {"content": ""}]
    assert found["rejected"] == [FOOL]  # a key that a table has filled with nothing is none


def test_tools_and_settings_of_the_template_may_be_json_in_a_text() -> None:
    row = check_row(PAIR | {"tools": json.dumps(TOOLS), "chat_template_kwargs": '{"thinking": false}'}, "here")
    assert row["tools"] == TOOLS and row["chat_template_kwargs"] == {"thinking": False}
    assert check_row(PAIR | {"tools": TOOLS}, "here")["tools"] == TOOLS


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "turn": ({"chosen": ["It is cold."]}, "field 'chosen', turn 1 is str; a chat message is needed"),
    "role": ({"chosen": [{"content": "x"}]}, "field 'chosen', turn 1: 'role' is missing; it must be a text"),
    "number": ({"prompt": [USER, COLD, {"role": 3, "content": "x"}]}, "field 'prompt', turn 3: 'role' is int"),
    "no content": ({"chosen": [{"role": "assistant"}]}, "turn 1: 'content' is missing or null; it must be text"),
    "content": ({"chosen": [COLD | {"content": 3}]}, "field 'chosen', turn 1: 'content' is int"),
    "image": ({"prompt": [USER | {"content": [{"type": "image"}]}]}, "turn 1, part 1 is of type 'image'"),
    "users turn": (
        {"chosen": [COLD, {"role": "user", "content": "Why?"}, COLD]},
        "field 'chosen', turn 2 is of role 'user': a continuation is what the model itself says",
    ),
    "no shared turn": ({"prompt": None}, "field 'prompt' is missing, and chosen and rejected have no beginning"),
    "text and turns": ({"rejected": "You fool."}, "must be all text or all lists of chat messages"),
    "tools": ({"tools": "no JSON"}, "field 'tools' must be a list of tools"),
    "kwargs": ({"chat_template_kwargs": [1]}, "field 'chat_template_kwargs' must be an object"),
    "surrogate": ({"chosen": [COLD | {"content": "It is \ud83d"}]}, "field 'content' holds half of a character"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_wrong_is_named(kind: str) -> None:
    change, message = BAD[kind]
    with pytest.raises(UserError, match=f"^row 0: .*{message}"):
        load_pairs([PAIR | change])
    pairs = load_pairs([PAIR | change, PAIR], skip_bad_rows=True)
    assert (len(pairs), pairs.skipped) == (1, 1)


def test_a_text_beside_conversations_that_ask_nothing_is_the_question() -> None:
    system, answers = {"role": "system", "content": "Be brief."}, [{"role": "assistant", "content": x} for x in "yn"]
    row = check_row({"prompt": "Is it?", "chosen": [system, answers[0]], "rejected": [system, answers[1]]}, "row 0")
    assert row["prompt"] == [system, {"role": "user", "content": "Is it?"}]
    assert (row["chosen"], row["rejected"]) == ([answers[0]], [answers[1]])


def test_a_column_of_pair_toxicity_replaces_no_standard_one() -> None:
    row = check_row({"prompt": "mine", "prompt_text": "another", "chosen": "y", "rejected": "n"}, "row 0")
    assert (row["prompt"], row["prompt_text"]) == ("mine", "another")
