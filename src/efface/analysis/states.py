"""What does a model hold about a token or a text? Its residual stream after chosen layers, ready for a probe.

`token_states` gives every continuation token of preference pairs (for the tokens of labelled texts see `marked.py`),
`pooled_states` one mean vector a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from efface.data.batch import PairCollator
from efface.data.pair_tokens import TokenizedPair, tokenize_pairs
from efface.data.tokens import bos_prefix
from efface.errors import RunError, UserError
from efface.model.blocks import accepted, capture_residuals, decoder_blocks, parse_layers
from efface.model.copies import eval_mode, merged
from efface.model.forward import forward
from efface.model.layout import plain_layout
from efface.model.padding import batches_by_length, max_positions, pad_batch, position_ids
from efface.model.vocabulary import pad_id
from efface.terminal.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class TokenStates:
    """The residual stream after one layer, at every token of pairs' continuations or of labelled texts."""

    hidden: np.ndarray
    """(N, d) float32."""
    token_ids: np.ndarray
    """(N,)"""
    labels: np.ndarray
    """(N,) 1 on tokens of `rejected` and within toxic spans, 0 on those of `chosen` and on others."""
    pairs: np.ndarray
    """(N,) which pair, or text, the token is from."""
    prompts: np.ndarray | None = None
    """(N,) which prompt its pair has; None where no two have the same."""

    @property
    def groups(self) -> np.ndarray:
        """(N,) what folds keep together: pairs of one prompt, whose states have much in common, or a text."""
        return self.pairs if self.prompts is None else self.prompts


def refuse_virtual_tokens(model: Any) -> None:
    """Raise the `UserError` of `merged` if the adapter of `model` puts virtual tokens before a text: where hooks and
    `base_model` look, its states are the base's, or those of other positions."""
    from peft import PeftModel  # on use: it costs a second

    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        merged(model)  # refuses it, before it changes anything


@torch.no_grad()
def token_states(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    rows: Sequence[dict[str, Any]],
    layers: Sequence[int],
    *,
    batch_size: int = 16,
    progress: bool = False,
) -> dict[int, TokenStates]:
    """Layer -> the states at the continuation tokens of all pairs; both sides go through the model in one batch.

    Raises:
        UserError: if the model has an adapter of virtual tokens.
    """
    refuse_virtual_tokens(model)
    pairs = tokenize_pairs(rows, processing_class, max_positions=max_positions(model))
    collate = PairCollator(pad_token_id=0)
    hidden: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
    token_ids, labels, numbers = [], [], []
    for start in track(range(0, len(pairs), batch_size), "hidden states", show=progress):
        chunk: list[TokenizedPair] = pairs[start : start + batch_size]
        batch = collate(chunk)
        ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
        counted = batch["continuation_mask"]
        with eval_mode(model), capture_residuals(model, layers) as residuals:
            body = model.base_model
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids(mask), "use_cache": False}
            body(**accepted(body, **inputs))
        for layer in layers:
            hidden[layer].append(residuals[layer].float().cpu()[counted].numpy())
        rejected = torch.arange(len(counted)) >= len(chunk)  # (2B,)
        token_ids.append(batch["input_ids"][counted].numpy())
        labels.append(rejected[:, None].expand_as(counted)[counted].numpy())
        pair = start + torch.arange(len(counted)) % len(chunk)
        numbers.append(pair[:, None].expand_as(counted)[counted].numpy())
    prompts = [tuple(pair.prompt_ids) for pair in pairs]
    number_of = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    of_pair = np.concatenate(numbers)
    of_prompt = np.array([number_of[prompt] for prompt in prompts])[of_pair]
    common = np.concatenate(token_ids), np.concatenate(labels).astype(int), of_pair, of_prompt
    return {layer: TokenStates(np.concatenate(hidden[layer]), *common) for layer in layers}


def text_token_ids(
    processing_class: "PreTrainedTokenizerBase", texts: Sequence[str], *, max_tokens: int = 128
) -> list[list[int]]:
    """The ids of each text's own tokens, without the BOS that the tokenizer may add, cut to `max_tokens`.

    They are what `pooled_states` averages over.

    Raises:
        UserError: if a text has no tokens.
    """
    found = [list(processing_class(text, add_special_tokens=False)["input_ids"])[:max_tokens] for text in texts]
    for number, ids in enumerate(found):
        if not ids:
            raise UserError(f"text {number} ({texts[number]!r}) has no tokens to average over. Leave empty texts out.")
    return found


@torch.no_grad()
def pooled_states(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    layers: Sequence[int],
    *,
    batch_size: int = 16,
    max_tokens: int = 128,
    progress: bool = False,
) -> dict[int, np.ndarray]:
    """Layer -> (n, d) float32: the mean over a text's tokens of the residual stream after that block.

    The residual stream is before any final norm. Where the tokenizer puts a BOS before a text, the model sees it but
    the mean leaves it out: its state is the same for all texts, so it would tell nothing but their length.

    Args:
        layers: numbers of blocks, 0 for the first; -1 stands for the last, and the result is under its real number.
        batch_size: texts at once, of like length; the result does not depend on it.
        max_tokens: a text counts up to here, and never beyond the model's positions.

    Raises:
        UserError: if a text has no tokens, or the model has no such layer, or an adapter of virtual tokens.
        RunError: if a state is not finite.
    """
    refuse_virtual_tokens(model)
    layers = parse_layers(layers, len(decoder_blocks(model)))
    bos, limit = bos_prefix(processing_class), max_positions(model)
    max_tokens = max_tokens if limit is None else min(max_tokens, limit - len(bos))
    own = text_token_ids(processing_class, texts, max_tokens=max_tokens)
    batches = batches_by_length(range(len(own)), lambda number: len(own[number]), batch_size, longest_first=False)
    pooled: dict[int, np.ndarray] = {}
    with eval_mode(model):
        for chunk in track(batches, "hidden states", show=progress):
            ids, mask = pad_batch(
                [bos + own[number] for number in chunk], pad_id(processing_class, model), model.device, left=False
            )  # (B, T)
            counted = mask.bool()
            counted[:, : len(bos)] = False
            found = forward(model, plain_layout(ids, mask), torch.zeros_like(counted), layers, counted).residuals
            for layer, states in found.items():  # (M, d)
                means = [text.mean(0) for text in states.float().split(counted.sum(1).tolist())]
                if layer not in pooled:
                    pooled[layer] = np.empty((len(own), states.shape[-1]), dtype=np.float32)
                pooled[layer][chunk] = torch.stack(means).cpu().numpy()
    for layer, table in pooled.items():
        if not np.isfinite(table).all():
            raise RunError(
                f"layer {layer}: a hidden state is not finite. The model is broken, or its dtype too small."
            )
    return pooled


def check_states(hidden: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`hidden` as (n, d) floats and `labels` with one entry (or row) for each of them.

    Raises:
        UserError: if they are not that, or a state is not finite.
    """
    hidden, labels = np.asarray(hidden), np.asarray(labels)
    if hidden.ndim != 2 or 0 in hidden.shape:
        raise UserError(f"hidden states of shape {hidden.shape}: a table (n, d), not empty, is needed.")
    if len(labels) != len(hidden):
        raise UserError(f"there are {len(hidden)} hidden states and {len(labels)} labels: each state needs its label.")
    if not np.isfinite(hidden).all():
        raise UserError("the hidden states are not all finite. Leave out the texts they are from, or use float32.")
    return hidden, labels


def check_binary(hidden: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `check_states`, with integer labels that are 0 or 1; both must occur."""
    hidden, labels = check_states(hidden, labels)
    if labels.ndim != 1 or set(np.unique(labels).tolist()) != {0, 1}:
        raise UserError(
            "labels must be a list of 0 and 1, and both must occur: a probe tells one class from the other."
        )
    return hidden, labels.astype(int)
