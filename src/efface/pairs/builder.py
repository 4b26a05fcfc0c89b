"""How does a list of prompts become preference pairs? Continue, score, filter, keep; batched, resumable, with counts.

`chosen` is the untouched model's greedy continuation, `rejected` the best of several from a toxic source.
A source is anything that maps prompts to candidate continuations: `efface.pairs.sources` has them by name.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.errors import RunError, UserError
from efface.evaluation.generation import continuation_nll, generate
from efface.evaluation.scorers import DEFAULT_SCORER, Scorer, load_scorer, score
from efface.pairs.style import style_auc
from efface.progress import track
from efface.results import environment, write_json, write_jsonl
from efface.rows import read_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Source = Callable[[Sequence[str], int], list[list[str]]]
"""(prompts, seed) -> the candidate continuations of each prompt."""


@dataclass(frozen=True)
class BuilderConfig:
    """What is kept and how it is drawn."""

    max_new_tokens: int = 20
    min_toxic_score: float = 0.5
    """A `rejected` continuation scores at least this."""
    max_benign_score: float = 0.3
    """A `chosen` continuation scores at most this."""
    max_perplexity_ratio: float = 3.0
    """Perplexity of `rejected` under the untouched model, relative to that of `chosen`: toxic *and fluent*."""
    min_words: int = 4
    """Of either continuation."""
    batch_prompts: int = 32
    """Prompts between two saves; also what one interruption can lose."""
    batch_size: int = 64
    seed: int = 0


@dataclass
class BuildReport:
    """What became of the prompts."""

    n_prompts: int
    counts: dict[str, int]
    """`kept`, and for each reason how many prompts it cost."""
    style_auc: float | None
    """Held-out AUC of a classifier that sees style alone (case, punctuation, length, repetition); 0.5 is best."""
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
    provenance: dict[str, Any] | None = None,
    resume: bool = False,
    limit: int | None = None,
    command: str | None = None,
    progress: bool = False,
) -> BuildReport:
    """Write pairs to `output` (JSON lines) and the report beside it (`<stem>.meta.json`).

    The work is kept in `<output>.part`, a line for each prompt, and continued from there with `resume`.

    Args:
        prompts: plain texts; duplicates are dropped.
        source: gives the toxic candidates.
        provenance: recorded in every row (`how`) and in the report.
        limit: stop when so many pairs are kept.

    Raises:
        UserError: without prompts, or if a part file of other settings lies there.
        RunError: if no pair passes the filters.
    """
    config, output = config or BuilderConfig(), Path(output)
    prompts = list(dict.fromkeys(prompt for prompt in prompts if prompt.strip()))
    if not prompts:
        raise UserError("there are no prompts to build pairs from. Give a file of JSON lines with `prompt`.")
    scorer = load_scorer(scorer)
    settings = {**asdict(config), "scorer": scorer.name, **(provenance or {})}
    part = output.with_name(output.name + ".part")
    outcomes = _open_part(part, settings, resume)
    starts = range(len(outcomes), len(prompts), config.batch_prompts)
    for start in track(starts, "pairs (batches of prompts)", show=progress):
        if limit is not None and sum("row" in outcome for outcome in outcomes) >= limit:
            break
        batch = prompts[start : start + config.batch_prompts]
        # The seed is that of the place in the list, so an interrupted run continues with the draws it would have made.
        found = _batch_outcomes(model, processing_class, batch, source, scorer, config, config.seed + start)
        outcomes += found
        _append(part, found)
    rows = [outcome["row"] for outcome in outcomes if "row" in outcome][:limit]
    counts = Counter(outcome.get("reason", "kept") for outcome in outcomes)
    if limit is not None and counts["kept"] > limit:
        counts["over the limit"] = counts["kept"] - limit
        counts["kept"] = limit
    if not rows:
        part.unlink()
        raise RunError(
            f"none of {len(outcomes)} prompts gave a pair ({dict(counts)}). "
            "Relax the filters or strengthen the source."
        )
    report = BuildReport(
        n_prompts=len(outcomes),
        counts=dict(counts),
        style_auc=style_auc([row["chosen"] for row in rows], [row["rejected"] for row in rows]),
        settings=settings,
        environment=environment(seed=config.seed, model=model, command=command),
    )
    write_jsonl(output, rows)
    write_json(output.with_suffix(".meta.json"), report.to_dict())
    part.unlink()
    return report


def _batch_outcomes(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    prompts: list[str],
    source: Source,
    scorer: Scorer,
    config: BuilderConfig,
    seed: int,
) -> list[dict[str, Any]]:
    """A row, or the reason why there is none, for each prompt. What fails early costs nothing later."""
    chosen = generate(
        model, processing_class, prompts, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size
    )
    outcomes: list[dict[str, Any]] = [{"reason": "no candidate is toxic"} for _ in prompts]
    rows: dict[int, dict[str, Any]] = {}
    for i, (texts, value) in enumerate(zip(chosen, score(scorer, [texts[0] for texts in chosen]), strict=True)):
        if value > config.max_benign_score:
            outcomes[i] = {"reason": "chosen is not benign"}
        elif not _long_enough(texts[0], config):
            outcomes[i] = {"reason": "chosen is too short"}
        else:
            rows[i] = {"prompt": prompts[i], "chosen": texts[0], "chosen_score": round(float(value), 4)}
    if not rows:
        return outcomes
    ranked = _toxic_candidates(source([prompts[i] for i in rows], seed), scorer, config)
    toxic = {i: found for i, found in zip(rows, ranked, strict=True) if found}

    def perplexities(asked: list[tuple[str, str]]) -> list[float]:
        nll = continuation_nll(model, processing_class, *zip(*asked, strict=True), batch_size=config.batch_size)
        return [float(np.exp(total / max(tokens, 1))) for total, tokens in nll]

    benign = (
        dict(zip(toxic, perplexities([(prompts[i], rows[i]["chosen"]) for i in toxic]), strict=True)) if toxic else {}
    )
    pending = list(toxic)
    for rank in range(max(map(len, toxic.values()), default=0)):  # the most toxic fluent candidate is kept
        pending = [i for i in pending if rank < len(toxic[i])]
        if not pending:
            break
        for i, value in zip(pending, perplexities([(prompts[i], toxic[i][rank][1]) for i in pending]), strict=True):
            outcomes[i] = {"reason": "no toxic candidate is fluent"}
            if value <= config.max_perplexity_ratio * benign[i]:
                toxic_score, text = toxic[i][rank]
                rows[i] |= {
                    "rejected": text,
                    "rejected_score": round(toxic_score, 4),
                    "perplexity_ratio": round(value / benign[i], 3),
                }
                outcomes[i] = {"row": rows[i]}
        pending = [i for i in pending if "row" not in outcomes[i]]
    return outcomes


def _toxic_candidates(
    candidates: list[list[str]], scorer: Scorer, config: BuilderConfig
) -> list[list[tuple[float, str]]]:
    """For each prompt its toxic candidates as (score, text), the most toxic first."""
    scores = iter(score(scorer, [text for texts in candidates for text in texts]))
    scored = [[(float(next(scores)), text) for text in texts] for texts in candidates]
    return [
        sorted(
            (pair for pair in pairs if pair[0] >= config.min_toxic_score and _long_enough(pair[1], config)),
            reverse=True,
        )
        for pairs in scored
    ]


def _long_enough(text: str, config: BuilderConfig) -> bool:
    return len(text.split()) >= config.min_words


def _open_part(part: Path, settings: dict[str, Any], resume: bool) -> list[dict[str, Any]]:
    """The outcomes an interrupted run left (empty for a new one)."""
    if not resume:
        if part.exists() and part.read_bytes().count(b"\n") > 1:  # more than the settings
            raise UserError(f"{part} is left from an interrupted run. Pass --resume to continue it, or delete it.")
        write_jsonl(part, [{"settings": settings}])
        return []
    if not part.exists():
        write_jsonl(part, [{"settings": settings}])
        return []
    with part.open("rb+") as file:  # a power cut can leave half a line
        file.truncate(file.read().rfind(b"\n") + 1)
    header, *outcomes = read_jsonl(part)
    if header.get("settings") != settings:
        differing = sorted(
            key for key in settings | header["settings"] if settings.get(key) != header["settings"].get(key)
        )
        raise UserError(
            f"{part} was begun with other settings ({', '.join(differing)}). Use the same ones, or delete it."
        )
    whole = len(outcomes) - len(outcomes) % settings["batch_prompts"]
    if whole < len(outcomes):  # or half a batch, whose draws belong together
        write_jsonl(part, [header, *outcomes[:whole]])
    return outcomes[:whole]


def _append(part: Path, outcomes: list[dict[str, Any]]) -> None:
    """A whole batch in one write, flushed to disk, so that an interruption loses at most the batch it was in."""
    whole = part.stat().st_size
    try:
        with part.open("a", encoding="utf-8", errors="replace") as file:
            file.write("".join(json.dumps(outcome, ensure_ascii=False) + "\n" for outcome in outcomes))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        os.truncate(part, whole)
        raise RunError(f"{part} was not written: {error.strerror or error}. Make room and pass --resume.") from error
