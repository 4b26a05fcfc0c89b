"""What does a model write after a prompt?

Results come back in the caller's order and do not depend on the batches, sampled ones neither (`warp.py`), up to the
rounding of the model's logits. The caller's tokenizer and the global random state are left as they were.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from efface.data.tokens import Truncation, decode_continuation
from efface.errors import UserError
from efface.generation.decoder import Decoder, end_ids
from efface.generation.likelihood import MAX_LOGITS
from efface.generation.prompts import encode_prompts
from efface.generation.warp import GREEDY, Warp, uniforms
from efface.model.copies import eval_mode
from efface.model.padding import batches_by_length
from efface.model.vocabulary import pad_id
from efface.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Tokens held at once, in the cache or on their way through the model: about 200 sequences of 40, above which two cores
# are no faster. A token of SmolLM2-135M takes 46 KB of cache in float32, one of a 7B model without shared heads 1 MB.
MAX_BATCH_TOKENS = 8192


@dataclass
class Continuation:
    """What the model wrote after a prompt."""

    text: str
    """As it stands behind the prompt, without special tokens."""
    token_ids: list[int]
    """The new tokens alone, up to and including the end-of-sequence token if there is one, without padding."""


def generate(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 20,
    samples: int = 1,
    do_sample: bool | None = None,
    top_p: float = 0.9,
    temperature: float = 1.0,
    top_k: int = 0,
    batch_size: int | None = None,
    max_batch_tokens: int | None = MAX_BATCH_TOKENS,
    seed: int = 0,
    max_prompt_tokens: int | None = None,
    truncation: Truncation = "last",
    chat: bool = False,
    without: Sequence[int] = (),
    progress: bool = False,
) -> list[list[str]]:
    """The text of `samples` continuations of each prompt. See `generate_ids`, which also gives the token ids."""
    rows = generate_ids(
        model,
        processing_class,
        prompts,
        max_new_tokens=max_new_tokens,
        samples=samples,
        do_sample=do_sample,
        top_p=top_p,
        temperature=temperature,
        top_k=top_k,
        batch_size=batch_size,
        max_batch_tokens=max_batch_tokens,
        seed=seed,
        max_prompt_tokens=max_prompt_tokens,
        truncation=truncation,
        chat=chat,
        without=without,
        progress=progress,
    )
    return [[continuation.text for continuation in row] for row in rows]


def generate_ids(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 20,
    samples: int = 1,
    do_sample: bool | None = None,
    top_p: float = 0.9,
    temperature: float = 1.0,
    top_k: int = 0,
    batch_size: int | None = None,
    max_batch_tokens: int | None = MAX_BATCH_TOKENS,
    seed: int = 0,
    max_prompt_tokens: int | None = None,
    truncation: Truncation = "last",
    chat: bool = False,
    without: Sequence[int] = (),
    progress: bool = False,
) -> list[list[Continuation]]:
    """`samples` continuations of each prompt: greedy for one, nucleus sampling for several.

    Sampled tokens come from one number for each (seed, place of the prompt in the list, sample, step): two models that
    get the same list and seed are compared with common random numbers.

    Args:
        do_sample: None means `samples > 1`.
        batch_size: sequences at once, at most (a prompt with 4 samples is 4 sequences).
        max_batch_tokens: tokens at once, at most: a batch of n sequences holds n * (its longest prompt +
            max_new_tokens). One sequence is always taken. None leaves it to `batch_size`. Besides, a batch never
            has more logits than `batching.MAX_LOGITS`.
        seed: of the sampling. The global random state is neither used nor changed.
        max_prompt_tokens: cut a longer prompt to so many tokens, with the BOS before them; None keeps all, and a
            prompt that leaves no room for `max_new_tokens` is an error. With `chat`, the message is what is cut.
        truncation: whether the "last" or the "first" tokens of a prompt that is cut are kept.
        chat: continue the answer to the prompt as a user's message, in the tokenizer's chat template.
        without: ids of tokens that are never written.

    Raises:
        UserError: for settings or prompts that cannot work.
        RunError: if the model's output is not finite.
    """
    sampled = samples > 1 if do_sample is None else do_sample
    if min(samples, max_new_tokens, 1 if batch_size is None else batch_size) < 1 or seed < 0:
        raise UserError(
            f"samples={samples}, max_new_tokens={max_new_tokens}, batch_size={batch_size}, seed={seed}: "
            "the first three must be at least 1, the seed at least 0."
        )
    if max_batch_tokens is not None and max_batch_tokens < 1:
        raise UserError(f"max_batch_tokens={max_batch_tokens}: it must be at least 1, or None for no such bound.")
    if sampled and not (temperature > 0 and 0 < top_p <= 1 and top_k >= 0):
        raise UserError(
            f"temperature={temperature}, top_p={top_p}, top_k={top_k}: the first must be above 0, the second in "
            "(0, 1], the third at least 0 (0 for no such limit)."
        )
    if samples > 1 and not sampled:
        raise UserError(f"samples={samples} with do_sample=False gives {samples} equal texts. Sample, or ask for one.")
    encoded = encode_prompts(
        model,
        processing_class,
        prompts,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        truncation=truncation,
        chat=chat,
    )
    rows = MAX_LOGITS // model.config.get_text_config(decoder=True).vocab_size
    batches = batches_by_length(
        [(number, sample) for number in range(len(encoded)) for sample in range(samples)],
        lambda sequence: len(encoded[sequence[0]]) + max_new_tokens,
        rows if batch_size is None else min(rows, batch_size),
        max_tokens=max_batch_tokens,
    )
    warp = replace(Warp(temperature, top_k, top_p) if sampled else GREEDY, without=tuple(without))
    decoder = Decoder(model, warp, pad_id(processing_class, model), end_ids(model, processing_class))
    done: dict[tuple[int, int], Continuation] = {}
    with eval_mode(model):
        for batch in track(batches, "generate", show=progress):
            numbers = list(dict.fromkeys(number for number, _ in batch))
            places = {number: place for place, number in enumerate(numbers)}
            new = decoder.decode(
                [encoded[number] for number in numbers],
                [places[number] for number, _ in batch],
                uniforms(seed, batch, max_new_tokens),
            )
            for sequence, ids in zip(batch, new, strict=True):
                text = decode_continuation(processing_class, encoded[sequence[0]], ids)
                done[sequence] = Continuation(text, ids)
    return [[done[number, sample] for sample in range(samples)] for number in range(len(encoded))]
