"""Has this been written before? Generations are kept on disk with a mark of what made them, and are not made twice.

Every row of `<stem>.generations.jsonl` carries `made_by`: a hash of the model, the tokenised prompts, the
decoding, what ends it and the versions of the libraries. A run that would write the same takes the rows from there, so
a scorer that fails, or a second judge, costs no new generation; a file made by anything else is replaced. The batch
size is not part of it, since results do not depend on it.
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from efface.errors import UserError
from efface.files.digests import key_of
from efface.files.environment import versions
from efface.files.io import is_regular_file
from efface.files.jsonl import Row, read_jsonl
from efface.files.results import write_jsonl
from efface.files.shapes import Missing, check_shape
from efface.generation.decoding import VLLM, Decoding

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
ROW = {"prompt": str, "continuation": str, "token_ids": [int], "made_by": Missing(str)}
"""The shape of a line of the file."""


def generate_or_recall(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    prompts: list[str],
    decoding: Decoding,
    path: str | os.PathLike[str] | None = None,
    *,
    batch_size: int | None = None,
    max_tokens_at_once: int | None = None,
    progress: bool = False,
    checkpoint: str | None = None,
) -> list[Row]:
    """Rows of prompt, continuation and its token ids, those of a prompt in a run; from `path` if they lie there.

    Args:
        path: where the rows are kept; None keeps and looks for nothing.
        batch_size, max_tokens_at_once: of `generate_ids`; None leaves its own defaults.
        checkpoint: the name that `model` was loaded by: what vLLM reads, where it writes.

    Raises:
        UserError: as `generate_ids` does.
        RunError: if the file cannot be written.
    """
    from efface.generation.generate import generate_ids
    from efface.generation.vllm import set_aside_

    mark = None if path is None else _mark(model, processing_class, prompts, decoding)
    if path is not None and (found := _recall(Path(path), mark, len(prompts) * decoding.samples)):
        logger.info("%s holds these generations already: none is made anew", path)
        return found
    asked = {"batch_size": batch_size, "max_tokens_at_once": max_tokens_at_once}
    bounds = {name: value for name, value in asked.items() if value is not None}
    if decoding.generator == VLLM:
        with set_aside_(model):
            continuations = generate_ids(checkpoint or model, processing_class, prompts, decoding, progress=progress)
    else:
        continuations = generate_ids(model, processing_class, prompts, decoding, progress=progress, **bounds)
    rows: list[Row] = [
        {"prompt": prompt, "continuation": continuation.text, "token_ids": continuation.token_ids}
        for prompt, row in zip(prompts, continuations, strict=True)
        for continuation in row
    ]
    if path is not None:
        for row in rows:
            row["made_by"] = mark
        write_jsonl(path, rows)
    return rows


def _mark(
    model: "PreTrainedModel", processing_class: "PreTrainedTokenizerBase", prompts: list[str], decoding: Decoding
) -> str:
    from efface.generation.decoder import end_ids
    from efface.model.fingerprint import fingerprint_of

    made_by = {
        "weights": fingerprint_of(model),
        "prompts": prompts,
        "end_ids": end_ids(model, processing_class),
        # The tokenizer, by what it does here: the special ones are left out of the texts.
        "special_ids": sorted(processing_class.all_special_ids),
        "input_ids": processing_class(prompts, verbose=False)["input_ids"],
        "chat_template": processing_class.chat_template if decoding.chat else None,
        "decoding": decoding.to_dict(),
        "versions": versions(*([VLLM] if decoding.generator == VLLM else [])),
    }
    return key_of(made_by)


def _recall(path: Path, mark: str | None, n: int) -> list[Row] | None:
    """The rows of `path` without their scores, if all `n` are there and `mark` made them."""
    if not is_regular_file(path):
        return None
    try:
        rows = read_jsonl(path)
        check_shape(rows, [ROW], os.fspath(path))
    except UserError:  # no file of ours, or one that was edited: it is replaced
        return None
    if len(rows) != n or any(row.get("made_by") != mark for row in rows):
        return None
    return [{key: row[key] for key in ("prompt", "continuation", "token_ids", "made_by")} for row in rows]
