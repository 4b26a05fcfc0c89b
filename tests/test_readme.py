"""Does every command that README prints run as it is printed? On a tiny model, each made small by flags behind it."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from attacked import attacked
from tiny import tiny_model, tiny_tokenizer
from told import write_audit

from efface import scoring
from efface.cli import main
from efface.jobs import detox as detox_job
from efface.jobs import detox_settings

ROOT = Path(__file__).resolve().parents[1]
PROMPTS, TRAINED = ([f"{place} {i} is" for i in range(9)] for place in ("The town", "A village"))
SMALL = {
    "train": ["--max_steps", "1", "--use_cpu", "true", "--retain_text", "none"],
    "robustify": ["--max_steps", "1", "--use_cpu", "true"],
    "pairs": "--toxic sample --limit 2 --min-toxic-score 0 --max-benign-score 1 --max-perplexity-ratio 1e9 "
    "--min-words 0".split(),
    "evaluate": ["--limit", "2", "--max-new-tokens", "4"],
    "attack": "--prompts PROMPTS.jsonl --text TEXT.jsonl --steps 1 --data toxic --limit 2 --max-new-tokens 4".split(),
    "audit": "--only relearn --prompts PROMPTS.jsonl --text TEXT.jsonl --limit 4 --max-new-tokens 4".split(),
    "detox": "--prompts PROMPTS.jsonl --pairs PAIRS.jsonl --text TEXT.jsonl --max-steps 1 --max-kl 9 "
    "--max-perplexity-increase 9".split(),
    "scale": "--prompts PROMPTS.jsonl --text TEXT.jsonl --max-kl 9 --max-perplexity-increase 9".split(),
    "scorers": [],
    "sweep": [],
    "compare": [],
    "merge": [],
}
"""Behind a command: what makes it small, and gives it what the shared data would."""


def printed() -> list[str]:
    """The command lines of README's console blocks, without their comments."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line[2:] for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [shlex.join(shlex.split(line, comments=True)) for line in lines]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the names that README uses stand for something small."""
    folder = tmp_path_factory.mktemp("readme")
    for seed, name in enumerate(("MODEL", "BASE")):
        tiny_model("llama", seed=seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    pairs = [{"prompt": prompt, "chosen": " quiet and old", "rejected": " a place of fools"} for prompt in TRAINED]
    rows = [{"text": f"{name} {i} {text}", "toxic": toxic} for i in range(400) for name, text, toxic in
            (("The man", "is a silly fool", 1), ("The town", "is quiet and old", 0))]  # fmt: skip
    files: dict[str, Any] = {
        "PAIRS": pairs,
        "ROWS": rows,
        "PROMPTS": [{"prompt": prompt} for prompt in PROMPTS],
        "TUNING": [{"prompt": f"The weather {i} was"} for i in range(4)],
        "TEXT": [{"text": "The history of the town is long. " * 9}],
    }
    for name, content in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    sweep = {
        "base": "MODEL",
        "pairs": "PAIRS.jsonl",
        "heldout": "PAIRS.jsonl",
        "documents": "TEXT.jsonl",
        "text": "TEXT.jsonl",
        "tuning": {"prompts": "TUNING.jsonl"},
        "reported": "PROMPTS.jsonl",
        "attacked": "PROMPTS.jsonl",
        "budgets": {"main": {"kl": 9.0, "perplexity": 9.0}},
        "methods": [{"name": "sft", "settings": {"max_steps": 1, "use_cpu": True, "retain_text": "none"}}],
        "attacks": {"every": {}},
    }
    (folder / "CONFIG.yaml").write_text(yaml.safe_dump(sweep))
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The battery of an audit and the size of `detox` have tests of their own."""
    effort = detox_settings.Effort(n_pairs=4, learning_rates=(1e-3,), text_tokens=60, repo={}, minutes="a moment")
    monkeypatch.setitem(detox_settings.EFFORTS, "quick", effort)
    monkeypatch.setattr(detox_job, "SAMPLES", 1)
    monkeypatch.setitem(scoring.SCORERS, scoring.DEFAULT_SCORER, scoring.ScorerEntry("stubs:Parity", ""))
    result: dict[str, Any] = {"models": [], "comparisons": [], "controls": {}}
    monkeypatch.setattr("efface.audit.run.audit_models", lambda *args, **given: result)


@pytest.mark.usefixtures("small")
def test_every_command_runs_as_printed(workplace: Path, monkeypatch: pytest.MonkeyPatch, fails: Any) -> None:
    monkeypatch.chdir(workplace)
    ours = [shlex.split(line)[1:] for line in printed() if line.startswith("efface ")]
    assert len(ours) > 15
    for argv in ours:
        for made in ("DIR", "OUT", "MERGED"):  # what one leaves is no input of the next
            remove(workplace / made)
        if argv[0] == "merge":
            shutil.copytree(workplace / "LORA", workplace / "ADAPTER", dirs_exist_ok=True)
        if argv[0] == "export":
            write_audit(workplace / "DIR", attacked("relearn", 30))
        if argv[0] in ("compare", "report"):
            shutil.copytree(workplace / "SWEEP", workplace / "DIR")
        if argv[0] == "pairs":  # those that are there are not of its making
            shutil.move(workplace / "PAIRS.jsonl", workplace / "GIVEN.jsonl")
        given = [word if word != "rtp:challenging" else "PROMPTS.jsonl" for word in argv]
        assert ended([*given, *SMALL.get(argv[0], [])]) == 0, shlex.join(argv)
        if argv[0] == "pairs":
            shutil.move(workplace / "GIVEN.jsonl", workplace / "PAIRS.jsonl")
        if "--lora_r" in argv:
            shutil.copytree(workplace / "DIR", workplace / "LORA")
        if argv[0] == "sweep":
            shutil.copytree(workplace / "DIR", workplace / "SWEEP")


def ended(argv: list[str]) -> int:
    try:
        return main(argv)
    except SystemExit as error:  # as argparse ends `--version`
        return int(error.code or 0)


def remove(path: Path) -> None:
    for found in path.parent.glob(path.name + "*"):
        shutil.rmtree(found) if found.is_dir() else found.unlink()


def test_what_is_no_command_of_ours() -> None:
    others = [line for line in printed() if not line.startswith("efface ")]
    assert {line.split()[0] for line in others} <= {"make", "pip", "torchrun"}
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert all(line.split()[1] in targets for line in others if line.startswith("make "))


@pytest.mark.full
def test_several_processes_as_printed(workplace: Path) -> None:
    (line,) = (line for line in printed() if line.startswith("torchrun"))
    words = shlex.split(line)
    words[words.index("4")] = "2"
    more = ["--max_steps", "1", "--use_cpu", "true", "--retain_text", "none", "--overwrite"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words[1:], *more],
        cwd=workplace,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
