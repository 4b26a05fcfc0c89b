"""How likely does a model find a given continuation of a prompt?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from efface.errors import UserError
from efface.evaluation.batching import eval_mode, max_positions, token_nll
from efface.evaluation.prompts import Truncation, encode_prompts
from efface.head_check import check_head_once
from efface.progress import track
from efface.vocabulary import pad_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def continuation_nll(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    continuations: Sequence[str],
    *,
    batch_size: int = 32,
    max_prompt_tokens: int | None = None,
    truncation: Truncation = "last",
    chat: bool = False,
    progress: bool = False,
) -> list[tuple[float, int]]:
    """For each pair, -log p(continuation | prompt) in nats, summed over its tokens, and the number of those tokens.

    The two texts are tokenised apart and joined as ids; an empty continuation gives (0.0, 0). `max_prompt_tokens`,
    `truncation` and `chat` are those of `generate_ids`: with the same, it is the prompt that was continued.
    """
    if len(prompts) != len(continuations):
        raise UserError(f"{len(prompts)} prompts but {len(continuations)} continuations: each needs its own.")
    starts = encode_prompts(
        model, processing_class, prompts, max_prompt_tokens=max_prompt_tokens, truncation=truncation, chat=chat
    )
    ends = [processing_class(text, add_special_tokens=False, verbose=False)["input_ids"] for text in continuations]
    limit = max_positions(model)
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if limit is not None and len(start) + len(end) > limit:
            raise UserError(
                f"prompt {number} and its continuation are {len(start) + len(end)} tokens long, but the model has "
                f"{limit} positions. Shorten them."
            )
    check_head_once(model)
    results = [(0.0, 0)] * len(starts)
    order = sorted((i for i in range(len(starts)) if ends[i]), key=lambda i: -len(starts[i]) - len(ends[i]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    pad = pad_id(processing_class, model)
    with eval_mode(model):
        for batch in track(batches, "likelihood", show=progress):
            sequences = [starts[i] + ends[i] for i in batch]
            for i, losses in zip(batch, token_nll(model, sequences, [len(ends[i]) for i in batch], pad), strict=True):
                results[i] = (losses.double().sum().item(), losses.numel())
    return results
