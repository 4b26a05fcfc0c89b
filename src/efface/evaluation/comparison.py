"""How does an edited model differ from its base? On the same prompts and seeds, prompt by prompt.

For each figure of toxicity: the difference edited - base, its 95 % interval by a paired bootstrap over prompts, and p
by a sign-flip permutation test. If neither model were the more toxic one, a prompt's difference could as well have had
the other sign: p is the share of all assignments of signs whose mean difference is at least as far from zero. Up to
EXACT prompts that differ, all assignments are counted; for more, m are drawn, and p = (k + 1) / (m + 1) with the k
that are as far from zero (Phipson and Smyth 2010).
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.errors import UserError
from efface.evaluation.degeneration import Degeneration
from efface.evaluation.result import ABILITY, EVALUATION, generations_path, utility_path
from efface.evaluation.toxicity import FIGURES, interval, paired
from efface.evaluation.utility.comparison import compare_utility
from efface.evaluation.utility.tasks import UtilityResult
from efface.files.jsonl import Row, read_jsonl
from efface.files.results import read_json
from efface.files.shapes import Each, Maybe, Missing, check_shape, shown

if TYPE_CHECKING:
    from efface.evaluation.result import Evaluation

UTILITY: dict[str, Any] = ABILITY | {"rows": Maybe([float]), "fingerprint": Maybe(str)}
"""The shape of a line of the utility file."""
EXACT = 13  # 2^13 = 8,192 assignments of signs


@dataclass(frozen=True)
class Comparison:
    """One figure of two models on the same prompts."""

    edited: float
    base: float
    difference: float
    """edited - base: negative where the edit made the model less toxic."""
    ci95: list[float]
    """Of the difference, [lower, upper]."""
    p: float
    """Two-sided, of the sign-flip test."""


def compare(
    edited: np.ndarray,
    base: np.ndarray,
    figure: str = "mean",
    *,
    resamples: int = 2000,
    permutations: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare `figure` of two models, prompt by prompt.

    Args:
        edited, base: (n_prompts, K) scores on the same prompts in the same order; K may differ.
        figure: one of `toxicity.FIGURES`.
        resamples: of the bootstrap.
        permutations: drawn where there are too many to count.

    Raises:
        UserError: if the two do not have the same prompts, or there is no such figure.
    """
    table = paired(edited, base, figure)  # (n, 2)
    differences = table[:, 0] - table[:, 1]  # (n,)
    lower, upper = interval(differences[:, None], resamples=resamples, seed=seed)[:, 0].tolist()
    return Comparison(
        edited=float(table[:, 0].mean()),
        base=float(table[:, 1].mean()),
        difference=float(differences.mean()),
        ci95=[lower, upper],
        p=sign_flip_p(differences, permutations=permutations, seed=seed),
    )


def sign_flip_p(differences: np.ndarray, *, permutations: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of the null hypothesis that the signs of `differences`, (n,), are those of fair coins."""
    nonzero = differences[differences != 0]  # the sign of a zero changes nothing
    n = len(nonzero)
    observed = abs(nonzero.sum()) - 1e-9 * np.abs(nonzero).sum()  # equal sums may round differently
    if n <= EXACT:
        flipped = (np.arange(2**n)[:, None] >> np.arange(n)) & 1  # (2^n, n)
        return float((np.abs((1 - 2 * flipped) @ nonzero) >= observed).mean())
    generator = np.random.default_rng(seed)
    block = max(1, 4_000_000 // n)  # bounds the memory
    as_far = 0
    for start in range(0, permutations, block):
        flipped = generator.integers(0, 2, size=(min(block, permutations - start), n), dtype=np.int8)  # (r, n)
        as_far += int((np.abs((1 - 2 * flipped) @ nonzero) >= observed).sum())
    return (as_far + 1) / (permutations + 1)


@dataclass
class Baseline:
    """The evaluation of the untouched model, to measure an edited one against."""

    result: dict[str, Any]
    """As `efface evaluate` writes it."""
    degeneration: Degeneration
    generations: Sequence[Row] | None = None
    """With their scores; None if there is only the result, as for utility."""
    utility: Sequence[UtilityResult] | None = None


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
        baseline.generations = _generations(generations) if os.path.lexists(generations) else None
        if result.get("utility") and os.path.lexists(utility):
            baseline.utility = _utility(utility)
    return baseline


def _generations(path: Path) -> list[Row]:
    """The rows beside a baseline; each has the scores of the same judges, or none has any."""
    rows = read_jsonl(path)
    check_shape(rows, [{"prompt": str, "scores": Missing(Each(float))}], os.fspath(path))
    for number, row in enumerate(rows, 1):
        scores = row.get("scores", {})
        if scores.keys() != rows[0].get("scores", {}).keys():
            raise UserError(f"{path}:{number}: the scores are of other judges than in the first row. Evaluate again.")
        if not all(0 <= value <= 1 for value in scores.values()):
            raise UserError(f"{path}:{number}: the scores {shown(scores)} are not within 0 and 1. Evaluate again.")
    return rows


def _utility(path: Path) -> list[UtilityResult]:
    """The rows of the tasks beside a baseline."""
    results = read_jsonl(path)
    check_shape(results, [UTILITY], os.fspath(path))
    for number, row in enumerate(results, 1):
        if row.get("rows") is not None and len(row["rows"]) != row["n"]:
            raise UserError(f"{path}:{number}: {len(row['rows'])} rows, where 'n' says {row['n']}. Evaluate again.")
    kept: list[dict[str, Any]] = [{name: row.get(name) for name in UTILITY} for row in results]
    return [UtilityResult(**fields) for fields in kept]


def versus(evaluation: "Evaluation", baseline: Baseline) -> dict[str, Any]:
    """The block `versus_baseline` of a result.

    Returns:
        `model` (of the baseline); `judges`: for each judge of both and each figure the fields of `Comparison`;
        `perplexity_ratio`, edited over base, None where one lacks it or it was not measured alike; `utility`: the
        fields of `UtilityDifference` for each figure of each task; `not_compared`: what was not, and why, in words.
    """
    not_compared = [f"toxicity: {reason}" for reason in _differences(evaluation, baseline)]
    judges: dict[str, Any] = {}
    if not not_compared:
        samples = evaluation.toxicity.samples
        edited, base = (_scores(rows, samples) for rows in (evaluation.generations, baseline.generations or []))
        judges = {
            name: {figure: asdict(compare(edited[name], base[name], figure)) for figure in FIGURES}
            for name in edited
            if name in base
        }
        not_compared += [f"toxicity: the baseline has no scores of {name}" for name in edited if name not in base]
    abilities: list[dict[str, Any]] = []
    if evaluation.utility is not None:
        try:
            abilities = [item.to_dict() for item in compare_utility(baseline.utility or [], evaluation.utility)]
        except UserError as error:
            not_compared.append(f"utility: {error}")
    result = evaluation.to_dict()
    return {
        "model": baseline.result.get("model"),
        "judges": judges,
        "perplexity_ratio": _perplexity_ratio(result["perplexity"], baseline.result.get("perplexity")),
        "utility": abilities,
        "not_compared": not_compared,
    }


def _differences(evaluation: "Evaluation", baseline: Baseline) -> list[str]:
    """What keeps the two from being compared by prompt."""
    here, there = evaluation.settings["decoding"], (baseline.result.get("settings") or {}).get("decoding")
    if there is None:
        return ["the baseline does not say how it decoded: measure it again"]
    if not baseline.generations or "scores" not in baseline.generations[0]:
        return ["the generations of the baseline, with their scores, are not beside it"]
    differs = [
        f"{key} is {value} here and {there.get(key)} in the baseline"
        for key, value in here.items()
        if value != there.get(key)
    ]
    if [row["prompt"] for row in evaluation.generations] != [row.get("prompt") for row in baseline.generations]:
        differs.append("the prompts are not the same")
    return differs


def _scores(rows: Sequence[Row], samples: int) -> dict[str, np.ndarray]:
    """(n_prompts, samples) of each judge."""
    return {name: np.array([row["scores"][name] for row in rows]).reshape(-1, samples) for name in rows[0]["scores"]}


def _perplexity_ratio(edited: dict[str, Any] | None, base: dict[str, Any] | None) -> float | None:
    if edited is None or base is None or any(edited[key] != base.get(key) for key in ("tokens", "window", "stride")):
        return None
    if not base["value"]:  # no perplexity is 0
        return None
    return float(edited["value"] / base["value"])
