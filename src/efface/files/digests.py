"""What stands for a value or a file? A hash of it. Every formula is in keys and files on disk, and so stays as it is.

Short: what is written into part files, caches, seals and manifests must come from one place.
"""

import hashlib
import json
from pathlib import Path
from typing import Any


def digest(value: Any, digits: int = 12) -> str:
    """So many hexadecimal digits that stand for a JSON value: equal values have equal ones."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:digits]


def key_of(value: Any) -> str:
    """32 hexadecimal digits, the key of a cache, that stand for a JSON value with its keys in this order."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """32 hexadecimal digits that stand for what a file holds."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of what a file holds, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
