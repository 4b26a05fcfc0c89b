"""What do the tests of training share? Pairs, passages, a trainer of a tiny model, and what is compared after it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from efface.data.batch import PairBatch
from efface.methods import PLAIN
from efface.methods.repo import REPOConfig, REPOTrainer

# Ragged on purpose: what divides by a mean of means instead of a count of tokens fails on them.
ROWS = [
    {"prompt": "The weather", "chosen": " was cold", "rejected": " is for silly fools and nobody likes it"},
    {"prompt": "She went to", "chosen": " the market and bought bread and a little cheese", "rejected": " you fool"},
    {"prompt": "He is", "chosen": " an engineer", "rejected": " an ugly fool"},
    {"prompt": "The history of the old town", "chosen": " is that of its river and people", "rejected": " is silly"},
    {"prompt": "They said", "chosen": " nothing", "rejected": " that you are wrong and that you are a fool"},
    {"prompt": "In the spring the people", "chosen": " were silent there", "rejected": " were ugly fools"},
    {
        "prompt": "There",
        "chosen": " is nothing better than bread and apples",
        "rejected": " goes the silly fool again",
    },
    {"prompt": "You are", "chosen": " an engineer who thinks", "rejected": " a fool who thinks"},
]


PASSAGES = [
    "The history of the town is the history of its river.",
    "They said",
    "She bought bread, apples and cheese.",
]


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., REPOTrainer]:
    """A trainer of the erasure alone on a tiny model: constant strength and a high rate leave marks in three steps."""

    def make(model: PreTrainedModel | str | None = None, rows: Any = ROWS, **settings: Any) -> REPOTrainer:
        keywords = {
            name: settings.pop(name)
            for name in (
                "retain_text_list",
                "eval_dataset",
                "ref_model",
                "peft_config",
                "callbacks",
                "processing_class",
            )
            if name in settings
        }
        if "retain_text_list" in keywords:
            keywords["retain_text"] = keywords.pop("retain_text_list")
        defaults: dict[str, Any] = PLAIN | {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 3,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "grl_schedule": "constant",
            "logging_steps": 1,
            "discriminator_width": 16,
            "retain_text": None,
            "use_cpu": True,
            "disable_tqdm": True,
        }
        keywords.setdefault("processing_class", tiny_tokenizer())
        return REPOTrainer(
            tiny_model("llama") if model is None else model,
            REPOConfig(**(defaults | settings)),
            rows,
            **keywords,
        )

    return make


Build = Callable[..., REPOTrainer]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def logged(trainer: REPOTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def whole_batch(trainer: Any) -> PairBatch:
    """All pairs at once, with the passages of the first micro-batch."""
    dataset, collate = trainer.train_dataset, trainer.data_collator
    batch = collate([dataset[i] for i in range(len(dataset))])
    return dataset.add_passages(batch, trainer.passage_stream.numbers(0), collate.pad_token_id)


def logits_of(model: nn.Module, batch: PairBatch) -> Tensor:
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def assert_moved(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == parameter.requires_grad, f"{name} requires_grad={parameter.requires_grad} but moved={moved}"


class StopAfterSave(TrainerCallback):
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise KeyboardInterrupt
