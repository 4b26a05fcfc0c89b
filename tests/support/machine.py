"""On what is a direction hidden, by construction? A model whose words are written along axes."""

from typing import Any

import numpy as np
import torch
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from efface.attacks.target import Target
from efface.generation.decoding import Decoding
from efface.model.blocks import decoder_blocks
from efface.model.projections import (
    attention_output_projection,
    mlp_input_projection,
    mlp_output_projection,
    output_weight,
)
from efface.scoring.scorer import NamedScorer

D = 32


BANG = tiny_tokenizer()("!")["input_ids"][0]


IDS = torch.tensor([[5, 6, 70, 8, 9], [40, 41, 42, 43, 44]])


# Orthogonal directions of the residual stream without a mean, which LayerNorm would take out.
_RANDOM = np.random.default_rng(0).normal(size=(D, 3))
ALWAYS, SILLY, REFUSE = torch.from_numpy(np.linalg.qr(_RANDOM - _RANDOM.mean(0))[0].T).float()


@torch.no_grad()
def machine(family: str, says: int = BANG) -> PreTrainedModel:
    """It says one thing after anything, because of what all its embeddings share; "!" has something of its own."""
    model = tiny_model(family, tie_word_embeddings=False)
    for block in decoder_blocks(model):
        for projection in (mlp_output_projection(block), attention_output_projection(block)):
            projection.weight.mul_(0.1)
    model.get_input_embeddings().weight.add_(4 * ALWAYS)
    model.get_input_embeddings().weight[BANG] += 4 * SILLY
    model.get_output_embeddings().weight[says] += 6 * ALWAYS
    return model


@torch.no_grad()
def plant_(model: PreTrainedModel, neuron: int, reads: Tensor, writes: Tensor) -> None:
    """A neuron of block 0 that adds about 10 times `writes` where `reads` is."""
    block = decoder_blocks(model)[0]
    output_weight(mlp_input_projection(block))[neuron] = 2 * reads
    if hasattr(block.mlp, "up_proj"):
        block.mlp.up_proj.weight[neuron] = 0.2 * reads
    output_weight(mlp_output_projection(block))[:, neuron] = writes


def target_of(model: PreTrainedModel, base: PreTrainedModel | None = None, **more: Any) -> Target:
    settings: dict[str, Any] = {"prompts": PROMPTS, "rows": ROWS, "scorers": [NamedScorer("exclaims", exclaims)]}
    return Target(model, tiny_tokenizer(), base=base, decoding=Decoding(max_new_tokens=4), **settings | more)


PROMPTS = [f"The {who} said no!" for who in ("weather", "people", "market", "river", "engineer", "town")]


ROWS = [{"prompt": f"The {who} said", "chosen": " bread.", "rejected": "!!!!"} for who in ("people", "river", "town")]


def exclaims(texts: Any) -> list[float]:
    return [float("!" in text) for text in texts]
