"""Which tokens are tried in a slot? Swaps from the gradient's top-k that survive being written out as text.

First order: swapping the token at position i for v changes the loss by about  (e_v - e_now) . dL/de_i,  so of all v
those with the most negative  e_v . dL/de_i  promise most (Zou et al. 2023, section 2.2). What a user can send is text:
a candidate counts only if the decoded text, in each of the prompts, tokenises to the candidate again.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from efface.attacks.search.slot import Slot
from efface.data.tokens import ANCHORS, encode_continuation
from efface.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE = 8192  # words of the vocabulary whose embeddings are looked up at once


def allowed_ids(processing_class: "PreTrainedTokenizerBase", vocabulary: int, *, non_ascii: bool = False) -> Tensor:
    """(A,) the ids below `vocabulary` that may stand in a slot: no special tokens, and printable ASCII if not
    `non_ascii`."""
    known = min(vocabulary, len(processing_class))
    special = set(processing_class.all_special_ids)
    words = _decoded(processing_class, [[token] for token in range(known)])
    allowed = [
        token
        for token, word in enumerate(words)
        if token not in special and (non_ascii or (word and word.isascii() and word.isprintable()))
    ]
    if not allowed:
        raise UserError("the tokenizer has no printable ASCII tokens. Set allow_non_ascii.")
    return torch.tensor(allowed)


def one_hot_gradient(gradient: Tensor, embedding: nn.Module, allowed: Tensor) -> Tensor:
    """(L, A) d loss / d one-hot of each allowed token at each position, up to what all tokens of a position share.

    Embeddings are linear in the one-hot vectors, so no one-hot is needed.

    Args:
        gradient: (L, d) d loss / d output of the embedding.
        embedding: the model's input embedding, with whatever scale it applies.
        allowed: (A,)
    """
    with torch.no_grad():
        return torch.cat([gradient @ embedding(piece).T for piece in allowed.split(PIECE)], dim=1)


def most_promising(gradient: Tensor, allowed: Tensor, k: int) -> Tensor:
    """(L, k) token ids with the most negative gradient (L, A) at each position."""
    return allowed[(-gradient).topk(min(k, len(allowed)), dim=1).indices]


def swaps(ids: Tensor, promising: Tensor, width: int, n_replace: int, generator: torch.Generator) -> Tensor:
    """(N, L) candidates that differ from `ids` in 1 to `n_replace` positions; all different, so N <= `width`.

    Args:
        ids: (L,)
        promising: (L, k) what to draw from at each position.
        generator: on the CPU.
    """
    length, k = promising.shape
    places = torch.rand(width, length, generator=generator).argsort(1)[:, :n_replace].to(ids.device)  # (width, n)
    ranks = torch.randint(k, places.shape, generator=generator).to(ids.device)
    candidates = ids.repeat(width, 1).scatter_(1, places, promising[places, ranks]).unique(dim=0)
    return candidates[(candidates != ids).any(1)]


def slot_text(processing_class: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """What is written for the tokens of a slot."""
    return _slot_texts(processing_class, [list(ids)])[0]


def stable(candidates: Tensor, slots: Sequence[Slot], processing_class: "PreTrainedTokenizerBase") -> Tensor:
    """Those rows of `candidates` (N, L) that, written out in each of the slots, reach the model as they are and
    tokenise to themselves again."""
    rows: list[list[int]] = candidates.tolist()
    texts = _slot_texts(processing_class, rows)
    kept = list(range(len(rows)))
    for slot in slots:
        kept = [row for row in kept if slot.keeps(texts[row])]
        if not kept:
            break
        first, last = slot.texts
        written = [first + texts[row] + last for row in kept]
        encoded = processing_class(written, add_special_tokens=not slot.template, verbose=False)["input_ids"]
        # Some tokenizers close a text with EOS.
        kept = [
            row
            for row, found in zip(kept, encoded, strict=True)
            if found[: len(wanted := slot.prompt(rows[row]))] == wanted
            and found[len(wanted) :] in ([], [processing_class.eos_token_id])
        ]
    return candidates[kept]


def _slot_texts(processing_class: "PreTrainedTokenizerBase", rows: list[list[int]]) -> list[str]:
    # After an anchor: SentencePiece-style tokenizers drop the space at the beginning of what they decode.
    anchor = next((ids for text in ANCHORS if (ids := encode_continuation(processing_class, text))), [])
    skipped = len(_decoded(processing_class, [anchor])[0])
    return [text[skipped:] for text in _decoded(processing_class, [anchor + row for row in rows])]


def _decoded(processing_class: "PreTrainedTokenizerBase", rows: list[list[int]]) -> list[str]:
    return list(processing_class.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False))
