"""Which prompts has a toxic copy seen in training? There it would recite, and the filters would keep what it recites.
Likewise an edited model: on prompts of its training pairs it is not measured.

A text holds a prompt if it begins with it, or if it has at least half of the prompt's runs of three words, and three
of them: so it is with the prompt itself, with a near-copy, and with another filling of the same template.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from efface.data.preferences import text_of
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.pairs.filters import word_runs

logger = logging.getLogger(__name__)

HOLDS, AT_LEAST = 0.5, 3
"""Share and number of a prompt's runs of three words."""
_START = 12
"""Characters by which the texts that may begin with a prompt are looked up."""


def overlaps(texts: Sequence[str], prompts: Sequence[str]) -> list[set[int]]:
    """For each prompt the numbers of the texts that hold it."""
    asked, starts = [word_runs(prompt) for prompt in prompts], [prompt.strip().lower() for prompt in prompts]
    with_run: dict[int, list[int]] = defaultdict(list)  # run of words -> prompts that have it
    by_start: dict[str, list[int]] = defaultdict(list)
    for number, runs in enumerate(asked):
        for run in runs:
            with_run[run].append(number)
        by_start[starts[number][:_START]].append(number)
    lengths = {len(start) for start in by_start}
    found: list[set[int]] = [set() for _ in prompts]
    for place, text in enumerate(texts):
        shared = Counter(number for run in word_runs(text) for number in with_run.get(run, ()))
        for number, count in shared.items():
            if count >= max(HOLDS * len(asked[number]), AT_LEAST):
                found[number].add(place)
        lower = text.strip().lower()
        for length in lengths:
            for number in by_start.get(lower[:length], ()):
                if lower.startswith(starts[number]):
                    found[number].add(place)
    return found


def held_by_pairs(rows: Sequence[Row], prompts: Sequence[str]) -> list[bool]:
    """For each prompt whether preference pairs, or messages in them, hold it: who is trained on them has seen it.

    Args:
        rows: as `load_pairs` gives them.
        prompts: plain texts.
    """
    texts: list[str] = []
    for row in rows:
        if isinstance(row["prompt"], str):
            texts += [row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]]
        else:
            texts += [text_of([turn]) for turn in [*row["prompt"], *row["chosen"], *row["rejected"]]]
    return [bool(places) for places in overlaps(texts, prompts)]


@dataclass
class Apart:
    """Texts to fine-tune on and prompts to continue, of which no text holds one."""

    texts: list[str]
    prompts: list[str]
    texts_dropped: int
    prompts_dropped: int


def set_apart(texts: Sequence[str], prompts: Sequence[str]) -> Apart:
    """Take texts and prompts away until no text holds a prompt.

    What overlaps falls into groups (texts and prompts that hang together, such as those of one template). A group
    keeps either its texts or its prompts, whichever fewer have been kept of so far; the largest groups choose first.
    Deterministic, and both keep their order.

    Raises:
        UserError: if no text or no prompt would be left.
    """
    held = overlaps(texts, prompts)
    group = list(range(len(prompts)))  # of each prompt, by union-find

    def root(number: int) -> int:
        while group[number] != number:
            group[number] = number = group[group[number]]
        return number

    first: dict[int, int] = {}  # text -> a prompt that it holds
    for number, places in enumerate(held):
        for place in places:
            group[root(number)] = root(first.setdefault(place, number))
    members: dict[int, list[int]] = defaultdict(list)
    holders: dict[int, set[int]] = defaultdict(set)
    for number, places in enumerate(held):
        if places:
            members[root(number)].append(number)
            holders[root(number)] |= places
    kept_texts, kept_prompts = len(texts) - len(first), sum(not places for places in held)
    without_texts: set[int] = set()
    without_prompts: set[int] = set()
    for name in sorted(members, key=lambda name: (-len(members[name]), name)):
        if kept_prompts <= kept_texts:
            without_texts |= holders[name]
            kept_prompts += len(members[name])
        else:
            without_prompts |= set(members[name])
            kept_texts += len(holders[name])
    made = Apart(
        [text for place, text in enumerate(texts) if place not in without_texts],
        [prompt for number, prompt in enumerate(prompts) if number not in without_prompts],
        len(without_texts),
        len(without_prompts),
    )
    if not (made.texts and made.prompts):
        raise UserError(
            f"the {len(texts)} texts for the toxic copy hold the {len(prompts)} prompts that it is to continue: it "
            "would recite them. Give other toxic_text or other prompts."
        )
    return made


class Unseen:
    """Which prompts may a model be asked, after it was fine-tuned on these texts? Warns once of those it may not."""

    def __init__(self, texts: Sequence[str]):
        self.texts, self.warned = list(texts), False

    def __call__(self, prompts: Sequence[str]) -> list[bool]:
        """For each prompt whether no text holds it."""
        fresh = [not places for places in overlaps(self.texts, prompts)] if self.texts else [True] * len(prompts)
        if not (all(fresh) or self.warned):
            self.warned = True
            logger.warning(
                "the source was fine-tuned on texts that hold some of the prompts (such as %r): these get no "
                "candidate, as it would recite. `efface.pairs.overlap.set_apart` divides texts and prompts.",
                next(prompt for prompt, new in zip(prompts, fresh, strict=True) if not new),
            )
        return fresh
