"""How is a checkpoint written, and from which one does a run go on? Whole or not at all; from the newest whole one.

It is written to a folder of its own and renamed, so that a kill leaves none half-written. A power cut still can, and
so could earlier versions: whether one is whole is asked before it is gone on from, at the cost of reading it once.
"""

import contextlib
import json
import logging
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import Trainer, TrainerState
from transformers.trainer import (
    FSDP_MODEL_NAME,
    OPTIMIZER_NAME,
    OPTIMIZER_NAME_BIN,
    SCHEDULER_NAME,
    TRAINER_STATE_NAME,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from efface.errors import RunError, UserError, reason_of
from efface.model.save import save_model
from efface.training.metrics import raise_if_not_finite

logger = logging.getLogger(__name__)

WEIGHTS = "*.safetensors"
STATES = (TRAINER_STATE_NAME, OPTIMIZER_NAME, SCHEDULER_NAME)
"""Without these, training would go on as another run than it was."""
CUT = f"{FSDP_MODEL_NAME}.bin"
"""The weights once more, which accelerate writes, and reads, where they are cut into parts (FSDP); beside it stands
another file of the optimizer."""


SAVING = ".saving-"
"""How the names of folders begin in which something is being written; left there, it is of a killed process."""


class WholeCheckpoints(Trainer):
    """A trainer whose checkpoints are whole or not there, of finite weights, and read by any version of transformers.

    A class of its own, since all of it overrides `Trainer`.
    """

    _saving: Path | None = None
    """Where a checkpoint is being written."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        raise_if_not_finite(self.model, self.state.global_step)  # type: ignore[arg-type]
        place = Path(super()._get_output_dir(trial))
        folder = place / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if not self.args.push_to_hub:  # which reads the folder while training goes on
            self._saving = place / f"{SAVING}{folder.name}"  # the same on every process
        try:
            self._alone(self._clear)
            super()._save_checkpoint(model, trial)
            self._alone(lambda: self._finish(folder))
        except BaseException as error:
            self._clear()
            if self._saving is None:
                shutil.rmtree(folder, ignore_errors=True)
            # torch.save reports a full disk as a RuntimeError of its zip writer, or of the stream under it.
            writer = any(name in str(error) for name in ("PytorchStreamWriter", "inline_container", "iostream error"))
            if isinstance(error, OSError | SafetensorError) or writer:
                raise RunError(
                    f"{folder} was not written: {reason_of(error)}. Earlier checkpoints are untouched."
                ) from error
            raise
        finally:
            self._saving = None

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            tokenizer: Any = self.processing_class
            within_run = self._saving is not None
            where = output_dir or str(self.args.output_dir)
            save_model(model, tokenizer, where, within_run=within_run, state_dict=state_dict)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._saving is None else str(self._saving)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        cut = (Path(resume_from_checkpoint) / CUT).is_file()
        if cut != self.accelerator.is_fsdp2:
            was, here = ("with", "without") if cut else ("without", "with")
            raise UserError(
                f"{resume_from_checkpoint} was written {was} FSDP, and training runs {here} it. Launch it as it was "
                "begun."
            )
        with _without_code(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _without_code(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _without_code(checkpoint):
            super()._load_rng_state(checkpoint)

    def _alone(self, do: Callable[[], None]) -> None:
        """On the process that writes, while the others wait."""
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            do()
        self.accelerator.wait_for_everyone()

    def _clear(self) -> None:
        if self._saving is not None:
            shutil.rmtree(self._saving, ignore_errors=True)

    def _finish(self, folder: Path) -> None:
        """Give what is written its name, and delete what is more than `save_total_limit`."""
        if self._saving is None:
            return
        best = folder.with_name(f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
        if best == folder or best.is_dir():  # transformers has looked for it beside the folder it wrote to
            self.state.best_model_checkpoint = str(best)
            self.state.save_to_json(str(self._saving / folder.name / TRAINER_STATE_NAME))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(self._saving / folder.name, folder)
        self._clear()
        rotate_checkpoints(str(folder.parent), self.args.save_total_limit, self.state.best_model_checkpoint)


@contextlib.contextmanager
def _without_code(checkpoint: str | None) -> Iterator[None]:
    """Inside, transformers reads with `weights_only=True`: a pickle that asks for more than numbers is not loaded."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{checkpoint} asks for code when it is read, and such is never run: it was not written by efface, or has "
            "been changed. Delete it, and --resume goes on from an earlier one."
        ) from error


def newest_whole(directory: Path, *more: str) -> Path | None:
    """The newest whole checkpoint in `directory`; None if there is none at all. Of others it is warned.

    Args:
        more: files that the method keeps in a checkpoint, beside those of all.

    Raises:
        UserError: if there are checkpoints, but none that is whole.
    """
    broken = []
    for folder in _newest_first(directory):
        reason = what_is_missing(folder, more)
        if reason is None:
            return folder
        logger.warning("%s is not whole: %s. Looking for an older one.", folder, reason)
        broken.append(f"{folder} ({reason})")
    if broken:
        raise UserError(
            f"training cannot go on: no checkpoint is whole. {'; '.join(broken)}. Pass overwrite=True to begin anew, "
            "or train from a checkpoint's model into a new directory."
        )
    return None


def _newest_first(directory: Path) -> list[Path]:
    folders = [folder for folder in directory.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if folder.is_dir()]
    numbered = {folder: folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-") for folder in folders}
    return sorted(
        (folder for folder, number in numbered.items() if number.isascii() and number.isdigit()),
        key=lambda folder: int(numbered[folder]),
        reverse=True,
    )


def what_is_missing(folder: Path, more: Sequence[str] = ()) -> str | None:
    """Why a checkpoint cannot be gone on from, or None."""
    cut = (folder / CUT).is_file()
    states = (OPTIMIZER_NAME_BIN if cut and name == OPTIMIZER_NAME else name for name in STATES)
    for name in (*states, *more):
        if not (folder / name).is_file():
            hint = " (saved with save_only_model?)" if name != TRAINER_STATE_NAME else ""
            return f"it holds no {name}{hint}"
    weights = [file for file in folder.glob(WEIGHTS) if file.name not in more]
    if not weights:
        return "it holds no weights"
    for file in sorted(folder.iterdir()):
        try:
            _check(file)
        except Exception as error:  # a damaged file makes its reader raise anything
            return f"{file.name} is damaged: {reason_of(error)}"
    return None


def _check(file: Path) -> None:
    """Raises whatever the reader of a file like this raises, if it is cut off or something else."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as tensors:  # compares the size of the file with what its header says
            if not tensors.keys():
                raise SafetensorError("it holds no tensors")
    elif file.suffix in (".pt", ".pth", ".bin"):  # torch's zip archives
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"{damaged} in it has another checksum")
    elif file.name == TRAINER_STATE_NAME:
        state_of(file.parent)
    elif file.suffix == ".json":
        json.loads(file.read_text(encoding="utf-8"))


def state_of(folder: Path) -> TrainerState:
    """Where training stood at a checkpoint."""
    state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
    if not (isinstance(state.global_step, int) and isinstance(state.max_steps, int)):
        raise ValueError("it does not say at which step")
    return state
