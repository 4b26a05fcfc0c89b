"""What is an edit, and what is a multiple of it? The difference of two models' weights, tensor by tensor.

    edit = edited - base            base + a edit = edited + (1 - a) (base - edited)

for every parameter: a = 0 is the base and a = 1 the edited model, both to the bit; beyond 1 the edit is extrapolated
(LoX, Perin et al. 2025, arXiv 2506.15606), below 0 turned around (task arithmetic, Ilharco et al. 2023, arXiv
2212.04089). Part of an edit: for a matrix its best approximation of rank k.

A tied weight is one parameter and moved once. What is attached to one of the models (`interventions.py`) is weights
too: its writing side is scaled. What both have is no part of the edit and stays as it is. One parameter at a time is
at work: there is no further copy of all weights.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface.errors import UserError
from efface.model.copies import merged_copy, without_adapter
from efface.model.interventions import TENSORS, Intervention, attach_, attached, detach_

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def along(edited: Tensor, base: Tensor, a: float) -> Tensor:
    """base + a (edited - base), any shape; exact at 0 and 1. In float32 or better, returned as `edited`."""
    return between(edited, base, 1 - a)


def between(edited: Tensor, base: Tensor, alpha: float) -> Tensor:
    """edited + alpha (base - edited), any shape; exact at 0 and 1. In float32 or better, returned as `edited`."""
    dtype = torch.promote_types(edited.dtype, torch.float32)
    return torch.lerp(edited.to(dtype), base.to(edited.device, dtype), alpha).to(edited.dtype)


@torch.no_grad()
def move_(student: "PreTrainedModel", base: "PreTrainedModel", alpha: float) -> None:
    """student <- student + alpha (base - student), every parameter; exactly the base at alpha 1.

    The same for what is attached: the interventions of the student fade out and those of the base fade in, but for
    those that both have.
    """
    originals = dict(base.named_parameters())
    for name, parameter in student.named_parameters():
        parameter.copy_(between(parameter, originals[name], alpha))
    coming, parts = attached(base), list[tuple[Intervention, float]]()  # in an order that is that of either model
    for one in attached(student):
        twin = next((place for place, other in enumerate(coming) if same_intervention(one, other)), None)
        if twin is None:
            parts.append((one, 1 - alpha))
        else:
            parts += [*((other, alpha) for other in coming[:twin]), (one, 1.0)]
            coming = coming[twin + 1 :]
    parts = [(one, part) for one, part in [*parts, *((other, alpha) for other in coming)] if part]
    detach_(student)
    attach_(student, [dataclasses.replace(one, left=part * one.left, bias=part * one.bias) for one, part in parts])


def same_intervention(one: Intervention, other: Intervention) -> bool:
    """Whether both do the same after the same block, to the bit."""
    pairs = [(getattr(one, name).to(getattr(other, name)), getattr(other, name)) for name in TENSORS]
    return one.layer == other.layer and all(torch.equal(mine, theirs) for mine, theirs in pairs)


def scaled_copy(edited: "PreTrainedModel", base: "PreTrainedModel", a: float) -> "PreTrainedModel":
    """A new model, base + a (edited - base), adapters merged; both are left as they are.

    Raises:
        UserError: if their parameters are not the same ones, or an adapter cannot be merged.
    """
    check_same_parameters(edited, base)
    student = merged_copy(edited)
    move_(student, without_adapter(base), 1 - a)
    return student


def check_same_parameters(edited: "PreTrainedModel", base: "PreTrainedModel", doing: str = "merged") -> None:
    """Raise a `UserError` unless both have the same parameters, adapters merged.

    Args:
        doing: what they cannot be otherwise.
    """
    originals = dict(without_adapter(base).named_parameters())
    parameters = dict(without_adapter(edited).named_parameters())
    for name in sorted(parameters.keys() | originals.keys()):
        shapes = [tuple(one[name].shape) if name in one else "absent" for one in (parameters, originals)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"parameter {name!r} is {shapes[0]} in the model and {shapes[1]} in the base: they cannot be "
                f"{doing}. Pass as base the model that this one was made from."
            )


@torch.no_grad()
def edit_squares(edited: "PreTrainedModel", base: "PreTrainedModel") -> tuple[float, float]:
    """(||edited - base||^2, ||base||^2) over all parameters, of models without adapters."""
    originals = dict(base.named_parameters())
    squares, norm = 0.0, 0.0
    for name, parameter in edited.named_parameters():
        original = originals[name].to(parameter.device).float()
        squares += (parameter.float() - original).square().sum().item()
        norm += original.square().sum().item()
    return squares, norm


def top_part(edit: Tensor, k: int) -> Tensor:
    """The best approximation of rank k of an edit (m, n), U_k U_k^T edit, or of each of a stack (experts, m, n); of a
    vector, or of less rank, all of it."""
    if edit.ndim < 2 or k >= min(edit.shape[-2:]):
        return edit
    left, singular, right = torch.linalg.svd(edit.float(), full_matrices=False)
    return ((left[..., :k] * singular[..., None, :k]) @ right[..., :k, :]).to(edit.dtype)


@torch.no_grad()
def top_parts(edited: "PreTrainedModel", base: "PreTrainedModel", k: int) -> dict[str, Tensor]:
    """Name -> the top-k part of the edit of each matrix, or stack of matrices, that the edit has changed, in float32,
    without adapters.

    What is no matrix (norms, biases) is left out, and so is the embedding, whose rows are words and not directions.
    """
    originals, found = dict(base.named_parameters()), {}
    embeddings = {id(edited.get_input_embeddings().weight), id(edited.get_output_embeddings().weight)}
    for name, parameter in edited.named_parameters():
        edit = parameter.float() - originals[name].to(parameter.device).float()
        if edit.ndim >= 2 and id(parameter) not in embeddings and edit.any():
            found[name] = top_part(edit, k)
    return found


@torch.no_grad()
def add_(student: "PreTrainedModel", parts: Mapping[str, Tensor], scale: float, to: "PreTrainedModel") -> None:
    """student <- `to` + scale * parts, for the parameters that have a part; computed in float32 or better."""
    originals = dict(to.named_parameters())
    for name, parameter in student.named_parameters():
        if name in parts:
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            start = originals[name].to(parameter.device, dtype)
            parameter.copy_((start + scale * parts[name].to(dtype)).to(parameter.dtype))


@torch.no_grad()
def transplanted(edited: "PreTrainedModel", base: "PreTrainedModel", onto: "PreTrainedModel") -> "PreTrainedModel":
    """A new model, onto + (edited - base): the same edit of another base of the same shapes."""
    check_same_parameters(edited, base)
    student, originals = merged_copy(edited), dict(without_adapter(base).named_parameters())
    others = dict(without_adapter(onto).named_parameters())
    for name, parameter in student.named_parameters():
        parameter.add_((others[name].float() - originals[name].float()).to(parameter))
    return student
