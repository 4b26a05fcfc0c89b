"""Is whatever is raised, by us or by others, told in one line that does a terminal no harm?"""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from efface.errors import RunError, UserError, escaped, explained
from efface.model.load import load_model
from efface.model.save import save_model


def saved(directory: Path, family: str = "llama", **overrides: Any) -> Path:
    save_model(tiny_model(family, **overrides), tiny_tokenizer(), directory)
    return directory


class Panic(BaseException):
    """As the Rust of tokenizers raises it."""


Panic.__name__ = "PanicException"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        SafetensorError("Error while deserializing: I/O error: Cannot allocate memory (os error 12)"),
    ],
)
def test_want_of_memory_is_no_damaged_file(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    saved(tmp_path)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(RunError, match=r"model directory '.*' does not fit into memory \(.+\). Pass a smaller one"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("model_type"), r"\(KeyError: 'model_type'\). Again."),
        (Exception("bad file\nat line 3"), r"\(bad file\). Again."),
        (Panic("Option::unwrap()"), r"\(Option::unwrap\(\)\). Again."),
        (ValueError("x" * 5000 + "\x1b[2J"), r"\(x{297}\.\.\.\). Again."),
        (ValueError("a\x1b[2Jb"), r"\(a \[2Jb\). Again."),
        (OSError(errno.EACCES, "Permission denied", "/some/file"), r"\(Permission denied\). Again."),
        (RecursionError(), r"\(RecursionError\). Again."),
    ],
)
def test_one_line_whatever_is_raised(error: BaseException, reason: str) -> None:
    with pytest.raises(UserError, match=f"^it cannot be loaded {reason}$"), explained("it", "Again."):
        raise error


def test_what_is_ours_and_an_interruption_pass() -> None:
    for error in (UserError("a"), RunError("b"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as found, explained("it"):
            raise error
        assert found.value is error


def test_control_characters_are_written_out() -> None:
    assert escaped("a\x1b[2J\x07\x9b\u202e b\n\tc") == "a\\x1b[2J\\x07\\x9b\\u202e b\n\tc"
