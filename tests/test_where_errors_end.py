"""Is a setting that is none refused wherever it stands, and does whatever goes wrong end in one harmless line?

Of: checks.py, files/redaction.py, registry.py, training/settings.py
"""

import dataclasses
import importlib
import math
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import efface.attacks
from efface.attacks import ATTACKS, load_attack, settings_class
from efface.checks import all_finite
from efface.cli import main
from efface.errors import LONGEST, RunError, UserError, one_line, out_of_memory
from efface.files.redaction import redacted, redacted_arguments
from efface.generation.decoding import Decoding
from efface.methods import METHODS, load_method
from efface.registry import resolve
from efface.training.config import MEANINGLESS
from efface.training.settings import build_config, parse_settings

CONFIGS = {name: load_method(name).config_class for name in METHODS}
SETTINGS = {name: settings_class(load_attack(name)) for name in ATTACKS}


def made(kind: Any, **values: Any) -> Any:
    return (
        kind("out", **values) if "output_dir" in {field.name for field in dataclasses.fields(kind)} else kind(**values)
    )


def floats(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if isinstance(field.default, float)]


# Settings that are none


@pytest.mark.parametrize("name", [*CONFIGS, *SETTINGS])
def test_no_number_may_be_nan_or_infinite(name: str) -> None:
    kind = CONFIGS.get(name) or SETTINGS[name]
    for field in floats(kind):
        for value in (math.nan, math.inf, -math.inf):
            with pytest.raises(UserError, match=field):
                all_finite(made(kind, **{field: value}))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("repo", {"w_retain": -1}),
        ("repo", {"w_erase": -1}),
        ("repo", {"w_retain_text": -1}),
        ("repo", {"grl_lambda": -1}),
        ("repo", {"discriminator_width": 0}),
        ("repo", {"discriminator_lr": -1e-3}),
        ("repo", {"retain_text_per_pair": -1}),
        ("repo", {"retain_text_tokens": -1}),
        ("repo", {"retain_text_tokens": 1}),
        ("repo", {"max_completion_length": -1}),
        ("repo", {"max_completion_length": 0}),
        ("repo", {"max_prompt_length": 0}),
        ("repo", {"max_prompt_length": -5}),
        ("repo", {"max_batch_tokens": 0}),
        ("sft", {"num_train_epochs": 0}),
        ("sft", {"num_train_epochs": -1, "max_steps": -1}),
        ("sft", {"max_steps": 0}),
        ("sft", {"per_device_train_batch_size": 0}),
        ("sft", {"per_device_eval_batch_size": -1}),
        ("sft", {"gradient_accumulation_steps": 0}),
        ("sft", {"dataloader_num_workers": -1}),
        ("sft", {"learning_rate": -1}),
        ("sft", {"weight_decay": -1}),
        ("sft", {"max_grad_norm": -1}),
        ("sft", {"seed": -1}),
        ("sft", {"lora_r": 0}),
        ("simnpo", {"gamma": -1}),
        ("npo", {"w_retain": -1}),
        ("npo", {"beta": 0}),
        ("repnoise", {"mmd_tokens": 0}),
        ("rmu", {"w_retain": -1}),
        ("circuit_breakers", {"alpha": -1}),
        ("undo", {"alpha": 2}),
        ("task_vector", {"max_completion_length": 0}),
        ("leace", {"max_pairs": 0}),
        ("steering", {"strength": -1}),
        ("profs", {"rank": 0}),
    ],
    ids=str,
)
def test_a_setting_out_of_its_range(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        CONFIGS[name]("out", **settings)


def test_a_decoding_that_is_none() -> None:
    with pytest.raises(UserError, match="temperature=inf: it must be a finite number"):
        Decoding(samples=2, temperature=math.inf)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("max_grad_norm: .nan", "max_grad_norm=nan: it must be a finite number"),
        ("resume_from_checkpoint: somewhere", "on the command line --resume goes on in -o DIR"),
        ("do_train: true", "do_train=True has no use here: `train` trains"),
        ("label_smoothing_factor: 0.5", "label_smoothing is DPO's"),
        ("bf16_full_eval: true", "half precision"),
        ("output_dir: here", "-o DIR says where the run goes"),
        ("lr_scheduler_kwargs: {min_lr: .inf}", "lr_scheduler_kwargs=inf: it must be a finite number"),
        ("lr_scheduler_kwargs: {min_lr: 2001-01-01}", "lr_scheduler_kwargs cannot be recorded as JSON"),
        ("trackio_static_space_id: 2001-99-99", "is not valid YAML"),
        ("max_steps: !!int x", "is not valid YAML"),
        ("bf16: !!bool maybe", "is not valid YAML"),
        ("max_steps: !!timestamp x", "is not valid YAML"),
        ("max_steps: !!python/object/apply:os.getcwd []", "is not valid YAML"),
        ("max_steps: " + "[" * 1000, "is not valid YAML"),
        ("max_steps: 3\nseed: 1\nmax_steps: 4", "'max_steps' is there twice"),
        ("max_steps: {a: 1, a: 2}", "'a' is there twice"),
        ("a: &a [x,x]\nb: &b [*a,*a]\nmax_steps: [*b,*b]", "an alias (*name)"),
        (f"max_steps: [{'x, ' * 1000}]", "'max_steps' must be a plain value, but it is ['x', 'x',"),
        ("max_steps: 2001-01-01", "'max_steps' must be a plain value"),
        (f"{'x' * 900}: 1", "has the unknown key"),
        ("#" * 1_000_001, "1000001 characters, which are no settings"),
        ("max_steps: \udcff", "is not UTF-8"),
        ("max_steps: \x07", "is not valid YAML"),
    ],
    ids=lambda value: value[:30],
)
def test_a_config_file_that_cannot_work(setting: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(setting.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as caught:
        build_config(CONFIGS["sft"], parse_settings(CONFIGS["sft"], str(file), []), tmp_path)
    assert message in str(caught.value) and len(one_line(caught.value)) < 600


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_config_that_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(UserError, match="cannot be read: it is a"):
            parse_settings(CONFIGS["sft"], str(name), [])


def test_the_reasons_for_meaningless_fields_are_of_fields() -> None:
    known = {field.name for field in dataclasses.fields(CONFIGS["sft"])}
    assert {name.partition("=")[0] for name in MEANINGLESS} <= known
    assert CONFIGS["dpo"]("out", label_smoothing=0.1).label_smoothing == 0.1  # DPO's own
    assert CONFIGS["sft"]("out", do_train=False, train_sampling_strategy="sequential")


def test_only_nothing(fails: Any) -> None:
    assert "',' names nothing" in fails(2, "audit", "m", "-o", "x", "--only", ",")


def test_the_step_default_is_one(capsys: Any) -> None:
    from efface.jobs.demo import SETTINGS
    from efface.training import DEFAULT_STEPS

    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    assert f"(default: {SETTINGS['max_steps']})" in capsys.readouterr().out
    assert SETTINGS["max_steps"] == CONFIGS["dpo"]("out").max_steps == DEFAULT_STEPS


# Where errors end


def ends(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(options: Any) -> None:
        raise error

    monkeypatch.setattr("efface.commands.lists.run", run)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero. (-v shows where"),
        (KeyError("model_type"), "KeyError: 'model_type'. (-v"),
        (AssertionError(), "AssertionError. (-v"),
        (ImportError("You need bitsandbytes"), "ImportError: You need bitsandbytes"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
        (MemoryError(), "out of memory: MemoryError. Take smaller batches"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory: RuntimeError"),
        (SystemExit(0), "was ended by code that it called: SystemExit: 0"),
        (RecursionError("too deep"), "RecursionError: too deep"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_the_unexpected_is_one_line(
    error: BaseException, message: str, fails: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends(monkeypatch, error)
    assert message in fails(1, "models")


def test_the_traceback_is_there_on_request(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ends(monkeypatch, ZeroDivisionError("division by zero"))
    for argv in (["-v", "models"], ["models", "-v"], ["models", "--verbose"]):
        assert main(argv) == 1
        error = capsys.readouterr().err
        assert "Traceback" in error and error.splitlines()[-1].startswith("efface: ZeroDivisionError")


def test_an_error_does_a_terminal_no_harm(fails: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ends(monkeypatch, UserError("\x1b[2Jred\x07\x9b31m \u202egnp.exe\nsecond " + "x" * 100_000 + " end"))
    line = fails(2, "models")
    assert line.startswith(r"\x1b[2Jred\x07\x9b31m \u202egnp.exe second xxx") and line.endswith("x end")
    assert line.isprintable() and len(line) < LONGEST + 50 and "characters ...]" in line


def test_a_line_of_ordinary_text_stays_as_it_is() -> None:
    assert one_line("naïve 🙂  two spaces\tand a tab") == "naïve 🙂  two spaces\tand a tab"
    assert out_of_memory(type("OutOfMemoryError", (RuntimeError,), {})()) and not out_of_memory(RunError("x"))


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("exec 3> >(:); wait $!; {efface} methods >&3", 141, None),  # into a pipe whose reader has gone
        ("{efface} methods > /dev/full", 1, "No space left on device"),
        ("{efface} methods >&-", 0, None),
    ],
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_standard_output_that_takes_nothing(command: str, code: int, message: str | None) -> None:
    efface = f"{sys.executable} -m efface.cli"
    script = f"set -o pipefail; {command.format(efface=efface)}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == code
    assert done.stderr.startswith("efface: ") and message in done.stderr if message else not done.stderr
    assert done.stderr.count("\n") == (message is not None)


# What others have written


PLUGINS = {
    "raises": "raise RuntimeError('no GPU here')",
    "no_python": "def (",
    "leaves": "import sys; sys.exit(0)",
    "needs": "import nosuch_package_at_all",
    "made": "class Judge:\n    def __init__(self): raise OSError('no network')",
    "gone": "class Judge:\n    def __init__(self): raise SystemExit(0)",
}


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in PLUGINS.items():
        (tmp_path / f"plugin_{name}.py").write_text(text + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


@pytest.mark.parametrize("name", ["raises", "no_python", "leaves", "needs"])
def test_a_plugin_that_cannot_be_imported(name: str, plugins: None) -> None:
    with pytest.raises(UserError, match=f"method 'plugin_{name}:X' cannot be imported: .*Write module:Class"):
        resolve("method", f"plugin_{name}:X", {}, "module:Class")


@pytest.mark.parametrize("name", ["made", "gone"])
def test_a_scorer_that_cannot_be_made(name: str, plugins: None) -> None:
    from efface.scoring import load_scorer

    with pytest.raises(UserError, match=f"scorer 'plugin_{name}:Judge' cannot be made"):
        load_scorer(f"plugin_{name}:Judge")


# Secrets


def test_only_secrets_are_redacted() -> None:
    settings = {"hub_token": "x", "max_batch_tokens": 5, "kwargs": {"api_key": "x", "rate": 1}, "list": [{"key": "x"}]}
    settings |= {"wandb_api_key": None, "tokenizer": "t", "keyword": "k"}
    hidden = "(redacted)"
    assert redacted(settings) == settings | {
        "hub_token": hidden,
        "kwargs": {"api_key": hidden, "rate": 1},
        "list": [{"key": hidden}],
    }
    argv = ["train", "--hub_token", "x", "--max_batch_tokens", "5", "--hub-token=x", "--password", "--flag", "--key"]
    assert redacted_arguments(argv) == [
        *("train", "--hub_token", hidden, "--max_batch_tokens", "5", f"--hub-token={hidden}", "--password", "--flag"),
        "--key",
    ]


def test_every_attack_has_its_settings_here() -> None:
    """The walk above misses none: each dataclass of settings in the package belongs to a registered attack."""
    found = set()
    for module in pkgutil.walk_packages(efface.attacks.__path__, "efface.attacks."):
        for name, kind in vars(importlib.import_module(module.name)).items():
            ours = name.endswith("Settings") and dataclasses.is_dataclass(kind)
            if ours and kind.__module__.startswith("efface.attacks."):
                found.add(kind)
    assert found == set(SETTINGS.values())
