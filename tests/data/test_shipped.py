"""Are the shipped held-out pairs held out, and can the sides be told apart by a newline?"""

import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from efface.data.rows import shipped
from efface.files.jsonl import read_jsonl
from efface.files.results import read_json
from efface.pairs.filters import has_length, word_runs
from efface.pairs.style import shortcuts

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from shipped_prompts import OPENERS, SCENES, origin, scenes
from shipped_split import NEAR, TEMPLATES, split

META = read_json(shipped("train").with_name("meta.json"))
TRAIN, HELD_OUT = read_jsonl(shipped("train")), read_jsonl(shipped("heldout"))


def test_as_many_pairs_as_meta_says() -> None:
    assert (len(TRAIN), len(HELD_OUT)) == (META["split"]["train"], META["split"]["heldout"])
    assert len(HELD_OUT) >= 64 and len(TRAIN) + len(HELD_OUT) <= META["counts"]["kept"]
    for part, rows in (("train", TRAIN), ("heldout", HELD_OUT)):
        kinds = [origin(row["prompt"]).kind for row in rows]
        assert {kind: kinds.count(kind) for kind in ("encyclopedia", "scene")} == META["split"]["kinds"][part]
        assert min(kinds.count(kind) for kind in ("encyclopedia", "scene")) >= 24


def test_no_template_and_no_filler_on_both_sides_of_the_split() -> None:
    ours, theirs = ([origin(row["prompt"]) for row in rows] for rows in (TRAIN, HELD_OUT))
    for kind in ("scene", "encyclopedia"):
        for part in ("template", "filler"):
            here, there = ({getattr(made, part) for made in side if made.kind == kind} for side in (ours, theirs))
            assert here and there and not here & there, (kind, part)


def test_prompts_of_the_demo_share_no_template_with_a_pair() -> None:
    prompts = [row["prompt"] for row in read_jsonl(shipped("prompts"))]
    assert {origin(prompt).template for prompt in prompts} <= set(SCENES["held_out"])
    assert not {origin(row["prompt"]).template for row in TRAIN + HELD_OUT} & set(SCENES["held_out"])


def test_no_copies_across_the_split() -> None:
    for side in ("prompt", "chosen", "rejected"):
        assert not {row[side] for row in TRAIN} & {row[side] for row in HELD_OUT}, side
    ours, theirs = ([word_runs(row["prompt"]) for row in rows] for rows in (TRAIN, HELD_OUT))
    assert max(len(one & other) / len(one | other) for one, other in product(ours, theirs)) < NEAR


def test_a_newline_does_not_tell_the_sides_apart() -> None:
    for rows in (TRAIN, HELD_OUT):
        sides = [[row[side] for row in rows] for side in ("chosen", "rejected")]
        rates = [sum("\n" in text for text in texts) / len(texts) for texts in sides]
        assert abs(rates[0] - rates[1]) <= 0.03
    assert META["train"]["shortcuts"] == shortcuts(*([row[side] for row in TRAIN] for side in ("chosen", "rejected")))
    assert META["train"]["style_auc"] < META["first_build"]["style_auc"]


def test_the_filters_hold_of_every_pair() -> None:
    settings = META["settings"]
    for row in TRAIN + HELD_OUT:
        assert row["chosen_score"] <= settings["max_benign_score"]
        assert row["rejected_score"] >= settings["min_toxic_score"]
        assert row["perplexity_ratio"] <= settings["max_perplexity_ratio"]
        assert all(has_length(row[side], settings["min_words"], None) for side in ("chosen", "rejected"))


# The split


@pytest.fixture
def few_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TEMPLATES, "scene", (2, 2))


def rows_of(prompts: list[str], **texts: str) -> list[dict[str, Any]]:
    return [
        {"prompt": prompt, "chosen": f" chosen {number}", "rejected": f" rejected {number}"} | texts
        for number, prompt in enumerate(prompts)
    ]


def test_origin_of_a_prompt() -> None:
    made = [origin(prompt) for prompt in scenes("training", 0)]
    assert {found.template for found in made} == set(SCENES["training"])
    assert len(set(made)) == len(made) and len({found.filler for found in made}) == 20
    found = origin("A visitor who wants to learn about owls of Europe may go to")
    assert (found.kind, found.template, found.filler) == ("encyclopedia", OPENERS[5], "owls of Europe")
    with pytest.raises(ValueError, match="is made from no template"):
        origin("Once upon a time")


def test_split_keeps_apart_and_counts_what_straddles(few_ways: None) -> None:
    rows = rows_of(scenes("training", 0)[:160])
    made = split(rows, {"scene": 12})
    ours, theirs = ([origin(row["prompt"]) for row in part] for part in (made.train, made.heldout))
    assert len(theirs) >= 12 and len(ours) > 80
    assert not {found.template for found in ours} & {found.template for found in theirs}
    assert not {found.filler for found in ours} & {found.filler for found in theirs}
    assert len(ours) + len(theirs) + made.dropped.total() == 160
    assert [row for row in rows if row in made.train] == made.train  # in their order
    figures = made.figures()
    assert (figures["train"], figures["heldout"]) == (len(ours), len(theirs))
    with pytest.raises(ValueError, match="160 pairs cannot be split so that 100 are held out"):
        split(rows, {"scene": 100})


def test_split_takes_copies_out_of_the_training_side(few_ways: None) -> None:
    prompts = scenes("training", 0)[:160]
    plain = split(rows_of(prompts), {"scene": 12})
    rows = rows_of(prompts)
    copies = {row["prompt"] for row in plain.train[:3]}
    for row in rows:
        if row["prompt"] in copies:
            row["chosen"] = plain.heldout[0]["chosen"]
    made = split(rows, {"scene": 12})
    assert made.heldout == plain.heldout and made.dropped["copy of a held-out text"] == 3
    assert len(made.train) == len(plain.train) - 3
