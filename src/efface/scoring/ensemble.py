"""What do several scorers say together? Their mean (agreement) or their maximum (any of them objects)."""

from collections.abc import Callable, Sequence

import numpy as np

from efface.errors import UserError
from efface.scoring.scorer import Scorer, score

HOW: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda scores: scores.mean(0),  # (members, n) -> (n,)
    "max": lambda scores: scores.max(0),
}


class Ensemble:
    """The `mean` or `max` of its members' scores, each of them checked.

    It has a version if all members have one, may select pairs if all members may, and has seen in training what any
    of them has seen.

    Raises:
        UserError: for fewer than two members, or two of one name.
    """

    def __init__(self, how: str, members: Sequence[Scorer]) -> None:
        names = [member.name for member in members]
        self.name = f"{how}:{','.join(names)}"
        if len(set(names)) < max(2, len(names)):
            raise UserError(f"scorer {self.name!r}: an ensemble needs two different scorers or more, with commas.")
        self.how, self.members = how, members
        self.selects_pairs = all(getattr(member, "selects_pairs", True) for member in members)
        versions = [getattr(member, "version", None) for member in members]
        self.version = None if None in versions else ",".join(map(str, versions))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return HOW[self.how](np.stack([score(member, texts) for member in self.members]))

    def of_answers(self, prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """Each member reads the prompts if it can."""
        return HOW[self.how](np.stack([score(member, texts, prompts) for member in self.members]))

    def seen(self, texts: Sequence[str]) -> np.ndarray:
        """(n,) whether a member was trained on the text."""
        known = [member.seen(texts) for member in self.members if hasattr(member, "seen")]
        return np.any(known, axis=0) if known else np.zeros(len(texts), dtype=bool)
