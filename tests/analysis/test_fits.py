"""Do many probes that are trained at once learn what each would learn alone?"""

from dataclasses import replace

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from efface.analysis import fits


def problems(n: int = 300, seed: int = 0) -> tuple[torch.Tensor, fits.Problems]:
    """Three labellings of the same correlated states; the third is learned from few of them."""
    generator = np.random.default_rng(seed)
    hidden = generator.standard_normal((n, 6)) @ generator.standard_normal((6, 6)) * [1, 1, 1, 1, 5, 0.1] + 3
    standard = fits.standardised(hidden)
    odds = torch.from_numpy(generator.standard_normal((n, 3))).float()
    direction = torch.from_numpy(generator.standard_normal((6, 3))).float()
    noise = torch.from_numpy(generator.logistic(size=(n, 3))).float()
    labels = (standard @ direction + odds + noise > 0).float()
    train = torch.zeros(n, 3)
    train[:200] = 1
    train[60:, 2] = 0
    check = torch.zeros(n, 3)
    check[200:] = 1
    return standard, fits.Problems(labels, odds, train, check)


def test_the_line_is_that_of_scikit_learn() -> None:
    _, given = problems()
    line = fits.calibrated(given)
    for column in range(3):
        rows = given.train[:, column].bool()
        expected = LogisticRegression(C=1e6).fit(given.odds[rows, column][:, None], given.labels[rows, column])
        np.testing.assert_allclose(line[:, column], [*expected.intercept_, *expected.coef_[0]], atol=0.02)


def test_the_linear_probe_is_that_of_scikit_learn() -> None:
    standard, given = problems()
    penalties = torch.tensor([1.0, 100.0, 10.0])
    logits = fits.linear(fits.Axes.of(standard), given, fits.calibrated(given), penalties, iterations=300)
    for column, penalty in enumerate(penalties.tolist()):
        rows = given.train[:, column].bool()
        # The log-odds go in large, and so nearly unpenalised; scikit-learn's intercept is not penalised.
        table = torch.cat([standard, 100 * given.odds[:, column : column + 1]], 1)
        alone = LogisticRegression(C=1 / penalty, max_iter=2000, tol=1e-8)
        expected = alone.fit(table[rows], given.labels[rows, column]).decision_function(table)
        np.testing.assert_allclose(logits[:, column], expected, atol=0.03)


def test_a_few_iterations_are_enough() -> None:
    standard, given = problems()
    axes, line, penalties = fits.Axes.of(standard), fits.calibrated(given), torch.full((3,), 10.0)
    few, many = (fits.linear(axes, given, line, penalties, iterations=n) for n in (fits.ITERATIONS, 1000))
    np.testing.assert_allclose(few, many, atol=0.02)


def test_without_information_the_log_odds_stay_as_they_are() -> None:
    standard, given = problems()
    noise = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    labels = (given.odds + torch.from_numpy(np.random.default_rng(1).logistic(size=(300, 3))) > 0).float()
    given = replace(given, labels=labels)
    line = fits.calibrated(given)
    alone = line[0] + line[1] * given.odds
    infinite = torch.full((3,), torch.inf)
    assert (fits.linear(fits.Axes.of(noise), given, line, infinite) == alone).all()
    assert fits.chosen_penalties(fits.Axes.of(noise), given, line).max().isinf()
    assert fits.chosen_penalties(fits.Axes.of(standard), problems()[1], line).max() <= 100


def test_a_hidden_layer_does_not_depend_on_its_company() -> None:
    """Nor on the global random state; and what it was asked about later has other odds."""
    standard, given = problems()
    line = fits.calibrated(given)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = fits.hidden_layer(standard, given, line, 0, given.odds)
    assert (torch.random.get_rng_state() == state).all()
    torch.manual_seed(6)
    assert (fits.hidden_layer(standard, given, line, 0, given.odds) == first).all()
    assert fits.losses(first, given.labels, given.check)[:2].lt(
        fits.losses(line[0] + line[1] * given.odds, given.labels, given.check)[:2]
    ).all()  # fmt: skip
    other = given.picked(torch.tensor([0, 1, 2]))
    other.labels[:, 2] = 1 - other.labels[:, 2]
    np.testing.assert_allclose(fits.hidden_layer(standard, other, line, 0, other.odds)[:, :2], first[:, :2], atol=1e-4)
    later = fits.hidden_layer(standard, given, line, 0, given.odds + 1)
    assert not torch.allclose(later, first)


def test_constant_coordinates_say_nothing() -> None:
    hidden = np.c_[np.random.default_rng(0).standard_normal((50, 2)) * [1, 1000], np.full(50, 7.0)]
    standard = fits.standardised(hidden)
    np.testing.assert_allclose(standard.std(0, correction=0), [1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(standard.mean(0), 0, atol=1e-5)
