"""Along which directions of the hidden states is toxicity written, and how is it taken out exactly?

Two single directions: the difference of the class means, and the normal of a logistic probe. And LEACE (Belrose et
al. 2023, arXiv 2306.03819, section 4), the affine map that moves the states it is fitted to as little as possible, in
the mean square, such that no linear probe of them does better than chance. With x the state, z the one-hot label,
W = (Sigma_xx^1/2)^+ the whitening and P the orthogonal projection onto the columns of W Sigma_xz:

    r(x) = x - W^+ P W (x - mean)
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from efface.analysis.probes import logistic_weights
from efface.analysis.states import check_binary, check_states
from efface.errors import UserError


def difference_of_means(hidden: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(d,) float64: mean of the states labelled 1 minus mean of those labelled 0; its length is their distance.

    Raises:
        UserError: if `hidden` (n, d) and `labels` (n,) do not fit together, or a class is missing.
    """
    hidden, labels = check_binary(hidden, labels)
    toxic, benign = (hidden[labels == label].mean(0, dtype=np.float64) for label in (1, 0))
    return toxic - benign


def logistic_direction(hidden: np.ndarray, labels: np.ndarray, *, regularisation: float = 0.01) -> np.ndarray:
    """(d,) float64 of length 1: the normal, in raw states, of a logistic probe, towards the states labelled 1.

    Args:
        regularisation: scikit-learn's C, inverse strength of the L2 penalty on standardised states.

    Raises:
        UserError: as `difference_of_means`, or if no state differs from another.
    """
    return unit(logistic_weights(*check_binary(hidden, labels), regularisation)[0])


def unit(direction: np.ndarray) -> np.ndarray:
    """`direction` at length 1.

    Raises:
        UserError: if its length is zero.
    """
    length = np.linalg.norm(direction)
    if not length > 0:
        raise UserError(
            "the direction has length zero: the two classes do not differ here. Pass another layer or data."
        )
    return direction / length


def unit_tensor(direction: np.ndarray, like: Tensor) -> Tensor:
    """(d,) of length 1, on the device and in the dtype of `like`, for hooks: with v = unit_tensor(direction, hidden),
    hidden + 3 * v steers and hidden - (hidden @ v)[..., None] * v projects the direction out."""
    return torch.as_tensor(unit(np.asarray(direction, dtype=np.float64))).to(like.dtype).to(like.device)


@dataclass(frozen=True, eq=False)
class LeaceEraser:
    """x -> x - left @ right @ (x - mean); made by `fit` or `fit_batches`."""

    mean: np.ndarray
    """(d,) float64"""
    left: np.ndarray
    """(d, r) float64, W^+ U, where U is an orthonormal basis of the columns of W Sigma_xz."""
    right: np.ndarray
    """(r, d) float64, U^T W."""

    @classmethod
    def fit(cls, hidden: np.ndarray, labels: np.ndarray, *, batch_size: int = 8192) -> "LeaceEraser":
        """Fit to states with their labels.

        Args:
            hidden: (n, d)
            labels: (n,) classes, two or more; or (n, k) numbers, such as one-hot rows.
            batch_size: states that are converted to float64 at once.

        Raises:
            UserError: if they do not fit together, or the labels name less than two classes.
        """
        hidden, labels = check_states(hidden, labels)
        if labels.ndim == 1:
            labels = labels[:, None] == np.unique(labels)  # (n, k)
        pieces = range(0, len(hidden), batch_size)
        return cls.fit_batches((hidden[i : i + batch_size], labels[i : i + batch_size]) for i in pieces)

    @classmethod
    def fit_batches(cls, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> "LeaceEraser":
        """Fit to a stream of states (b, d) and labels (b, k), one-hot or other numbers; sums are in float64.

        Directions whose variance is below d * eps of the largest one (eps of float64) count as constant: the states do
        not reach there, and nothing is erased or moved.

        Raises:
            UserError: if the labels are the same for all states, or there are none.
        """
        mean, covariance, d = _moments(batches)
        if not np.diag(covariance)[d:].any():
            raise UserError("all states have the same label: there is nothing to erase. Pass states of two classes.")
        variances, axes = np.linalg.eigh(covariance[:d, :d])
        kept = variances > variances[-1] * d * np.finfo(np.float64).eps
        scales, axes = np.sqrt(variances[kept]), axes[:, kept]  # (m,), (d, m)
        # In the whitened coordinates of the kept axes; singular values are those of W Sigma_xz.
        basis, singular, _ = np.linalg.svd(axes.T @ covariance[:d, d:] / scales[:, None], full_matrices=False)
        # A one-hot label has one column too many, seen here as a singular value that is zero but for rounding.
        basis = basis[:, singular > np.sqrt(np.finfo(np.float64).eps * covariance.diagonal()[d:].max())]  # (m, r)
        return cls(mean[:d], axes * scales @ basis, basis.T @ (axes / scales).T)

    @property
    def matrix(self) -> np.ndarray:
        """(d, d) float64: the map is x -> matrix @ x + bias, so that it can be folded into weights."""
        return np.eye(len(self.mean)) - self.left @ self.right

    @property
    def bias(self) -> np.ndarray:
        """(d,) float64"""
        return self.left @ (self.right @ self.mean)

    @overload
    def __call__(self, hidden: np.ndarray) -> np.ndarray: ...
    @overload
    def __call__(self, hidden: Tensor) -> Tensor: ...
    def __call__(self, hidden: Any) -> Any:
        """(..., d) -> (..., d) of the same type and dtype; computed in float32 or better, with gradients."""
        arrays = self.mean, self.left, self.right
        if isinstance(hidden, Tensor):
            dtype = torch.promote_types(hidden.dtype, torch.float32)
            tensors = (torch.from_numpy(array).to(dtype).to(hidden.device) for array in arrays)
            return _erased(hidden.to(dtype), *tensors).to(hidden.dtype)
        precision = np.promote_types(hidden.dtype, np.float32)
        return _erased(hidden.astype(precision), *(array.astype(precision) for array in arrays)).astype(hidden.dtype)


def _erased(states: Any, mean: Any, left: Any, right: Any) -> Any:
    """What the class says, for arrays and tensors alike: d * r operations a state, not d * d."""
    return states - (states - mean) @ right.T @ left.T


def _moments(batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean (d + k,) and covariance (d + k, d + k) of states and labels side by side, and d.

    Batches are merged by their means (Chan et al. 1979), which loses nothing where the mean is large.
    """
    n, d = 0, 0
    mean = scatter = np.zeros(0)
    for batch in batches:
        hidden, labels = check_states(*batch)
        data = np.concatenate([hidden, labels], axis=1, dtype=np.float64)  # (b, d + k)
        center = data.mean(0)
        if n == 0:
            d, mean, scatter = hidden.shape[1], np.zeros_like(center), np.zeros((len(center),) * 2)
        shift = center - mean
        data -= center
        scatter += data.T @ data + np.outer(shift, shift) * (n * len(data) / (n + len(data)))
        mean = mean + shift * (len(data) / (n + len(data)))
        n += len(data)
    return mean, scatter / max(n, 1), d
