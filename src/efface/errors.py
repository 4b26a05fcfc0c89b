"""What does the library raise, and what is an exception of others in one line? The command line adds the exit code."""

import contextlib
import errno
import re
from collections.abc import Iterator

LONGEST = 1_500
"""Characters of a line; a message may quote what the user passed, which has no bounds."""

# C0 and C1 control characters, and those that turn the direction of what follows: a file's text in a message must not
# move the cursor, colour the terminal or rename its window.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class UserError(ValueError):
    """Bad input. The message says what was passed, why it cannot work, and what to do. Exit code 2."""


class RunError(RuntimeError):
    """The input was right but the run failed (non-finite loss, full disk). Exit code 1."""


class NotFinite(RunError):
    """What a model computes is NaN or infinite."""


def one_line(text: object, longest: int = LONGEST) -> str:
    """`text` as one line that does a terminal no harm: line ends as spaces, control characters escaped, cut in the
    middle if it is longer than `longest`."""
    line = escaped(" ".join(piece.strip() for piece in str(text).splitlines())).strip()
    if len(line) <= longest:
        return line
    half = longest // 2
    return f"{line[:half]} [... {len(line) - 2 * half} characters ...] {line[-half:]}"


def escaped(text: str) -> str:
    """`text` with its control characters, but for tabs and line ends, as they are written in source code."""
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


def described(error: BaseException) -> str:
    """An unexpected exception in one line: its kind and what it says."""
    says = one_line(error)
    return f"{type(error).__name__}: {says}" if says else type(error).__name__


def reason_of(error: BaseException, *, named: bool = False) -> str:
    """What an exception of somebody else's code says, as a part of our one line: its first line, printable, not long.

    With the name of its class where the message alone means nothing ("'model_type'" of a KeyError), or if `named`.
    """
    text = (error.strerror or "") if isinstance(error, OSError) and error.errno is not None else str(error)
    lines = text.strip().splitlines()
    name = type(error).__name__
    if not lines:
        return name
    line = "".join(letter if letter.isprintable() else " " for letter in lines[0]).strip()
    if named or isinstance(error, KeyError | IndexError | TypeError | AttributeError | AssertionError):
        line = f"{name}: {line}"
    return line if len(line) <= 300 else line[:297] + "..."


def out_of_memory(error: BaseException) -> bool:
    """Whether this says that there was not enough; the CPU's allocator has no error of its own."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's, unimported
    numbered = isinstance(error, OSError) and error.errno == errno.ENOMEM
    said = any(words in str(error).lower() for words in ("can't allocate memory", "cannot allocate memory"))
    return named or numbered or said


@contextlib.contextmanager
def explained(
    what: str, hint: str = "Save it again, or pass another.", verb: str = "cannot be loaded"
) -> Iterator[None]:
    """Turn whatever transformers, peft, tokenizers or the system raise inside into one line about `what`.

    Raises:
        RunError: for want of memory.
        UserError: for anything else.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except BaseException as error:
        # A panic of tokenizers' Rust is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if out_of_memory(error):
            raise RunError(
                f"{what} does not fit into memory ({reason_of(error)}). Pass a smaller one, or run where more is free."
            ) from error
        reason = reason_of(error)
        if "trust_remote_code" in str(error):
            reason, hint = "it needs code of its own", "Code from a repository is never run: pass another model."
        elif isinstance(error, ImportError):
            hint = "Install what it needs, or pass it in full precision."
        raise UserError(f"{what} {verb} ({reason}). {hint}") from error
