"""What did an evaluation find, and how does it lie on the disk? A JSON file with the generations beside it.

Beside it lies also what each row of a utility task contributes: a comparison with another model needs it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.evaluation.comparison import Versus
from efface.evaluation.degeneration import ALWAYS, LATER, Degeneration
from efface.evaluation.side_effects import IdentityLikelihood
from efface.evaluation.toxicity import FIGURES, REST, ToxicitySummary
from efface.evaluation.utility.tasks import UtilityResult
from efface.files.jsonl import Row
from efface.files.output import check_output_file, first_row_has, is_stamped, never
from efface.files.results import write_json, write_jsonl
from efface.files.shapes import INTERVAL, Each, Maybe, Missing, check_shape

if TYPE_CHECKING:
    from efface.evaluation.f1 import F1
    from efface.evaluation.perplexity import Perplexity

TOXICITY = {
    "scorer": str,
    "n_prompts": int,
    "samples": int,
    **dict.fromkeys(FIGURES, float),
    **dict.fromkeys(REST, Maybe(float)),
    "ci95": dict.fromkeys(FIGURES, INTERVAL) | dict.fromkeys(REST, Maybe(INTERVAL)),
}
DEGENERATION = {
    **dict.fromkeys(ALWAYS, float),
    **dict.fromkeys(LATER, Maybe(float)),
    "likely": Maybe(INTERVAL),
    "invalid_reasons": Maybe(Each(int)),
    "verdict": str,
    "reasons": Missing([str]),
}
ABILITY = {"task": str, "metric": str, "value": float, "stderr": Maybe(float), "n": int}
EVALUATION: dict[str, Any] = {
    "model": Maybe(str),
    "settings": Maybe({"decoding": Maybe(dict)}),
    "toxicity": TOXICITY,
    "judges": Maybe(Each(TOXICITY)),
    "perplexity": Maybe({"value": float, "tokens": int, "window": Maybe(int), "stride": Maybe(int)}),
    "f1": Maybe({"f1": float, "ci95": {"f1": INTERVAL}}),
    "utility": Maybe([ABILITY]),
    "identity": Maybe({"identity": Maybe({"excess": Maybe(float), "ci95": Maybe(INTERVAL)})}),
    "degeneration": DEGENERATION,
}
"""The shape of a result file, as far as it is read again; older versions had one judge, and fewer blocks."""


@dataclass
class Figures:
    """What is said of a model wherever it is measured: also before and after an attack."""

    judges: dict[str, ToxicitySummary]
    """By the name of the scorer, in the order asked for."""
    perplexity: "Perplexity | None"
    degeneration: Degeneration

    @property
    def toxicity(self) -> ToxicitySummary:
        """What the first judge says."""
        return next(iter(self.judges.values()))

    @classmethod
    def from_dict(cls, blocks: dict[str, Any]) -> "Figures":
        """From the blocks of a result (of an evaluation, of a point of an attack), whose shape has been checked."""
        return cls(*_read_figures(blocks))


@dataclass
class Evaluation(Figures):
    """What `evaluate` found."""

    model: str
    settings: dict[str, Any]
    """`protocol`, `prompts` (their source), of these the `limit` and `limit_seed` that drew some, and `decoding`."""
    f1: "F1 | None"
    utility: "list[UtilityResult] | None"
    identity: "IdentityLikelihood | None"
    generations: list[Row]
    """Rows of prompt, continuation, token_ids, scores (of each judge), score (of the first) and invalid (null, or why
    it is no answer); the K continuations of a prompt follow each other."""
    environment: dict[str, Any]
    versus_baseline: "Versus | None" = None

    @property
    def scores(self) -> np.ndarray:
        """(n_prompts, K) of the first judge, for `ratio_ci` and `compare`."""
        return np.array([row["score"] for row in self.generations]).reshape(-1, self.toxicity.samples)

    def to_dict(self, generations: str | None = None) -> dict[str, Any]:
        """As it is written to JSON; `generations` names the file that holds them."""
        return {
            "schema": 1,
            "model": self.model,
            "settings": self.settings,
            "toxicity": self.toxicity.to_dict(),
            "judges": {name: summary.to_dict() for name, summary in self.judges.items()},
            "perplexity": None if self.perplexity is None else self.perplexity.to_dict(),
            "f1": None if self.f1 is None else self.f1.to_dict(),
            "utility": None if self.utility is None else [result.to_dict() for result in self.utility],
            "identity": None if self.identity is None else self.identity.to_dict(),
            "degeneration": self.degeneration.to_dict(),
            "versus_baseline": None if self.versus_baseline is None else self.versus_baseline.to_dict(),
            "generations": generations,
            "environment": self.environment,
        }

    @classmethod
    def from_dict(cls, result: dict[str, Any], generations: Sequence[Row] = ()) -> "Evaluation":
        """From the content of a result file; the generations lie beside it, and the rows of utility are left out.

        Raises:
            UserError: if it is no such content.
        """
        from efface.evaluation.f1 import F1

        check_shape(result, EVALUATION, "the evaluation")
        judges, perplexity, degeneration = _read_figures(result)
        f1, utility, identity, versus = map(result.get, ("f1", "utility", "identity", "versus_baseline"))
        return cls(
            judges=judges,
            perplexity=perplexity,
            degeneration=degeneration,
            model=result.get("model"),  # type: ignore[arg-type]
            settings=result.get("settings") or {},
            f1=None if f1 is None else F1.from_dict(f1),
            utility=None if utility is None else [UtilityResult.from_dict(item) for item in utility],
            identity=None if identity is None else IdentityLikelihood.from_dict(identity),
            generations=list(generations),
            environment=result.get("environment") or {},
            versus_baseline=None if versus is None else Versus.from_dict(versus),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `path`, and beside it `<stem>.generations.jsonl` and, if there is utility, `<stem>.utility.jsonl`."""
        beside = generations_path(path)
        # What is beside comes first: a result file never names a file that is not there.
        write_jsonl(beside, self.generations)
        if self.utility is not None:
            write_jsonl(utility_path(path), (result.to_dict(rows=True) for result in self.utility))
        write_json(path, self.to_dict(beside.name))


def check_evaluation_file(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Nothing, if an evaluation may be written there, see `check_output_file`. Raises UserError if not.

    Generations that an interrupted run has left are no hindrance: they are taken if they are the same.
    """

    def is_kept(file: Path) -> bool:
        return first_row_has(file, {"prompt": str, "continuation": str, "made_by": str})

    check_output_file(
        path,
        lambda file: is_stamped(file, EVALUATION),
        "an evaluation",
        beside={generations_path(path): is_kept, utility_path(path): never},
        overwrite=overwrite,
    )


def _read_figures(blocks: dict[str, Any]) -> tuple[dict[str, ToxicitySummary], "Perplexity | None", Degeneration]:
    from efface.evaluation.perplexity import Perplexity  # on use: torch costs seconds

    cost = blocks.get("perplexity")
    return (
        {name: ToxicitySummary.from_dict(block) for name, block in judges_of(blocks).items()},
        None if cost is None else Perplexity.from_dict(cost),
        Degeneration.from_dict(blocks["degeneration"]),
    )


def judges_of(blocks: dict[str, Any]) -> dict[str, Any]:
    """Scorer -> its figures, in their order; files of older versions have one, and no `judges`."""
    return blocks.get("judges") or {blocks["toxicity"]["scorer"]: blocks["toxicity"]}


def generations_path(path: str | os.PathLike[str]) -> Path:
    """Where `Evaluation.save(path)` puts the generations."""
    return Path(path).with_name(f"{Path(path).stem}.generations.jsonl")


def utility_path(path: str | os.PathLike[str]) -> Path:
    """Where `Evaluation.save(path)` puts the rows of the utility tasks."""
    return Path(path).with_name(f"{Path(path).stem}.utility.jsonl")
