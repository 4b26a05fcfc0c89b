"""Are only regular files read and replaced, links written through, and places that cannot be written found first?"""

import os
import re
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from efface.errors import RunError, UserError
from efface.files import io as files
from efface.files.io import check_writable, is_temporary, read_regular_text, renamed_when_whole, sweep
from efface.files.results import read_json, write_json


def in_a_second(function: Callable[[], object]) -> None:
    """Fails, instead of waiting for ever, where a pipe is read."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "it waits for a pipe"


def test_a_pipe_and_a_device_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    found: list[str] = []

    def read() -> None:
        for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
            with pytest.raises(UserError) as error:
                read_regular_text(path, "word list")
            found.append(str(error.value))

    in_a_second(read)
    assert [re.search("it is a \\w+", line).group() for line in found] == [  # type: ignore[union-attr]
        "it is a pipe",
        "it is a device",
        "it is a directory",
    ]
    assert all(line.startswith("word list /") for line in found)


def test_text_comes_as_it_lies(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert read_regular_text(tmp_path / "x") == "a\r\nb"
    with pytest.raises(UserError, match="null byte"):
        read_regular_text("a\0b")
    with pytest.raises(UserError, match="File name too long"):
        read_regular_text(tmp_path / ("x" * 300))


def test_a_link_is_written_through_and_the_mode_kept(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "x.json", tmp_path / "link.json"
    target.write_text("{}")
    target.chmod(0o600)
    link.symlink_to(target)
    write_json(link, {"a": 1})
    assert link.is_symlink() and read_json(target) == {"a": 1}
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    dangling = tmp_path / "dangling.json"
    dangling.symlink_to(tmp_path / "there" / "new.json")
    write_json(dangling, {"a": 2})
    assert dangling.is_symlink() and read_json(tmp_path / "there" / "new.json") == {"a": 2}
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["new.json", "x.json"]


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("pipe", "a pipe"), (".", "a directory")):
        with pytest.raises(RunError, match=f"was not written: {kind} has its name"):
            write_json(tmp_path / name, {})
    with pytest.raises(RunError, match="a device has its name"):
        write_json("/dev/null", {})
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_nothing_is_written_through_a_planted_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "00000000")
    (tmp_path / f".x.json.{os.getpid()}-00000000.tmp").symlink_to(victim)
    with pytest.raises(RunError, match=r"x\.json was not written: File exists"):
        write_json(tmp_path / "x.json", {})
    assert victim.read_text() == "kept"


def test_two_writers_of_one_process_id_do_not_meet(tmp_path: Path) -> None:
    with renamed_when_whole(tmp_path / "x") as one, renamed_when_whole(tmp_path / "x") as other:
        assert one != other and is_temporary(one.name) and is_temporary(other.name)
        one.write_text("1")
        other.write_text("2")
    assert (tmp_path / "x").read_text() == "1"


@pytest.mark.parametrize("name", ["/dev/null", "/proc/no-such/x.json", "/proc/x.json", "file/x.json", ".", "x" * 250])
def test_a_place_that_cannot_be_written_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises(UserError, match="cannot be a file: .*Choose another place"):
        check_writable(Path(name))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_denied_parents_are_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> None:  # root, who runs some tests, is denied nothing
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "stat", denied)
    with pytest.raises(UserError, match="cannot be a file: Permission denied"):
        check_writable(tmp_path / "a" / "x.json")
    monkeypatch.undo()


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder" / "x.json")
    check_writable(tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x.json").write_text("old")
    check_writable(tmp_path / "x.json")
    assert (tmp_path / "x.json").read_text() == "old"


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    old, older, fresh, others = ".x.json.77-0123abcd.tmp", ".x.json.77.tmp", ".x.json.78-0123abcd.tmp", ".x.tmp"
    for name in (old, older, fresh, others, "x.json"):
        (tmp_path / name).write_text("")
        if name != fresh:
            os.utime(tmp_path / name, (0, 0))
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {fresh, others, "x.json"}
    sweep(tmp_path / "absent")
