"""Is a row a preference pair, and in which of TRL's forms? Brought into one: prompt, chosen and rejected, each a text
or each a list of chat messages with text in them.

The prompt may also be implicit, the beginning that chosen and rejected share (`trl.data_utils.extract_prompt`), or a
text beside message lists. Messages may hold their text in parts, or nothing beside their tool calls. The columns
`tools` and `chat_template_kwargs` are what the chat template gets; other columns are kept.
"""

import json
import re
from typing import Any

from efface.errors import UserError, one_line
from efface.files.jsonl import Row, unreadable

QUOTED = 300
"""Characters of a row's names in an error."""
SIDES = ("chosen", "rejected")
FIELDS = ("prompt", *SIDES)
# The columns of PairToxicity (Lee et al. 2024) and what they are called here.
PAIR_TOXICITY = {"prompt_text": "prompt", "unpert_gen_text": "chosen", "pert_gen_text": "rejected"}
OTHERS = ("user", "human", "system", "developer", "tool", "function", "ipython")
"""Roles that write no answers: their turns are no continuation."""
SETTING = ("system", "developer")
"""Roles that ask nothing."""

_IDENTICAL = (
    "chosen and rejected are identical, so nothing can be learned from them. Drop the row or train with "
    "skip_bad_rows=True."
)

MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](role|content)["']\s*:""")
"""How a text begins that is a list of chat messages, as JSON or as Python writes it."""

Turn = dict[str, Any]
"""A chat message."""


def check_row(raw: Any, where: str) -> Row:
    """The row under its standard column names, or a `UserError` that begins with `where`."""
    if isinstance(raw, UserError):
        raise raw
    if not isinstance(raw, dict):
        raise UserError(f"{where}: a row must be a JSON object with {', '.join(FIELDS)}, not {type(raw).__name__}.")
    try:
        row = _settings({_standard(key, raw): value for key, value in raw.items()})
        row |= {field: _conversation(row[field], field) for field in FIELDS if field in row}
        missing = [field for field in FIELDS if field not in row]
        if missing not in ([], ["prompt"]):  # which may be implicit
            there = one_line(", ".join(map(repr, row)), QUOTED) or "nothing"
            raise UserError(
                f"field {missing[0]!r} is missing (found {there}). Add it or train with skip_bad_rows=True."
            )
        for field in SIDES:
            row[field] = _readable(row[field], field)
        if row.get("prompt") is not None:
            row["prompt"] = _readable(row["prompt"], "prompt")
        elif row["chosen"] == row["rejected"]:
            raise UserError(_IDENTICAL)
        row |= dict(zip(FIELDS, _parts(row.get("prompt"), row["chosen"], row["rejected"]), strict=True))
        _raise_if_useless(row)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error.__cause__
    return row


def _standard(key: Any, raw: dict[Any, Any]) -> Any:
    """What a column is called here; a column that has that name already keeps it for itself."""
    name = PAIR_TOXICITY.get(key, key)
    return key if name in raw else name


def _conversation(value: Any, field: str) -> Any:
    """The messages that a CSV has as JSON in a text; anything else as it is.

    Raises:
        UserError: for messages as Python writes them, as a data frame's `to_csv` does.
    """
    if not isinstance(value, str) or not MESSAGES.match(value):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"field {field!r} holds chat messages as a text that is no JSON. Write the rows as JSON lines or parquet."
        ) from error


def text_of(value: str | list[Turn]) -> str:
    """The text of a continuation, or of its messages."""
    return value if isinstance(value, str) else "".join(turn["content"] for turn in value)


def _parts(prompt: Any, chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected, of one kind and without what one repeats of another."""
    if isinstance(chosen, str) != isinstance(rejected, str) or (isinstance(chosen, str) and isinstance(prompt, list)):
        raise UserError("prompt, chosen and rejected must be all text or all lists of chat messages.")
    if isinstance(chosen, str) and prompt is not None:
        return prompt, chosen, rejected
    if prompt is None or isinstance(prompt, str):
        # As TRL does it: where the conversations begin with the prompt, its text beside them says nothing more.
        shared, *sides = _without_shared(chosen, rejected)
        if prompt is None and not shared:
            raise UserError(
                "field 'prompt' is missing, and chosen and rejected have no beginning in common that could be it. "
                "Add it or train with skip_bad_rows=True."
            )
        if isinstance(shared, str):
            return shared, sides[0], sides[1]
        # Of a conversation that begins with nobody's question, as with a system turn alone, the text is the question.
        asked = any(turn["role"] not in SETTING for turn in shared)
        return shared if asked else [*shared, {"role": "user", "content": prompt}], sides[0], sides[1]
    if chosen[: len(prompt)] == prompt == rejected[: len(prompt)]:  # the whole conversation beside its beginning
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    shared, *sides = _without_shared(chosen, rejected)
    if any(turn["role"] in OTHERS for turn in shared):  # both have gone on for some turns before they part
        return prompt + shared, sides[0], sides[1]
    return prompt, chosen, rejected


def _without_shared(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """The beginning that both share, and the rest of each; a space before the rest belongs to it.

    Of two of which one is the beginning of the other, the last character (or turn) of that one counts as different.
    """
    length = min(len(chosen), len(rejected))
    end = next((i for i in range(length) if chosen[i] != rejected[i]), max(length - 1, 0))
    if end and isinstance(chosen, str) and chosen[end - 1] == " " and chosen[end : end + 1] != rejected[end : end + 1]:
        end -= 1
    return chosen[:end], chosen[end:], rejected[end:]


def _raise_if_useless(row: Row) -> None:
    for field in SIDES:
        value = row[field]
        if isinstance(value, list):
            for number, turn in enumerate(value, start=1):
                if turn["role"] in OTHERS:
                    raise UserError(
                        f"field {field!r}, turn {number} is of role {turn['role']!r}: a continuation is what the "
                        "model itself says. Move what comes before the last answer into 'prompt', or make a row of "
                        "each answer."
                    )
        calls = isinstance(value, list) and any("tool_calls" in turn for turn in value)
        if not text_of(value).strip() and not calls:
            raise UserError(f"field {field!r} is empty. Give a continuation or train with skip_bad_rows=True.")
    if row["chosen"] == row["rejected"]:
        raise UserError(_IDENTICAL)


def _settings(row: Row) -> Row:
    """The row with `tools` and `chat_template_kwargs` as a chat template takes them; also from JSON in a text."""
    for name, kind, what in (("tools", list, "a list of tools"), ("chat_template_kwargs", dict, "an object")):
        if row.get(name) is None:
            continue
        value = row[name]
        try:
            value = json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, kind):
            raise UserError(f"field {name!r} must be {what}, or that as JSON. Correct it or leave it out.")
        row[name] = value
    return row


def _readable(value: Any, field: str) -> str | list[Turn]:
    if isinstance(value, str):
        problem = unreadable(value)
        if problem is not None:
            raise UserError(f"field {field!r} {problem}. Repair the text or train with skip_bad_rows=True.")
        return value
    if not isinstance(value, list):
        raise UserError(f"field {field!r} is {type(value).__name__}; it must be text or a list of chat messages.")
    if not value:
        raise UserError(f"field {field!r} is an empty list; it must be text or a list of chat messages.")
    return [_turn(turn, f"field {field!r}, turn {number}") for number, turn in enumerate(value, start=1)]


def _turn(turn: Any, place: str) -> Turn:
    """A message whose content is a text."""
    if not isinstance(turn, dict):
        raise UserError(
            f'{place} is {type(turn).__name__}; a chat message is needed, as in {{"role": "user", "content": "..."}}.'
        )
    # A table gives every message the keys of all, with nothing under those that it lacks.
    turn = {key: value for key, value in turn.items() if value is not None}
    if not isinstance(turn.get("role"), str):
        found = type(turn["role"]).__name__ if "role" in turn else "missing"
        raise UserError(f"{place}: 'role' is {found}; it must be a text, such as user or assistant.")
    content = turn.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, f"{place}, part {number}") for number, part in enumerate(content, start=1))
    if content is None and turn.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        found = "missing or null" if content is None else type(content).__name__
        raise UserError(f"{place}: 'content' is {found}; it must be text, or text in parts.")
    problem = unreadable(turn | {"content": content})
    if problem is not None:
        raise UserError(f"{place}: {problem}. Repair the text or train with skip_bad_rows=True.")
    return turn | {"content": content}


def _part(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = f"of type {part.get('type', 'text')!r}" if isinstance(part, dict) else type(part).__name__
    raise UserError(f"{place} is {kind} and holds no text: efface trains on text alone. Drop the row.")
