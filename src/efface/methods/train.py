"""How is a model trained from the command line? One run directory: the checkpoint, `results.json`, room to resume."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from efface.methods.base import PairTrainer
from efface.methods.edit import PairEditor
from efface.methods.settings import build_config, user_error_for_settings
from efface.results import RESULTS, environment, prepare_output_dir, read_json, write_json

logger = logging.getLogger(__name__)


def train(
    trainer_class: type[PairTrainer] | type[PairEditor],
    model: str,
    pairs: Any,
    output: Path,
    settings: dict[str, Any],
    *,
    method: str,
    overwrite: bool = False,
    resume: bool = False,
    command: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train `model` on `pairs` and leave the checkpoint and `results.json` in `output`.

    Args:
        settings: fields of the method's configuration; the rest keeps its default.
        resume: continue from the last checkpoint in `output` (from the start if there is none; a finished run is
            returned as it is).
        say: is told the estimate of memory before the first step.

    Returns:
        What was written to `results.json`.
    """
    # What the user may have got wrong is checked before anything in the output directory is deleted.
    prepare_output_dir(output, overwrite=False, resume=resume or overwrite)
    config = build_config(trainer_class.config_class, settings, output)
    with user_error_for_settings(ValueError):  # some of them Trainer checks itself
        trainer = trainer_class(model=model, args=config, train_dataset=pairs)
    directory = prepare_output_dir(output, overwrite=overwrite, resume=resume)
    if resume and (directory / RESULTS).exists():
        logger.warning("%s holds a finished run; nothing to resume", directory)
        return read_json(directory / RESULTS)
    checkpoint = _last_checkpoint(directory) if resume else None
    if resume and checkpoint is None:
        logger.warning(
            "%s holds no checkpoint (--save_strategy steps makes them); starting from the beginning", directory
        )
    for line in trainer.describe():
        say(f"{method}: {line}")
    start = time.monotonic()
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    result = {
        "schema": 1,
        "method": method,
        "model": model,
        "pairs": str(pairs) if isinstance(pairs, (str, Path)) else f"{len(trainer.train_dataset)} rows",  # type: ignore[arg-type]
        "n_pairs": len(trainer.train_dataset),  # type: ignore[arg-type]
        "n_skipped_rows": trainer.n_skipped_rows,
        "settings": settings,
        "seconds": round(time.monotonic() - start, 1),
        **trainer.record(),
        "environment": environment(seed=config.seed, model=trainer.model, command=command),
    }
    write_json(directory / RESULTS, result)
    return result


def _last_checkpoint(directory: Path) -> str | None:
    """The newest whole checkpoint: transformers writes the trainer's state last, so a killed save is without it."""
    whole = [file.parent for file in directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")]
    return str(max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]))) if whole else None
