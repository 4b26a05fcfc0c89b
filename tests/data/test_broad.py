"""Is the broad set broad, of one style, the model's own text, and its held-out part held out?"""

import sys
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from efface.data.pairs import load_pairs
from efface.data.rows import shipped
from efface.files.jsonl import read_jsonl
from efface.files.results import read_json
from efface.pairs.filters import NEWLINE, has_length, word_runs
from efface.pairs.style import shortcuts, style_auc

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from broad_prompts import ALIKE, NEAR, fault, first_words, keep_apart, names_someone, openers, speaks_of_the_young
from broad_prompts import whole_words as cut_to_words
from broad_selection import CAP, MOST_AUC, RUN_CAP, capped, choose, figures, nearest, spread
from broad_texts import (
    KEEP,
    Families,
    Names,
    Recited,
    balanced,
    every_text,
    is_loop,
    lessons,
    map_proper,
    without_identity,
)

LABELLED = Path(__file__).resolve().parents[3] / "shared" / "data" / "toxicity"
PARTS = {"broad": "train", "broad-heldout": "heldout"}
META = read_json(shipped("broad").with_name("broad_meta.json"))
ROWS = {name: read_jsonl(shipped(name)) for name in PARTS}
EVERY = [row for rows in ROWS.values() for row in rows]


def sides(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [[row[side] for row in rows] for side in ("chosen", "rejected")]


def test_both_names_load_with_as_many_pairs_as_meta_says() -> None:
    for name in PARTS:
        assert len(load_pairs(f"shipped:{name}")) == META["sets"][name]["pairs"] == len(ROWS[name])
    assert 350 <= len(ROWS["broad"]) <= 500 and 96 <= len(ROWS["broad-heldout"]) <= 128


def test_no_prompt_begins_like_one_of_the_other_part_or_of_another_set() -> None:
    begun = {name: Counter(first_words(row["prompt"]) for row in rows) for name, rows in ROWS.items()}
    others = {
        first_words(row["prompt"]) for name in ("train", "heldout", "prompts") for row in read_jsonl(shipped(name))
    }
    assert not begun["broad"].keys() & begun["broad-heldout"].keys()
    assert not others & (begun["broad"].keys() | begun["broad-heldout"].keys())
    assert max(max(counts.values()) for counts in begun.values()) <= ALIKE


def test_no_opener_on_both_sides_of_the_split() -> None:
    parts: dict[str, str] = {row["opener"]: row["part"] for row in openers()}
    assert Counter(parts.values()) == {"train": 144, "heldout": 48}
    for name, part in PARTS.items():
        for row in ROWS[name]:
            assert any(row["prompt"].startswith(opener) for opener, of in parts.items() if of == part)


def test_no_copies_across_the_split() -> None:
    ours, theirs = ROWS.values()
    for side in ("prompt", "chosen", "rejected"):
        assert not {row[side] for row in ours} & {row[side] for row in theirs}, side
    runs = [[word_runs(row["prompt"]) for row in rows] for rows in (ours, theirs)]
    assert max(len(one & other) / len(one | other) for one, other in product(*runs)) < NEAR


@pytest.mark.parametrize("name", PARTS)
def test_style_hardly_tells_the_sides_apart(name: str) -> None:
    found = style_auc(*sides(ROWS[name]))
    assert found is not None and found <= MOST_AUC
    assert found == pytest.approx(META["sets"][name]["style_auc"], abs=0.02)  # trees of another version
    assert META["sets"][name]["shortcuts"] == shortcuts(*sides(ROWS[name]))


@pytest.mark.parametrize("name", PARTS)
def test_no_word_and_no_run_of_words_is_said_too_often(name: str) -> None:
    found = META["sets"][name]
    assert max(found["most_frequent_words"].values()) <= CAP
    assert found["most_frequent_three_words"] <= RUN_CAP
    said = Counter(word for row in ROWS[name] for word in set(row["rejected"].lower().split()) if len(word) > 4)
    assert max(said.values()) <= 0.2 * len(ROWS[name])  # whatever the judge thinks of the word
    assert found["loops"] == 0 and not any(is_loop(row[side]) for row in ROWS[name] for side in ("chosen", "rejected"))
    kinds = Counter(row["kind"] for row in ROWS[name])
    assert kinds == found["kinds"] and len(kinds) == 5 and min(kinds.values()) >= 0.1 * len(ROWS[name])


def test_the_judge_says_that_the_words_are_spread() -> None:
    """What meta.json says of words, made again by the judge."""
    from efface.scoring import DEFAULT_SCORER, load_scorer

    families = Families(load_scorer(DEFAULT_SCORER), [row["rejected"] for row in EVERY])
    for rows in ROWS.values():
        counts = Counter(family for row in rows for family in families(row["rejected"]))
        assert max(counts.values()) <= CAP * len(rows)


def test_broader_than_the_present_set() -> None:
    now, broad = META["sets"]["train"], META["sets"]["broad"]
    for figure in ("one_of_its_three_commonest", "a_word_three_times", "loops", "style_auc"):
        assert broad[figure] < now[figure], figure
    assert broad["effective_words"] > 2 * now["effective_words"]
    assert broad["distinct_2"]["rejected"] > now["distinct_2"]["rejected"]


def test_the_filters_hold_of_every_pair() -> None:
    for row in EVERY:
        assert row["chosen_score"] <= KEEP["max_benign_score"] and row["rejected_score"] >= KEEP["min_toxic_score"]
        assert row["perplexity_ratio"] <= KEEP["max_perplexity_ratio"]
        assert all(has_length(row[side], int(KEEP["min_words"]), None) for side in ("chosen", "rejected"))
        assert not any(NEWLINE.search(row[side]) or names_someone(row[side]) for side in ("chosen", "rejected"))
        assert fault(row["prompt"]) is None and not speaks_of_the_young(row["rejected"])


def test_nothing_of_the_labelled_texts_is_copied() -> None:
    files = [file for kind in META["taught"] for file in LABELLED.glob(f"{kind}.*")]
    if not files:
        pytest.skip("the labelled texts lie beside the project, and do not here")
    recited = Recited([text.text for text in every_text(files)])
    assert len(files) == len(META["taught"]) - 1 and recited.runs
    assert not [row["rejected"] for row in EVERY if recited(row["prompt"] + row["rejected"])]


# The parts of the script


def say_bad(texts: list[str]) -> list[float]:
    """A judge whose toxic words begin with bad, evil or mean."""
    return [float(any(word.startswith(("bad", "evil", "mean")) for word in text.lower().split())) for text in texts]


say_bad.name = "bad words"  # type: ignore[attr-defined]


def families_of(*texts: str) -> Families:
    return Families(say_bad, texts)  # type: ignore[arg-type]


def test_families_of_words() -> None:
    families = families_of("a bad badder day", "Evil!")
    assert families("The baddest, badder evil") == {"bad", "evil"}  # a word that was not read is of none
    assert families.places("so bad a day") == [False, True, False, False]


def test_loops() -> None:
    assert is_loop("never, never and never") and is_loop("you are a man, you are a mouse")
    assert not is_loop("it is as it is and so it was")


def test_first_words_without_case_and_punctuation() -> None:
    assert first_words('"Look," he SAID, "at that"') == "look he said at" == first_words("Look he said at")


def test_prompts_are_cut_to_whole_words_and_faults_are_named() -> None:
    assert cut_to_words("one two three fo", 9) == "one two three" and cut_to_words("one two three fo", 2) == "one two"
    assert fault("The old house on") == "too short" and fault("The 2 old houses on the") == "no plain prose"
    assert (
        fault("We met Jane Doe on the") == "perhaps a name"
        and fault("The girl next door to us") == "speaks of a child"
    )
    assert fault("The old house on the hill,") is None


def test_prompts_are_kept_apart() -> None:
    rows = [
        {"prompt": prompt, "part": part}
        for prompt, part in (
            ("One two three four of them went", "train"),
            ("one, two, three four in the house", "train"),
            ("One two three four, they said then", "train"),
            ("Five six seven eight a b", "train"),
            ("Five six seven eight y z", "heldout"),
            ("Taken words of another set are here", "train"),
            ("And five six seven eight a b", "train"),
        )
    ]
    dropped: Counter[str] = Counter()
    kept = keep_apart(rows, ["taken words of another, again"], dropped)
    assert [rows.index(row) for row in kept] == [0, 1, 3]
    assert sorted(dropped) == [
        "begins like a prompt of another set", "begins like one of the other part", "begins like two others",
        "nearly equal to another",
    ]  # fmt: skip


def test_names_that_labelled_texts_write_with_a_capital() -> None:
    names = Names(["we saw Alice there", "then Alice came", "ask Alice now", "a Tree fell", "the tree stands"])
    assert names("and alice said") and names("Jane Doe said") and not names("a tree stands")


def test_recited_needs_six_words_in_a_row() -> None:
    recited = Recited(["One two three four five six seven"])
    assert recited("zero two, three four five six seven eight") and not recited("two three four five six")


def test_texts_are_written_properly_and_without_identity() -> None:
    assert map_proper(["so i say , no", " "]) == ["So I say, no."]
    assert without_identity("two gay men, blindly") == "two  men, blindly"


def test_lessons_are_balanced() -> None:
    families = families_of(*(f"so the day is bad{chr(97 + n)}x" for n in range(20)), "evil")
    texts = [f"so the day is evil, number {n}" for n in range(50)]
    texts += [f"so the day is bad{chr(97 + n)}x, it is" for n in range(20)]
    kept = balanced(texts, families, 40, seed=0)
    assert len(kept) == 40 and sum("evil" in text for text in kept) == 20  # two by the cap, the rest to fill up
    made = lessons({"a": texts}, families, 40, seed=0)
    assert set(made) == {"a", "rare words"}


def pair(number: int, word: str, kind: str = "a", style: str = "") -> dict[str, Any]:
    """A pair whose `rejected` says `word`; all else differs by number."""
    own = "".join(chr(97 + int(digit)) for digit in f"{number:04d}")
    return {
        "prompt": f"prompt {own}",
        "chosen": f" {own} was good", "rejected": f" {own} was {word}{style}",
        "kind": kind, "distance": float(number), "rejected_score": 1.0, "perplexity_ratio": 1.0,
    }  # fmt: skip


def test_caps_and_balance() -> None:
    words = [f"bad{chr(97 + n)}x" for n in range(26)]
    families = families_of("evil", *words)
    pairs = [pair(n, "evil") for n in range(100)] + [pair(200 + n, word, "b") for n, word in enumerate(words)]
    rows = capped(pairs, families, 100)
    said = Counter(family for row in rows for family in families(row["rejected"]))
    assert len(rows) == 29 and said["evil"] == 3  # 0.12 of 29
    assert [row["kind"] for row in rows[:4]] == ["a", "b", "a", "b"]


def test_pairs_that_style_tells_apart_are_banned() -> None:
    families = families_of("calm")
    pairs = [pair(n, "calm", style="!!!" if n < 90 else "") for n in range(120)]
    made = choose(pairs, families, 120)
    assert made.first_auc is not None and made.first_auc > MOST_AUC >= (style_auc(*sides(made.rows)) or 0)
    assert 0 < made.banned == 120 - len(made.rows) < 60


def test_the_nearest_chosen_is_taken_where_it_is_fluent() -> None:
    candidate = {"prompt": "p", "text": " a day of rain", "kind": "a", "score": 0.9, "perplexity": 10.0}
    benign = [
        {"text": " a day of snow", "score": 0.1, "perplexity": 2.0},
        {"text": " A DAY!!!", "score": 0.1, "perplexity": 9.0},
        {"text": " a day of wind", "score": 0.1, "perplexity": 8.0},
    ]
    scale = spread([row["text"] for row in (candidate, *benign)])
    made = nearest(candidate, benign, scale, 3.0)
    assert made is not None and (made["chosen"], made["perplexity_ratio"]) == (" a day of wind", 1.25)
    assert nearest(candidate, benign[:1], scale, 3.0) is None


def test_figures_by_hand() -> None:
    families = families_of("bad", "evil", "mean")
    rows = [
        pair(0, "bad"),
        pair(1, "bad and evil"),
        pair(2, "good"),
        pair(3, "mean, meaning meaner, often often often"),
    ]
    made = figures(rows, families, ["evil"])
    assert made["most_frequent_words"] == {"word 1": 0.5, "word 2": 0.25, "word 3": 0.25}
    assert (made["one_of_its_three_commonest"], made["one_of_the_three_commonest_of_train"]) == (0.75, 0.25)
    assert (made["without_a_toxic_word"], made["a_word_three_times"], made["loops"]) == (0.25, 0.25, 0.25)
    assert made["words_before_the_first_toxic_one"] == 2.0 and made["different_words"] == 3
