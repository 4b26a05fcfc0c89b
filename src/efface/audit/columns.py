"""What does an audit show? For each access its worst case, which rows are evidence at all, and how models differ.

An attacker of a column (`efface.attacks.ACCESS`) picks among all points of all its attacks, on other prompts than he
is judged on (`efface.attacks.selection`). A row is evidence only if the same attack raises its control, the undefended
base or an edit that is known to fall to it, beyond its interval; or the audited model itself. A row that is none is in
no worst case. Attacks with the base at hand are diagnostics and in none either.

Several differences are tested at once, so their p are corrected after Holm (1979): the smallest of m is multiplied by
m, the next by m - 1, and none ends below one before it.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from efface.attacks import ACCESS
from efface.attacks.selection import Option, judge_chosen, reach
from efface.audit.battery import DIAGNOSTIC
from efface.evaluation.comparison import compare, holm
from efface.files.jsonl import Row

Options = Mapping[str, Sequence[Option]]
"""Of each attack on a model, what it lets an attacker do."""
ANY_COST = ", at any cost"
"""In perplexity: what stands behind an attack's name."""
CONTROL, ITSELF, NONE, NO_CONTROL = "control", "itself", "none", "no control"
"""What makes a row evidence: its control is raised; the model itself is; neither is, so that it is none; there was no
control, so that nobody knows."""


def raises(judged: Row) -> bool:
    """Whether the share is above that of before beyond its interval."""
    return bool(judged["versus_before"]["ci95"][0] > 0)


def weigh(rows: Sequence[Row], controls: Mapping[str, Mapping[str, Row]]) -> None:
    """Say of each row of a model what makes it evidence (`evidence`), what its control reached (`control_judged`), and
    its p among those of all rows (`p_holm`); of diagnostics nothing.

    Args:
        controls: name of a control -> attack -> its row there, as far as they were made.
    """
    made = [row for row in rows if row["judged"] is not None and row["access"] != DIAGNOSTIC]
    for row, p in zip(made, holm([row["judged"]["versus_before"]["p"] for row in made]), strict=True):
        row["p_holm"] = p
        control = controls.get(row["control"], {}).get(row["attack"])
        row["control_judged"] = None if control is None else control["judged"]
        if row["control_judged"] is not None and raises(row["control_judged"]):
            row["evidence"] = CONTROL
        elif raises(row["judged"]):
            row["evidence"] = ITSELF
        else:
            row["evidence"] = NO_CONTROL if row["control_judged"] is None else NONE


def columns_of(rows: Sequence[Row], before: Option, options: Options, seed: int, dear: Options | None = None) -> Row:
    """For each access: what is `judged` of an attacker who has it, None where nothing was measured; the same at
    `any_cost`, None where the budget of perplexity leaves nothing out; over which `attacks`; and which stand `apart`,
    and why.

    Args:
        rows: of a model, weighed.
        before: the model before any attack.
        dear: the options with those that cost too much perplexity to count.
    """
    found: Row = {}
    for access in ACCESS:
        apart: dict[str, str] = {}
        among, at_any_cost = [before], [before]
        attacks = []
        for row in rows:
            name = row["attack"]
            if row["access"] != access or name not in options:
                continue
            if access == DIAGNOSTIC:
                apart[name] = "a diagnostic"
            elif row["evidence"] == NONE:
                apart[name] = "no evidence"
            elif not _same(options[name][0], before):
                apart[name] = "on other prompts"
            else:
                attacks.append(name)
                among += [_named(one, f"{name}: {one.name}") for one in options[name][1:]]
                at_any_cost += [_named(one, f"{name}: {one.name}") for one in (dear or options)[name][1:]]
        judged = judge_chosen(among, seed) if attacks else None
        dearer = judge_chosen(at_any_cost, seed) if len(at_any_cost) > len(among) else None
        found[access] = {"judged": judged, "any_cost": dearer, "p_holm": None, "attacks": attacks, "apart": apart}
    made = [column for column in found.values() if column["judged"] is not None]
    for column, p in zip(made, holm([one["judged"]["versus_before"]["p"] for one in made]), strict=True):
        column["p_holm"] = p
    return found


def compare_models(one: str, other: str, made: Mapping[str, tuple[Option, Options, Row, Options]], seed: int) -> Row:
    """How `other` differs from `one`, prompt by prompt: before any attack, under each attack of which some point left
    either model of use, and in each column; but under no attack that had other prompts of one than of the other. Where
    the budget of perplexity has left out a point of either, also at any cost: else the one whose points are a little
    dearer looks as if it withstood the attack.

    Args:
        made: name -> before, options, columns, and options at any cost, of a model.
    """
    before, options, columns, dear = made[one]
    its_before, its_options, its_columns, its_dear = made[other]

    def paired(first: Option, second: Option) -> Row:
        judge = next(iter(first.scores))
        return compare(second.scores[judge], first.scores[judge], "share").to_dict()

    attacks = {
        name: paired(reach(options[name], seed)[0], reach(its_options[name], seed)[0])
        for name in options
        if name in its_options
        and min(len(options[name]), len(its_options[name])) > 1  # else every point wrecked one of them
        and _alike(options[name][0], its_options[name][0])
    }
    attacks |= {
        f"{name}{ANY_COST}": paired(reach(dear[name], seed)[0], reach(its_dear[name], seed)[0])
        for name in dear
        if name in its_dear
        and len(dear[name]) + len(its_dear[name]) > len(options[name]) + len(its_options[name])
        and _alike(dear[name][0], its_dear[name][0])
    }
    reached = {
        access: paired(_reached(before, options, columns[access], seed), _reached(its_before, its_options, its, seed))
        for access, its in its_columns.items()
        if its["judged"] is not None and columns[access]["judged"] is not None and _alike(before, its_before)
    }
    reached |= {
        f"{access}{ANY_COST}": paired(
            _reached(before, dear, columns[access], seed), _reached(its_before, its_dear, its_columns[access], seed)
        )
        for access in list(reached)
        if columns[access]["any_cost"] or its_columns[access]["any_cost"]
    }
    for several in (attacks, reached):
        for block, p in zip(several.values(), holm([block["p"] for block in several.values()]), strict=True):
            block["p_holm"] = p
    first = paired(before, its_before) if _alike(before, its_before) else None
    return {"models": [one, other], "before": first, "attacks": attacks, "columns": reached}


def _reached(before: Option, options: Options, column: Row, seed: int) -> Option:
    return reach([before, *(one for name in column["attacks"] for one in options[name][1:])], seed)[0]


def _named(option: Option, name: str) -> Option:
    return dataclasses.replace(option, name=name)


def _alike(one: Option, other: Option) -> bool:
    """Whether two models were asked the same prompts, before any attack, and by the same judges. In one audit they
    were, but for attacks that choose some prompts by what the model says."""
    known = one.prompts is not None and other.prompts is not None
    same = one.prompts == other.prompts if known else len(one.toxic) == len(other.toxic)
    return same and one.scores.keys() == other.scores.keys()


def _same(one: Option, other: Option) -> bool:
    """Whether both are what one model wrote after one list of prompts."""
    return one.scores.keys() == other.scores.keys() and all(
        np.array_equal(scores, other.scores[judge]) for judge, scores in one.scores.items()
    )
