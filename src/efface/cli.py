"""The command line: parse, call one function, print. Nothing heavy is imported before a command needs it."""

import argparse
import contextlib
import logging
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from efface import __version__
from efface.commands import (
    analyze,
    attack,
    audit,
    compare,
    demo,
    detox,
    doctor,
    evaluate,
    export,
    lists,
    merge,
    pairs,
    report,
    robustify,
    scale,
    scorers,
    sweep,
    train,
)
from efface.commands.fields import spell_with_dashes
from efface.commands.options import loading_options
from efface.errors import RunError, UserError, described, escaped, one_line, out_of_memory
from efface.files.redaction import redacted_arguments
from efface.model.hub import offline
from efface.terminal.harmless import harmless
from efface.terminal.signals import INTERRUPTED, STOPPED, Terminated, deaf, terminable

VERBOSE_HELP = "also print what the library logs, and the traceback of an error"
OFFLINE_HELP = "ask nothing of a network: models and data are here, or in the caches"
QUIET_HELP = "print the result and errors, and nothing else: no progress, no notices, no warnings"


class _Help(argparse.HelpFormatter):
    """Says the default of every flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, value = action.help or "", action.default
        told = "default:" in text or not action.option_strings or value is argparse.SUPPRESS
        if told or value is None or isinstance(value, bool) or value == []:
            return action.help
        said = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        return f"{text} (default: {said.replace('%', '%%')})"


class Parser(argparse.ArgumentParser):
    """Raises `UserError` (one line, exit code 2) where argparse would print its whole usage.

    A flag may be written with dashes or, as the fields of the library, with underscores; help prints dashes.
    """

    def __init__(self, **given: Any):
        super().__init__(formatter_class=_Help, **given)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = sys.argv[1:] if args is None else args
        options, abbreviated = list(self._option_string_actions), self.allow_abbrev
        words = [spell_with_dashes(word, options, abbreviated=abbreviated) for word in given]
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> Any:
        raise UserError(f"{message}. See `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; whatever ends it is told in one line (-v adds the traceback).

    Returns:
        0 (done), 1 (the run failed), 2 (the user's input is wrong), 130 (interrupted), 141 (who read standard output
        has gone), 143 (stopped by SIGTERM, after the same clean-up).
    """
    with terminable():
        return _main(list(sys.argv[1:] if argv is None else argv))


def entry() -> int:
    """`main` as a program: once its exit code is settled, no signal changes it."""
    code = main()
    deaf()
    return code


def _main(argv: list[str]) -> int:
    verbose, options = "-v" in argv or "--verbose" in argv, None  # until the command line is understood
    try:
        options, rest = build_parser().parse_known_args(argv)
        verbose = options.verbose
        if verbose and options.quiet:
            raise UserError("--verbose and --quiet exclude each other. Give one.")
        if rest and options.run not in (train.run, attack.run):
            raise UserError(f"unknown argument {rest[0]!r}. See `efface {options.command} --help`.")
        handler = logging.StreamHandler()
        handler.setFormatter(_Formatter("%(levelname)s %(message)s"))
        logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
        options.rest, options.command_line = rest, shlex.join(["efface", *redacted_arguments(argv)])
        with harmless(), offline() if options.offline else contextlib.nullcontext():
            _run(options)
    except UserError as error:
        return _failed(2, str(error), verbose)
    except RunError as error:
        return _failed(1, str(error), verbose)
    except KeyboardInterrupt as error:
        code = STOPPED if isinstance(error, Terminated) else INTERRUPTED
        return _failed(code, str(error) or _interrupted(options))
    except BrokenPipeError:
        return 141  # as a program ends that the signal of a closed pipe kills: nobody reads on, so nothing is said
    except Exception as error:  # the one place where the unexpected ends
        return _failed(1, _unexpected(error), verbose)
    finally:
        _leave_group()
        _close_standard_output()
    return 0


def _run(options: argparse.Namespace) -> None:
    try:
        if options.refuse is not None:  # a wrong name is refused before anything is imported that takes seconds
            options.refuse(options)
        from efface.terminal.progress import bars  # on use, as all that --help does not need

        with _together(options):
            with _silenced(options.quiet), bars(not options.quiet), _loading(options):
                options.run(options)
            if sys.stdout is not None:  # which it is if it was closed from the start
                sys.stdout.flush()  # a full disk or a closed pipe shows here, not after the exit code is settled
    except SystemExit as error:  # a third party's code: this program ends by returning
        raise RunError(f"`efface {options.command}` was ended by code that it called: {described(error)}.") from error


@contextlib.contextmanager
def _silenced(quiet: bool) -> Iterator[None]:
    """With `quiet`, nobody's warnings are told inside."""
    before = logging.root.manager.disable
    with warnings.catch_warnings() if quiet else contextlib.nullcontext():
        if quiet:
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _together(options: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """With the other processes of a command that a launcher has started several times, if it divides its work."""
    launched = os.environ.get("WORLD_SIZE", "1") != "1" and {"RANK", "MASTER_ADDR"} <= os.environ.keys()
    if not (options.divided and launched and options.output is not None):
        return contextlib.nullcontext()
    from efface.commands.together import together  # on use: it imports numpy

    return together(options)


def _loading(options: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    found = loading_options(options)
    if not found:
        return contextlib.nullcontext()
    from efface.model.loading import loading  # on use: it imports torch

    return loading(**found)


def _unexpected(error: Exception) -> str:
    if out_of_memory(error):
        return (
            f"out of memory: {described(error)}. Take smaller batches (--per_device_train_batch_size in training, "
            "--max-tokens-at-once elsewhere), shorter texts or a smaller model."
        )
    if isinstance(error, OSError):  # the machine's, not ours: a full disk, a right that is missing
        return described(error)
    if any(kind.__name__ in ("NetworkError", "ConnectTimeout", "HfHubHTTPError") for kind in type(error).__mro__):
        return f"the Hugging Face hub, or a tracker, could not be reached: {described(error)}."
    return f"{described(error)}. (-v shows where; if the input is right, this is a defect of efface.)"


def _interrupted(options: argparse.Namespace | None) -> str:
    """What is true of every command; those that know more say so themselves."""
    if not hasattr(options, "resume"):
        return "interrupted."
    return "interrupted. What was finished is kept: the same command with --resume goes on."


def _failed(code: int, message: str, verbose: bool = False) -> int:
    if "tqdm" in sys.modules:
        from efface.terminal.progress import close_bars

        close_bars()  # or the message would stand behind a half-drawn bar
    with contextlib.suppress(OSError):  # nobody can be told
        error = sys.exc_info()[1]
        # Of the library's own errors the line says all, unless they stand for another one.
        if verbose and error is not None and (not isinstance(error, UserError | RunError) or error.__cause__):
            for line in traceback.format_exc().splitlines():
                print(escaped(line), file=sys.stderr)
        print(f"efface: {name_flags(one_line(message))}", file=sys.stderr)
    return code


def name_flags(message: str) -> str:
    """The library tells what to set by the names of its arguments (`resume=True`); here these are flags."""
    message = re.sub(r"\b(overwrite|resume|skip_bad_rows)=True\b", lambda match: f"--{match[1]}", message)
    return message.replace("base=MODEL", "--base MODEL").replace("--skip_bad_rows", "--skip-bad-rows")


def _leave_group() -> None:
    """Of several processes that a launcher has started each leaves by itself: Python's own end may wait for ever."""
    if "efface.training.processes" in sys.modules:
        from efface.training.processes import leave_group  # on use: who has not trained has no group

        leave_group()


def _close_standard_output() -> None:
    """What cannot be written is given up here: at its end Python would try again, and say so in lines of its own."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):  # full, gone, or closed
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Formatter(logging.Formatter):
    """Log lines may quote files of anybody's making."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))


def build_parser() -> Parser:
    parser = Parser(
        prog="efface", description="Erase toxicity from a language model's hidden representations, and measure it."
    )
    parser.add_argument("-v", "--verbose", action="store_true", help=VERBOSE_HELP)
    parser.add_argument("--version", action="version", version=f"efface {__version__}")
    parser.add_argument("-q", "--quiet", action="store_true", help=QUIET_HELP)
    parser.add_argument("--offline", action="store_true", help=OFFLINE_HELP)
    parser.set_defaults(refuse=None, divided=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for command in (
        demo,
        detox,
        pairs,
        train,
        robustify,
        scale,
        evaluate,
        attack,
        audit,
        sweep,
        compare,
        analyze,
        report,
        merge,
        export,
        scorers,
        doctor,
        lists,
    ):
        command.add(commands)
    for subparser in commands.choices.values():  # after the command too; not given there, it leaves the flag as it is
        subparser.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help=VERBOSE_HELP)
        subparser.add_argument("-q", "--quiet", action="store_true", default=argparse.SUPPRESS, help=QUIET_HELP)
        subparser.add_argument("--offline", action="store_true", default=argparse.SUPPRESS, help=OFFLINE_HELP)
    return parser


if __name__ == "__main__":
    sys.exit(main())
