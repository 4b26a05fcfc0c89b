"""Is a file of the user's never replaced, and one of ours only when he says so?"""

from pathlib import Path
from typing import Any

import pytest

from efface.errors import UserError
from efface.files.output import check_output_file, first_row_has, is_stamped, never
from efface.files.results import write_json, write_jsonl

OURS = {"figure": 1, "environment": {"versions": {"efface": "0"}}}


def is_ours(file: Path) -> bool:
    return is_stamped(file, {"figure": int})


def check(file: Path, **how: Any) -> None:
    check_output_file(file, is_ours, "a figure", beside={file.with_suffix(".more"): never}, **how)


def test_what_is_there_is_kept_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    check(file)
    write_json(file, OURS)
    with pytest.raises(UserError, match=r"already holds a figure\. Choose .* overwrite=True\.$"):
        check(file)
    with pytest.raises(UserError, match=r"overwrite=True or resume=True\.$"):
        check(file, resume=False)
    check(file, overwrite=True)
    check(file, resume=True)
    with pytest.raises(UserError, match="exclude each other"):
        check(file, overwrite=True, resume=True)


@pytest.mark.parametrize(
    "content", ["", "mine", "[1]", '{"figure": 1}', '{"environment": {"versions": {"efface": "0"}}}']
)
@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": True}])
def test_what_is_not_ours_is_never_replaced(content: str, how: dict[str, bool], tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(UserError, match="is not a figure as efface wrote it. It is left alone"):
        check(file, **how)


def test_nor_a_link_that_leads_nowhere_nor_what_would_be_written_beside(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="left alone"):
        check(tmp_path / "link.json", overwrite=True)
    (tmp_path / "x.more").write_text("mine")
    with pytest.raises(UserError, match=r"x\.more is there, which a figure at .* would replace"):
        check(tmp_path / "x.json", overwrite=True)


def test_the_first_row_says_what_lines_are(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    for rows, expected in (([], True), ([{"at": "1"}, {"no": 1}], True), ([{"no": 1}], False)):
        write_jsonl(file, rows)
        assert first_row_has(file, {"at": str}) is expected
    file.write_text("mine")
    assert not first_row_has(file, {"at": str})
