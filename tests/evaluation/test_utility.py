"""Is utility what lm-eval says it is, on the same rows and prompts, and does nothing of it leak into the process?

Of: evaluation/utility/comparison.py, evaluation/utility/harness.py, evaluation/utility/task_files.py,
evaluation/utility/tasks.py
"""

import importlib.resources
import importlib.util
import json
import math
import os
import random
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny import MAX_POSITIONS, tiny_model, tiny_tokenizer

from efface.errors import RunError, UserError
from efface.evaluation.utility import task_files
from efface.evaluation.utility import tasks as module
from efface.evaluation.utility.comparison import UtilityDifference, compare_utility
from efface.evaluation.utility.task_files import TaskFile, load_tasks, read_task_file
from efface.evaluation.utility.tasks import UtilityResult, utility
from efface.generation import likelihood

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs lm-evaluation-harness (the extra eval)"
)

WORDS = "the old town was cold and people there were silent she bought bread apples a little cheese weather".split()
ROW = {"query": "The old town was", "choices": ["cold", "silent bread"], "gold": 0}


def make_rows(n: int = 16) -> list[dict[str, Any]]:
    """Rows of both prompt forms, with two to four choices of one to four words."""
    draw = random.Random(0)
    rows = []
    for number in range(n):
        question = number % 2 == 0
        choices = [" ".join(draw.choices(WORDS, k=draw.randint(1, 4))) for _ in range(draw.randint(2, 4))]
        query = " ".join(draw.choices(WORDS, k=6))
        query = f"Question: {query}?\n" if question else query
        rows.append({"query": query, "choices": choices, "gold": draw.randrange(len(choices))})
    return rows


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Task files


@pytest.mark.parametrize(
    ("query", "delimiter", "context"),
    [
        ("Question: What floats?", None, "Question: What floats?\nAnswer: "),
        ("Question: What floats?\n", None, "Question: What floats?\nAnswer: "),
        ("Question: What floats?\nAnswer:", None, "Question: What floats?\nAnswer: "),
        ("The man turned on the tap, therefore", None, "The man turned on the tap, therefore "),
        ("Question: What floats?", " -> ", "Question: What floats? -> "),
        ("A cup", "", "A cup"),
    ],
)
def test_what_stands_between_query_and_choice(query: str, delimiter: str | None, context: str) -> None:
    assert TaskFile("t.jsonl", [], delimiter).context(query) == context


@needs_lm_eval
def test_a_question_reads_as_in_the_task_of_lm_eval() -> None:
    from lm_eval.utils import apply_template

    config = yaml.safe_load((importlib.resources.files("lm_eval") / "tasks/arc/arc_easy.yaml").read_text())
    theirs = apply_template(config["doc_to_text"], {"question": "What floats?"}) + " " + "wood"
    assert TaskFile("t.jsonl", []).context("Question: What floats?") + "wood" == theirs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": 2}, "t.jsonl:2: 'gold' must be the number of the right choice, 0 to 1, but it is 2"),
        ({"gold": -1}, "'gold' must be .* but it is -1"),
        ({"gold": True}, "'gold' must be .* but it is True"),
        ({"gold": "0"}, "'gold' must be .* but it is '0'"),
        ({"choices": ["one"]}, r"t.jsonl:2: 'choices' must be a list of at least two texts, but it is \['one'\]"),
        ({"choices": "ab"}, "'choices' must be a list of at least two texts, but it is 'ab'"),
        ({"choices": ["one", " "]}, "t.jsonl:2: 'choices' 1 must be a text that is not blank, but it is ' '"),
        ({"choices": ["one", 2]}, "'choices' 1 must be a text that is not blank, but it is 2"),
        ({"query": "\n"}, r"t.jsonl:2: 'query' must be a text that is not blank"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_task_file(write(tmp_path / "t.jsonl", [ROW, {**ROW, **change}]))


@pytest.mark.parametrize("field", ["query", "choices", "gold"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    row = {key: value for key, value in ROW.items() if key != field}
    with pytest.raises(UserError, match=f"t.jsonl:1: field '{field}' is missing"):
        read_task_file(write(tmp_path / "t.jsonl", [row]))


def test_an_empty_or_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="t.jsonl' is empty: pass rows with query, choices and gold"):
        read_task_file(write(tmp_path / "t.jsonl", []))
    with pytest.raises(UserError, match="nowhere.jsonl' does not exist"):
        read_task_file(tmp_path / "nowhere.jsonl")


def test_other_columns_are_left_out(tmp_path: Path) -> None:
    assert read_task_file(write(tmp_path / "t.jsonl", [{**ROW, "id": 1}, {**ROW, "id": "b"}])).rows == [ROW, ROW]


@needs_lm_eval
def test_tasks_are_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [ROW])
    assert load_tasks(["piqa", str(path)]) == ["piqa", TaskFile("t.jsonl", [ROW])]
    with pytest.raises(UserError, match="task 't.jsonl' is given twice"):
        load_tasks([path, read_task_file(path)])
    with pytest.raises(UserError, match="no tasks"):
        load_tasks([])


def test_without_lm_eval_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed: pip install lm-eval"):
        load_tasks(["piqa"])


# Scores


def reference(model: Any, tokenizer: Any, task: TaskFile) -> tuple[list[float], list[float]]:
    """acc and acc_norm of each row, by one whole forward for each choice."""
    plain, normed = [], []
    for row in task.rows:
        likelihoods = []
        context = task.context(row["query"])
        for choice in row["choices"]:
            start, ids = (tokenizer(text)["input_ids"] for text in (context.rstrip(), context + choice))
            with torch.no_grad():
                logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            likelihoods.append(sum(logp[i - 1, ids[i]].item() for i in range(len(start), len(ids))))
        lengths = [len(choice) for choice in row["choices"]]
        plain.append(float(np.argmax(likelihoods) == row["gold"]))
        normed.append(float(np.argmax(np.array(likelihoods) / lengths) == row["gold"]))
    return plain, normed


@needs_lm_eval
@pytest.mark.parametrize(("family", "add_bos"), [("gpt2", False), ("gemma3", True)])
def test_accuracy_is_that_of_a_direct_computation_row_by_row(family: str, add_bos: bool) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer(add_bos=add_bos)
    task = TaskFile("t.jsonl", make_rows())
    acc, acc_norm = utility(model, tokenizer, [task], batch_size=5)
    expected = reference(model, tokenizer, task)
    assert (acc.rows, acc_norm.rows) == expected
    assert 0 < sum(expected[0]) < len(task.rows) and expected[0] != expected[1]  # it could have failed
    for result, rows, metric in ((acc, expected[0], "acc"), (acc_norm, expected[1], "acc_norm")):
        assert (result.task, result.metric, result.n) == ("t.jsonl", metric, len(task.rows))
        assert result.value == pytest.approx(np.mean(rows))
        assert result.stderr == pytest.approx(np.std(rows, ddof=1) / math.sqrt(len(rows)))


@needs_lm_eval
def test_limit_takes_the_first_rows_and_the_batch_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, rows = tiny_model("llama"), tiny_tokenizer(), make_rows()
    whole = utility(model, tokenizer, [TaskFile("t.jsonl", rows), TaskFile("u.jsonl", rows[::-1])])
    assert [result.task for result in whole] == ["t.jsonl", "t.jsonl", "u.jsonl", "u.jsonl"]
    seen = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda ids, **kwargs: seen.append(ids.shape) or forward(ids, **kwargs))
    monkeypatch.setattr(likelihood, "MAX_LOGITS", 60 * model.config.vocab_size)
    part = utility(model, tokenizer, [TaskFile("t.jsonl", rows)], limit=7)
    assert [result.rows for result in part] == [result.rows[:7] for result in whole[:2] if result.rows]
    assert part[0].fingerprint != whole[0].fingerprint
    assert 30 < max(math.prod(shape) for shape in seen) <= 60  # tokens, padding included
    assert utility(model, tokenizer, [TaskFile("t.jsonl", rows[:7], " - ")])[0].fingerprint != part[0].fingerprint


@needs_lm_eval
def test_nothing_leaks_and_nothing_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("the network was tried")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("DISABLE_MULTIPROC", "before")
    model, tokenizer = tiny_model("gpt2").train(), tiny_tokenizer(pad_token=None)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    utility(model, tokenizer, [TaskFile("t.jsonl", make_rows(4))], seed=3)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert model.training and tokenizer.pad_token is None
    assert os.environ["DISABLE_MULTIPROC"] == "before"
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@needs_lm_eval
def test_a_broken_model_is_no_score() -> None:
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(RunError, match="not finite"):
        utility(model, tiny_tokenizer(), [TaskFile("t.jsonl", make_rows(2))])


@needs_lm_eval
def test_a_prompt_that_is_cut_is_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    row = {**ROW, "query": "the town " * MAX_POSITIONS}
    utility(tiny_model("gpt2"), tiny_tokenizer(), [TaskFile("t.jsonl", [row])])
    assert f"cut on the left: the model has {MAX_POSITIONS} positions" in caplog.text


@needs_lm_eval
@pytest.mark.parametrize("settings", [{"limit": 0}, {"batch_size": 0}, {"seed": -1}])
def test_settings_that_cannot_work(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least 1, 1 and 0"):
        utility(tiny_model("gpt2"), tiny_tokenizer(), [TaskFile("t.jsonl", [ROW])], **settings)


@needs_lm_eval
def test_a_task_of_lm_eval_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.tasks

    class Manager:  # the real one reads thousands of files
        all_tasks = ("arc_easy", "piqa")

        def __init__(self, include_defaults: bool) -> None:
            assert include_defaults

        def load(self, task: str) -> None:
            raise ConnectionError("no route to the hub\nmore")

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", Manager)
    with pytest.raises(UserError, match=r"'arc_eazy' is neither a file nor .* Did you mean arc_easy\?"):
        utility(tiny_model("gpt2"), tiny_tokenizer(), ["arc_eazy"])
    with pytest.raises(UserError, match=r"'piqa': lm-eval could not load its data \(no route to the hub\)"):
        utility(tiny_model("gpt2"), tiny_tokenizer(), ["piqa"])


def test_figures_of_any_task_of_lm_eval_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    samples: list[dict[str, Any]] = [
        {"filter": name, "exact_match": hit, "perplexity": -1.0, "f1": (0, 1), "doc_hash": "a", "prompt_hash": "b"}
        for name, hits in (("none", (1, 0)), ("strict", (0, 0)))
        for hit in hits
    ]
    metrics = {
        "name": "t", "alias": "T", "sample_len": 2,
        "exact_match,none": 0.5, "exact_match_stderr,none": 0.5,
        "exact_match,strict": 0.0, "exact_match_stderr,strict": 0.0,
        "perplexity,none": math.e, "perplexity_stderr,none": "N/A",
        "f1,none": 0.3, "f1_stderr,none": 0.1,
    }  # fmt: skip
    group = {"acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 9}
    found = {"results": {"t": metrics, "group": group}, "samples": {"t": samples}}
    monkeypatch.setattr(module, "run_harness", lambda *_, **__: found)
    *results, of_group = utility(tiny_model("gpt2"), tiny_tokenizer(), ["t"])
    assert [(r.metric, r.value, r.stderr, r.rows) for r in results] == [
        ("exact_match", 0.5, 0.5, [1.0, 0.0]),
        ("exact_match,strict", 0.0, 0.0, [0.0, 0.0]),
        ("perplexity", math.e, None, None),  # not the mean over rows
        ("f1", 0.3, 0.1, None),
    ]
    assert results[0].to_dict() == {"task": "t", "metric": "exact_match", "value": 0.5, "stderr": 0.5, "n": 2}
    assert UtilityResult(**json.loads(json.dumps(results[0].to_dict(rows=True)))) == results[0]
    assert of_group == UtilityResult("group", "acc", 0.5, 0.1, 9, rows=None, fingerprint=None)


# Two models


def result(rows: list[float] | None, value: float = 0.5, **fields: Any) -> UtilityResult:
    value = value if rows is None else float(np.mean(rows))
    settings: dict[str, Any] = {"stderr": 0.3, "n": 4, "fingerprint": "x", **fields}
    return UtilityResult("t", "acc", value, rows=rows, **settings)


def test_the_standard_error_of_a_difference_is_paired() -> None:
    (change,) = compare_utility([result([1, 1, 0, 0])], [result([1, 0, 0, 0])])
    # The differences are 0, -1, 0, 0: variance 1/4, over 4 rows.
    assert change == UtilityDifference("t", "acc", 0.5, 0.25, -0.25, 0.25, paired=True, n=4)
    (same,) = compare_utility([result([1, 1, 0, 0])], [result([1, 1, 0, 0])])
    assert (same.difference, same.stderr) == (0.0, 0.0)


def test_without_rows_the_standard_errors_add_up() -> None:
    (change,) = compare_utility([result(None, 0.5)], [result(None, 0.6, stderr=0.4)])
    assert (change.paired, change.stderr) == (False, pytest.approx(0.5))
    (unknown,) = compare_utility([result(None, stderr=None)], [result(None)])
    assert unknown.stderr is None
    (single,) = compare_utility([result([1], n=1)], [result([0], n=1)])
    assert (single.difference, single.stderr) == (-1.0, None)


def test_other_rows_are_not_compared() -> None:
    with pytest.raises(UserError, match=r"base \(4 rows\) and edited \(3 rows\) were not measured on the same rows"):
        compare_utility([result([1, 0, 0, 0])], [result([1, 0, 0], n=3)])
    with pytest.raises(UserError, match="not measured on the same rows"):
        compare_utility([result([1, 0, 0, 0])], [result([1, 0, 0, 0], fingerprint="y")])
    with pytest.raises(UserError, match="acc of task 't' is there for one model only"):
        compare_utility([result([1, 0, 0, 0])], [])
