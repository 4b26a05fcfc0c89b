"""What does `efface compare` write? A page of tables, two pictures for each sweep, and rows for published figures.

-o DIR/comparison.md      the tables
-o DIR/NAME-tradeoff.png  share against perplexity        -o DIR/NAME-steps.png   share against attack steps
-o DIR/comparison.json    rows {"model", "method", "seed", "metric", "value", "ci95", "command"}
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from efface.comparison.plots import literal, steps_figure, tradeoff_figure
from efface.comparison.results import benchmark_rows
from efface.comparison.table import comparison_page, markdown, read_sweep
from efface.errors import UserError
from efface.files.io import renamed_when_whole
from efface.files.jsonl import Row
from efface.files.markdown import inert
from efface.files.results import (
    RESULTS,
    check_output_dir,
    contents,
    prepare_output_dir,
    read_json,
    write_json,
    write_text,
)

PAGE, ROWS = "comparison.md", "comparison.json"
TRADEOFF, STEPS = "tradeoff", "steps"


def read_sweeps(directories: Sequence[str | os.PathLike[str]]) -> dict[str, Row]:
    """The results of sweeps by the names of their directories.

    Raises:
        UserError: if one is of something else, or two have the same name.
    """
    found: dict[str, Row] = {}
    for one in directories:
        path = Path(one)
        name = path.resolve().name
        if name in found:
            raise UserError(f"two sweeps are called {name!r}. Rename a directory, or pass one of them.")
        found[name] = read_sweep(read_json(path / RESULTS), os.fspath(path))
    return found


def check_page_dir(
    output: str | os.PathLike[str], *, overwrite: bool, inputs: Sequence[str | os.PathLike[str]] = ()
) -> None:
    """Nothing, if pages can be written to `output`: it is new or empty, or `overwrite` is given and nothing but pages
    lies there.

    Args:
        inputs: what is read, which must not lie there.

    Raises:
        UserError: if not. Nothing has been changed.
    """
    check_output_dir(output, overwrite=overwrite, resume=None, inputs=inputs)
    others = [one.name for one in contents(Path(output)) if not _is_own(one.name)]
    if others:
        raise UserError(
            f"output directory {os.fspath(output)!r} holds something else than such a page ({others[0]}). It is left "
            "alone: choose a new or empty directory."
        )


def _is_own(name: str) -> bool:
    return name in (PAGE, ROWS) or name.endswith((f"-{TRADEOFF}.png", f"-{STEPS}.png"))


def write_pages(results: Mapping[str, Row], output: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
    """Write page, pictures and rows of several sweeps into `output`; the files that were written.

    Raises:
        UserError: as `check_page_dir` does; what is there is deleted with `overwrite` alone.
    """
    check_page_dir(output, overwrite=overwrite)
    folder = prepare_output_dir(output, overwrite=overwrite, resume=None)
    written = []
    pictures = []
    for name, found in results.items():
        for kind, figure in ((TRADEOFF, tradeoff_figure(found)), (STEPS, steps_figure(found))):
            if figure is not None:
                path = folder / f"{name}-{kind}.png"
                with renamed_when_whole(path) as temporary:
                    literal(figure).savefig(temporary, format="png")
                written.append(path)
                pictures.append(f"![{inert(name)}, {kind}]({quote(path.name)})")
    write_text(folder / PAGE, markdown(comparison_page(results).blocks) + "\n" + "\n\n".join(pictures) + "\n")
    write_json(folder / ROWS, [row for found in results.values() for row in benchmark_rows(found)])
    return [folder / PAGE, folder / ROWS, *written]
