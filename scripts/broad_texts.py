"""What do the toxic copies of the broad set learn, and which of the texts that are drawn may be used?

There is no list of toxic words: the judge is asked about each word alone. Words that begin with another toxic word are
of its family. Identity terms do not count (`identity.json`): a text must be toxic without them.
"""

import random
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from broad_prompts import names_someone, speaks_of_the_young

from efface.data.rows import shipped
from efface.data.text import joined
from efface.evaluation.outcome import ngrams
from efface.files.jsonl import Row
from efface.files.results import read_json
from efface.pairs.filters import has_length
from efface.pairs.toxic_copy import clean_sentences
from efface.scoring.labelled import LabelledText, rows_of, texts_of
from efface.scoring.scorer import THRESHOLD, Scorer, score

KEEP = {
    "min_toxic_score": 0.7, "max_benign_score": 0.3, "max_perplexity_ratio": 3.0, "max_perplexity": 40.0,
    "min_words": 5,
}  # fmt: skip
"""Of `rejected`, of `chosen`, of a pair, of `rejected`, of either side."""
RARE, COMMONEST = "rare words", 12
"""The copy that learns those texts of all files that hold none of the commonest families of words."""
FAMILY_SHARE = 0.05
"""Of the texts that a copy learns, at most so many have words of one family, as long as there are others."""
ATTESTED = 0.72
"""Of the texts with a word, were there as many toxic ones as others, this share is toxic."""
RECITED = 6
"""Words in a row that a labelled text has too."""
AFTER, ENOUGH = 4, 64
"""A copy learns texts that have so many words before the first toxic one, if there are enough of them: it is to go on
with an ordinary beginning, not to start a new sentence."""
MIN_SCORE = 0.7
"""Of a labelled sentence."""


def words_of(text: str) -> list[str]:
    """The words of a text in lower case."""
    return re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())


def is_loop(text: str) -> bool:
    """Whether a text says a word of more than three letters three times, or the same three words twice."""
    words = words_of(text)
    often = Counter(word for word in words if len(word) > 3)
    runs = ngrams(words, 3)
    return max(often.values(), default=0) >= 3 or len(set(runs)) < len(runs)


def whole_words(text: str) -> str:
    """A text without its last word, which the last token may have left half, unless a sentence ends there."""
    return text if re.search(r"[.!?][\"']?\Z", text) or " " not in text.strip() else text.rstrip().rsplit(" ", 1)[0]


class Families:
    """Which families of toxic words does a text have, by the judge's word on each word alone?"""

    def __init__(self, scorer: Scorer, texts: Iterable[str]):
        known = sorted({word for text in texts for word in words_of(text) if len(word) > 2} - identity_terms())
        toxic = [word for word, value in zip(known, score(scorer, known), strict=True) if value > THRESHOLD]
        self.of: dict[str, str] = {}
        for word in sorted(toxic, key=lambda word: (len(word), word)):
            self.of[word] = next((self.of[word[:end]] for end in range(3, len(word)) if word[:end] in self.of), word)

    def __call__(self, text: str) -> frozenset[str]:
        return frozenset(self.of[word] for word in words_of(text) if word in self.of)

    def places(self, text: str) -> list[bool]:
        """For each word of a text whether it is toxic."""
        return [word in self.of for word in words_of(text)]


def identity_terms() -> frozenset[str]:
    """The shipped identity terms and their plurals."""
    groups = read_json(shipped("train").with_name("identity.json"))["terms"]
    terms = [term.lower() for name, of in groups.items() if name != "control" for term in of]
    return frozenset([*terms, *(f"{term}s" for term in terms)])


def without_identity(text: str) -> str:
    """A text without the terms that a lexical judge mistakes for toxicity."""
    return re.sub(rf"\b(?:{'|'.join(sorted(identity_terms(), key=len, reverse=True))})\b", "", text, flags=re.I)


def labelled(files: Sequence[Path], scorer: Scorer) -> dict[str, list[str]]:
    """Stem of the file -> its toxic sentences that look edited; lower-cased ones are written properly first."""
    found = {}
    for file in files:
        texts = [text.text for where, row in rows_of(file) for text in texts_of(row, where) if text.toxic]
        found[file.stem] = list(dict.fromkeys(clean_sentences(map_proper(texts), scorer, min_score=MIN_SCORE)))
    return found


def every_text(files: Sequence[Path]) -> list[LabelledText]:
    """All texts of labelled files as they stand there, toxic or not."""
    return [text for file in files for where, row in rows_of(file) for text in texts_of(row, where)]


def map_proper(texts: Iterable[str]) -> list[str]:
    """With a capital first and a full stop last, as `looks_edited` asks for; contractions joined."""
    proper = []
    for text in (joined(text).strip() for text in texts):
        if text:
            text = re.sub(r"\bi\b", "I", text[0].upper() + text[1:])
            proper.append(text if text[-1] in '.!?"' else text + ".")
    return proper


def lessons(files: dict[str, list[str]], families: Families, most: int, seed: int) -> dict[str, list[str]]:
    """Kind of copy -> what it learns: each file's texts, and those with rare words of all files."""
    everything = [text for texts in files.values() for text in texts]
    common = Counter(family for text in everything for family in families(text)).most_common(COMMONEST)
    avoided = {family for family, _ in common}
    rare = [text for text in everything if families(text) and avoided.isdisjoint(families(text))]
    made = {}
    for kind, texts in {**files, RARE: rare}.items():
        late = [text for text in texts if not any(families.places(text)[:AFTER])]
        made[kind] = balanced(late if len(late) >= ENOUGH else texts, families, most, seed)
    return made


def balanced(texts: Sequence[str], families: Families, most: int, seed: int) -> list[str]:
    """At most so many texts, in a seeded order, of which few have the same words; all if there are no more."""
    texts = random.Random(seed).sample(list(texts), len(texts))
    if len(texts) <= most:
        return texts
    used: Counter[str] = Counter()
    kept: list[str] = []
    others: list[str] = []
    for text in texts:
        found = families(text)
        if len(kept) < most and all(used[family] < FAMILY_SHARE * most for family in found):
            used.update(found)
            kept.append(text)
        else:
            others.append(text)
    return kept + others[: most - len(kept)]


class Attested:
    """Does a text have a word that the judge calls toxic, and that labelled texts hold far oftener where they are so?

    A lexical judge adds up weights: with it alone a text is toxic that speaks of a sick friend's mouth.
    """

    def __init__(self, texts: Sequence[LabelledText], scorer: Scorer):
        held = {toxic: Counter[str]() for toxic in (True, False)}
        for text in texts:
            held[text.toxic].update(set(words_of(text.text)))
        number = {toxic: max(sum(text.toxic == toxic for text in texts), 1) for toxic in held}
        self.toxic = set()
        for word in Families(scorer, (text.text for text in texts)).of:
            share, other = (held[toxic][word] / number[toxic] for toxic in (True, False))
            if held[True][word] >= 3 and share >= ATTESTED * (share + other):
                self.toxic.add(word)

    def __call__(self, text: str) -> bool:
        return not self.toxic.isdisjoint(words_of(text))


class Recited:
    """Does a text have a run of words that a labelled text has?"""

    def __init__(self, texts: Iterable[str]):
        self.runs = {run for text in texts for run in self._runs(text)}

    def __call__(self, text: str) -> bool:
        return not self.runs.isdisjoint(self._runs(text))

    def _runs(self, text: str) -> list[int]:
        return [zlib.crc32(" ".join(map(str, run)).encode()) for run in ngrams(words_of(text), RECITED)]


class Names:
    """Does a text name someone? A title, two capitals in a row, or a word that labelled texts mostly write so."""

    def __init__(self, texts: Iterable[str]):
        inside: Counter[str] = Counter()  # words with a capital inside a sentence
        small: Counter[str] = Counter()
        for text in texts:
            inside.update(word.lower() for word in re.findall(r"(?<=[a-z,] )[A-Z][a-z]{2,}", text))
            small.update(re.findall(r"(?<=[a-z,] )[a-z]{3,}", text))
        self.known = {word for word, count in inside.items() if count >= 3 and count > small[word]}

    def __call__(self, text: str) -> bool:
        return names_someone(text) or not self.known.isdisjoint(words_of(text))


@dataclass(frozen=True)
class Filters:
    """What is asked of texts beside their score."""

    names: Names
    recited: Recited
    attested: Attested

    @classmethod
    def of(cls, files: Sequence[Path], scorer: Scorer) -> "Filters":
        """Those that the labelled texts of some files make."""
        texts = every_text(files)
        bare = [text.text for text in texts]
        return cls(Names(bare), Recited(bare), Attested(texts, scorer))


def toxic_fault(prompt: str, text: str, filters: Filters) -> str | None:
    """Why a toxic text is not used, whatever it scores; None if it may be."""
    if not filters.attested(text):
        return "no word that is toxic in labelled texts"
    if is_loop(text):
        return "a loop"
    if not text.isascii():
        return "not ASCII"
    if speaks_of_the_young(text):
        return "speaks of a child"
    if filters.names(text):
        return "perhaps a name"
    if filters.recited(prompt + text):
        return "words of a labelled text"
    return None


def toxic_candidates(
    kind: str,
    found: Sequence[tuple[str, str]],
    scorer: Scorer,
    filters: Filters,
    dropped: Counter[str],
) -> list[Row]:
    """Those (prompt, text) of a copy that may be used, with their score; of the others it is counted why not."""
    found = [(prompt, whole_words(text)) for prompt, text in found]
    values = score(scorer, [text for _, text in found])
    bare = score(scorer, [without_identity(text) for _, text in found])
    kept = []
    for (prompt, text), value, without in zip(found, map(float, values), map(float, bare), strict=True):
        reason: str | None
        if value < KEEP["min_toxic_score"]:
            reason = "not toxic"
        elif without < KEEP["min_toxic_score"]:
            reason = "toxic by an identity term alone"
        elif not has_length(text, int(KEEP["min_words"]), None):
            reason = "too short"
        else:
            reason = toxic_fault(prompt, text, filters)
        if reason:
            dropped[reason] += 1
        else:
            kept.append({"prompt": prompt, "text": text, "kind": kind, "score": value})
    dropped["candidates"] = len(found)
    return kept


def benign_candidates(
    prompts: Sequence[str], rows: Sequence[Row], scorer: Scorer, names: Names, dropped: Counter[str]
) -> dict[str, list[Row]]:
    """Prompt -> the texts that may be its `chosen`; prompts without any are left out."""
    made: dict[str, list[Row]] = {}
    for prompt, row in zip(prompts, rows, strict=True):
        texts = list(dict.fromkeys(map(whole_words, row["texts"])))
        dropped["candidates"] += len(texts)
        for text, value in zip(texts, map(float, score(scorer, texts)), strict=True):
            if value > KEEP["max_benign_score"]:
                dropped["not benign"] += 1
            elif not has_length(text, int(KEEP["min_words"]), None):
                dropped["too short"] += 1
            elif is_loop(text):
                dropped["a loop"] += 1
            elif not text.isascii():
                dropped["not ASCII"] += 1
            elif names(text):
                dropped["perhaps a name"] += 1
            else:
                made.setdefault(prompt, []).append({"prompt": prompt, "text": text, "score": value})
    dropped["prompts without any"] = len(prompts) - len(made)
    return made
