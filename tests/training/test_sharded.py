"""Are the ways of spreading a model over processes refused that would leave its head untrained?"""

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
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


@pytest.mark.parametrize("fsdp", [True, "full_shard auto_wrap"])
def test_fsdp_is_refused(fsdp: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fsdp=.* cuts the weights into parts.*torchrun"):
        REPOConfig(str(tmp_path), use_cpu=True, fsdp=fsdp)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP"),
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


@pytest.mark.parametrize(("kind", "stage"), [("FSDP", None), ("MEGATRON_LM", None), ("DEEPSPEED", 3)])
def test_what_a_program_has_told_accelerate_is_refused(kind: str, stage: int | None) -> None:
    def accelerator(stage: int | None) -> Any:
        plugin = None if stage is None else SimpleNamespace(zero_stage=stage)
        return SimpleNamespace(
            distributed_type=SimpleNamespace(value=kind), state=SimpleNamespace(deepspeed_plugin=plugin)
        )

    with pytest.raises(UserError, match="cuts the weights into parts"):
        refuse_sharding(accelerator(stage))
    if stage:
        refuse_sharding(accelerator(2))


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
