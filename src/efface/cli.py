"""The command line: parse, call one function, print. Nothing heavy is imported before a command needs it."""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from efface.commands import attack, audit, demo, evaluate, lists, pairs, robustify, scorers, train
from efface.errors import RunError, UserError


class Parser(argparse.ArgumentParser):
    """Raises `UserError` (one line, exit code 2) where argparse would print its whole usage."""

    def error(self, message: str) -> Any:
        raise UserError(f"{message}. See `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0 (done), 1 (the run failed), 2 (the user's input is wrong), 130 (interrupted)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        options, rest = build_parser().parse_known_args(argv)
        if rest and options.run not in (train.run, attack.run):
            raise UserError(f"unknown argument {rest[0]!r}. See `efface {options.command} --help`.")
        logging.basicConfig(
            level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(message)s"
        )
        options.rest, options.command_line = rest, shlex.join(["efface", *argv])
        options.run(options)
    except UserError as error:
        return _failed(2, str(error))
    except RunError as error:
        return _failed(1, str(error))
    except KeyboardInterrupt:
        return _failed(130, "interrupted. What was finished is kept; `--resume` continues where the command has it.")
    return 0


def _failed(code: int, message: str) -> int:
    if "tqdm" in sys.modules:
        from efface.progress import close_bars

        close_bars()  # or the message would stand behind a half-drawn bar
    print(f"efface: {message}", file=sys.stderr)
    return code


def build_parser() -> Parser:
    parser = Parser(
        prog="efface", description="Erase toxicity from a language model's hidden representations, and measure it."
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="also print what the library logs")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for command in (demo, pairs, train, robustify, evaluate, attack, audit, scorers, lists):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
