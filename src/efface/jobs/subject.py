"""What do edited models and their base all read, and what is worked out of it once for all blocks of the analysis?

What the base alone says is `Original`'s, and is worked out once for all edited models. The toxicity direction is the
difference of the base's mean states at tokens of `rejected` and of `chosen`, after the last block. Neurons are looked
at over what the base itself writes after the prompts.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from efface.analysis.concentration import neuron_squares
from efface.analysis.directions import difference_of_means, unit
from efface.analysis.erasure import probe_states, probed_layers
from efface.analysis.input_space import null_spaces
from efface.analysis.neurons import Activity, Spoken, Writing, activity, writing
from efface.analysis.states import TokenStates
from efface.analysis.toxic_mass import read_pairs, toxic_tokens
from efface.attacks.altered import answer_to
from efface.data.batch import PairBatch, PairCollator
from efface.data.conversation import check_template
from efface.data.pair_tokens import TokenizedPair, tokenize_pairs
from efface.evaluation.measure import evaluate
from efface.files.jsonl import Row
from efface.generation.decoding import Decoding
from efface.generation.generate import generate_ids
from efface.generation.prompts import encode_prompts
from efface.model.blocks import decoder_blocks
from efface.model.copies import without_adapter
from efface.model.forward import skipped_above
from efface.model.head_check import check_head_once
from efface.model.padding import max_positions
from efface.model.vocabulary import pad_id
from efface.scoring import DEFAULT_SCORER

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


LENS_PAIRS = 64


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
class Original:
    """The base, what all models read, and what the base makes of it."""

    base: "PreTrainedModel"
    processing_class: "PreTrainedTokenizerBase"
    rows: list[Row]
    text: list[str]
    """Ordinary."""
    depth: Depth = field(default_factory=Depth)
    seed: int = 0

    def __post_init__(self) -> None:
        self.base = without_adapter(self.base)

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
    def states(self) -> dict[int, TokenStates]:
        return self.states_of(self.base)

    @cached_property
    def direction(self) -> np.ndarray:
        states = self.states[self.layers[-1]]
        return unit(difference_of_means(states.hidden, states.labels))

    @cached_property
    def prompts(self) -> list[str]:
        """What is written after: a conversation as its chat template puts it, up to where the answer begins."""
        return [_prompt_of(row, self.processing_class) for row in self.rows]

    @cached_property
    def spoken(self) -> list[Spoken]:
        """What the base itself writes after the prompts."""
        decoding = Decoding(max_new_tokens=self.depth.new_tokens, seed=self.seed)
        starts = encode_prompts(self.base, self.processing_class, self.prompts, decoding, room=decoding.max_new_tokens)
        rows = generate_ids(self.base, self.processing_class, self.prompts, decoding, progress=True)
        written = [(start, row[0].token_ids) for start, row in zip(starts, rows, strict=True) if row[0].token_ids]
        return [Spoken(start + new, len(start)) for start, new in written]

    @cached_property
    def activity(self) -> Activity:
        return activity(self.base, self.processing_class, self.spoken, exact=False, progress=True)

    @cached_property
    def writing(self) -> Writing:
        return writing(self.base, self.activity, self.direction)

    @cached_property
    def toxic_masses(self) -> dict[int, float]:
        return self.toxic_masses_of(self.base)

    @cached_property
    def null_spaces(self) -> dict[str, torch.Tensor]:
        return null_spaces(self.base, self.processing_class, self.text[:32], progress=True)

    def states_of(self, model: "PreTrainedModel") -> dict[int, TokenStates]:
        """Layer -> what a model holds at the tokens of all pairs."""
        return probe_states(model, self.processing_class, self.rows, progress=True)

    def toxic_masses_of(self, model: "PreTrainedModel") -> dict[int, float]:
        """Layer -> how likely toxic words are to a model, were it to end there."""
        check_head_once(model)
        found = {}
        for layer in self.layers:
            with skipped_above(model, layer):
                reading = read_pairs(model, self.processing_class, self.pairs[:LENS_PAIRS], self.toxic)
            found[layer] = reading.toxic_mass
        return found

    def toxicity_of(self, model: "PreTrainedModel") -> Row:
        """The toxic share of what a model writes after the prompts, its interval, and what of it is no text."""
        prompts = list(dict.fromkeys(self.prompts))[: self.depth.written_prompts]
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


@dataclass
class Subject:
    """An edited model beside its base."""

    edited: "PreTrainedModel"
    original: Original

    def __post_init__(self) -> None:
        self.edited = without_adapter(self.edited)

    @property
    def base(self) -> "PreTrainedModel":
        return self.original.base

    @property
    def processing_class(self) -> "PreTrainedTokenizerBase":
        return self.original.processing_class

    @property
    def seed(self) -> int:
        return self.original.seed

    @cached_property
    def states(self) -> dict[int, TokenStates]:
        return self.original.states_of(self.edited)

    @cached_property
    def writing(self) -> Writing:
        """Of the tokens that the base wrote."""
        spoken = self.original.spoken
        active = activity(self.edited, self.processing_class, spoken, exact=False, progress=True)
        return writing(self.edited, active, self.original.direction)

    @cached_property
    def moved_neurons(self) -> np.ndarray:
        """(layers, d_ff)"""
        return neuron_squares(self.edited, self.base).reshape(len(decoder_blocks(self.base)), -1)


def _prompt_of(row: Row, processing_class: "PreTrainedTokenizerBase") -> str:
    if isinstance(row["prompt"], str):
        return row["prompt"]
    check_template(processing_class, "the pairs are conversations", "Pass plain text, or an instruct model.")
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    settings = {**(row.get("chat_template_kwargs") or {}), **tools}
    return answer_to(processing_class, row["prompt"], settings)


def _on(device: torch.device, batch: PairBatch) -> PairBatch:
    moved: Any = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
    }
    return moved
