"""What does a model hold about the tokens of labelled text, whoever wrote and labelled it?

Text of another make than the pairs that a method was trained on: their own style may tell their sides apart. A text is
toxic as a whole, nowhere, or within spans of characters; parallel sentences (ParaDetox) are two texts of one group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
import torch

from efface.analysis.states import TokenStates, refuse_virtual_tokens
from efface.data.text import joined
from efface.data.tokens import continuation_offsets, cut_ids, encode_continuation, encode_prompt
from efface.errors import RunError, UserError
from efface.model.blocks import accepted, capture_residuals, decoder_blocks, parse_layers
from efface.model.copies import eval_mode
from efface.model.padding import batches_by_length, max_positions, pad_batch, position_ids
from efface.model.vocabulary import pad_id
from efface.scoring.labelled import rows_of, spans_of, texts_of
from efface.terminal.progress import track

if TYPE_CHECKING:
    import os

    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class MarkedText:
    """A text and which of its characters are toxic."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """Half-open [start, end) ranges of characters: none in a benign text, all in one that is toxic throughout."""
    group: str
    """What must not be parted: the text itself, or what two texts are versions of."""
    before: str = ""
    """What stands before it, and is read but not asked about."""

    @classmethod
    def whole(cls, text: str, toxic: bool, group: str, before: str = "") -> "MarkedText":
        return cls(text, ((0, len(text)),) if toxic else (), group, before)


def load_marked(
    file: "str | os.PathLike[str]", n_groups: int, *, max_characters: int = 250, seed: int = 0
) -> list[MarkedText]:
    """The texts of `n_groups` groups of a labelled file (the forms of `scoring/labelled.py`), drawn by `seed`.

    A row with `spans` is one text, with the toxic characters that they name; `toxic` and `neutral` are two, behind the
    words that they begin with alike; any other is toxic or benign as a whole. Of a group that comes twice the first
    row counts, and texts of more than `max_characters` are passed over.

    Args:
        file: JSON lines, CSV or TSV.
        n_groups: a text, or two that are versions of one, is a group.
        max_characters: of a text with what stands before it.
        seed: of the draw.

    Raises:
        UserError: naming the file and line of a row that cannot be read; if the file has fewer groups.
    """
    found: dict[str, list[MarkedText]] = {}
    for where, row in rows_of(file):
        texts = list(_marked(row, where))
        if texts and all(0 < len(each.text) and len(each.before + each.text) <= max_characters for each in texts):
            found.setdefault(texts[0].group, texts)
    if len(found) < n_groups:
        raise UserError(
            f"{file} has {len(found)} labelled texts or pairs, and {n_groups} were asked for. Ask for fewer."
        )
    drawn = np.random.default_rng(seed).permutation(len(found))[:n_groups]
    groups = list(found.values())
    return [text for number in sorted(drawn) for text in groups[number]]


def _marked(row: dict[str, object], where: str) -> Iterator[MarkedText]:
    if isinstance(row.get("toxic"), str) and isinstance(row.get("neutral"), str):
        toxic, neutral = (joined(str(row[side])).strip() for side in ("toxic", "neutral"))
        words = list(zip(toxic.split(), neutral.split(), strict=False))
        alike = len(list(takewhile(lambda pair: pair[0] == pair[1], words)))
        before = " ".join(toxic.split()[:alike])
        for text, is_toxic in ((neutral, False), (toxic, True)):
            rest = " ".join(text.split()[alike:])
            yield MarkedText.whole(" " + rest if before and rest else rest, is_toxic, toxic, before)
    elif spans := spans_of(row, where):
        text = str(row["text"])
        yield MarkedText(text, tuple((at, at + 1) for at in sorted(spans)), text)
    elif "spans" not in row:
        yield from (MarkedText.whole(each.text, each.toxic, each.group) for each in texts_of(row, where))


@torch.no_grad()
def marked_states(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    texts: Sequence[MarkedText],
    layers: Sequence[int],
    *,
    batch_size: int = 16,
    max_tokens: int = 64,
    progress: bool = False,
) -> dict[int, TokenStates]:
    """Layer -> the states at the tokens of all texts, labelled 1 where a token has a character of a span.

    Args:
        processing_class: a fast tokenizer, which tells where its tokens stand.
        layers: numbers of blocks; -1 stands for the last, and the result is under its real number.
        batch_size: texts at once, of like length; the result does not depend on it, nor on their order.
        max_tokens: of a text, and of what stands before it (its end).
        progress: show a bar.

    Raises:
        UserError: if the tokenizer is no fast one, or the model has no such layer, or an adapter of virtual tokens.
        RunError: if a state is not finite.
    """
    refuse_virtual_tokens(model)
    if not processing_class.is_fast:
        raise UserError(
            "the tokenizer does not tell where its tokens stand in a text (it is no fast one, with tokenizer.json). "
            "Save a fast version of it with the model."
        )
    layers = parse_layers(layers, len(decoder_blocks(model)))
    limit = max_positions(model)
    max_tokens = max_tokens if limit is None else min(max_tokens, limit // 2)
    leads, owns, labels = [], [], []
    for text in texts:
        lead = cut_ids(encode_prompt(processing_class, text.before), max_tokens, processing_class.bos_token_id)
        own = encode_continuation(processing_class, text.text, text.before)[:max_tokens]
        offsets = continuation_offsets(processing_class, text.text, text.before)[: len(own)]
        toxic = [any(max(start, left) < min(end, right) for start, end in text.spans) for left, right in offsets]
        leads.append(lead)
        owns.append(own)
        labels.append(np.array(toxic, dtype=int))
    names = {group: number for number, group in enumerate(dict.fromkeys(text.group for text in texts))}
    hidden: dict[int, list[np.ndarray]] = {layer: [np.empty((0, 0))] * len(texts) for layer in layers}
    batches = batches_by_length(
        range(len(texts)), lambda number: len(leads[number]) + len(owns[number]), batch_size, longest_first=False
    )
    with eval_mode(model):
        for chunk in track(batches, "hidden states", show=progress):
            sequences = [leads[number] + owns[number] for number in chunk]
            ids, mask = pad_batch(sequences, pad_id(processing_class, model), model.device, left=False)
            body = model.base_model
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids(mask), "use_cache": False}
            with capture_residuals(model, layers) as residuals:
                body(**accepted(body, **inputs))
            for layer in layers:
                states = residuals[layer].float().cpu().numpy()
                for row, number in enumerate(chunk):
                    start = len(leads[number])
                    hidden[layer][number] = states[row, start : start + len(owns[number])]
    common = (
        np.concatenate([np.array(own, dtype=int) for own in owns]),
        np.concatenate(labels),
        np.concatenate([np.full(len(own), names[text.group]) for text, own in zip(texts, owns, strict=True)]),
    )
    found = {layer: TokenStates(np.concatenate(rows), *common) for layer, rows in hidden.items()}
    for layer, states_of in found.items():
        if not np.isfinite(states_of.hidden).all():
            raise RunError(
                f"layer {layer}: a hidden state is not finite. The model is broken, or its dtype too small."
            )
    return found
