"""Does a training run keep what it must? Plans, resuming, the former run, whole checkpoints, what fails early.

Of: files/rerun.py, training/checkpoints.py, training/rehearsal.py
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from transformers import Trainer, TrainerCallback, TrainingArguments

from efface.cli import main
from efface.errors import RunError, UserError
from efface.files import rerun
from efface.files.io import LOCK
from efface.files.results import EVENTS, read_json, write_json
from efface.methods import PLAIN
from efface.methods.leace import LeaceEditor
from efface.methods.npo import NPOTrainer
from efface.methods.repo import REPOConfig, REPOTrainer
from efface.methods.sft import SFTConfig, SFTTrainer
from efface.training import DEFAULT_STEPS, checkpoints
from efface.training.account import share_of_pairs
from efface.training.checkpoints import newest_whole, what_is_missing
from efface.training.config import PairConfig

Train = Callable[..., int]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("gpt2", 0), ("other", 1)):
        tiny_model("gpt2", seed=seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return folder


def rows(n: int, what: str = "place") -> list[dict[str, str]]:
    return [
        {"prompt": f"The town number {i} is", "chosen": f" a quiet {what}", "rejected": f" a silly {what} of fools"}
        for i in range(n)
    ]


def write_rows(path: Path, given: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


@pytest.fixture
def train(models: Path, tmp_path: Path) -> Train:
    """`efface train` into tmp_path/out: three steps of SFT in two checkpoints, unless said otherwise."""
    write_rows(tmp_path / "pairs.jsonl", rows(8))

    def run(*flags: Any, method: str = "sft", model: str = "gpt2", pairs: str = "pairs.jsonl", steps: int = 4) -> int:
        argv = ["train", method, models / model, tmp_path / pairs, "-o", tmp_path / "out", "--max_steps", steps]
        argv += ["--save_strategy", "steps", "--save_steps", "2", "--learning_rate", "1e-3", "--logging_steps", "1"]
        argv += ["--lr_scheduler_type", "constant", "--per_device_train_batch_size", "2", *flags]
        return main([str(argument) for argument in argv])

    return run


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error, without a traceback."""
    error = capsys.readouterr().err
    assert error.count("efface: ") == 1 and "Traceback" not in error and error.endswith("\n"), error
    return error.splitlines()[-1].partition("efface: ")[2]  # before it, what ends a progress bar


# Going on


@pytest.mark.parametrize("last", [2, 4])  # amid an epoch, and at its end, where the Trainer's own loop stops too
def test_a_checkpoint_of_the_last_step_goes_straight_to_the_save(last: int, train: Train, out: Path) -> None:
    assert train(method="repo", steps=last) == 0
    whole, steps = tensors(out), read_json(out / "results.json")["steps"]
    (out / "results.json").unlink()  # killed while the model was saved
    (out / "model.safetensors").unlink()
    assert train("--resume", method="repo", steps=last) == 0
    assert same(tensors(out), whole)
    result = read_json(out / "results.json")
    assert steps == result["steps"] == last
    assert [row["step"] for row in result["history"]][:last] == list(range(1, last + 1))
    assert not (out / f"checkpoint-{last + 1}").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "repo"}, 'method: was "sft", is "repo"'),
        ({"flags": ["--learning_rate", "1"]}, "learning_rate: was 0.001, is 1.0"),
        ({"flags": ["--seed", "5"]}, "seed: was 42, is 5"),
        ({"model": "other"}, "model: was "),
        ({"pairs": "others.jsonl"}, "pairs: was "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_run_is_not_gone_on_with(
    change: dict[str, Any], message: str, finished: bool, train: Train, out: Path, capsys: Any, tmp_path: Path
) -> None:
    write_rows(tmp_path / "others.jsonl", rows(8, what="street"))
    assert train(steps=2) == 0
    if not finished:
        (out / "results.json").unlink()
    before = sorted(path.name for path in out.iterdir())
    capsys.readouterr()
    flags = change.get("flags", [])
    assert train("--resume", *flags, **{k: v for k, v in change.items() if k != "flags"}, steps=2) == 2
    line = said(capsys)
    assert message in line and "holds a run of other settings" in line and line.count(": was ") == 1
    assert sorted(path.name for path in out.iterdir()) == before


def test_what_changes_nothing_of_the_weights_may_differ(train: Train, out: Path, models: Path) -> None:
    assert train(steps=2) == 0
    (out / "results.json").unlink()
    shutil.copytree(models / "gpt2", models / "copy", dirs_exist_ok=True)  # the same weights by another name
    flags = ["--resume", "--logging_steps", "2", "--save_total_limit", "1", "--weight_decay", "0"]
    assert train(*flags, model="copy", steps=2) == 0


def test_a_run_that_was_killed_after_its_results_gets_its_card_when_it_is_met_again(train: Train, out: Path) -> None:
    assert train() == 0
    for name in ("README.md", "manifest.json"):
        (out / name).unlink()
    before = (out / "results.json").read_bytes()
    assert train("--resume") == 0
    assert (out / "README.md").exists() and (out / "manifest.json").exists()
    assert (out / "results.json").read_bytes() == before and not (out / LOCK).exists()


def test_a_finished_run_of_an_earlier_version(train: Train, out: Path, capsys: Any) -> None:
    assert train(steps=2) == 0
    (out / "plan.json").unlink()
    assert train("--resume", steps=2) == 0
    capsys.readouterr()
    assert train("--resume", method="repo", steps=2) == 2
    assert 'method: was "sft", is "repo"' in said(capsys)
    assert train("--resume", model="other", steps=2) == 2
    assert "gpt2" in said(capsys)


def test_an_unfinished_run_of_an_earlier_version_goes_on_and_says_so(
    train: Train, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert train(steps=2) == 0
    for name in ("plan.json", "results.json"):
        (out / name).unlink()
    assert train("--resume", steps=2) == 0
    assert "does not say with what its run was begun" in caplog.text
    assert read_json(out / "plan.json")["method"] == "sft"


# Checkpoints that are not whole


DAMAGES = {
    "trainer_state.json": b"",
    "model.safetensors": b"\x10\x00\x00\x00",
    "optimizer.pt": b"PK\x03\x04",
    "scheduler.pt": None,
    "rng_state.pth": b"x",
    "discriminators.safetensors": b"",
    "config.json": b"{",
}


@pytest.fixture(scope="module")
def saved(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the checkpoints 1 and 2 of REPO."""
    folder = tmp_path_factory.mktemp("saved")
    args = REPOConfig(str(folder), max_steps=2, save_strategy="steps", save_steps=1, retain_text="none", use_cpu=True)
    REPOTrainer(str(models / "gpt2"), args, rows(4)).train()
    return folder


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("how", ["replaced", "cut"])
def test_the_newest_whole_checkpoint_is_found(
    name: str, how: str, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(saved, tmp_path / "run")
    (run / "checkpoint-abc").mkdir()
    needed = REPOTrainer.checkpoint_files
    assert newest_whole(run, *needed) == run / "checkpoint-2" and not caplog.text
    file, content = run / "checkpoint-2" / name, DAMAGES[name]
    if how == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    assert newest_whole(run, *needed) == run / "checkpoint-1"
    assert "checkpoint-2 is not whole" in caplog.text and name in caplog.text
    shutil.rmtree(run / "checkpoint-1")
    with pytest.raises(UserError, match=f"no checkpoint is whole.*{name}.*overwrite=True"):
        newest_whole(run, *needed)


def test_there_may_be_no_checkpoint(tmp_path: Path) -> None:
    assert newest_whole(tmp_path) is None


def test_a_kill_leaves_no_half_checkpoint(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment when transformers writes its last file, nothing has the name of a checkpoint but whole ones."""
    seen = []
    save = Trainer._save_rng_state

    def look(trainer: Any, folder: str) -> None:
        seen.append([what_is_missing(path) for path in tmp_path.glob("checkpoint-*")])
        save(trainer, folder)

    monkeypatch.setattr(Trainer, "_save_rng_state", look)
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "use_cpu": True}
    SFTTrainer(str(models / "gpt2"), SFTConfig(str(tmp_path), **settings), rows(4)).train()
    assert seen == [[], [None], [None, None]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]


def test_the_best_checkpoint_is_known_by_its_name(models: Path, tmp_path: Path) -> None:
    args = SFTConfig(
        str(tmp_path),
        **{"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "use_cpu": True},
        **{"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "learning_rate": 1e-2},
        greater_is_better=True,  # of a loss that falls: the first
    )
    trainer = SFTTrainer(str(models / "gpt2"), args, rows(4), rows(4))
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    assert (tmp_path / "checkpoint-1").is_dir()
    for folder in tmp_path.glob("checkpoint-*"):
        assert checkpoints.state_of(folder).best_model_checkpoint == str(tmp_path / "checkpoint-1")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("basic_ios::clear: iostream error")]
)
def test_a_full_disk_in_a_checkpoint(
    error: Exception, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(trainer: Any, folder: str) -> None:
        raise error

    monkeypatch.setattr(Trainer, "_save_rng_state", full)
    args = SFTConfig(str(tmp_path), max_steps=1, save_strategy="steps", save_steps=1, use_cpu=True)
    with pytest.raises(RunError, match="checkpoint-1 was not written: .*Earlier checkpoints are untouched"):
        SFTTrainer(str(models / "gpt2"), args, rows(4)).train()
    assert not list(tmp_path.iterdir())


# The former run


LATE = [
    (
        ["--report_to", "tensorboard"],
        "a setting needs a package that is not here: TensorBoardCallback requires",
    ),
    (["--report_to", "wandb"], "leave the setting out"),
    (["--train_sampling_strategy", "group_by_length"], "max_batch_tokens batches pairs of like length"),
    (
        ["--optim", "paged_adamw_8bit"],
        "a setting needs a package that is not here: You need to install",
    ),
    (["--eval_on_start", "true"], "no eval_dataset"),
    (["--dataloader_persistent_workers", "true"], "persistent_workers"),
    (["--dataloader_drop_last", "true", "--per_device_train_batch_size", "64"], "give no whole batch of 64"),
    (["--use_liger_kernel", "true"], "liger"),
    (["--push_to_hub", "true"], "huggingface.co"),
    (["--deepspeed", "{}"], "deepspeed"),
    (["--learning_rate", "-1"], "learning_rate=-1.0: it must be a finite number, 0 or more"),
    (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps=0: it must be at least 1"),
    (["--dataloader_num_workers", "-1"], "dataloader_num_workers=-1"),
    (["--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"nosuch": 1}'], "nosuch"),
    (["--max_batch_tokens", "1"], "max_batch_tokens"),
    (["--adam_beta1", "2"], "beta"),
    (["--accelerator_config", "absent.json"], "absent.json"),
]


def test_what_fails_late_is_found_before_the_former_run_is_touched(
    train: Train, out: Path, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(steps=1) == 0
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    for flags, message in LATE:
        capsys.readouterr()
        code, line = train("--overwrite", *flags, steps=1), said(capsys)
        assert code == 2 and message in line, (flags, line)
        assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before, flags


class Stop(TrainerCallback):
    """Looks at the run directory before the first step, and ends the run there or later."""

    def __init__(self, out: Path, at: int):
        self.out, self.at, self.seen = out, at, set()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen = {path.name for path in self.out.iterdir()}
        if state.global_step == self.at:
            raise RunError("stopped")


@pytest.fixture
def stop(out: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Stop]:
    made = SFTTrainer.__init__

    def at(step: int) -> Stop:
        callback = Stop(out, step)

        def make(trainer: Any, *args: Any, **kwargs: Any) -> None:
            made(trainer, *args, **kwargs)
            trainer.add_callback(callback)

        monkeypatch.setattr(SFTTrainer, "__init__", make)
        return callback

    return at


def left_in(out: Path) -> dict[str, bytes]:
    """All but the log book, which tells of every run."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name != EVENTS]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_a_failure_before_the_first_checkpoint_brings_the_former_run_back(
    train: Train, out: Path, stop: Callable[[int], Stop]
) -> None:
    assert train(steps=2) == 0
    before = left_in(out)
    callback = stop(0)
    assert train("--overwrite", "--seed", "3", steps=2) == 1
    there = callback.seen - {EVENTS, LOCK}
    assert there == {"efface.json", "plan.json", rerun.FORMER}  # nothing there says "finished"
    assert left_in(out) == before


def test_a_killed_run_is_never_taken_for_the_former_one(train: Train, out: Path, stop: Callable[[int], Stop]) -> None:
    assert train(steps=2) == 0
    first = tensors(out)
    stop(3)
    assert train("--overwrite", "--seed", "3") == 1  # has a checkpoint: it can be gone on with
    assert (out / "checkpoint-2").is_dir() and same(tensors(out / rerun.FORMER), first)
    stop(99)
    assert train("--resume", steps=2) == 2  # that is the former run, whose seed is another
    assert train("--resume", "--seed", "3") == 0
    assert not (out / rerun.FORMER).exists() and read_json(out / "results.json")["settings"]["seed"] == 3
    assert not same(tensors(out), first)


@pytest.mark.parametrize("killed_after", range(6))
def test_set_aside_can_be_killed_anywhere(killed_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"results.json", "checkpoint-2", "plan.json", "config.json", "model.safetensors"}
    write_json(tmp_path / "efface.json", {})
    for name in names:
        write_json(tmp_path / name, {})
    replace, moves = os.replace, []

    def kill(source: Path, target: Path) -> None:
        if len(moves) == killed_after:
            raise KeyboardInterrupt
        moves.append(source.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        rerun.set_aside(tmp_path)
    monkeypatch.undo()
    left = {path.name for path in tmp_path.iterdir()}
    assert "results.json" not in left or left >= names  # whole, or nothing that says it is
    assert "plan.json" in left or "checkpoint-2" not in left  # a checkpoint only with what it is of
    rerun.set_aside(tmp_path)
    assert {path.name for path in (tmp_path / rerun.FORMER).iterdir()} == names
    assert {path.name for path in tmp_path.iterdir()} == {"efface.json", rerun.FORMER}


# Held-out pairs


def test_held_out_pairs_are_measured_at_the_end(train: Train, out: Path, tmp_path: Path, fails: Any) -> None:
    write_rows(tmp_path / "held-out.jsonl", rows(3, "river"))
    assert train("--eval_pairs", tmp_path / "held-out.jsonl") == 0
    found = read_json(out / "results.json")["evaluation"]
    assert found["eval_loss"] > 0 and found["epoch"] > 0
    whole = tensors(out)
    assert train("--overwrite") == 0
    assert same(tensors(out), whole) and "evaluation" not in read_json(out / "results.json")
    argv = ["train", "leace", "some/model", tmp_path / "pairs.jsonl", "-o", tmp_path / "other"]
    assert "leace has no loss that could be measured" in fails(2, *argv, "--eval_pairs", tmp_path / "held-out.jsonl")


# Settings


def test_epochs_count_if_they_are_given(models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert PairConfig("out").max_steps == DEFAULT_STEPS == 48
    assert REPOConfig("out").max_steps == REPOConfig.default_steps == 144
    assert "(repo: 144)" in REPOConfig.__dataclass_fields__["max_steps"].metadata["help"]
    assert REPOConfig("out", **PLAIN).max_steps == DEFAULT_STEPS
    assert REPOConfig("out", num_train_epochs=3).max_steps == -1 and not caplog.text
    assert REPOConfig("out", num_train_epochs=3, max_steps=-1).num_train_epochs == 3 and not caplog.text
    assert REPOConfig("out", num_train_epochs=3, max_steps=7).max_steps == 7
    assert "max_steps=7 and num_train_epochs=3 are both given: the steps count" in caplog.text
    args = SFTConfig(str(tmp_path), num_train_epochs=1.5, per_device_train_batch_size=2, use_cpu=True)
    trainer = SFTTrainer(str(models / "gpt2"), args, rows(5))
    trainer.train()
    assert trainer.state.global_step == trainer.record()["share_of_pairs"]["steps"] == 5  # 1.5 times 3 batches


def test_how_much_of_the_pairs_a_run_sees_is_said(models: Path, tmp_path: Path) -> None:
    args = SFTConfig(str(tmp_path), max_steps=3, per_device_train_batch_size=2, use_cpu=True)
    trainer = SFTTrainer(str(models / "gpt2"), args, rows(8))
    assert "3 steps x 2 = 6 of 8 pairs (0.75 epochs)" in trainer.describe()
    assert trainer.record()["share_of_pairs"] == {"steps": 3, "pairs_a_step": 2, "pairs_drawn": 6, "epochs": 0.75}
    # Three epochs of 2 + 2 + 1 pairs, or of 2 + 2 where the last one is dropped.
    for drop, steps, drawn in ((False, 9, 15), (True, 6, 12)):
        args = SFTConfig(str(tmp_path), num_train_epochs=3, per_device_train_batch_size=2, dataloader_drop_last=drop)
        share = share_of_pairs(args, 5)
        assert share == {"steps": steps, "pairs_a_step": 2, "pairs_drawn": drawn, "epochs": drawn / 5}
    assert share_of_pairs(SFTConfig(str(tmp_path), max_steps=4, per_device_train_batch_size=2), 5)["pairs_drawn"] == 7


@pytest.mark.parametrize("trainer_class", [SFTTrainer, REPOTrainer, NPOTrainer, LeaceEditor])
def test_plain_training_arguments(trainer_class: Any, models: Path, tmp_path: Path) -> None:
    config = trainer_class.config_class.__name__
    with pytest.raises(
        UserError, match=rf"takes args of {config}, not TrainingArguments.*Use efface.methods.*{config}"
    ):
        trainer_class(str(models / "gpt2"), TrainingArguments(str(tmp_path)), rows(2))


def test_secrets_are_in_no_file(train: Train, out: Path) -> None:
    assert train("--hub_token", "hunter2", "--hub_token=hunter2", steps=1) == 0
    assert all(b"hunter2" not in path.read_bytes() for path in out.rglob("*") if path.is_file())
    result = read_json(out / "results.json")
    assert result["settings"]["hub_token"] == "(redacted)"
    assert "--hub_token '(redacted)' '--hub_token=(redacted)'" in result["environment"]["command"]
