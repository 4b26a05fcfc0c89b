"""Are the files of a checkpoint those that were written? `manifest.json` says so: SHA-256 and size of each.

Of everything that makes the model or says what it is: weights, tokenizer, configuration, results, card; also of those
in a folder below that has weights (`without-interventions`). Not of what Trainer needs to go on (`checkpoint-*`).
"""

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from efface.errors import RunError, UserError, reason_of
from efface.files.digests import file_sha256
from efface.files.io import is_regular_file
from efface.files.rerun import CHECKPOINTS
from efface.files.results import read_json, write_json
from efface.files.shapes import Each

NAME = "manifest.json"
WEIGHTS = ("*.safetensors", "*.bin", "*.index.json", "adapter_config.json")
"""What a loader takes weights from: one more of these is another model."""
LISTED = (*WEIGHTS, "*.json", "*.jinja", "*.model", "*.txt", "*.md")
SHAPE = {"schema": int, "files": Each({"sha256": str, "bytes": int})}


def write_manifest(directory: Path) -> None:
    """Write the manifest of a checkpoint, which is read once for it.

    Raises:
        RunError: if it cannot be read or written.
    """
    try:
        files = {name: {"sha256": file_sha256(file), "bytes": file.stat().st_size} for name, file in _files(directory)}
    except OSError as error:
        raise RunError(f"{directory / NAME} was not written: {reason_of(error)}.") from error
    write_json(directory / NAME, {"schema": 1, "files": files})


def check_manifest(directory: Path) -> int:
    """Compare a checkpoint with its manifest.

    Returns:
        How many files it names, all of which are as they were written.

    Raises:
        UserError: if there is none, or naming the first file that is missing, was added or has changed.
    """
    if not is_regular_file(directory / NAME):
        raise UserError(
            f"{directory} has no {NAME}: nothing says what its files were. Whatever writes a checkpoint with a card "
            "writes one: `efface train`, `merge`, `detox`."
        )
    listed = read_json(directory / NAME, SHAPE)["files"]
    for name in sorted(listed):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{directory / NAME} names a file outside of the directory: {name!r}. Fetch it again.")
        if not is_regular_file(directory / name):
            raise _other(directory, name, "is missing")
    for name, _ in _files(directory):
        if name not in listed and _is_one_of(WEIGHTS, name):
            raise _other(directory, name, "was added")
    for name in sorted(listed, key=lambda name: (listed[name]["bytes"], name)):  # the large ones take minutes
        file = directory / name
        if file.stat().st_size != listed[name]["bytes"] or file_sha256(file) != listed[name]["sha256"]:
            raise _other(directory, name, "has changed")
    return len(listed)


def _other(directory: Path, name: str, what: str) -> UserError:
    return UserError(
        f"{directory / name} {what} since {NAME} was written: this is not the checkpoint as it was made. Fetch it "
        "again."
    )


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Name from `directory` on, and path, of the files that a manifest lists."""
    below = [entry for entry in directory.iterdir() if entry.is_dir() and not fnmatch(entry.name, CHECKPOINTS)]
    for folder in (directory, *sorted(folder for folder in below if any(folder.glob("*.safetensors")))):
        for file in sorted(folder.iterdir()):
            name = file.relative_to(directory).as_posix()
            if name != NAME and not name.startswith(".") and _is_one_of(LISTED, name) and is_regular_file(file):
                yield name, file


def _is_one_of(patterns: tuple[str, ...], name: str) -> bool:
    return any(fnmatch(PurePosixPath(name).name, pattern) for pattern in patterns)
