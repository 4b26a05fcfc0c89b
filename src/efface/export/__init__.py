"""HAND ON: what efface has made, in the formats of others, by name. A new one is one file and one entry here.

A format is a function `export(directory: Path, output: Path, *, overwrite: bool, say) -> list[Path]` that returns what
it has written; `say` is told, in a line each, what could not be handed on.
"""

from collections.abc import Callable
from pathlib import Path

from efface.registry import Entry, check_name, resolve

FORMATS = {
    "eee": Entry(
        "efface.export.eee:export_eee",
        "a folder of JSON, one a model that was measured, and of JSON lines, one a generation, for tables of many "
        "laboratories: of evaluations, attacks, audits",
        "Every Eval Ever, schema 0.3.0",
    ),
    "sarif": Entry(
        "efface.export.sarif:export_sarif",
        "a file that gates a merge: a result for each attack on each model, of attacks and audits",
        "SARIF 2.1.0",
    ),
    "inspect": Entry(
        "efface.export.inspect_log:export_inspect",
        "a folder of logs for its viewer: a sample for each continuation, of evaluations with their generations; it "
        "takes the extra `inspect`",
        "Inspect AI",
    ),
    "gguf": Entry(
        "efface.export.gguf:export_gguf",
        "the weights in one file, for llama.cpp and what is built on it: of a checkpoint",
        "GGUF",
    ),
}
FORM = "package.module:function"


def check_format(name: str) -> None:
    """Raise a `UserError` if there is no such format, as far as that is seen without importing it."""
    check_name("format", name, FORMATS, FORM)


def load_format(name: str) -> Callable[..., list[Path]]:
    """What exports to the format called `name`, or what lies at the dotted path `package.module:function`.

    Raises:
        UserError: if there is none.
    """
    found: Callable[..., list[Path]] = resolve("format", name, FORMATS, FORM)
    return found
