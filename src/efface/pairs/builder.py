"""How does a list of prompts become preference pairs? Continue, score, filter, keep; batched, resumable, with counts.

`chosen` is the untouched model's greedy continuation, `rejected` the best of several from a toxic source.
A source is anything that maps prompts to candidate continuations: `efface.pairs.sources` has them by name.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import RunError, UserError
from efface.files.digests import digest
from efface.files.jsonl import Row
from efface.files.part import PartFile
from efface.files.results import environment, write_json, write_jsonl
from efface.files.shapes import Missing
from efface.pairs.batch import Batches
from efface.pairs.config import BuilderConfig, Source
from efface.pairs.filters import selecting_scorer
from efface.pairs.style import shortcuts, style_auc
from efface.pairs.unfiltered import unfiltered_figures
from efface.progress import track
from efface.scoring import DEFAULT_SCORER
from efface.scoring.scorer import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MEASURED = Missing((float, float, int))
OUTCOME = {
    "row": Missing({"prompt": str, "chosen": str, "rejected": str}),
    "reason": Missing(str),
    "seconds": Missing(float),
    "first": MEASURED,
    "sample": MEASURED,
}
"""The shape of a line of the part file."""


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

    def to_dict(self) -> dict[str, Any]:
        return {"schema": 1, **asdict(self)}


def build_pairs(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    source: Source,
    output: str | os.PathLike[str],
    *,
    config: BuilderConfig | None = None,
    scorer: str | Scorer = DEFAULT_SCORER,
    given: Mapping[str, Row] | None = None,
    provenance: dict[str, Any] | None = None,
    resume: bool = False,
    limit: int | None = None,
    command: str | None = None,
    progress: bool = False,
) -> BuildReport:
    """Write pairs to `output` (JSON lines) and the report beside it (`<stem>.meta.json`).

    A row has `prompt`, `chosen`, `rejected`, `chosen_score`, `rejected_score`, `perplexity_ratio` and `how`: the
    source and a hash of the settings, which the report has in full. The work is kept in `<output>.part`, a line for
    each prompt, and continued from there with `resume`: the file that results is the same.

    Args:
        prompts: plain texts; duplicates are dropped.
        source: gives the toxic candidates.
        given: columns that the row of a prompt has from the start; with a `chosen` among them the model writes none.
        provenance: recorded in the report; its `how` names the source in every row.
        limit: stop when so many pairs are kept.

    Raises:
        UserError: without prompts, with a limit below 1, with a scorer that must not select, or if a part file of
            other settings lies there.
        RunError: if no pair passes the filters.
    """
    config, output, given = config or BuilderConfig(), Path(output), given or {}
    prompts = list(dict.fromkeys(prompt for prompt in prompts if prompt.strip()))
    if not prompts:
        raise UserError("there are no prompts to build pairs from. Give a file of JSON lines with `prompt`.")
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}: at least one pair must be asked for.")
    scorer = selecting_scorer(scorer)
    settings = {
        **asdict(config),
        "scorer": scorer.name,
        "prompts": digest([[prompt, given.get(prompt)] for prompt in prompts]),
        **(provenance or {}),
    }
    how = {"source": settings.get("how"), "settings": digest(settings)}
    batches = Batches(model, processing_class, source, scorer, config, given, how)
    part = PartFile(output, settings, batch=config.batch_prompts, resume=resume, shape=OUTCOME)
    batches.remember(part.outcomes)
    starts = range(len(part.outcomes), len(prompts), config.batch_prompts)
    for start in track(starts, "pairs (batches of prompts)", show=progress):
        if limit is not None and sum("row" in outcome for outcome in part.outcomes) >= limit:
            break
        # The seed is that of the place in the list, so an interrupted run continues with the draws it would have made.
        part.append(batches.outcomes(prompts[start : start + config.batch_prompts], config.seed + start))
    report, rows = _report(part.outcomes, limit, settings, environment(seed=config.seed, model=model, command=command))
    if not rows:
        part.remove()
        raise RunError(
            f"none of {report.n_prompts} prompts gave a pair ({report.counts}). "
            "Relax the filters or strengthen the source."
        )
    write_jsonl(output, rows)
    write_json(output.with_suffix(".meta.json"), report.to_dict())
    part.remove()
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
    )
    return report, rows
