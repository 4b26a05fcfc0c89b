"""Does Ctrl-C leave what the line says it leaves, and does the run that goes on end where the other would have?"""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer
from transformers import TrainerCallback

from efface.cli import main
from efface.files.results import write_jsonl
from efface.model.save import save_model
from efface.training.trainer import PairTrainer

STEPS = 4


class Press(TrainerCallback):
    """Ctrl-C in the middle of some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        for _ in range(self.steps.count(state.global_step + 1)):
            signal.raise_signal(signal.SIGINT)  # at once: two that are sent to a process may come as one


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """To Ctrl-C, which a shell lets what it starts in the background ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    save_model(tiny_model("llama"), tiny_tokenizer(), tmp_path / "model")
    rows = [{"prompt": f"The town {i}", "chosen": " is old.", "rejected": " is a fool."} for i in range(8)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    made = PairTrainer.__init__

    def run(out: str, *flags: str, press: tuple[int, ...] = ()) -> int:
        def with_press(self: Any, *args: Any, **given: Any) -> None:
            made(self, *args, **given)
            self.add_callback(Press(*press))

        with monkeypatch.context() as patch:
            patch.setattr(PairTrainer, "__init__", with_press)
            files = [str(tmp_path / "model"), str(tmp_path / "pairs.jsonl"), "-o", str(tmp_path / out)]
            settings = ["--max_steps", str(STEPS), "--per_device_train_batch_size", "2", "--use_cpu", "true"]
            return main(["train", "repo", *files, *settings, "--retain_text", "none", *flags])

    return run


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_the_first_saves_and_the_run_goes_on_as_if_nothing_had_happened(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert train("whole") == 0
    assert train("out", press=(2,)) == 130
    assert signal.getsignal(signal.SIGINT) is before
    kept = tmp_path / "out" / "checkpoint-2"
    assert last_line(capsys) == f"efface: interrupted. {kept} is kept: the same command with --resume goes on there."
    assert kept.is_dir() and not (tmp_path / "out" / "results.json").exists()
    assert train("out", "--resume") == 0
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_second_stops_at_once_and_says_that_nothing_is_kept(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("out", press=(2, 2)) == 130
    assert last_line(capsys).endswith("interrupted before a checkpoint was saved: nothing of this run is kept.")
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    # Or what an earlier checkpoint holds.
    assert train("out", "--resume", "--save_strategy", "steps", "--save_steps", "1", press=(3, 3)) == 130
    assert "checkpoint-2 is kept" in last_line(capsys)


def test_in_the_last_step_there_is_nothing_to_stop(train: Callable[..., int], tmp_path: Path) -> None:
    assert train("out", press=(STEPS,)) == 0
    assert (tmp_path / "out" / "results.json").exists()
