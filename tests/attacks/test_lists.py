"""Is a setting of several values a tuple however it is given, and recorded as it was written?"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from efface.attacks.lists import describe_settings
from efface.attacks.perturb import PerturbSettings
from efface.attacks.prefill import PrefillSettings
from efface.attacks.prompt_injection import PromptInjectionSettings
from efface.attacks.quantize import QuantizeSettings
from efface.attacks.relearn import RelearnSettings
from efface.attacks.search.prefix_settings import EnhancedGCGSettings
from efface.errors import UserError


@pytest.mark.parametrize("given", ["20,0,10", (20, 10), [10, 20, 20], "10, 20"])
def test_numbers_are_a_tuple_read_once(given: Any) -> None:
    settings = RelearnSettings(steps=given)
    assert settings.steps == (10, 20) and isinstance(settings.steps, tuple)
    assert settings == RelearnSettings(steps=(10, 20)) and RelearnSettings(steps=3).steps == (3,)  # type: ignore[arg-type]
    assert dataclasses.replace(settings, k=4).steps == (10, 20)
    assert copy.deepcopy(settings) == settings and dataclasses.asdict(settings)["steps"] == (10, 20)


def test_what_was_written_is_recorded() -> None:
    written = {"steps": "20,0,10", "learning_rates": "2e-5"}
    found = describe_settings(RelearnSettings(**written))  # type: ignore[arg-type]
    assert found.items() >= written.items()
    assert describe_settings(RelearnSettings(steps=(10, 20)))["steps"] == "10,20"
    # A setting that came later is there only where it is not its default: earlier runs go on.
    assert "optimizer" not in describe_settings(RelearnSettings())
    assert describe_settings(RelearnSettings(optimizer="sgd"))["optimizer"] == "sgd"
    assert "bf16" not in describe_settings(RelearnSettings()) and describe_settings(RelearnSettings(bf16=True))["bf16"]
    # In the order of the flags: what all attacks on weights share comes last.
    assert list(found)[-1] == "max_perplexity_increase" and list(found)[0] == "steps"


def test_what_a_named_file_holds_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "injections.jsonl"
    file.write_text("one")
    first, absent = (describe_settings(PromptInjectionSettings(str(one))) for one in (file, tmp_path / "absent"))
    file.write_text("another")
    assert describe_settings(PromptInjectionSettings(str(file)))["files"] != first["files"]
    # Words, and what the package ships, are no files, whatever lies here.
    monkeypatch.chdir(tmp_path)
    for name in ("own", "rows", "shipped:injections"):
        (tmp_path / name).write_text("no source")
    others = PromptInjectionSettings(), PrefillSettings(), PrefillSettings(source="rows"), RelearnSettings()
    assert not any("files" in found for found in (absent, *map(describe_settings, others)))


def test_words_keep_their_order_and_count_once() -> None:
    assert PerturbSettings(kinds="mix, swap,mix").kinds == ("mix", "swap")  # type: ignore[arg-type]
    assert EnhancedGCGSettings(operators=("insert", "delete", "insert")).operators == ("insert", "delete")


@pytest.mark.parametrize("given", [(4.5,), ("four",), (), None])
def test_values_that_are_none(given: Any) -> None:
    with pytest.raises(UserError, match="bits=.*: whole numbers are needed"):
        QuantizeSettings(bits=given)
