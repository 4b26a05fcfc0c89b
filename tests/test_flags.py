"""Is there one spelling of flags: dashes in help, both accepted, in every parser of the command line?"""

import argparse
from pathlib import Path
from typing import Any

import pytest

from efface.attacks import ATTACKS, load_attack, settings_class
from efface.cli import Parser, build_parser, name_flags
from efface.commands.fields import flag_of
from efface.data.pairs import load_pairs
from efface.errors import UserError
from efface.flags import FlagParser, flags_help
from efface.methods import METHODS, load_method

COMMANDS: dict[str, Parser] = next(
    action.choices for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)
)
OPTIONS = [(name, option) for name, parser in COMMANDS.items() for option in parser._option_string_actions]
SETTINGS = {f"train {name}": load_method(name).config_class for name in METHODS} | {
    f"attack {name}": settings_class(load_attack(name)) for name in ATTACKS
}


def words_for(action: argparse.Action) -> list[str]:
    """A value that the flag takes and that is not its default, if it takes one."""
    if action.nargs == 0:
        return []
    if action.choices:
        return [next(choice for choice in map(str, action.choices) if choice != action.default)]
    return ["1"]


@pytest.mark.parametrize(("command", "option"), [each for each in OPTIONS if "-" in each[1].removeprefix("--")[1:]])
def test_either_spelling_of_a_commands_own_flags_means_the_same(command: str, option: str) -> None:
    parser = COMMANDS[command]
    fixed = [word for action in parser._actions if not action.option_strings for word in words_for(action)]
    for action in parser._actions:
        if action.required and action.option_strings:
            fixed += [action.option_strings[0], "out.json"]
    value = words_for(parser._option_string_actions[option])
    underscored = "--" + option.removeprefix("--").replace("-", "_")
    found = [vars(parser.parse_args([*fixed, spelled, *value])) for spelled in (option, underscored)]
    assert found[0] == found[1] != vars(parser.parse_args(fixed))
    if value:
        joined = vars(parser.parse_args([*fixed, f"{underscored}={value[0]}"]))
        assert joined == found[0]


@pytest.mark.parametrize("name", SETTINGS)
def test_either_spelling_of_a_setting_is_the_same_flag_and_help_prints_dashes(name: str) -> None:
    known = FlagParser(SETTINGS[name], "")._option_string_actions
    names = {action.dest for action in known.values()}
    assert all(known[f"--{field}"] is known[flag_of(field)] for field in names)
    printed = [line.split()[0] for line in flags_help(SETTINGS[name]).splitlines() if line.startswith("--")]
    assert printed and not any("_" in flag for flag in printed) and set(printed) <= set(known)


@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_has_the_flag_of_its_command(name: str) -> None:
    """Or what is meant would depend on the spelling."""
    own = set(COMMANDS[name.split()[0]]._option_string_actions)
    assert not own & set(FlagParser(SETTINGS[name], "")._option_string_actions)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_prints_dashes(command: str) -> None:
    words = COMMANDS[command].format_help().replace(",", " ").replace("[", " ").split()
    assert not [word for word in words if word.startswith("--") and "_" in word]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_of_every_flag_what_it_is_and_its_default(command: str) -> None:
    parser = COMMANDS[command]
    for action in parser._actions:
        if action.help is argparse.SUPPRESS:
            continue
        assert action.help, action.option_strings
        text = parser._get_formatter()._get_help_string(action)
        value = action.default
        if action.option_strings and value not in (None, argparse.SUPPRESS, []) and not isinstance(value, bool):
            assert text is not None and "default:" in text, action.option_strings
            first = value[0] if isinstance(value, list) else value
            assert str(first) in text or "shipped" in text, (action.option_strings, text)


@pytest.mark.parametrize("spelled", ["--max-batch-tokens", "--max_batch_tokens", "--max_tokens_at_once"])
def test_two_budgets_have_two_names_and_the_old_one_means_what_it_meant(spelled: str) -> None:
    for command in ("evaluate", "attack", "audit"):
        assert COMMANDS[command].parse_args(["relearn", "-o", "x.json", spelled, "7"]).max_tokens_at_once == 7
        assert "max-batch-tokens" not in COMMANDS[command].format_help()
    pairs: dict[str, Any] = {"max_batch_tokens": 7}
    if "at_once" not in spelled:
        assert FlagParser(load_method("repo").config_class, "").given([spelled, "7"]) == pairs
        options, rest = COMMANDS["train"].parse_known_args(["repo", "m", "p", "-o", "out", spelled, "7"])
        assert rest in (["--max-batch-tokens", "7"], ["--max_batch_tokens", "7"]) and "max_batch_tokens" not in options


def test_a_word_that_is_no_flag_is_left_as_it_is() -> None:
    options, rest = COMMANDS["train"].parse_known_args(["repo", "a_model", "--no_such_flag", "a_b", "--output=a_b-c"])
    assert (options.model, str(options.output), rest) == ("a_model", "a_b-c", ["--no_such_flag", "a_b"])


def test_the_command_line_names_flags_where_the_library_names_arguments(tmp_path: Path) -> None:
    """What the library says; that the command says it in flags is seen in test_cli.py."""
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n')
    with pytest.raises(UserError, match="train with skip_bad_rows=True") as raised:
        load_pairs(tmp_path / "pairs.jsonl")
    assert "train with --skip-bad-rows" in name_flags(str(raised.value))
    assert name_flags("pass overwrite=True or resume=True") == "pass --overwrite or --resume"
    assert name_flags("pass base=MODEL; do_sample=True") == "pass --base MODEL; do_sample=True"
