"""Against what is an edited model measured? The evaluation of its base, checked, and what differs from it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.errors import UserError
from efface.evaluation.comparison import Comparisons, Versus, compare, compare_shares
from efface.evaluation.degeneration import Degeneration
from efface.evaluation.outcome import Outcomes, outcomes_of
from efface.evaluation.result import ABILITY, EVALUATION, Evaluation, generations_path, utility_path
from efface.evaluation.toxicity import FIGURES
from efface.evaluation.utility.comparison import UtilityDifference, compare_utility
from efface.evaluation.utility.tasks import UtilityResult
from efface.files.jsonl import Row, read_jsonl
from efface.files.results import read_json
from efface.files.shapes import Each, Maybe, Missing, check_shape, shown
from efface.generation.decoding import OWN
from efface.scoring.scorer import THRESHOLD

if TYPE_CHECKING:
    from efface.evaluation.perplexity import Perplexity

UTILITY: dict[str, Any] = ABILITY | {"rows": Maybe([float]), "fingerprint": Maybe(str)}
"""The shape of a line of the utility file."""
GENERATION = {
    "prompt": str,
    "continuation": str,
    "token_ids": Missing([int]),
    "scores": Missing(Each(float)),
    "score": Missing(float),
    "invalid": Maybe(str),
}
"""The shape of a line of the generations."""


@dataclass
class Baseline:
    """The evaluation of the untouched model, to measure an edited one against."""

    result: dict[str, Any]
    """As `efface evaluate` writes it."""
    degeneration: Degeneration
    generations: Sequence[Row] | None = None
    """With their scores; None if there is only the result, as for utility."""
    utility: Sequence[UtilityResult] | None = None

    def outcomes(self, prompts: Sequence[str], judge: str, special: set[int]) -> Outcomes | None:
        """What its continuations of `prompts` are; None if it has none of just these, or they were never scored.

        Args:
            judge: by whose scores they are toxic, if it scored them; otherwise their own first judge's.
            special: token ids that count for nothing.
        """
        rows, samples = self.generations or [], self.result["toxicity"]["samples"]
        if samples < 1 or len(rows) != samples * len(prompts) or [row["prompt"] for row in rows[::samples]] != prompts:
            return None
        return outcomes_of(rows, samples, judge, special)

    @property
    def settings(self) -> dict[str, Any]:
        """How it was made, as far as it says."""
        return self.result.get("settings") or {}

    @property
    def generator(self) -> str:
        """Who wrote its continuations."""
        return _setting(self.settings.get("decoding") or {}, "generator") or OWN

    @property
    def perplexity(self) -> "Perplexity | None":
        """What ordinary text costs the untouched model."""
        from efface.evaluation.perplexity import Perplexity

        block = self.result.get("perplexity")
        return None if block is None else Perplexity.from_dict(block)


def read_baseline(source: "Baseline | Evaluation | dict[str, Any] | str | os.PathLike[str]") -> Baseline:
    """From an evaluation, from its JSON file with what lies beside it, or from the content of that file alone.

    All that a comparison or a table reads of it later is checked here, before the work.

    Raises:
        UserError: if it is no evaluation, or a file cannot be read.
    """
    if isinstance(source, Baseline):
        return source
    if not isinstance(source, dict | str | os.PathLike):
        return Baseline(source.to_dict(), source.degeneration, source.generations, source.utility)
    result = source if isinstance(source, dict) else read_json(source)
    baseline = Baseline(result, Degeneration.from_dict(result.get("degeneration", {})))
    if not isinstance(result.get("toxicity"), dict):
        raise UserError("the baseline has no 'toxicity' block: pass a file that efface evaluate wrote.")
    name = "" if isinstance(source, dict) else f" {os.fspath(source)}"
    check_shape(result, EVALUATION, f"the baseline{name}")
    if not isinstance(source, dict):
        generations, utility = generations_path(source), utility_path(source)
        baseline.generations = _read_generations(generations) if os.path.lexists(generations) else None
        if result.get("utility") and os.path.lexists(utility):
            baseline.utility = _read_utility(utility)
    return baseline


def _read_generations(path: Path) -> list[Row]:
    """The rows beside a baseline; each has the scores of the same judges, or none has any."""
    rows = read_jsonl(path)
    check_shape(rows, [GENERATION], os.fspath(path))
    for number, row in enumerate(rows, 1):
        scores = row.get("scores", {})
        if scores.keys() != rows[0].get("scores", {}).keys():
            raise UserError(f"{path}:{number}: the scores are of other judges than in the first row. Evaluate again.")
        if not all(0 <= value <= 1 for value in scores.values()):
            raise UserError(f"{path}:{number}: the scores {shown(scores)} are not within 0 and 1. Evaluate again.")
    return rows


def _read_utility(path: Path) -> list[UtilityResult]:
    """The rows of the tasks beside a baseline."""
    results = read_jsonl(path)
    check_shape(results, [UTILITY], os.fspath(path))
    for number, row in enumerate(results, 1):
        if row.get("rows") is not None and len(row["rows"]) != row["n"]:
            raise UserError(f"{path}:{number}: {len(row['rows'])} rows, where 'n' says {row['n']}. Evaluate again.")
    return [UtilityResult.from_dict(row) for row in results]


def compare_with_baseline(evaluation: Evaluation, baseline: Baseline) -> Versus:
    """What differs between an edited model and its baseline, and what could not be compared."""
    not_compared = [f"toxicity: {reason}" for reason in _find_obstacles(evaluation, baseline)]
    judges: Comparisons = {}
    if not not_compared:
        samples = evaluation.toxicity.samples
        rows = (evaluation.generations, baseline.generations or [])
        edited, base = (_scores(some, samples) for some in rows)
        judges = {
            name: {figure: compare(edited[name], base[name], figure) for figure in FIGURES}
            for name in edited
            if name in base and not _other_version(evaluation, baseline, name)
        }
        if all("invalid" in row for some in rows for row in some):  # older versions do not say it
            for name, figures in judges.items():
                figures["invalid"] = compare_shares(*(_invalid(some, samples, name) for some in rows))
        for name in edited:
            if name not in base:
                not_compared.append(f"toxicity: the baseline has no scores of {name}")
            elif name not in judges:
                not_compared.append(f"toxicity: {name} is not the judge that it was then: its version is another")
    ratio, why = _divide_perplexities(evaluation, baseline)
    not_compared += [] if why is None else [f"perplexity: {why}"]
    abilities: list[UtilityDifference] = []
    if evaluation.utility is not None:
        try:
            abilities = compare_utility(baseline.utility or [], evaluation.utility)
        except UserError as error:
            not_compared.append(f"utility: {error}")
    return Versus(
        model=baseline.result.get("model"),
        judges=judges,
        perplexity_ratio=ratio,
        utility=abilities,
        not_compared=not_compared,
    )


def _find_obstacles(evaluation: Evaluation, baseline: Baseline) -> list[str]:
    """What keeps the two from being compared by prompt."""
    here, there = evaluation.settings["decoding"], baseline.settings.get("decoding")
    if there is None:
        return ["the baseline does not say how it decoded: measure it again"]
    if not baseline.generations or "scores" not in baseline.generations[0]:
        return ["the generations of the baseline, with their scores, are not beside it"]
    differs = [
        f"{key} is {_setting(here, key)} here and {_setting(there, key)} in the baseline"
        for key in dict.fromkeys([*here, *there])
        if here.get(key) != there.get(key)
    ]
    if [row["prompt"] for row in evaluation.generations] != [row.get("prompt") for row in baseline.generations]:
        differs.append(f"the prompts are not the same{_draws(evaluation.settings, baseline.settings)}")
    return differs


def _setting(decoding: dict[str, Any], key: str) -> Any:
    """One of a record, which does not name efface's own decoder."""
    return decoding.get(key, OWN if key == "generator" else None)


def _draws(here: dict[str, Any], there: dict[str, Any]) -> str:
    """How prompts were drawn, if they were drawn differently."""
    words = [
        f"all {side}" if how.get("limit") is None else f"{how['limit']} by seed {how.get('limit_seed')} {side}"
        for side, how in (("here", here), ("in the baseline", there))
    ]
    keys = ("limit", "limit_seed")
    return "" if all(here.get(key) == there.get(key) for key in keys) else f": {' and '.join(words)}"


def _scores(rows: Sequence[Row], samples: int) -> dict[str, np.ndarray]:
    """(n_prompts, samples) of each judge."""
    return {name: np.array([row["scores"][name] for row in rows]).reshape(-1, samples) for name in rows[0]["scores"]}


def _invalid(rows: Sequence[Row], samples: int, judge: str) -> np.ndarray:
    """(n_prompts,) the parts of each prompt's continuations that are invalid, but not toxic."""
    rest = [row["invalid"] is not None and not row["scores"][judge] > THRESHOLD for row in rows]
    return np.array(rest).reshape(-1, samples).mean(1)


def _other_version(evaluation: Evaluation, baseline: Baseline, judge: str) -> bool:
    """Whether a judge says of itself that it is another than that of this name that scored the baseline."""
    versions = [(one.get("judges") or {}).get(judge) for one in (evaluation.settings, baseline.settings)]
    return None not in versions and versions[0] != versions[1]


def _divide_perplexities(evaluation: Evaluation, baseline: Baseline) -> tuple[float | None, str | None]:
    """The edited model's over the base's, or why there is none; neither where one was not measured."""
    edited, base = evaluation.perplexity, baseline.perplexity
    if edited is None or base is None:
        return None, None
    for what in ("tokens", "window", "stride"):
        here, there = getattr(edited, what), getattr(base, what)
        if here != there:
            return None, f"{what} {here} here and {there} in the baseline"
    for what in ("text", "tokenizer"):  # older results do not say them
        said = [one.get(what) for one in (evaluation.settings, baseline.settings)]
        if None not in said and said[0] != said[1]:
            return None, f"the {what} is another than that of the baseline"
    if not base.value:  # no perplexity is 0
        return None, "that of the baseline is 0, which none is"
    return float(edited.value / base.value), None
