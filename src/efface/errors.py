"""What does the library raise? The command line turns either error into one line and an exit code."""


class UserError(ValueError):
    """Bad input. The message says what was passed, why it cannot work, and what to do. Exit code 2."""


class RunError(RuntimeError):
    """The input was right but the run failed (non-finite loss, full disk). Exit code 1."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line: its first, or the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
