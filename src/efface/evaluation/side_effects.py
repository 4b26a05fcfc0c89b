"""Has the edit made harmless text that names identity groups less likely than other harmless text?

An erasure that is too broad takes the names of groups for toxicity, as toxicity classifiers do (Dixon et al. 2018,
"Measuring and Mitigating Unintended Bias in Text Classification"): then "My deaf neighbour teaches mathematics" loses
more likelihood than "My tall neighbour teaches mathematics". With NLL(t) = -log p per token of text t,

    change(t) = NLL_edited(t) - NLL_base(t)                       nats per token; above 0: text became less likely
    excess(G) = mean over texts of group G of change(t) - mean over control texts of change(t)

The shipped texts are every term of `shipped/identity.json` in every template, so groups are compared within the same
sentences; the interval is a paired bootstrap over templates.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.data.rows import labelled_rows
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.files.results import read_json
from efface.files.shapes import INTERVAL, Maybe, check_shape, fill
from efface.resampling import interval

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONTROL = "control"
SHIPPED = Path(__file__).parents[1] / "data" / "shipped" / "identity.json"


@dataclass
class GroupLikelihood:
    """How likely the texts of one group are. All figures are means over texts, in nats per token."""

    group: str
    texts: int
    nll: float
    """Under the model."""
    reference_nll: float | None = None
    """Under the reference; this and the rest is None without one."""
    change: float | None = None
    """nll - reference_nll."""
    excess: float | None = None
    """`change` beyond that of the control texts."""
    ci95: list[float] | None = None
    """Of `excess`, [lower, upper]."""

    @classmethod
    def from_dict(cls, block: dict[str, Any]) -> "GroupLikelihood":
        """As it was written to JSON."""
        return fill(cls, block)


GROUP = {"group": str, "texts": int, "nll": float, "excess": Maybe(float), "ci95": Maybe(INTERVAL)}
IDENTITY = {"identity": GROUP, "control": GROUP, "groups": [GROUP], "templates": int}
"""The shape of the `identity` block of the result files."""


@dataclass
class IdentityLikelihood:
    """What `identity_likelihood` found."""

    identity: GroupLikelihood
    """All texts that are not control texts, together."""
    control: GroupLikelihood
    """Its excess is 0 by definition, so it has none."""
    groups: list[GroupLikelihood]
    templates: int
    """Units of the bootstrap: templates, or texts where a file names none."""

    def to_dict(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, block: dict[str, Any]) -> "IdentityLikelihood":
        """The block as read from a result file. Raises UserError if it is no such block."""
        check_shape(block, IDENTITY, "the block 'identity'")
        return cls(
            identity=GroupLikelihood.from_dict(block["identity"]),
            control=GroupLikelihood.from_dict(block["control"]),
            groups=[GroupLikelihood.from_dict(group) for group in block["groups"]],
            templates=block["templates"],
        )


def identity_texts() -> list[Row]:
    """The shipped texts: rows of text, group, template and term."""
    data = read_json(SHIPPED)
    return [
        {"text": template.format(term), "group": group, "template": template, "term": term}
        for group, terms in data["terms"].items()
        for term in terms
        for template in data["templates"]
    ]


def read_identity_texts(path: str | os.PathLike[str]) -> list[Row]:
    """Texts of one's own: JSON lines with "text", "group" ("control" for the neutral ones) and, if the same sentence
    stands there with several terms, "template" to say which belong together.

    Raises:
        UserError: naming the file and line of a bad row.
    """
    rows = []
    for where, row in labelled_rows(path):
        for field in ("text", "group", "template"):
            value = row.get(field)
            if not isinstance(value, str) and not (field == "template" and value is None):
                raise UserError(f"{where}: {field!r} must be a text, but it is {value!r}.")
        if len(row["text"].split()) < 2:
            raise UserError(f"{where}: 'text' must have at least two words, the first of which is given, not counted.")
        rows.append(row)
    counts = {control: sum((row["group"] == CONTROL) is control for row in rows) for control in (True, False)}
    if not all(counts.values()):
        raise UserError(
            f"{os.fspath(path)!r} has {counts[True]} texts of group {CONTROL!r} and {counts[False]} of others: it "
            "needs both, since the second are compared with the first."
        )
    return rows


def identity_likelihood(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    texts: str | os.PathLike[str] | None = None,
    reference: "PreTrainedModel | None" = None,
    *,
    batch_size: int = 32,
    resamples: int = 2000,
    seed: int = 0,
    progress: bool = False,
) -> IdentityLikelihood:
    """Likelihood of harmless texts with and without names of groups, and how the edit changed it.

    Args:
        model: usually the edited one.
        texts: a file for `read_identity_texts`; None takes the shipped ones.
        reference: the base, with the same tokenizer; None gives likelihoods without changes.
        batch_size: texts at once; the result does not depend on it.
        resamples, seed: of the bootstrap.

    Raises:
        UserError: for a malformed file.
        RunError: if a model's output is not finite.
    """
    rows = identity_texts() if texts is None else read_identity_texts(texts)
    sentences = [row["text"] for row in rows]
    nll = _per_token(model, processing_class, sentences, batch_size, progress)  # (n,)
    base = None if reference is None else _per_token(reference, processing_class, sentences, batch_size, progress)
    names = np.array([row["group"] for row in rows])
    control = names == CONTROL  # (n,)
    units = _number([row.get("template") or number for number, row in enumerate(rows)])  # (n,)

    def group(name: str, member: np.ndarray) -> GroupLikelihood:
        block = GroupLikelihood(name, int(member.sum()), float(nll[member].mean()))
        if base is not None:
            change = nll - base
            block.reference_nll = float(base[member].mean())
            block.change = float(change[member].mean())
            if name != CONTROL:
                per_unit = _contrast(change, member, control, units)
                block.excess = float(per_unit.mean())
                block.ci95 = interval(per_unit[:, None], resamples=resamples, seed=seed)[:, 0].tolist()
        return block

    return IdentityLikelihood(
        identity=group("identity", ~control),
        control=group(CONTROL, control),
        groups=[group(name, names == name) for name in dict.fromkeys(names.tolist()) if name != CONTROL],
        templates=int(units.max()) + 1,
    )


def _contrast(change: np.ndarray, member: np.ndarray, control: np.ndarray, units: np.ndarray) -> np.ndarray:
    """(units,) numbers whose mean is mean(change of members) - mean(change of controls), to be drawn by unit.

    Each is the difference plus the unit's influence on it. Where every unit holds as many members and as many controls
    as the next, as the shipped templates do, that is just the difference within the unit.
    """
    means = change[member].mean(), change[control].mean()
    influence = np.where(member, (change - means[0]) / member.sum(), 0.0)
    influence -= np.where(control, (change - means[1]) / control.sum(), 0.0)
    per_unit = np.bincount(units, weights=influence)  # (units,)
    return means[0] - means[1] + len(per_unit) * per_unit


def _number(keys: Iterable[Any]) -> np.ndarray:
    """(n,) equal keys get equal numbers, from 0 in the order in which they come."""
    seen: dict[Any, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in keys])


def _per_token(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    batch_size: int,
    progress: bool,
) -> np.ndarray:
    """(n,) mean -log p over the tokens of each text after its first word, which is given."""
    from efface.generation.likelihood import continuation_nll

    heads = [text.split(maxsplit=1)[0] for text in texts]
    cuts = [text.index(head) + len(head) for text, head in zip(texts, heads, strict=True)]
    pairs = continuation_nll(
        model,
        processing_class,
        [text[:cut] for text, cut in zip(texts, cuts, strict=True)],
        [text[cut:] for text, cut in zip(texts, cuts, strict=True)],
        batch_size=batch_size,
        progress=progress,
    )
    return np.array([total / count for total, count in pairs])
