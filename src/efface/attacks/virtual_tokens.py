"""How does a model read vectors before its prompt as if they were tokens? In a shell that shares its weights."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efface.model.padding import position_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def with_virtual_tokens(model: "PreTrainedModel", vectors: Tensor, bos: int | None) -> "PreTrainedModel":
    """A model that reads `vectors` before every sequence, after its BOS if it begins with one.

    It shares all weights with `model`, which is left as it is. Batches must be padded to the left; logits come out for
    the virtual places too.

    Args:
        vectors: (n, d), at the scale of what the input embedding gives; what is done to them later counts.
        bos: the token after which they are put where a sequence begins with it.
    """
    shell = copy.copy(model)
    for name in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"):
        setattr(shell, name, copy.copy(getattr(model, name)))

    def put_before(module: Any, args: tuple[()], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        ids, mask, cache = kwargs["input_ids"], kwargs["attention_mask"], kwargs.get("past_key_values")  # (B, T)
        # Padding stays to the left, so wherever the vectors are put, the mask gets as many ones at its right end.
        longer = torch.cat([mask, mask.new_ones(len(mask), len(vectors))], dim=1)  # (B, T + n), or with the cache's
        known = cache is not None and cache.get_seq_length() > 0
        width = ids.shape[1] + (0 if known else len(vectors))
        kwargs = {**kwargs, "attention_mask": longer}
        if "position_ids" in kwargs:
            kwargs["position_ids"] = position_ids(longer)[:, -width:]
        if not known:
            kwargs |= {"input_ids": None, "inputs_embeds": _inserted(module, ids, mask, vectors, bos)}
        return args, kwargs

    shell.register_forward_pre_hook(put_before, with_kwargs=True)
    return shell


def _inserted(model: Any, ids: Tensor, mask: Tensor, vectors: Tensor, bos: int | None) -> Tensor:
    """(B, T + n, d) embeddings of `ids` (B, T), which are padded to the left, with the `vectors` (n, d) among them."""
    embedded = model.get_input_embeddings()(ids)  # (B, T, d)
    place = (mask == 0).sum(1, keepdim=True)  # (B, 1), of the first real token
    if bos is not None:
        place = place + (ids.gather(1, place) == bos).long()
    n, length = len(vectors), ids.shape[1]
    column = torch.arange(length + n, device=ids.device)[None]  # (1, T + n)
    source = torch.where(column < place, column, (column - n).clamp(min=0))  # (B, T + n), in `embedded`
    text = embedded.gather(1, source[..., None].expand(-1, -1, embedded.shape[-1]))  # (B, T + n, d)
    virtual = vectors.to(embedded)[(column - place).clamp(0, n - 1)]  # (B, T + n, d)
    among = (column >= place) & (column < place + n)  # (B, T + n)
    return torch.where(among[..., None], virtual, text)
