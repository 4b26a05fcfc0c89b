"""Do directions point where they should, and does LEACE keep its theorem?"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.analysis.directions import (
    LeaceEraser,
    difference_of_means,
    logistic_direction,
    unit,
    unit_tensor,
)
from efface.analysis.probes import fit_probe
from efface.errors import UserError


def correlated(
    n: int, d: int, classes: int = 2, rank: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """States whose class means differ, with correlated coordinates of unlike scales; of `rank` if given."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, n - classes)])
    rank = rank or d
    inner = generator.normal(size=(n, rank)) + generator.normal(size=(classes, rank))[labels]
    return inner @ generator.normal(size=(rank, d)) * 3.0 ** generator.integers(-2, 3, d) + 10, labels


def class_means(hidden: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.stack([hidden[labels == label].mean(0) for label in np.unique(labels)])


def test_difference_of_means_by_hand() -> None:
    hidden = np.array([[1, 2], [3, 4], [10, 0], [20, 6]], dtype=np.float32)
    np.testing.assert_array_equal(difference_of_means(hidden, np.array([0, 0, 1, 1])), [13, 0])
    np.testing.assert_array_equal(difference_of_means(hidden, np.array([1, 1, 0, 0])), [-13, 0])


def test_logistic_direction_recovers_a_planted_one_through_correlated_noise() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(4000) % 2
    noise = generator.normal(size=(4000, 4)) @ np.diag([1, 1, 1, 30.0])
    hidden = noise + labels[:, None] * np.array([2.0, 0, 0, 0])
    found = logistic_direction(hidden, labels)
    assert np.linalg.norm(found) == pytest.approx(1)
    assert found[0] > 0.99
    np.testing.assert_allclose(logistic_direction(hidden, 1 - labels), -found, atol=1e-3)
    weight = fit_probe(hidden, labels).weight
    np.testing.assert_allclose(found, weight / np.linalg.norm(weight), atol=1e-5)


def test_a_unit_tensor_projects_its_direction_out_in_a_hook() -> None:
    hidden = torch.randn(2, 3, 4, dtype=torch.float32)
    v = unit_tensor(np.array([3.0, 0, 4, 0]), hidden)
    assert v.dtype == hidden.dtype and v.tolist() == pytest.approx([0.6, 0, 0.8, 0])
    without = hidden - (hidden @ v)[..., None] * v
    assert (without @ v).abs().max() < 1e-6
    assert unit_tensor(np.ones(4), hidden.bfloat16()).dtype == torch.bfloat16


def test_a_direction_of_no_length_is_refused() -> None:
    with pytest.raises(UserError, match="length zero"):
        unit(np.zeros(3))
    with pytest.raises(UserError, match="length zero"):
        logistic_direction(np.ones((6, 2)), np.arange(6) % 2)
    with pytest.raises(UserError, match="both must occur"):
        difference_of_means(np.ones((6, 2)), np.zeros(6))


@settings(max_examples=60)
@given(
    n=st.integers(4, 60),
    d=st.integers(1, 12),
    classes=st.integers(2, 4),
    rank=st.integers(1, 12),
    seed=st.integers(0, 10_000),
    batch_size=st.integers(1, 70),
)
def test_leace_makes_the_class_means_equal(
    n: int, d: int, classes: int, rank: int, seed: int, batch_size: int
) -> None:
    hidden, labels = correlated(n, d, classes, min(rank, d), seed)
    eraser = LeaceEraser.fit(hidden, labels, batch_size=batch_size)
    erased = eraser(hidden)
    scale = np.abs(hidden).max()
    assert np.ptp(class_means(erased, labels), axis=0).max() <= 1e-6 * scale
    np.testing.assert_allclose(erased.mean(0), hidden.mean(0), atol=1e-8 * scale)
    np.testing.assert_allclose(eraser(erased), erased, atol=1e-6 * scale)  # idempotent
    np.testing.assert_allclose(
        eraser.matrix @ eraser.matrix, eraser.matrix, atol=1e-6 * (1 + abs(eraser.matrix).max())
    )
    assert eraser.left.shape[1] <= classes - 1


@pytest.mark.parametrize("classes", [2, 3])
def test_leace_erases_one_dimension_less_than_there_are_classes(classes: int) -> None:
    eraser = LeaceEraser.fit(*correlated(500, 8, classes))
    assert eraser.right.shape == (classes - 1, 8)
    assert np.linalg.matrix_rank(eraser.matrix, tol=1e-8) == 8 - (classes - 1)


def test_a_probe_on_erased_states_is_at_chance() -> None:
    hidden, labels = correlated(1000, 8)
    assert fit_probe(hidden, labels).quality.auc > 0.8
    unseen = LeaceEraser.fit(hidden[::2], labels[::2])(hidden[1::2])
    for erased, left in ((LeaceEraser.fit(hidden, labels)(hidden), labels), (unseen, labels[1::2])):
        quality = fit_probe(erased, left).quality
        assert quality.balanced_accuracy == pytest.approx(0.5, abs=0.08)
        assert quality.auc == pytest.approx(0.5, abs=0.1)


@settings(max_examples=30)
@given(st.integers(2, 8), st.integers(0, 10_000))
def test_no_other_map_that_equalises_the_means_moves_states_less(d: int, seed: int) -> None:
    hidden, labels = correlated(300, d, seed=seed)
    moved = ((LeaceEraser.fit(hidden, labels)(hidden) - hidden) ** 2).sum()
    gap = difference_of_means(hidden, labels)
    center = hidden - hidden.mean(0)
    # x - gap v.(x - mean) / v.gap equalises the means for any v; v = gap is the orthogonal projection.
    for v in [gap, *np.random.default_rng(seed).normal(size=(5, d))]:
        step = np.outer(center @ v / (v @ gap), gap)
        np.testing.assert_allclose(*class_means(hidden - step, labels), atol=1e-6 * np.abs(hidden).max())
        assert moved <= (step**2).sum() * (1 + 1e-9)


def test_leace_moves_correlated_states_less_than_the_orthogonal_projection() -> None:
    hidden, labels = correlated(2000, 8)
    v = unit(difference_of_means(hidden, labels))
    orthogonal = (((hidden - hidden.mean(0)) @ v) ** 2).sum()
    leace = ((LeaceEraser.fit(hidden, labels)(hidden) - hidden) ** 2).sum()
    assert leace < 0.9 * orthogonal


def test_leace_is_the_closed_form_of_the_paper() -> None:
    hidden, labels = correlated(400, 5, classes=3)
    x, z = hidden - hidden.mean(0), np.eye(3)[labels] - np.eye(3)[labels].mean(0)
    variances, axes = np.linalg.eigh(x.T @ x / 400)
    whiten = axes / np.sqrt(variances) @ axes.T
    whitened = whiten @ (x.T @ z / 400)
    projection = whitened @ np.linalg.pinv(whitened, rcond=1e-8)
    expected = np.eye(5) - np.linalg.inv(whiten) @ projection @ whiten
    np.testing.assert_allclose(LeaceEraser.fit(hidden, labels).matrix, expected, atol=1e-8)


def test_leace_does_not_move_constant_directions() -> None:
    hidden, labels = correlated(300, 4)
    padded = np.concatenate([hidden, np.full((300, 2), 7.0), hidden[:, :1]], axis=1)  # constant, and a copy
    eraser = LeaceEraser.fit(padded, labels)
    erased = eraser(padded)
    np.testing.assert_allclose(erased[:, 4:6], 7)
    np.testing.assert_allclose(erased[:, 6], erased[:, 0], atol=1e-8)
    np.testing.assert_allclose(*class_means(erased, labels), atol=1e-8)
    assert np.abs(eraser.matrix).max() < 1e3  # rounding is not whitened


def test_leace_of_fewer_states_than_dimensions() -> None:
    hidden, labels = correlated(10, 40)
    erased = LeaceEraser.fit(hidden.astype(np.float32), labels)(hidden)
    np.testing.assert_allclose(*class_means(erased, labels), atol=1e-4)


def test_leace_leaves_states_alone_that_say_nothing_of_the_label() -> None:
    hidden = np.repeat(np.random.default_rng(0).normal(size=(50, 3)), 2, axis=0)
    eraser = LeaceEraser.fit(hidden, np.arange(100) % 2)
    np.testing.assert_array_equal(eraser(hidden), hidden)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_leace_takes_tensors_of_any_shape_with_gradients(dtype: torch.dtype) -> None:
    hidden, labels = correlated(200, 6)
    eraser = LeaceEraser.fit(hidden, labels)
    states = torch.tensor(hidden, dtype=dtype).reshape(20, 10, 6).requires_grad_()
    erased = eraser(states)
    assert erased.dtype == dtype and erased.shape == states.shape
    tolerance = {torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    exact = eraser(states.detach().double().numpy())
    np.testing.assert_allclose(erased.detach().double().numpy(), exact, atol=tolerance * np.abs(hidden).max())
    erased.double().sum().backward()
    expected = eraser.matrix.sum(0)
    np.testing.assert_allclose(states.grad[0, 0].double().numpy(), expected, atol=tolerance * np.abs(expected).max())
    assert eraser(hidden.astype(np.float32)).dtype == np.float32


def test_matrix_and_bias_are_the_same_map() -> None:
    hidden, labels = correlated(200, 6, classes=3)
    eraser = LeaceEraser.fit(hidden, labels)
    np.testing.assert_allclose(hidden @ eraser.matrix.T + eraser.bias, eraser(hidden), atol=1e-9)


def test_batches_give_what_the_whole_gives_though_the_mean_is_huge() -> None:
    hidden, labels = correlated(300, 5)
    hidden = hidden + 1e6
    whole = LeaceEraser.fit(hidden, labels)
    one_hot = np.eye(2)[labels]
    pieces = LeaceEraser.fit_batches((hidden[i : i + 7], one_hot[i : i + 7]) for i in range(0, 300, 7))
    np.testing.assert_allclose(pieces.matrix, whole.matrix, atol=1e-6)
    np.testing.assert_allclose(pieces.mean, whole.mean)


def test_leace_refuses_what_it_cannot_use() -> None:
    with pytest.raises(UserError, match="all states have the same label"):
        LeaceEraser.fit(np.ones((4, 2)), np.zeros(4))
    with pytest.raises(UserError, match="all states have the same label"):
        LeaceEraser.fit_batches([])
    with pytest.raises(UserError, match="4 hidden states and 3 labels"):
        LeaceEraser.fit(np.ones((4, 2)), np.zeros(3))
    with pytest.raises(UserError, match="not all finite"):
        LeaceEraser.fit(np.full((4, 2), np.inf), np.arange(4))
