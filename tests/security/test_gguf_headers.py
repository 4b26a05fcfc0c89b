"""Is a GGUF header that cannot be refused in a line, at once, before anything believes it? And is a good one read?

Of: model/gguf_header.py
"""

import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hostile import entry, gguf, text

from efface.errors import UserError
from efface.model.gguf_header import check_gguf_header
from efface.model.load import load_model

U8, U32, STRING, ARRAY, U64 = 0, 4, 8, 9, 10
NAME = entry("general.architecture", STRING, text("llama"))


def listed(kind: int, count: int, values: bytes = b"") -> bytes:
    return entry("x", ARRAY, struct.pack("<IQ", kind, count) + values)


HOSTILE = {
    "nothing": (b"GGUF", "its header ends in the middle"),
    "tensors": (gguf([NAME], n_tensors=2**60, rest=bytes(1_000_000)), "announces 1152921504606846976 tensors"),
    "tensors that are not there": (gguf([NAME], n_tensors=9), "its header ends in the middle"),
    "entries": (gguf([NAME], n_entries=2**60), "announces 1152921504606846976 entries of metadata"),
    "a long name": (gguf([struct.pack("<Q", 2**60) + b"abc"]), "the name of an entry has 1152921504606846976 bytes"),
    "a long text": (gguf([entry("x", STRING, struct.pack("<Q", 2**63))]), "a text has 9223372036854775808 bytes"),
    "a text beyond the end": (gguf([entry("x", STRING, struct.pack("<Q", 50) + b"abc")]), "a text has 50 bytes"),
    "numbers beyond the end": (gguf([listed(U64, 2**20)]), "a list of 8388608 bytes goes beyond its end"),
    "2^40 numbers": (gguf([listed(U8, 2**40)]), "a list of 1099511627776 values, at most 4194304"),
    "2^40 texts": (gguf([listed(STRING, 2**40)]), "a list of 1099511627776 values, at most 4194304"),
    "5M numbers": (gguf([listed(U8, 5_000_000, bytes(5_000_000))]), "a list of 5000000 values"),
    "lists of lists": (gguf([listed(ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 5000)]), "the unknown type 9"),
    "an unknown type": (gguf([entry("x", 99, b"")]), "a value of the unknown type 99"),
    "dimensions": (gguf([NAME], n_tensors=1, rest=text("t") + struct.pack("<I", 2**31)), "of 2147483648 dimensions"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_is_refused_at_once(name: str, tmp_path: Path) -> None:
    content, message = HOSTILE[name]
    file = tmp_path / "x.gguf"
    file.write_bytes(content)
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(UserError, match=f"model 'x.gguf' cannot be loaded .*{message}.*Fetch it again.") as error:
            load_model(file)
        assert "\n" not in str(error.value)
        assert time.monotonic() - start < 2 and tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_an_ordinary_header_is_left_alone(tmp_path: Path) -> None:
    tokens = listed(STRING, 2, text("a") + text("b"))
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 300, 0, 0)
    (tmp_path / "x.gguf").write_bytes(gguf([NAME, tokens, entry("n", U32, bytes(4))], n_tensors=1, rest=tensor))
    check_gguf_header(tmp_path / "x.gguf", "model 'x.gguf'")


def test_another_version_is_for_the_reader_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 99, 2**60, 2**60))
    check_gguf_header(tmp_path / "x.gguf", "model 'x.gguf'")
    with pytest.raises(UserError, match="version 99"):
        load_model(tmp_path / "x.gguf")
