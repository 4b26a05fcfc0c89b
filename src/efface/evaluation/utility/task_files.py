"""Which utility tasks are asked for? Names of lm-evaluation-harness's own, or JSON lines {"query", "choices", "gold"}.

`gold` counts the choices from 0. What stands between query and choice is the file's `delimiter`, in place of any white
space at the end of the query. Unless it is given, it is decided row by row: a query that begins with "Question:" and
has no "Answer:" gets "\\nAnswer: ", any other one a space. For ARC, PIQA, OpenBookQA and COPA in the form of
mosaicml/llm-foundry this gives the prompts of lm-eval's own tasks, and llm-foundry's own delimiters.
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from efface.data.rows import labelled_rows
from efface.errors import UserError
from efface.files.io import is_regular_file
from efface.files.jsonl import Row
from efface.files.shapes import shown

ANSWER = "\nAnswer: "


@dataclass(frozen=True)
class TaskFile:
    """The checked rows of a task file."""

    name: str
    """The file's name without its folder."""
    rows: list[Row]
    delimiter: str | None = None
    """Between query and choice; None decides by the query, see the top of this file."""

    def context(self, query: str) -> str:
        """What the model reads before a choice."""
        query = query.rstrip()
        if self.delimiter is not None:
            return query + self.delimiter
        return query + (ANSWER if query.startswith("Question:") and "Answer:" not in query else " ")


def read_task_file(path: str | os.PathLike[str], *, delimiter: str | None = None) -> TaskFile:
    """The rows of a task file, all of them checked.

    Raises:
        UserError: naming file, line and field of what is wrong.
    """
    rows = [_check_row(where, row) for where, row in labelled_rows(path)]
    if not rows:
        raise UserError(f"task file {os.fspath(path)!r} is empty: pass rows with query, choices and gold.")
    return TaskFile(Path(path).name, rows, delimiter)


def _check_row(where: str, row: Row) -> Row:
    for field in ("query", "choices", "gold"):
        if field not in row:
            found = ", ".join(map(repr, row)) or "nothing"
            raise UserError(f"{where}: field {field!r} is missing (found {found}). A row has query, choices and gold.")
    query, choices, gold = row["query"], row["choices"], row["gold"]
    if not isinstance(query, str) or not query.strip():
        raise UserError(f"{where}: 'query' must be a text that is not blank, but it is {shown(query)}.")
    if not isinstance(choices, list) or len(choices) < 2:
        raise UserError(f"{where}: 'choices' must be a list of at least two texts, but it is {shown(choices)}.")
    for number, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice.strip():
            raise UserError(
                f"{where}: 'choices' {number} must be a text that is not blank, but it is {shown(choice)}."
            )
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
        raise UserError(
            f"{where}: 'gold' must be the number of the right choice, 0 to {len(choices) - 1}, but it is "
            f"{shown(gold)}."
        )
    return {"query": query, "choices": choices, "gold": gold}


def load_tasks(tasks: Sequence[str | os.PathLike[str] | TaskFile]) -> list[str | TaskFile]:
    """Names of lm-eval's tasks as they are, and files read: whatever can be said before a model is loaded.

    A file is whatever exists as one, ends in .jsonl or .json, or is a path object.

    Raises:
        UserError: if lm-eval is not installed, there are no tasks or one appears twice, or a file is malformed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("utility needs lm-evaluation-harness, which is not installed: pip install lm-eval.")
    chosen: list[str | TaskFile] = []
    names: set[str] = set()
    for task in tasks:
        if isinstance(task, str) and not task.endswith((".jsonl", ".json")) and not is_regular_file(task):
            found: str | TaskFile = task
        else:
            found = task if isinstance(task, TaskFile) else read_task_file(task)
        name = found if isinstance(found, str) else found.name
        if name in names:
            raise UserError(f"task {name!r} is given twice: name each once (files are told apart by their names).")
        names.add(name)
        chosen.append(found)
    if not chosen:
        raise UserError("no tasks: name at least one task of lm-eval or a file of JSON lines.")
    return chosen
