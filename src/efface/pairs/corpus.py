"""How do labelled texts become pairs without a model that is toxic? Each sentence is its own prompt and continuation.

A row is one of
    text with `spans`          character offsets of its toxic part (SemEval 2021): split before the first span, which
                               leaves labels for tokens (`rejected_spans`, `token_labels`)
    toxic and neutral          a parallel sentence (ParaDetox): split where the two part, if they begin alike; `chosen`
                               is then the neutral one's end, not the model's
    text with a label          split in the middle; rows labelled benign are left out
Sentences are cleaned as for an anti-expert, since what is rough in `rejected` is a shortcut for a discriminator.
`rejected` is cut to as many tokens as `chosen` gets, or its length and its full stop would tell it apart.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING

from efface.data.text import joined, looks_edited, looks_plain, sentences
from efface.data.tokens import continuation_offsets
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.pairs.source import Source
from efface.pairs.toxic_copy import TOXIC_SENTENCE, taken_for_toxic
from efface.scoring.labelled import rows_of, spans_of
from efface.scoring.scorer import Scorer, score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""From this character on, up to but without that one."""

NOT_EDITED = "sentence does not look edited"


@dataclass
class Corpus:
    """Prompts, and what belongs to each; as `build_pairs` takes them."""

    rows_read: int = 0
    """Of all files."""
    rejected: dict[str, str] = field(default_factory=dict)
    """Prompt -> the text's own continuation."""
    given: dict[str, Row] = field(default_factory=dict)
    """Prompt -> the columns its row begins with: `how`, and where there are such `chosen` and `rejected_spans`."""
    counts: Counter[str] = field(default_factory=Counter)
    """What became of the rows' sentences."""

    @property
    def prompts(self) -> list[str]:
        return list(self.rejected)

    @property
    def source(self) -> Source:
        """The one candidate of each prompt (`--toxic corpus`)."""
        return lambda prompts, seed: [[self.rejected[prompt]] for prompt in prompts]


def load_corpus(
    files: Sequence[str],
    processing_class: "PreTrainedTokenizerBase",
    scorer: Scorer,
    *,
    min_words: int = 4,
    max_tokens: int = 20,
) -> Corpus:
    """Split the sentences of labelled files; see the top of this file. Of equal prompts the first is used.

    Args:
        files: JSON lines, or tables with a header (`.tsv`, `.csv`).
        processing_class: a fast tokenizer, which tells where in a text a token stands.
        scorer: finds the toxic sentences of texts that are labelled as a whole.
        min_words: of a prompt and of a continuation.
        max_tokens: of a continuation.

    Raises:
        UserError: naming file and line of a row that cannot be read; if no sentence can be split.
    """
    corpus = Corpus()
    whole: list[str] = []  # sentences without spans
    for file in files:
        for where, row in rows_of(file):
            corpus.rows_read += 1
            if isinstance(row.get("toxic"), str) and isinstance(row.get("neutral"), str):
                split = _split_parallel(row["toxic"], row["neutral"], min_words)
                if split is None:
                    whole.append(joined(row["toxic"]).strip())
                else:
                    prompt, rejected, chosen = split
                    chosen = cut_tokens(processing_class, chosen, max_tokens)
                    _add(corpus, processing_class, prompt, rejected, max_tokens, "parallel", {"chosen": chosen})
            elif not isinstance(row.get("text"), str):
                raise UserError(f"{where}: a row needs 'text' (with a label or 'spans'), or 'toxic' and 'neutral'.")
            elif marked := spans_of(row, where):
                for found in _split_marked(row["text"], marked, min_words):
                    if found is None:
                        corpus.counts["marked sentence is not edited or has no room before its span"] += 1
                        continue
                    prompt, rejected, spans = found
                    _add(corpus, processing_class, prompt, rejected, max_tokens, "spans", {"rejected_spans": spans})
            elif taken_for_toxic(row, where):
                whole += [sentence for _, sentence in sentences(row["text"])]
            else:
                corpus.counts["row is labelled benign"] += 1
    edited = [sentence for sentence in whole if looks_edited(sentence)]
    corpus.counts[NOT_EDITED] = len(whole) - len(edited)
    for sentence, value in zip(edited, score(scorer, edited), strict=True):
        words = len(sentence.split())
        if value < TOXIC_SENTENCE:
            corpus.counts["sentence is not toxic"] += 1
        elif words < 2 * min_words:
            corpus.counts["sentence is too short"] += 1
        else:
            prompt, rejected = _after_words(sentence, words // 2)
            _add(corpus, processing_class, prompt, rejected, max_tokens, "sentence", {})
    if not corpus.rejected:
        raise UserError(
            f"none of the sentences of {', '.join(files)} could be split into a prompt and a toxic continuation "
            f"({dict(corpus.counts)}). Give more text, or take parallel texts whole with split='never'."
        )
    return corpus


def _add(
    corpus: Corpus,
    processing_class: "PreTrainedTokenizerBase",
    prompt: str,
    rejected: str,
    max_tokens: int,
    kind: str,
    columns: Row,
) -> None:
    if prompt in corpus.rejected:
        corpus.counts["prompt is there already"] += 1
        return
    rejected = cut_tokens(processing_class, rejected, max_tokens)
    if "rejected_spans" in columns:
        kept = [(start, min(end, len(rejected))) for start, end in columns["rejected_spans"] if start < len(rejected)]
        columns = columns | {"rejected_spans": kept}
    corpus.rejected[prompt] = rejected
    corpus.given[prompt] = {"how": {"split": kind}, **columns}
    corpus.counts[f"split: {kind}"] += 1


def _split_marked(text: str, marked: set[int], min_words: int) -> Iterator[tuple[str, str, list[Span]] | None]:
    """(prompt, rejected, spans relative to rejected) of each sentence with a span; None if there is no such split."""
    for start, sentence in sentences(text):
        inside = [i for i in range(len(sentence)) if start + i in marked]
        if not inside:
            continue
        # Whole words before the one in which the span begins, but at least `min_words` words are left for rejected.
        before = len(sentence[: inside[0] + 1].split()) - 1
        words = min(before, len(sentence.split()) - min_words)
        if words < min_words or not looks_edited(sentence):
            yield None
            continue
        prompt, rejected = _after_words(sentence, words)
        yield prompt, rejected, _ranges([i - len(prompt) for i in inside])


def _split_parallel(toxic: str, neutral: str, min_words: int) -> tuple[str, str, str] | None:
    """(prompt, rejected, chosen) where both begin with the same words and enough is left of each; else None."""
    toxic, neutral = joined(toxic).strip(), joined(neutral).strip()
    pairs = zip(toxic.split(), neutral.split(), strict=False)
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    words = min(shared, len(toxic.split()) - min_words, len(neutral.split()) - min_words)
    if words < min_words or toxic == neutral or not (looks_plain(toxic) and looks_plain(neutral)):
        return None
    prompt, rejected = _after_words(toxic, words)
    return prompt, rejected, _after_words(neutral, words)[1]


def _after_words(text: str, words: int) -> tuple[str, str]:
    """The first `words` words, and what follows with the white space in front."""
    end = 0
    for word in text.split()[:words]:
        end = text.index(word, end) + len(word)
    return text[:end], text[end:]


def _ranges(offsets: Sequence[int]) -> list[Span]:
    """Rising numbers as half-open ranges."""
    ranges: list[list[int]] = []
    for offset in offsets:
        if ranges and ranges[-1][1] == offset:
            ranges[-1][1] += 1
        else:
            ranges.append([offset, offset + 1])
    return [(start, end) for start, end in ranges]


def token_labels(
    processing_class: "PreTrainedTokenizerBase",
    text: str,
    spans: Sequence[Sequence[int]],
    prompt: str | None = None,
) -> list[int]:
    """1 for each token of a continuation that has a character of a span, else 0; the tokens of `tokenize_pair`.

    Args:
        processing_class: a fast tokenizer.
        spans: half-open [start, end) ranges of characters of `text`, such as a row's `rejected_spans`.
        prompt: that of the row; its last characters may decide how the text splits, where no space parts the two.

    Raises:
        UserError: if the tokenizer does not know where its tokens stand.
    """
    return [
        int(any(max(start, left) < min(end, right) for start, end in spans))
        for left, right in _offsets(processing_class, text, prompt)
    ]


def cut_tokens(processing_class: "PreTrainedTokenizerBase", text: str, max_tokens: int) -> str:
    """The first `max_tokens` tokens of a continuation."""
    return text[: max((right for _, right in _offsets(processing_class, text)[:max_tokens]), default=0)]


def _offsets(processing_class: "PreTrainedTokenizerBase", text: str, prompt: str | None = None) -> list[Span]:
    """Where in `text` each token of `encode_continuation` stands."""
    if not processing_class.is_fast:
        raise UserError(
            "the tokenizer does not tell where its tokens stand in a text (it is no fast one, with tokenizer.json). "
            "Save a fast version of it with the model."
        )
    return continuation_offsets(processing_class, text, prompt)
