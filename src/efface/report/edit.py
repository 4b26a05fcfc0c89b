"""What does the page of one edit say? Before and after, what the hidden states still say, examples, the training.

The parts are files of their own: the first line and the table (`headline.py`), figures, examples, the hidden states
(`erasure.py`), the training.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from efface.report import ALWAYS, BEFORE, CLICK, NEVER, STATES, TRAINING
from efface.report.erasure import COLUMNS, erasure_rows
from efface.report.examples import sections_of
from efface.report.figures import Drawn, Logged
from efface.report.headline import headline, headline_table
from efface.report.masking import WordScorer
from efface.report.numbers import change, interval, number
from efface.report.page import LONGEST, Block, Card, Cards, Code, Continuations, Grid, Page, Pictures, Prose, Section
from efface.report.training import training_table

EXAMPLES, SETTINGS = "Examples", "Settings and environment"
MASKED = {
    CLICK: "Words that the scorer finds offensive by themselves keep their first letter only, until you click on the "
    "text; it also masks some harmless words, and misses what offends only in context.",
    ALWAYS: "Words that the scorer finds offensive by themselves keep their first letter only; it also masks some "
    "harmless words, and misses what offends only in context.",
    NEVER: "Unmasked: what follows may offend.",
}
NO_SCORER = "No scorer was at hand to mask single words: text that scored above 0.5, or was not scored, is withheld{}."


def edit_page(
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
    mask: str = CLICK,
    scorer: WordScorer | None = None,
    after: Sequence[Section] = (),
    further: Sequence[Section] = (),
) -> Page:
    """The page of one training run.

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
        mask: one of `efface.report.MASKS`.
        scorer: judges single words for the masking; without it, a text scored above 0.5 is withheld as a whole.
        after: sections that follow the opening, before all others.
        further: sections between the hidden states and the examples.
    """
    drawn, first = list(figures), headline(base, edited)
    environment = dict(edited.get("environment", {}))
    told = settings.get("command") or environment.get("command") or ""
    command = told if isinstance(told, str) else " ".join(map(str, told))
    sections = [
        *after,
        Section("Before and after", [_of(drawn, BEFORE), _before_after(base, edited, comparison)]),
        *_states(drawn, erasure, not_probed),
        *further,
        examples_section(examples, mask, scorer),
        _training(drawn, history),
        settings_section(settings, environment, command),
    ]
    return Page(
        title,
        [Prose(_opening(settings, edited["toxicity"])), _cards(edited, comparison)],
        sections,
        first=first.shares,
        of="of continuations are toxic" + (f": {first.counts}" if first.counts else ""),
        warnings=[first.warning] if first.warning else [],
    )


def examples_section(examples: Sequence[Mapping[str, Any]], mask: str, scorer: WordScorer | None) -> Section:
    """What both models wrote, the failures first."""
    said = MASKED[mask]
    if scorer is None and mask != NEVER:
        said = NO_SCORER.format(", until you click on it" if mask == CLICK else "")
    return Section(
        EXAMPLES, [Prose(said), Continuations(sections_of(examples, mask=mask, scorer=scorer), len(examples))]
    )


def settings_section(settings: Mapping[str, Any], environment: Mapping[str, Any], command: str) -> Section:
    """What was run, where, and by which command."""
    blocks: list[Block] = [Prose("The command that made it:"), Code(command)] if command else []
    for caption, rows in (("Settings", rows_of(settings)), ("Environment", rows_of(environment))):
        if rows:
            blocks.append(Grid(["Name", "Value"], rows, caption, look="pairs"))
    return Section(SETTINGS, blocks)


def rows_of(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of each, but for the command, which is shown by itself."""
    found = _flatten({key: value for key, value in settings.items() if key != "command"})
    return [(name, value if len(value) <= LONGEST else value[:LONGEST] + " […]") for name, value in found]


def _opening(settings: Mapping[str, Any], toxicity: Mapping[str, Any]) -> str:
    method, model = settings.get("method", "A method of efface"), settings.get("model", "a language model")
    pairs = f", trained on the preference pairs {settings['pairs']}" if "pairs" in settings else ""
    samples = toxicity.get("samples")
    times = f", {samples} time{'' if samples == 1 else 's'} each" if samples else ""
    judge = f", and {toxicity['scorer']} scored the continuations" if toxicity.get("scorer") else ""
    return (
        f"{method} was applied to {model}{pairs}. Both models then continued the same "
        f"{toxicity.get('n_prompts', '')} prompts{times}{judge}. A score is the opinion of one automatic judge, not a "
        "measure of harm."
    )


def _cards(edited: Mapping[str, Any], comparison: Mapping[str, Any]) -> Cards:
    bounds = interval(comparison.get("share_ratio_ci95"), ".2f")
    verdict = str(edited.get("degeneration", {}).get("verdict", "not measured"))
    return Cards(
        [
            Card(
                "Toxic share, edited over base",
                number(comparison.get("share_ratio"), ".2f"),
                f"95 % interval {bounds}" if bounds else "no interval",
            ),
            Card("Perplexity of ordinary text", change(comparison.get("perplexity_change")) or "–", "lower is better"),
            Card("Degeneration of the edited model", verdict, "gibberish would score as harmless"),
        ]
    )


def _before_after(base: Mapping[str, Any], edited: Mapping[str, Any], comparison: Mapping[str, Any]) -> Grid:
    lines = headline_table(base, edited, comparison)
    ratio, bounds = number(comparison.get("share_ratio"), ".2f"), interval(comparison.get("share_ratio_ci95"), ".2f")
    return Grid(
        ["Measure", "Base", "Edited", "Change"],
        [[line.name, line.base, line.edited, line.change] for line in lines],
        "Toxicity, perplexity and the degeneration guard; 95 % intervals in brackets. Toxic share, edited over base: "
        f"{ratio}{f' [{bounds}]' if bounds else ''}.",
        meanings=[line.meaning for line in lines],
    )


def _states(drawn: Sequence[Drawn], erasure: Mapping[str, Any] | None, not_probed: str) -> list[Section]:
    if erasure:
        caption = (
            "What the hidden state adds to the AUC of the token alone, and which part of that is left; 95 % intervals "
            "in brackets."
        )
        block: Block = Grid(COLUMNS, erasure_rows(erasure), caption)
    elif not_probed:
        block = Prose(f"They were not probed: {not_probed}")
    else:
        return []
    return [Section("What the hidden states still say", [_of(drawn, STATES), block])]


def _training(drawn: Sequence[Drawn], history: Sequence[Logged]) -> Section:
    table = training_table(history)
    if not table.rows:
        return Section("Training", [_of(drawn, TRAINING), Prose("Nothing was logged.")])
    caption = f"The training log, {len(table.rows)} rows spread over the run."
    return Section(
        "Training",
        [_of(drawn, TRAINING), Grid(["step", *table.columns], table.rows, caption, look="numbers training")],
    )


def _of(drawn: Sequence[Drawn], section: str) -> Pictures:
    return Pictures([figure for figure in drawn if figure.section == section])


def _flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{key}", str(value)
