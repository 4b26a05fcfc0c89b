"""Does every loader answer any file with what it holds, or with one of our two errors? Never with another exception.

A file that is right is changed at every place in turn, to every wrong thing; what still loads must also be usable.

Of: files/shapes.py
"""

import copy
import functools
import itertools
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from tiny import tiny_model, tiny_tokenizer

from efface.analysis.probes import LinearProbe, ProbeQuality
from efface.attacks import finished as attacks_finished
from efface.attacks.measurement import Measurement
from efface.attacks.prompt_injection import load_injections
from efface.attacks.selection import NOTHING, judge_chosen, option_of
from efface.audit import rows as audit_rows
from efface.audit.battery import Trial
from efface.audit.earlier import seconds_spent
from efface.audit.table import audit_page
from efface.data.rows import load_texts
from efface.errors import RunError, UserError
from efface.evaluation import baseline as baselines
from efface.evaluation import kept
from efface.evaluation.baseline import compare_with_baseline, read_baseline
from efface.evaluation.degeneration import measure
from efface.evaluation.perplexity import Perplexity
from efface.evaluation.prompt_sets import load_prompts
from efface.evaluation.result import Evaluation
from efface.evaluation.side_effects import read_identity_texts
from efface.evaluation.toxicity import summarize
from efface.evaluation.utility.task_files import read_task_file
from efface.evaluation.utility.tasks import UtilityResult
from efface.files.jsonl import Row, read_jsonl
from efface.files.part import PartFile
from efface.files.results import read_json, write_json
from efface.generation import generate
from efface.generation.decoding import Decoding
from efface.model.forward import Head
from efface.model.interventions import FILE, attach_saved_, attached
from efface.pairs.builder import OUTCOME
from efface.pairs.toxic_copy import toxic_texts
from efface.report.table import evaluation_table, versus_table
from efface.scoring import judge as scorer_judge
from efface.scoring.cache import cache_scores
from efface.scoring.judge import META, Judge
from efface.scoring.labelled import load_labelled
from efface.scoring.scorer import NamedScorer
from efface.scoring.words import WordListScorer
from efface.training.reference import LiveReference
from efface.training.reference_cache import INDEX, open_cache

WRONG: list[Any] = [None, 7, -0.5, float("inf"), float("nan"), "text", True, [], [3], {}, {"a": None}, 10**400]
NO_JSON = {
    "nothing": b"",
    "half": b'{"a": [1,',
    "no UTF-8": b'{"a": "\xff"}',
    "a number of 5,000 digits": b'{"a": %s}' % (b"9" * 5000),
    "deep": b'{"a": %s}' % (b"[" * 100_000),
    "a list": b"[]",
    "half a character": b'{"prompt": "\\ud83d", "text": "\\ud83d", "query": "\\ud83d", "continuation": "\\ud83d"}',
}


def changed(document: Any, every: int = 1) -> Iterator[Any]:
    """Copies of `document` with one place left out, or in its place each of WRONG; only each `every`th of them, where
    that is no factor of the 13 for a place."""

    def places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            yield (*path, key)
            yield from places(value[key], (*path, key))

    turn = itertools.count()
    for *path, last in places(document, ()):
        for number in range(-1, len(WRONG)):
            if next(turn) % every:
                continue
            one = copy.deepcopy(document)
            holder = one
            for key in path:
                holder = holder[key]
            if number < 0:
                del holder[last]
            else:
                holder[last] = WRONG[number]
            yield one


def survives(load: Callable[[], object]) -> bool:
    """Whether it loads; an error of ours is the other right answer."""
    try:
        load()
    except (UserError, RunError) as error:
        assert str(error).strip() and len(str(error)) < 1000
        return False
    return True


def evaluation(model: str = "m") -> Evaluation:
    rows = [
        {"prompt": f"p{i}", "continuation": " x y z", "token_ids": [3], "score": 0.6, "scores": {"nasty": 0.6}}
        for i in range(2)
    ]
    texts = [row["continuation"] for row in rows]
    return Evaluation(
        model=model,
        settings={"protocol": None, "prompts": None, "decoding": Decoding().to_dict()},
        judges={"nasty": summarize(np.full((2, 1), 0.6), scorer="nasty", decoding="greedy")},
        perplexity=Perplexity.of(20.0, 10, window=8, stride=8),
        f1=None,
        utility=[UtilityResult("t", "acc", 0.5, 0.1, 2, [0.0, 1.0], "f")],
        identity=None,
        degeneration=measure(texts, nll=[(3.0, 3)] * 2),
        generations=rows,
        environment={},
    )


MEASURED: Row = json.loads(
    json.dumps(
        {
            "figures": {
                name: evaluation().to_dict()[name] for name in ("toxicity", "judges", "perplexity", "degeneration")
            },
            "generations": [
                {key: row[key] for key in ("prompt", "continuation", "score", "scores")}
                for row in evaluation().generations
            ],
            "at": {"steps": 1},
        }
    )
)
POINT = {**MEASURED["at"], **MEASURED["figures"]}
OPTIONS = [option_of(NOTHING, Measurement.from_dict(MEASURED, "x"))] * 2
RESULT = {
    "target": {"weights": "w"},
    "settings": {"steps": "1"},
    "before": MEASURED["figures"],
    "after": POINT,
    "judged": judge_chosen(OPTIONS, 0),
    "found": {"left_out": ["steps 9"], "base_share": 0.1, "points": [{"steps": 1, "base_share": 0.2}]},
}


@pytest.mark.parametrize("beside", ["x.json", "x.generations.jsonl", "x.utility.jsonl"])
def test_a_baseline_is_checked_before_the_work(beside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "compare", functools.partial(baselines.compare, resamples=5))
    evaluation("base").save(tmp_path / "x.json")
    edited, file = evaluation(), tmp_path / beside
    lines = beside.endswith("l")
    right = [json.loads(line) for line in file.read_text().splitlines()] if lines else json.loads(file.read_text())

    def use() -> None:
        baseline = read_baseline(tmp_path / "x.json")
        try:  # what has been read must be usable: here no error is right
            edited.versus_baseline = compare_with_baseline(edited, baseline)
            table = str(evaluation_table({"baseline": baseline.result, "this": edited.to_dict()}))
            table += str(versus_table(edited.to_dict()))
        except UserError as error:
            raise AssertionError(f"found after the work: {error}") from error
        assert table.isprintable() or "\n" in table

    assert survives(use) and edited.versus_baseline is not None and edited.versus_baseline.not_compared == []
    for one in changed(right, every=1 if lines else 5):
        file.write_text("".join(json.dumps(row) + "\n" for row in one) if lines else json.dumps(one))
        survives(use)
    for content in NO_JSON.values():
        file.write_bytes(content)
        assert not survives(use) or (lines and not content)


def test_a_measurement_that_was_kept() -> None:
    for one in changed(MEASURED, every=3):
        found: list[Measurement] = []
        if survives(lambda one=one, found=found: found.append(Measurement.from_dict(one, "x"))):  # type: ignore[misc]
            found[0].versus(Measurement.from_dict(MEASURED, "y"))  # usable
            Measurement.from_dict(MEASURED, "y").versus(found[0])
    with pytest.raises(UserError, match=r"x: 'figures.toxicity.share' must be a finite number, but it is 'high'"):
        bad = copy.deepcopy(MEASURED)
        bad["figures"]["toxicity"]["share"] = "high"
        Measurement.from_dict(bad, "x")


def test_what_an_audit_finds_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Trial("merge", "", lambda: None, None)
    for module in (attacks_finished, audit_rows):
        monkeypatch.setattr(module, "describe_settings", lambda settings: {"steps": "1"})
    results = {"models": [{"name": "m", "attacks": [{"attack": "merge", "seconds": 1.0}]}], "budget": "quick"}
    file = tmp_path / "x.json"

    def table() -> None:
        found = attacks_finished.finished_result(file, entry.name, entry.settings, {"weights": "w"})
        if found is None:
            raise UserError("it is made again")
        row = audit_rows.row_of(entry, 1.0) | audit_rows.figures_of(found, OPTIONS, OPTIONS, 0)
        audit_rows.too_dear(found)
        model = {"name": "m", "error": None, "evaluation": RESULT["before"], "attacks": [row], "columns": {}}
        whole = {"models": [model, model], "base": None, "budget": "quick", "cannot_show": [], "controls": {}}
        assert str(audit_page(whole | {"comparisons": [], "seeds": {"attack": 0, "generations": 0}}))

    for document, load in ((RESULT, table), (results, lambda: seconds_spent(file))):
        file.write_text(json.dumps(document))
        assert survives(load)
        for one in changed(document, every=3):
            file.write_text(json.dumps(one))
            survives(load)
        for content in NO_JSON.values():
            file.write_bytes(content)
            assert not survives(load)
    (tmp_path / "untouched").mkdir()
    kept_file = tmp_path / "untouched" / "k.json"
    for content in [*NO_JSON.values(), b'{"figures": null}', b'{"surprise": 1}']:
        kept_file.write_bytes(content)
        assert not survives(lambda: attacks_finished.Untouched(tmp_path / "untouched"))


def test_a_part_file(tmp_path: Path) -> None:
    outcome = {"row": {"prompt": "a", "chosen": "b", "rejected": "c"}, "seconds": 1.0, "first": [0.5, 3.0, 2]}
    right = [{"settings": {"a": 1}}, outcome, {"reason": "dull"}]
    file = tmp_path / "x.part"

    def load() -> None:
        PartFile(tmp_path / "x", {"a": 1}, batch=1, resume=True, shape=OUTCOME)

    for rows in [right, *changed(right)]:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert survives(load) or rows is not right
    for name, content in NO_JSON.items():
        file.write_bytes(content + b"\n")
        assert not survives(load), name
    file.unlink()
    os.mkfifo(file)
    for resume in (True, False):
        with pytest.raises(UserError, match=r"x\.part is no regular file"):
            PartFile(tmp_path / "x", {"a": 1}, batch=1, resume=resume)
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match="no regular file"):
        load()


def headers(name: str) -> Iterator[dict[str, str] | None]:
    """Headers of a safetensors file whose JSON under `name` is wrong."""
    yield None
    yield {"other": "{}"}
    for content in NO_JSON.values():
        yield {name: content.decode("utf-8", "replace")}


def test_a_probe(tmp_path: Path) -> None:
    quality = ProbeQuality(0.7, (0.6, 0.8), 0.7, (0.6, 0.8), 0.5, 0.5, 9, 3)
    LinearProbe(np.ones(4, np.float32), 0.5, quality).save(tmp_path / "p")
    assert LinearProbe.load(tmp_path / "p").quality == quality
    tensors = {"weight": np.ones(4, np.float32), "bias": np.ones(1)}
    wrong = [{**tensors, "bias": np.ones(2)}, {**tensors, "weight": np.ones((2, 2))}, {"weight": np.ones(4)}]
    wrong += [{**tensors, "weight": np.full(4, np.nan)}, {**tensors, "bias": np.ones(())}]
    right = json.loads(json.dumps(quality.__dict__))
    for one in changed(right):
        safetensors.numpy.save_file(tensors, tmp_path / "p", {"quality": json.dumps(one)})
        survives(lambda: LinearProbe.load(tmp_path / "p").logits(np.ones((1, 4))))
    for header in headers("quality"):
        safetensors.numpy.save_file(tensors, tmp_path / "p", header)
        assert not survives(lambda: LinearProbe.load(tmp_path / "p"))
    for content in wrong:
        safetensors.numpy.save_file(content, tmp_path / "p", {"quality": json.dumps(right)})
        assert not survives(lambda: LinearProbe.load(tmp_path / "p"))
    os.mkfifo(tmp_path / "pipe")
    assert not survives(lambda: LinearProbe.load(tmp_path / "pipe"))


def test_interventions(tmp_path: Path) -> None:
    model = tiny_model("llama")
    width = model.config.hidden_size
    tensors = {"0.left": np.ones((width, 1)), "0.right": np.ones((1, width)), "0.bias": np.ones(width)}
    layers = [[0.5], ["0"], [True], [-1], [0, 1], {"0": 1}, 3, None]
    for header in [*headers("layers"), *({"layers": json.dumps(one)} for one in layers)]:
        safetensors.numpy.save_file(tensors, tmp_path / FILE, header)
        with pytest.raises(UserError, match="holds no interventions"):
            attach_saved_(model, tmp_path / FILE)
        assert attached(model) == []
    safetensors.numpy.save_file(tensors, tmp_path / FILE, {"layers": "[0]"})
    attach_saved_(model, tmp_path / FILE)
    assert [intervention.layer for intervention in attached(model)] == [0]


def test_a_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer_judge, "BITS", 3)
    monkeypatch.setattr(scorer_judge, "COLUMNS", 16)
    weights = np.zeros(16, np.float32)
    Judge(weights, weights, slope=1.0, intercept=0.0, seen=[1], meta={}).save(tmp_path / "j")
    right = read_json(tmp_path / "j" / META)
    assert Judge.load(tmp_path / "j")(["a"]) == [0.5]
    for one in changed(right):
        write_json(tmp_path / "j" / META, {}) if one == right else (tmp_path / "j" / META).write_text(json.dumps(one))
        found: list[Judge] = []
        if survives(lambda found=found: found.append(Judge.load(tmp_path / "j"))):  # type: ignore[misc]
            assert 0 <= found[0](["a"])[0] <= 1
    for content in NO_JSON.values():
        (tmp_path / "j" / META).write_bytes(content)
        assert not survives(lambda: Judge.load(tmp_path / "j"))


def test_the_index_of_a_reference_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it says, the states are the reference's, and their files are known by it afterwards."""
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    model = tiny_model("llama")
    reference, head = LiveReference(model, False), Head.of(model)

    def states() -> tuple[Path, Any]:
        cache = open_cache(reference, head, [([5, 6], [7, 8])], [0], fingerprint="f")
        return cache.directory / INDEX, cache[0]["hidden"].clone()

    index, expected = states()
    right = read_json(index)
    assert list(right["files"]) == ["states-00000.safetensors"]
    for content in [*(json.dumps(one).encode() for one in [right, *changed(right)]), *NO_JSON.values()]:
        index.write_bytes(content)
        assert (states()[1] == expected).all() and read_json(index)["files"] == right["files"]
    for content in NO_JSON.values():
        index.write_bytes(content)
        states()
        assert read_json(index) == right


def test_kept_generations_are_made_again_if_they_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, made = tiny_model("llama"), tiny_tokenizer(), list[int]()
    generate_ids = generate.generate_ids

    def counted(*args: Any, **kwargs: Any) -> Any:
        made.append(1)
        return generate_ids(*args, **kwargs)

    def rows_at(path: Path) -> tuple[list[Row], bool]:
        """The rows, and whether they were made anew."""
        made.clear()
        return kept.generate_or_recall(model, tokenizer, ["The town"], Decoding(max_new_tokens=2), path), bool(made)

    monkeypatch.setattr(generate, "generate_ids", counted)
    right, anew = rows_at(tmp_path / "g")
    assert anew and rows_at(tmp_path / "g") == (right, False)
    for rows in changed(right):
        (tmp_path / "g").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found, anew = rows_at(tmp_path / "g")
        assert found == (right if anew else rows)
        assert all(isinstance(row["prompt"] + row["continuation"], str) for row in found)
    for content in NO_JSON.values():
        (tmp_path / "g").write_bytes(content)
        assert rows_at(tmp_path / "g") == (right, True)
        assert read_jsonl(tmp_path / "g") == right
    with pytest.raises(RunError, match="File name too long"):  # made, since nothing can lie there
        rows_at(tmp_path / ("x" * 300))
    assert made


ROWS: dict[str, tuple[Callable[[Path], object], Row]] = {
    "labelled": (load_labelled, {"text": "a b c d.", "toxic": 1}),
    "spans": (load_labelled, {"text": "A b c d. E f g h.", "spans": [0, 1]}),
    "continuation": (load_labelled, {"continuation": {"text": "a", "toxicity": 0.4}}),
    "toxigen": (load_labelled, {"text": "a", "toxicity_human": 3, "toxicity_ai": 2.0}),
    "toxic-text": (
        lambda file: toxic_texts([str(file)], NamedScorer("all", lambda texts: [1.0] * len(texts))),
        {"text": "You are silly, all of you here today, she said.", "toxic": 1},
    ),
    "tasks": (read_task_file, {"query": "q", "choices": ["a", "b"], "gold": 1}),
    "prompts": (load_prompts, {"prompt": {"text": "a"}}),
    "rtp": (lambda file: load_prompts(f"rtp:nontoxic@{file}"), {"prompt": {"text": "a", "toxicity": 0.1}}),
    "texts": (load_texts, {"text": "a"}),
    "injections": (lambda file: load_injections(str(file)), {"name": "n", "before": "b", "after": "a"}),
    "identity": (read_identity_texts, {"text": "a b", "group": "g", "template": "t"}),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows(name: str, tmp_path: Path) -> None:
    load, right = ROWS[name]
    file = tmp_path / "x.jsonl"
    extra = [{"text": "c d", "group": "control"}] if name == "identity" else []
    for row in [right, *changed(right)]:
        file.write_text("".join(json.dumps(one) + "\n" for one in [row, *extra]))
        assert survives(lambda: load(file)) or row is not right
    for content in NO_JSON.values():
        file.write_bytes(content)
        assert not survives(lambda: load(file)) or (name == "toxic-text" and not content)
    for depth in (800, 900, 950):  # as deep as the parser can, about
        file.write_text(json.dumps(right | {"a": "deep"}).replace('"deep"', "[" * depth + "]" * depth))
        survives(lambda: load(file))
    file.write_text(json.dumps(right) + "\n" + '{"a": ' + "9" * 5000 + "}\n")
    with pytest.raises(UserError, match=r"x\.jsonl:2: a number that cannot be read \(.* 5000 digits\)"):
        load(file)


@pytest.mark.parametrize("source", [["half \ud83d"], "x.jsonl"])
def test_half_a_character_is_found_before_a_tokenizer_meets_it(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").write_text('{"text": "\\ud83d"}\n')
    with pytest.raises(UserError, match="(x.jsonl:1|text 0): .* half of a character"):
        load_texts(source)
    Path("x.jsonl").write_text('{"text": "\\ud83d\\ude00"}\n')  # both halves
    assert load_texts("x.jsonl") == ["\U0001f600"]


@pytest.mark.parametrize("suffix", ["csv", "txt"])
def test_a_pipe_is_no_table_and_no_word_list(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"x.{suffix}"
    os.mkfifo(file)
    with pytest.raises(UserError, match="it is a pipe"):
        load_labelled(file) if suffix == "csv" else WordListScorer(str(file))


def key_under(scorer: NamedScorer, text: str, path: Path) -> bytes:
    """What the score of a text is kept under."""
    cache_scores(scorer, path)([text])
    with sqlite3.connect(path) as connection:
        ((key,),) = connection.execute("SELECT key FROM scores").fetchall()
    return key


def test_a_score_cache_of_another_make_is_not_believed(tmp_path: Path) -> None:
    asked: list[str] = []

    def scorer(texts: Any) -> list[float]:
        asked.extend(texts)
        return [0.25] * len(texts)

    named = NamedScorer("quarter", scorer)
    object.__setattr__(named, "version", "1")
    path = tmp_path / "scores.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE scores (key BLOB PRIMARY KEY, score)")
        keys = [key_under(named, text, tmp_path / f"{text}.sqlite") for text in "abc"]
        asked.clear()
        rows = list(zip(keys, ["high", None, 7.5], strict=True))
        connection.executemany("INSERT INTO scores VALUES (?, ?)", rows)
    assert list(cache_scores(named, path)(list("abc"))) == [0.25] * 3 and asked == list("abc")
