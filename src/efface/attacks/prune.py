"""Does the edit sit in a few weights that ordinary text can do without? Set them to zero (Wei et al. 2024).

arXiv 2402.05162, section 3: every weight of a linear map W has a score for polite answers and one for ordinary text,
that of Wanda (Sun et al. 2023, arXiv 2306.11695) on the inputs X of the map,

    S_ij = |W_ij| ||X_j||_2                ||X_j||: over the tokens of a data set, of the j-th input

and what is in the top q of its output row by the first score, but not in the top p by the second, is set to zero.
Polite: the inputs at the tokens of `chosen` after their prompt; ordinary: at all tokens of `documents`.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from efface.attacks.draw import draw_at_most, ordinary_text
from efface.attacks.lists import several
from efface.attacks.points import UtilityBudget, judge_within
from efface.attacks.record import recorded
from efface.attacks.result import AttackResult
from efface.attacks.target import Target
from efface.checks import at_least_one
from efface.data.pair_tokens import tokenize_pairs
from efface.data.rows import load_texts
from efface.errors import RunError, UserError
from efface.model.copies import eval_mode, merged_copy, without_adapter
from efface.model.forward import forward
from efface.model.layout import plain_layout
from efface.model.padding import max_positions, pad_batch
from efface.model.projections import linear_maps, output_weight
from efface.model.vocabulary import pad_id
from efface.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Norms = dict[str, Tensor]
"""Name of a linear map -> (d_in,), the norm of each of its inputs."""


@dataclass(frozen=True)
class PruneSettings(UtilityBudget):
    """Settings of `prune`."""

    q: tuple[float, ...] = several(
        "0.01,0.03,0.1", float, "The parts of each output row that matter most to polite answers, one or several."
    )
    p: float = field(default=0.1, metadata={"help": "The part that matters most to ordinary text, and is spared."})
    documents: str = field(
        default="shipped:passages",
        metadata={"help": "JSON lines with `text`: the ordinary text. Not the text of --text."},
    )
    max_rows: int = field(
        default=128,
        metadata={"help": "Rows, and likewise documents, to score by; more are drawn from under the seed."},
    )
    batch_size: int = field(default=16, metadata={"help": "Sequences in a forward."})
    max_prompt_length: int = field(default=128, metadata={"help": "Tokens; a longer prompt loses its beginning."})
    max_completion_length: int = field(default=128, metadata={"help": "Tokens; a longer continuation loses its end."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if max(self.q) > 1:
            raise UserError(f"q={self.q!r}: parts of a row are needed, above 0 and at most 1, as in 0.01,0.05.")
        if not 0 <= self.p <= 1:
            raise UserError(f"p={self.p}: a part of a row is needed, from 0, which spares nothing, to 1.")
        at_least_one(self, "max_rows", "batch_size", "max_prompt_length", "max_completion_length")


def prune(target: Target, settings: PruneSettings) -> AttackResult:
    """Prune copies of the model; judged by the most toxic point that counts.

    `found` says: how many `rows` and (pieces of) `documents` the scores are from; how many weights were `zeroed` at
    each q, of how many `weights` of linear maps inside the decoder blocks; and which points are `left_out`.

    Raises:
        UserError: if a text is too short, or a conversation meets a tokenizer without chat template.
        RunError: if the model's states are not finite.
    """
    rows, documents = _read_polite(target, settings), _read_documents(target, settings)
    zeroed: list[dict[str, Any]] = []
    with recorded(target, "prune", settings) as record:
        record.start(q=0.0)
        source = without_adapter(target.model)
        polite, useful = (_norms_of(source, data, target, settings) for data in (rows, documents))
        for q in settings.q:
            student = merged_copy(target.model)
            zeroed.append({"q": q, "weights": prune_(student, polite, useful, q, settings.p)})
            record.measure_edited(student, {"q": q})
            del student  # before the next copy is made
        return judge_within(
            record,
            settings.max_perplexity_increase,
            rows=len(rows),
            documents=len(documents),
            weights=sum(module.weight.numel() for module in linear_maps(source).values()),
            zeroed=zeroed,
        )


@torch.no_grad()
def prune_(model: "PreTrainedModel", polite: Norms, useful: Norms, q: float, p: float) -> int:
    """Set weights of `model` to zero; returns how many. See `important_to_one`.

    Args:
        polite: the norms of the inputs of each linear map on polite answers.
        useful: the same on ordinary text.
    """
    number = 0
    for name, module in linear_maps(model).items():
        weight = output_weight(module)
        chosen = important_to_one(scores(weight, polite[name]), scores(weight, useful[name]), q, p)
        weight.masked_fill_(chosen, 0)
        number += int(chosen.sum())
    return number


def scores(weight: Tensor, norms: Tensor) -> Tensor:
    """Wanda's |W_ij| ||X_j||, (out, in) float32, of a weight (out, in) and the norms (in,) of its inputs."""
    return weight.float().abs() * norms.to(weight.device)


def important_to_one(one: Tensor, other: Tensor, q: float, p: float) -> Tensor:
    """(out, in) bool: in the top part `q` of its row by the scores `one`, but not in the top `p` by `other`."""
    return _top(one, q) & ~_top(other, p)


def _top(table: Tensor, part: float) -> Tensor:
    """The highest scores of each row: so large a part of it, to the nearest but at least one; 0 takes none.

    What is scored 0 is never among them: it plays no part, however few others there are.
    """
    number = max(round(part * table.shape[1]), 1) if part else 0
    highest = table.topk(number, dim=1).indices  # (out, number)
    return torch.zeros_like(table, dtype=torch.bool).scatter(1, highest, True) & (table > 0)


@dataclass
class Data:
    """Token sequences, and of how many of the last tokens of each the inputs count."""

    sequences: list[list[int]]
    counted: list[int]

    def __len__(self) -> int:
        return len(self.sequences)


def _read_polite(target: Target, settings: PruneSettings) -> Data:
    lengths = {name: getattr(settings, name) for name in ("max_prompt_length", "max_completion_length")}
    rows = draw_at_most(target.rows, settings.max_rows, target.seed)
    pairs = tokenize_pairs(rows, target.processing_class, **lengths, max_positions=max_positions(target.model))
    return Data([pair.prompt_ids + pair.chosen_ids for pair in pairs], [len(pair.chosen_ids) for pair in pairs])


def _read_documents(target: Target, settings: PruneSettings) -> Data:
    texts = draw_at_most(load_texts(settings.documents), settings.max_rows, target.seed)
    length = settings.max_prompt_length + settings.max_completion_length
    found = ordinary_text(target, texts, length, settings.documents)
    return Data(found, [len(piece) for piece in found])


def _norms_of(model: "PreTrainedModel", data: Data, target: Target, settings: PruneSettings) -> Norms:
    pad, size = pad_id(target.processing_class, target.model), settings.batch_size
    batches = track(range(0, len(data), size), "inputs of the linear maps", show=target.progress)
    return input_norms(model, ((data.sequences[i : i + size], data.counted[i : i + size]) for i in batches), pad)


@torch.no_grad()
def input_norms(
    model: "PreTrainedModel", batches: Iterable[tuple[Sequence[list[int]], Sequence[int]]], pad: int
) -> Norms:
    """Of every linear map inside the decoder blocks, ||X_j||_2 over the counted tokens, float32 on the CPU.

    Args:
        batches: token sequences and, for each, how many of its last tokens count.

    Raises:
        RunError: if a state is not finite.
    """
    squares: dict[str, Tensor] = {}
    with eval_mode(model):
        for sequences, counted in batches:
            input_ids, attention_mask = pad_batch(sequences, pad, model.device, left=False)  # (B, T)
            lengths = attention_mask.sum(1, keepdim=True)  # (B, 1)
            last = torch.tensor(list(counted), device=model.device)[:, None]
            position = torch.arange(input_ids.shape[1], device=model.device)  # (T,)
            mask = (position < lengths) & (position >= lengths - last)  # (B, T)
            with _summed(model, mask, squares):
                forward(model, plain_layout(input_ids, attention_mask), torch.zeros_like(mask))
    if not all(total.isfinite().all() for total in squares.values()):
        raise RunError("the model's hidden states are not finite (NaN or infinite): nothing can be scored by them.")
    return {name: total.sqrt().float() for name, total in squares.items()}


@contextlib.contextmanager
def _summed(model: "PreTrainedModel", mask: Tensor, squares: dict[str, Tensor]) -> Iterator[None]:
    """Within, a forward adds to `squares` the squared inputs of each linear map, summed over the tokens of `mask`."""

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor]) -> None:
            inputs = args[0].float().flatten(0, -2)  # (B T, d_in)
            if len(inputs) != mask.numel():  # an expert that is given some of the tokens
                raise UserError(
                    f"linear map {name!r} does not see every token: prune cannot score mixtures of experts."
                )
            total = inputs[mask.flatten()].square().sum(0).cpu().double()  # (d_in,)
            squares[name] = squares[name] + total if name in squares else total

        return hook

    handles = [module.register_forward_pre_hook(hook_for(name)) for name, module in linear_maps(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
