"""What does a model write after a prompt, and how likely does it find a given continuation?

Results come back in the caller's order and do not depend on the batch size (greedy decoding, likelihood). The caller's
tokenizer and the global random state are left as they were.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from efface.data import encode_prompt
from efface.errors import UserError
from efface.evaluation.batching import eval_mode, max_positions, pad_batch, pad_id, token_nll
from efface.progress import track

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Continuation:
    """What the model wrote after a prompt."""

    text: str
    """Decoded without special tokens."""
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
    batch_size: int = 64,
    seed: int = 0,
    max_prompt_tokens: int | None = None,
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
        seed=seed,
        max_prompt_tokens=max_prompt_tokens,
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
    batch_size: int = 64,
    seed: int = 0,
    max_prompt_tokens: int | None = None,
    progress: bool = False,
) -> list[list[Continuation]]:
    """`samples` continuations of each prompt: greedy for one, nucleus sampling for several.

    Args:
        do_sample: None means `samples > 1`.
        batch_size: sequences at once (a prompt with 4 samples is 4 sequences).
        seed: of the sampling. The draw of a sequence also depends on its batch, so on `batch_size` and on the other
            prompts. The global random state is left as it was.
        max_prompt_tokens: keep only this many last tokens of a longer prompt (and the BOS before them); None keeps
            all, and a prompt that leaves no room for `max_new_tokens` is an error.

    Raises:
        UserError: for settings or prompts that cannot work.
    """
    from transformers import GenerationConfig

    sampled = samples > 1 if do_sample is None else do_sample
    if samples < 1 or max_new_tokens < 1 or batch_size < 1 or seed < 0:
        raise UserError(
            f"samples={samples}, max_new_tokens={max_new_tokens}, batch_size={batch_size}, seed={seed}: "
            "the first three must be at least 1, the seed at least 0."
        )
    if sampled and not (temperature > 0 and 0 < top_p <= 1):
        raise UserError(f"temperature={temperature}, top_p={top_p}: the first must be above 0, the second in (0, 1].")
    if samples > 1 and not sampled:
        raise UserError(f"samples={samples} with do_sample=False gives {samples} equal texts. Sample, or ask for one.")
    encoded = [
        _encode_prompt(model, processing_class, prompt, number, max_new_tokens, max_prompt_tokens)
        for number, prompt in enumerate(prompts)
    ]
    pad = pad_id(processing_class)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=sampled,
        # Everything a checkpoint's own generation_config might change is set, else generate() fills it in from there.
        temperature=1.0,  # temperature, top_k and top_p are applied by `Warp`
        top_p=1.0,
        top_k=0,
        min_p=None,
        typical_p=1.0,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_new_tokens=0,  # takes precedence over min_length
        pad_token_id=pad,
        eos_token_id=_eos_ids(model, processing_class),
        use_cache=True,
    )
    # One job per sequence, so that memory depends on batch_size alone; longest first, so that the estimate of the
    # progress bar is on the safe side and memory runs out at once or never.
    jobs = sorted(range(len(encoded) * samples), key=lambda job: -len(encoded[job // samples]))
    batches = [jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size)]
    warp = Warp(temperature, top_k, top_p) if sampled else None
    done: dict[int, Continuation] = {}
    with eval_mode(model), torch.no_grad(), _forked_rng():
        for index, batch in enumerate(track(batches, "generate", show=progress)):
            torch.manual_seed(int(np.random.SeedSequence([seed, index]).generate_state(1)[0]))
            new = _generate_batch(model, [encoded[job // samples] for job in batch], pad, config, warp)
            for job, ids in zip(batch, new, strict=True):
                done[job] = Continuation(str(processing_class.decode(ids, skip_special_tokens=True)), ids)
    return [[done[number * samples + k] for k in range(samples)] for number in range(len(encoded))]


@dataclass(frozen=True)
class Warp:
    """Temperature, then top-k, then nucleus (Holtzman et al. 2020), in this order as in transformers.

    The nucleus is looked for among the `head` most likely tokens, and among all only in rows where it is larger:
    sorting a whole vocabulary at every step cost a quarter of the sampling time.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    head: int = 512

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) logits -> (B, V), minus infinity outside of the nucleus."""
        scores = scores.float() / self.temperature
        vocabulary = scores.shape[-1]
        if 0 < self.top_k < vocabulary:
            scores = scores.masked_fill(scores < scores.topk(self.top_k).values[:, -1:], -torch.inf)
        if self.top_p >= 1.0:
            return scores
        probabilities = scores.softmax(-1)
        threshold, found = self._edge(probabilities, min(self.head, vocabulary))  # (B, 1), (B,)
        if not bool(found.all()):
            threshold[~found] = self._edge(probabilities[~found], vocabulary)[0]
        return scores.masked_fill(probabilities < threshold, -torch.inf)

    def _edge(self, probabilities: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Probability of the last token of each row's nucleus, (B, 1), and whether `size` tokens were enough, (B,)."""
        values = probabilities.topk(size).values  # (B, size), descending
        mass = values.cumsum(-1)
        last = (mass < self.top_p).sum(-1, keepdim=True).clamp(max=size - 1)
        return values.gather(-1, last), mass[:, -1] >= self.top_p


def _generate_batch(
    model: "PreTrainedModel", prompts: list[list[int]], pad: int, config: "GenerationConfig", warp: "Warp | None"
) -> list[list[int]]:
    input_ids, attention_mask = pad_batch(prompts, pad, model.device, left=True)  # (B, T)
    # generate() itself counts the positions from the attention mask, for every model that takes positions.
    output = model.generate(  # type: ignore[operator]
        input_ids=input_ids,
        attention_mask=attention_mask,
        generation_config=config,
        logits_processor=[warp] if warp else [],
    )
    ends = config.eos_token_id or []
    rows = []
    for row in output[:, input_ids.shape[1] :].tolist():  # (B, <= max_new_tokens)
        length = next((position + 1 for position, token in enumerate(row) if token in ends), len(row))
        rows.append(row[:length])
    return rows


def continuation_nll(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    continuations: Sequence[str],
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> list[tuple[float, int]]:
    """For each pair, -log p(continuation | prompt) in nats, summed over its tokens, and the number of those tokens.

    The two texts are tokenised apart and joined as ids; an empty continuation gives (0.0, 0).
    """
    if len(prompts) != len(continuations):
        raise UserError(f"{len(prompts)} prompts but {len(continuations)} continuations: each needs its own.")
    starts = [
        _encode_prompt(model, processing_class, prompt, number, 0, None) for number, prompt in enumerate(prompts)
    ]
    ends = [processing_class(text, add_special_tokens=False, verbose=False)["input_ids"] for text in continuations]
    limit = max_positions(model)
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if limit is not None and len(start) + len(end) > limit:
            raise UserError(
                f"prompt {number} and its continuation are {len(start) + len(end)} tokens long, but the model has "
                f"{limit} positions. Shorten them."
            )
    results = [(0.0, 0)] * len(starts)
    order = sorted((i for i in range(len(starts)) if ends[i]), key=lambda i: -len(starts[i]) - len(ends[i]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    pad = pad_id(processing_class)
    with eval_mode(model):
        for batch in track(batches, "likelihood", show=progress):
            sequences = [starts[i] + ends[i] for i in batch]
            for i, losses in zip(batch, token_nll(model, sequences, [len(ends[i]) for i in batch], pad), strict=True):
                results[i] = (losses.double().sum().item(), losses.numel())
    return results


@contextlib.contextmanager
def _forked_rng() -> Iterator[None]:
    # manual_seed seeds every CUDA device, so every one is restored.
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        yield


def _encode_prompt(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    prompt: str,
    number: int,
    max_new_tokens: int,
    max_prompt_tokens: int | None,
) -> list[int]:
    try:
        ids = encode_prompt(processing_class, prompt)
    except UserError as error:
        raise UserError(f"prompt {number}: {error}") from error
    if max_prompt_tokens is not None and len(ids) > max_prompt_tokens:
        kept = ids[:1] if ids[0] == processing_class.bos_token_id else []
        ids = kept + ids[len(ids) - max(max_prompt_tokens - len(kept), 1) :]
    limit = max_positions(model)
    if limit is not None and len(ids) + max_new_tokens > limit:
        raise UserError(
            f"prompt {number} has {len(ids)} tokens, with {max_new_tokens} new ones more than the model's {limit} "
            "positions. Shorten it or set max_prompt_tokens."
        )
    return ids


def _eos_ids(model: "PreTrainedModel", processing_class: "PreTrainedTokenizerBase") -> list[int] | None:
    ids = model.generation_config.eos_token_id if model.generation_config is not None else None
    if ids is None:
        ids = processing_class.eos_token_id
    return ids if ids is None or isinstance(ids, list) else [ids]
