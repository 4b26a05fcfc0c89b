"""Does a build in Python do what `efface pairs` does, with every source by name, and is a new one one class?

Of: pairs/source.py, pairs/sources/antiexpert.py, pairs/sources/corpus.py, pairs/sources/dexperts.py,
pairs/sources/pplm.py
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model, tiny_tokenizer

from efface import build_pairs
from efface.cli import main
from efface.errors import UserError
from efface.files.jsonl import read_jsonl
from efface.files.results import read_json
from efface.pairs import SOURCES, PairSource, find_source_name, load_source
from efface.pairs.config import BuilderConfig
from efface.pairs.source import Build, Made
from efface.pairs.sources.antiexpert import AntiexpertSource
from efface.pairs.sources.corpus import CorpusSource
from efface.pairs.sources.dexperts import DExpertsSource
from efface.pairs.sources.pplm import PPLMSource
from efface.pairs.sources.sample import SampleSource

CONFIG = BuilderConfig(max_new_tokens=4, min_words=0, max_perplexity_ratio=1e9)
FLAGS = ["--max-new-tokens", "4", "--min-words", "0", "--max-perplexity-ratio", "1e9", "--scorer", "stubs:parity"]


@dataclass(frozen=True)
class Echo:
    """What a third party would write."""

    text: str = field(default=" you fool", metadata={"help": "what is always said"})
    needed: str = field(default="x", metadata={"help": "a thing", "needed": "a thing to do it with"})

    def make(self, build: Build) -> Made:
        return Made(lambda prompts, seed: [[self.text] for _ in prompts], build.prompts(), {"text": self.text})


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a model, prompts and labelled texts, to stand in."""
    monkeypatch.chdir(tmp_path)
    tiny_model("gpt2").save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    texts = [f"The people of town {i} say that all of you are {('fools', 'engineers')[i % 2]}." for i in range(12)]
    for name, rows in {
        "prompts": [{"prompt": f"The town number {i} is"} for i in range(12)],
        "labelled": [{"text": text, "toxic": i % 2} for i, text in enumerate(texts)],
        "marked": [{"text": text, "spans": [len(text) - 5 - k for k in range(5)]} for text in texts],
    }.items():
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


SAME: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "sample": (lambda: SampleSource(temperature=1.0), ["--temperature", "1"]),
    "antiexpert": (lambda: AntiexpertSource(temperature=1.0, steps=1), ["--temperature", "1", "--steps", "1"]),
    "dexperts": (lambda: DExpertsSource(steps=1, alpha=2.0), ["--steps", "1", "--alpha", "2"]),
    "pplm": (
        lambda: PPLMSource(probe_text=("labelled.jsonl",), num_iterations=1),
        ["--probe-text", "labelled.jsonl", "--num-iterations", "1"],
    ),
    "corpus": (lambda: CorpusSource(toxic_text=("marked.jsonl",)), ["--toxic-text", "marked.jsonl"]),
}


@pytest.mark.parametrize("name", SAME)
def test_python_and_command_line_build_the_same(name: str, files: None) -> None:
    source, flags = SAME[name]
    prompts = None if name == "corpus" else "prompts.jsonl"
    build_pairs("model", prompts, source(), output="python.jsonl", config=CONFIG, scorer="stubs:parity")
    named = [] if prompts is None else ["--prompts", prompts]
    assert main(["pairs", "model", "-o", "line.jsonl", "--toxic", name, *flags, *named, *FLAGS]) == 0
    assert read_jsonl("python.jsonl") and Path("python.jsonl").read_bytes() == Path("line.jsonl").read_bytes()
    settings = [read_json(Path(f"{each}.meta.json"))["settings"] for each in ("python", "line")]
    assert settings[0] == settings[1] and settings[0]["how"] == name and settings[0]["model"] == "model"


def test_a_source_by_name_has_its_defaults(files: None) -> None:
    build_pairs("model", "prompts.jsonl", "sample", output="a.jsonl", config=CONFIG, scorer="stubs:parity")
    assert read_json(Path("a.meta.json"))["settings"]["decoding"] == {
        "samples": 4, "temperature": 0.45, "top_p": 1.0, "top_k": 40,
    }  # fmt: skip


@pytest.mark.parametrize(("asked", "recorded"), [(None, 1e8), (1e9, 1e9)])
def test_the_fluency_filter_is_the_sources_unless_one_is_asked_for(
    asked: float | None, recorded: float, files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, "echo", PairSource(f"{__name__}:Echo", "an echo", max_perplexity_ratio=1e8))
    config = BuilderConfig(max_new_tokens=4, min_words=0, max_perplexity_ratio=asked)
    build_pairs("model", ["The town"], "echo", output="a.jsonl", config=config, scorer="stubs:nasty")
    assert read_json(Path("a.meta.json"))["settings"]["max_perplexity_ratio"] == recorded


def test_a_source_of_ones_own_is_one_class(files: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    given = {"output": "echo.jsonl", "processing_class": tokenizer, "config": CONFIG, "scorer": "stubs:nasty"}
    build_pairs(model, ["The town"], Echo(), **given)
    assert read_jsonl("echo.jsonl")[0]["how"]["source"] == f"{__name__}:Echo"
    assert read_json(Path("echo.meta.json"))["settings"]["text"] == " you fool"
    monkeypatch.setitem(SOURCES, "echo", PairSource(f"{__name__}:Echo", "an echo"))
    build_pairs(model, ["The town"], "echo", overwrite=True, **given)
    assert read_jsonl("echo.jsonl")[0]["how"]["source"] == "echo"
    # And its settings are flags.
    argv = ["pairs", "model", "-o", "line.jsonl", "--toxic", "echo", "--prompts", "prompts.jsonl", *FLAGS[:-1]]
    assert main([*argv, "stubs:nasty", "--text", " silly fool"]) == 0
    assert {row["rejected"] for row in read_jsonl("line.jsonl")} == {" silly fool"}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_described(name: str) -> None:
    kind = load_source(name)
    assert is_dataclass(kind) and find_source_name(kind) == name and SOURCES[name].what and SOURCES[name].source
    assert kind.__doc__ and any("help" in each.metadata for each in fields(kind))


@pytest.mark.parametrize(
    ("source", "prompts", "message"),
    [
        ("nosuch", None, "pair source 'nosuch' is unknown. There are: antiexpert, dexperts"),
        ("json:dumps", None, "pair source 'json:dumps' is no source of efface"),
        ("pplm", None, "source 'pplm' needs probe_text: labelled texts, toxic and benign"),
        ("corpus", None, "source 'corpus' needs toxic_text: labelled or parallel texts"),
        (CorpusSource(("x.jsonl",)), ["a"], "source 'corpus' splits its prompts from toxic_text: leave out other"),
        (Echo(needed=""), ["a"], "Echo' needs needed: a thing to do it with"),
    ],
)
def test_what_cannot_work_is_said_by_field(source: Any, prompts: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        build_pairs("absent", prompts, source, output=tmp_path / "x.jsonl", scorer="stubs:parity")
    assert not list(tmp_path.iterdir())
