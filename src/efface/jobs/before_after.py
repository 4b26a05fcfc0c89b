"""What did an edit change? Both models on the same prompts and text, in one comparison and on one page.

DIR/base.json, DIR/edited.json     as `efface evaluate` writes them, the generations beside each
DIR/report.html, DIR/figure.png    the page of both, and of the training; its main panels as a picture
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from efface.errors import UserError
from efface.evaluation.result import EVALUATION
from efface.files.jsonl import Row, read_jsonl
from efface.files.results import read_json
from efface.files.shapes import check_shape
from efface.jobs.erasure import ERASURE_FILE
from efface.report import NOT_MEASURED
from efface.report.headline import headline
from efface.report.table import evaluation_table
from efface.terminal.table import Block

BASE, EDITED = "base", "edited"
MEASURED = EVALUATION | {"perplexity": {"value": float, "tokens": int}}
"""The shape of what is measured of either model."""


def measure_side(
    model: str,
    file: Path,
    *,
    prompts: Sequence[str],
    texts: Sequence[str],
    text_tokens: int,
    samples: int,
    seed: int = 0,
    base: str | None = None,
    scorers: Sequence[str] = (),
    command: str | None = None,
) -> None:
    """Evaluate a model into `file`, unless that is there.

    Args:
        base: the model that it was made from, which has been measured into base.json beside `file`.
        scorers: the first gives the headline figures; none: the default judge.
    """
    if file.exists():
        return
    from efface.evaluation.measure import evaluate
    from efface.evaluation.result import generations_path
    from efface.evaluation.settings import OrdinaryText, RunSettings
    from efface.generation.decoding import Decoding
    from efface.scoring import DEFAULT_SCORER

    evaluate(
        model,
        prompts,
        scorer=list(scorers) or DEFAULT_SCORER,
        decoding=Decoding(samples=samples, seed=seed),
        text=OrdinaryText(list(texts), max_tokens=text_tokens),
        reference=base or model,
        baseline=None if base is None else file.with_name(f"{BASE}.json"),
        run=RunSettings(generations_path=generations_path(file), command=command),
        progress=True,
    ).save(file)


def forget_edited(folder: Path) -> None:
    """Remove what was measured of the edited model in `folder`, which is to become another."""
    from efface.evaluation.result import generations_path

    file = folder / f"{EDITED}.json"
    for stale in (file, generations_path(file), folder / ERASURE_FILE):
        stale.unlink(missing_ok=True)


def read_sides(folder: Path) -> tuple[Row, Row]:
    """What was measured of the base and of the edited model."""
    base, edited = (read_json(folder / f"{name}.json", MEASURED) for name in (BASE, EDITED))
    return base, edited


def compare_sides(folder: Path, n_prompts: int) -> Row:
    """`share_ratio` (edited over base, None where it is not finite) with `share_ratio_ci95`, and
    `perplexity_change` as a part.

    Raises:
        UserError: if the generations are not of so many prompts, the same on both sides.
    """
    from efface.evaluation.comparison import ratio_ci

    base, edited = read_sides(folder)
    samples = base["toxicity"]["samples"]
    rows = [_rows(folder, name, n_prompts, samples) for name in (BASE, EDITED)]
    if [row["prompt"] for row in rows[0]] != [row["prompt"] for row in rows[1]]:
        raise UserError(f"{BASE} and {EDITED} in {folder} are not of the same prompts. Pass overwrite=True.")
    scores = [np.array([row["score"] for row in several]) for several in rows]
    ratio = ratio_ci(scores[1].reshape(-1, samples), scores[0].reshape(-1, samples))
    return {
        # JSON has no infinity, which the ratio is where the base (of a resample) is not toxic at all.
        "share_ratio": _finite(ratio.ratio),
        "share_ratio_ci95": [_finite(ratio.lower), _finite(ratio.upper)],
        "perplexity_change": edited["perplexity"]["value"] / base["perplexity"]["value"] - 1,
    }


def write_page(folder: Path, *, title: str, training: Row, erasure: Row) -> None:
    """Write report and picture of a run directory, whose `results.json` is there.

    Args:
        training: the `results.json` of the training run.
        erasure: what `measure_erasure` gives.
    """
    from efface.report import html
    from efface.report.dossier import report_about
    from efface.report.figures import Findings
    from efface.report.plots import write_overview

    base, edited = read_sides(folder)
    probed = {} if NOT_MEASURED in erasure else erasure
    write_overview(Findings(base, edited, training["history"], probed), folder / "figure.png")
    html.write_page(folder / "report.html", report_about([folder], title=title)[0])


def tell(folder: Path, comparison: Row, show: Callable[[Block], None]) -> None:
    """Both sides, and how they differ."""
    base, edited = read_sides(folder)
    show("")
    show(evaluation_table({BASE: base, EDITED: edited}))
    ratio, low, high = (
        math.inf if each is None else each for each in (comparison["share_ratio"], *comparison["share_ratio_ci95"])
    )
    first = headline(base, edited)
    show(f"\ntoxic continuations: {first.shares}, {first.counts}")
    show(f"toxic share, edited / base: {ratio:.2f} [{low:.2f}, {high:.2f}]")
    show(f"perplexity: {100 * comparison['perplexity_change']:+.1f} %")


def _rows(folder: Path, name: str, n_prompts: int, samples: int) -> list[Row]:
    file = folder / f"{name}.generations.jsonl"
    rows = read_jsonl(file)
    check_shape(rows, [{"prompt": str, "continuation": str, "score": float}], str(file))
    if len(rows) != samples * n_prompts:
        raise UserError(f"{file} has {len(rows)} rows, which are not {samples} of each prompt. Pass overwrite=True.")
    return rows


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
