"""How is a model trained from the command line? One run directory: the checkpoint, `results.json`, room to resume.

A run begins with its plan (`efface.files.rerun`), and only once all that could be wrong with its input has been found.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from efface.data.pairs import PairsLike
from efface.data.rows import load_texts
from efface.errors import RunError, UserError
from efface.files.environment import environment
from efface.files.events import recorded
from efface.files.lock import held
from efface.files.manifest import NAME as MANIFEST
from efface.files.redaction import redacted
from efface.files.rerun import Plan, check_plan, former_run_kept, has_checkpoint, read_plan, set_aside, write_plan
from efface.files.results import RESULTS, check_output_dir, contents, prepare_output_dir, read_json, remove, write_json
from efface.model.card import write_card
from efface.model.fingerprint import fingerprint_of
from efface.training.checkpoints import SAVING, newest_whole, state_of
from efface.training.editor import PairEditor
from efface.training.inputs import base_of, model_and_tokenizer, pair_reader
from efface.training.interruption import interruptible
from efface.training.live import speak_of
from efface.training.log_book import LogBook
from efface.training.rehearsal import rehearse
from efface.training.settings import build_config, user_error_for_settings
from efface.training.trainer import PairTrainer

logger = logging.getLogger(__name__)

FREE = (
    *("logging_", "log_", "save_", "report_to", "run_name", "project", "trackio_", "hub_", "push_to_hub"),
    *(
        "disable_tqdm",
        "dataloader_num_workers",
        "dataloader_p",
        "ddp_",
        "skip_memory_metrics",
        "torch_empty_cache_steps",
    ),
)
"""How the names of settings begin that change nothing of what is trained: with other ones a run goes on."""


def train(
    trainer_class: type[PairTrainer] | type[PairEditor],
    model: str,
    pairs: PairsLike,
    output: str | os.PathLike[str],
    settings: dict[str, Any],
    *,
    method: str,
    overwrite: bool = False,
    resume: bool = False,
    command: str | None = None,
    inputs: tuple[Any, ...] = (),
    eval_pairs: PairsLike | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train `model` on `pairs` and leave the checkpoint and `results.json` in `output`.

    Args:
        trainer_class: what `load_method` gives.
        model: what `load_model` takes.
        output: a run directory.
        settings: fields of the method's configuration; the rest keeps its default.
        method: what results call it.
        overwrite: replace the run in `output`, which is kept until the new model is saved.
        resume: continue from the last whole checkpoint in `output` (from the start if there is none; a finished run is
            returned as it is), if the run was begun with the same method, settings, model and pairs.
        command: how this was called, for the record.
        inputs: what else the run reads, so that none of it lies in `output`.
        eval_pairs: held-out pairs, as `pairs`, for methods that train by steps: the loss on them is measured at the
            end (`evaluation` of the results), or more often.
        say: is told what is about to be trained, with an estimate of the memory, and then how it goes, a line a log.

    Returns:
        What was written to `results.json`.

    Raises:
        UserError: for input that cannot work, before anything in `output` is changed; naming what differs, if what is
            there was begun otherwise.
    """
    if eval_pairs is not None and issubclass(trainer_class, PairEditor):
        raise UserError(f"eval_pairs={str(eval_pairs)!r}: {method} has no loss that could be measured. Leave it out.")
    base = _base(trainer_class, model, settings)
    read = (model, pairs, eval_pairs, settings.get("retain_text"), base, *inputs)
    directory = check_output_dir(output, overwrite=overwrite, resume=resume, inputs=read)
    given = settings if base is None else settings | {"base": base}
    config = build_config(trainer_class.config_class, given, directory)
    _check_processes(trainer_class)
    finished = resume and (directory / RESULTS).exists()
    begun = resume and bool(contents(directory))
    found = _found(directory) if begun else None
    defaults = {field.name: field.default for field in dataclasses.fields(trainer_class.config_class)}
    names = _names(model, str(pairs) if isinstance(pairs, str | Path) else None)
    plan: Plan = {"method": method, "settings": redacted(_decisive(settings)), **names}
    check_plan(directory, found, plan, "a run", defaults)  # as far as nothing has to be loaded for it
    plan["pairs"] = _digest_of_data(pairs, config, trainer_class.__name__)
    new_adapter = getattr(config, "lora_r", None) is not None
    network, processing_class = model_and_tokenizer(model, None, use_cpu=config.use_cpu, new_adapter=new_adapter)
    plan["model"] = fingerprint_of(network)
    check_plan(directory, found, plan, "a run", defaults)
    if finished:
        logger.warning("%s holds a finished run; nothing to resume", directory)
        _complete(directory)
        return read_json(directory / RESULTS)
    with user_error_for_settings(ValueError, ImportError):  # some of them Trainer checks itself
        held_out: dict[str, Any] = {} if eval_pairs is None else {"eval_dataset": eval_pairs}
        trainer = trainer_class(
            model=network, args=config, train_dataset=pairs, processing_class=processing_class, **held_out
        )
    if isinstance(trainer, PairTrainer):
        speak_of(trainer, say)
        rehearse(trainer)
    main_process = isinstance(trainer, PairEditor) or trainer.is_world_process_zero()
    with contextlib.ExitStack() as stack:
        if main_process:  # the others find what it has made
            prepare_output_dir(directory, resume=True)
            stack.enter_context(held(directory))
            check_output_dir(output, overwrite=overwrite, resume=resume, inputs=read)  # another may just have ended
            for left in directory.glob(f"{SAVING}*"):  # by a killed process
                remove(left)
            if overwrite:
                set_aside(directory)
            write_plan(directory, plan)
        journal = stack.enter_context(recorded(directory, say, command=command))
        book = LogBook(journal)
        if isinstance(trainer, PairTrainer):
            trainer.add_callback(book)
            trainer.accelerator.wait_for_everyone()
        described = trainer.describe()  # on every process, which looks at the model before its weights may be cut
        for line in described if main_process else ():
            journal(f"{method}: {line}")
        start = time.monotonic()
        with former_run_kept(directory, main_process=main_process, begun=has_checkpoint):
            _train(trainer, directory, book, resume=begun)
            journal.stage("saving")
            trainer.save_model()
            journal.end_stage()
            evaluation = trainer.evaluate() if isinstance(trainer, PairTrainer) and eval_pairs is not None else None
        result = {
            "schema": 1,
            "method": method,
            "model": model,
            "pairs": str(pairs) if isinstance(pairs, (str, Path)) else f"{len(trainer.train_dataset)} rows",  # type: ignore[arg-type]
            "n_pairs": len(trainer.train_dataset),  # type: ignore[arg-type]
            "n_skipped_rows": trainer.n_skipped_rows,
            "settings": redacted(settings),
            "effective_settings": redacted(_effective(config)),
            "digests": {name: plan[name] for name in ("model", "pairs")},
            "seconds": None if book.before is None else round(book.before + time.monotonic() - start, 1),
            **trainer.record(),
            **({} if evaluation is None else {"evaluation": evaluation}),
            "environment": environment(seed=config.seed, model=trainer.model, command=command),
        }
        if main_process:
            write_json(directory / RESULTS, result)
            write_card(directory)
        return result


def _base(trainer_class: type[PairTrainer] | type[PairEditor], model: str, settings: dict[str, Any]) -> str | None:
    """What the method takes for the base of an edit: beside `model`, as long as it is a path, lies what names it."""
    given = settings.get("base")
    if not given and issubclass(trainer_class, PairEditor) and trainer_class.of_an_edit:
        return base_of(model)
    return given


def _complete(directory: Path) -> None:
    """Write the card and the manifest of a run that was killed between its results and them, if it can be."""
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(RunError), held(directory):
            if not (directory / MANIFEST).exists():
                write_card(directory)


def _decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that what is trained depends on."""
    return {name: value for name, value in settings.items() if not name.startswith(FREE)}


def _effective(config: Any) -> dict[str, Any]:
    """All settings that what is trained depends on, as they were in force."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        value = getattr(value, "value", value)  # of an enumeration
        plain = value is None or isinstance(value, bool | int | float | str | list | tuple)
        if plain and field.name not in ("output_dir", "local_rank") and not field.name.startswith(FREE):
            found[field.name] = value
    return found


def _names(model: str | None, pairs: str | None) -> dict[str, str | None]:
    return {"model called": model, "pairs called": pairs}


def _found(directory: Path) -> Plan | None:
    """With what the run that is there was begun, as far as it says so."""
    plan = read_plan(directory)
    if plan is not None:  # what its model and pairs were called says less than what they were
        return {name: value for name, value in plan.items() if name not in _names("", "")}
    if (directory / RESULTS).exists():  # a finished run of before there were plans says this much
        result = read_json(directory / RESULTS)
        return {
            "method": result.get("method"),
            "settings": _decisive(result.get("settings") or {}),
            **_names(result.get("model"), result.get("pairs")),
        }
    logger.warning(
        "%s does not say with what its run was begun (no plan.json: an earlier version, or killed at once); it goes "
        "on with this method, these settings, this model and these pairs, whatever they were.",
        directory,
    )
    return None


def _digest_of_data(pairs: Any, config: Any, who: str) -> str:
    """Of the pairs as they are read, and of the passages."""
    digest = hashlib.blake2b(digest_size=16)
    passages = vars(config).get("retain_text")
    for row in pair_reader(pairs, who, skip_bad_rows=config.skip_bad_rows):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    for text in load_texts(passages) if passages is not None else ():
        digest.update(json.dumps(text).encode())
    return digest.hexdigest()


def _check_processes(trainer_class: type[PairTrainer] | type[PairEditor]) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and issubclass(trainer_class, PairEditor):
        raise UserError(
            f"this method edits a model without steps that {processes} processes could share. Run it without torchrun."
        )


def _train(trainer: PairTrainer | PairEditor, directory: Path, book: LogBook, *, resume: bool) -> None:
    book.journal.stage("training")
    if isinstance(trainer, PairEditor):
        trainer.train()
        return
    checkpoint = newest_whole(directory, *trainer.checkpoint_files) if resume else None
    if resume and checkpoint is None:
        logger.warning(
            "%s holds no checkpoint (save_strategy=steps makes them); starting from the beginning", directory
        )
    if checkpoint is not None:
        state = state_of(checkpoint)
        book.go_on_from(checkpoint, state.global_step)
        if state.global_step >= state.max_steps:  # the Trainer would look at the limit only after one more step
            trainer._load_from_checkpoint(str(checkpoint))
            trainer.state = state
            return
    with interruptible(trainer):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
