"""Can what the header of a GGUF file announces be in the file? Asked before a reader believes it.

The reader of the package `gguf` makes an object of each element of an array, and goes on after the end of the file: an
array of 2^40 numbers that are not there would fill the memory. Here the file is walked through once, element sizes are
added up, and what cannot be is an error. The format: github.com/ggml-org/ggml, docs/gguf.md.
"""

import os
import struct
from pathlib import Path
from typing import BinaryIO

from efface.errors import UserError

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type: numbers and booleans."""
STRING, ARRAY = 8, 9
MOST_VALUES = 2**22
"""Elements of an array: sixteen times the largest vocabulary, and what the reader makes of them fits into memory."""
MOST_ENTRIES = 2**17
"""Entries of metadata, and tensors: a model of some hundred blocks and experts has some thousands."""
LONGEST_NAME = 2**16
MOST_DIMENSIONS = 8
VERSIONS = (2, 3)


def check_gguf_header(path: Path, what: str) -> None:
    """Nothing, if all that the header announces is there.

    Args:
        what: it is, for the error: "model 'x.gguf'".

    Raises:
        UserError: naming what cannot be.
    """
    with path.open("rb") as file:
        try:
            _Walk(file, os.fstat(file.fileno()).st_size).all()
        except (ValueError, struct.error) as error:
            reason = "its header ends in the middle" if isinstance(error, struct.error) else str(error)
            raise UserError(f"{what} cannot be loaded ({reason}). Is the file cut short? Fetch it again.") from error


class _Walk:
    """Through the header of a file of `size` bytes."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size = file, size

    def all(self) -> None:
        self.skip(4, "the mark GGUF")
        (version,) = self.numbers("<I")
        if version not in VERSIONS:  # a big-endian one among them; the reader knows what to say
            return
        tensors, entries = self.numbers("<QQ")
        for count, what in ((tensors, "tensors"), (entries, "entries of metadata")):
            if count > MOST_ENTRIES:
                raise ValueError(f"its header announces {count} {what}, at most {MOST_ENTRIES} can be")
        for _ in range(entries):
            self.text("the name of an entry", LONGEST_NAME)
            (kind,) = self.numbers("<I")
            self.value(kind)
        for _ in range(tensors):
            self.text("the name of a tensor", LONGEST_NAME)
            (dimensions,) = self.numbers("<I")
            if dimensions > MOST_DIMENSIONS:
                raise ValueError(f"a tensor of {dimensions} dimensions")
            self.skip(8 * dimensions + 4 + 8, "a tensor's shape")

    def value(self, kind: int) -> None:
        if kind in SIZES:
            self.skip(SIZES[kind], "a value")
        elif kind == STRING:
            self.text("a text", self.size)
        elif kind == ARRAY:
            inner, count = self.numbers("<IQ")
            if count > MOST_VALUES:
                raise ValueError(f"a list of {count} values, at most {MOST_VALUES} can be")
            if inner in SIZES:
                self.skip(SIZES[inner] * count, "a list")
            elif inner == STRING:
                for _ in range(count):
                    self.text("a text of a list", self.size)
            else:  # lists of lists: nobody writes them, and the reader cannot tell them apart from lists
                raise ValueError(f"a list of values of the unknown type {inner}")
        else:
            raise ValueError(f"a value of the unknown type {kind}")

    def text(self, what: str, longest: int) -> None:
        (length,) = self.numbers("<Q")
        if length > longest:
            raise ValueError(f"{what} has {length} bytes by its header")
        self.skip(length, what)

    def numbers(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.file.read(struct.calcsize(form)))

    def skip(self, length: int, what: str) -> None:
        if self.file.tell() + length > self.size:
            raise ValueError(f"{what} of {length} bytes goes beyond its end")
        self.file.seek(length, os.SEEK_CUR)
