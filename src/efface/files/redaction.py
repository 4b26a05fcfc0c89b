"""What of settings and of a command line must not reach a file? The values of tokens, keys and passwords.

A run directory is what one publishes, and its `results.json` holds both. A value is secret by the name it has,
wherever it stands in a structure or in a text of JSON, or by itself: the value of a secret variable of the
environment, the form of a token of a known service, the name and password in a URL.
"""

import json
import os
import re
from collections.abc import Sequence
from typing import Any

REDACTED = "(redacted)"

# By the last word of the name: `hub_token`, `api-key`; not `max_batch_tokens`, which counts.
_SECRET = re.compile(r"(?:^|[_\-.])(?:token|key|apikey|password|passwd|secret|credentials?)$", re.IGNORECASE)
_TOKENS = re.compile(r"\b(?:hf_|sk-|ghp_|gho_|github_pat_|glpat-|xox[abp]-|AKIA)[A-Za-z0-9_\-]{16,}")
"""What tokens of services look like that people who train models have."""
_IN_URL = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_ABBREVIATED = re.compile(r"--hub[_-]t(?:o(?:k(?:en?)?)?)?")
"""The parser of settings takes the beginning of a flag for it; this is the one secret of transformers' Trainer."""
SHORTEST = 8
"""Characters of the value of a secret variable that is looked for in texts: shorter ones stand in words."""


def redacted(settings: Any) -> Any:
    """`settings` (dictionaries and lists of them) without what is secret."""
    if isinstance(settings, dict):
        return {
            name: REDACTED if value is not None and _SECRET.search(str(name)) else redacted(value)
            for name, value in settings.items()
        }
    if isinstance(settings, list | tuple):
        return [redacted(value) for value in settings]
    return _redacted_text(settings) if isinstance(settings, str) else settings


def redacted_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line likewise, `--hub_token VALUE` and `--hub_token=VALUE`."""
    found: list[str] = []
    secret = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        is_flag = argument.startswith("--")
        if secret and not is_flag:
            found.append(REDACTED)
        elif is_flag and equals:
            found.append(f"{name}={REDACTED if _is_secret_flag(name) else _redacted_text(value)}")
        else:
            found.append(_redacted_text(argument))
        secret = is_flag and not equals and _is_secret_flag(name)
    return found


def _is_secret_flag(name: str) -> bool:
    return _SECRET.search(name) is not None or _ABBREVIATED.fullmatch(name) is not None


def _redacted_text(text: str) -> str:
    if text.lstrip().startswith(("{", "[")):  # some settings are an object written as JSON
        try:
            parsed = json.loads(text)
            clean = redacted(parsed)
        except (ValueError, RecursionError):
            pass
        else:
            return text if clean == parsed else json.dumps(clean)
    for value in _values_of_environment():
        text = text.replace(value, REDACTED)
    return _TOKENS.sub(REDACTED, _IN_URL.sub(REDACTED, text))


def _values_of_environment() -> list[str]:
    """Longest first, for one may be a part of another."""
    found = {value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= SHORTEST}
    return sorted(found, key=len, reverse=True)
