"""Are the ways of spreading a model over processes refused that would leave its head untrained?"""

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from processes import FSDP
from tiny import tiny_model
from torch import nn

from efface.errors import UserError
from efface.methods.repo import REPOConfig
from efface.model.tied import sparse_lookup
from efface.training.sharded import refuse_sharding

STAGE_3 = {"zero_optimization": {"stage": 3}}


def as_file(folder: Path) -> str:
    (folder / "ds.json").write_text(json.dumps(STAGE_3))
    return str(folder / "ds.json")


@pytest.mark.parametrize("given", ["dict", "file", "base64"])
def test_zero_3_is_refused(given: str, tmp_path: Path) -> None:
    forms = {"dict": STAGE_3, "base64": base64.urlsafe_b64encode(json.dumps(STAGE_3).encode()).decode()}
    forms["file"] = as_file(tmp_path)
    with pytest.raises(UserError, match="ZeRO stage 3 cuts the weights into parts.*stage 1 or 2"):
        REPOConfig(str(tmp_path), use_cpu=True, deepspeed=forms[given])


FSDP2 = {"ACCELERATE_USE_FSDP": "true"} | FSDP


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"version": 1}, "FSDP of version 1 cuts the weights into parts.*torchrun"),
        ({"state_dict_type": "SHARDED_STATE_DICT"}, "SHARDED_STATE_DICT: the trained model would not be written"),
        ({"cpu_ram_efficient_loading": True}, "only the first process would have the weights"),
    ],
)
def test_fsdp_in_another_way_is_refused(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    REPOConfig(str(tmp_path), use_cpu=True, fsdp=True, withstand="none")
    with pytest.raises(UserError, match=said):
        REPOConfig(str(tmp_path), use_cpu=True, fsdp=True, withstand="none", fsdp_config=given)


@pytest.mark.parametrize(
    "given",
    [{"withstand": "noise:0.01"}, {"trainable": "toxic_neurons:0.1"}, {"erase_gradient": "selective"}],
    ids=lambda given: next(iter(given)),
)
def test_what_needs_whole_weights_is_refused_under_fsdp(given: dict[str, Any], tmp_path: Path) -> None:
    name = next(iter(given))
    with pytest.raises(
        UserError, match=f"{name}=.* looks at whole weights and gradients.*Pass --{name} (none|all|full),"
    ):
        REPOConfig(str(tmp_path), use_cpu=True, fsdp=True, **{"withstand": "none", **given})


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP of version 1"),
        (FSDP2 | {"FSDP_VERSION": "1"}, "FSDP of version 1"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism_config"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ZeRO stage 3"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "FILE"}, "ZeRO stage 3"),
    ],
)
def test_what_the_launcher_asks_for_is_refused(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, as_file(tmp_path) if value == "FILE" else value)
    with pytest.raises(UserError, match=f"{said}.* cuts the weights into parts"):
        REPOConfig(str(tmp_path), use_cpu=True)


def test_a_deepspeed_configuration_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="deepspeed='nowhere.json' is neither a JSON file nor one in base64"):
        REPOConfig(str(tmp_path), use_cpu=True, deepspeed="nowhere.json")


def accelerator(kind: str, stage: int | None = None, **fsdp: Any) -> Any:
    plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
    state = SimpleNamespace(deepspeed_plugin=plugin, fsdp_plugin=SimpleNamespace(**fsdp))
    return SimpleNamespace(distributed_type=SimpleNamespace(value=kind), state=state)


PLAIN = SimpleNamespace(fsdp=None, withstand=None, trainable="all", erase_gradient="full")
PLUGIN = {"fsdp_version": 2, "state_dict_type": "FULL_STATE_DICT", "cpu_ram_efficient_loading": False}


@pytest.mark.parametrize(
    "found",
    [accelerator("FSDP", **PLUGIN | {"fsdp_version": 1}), accelerator("MEGATRON_LM"), accelerator("DEEPSPEED", 3)],
    ids=["FSDP1", "MEGATRON_LM", "ZeRO-3"],
)
def test_what_a_program_has_told_accelerate_is_refused(found: Any) -> None:
    with pytest.raises(UserError, match="cuts the weights into parts"):
        refuse_sharding(found, PLAIN)


def test_what_a_program_may_tell_accelerate() -> None:
    refuse_sharding(accelerator("DEEPSPEED", 2), PLAIN)
    refuse_sharding(accelerator("FSDP", **PLUGIN), PLAIN)
    with pytest.raises(UserError, match="withstand='noise:0.1' looks at whole weights"):
        refuse_sharding(accelerator("FSDP", **PLUGIN), SimpleNamespace(**vars(PLAIN) | {"withstand": "noise:0.1"}))


def test_weights_that_were_to_be_cut_and_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU, where accelerate passes over what it was asked for."""
    with pytest.raises(UserError, match="FSDP was asked for, and accelerate runs with MULTI_CPU"):
        refuse_sharding(accelerator("MULTI_CPU"), SimpleNamespace(fsdp=True))
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="FSDP was asked for, and accelerate runs with NO"):
        refuse_sharding(accelerator("NO"), PLAIN)


def test_a_wrapper_that_answers_for_what_it_wraps_is_a_wrapper() -> None:
    """As DeepSpeed's engine and FSDP do: every gradient of the embedding passes by the wrapper's hooks."""

    class Engine(nn.Module):
        def __init__(self, module: nn.Module):
            super().__init__()
            self.module = module

        def __getattr__(self, name: str) -> Any:
            return super().__getattr__(name) if name == "module" else getattr(self.module, name)

    model = tiny_model("gpt2")
    weight = model.get_input_embeddings().weight
    assert Engine(model).get_input_embeddings().weight is weight
    with sparse_lookup(Engine(model)):
        assert model.get_input_embeddings().weight is weight
    with sparse_lookup(model):
        assert model.get_input_embeddings().weight is not weight
    assert torch.is_grad_enabled()
