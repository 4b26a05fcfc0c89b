"""How does an edit survive rounding to the grid that its base lies on? It is settled there, by GPTQ.

Weights that were stored in few bits lie on a grid, and no small edit leaves a cell of it: rounding to that grid puts
the base back. Here the linear maps of the blocks are moved onto the base's own grid, their errors made up for by
each other (`model/settling.py`; Frantar et al. 2022, arXiv 2210.17323), so that the maps write what the edited ones
wrote on pairs and passages. To round the outcome to that grid again changes nothing. No training.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from efface.checks import at_least_one, not_negative, positive
from efface.data.pair_tokens import tokenize_pairs
from efface.data.pairs import PairsLike
from efface.data.rows import load_texts
from efface.data.tokens import tokens_of
from efface.errors import RunError, UserError
from efface.model.blocks import accepted
from efface.model.copies import eval_mode, merged, without_adapter
from efface.model.edit import check_same_parameters, move_
from efface.model.padding import batches_by_length, max_positions, pad_batch, position_ids
from efface.model.projections import linear_maps, output_weight, refuse_experts
from efface.model.settling import lies_on_grid, settled
from efface.model.vocabulary import pad_id
from efface.terminal.progress import track
from efface.training.editor import EditConfig, PairEditor
from efface.training.inputs import base_of, model_and_tokenizer

GRAM_BYTES = 2**27
"""Of X^T X that are held at once: of one block, or of as many as fit. Later blocks hear what earlier ones became."""

SAME = 1e-5
"""Weights that differ by less than this part of the largest are the same value of the grid."""


@dataclass
class GPTQConfig(EditConfig):
    """Settings of GPTQ on the base's grid."""

    base: str | None = field(
        default=None,
        metadata={
            "help": "The model that MODEL was made from; default: the one that the results beside MODEL name, if "
            "`efface train` made it."
        },
    )
    bits: int = field(default=4, metadata={"help": "Of a weight on the grid that the base lies on, 2 to 8."})
    group_size: int = field(
        default=32, metadata={"help": "Neighbouring weights of an output row that share a scale; 0: the whole row."}
    )
    strength: float = field(
        default=1.0, metadata={"help": "What multiple of the edit is settled: base + strength (MODEL - base)."}
    )
    damping: float = field(
        default=0.01, metadata={"help": "Added to the diagonal of X^T X, in parts of its mean (the authors: 0.01)."}
    )
    max_pairs: int = field(
        default=128, metadata={"help": "Pairs, both sides, that the maps are read on; if there are more, drawn."}
    )
    retain_text: str = field(
        default="shipped:passages",
        metadata={"help": "JSON lines with `text`: ordinary passages that the maps are read on too."},
    )
    max_passages: int = field(default=128, metadata={"help": "Of these, the first."})
    max_prompt_length: int = field(default=128, metadata={"help": "Tokens; a longer prompt loses its beginning."})
    max_completion_length: int = field(default=128, metadata={"help": "Tokens; a longer continuation loses its end."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.bits <= 8:
            raise UserError(f"bits={self.bits}: whole numbers from 2 to 8 are needed.")
        not_negative("group_size", self.group_size)
        positive("damping", self.damping)
        positive("strength", self.strength)
        at_least_one(self, "max_pairs", "max_passages", "max_prompt_length", "max_completion_length")


class GPTQEditor(PairEditor):
    """Settle an edit on its base's grid. Arguments as `PairEditor`, `model` being what was edited; settings as
    `GPTQConfig`. An adapter is merged first; the base is held beside the model.

    Raises:
        UserError: if the base does not lie on the grid: there is then nothing that an edit could be settled on.
    """

    config_class = GPTQConfig
    args: GPTQConfig
    of_an_edit = True

    def __init__(
        self,
        model: str | os.PathLike[str] | PreTrainedModel,
        args: GPTQConfig | None = None,
        train_dataset: PairsLike | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
    ):
        super().__init__(model, args, train_dataset, processing_class)
        self.edited_from = name = self.args.base or base_of(model)
        base, _ = model_and_tokenizer(name, self.processing_class, use_cpu=self.args.use_cpu)
        self.model, self.base = merged(self.model), without_adapter(base)
        check_same_parameters(self.model, self.base, "settled")
        refuse_experts(self.base, "gptq")
        config = self.args
        off = [
            path
            for path, module in linear_maps(self.base).items()
            if not lies_on_grid(output_weight(module).data, config.bits, config.group_size)
        ]
        if off:
            raise UserError(
                f"{len(off)} linear maps of the base {name!r} do not lie on the grid of {config.bits} bits in groups "
                f"of {config.group_size or 'a row'} ({off[0]} is the first). Pass the bits and group_size that the "
                "base was stored in; one that was never stored in few bits needs no such step."
            )
        self.rows = self.drawn(config.max_pairs)
        self.passages = load_texts(config.retain_text, "text")[: config.max_passages]

    def edit_(self) -> dict[str, Any]:
        """Returns, for the settled maps together: `crossed`, the part of the weights that are not the base's; `kept`,
        the part of what the edit changes in what maps write that is left, along itself; `error`, the norm of what
        has been added to it, over its own norm."""
        move_(self.model, self.base, 1 - self.args.strength)
        sequences = self._sequences()
        maps, base = linear_maps(self.model), linear_maps(self.base)
        paths = list(_groups(maps))
        crossed = total = 0
        along = off = norm = 0.0
        for group in track(paths, "settling", show=not self.args.disable_tqdm):
            grams = gram_matrices(self.model, {path: maps[path] for path in group}, sequences, self._pad)
            for path, gram in grams.items():
                weight, start = output_weight(maps[path]).data, output_weight(base[path]).data.to(self.model.device)
                found = settled(weight, start, gram, self.args.bits, self.args.group_size, self.args.damping)
                if not torch.isfinite(found).all():
                    raise RunError(f"{path}: what was settled is not finite. The model is broken.")
                edit, left = (each.float() - start.float() for each in (weight, found))
                heard = edit @ gram
                norm += (heard * edit).sum().item()
                along += (heard * left).sum().item()
                off += (((left - edit) @ gram) * (left - edit)).sum().item()
                crossed += int(((found - start).abs() > SAME * start.abs().max()).sum())
                total += found.numel()
                weight.copy_(found)
        return {
            "base": self.edited_from,
            "strength": self.args.strength,
            "crossed": crossed / total,
            "kept": along / norm if norm else None,
            "error": (off / norm) ** 0.5 if norm else None,
        }

    @property
    def _pad(self) -> int:
        return pad_id(self.processing_class, self.model)

    def _sequences(self) -> list[list[int]]:
        """Token ids of the pairs' both sides after their prompts, and of the passages."""
        limit = max_positions(self.model)
        pairs = tokenize_pairs(self.rows, self.processing_class, max_positions=limit, **self.lengths)
        found = [pair.prompt_ids + side for pair in pairs for side in (pair.chosen_ids, pair.rejected_ids)]
        longest = self.args.max_prompt_length + self.args.max_completion_length
        longest = longest if limit is None else min(limit, longest)
        texts = [tokens_of(self.processing_class, text)[:longest] for text in self.passages]
        return [ids for ids in [*found, *texts] if ids]

    def describe(self) -> list[str]:
        grid = f"{self.args.bits} bits in groups of {self.args.group_size or 'a row'}"
        read = f"{len(self.rows)} of {len(self.train_dataset)} pairs and {len(self.passages)} passages"
        return [f"no training steps; {self.args.strength:g} times the edit on the base's grid, {grid}, read on {read}"]


def _groups(maps: dict[str, Any]) -> Iterator[list[str]]:
    """Paths of maps in their order, whose matrices X^T X fit into GRAM_BYTES together; at least those of a block."""
    blocks: dict[str, list[str]] = {}
    for path in maps:
        blocks.setdefault(path.partition(".")[0], []).append(path)
    group: list[str] = []
    size = 0
    for paths in blocks.values():
        more = sum(4 * output_weight(maps[path]).shape[1] ** 2 for path in paths)
        if group and size + more > GRAM_BYTES:
            yield group
            group, size = [], 0
        group, size = group + paths, size + more
    yield group


@torch.no_grad()
def gram_matrices(
    model: Any, maps: dict[str, nn.Module], sequences: Sequence[Sequence[int]], pad: int, max_tokens: int = 4096
) -> dict[str, Tensor]:
    """Path -> (in, in) float32: X^T X of the inputs of linear maps at all tokens of the sequences.

    Args:
        max_tokens: of a batch, padding included.
    """
    found = {
        path: torch.zeros(2 * [output_weight(module).shape[1]], device=model.device)  # type: ignore[arg-type]
        for path, module in maps.items()
    }
    real = torch.empty(0, dtype=torch.bool)

    def listen(path: str) -> Any:
        def hear(module: nn.Module, given: Any) -> None:
            inputs = given[0][real].float()  # (tokens, in)
            found[path].addmm_(inputs.T, inputs)

        return hear

    handles = [module.register_forward_pre_hook(listen(path)) for path, module in maps.items()]
    try:
        with eval_mode(model):
            body = model.base_model
            for batch in batches_by_length(sequences, len, max_tokens=max_tokens):
                ids, mask = pad_batch(batch, pad, model.device, left=False)
                real = mask.bool()
                inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids(mask)}
                body(**accepted(body, **inputs, use_cache=False))
    finally:
        for handle in handles:
            handle.remove()
    return found
