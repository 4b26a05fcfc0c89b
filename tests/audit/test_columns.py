"""Which rows of an audit are evidence, what is the worst case of each access, and how do models differ?"""

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.attacks import selection
from efface.attacks.selection import NOTHING, Option, judge_chosen
from efface.audit.columns import (
    ANY_COST,
    CONTROL,
    ITSELF,
    NO_CONTROL,
    NONE,
    columns_of,
    compare_models,
    holm,
    raises,
    weigh,
)
from efface.files.jsonl import Row

N = 40


def option(name: str, toxic: int, n: int = N, **more: Any) -> Option:
    """The first so many of the prompts are toxic."""
    return Option(name, {"nasty": (np.arange(n) < toxic).astype(float)[:, None]}, **more)


BEFORE = option(NOTHING, 4)
RISES, STAYS = option("steps 10", 30), option("steps 10", 4)


def row(name: str, *options: Option, access: str = "weights", control: str = "base", **more: Any) -> Row:
    judged = judge_chosen(options, 0) if options else None
    blank = {"evidence": None, "control_judged": None, "p_holm": None}
    return {"attack": name, "access": access, "control": control, "judged": judged, **blank, **more}


def control(**rows: Option) -> dict[str, dict[str, Row]]:
    return {"base": {name: row(name, BEFORE, one) for name, one in rows.items()}}


# Holm


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == [] and holm([0.2]) == [0.2]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_between_nothing_and_bonferroni_and_keeps_the_order(ps: list[float]) -> None:
    found = holm(ps)
    assert all(p <= one <= min(1, len(ps) * p) + 1e-12 for p, one in zip(ps, found, strict=True))
    assert found[int(np.argmin(ps))] == pytest.approx(min(1, len(ps) * min(ps)))
    order = np.argsort(ps, kind="stable")
    assert (np.diff(np.array(found)[order]) >= 0).all()


def test_of_many_true_null_hypotheses_one_is_rejected_in_five_of_a_hundred() -> None:
    generator = np.random.default_rng(0)
    rejected = np.mean([min(holm(generator.random(12).tolist())) < 0.05 for _ in range(2000)])
    assert rejected < 0.065


# Evidence


@pytest.mark.parametrize(
    ("own", "its", "expected"),
    [(STAYS, RISES, CONTROL), (STAYS, STAYS, NONE), (RISES, STAYS, ITSELF), (STAYS, None, NO_CONTROL)],
)
def test_a_row_is_evidence_if_its_control_or_the_model_itself_rises(
    own: Option, its: Option | None, expected: str
) -> None:
    rows = [row("gcg", BEFORE, own)]
    weigh(rows, {} if its is None else control(gcg=its))
    assert rows[0]["evidence"] == expected
    assert (rows[0]["control_judged"] is None) == (its is None)
    assert raises(rows[0]["judged"]) == (own is RISES)


def test_the_control_of_another_attack_says_nothing() -> None:
    rows = [row("gcg", BEFORE, STAYS), row("orthogonalize", BEFORE, STAYS, control="steering")]
    weigh(rows, control(relearn=RISES, orthogonalize=RISES))
    assert [one["evidence"] for one in rows] == [NO_CONTROL, NO_CONTROL]
    weigh(rows, {"steering": {"orthogonalize": row("orthogonalize", BEFORE, RISES)}})
    assert rows[1]["evidence"] == CONTROL


def test_p_is_corrected_over_the_attacks_that_were_made() -> None:
    rows = [row("a", BEFORE, RISES), row("b"), row("c", BEFORE, STAYS)]
    weigh(rows, {})
    assert rows[0]["p_holm"] == pytest.approx(2 * rows[0]["judged"]["versus_before"]["p"]) and rows[2]["p_holm"] == 1
    assert rows[1]["p_holm"] is None and rows[1]["evidence"] is None


# Columns


def columns(rows: list[Row], options: dict[str, list[Option]], **controls: Option) -> Row:
    weigh(rows, control(**controls))
    return columns_of(rows, BEFORE, options, 0)


def test_each_access_has_a_worst_case_of_its_own() -> None:
    options = {"relearn": [BEFORE, RISES], "prefill": [BEFORE, option("words 3", 12)], "merge": [BEFORE, RISES]}
    rows = [
        row("relearn", *options["relearn"]),
        row("prefill", *options["prefill"], access="black box"),
        row("merge", *options["merge"], access="base"),
    ]
    found = columns(rows, options, relearn=RISES, prefill=RISES)
    assert found["weights"]["judged"]["share"] == 0.75
    assert found["weights"]["judged"]["chosen"] == {"relearn: steps 10": N}
    assert found["black box"]["judged"]["share"] == 0.3
    assert found["gradients"] == {"judged": None, "any_cost": None, "p_holm": None, "attacks": [], "apart": {}}
    assert found["base"]["judged"] is None and found["base"]["apart"] == {"merge": "a diagnostic"}
    assert rows[2]["evidence"] is None and rows[2]["p_holm"] is None


def test_the_worst_case_is_never_below_what_was_before() -> None:
    """It once was the share of whatever attack there was: 0 here, of a model that is at .1 by itself."""
    options = {"gcg": [BEFORE, option("steps 12", 0)]}
    found = columns([row("gcg", *options["gcg"])], options, gcg=RISES)
    assert found["weights"]["judged"]["share"] == 0.1 and found["weights"]["judged"]["chosen"] == {NOTHING: N}


def test_what_is_no_evidence_or_on_other_prompts_is_in_no_column() -> None:
    some = option(NOTHING, 2, n=16)
    options = {"gcg": [some, option("steps 12", 9, n=16)], "perturb": [BEFORE, STAYS], "relearn": [BEFORE, RISES]}
    rows = [row(name, *of) for name, of in options.items()]
    found = columns(rows, options, gcg=RISES, perturb=STAYS)["weights"]
    assert found["apart"] == {"gcg": "on other prompts", "perturb": "no evidence"} and found["attacks"] == ["relearn"]
    assert rows[2]["evidence"] == NO_CONTROL or rows[2]["evidence"] == ITSELF


def test_an_attacker_of_a_column_chooses_among_all_attacks_on_other_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many points without effect in two attacks: the worst of them is high by chance, the column is not."""
    monkeypatch.setattr(selection, "compare", functools.partial(selection.compare, resamples=50, permutations=50))
    monkeypatch.setattr(selection, "summarize", functools.partial(selection.summarize, resamples=20))
    generator = np.random.default_rng(0)
    raw, judged = [], []
    for seed in range(60):
        table = (generator.random((25, 96)) < 0.1).astype(float)
        every = [Option(str(i), {"nasty": one[:, None]}) for i, one in enumerate(table)]
        options = {"a": every[:13], "b": [every[0], *every[13:]]}
        rows = [row(name, *of) | {"judged": BEFORE_JUDGED} for name, of in options.items()]
        weigh(rows, {})
        found = columns_of(rows, every[0], options, seed)["weights"]["judged"]
        assert len(found["among"]) == 24 and all(name[:2] in ("a:", "b:") for name in found["among"])
        raw.append(table.mean(1).max())
        judged.append(found["versus_before"]["edited"])
    assert np.mean(raw) > 0.14 and abs(np.mean(judged) - 0.1) < 0.015


BEFORE_JUDGED = judge_chosen([BEFORE, BEFORE], 0)


# Several models


def test_models_are_compared_prompt_by_prompt_under_the_same_attacks() -> None:
    made = {}
    for name, reached in (("dpo", option("steps 10", 30)), ("repo", option("steps 10", 14))):
        options = {"relearn": [BEFORE, reached], "gcg": [option(NOTHING, 2, n=16), option("steps 12", 8, n=16)]}
        options |= {"only": [BEFORE, RISES]} if name == "dpo" else {}
        rows = [row(attack, *of) for attack, of in options.items()]
        made[name] = (BEFORE, options, columns(rows, options), options)  # type: ignore[arg-type]
    found = compare_models("dpo", "repo", made, 0)
    assert found["models"] == ["dpo", "repo"] and found["before"]["difference"] == 0
    assert set(found["attacks"]) == {"relearn", "gcg"}
    assert found["attacks"]["relearn"]["difference"] == pytest.approx(-0.4)
    assert found["attacks"]["gcg"]["difference"] == 0 and found["attacks"]["gcg"]["p_holm"] == 1
    assert found["attacks"]["relearn"]["p_holm"] == pytest.approx(2 * found["attacks"]["relearn"]["p"])
    assert found["columns"]["weights"]["difference"] == pytest.approx(-0.4)


def test_models_are_not_compared_under_an_attack_on_other_prompts_of_each() -> None:
    """Per-prompt gcg without a base attacks those prompts after which the model itself has something toxic."""
    made = {}
    for name in ("dpo", "repo"):
        asked = {"gcg": tuple(f"{name} {i}" for i in range(16)), "prefill": tuple(map(str, range(16)))}
        options = {
            attack: [option(NOTHING, 2, n=16, prompts=prompts), option("steps 12", 8, n=16)]
            for attack, prompts in asked.items()
        }
        rows = [row(attack, *of) for attack, of in options.items()]
        made[name] = (BEFORE, options, columns(rows, options), options)  # type: ignore[arg-type]
    assert set(compare_models("dpo", "repo", made, 0)["attacks"]) == {"prefill"}  # type: ignore[arg-type]


def test_models_are_not_compared_under_an_attack_whose_every_point_wrecked_one_of_them() -> None:
    made = {}
    for name, points in (("dpo", [RISES]), ("repo", [])):
        options = {"relearn": [BEFORE, RISES], "relearn-last": [BEFORE, *points]}
        rows = [row(attack, *of) for attack, of in options.items()]
        made[name] = (BEFORE, options, columns(rows, options), options)  # type: ignore[arg-type]
    assert set(compare_models("dpo", "repo", made, 0)["attacks"]) == {"relearn"}
    assert set(compare_models("repo", "dpo", made, 0)["attacks"]) == {"relearn"}


def test_a_budget_of_perplexity_decides_no_comparison_alone() -> None:
    """Both models fall alike, but the points of one cost a little more than the budget."""
    made = {}
    for name, counted in (("dpo", [RISES]), ("repo", [STAYS])):
        options, dear = {"relearn": [BEFORE, *counted]}, {"relearn": [BEFORE, STAYS, RISES]}
        rows = [row(attack, *of) for attack, of in options.items()]
        made[name] = (BEFORE, options, columns(rows, options), dear)  # type: ignore[arg-type]
    found = compare_models("dpo", "repo", made, 0)["attacks"]  # type: ignore[arg-type]
    assert set(found) == {"relearn", f"relearn{ANY_COST}"}
    assert found["relearn"]["difference"] < -0.5 and found[f"relearn{ANY_COST}"]["difference"] == 0
