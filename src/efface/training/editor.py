"""What do the methods share that take no steps? Pairs, a model that is changed in place, a record of what was done.

A method is a subclass with `edit_`, of `PairEditor` if it changes weights, of `methods/hooked.py` if it adds
interventions that change hidden states at inference. It is used as a trainer is: `train()`, then `save_model()`.
"""

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from efface.checks import all_finite, at_least, at_least_one
from efface.data.pair_tokens import PairTokenizer
from efface.data.pairs import PairsLike, tokenized
from efface.files.jsonl import Row
from efface.model.padding import max_positions
from efface.model.save import save_model
from efface.training.config import check_config
from efface.training.inputs import model_and_tokenizer, pair_reader

LENGTHS = ("max_prompt_length", "max_completion_length")


@dataclass
class EditConfig:
    """The settings common to the methods that change a model without training it by steps."""

    output_dir: str = field(metadata={"help": "Where the model is saved."})
    seed: int = field(default=0, metadata={"help": "Of whatever is drawn."})
    batch_size: int = field(default=16, metadata={"help": "Pairs whose hidden states are computed at once."})
    skip_bad_rows: bool = field(default=False, metadata={"help": "Drop and count bad pairs instead of stopping."})
    use_cpu: bool = field(default=False, metadata={"help": "Stay on the CPU where there is a GPU."})
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bars."})

    def __post_init__(self) -> None:
        all_finite(self)
        at_least_one(self, "batch_size")
        at_least(self, 0, "seed")


class PairEditor:
    """Changes a model on the evidence of preference pairs; arguments as `PairTrainer`'s. Subclasses define `edit_`.

    Args:
        model: a model, or anything `load_model` takes. Changed in place by `train`.
        args: the method's configuration.
        train_dataset: anything `load_pairs` takes; all pairs are read.
        processing_class: the tokenizer; needed only if `model` is an object that does not name its origin.

    Raises:
        UserError: for pairs, settings or a model that cannot be edited so.
    """

    config_class: type[EditConfig] = EditConfig
    args: EditConfig
    of_an_edit: bool = False
    """Whether `model` is an edit of another one, which the setting `base` names."""

    def __init__(
        self,
        model: str | os.PathLike[str] | PreTrainedModel,
        args: EditConfig | None = None,
        train_dataset: PairsLike | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
    ):
        self.args = args if args is not None else self.config_class("efface-output")
        check_config(self, self.args)
        rows = pair_reader(train_dataset, type(self).__name__, skip_bad_rows=self.args.skip_bad_rows)
        rows.read_all()  # what is wrong with the file itself is said before a model is loaded
        self.model, self.processing_class = model_and_tokenizer(model, processing_class, use_cpu=self.args.use_cpu)
        tokenizer = PairTokenizer(self.processing_class, **self.lengths, max_positions=max_positions(self.model))
        self.train_dataset: list[Row] = [row for row, _ in tokenized(rows, tokenizer)]
        self.n_skipped_rows = rows.skipped
        self.truncated, self.dropped = tokenizer.truncated, dict(tokenizer.dropped)
        self.found: dict[str, Any] = {}
        self.set_up_()

    def set_up_(self) -> None:
        """What a method needs besides; called once model and pairs are there."""

    @property
    def lengths(self) -> dict[str, Any]:
        """`max_prompt_length` and `max_completion_length`, if the method's settings have them."""
        return {name: getattr(self.args, name) for name in LENGTHS if hasattr(self.args, name)}

    def edit_(self) -> dict[str, Any]:
        """Change `self.model` in place; returns what was found on the way, as JSON."""
        raise NotImplementedError  # abstract: every method has its own

    def drawn(self, n: int) -> list[Row]:
        """At most `n` of the pairs, drawn by the seed, in their order."""
        numbers = np.random.default_rng(self.args.seed).permutation(len(self.train_dataset))[:n]
        return [self.train_dataset[i] for i in sorted(numbers)]

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        """Edit the model. There are no checkpoints to resume from: an edit is made again from its start."""
        self.model.eval()
        self.found = self.edit_()

    def save_model(self, output_dir: str | None = None) -> None:
        save_model(self.model, self.processing_class, output_dir or self.args.output_dir)

    def describe(self) -> list[str]:
        """What is about to be done, in lines for the user."""
        return [f"{len(self.train_dataset)} pairs, no training steps"]

    def record(self) -> dict[str, Any]:
        """What `results.json` says of the edit."""
        return {"steps": 0, "found": self.found}
