"""What is compared of a run? Its files as JSON, exact but for what two passes never have in common."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

LEFT_OUT = re.compile(
    "environment|(.*_)?versions?|command|available|made_by|_name_or_path|.*seconds|.*runtime|.*per_(second|minute)"
)
"""Keys; `available` is the memory that is free."""
OPAQUE = {".pt", ".pth", ".bin", ".tmp", ".part", "plan.json"}
"""Files of which only the name is noted; whether a plan is that of another run, the resumed cases tell."""
PRINTED = {
    r" *\d+(\.\d+)? ?(s|seconds|minutes?|pairs a minute)\b": r" N \2",
    r"\d+\.\d+ free": "N free",
    r"<code>efface .*?</code>": "<code>efface</code>",
    r"(versions\.[\w-]+</th><td>)[^<]*": r"\1",
}
"""Of texts for people: times, free memory, the command and the versions."""

Paths = dict[str, str]
"""Path -> what is told in its place."""


def told(text: str, paths: Paths) -> str:
    """A text for people, without what differs from run to run."""
    for pattern, replacement in PRINTED.items():
        text = re.sub(pattern, replacement, text)
    return _without_paths(re.sub(r"(?<=base64,)[\w+/=]+", lambda match: digest_of(match[0]), text), paths)


def _without_paths(text: str, paths: Paths) -> str:
    for path, name in paths.items():
        text = text.replace(path, name)
    return text


def normalised(value: Any, paths: Paths) -> Any:
    if isinstance(value, dict):
        found = {key: normalised(each, paths) for key, each in value.items() if not LEFT_OUT.fullmatch(key)}
        if isinstance(found.get("target_modules"), list):  # a set of peft's, whose order is that of hashes
            found["target_modules"].sort()
        return found
    if isinstance(value, list):
        return [normalised(each, paths) for each in value]
    return _without_paths(value, paths) if isinstance(value, str) else value


def contents(folder: Path, paths: Paths) -> dict[str, Any]:
    """All files of a folder; not what checkpoints hold, whose last one is the model itself."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    names = {file: file.relative_to(folder).as_posix() for file in files}
    return {name: _content(file, paths) for file, name in names.items() if "checkpoint-" not in name}


def _content(file: Path, paths: Paths) -> Any:
    if {file.suffix, file.name} & OPAQUE:
        return "(not read)"
    if file.suffix == ".json":
        found = json.loads(file.read_text())
        return digest_of(found) if file.name == "tokenizer.json" else normalised(found, paths)
    if file.suffix == ".jsonl":
        return [normalised(json.loads(line), paths) for line in file.read_text().splitlines()]
    if file.suffix == ".safetensors":
        return {name: _digest_of_tensor(tensor) for name, tensor in sorted(load_file(file).items())}
    try:
        return told(file.read_text(), paths).splitlines()
    except UnicodeDecodeError:
        return hashlib.sha256(file.read_bytes()).hexdigest()


def digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest_of_tensor(tensor: torch.Tensor) -> str:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(raw).hexdigest()}"


def difference(old: Any, new: Any, path: str = "") -> str | None:
    """Where two JSON values first differ, and how."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if key not in old or key not in new:
                return f"{path}.{key}: only in the {'old' if key in old else 'new'}"
            if found := difference(old[key], new[key], f"{path}.{key}"):
                return found
        return None
    if isinstance(old, list) and isinstance(new, list):
        for number, (one, other) in enumerate(zip(old, new, strict=False)):
            if found := difference(one, other, f"{path}[{number}]"):
                return found
        return None if len(old) == len(new) else f"{path}: {len(old)} and now {len(new)} long"
    return None if old == new and type(old) is type(new) else f"{path}: {str(old)[:300]!r} is now {str(new)[:300]!r}"
