"""What did an evaluated model write, and what does each judge say of it? The rows beside a result, checked.

The rows of a prompt follow each other, as many as the result says.
"""

from efface.errors import UserError
from efface.evaluation.baseline import GENERATION
from efface.evaluation.result import judges_of
from efface.export.source import Measured
from efface.files.jsonl import Row, read_jsonl
from efface.files.shapes import check_shape


def read_generations(measured: Measured) -> list[Row] | None:
    """The rows beside an evaluation, each with the `scores` of all judges; None where there is no such file.

    Raises:
        UserError: if they are not those that the result is of.
    """
    file = measured.generations
    if file is None or not file.exists():
        return None
    rows = read_jsonl(file)
    check_shape(rows, [GENERATION], str(file))
    toxicity = measured.found["toxicity"]
    expected = toxicity["n_prompts"] * toxicity["samples"]
    if len(rows) != expected:
        raise UserError(
            f"{file} has {len(rows)} rows, and {measured.file} is of {expected}: they were not written together. "
            "Evaluate again, or move the rows away to export the figures alone."
        )
    judges = judges_of(measured.found)
    for number, row in enumerate(rows, 1):
        if "scores" not in row and "score" in row:
            row["scores"] = {toxicity["scorer"]: row["score"]}
        missing = [judge for judge in judges if judge not in row.get("scores", {})]
        if missing:
            raise UserError(f"{file}:{number}: no score of {missing[0]!r}, which {measured.file} has. Evaluate again.")
    return rows


def place_of(number: int, samples: int) -> tuple[int, int]:
    """Of the row at a place, from 0: its prompt and which continuation of that it is, both from 1."""
    return number // samples + 1, number % samples + 1
