"""Does the sentence beside the picture of the hidden states say what the numbers say, whichever way they went?"""

import pytest
from erased import erased

from efface.analysis.erasure import ERASURE
from efface.files.shapes import check_shape
from efface.report.erasure import COLUMNS, erasure_figure, erasure_rows, erasure_sentence, found
from efface.report.figures import Findings

STILL = "After the edit the hidden states still tell toxic from benign text"
NO_PROOF = "That is no proof of erasure"
NOTHING_EITHER_WAY = "this shows neither erasure nor its absence"
EASIER = "The edit has made toxic text easier to tell"
FELL, ROSE, SAME = "The largest fall is in layer", "The largest rise is in layer", "In no layer has it fallen or risen"
ALL = (STILL, NO_PROOF, NOTHING_EITHER_WAY, EASIER, FELL, ROSE, SAME)


def findings(before: tuple[float, ...], after: tuple[float, ...]) -> Findings:
    return Findings({}, {}, [], erased(before, after))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ((0.1, 0.12), (0.1, 0.12), (STILL, SAME)),
        ((0.1, 0.12), (0.1, 0.05), (STILL, FELL)),
        ((0.1, 0.12), (0.15, 0.12), (STILL, ROSE)),
        ((0.1, 0.12), (0.15, 0.05), (STILL, FELL, ROSE)),
        ((0.1, 0.12), (0.01, 0.0), (NO_PROOF, FELL)),
        ((0.03, 0.01), (0.02, 0.01), (NO_PROOF, SAME)),
        ((0.01, 0.0), (0.0, 0.01), (NOTHING_EITHER_WAY,)),
        ((0.01, 0.0), (0.09, 0.0), (EASIER, ROSE)),
    ],
)
def test_the_sentence_follows_the_numbers(
    before: tuple[float, ...], after: tuple[float, ...], said: tuple[str, ...]
) -> None:
    sentence = erasure_sentence(findings(before, after))
    assert [part for part in ALL if part in sentence] == [part for part in ALL if part in said]


def test_the_sentence_has_the_numbers() -> None:
    sentence = erasure_sentence(findings((0.1, 0.12), (0.1, 0.05)))
    assert "in 80.0 % of cases" in sentence and "64 pairs" in sentence
    assert "most in layer 1, 0.100 [0.080 to 0.120]; before it most in layer 3, 0.120 [0.100 to 0.140]" in sentence
    assert "The largest fall is in layer 3, 0.070 [0.050 to 0.090]: 0.42 [0.32 to 0.52] of the base's" in sentence


def test_the_table_has_every_layer() -> None:
    rows = erasure_rows(erased((0.01, 0.12), (0.1, 0.05)))
    assert all(len(row) == len(COLUMNS) for row in rows) and [row[0] for row in rows] == ["1", "3"]
    assert rows[0][4] == "–", "a part of nothing is no number"
    assert rows[1][1:] == [
        "0.120 [0.100 to 0.140]",
        "0.050 [0.030 to 0.070]",
        "-0.070 [-0.090 to -0.050]",
        "0.42 [0.32 to 0.52]",
    ]


def test_the_picture_has_both_models_at_every_layer_and_what_the_token_says() -> None:
    figure = erasure_figure(findings((0.1, 0.12), (0.1, 0.05)))
    assert figure is not None
    (axes,) = figure.axes
    base, edited = (container.lines[0].get_ydata() for container in axes.containers)
    assert list(base) == [0.1, 0.12] and list(edited) == [0.1, 0.05]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["base", "edited"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "3"]
    assert any(set(line.get_ydata()) == {0} for line in axes.lines)


def test_what_was_not_measured_is_not_shown() -> None:
    nothing = Findings({}, {}, [])
    assert erasure_figure(nothing) is None and erasure_sentence(nothing) == ""


def test_the_blocks_of_these_tests_are_of_the_shape_that_is_measured() -> None:
    check_shape(erased((0.1, 0.12), (0.01, 0.0)), ERASURE, "the test")
    assert not found({"auc_gain_ci95": [0.0, 0.1]})
