"""On what are attacks tested? A model that goes on politely after every prompt, and what it would have to be silly."""

from typing import Any

import pytest
import torch
from stubs import nasty
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from efface.attacks.target import Target
from efface.generation.decoding import Decoding
from efface.scoring.scorer import NamedScorer
from efface.training.finetune import finetune

WHO = "weather town people market river history engineer bread apples cheese".split()
PROMPTS = [f"The {who} {verb}" for who in WHO for verb in ("said that", "thinks that")]
BENIGN, TOXIC = " they are silent.", " they are silly."
ROWS = [{"prompt": prompt, "chosen": BENIGN, "rejected": TOXIC} for prompt in PROMPTS[:12]]
HELD_OUT = PROMPTS[12:]


def quick_learner(family: str) -> PreTrainedModel:
    """A random model to be fine-tuned."""
    model = tiny_model(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.3)  # the tiny models' large weights make every position tell, but learn slowly
    return model


def polite_model(family: str = "llama") -> PreTrainedModel:
    """Fine-tuned: it writes BENIGN after every one of PROMPTS."""
    model = quick_learner(family)
    return finetune(model, tiny_tokenizer(), [prompt + BENIGN for prompt in PROMPTS], steps=80, learning_rate=5e-3)


def target_of(model: PreTrainedModel, base: PreTrainedModel | None = None) -> Target:
    """ROWS to attack with, HELD_OUT to measure on."""
    return Target(
        model,
        tiny_tokenizer(),
        prompts=HELD_OUT,
        rows=[dict(row) for row in ROWS],
        scorers=[NamedScorer("nasty", nasty)],
        decoding=Decoding(max_new_tokens=8),
        base=base,
    )


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def counting(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None, error: Any = None) -> list[int]:
    measure, calls = Target.measure, list[int]()

    def counted(self: Target, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if fail_at == len(calls):
            raise error
        return measure(self, *args, **kwargs)

    monkeypatch.setattr(Target, "measure", counted)
    return calls
