"""Does a training that is killed at random moments, and resumed each time, end as one that was not?"""

import json
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from every_method import TINY, TRAINED
from killing import KILLED, run_forked
from tiny import tiny_model, tiny_tokenizer
from trained import PASSAGES, ROWS

from efface.files.digests import file_sha256
from efface.files.results import read_json, write_jsonl
from efface.model.save import save_model

STEPS, SAVED = 6, 2
RESULTS = "results.json"
MOST_TRIES = 12
WHOLE = ("steps", "n_pairs", "effective_settings")
"""Of the results, besides the weights and the history, what a run must agree on."""


@dataclass
class Tally:
    """What became of runs."""

    runs: int = 0
    kills: int = 0
    failures: list[str] = field(default_factory=list)
    """A line each."""


def prepare(folder: Path) -> Path:
    """Model, pairs and passages for all runs."""
    save_model(tiny_model("llama"), tiny_tokenizer(), folder / "model")
    write_jsonl(folder / "pairs.jsonl", ROWS)
    write_jsonl(folder / "passages.jsonl", [{"text": text} for text in PASSAGES])
    return folder


def arguments(given: Path, method: str, output: Path) -> list[str]:
    """`efface train` of a tiny model, with a checkpoint every other step."""
    settings = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVED, "logging_steps": 1}
    settings |= {"use_cpu": "true", "disable_tqdm": "true", "per_device_train_batch_size": 2, "report_to": "none"}
    settings |= {name: value for name, value in TINY.get(method, {}).items() if name != "max_steps"}
    if method == "repo":
        settings |= {"discriminator_width": 16}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return ["train", method, str(given / "model"), str(given / "pairs.jsonl"), "-o", str(output), *words]


def state_of(output: Path) -> dict[str, object]:
    """What two runs must have in common: every file of the checkpoint, and what was logged of each step."""
    result = read_json(output / RESULTS)
    files = {file.name: file_sha256(file) for file in sorted(output.glob("*.safetensors"))}
    timed = ("_runtime", "_per_second", "train_runtime", "total_flos", "seconds")
    history = [{name: value for name, value in row.items() if not name.endswith(timed)} for row in result["history"]]
    history = [row for row in history if row.keys() - {"epoch", "step"}]  # a row of seconds alone
    return {"files": files, "history": history, **{name: result.get(name) for name in WHOLE}}


def kill_at_random(given: Path, method: str, runs: int, seed: int, tally: Tally) -> None:
    """Make `runs` trainings of a method, each killed once or more at random moments and resumed to its end."""
    draw = random.Random(f"{method} {seed}")
    whole = given / f"{method}-whole"
    ended = run_forked(arguments(given, method, whole), given / "told")
    if ended.code:
        tally.failures.append(f"{method}, uninterrupted: exit code {ended.code}: {ended.told[-300:]}")
        return
    wanted = state_of(whole)
    for number in range(runs):
        output, tally.runs = given / f"{method}-{number}", tally.runs + 1
        argv = arguments(given, method, output)
        for attempt in range(MOST_TRIES):
            last = attempt == MOST_TRIES - 1 or (attempt > 0 and draw.random() < 0.5)
            after = None if last else draw.uniform(0.0, 1.1 * ended.seconds)
            found = run_forked([*argv, "--resume"] if attempt else argv, given / "told", kill_after=after)
            if found.code == KILLED:
                tally.kills += 1
                continue
            break
        where = f"{method}, run {number}, seed {seed}"
        if found.code:
            tally.failures.append(f"{where}: exit code {found.code}: {found.told[-300:]}")
        elif state_of(output) != wanted:
            tally.failures.append(f"{where}: other than uninterrupted: {_first_difference(state_of(output), wanted)}")
        elif left := [entry.name for entry in output.iterdir() if entry.name.startswith(".")]:
            tally.failures.append(f"{where}: left behind: {left}")
        shutil.rmtree(output, ignore_errors=True)


def _first_difference(found: object, wanted: object, where: str = "") -> str:
    """Down to the first value that is another one."""
    if isinstance(found, dict) and isinstance(wanted, dict) and found.keys() == wanted.keys():
        pairs = [(f"{where}.{name}", found[name], wanted[name]) for name in wanted]
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = [(f"{where}[{i}]", *both) for i, both in enumerate(zip(found, wanted, strict=True))]
    else:
        return f"{where}: {json.dumps(found)[:200]} instead of {json.dumps(wanted)[:200]}"
    return next((_first_difference(one, other, place) for place, one, other in pairs if one != other), "nothing")


METHODS = TRAINED
