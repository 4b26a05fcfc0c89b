"""What of settings and of a command line must not reach a file? The values of tokens, keys and passwords.

A run directory is what one publishes, and its `results.json` holds both.
"""

import re
from collections.abc import Sequence
from typing import Any

REDACTED = "(redacted)"

# By the last word of the name: `hub_token`, `api-key`; not `max_batch_tokens`, which counts.
_SECRET = re.compile(r"(?:^|[_\-.])(?:token|key|apikey|password|passwd|secret|credentials?)$", re.IGNORECASE)


def redacted(settings: Any) -> Any:
    """`settings` (dictionaries and lists of them) without the values whose names say that they are secret."""
    if isinstance(settings, dict):
        return {
            name: REDACTED if value is not None and _SECRET.search(str(name)) else redacted(value)
            for name, value in settings.items()
        }
    if isinstance(settings, list | tuple):
        return [redacted(value) for value in settings]
    return settings


def redacted_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line likewise, `--hub_token VALUE` and `--hub_token=VALUE`."""
    found: list[str] = []
    secret = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if secret and not argument.startswith("--"):
            found.append(REDACTED)
        elif argument.startswith("--") and equals and _SECRET.search(name):
            found.append(f"{name}={REDACTED}")
        else:
            found.append(argument)
        secret = argument.startswith("--") and not equals and _SECRET.search(name) is not None
    return found
