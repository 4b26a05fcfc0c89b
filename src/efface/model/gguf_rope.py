"""Which rotary angles does a GGUF file ask for? transformers reads the base from its header, and of some not that.

    base       `rope.freq_base`, and of Gemma 3's other layers `rope.freq_base_swa`
    linear     `rope.scaling.type` and `rope.scaling.factor`: all frequencies divided alike (Gemma 3 from 4B on)
    llama3     the tensor `rope_freqs.weight`, what each frequency is divided by (Llama 3.1 and 3.2)

Without them the same weights are another model, at every distance between two tokens. What else there is (YaRN, and
factors for long texts) is refused.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from efface.errors import UserError
from efface.model.families import FULL, SLIDING

HINT = "Pass the model as safetensors."
FREQUENCIES = "rope_freqs.weight"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
"""Of every model that Meta has published with such frequencies; the file has none of it but what comes out."""
LENGTHS = [2**power for power in range(10, 18)]
"""Positions before the extension that are tried: Meta's have 8,192."""


def set_rope_(config: Any, reader: Any, what: str) -> None:
    """Let `config` have the rotary settings of the file.

    Args:
        config: of a causal language model, as transformers read it from the file.
        reader: `gguf.GGUFReader` of it.
        what: it is, for errors: "model 'x.gguf'".

    Raises:
        UserError: for frequencies that cannot be said in a configuration here.
    """
    header = {name.partition(".")[2]: field for name, field in reader.fields.items() if ".rope." in name}
    said = {name: field.contents() for name, field in header.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors if tensor.name.startswith("rope_")}
    rope = getattr(config, "rope_parameters", None)
    if rope is None:
        if tensors or "rope.scaling.factor" in said:
            raise UserError(f"{what} scales rotary positions, which {type(config).__name__} does not have. {HINT}")
        return
    for key, part in (("rope.freq_base", rope.get(FULL, rope)), ("rope.freq_base_swa", rope.get(SLIDING))):
        if part is not None and said.get(key):
            part["rope_theta"] = float(said[key])
    rope = rope.get(FULL, rope)  # Gemma 3 scales those of full attention alone
    if rope.get("rope_type", "default") != "default":  # gpt-oss, which transformers reads whole
        return
    kind, factor = said.get("rope.scaling.type"), float(said.get("rope.scaling.factor") or 1.0)
    others = sorted(tensors.keys() - {FREQUENCIES})
    if others or (kind not in (None, "none", "linear") and factor != 1.0):
        told = f"holds {', '.join(others)}" if others else f"scales rotary positions by {kind!r}"
        raise UserError(f"{what} {told}, which is not read from a GGUF file. {HINT}")
    if FREQUENCIES in tensors:
        divided = torch.from_numpy(tensors[FREQUENCIES].data.copy()).float().flatten()
        rope.update(_llama3(config, divided, what))
    elif factor != 1.0:
        rope.update({"rope_type": "linear", "factor": factor})


def _llama3(config: Any, divided: Tensor, what: str) -> dict[str, Any]:
    """The settings by which frequencies are divided so: (head_dim / 2,)."""
    factor = round(divided.max().item(), 4)
    if factor == 1.0:
        return {}
    for length in LENGTHS:
        settings = {"rope_type": "llama3", "factor": factor, **LLAMA3, "original_max_position_embeddings": length}
        if torch.allclose(_divisors(config, settings, what), divided, rtol=1e-3):
            return settings
    raise UserError(f"{what} holds {FREQUENCIES} that are none of Llama 3's, which alone are read. {HINT}")


def _divisors(config: Any, settings: dict[str, Any], what: str) -> Tensor:
    """What transformers divides each frequency by, by these settings."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    tried = copy.deepcopy(config)
    tried.rope_parameters |= settings
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](tried, torch.device("cpu"))
    width = 2 * len(scaled)
    plain = tried.rope_parameters["rope_theta"] ** -(torch.arange(0, width, 2).float() / width)
    return plain / scaled
