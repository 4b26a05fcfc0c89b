"""How does a sweep of ten hours go on on another machine? From the JSON that it left, packed into the repository.

    python benchmarks/carry.py pack runs/comparison      what is new there, into benchmarks/results/runs/
    python benchmarks/carry.py unpack runs/comparison    all that is packed of it, from which `--resume` goes on

The same of `runs/judge`: by another judge, were it trained anew to other bits, nothing would be the same sweep.
Checkpoints stay behind: `efface sweep` trains again what something is still asked of. Files that have changed since
they were packed are packed again, and the later one holds. Generations are among them, toxic ones too.
"""

import argparse
import io
import tarfile
from pathlib import Path

from common import RESULTS

from efface.errors import UserError

KEPT = RESULTS / "runs"
ENDING = ".tar.xz"
SUFFIXES = {".json", ".jsonl", ".safetensors"}
LEFT = {"model", ".claims"}
"""What is not packed: checkpoints, and who is at work."""


def archives(run: str) -> list[Path]:
    """Those of a run, the oldest first; not of one whose name begins likewise."""
    numbers = {file: file.name[len(run) + 1 :].removesuffix(ENDING) for file in KEPT.glob(f"{run}-*{ENDING}")}
    return sorted((file for file, number in numbers.items() if number.isdigit()), key=lambda file: int(numbers[file]))


def packed(run: str) -> dict[str, bytes]:
    """Path in the run -> contents, of all its archives."""
    found: dict[str, bytes] = {}
    for file in archives(run):
        with tarfile.open(file) as archive:
            for member in archive.getmembers():
                content = archive.extractfile(member)
                if content is not None:
                    found[member.name] = content.read()
    return found


def files_of(run: Path) -> dict[str, bytes]:
    """What of a run is to be kept: whole files of JSON, and the numbers of a judge."""
    found = {file.relative_to(run): file for file in sorted(run.rglob("*")) if file.suffix in SUFFIXES}
    taken = {path: file for path, file in found.items() if not LEFT & set(path.parts)}
    return {path.as_posix(): file.read_bytes() for path, file in taken.items()}


def pack(run: Path) -> str:
    """Write the next archive of a run, and say what is in it."""
    before = packed(run.name)
    new = {path: content for path, content in files_of(run).items() if before.get(path) != content}
    if not new:
        return f"{run}: nothing that is not packed."
    file = KEPT / f"{run.name}-{len(archives(run.name)) + 1}{ENDING}"
    file.parent.mkdir(exist_ok=True)
    with tarfile.open(file, "w:xz", preset=9) as archive:
        for path, content in new.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return f"{file}: {len(new)} files, {file.stat().st_size / 1e6:.1f} MB"


def unpack(run: Path) -> str:
    """Write what is packed of a run where it was. Raises UserError rather than overwrite what is there."""
    content = packed(run.name)
    if not content:
        raise UserError(f"{KEPT} holds no archive of {run.name!r}. Pack one first.")
    other = [path for path, kept in content.items() if (run / path).exists() and (run / path).read_bytes() != kept]
    if other:
        raise UserError(f"{run} holds other files than were packed, {other[0]} among them. Name a new directory.")
    for path, kept in content.items():
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).write_bytes(kept)
    return f"{run}: {len(content)} files"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=["pack", "unpack"])
    options.add_argument("run", type=Path, help="the directory of a sweep; by its name the archives are known")
    args = options.parse_args()
    try:
        print((pack if args.what == "pack" else unpack)(args.run))
    except UserError as error:
        raise SystemExit(f"carry: {error}") from error


if __name__ == "__main__":
    main()
