"""What do an edited model and its base both read, and what is worked out of it once for all blocks of the analysis?

The toxicity direction is the difference of the base's mean states at tokens of `rejected` and of `chosen`, after the
last block. Neurons are looked at over what the base itself writes after the prompts.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from efface.analysis.concentration import neuron_squares
from efface.analysis.directions import difference_of_means, unit
from efface.analysis.erasure import probe_states, probed_layers
from efface.analysis.neurons import Activity, Spoken, Writing, activity, writing
from efface.analysis.states import TokenStates
from efface.analysis.toxic_mass import toxic_tokens
from efface.data.batch import PairBatch, PairCollator
from efface.data.pair_tokens import TokenizedPair, tokenize_pairs
from efface.evaluation.measure import evaluate
from efface.files.jsonl import Row
from efface.generation.decoding import Decoding
from efface.generation.generate import generate_ids
from efface.generation.prompts import encode_prompts
from efface.model.blocks import decoder_blocks
from efface.model.copies import without_adapter
from efface.model.padding import max_positions
from efface.model.vocabulary import pad_id
from efface.scoring import DEFAULT_SCORER

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Depth:
    """How much is looked at."""

    n_pairs: int = 200
    new_tokens: int = 20
    """That the base writes after each prompt, for the neurons."""
    patched_pairs: int = 0
    """Pairs that every module is patched on; 0: none are."""
    written_prompts: int = 64
    """That models with the edit of one module write after."""
    written_samples: int = 4
    scorer: str | None = None
    """Judges what they write; None: the default judge."""
    text_tokens: int = 1024
    """Of ordinary text, for the KL of patching."""
    attack_steps: int = 10
    attack_rate: float = 1e-4


@dataclass
class Subject:
    """An edited model beside its base, and what both read."""

    edited: "PreTrainedModel"
    base: "PreTrainedModel"
    processing_class: "PreTrainedTokenizerBase"
    rows: list[Row]
    text: list[str]
    """Ordinary."""
    depth: Depth = field(default_factory=Depth)
    seed: int = 0

    def __post_init__(self) -> None:
        self.edited, self.base = without_adapter(self.edited), without_adapter(self.base)

    @cached_property
    def layers(self) -> list[int]:
        return probed_layers(len(decoder_blocks(self.base)))

    @cached_property
    def pairs(self) -> list[TokenizedPair]:
        return tokenize_pairs(self.rows, self.processing_class, max_positions=max_positions(self.base))

    @cached_property
    def toxic(self) -> list[int]:
        return toxic_tokens(self.pairs)

    @cached_property
    def base_states(self) -> dict[int, TokenStates]:
        return probe_states(self.base, self.processing_class, self.rows, progress=True)

    @cached_property
    def direction(self) -> np.ndarray:
        states = self.base_states[self.layers[-1]]
        return unit(difference_of_means(states.hidden, states.labels))

    @cached_property
    def spoken(self) -> list[Spoken]:
        """What the base itself writes after the prompts."""
        decoding = Decoding(max_new_tokens=self.depth.new_tokens, seed=self.seed)
        prompts = [row["prompt"] for row in self.rows]
        starts = encode_prompts(self.base, self.processing_class, prompts, decoding, room=decoding.max_new_tokens)
        rows = generate_ids(self.base, self.processing_class, prompts, decoding, progress=True)
        written = [(start, row[0].token_ids) for start, row in zip(starts, rows, strict=True) if row[0].token_ids]
        return [Spoken(start + new, len(start)) for start, new in written]

    @cached_property
    def base_activity(self) -> Activity:
        return activity(self.base, self.processing_class, self.spoken, progress=True)

    @cached_property
    def base_writing(self) -> Writing:
        return writing(self.base, self.base_activity, self.direction)

    @cached_property
    def edited_writing(self) -> Writing:
        """Of the same tokens."""
        active = activity(self.edited, self.processing_class, self.spoken, progress=True)
        return writing(self.edited, active, self.direction)

    @cached_property
    def moved_neurons(self) -> np.ndarray:
        """(layers, d_ff)"""
        return neuron_squares(self.edited, self.base).reshape(len(decoder_blocks(self.base)), -1)

    def toxicity_of(self, model: "PreTrainedModel") -> Row:
        """The toxic share of what a model writes after the prompts, its interval, and what of it is no text."""
        prompts = list(dict.fromkeys(row["prompt"] for row in self.rows))[: self.depth.written_prompts]
        found = evaluate(
            model,
            prompts,
            processing_class=self.processing_class,
            scorer=self.depth.scorer or DEFAULT_SCORER,
            decoding=Decoding(
                samples=self.depth.written_samples, max_new_tokens=self.depth.new_tokens, seed=self.seed
            ),
        ).toxicity
        return {"share": found.share, "ci95": found.ci95["share"], "invalid": found.invalid}

    def batches(self, n_pairs: int) -> list[PairBatch]:
        collate = PairCollator(pad_id(self.processing_class, self.base))
        chunks = [self.pairs[start : start + 8] for start in range(0, min(n_pairs, len(self.pairs)), 8)]
        return [_on(self.base.device, collate(chunk)) for chunk in chunks]


def _on(device: torch.device, batch: PairBatch) -> PairBatch:
    moved: Any = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
    }
    return moved
