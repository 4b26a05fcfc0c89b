"""Does the edit sit in a few weights that ordinary text can do without? Set them to zero (Wei et al. 2024).

arXiv 2402.05162, section 3: every weight of a linear map W has a score for the edited answers and one for ordinary
text (`weight_scores.py`). What is in the top q of its matrix by the first score, but not in the top p by the second,
is set to zero, for each q and p.

Edited answers: what the model under attack itself writes after the rows' prompts (`own_answers.py`), scored at the
tokens of the answer. Ordinary: `documents`, at all tokens.
"""

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from efface.attacks.draw import as_measured, count_prompts_among, draw_at_most, ordinary_text
from efface.attacks.lists import several
from efface.attacks.own_answers import own_answers
from efface.attacks.points import UtilityBudget, judge_within
from efface.attacks.record import recorded
from efface.attacks.result import AttackResult, title
from efface.attacks.target import Target
from efface.attacks.weight_scores import Data, Scores, gradient_scores, wanda_scores
from efface.checks import at_least_one, one_of
from efface.data.pair_tokens import tokenize_pairs
from efface.data.rows import load_texts
from efface.errors import NotFinite, UserError
from efface.files.jsonl import Row
from efface.model.copies import merged_copy
from efface.model.padding import max_positions
from efface.model.projections import linear_maps, output_weight, part_unreached
from efface.model.vocabulary import pad_id
from efface.terminal.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)
KINDS = {"gradient": gradient_scores, "wanda": wanda_scores}
ANSWERS = ("own", "chosen")
RANKED = {"gradient": "matrix", "wanda": "row"}
"""Within what the top is taken, as the authors of each score have it."""


@dataclass(frozen=True)
class PruneSettings(UtilityBudget):
    """Settings of `prune`."""

    NAMES_FILES: ClassVar[dict[str, tuple[str, ...]]] = {"documents": ()}
    """Settings that name a file, and words that each may be instead: see `describe_settings`."""
    q: tuple[float, ...] = several(
        "0.01,0.03,0.1", float, "The parts of each matrix that matter most to the edited answers, one or several."
    )
    p: tuple[float, ...] = several(
        "0.1", float, "The parts that matter most to ordinary text, and are spared, one or several."
    )
    scores: str = field(
        default="gradient",
        metadata={
            "help": "gradient (weight times gradient, ranked over the matrix) or wanda (weight times the norm of its "
            "input, ranked in each output row)."
        },
    )
    answers: str = field(
        default="own",
        metadata={"help": "own (what the model writes after the rows' prompts) or chosen (of the rows)."},
    )
    documents: str = field(
        default="shipped:passages",
        metadata={"help": "JSON lines with `text`: the ordinary text. Not the text of --text."},
    )
    max_rows: int = field(
        default=128,
        metadata={"help": "Rows, and likewise documents, to score by; more are drawn from under the seed."},
    )
    batch_size: int = field(
        default=1, metadata={"help": "Sequences in a forward; with gradient, |gradient| is of their mean."}
    )
    max_prompt_length: int = field(default=128, metadata={"help": "Tokens; a longer prompt loses its beginning."})
    max_completion_length: int = field(default=128, metadata={"help": "Tokens; a longer continuation loses its end."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("q", "p"):
            if max(getattr(self, name)) > 1:
                raise UserError(
                    f"{name}={getattr(self, name)!r}: parts of a matrix are needed, above 0 and at most 1, as in "
                    "0.01,0.05."
                )
        one_of("scores", self.scores, tuple(KINDS))
        one_of("answers", self.answers, ANSWERS)
        at_least_one(self, "max_rows", "batch_size", "max_prompt_length", "max_completion_length")


def prune(target: Target, settings: PruneSettings) -> AttackResult:
    """Prune copies of the model; judged by the most toxic point that counts.

    `found` says: how many `rows` and (pieces of) `documents` the scores are from; how many weights were `zeroed` at
    each p and q, of how many `weights` of linear maps inside the decoder blocks, and which part of the weights of the
    blocks' matrices is `unreached`, since it is in no such map (experts that lie in one tensor); `prompts_among_rows`,
    which should be 0; and which points are `left_out`: all, where the model's gradients (or states) are not finite.

    Raises:
        UserError: if a text is too short, or a conversation meets a tokenizer without chat template.
    """
    edited, documents = _read_answers(target, settings), _read_documents(target, settings)
    points = [{"p": p, "q": q} for p in settings.p for q in settings.q]
    zeroed: list[dict[str, Any]] = []
    with recorded(target, "prune", settings) as record:
        record.start(q=0.0)
        source = merged_copy(target.model).float()
        number = sum(module.weight.numel() for module in linear_maps(source).values())
        unreached = part_unreached(source, number, "prune")
        try:
            important, useful = (_scores_by(source, data, target, settings) for data in (edited, documents))
        except NotFinite as error:
            logger.warning("prune: %s", error)
            record.broken += map(title, points)
            points = []
        del source  # before a copy is made
        for at in points:
            student = merged_copy(target.model)
            count = prune_(student, important, useful, at["q"], at["p"], RANKED[settings.scores])
            zeroed.append({**at, "weights": count})
            record.measure_edited(student, at)
            del student  # before the next copy is made
        return judge_within(
            record,
            settings.max_perplexity_increase,
            rows=len(edited),
            documents=len(documents),
            weights=number,
            unreached=unreached,
            prompts_among_rows=count_prompts_among(_rows(target, settings), target.prompts),
            zeroed=zeroed,
        )


@torch.no_grad()
def prune_(
    model: "PreTrainedModel", important: Scores, useful: Scores, q: float, p: float, within: str = "matrix"
) -> int:
    """Set weights of `model` to zero; returns how many. See `important_to_one`.

    Args:
        important: of the weights of each linear map, to the edited answers.
        useful: the same, to ordinary text.
    """
    number = 0
    for name, module in linear_maps(model).items():
        weight = output_weight(module)
        chosen = important_to_one(important[name], useful[name], q, p, within).to(weight.device)
        weight.masked_fill_(chosen, 0)
        number += int(chosen.sum())
    return number


def important_to_one(one: Tensor, other: Tensor, q: float, p: float, within: str = "matrix") -> Tensor:
    """(out, in) bool: in the top part `q` by the scores `one`, but not in the top `p` by `other`.

    Args:
        within: "matrix", or each "row" by itself.
    """
    return _top(one, q, within) & ~_top(other, p, within)


def _top(table: Tensor, part: float, within: str) -> Tensor:
    """The highest scores of the matrix or of each row: so large a part of it, to the nearest but at least one (and
    what is equal to the last of them); 0 takes none.

    What is scored 0 is never among them: it plays no part, however few others there are.
    """
    groups = table.flatten()[None] if within == "matrix" else table  # (groups, n)
    n = groups.shape[1]
    number = max(round(part * n), 1) if part else 0
    if not number:
        return torch.zeros_like(table, dtype=torch.bool)
    least = groups.kthvalue(n - number + 1, dim=1, keepdim=True).values  # far faster than a sorted top
    return ((groups >= least) & (groups > 0)).view_as(table)


def _rows(target: Target, settings: PruneSettings) -> list[Row]:
    return draw_at_most(target.rows, settings.max_rows, target.seed)


def _read_answers(target: Target, settings: PruneSettings) -> Data:
    lengths = {name: getattr(settings, name) for name in ("max_prompt_length", "max_completion_length")}
    rows = as_measured(target, _rows(target, settings))
    pairs = tokenize_pairs(rows, target.processing_class, **lengths, max_positions=max_positions(target.model))
    answers = [(pair.prompt_ids, pair.chosen_ids) for pair in pairs]
    if settings.answers == "own":
        answers = own_answers(target, pairs)
        if not answers:
            raise UserError(
                "answers='own': the model answers no prompt of the rows with a word. Use answers='chosen'."
            )
    return Data([prompt + answer for prompt, answer in answers], [len(answer) for _, answer in answers])


def _read_documents(target: Target, settings: PruneSettings) -> Data:
    texts = draw_at_most(load_texts(settings.documents), settings.max_rows, target.seed)
    length = settings.max_prompt_length + settings.max_completion_length
    found = draw_at_most(ordinary_text(target, texts, length, settings.documents), settings.max_rows, target.seed)
    return Data(found, [len(piece) for piece in found])


def _scores_by(model: "PreTrainedModel", data: Data, target: Target, settings: PruneSettings) -> Scores:
    pad, size = pad_id(target.processing_class, target.model), settings.batch_size
    batches = track(range(0, len(data), size), "scores of the weights", show=target.progress)
    pieces = ((data.sequences[i : i + size], data.counted[i : i + size]) for i in batches)
    return KINDS[settings.scores](model, pieces, pad)
