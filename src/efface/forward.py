"""What does one forward give? Final hidden states and residuals of the tokens that are asked for, and no more.

The vocabulary comes last and apart: `Head` turns final hidden states into logits, so that a loss projects what it
needs, in pieces (`chunked.py`), whenever it wants to.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from efface.errors import UserError
from efface.layout import Layout
from efface.models import capture_residuals, decoder_blocks


@dataclass
class Forward:
    """What one forward gave, whatever the layout: rows follow the logical order of the batch."""

    hidden: Tensor
    """(N, d) after the final norm, at the N positions whose logits were asked for, in row-major order."""
    residuals: dict[int, Tensor]
    """layer -> (M, d), the residual stream after that block at the M captured tokens, in row-major order."""


def forward(
    model: nn.Module, layout: Layout, project: Tensor, layers: Sequence[int] = (), capture: Tensor | None = None
) -> Forward:
    """One forward of all rows of `layout`; the output head never runs.

    If no position is projected the forward ends after the highest of `layers`.

    Args:
        model: any causal language model, possibly wrapped (DDP): the wrapper is what is called.
        layout: where the tokens stand.
        project: (rows, T) bool in logical places: whose final hidden states are wanted.
        layers: the blocks whose residual stream is wanted.
        capture: (rows, T) bool in logical places: the tokens whose residuals are wanted.
    """
    inner = unwrap(model)
    handles = []
    with final_states(inner) as final, capture_residuals(inner, layers) as residuals:
        if layers and not project.any():
            handles.append(decoder_blocks(inner)[max(layers)].register_forward_hook(_stop))
        try:
            model(
                input_ids=layout.input_ids,
                attention_mask=layout.attention_mask,
                position_ids=layout.position_ids,
                use_cache=False,
            )
        except _Stopped:
            pass
        finally:
            for handle in handles:
                handle.remove()
        # Within the context: a hook that gradient checkpointing runs again must not find the dict changed.
        found = {} if capture is None else {layer: layout.take(residuals[layer], capture) for layer in layers}
    hidden = layout.take(final[0], project) if final else torch.empty(0, device=project.device)
    return Forward(hidden, found)


@contextlib.contextmanager
def final_states(inner: Any) -> Iterator[list[Tensor]]:
    """Within the context every forward of the unwrapped model `inner` adds its final hidden states (batch, T, d),
    those after the final norm, to the yielded list; the output head never runs."""
    final: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        final.append(args[0])
        return (args[0][:, :0],)  # what follows projects nothing

    handle = inner.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield final
    finally:
        handle.remove()


class _Stopped(Exception):
    """The highest layer that was asked for is reached."""


def _stop(module: nn.Module, args: Any, output: Any) -> None:
    raise _Stopped


@dataclass
class Head:
    """Final hidden states -> logits, as the model itself does it: weight and bias of the output embedding, then the
    model's own code (soft-capping of Gemma 2, scale of Cohere)."""

    weight: Tensor
    """(V, d)"""
    bias: Tensor | None
    finish: Callable[[Tensor], Tensor]
    """(N, V) -> (N, V): what the model does after the output embedding; without parameters."""

    @classmethod
    def of(cls, model: nn.Module) -> "Head":
        """The head of `model`, sharing its parameters."""
        inner = unwrap(model)
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        linear = inner.get_output_embeddings()
        if type(linear) is not nn.Linear:
            raise UserError(
                f"the output head is a {type(linear).__name__}, not a plain linear map: it cannot be adapted (LoRA, "
                "modules_to_save) or quantised. Leave it out of --lora_target_modules."
            )
        # A shallow copy whose body hands through what it is given: what is left is the model's own code around it.
        shell = copy.copy(inner)
        shell._modules = dict(inner._modules)
        shell._modules[inner.base_model_prefix] = _HandThrough()
        shell.set_output_embeddings(nn.Identity())
        return cls(
            linear.weight, linear.bias, lambda scores: shell(inputs_embeds=scores.unsqueeze(0)).logits.squeeze(0)
        )

    def frozen(self) -> "Head":
        """A head that stays what it is now; copied only where the weights are trained."""

        def fixed(tensor: Tensor) -> Tensor:
            return tensor.detach().clone() if tensor.requires_grad else tensor.detach()

        return Head(fixed(self.weight), None if self.bias is None else fixed(self.bias), self.finish)

    def __call__(self, hidden: Tensor) -> Tensor:
        """(N, d) -> (N, V)."""
        return self.finish(F.linear(hidden, self.weight, self.bias))


class _HandThrough(nn.Module):
    """Stands in for the body of a causal language model."""

    @property
    def decoder(self) -> "_HandThrough":  # OPT calls the decoder inside its body
        return self

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


def unwrap(model: nn.Module) -> Any:
    """The model inside DDP or torch.compile."""
    from accelerate.utils import extract_model_from_parallel

    return extract_model_from_parallel(model, keep_fp32_wrapper=True)
