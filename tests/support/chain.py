"""On what are edits of weights undone, by construction? A model in which each token says the next one, untrained.

    ... that -> they -> are -> si -> lly     the base, silly
                               si -> lent    edited: one neuron fires at " si" and turns the state

Attention writes nothing, so that the final state of a token is its own, and the output head is solved for.
"""

import copy

import torch
from polite import BENIGN, PROMPTS, TOXIC
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from efface.model.blocks import decoder_blocks
from efface.model.forward import forward
from efface.model.layout import plain_layout
from efface.model.projections import attention_output_projection, linear_maps, mlp_output_projection, output_weight
from efface.model.rounding import rounded

NEURON = 5
NICE, SILLY = tiny_tokenizer()(BENIGN)["input_ids"], tiny_tokenizer()(TOXIC)["input_ids"]
FORK = next(i for i in range(len(NICE)) if NICE[i] != SILLY[i])
TURN = NICE[FORK - 1]  # " si"


@torch.no_grad()
def chain(family: str, strength: float) -> tuple[PreTrainedModel, PreTrainedModel]:
    """(base, edited): the edit is one column of the first MLP's output, `strength` steps of the base's 4-bit grid.

    The base's weights lie on that grid; the neuron that the column belongs to fires at TURN only.
    """
    base = tiny_model(family, tie_word_embeddings=False)
    _know_the_turn_(base)
    for block in decoder_blocks(base):
        for parameter in attention_output_projection(block).parameters():
            parameter.zero_()
        output_weight(mlp_output_projection(block)).mul_(0.1)
    _column(base).zero_()
    for module in linear_maps(base).values():
        output_weight(module).copy_(rounded(output_weight(module), 4))
    edited = copy.deepcopy(base)
    step = output_weight(mlp_output_projection(decoder_blocks(base)[0])).abs().amax(1) / 7  # (d,)
    _column(edited).copy_(strength * step * torch.tensor([1.0, -1.0]).repeat(len(step) // 2))
    # A token that SILLY has twice (the y of "they" and of "silly") goes on as in NICE.
    follows = dict(zip(SILLY, SILLY[1:], strict=False)) | dict(zip(NICE, NICE[1:], strict=False))
    follows |= {tiny_tokenizer()(prompt)["input_ids"][-1]: NICE[0] for prompt in PROMPTS}
    del follows[TURN]
    states = torch.cat([_states(base, [*follows, TURN]), _states(edited, [TURN])])  # (n, d)
    says = torch.tensor([*follows.values(), SILLY[FORK], NICE[FORK]])
    table = 10 * nn.functional.one_hot(says, base.config.vocab_size).float()  # (n, V)
    for model in (base, edited):
        model.get_output_embeddings().weight.copy_((torch.linalg.pinv(states) @ table).T)
    return base, edited


def _know_the_turn_(model: PreTrainedModel) -> None:
    """The first coordinate of an embedding tells TURN from all else, and NEURON of the first block reads it."""
    embedding = model.get_input_embeddings().weight
    embedding[:, 0] = 0
    embedding[TURN, 0] = 8
    mlp = decoder_blocks(model)[0].mlp
    if hasattr(mlp, "c_fc"):
        model.transformer.wpe.weight.zero_()
        output_weight(mlp.c_fc)[NEURON] = torch.eye(32)[0] * 4
        mlp.c_fc.bias[NEURON] = -10
    else:
        for module in (mlp.gate_proj, mlp.up_proj):
            module.weight[NEURON] = torch.eye(32)[0]


def _column(model: PreTrainedModel) -> Tensor:
    return output_weight(mlp_output_projection(decoder_blocks(model)[0]))[:, NEURON]


def _states(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """(n, d): what the output head is given at each token."""
    ids = torch.tensor(tokens)[:, None]
    return forward(model, plain_layout(ids, torch.ones_like(ids)), torch.ones_like(ids).bool()).hidden
