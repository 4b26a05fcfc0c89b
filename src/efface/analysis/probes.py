"""How well does a linear probe tell toxic states from benign ones, and where does it point?

For whoever needs the probe itself: PPLM follows its gradient, `directions.py` its normal. What it reads may be no more
than which tokens there are, so it says nothing of erasure; that is what `conditional.py` is for. Its quality is
measured on held-out texts or pairs, beside one with shuffled labels, with percentile bootstraps over those groups.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from efface.analysis.heldout import HeldOut
from efface.analysis.states import check_binary
from efface.errors import UserError
from efface.files.io import is_regular_file, renamed_when_whole
from efface.files.results import parse_json
from efface.files.shapes import INTERVAL, check_shape
from efface.resampling import interval_of

RESAMPLES = 1000
QUALITY: dict[str, Any] = dict.fromkeys(("balanced_accuracy", "auc", "shuffled", "shuffled_auc"), float)
QUALITY |= {"ci95": INTERVAL, "auc_ci95": INTERVAL, "n": int, "n_groups": int}
"""The shape of a probe's quality on the disk."""


@dataclass
class ProbeQuality:
    """Held-out figures of a probe, by cross-validation that keeps groups (texts, pairs) together."""

    balanced_accuracy: float
    """Mean of the shares of either class that are recognised: one half is chance, whatever the classes' sizes."""
    ci95: tuple[float, float]
    """Of `balanced_accuracy`."""
    auc: float
    """Area under the ROC curve: the chance that a toxic state scores above a benign one."""
    auc_ci95: tuple[float, float]
    shuffled: float
    """Balanced accuracy with labels shuffled among groups; one half if the procedure is sound."""
    shuffled_auc: float
    n: int
    """States."""
    n_groups: int


@dataclass
class LinearProbe:
    """logit(toxic) = weight . h + bias, of raw hidden states."""

    weight: np.ndarray
    """(d,) float32"""
    bias: float
    quality: ProbeQuality

    @overload
    def logits(self, hidden: np.ndarray) -> np.ndarray: ...
    @overload
    def logits(self, hidden: Tensor) -> Tensor: ...
    def logits(self, hidden: Any) -> Any:
        """(n, d) -> (n,), positive for toxic; gradients flow through a tensor."""
        weight: Any = self.weight
        if isinstance(hidden, Tensor):  # rounded first: MPS has no float64
            weight = torch.as_tensor(weight).to(hidden.dtype).to(hidden.device)
        return hidden @ weight + self.bias

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, with the quality as JSON in its header. Raises RunError if that fails."""
        tensors = {"weight": self.weight, "bias": np.array([self.bias])}
        content = safetensors.numpy.save(tensors, metadata={"quality": json.dumps(asdict(self.quality))})
        with renamed_when_whole(Path(path)) as temporary:
            temporary.write_bytes(content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "LinearProbe":
        """Read what `save` wrote.

        Raises:
            UserError: if the file is missing or holds no probe.
        """
        try:
            if not is_regular_file(path):
                raise TypeError("there is no regular file")
            with safetensors.safe_open(path, framework="np") as file:
                quality = parse_json(file.metadata()["quality"], "its header")
                check_shape(quality, QUALITY, "the quality in its header")
                weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
                if weight.ndim != 1 or bias.shape != (1,) or not (np.isfinite(weight).all() and np.isfinite(bias[0])):
                    raise ValueError("its weight must be a vector and its bias a number, both finite")
        except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{os.fspath(path)} holds no linear probe ({error}). Pass a file that LinearProbe.save wrote."
            ) from error
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in quality.items()
        }
        return cls(weight, float(bias[0]), ProbeQuality(**{name: given[name] for name in QUALITY}))


def fit_probe(
    hidden: np.ndarray,
    labels: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    folds: int = 5,
    regularisation: float = 0.01,
    seed: int = 0,
) -> LinearProbe:
    """A probe and how good it is: the weights from all states, the quality by cross-validation.

    Args:
        hidden: (n, d) states of tokens or texts, as they are: the probe standardises them itself.
        labels: (n,) 1 for toxic, 0 for benign.
        groups: (n,) which states belong together and are never split between training and test (the tokens of a
            pair); None: each state is on its own.
        folds: of the cross-validation; each class must be in at least as many groups.
        regularisation: scikit-learn's C, inverse strength of the L2 penalty on standardised states.
        seed: of folds, shuffled labels and intervals.

    Raises:
        UserError: for arrays that do not fit together, states that are not finite, or too few groups.
    """
    hidden, labels = check_binary(hidden, labels)
    quality = _quality(hidden, HeldOut(labels, groups, folds, seed), regularisation)
    weight, bias = logistic_weights(hidden, labels, regularisation)
    return LinearProbe(weight.astype(np.float32), bias, quality)


def logistic_weights(hidden: np.ndarray, labels: np.ndarray, regularisation: float) -> tuple[np.ndarray, float]:
    """(d,) weight and bias, for raw states, of a logistic probe trained on standardised ones."""
    scaler, classifier = _probe(regularisation).fit(hidden, labels)
    weight = classifier.coef_[0] / scaler.scale_
    return weight, float(classifier.intercept_[0] - weight @ scaler.mean_)


def _quality(hidden: np.ndarray, held_out: HeldOut, regularisation: float) -> ProbeQuality:
    true, shuffled = held_out.labels, held_out.shuffled_labels()
    figures = held_out.figures(held_out.scores(_probe(regularisation), hidden, true), true, RESAMPLES)
    control = held_out.figures(held_out.scores(_probe(regularisation), hidden, shuffled), shuffled, 0)
    return ProbeQuality(
        balanced_accuracy=float(figures[0, 0]),
        ci95=interval_of(figures[1:, 0]),
        auc=float(figures[0, 1]),
        auc_ci95=interval_of(figures[1:, 1]),
        shuffled=float(control[0, 0]),
        shuffled_auc=float(control[0, 1]),
        n=len(true),
        n_groups=held_out.n_groups,
    )


def _probe(regularisation: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = LogisticRegression(C=regularisation, max_iter=500, class_weight="balanced")
    return make_pipeline(StandardScaler(), classifier)
