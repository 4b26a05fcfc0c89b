"""What may a training step have to withstand? The perturbations by name, and how `--withstand` is read.

    relearn:1.2e-3/4/4,round:4        KIND:VALUE/VALUE/..., with commas between; one of them is drawn for each step

A perturbation is a dataclass in a file of its own or beside others of its size, and one entry here. Its fields are the
values, in order; `move_(place)` writes the weights P(w) of an optimizer step, see `perturbed.py`.
"""

import dataclasses
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from efface.errors import UserError
from efface.registry import Entry


@dataclass(frozen=True)
class Kind(Entry):
    """What else is to be known of a perturbation."""

    form: str = ""
    """Of its values; those in brackets have a default."""
    memory: str = ""
    """Beside the moved weights themselves, which all kinds share: of the trained weights, or of the blocks' maps."""


WITHSTAND = {
    "relearn": Kind(
        "efface.training.anticipated:Anticipated",
        "where K sign steps down an attacker's loss on the batch's own y- lead, drawn evenly from a way of DELTA",
        "ours; of the family of meta-learned defences (Tamirisa et al. 2024, arXiv 2408.00761)",
        form="DELTA[/K/KEEP/ROWS]",
        memory="a direction in 8 bits: 1/4 of the trained weights in float32",
    ),
    "attacker": Kind(
        "efface.training.attacker:Attacker",
        "where an attacker is who relearns beside the training, one sign step of DELTA / K at a time, anew after K",
        "ours; as relearn",
        form="DELTA[/K/ROWS]",
        memory="his way in 8 bits: 1/4 of the trained weights in float32",
    ),
    "round": Kind(
        "efface.training.perturbations:Rounded",
        "the blocks' linear maps rounded to BITS on a grid, straight through (Bengio et al. 2013, arXiv 1308.3432)",
        "quantisation-aware training (Jacob et al. 2018, arXiv 1712.05877)",
        form="BITS[/SCHEME/GROUP]",
        memory="nothing",
    ),
    "merge": Kind(
        "efface.training.perturbations:Merged",
        "a part of the way back to the start, drawn evenly from 0 to ALPHA",
        "the attack `merge`; Wortsman et al. 2022, arXiv 2203.05482",
        form="ALPHA",
        memory="the start: the trained weights once more",
    ),
    "lora": Kind(
        "efface.training.toxic_adapter:ToxicAdapter",
        "a throw-away adapter of RANK switched on, trained anew on the batch's own y- every KEEP steps",
        "ours; after Tamirisa et al. 2024, arXiv 2408.00761",
        form="RANK[/STEPS/KEEP/RATE]",
        memory="the adapter, and its gradients and Adam's state while it is trained",
    ),
    "noise": Kind(
        "efface.training.perturbations:Noisy",
        "Gaussian noise of SCALE times the root mean square of each weight tensor",
        "Wu et al. 2020, arXiv 2004.05884, without their search for the worst direction",
        form="SCALE",
        memory="nothing",
    ),
    "sharpness": Kind(
        "efface.training.perturbations:Sharpness",
        "the top of the loss within a ball of radius RHO, to first order: w + RHO g / ||g||",
        "Foret et al. 2021, arXiv 2010.01412; against relearning: Fan et al. 2025, arXiv 2502.05374",
        form="RHO",
        memory="a second gradient",
    ),
}
"""In the order of docs/methods.md."""


def parse_withstand(text: str) -> list[Any]:
    """The perturbations that a setting names.

    Raises:
        UserError: for a kind that is unknown, or values that it does not take.
    """
    return [_perturbation(one.strip(), text) for one in text.split(",")]


def _perturbation(one: str, text: str) -> Any:
    name, _, written = one.partition(":")
    if name not in WITHSTAND:
        forms = ", ".join(f"{known}:{kind.form}" for known, kind in WITHSTAND.items())
        raise UserError(f"withstand={text!r}: {name!r} is no kind of perturbation. There are: {forms}.")
    made: Any = resolve_name(WITHSTAND[name].path)
    fields = [field for field in dataclasses.fields(made) if field.init]
    values = written.split("/") if written else []
    needed = sum(field.default is dataclasses.MISSING for field in fields)
    form = f"{name}:{WITHSTAND[name].form}"
    if not needed <= len(values) <= len(fields):
        raise UserError(f"withstand={text!r}: {one!r} has {len(values)} values. Write {form}.")
    try:
        types: list[Any] = [field.type for field in fields]
        read = [convert(value) for convert, value in zip(types, values, strict=False)]
    except ValueError as error:
        raise UserError(f"withstand={text!r}: {one!r} cannot be read ({error}). Write {form}.") from error
    try:
        return made(*read)
    except UserError as error:
        raise UserError(f"withstand={text!r}: {error} It is {form}.") from error
