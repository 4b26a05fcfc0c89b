"""Does a run tell a person how it goes, instead of dicts and bars, and only where the command line asks for it?"""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from every_method import build
from tiny import tiny_model, tiny_tokenizer
from transformers import PrinterCallback, ProgressCallback

from efface.cli import main
from efface.training.account import _share_in_words
from efface.training.live import HEAD_EVERY, LiveLines, duration, figure, speak_of, terms_of

REPO = {
    "loss": 0.9032,
    "grad_norm": 3.0,
    "learning_rate": 1e-4,
    "adversary/balanced_accuracy/29": 0.75,
    "adversary/balanced_accuracy/8": 0.25,
    "adversary/bce/29": 0.7,
    "adversary/bce/8": 0.5,
    "erase_loss": 0.684,
    "norm_drift/29": -0.01,
    "retain_loss": 0.0213,
    "retain_text_loss": 0.03,
    "epoch": 0.3,
}


def state(step: int, of: int = 48, *, first: bool = True) -> Any:
    return SimpleNamespace(global_step=step, max_steps=of, is_world_process_zero=first)


def lines_of(*logs: tuple[int, dict[str, Any]], begun_at: int = 0, first: bool = True) -> list[str]:
    """With four seconds a step."""
    said: list[str] = []
    now = [0.0]
    live = LiveLines(said.append, clock=lambda: now[0])
    live.on_train_begin(None, state(begun_at, first=first), None)
    for step, row in logs:
        now[0] = 4.0 * (step - begun_at)
        live.on_log(None, state(step, first=first), None, logs=row)
    return said


def test_a_line_says_step_loss_parts_rate_and_times() -> None:
    head, line = lines_of((5, REPO))
    assert head.split("  ")[-1].strip() == "left" and len(head) == len(line) <= 80
    columns = dict(zip(re.split(r"\s{2,}", head.strip()), re.split(r"\s{2,}", line.strip()), strict=True))
    assert columns == {
        "step": "5/48",
        "loss": "0.903",
        "retain": "0.0213",
        "text": "0.03",
        "erase": "0.684",
        "D right": "0.5",
        "lr": "1.0e-04",
        "s a step": "4",
        "left": "3 min",
    }


def test_a_wider_terminal_shows_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (head, line) = lines_of((5, REPO))
    assert all(name in head for name in ("D bce", "norm drift", "grad norm")) and len(line) <= 200


def test_columns_are_named_again_when_others_come_and_now_and_then() -> None:
    without = {name: value for name, value in REPO.items() if name != "retain_text_loss"}
    said = lines_of((1, REPO), (2, REPO), (3, without), (4, without))
    assert [line.startswith("   step") for line in said] == [True, False, False, True, False, False]
    many = lines_of(*((step, REPO) for step in range(1, HEAD_EVERY + 3)))
    assert sum("step" in line.split() for line in many) == 2


def test_a_run_that_goes_on_counts_its_own_steps_alone() -> None:
    _, line = lines_of((44, REPO), begun_at=40)
    assert line.split()[-4:] == ["1.0e-04", "4", "16", "s"]


def test_only_the_first_process_says_anything() -> None:
    assert lines_of((5, REPO), (5, {"eval_loss": 1.0}), first=False) == []


def test_held_out_pairs_have_a_line_and_the_end_has_none() -> None:
    said = lines_of((5, {"eval_loss": 0.5, "eval_retain_loss": 0.1, "eval_runtime": 1.0, "epoch": 1.0}))
    assert said == ["step 5, held-out pairs: loss 0.5, retain 0.1"]
    assert lines_of((48, {"train_runtime": 1.0, "train_loss": 0.5})) == []


def test_short_names_and_figures() -> None:
    dpo = {"loss": 1.0, "logps/chosen": -3.0, "rewards/margins": 0.1, "rewards/accuracies": 0.5, "note": "text"}
    assert terms_of(dpo) == {"margin": 0.1, "right": 0.5, "logps/chosen": -3.0}
    assert [figure(value) for value in (0, 0.68441, 12.3456, 2.4e-5, 123456.0, float("nan"))] == [
        *("0", "0.684", "12.35", "2e-05", "1e+05", "nan"),
    ]
    assert [duration(value) for value in (40, 200, 9000)] == ["40 s", "3 min", "2.5 h"]


def test_a_trainer_in_python_keeps_what_transformers_prints_until_it_is_asked(tmp_path: Path) -> None:
    trainer = build("sft", tiny_model("gpt2"), tmp_path, max_steps=1, disable_tqdm=False)
    kinds = [type(one) for one in trainer.callback_handler.callbacks]
    assert ProgressCallback in kinds and LiveLines not in kinds
    said: list[str] = []
    speak_of(trainer, said.append)
    kinds = [type(one) for one in trainer.callback_handler.callbacks]
    assert not {ProgressCallback, PrinterCallback} & set(kinds) and kinds.count(LiveLines) == 1


@pytest.mark.parametrize("tqdm", ["false", "true"])
def test_the_command_prints_lines_and_no_dicts(tqdm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"The town {i}", "chosen": " is quiet", "rejected": " is full of fools"} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["train", "repo", str(tmp_path / "model"), str(tmp_path / "pairs.jsonl"), "-o", str(tmp_path / "out")]
    argv += ["--max_steps", "3", "--logging_steps", "1", "--disable_tqdm", tqdm, "--per_device_train_batch_size", "2"]
    capsys.readouterr()
    assert main(argv) == 0
    found = capsys.readouterr()
    assert found.out.count("\n") == 1 and "repo trained for 3 steps" in found.out
    assert "3 steps x 2 = 6 of 8 pairs (0.75 epochs)" in found.err
    steps = [line.split()[0] for line in found.err.splitlines() if re.match(r" +\d+/3 ", line)]
    assert steps == ["1/3", "2/3", "3/3"] and "{" not in found.err and "%|" not in found.err


@dataclasses.dataclass
class Arguments:
    train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    world_size: int = 1
    max_steps: int = 48
    num_train_epochs: float = 3
    max_batch_tokens: int | None = None
    dataloader_drop_last: bool = False


@pytest.mark.parametrize(
    ("given", "n", "said"),
    [
        ({}, 10_000, "48 steps x 8 = 384 of 10,000 pairs (0.04 epochs)"),
        (
            {"gradient_accumulation_steps": 2, "world_size": 4},
            10_000,
            "48 steps x 64 (8 x 2 accumulated x 4 processes) = 3,072 of 10,000 pairs (0.31 epochs)",
        ),
        ({"world_size": 2}, 10_000, "48 steps x 16 (8 x 2 processes) = 768 of 10,000 pairs (0.08 epochs)"),
        ({}, 96, "48 steps x 8 = 384 pairs: 4.00 epochs of 96"),
        ({"max_steps": -1}, 20, "9 steps, at most 8 each: 60 pairs: 3.00 epochs of 20"),
        ({"max_batch_tokens": 99}, 10_000, "48 steps, at most 8 each: 384 of 10,000 pairs (0.04 epochs)"),
    ],
)
def test_how_much_of_the_pairs_a_run_sees(given: dict[str, Any], n: int, said: str) -> None:
    assert _share_in_words(Arguments(**given), n) == said  # type: ignore[arg-type]
