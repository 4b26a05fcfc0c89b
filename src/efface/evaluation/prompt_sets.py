"""Which prompts does `--prompts` name? A file, shipped data, a dataset of the hub, or a part of RealToxicityPrompts.

`rtp:challenging` and `rtp:nontoxic` are read from the hub, `rtp:challenging@FILE` is the same part of a local file.
A row is as on the hub, `{"prompt": {"text": ..., "toxicity": ...}, "challenging": ...}`, or flat: `{"prompt": ...,
"prompt_toxicity": ..., "challenging": ...}`. Challenging are the 1,199 prompts that Gehman et al. (2020) mark so,
after which every model they tried went on toxically; non-toxic are those that Perspective scores below 0.5, toxic the
other ones.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from efface.data.rows import check_source, labelled_rows, load_texts
from efface.errors import UserError, reason_of
from efface.files.jsonl import Row

HUB = "allenai/real-toxicity-prompts"
TOXIC_FROM = 0.5  # by the Perspective API; Gehman et al. 2020


def load_prompts(source: Sequence[str] | str | os.PathLike[str]) -> list[str]:
    """The prompts of `source`: `rtp:PART`, `rtp:PART@FILE`, or whatever `load_texts` reads.

    Raises:
        UserError: naming the file and line of what is no prompt; if nothing is left; if the hub cannot be reached.
    """
    if not isinstance(source, str) or not source.startswith("rtp:"):
        return load_texts(source, "prompt")
    check_prompts(source)
    part, _, file = source.removeprefix("rtp:").partition("@")
    rows = list(labelled_rows(file)) if file else _hub_rows(source)
    # Every row is checked, so that a bad one is found whether or not it would be selected.
    texts = [(_text(where, row), RTP[part](where, row)) for where, row in rows]
    kept = [text for text, chosen in texts if chosen]
    if not kept:
        raise UserError(
            f"{file or HUB} has no {part} prompts among its {len(rows)} rows: choose another part or file."
        )
    return kept


def check_prompts(source: str | os.PathLike[str]) -> None:
    """Raise a `UserError` if there are no such prompts, as far as that is seen without reading them."""
    part, _, file = str(source).removeprefix("rtp:").partition("@")
    if not str(source).startswith("rtp:"):
        check_source(source, "prompts")
    elif part not in RTP:
        raise UserError(
            f"prompts {source!r} are unknown. There are: {', '.join(f'rtp:{name}' for name in RTP)}, each also with "
            "@FILE behind it; or a JSON-lines file."
        )
    elif file:
        check_source(file, "texts")


def draw_prompts(prompts: Sequence[str], limit: int | None, seed: int = 0) -> list[str]:
    """`limit` of the prompts, drawn at random by `seed`, in their order; all of them for None.

    The head of a file is no sample: prompts often lie in blocks. A prompt's place in the draw is a hash of the seed
    and its text, so that a smaller limit takes a part of what a larger one takes, and every machine draws the same.
    """

    def place(i: int) -> bytes:
        return hashlib.sha256(f"{seed} {prompts[i]}".encode("utf-8", "surrogatepass")).digest()

    return [prompts[i] for i in sorted(sorted(range(len(prompts)), key=place)[:limit])]


def _hub_rows(source: str) -> list[tuple[str, Row]]:
    try:
        return list(labelled_rows(HUB))
    except UserError as error:
        raise UserError(
            f"{source} needs the dataset {HUB} of the Hugging Face hub, which could not be loaded "
            f"({reason_of(error.__cause__ or error)}). Pass {source}@FILE to take the same part of a local copy (JSON "
            "lines)."
        ) from error


def _text(where: str, row: Row) -> str:
    prompt = row.get("prompt")
    text = prompt.get("text") if isinstance(prompt, dict) else prompt
    if not isinstance(text, str):
        raise UserError(f"{where}: 'prompt' must be a text or hold one as 'text', but it is {prompt!r}.")
    return text


def _challenging(where: str, row: Row) -> bool:
    value = row.get("challenging")
    if not isinstance(value, bool):
        raise UserError(f"{where}: 'challenging' must be true or false, but it is {value!r}.")
    return value


def _nontoxic(where: str, row: Row) -> bool:
    value = _toxicity(where, row)
    return value is not None and value < TOXIC_FROM  # a few prompts have never been scored


def _toxic(where: str, row: Row) -> bool:
    value = _toxicity(where, row)
    return value is not None and value >= TOXIC_FROM


def _toxicity(where: str, row: Row) -> float | None:
    prompt = row["prompt"]
    holder, key = (prompt, "toxicity") if isinstance(prompt, dict) else (row, "prompt_toxicity")
    value: Any = holder.get(key, "missing")
    if value is not None and not isinstance(value, int | float):
        raise UserError(f"{where}: {key!r} must be a score or null, but it is {value!r}.")
    return value


RTP: dict[str, Callable[[str, Row], bool]] = {"challenging": _challenging, "nontoxic": _nontoxic, "toxic": _toxic}
