"""How likely are toxic words to a model that reads, not writes? Their probability at every place of given text.

The toxic tokens are those that stand far more often in `rejected` than in `chosen` of some pairs: the smoothed
log-odds of `token_odds.py`. Read are the continuations of given pairs, teacher-forced: no decoding, no judge, and no
chance in it, so that small differences between models show. `efface analyze` reads the first of the very pairs that
chose the tokens: the mass is high for the base by that choice, and what compares is two models on the same pairs. It
is not toxicity: what no word gives away is not seen.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from efface.analysis.token_odds import ALPHA
from efface.data.batch import side_of
from efface.data.pair_tokens import TokenizedPair
from efface.data.preferences import SIDES
from efface.errors import NotFinite, UserError
from efface.files.jsonl import Row
from efface.generation.likelihood import predicting_states
from efface.model.copies import eval_mode
from efface.model.devices import doubled
from efface.model.forward import Head
from efface.model.head_check import check_head_once
from efface.model.padding import batches_by_length
from efface.model.vocabulary import pad_id
from efface.terminal.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LEAST_ODDS = 2.0
"""Nats: a token is toxic from e^2 times as often in `rejected` on."""
LEAST_SEEN = 3
AT_ONCE = 512
"""Positions that are projected to the vocabulary at once."""


@dataclass(frozen=True)
class Reading:
    """What a model thinks of given continuations."""

    toxic_mass: float
    """Mean probability that the next token is a toxic one, over the tokens of `rejected` and what precedes them."""
    margin: float
    """Mean log p of a token of `rejected` less that of a token of `chosen`, in nats."""
    chosen_nll: float
    """Nats a token."""
    rejected_nll: float

    def to_dict(self) -> Row:
        """As it is written to JSON."""
        return asdict(self)


def toxic_tokens(pairs: Sequence[TokenizedPair]) -> list[int]:
    """The ids that stand at least LEAST_SEEN times in `rejected` and have log-odds of LEAST_ODDS or more; the most
    telling first.

    Raises:
        UserError: if there is none.
    """
    counts = [
        np.bincount([token for pair in pairs for token in side_of(pair, side)[1]]) for side in ("chosen", "rejected")
    ]
    size = max(map(len, counts))
    benign, toxic = (np.pad(count, (0, size - len(count))).astype(float) for count in counts)
    prior = toxic.sum() / (toxic.sum() + benign.sum())
    odds = np.log((toxic + ALPHA * prior) / (benign + ALPHA * (1 - prior))) - np.log(prior / (1 - prior))
    found = [int(token) for token in np.argsort(-odds, kind="stable") if toxic[token] >= LEAST_SEEN]
    found = [token for token in found if odds[token] >= LEAST_ODDS]
    if not found:
        raise UserError(
            f"no token stands {LEAST_SEEN} times in `rejected` and e^{LEAST_ODDS:g} times as often as in `chosen`, in "
            f"{len(pairs)} pairs: they have no toxic words to look for. Give more pairs, or others."
        )
    return found


@torch.no_grad()
def read_pairs(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    pairs: Sequence[TokenizedPair],
    toxic: Sequence[int],
    *,
    batch_size: int = 16,
    progress: bool = False,
) -> Reading:
    """Read both continuations of all `pairs`.

    Args:
        toxic: ids, as of `toxic_tokens`.

    Raises:
        RunError: if the model's output is not finite.
    """
    check_head_once(model)
    items = [(kind, *side_of(pair, side)) for kind, side in enumerate(SIDES) for pair in pairs]
    batches = batches_by_length(range(len(items)), lambda i: len(items[i][1]) + len(items[i][2]), batch_size)
    words = torch.tensor(list(toxic), device=model.device)
    nll, counts, mass = [0.0, 0.0], [0, 0], 0.0
    head, pad = Head.of(model), pad_id(processing_class, model)
    with eval_mode(model):
        for chunk in track(batches, "toxic mass", show=progress):
            rows = [items[i] for i in chunk]
            counted = [len(row[2]) for row in rows]
            states = predicting_states(model, [row[1] + row[2] for row in rows], counted, pad)  # (N, d)
            targets = torch.tensor([token for row in rows for token in row[2]], device=states.device)
            kinds = torch.tensor([row[0] for row in rows], device=states.device).repeat_interleave(
                torch.tensor(counted, device=states.device)
            )
            for piece, target, kind in zip(*(one.split(AT_ONCE) for one in (states, targets, kinds)), strict=True):
                log_p = head(piece).float().log_softmax(-1)
                found = -doubled(log_p.gather(1, target[:, None])[:, 0])
                if not torch.isfinite(found).all():
                    raise NotFinite("the model's output is not finite (NaN or infinite logits): nothing can be read.")
                for side in (0, 1):
                    nll[side] += found[kind == side].sum().item()
                    counts[side] += int((kind == side).sum())
                mass += doubled(log_p[kind == 1][:, words]).exp().sum().item()
    chosen, rejected = (total / max(count, 1) for total, count in zip(nll, counts, strict=True))
    return Reading(mass / max(counts[1], 1), chosen - rejected, chosen, rejected)
