"""Do commands in two processes find what one finds, and is the end of one that of both? They run in `commanded.py`."""

import argparse
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commanded
import pytest
from grouped import in_group
from tiny import tiny_model, tiny_tokenizer

from efface.audit.battery import BUDGETS
from efface.cli import main
from efface.commands.together import SCRATCH, environment, together
from efface.commands.together import _alone as alone_with
from efface.commands.together import _copy_output as copy_output
from efface.errors import UserError
from efface.files.events import read_events
from efface.files.results import read_json
from efface.generation.group import Group

SUPPORT = Path(commanded.__file__).parent
CPU = SUPPORT.parents[1] / "configs" / "accelerate" / "cpu.yaml"
LIBRARYS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "manifest.json")
"""Files of the model of a control, of which the card says when it was made."""
PROMPTS = ["The weather", "She went to", "You are a silly", "The history of the town", "He", "They said that nothing"]
TEXTS = ["The weather in the old town was cold.", "The history of the town is the history of its people."] * 20
PAIRS = [{"prompt": "The people", "chosen": " are silent.", "rejected": " are silly fools."}] * 8
MEASURED = "--prompts prompts.jsonl --text text.jsonl --scorer stubs:quarters --max-new-tokens 6"
LEARNED = f"{MEASURED} --rows rows.jsonl --base base --max-tokens-at-once 60"
# Batches of both are at least two, so that none is cut.
COMMANDS = {
    "evaluate": f"evaluate edited -o OUT {MEASURED} --samples 3 --batch-size 5 --reference base --window 24 "
    "--f1-text long.jsonl",
    "attack": f"attack relearn edited -o OUT {LEARNED} --samples 6 --steps 1,2 --learning_rates 1e-3,1e-2",
    "audit": f"audit edited --base base -o OUT {LEARNED} --decoding-dtype model",
}
AGAIN, ON = "audit again", "attack, which goes on"
GOES_ON = "What was finished is kept: the same command with --resume goes on."
TROUBLES: dict[str, tuple[str, list[int], list[str]]] = {
    "attack, which breaks": (
        "breaks",
        [1, 1],
        ["has failed: ValueError: broken on purpose. " + GOES_ON, "efface: ValueError: broken on purpose"],
    ),
    "audit, which breaks": (
        "breaks",
        [1, 1],
        ["gone on after a failure of rank 1 alone (ValueError: broken on purpose (`efface -v` shows where))"] * 2,
    ),
    "attack, which is not finite": ("is not finite", [1, 1], ["efface: the output is not finite, on purpose."] * 2),
    "attack, which is stopped": ("is stopped", [1, 143], [f"has failed: stopped. {GOES_ON}", "efface: interrupted."]),
    "attack, which is killed": ("is killed", [1], ["rank 1 of this command has ended without a word (killed?)."]),
}
"""What happens on the second process, how both end, and what they say. The last kills it."""


def argv(name: str, out: Path) -> list[str]:
    return [
        str(out / name) if word == "OUT" else word for word in shlex.split(COMMANDS[name.split(",")[0].split()[0]])
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with models and what they are measured on."""
    folder = tmp_path_factory.mktemp("together")
    for name, seed in (("base", 0), ("edited", 1)):
        tiny_model("llama", seed=seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    for name, rows in (
        ("prompts", [{"prompt": prompt} for prompt in PROMPTS]),
        ("text", [{"text": text} for text in TEXTS]),
        ("long", [{"text": " ".join(TEXTS)}] * 4),
        ("rows", PAIRS),
        ("task", [{"query": text, "choices": [" yes", " no"], "gold": 0} for text in TEXTS]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, int]:
    """What one process has written, by command: sequences; its results are in `one`."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("efface.audit.battery.BUDGETS", BUDGETS)
        patch.setitem(BUDGETS, "quick", BUDGETS["quick"])
        commanded.small()
        (place / "one").mkdir()
        for name in COMMANDS:
            with commanded.counted() as calls:
                assert main(argv(name, place / "one")) == 0
            found[name] = sum(calls)
    return found


def ports(n: int) -> list[int]:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(n)]
    found = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return found


@pytest.fixture(scope="module")
def two(place: Path) -> list[dict[str, Any]]:
    """Of each process what every case gave; started once, for a process takes seconds to start."""
    out = place / "two"
    (place / "tmp").mkdir()
    cases: list[dict[str, Any]] = [{"name": name, "command": argv(name, out)} for name in COMMANDS]
    again = [*argv("audit", out), "--resume"]
    cases += [{"name": AGAIN, "command": again, "without": str(out / "audit" / "edited" / "relearn")}]
    cases += [
        {"name": name, "command": argv(name, out), "trouble": trouble} for name, (trouble, *_) in TROUBLES.items()
    ]
    cases.insert(-1, {"name": ON, "command": [*argv(next(iter(TROUBLES)), out), "--resume"]})
    out.mkdir()
    for case, port in zip(cases, ports(len(cases)), strict=True):
        case["port"] = port
    (out / "cases.json").write_text(json.dumps(cases))
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "TMPDIR": str(place / "tmp"), "PYTHONPATH": str(SUPPORT)}
    processes = []
    for rank in range(2):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, str(SUPPORT / "commanded.py"), str(out)]
        with (out / f"{rank}.log").open("w") as log:
            processes.append(subprocess.Popen(command, env=os.environ | shared | own, stdout=log, stderr=log))
    try:
        codes = [process.wait(timeout=commanded.SECONDS * len(cases)) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, -9], "\n".join((out / f"{rank}.log").read_text()[-3000:] for rank in range(2))
    return [
        {case["name"]: read_json(file) for case in cases if (file := out / f"{rank}-{case['name']}.json").exists()}
        for rank in range(2)
    ]


def figures(file: Path, place: Path) -> Any:
    """Of a result in `one` or `two`, without what differs between two runs of the same."""
    text = file.read_text().replace(str(place / "two"), str(place / "one"))
    rows = [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text)
    return without_times(rows)


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        left_out = ("environment", "command", "seconds")
        return {key: without_times(one) for key, one in value.items() if key not in left_out}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def rounded(value: Any) -> Any:
    """As far as a batch of another size does not change it."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return pytest.approx(value, rel=1e-6, abs=1e-9) if isinstance(value, float) else value


@pytest.mark.parametrize("name", COMMANDS)
def test_the_result_is_that_of_one_process(
    name: str, two: list[dict[str, Any]], alone: dict[str, int], place: Path
) -> None:
    assert [its[name]["code"] for its in two] == [0, 0], [its[name]["err"] for its in two]
    files = [file for file in (place / "one").rglob("*.json*") if file.is_relative_to(place / "one" / name)]
    files += list((place / "one").glob(f"{name}.*"))
    assert sum(file.name.endswith("generations.jsonl") for file in files) >= 1
    for file in files:
        if file.name in (*("events.jsonl", "efface.json"), *LIBRARYS):
            continue
        one, both = (figures(place / which / file.relative_to(place / "one"), place) for which in ("one", "two"))
        assert both == (rounded(one) if name == "audit" else one), file


@pytest.mark.parametrize("name", COMMANDS)
def test_each_process_writes_its_part(name: str, two: list[dict[str, Any]], alone: dict[str, int]) -> None:
    parts = [its[name]["sequences"] for its in two]
    assert sum(parts) == alone[name] and min(parts) > alone[name] / 3


@pytest.mark.parametrize("name", [*COMMANDS, AGAIN])
def test_the_second_process_is_not_seen(name: str, two: list[dict[str, Any]]) -> None:
    first, second = (its[name] for its in two)
    assert "written: " in first["out"] and (second["out"], second["err"]) == ("", "")
    assert [its[name]["rank"] for its in two] == ["0", "1"]  # of the environment, afterwards


def test_one_process_keeps_the_log_book(two: list[dict[str, Any]], alone: dict[str, int], place: Path) -> None:
    events = [[row["event"] for row in read_events(place / which / "audit")] for which in ("one", "two")]
    assert events[1][: len(events[0])] == events[0]
    assert [events[1].count(name) for name in ("begin", "end")] == [2, 2]  # it was gone on with


def test_an_audit_goes_on_with_what_is_left(two: list[dict[str, Any]], alone: dict[str, int], place: Path) -> None:
    """Of three attacks one is gone. The control is made by a training, in which each process was alone."""
    controls = read_json(place / "two" / "audit" / "results.json")["controls"]
    assert {name: one["error"] for name, one in controls.items()} == {"base": None, "steering": None}
    assert [its[AGAIN]["code"] for its in two] == [0, 0], [its[AGAIN]["err"] for its in two]
    assert 0 < sum(its[AGAIN]["sequences"] for its in two) < alone["audit"] / 2
    assert (place / "two" / "audit" / "edited" / "relearn" / "result.json").exists()


def test_an_attack_goes_on_with_what_is_left(two: list[dict[str, Any]], alone: dict[str, int], place: Path) -> None:
    assert [its[ON]["code"] for its in two] == [0, 0], [its[ON]["err"] for its in two]
    assert 0 < sum(its[ON]["sequences"] for its in two) < alone["attack"]
    one, both = (figures(place / file, place) for file in ("one/attack", f"two/{next(iter(TROUBLES))}"))
    assert both | {"generations": None} == one | {"generations": None}


@pytest.mark.parametrize("name", TROUBLES)
def test_the_end_of_one_is_the_end_of_both(name: str, two: list[dict[str, Any]]) -> None:
    first, codes, lines = two[0][name], *TROUBLES[name][1:]
    assert first["seconds"] < 15
    ends = [first, *([two[1][name]] if name in two[1] else [])]
    assert [end["code"] for end in ends] == codes
    for end, line in zip(ends, lines, strict=True):
        assert line in end["err"] and end["err"].count("\n") == 1 and str(SCRATCH) not in end["err"]


def test_nothing_is_left_but_of_what_was_killed(two: list[dict[str, Any]], place: Path) -> None:
    left = [path.name for path in (place / "tmp").iterdir()]
    assert len(left) == 1 and left[0].startswith(SCRATCH)  # the next one that needs such a folder removes it
    assert not list((place / "two").rglob("*.lock")) and not list((place / "two").rglob("*.tmp"))


# By a launcher


@pytest.mark.full
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_a_launcher_starts_two(launcher: str, place: Path, alone: dict[str, int]) -> None:
    (port,) = ports(1)
    start = {
        "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)],
        "accelerate": ["accelerate.commands.launch", "--main_process_port", str(port), "--config_file", str(CPU)],
    }[launcher]
    (place / launcher).mkdir()
    asked = ["--utility", "task.jsonl"]  # for which lm-eval takes seconds
    assert main([*argv("evaluate", place / launcher / "one"), *asked]) == 0
    command = [sys.executable, "-m", *start, "-m", "efface", *argv("evaluate", place / launcher / "two"), *asked]
    settings = os.environ | {"PYTHONPATH": str(SUPPORT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("written: ") == 1
    one, both = (figures(place / launcher / which / "evaluate", place) for which in ("one", "two"))
    assert both == rounded(one)  # whose rows of the task are one batch
    assert both["utility"][0]["n"] == len(TEXTS)


# What each process is given


def test_each_process_sees_its_own_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    before = dict(os.environ)
    with environment(alone_with(argparse.Namespace())):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
        assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"} & os.environ.keys()
    assert dict(os.environ) == before
    assert alone_with(argparse.Namespace(device_map="auto"))["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "CUDA_VISIBLE_DEVICES" not in alone_with(argparse.Namespace(device="cuda:3"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,3,1")
    assert alone_with(argparse.Namespace())["CUDA_VISIBLE_DEVICES"] == "5"
    monkeypatch.setenv("LOCAL_RANK", "4")  # of more processes than devices some share one
    assert alone_with(argparse.Namespace())["CUDA_VISIBLE_DEVICES"] == "7"


def test_a_process_that_does_not_find_the_output_of_the_first_ends_all(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name / "out").mkdir(parents=True)
        (tmp_path / name / "out" / "results.json").write_text(name)

    def copy(group: Group) -> None:
        where = tmp_path / ("there" if group.rank else "here") / "out"
        copy_output(group, where, tmp_path / "copy" if group.rank else None, left=True)

    for end in in_group(copy):
        assert isinstance(end, UserError) and "rank 1, on " in str(end) and "cannot copy what rank 0 has" in str(end)


def test_vllm_is_refused() -> None:
    with pytest.raises(UserError, match="--generator vllm works with one engine"):
        with together(argparse.Namespace(generator="vllm")):
            pass
