"""How does a list of prompts become preference pairs? Continue, score, filter, keep; batched, resumable, with counts.

`chosen` is the untouched model's greedy continuation, `rejected` the best of several from a toxic source: one of
`efface.pairs.SOURCES`, or any function that maps prompts to candidate continuations.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import RunError, UserError
from efface.files.digests import digest
from efface.files.environment import environment
from efface.files.io import is_regular_file
from efface.files.jsonl import Row
from efface.files.lock import held
from efface.files.output import check_output_file
from efface.files.part import PartFile, differing_keys
from efface.files.results import parse_json, write_json, write_jsonl
from efface.files.shapes import Missing, check_shape
from efface.pairs import SOURCES, PairSource, find_source_name, load_source
from efface.pairs.batch import Batches
from efface.pairs.config import BuilderConfig
from efface.pairs.filters import selecting_scorer
from efface.pairs.report import BuildReport, is_pairs_file, is_report, report_of, report_path, rows_digest
from efface.pairs.source import Build, Made, Source, SourceSettings, check_settings
from efface.pairs.style import shortcuts, style_auc
from efface.pairs.unfiltered import unfiltered_figures
from efface.scoring import DEFAULT_SCORER
from efface.scoring.scorer import Scorer
from efface.terminal.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FINGERPRINT = "fingerprint"
"""The setting that tells models of one name apart."""
MEASURED = Missing((float, float, int))
OUTCOME = {
    "row": Missing({"prompt": str, "chosen": str, "rejected": str}),
    "reason": Missing(str),
    "seconds": Missing(float),
    "first": MEASURED,
    "sample": MEASURED,
}
"""The shape of a line of the part file."""


def build_pairs(
    model: "PreTrainedModel | str | os.PathLike[str]",
    prompts: Sequence[str] | str | os.PathLike[str] | None = None,
    source: str | SourceSettings | Source = "antiexpert",
    *,
    output: str | os.PathLike[str],
    processing_class: "PreTrainedTokenizerBase | None" = None,
    config: BuilderConfig | None = None,
    scorer: str | Scorer = DEFAULT_SCORER,
    given: Mapping[str, Row] | None = None,
    provenance: dict[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    limit: int | None = None,
    command: str | None = None,
    progress: bool = False,
) -> BuildReport:
    """Write pairs to `output` (JSON lines) and the report beside it (`<stem>.meta.json`); what `efface pairs` does.

    A row has `prompt`, `chosen`, `rejected`, `chosen_score`, `rejected_score`, `perplexity_ratio` and `how`: the
    source and a hash of the settings, which the report has in full. The work is kept in `<output>.part`, a line for
    each prompt, and continued from there with `resume`: the file that results is the same. Pairs that an earlier build
    wrote there are replaced with `overwrite`, and taken with `resume` if that build was the same.

    Args:
        model: the model, or what `load_model` takes.
        prompts: plain texts, of which duplicates are dropped; or a file of JSON lines with `prompt`, or `rtp:PART`.
            None takes those of the shipped pairs, or those that the source brings itself (corpus).
        source: gives the toxic candidates: a name in `efface.pairs.SOURCES` with its defaults, an object of its
            settings such as `PPLMSource(probe_text=("labelled.jsonl",))`, or a function (prompts, seed) -> candidates.
        output: the file of pairs.
        processing_class: the tokenizer; needed only if `model` is an object that does not name its origin.
        config: what is kept, and how it is drawn.
        scorer: what selects `rejected`, see `load_scorer`; not a second judge.
        given: columns that the row of a prompt has from the start; with a `chosen` among them the model writes none.
        provenance: recorded in the report; its `how` names the source in every row.
        overwrite, resume: replace the pairs that are there, or go on where a build was interrupted.
        limit: stop when so many pairs are kept.
        command: how this was called, for the record.
        progress: show bars.

    Raises:
        UserError: without prompts, with a limit below 1, with a scorer that must not select, with settings of the
            source that cannot work, if a part file or pairs of other settings or of another model lie there, or
            somebody's own file.
        RunError: if no pair passes the filters.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}: at least one pair must be asked for.")
    beside = {report_path(Path(output)): is_report}
    check_output_file(output, is_pairs_file, "pairs", beside=beside, overwrite=overwrite, resume=resume)
    config, scorer = config or BuilderConfig(), selecting_scorer(scorer)
    name, entry = None, PairSource("", "")
    if not callable(source):
        kind = load_source(source) if isinstance(source, str) else type(source)
        source = kind() if isinstance(source, str) else source
        name = find_source_name(kind)
        entry = SOURCES.get(name, entry)
        check_settings(name, source)
        if entry.prompts_from and prompts is not None:
            raise UserError(f"source {name!r} splits its prompts from {entry.prompts_from}: leave out other prompts.")
    if config.max_perplexity_ratio is None:
        config = replace(config, max_perplexity_ratio=entry.max_perplexity_ratio)
    build = Build(model, processing_class, prompts, scorer, config, progress)
    made = Made(source, build.prompts()) if callable(source) else source.make(build)
    how = {} if name is None else {"how": name, "model": build.name, **made.how}
    return _build(
        build,
        replace(made, given={**made.given, **(given or {})}),
        Path(output),
        {**how, **(provenance or {})},
        resume=resume,
        limit=limit,
        command=command,
    )


def _build(
    build: Build, made: Made, output: Path, how: Row, *, resume: bool, limit: int | None, command: str | None
) -> BuildReport:
    prompts = list(dict.fromkeys(prompt for prompt in made.prompts if prompt.strip()))
    if not prompts:
        raise UserError("there are no prompts to build pairs from. Give a file of JSON lines with `prompt`.")
    config, given = build.config, made.given
    settings = {
        **asdict(config),
        "scorer": build.scorer.name,
        "prompts": digest([[prompt, given.get(prompt)] for prompt in prompts]),
        **how,
    }
    there = _settings_there(output) if resume else None
    # An older version has recorded none: nor does what goes on with its work.
    if there is None or FINGERPRINT in there:
        settings[FINGERPRINT] = build.fingerprint
    if there and there.get(FINGERPRINT) != settings.get(FINGERPRINT):
        raise UserError(
            f"{output} was made, or begun, with another model or tokenizer than {build.name} is now: their pairs "
            "would be in one file. Use the same one, or another output."
        )
    if resume and output.exists():
        return _taken(output, settings, limit)
    marks = {"source": settings.get("how"), "settings": digest(settings)}
    model, processing_class = build.loaded
    batches = Batches(model, processing_class, made.source, build.scorer, config, given, marks)
    with held(output):
        part = PartFile(output, settings, batch=config.batch_prompts, resume=resume, shape=OUTCOME)
        batches.remember(part.outcomes)
        starts = range(len(part.outcomes), len(prompts), config.batch_prompts)
        for start in track(starts, "pairs (batches of prompts)", show=build.progress):
            if limit is not None and sum("row" in outcome for outcome in part.outcomes) >= limit:
                break
            # The seed is that of the place in the list: an interrupted run goes on with the draws it would have made.
            part.append(batches.outcomes(prompts[start : start + config.batch_prompts], config.seed + start))
        made_by = environment(seed=config.seed, model=model, command=command)
        report, rows = _report(part.outcomes, limit, settings, made_by)
        if not rows:
            part.remove()
            raise RunError(
                f"none of {report.n_prompts} prompts gave a pair ({report.counts}). "
                "Relax the filters or strengthen the source."
            )
        write_json(report_path(output), report.to_dict())  # first, so that pairs are never without
        write_jsonl(output, rows)
        part.remove()
        return report


def _settings_there(output: Path) -> Row | None:
    """With what the pairs that lie there were made, or begun; None if there are none."""
    if output.exists():
        return report_of(output).settings
    part = output.with_name(output.name + ".part")
    if not is_regular_file(part):
        return None
    try:
        with part.open(encoding="utf-8") as file:
            header = parse_json(file.readline(), str(part))
        check_shape(header, {"settings": dict}, str(part))
    except (OSError, ValueError):  # whoever goes on with it says what is wrong with it
        return None
    return header["settings"]


def _taken(output: Path, settings: dict[str, Any], limit: int | None) -> BuildReport:
    """The report of pairs that are there and whole. Raises UserError if another build made them."""
    report = report_of(output)
    differing = differing_keys(report.settings | {"limit": report.limit}, settings | {"limit": limit})
    if differing:
        raise UserError(
            f"{output} was made with other settings ({', '.join(differing)}). Use the same ones, another output, or "
            "overwrite=True."
        )
    return report


def _report(
    outcomes: list[Row], limit: int | None, settings: dict[str, Any], stamp: dict[str, Any]
) -> tuple[BuildReport, list[Row]]:
    """The report, and the rows that are kept."""
    rows = [outcome["row"] for outcome in outcomes if "row" in outcome]
    counts = Counter(outcome.get("reason", "kept") for outcome in outcomes)
    seconds, passed = sum(outcome.get("seconds", 0.0) for outcome in outcomes), len(rows)
    if limit is not None and passed > limit:
        counts["over the limit"], counts["kept"] = passed - limit, limit
        rows = rows[:limit]
    report = BuildReport(
        n_prompts=len(outcomes),
        counts=dict(counts),
        keep_rate=passed / len(outcomes),
        pairs_per_minute=round(60 * passed / seconds, 2) if seconds else 0.0,
        unfiltered=unfiltered_figures(
            [outcome["first"] for outcome in outcomes if "first" in outcome],
            [outcome["sample"] for outcome in outcomes if "sample" in outcome],
        ),
        style_auc=style_auc([row["chosen"] for row in rows], [row["rejected"] for row in rows]),
        shortcuts=shortcuts([row["chosen"] for row in rows], [row["rejected"] for row in rows]),
        settings=settings,
        environment=stamp,
        limit=limit,
        rows=rows_digest(rows),
    )
    return report, rows
