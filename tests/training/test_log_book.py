"""Does the log book of a training tell its steps and checkpoints while it goes on, also over an interruption?"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import tiny_model, tiny_tokenizer
from transformers import TrainerCallback

from efface.cli import main
from efface.files.events import Journal, read_events
from efface.files.results import EVENTS, read_json, write_json
from efface.methods.sft import SFTTrainer
from efface.training.log_book import SPENT, LogBook


def state(step: int) -> Any:
    return SimpleNamespace(global_step=step, max_steps=10)


def test_a_row_says_the_step_its_terms_and_how_long_it_takes(tmp_path: Path) -> None:
    now = [100.0]
    book = LogBook(Journal(tmp_path, print), clock=lambda: now[0])
    book.on_train_begin(None, state(2), None)
    book.on_log(None, state(2), None, logs={"loss": 1.0})
    now[0] += 8.0
    book.on_log(None, state(4), None, logs={"loss": 0.5, "learning_rate": 1e-4, "epoch": 0.1})
    book.on_log(None, state(4), None, logs={"epoch": 0.1})
    book.on_save(None, state(4), None)
    first, second, saved = read_events(tmp_path)
    assert first["seconds_left"] is None and (second["step"], second["of"], second["seconds_left"]) == (4, 10, 24.0)
    assert second["terms"] == {"loss": 0.5, "learning_rate": 1e-4}
    assert (saved["event"], saved["checkpoint"]) == ("checkpoint saved", "checkpoint-4")


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    tiny_model("gpt2").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"The town {i} is", "chosen": " a quiet place", "rejected": " a silly one"} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = ["sft", str(tmp_path / "model"), str(tmp_path / "pairs.jsonl"), "-o", str(tmp_path / "out")]
    flags = "--max_steps 4 --save_strategy steps --save_steps 2 --logging_steps 1 --use_cpu true".split()
    return ["train", *named, *flags, "--hub_token", "hf_hunter2"]


class Interrupt(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


@contextlib.contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within, training is interrupted in its fourth step."""
    made = SFTTrainer.__init__

    def make(trainer: Any, *given: Any, **more: Any) -> None:
        made(trainer, *given, **more)
        trainer.add_callback(Interrupt())

    with monkeypatch.context() as patch:
        patch.setattr(SFTTrainer, "__init__", make)
        yield


def test_a_run_that_is_interrupted_and_goes_on(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "out"
    with interrupted(monkeypatch):
        assert main(argv) == 130
    rows = read_events(out)
    assert [row["event"] for row in rows if row["event"] not in ("told", "warning")] == [
        *("begin", "stage begin", "log", "log", "checkpoint saved", "log", "interrupted"),
    ]
    assert "checkpoint-2 is kept" in rows[-1]["reason"] and rows[0]["command"].startswith("efface train sft ")
    assert any("trains " in row["line"] for row in rows if row["event"] == "told")
    assert main([*argv, "--resume"]) == 0
    later = read_events(out)[len(rows) :]
    assert [row["event"] for row in later if row["event"] != "told"] == [
        *("begin", "stage begin", "resumed", "log", "log", "checkpoint saved", "log"),
        *("stage end", "stage begin", "stage end", "end"),
    ]
    resumed = next(row for row in later if row["event"] == "resumed")
    assert (resumed["checkpoint"], resumed["step"]) == ("checkpoint-2", 2)
    assert [row["step"] for row in later if row["event"] == "log"][:2] == [3, 4]
    losses = [row["loss"] for row in read_json(out / "results.json")["history"] if "loss" in row]
    assert [row["terms"]["loss"] for row in later if "loss" in row.get("terms", {})] == losses[-2:]
    assert b"hunter2" not in (out / EVENTS).read_bytes()
    assert EVENTS not in read_json(out / "manifest.json")["files"]


@pytest.mark.parametrize(("said", "told"), [({"seconds": 1000.0}, " in 100"), (None, ""), ({"seconds": "x"}, "")])
def test_seconds_are_those_of_all_parts_or_nobody_knows(
    said: Any, told: str, argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Else a run that was interrupted would be the cheapest of a comparison."""
    out = tmp_path / "out"
    with interrupted(monkeypatch):
        assert main(argv) == 130
    file = out / "checkpoint-2" / SPENT
    assert read_json(file)["seconds"] >= 0
    file.unlink()
    if said is not None:
        write_json(file, said)
    assert main([*argv, "--resume"]) == 0
    seconds = read_json(out / "results.json")["seconds"]
    assert (seconds is None) == (not told) and (seconds is None or seconds > 1000)
    assert (out / "checkpoint-4" / SPENT).exists() == bool(told)
    assert f"sft trained for 4 steps{told}" in capsys.readouterr().out
