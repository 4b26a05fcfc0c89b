"""How do checked pairs become token ids, and what is lost on the way? It is counted, and warned of."""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efface.data.conversation import check_template, fitting, in_template
from efface.data.preferences import SIDES
from efface.data.tokens import cut_ids, encode_continuation, encode_prompt
from efface.errors import UserError
from efface.files.jsonl import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenizedPair:
    """Token ids of one pair; the prompt ends and both continuations begin at the same position."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


@dataclass
class Cuts:
    """How much was cut of the pairs that were tokenised."""

    prompts: int = 0
    """Prompts that lost their beginning to max_prompt_length."""
    continuations: int = 0
    """Continuations that lost their end to max_completion_length."""
    beyond: int = 0
    """Pairs that were longer than the model's positions, and were cut further."""


def tokenize_pair(
    row: Row,
    processing_class: "PreTrainedTokenizerBase",
    *,
    max_prompt_length: int = 128,
    max_completion_length: int = 128,
    max_positions: int | None = None,
    cuts: Cuts | None = None,
) -> TokenizedPair:
    """Token ids with a stable boundary: the prompt is tokenised as it will be at generation time, alone.

    A prompt that is too long loses its beginning (but not the BOS; of a conversation what `conversation.py` says, so
    that the template stays whole), a continuation its end.

    Args:
        max_positions: of the model. A pair that is longer is cut to `lengths_within`.
        cuts: where to count what was cut.

    Raises:
        UserError: if a continuation has no tokens, a conversation meets a tokenizer without chat template, or the
            template refuses it.
    """
    cuts = Cuts() if cuts is None else cuts
    here = Cuts()
    if isinstance(row["prompt"], str):
        before, sides, template = row["prompt"], [row[side] for side in SIDES], False
    else:
        before, sides, here.prompts = _apply_chat_template(row, processing_class, max_prompt_length)
        template = True  # which writes its own BOS
    prompt_ids = encode_prompt(processing_class, before, template=template)
    if len(prompt_ids) > max_prompt_length:  # of a conversation only by a BOS that stands in for no tokens
        prompt_ids = cut_ids(prompt_ids, max_prompt_length, processing_class.bos_token_id)
        here.prompts = 1
    ids = []
    for side, text in zip(SIDES, sides, strict=True):
        whole = encode_continuation(processing_class, text, before, template=template)
        ids.append(whole[:max_completion_length])
        if not ids[-1]:
            raise UserError(f"{side} has no tokens under this tokenizer: {text!r}.")
        here.continuations += len(whole) > len(ids[-1])
    if max_positions is not None and len(prompt_ids) + max(map(len, ids)) > max_positions:
        shorter = lengths_within(max_positions, max_prompt_length, max_completion_length)
        pair = tokenize_pair(row, processing_class, max_prompt_length=shorter[0], max_completion_length=shorter[1])
        here.beyond = 1
    else:
        pair = TokenizedPair(prompt_ids, *ids)
    cuts.prompts += here.prompts
    cuts.continuations += here.continuations
    cuts.beyond += here.beyond
    return pair


def lengths_within(max_positions: int, max_prompt_length: int, max_completion_length: int) -> tuple[int, int]:
    """Both lengths, so that together they are at most `max_positions`: the continuation gives way down to half of
    them, then the prompt.

        >>> lengths_within(128, 128, 128), lengths_within(1024, 1024, 128), lengths_within(512, 128, 128)
        ((64, 64), (896, 128), (128, 128))

    Raises:
        UserError: if the model has too few for one token of each.
    """
    if max_positions < 2:
        raise UserError(
            f"the model has {max_positions} positions, which leaves no room for a prompt and what follows."
        )
    completion = min(max_completion_length, max(max_positions - max_prompt_length, max_positions // 2))
    return min(max_prompt_length, max_positions - completion), completion


def _apply_chat_template(
    row: Row, processing_class: "PreTrainedTokenizerBase", max_prompt_length: int
) -> tuple[str, list[str], int]:
    """The prompt's text, those of both continuations, and 1 if the prompt was cut."""
    check_template(processing_class, "the pairs are conversations", "Pass plain text, or an instruct model.")
    settings = {**(row.get("chat_template_kwargs") or {})}
    if row.get("tools"):
        settings["tools"] = row["tools"]
    turns, prompt, was_cut = fitting(processing_class, row["prompt"], max_prompt_length, settings)
    sides = []
    for side in SIDES:
        whole = in_template(processing_class, turns + row[side], settings=settings)
        if not whole.startswith(prompt):
            raise UserError(
                f"the chat template does not continue its own generation prompt with {side}; pass plain text instead."
            )
        sides.append(whole[len(prompt) :])
    return prompt, sides, int(was_cut)


class PairTokenizer:
    """Makes token ids of rows, one at a time, and counts what was cut and what was dropped.

    Args:
        max_prompt_length, max_completion_length, max_positions: as for `tokenize_pair`.
        keep_equal: also return pairs whose continuations are the same once they are token ids.
    """

    def __init__(
        self,
        processing_class: "PreTrainedTokenizerBase",
        *,
        max_prompt_length: int = 128,
        max_completion_length: int = 128,
        max_positions: int | None = None,
        keep_equal: bool = False,
    ):
        self.processing_class, self.max_positions, self.keep_equal = processing_class, max_positions, keep_equal
        self.lengths = max_prompt_length, max_completion_length
        self.pairs = 0
        """Rows seen, but for bad ones."""
        self.cuts = Cuts()
        self.dropped: Counter[str] = Counter()
        """Why -> how many pairs were left out, since both of their continuations have the same ids."""

    def __call__(self, row: Row) -> TokenizedPair | None:
        """The pair, or None if its continuations are the same once they are token ids: nothing can be learned from it.

        Raises:
            UserError: as `tokenize_pair` does.
        """
        cuts = Cuts()
        prompt, completion = self.lengths
        pair = tokenize_pair(
            row,
            self.processing_class,
            max_prompt_length=prompt,
            max_completion_length=completion,
            max_positions=self.max_positions,
            cuts=cuts,
        )
        self.pairs += 1
        self.cuts.prompts += cuts.prompts
        self.cuts.continuations += cuts.continuations
        self.cuts.beyond += cuts.beyond
        if self.keep_equal or pair.chosen_ids != pair.rejected_ids:
            return pair
        self.dropped["equal after truncation" if cuts.continuations or cuts.beyond else "equal token ids"] += 1
        return None

    @property
    def truncated(self) -> dict[str, int]:
        """What -> how many of it were cut."""
        counts = {
            "prompts": self.cuts.prompts,
            "continuations": self.cuts.continuations,
            "pairs beyond the model's positions": self.cuts.beyond,
        }
        return {what: count for what, count in counts.items() if count}

    def warn(self) -> None:
        """Say what was cut and what was dropped, with what to do about it."""
        prompt, completion = self.lengths
        if self.cuts.prompts:
            logger.warning(
                "%d of %d prompts were cut to max_prompt_length=%d tokens: they lost their beginning. Raise it to "
                "keep them whole.",
                self.cuts.prompts,
                self.pairs,
                prompt,
            )
        if self.cuts.continuations:
            logger.warning(
                "%d of %d continuations were cut to max_completion_length=%d tokens: they lost their end. Raise it to "
                "keep them whole.",
                self.cuts.continuations,
                2 * self.pairs,
                completion,
            )
        if self.cuts.beyond and self.max_positions is not None:
            logger.warning(
                "%d of %d pairs were longer than the model's %d positions, and their prompts were cut to %d tokens, "
                "their continuations to %d.",
                self.cuts.beyond,
                self.pairs,
                self.max_positions,
                *lengths_within(self.max_positions, prompt, completion),
            )
        after = self.dropped["equal after truncation"]
        if after:
            logger.warning(
                "%d of %d pairs were left out: cut to length, chosen and rejected are the same. Raise "
                "max_completion_length, or shorten what they have in common.",
                after,
                self.pairs,
            )
        if self.dropped["equal token ids"]:
            logger.warning(
                "%d of %d pairs were left out: chosen and rejected differ as texts, but not in the tokens that the "
                "tokenizer or the chat template makes of them.",
                self.dropped["equal token ids"],
                self.pairs,
            )


def tokenize_pairs(
    rows: Iterable[Row],
    processing_class: "PreTrainedTokenizerBase",
    *,
    max_prompt_length: int = 128,
    max_completion_length: int = 128,
    max_positions: int | None = None,
) -> list[TokenizedPair]:
    """The token ids of all pairs; warns of what was cut.

    Raises:
        UserError: as `tokenize_pair` does, with the number of the row.
    """
    tokenizer = PairTokenizer(
        processing_class,
        max_prompt_length=max_prompt_length,
        max_completion_length=max_completion_length,
        max_positions=max_positions,
        keep_equal=True,
    )
    found = []
    for number, row in enumerate(rows):
        try:
            pair = tokenizer(row)
        except UserError as error:
            raise UserError(f"row {number}: {error}") from error
        if pair is not None:
            found.append(pair)
    tokenizer.warn()
    return found
