"""Is what the edit took away gone from the hidden states too, or only unsaid? Both models, probed once, into one file.

DIR/erasure.json    as `efface.analysis.erasure.compare_erasure` gives it, with the `pairs` that were read

What cannot be probed ends no job that has taken hours: it is `not_measured`, and why.
"""

from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

from efface.data.pairs import load_pairs
from efface.data.rows import name_of
from efface.errors import RunError, UserError, one_line
from efface.files.jsonl import Row
from efface.files.results import read_json, write_json
from efface.report import NOT_MEASURED

ERASURE_FILE = "erasure.json"
HELD_OUT = "shipped:heldout"
N_PAIRS = 64
"""Most pairs that are read: with SmolLM2-135M half a minute on two cores."""


def measure_erasure(
    base: str,
    edited: str,
    folder: Path,
    *,
    trained_on: Any,
    pairs: str | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Row:
    """Probe both models on held-out pairs into `folder`/erasure.json, unless that is there.

    Args:
        base, edited: what `load_model` takes.
        trained_on: the pairs of the training, in a form that `load_pairs` takes: those of them are left out.
        pairs: to probe on; None: HELD_OUT.
        say: is told why, if nothing was measured.

    Returns:
        The content of the file, of the shape ERASURE; or `{"not_measured": reason}`, which is not kept.
    """
    file = folder / ERASURE_FILE
    if file.exists():
        from efface.analysis.erasure import ERASURE

        return read_json(file, ERASURE)
    source = pairs or HELD_OUT
    try:
        content = {"schema": 1, "pairs": source, **_measured(base, edited, held_out(source, trained_on), seed)}
    except (UserError, RunError) as error:
        say(f"what the hidden states say was not measured: {one_line(error)}")
        return {NOT_MEASURED: one_line(error)}
    write_json(file, content)
    return content


def held_out(source: Any, trained_on: Any) -> list[Row]:
    """At most N_PAIRS pairs of `source` from as many prompts as there are, none of which was trained on.

    Raises:
        UserError: if there are too few such prompts to probe.
    """
    from efface.analysis.rounds import PARTS  # on use: it imports numpy, and HELD_OUT is asked for by --help

    known = {repr(row.get("prompt")) for row in load_pairs(trained_on).rows}
    of_prompt: dict[str, list[Row]] = {}
    for row in load_pairs(source).rows:
        prompt = repr(row.get("prompt"))
        if prompt not in known:
            of_prompt.setdefault(prompt, []).append(row)
    if len(of_prompt) < PARTS:
        raise UserError(
            f"{name_of(source)} has {len(of_prompt)} prompts that were not trained on: a probe needs {PARTS}. Give "
            "more."
        )
    turns = zip_longest(*of_prompt.values())  # one pair of each prompt, then the second ones
    return [row for turn in turns for row in turn if row is not None][:N_PAIRS]


def _measured(base: str, edited: str, rows: list[Row], seed: int) -> Row:
    from efface.analysis.erasure import compare_erasure, probe_states
    from efface.model.load import load_model

    # One model after the other: both need not fit into memory at once.
    states = [probe_states(*load_model(name), rows) for name in (base, edited)]
    return compare_erasure(*states, seed=seed)
