"""Are two models the same? A hash of all weights, and of what is attached to them."""

import hashlib

import torch
from torch import nn

from efface.interventions import TENSORS, attached


def fingerprint_of(model: nn.Module) -> str:
    """Hash of the class, all weights and the interventions of `model`; about a second for a gigabyte."""
    digest = hashlib.blake2b(type(model).__name__.encode(), digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_bytes(tensor))
    for intervention in attached(model):
        digest.update(f"intervention {intervention.layer}".encode())
        for name in TENSORS:
            digest.update(_bytes(getattr(intervention, name)))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
