"""What does the library raise, and what is an exception in one line? The command line adds the exit code."""

import errno


class UserError(ValueError):
    """Bad input. The message says what was passed, why it cannot work, and what to do. Exit code 2."""


class RunError(RuntimeError):
    """The input was right but the run failed (non-finite loss, full disk). Exit code 1."""


def reason_of(error: BaseException) -> str:
    """What an exception of somebody else's code says, as a part of our one line: its first line, printable, not long.

    With the name of its class where the message alone means nothing ("'model_type'" of a KeyError).
    """
    text = (error.strerror or "") if isinstance(error, OSError) and error.errno is not None else str(error)
    lines = text.strip().splitlines()
    name = type(error).__name__
    if not lines:
        return name
    line = "".join(letter if letter.isprintable() else " " for letter in lines[0]).strip()
    if isinstance(error, KeyError | IndexError | TypeError | AttributeError | AssertionError):
        line = f"{name}: {line}"
    return line if len(line) <= 300 else line[:297] + "..."


def out_of_memory(error: BaseException) -> bool:
    """Whether this says that there was not enough; the CPU's allocator has no error of its own."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's, unimported
    numbered = isinstance(error, OSError) and error.errno == errno.ENOMEM
    said = any(words in str(error).lower() for words in ("can't allocate memory", "cannot allocate memory"))
    return named or numbered or said
