"""How well does a linear probe tell toxic states from benign ones, beyond what the tokens themselves give away?

Erasure is never judged by the adversary's own accuracy: a logistic probe is trained from scratch and measured on
held-out texts or pairs, against two controls: one that sees only which tokens there are, and one with shuffled labels.
All intervals are percentile bootstraps over the independent units: texts, or pairs of which many tokens come.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from efface.analysis.heldout import HeldOut
from efface.analysis.states import TokenStates, check_binary
from efface.errors import UserError
from efface.files.io import is_regular_file, renamed_when_whole
from efface.files.results import parse_json
from efface.files.shapes import INTERVAL, check_shape
from efface.progress import track
from efface.resampling import interval_of

RESAMPLES = 1000
QUALITY: dict[str, Any] = dict.fromkeys(("balanced_accuracy", "auc", "shuffled", "shuffled_auc"), float)
QUALITY |= {"ci95": INTERVAL, "auc_ci95": INTERVAL, "n": int, "n_groups": int}
"""The shape of a probe's quality on the disk."""
REGULARISATION_OF_TOKENS = 1.0
"""scikit-learn's C of the probe that sees which tokens there are."""


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
class ProbeResult(ProbeQuality):
    """The same beside a probe that sees the tokens alone."""

    token_identity: float
    """Balanced accuracy of the probe that sees the tokens alone."""
    token_identity_auc: float
    excess: float
    """balanced_accuracy - token_identity."""
    excess_ci95: tuple[float, float]
    excess_auc: float
    """auc - token_identity_auc."""
    excess_auc_ci95: tuple[float, float]


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
        weight = torch.as_tensor(self.weight).to(hidden) if isinstance(hidden, Tensor) else self.weight
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
    quality, _ = _quality(hidden, HeldOut(labels, groups, folds, seed), regularisation)
    weight, bias = logistic_weights(hidden, labels, regularisation)
    return LinearProbe(weight.astype(np.float32), bias, ProbeQuality(**quality))


def probe_layers(
    hidden: Mapping[int, np.ndarray],
    labels: np.ndarray,
    tokens: Sequence[Sequence[int]],
    *,
    groups: np.ndarray | None = None,
    folds: int = 5,
    regularisation: float = 0.01,
    seed: int = 0,
    progress: bool = False,
) -> dict[int, ProbeResult]:
    """Layer -> how well a probe of that layer does, beside one that sees the tokens alone.

    Args:
        hidden: layer -> (n, d), such as `pooled_states` gives.
        tokens: the ids of the tokens behind each of the n states: of a whole text (`text_token_ids`), or a single one.
        labels, groups, folds, regularisation, seed: as for `fit_probe`.

    Raises:
        UserError: as `fit_probe`, or if `tokens` does not have an entry for each state.
    """
    from sklearn.preprocessing import MultiLabelBinarizer

    for states in hidden.values():
        check_binary(states, labels)
    labels = np.asarray(labels).astype(int)
    if len(tokens) != len(labels):
        raise UserError(
            f"there are {len(labels)} labels and token ids of {len(tokens)} states: each state needs its own."
        )
    held_out = HeldOut(labels, groups, folds, seed)
    present = MultiLabelBinarizer(sparse_output=True).fit_transform(tokens)  # (n, distinct tokens)
    control = held_out.figures(
        held_out.scores(_logistic(REGULARISATION_OF_TOKENS), present, labels), labels, RESAMPLES
    )
    results = {}
    for layer, states in track(hidden.items(), "probes", show=progress, total=len(hidden)):
        quality, figures = _quality(states, held_out, regularisation)
        excess = figures - control  # of the same resamples, so paired
        results[layer] = ProbeResult(
            **quality,
            token_identity=float(control[0, 0]),
            token_identity_auc=float(control[0, 1]),
            excess=float(excess[0, 0]),
            excess_ci95=interval_of(excess[1:, 0]),
            excess_auc=float(excess[0, 1]),
            excess_auc_ci95=interval_of(excess[1:, 1]),
        )
    return results


def fresh_probe(states: TokenStates, *, folds: int = 5, regularisation: float = 0.01, seed: int = 0) -> ProbeResult:
    """`probe_layers` for the tokens of preference pairs after one layer; the tokens of a pair are kept together."""
    results = probe_layers(
        {0: states.hidden},
        states.labels,
        states.token_ids[:, None].tolist(),
        groups=states.pairs,
        folds=folds,
        regularisation=regularisation,
        seed=seed,
    )
    return results[0]


def logistic_weights(hidden: np.ndarray, labels: np.ndarray, regularisation: float) -> tuple[np.ndarray, float]:
    """(d,) weight and bias, for raw states, of a logistic probe trained on standardised ones."""
    scaler, classifier = _probe(regularisation).fit(hidden, labels)
    weight = classifier.coef_[0] / scaler.scale_
    return weight, float(classifier.intercept_[0] - weight @ scaler.mean_)


def _quality(hidden: np.ndarray, held_out: HeldOut, regularisation: float) -> tuple[dict[str, Any], np.ndarray]:
    """The fields of `ProbeQuality`, and what they are made of: `HeldOut.figures` of the probe."""
    true, shuffled = held_out.labels, held_out.shuffled_labels()
    figures = held_out.figures(held_out.scores(_probe(regularisation), hidden, true), true, RESAMPLES)
    control = held_out.figures(held_out.scores(_probe(regularisation), hidden, shuffled), shuffled, 0)
    fields = {
        "balanced_accuracy": float(figures[0, 0]),
        "ci95": interval_of(figures[1:, 0]),
        "auc": float(figures[0, 1]),
        "auc_ci95": interval_of(figures[1:, 1]),
        "shuffled": float(control[0, 0]),
        "shuffled_auc": float(control[0, 1]),
        "n": len(true),
        "n_groups": held_out.n_groups,
    }
    return fields, figures


def _probe(regularisation: float) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), _logistic(regularisation))


def _logistic(regularisation: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=regularisation, max_iter=500, class_weight="balanced")
