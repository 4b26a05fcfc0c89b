"""What does the reader of a run get to see? One HTML file: no script, no external resource, opens from a mail.

Text that a model wrote is untrusted: the template escapes all of it. Offensive words are masked unless told otherwise.
The parts are files of their own: the first line and the table (`headline.py`), figures, examples, the hidden states
(`erasure.py`), the training.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from efface.files.results import write_text
from efface.report import SECTIONS
from efface.report.erasure import COLUMNS, erasure_rows
from efface.report.examples import sections_of
from efface.report.figures import Drawn, Logged
from efface.report.headline import headline, headline_table
from efface.report.masking import WordScorer
from efface.report.numbers import change, interval, number
from efface.report.training import training_table

LONGEST = 500
"""Characters of a setting that are shown."""


def write_report(
    path: Path,
    *,
    title: str,
    base: Mapping[str, Any],
    edited: Mapping[str, Any],
    history: Sequence[Logged],
    figures: Iterable[Drawn],
    comparison: Mapping[str, Any],
    examples: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    erasure: Mapping[str, Any] | None = None,
    not_probed: str = "",
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
        examples: all continuations, as `examples.pairs_of` gives them; the page has the failures first.
        settings: what was run, nested dicts allowed. `method`, `model` and `pairs` enter the opening sentence,
            `command` is printed as what made the run (without it, the one in `edited["environment"]`).
        erasure: what `efface.analysis.erasure.compare_erasure` gives.
        not_probed: why there is none of that.
        mask: mask offensive words of the examples.
        scorer: judges single words for the masking; without it, a text scored above 0.5 is withheld as a whole.
        findings: further tables as plain text, by their headings.
    """
    environment = dict(edited.get("environment", {}))
    command = settings.get("command") or environment.get("command") or ""
    drawn = list(figures)
    page = _template().render(
        title=title,
        first=headline(base, edited),
        settings=settings,
        settings_rows=_rows(settings),
        environment_rows=_rows(environment),
        command=command if isinstance(command, str) else " ".join(map(str, command)),
        toxicity=edited["toxicity"],
        headline=headline_table(base, edited, comparison),
        ratio=number(comparison.get("share_ratio"), ".2f"),
        ratio_interval=interval(comparison.get("share_ratio_ci95"), ".2f"),
        perplexity_change=change(comparison.get("perplexity_change")),
        verdict=str(edited.get("degeneration", {}).get("verdict", "not measured")),
        figures={section: [figure for figure in drawn if figure.section == section] for section in SECTIONS},
        training=training_table(history),
        erasure_columns=COLUMNS,
        erasure_rows=erasure_rows(erasure) if erasure else [],
        not_probed=not_probed,
        findings=dict(findings or {}),
        examples=sections_of(examples, mask=mask, scorer=scorer),
        n_examples=len(examples),
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


def _rows(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of each, but for the command, which is shown by itself."""
    found = _flatten({key: value for key, value in settings.items() if key != "command"})
    return [(name, value if len(value) <= LONGEST else value[:LONGEST] + " […]") for name, value in found]


def _flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{key}", str(value)
