"""Can a fresh linear probe still tell toxic tokens from benign ones, beyond what the tokens themselves give away?

Erasure is never judged by the adversary's own accuracy: a probe is trained from scratch, on held-out pairs, against
two controls: one that sees only which token it is (one-hot), and one with shuffled labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from efface.data import PairCollator, TokenizedPair, tokenize_pair
from efface.models import capture_residuals, position_ids
from efface.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class TokenStates:
    """The residual stream at every continuation token of a set of pairs, after one layer."""

    hidden: np.ndarray
    """(N, d) float32."""
    token_ids: np.ndarray
    """(N,)"""
    labels: np.ndarray
    """(N,) 1 on tokens of `rejected`, 0 on those of `chosen`."""
    pairs: np.ndarray
    """(N,) which pair the token is from: folds keep pairs together."""


@torch.no_grad()
def token_states(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    rows: Sequence[dict[str, Any]],
    layers: Sequence[int],
    *,
    batch_size: int = 16,
    progress: bool = False,
) -> dict[int, TokenStates]:
    """Layer -> the states at the continuation tokens of all pairs; both sides go through the model in one batch."""
    pairs = [tokenize_pair(row, processing_class) for row in rows]
    collate = PairCollator(pad_token_id=0)
    hidden: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
    token_ids, labels, numbers = [], [], []
    for start in track(range(0, len(pairs), batch_size), "hidden states", show=progress):
        chunk: list[TokenizedPair] = pairs[start : start + batch_size]
        batch = collate(chunk)
        ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
        counted = batch["continuation_mask"]
        with capture_residuals(model, layers) as residuals:
            model.base_model(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False)
        for layer in layers:
            hidden[layer].append(residuals[layer].float().cpu()[counted].numpy())
        rejected = torch.arange(len(counted)) >= len(chunk)  # (2B,)
        token_ids.append(batch["input_ids"][counted].numpy())
        labels.append(rejected[:, None].expand_as(counted)[counted].numpy())
        pair = start + torch.arange(len(counted)) % len(chunk)
        numbers.append(pair[:, None].expand_as(counted)[counted].numpy())
    common = np.concatenate(token_ids), np.concatenate(labels).astype(int), np.concatenate(numbers)
    return {layer: TokenStates(np.concatenate(hidden[layer]), *common) for layer in layers}


@dataclass
class ProbeResult:
    """Held-out figures of a probe and its controls; intervals are bootstrapped over pairs."""

    balanced_accuracy: float
    ci95: tuple[float, float]
    token_identity: float
    """Balanced accuracy of the probe that sees the token alone."""
    excess: float
    """balanced_accuracy - token_identity."""
    excess_ci95: tuple[float, float]
    shuffled: float
    """Balanced accuracy with labels shuffled among pairs; one half if the procedure is sound."""
    n_tokens: int
    n_pairs: int


def fresh_probe(states: TokenStates, *, folds: int = 5, regularisation: float = 0.01, seed: int = 0) -> ProbeResult:
    """Cross-validated logistic probe on standardised states, with its controls.

    Args:
        regularisation: scikit-learn's C, inverse strength of the L2 penalty.
    """
    from sklearn.preprocessing import OneHotEncoder

    identity = OneHotEncoder(handle_unknown="ignore").fit_transform(states.token_ids[:, None])  # (N, distinct tokens)
    probe = _correct(states.hidden, states.labels, states.pairs, folds, regularisation)
    token = _correct(identity, states.labels, states.pairs, folds, 1.0)
    shuffled = _shuffle_within_pairs(states, np.random.default_rng(seed))
    control = _correct(states.hidden, shuffled, states.pairs, folds, regularisation)
    accuracy, ci = _balanced(probe, states, seed)
    token_accuracy, _ = _balanced(token, states, seed)
    excess, excess_ci = _balanced(probe - token, states, seed)
    weights = TokenStates(states.hidden, states.token_ids, shuffled, states.pairs)
    return ProbeResult(
        balanced_accuracy=accuracy,
        ci95=ci,
        token_identity=token_accuracy,
        excess=excess,
        excess_ci95=excess_ci,
        shuffled=_balanced(control, weights, seed)[0],
        n_tokens=len(states.labels),
        n_pairs=len(np.unique(states.pairs)),
    )


def _correct(features: Any, labels: np.ndarray, groups: np.ndarray, folds: int, regularisation: float) -> np.ndarray:
    """(N,) 1.0 where the probe trained on the other folds is right."""
    from scipy.sparse import issparse
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = LogisticRegression(C=regularisation, max_iter=500, class_weight="balanced")
    model = classifier if issparse(features) else make_pipeline(StandardScaler(), classifier)
    predicted = cross_val_predict(model, features, labels, groups=groups, cv=GroupKFold(folds))
    return (predicted == labels).astype(float)


def _shuffle_within_pairs(states: TokenStates, generator: np.random.Generator) -> np.ndarray:
    """Swap the sides of a random half of the pairs: the labels keep their balance and blocks, not their meaning."""
    swap = generator.random(states.pairs.max() + 1) < 0.5
    return np.where(swap[states.pairs], 1 - states.labels, states.labels)


def _balanced(
    correct: np.ndarray, states: TokenStates, seed: int, resamples: int = 1000
) -> tuple[float, tuple[float, float]]:
    """Mean over the two classes of the mean of `correct`, and its 95 % interval over resampled pairs."""
    n_pairs = states.pairs.max() + 1
    sums = np.zeros((2, n_pairs))
    counts = np.zeros((2, n_pairs))
    np.add.at(sums, (states.labels, states.pairs), correct)
    np.add.at(counts, (states.labels, states.pairs), 1.0)
    draws = np.random.default_rng(seed).multinomial(
        n_pairs, np.full(n_pairs, 1 / n_pairs), size=resamples
    )  # (R, pairs)
    resampled = ((draws @ sums.T) / (draws @ counts.T)).mean(1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float((sums.sum(1) / counts.sum(1)).mean()), (float(low), float(high))
