"""What becomes of input that nobody should give? Good files changed at random, through every door that reads one.

A door takes a file or a folder and does what a command does with it first. What comes out must be a result, or one of
efface's own errors in a line that can be shown.
"""

import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf_files import write_gguf
from tiny import tiny_model, tiny_tokenizer
from told import evaluation, write_audit, write_edit
from trained import ROWS

from efface.errors import RunError, UserError, escaped
from efface.files.results import write_json, write_jsonl
from efface.model.save import save_model

ROPE = {"rope_type": "default", "rope_theta": 54321.0}
GIVEN = Path(tempfile.gettempdir()) / f"efface-fuzz-{os.getpid()}"
"""What is good in every round of `through_commands`."""
SLOW = 20.0
"""Seconds after which an answer counts as a hang."""
LONGEST = 2000
"""Characters of the line that a command ends in."""
HOSTILE: list[Any] = [None, True, -1, 0, 1e308, -1e308, 10**400, "", "\x1b[31m", "\ud800", "x" * 100_000, [], {}, [[]]]
HOSTILE += ["../../etc/passwd", "<script>", {"a": {}}, [None], 0.5, "NaN", "1" * 5000, {"": ""}, 2**63, "\u202e", "\0"]
RAW = [
    b"NaN",
    b"1e999",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"9" * 6000,
    b'"\\ud800"',
    b"\xff\xfe",
    b"\x00",
    b"!!python/x",
]
RAW += [b"*a", b"&a [*a]", b"2001-99-99", b"{}", b"- ", b": ", b"\xef\xbb\xbf", b"\r", b'"', b"\\", b"%", b"{{", b"0x"]


@dataclass(frozen=True)
class Door:
    """Where a file comes in."""

    name: str
    make: Callable[[Path], list[str]]
    """Writes good input into a folder; the names of the files that are changed."""
    enter: Callable[[Path], Any]
    """Gets the folder."""
    command: Callable[[Path, Path], list[str]] | None = None
    """The folder and a place for output -> what `efface` is called with; None: no command comes through here alone."""


@dataclass
class Outcomes:
    """What became of it."""

    tried: int = 0
    refused: int = 0
    taken: int = 0
    failures: list[str] = field(default_factory=list)
    """Anything else, a line each."""


def fuzz(doors: list[Door], rounds: int, seed: int, folder: Path) -> Outcomes:
    """Change a good file of some door, `rounds` times, and enter with it."""
    draw, found = random.Random(seed), Outcomes()
    good = {door.name: folder / f"good-{door.name}" for door in doors}
    files = {}
    for door in doors:
        good[door.name].mkdir(parents=True)
        files[door.name] = door.make(good[door.name])
        door.enter(good[door.name])  # what is good is taken, or the rest says nothing
    for number in range(rounds):
        door = doors[number % len(doors)]
        place = folder / "bad"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(good[door.name], place)
        file = place / draw.choice(files[door.name])
        changed = change(file.read_bytes(), draw)
        file.write_bytes(changed)
        found.tried += 1
        what = f"seed {seed}, round {number}, {door.name}, {file.name}"
        before, start = listing(place), time.monotonic()
        try:
            door.enter(place)
            found.taken += 1
        except (UserError, RunError) as error:
            found.refused += 1
            if not str(error).strip():
                found.failures.append(f"{what}: an error without a word")
        except BaseException as error:  # whatever else it is, it is a defect
            found.failures.append(f"{what}: {type(error).__name__}: {str(error)[:200]!r}")
            if isinstance(error, KeyboardInterrupt):
                raise
        if (took := time.monotonic() - start) > SLOW:
            found.failures.append(f"{what}: took {took:.0f} s")
        if listing(place) != before or file.read_bytes() != changed:
            found.failures.append(f"{what}: the input was changed, or something left beside it")
    return found


def change(content: bytes, draw: random.Random) -> bytes:
    """Some bytes, or some value, made others."""
    kind = draw.randrange(6)
    if kind <= 1 and (value := _json(content)) is not None:
        return _changed_json(value, content, draw)
    if not content:
        return draw.choice(RAW)
    place = draw.randrange(len(content))
    if kind == 2:  # cut
        return content[:place]
    if kind == 3:  # a few bytes flipped, near the front as often as anywhere
        found = bytearray(content)
        for _ in range(draw.randint(1, 8)):
            where = draw.randrange(min(len(found), 200)) if draw.random() < 0.5 else draw.randrange(len(found))
            found[where] = draw.randrange(256)
        return bytes(found)
    if kind == 4:
        return content[:place] + draw.choice(RAW) + content[place:]
    end = min(len(content), place + draw.randint(1, 40))
    return content[:place] + (content[place:end] * 2 if draw.random() < 0.5 else draw.choice(RAW)) + content[end:]


def listing(folder: Path) -> list[str]:
    """Every file below."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _one_clear_line(line: str) -> bool:
    return line.startswith("efface: ") and len(line) <= LONGEST and line == escaped(line)


def _json(content: bytes) -> Any:
    """The value of a JSON file, or of its lines."""
    try:
        text = content.decode()
        return (
            json.loads(text)
            if text.lstrip()[:1] == "{" and "\n{" not in text
            else [*map(json.loads, text.split("\n"))]
        )
    except ValueError:
        return None


def _changed_json(value: Any, content: bytes, draw: random.Random) -> bytes:
    places = list(_places(value))
    holder, key = draw.choice(places) if places else (None, None)
    if holder is None:
        return b"[]"
    if isinstance(holder, dict) and draw.random() < 0.25:
        del holder[key]
    else:
        holder[key] = draw.choice(HOSTILE)
    lines = isinstance(value, list)
    return "\n".join(map(json.dumps, value)).encode() if lines else json.dumps(value).encode()


def _places(value: Any) -> Any:
    """Every holder and key within."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(items):
        yield value, key
        yield from _places(one)


def doors() -> list[Door]:
    """All of them."""
    from efface.comparison.config import read_config
    from efface.data.pairs import PairReader
    from efface.data.rows import load_texts
    from efface.data.store import PairStore
    from efface.evaluation.baseline import read_baseline
    from efface.export.eee import export_eee
    from efface.methods.repo import REPOConfig
    from efface.model.load import load_model
    from efface.report.dossier import report_about
    from efface.training.settings import parse_settings

    def jsonl(rows: Any) -> Callable[[Path], list[str]]:
        return lambda folder: [write_jsonl(folder / "rows.jsonl", rows) or "rows.jsonl"]

    def result(content: Any) -> Callable[[Path], list[str]]:
        return lambda folder: [write_json(folder / "results.json", content) or "results.json"]

    def checkpoint(folder: Path) -> list[str]:
        save_model(tiny_model("llama"), tiny_tokenizer(), folder)
        return [
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            "model.safetensors",
        ]

    def gguf(folder: Path) -> list[str]:
        return [write_gguf(tiny_model("llama", rope_parameters=ROPE), folder / "model.gguf").name]

    def yaml(folder: Path) -> list[str]:
        (folder / "config.yaml").write_text("learning_rate: 1e-4\nmax_steps: 3\nerase_layers: '0,1'\nbf16: false\n")
        return ["config.yaml"]

    def sweep(folder: Path) -> list[str]:
        (folder / "sweep.yaml").write_text(
            "base: org/base\npairs: shipped:train\nheldout: shipped:heldout\nreported: shipped:prompts\n"
            "tuning: {prompts: shipped:prompts, limit: 4}\nattacked: shipped:prompts\nbudgets: {main: {kl: 0.05}}\n"
            "methods:\n  - {name: sft, settings: {max_steps: 1}, grid: {learning_rate: [1e-4, 2e-4]}}\n"
            "attacks: {every: {pairs: --steps 5}}\n"
        )
        return ["sweep.yaml"]

    def audit(folder: Path) -> list[str]:
        from attacked import attacked

        write_audit(folder, attacked("relearn", 30), attacked("sampling", 4))
        return ["results.json"]

    def edit(folder: Path) -> list[str]:
        write_edit(folder)
        return ["results.json", "base.generations.jsonl", "model/results.json"]

    def stored(folder: Path) -> None:
        rows = PairReader(str(folder / "rows.jsonl"))
        PairStore.build(rows, tiny_tokenizer(), max_prompt_length=16, max_completion_length=16, max_positions=128)

    def exported(folder: Path) -> None:
        out = folder.parent / "exported"
        shutil.rmtree(out, ignore_errors=True)
        export_eee(folder, out)

    small = ["--max_steps", "1", "--use_cpu", "true", "--disable_tqdm", "true", "--report_to", "none"]

    def train(folder: Path, out: Path, *more: str) -> list[str]:
        """With a good model and good pairs where the folder has none."""
        pairs = folder / "rows.jsonl" if (folder / "rows.jsonl").exists() else GIVEN / "pairs.jsonl"
        model = folder if (folder / "config.json").exists() else GIVEN / "model"
        return ["train", "sft", str(model), str(pairs), "-o", str(out / "run"), *small, *more]

    def read(folder: Path) -> Any:
        return report_about([folder])

    def reported(folder: Path, out: Path) -> list[str]:
        return ["report", str(folder), "-o", str(out / "report.html"), "--require", "share<=0.5"]

    return [
        Door("pairs", jsonl(ROWS), stored, train),
        Door(
            "prompts",
            jsonl([{"prompt": row["prompt"]} for row in ROWS]),
            lambda folder: load_texts(str(folder / "rows.jsonl"), "prompt"),
        ),
        Door(
            "settings",
            yaml,
            lambda folder: parse_settings(REPOConfig, str(folder / "config.yaml"), []),
            lambda folder, out: train(folder, out, "--config", str(folder / "config.yaml")),
        ),
        Door("sweep", sweep, lambda folder: read_config(folder / "sweep.yaml")),
        Door("checkpoint", checkpoint, load_model, train),
        Door("gguf", gguf, lambda folder: load_model(folder / "model.gguf")),
        Door("baseline", result(evaluation(0.1)), lambda folder: read_baseline(folder / "results.json")),
        Door("audit", audit, read, reported),
        Door("edit", edit, read, reported),
        Door(
            "export",
            audit,
            exported,
            lambda folder, out: ["export", str(folder), "--format", "sarif", "-o", str(out / "log.sarif")],
        ),
    ]


def through_commands(doors: list[Door], rounds: int, seed: int, folder: Path) -> Outcomes:
    """The same through `efface` itself, in a process of its own: exit code, the line, and what is left."""
    from killing import run_forked

    save_model(tiny_model("llama"), tiny_tokenizer(), GIVEN / "model")
    write_jsonl(GIVEN / "pairs.jsonl", ROWS)
    draw, found = random.Random(seed), Outcomes()
    open_doors = [door for door in doors if door.command is not None]
    for number in range(rounds):
        door = open_doors[number % len(open_doors)]
        place, out = folder / "bad", folder / "out"
        for one in (place, out):
            shutil.rmtree(one, ignore_errors=True)
            one.mkdir(parents=True)
        file = place / draw.choice(door.make(place))
        file.write_bytes(change(file.read_bytes(), draw))
        assert door.command is not None
        ended = run_forked(door.command(place, out), folder / "told", kill_after=SLOW)
        found.tried += 1
        what, last = f"seed {seed}, round {number}, {door.name}, {file.name}", ended.told.rstrip().rpartition("\n")[2]
        if ended.code == 0:
            found.taken += 1
        elif ended.code in (1, 2) and _one_clear_line(last) and "Traceback" not in ended.told:
            found.refused += 1
        else:
            found.failures.append(f"{what}: exit code {ended.code}: {ended.told[-200:]!r}")
        left = [entry.name for entry in out.iterdir() if entry.name.startswith(".")]
        if left or (ended.code and door.name != "settings" and any(out.glob("*.html")) and "limits" not in last):
            found.failures.append(f"{what}: left behind: {left or [entry.name for entry in out.iterdir()]}")
    return found
