"""Does a model whose weights are cut into parts train as a whole one does? Two processes under FSDP2, on a CPU.

What runs is in `tests/support/sharded.py`; with `--full` every method.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import FSDP, of_both
from tiny import tiny_model, tiny_tokenizer
from trained import ROWS
from transformers import AutoModelForCausalLM
from two_processes import BY_STEPS, CASES, SECONDS, trained

from efface.files.results import read_json
from efface.model.load import load_model
from efface.model.save import save_model
from efface.training.checkpoints import newest_whole, what_is_missing

ALWAYS = ("repo", "repo lora")
WHOLE_WEIGHTS = ("withstand", "trainable", "erase_gradient", "optim")
MORE = [name for name in CASES if name not in ALWAYS and not CASES[name].keys() & set(WHOLE_WEIGHTS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def both(request: pytest.FixtureRequest, folder: Path) -> list[dict[str, Any]]:
    save_model(tiny_model("llama"), tiny_tokenizer(), folder / "model")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    cases = (*ALWAYS, *(MORE if request.config.getoption("--full") else ()))
    return of_both("sharded", folder, *cases, seconds=SECONDS * len(cases), environment=FSDP)


def test_every_method_is_tried() -> None:
    assert set(BY_STEPS) <= {*ALWAYS, *MORE}


@pytest.mark.parametrize("case", [*ALWAYS, *(pytest.param(case, marks=pytest.mark.full) for case in MORE)])
def test_it_trains_as_one_whole_model_does(case: str, both: list[dict[str, Any]], tmp_path: Path) -> None:
    first, second = (results[case] for results in both)
    assert all(first["cut"]) and first["here"] + second["here"] == first["whole"]
    assert 0.3 < first["here"] / first["whole"] < 0.7
    one = trained(case, tmp_path, 1)
    assert one
    for name, weight in one.items():
        torch.testing.assert_close(
            first["weights"][name], weight, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_it_goes_on_from_its_checkpoint(both: list[dict[str, Any]], folder: Path) -> None:
    straight, gone_on = (both[0]["resumed"][name] for name in ("a", "b"))
    assert straight.keys() == gone_on.keys()
    assert all(torch.equal(straight[name], gone_on[name]) for name in straight)
    assert what_is_missing(folder / "resumed" / "a" / "checkpoint-2") is None
    (folder / "resumed" / "b" / "checkpoint-4" / "pytorch_model_fsdp.bin").write_bytes(b"cut off")
    assert "pytorch_model_fsdp.bin is damaged" in str(what_is_missing(folder / "resumed" / "b" / "checkpoint-4"))
    assert newest_whole(folder / "resumed" / "a") == folder / "resumed" / "a" / "checkpoint-4"


def test_what_it_saves_is_an_ordinary_checkpoint(both: list[dict[str, Any]], folder: Path) -> None:
    saved = folder / "resumed" / "a"
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert type(model).__name__ == model.config.architectures[0] == "LlamaForCausalLM"
    weights = both[0]["resumed"]["a"]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    load_model(str(saved))


def test_the_command_writes_what_it_always_does(both: list[dict[str, Any]], folder: Path) -> None:
    assert [results["command"] for results in both] == [0, 0]
    result, whole = read_json(folder / "out" / "results.json"), tiny_model("llama")
    assert result["steps"] == 2 and result["share_of_pairs"]["pairs_a_step"] == 4
    size = sum(parameter.nbytes for parameter in whole.parameters())
    assert size / 2 < result["memory_estimate"]["parameters"]
    assert result["memory_estimate"]["optimizer"] == size  # Adam's two states, on two processes
    assert (folder / "out" / "README.md").is_file()
    model, _ = load_model(str(folder / "out"))
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


def test_a_weight_of_another_process_that_is_no_number_ends_both(both: list[dict[str, Any]]) -> None:
    assert all("the weights are not finite after step 1" in results["not finite"] for results in both)
