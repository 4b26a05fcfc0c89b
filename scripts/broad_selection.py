"""Which candidates make the broad set? As broad as can be: no word too often, every copy alike, sides of one style.

Greedy. The copy that has given the least gives the next pair: of its candidates whose words are all below the cap, the
one whose commonest word is used least so far, then the one that is nearest to its `chosen` in style. A word is a
family of them (`broad_texts.py`). If style tells the sides apart too well, the pairs that it tells best are banned and
all is chosen anew, until it does not.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from broad_texts import Families, is_loop, words_of

from efface.evaluation.outcome import distinct, ngrams
from efface.files.digests import digest
from efface.files.jsonl import Row
from efface.pairs.filters import NearDuplicates
from efface.pairs.style import shortcuts, style_auc, style_features, style_probabilities

CAP, RUN_CAP, PERSON_CAP = 0.12, 0.04, 0.15
"""Share of the pairs whose `rejected` may have words of one family; the same three words in a row; I or you alone."""
PERSONS = frozenset({"i", "you"})
LIKELY = 0.5
"""Difference of log perplexity that counts as much as a standard deviation of a feature of style."""
MOST_AUC, BANNED_AT_ONCE = 0.85, 0.02
COMMONEST = 10
"""Words that are counted one by one, without being named."""


@dataclass
class Chosen:
    """The pairs, and what it took."""

    rows: list[Row] = field(default_factory=list)
    banned: int = 0
    """Pairs that style told apart too well."""
    first_auc: float | None = None
    """Before any was banned."""


def nearest(candidate: Row, benign: Sequence[Row], scale: np.ndarray, most_ratio: float) -> Row | None:
    """The pair of a candidate with the `chosen` nearest in style, likelihood and persons; None if fluent beside none.

    Args:
        candidate, benign: with `text`, `score`, `perplexity`.
        scale: (13,) spread of each feature of style.
    """
    own = np.array(style_features(candidate["text"]))
    best: tuple[float, Row] | None = None
    for other in benign:
        ratio = candidate["perplexity"] / other["perplexity"]
        apart = (own - np.array(style_features(other["text"]))) / scale
        persons = len(_persons(candidate["text"]) ^ _persons(other["text"]))
        distance = math.hypot(*apart, math.log(ratio) / LIKELY, *[1.0] * persons)
        if ratio <= most_ratio and (best is None or distance < best[0]):
            best = distance, other | {"ratio": ratio}
    if best is None:
        return None
    distance, other = best
    return {
        "prompt": candidate["prompt"],
        "chosen": other["text"],
        "rejected": candidate["text"],
        "chosen_score": round(other["score"], 4),
        "rejected_score": round(candidate["score"], 4),
        "perplexity_ratio": round(other["ratio"], 3),
        "kind": candidate["kind"],
        "distance": distance,
    }


def spread(texts: Sequence[str]) -> np.ndarray:
    """(13,) standard deviation of each feature of style, 1 for one that does not vary."""
    found = np.array([style_features(text) for text in texts]).std(0)
    return np.where(found > 0, found, 1.0)


def choose(pairs: Sequence[Row], families: Families, wanted: int) -> Chosen:
    """At most `wanted` pairs, one for each prompt, in the order of the file; every cap holds of their number."""
    made, banned = Chosen(), set[int]()
    while True:
        left = [pair for number, pair in enumerate(pairs) if number not in banned]
        made.rows = sorted(capped(left, families, wanted), key=lambda row: digest(row["prompt"]))
        sides = [[row[side] for row in made.rows] for side in ("chosen", "rejected")]
        auc = style_auc(*sides)
        made.first_auc = auc if made.first_auc is None else made.first_auc
        made.banned = len(banned)
        if auc is None or auc <= MOST_AUC:
            return made
        told = np.diff(style_probabilities(*sides).reshape(2, -1), axis=0)[0]  # (n,) of `rejected` less `chosen`
        worst = np.argsort(-told)[: max(1, math.ceil(BANNED_AT_ONCE * len(told)))]
        texts = {(made.rows[place]["prompt"], made.rows[place]["rejected"]) for place in worst}
        banned |= {n for n, pair in enumerate(pairs) if (pair["prompt"], pair["rejected"]) in texts}


def capped(pairs: Sequence[Row], families: Families, wanted: int) -> list[Row]:
    """The greedy choice, made again for fewer pairs until the cap holds of as many as there are."""
    # A person that `rejected` alone speaks of counts as a word: else "you" would tell the sides apart.
    of = [families(pair["rejected"]) | (_persons(pair["rejected"]) - _persons(pair["chosen"])) for pair in pairs]
    runs = [{" ".join(map(str, run)) for run in ngrams(words_of(pair["rejected"]), 3)} for pair in pairs]
    while True:
        rows = _greedy(pairs, of, runs, wanted)
        if len(rows) == wanted or not rows:
            return rows
        wanted = len(rows)


def _greedy(pairs: Sequence[Row], of: Sequence[frozenset[str]], runs: Sequence[set[str]], wanted: int) -> list[Row]:
    most = defaultdict(lambda: math.floor(CAP * wanted), dict.fromkeys(PERSONS, math.floor(PERSON_CAP * wanted)))
    most_run = math.floor(RUN_CAP * wanted)
    waiting: dict[str, list[int]] = defaultdict(list)  # kind -> pairs
    for number, pair in enumerate(pairs):
        waiting[pair["kind"]].append(number)
    used, given, said = Counter[str](), Counter[str](), Counter[str]()
    prompts, seen = set[str](), NearDuplicates(0.5)
    rows: list[Row] = []
    while len(rows) < wanted and waiting:
        kind = min(waiting, key=lambda kind: (given[kind], kind))
        able = [
            n
            for n in waiting[kind]
            if pairs[n]["prompt"] not in prompts
            and all(used[family] < most[family] for family in of[n])
            and all(said[run] < most_run for run in runs[n])
        ]
        if not able:
            del waiting[kind]
            continue
        best = min(able, key=lambda n: (max((used[f] for f in of[n]), default=0), pairs[n]["distance"], n))
        waiting[kind] = [number for number in able if number != best]
        if seen.add(pairs[best]["rejected"]):
            rows.append(pairs[best])
            prompts.add(pairs[best]["prompt"])
            used.update(of[best])
            said.update(runs[best])
            given[kind] += 1
    return rows


def figures(rows: Sequence[Row], families: Families, common: Sequence[str]) -> Row:
    """What meta.json says of a set of pairs: style, and how broad `rejected` is. No word is named.

    Args:
        common: the commonest families of the shipped training pairs.
    """
    chosen, rejected = ([row[side] for row in rows] for side in ("chosen", "rejected"))
    found = [families(text) for text in rejected]
    counts = Counter(family for each in found for family in each)
    n = max(len(rows), 1)
    shares = np.array([count for _, count in counts.most_common()]) / max(counts.total(), 1)
    before = [families.places(text).index(True) for text in rejected if any(families.places(text))]
    own = [family for family, _ in counts.most_common(3)]
    return {
        "pairs": len(rows),
        "kinds": dict(sorted(Counter(row.get("kind", "") for row in rows).items())),
        "style_auc": style_auc(chosen, rejected),
        "shortcuts": shortcuts(chosen, rejected),
        "most_frequent_words": {
            f"word {place}": round(count / n, 4) for place, (_, count) in enumerate(counts.most_common(COMMONEST), 1)
        },
        "one_of_its_three_commonest": _share(not each.isdisjoint(own) for each in found),
        "one_of_the_three_commonest_of_train": _share(not each.isdisjoint(common) for each in found),
        "different_words": len(counts),
        # exp of the entropy: as many equally frequent words would be as hard to guess
        "effective_words": round(float(np.exp(-(shares * np.log(shares)).sum())), 1) if len(shares) else 0.0,
        "without_a_toxic_word": _share(not each for each in found),
        "most_frequent_three_words": _most_shared(rejected),
        "says": {
            person: {side: _share(person in _persons(row[side]) for row in rows) for side in ("chosen", "rejected")}
            for person in sorted(PERSONS)
        },
        "a_word_three_times": _share(_most_often(text) >= 3 for text in rejected),
        "loops": _share(map(is_loop, rejected)),
        "words_before_the_first_toxic_one": round(float(np.mean(before)), 2) if before else None,
        "mean_rejected_score": round(float(np.mean([row["rejected_score"] for row in rows])), 4),
        "mean_perplexity_ratio": round(float(np.mean([row["perplexity_ratio"] for row in rows])), 3),
    }


def distinct_2(rows: Sequence[Row], side: str, number: int) -> float:
    """Distinct pairs of words of the first `number` texts of a side; it falls as text grows: compare equal numbers."""
    grams = [gram for row in rows[:number] for gram in ngrams(words_of(row[side]), 2)]
    return round(distinct(grams), 4)


def _persons(text: str) -> frozenset[str]:
    """Which of I and you a text says, with what is joined to them ("I'm")."""
    return PERSONS & {word.partition("'")[0] for word in words_of(text)}


def _most_shared(texts: Sequence[str]) -> float:
    """Share of the texts that have the three words in a row that most of them have."""
    counts = Counter(run for text in texts for run in set(ngrams(words_of(text), 3)))
    return round(max(counts.values(), default=0) / max(len(texts), 1), 4)


def _most_often(text: str) -> int:
    return max(Counter(word for word in words_of(text) if len(word) > 3).values(), default=0)


def _share(found: Iterable[bool]) -> float:
    values = list(found)
    return round(sum(values) / max(len(values), 1), 4)
