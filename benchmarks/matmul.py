"""How fast is this machine at matrix products, how many does a step of REPO need, and where does its time go?

    python benchmarks/matmul.py        answers every line `step` on stdin with the rates of one round, in GFLOP/s

The rate is that of square fp32 `torch.mm` of 1,024 to 4,096, with torch's own number of threads. The operations are
those that the method needs, two for a multiply-add, for B pairs of P prompt and twice C continuation tokens:

    blocks         3 * 2 * B(P + 2C) * (weights of all linear layers in the decoder blocks)
                   a prompt once a pair; forward, gradient to the input, gradient to the weights
    attention      3 * 2 * (2 * (query, key) pairs that see each other * heads * head size) * blocks
                   scores and values
    head           (3 + 1) * 2 * BC * (weights of the head)
                   chosen tokens alone; the policy as in the blocks, the reference (its states are cached) forward
    discriminators 2 * (1 + discriminator_steps) * 2 * 2BC * (their weights)
                   forward and one gradient, for the model and for each update

Nothing that is computed twice, no norms, activations, softmax, KL, clipping or optimizer. The last block is counted in
full, though of prompt tokens no more than its keys and values are needed: that is generous by one or two parts in a
hundred.
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from efface.model.blocks import decoder_blocks

PAIRS, PROMPT, CONTINUATION = 8, 32, 32  # pairs in a step, tokens of a prompt and of each of its continuations
SIZES = (1024, 2048, 3072, 4096)


def main() -> None:
    operands = {size: [torch.randn(size, size) for _ in range(3)] for size in SIZES}
    print(json.dumps({"threads": torch.get_num_threads()}), flush=True)
    while sys.stdin.readline().strip() == "step":
        rates = {size: rate(*tensors) for size, tensors in operands.items()}
        print(json.dumps(rates), flush=True)


def rate(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> float:
    """GFLOP/s of a product; small ones are repeated until there is enough to measure."""
    size = len(a)
    repeats = max(1, (SIZES[-1] // size) ** 3 // 2)
    started = time.perf_counter()
    for _ in range(repeats):
        torch.mm(a, b, out=out)
    return repeats * 2 * size**3 / (time.perf_counter() - started) / 1e9


def needed_operations(trainer: Any) -> dict[str, float]:
    """Of a step of this `REPOTrainer`, from its own modules."""
    config = trainer.model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    triangle = [n * (n + 1) // 2 for n in (PROMPT, CONTINUATION)]
    seen = PAIRS * (triangle[0] + 2 * (PROMPT * CONTINUATION + triangle[1]))
    chosen, judged = PAIRS * CONTINUATION, 2 * PAIRS * CONTINUATION
    weights = sum(module.weight.numel() for module in linear_layers(decoder_blocks(trainer.model)))
    of_head = trainer.model.get_output_embeddings().weight.numel()
    of_discriminators = sum(module.weight.numel() for module in linear_layers(trainer.adversaries.discriminators))
    return {
        "blocks": 3 * 2 * PAIRS * (PROMPT + 2 * CONTINUATION) * weights,
        "attention": 3 * 2 * (2 * seen * heads * head_size) * config.num_hidden_layers,
        "head": (3 + 1) * 2 * chosen * of_head,
        "discriminators": 2 * (1 + trainer.args.discriminator_steps) * 2 * judged * of_discriminators,
    }


def linear_layers(module: nn.Module) -> Iterator[Any]:
    return (part for part in module.modules() if isinstance(part, nn.Linear | Conv1D))


# ---- profile ----

HEAD = "output head and KL"
PARTS = (  # the first that has a word in the name of an operator, or of one that it is called by
    ("discriminators' own updates", ("efface::adversary",)),
    ("clipping", ("efface::clipping",)),
    ("optimizer", ("Optimizer.step",)),
    ("embedding", ("embedding", "EmbeddingBackward")),
    (HEAD, ()),  # by the shapes of its operands
    ("attention", ("scaled_dot_product", "ScaledDotProduct", "bmm", "softmax")),
    ("linear layers of the blocks", ("aten::mm", "aten::addmm")),
    ("norms, activations, copies, the rest", ("",)),
)


def start_profiler(trainer: Any) -> torch.profiler.profile:
    """A running profiler; from now on clipping and the adversary's updates go by a name."""

    def named(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with torch.profiler.record_function(name):
                return function(*args, **kwargs)

        return call

    trainer.accelerator.clip_grad_norm_ = named("efface::clipping", trainer.accelerator.clip_grad_norm_)
    trainer.adversaries.update = named("efface::adversary", trainer.adversaries.update)
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True).__enter__()


def where_time_goes(profiler: torch.profiler.profile, model: nn.Module) -> dict[str, dict[str, float]]:
    """Shares of a step's self CPU time, largest first: of its parts, and of the 20 largest operators."""
    sizes = [size for module in linear_layers(decoder_blocks(model)) for size in module.weight.shape]
    largest = max(2 * PAIRS * (PROMPT + CONTINUATION), *sizes)
    parts: dict[str, float] = {}
    operators: dict[str, float] = {}
    for event in profiler.events():
        callers = list(_with_callers(event))
        part = next(part for part, words in PARTS if _belongs(callers, part, words, largest))
        parts[part] = parts.get(part, 0.0) + event.self_cpu_time_total
        name = f"{event.name}  ({part})"
        operators[name] = operators.get(name, 0.0) + event.self_cpu_time_total
    return {"parts": _shares(parts), "operators": dict(list(_shares(operators).items())[:20])}


def _with_callers(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _belongs(callers: list[Any], part: str, words: tuple[str, ...], largest: int) -> bool:
    if part == HEAD:  # an operand is longer than any in the blocks: the vocabulary, or a good piece of it
        shapes = (shape for event in callers for shape in event.input_shapes or [] if isinstance(shape, list))
        return any(isinstance(size, int) and size > largest for shape in shapes for size in shape)
    return any(word in event.name for event in callers for word in words)


def _shares(times: dict[str, float]) -> dict[str, float]:
    whole = sum(times.values())
    return {name: value / whole for name, value in sorted(times.items(), key=lambda item: -item[1])}


if __name__ == "__main__":
    main()
