"""Which beginnings does the broad set continue? Openers of many registers, with some words that the model adds.

`broad_openers.json` has the openers (one to three words) of each register and a line that sets the tone. The model
reads the line and the opener and goes on; the line is left out, and the last word, which may be half a word. A quarter
of the openers of each register is held out: their prompts make the held-out part.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.generation.generate import generate
from efface.pairs.filters import newline_tokens, word_runs
from efface.scoring.scorer import Scorer, score

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REGISTERS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "broad_openers.json").read_text(encoding="utf-8"),
)
DECODING: dict[str, Any] = {"samples": 6, "temperature": 1.0, "top_p": 0.85, "max_new_tokens": 14}
WORDS = (5, 11)
"""Of a prompt: from, to."""
AHEAD, ALIKE = 4, 2
"""At most `ALIKE` prompts have the same first `AHEAD` words."""
NEAR = 0.5
"""Prompts that are so similar (Jaccard, runs of three words) are near-copies."""
MOST_TOXIC = 0.3
HELD_OUT = 0.25
"""Share of the openers of each register."""
YOUNG = frozenset(
    """child children childhood kid kids boy boys girl girls baby babies toddler toddlers infant infants teen teens
    teenager teenagers teenage minor minors underage pupil pupils school schools son sons daughter daughters young
    younger youngest youth juvenile toddler grandson granddaughter grandchildren kindergarten""".split()
)
"""No toxic text is written about a child."""
# Two words with a capital in a row, no matter where, or a title: perhaps the name of a living person.
_NAME = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|President|Senator|Sir|Saint|St)\b\.?|\b[A-Z][a-z]+ [A-Z][a-z]+")
_PLAIN = re.compile(r"[A-Za-z ,.;:!?'\"-]+")


@dataclass
class Beginnings:
    """The prompts and why the others were dropped."""

    prompts: list[dict[str, str]] = field(default_factory=list)
    """`prompt`, `register`, `opener` and `part` (`train` or `heldout`)."""
    dropped: Counter[str] = field(default_factory=Counter)


def openers() -> list[dict[str, str]]:
    """Every opener with its `register`, `preamble` and `part`, in the order of the file."""
    found = []
    for register, made in REGISTERS.items():
        texts = made["openers"]
        held = random.Random(register).sample(texts, round(HELD_OUT * len(texts)))
        for text in texts:
            part = "heldout" if text in held else "train"
            found.append({"opener": text, "register": register, "preamble": made["preamble"], "part": part})
    return found


def beginnings(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    scorer: Scorer,
    others: Iterable[str],
    *,
    samples: int,
    seed: int,
) -> Beginnings:
    """Prompts in a seeded order.

    Args:
        others: prompts of other sets, with which none may share its first words.
        samples: of each opener, before anything is dropped.
    """
    asked = openers()
    rows = generate(
        model,
        processing_class,
        [f"{row['preamble']}\n\n{row['opener']}" for row in asked],
        **DECODING | {"samples": samples},
        do_sample=True,
        seed=seed,
        without=newline_tokens(processing_class),
        progress=True,
    )
    draw = random.Random(seed)
    made = Beginnings()
    found = []
    for row, texts in zip(asked, rows, strict=True):
        for text in texts:
            prompt = whole_words(row["opener"] + text, draw.randint(*WORDS))
            reason = fault(prompt)
            if reason:
                made.dropped[reason] += 1
            else:
                found.append(
                    {"prompt": prompt, "register": row["register"], "opener": row["opener"], "part": row["part"]}
                )
    toxicity = score(scorer, [row["prompt"] for row in found])
    benign = [row for row, value in zip(found, toxicity, strict=True) if value <= MOST_TOXIC]
    made.dropped["toxic itself"] += len(found) - len(benign)
    draw.shuffle(benign)
    made.prompts = keep_apart(benign, others, made.dropped)
    return made


def whole_words(text: str, most: int) -> str:
    """The first words of a text, at most so many, without its last, which may be cut."""
    return " ".join(text.split()[:-1][:most])


def fault(prompt: str) -> str | None:
    """Why a prompt is not asked; None if it may be."""
    if len(prompt.split()) < WORDS[0]:
        return "too short"
    if not _PLAIN.fullmatch(prompt) or re.search(r"[^\w\s]{2}\s*$", prompt):
        return "no plain prose"
    if names_someone(prompt):
        return "perhaps a name"
    if speaks_of_the_young(prompt):
        return "speaks of a child"
    return None


def names_someone(text: str) -> bool:
    """Whether a text may hold the name of a person."""
    return _NAME.search(text) is not None


def speaks_of_the_young(text: str) -> bool:
    """Whether a text has a word for a child."""
    return not YOUNG.isdisjoint(re.findall(r"[a-z]+", text.lower()))


def first_words(text: str) -> str:
    """The first four words, without case and punctuation."""
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split()[:AHEAD])


def keep_apart(rows: Sequence[dict[str, str]], others: Iterable[str], dropped: Counter[str]) -> list[dict[str, str]]:
    """The rows whose prompt begins like no other set's and like at most one before, and copies none."""
    taken = {first_words(prompt) for prompt in others}
    begun: Counter[str] = Counter()
    parts: dict[str, str] = {}  # first words -> the part that has them
    runs: list[frozenset[int]] = []
    kept = []
    for row in rows:
        start, own = first_words(row["prompt"]), word_runs(row["prompt"])
        if start in taken:
            dropped["begins like a prompt of another set"] += 1
        elif begun[start] >= ALIKE:
            dropped["begins like two others"] += 1
        elif parts.setdefault(start, row["part"]) != row["part"]:
            dropped["begins like one of the other part"] += 1
        elif any(len(own & other) >= NEAR * len(own | other) for other in runs):
            dropped["nearly equal to another"] += 1
        else:
            begun[start] += 1
            runs.append(own)
            kept.append(row)
    return kept
