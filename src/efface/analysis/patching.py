"""Which modules of an edit are enough, and which are needed? Each one's edit alone, and all the edit but it.

    sufficient    base + the edit of one module, or of the best k        how much of the effect is there?
    necessary     edited - the edit of one module, or of the best k      how much of it is gone?

A module is the attention or the MLP of a block, its norms, or what is outside of the blocks (arXiv 2604.13694 patches
weights in this way). The effect is what `toxic_mass.py` reads and the KL to the base on ordinary text. An edit is
localised if few weights are enough and are needed; a list of the weights that moved most says neither.

Curves order the modules by what each does alone. Their first point is the base (or the edited model), their last the
whole edit (or the base).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from efface.analysis.toxic_mass import Reading
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.model.blocks import decoder_blocks
from efface.model.copies import merged_copy, without_adapter
from efface.model.edit import check_same_parameters, move_, same_intervention
from efface.model.interventions import attached
from efface.model.known_states import begun_at, remembered
from efface.terminal.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OUTSIDE = "outside"
STEPS = (1, 2, 4, 8, 16, 32, 64)
"""Points of a curve: so many modules, and all."""

Read = Callable[["PreTrainedModel"], tuple[Reading, float]]
"""A model -> what it thinks of the pairs, and its KL to the base."""


def modules_of(model: nn.Module) -> dict[str, list[str]]:
    """ "3.attention", "3.mlp", "3.norms", "outside" -> the names of its parameters; each parameter once."""
    of: dict[int, str] = {}
    for layer, block in enumerate(decoder_blocks(model)):
        for path, module in block.named_modules():
            for parameter in module.parameters(recurse=False):
                of[id(parameter)] = f"{layer}.{_part_of(path)}"
    found: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        found.setdefault(of.get(id(parameter), OUTSIDE), []).append(name)
    return found


def _part_of(path: str) -> str:
    """Of a module within a block."""
    if "norm" in path or path.rpartition(".")[2].startswith("ln_"):
        return "norms"
    return "attention" if "att" in path else "mlp"


@contextlib.contextmanager
def swapped(model: nn.Module, other: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Within the context these parameters of `model` are those of `other`; afterwards its own, to the bit."""
    parameters, others = dict(model.named_parameters()), dict(other.named_parameters())
    kept = {name: parameters[name].detach().clone() for name in names}
    with torch.no_grad():
        for name in names:
            parameters[name].copy_(others[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                parameters[name].copy_(value)


def refuse_other_interventions(edited: nn.Module, base: nn.Module) -> None:
    """Raise a `UserError` if the two have other interventions: `swapped` moves weights, and so no part of them."""
    both = attached(edited), attached(base)
    if len(both[0]) != len(both[1]) or not all(map(same_intervention, *both)):
        raise UserError(
            f"the edited model has {len(both[0])} interventions and the base {len(both[1])}, which are not the same "
            "ones: an edit of the hidden states is in no module's weights, so none of it would be patched. Leave "
            "patching out, or pass models that differ in weights alone."
        )


def patch_modules(
    edited: "PreTrainedModel",
    base: "PreTrainedModel",
    read: Read,
    *,
    steps: Sequence[int] = STEPS,
    progress: bool = False,
) -> Row:
    """Read the base with the edit of each module, and the edited model without it; as it is written to JSON.

    Needs memory for a third model, and for what its blocks give on what is read, so that those below a module are not
    computed again for it. Modules that the edit has not changed are left out.

    Returns:
        `base`, `edited`: `Reading` with `kl`; `modules`: name -> `parameters` and `squares` (parts of all weights and
        of ||edit||^2), `alone` and `without` (readings), `enough` and `needed` (parts of the fall of `toxic_mass`;
        null if it does not fall); `sufficient`, `necessary`: points of k modules, in the order of `enough`.

    Raises:
        UserError: if their parameters or their interventions are not the same ones.
    """
    refuse_other_interventions(edited, base)
    check_same_parameters(edited, base, "patched")
    edited, base = without_adapter(edited), without_adapter(base)
    student = merged_copy(base)
    sizes = _sizes(edited, base)
    modules = {name: names for name, names in modules_of(student).items() if any(sizes[each][1] for each in names)}
    whole = [sum(size[i] for size in sizes.values()) for i in (0, 1)]
    with remembered(student) as known:
        start = _reading(read, student)
    end = _reading(read, edited)
    found: dict[str, Row] = {}
    for name, names in track(modules.items(), "modules", show=progress):
        with swapped(student, edited, names), begun_at(student, _layer_of(name), known):
            alone = _reading(read, student)
        found[name] = {**_parts(names, sizes, whole), "alone": alone, "enough": _of_fall(start, alone, start, end)}
    order = sorted(found, key=lambda name: found[name]["alone"]["toxic_mass"])
    counts = [*(k for k in steps if k < len(order)), len(order)] if order else []
    sufficient = [_point(student, edited, order[:k], modules, sizes, whole, read, start, end) for k in counts]
    move_(student, edited, 1.0)
    with remembered(student) as known:
        read(student)
    for name, names in track(modules.items(), "modules", show=progress):
        with swapped(student, base, names), begun_at(student, _layer_of(name), known):
            without = _reading(read, student)
        found[name] |= {"without": without, "needed": _of_fall(without, end, start, end)}
    necessary = [_point(student, base, order[:k], modules, sizes, whole, read, start, end) for k in counts]
    return {"base": start, "edited": end, "modules": found, "sufficient": sufficient, "necessary": necessary}


def _layer_of(module: str) -> int:
    """The first block that a module has a part in; what is outside of the blocks may be before all of them."""
    return 0 if module == OUTSIDE else int(module.partition(".")[0])


def _reading(read: Read, model: "PreTrainedModel") -> Row:
    reading, kl = read(model)
    return {**reading.to_dict(), "kl": kl}


def _sizes(edited: nn.Module, base: nn.Module) -> dict[str, tuple[int, float]]:
    """Name of each parameter -> how many weights it has, and its part of ||edit||^2."""
    originals = dict(base.named_parameters())
    return {
        name: (parameter.numel(), (parameter.detach().float() - originals[name].float()).square().sum().item())
        for name, parameter in edited.named_parameters()
    }


def _parts(names: Sequence[str], sizes: dict[str, tuple[int, float]], whole: Sequence[float]) -> Row:
    found = [sum(sizes[name][i] for name in names) / whole[i] if whole[i] else 0.0 for i in (0, 1)]
    return dict(zip(("parameters", "squares"), found, strict=True))


def _of_fall(before: Row, after: Row, start: Row, end: Row) -> float | None:
    """What part of the whole fall of the toxic mass lies between two readings."""
    fall = start["toxic_mass"] - end["toxic_mass"]
    return (before["toxic_mass"] - after["toxic_mass"]) / fall if fall > 0 else None


def _point(
    student: Any,
    other: nn.Module,
    chosen: Sequence[str],
    modules: dict[str, list[str]],
    sizes: dict[str, tuple[int, float]],
    whole: Sequence[float],
    read: Read,
    start: Row,
    end: Row,
) -> Row:
    names = [name for module in chosen for name in modules[module]]
    with swapped(student, other, names):
        reading = _reading(read, student)
    return {
        "k": len(chosen),
        **_parts(names, sizes, whole),
        **reading,
        "of_fall": _of_fall(start, reading, start, end),
    }
