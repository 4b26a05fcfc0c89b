"""Must a model compute again what it has computed before? Blocks below a change give back what they gave.

Whoever changes a block and lets the model read the same text again needs the blocks above it alone. What a model gives
on a text that it has not read is computed whole.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from efface.model.blocks import decoder_blocks


@dataclass
class Text:
    """One batch as a model has read it."""

    embedded: Tensor
    """(batch, T, d) what the first block was given."""
    given: list[Any] = field(default_factory=list)
    """What each block itself gave, whatever its form and before any hook changed it: hooks come after it again."""


@contextlib.contextmanager
def remembered(model: nn.Module) -> Iterator[list[Text]]:
    """Within the context what every block of the unwrapped `model` gives is kept, forward by forward: (batch, T, d)
    floats for each block."""
    texts: list[Text] = []
    blocks = decoder_blocks(model)

    def begin(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        texts.append(Text(_states(args, named).detach()))

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        texts[-1].given.append(output)

    handles = [blocks[0].register_forward_pre_hook(begin, with_kwargs=True)]
    handles += [block.register_forward_hook(keep, prepend=True) for block in blocks]
    try:
        yield texts
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def begun_at(model: nn.Module, layer: int, texts: list[Text]) -> Iterator[None]:
    """Within the context the blocks of the unwrapped `model` below `layer` are not computed on `texts`, which a model
    with the same weights up to there has read; on others they are."""
    below = decoder_blocks(model)[:layer]
    own = [(block, vars(block).get("forward")) for block in below]  # accelerate puts one into the instance
    now: list[Text] = []

    def forward_of(number: int, computed: Any) -> Any:
        def forward(*args: Any, **named: Any) -> Any:
            if number == 0:
                states = _states(args, named)
                now[:] = [
                    text for text in texts if text.embedded.shape == states.shape and text.embedded.equal(states)
                ]
            return now[0].given[number] if now else computed(*args, **named)

        return forward

    for number, block in enumerate(below):
        block.forward = forward_of(number, block.forward)
    try:
        yield
    finally:
        for block, forward in own:
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _states(args: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    return args[0] if args else named["hidden_states"]
