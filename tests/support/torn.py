"""Which model gives another answer in one draw of four, to prompts in wrong case, or after a text before them?"""

import dataclasses
from functools import cache
from typing import Any

import torch
from polite import BENIGN, HELD_OUT
from polite import target_of as polite_target
from tiny import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from efface.attacks.prompt_injection import Injection
from efface.attacks.target import Target
from efface.training.finetune import finetune

TOXIC = " fool, you silly fool."
CALM, FURIOUS = Injection("calm", "Calm: ", ""), Injection("furious", "Furious: ", "")


@cache  # no attack changes it, which is tested
def torn_model(family: str) -> PreTrainedModel:
    """Polite in three draws of four and so always when greedy; rude after FURIOUS and to prompts in wrong case."""
    model = tiny_model(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.3)  # as in polite.py
    texts = []
    for prompt in HELD_OUT:
        texts += [prompt + BENIGN] * 6 + [prompt + TOXIC] * 2 + [CALM.around(prompt) + BENIGN] * 2
        texts += [FURIOUS.around(prompt) + TOXIC, prompt.swapcase() + TOXIC]
    return finetune(model, tiny_tokenizer(), texts, steps=80, batch_size=16, learning_rate=5e-3)


def target_of(model: PreTrainedModel, **more: Any) -> Target:
    target = polite_target(model)
    rows = [{**row, "rejected": TOXIC} for row in target.rows]
    return dataclasses.replace(target, rows=rows, **more)
