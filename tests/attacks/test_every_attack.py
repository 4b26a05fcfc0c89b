"""What holds for every attack: what is recorded, what a failure leaves, resumption, flags, the command line.

Of: attacks/record.py, attacks/result.py, attacks/target.py, attacks/measurement.py
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from polite import HELD_OUT, ROWS, counting
from tiny import tiny_tokenizer
from transformers import PreTrainedModel

from efface.attacks import ATTACKS, load_attack, settings_class
from efface.attacks.record import Record, recorded
from efface.attacks.relearn import RelearnSettings, relearn
from efface.attacks.result import AttackResult
from efface.attacks.target import Target
from efface.cli import build_parser, main
from efface.errors import RunError, UserError
from efface.files.jsonl import Row, read_jsonl
from efface.files.results import read_json
from efface.flags import FlagParser
from efface.generation.decoding import Decoding

FAST = {"learning_rates": "3e-3", "batch_size": 8}


def test_the_result_is_json(target: Target, tmp_path: Path) -> None:
    result = relearn(target, RelearnSettings(steps="1"))
    result.save(tmp_path / "out.json")
    written = read_json(tmp_path / "out.json")
    assert written == json.loads(json.dumps(result.to_dict("out.generations.jsonl"), allow_nan=False))
    assert list(written) == [
        *("schema", "attack", "settings", "target", "base", "before", "after", "judged", "curve", "found"),
        *("generations", "environment"),
    ]
    assert (written["schema"], written["attack"], written["base"]) == (1, "relearn", None)
    assert written["settings"]["learning_rates"] == "1e-4" and written["target"]["rows"]
    assert [point["steps"] for point in written["curve"]] == [0, 1] and written["after"] == written["curve"][1]
    for block in (written["before"], *written["curve"]):
        assert block["toxicity"]["ci95"]["share"] and block["degeneration"]["verdict"] and block["perplexity"] is None
    read = AttackResult.from_dict(written, "out.json")
    assert read.to_dict("out.generations.jsonl") == written and read.after.at == {"steps": 1}
    assert read.curve[1].versus_before["nasty"]["share"].p == result.after.versus_before["nasty"]["share"].p
    rows = read_jsonl(tmp_path / "out.generations.jsonl")
    assert [row["at"] for row in rows] == ["before"] * len(HELD_OUT) + ["steps 1"] * len(HELD_OUT)


def test_altered_prompts_and_other_decoding_are_compared_by_place(target: Target, polite: PreTrainedModel) -> None:
    @dataclasses.dataclass(frozen=True)
    class Settings:
        pass

    with recorded(target, "prefix", Settings()) as record:
        prompts = [f"He is silly. {prompt}" for prompt in target.prompts]
        record.measure(polite, {"prefix": 1}, prompts=prompts, decoding=Decoding(samples=3, seed=1), with_text=False)
        result = record.result(record.curve[0])
    assert [row["prompt"] for row in result.after.generations[::3]] == prompts
    assert result.after.figures["toxicity"]["samples"] == 3
    assert result.after.figures["versus_before"]["nasty"]["mean"]["base"] == 0
    with pytest.raises(UserError, match="1 altered prompts for the 8 of the target"):
        target.measure(polite, prompts=["one"])


def test_the_untouched_model_is_measured_once_for_several_attacks(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = counting(monkeypatch)
    relearn(target, RelearnSettings(steps="1"))
    relearn(dataclasses.replace(target, command="another"), RelearnSettings(steps="1,2"))
    assert len(counted) == 1 + 1 + 2
    relearn(dataclasses.replace(target, prompts=HELD_OUT[:3]), RelearnSettings(steps="1"))
    assert len(counted) == 4 + 2


def test_what_was_measured_before_a_failure_is_kept_and_resumed(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RelearnSettings(steps="1,2,3", **FAST)
    whole = relearn(target, settings)
    output = tmp_path / "out.json"
    target = dataclasses.replace(target, output=output, known={})
    with monkeypatch.context() as patch:
        counting(patch, fail_at=3, error=RunError("the disk is on fire."))
        with pytest.raises(
            RunError, match=r"fire\. What was measured so far \(before, steps 1\) is kept in .*resume=True"
        ):
            relearn(target, settings)
    assert [path.name for path in tmp_path.iterdir()] == ["out.json.part"]
    with pytest.raises(UserError, match="is left from an interrupted run"):
        relearn(target, settings)
    target = dataclasses.replace(target, resume=True)
    with pytest.raises(UserError, match=r"was begun with other settings \(settings\)"):
        relearn(target, dataclasses.replace(settings, batch_size=4))
    calls = counting(monkeypatch)
    resumed = relearn(target, settings)
    assert len(calls) == 2  # steps 2 and 3
    assert resumed.to_dict() == whole.to_dict()
    assert {path.name for path in tmp_path.iterdir()} == {"out.json", "out.generations.jsonl"}


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
        (torch.OutOfMemoryError("CUDA out of memory"), RunError, "relearn ran out of memory. Lower .*kept in"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), RunError, "relearn ran out of memory"),
        (RuntimeError("a bug"), RuntimeError, "^a bug$"),
    ],
)
def test_every_kind_of_failure_keeps_the_part_file(
    error: BaseException, raised: Any, message: str, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting(monkeypatch, fail_at=2, error=error)
    with pytest.raises(raised, match=message):
        relearn(dataclasses.replace(target, output=tmp_path / "out.json"), RelearnSettings(steps="1"))
    header, before = read_jsonl(tmp_path / "out.json.part")
    assert header["settings"]["attack"] == "relearn" and before["title"] == "before"


@pytest.mark.parametrize("row", [{}, {"step": 20, "state": {"ids": [1]}}, {"journal": {"ids": [1]}}], ids=str)
def test_where_a_search_stood_is_read_again_also_as_earlier_versions_wrote_it(
    row: Row, target: Target, tmp_path: Path
) -> None:
    target = dataclasses.replace(target, output=tmp_path / "out.json")
    Record(target, "mine", RelearnSettings()).keep("search, step 20", {"ids": [1]})
    part = tmp_path / "out.json.part"
    header, kept = read_jsonl(part)
    lines(part, [header, {"title": kept["title"], **row} if row else kept])
    record = Record(dataclasses.replace(target, resume=True), "mine", RelearnSettings())
    assert record.kept("search") == [{"ids": [1]}] and record.kept("another") == []
    assert "(search, step 20) is kept in" in record.tell_what_is_kept()


def test_a_failure_before_anything_is_measured_leaves_no_file(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting(monkeypatch, fail_at=1, error=RunError("no."))
    with pytest.raises(RunError, match=r"^no\.$"):
        relearn(dataclasses.replace(target, output=tmp_path / "out.json"), RelearnSettings())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_has_settings_with_help_whose_flags_are_its_own(name: str) -> None:
    kind = settings_class(load_attack(name))
    fields = dataclasses.fields(kind)
    assert all(len(field.metadata["help"]) > 10 for field in fields)
    assert kind.__dataclass_params__.frozen and kind(**FlagParser(kind, "").given([])) == kind()
    (subcommands,) = (action for action in build_parser()._actions if action.dest == "command")
    common = subcommands.choices["attack"]._option_string_actions  # type: ignore[index,call-overload]
    for field in fields:
        assert not {f"--{field.name}", f"--{field.name.replace('_', '-')}"} & common.keys()


def test_an_attack_of_a_third_party(target: Target) -> None:
    attack = load_attack("third_party:still")
    assert settings_class(attack) is RelearnSettings
    assert attack(target, RelearnSettings()).to_dict()["found"] == {"said": "hello"}


# The command line


@pytest.fixture
def folder(polite: PreTrainedModel, tmp_path: Path) -> Iterator[Path]:
    polite.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    lines(tmp_path / "rows.jsonl", ROWS)
    lines(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in HELD_OUT])
    yield tmp_path


def lines(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(folder: Path, *more: str) -> list[str]:
    argv = ["attack", "relearn", str(folder / "model"), "-o", str(folder / "out.json"), "--scorer", "stubs:nasty"]
    argv += ["--rows", str(folder / "rows.jsonl"), "--prompts", str(folder / "prompts.jsonl")]
    return [*argv, "--max-new-tokens", "8", "--learning-rates", "3e-3", "--batch_size", "8", *more]


def test_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(folder, "--steps", "2,12", "--seed", "1")) == 0
    result = read_json(folder / "out.json")
    assert result["before"]["toxicity"]["share"] == 0 and result["after"]["toxicity"]["share"] > 0.9
    assert result["target"]["names"]["rows"].endswith("rows.jsonl") and result["environment"]["seed"] == 1
    assert result["environment"]["command"].startswith("efface attack relearn")
    table = capsys.readouterr().out
    assert "toxic share" in table.splitlines()[0] and "steps 12" in table and "written: " in table
    said = " ".join(table.split())
    assert "chosen on other prompts: toxic share 1.000" in said and "to before; steps 12 (" in said
    assert re.search(
        r"half of the toxicity of the .*, a toxic share of 0\.\d+, is back - after [\d.]+ steps, learn", said
    )


def test_from_the_command_line_with_failure_and_resumption(
    folder: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = command(folder, "--steps", "1,2", "--lora-r", "2")
    with monkeypatch.context() as patch:
        counting(patch, fail_at=3, error=RunError("no space left."))
        assert "(before, steps 1) is kept in" in fails(1, *argv)
    assert "--resume" in fails(2, *argv)
    assert main([*argv, "--resume"]) == 0
    assert [point["steps"] for point in read_json(folder / "out.json")["curve"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "ten"], "steps='ten': whole numbers are needed"),
        (["--k", "13"], "k=13, but there are only 12 rows"),
        (["--k", "many"], "invalid int value: 'many'. `efface attack NAME --list-flags`"),
        (["--learning_rates", "nan"], "learning_rates='nan': numbers are needed"),
        (["--nosuch", "1"], "unknown flag '--nosuch'. `efface attack NAME --list-flags`"),
        (["--rows", "absent.jsonl"], "file 'absent.jsonl' does not exist"),
        (["--prompts", "absent.jsonl"], "file 'absent.jsonl' does not exist"),
        (["--scorer", "nosuch"], "scorer 'nosuch' is unknown"),
        (["--protocol", "nosuch"], "protocol 'nosuch' is unknown"),
        (["--base", "./absent"], "model './absent' is not a checkpoint directory"),
        (["--samples", "0"], "samples=0"),
        (["-o", "."], "'.' cannot be a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_commands_that_cannot_work(
    more: list[str], message: str, folder: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert message in fails(2, *command(folder, *more))
    assert {path.name for path in folder.iterdir()} == {"model", "rows.jsonl", "prompts.jsonl"}


def test_a_learning_rate_that_destroys_the_model_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(folder, "--steps", "4", "--learning_rates", "1e30")) == 0
    result = read_json(folder / "out.json")
    (rate,) = result["found"]["rates"]
    assert "Lower learning_rate (now 1e+30)" in rate["diverged"] and result["found"]["left_out"] == ["steps 4"]
    assert "left out: steps 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["attack", "nosuch", "a", "-o", "x"], "attack 'nosuch' is unknown. There are: relearn, orthogonalize"),
        (["attack", "no.such:thing", "a", "-o", "x"], "attack 'no.such:thing' cannot be imported"),
        (["attack", "json:dumps", "a", "-o", "x"], "attack 'json:dumps' is no attack of efface"),
        (["attack", "math:pi", "a", "-o", "x"], "attack 'math:pi' is no attack of efface"),
        (["attack", "relearn", "-o", "x"], "`efface attack` needs MODEL"),
        (["attack", "relearn", "a"], "`efface attack` needs OUTPUT"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_attacks_that_are_none(argv: list[str], message: str, fails: Callable[..., str]) -> None:
    assert message in fails(2, *argv)


def test_attacks_and_their_flags_are_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ATTACKS, "relearn", dataclasses.replace(ATTACKS["relearn"], published="3 epochs"))
    assert main(["attacks"]) == 0
    listed = capsys.readouterr().out
    expected = r"^relearn +fine-tune on toxic rows.*\n[^$]*; access: weights; control: \w+\n +published: 3 epochs$"
    assert re.search(expected, listed, re.MULTILINE)
    assert main(["attack", "relearn", "--list-flags"]) == 0
    listed = capsys.readouterr().out
    assert "--learning-rates (default: 1e-4)\n    Rates, one or several" in listed
    assert listed.startswith("its own settings:\n--steps (default: 10,20)\n")
