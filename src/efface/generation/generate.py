"""What does a model write after a prompt?

Results come back in the caller's order and do not depend on the batches, sampled ones neither (`warp.py`), up to the
rounding of the model's logits. The caller's tokenizer and the global random state are left as they were.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from efface.data.tokens import decode_continuation
from efface.errors import UserError
from efface.generation.decoder import Decoder, end_ids
from efface.generation.decoding import VLLM, Decoding
from efface.generation.likelihood import MAX_LOGITS
from efface.generation.processes import shared
from efface.generation.prompts import encode_prompts
from efface.generation.vllm import written_by_vllm
from efface.generation.warp import GREEDY, Warp, draw_uniforms
from efface.model.copies import eval_mode
from efface.model.padding import batches_by_length
from efface.model.precision import read_in
from efface.model.vocabulary import pad_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Tokens held at once, in the cache or on their way through the model: about 200 sequences of 40, above which two cores
# are no faster. A token of SmolLM2-135M takes 46 KB of cache in float32, one of a 7B model without shared heads 1 MB.
MAX_TOKENS_AT_ONCE = 8192


@dataclass
class Continuation:
    """What the model wrote after a prompt."""

    text: str
    """As it stands behind the prompt, without special tokens."""
    token_ids: list[int]
    """The new tokens alone, up to and including the end-of-sequence token if there is one, without padding."""


def generate(
    model: "PreTrainedModel | str | os.PathLike[str]",
    processing_class: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    decoding: Decoding = Decoding(),
    *,
    batch_size: int | None = None,
    max_tokens_at_once: int | None = MAX_TOKENS_AT_ONCE,
    progress: bool = False,
    **settings: Any,
) -> list[list[str]]:
    """The text of the continuations of each prompt. See `generate_ids`, which also gives the token ids.

    Args:
        model: see `generate_ids`.
        processing_class: the tokenizer.
        decoding: how many samples, how long, greedy or drawn.
        batch_size, max_tokens_at_once: how much goes through the model at once, see `generate_ids`.
        progress: show a bar.
        settings: fields of `decoding` by their names, as a shortcut: `generate(model, tokenizer, prompts, samples=4)`.

    Returns:
        For each prompt its `samples` texts, without the prompt.

    Raises:
        UserError, RunError: as `generate_ids`.
    """
    rows = generate_ids(
        model,
        processing_class,
        prompts,
        replace(decoding, **settings),
        batch_size=batch_size,
        max_tokens_at_once=max_tokens_at_once,
        progress=progress,
    )
    return [[continuation.text for continuation in row] for row in rows]


def generate_ids(
    model: "PreTrainedModel | str | os.PathLike[str]",
    processing_class: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    decoding: Decoding = Decoding(),
    *,
    batch_size: int | None = None,
    max_tokens_at_once: int | None = MAX_TOKENS_AT_ONCE,
    progress: bool = False,
) -> list[list[Continuation]]:
    """The continuations of each prompt, `decoding.samples` of them.

    Sampled tokens come from one number for each (seed, place of the prompt in the list, sample, step): two models that
    get the same list and seed are compared with common random numbers.

    Args:
        model: a model; the name of a checkpoint where `decoding` has vLLM write, which batches by itself.
        processing_class: the tokenizer.
        decoding: how many samples, how long, greedy or drawn.
        batch_size: sequences at once, at most (a prompt with 4 samples is 4 sequences).
        max_tokens_at_once: a batch of n sequences holds n * (its longest prompt + max_new_tokens) tokens, at most so
            many. One sequence is always taken. None leaves it to `batch_size`. Besides, a batch never has more logits
            than `likelihood.MAX_LOGITS`.
        progress: show a bar.

    Raises:
        UserError: for settings or prompts that cannot work.
        RunError: if the model's output is not finite.
    """
    samples, max_new_tokens, seed = decoding.samples, decoding.max_new_tokens, decoding.seed
    temperature, top_p, top_k = decoding.temperature, decoding.top_p, decoding.top_k
    if min(samples, max_new_tokens, 1 if batch_size is None else batch_size) < 1 or seed < 0:
        raise UserError(
            f"samples={samples}, max_new_tokens={max_new_tokens}, batch_size={batch_size}, seed={seed}: "
            "the first three must be at least 1, the seed at least 0."
        )
    if max_tokens_at_once is not None and max_tokens_at_once < 1:
        raise UserError(f"max_tokens_at_once={max_tokens_at_once}: it must be at least 1, or None for no such bound.")
    if decoding.sampled and not (temperature > 0 and 0 < top_p <= 1 and top_k >= 0):
        raise UserError(
            f"temperature={temperature}, top_p={top_p}, top_k={top_k}: the first must be above 0, the second in "
            "(0, 1], the third at least 0 (0 for no such limit)."
        )
    if samples > 1 and not decoding.sampled:
        raise UserError(f"samples={samples} with do_sample=False gives {samples} equal texts. Sample, or ask for one.")
    if decoding.generator == VLLM:
        return [
            [Continuation(decode_continuation(processing_class, context, ids), ids) for ids in several]
            for context, several in written_by_vllm(model, processing_class, prompts, decoding, progress=progress)
        ]
    if isinstance(model, str | os.PathLike):
        raise UserError(f"model {os.fspath(model)!r} is a name, which vLLM alone takes here: pass load_model of it.")
    encoded = encode_prompts(model, processing_class, prompts, decoding, room=max_new_tokens)
    rows = MAX_LOGITS // model.config.get_text_config(decoder=True).vocab_size
    batches = batches_by_length(
        [(number, sample) for number in range(len(encoded)) for sample in range(samples)],
        lambda sequence: len(encoded[sequence[0]]) + max_new_tokens,
        rows if batch_size is None else min(rows, batch_size),
        max_tokens=max_tokens_at_once,
    )
    warp = replace(Warp(temperature, top_k, top_p) if decoding.sampled else GREEDY, without=decoding.without)
    decoder = Decoder(model, warp, pad_id(processing_class, model), end_ids(model, processing_class))

    def write(batch: list[tuple[int, int]]) -> list[tuple[str, list[int]]]:
        """Text and token ids of each sequence."""
        numbers = list(dict.fromkeys(number for number, _ in batch))
        places = {number: place for place, number in enumerate(numbers)}
        new = decoder.decode(
            [encoded[number] for number in numbers],
            [places[number] for number, _ in batch],
            draw_uniforms(seed, batch, max_new_tokens),
        )
        return [
            (decode_continuation(processing_class, encoded[number], ids), ids)
            for (number, _), ids in zip(batch, new, strict=True)
        ]

    with eval_mode(model), read_in(model, decoding.dtype):
        done = shared(batches, write, "generate", of=lambda: [encoded, decoding.to_dict()], show=progress)
    return [[Continuation(*done[number, sample]) for sample in range(samples)] for number in range(len(encoded))]
