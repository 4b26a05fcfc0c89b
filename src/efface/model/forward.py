"""What does one forward give? Final hidden states and residuals of the tokens that are asked for, and no more.

The vocabulary comes last and apart: `Head` turns final hidden states into logits, so that a loss projects what it
needs, in pieces (`chunked.py`), whenever it wants to.
"""

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.errors import UserError
from efface.model.blocks import accepted, capture_residuals, decoder_blocks, states_in, unwrap
from efface.model.families import AnyOutput, StandIn
from efface.model.layout import Layout

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
"""Where a module keeps what is hooked to its forward."""


@dataclass
class Forward:
    """What one forward gave, whatever the layout: rows follow the logical order of the batch."""

    hidden: Tensor
    """(N, d) after the final norm, at the N positions whose logits were asked for, in row-major order."""
    residuals: dict[int, Tensor]
    """layer -> (M, d), the residual stream after that block at the M captured tokens, in row-major order."""
    nothing: Tensor | float = 0.0
    """A zero, which hangs in the graph on every weight of the model if that was asked for."""


def forward(
    model: nn.Module,
    layout: Layout,
    project: Tensor,
    layers: Sequence[int] = (),
    capture: Tensor | None = None,
    *,
    whole: bool = False,
) -> Forward:
    """One forward of all rows of `layout`; the output head never runs.

    If no position is projected the blocks above the highest of `layers` do not run either. The forward itself always
    runs to its end: under DDP what prepares the reduction of gradients comes after it.

    Args:
        model: any causal language model, possibly wrapped (DDP): the wrapper is what is called.
        layout: where the tokens stand.
        project: (rows, T) bool in logical places: whose final hidden states are wanted.
        layers: the blocks whose residual stream is wanted.
        capture: (rows, T) bool in logical places: the tokens whose residuals are wanted.
        whole: every block runs, whatever is projected, and `nothing` is given: where weights are cut into parts every
            process must have a gradient of the same ones.
    """
    inner = unwrap(model)
    ends = layers and not project.any() and not whole
    inputs = accepted(
        inner,
        input_ids=layout.input_ids,
        attention_mask=layout.attention_mask,
        position_ids=layout.position_ids,
        use_cache=False,
    )
    with (
        final_states(inner) as final,
        capture_residuals(inner, layers) as residuals,
        ended_after(inner, max(layers)) if ends else contextlib.nullcontext(),
    ):
        output = model(**inputs)
        # Within the context: a hook that gradient checkpointing runs again must not find the dict changed.
        found = {} if capture is None else {layer: layout.take(residuals[layer], capture) for layer in layers}
    if ends:
        return Forward(torch.empty(0, device=project.device), found)
    return Forward(layout.take(final[0], project), found, output.logits.sum() if whole else 0.0)


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


@contextlib.contextmanager
def ended_after(inner: Any, layer: int) -> Iterator[None]:
    """Within the context a forward of the unwrapped model `inner` computes no block above `layer`: each gives back
    what block `layer` gave, whatever its form.

    The output of the model, which `final_states` leaves empty, then hangs in the graph on block `layer` and on nothing
    after it. By that output DDP tells which parameters will get a gradient, and waits for no others.
    """

    def hang(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output.detach() + states_in(given[0])[:, :0, :1]  # (batch, 0, V)

    with skipped_above(inner, layer) as given:
        handle = inner.get_output_embeddings().register_forward_hook(hang)
        try:
            yield
        finally:
            handle.remove()


@contextlib.contextmanager
def skipped_above(inner: Any, layer: int) -> Iterator[list[Any]]:
    """Within the context the blocks of the unwrapped model `inner` above `layer` are not computed: each gives back
    what block `layer` gave, whatever its form, which is also the one entry of the list that is yielded.

    What comes after the blocks, norm and output head, then reads what block `layer` gave. Nor is what hangs on the
    blocks above asked (hooks, such as interventions). A cache of keys and values keeps none of them.
    """
    last, *above = decoder_blocks(inner)[layer:]
    given: list[Any] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        given[:] = [output]

    handle = last.register_forward_hook(keep)
    # accelerate puts a forward into the instance
    own = [{name: vars(block)[name] for name in ("forward", *HOOKS) if name in vars(block)} for block in above]
    for block in above:
        vars(block).update(forward=lambda *args, **kwargs: given[0], **{name: OrderedDict() for name in HOOKS})
    try:
        yield given
    finally:
        handle.remove()
        for block, kept in zip(above, own, strict=True):
            del block.forward
            vars(block).update(kept)


class Head:
    """Final hidden states -> logits, as the model itself does it: weight and bias of the output embedding, then the
    model's own code (soft-capping of Gemma 2, scale of Cohere).

    Args:
        linear: what has the weight (V, d) and the bias, or None; asked for them whenever they are used, for a model
            that is cut into parts (`fully_shard`) has other ones in each step, and whole ones only within it.
        finish: (N, V) -> (N, V), what the model does after the output embedding; without parameters.
    """

    def __init__(self, linear: Any, finish: Callable[[Tensor], Tensor]):
        self.linear, self.finish = linear, finish

    @property
    def weight(self) -> Tensor:
        """(V, d)"""
        weight: Tensor = self.linear.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        bias: Tensor | None = self.linear.bias
        return bias

    @classmethod
    def of(cls, model: nn.Module) -> "Head":
        """The head of `model`, sharing its parameters. That it is right, `head_check.check_head` tells."""
        inner = unwrap(model)
        while hasattr(inner, "get_base_model"):  # an adapter may have been put over another
            inner = inner.get_base_model()
        linear = inner.get_output_embeddings()
        if linear is None:
            raise UserError(f"{type(inner).__name__} has no output head: it is no causal language model.")
        # fully_shard gives a module a class of its own.
        kind = next(base for base in type(linear).__mro__ if not base.__name__.startswith("FSDP"))
        if kind is not nn.Linear:
            raise UserError(
                f"the output head is a {kind.__name__}, not a plain linear map: it cannot be adapted (LoRA, "
                "modules_to_save) or quantised. Leave it out of lora_target_modules."
            )
        width = inner.config.get_text_config(decoder=True).hidden_size
        # A shallow copy that skips the body and gives the scores as those of the output embedding: what is left is
        # the model's own code around both.
        scores_of = StandIn()
        shell = _replaced(inner, _path_of(inner, linear), scores_of)
        body = shell._modules[_path_of(inner, decoder_blocks(inner))[0]] = StandIn()

        def finish(scores: Tensor) -> Tensor:
            states = linear.weight.new_zeros(()).expand(1, len(scores), width)
            # Some models look at the type of the weight; it is held no longer than that.
            vars(scores_of).update(output=scores.unsqueeze(0), weight=linear.weight, bias=linear.bias)
            body.output = AnyOutput(last_hidden_state=states)
            try:
                return shell(**accepted(inner, inputs_embeds=states)).logits.squeeze(0)
            finally:
                vars(scores_of).update(output=None, weight=None, bias=None)
                body.output = None

        return cls(linear, finish)

    def frozen(self) -> "Head":
        """A head that stays what it is now; copied only where the weights are trained."""
        if not self.weight.requires_grad:
            return Head(_Untrained(self.linear), self.finish)
        copied = SimpleNamespace(weight=self.weight.detach().clone(), bias=self.bias)
        if self.bias is not None:
            copied.bias = self.bias.detach().clone()
        return Head(copied, self.finish)

    def __call__(self, hidden: Tensor) -> Tensor:
        """(N, d) -> (N, V)."""
        return self.finish(F.linear(hidden, self.weight, self.bias))


class _Untrained:
    """What `linear` has whenever it is asked for, without a gradient to it."""

    def __init__(self, linear: Any):
        self.linear = linear

    @property
    def weight(self) -> Tensor:
        weight: Tensor = self.linear.weight
        return weight.detach()

    @property
    def bias(self) -> Tensor | None:
        bias: Tensor | None = self.linear.bias
        return None if bias is None else bias.detach()


def _path_of(model: nn.Module, wanted: nn.Module) -> list[str]:
    """The names that lead from `model` to a module within it."""
    return next(name for name, module in model.named_modules() if module is wanted).split(".")


def _replaced(module: Any, path: list[str], stub: nn.Module) -> Any:
    """A copy of `module` with `stub` at `path`; what lies on the way is copied, shallowly, all else is shared."""
    shell = copy.copy(module)
    vars(shell).pop("forward", None)  # accelerate's, which would call the original
    # Its own, so that hooks that come later (fully_shard's) are the original's alone.
    vars(shell).update({name: hooks.copy() for name, hooks in vars(shell).items() if "_hooks" in name})
    shell._modules = dict(module._modules)
    first, *rest = path
    shell._modules[first] = _replaced(module._modules[first], rest, stub) if rest else stub
    return shell
