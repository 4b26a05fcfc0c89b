"""Is a result file whole or absent, is bad input named by file and line, and is nobody else's directory deleted?

Of: files/environment.py, files/jsonl.py
"""

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from efface.errors import RunError, UserError
from efface.files import environment as environment_module
from efface.files import results
from efface.files.environment import environment
from efface.files.jsonl import read_jsonl
from efface.files.results import cache_dir, prepare_output_dir, read_json, write_json, write_jsonl


def test_round_trip(tmp_path: Path) -> None:
    obj = {"a": [1, 2.5, None, "é\u2028🙂"], "b": {"c": True}}
    write_json(tmp_path / "new" / "x.json", obj)
    assert read_json(tmp_path / "new" / "x.json") == obj
    rows = [{"text": "one\ntwo\u2028three"}, {"text": ""}]
    write_jsonl(tmp_path / "x.jsonl", iter(rows))
    assert read_jsonl(tmp_path / "x.jsonl") == rows
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "x.jsonl"]


def test_lone_surrogate_does_not_fail_the_write(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl", [{"text": "half \ud83d"}])
    assert read_jsonl(tmp_path / "x.jsonl") == [{"text": "half ?"}]


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("old", [None, '{"old": 1}'])
def test_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, old: str | None
) -> None:
    path = tmp_path / "x.json"
    if old is not None:
        path.write_text(old)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(results.os, function, full)
    with pytest.raises(RunError, match=r"x\.json was not written: No space left on device\.$"):
        write_json(path, {"new": 2})
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ([] if old is None else ["x.json"])
    assert old is None or path.read_text() == old


def test_unwritable_values_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the value of a\.1\.b is nan"):
        write_json(tmp_path / "x.json", {"a": [0.0, {"b": float("nan")}]})
    with pytest.raises(RunError, match=r"the value of a is a Tensor, which JSON cannot hold"):
        write_json(tmp_path / "x.json", {"a": torch.zeros(1)})
    with pytest.raises(RunError, match="is inf"):
        write_jsonl(tmp_path / "x.jsonl", [{"a": 1.0}, {"a": float("inf")}])
    assert list(tmp_path.iterdir()) == []


def test_broken_json_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{\n"a": 1,\n"b"\n}')
    with pytest.raises(UserError, match=r"x\.json, line 4: not valid JSON"):
        read_json(path)
    path.write_text("3")
    with pytest.raises(UserError, match="a JSON int where an object"):
        read_json(path)
    with pytest.raises(UserError, match=r"missing\.json cannot be read: No such file"):
        read_json(tmp_path / "missing.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match=r"x\.json is not UTF-8 .*Save it as UTF-8"):
        read_json(path)


def test_environment_is_json_and_says_no_path() -> None:
    stamp = environment(seed=3, model=torch.nn.Linear(1, 1).to(torch.bfloat16), command="efface evaluate m")
    json.dumps(stamp, allow_nan=False)
    assert stamp["seed"] == 3 and stamp["device"] == "cpu" and stamp["dtype"] == "bfloat16"
    assert stamp["versions"]["torch"] == torch.__version__ and stamp["threads"] >= 1
    assert os.getcwd() not in json.dumps(stamp)
    assert environment(seed=None, model=None, command=None)["device"] is None


def test_version_of_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.Distribution.discover", lambda *args, **kwargs: iter([]))
    environment_module._version.cache_clear()
    found = environment_module.versions()
    environment_module._version.cache_clear()
    assert found["scikit-learn"] is found["transformers"] is None and found["efface"] == "unknown"
    assert found["torch"] == torch.__version__


def test_output_dir_new_and_empty(tmp_path: Path) -> None:
    directory = prepare_output_dir(tmp_path / "a" / "b")
    assert read_json(directory / "efface.json")["schema"] == 1
    # A run that stopped before it wrote anything does not stand in the way.
    assert prepare_output_dir(tmp_path / "a" / "b") == directory


def test_output_dir_with_a_run(tmp_path: Path) -> None:
    directory = prepare_output_dir(tmp_path / "run")
    (directory / "results.json").write_text("{}")
    (directory / "model").mkdir()
    (directory / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="already holds a run"):
        prepare_output_dir(directory)
    prepare_output_dir(directory, resume=True)
    assert (directory / "model" / "config.json").exists()
    prepare_output_dir(directory, overwrite=True)
    assert [p.name for p in directory.iterdir()] == ["efface.json"]
    with pytest.raises(UserError, match="overwrite and resume exclude each other"):
        prepare_output_dir(directory, overwrite=True, resume=True)


def test_output_dir_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "results.json").write_text('{"accuracy": 1}')
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UserError, match="holds no run of efface"):
            prepare_output_dir(tmp_path, **flags)
    assert (tmp_path / "thesis.tex").exists()


def test_output_dir_without_marker_but_with_our_results(tmp_path: Path) -> None:
    stamp = environment_module.environment(seed=0, model=None, command=None)
    write_json(tmp_path / "results.json", {"schema": 1, "environment": stamp})
    prepare_output_dir(tmp_path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["efface.json"]


def test_overwrite_does_not_follow_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    directory = prepare_output_dir(tmp_path / "run")
    (directory / "link").symlink_to(outside)
    prepare_output_dir(directory, overwrite=True)
    assert (outside / "kept").exists() and not (directory / "link").exists()


def test_overwrite_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_output_dir(tmp_path)
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    with pytest.raises(UserError, match="holds the working or home directory"):
        prepare_output_dir(tmp_path, overwrite=True)


def test_overwrite_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = prepare_output_dir(tmp_path / "run")
    (directory / "model").mkdir()

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(results.shutil, "rmtree", refuse)
    with pytest.raises(RunError, match="could not be emptied: Permission denied"):
        prepare_output_dir(directory, overwrite=True)


def test_output_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(UserError, match="cannot be used: it is a file"):
        prepare_output_dir(tmp_path / "x")
    with pytest.raises(UserError, match="cannot be used"):
        prepare_output_dir(tmp_path / "x" / "y")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("results.json", '{"schema": "https://json-schema.org"}'),
        ("results.json", '{"schema": 1}'),
        ("efface.json", ""),
        ("efface.json", '{"schema": 1, "what": "a cookbook"}'),
    ],
)
def test_a_directory_is_ours_by_what_its_files_say(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds no run of efface"):
        prepare_output_dir(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_what_a_killed_process_was_writing_does_not_stand_in_the_way(tmp_path: Path) -> None:
    (tmp_path / ".efface.json.4711.tmp").write_text("{")
    assert read_json(prepare_output_dir(tmp_path) / "efface.json")["schema"] == 1


def test_inputs_inside_the_output_directory(tmp_path: Path) -> None:
    directory = prepare_output_dir(tmp_path / "run")
    (directory / "pairs.jsonl").write_text("{}")
    for given in (directory, directory / "pairs.jsonl", str(directory / ".." / "run" / "pairs.jsonl")):
        with pytest.raises(UserError, match="lies in the output directory .* copy what it is to read"):
            prepare_output_dir(directory, overwrite=True, inputs=[None, "shipped:train", given])
    assert (directory / "pairs.jsonl").exists()
    prepare_output_dir(directory, overwrite=True, inputs=["shipped:train", "pairs.jsonl", "\0", 5])


def test_the_results_are_the_first_to_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in between, what is left is not taken for a finished run."""
    directory = prepare_output_dir(tmp_path / "run")
    for name in ("a.json", "results.json", "z.json"):
        (directory / name).write_text("{}")
    monkeypatch.setattr(results, "remove", lambda entry: gone.append(entry.name))
    gone: list[str] = []
    prepare_output_dir(directory, overwrite=True)
    assert gone == ["results.json", "a.json", "z.json"]


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("EFFACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_dir() == tmp_path / "x" / "efface"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "efface"
