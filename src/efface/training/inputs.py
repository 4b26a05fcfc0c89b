"""What does a method start from? A model, its reference, pairs and passages, tokenised; batches under a budget."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from efface.data.buckets import TokenBudgetBatchSampler
from efface.data.dataset import PairDataset, PassageStream
from efface.data.pairs import PairReader
from efface.data.rows import load_texts
from efface.data.store import PairStore
from efface.data.tokens import tokens_of
from efface.errors import UserError
from efface.files.results import RESULTS, read_json
from efface.model.copies import check_adapter
from efface.model.load import load_model, tokenizer_of
from efface.model.vocabulary import check_vocabulary
from efface.training.config import PairConfig

logger = logging.getLogger(__name__)


def pair_reader(source: Any, who: str, *, skip_bad_rows: bool) -> PairReader:
    """A reader of the pairs whose first row is known to be good: a wrong path is reported before a model is loaded."""
    if source is None:
        raise UserError(f"{who} needs train_dataset: a pairs file, a dataset id or a list of dicts.")
    rows = PairReader(source, skip_bad_rows=skip_bad_rows)
    rows.begin()
    return rows


def model_and_tokenizer(
    model: Any, tokenizer: PreTrainedTokenizerBase | None, *, use_cpu: bool, new_adapter: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model by its name, or as it is; with its own tokenizer unless one is given.

    An adapter that is loaded here is trained on.

    Args:
        new_adapter: the model is to get one.

    Raises:
        UserError: if there is no such model, if `model` is no causal language model, one with an adapter that is to
            get another, or one whose adapter cannot be told from it.
    """
    if isinstance(model, str | os.PathLike):
        model, its_own = load_model(model, device="cpu" if use_cpu else None, trainable=True)
        tokenizer = tokenizer or its_own
    is_model = isinstance(model, nn.Module) and hasattr(model, "config")
    if not is_model:
        raise UserError(
            f"model is a {type(model).__name__}; it must be a causal language model of transformers, or what "
            "`load_model` takes: an id, a directory, a .gguf file."
        )
    check_adapter(model)
    if new_adapter and hasattr(model, "peft_config"):
        raise UserError(
            "the model has an adapter already, and lora_r or peft_config asks for another, which would be saved as "
            "one of the base without it. Merge it first (model.merge_and_unload()) and save that as a model of its "
            "own, or leave them out to train the adapter that is there."
        )
    if hasattr(model, "peft_config") and model.active_peft_config.is_prompt_learning:
        raise UserError(
            f"the model has an adapter of type {model.active_peft_config.peft_type.value}, whose virtual tokens shift "
            "all positions: it cannot be trained here. Use the model without it."
        )
    if tokenizer is None:
        tokenizer = tokenizer_of(model)
    check_vocabulary(model, tokenizer)
    return model, tokenizer


def given_reference(ref_model: Any, model: Any, *, use_cpu: bool) -> PreTrainedModel | None:
    """The reference that the caller gives, loaded if it is named; None if it is to be the initial policy.

    Raises:
        UserError: if it is the policy itself, or cannot be compared with it.
    """
    if isinstance(ref_model, str | os.PathLike):
        ref_model, _ = load_model(ref_model, device="cpu" if use_cpu else None)
    if ref_model is None:
        return None
    if ref_model is model:
        raise UserError(
            "model and ref_model are the same object, which would be trained and frozen at once. Leave ref_model out: "
            "the reference then is the model as it is now."
        )
    sizes = [one.config.get_text_config(decoder=True).vocab_size for one in (model, ref_model)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"ref_model has a vocabulary of {sizes[1]} and model one of {sizes[0]}: there is no KL between them. Pass "
            "a reference with the model's own tokenizer."
        )
    return ref_model


def make_dataset(
    rows: PairReader,
    passages: list[list[int]],
    args: PairConfig,
    tokenizer: PreTrainedTokenizerBase,
    sides: tuple[str, ...],
    *,
    max_positions: int | None = None,
) -> PairDataset:
    """All pairs of `rows`, tokenised to disk, and the `passages` that go with them.

    Args:
        max_positions: of the model; longer pairs are cut, see `tokenize_pair`.
    """
    pairs = PairStore.build(
        rows,
        tokenizer,
        max_prompt_length=args.max_prompt_length,
        max_completion_length=args.max_completion_length,
        max_positions=max_positions,
        progress=not args.disable_tqdm,
    )
    return PairDataset(pairs, passages, sides)


def tokenize_passages(
    texts: list[str] | None, args: PairConfig, tokenizer: PreTrainedTokenizerBase, *, max_positions: int | None = None
) -> list[list[int]]:
    """Token ids of ordinary passages: of `texts`, or if that is None of the file in `args.retain_text`.

    Args:
        max_positions: of the model; no passage is longer.
    """
    if texts is None and args.retain_text is not None:
        texts = load_texts(args.retain_text)
    elif texts:
        texts = load_texts(texts)
    length = args.retain_text_tokens
    if texts and max_positions is not None and length > max_positions:
        logger.warning(
            "retain_text_tokens=%d is more than the model's %d positions: passages are cut to those.",
            length,
            max_positions,
        )
        length = max_positions
    passages = [tokens_of(tokenizer, text)[:length] for text in texts or []]
    passages = [ids for ids in passages if len(ids) > 1]
    if texts and not passages:
        raise UserError("retain_text has no passage of two tokens or more.")
    return passages


def deal_passages(n_passages: int, args: PairConfig, batch_size: int) -> PassageStream:
    """Which of the passages stand in which micro-batch of `batch_size` pairs."""
    per_batch = max(round(args.retain_text_per_pair * batch_size), args.retain_text_per_pair > 0)
    return PassageStream(n_passages, int(per_batch), args.seed if args.data_seed is None else args.data_seed)


def budget_loader(
    dataset: PairDataset, args: PairConfig, batch_size: int, collate: Callable[[Any], Any]
) -> tuple[DataLoader, TokenBudgetBatchSampler]:
    """Batches of pairs of like length, at most `batch_size` and `args.max_batch_tokens`, and their sampler."""
    assert args.max_batch_tokens is not None and isinstance(dataset.pairs, PairStore)
    prompt, *sides = dataset.pairs.lengths.T  # each (n,)
    sampler = TokenBudgetBatchSampler(
        2 * (prompt + np.maximum(*sides)),  # both rows of a pair, as wide as the longer
        max_pairs=batch_size,
        max_tokens=args.max_batch_tokens,
        seed=args.seed if args.data_seed is None else args.data_seed,
        drop_last=args.dataloader_drop_last,
    )
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
    )
    return loader, sampler


def base_of(model: Any) -> str:
    """What the results beside a trained model call the one that it was made from.

    Raises:
        UserError: if there are none.
    """
    results = Path(str(model)) / RESULTS
    if isinstance(model, str | Path) and results.is_file():
        found = read_json(results, {"model": str})["model"]
        return str(found)
    raise UserError(
        "this method is about an edit, and nothing says of which model the given one is an edit. Pass base=MODEL, the "
        "model that it was made from."
    )
