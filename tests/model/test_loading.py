"""Do all commands load models as they are told, and is what cannot be said in one line?"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from efface.cli import main
from efface.errors import UserError
from efface.files.results import read_json, write_jsonl
from efface.model.load import load_model
from efface.model.loading import Loading, how_to_load, loading
from efface.model.save import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in a folder of a directory, and prompts."""
    folder = tmp_path_factory.mktemp("loading")
    save_model(tiny_model("llama").bfloat16(), tiny_tokenizer(), folder / "all" / "inner")
    write_jsonl(folder / "prompts.jsonl", [{"prompt": "The town"}])
    rows = [{"prompt": f"The town {i}", "chosen": " is old.", "rejected": " is a fool."} for i in range(4)]
    write_jsonl(folder / "pairs.jsonl", rows)
    return folder


def evaluate(folder: Path, out: Path, *flags: str, model: str = "all/inner") -> list[str]:
    given = ["--prompts", str(folder / "prompts.jsonl"), "--scorer", "stubs:parity", "--max-new-tokens", "2"]
    return ["evaluate", str(folder / model), "-o", str(out), *given, *flags]


@pytest.mark.parametrize(("flag", "expected"), [("auto", "bfloat16"), ("float16", "float16"), (None, "float32")])
def test_a_command_loads_in_the_precision_that_it_is_told(
    flag: str | None, expected: str, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.json"
    assert main(evaluate(folder, out, *([] if flag is None else ["--dtype", flag]))) == 0
    assert read_json(out)["environment"]["dtype"] == expected
    assert how_to_load("any").dtype is None  # nothing of it stays


def test_training_and_attacks_too(folder: Path, tmp_path: Path) -> None:
    model, pairs = str(folder / "all" / "inner"), str(folder / "pairs.jsonl")
    argv = ["train", "sft", model, pairs, "-o", str(tmp_path / "out"), "--max_steps", "1", "--dtype", "bfloat16"]
    assert main([*argv, "--attn-implementation", "eager"]) == 0
    assert read_json(tmp_path / "out" / "results.json")["environment"]["dtype"] == "bfloat16"


def test_a_folder_below_is_of_the_model_alone(folder: Path, fails: Any, tmp_path: Path) -> None:
    assert main(evaluate(folder, tmp_path / "x.json", "--subfolder", "inner", model="all")) == 0
    reference = ["--reference", str(folder / "all" / "inner")]  # in which there is no such folder
    assert main(evaluate(folder, tmp_path / "y.json", "--subfolder", "inner", *reference, model="all")) == 0
    for name in ("absent", "..", "../all/inner"):
        told = fails(2, *evaluate(folder, tmp_path / "z.json", "--subfolder", name, model="all/inner"))
        assert f"has no folder {name!r} in it" in told


def test_a_revision_is_too() -> None:
    with loading(revision="v2", model="a/b", dtype="float16"):
        assert (how_to_load("a/b").revision, how_to_load("base").revision) == ("v2", None)
        assert how_to_load("base").dtype == "float16" and how_to_load("base", dtype="float32").dtype == "float32"
        assert how_to_load("a/b", revision="v3").revision == "v3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "nosuch"}, "dtype 'nosuch' is none of weights"),
        ({"dtype": "int8"}, "dtype 'int8' is none of weights"),
        ({"attn_implementation": "nosuch"}, "attn_implementation='nosuch'"),
        ({"device": "cpu", "device_map": "auto"}, "device and device_map exclude each other"),
        ({"load_in_4bit": True, "dtype": "float32"}, "load_in_4bit and dtype exclude each other"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Loading(**options)


def test_what_it_stands_for_to_transformers() -> None:
    assert Loading().precision is torch.float32 and Loading().settings == {} and not Loading().placed
    assert Loading(dtype="auto").precision == "auto" and Loading(dtype=torch.float16).precision is torch.float16
    spread = Loading(device_map="auto", attn_implementation="eager")
    assert spread.settings == {"attn_implementation": "eager", "device_map": "auto"} and spread.placed
    packed = Loading(load_in_4bit=True)
    config = packed.settings["quantization_config"]
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and packed.precision is torch.bfloat16


def test_four_bits_without_the_package(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there may be a GPU and the package")
    with pytest.raises(UserError, match=r"(?s)cannot be loaded \(.*\)\. Install what it needs"):
        load_model(folder / "all" / "inner", load_in_4bit=True)


def test_who_says_in_which_precision_is_not_overruled() -> None:
    with loading(load_in_4bit=True):  # the model; a judge that is loaded beside it says its own
        assert how_to_load("a/b").load_in_4bit
        assert not how_to_load("judge", dtype=torch.float32).load_in_4bit


@pytest.mark.parametrize(
    ("command", "role"), [("evaluate", "reference"), ("attack", "base"), ("audit", "base"), ("scale", "base")]
)
def test_a_revision_of_one_of_two_models_of_the_same_name(command: str, role: str, fails: Any, tmp_path: Path) -> None:
    named = ["prefill", "a/b"] if command == "attack" else ["x=a/b"] if command == "audit" else ["a/b"]
    out = tmp_path / "out.json"
    for flag in ("--revision", "--subfolder"):
        line = fails(2, command, *named, f"--{role}", "a/b", flag, "v2", "-o", out)
        assert line == (
            f"--{role} a/b has the name of MODEL, so that --revision and --subfolder cannot be of MODEL alone. Pass "
            f"the {role} as a directory (`hf download a/b --local-dir DIR` makes one of the hub's)."
        )
    assert not out.exists()


def test_several_models_have_no_one_revision(fails: Any, tmp_path: Path) -> None:
    line = fails(2, "audit", "a=x", "b=y", "--revision", "v2", "-o", tmp_path / "out")
    assert line == "--revision and --subfolder are of one model: audit the others by themselves."
