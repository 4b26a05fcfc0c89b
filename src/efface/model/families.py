"""What must be known of a family of models by name? The exceptions, all in this file; whatever else efface needs of a
model, it finds by looking at the model itself (`blocks.py`) and tries once (`head_check.py`).

Names of modules inside a block (`projections.py` looks them up), how a configuration says which tokens a layer sees
(`layout.py`) and which row is too wide (`padding.py`), names of rotary parameters (`save.py`, `fingerprint.py`), and
what a family's own code asks of the body in front of its head (`forward.py`).
"""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

BLOCK_OVERRIDES: dict[str, str] = {}
"""model_type -> attribute path, where the blocks are not the outermost ModuleList of length `num_hidden_layers`."""

MLP_OUTPUTS = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out")
ATTENTION_OUTPUTS = ("o_proj", "c_proj", "out_proj", "dense")
MLP_INPUTS = ("gate_proj", "gate_up_proj", "c_fc", "dense_h_to_4h", "fc1", "fc_in")
"""Of a gated MLP the gate; in `gate_up_proj` (Phi 3, GLM 4) its rows come first."""
NORMS_AFTER_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm")
"""RMS norms between a part of a block and the residual stream (Gemma 2 and 3, OLMo 2; GLM 4). A block that has none
after its MLP has none after its attention: Llama's `post_attention_layernorm` stands before the MLP."""
NORMS_AFTER_ATTENTION = ("post_self_attn_layernorm", "post_attention_layernorm")

SHARING_ATTENTION = ("sdpa", "eager")
"""The implementations of transformers that take a mask of one's own."""
FULL, SLIDING = "full_attention", "sliding_attention"
"""The kinds of layer (`layer_types`) for which such a mask can be made."""

ROPE_OF_TRANSFORMERS_4 = {
    "rope_theta", "rope_local_base_freq", "rope_scaling", "partial_rotary_factor", "rotary_emb_base", "rotary_pct",
}  # fmt: skip
"""All names under which `rope_of_transformers_4` says again what `rope_parameters` says to version 5."""
GROWING_ROPE = {"dynamic", "longrope"}
"""Kinds of rotary embedding whose frequencies a forward changes by the length of the text."""


def attention_of(config: Any) -> str | None:
    """Which implementation of attention the model runs: "sdpa", "eager" or another."""
    return getattr(config, "_attn_implementation", None)


def kinds_of_layers(config: Any) -> set[str]:
    """`layer_types` of a decoder's configuration; empty if it does not tell, as all layers are alike."""
    return set(getattr(config, "layer_types", None) or [])


def sliding_window(config: Any) -> int | None:
    """Tokens that a sliding-window layer sees (its own included), or None if there is no such layer."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and SLIDING not in kinds:
        return None
    return getattr(config, "sliding_window", None)


def position_limit(config: Any) -> int | None:
    """How many positions a decoder's configuration says there are, or None for any number (ALiBi, state spaces)."""
    limit = getattr(config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None  # XLNet says -1


def takes_no_padding_beyond(config: Any) -> bool:
    """Whether a row wider than the positions fails even if what is beyond is padding.

    An eager attention may hold a causal mask of its own, with a column for each position (GPT-Neo). It is given a mask
    of ones as any other, and so needs no column of padding.
    """
    return attention_of(config) == "eager"


def rope_of_transformers_4(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings of a saved configuration under the names that transformers 4 reads."""
    rope = config.get("rope_parameters")
    if not rope:
        return {}
    names: dict[str, Any] = {}
    if FULL in rope:  # Gemma 3: one set of parameters per kind of layer
        if SLIDING in rope:
            names["rope_local_base_freq"] = rope[SLIDING]["rope_theta"]
        rope = rope[FULL]
    is_neox = config.get("model_type") == "gpt_neox"
    if "rope_theta" in rope:
        names["rotary_emb_base" if is_neox else "rope_theta"] = rope["rope_theta"]
    if "partial_rotary_factor" in rope:
        names["rotary_pct" if is_neox else "partial_rotary_factor"] = rope["partial_rotary_factor"]
    if config.get("model_type") == "phi3" and rope.get("rope_type") == "longrope":  # these three, or it is refused
        names["rope_scaling"] = {"type": "longrope", **{name: rope[name] for name in ("short_factor", "long_factor")}}
    elif rope.get("rope_type", "default") != "default":
        names["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return names


@dataclass
class AnyOutput(BaseModelOutputWithPastAndCrossAttentions):
    """The output of any body: what it does not have is None (`router_logits`, `image_hidden_states`, `state`)."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class StandIn(nn.Module):
    """Gives what it is told to, whatever it gets: in place of a body or of an output embedding."""

    output: Any = None

    @property
    def decoder(self) -> "StandIn":  # OPT calls the decoder inside its body
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output
