"""What does it take to make a figure again? The stamp of every result: versions, seed, device, commit, command."""

import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def environment(
    *, seed: int | None, model: "nn.Module | None", command: str | None, further: Sequence[str] = ()
) -> dict[str, Any]:
    """What it takes to reproduce a figure: versions, seed, device, dtype, threads, command. No host, no paths.

    Args:
        further: packages that had a part in it beside those that always have.
    """
    import torch

    parameter = None if model is None else next(model.parameters(), None)
    return {
        "versions": versions(*further),
        "seed": seed,
        "device": None if parameter is None else str(parameter.device),
        "dtype": None if parameter is None else str(parameter.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "command": command,
    }


@cache
def _commit() -> str | None:
    """Of the checkout that this is run from, if it is one; read once, since the code that runs does not change."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()[:12] or None


def versions(*further: str) -> dict[str, str | None]:
    """Of what figures depend on, and of `further` packages."""
    import torch

    return {
        "python": platform.python_version(),
        "efface": _version("efface") or "unknown",
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "scikit-learn": _version("scikit-learn"),
        **{name: _version(name) for name in further},
    }


@cache
def _version(distribution: str) -> str | None:
    """Read once: what is loaded does not change."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
