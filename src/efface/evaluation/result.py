"""What did an evaluation find, and how does it lie on the disk? A JSON file with the generations beside it.

Beside it lies also what each row of a utility task contributes: a comparison with another model needs it.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.evaluation.degeneration import ALWAYS, LATER, Degeneration
from efface.evaluation.toxicity import FIGURES, ToxicitySummary
from efface.files.jsonl import Row
from efface.files.results import write_json, write_jsonl
from efface.files.shapes import INTERVAL, Each, Maybe, Missing

TOXICITY = {
    "scorer": str,
    "n_prompts": int,
    "samples": int,
    **dict.fromkeys(FIGURES, float),
    "ci95": dict.fromkeys(FIGURES, INTERVAL),
}
DEGENERATION = {
    **dict.fromkeys(ALWAYS, float),
    **dict.fromkeys(LATER, Maybe(float)),
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

if TYPE_CHECKING:
    from efface.evaluation.f1 import F1
    from efface.evaluation.perplexity import Perplexity
    from efface.evaluation.side_effects import IdentityLikelihood
    from efface.evaluation.utility.tasks import UtilityResult


@dataclass
class Evaluation:
    """What `evaluate` found."""

    model: str
    settings: dict[str, Any]
    """`protocol`, `prompts` (their source) and `decoding`."""
    judges: dict[str, ToxicitySummary]
    """By the name of the scorer, in the order asked for."""
    perplexity: "Perplexity | None"
    f1: "F1 | None"
    utility: "list[UtilityResult] | None"
    identity: "IdentityLikelihood | None"
    degeneration: Degeneration
    generations: list[Row]
    """Rows of prompt, continuation, token_ids, scores (of each judge) and score (of the first); the K continuations of
    a prompt follow each other."""
    environment: dict[str, Any]
    versus_baseline: dict[str, Any] | None = None
    """See `comparison.versus`."""

    @property
    def toxicity(self) -> ToxicitySummary:
        """What the first judge says."""
        return next(iter(self.judges.values()))

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
            "versus_baseline": self.versus_baseline,
            "generations": generations,
            "environment": self.environment,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `path`, and beside it `<stem>.generations.jsonl` and, if there is utility, `<stem>.utility.jsonl`."""
        beside = generations_path(path)
        # What is beside comes first: a result file never names a file that is not there.
        write_jsonl(beside, self.generations)
        if self.utility is not None:
            write_jsonl(utility_path(path), (result.to_dict(rows=True) for result in self.utility))
        write_json(path, self.to_dict(beside.name))


def generations_path(path: str | os.PathLike[str]) -> Path:
    """Where `Evaluation.save(path)` puts the generations."""
    return Path(path).with_name(f"{Path(path).stem}.generations.jsonl")


def utility_path(path: str | os.PathLike[str]) -> Path:
    """Where `Evaluation.save(path)` puts the rows of the utility tasks."""
    return Path(path).with_name(f"{Path(path).stem}.utility.jsonl")
