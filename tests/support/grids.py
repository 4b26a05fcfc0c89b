"""Which cells of a grid are tried in every run, and which only with --full?

Short: the answer is a mark.
"""

from collections.abc import Iterable
from typing import Any

import pytest

SOME = ("llama", "gpt2", "gemma3")
"""A plain family, one with learned positions, one with two kinds of attention."""


def few(names: Iterable[str], always: Iterable[str] = SOME) -> list[Any]:
    """Parameters of a test: those not among `always` are part of the full grid."""
    always = tuple(always)
    return [name if name in always else pytest.param(name, marks=pytest.mark.full) for name in names]
