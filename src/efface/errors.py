"""What does the library raise, and how is it told? The command line makes one line and an exit code of either."""

import re

# C0 and C1 control characters, and those that turn the direction of what follows: a file's text in a message must not
# move the cursor, colour the terminal or rename its window.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class UserError(ValueError):
    """Bad input. The message says what was passed, why it cannot work, and what to do. Exit code 2."""


class RunError(RuntimeError):
    """The input was right but the run failed (non-finite loss, full disk). Exit code 1."""


class NotFinite(RunError):
    """What a model computes is NaN or infinite."""


def escaped(text: str) -> str:
    """`text` with its control characters, but for tabs and line ends, as they are written in source code."""
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode(), text)
