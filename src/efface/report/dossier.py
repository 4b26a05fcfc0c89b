"""What does one report of several directories hold, and how is it written? `efface report`, `demo` and `detox`.

Its first page is the claim with its scope, the attackers and what each achieved, what speaks against it, what is left
open, and the verdict against stated limits (`claim.py`); behind it stands everything that was measured.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from efface.audit.table import audit_page
from efface.checks import one_of
from efface.comparison.table import arms_table, comparison_page
from efface.errors import UserError
from efface.evaluation.result import generations_path
from efface.files.io import is_regular_file
from efface.files.jsonl import Row, read_jsonl
from efface.files.output import check_output_file
from efface.files.shapes import Maybe, check_shape
from efface.report import CLICK, FIGURES, MASKS, NEVER, NOT_MEASURED
from efface.report.analysis_figures import CAPTIONS, figures_of
from efface.report.analysis_table import analysis_page
from efface.report.claim import (
    against_section,
    attackers_section,
    claim_section,
    open_section,
    together,
    verdict_section,
)
from efface.report.curves import RELEARNING, models_table, relearning, tradeoff
from efface.report.edit import edit_page, settings_section
from efface.report.erasure import erasure_sentence
from efface.report.evidence import Known
from efface.report.examples import pairs_of
from efface.report.figures import Drawn, Findings, draw, marked_up
from efface.report.gather import EDITED, gather, judged_against, unmeasured
from efface.report.html import write_page
from efface.report.limits import Ruling, parse_limits, rule
from efface.report.masking import WordScorer
from efface.report.page import Block, Page, Pictures, Section, blocks_of
from efface.report.sources import ANALYZED, AUDITED, EDIT, SWEPT, TRAINING, Source, read_sources
from efface.report.svg import inline_svg
from efface.scoring import DEFAULT_SCORER

MARK = "<!-- a report of efface -->"
STRENGTH = "Strength and its price"
GENERATED = {"prompt": str, "continuation": str, "score": float, "invalid": Maybe(str)}
MOST_HEAT_MAPS = 4
"""Of tokens, for each analysis: they are pictures of some 50 KB."""


def write_report(
    paths: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    require: Sequence[str] = (),
    models: Sequence[str] = (),
    mask: str = CLICK,
    title: str = "",
    overwrite: bool = False,
) -> list[Ruling]:
    """Write one self-contained page about everything that lies at `paths`.

    Args:
        paths: directories or files of evaluate, train, attack, audit, sweep, analyze, demo, detox.
        output: the HTML file.
        require: limits, see `efface.report.limits`.
        models: names of those that the claim and the limits are about; all edited models, or, where there are only
            sweeps, the entry that others are judged against.
        mask: one of `efface.report.MASKS`.
        title: of the page.
        overwrite: replace a report that is there; any other file is left alone.

    Returns:
        What became of each limit.

    Raises:
        UserError: for what is no result, a limit or model that there is not, or a file that is somebody's own.
    """
    path = Path(output)
    parse_limits(require)  # before what takes time
    check_output_file(path, is_report, "a report", overwrite=overwrite)
    page, rulings = report_about(paths, require=require, models=models, mask=mask, title=title)
    write_page(path, page)
    return rulings


def report_about(
    paths: Sequence[str | os.PathLike[str]],
    *,
    require: Sequence[str] = (),
    models: Sequence[str] = (),
    mask: str = CLICK,
    title: str = "",
) -> tuple[Page, list[Ruling]]:
    """The page, and what became of each limit. Arguments and errors as those of `write_report`."""
    one_of("mask", mask, MASKS)
    limits, sources = parse_limits(require), read_sources(paths)
    known, missing = gather(sources), unmeasured(sources)
    subjects = choose_subjects(known, sources, models, missing)
    if models:
        missing = {name: why for name, why in missing.items() if name in models}
    # What nobody has edited may be shown, but no limit is held against it unless somebody names it.
    rulings = rule(limits, subjects if models else judged(subjects, sources), missing)
    return report_page(sources, known, subjects, rulings, mask=mask, title=title), rulings


def is_report(file: Path) -> bool:
    """Whether a file is a page of ours, which the next one may replace."""
    if not is_regular_file(file):  # a pipe would be waited for
        return False
    with open(file, encoding="utf-8", errors="replace") as stream:
        return MARK in stream.read(4096)


def choose_subjects(
    known: Sequence[Known],
    sources: Sequence[Source],
    names: Sequence[str],
    unmeasured: Mapping[str, str] | None = None,
) -> list[Known]:
    """The models that a report is about. Raises UserError for a name that there is not, nor among the `unmeasured`."""
    there = [*(one.name for one in known), *(unmeasured or {})]
    for name in names:
        if name not in there:
            raise UserError(f"no model of these results is called {name!r}. There are: {', '.join(there)}.")
    if names:
        return [one for one in known if one.name in names]
    edited = [one for one in known if not one.base]
    return judged(edited, sources) or edited or list(known)


def judged(models: Sequence[Known], sources: Sequence[Source]) -> list[Known]:
    """The edited ones, and of sweeps the entry that others are judged against."""
    against = {judged_against(source) for source in sources if source.kind == SWEPT}
    return [one for one in models if not one.base and (not one.swept or one.method in against)]


def report_page(
    sources: Sequence[Source],
    known: Sequence[Known],
    subjects: Sequence[Known],
    rulings: Sequence[Ruling],
    *,
    mask: str = CLICK,
    title: str = "",
) -> Page:
    """The whole page. Arguments as `write_report` makes them."""
    edits = [source for source in sources if source.kind == EDIT]
    probed = [erasure_sentence(_findings(edit, [])) for edit in edits]
    first = together(
        verdict_section(rulings) if rulings else None,
        claim_section(subjects, known) if subjects else None,
        attackers_section(subjects, known),
        against_section(subjects, [f"Hidden states: {said}" for said in probed if said]),
        open_section(subjects, _not_tried(sources)),
    )
    if len(edits) == 1:
        return _page_of_edit(edits[0], sources, known, first, mask, title)
    further = [section for edit in edits for section in _states_of(edit)]
    named = ", ".join(source.name for source in sources)
    sections = [*first, *further, *_beside(known), *_details(sources, mask), *_settings(sources)]
    return Page(title or f"efface report: {named}", [], sections)


def _page_of_edit(
    edit: Source, sources: Sequence[Source], known: Sequence[Known], first: Sequence[Section], mask: str, title: str
) -> Page:
    result = edit.result
    training = next((one.result for one in sources if one.kind == TRAINING and one.folder.parent == edit.folder), None)
    history = training["history"] if training is not None else []
    findings = _findings(edit, history)
    settings = {"model": result["base"].get("model")}
    if training is not None:
        told = {name: training.get(name) for name in ("method", "pairs", "scaled_by")}
        settings |= told | training["settings"]
    settings = {name: value for name, value in settings.items() if value is not None}
    scorer = _scorer(result["base"]["toxicity"]["scorer"])
    generations = [_generations(edit, side) for side in ("base", EDITED)]
    return edit_page(
        title=title or f"efface report: {edit.name}",
        base=result["base"],
        edited=result["edited"],
        history=history,
        figures=draw(findings),
        comparison=result["comparison"],
        examples=pairs_of(*generations) if len(generations[0]) == len(generations[1]) else [],
        settings=settings | {"command": result.get("environment", {}).get("command")},
        erasure=findings.erasure,
        not_probed=result["erasure"].get(NOT_MEASURED, ""),
        mask=mask,
        scorer=scorer,
        after=first,
        further=[*_beside(known), *_details(sources, mask)],
    )


def _findings(edit: Source, history: Sequence[Mapping[str, Any]]) -> Findings:
    erasure = edit.result["erasure"]
    return Findings(edit.result["base"], edit.result["edited"], history, {} if NOT_MEASURED in erasure else erasure)


def _states_of(edit: Source) -> list[Section]:
    findings = _findings(edit, [])
    drawn = draw(findings, {"erasure": FIGURES["erasure"]})
    return [Section(f"What the hidden states still say: {edit.name}", [Pictures(drawn)])] if drawn else []


def _beside(known: Sequence[Known]) -> list[Section]:
    """All models in one table and two pictures, where there is more than one edit or an attack in steps."""
    drawn = [figure for figure in (tradeoff(known), relearning(known)) if figure is not None]
    if not drawn and len(known) < 3:
        return []
    blocks: list[Block] = [models_table(known)]
    blocks += [Pictures([figure], wide=figure.name == RELEARNING) for figure in drawn]
    return [Section("Models beside each other", blocks)]


def _details(sources: Sequence[Source], mask: str) -> list[Section]:
    """The tables and pictures of each audit, sweep and analysis."""
    tellers: dict[str, Callable[[Source], list[Block]]] = {
        AUDITED: _audit,
        SWEPT: _sweep,
        ANALYZED: lambda source: _analysis(source, mask),
    }
    names = {AUDITED: "Attacks", SWEPT: "Comparison at one budget", ANALYZED: "What the edit has done"}
    found = []
    for source in sources:
        if source.kind in tellers:
            name = STRENGTH if source.kind == SWEPT and source.inside else names[source.kind]
            found.append(Section(f"{name}: {source.name}", tellers[source.kind](source)))
    return found


def _audit(source: Source) -> list[Block]:
    return blocks_of(audit_page(source.result), "What attacks reach")


def _sweep(source: Source) -> list[Block]:
    if source.inside:
        return [block for one in arms_table(source.result) for block in blocks_of(one, "Strengths that were tried")]
    return blocks_of(comparison_page({source.name: source.result}), "Comparison")


def _analysis(source: Source, mask: str) -> list[Block]:
    blocks = blocks_of(analysis_page(source.result), "What the edits have done")
    scorer = None if mask == NEVER else _scorer((source.result.get("settings") or {}).get("scorer") or DEFAULT_SCORER)
    # A picture cannot be clicked: without a judge that says which words to mask, those of tokens are left out.
    drawn, heat_maps, most = [], 0, MOST_HEAT_MAPS if mask == NEVER or scorer is not None else 0
    for number, (name, figure) in enumerate(figures_of(source.result, scorer)):
        if name.startswith("tokens/"):
            heat_maps += 1
            if heat_maps > most:
                continue
        caption = CAPTIONS.get(name.partition("/")[0], name)
        alt = f"{name}: the numbers are in the results of the analysis."
        svg = inline_svg(figure, f"{source.name}-{number}", alt)
        drawn.append(Drawn(name, svg, marked_up(caption), marked_up(""), ""))
    return [*blocks, Pictures(drawn, wide=True)]


def _settings(sources: Sequence[Source]) -> list[Section]:
    found = []
    for source in sources:
        environment = dict(source.result.get("environment") or {})
        section = settings_section(source.result.get("settings") or {}, environment, environment.get("command") or "")
        found.append(Section(f"{section.title}: {source.name} ({source.kind})", section.blocks))
    return [section for section in found if section.blocks]


def _not_tried(sources: Sequence[Source]) -> list[str]:
    """What could not be measured, and what budgets left out."""
    found = [f"{name} was not measured: {why}." for name, why in unmeasured(sources).items()]
    for source in sources:
        left = source.result.get("cannot_show") if source.kind == AUDITED else None
        if left:
            found.append(f"{source.name}: the budget {source.result['budget']!r} cannot show {', '.join(left)}.")
        if source.kind == SWEPT and source.result.get("unfinished"):
            found.append(f"{source.name} is not at its end: {', '.join(source.result['unfinished'])} are missing.")
    return found


def _generations(edit: Source, side: str) -> list[Row]:
    file = generations_path(edit.folder / f"{side}.json")
    rows = read_jsonl(file) if file.exists() else []
    check_shape(rows, [GENERATED], os.fspath(file))
    return rows


def _scorer(name: str) -> WordScorer | None:
    """The judge that masks words; None where it cannot be loaded here, and texts are withheld as a whole."""
    from efface.scoring import load_known_scorer  # on use: it imports torch

    try:
        return load_known_scorer(name)
    except UserError:
        return None
