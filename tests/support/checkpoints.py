"""How do tests write a tiny checkpoint, and change what is in it?"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokenizer
from torch import nn

from efface.model.projections import linear_maps, output_weight
from efface.model.rounding import rounded
from efface.model.save import save_model

WEIGHTS = "model.safetensors"


def saved(directory: Path, family: str = "llama", **overrides: Any) -> Path:
    save_model(tiny_model(family, **overrides), tiny_tokenizer(), directory)
    return directory


def on_grid_(model: Any, bits: int = 4, group_size: int = 32) -> Any:
    """The blocks' maps as they would have been stored in few bits."""
    for module in linear_maps(model).values():
        weight = output_weight(module).data
        weight.copy_(rounded(weight, bits, group_size, "asymmetric"))
    return model


def edit(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def rewrite(directory: Path, change: Any, name: str = WEIGHTS) -> None:
    """`change` gets the tensors of a file by their names and returns those that are to be in it."""
    save_file(change(load_file(directory / name)), directory / name, metadata={"format": "pt"})


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 6, 7, 8, 9, 10]])).logits
