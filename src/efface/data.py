"""How does a preference row become a batch? checked rows -> token ids -> PairBatch.

The format is TRL's: `{"prompt", "chosen", "rejected"}`, plain text or lists of chat messages; other columns are kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, NotRequired, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from efface.errors import UserError
from efface.models import tokens_of
from efface.rows import Row, name_of, raw_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIELDS = ("prompt", "chosen", "rejected")
# The columns of PairToxicity (Lee et al. 2024) and what they are called here.
PAIR_TOXICITY = {"prompt_text": "prompt", "unpert_gen_text": "chosen", "pert_gen_text": "rejected"}


@dataclass
class Pairs:
    """Checked preference rows, and how many bad ones were dropped (0 unless `skip_bad_rows`)."""

    rows: list[Row]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.rows)


class PairReader:
    """Checked rows of a source, read one at a time by iterating; `skipped` counts the bad ones dropped so far.

    Args:
        source: the path of a JSON-lines file, the id of a Hugging Face dataset (its `train` split), `shipped:NAME` for
            the pairs inside the package, a `datasets.Dataset`, a list of dicts, or `Pairs`.
        skip_bad_rows: drop and count bad rows instead of stopping at the first.
    """

    def __init__(self, source: Any, *, skip_bad_rows: bool = False):
        self.source, self.skip_bad_rows, self.skipped = source, skip_bad_rows, 0

    def __iter__(self) -> Iterator[Row]:
        """Raises UserError, at the row itself: naming the file, the line, what is wrong and what to do."""
        if isinstance(self.source, Pairs):  # checked already
            self.skipped = self.source.skipped
            yield from self.source.rows
            return
        self.skipped = found = 0
        for where, raw in raw_rows(self.source):
            try:
                row = check_row(raw, where)
            except UserError:
                if not self.skip_bad_rows:
                    raise
                self.skipped += 1
                continue
            found += 1
            yield row
        if not found:
            raise UserError(
                f"{name_of(self.source)} holds no usable pairs ({self.skipped} bad rows). "
                "Build some with `efface pairs`."
            )


def load_pairs(source: Any, *, skip_bad_rows: bool = False) -> Pairs:
    """Read and check preference pairs, all at once; arguments and errors as with `PairReader`."""
    if isinstance(source, Pairs):
        return source
    reader = PairReader(source, skip_bad_rows=skip_bad_rows)
    rows = list(reader)
    return Pairs(rows, reader.skipped)


def check_row(raw: Any, where: str) -> Row:
    """The row under its standard column names, or a `UserError` that begins with `where`."""
    if isinstance(raw, UserError):
        raise raw
    if not isinstance(raw, dict):
        raise UserError(f"{where}: a row must be a JSON object with {', '.join(FIELDS)}, not {type(raw).__name__}.")
    row: Row = {PAIR_TOXICITY.get(key) or key: value for key, value in raw.items()}
    for field in FIELDS:
        if field not in row:
            raise UserError(
                f"{where}: field {field!r} is missing (found {', '.join(map(repr, row)) or 'nothing'}). "
                "Add it or pass --skip-bad-rows."
            )
        value = row[field]
        if not isinstance(value, str) and not _is_conversation(value):
            raise UserError(
                f"{where}: field {field!r} is {type(value).__name__}; it must be text or a list of chat messages."
            )
        if field != "prompt" and not _plain(value).strip():
            raise UserError(f"{where}: field {field!r} is empty. Give a continuation or pass --skip-bad-rows.")
    if len({isinstance(row[field], str) for field in FIELDS}) > 1:
        raise UserError(f"{where}: prompt, chosen and rejected must be all text or all lists of chat messages.")
    if row["chosen"] == row["rejected"]:
        raise UserError(
            f"{where}: chosen and rejected are identical, so nothing can be learned from them. "
            "Drop the row or pass --skip-bad-rows."
        )
    return row


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and isinstance(turn.get("content"), str) and "role" in turn for turn in value)
    )


def _plain(value: str | list[dict[str, str]]) -> str:
    return value if isinstance(value, str) else "".join(turn["content"] for turn in value)


@dataclass(frozen=True)
class TokenizedPair:
    """Token ids of one pair; the prompt ends and both continuations begin at the same position."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


def tokenize_pair(
    row: Row,
    processing_class: "PreTrainedTokenizerBase",
    *,
    max_prompt_length: int = 128,
    max_completion_length: int = 128,
) -> TokenizedPair:
    """Token ids with a stable boundary: the prompt is tokenised as it will be at generation time, alone.

    A prompt that is too long loses its beginning (but not the BOS), a continuation its end.

    Raises:
        UserError: if a continuation has no tokens, or a conversation meets a tokenizer without chat template.
    """
    if isinstance(row["prompt"], str):
        prompt, chosen, rejected, template = row["prompt"], row["chosen"], row["rejected"], False
    else:
        prompt, chosen, rejected = _apply_chat_template(row, processing_class)
        template = True  # which writes its own BOS
    prompt_ids = encode_prompt(processing_class, prompt, template=template)
    bos = prompt_ids[:1] if prompt_ids[:1] == [processing_class.bos_token_id] else []
    if len(prompt_ids) > max_prompt_length:
        prompt_ids = bos + prompt_ids[len(prompt_ids) - max_prompt_length + len(bos) :]
    sides = []
    for side, text in (("chosen", chosen), ("rejected", rejected)):
        ids = encode_continuation(processing_class, text)[:max_completion_length]
        if not ids:
            raise UserError(f"{side} has no tokens under this tokenizer: {text!r}.")
        sides.append(ids)
    return TokenizedPair(prompt_ids, *sides)


def encode_prompt(processing_class: "PreTrainedTokenizerBase", text: str, *, template: bool = False) -> list[int]:
    """Ids of a prompt; never empty, since something must predict the first token of the continuation."""
    ids = (
        list(processing_class(text, add_special_tokens=False)["input_ids"])
        if template
        else tokens_of(processing_class, text)
    )
    if not ids:
        start = (
            processing_class.bos_token_id
            if processing_class.bos_token_id is not None
            else processing_class.eos_token_id
        )
        if start is None:
            raise UserError("the prompt has no tokens and the tokenizer no BOS or EOS to stand in. Give a prompt.")
        ids = [start]
    return ids


def encode_continuation(processing_class: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Ids of a text that follows a prompt, as it stands: without special tokens and without an invented leading space.

    SentencePiece-style tokenizers put a space before a text that starts a sequence; an anchor in front keeps it off.
    """
    plain = list(processing_class(text, add_special_tokens=False)["input_ids"])
    anchor = list(processing_class("\n", add_special_tokens=False)["input_ids"])
    anchored = list(processing_class("\n" + text, add_special_tokens=False)["input_ids"])
    if anchored[: len(anchor)] == anchor and processing_class.decode(plain) != processing_class.decode(
        anchored[len(anchor) :]
    ):
        return anchored[len(anchor) :]
    return plain


def _apply_chat_template(row: Row, processing_class: "PreTrainedTokenizerBase") -> tuple[str, str, str]:
    if not processing_class.chat_template:
        raise UserError(
            "the pairs are conversations but the tokenizer has no chat template. "
            "Pass plain text, or an instruct model."
        )
    prompt = str(processing_class.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False))
    sides = []
    for side in ("chosen", "rejected"):
        whole = str(processing_class.apply_chat_template(row["prompt"] + row[side], tokenize=False))
        if not whole.startswith(prompt):
            raise UserError(
                f"the chat template does not continue its own generation prompt with {side}; pass plain text instead."
            )
        sides.append(whole[len(prompt) :])
    return prompt, sides[0], sides[1]


Item = tuple[list[int], list[int]]
"""One sequence as (context, continuation), token ids."""


class ReferenceStates(TypedDict):
    """What the reference has to say of a batch (or of one sequence)."""

    hidden: Tensor
    """(N, d) final hidden states at the positions whose logits a method asks for, in row-major order."""
    norms: Tensor
    """(chosen tokens, layers) norms of the residual stream at the tokens of y+."""
    residuals: NotRequired[dict[int, Tensor]]
    """layer -> (tokens, d) of the continuations whose residuals a method asks the live reference for."""


class PairBatch(TypedDict):
    """2B + R rows: B chosen, then the B rejected of the same pairs, then R ordinary passages (`retain_text`)."""

    input_ids: Tensor
    """(2B + R, T) long, right-padded."""
    attention_mask: Tensor
    """(2B + R, T) long, 1 on real tokens."""
    continuation_mask: Tensor
    """(2B + R, T) bool, True on the tokens that are the continuation (of a passage: all but the first)."""
    n_pairs: int
    """B."""
    reference: NotRequired[ReferenceStates]
    """From the cache, if there is one."""


class Example(NamedTuple):
    """A pair, and the reference's states of it from the cache."""

    pair: TokenizedPair
    states: list[ReferenceStates] = []
    """Of the pair's sides, in the order of `PairDataset.sides`."""


@dataclass
class PairCollator:
    """Stack tokenised pairs into one right-padded batch, chosen rows first.

        >>> collate = PairCollator(pad_token_id=0)
        >>> collate([TokenizedPair([5, 6], [7], [8, 9])])["input_ids"]
        tensor([[5, 6, 7, 0],
                [5, 6, 8, 9]])

    What the cache holds of the reference is put in the same order. Passages come later (`with_passages`).
    """

    pad_token_id: int

    def __call__(self, features: Sequence[TokenizedPair | Example]) -> PairBatch:
        examples = [feature if isinstance(feature, Example) else Example(feature) for feature in features]
        items = [side_of(example.pair, name) for name in SIDES for example in examples]
        input_ids, attention_mask, continuation_mask = collate_rows(items, self.pad_token_id)
        batch = PairBatch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            continuation_mask=continuation_mask,
            n_pairs=len(examples),
        )
        if any(example.states for example in examples):
            n_sides = len(examples[0].states)
            sides = [example.states[side] for side in range(n_sides) for example in examples]
            batch["reference"] = _joined(sides, sides[: len(examples)])  # norms are of y+
        return batch


def with_passages(
    batch: PairBatch,
    passages: Sequence[list[int]],
    pad_token_id: int,
    states: Sequence[ReferenceStates] | None = None,
) -> PairBatch:
    """`batch` with a row for each passage (token ids) after its pairs, and the reference's `states` of them."""
    if not passages:
        return batch
    device = batch["input_ids"].device
    added = [part.to(device) for part in collate_rows([passage_item(ids) for ids in passages], pad_token_id)]
    old = batch["input_ids"], batch["attention_mask"], batch["continuation_mask"]
    width = max(old[0].shape[1], added[0].shape[1])
    fill = (pad_token_id, 0, False)

    def joined(a: Tensor, b: Tensor, value: int) -> Tensor:
        return torch.cat([F.pad(part, (0, width - part.shape[1]), value=value) for part in (a, b)])

    input_ids, attention_mask, continuation_mask = map(joined, old, added, fill)
    whole = PairBatch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        continuation_mask=continuation_mask,
        n_pairs=batch["n_pairs"],
    )
    if states is not None:
        moved = [_on(device, one) for one in states]
        pairs = [batch["reference"]] if "reference" in batch else []
        whole["reference"] = _joined(pairs + moved, pairs or moved)  # norms are of y+, if it is asked for at all
    return whole


def _joined(states: Sequence[ReferenceStates], normed: Sequence[ReferenceStates]) -> ReferenceStates:
    return ReferenceStates(
        hidden=torch.cat([one["hidden"] for one in states]), norms=torch.cat([one["norms"] for one in normed])
    )


def _on(device: torch.device, states: ReferenceStates) -> ReferenceStates:
    return ReferenceStates(hidden=states["hidden"].to(device), norms=states["norms"].to(device))


SIDES = ("chosen", "rejected")


def side_of(pair: TokenizedPair, side: str) -> Item:
    """The prompt and one of the continuations."""
    return pair.prompt_ids, pair.chosen_ids if side == "chosen" else pair.rejected_ids


def passage_item(ids: list[int]) -> Item:
    """Of ordinary text everything but the first token is predicted."""
    return ids[:1], ids[1:]


def collate_rows(items: Sequence[Item], pad_token_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """input_ids, attention_mask and continuation_mask, each (rows, T), right-padded."""
    shape = (len(items), max(len(context) + len(continuation) for context, continuation in items))
    input_ids = torch.full(shape, pad_token_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    continuation_mask = torch.zeros(shape, dtype=torch.bool)
    for i, (context, continuation) in enumerate(items):
        end = len(context) + len(continuation)
        input_ids[i, :end] = torch.tensor(context + continuation)
        attention_mask[i, :end] = 1
        continuation_mask[i, len(context) : end] = True
    return input_ids, attention_mask, continuation_mask
