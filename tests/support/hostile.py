"""What do files of somebody who means harm hold? Texts, a pickle that runs, and a GGUF header of any content."""

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAYLOADS = {
    "script": "<script>alert(1)</script>",
    "attribute": "\" onmouseover='alert(1)'><img src=x onerror=alert(1)>",
    "template": "{{ 7 * 7 }}{% for a in b %}{% endfor %}",
    "link": "[click](javascript:alert(1)) ![x](https://example.org/x.png) [a][b]",
    "cell": "a | b || c \\| d",
    "code": "``` `end` ~~~",
    "comment": "--> <!-- x ]]> </td></tr></table>",
    "entity": "&lt;script&gt; &#60;b&#62;",
    "line": "one\n# two\r\nthree\u2028four",
    "colour": "\x1b[31mred\x1b[0m",
    "title": "\x1b]0;renamed\x07",
    "c1": "\x9b31m\x90q\x9c",
    "bidi": "safe\u202edetsurt\u202c\u2066x\u2069\u200f\u061c",
    "erase": "\x08\x08\x7f\x00",
    "mathematics": "$\\frac{$ $\\evil{a}$",
}
"""Kind -> text, as a model may write it, or a file name a model, a judge or a tensor."""
CONTROL = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"]
CONTROL += [*"\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"]
"""What a terminal obeys instead of showing it."""


class Runs:
    """Unpickled where that is allowed to run code, it leaves a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (os.fspath(self.mark),)


def text(value: str) -> bytes:
    """As GGUF writes it: its length before it."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(name: str, kind: int, value: bytes) -> bytes:
    """An entry of GGUF's metadata."""
    return text(name) + struct.pack("<I", kind) + value


def gguf(
    entries: Sequence[bytes] = (), *, n_entries: int | None = None, n_tensors: int = 0, rest: bytes = b""
) -> bytes:
    """A file of these entries that announces as many as it is told."""
    counts = struct.pack("<IQQ", 3, n_tensors, len(entries) if n_entries is None else n_entries)
    return b"GGUF" + counts + b"".join(entries) + rest
