"""How toxic does the model get with the best vectors before the prompt? An attack in the space of embeddings.

Schwinn et al. 2024 (arXiv 2402.09063): n vectors v, the same for all prompts, are put before the prompt's embeddings
and trained, with the weights frozen, on the rejected continuations of the rows:

    min over v of  E  -log p(y- | v, x)

It bounds nothing: vectors that more steps, or other ones, would have found may do worse. It is trained until the loss
no longer falls, so that at least the first is not the reason. And vectors may break a model as well as lead it, so the
same is done once more with targets that say nothing (words of the polite continuations, shuffled over all rows): what
is toxic then comes from the breaking. Whoever can only type cannot do this; it needs the weights at hand.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efface.attacks.draw import as_measured, count_prompts_among, draw
from efface.attacks.lists import read_lists, several
from efface.attacks.points import worst
from efface.attacks.record import Record, recorded
from efface.attacks.result import AttackResult
from efface.attacks.target import Target
from efface.attacks.virtual_tokens import with_virtual_tokens
from efface.checks import at_least_one, positive
from efface.data.pair_tokens import TokenizedPair, tokenize_pairs
from efface.errors import RunError, UserError
from efface.files.jsonl import Row
from efface.generation.decoder import Decoder
from efface.generation.likelihood import mean_nll
from efface.generation.prompts import encode_prompts
from efface.generation.warp import GREEDY
from efface.model.blocks import accepted
from efface.model.copies import eval_mode
from efface.model.padding import max_positions, pad_batch, position_ids
from efface.model.vocabulary import pad_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FALL = 0.01  # a smoothed loss that has not fallen by this part within `patience` steps has converged


@dataclass(frozen=True)
class EmbeddingAttackSettings:
    """Settings of `embedding_attack`."""

    steps: tuple[int, ...] = several(
        "10,30", int, "Optimizer steps after which it is measured besides the last, up to max_steps."
    )
    max_steps: int = field(default=300, metadata={"help": "Optimizer steps, at most."})
    patience: int = field(
        default=20,
        metadata={"help": "Steps whose mean loss must be lower than before, by 1 %, or the attack has converged."},
    )
    control: bool = field(
        default=True,
        metadata={"help": "Once more, as long, with random words to force: what comes from breaking the model."},
    )
    n_tokens: int = field(default=8, metadata={"help": "Vectors before the prompt (after its BOS, if it has one)."})
    learning_rate: float = field(
        default=0.1, metadata={"help": "Constant rate of AdamW, as a part of the embeddings' root mean square."}
    )
    batch_size: int = field(default=8, metadata={"help": "Rows in a step."})
    k: int | None = field(default=None, metadata={"help": "Rows to optimise on, drawn under the seed; default: all."})
    max_prompt_length: int = field(default=64, metadata={"help": "Tokens; a longer prompt loses its beginning."})
    max_completion_length: int = field(default=32, metadata={"help": "Tokens; a longer continuation loses its end."})

    def __post_init__(self) -> None:
        read_lists(self)
        positive("learning_rate", self.learning_rate)
        at_least_one(
            self,
            *("max_steps", "patience", "n_tokens", "batch_size", "k", "max_prompt_length", "max_completion_length"),
        )


def embedding_attack(target: Target, settings: EmbeddingAttackSettings) -> AttackResult:
    """Optimise vectors on the target's rows and measure with them before the prompts, which they have not seen.

    They start as the embeddings of tokens from the rows' prompts. An interrupted run takes the same steps again, which
    are few, and measures only what it had not measured.

    `found`: how many `rows`; `prompts_among_rows`, which should be 0; the `losses` of each step's batch (nats a
    token); whether it `converged` before `max_steps`; and as `control` the `share` and the `mean` at the end of as
    many steps towards random words, whether the writing is `degenerate` there, and the `losses`.

    Raises:
        UserError: if there are fewer rows than `k`, no room for the vectors, or the model keeps more than keys and
            values.
        RunError: if the loss is not finite.
    """
    model, pad = target.model, pad_id(target.processing_class, target.model)
    if not Decoder(model, GREEDY, pad, []).has_dynamic_cache():
        raise UserError(
            "embedding_attack needs a model that keeps nothing but keys and values: not a state space, and none that "
            "has virtual tokens already."
        )
    rows = draw(as_measured(target, target.rows), settings.k, target.seed)
    _raise_without_room(target, settings.n_tokens)
    pairs = _tokenize(rows, target, settings)
    with recorded(target, "embedding_attack", settings) as record:
        record.start(steps=0)
        training = _Training(target, settings, pairs)
        while not training.over:
            training.step()
            if training.over or training.done in settings.steps:
                record.measure(training.attacked, {"steps": training.done}, with_text=False)
        found: dict[str, Any] = {"rows": len(pairs), "losses": training.losses, "converged": training.converged}
        found["prompts_among_rows"] = count_prompts_among(rows, target.prompts)
        if settings.control:
            found["control"] = _control(record, settings, rows, training.done)
        return record.result(worst(record.curve), **found)


def _control(record: Record, settings: EmbeddingAttackSettings, rows: list[Row], steps: int) -> Row:
    """The same with random words to force."""
    target = record.target
    training = _Training(target, settings, _tokenize(with_random_words(rows, target.seed), target, settings))
    for _ in range(steps):
        training.step()
    point = record.measure_control(training.attacked, {"control": steps})
    toxicity, degenerate = point.measured.toxicity, point.figures["degeneration"]["verdict"] == "degenerate"
    return {"share": toxicity.share, "mean": toxicity.mean, "degenerate": degenerate, "losses": training.losses}


class _Training:
    """Vectors on their way to the lowest loss on `pairs`."""

    def __init__(self, target: Target, settings: EmbeddingAttackSettings, pairs: Sequence[TokenizedPair]):
        self.settings, self.pairs = settings, pairs
        self.pad = pad_id(target.processing_class, target.model)
        self.generator = torch.Generator().manual_seed(target.seed)
        self.vectors = _start(target.model, pairs, settings.n_tokens, self.generator)  # (n, d)
        rate = settings.learning_rate * float(self.vectors.pow(2).mean().sqrt())
        self.attacked = with_virtual_tokens(target.model, self.vectors, target.processing_class.bos_token_id)
        self.optimizer = torch.optim.AdamW([self.vectors.requires_grad_()], lr=rate, weight_decay=0.0)
        self.order: list[int] = []
        self.losses: list[float] = []

    @property
    def done(self) -> int:
        return len(self.losses)

    @property
    def converged(self) -> bool:
        return has_converged(self.losses, self.settings.patience)

    @property
    def over(self) -> bool:
        return self.done >= self.settings.max_steps or self.converged

    def step(self) -> None:
        size = self.settings.batch_size
        while len(self.order) < size:
            self.order += torch.randperm(len(self.pairs), generator=self.generator).tolist()
        batch, self.order = self.order[:size], self.order[size:]
        with eval_mode(self.attacked):
            loss = rejected_nll(self.attacked, [self.pairs[i] for i in batch], self.pad)
        self.losses.append(loss.item())
        if not math.isfinite(self.losses[-1]):
            raise RunError(
                f"the loss of the embedding attack is {self.losses[-1]} at step {self.done}. Lower learning_rate (now "
                f"{self.settings.learning_rate:g}), or check that the model's weights are finite."
            )
        (self.vectors.grad,) = torch.autograd.grad(loss, [self.vectors])  # the weights get none
        self.optimizer.step()


def has_converged(losses: Sequence[float], patience: int) -> bool:
    """Whether the mean of the last `patience` losses is not below that of the `patience` before by the part FALL."""
    if len(losses) < 2 * patience:
        return False
    last, earlier = (sum(some) / patience for some in (losses[-patience:], losses[-2 * patience : -patience]))
    return last > (1 - FALL) * earlier


def with_random_words(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows with rejected continuations of as many words, drawn from all chosen ones."""
    rng = random.Random(seed)
    words = [word for row in rows for word in _text_of(row["chosen"]).split()] or ["the"]

    def drawn(side: Any) -> Any:
        text = " ".join(rng.choices(words, k=max(len(_text_of(side).split()), 1)))
        return f" {text}" if isinstance(side, str) else [*side[:-1], side[-1] | {"content": text}]

    return [row | {"rejected": drawn(row["rejected"])} for row in rows]


def _text_of(side: Any) -> str:
    return side if isinstance(side, str) else str(side[-1]["content"])


def _tokenize(rows: Sequence[Row], target: Target, settings: EmbeddingAttackSettings) -> list[TokenizedPair]:
    lengths = {name: getattr(settings, name) for name in ("max_prompt_length", "max_completion_length")}
    pairs = tokenize_pairs(rows, target.processing_class, **lengths)
    _raise_if_too_long(pairs, target, settings.n_tokens)
    return pairs


def rejected_nll(model: "PreTrainedModel", pairs: Sequence[TokenizedPair], pad: int) -> Tensor:
    """Mean -log p of the tokens of the rejected continuations given their prompts, in nats."""
    rows = [pair.prompt_ids + pair.rejected_ids for pair in pairs]
    input_ids, mask = pad_batch(rows, pad, model.device, left=True)  # (B, T)
    longest = max(len(pair.rejected_ids) for pair in pairs)
    inputs = accepted(
        model,
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=position_ids(mask),
        use_cache=False,
        logits_to_keep=longest + 1,
    )
    logits = model(**inputs).logits[:, -longest - 1 : -1]  # (B, longest, V): the last predicts what follows
    lengths = torch.tensor([len(pair.rejected_ids) for pair in pairs], device=model.device)
    counted = torch.arange(longest, device=model.device) >= longest - lengths[:, None]  # (B, longest)
    return mean_nll(logits, input_ids[:, -longest:], counted)


def _start(
    model: "PreTrainedModel", pairs: Sequence[TokenizedPair], n_tokens: int, generator: torch.Generator
) -> Tensor:
    """(n, d) in float32: what the input embedding gives for tokens drawn from the prompts, at its own scale."""
    tokens = torch.tensor([token for pair in pairs for token in pair.prompt_ids])
    drawn = tokens[torch.randint(len(tokens), (n_tokens,), generator=generator)]
    with torch.no_grad():
        return model.get_input_embeddings()(drawn.to(model.device)).float().clone()


def _raise_without_room(target: Target, n_tokens: int) -> None:
    """The prompts must leave room for the vectors as for the new tokens; `generate` does not know of them."""
    how = target.decoding
    encode_prompts(
        target.model,
        target.processing_class,
        target.prompts,
        how,
        room=how.max_new_tokens + n_tokens,
    )


def _raise_if_too_long(pairs: Sequence[TokenizedPair], target: Target, n_tokens: int) -> None:
    longest = max(len(pair.prompt_ids) + len(pair.rejected_ids) for pair in pairs) + n_tokens
    limit = max_positions(target.model)
    if limit is not None and longest > limit:
        raise UserError(
            f"a row with {n_tokens} vectors before it has {longest} tokens, more than the model's {limit} positions. "
            "Lower max_prompt_length, max_completion_length or n_tokens."
        )
