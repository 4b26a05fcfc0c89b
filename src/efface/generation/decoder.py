"""How does a batch of sequences get its new tokens? Each prompt goes through the model once, whatever its samples.

The loop stands on transformers' `DynamicCache`: the prompts are read (prefill), their keys and values are repeated for
the samples, and sequences that have ended leave the batch and the cache. A model that keeps more than keys and values
(state spaces, prompt tuning) is left to its own `generate`, with the same draws.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efface.generation.warp import Warp
from efface.model.blocks import accepted
from efface.model.padding import pad_batch, position_ids

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Decoder:
    """Continues batches of token ids with one model."""

    model: "PreTrainedModel"
    warp: Warp
    pad: int
    ends: Sequence[int]
    """Tokens that end a sequence."""
    parameters: frozenset[str] = field(init=False)
    """What the model's forward takes."""

    def __post_init__(self) -> None:
        inner: Any = self.model
        if hasattr(inner, "get_base_model"):  # PEFT's forward takes anything
            inner = inner.get_base_model()
        self.parameters = frozenset(inspect.signature(inner.forward).parameters)

    @torch.no_grad()
    def decode(self, prompts: Sequence[list[int]], owners: Sequence[int], uniform: Tensor) -> list[list[int]]:
        """The new tokens of each sequence, up to and including the one that ends it, if one does.

        Args:
            prompts: token ids of P prompts.
            owners: B numbers of prompts, one for each sequence.
            uniform: (B, steps) numbers in [0, 1) to draw with; `steps` is how many tokens a sequence gets at most.
        """
        decode = self._with_cache if self.has_dynamic_cache() else self._with_generate
        rows = decode(prompts, torch.tensor(owners), uniform).tolist()  # (B, <= steps)
        stops = [next((i + 1 for i, token in enumerate(row) if token in self.ends), len(row)) for row in rows]
        return [row[:stop] for row, stop in zip(rows, stops, strict=True)]

    def has_dynamic_cache(self) -> bool:
        """Whether the model keeps nothing but keys and values, which can be repeated and dropped row by row."""
        if "past_key_values" not in self.parameters or self.model._is_stateful:
            return False
        adapter = getattr(self.model, "active_peft_config", None)
        if adapter is not None and adapter.is_prompt_learning:  # PEFT puts virtual tokens before every input
            return False
        return not any(hasattr(layer, "recurrent_states") for layer in self._new_cache().layers)

    def _new_cache(self) -> "DynamicCache":
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def _with_cache(self, prompts: Sequence[list[int]], owners: Tensor, uniform: Tensor) -> Tensor:
        device, steps = self.model.device, uniform.shape[1]
        ends = torch.tensor(list(self.ends), dtype=torch.long, device=device)
        new = torch.full(uniform.shape, self.pad)  # (B, steps)
        rows = torch.arange(len(owners))  # the sequences still in the batch
        cache = self._new_cache()
        running = torch.ones(len(rows), dtype=torch.bool, device=device)
        input_ids, mask = pad_batch(prompts, self.pad, device, left=True)  # (P, T)
        for step in range(steps):
            logits = self._last_logits(input_ids, mask, cache)  # (b, V), after the prompts (P, V)
            if step == 0 and owners.tolist() != list(range(len(prompts))):
                copies = owners.to(device)
                cache.batch_select_indices(copies)
                logits, mask = logits[copies], mask[copies]
            tokens = self.warp.choose(logits, uniform[rows, step])  # (b,)
            del logits  # before the next are made
            new[rows, step] = tokens.cpu()
            running &= ~torch.isin(tokens, ends)
            left = int(running.sum())
            if not left:
                break
            # Leaving costs a copy of the cache. It is worth it when it saves as much as one step of all rows.
            if (len(rows) - left) * (steps - step - 1) >= len(rows):
                kept = running.nonzero()[:, 0]
                cache.batch_select_indices(kept)
                tokens, mask, running, rows = tokens[kept], mask[kept], running[kept], rows[kept.cpu()]
            input_ids = tokens[:, None]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)  # (b, T + step + 1)
        return new

    def _last_logits(self, input_ids: Tensor, mask: Tensor, cache: "DynamicCache") -> Tensor:
        """(b, V) logits after the last of the new tokens (b, t), which the cache takes in; the mask covers all."""
        inputs: dict[str, Any] = {"position_ids": position_ids(mask)[:, -input_ids.shape[1] :], "logits_to_keep": 1}
        inputs = {name: value for name, value in inputs.items() if name in self.parameters}
        inputs |= {"input_ids": input_ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
        output = self.model(**accepted(self.model, **inputs))
        return output.logits[:, -1]

    def _with_generate(self, prompts: Sequence[list[int]], owners: Tensor, uniform: Tensor) -> Tensor:
        from transformers import GenerationConfig

        config = GenerationConfig(
            max_new_tokens=uniform.shape[1],
            do_sample=False,  # `draw` leaves it nothing to choose
            # Everything a checkpoint's own generation_config might change is set, or generate() takes it from there.
            temperature=1.0,  # this and the next two are of no effect; other values would be warned of
            top_p=1.0,
            top_k=50,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            min_new_tokens=0,  # takes precedence over min_length
            pad_token_id=self.pad,
            eos_token_id=list(self.ends) or None,
            use_cache=True,
        )
        new = torch.full(uniform.shape, self.pad)  # (B, steps)
        lengths = torch.tensor([len(ids) for ids in prompts])[owners]
        for length in lengths.unique().tolist():  # no padding, as not every such model can leave it out of account
            rows = (lengths == length).nonzero()[:, 0]  # (b,)
            input_ids = torch.tensor([prompts[owner] for owner in owners[rows].tolist()], device=self.model.device)
            draws = uniform[rows]

            def draw(ids: Tensor, scores: Tensor, draws: Tensor = draws, start: int = length) -> Tensor:
                tokens = self.warp.choose(scores, draws[:, ids.shape[1] - start])
                return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)

            output = self.model.generate(  # type: ignore[operator]
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                generation_config=config,
                logits_processor=[draw],
                **accepted(self.model),
            )[:, length:]
            new[rows, : output.shape[1]] = output.cpu()
        return new


def end_ids(model: "PreTrainedModel", processing_class: "PreTrainedTokenizerBase") -> list[int]:
    """What ends a text by the checkpoint's generation settings (the end of a turn too, say) or by the tokenizer."""
    ids = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = ids if isinstance(ids, list) else [ids]
    return sorted({token for token in [*listed, processing_class.eos_token_id] if token is not None})
