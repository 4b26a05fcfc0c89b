"""Does the page say of an adversary what its accuracy says, and of the log what was logged?"""

import pytest

from efface.report.figures import Findings
from efface.report.training import (
    ACCURACY,
    adversary_figure,
    adversary_sentence,
    keys_starting,
    series,
    training_figure,
    training_table,
)

STILL, CANNOT = "still tells toxic from benign tokens", "cannot tell toxic from benign tokens"


def learned(*values: float, layer: int = 9) -> list[dict[str, float]]:
    return [{"step": step, f"{ACCURACY}{layer}": value} for step, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("values", "said", "not_said"),
    [
        ((0.50, 0.62, 0.70, 0.74), (STILL, "and better than at first", "is 0.74", "it was 0.50"), (CANNOT,)),
        ((0.74, 0.74, 0.72, 0.73), (STILL,), (CANNOT, "better than at first")),
        ((0.74, 0.65, 0.55, 0.52), (CANNOT, "which it could at first"), (STILL,)),
        ((0.50, 0.51, 0.48, 0.50), (CANNOT,), (STILL, "which it could at first")),
        ((0.8,), (STILL,), (CANNOT,)),
    ],
)
def test_the_sentence_follows_the_numbers(
    values: tuple[float, ...], said: tuple[str, ...], not_said: tuple[str, ...]
) -> None:
    sentence = adversary_sentence(Findings({}, {}, learned(*values)))
    assert "Chance is 0.5." in sentence and all(part in sentence for part in said)
    assert not any(part in sentence for part in not_said)


def test_it_is_of_the_layer_that_tells_most_and_points_to_the_probe_if_there_is_one() -> None:
    history = [*learned(0.5, 0.5, layer=3), *learned(0.6, 0.8, layer=9)]
    assert "is 0.80 (layer 9), in the first it was 0.60" in adversary_sentence(Findings({}, {}, history))
    blind = learned(0.5, 0.5)
    assert "was not measured here" in adversary_sentence(Findings({}, {}, blind))
    assert "is shown above" in adversary_sentence(Findings({}, {}, blind, {"layers": {}}))


def test_without_an_adversary_there_is_nothing_to_say() -> None:
    nothing = Findings({}, {}, [{"step": 1, "loss": 0.5}])
    assert adversary_figure(nothing) is None and adversary_sentence(nothing) == ""


def test_the_picture_has_chance_in_it() -> None:
    figure = adversary_figure(Findings({}, {}, learned(0.5, 0.7)))
    assert figure is not None
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.5, 0.7], [0.5, 0.5]]
    low, high = axes.get_ylim()
    assert low <= 0.4 and high >= 1


@pytest.mark.parametrize(
    ("row", "label"), [({"loss": 0.6}, "loss"), ({"loss": 0.6, "retain_loss": 0.1}, "KL (nats)"), ({}, None)]
)
def test_what_was_kept_small_is_drawn_before_the_loss(row: dict[str, float], label: str | None) -> None:
    figure = training_figure(Findings({}, {}, [{"step": 1, **row}]))
    assert (None if figure is None else figure.axes[0].get_ylabel()) == label


def test_series_skips_rows_without_a_finite_number() -> None:
    rows = [
        {"step": 1, "loss": 0.1},
        {"step": 2},
        {"step": 3, "loss": float("nan")},
        {"loss": 9.0},
        {"step": 4, "loss": 0.4},
    ]
    assert series(rows, "loss") == ([1.0, 4.0], [0.1, 0.4])


def test_layers_are_sorted_by_number() -> None:
    rows = [{"adversary/bce/16": 1}, {"adversary/bce/8": 1, "loss": 2}]
    assert keys_starting(rows, "adversary/bce/") == ["adversary/bce/8", "adversary/bce/16"]


def test_the_table_has_what_was_logged_and_nothing_else() -> None:
    assert training_table([{"step": 1, "loss": 0.5}, {"train_runtime": 3.0}]) == (["loss"], [["1", "0.5"]])
    assert training_table([]) == ([], [])
