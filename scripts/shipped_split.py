"""Which of the shipped pairs are held out? Those whose template and whose speaker or topic no training pair has.

A prompt is a template filled with a speaker (scenes) or a topic (encyclopedia-like openers, after which the model goes
on for a few words). Some templates and some fillers are set aside: a pair that has both from there is held out, one
that has neither trains, one that has one of them is dropped. Of all ways to set templates aside, the one is taken that
leaves the most training pairs beside enough held-out ones. Copies and near-copies across the split leave the training
side. Deterministic: the same rows give the same split.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from shipped_prompts import Origin, origin

from efface.files.jsonl import Row
from efface.pairs.filters import word_runs

HELD_OUT = {"scene": 32, "encyclopedia": 32}
"""Held-out pairs that are asked for, at least, of each kind of prompt."""
TEMPLATES = {"scene": (3, 5), "encyclopedia": (1, 2)}
"""How many templates may be set aside: from, to."""
NEAR = 0.5
"""Prompts that are so similar (Jaccard, runs of three words) are near-copies."""


@dataclass
class Split:
    """The two parts and what was lost between them."""

    train: list[Row] = field(default_factory=list)
    heldout: list[Row] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    """Reason -> pairs."""

    def figures(self) -> dict[str, object]:
        """What meta.json says of it."""
        kinds = {
            part: dict(sorted(Counter(origin(row["prompt"]).kind for row in rows).items()))
            for part, rows in (("train", self.train), ("heldout", self.heldout))
        }
        templates = Counter(origin(row["prompt"]).template for row in self.heldout)
        return {
            "train": len(self.train),
            "heldout": len(self.heldout),
            "dropped": dict(self.dropped),
            "kinds": kinds,
            "heldout_templates": dict(sorted(templates.items())),
        }


def split(rows: Sequence[Row], held_out: dict[str, int] | None = None) -> Split:
    """Training and held-out pairs, either in the order of `rows`.

    Args:
        held_out: kind of prompt -> how many pairs to hold out at least, before copies are taken out.

    Raises:
        ValueError: if no way to set templates aside gives so many.
    """
    origins = [origin(row["prompt"]) for row in rows]
    aside: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
    for kind, wanted in (held_out or HELD_OUT).items():
        aside[kind] = _set_aside([found for found in origins if found.kind == kind], wanted, TEMPLATES[kind])
    made = Split()
    for row, found in zip(rows, origins, strict=True):
        templates, fillers = aside[found.kind]
        match found.template in templates, found.filler in fillers:
            case True, True:
                made.heldout.append(row)
            case False, False:
                made.train.append(row)
            case True, False:
                made.dropped["template is held out, speaker or topic is not"] += 1
            case _:
                made.dropped["speaker or topic is held out, template is not"] += 1
    _take_copies_out(made)
    return made


def _set_aside(
    origins: Sequence[Origin], wanted: int, sizes: tuple[int, int]
) -> tuple[frozenset[str], frozenset[str]]:
    """Templates and fillers that leave the most training pairs beside `wanted` held-out ones."""
    cells: dict[str, Counter[str]] = defaultdict(Counter)  # filler -> template -> pairs
    for found in origins:
        cells[found.filler][found.template] += 1
    templates = sorted({found.template for found in origins})
    counts = np.array([[of[template] for template in templates] for _, of in sorted(cells.items())])  # (F, T)
    ways = [
        way for size in range(sizes[0], sizes[1] + 1) for way in itertools.combinations(range(len(templates)), size)
    ]
    kept = _most_kept(counts, ways, wanted)
    if kept.max(initial=-1) < 0:
        raise ValueError(f"{len(origins)} pairs cannot be split so that {wanted} are held out.")
    chosen = frozenset(templates[place] for place in ways[int(kept.argmax())])
    return chosen, _fillers(cells, chosen, wanted)


def _most_kept(counts: np.ndarray, ways: Sequence[tuple[int, ...]], wanted: int) -> np.ndarray:
    """(W,) the most training pairs for each way to set templates aside; -1 if too few can be held out.

    `_fillers` for all ways at once, without the fillers. counts: (F, T) pairs.
    """
    aside = np.zeros((len(ways), counts.shape[1]), dtype=int)  # (W, T)
    for number, way in enumerate(ways):
        aside[number, list(way)] = 1
    held = counts @ aside.T  # (F, W)
    train = counts.sum(1, keepdims=True) - held
    table = np.full((len(ways), wanted + 1), -(10**9))  # most kept, by held-out pairs so far (at most `wanted`)
    table[:, 0] = 0
    for more, others in zip(held, train, strict=True):
        new = table + others[:, None]
        for step in set(more.tolist()):
            rows = more == step
            shifted = np.full_like(table[rows], -(10**9))
            shifted[:, step:] = table[rows][:, : max(wanted + 1 - step, 0)]
            shifted[:, wanted] = table[rows][:, max(wanted - step, 0) :].max(1)
            new[rows] = np.maximum(new[rows], shifted)
        table = new
    return np.maximum(table[:, wanted], -1)


def _fillers(cells: dict[str, Counter[str]], aside: frozenset[str], wanted: int) -> frozenset[str]:
    """The fillers to set aside beside these templates.

    Each filler gives its pairs of the templates aside to the held-out part, or its others to the training part: a
    knapsack, solved by the number of held-out pairs so far.
    """
    table: dict[int, tuple[int, tuple[str, ...]]] = {0: (0, ())}
    for filler, counts in sorted(cells.items()):
        held = sum(counts[template] for template in aside)
        train = counts.total() - held
        new: dict[int, tuple[int, tuple[str, ...]]] = {}
        for so_far, (kept, chosen) in table.items():
            for place, value in (
                (so_far, (kept + train, chosen)),
                (min(so_far + held, wanted), (kept, (*chosen, filler))),
            ):
                if place not in new or value[0] > new[place][0]:
                    new[place] = value
        table = new
    return frozenset(table[wanted][1])


def _take_copies_out(made: Split) -> None:
    """Drop training pairs that copy a text of a held-out pair, or whose prompt nearly copies one of theirs."""
    texts = {row[side] for row in made.heldout for side in ("chosen", "rejected")}
    prompts = [word_runs(row["prompt"]) for row in made.heldout]
    kept = []
    for row in made.train:
        runs = word_runs(row["prompt"])
        if row["chosen"] in texts or row["rejected"] in texts:
            made.dropped["copy of a held-out text"] += 1
        elif any(len(runs & other) >= NEAR * len(runs | other) for other in prompts):
            made.dropped["prompt nearly equal to a held-out one"] += 1
        else:
            kept.append(row)
    made.train = kept
