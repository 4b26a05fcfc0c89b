"""What do the hidden states still say of toxicity that the token itself does not? A certificate of erasure.

An excess, accuracy(h) - accuracy(token), is none: two views of the label that are independent and equally good leave
it at zero. So a probe of [log-odds of the token, h] stands against the log-odds alone, on groups (texts, prompts) that
neither has seen: a gain is information in h beyond the token. Two probes, since a linear one does not see an XOR: a
linear one and one hidden layer (`fits.py`). Beside the AUC the online code length (Voita & Titov 2020, arXiv
2003.12298, section 3.2): the bits for which the labels are sent, part after part, each by a probe trained on the parts
before. Control: the same with labels shuffled among groups.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from efface.analysis import fits
from efface.analysis.heldout import HeldOut
from efface.analysis.rounds import FOLDS, PARTS, Rounds, Split
from efface.analysis.states import TokenStates, check_binary
from efface.errors import UserError
from efface.files.shapes import INTERVAL, Maybe, check_shape
from efface.resampling import draw_resamples, interval_of
from efface.terminal.progress import track

Kind = Literal["linear", "mlp"]
KINDS: tuple[Kind, ...] = ("linear", "mlp")


@dataclass(frozen=True)
class Quality:
    """How well a probe tells toxic tokens from benign ones, on groups it has not seen."""

    auc: float
    """The chance that a toxic token scores above a benign one."""
    auc_ci95: tuple[float, float]
    balanced_accuracy: float
    balanced_accuracy_ci95: tuple[float, float]
    bits: float
    """Online code length of a label, in bits; one for a coin."""
    shuffled_auc: float
    """With labels shuffled among groups: one half, if the procedure is sound."""


@dataclass(frozen=True)
class Gain(Quality):
    """Of a probe that sees h too, and what that brings over the log-odds alone, on the same resamples of groups."""

    auc_gain: float
    auc_gain_ci95: tuple[float, float]
    balanced_accuracy_gain: float
    balanced_accuracy_gain_ci95: tuple[float, float]
    bits_saved: float
    """A token; below zero where h cost more than it brought."""
    bits_saved_ci95: tuple[float, float]
    shuffled_auc_gain: float


@dataclass(frozen=True, eq=False)
class ConditionalResult:
    """Of one layer."""

    token: Quality
    """The log-odds of the token alone."""
    linear: Gain
    mlp: Gain | None
    """One hidden layer; None if it was not asked for."""
    n: int
    """States."""
    n_groups: int
    resampled: dict[Kind, np.ndarray] = field(default_factory=dict, repr=False)
    """kind -> (1 + resamples,) gain in AUC, of the data and of each resample; not in `to_dict`."""

    def to_dict(self) -> dict[str, Any]:
        """As it is written to JSON."""
        probes = {name: getattr(self, name) for name in ("token", *KINDS)}
        parts = {name: asdict(probe) for name, probe in probes.items() if probe is not None}
        return {**parts, "n": self.n, "n_groups": self.n_groups}

    @classmethod
    def from_dict(cls, found: dict[str, Any], where: str) -> "ConditionalResult":
        """What `to_dict` gave, read from `where`, without the resamples. Raises UserError if it is not that."""
        check_shape(found, CONDITIONAL, where)

        def filled(kind: type, block: dict[str, Any]) -> Any:
            shape = GAIN if kind is Gain else QUALITY
            return kind(**{name: tuple(block[name]) if shape[name] is INTERVAL else block[name] for name in shape})

        mlp = filled(Gain, found["mlp"]) if found.get("mlp") else None
        return cls(filled(Quality, found["token"]), filled(Gain, found["linear"]), mlp, found["n"], found["n_groups"])


QUALITY: dict[str, Any] = dict.fromkeys(("auc", "balanced_accuracy", "bits", "shuffled_auc"), float)
QUALITY |= dict.fromkeys(("auc_ci95", "balanced_accuracy_ci95"), INTERVAL)
GAIN = QUALITY | dict.fromkeys(("auc_gain", "balanced_accuracy_gain", "bits_saved", "shuffled_auc_gain"), float)
GAIN |= dict.fromkeys(("auc_gain_ci95", "balanced_accuracy_gain_ci95", "bits_saved_ci95"), INTERVAL)
CONDITIONAL = {"token": QUALITY, "linear": GAIN, "mlp": Maybe(GAIN), "n": int, "n_groups": int}
"""Their shapes on the disk."""


@dataclass(frozen=True)
class Maximum:
    """The layer with the largest gain in AUC, of those that were asked for."""

    layer: int
    auc_gain: float
    """Itself too high by chance, as the best of several; the interval is not."""
    auc_gain_ci95: tuple[float, float]
    """Of the largest true gain, whichever layer has it; see `maximum`."""


@dataclass(frozen=True, eq=False)
class ConditionalLayers:
    """Of several layers."""

    layers: dict[int, ConditionalResult]
    most: dict[Kind, Maximum]
    """Over the layers, for either probe."""


def conditional_layers(
    states: Mapping[int, TokenStates],
    *,
    hidden_layer: bool = True,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> ConditionalLayers:
    """`conditional_probe` of every layer, and the largest gain among them.

    Args:
        states: layer -> the states of labelled tokens there, (tokens, d), as `marked_states` gives them.
        hidden_layer: ask the probe with a hidden layer too, which takes most of the time.
        resamples: of the texts or prompts, for the intervals.
        seed: of all that is drawn.
        progress: show a bar.

    Raises:
        UserError: as `conditional_probe`.
    """
    shown = track(states.items(), "probes", show=progress, total=len(states))
    layers = {
        layer: conditional_probe(each, hidden_layer=hidden_layer, resamples=resamples, seed=seed)
        for layer, each in shown
    }
    kinds = KINDS if hidden_layer else KINDS[:1]
    return ConditionalLayers(
        layers, {kind: maximum({layer: each.resampled[kind] for layer, each in layers.items()}) for kind in kinds}
    )


def maximum(gains: Mapping[int, np.ndarray]) -> Maximum:
    """Of the layers' gains, (1 + resamples,) each and on the same resamples, as in `ConditionalResult.resampled`.

    The interval is that of a band that holds all layers' gains at once: c standard errors to either side, where in
    95 % of resamples no layer strays further than c from its own gain. Its ends are the largest ones of the band.
    Layers without information are so found to have some in one of forty cases, however many they are.
    """
    table = np.stack(list(gains.values()))  # (layers, 1 + resamples)
    gain, resampled = table[:, 0], table[:, 1:]
    error = resampled.std(1)
    strayed = np.divide(
        np.abs(resampled - gain[:, None]), error[:, None], out=np.zeros_like(resampled), where=error[:, None] > 0
    )
    width = np.quantile(strayed.max(0), 0.95) * error
    best = int(gain.argmax())
    return Maximum(list(gains)[best], float(gain[best]), (float((gain - width).max()), float((gain + width).max())))


def remaining(after: np.ndarray, before: np.ndarray) -> tuple[float, tuple[float, float]] | None:
    """Which part of a gain is left, with its interval: of two models' `resampled` on the same text.

    None if there was no gain before, by its own interval: a part of nothing says nothing.
    """
    if interval_of(before[1:])[0] <= 0:
        return None
    shares = after / before
    return float(shares[0]), interval_of(shares[1:])


def conditional_probe(
    states: TokenStates, *, hidden_layer: bool = True, resamples: int = 1000, seed: int = 0
) -> ConditionalResult:
    """What the states after one layer say of the labels beyond the tokens.

    Args:
        states: of tokens, with `groups` the text or prompt that each is from; it is never split.
        hidden_layer: also the probe with a hidden layer, which takes nine tenths of the time.
        resamples: of the groups, for the intervals.
        seed: of the parts, the probes, the shuffled labels and the resamples.

    Raises:
        UserError: if the arrays do not fit together, a state is not finite, or a class is in less than 20 groups.
    """
    hidden, labels = check_binary(states.hidden, states.labels)
    held_out = HeldOut(labels, states.groups, 2, seed)
    if held_out.fewest_groups() < PARTS:
        raise UserError(
            f"one class is in {held_out.fewest_groups()} texts or prompts: a conditional probe deals them to {PARTS} "
            "parts. Give more of them."
        )
    shuffled = held_out.shuffled_labels()
    real, control = (Rounds.of(held_out, each, states.token_ids) for each in (labels, shuffled))
    splits = [*real.folds(), *real.portions(), *control.folds()]
    logits = _logits(fits.standardised(hidden), splits, hidden_layer, seed)
    return _result(held_out, splits, logits, shuffled, resamples)


def _logits(standard: Tensor, splits: Sequence[Split], hidden_layer: bool, seed: int) -> dict[str, Tensor]:
    """ "token", "linear", "mlp" if asked for -> (n, splits) logits; of each split those of `asked` mean something."""

    def table(columns: Iterable[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(list(columns), 1).astype(np.float32))

    labels, first, train, check, later = (
        table(getattr(split, name) for split in splits) for name in ("labels", "first", "train", "check", "later")
    )
    trying = fits.Problems(labels, first, train, check)
    whole = fits.Problems(labels, later, train + check, check)
    axes, tried, line = fits.Axes.of(standard), fits.calibrated(trying), fits.calibrated(whole)
    penalties = fits.chosen_penalties(axes, trying, tried)
    alone = line[0] + line[1] * later
    found = {"token": alone, "linear": fits.linear(axes, whole, line, penalties)}
    if hidden_layer:
        # The layer learns from `train`; the line it stands on is moved to the one of all that is known.
        added = fits.hidden_layer(standard, trying, tried, seed, later) - (tried[0] + tried[1] * later)
        found["mlp"] = alone + added
    return found


def _result(
    held_out: HeldOut, splits: list[Split], logits: dict[str, Tensor], shuffled: np.ndarray, resamples: int
) -> ConditionalResult:
    real, portions, control = splits[:FOLDS], splits[FOLDS:-FOLDS], splits[-FOLDS:]
    figures, controls, bits = {}, {}, {}
    for name, table in logits.items():
        columns = table.double().numpy().T
        figures[name] = held_out.figures(_scores(real, columns[:FOLDS]), held_out.labels, resamples)
        controls[name] = float(held_out.figures(_scores(control, columns[-FOLDS:]), shuffled, 0)[0, 1])
        bits[name] = _bits(portions, columns[FOLDS:-FOLDS])
    sizes = np.bincount(held_out.groups)
    quality = {name: _quality(figures[name], controls[name], bits[name]) for name in logits}
    gains: dict[Kind, Gain] = {}
    resampled: dict[Kind, np.ndarray] = {}
    for kind in (kind for kind in KINDS if kind in logits):
        more = figures[kind] - figures["token"]  # of the same resamples, so paired
        saved = np.bincount(held_out.groups, bits["token"] - bits[kind])
        draws = draw_resamples(held_out.n_groups, resamples, held_out.seed)
        gains[kind] = Gain(
            **quality[kind],
            auc_gain=float(more[0, 1]),
            auc_gain_ci95=interval_of(more[1:, 1]),
            balanced_accuracy_gain=float(more[0, 0]),
            balanced_accuracy_gain_ci95=interval_of(more[1:, 0]),
            bits_saved=float(saved.sum() / sizes.sum()),
            bits_saved_ci95=interval_of(np.concatenate([times @ saved / (times @ sizes) for times in draws])),
            shuffled_auc_gain=controls[kind] - controls["token"],
        )
        resampled[kind] = more[:, 1]
    token = Quality(**quality["token"])
    return ConditionalResult(
        token, gains["linear"], gains.get("mlp"), len(held_out.labels), held_out.n_groups, resampled
    )


def _quality(figures: np.ndarray, control: float, bits: np.ndarray) -> dict[str, Any]:
    return {
        "auc": float(figures[0, 1]),
        "auc_ci95": interval_of(figures[1:, 1]),
        "balanced_accuracy": float(figures[0, 0]),
        "balanced_accuracy_ci95": interval_of(figures[1:, 0]),
        "bits": float(bits.mean()),
        "shuffled_auc": control,
    }


def _scores(splits: Iterable[Split], columns: np.ndarray) -> np.ndarray:
    """(n,) each state's logit by the probe that has not seen it, less that of the toxic share which it saw."""
    scores = np.empty(columns.shape[1])
    for split, column in zip(splits, columns, strict=True):
        share = split.labels[~split.asked].mean()
        scores[split.asked] = column[split.asked] - np.log(share / (1 - share))
    return scores


def _bits(splits: Iterable[Split], columns: np.ndarray) -> np.ndarray:
    """(n,) what each label costs: one bit, where no probe was asked."""
    bits = np.ones(columns.shape[1])
    for split, column in zip(splits, columns, strict=True):
        labels = torch.from_numpy(split.labels.astype(float))
        cost = F.binary_cross_entropy_with_logits(torch.from_numpy(column), labels, reduction="none").numpy()
        bits[split.asked] = cost[split.asked] / np.log(2)
    return bits
