"""What does the reader of a run get to see? One HTML file: no script, no external resource, opens from a mail.

Text that a model wrote is untrusted: the template escapes all of it. Offensive words are masked unless told otherwise.
"""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from efface.files.results import write_text
from efface.report.figures import Drawn, Logged
from efface.report.masking import WordScorer, mask_or_withhold
from efface.report.plots import keys_starting

TRAINING_ROWS = 12
TRAINING_KEYS = ("loss", "retain_loss", "retain_text_loss", "erase_loss", "npo_loss")
TRAINING_PREFIXES = ("adversary/bce/", "adversary/distance/", "adversary/balanced_accuracy/", "norm_drift/")


class Line(NamedTuple):
    """One line of the headline table, ready to print."""

    name: str
    meaning: str
    base: str
    edited: str
    change: str


class Example(NamedTuple):
    """One prompt and what both models made of it, ready to print."""

    prompt: str
    base: str
    base_score: str
    edited: str
    edited_score: str


class Picture(NamedTuple):
    """A figure, ready to print."""

    data: str
    alt: str
    caption: Markup


def write_report(
    path: Path,
    *,
    title: str,
    base: Mapping[str, Any],
    edited: Mapping[str, Any],
    history: Sequence[Logged],
    figures: Iterable[Drawn],
    comparison: Mapping[str, Any],
    examples: Iterable[Mapping[str, Any]],
    settings: Mapping[str, Any],
    mask: bool = True,
    scorer: WordScorer | None = None,
    findings: Mapping[str, str] | None = None,
) -> None:
    """Write the report of one training run to `path`.

    Args:
        base, edited: what `efface evaluate` writes for the model before and after.
        history: rows of `trainer.state.log_history`.
        figures: those of `figures.draw`; they are embedded.
        comparison: `share_ratio`, `share_ratio_ci95` as [low, high], `perplexity_change` as a fraction (0.02 is +2 %).
        examples: rows with `prompt`, `base`, `base_score`, `edited`, `edited_score`.
        settings: what was run, nested dicts allowed. `method`, `model` and `pairs` enter the opening sentence,
            `command` is printed as what reproduces the run (without it, the one in `edited["environment"]`).
        mask: mask offensive words of the examples.
        scorer: judges single words for the masking; without it, a text scored above 0.5 is withheld as a whole.
        findings: further tables as plain text, by their headings.
    """
    environment = dict(edited.get("environment", {}))
    command = settings.get("command") or environment.get("command") or ""
    page = _template().render(
        title=title,
        settings=settings,
        settings_rows=list(_flatten({key: value for key, value in settings.items() if key != "command"})),
        environment_rows=list(_flatten({key: value for key, value in environment.items() if key != "command"})),
        command=command if isinstance(command, str) else " ".join(map(str, command)),
        toxicity=edited["toxicity"],
        headline=_headline(base, edited, comparison),
        ratio=_number(comparison.get("share_ratio"), ".2f"),
        ratio_interval=_interval(comparison.get("share_ratio_ci95"), ".2f"),
        perplexity_change=_change(comparison.get("perplexity_change")),
        verdict=str(edited.get("degeneration", {}).get("verdict", "not measured")),
        figures=[_embedded(figure) for figure in figures],
        training=_training_table(history),
        findings=dict(findings or {}),
        examples=[_example(row, mask, scorer) for row in examples],
        masked=mask,
        words_masked=mask and scorer is not None,
    )
    write_text(path, page)


def _template() -> Any:
    # StrictUndefined: a misspelt name in the template is an error, not an empty cell.
    environment = Environment(
        loader=PackageLoader("efface.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("template.html.j2")


def _headline(base: Mapping[str, Any], edited: Mapping[str, Any], comparison: Mapping[str, Any]) -> list[Line]:
    samples = base["toxicity"].get("samples")
    of_samples = f" among {samples} samples" if samples else ""

    def toxicity(name: str, meaning: str, key: str, spec: str) -> Line:
        cells = []
        for side in (base["toxicity"], edited["toxicity"]):
            interval = _interval(side.get("ci95", {}).get(key), spec)
            cells.append(_number(side.get(key), spec) + (f" [{interval}]" if interval else ""))
        before, after = base["toxicity"].get(key), edited["toxicity"].get(key)
        return Line(
            name, meaning, cells[0], cells[1], _change(after / before - 1 if before and after is not None else None)
        )

    def degeneration(name: str, meaning: str, key: str, spec: str) -> Line:
        cells = [_number(side.get("degeneration", {}).get(key), spec) for side in (base, edited)]
        return Line(name, meaning, cells[0], cells[1], "")

    rest = []
    # Evaluations of older versions do not tell invalid from clean.
    if any(side["toxicity"].get("invalid") is not None for side in (base, edited)):
        rest = [
            toxicity(
                "Invalid share", "no answer either: empty, a loop, no text, the same everywhere", "invalid", ".1%"
            ),
            toxicity("Clean share", "answers that are neither toxic nor invalid", "clean", ".1%"),
        ]
    return [
        toxicity("Toxic share", "continuations scored above 0.5", "share", ".1%"),
        *rest,
        toxicity("Mean score", "average toxicity score of a continuation", "mean", ".3f"),
        toxicity(
            "Expected maximum", f"average over prompts of the worst score{of_samples}", "expected_maximum", ".3f"
        ),
        toxicity("Probability", f"prompts with a toxic continuation{of_samples}", "probability", ".1%"),
        Line(
            "Perplexity",
            "of ordinary text, lower is better",
            _number(base["perplexity"]["value"], ".2f"),
            _number(edited["perplexity"]["value"], ".2f"),
            _change(comparison.get("perplexity_change")),
        ),
        degeneration("Repetition", "degeneration guard: repeated text scores as harmless", "repetition", ".3f"),
        degeneration("Distinct bigrams", "degeneration guard: variety of the text", "distinct_2", ".3f"),
        degeneration("Empty", "degeneration guard: continuations without text", "empty", ".1%"),
        degeneration(
            "Reference perplexity",
            "degeneration guard: of the text, under the base",
            "perplexity_under_reference",
            ".1f",
        ),
        Line("Verdict", "degeneration guard", _verdict(base), _verdict(edited), ""),
    ]


def _verdict(side: Mapping[str, Any]) -> str:
    return str(side.get("degeneration", {}).get("verdict", "–"))


def _training_table(history: Sequence[Logged]) -> dict[str, list[list[str]] | list[str]]:
    """At most TRAINING_ROWS rows of the log, evenly spread, first and last included; only columns that were logged."""
    columns = [key for key in TRAINING_KEYS if any(key in row for row in history)]
    for prefix in TRAINING_PREFIXES:
        columns += keys_starting(history, prefix)
    rows = [row for row in history if "step" in row and any(key in row for key in columns)]
    if len(rows) > TRAINING_ROWS:
        last = len(rows) - 1
        rows = [rows[round(i * last / (TRAINING_ROWS - 1))] for i in range(TRAINING_ROWS)]
    names = [column.replace("adversary/", "").replace("_", " ").replace("/", ", layer ") for column in columns]
    cells = [[str(row["step"]), *(_number(row.get(column), ".4g") for column in columns)] for row in rows]
    return {"columns": names, "rows": cells}


def _embedded(figure: Drawn) -> Picture:
    """Text between backticks becomes code."""
    parts = [escape(part) for part in figure.caption.split("`")]
    caption = Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts)
    )
    return Picture(base64.b64encode(figure.path.read_bytes()).decode("ascii"), figure.alt, caption)


def _example(row: Mapping[str, Any], mask: bool, scorer: WordScorer | None) -> Example:
    def show(text: str, score: float | None) -> str:
        return mask_or_withhold(text, score, scorer) if mask else text

    return Example(
        show(str(row["prompt"]), row.get("prompt_score")),
        show(str(row["base"]), row.get("base_score")),
        _number(row.get("base_score"), ".2f"),
        show(str(row["edited"]), row.get("edited_score")),
        _number(row.get("edited_score"), ".2f"),
    )


def _flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{key}", str(value)


def _number(value: object, spec: str) -> str:
    if not isinstance(value, int | float):
        return "–"
    return format(value, spec) if math.isfinite(value) else str(value)


def _interval(bounds: Sequence[float] | None, spec: str) -> str:
    return f"{_number(bounds[0], spec)} to {_number(bounds[1], spec)}" if bounds else ""


def _change(fraction: float | None) -> str:
    return f"{100 * fraction:+.1f} %" if fraction is not None and math.isfinite(fraction) else ""
