"""HAND ON: what efface has made, in the formats of others, by name. A new one is one file and one entry here.

A format is a function `export(directory: Path, output: Path, *, overwrite: bool, say) -> list[Path]` that returns what
it has written; `say` is told, in a line each, what could not be handed on. One that writes a folder asks
`check_export_dir` before it reads anything, and gets the folder from `prepare_export_dir`.
"""

from collections.abc import Callable
from pathlib import Path

from efface.errors import UserError
from efface.files.results import (
    MARKER,
    WHAT,
    check_output_dir,
    contents,
    prepare_output_dir,
    read_json,
    write_json,
)
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


def check_export_dir(
    output: Path, form: str, own: Callable[[Path], bool], *, overwrite: bool, directory: Path
) -> None:
    """Nothing, if an export can be written to the folder `output`: it is new or empty, or `overwrite` is given and an
    earlier export of the same format is all that lies there.

    Args:
        form: the name of the format, which `prepare_export_dir` has left in the folder of an earlier one.
        own: whether an entry of that folder is what the format writes: another run may have come there since.
        overwrite: an earlier export may be replaced.
        directory: what is exported, which must not lie there.

    Raises:
        UserError: if not. Nothing has been changed.
    """
    check_output_dir(output, overwrite=overwrite, resume=None, inputs=[directory])
    there = contents(output)
    if there and not (_form_of(output) == form and all(map(own, there))):
        raise UserError(
            f"output directory {str(output)!r} holds something else than an export as {form}. It is left alone: "
            "choose a new or empty directory."
        )


def prepare_export_dir(output: Path, form: str, *, overwrite: bool) -> Path:
    """Empty what `check_export_dir` has allowed, or make it, and mark it as an export of the format `form`."""
    folder = prepare_output_dir(output, overwrite=overwrite, resume=None)
    write_json(folder / MARKER, {"schema": 1, "what": WHAT, "export": form})
    return folder


def _form_of(output: Path) -> str | None:
    """Of which format the export in a folder is, if there is one."""
    try:
        return read_json(output / MARKER, {"export": str})["export"]
    except UserError:
        return None
