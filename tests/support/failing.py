"""How does an attack fail at a chosen point?"""

from typing import Any

import pytest

from efface.attacks.target import Target
from efface.errors import RunError

TEXT = ["The town is old and the river is cold. " * 3]


def fail_at_(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    measure, calls = Target.measure, list[int]()

    def counted(self: Target, *args: Any, **kwargs: Any) -> Any:
        calls.append(0)
        if len(calls) == number:
            raise RunError("lost.")
        return measure(self, *args, **kwargs)

    monkeypatch.setattr(Target, "measure", counted)
