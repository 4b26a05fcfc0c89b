"""What became of the prompts of a build, and are the pairs that lie somewhere still those that it wrote?

PAIRS.jsonl         the rows
PAIRS.meta.json     the report: counts, figures, all settings, and a digest of the rows
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from efface.errors import UserError
from efface.files.digests import digest
from efface.files.jsonl import Row, read_jsonl
from efface.files.output import is_stamped
from efface.files.results import read_json
from efface.files.shapes import Each, Maybe, fill

REPORT = {"n_prompts": int, "counts": Each(int), "settings": dict, "limit": Maybe(int), "rows": Maybe(str)}


@dataclass
class BuildReport:
    """What became of the prompts."""

    n_prompts: int
    counts: dict[str, int]
    """`kept`, and for each reason how many prompts it cost."""
    keep_rate: float
    """Pairs that passed all filters, of all prompts that were tried."""
    pairs_per_minute: float
    """Of generation alone (`chosen` and the candidates), over all sessions of an interrupted build."""
    unfiltered: dict[str, Any] | None
    """Toxic share and perplexity before filtering; see `unfiltered_figures`."""
    style_auc: float | None
    """Held-out AUC of a classifier that sees style alone (case, punctuation, length, repetition); 0.5 is best."""
    shortcuts: dict[str, dict[str, float]]
    """Kind of character -> `chosen`, `rejected`: the share of the texts of that side with one; see `shortcuts`."""
    settings: dict[str, Any]
    environment: dict[str, Any]
    limit: int | None = None
    """What the build was asked to stop at."""
    rows: str | None = None
    """`rows_digest` of the pairs: by that a file is known that somebody has changed since."""

    def to_dict(self) -> dict[str, Any]:
        return {"schema": 1, **asdict(self)}


def report_path(pairs: Path) -> Path:
    """Where the report of pairs lies."""
    return pairs.with_suffix(".meta.json")


def report_of(pairs: Path) -> BuildReport:
    """The report of pairs that are there. Raises UserError if there is none."""
    return fill(BuildReport, read_json(report_path(pairs), REPORT))


def is_report(path: Path) -> bool:
    """Whether a build wrote this report."""
    return is_stamped(path, REPORT)


def is_pairs_file(pairs: Path) -> bool:
    """Whether a build wrote these pairs, and nobody has changed them since."""
    if not is_report(report_path(pairs)):
        return False
    report = report_of(pairs)
    try:
        rows = read_jsonl(pairs)
    except UserError:
        return False
    if report.rows is None:  # of an older version
        return len(rows) == report.counts.get("kept")
    return rows_digest(rows) == report.rows


def rows_digest(rows: Sequence[Row]) -> str:
    """12 hexadecimal digits that stand for pairs as a file gives them back: half a character is a "?" in it."""
    text = json.dumps(list(rows), ensure_ascii=False).encode("utf-8", "replace")
    return digest(json.loads(text))
