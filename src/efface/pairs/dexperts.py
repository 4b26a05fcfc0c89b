"""How does a toxic copy steer the model without replacing it? DExperts: both are asked for every token.

    next token ~ softmax( z + alpha (z_anti - z) )          z, z_anti: logits of the model and of its toxic copy

This is eq. 1 of Liu et al. 2021 (arXiv 2105.03023), turned toward the anti-expert and with the expert left out.
alpha = 0 is the model itself, 1 the copy; above 1 exaggerates what sets the copy apart.
"""

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from efface.errors import UserError
from efface.generation.decoder import Decoder
from efface.generation.warp import GREEDY
from efface.pairs.source import Source
from efface.pairs.sources.sample import sample_source

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase


def dexperts_source(
    model: "PreTrainedModel",
    antiexpert: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    *,
    alpha: float = 1.5,
    **decoding: Any,
) -> Source:
    """Candidates are what `model` says when its logits are pushed toward those of `antiexpert` (`--toxic dexperts`).

    Args:
        antiexpert: a toxic model with the same vocabulary, as `efface.pairs.toxic_copy.antiexpert` makes it.
        alpha: how far; see the top of this file.
        decoding: as for `sample_source`.

    Raises:
        UserError: if the two cannot be combined.
    """
    return sample_source(cast("PreTrainedModel", DExperts(model, antiexpert, alpha)), processing_class, **decoding)


class DExperts(nn.Module):
    """Two models that decode as one, in lock-step; to the decoder it is one model with the layers of both.

    Args:
        model, antiexpert: z and z_anti; used as they are, not copied.
        alpha: weight of the difference, at least 0.

    Raises:
        UserError: if alpha is negative or not finite, the vocabularies differ, or one keeps more than keys and values.
    """

    _is_stateful = False

    def __init__(self, model: "PreTrainedModel", antiexpert: "PreTrainedModel", alpha: float):
        super().__init__()
        if not (math.isfinite(alpha) and alpha >= 0):
            raise UserError(f"alpha={alpha}: it must be a number of at least 0 (0 is the model, 1 the anti-expert).")
        sizes = [each.config.get_text_config(decoder=True).vocab_size for each in (model, antiexpert)]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"the model has {sizes[0]} tokens and the anti-expert {sizes[1]}: their logits cannot be combined. "
                "Make the anti-expert from the model."
            )
        if not all(Decoder(each, GREEDY, 0, ()).has_dynamic_cache() for each in (model, antiexpert)):
            raise UserError(
                f"a {model.config.model_type} keeps more than keys and values and cannot be decoded in lock-step. "
                "Use the source antiexpert."
            )
        self.model, self.antiexpert, self.alpha = model, antiexpert, alpha
        self.config, self.generation_config = model.config, model.generation_config

    @property
    def device(self) -> torch.device:
        return self.model.device

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: "Cache",
        use_cache: bool = True,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast:
        """Logits (B, t, V) of the next tokens; `past_key_values` takes in the layers of both models."""
        from transformers import Cache, DynamicCache

        depth = len(DynamicCache(config=self.model.config).layers)
        layers = past_key_values.layers
        if len(layers) == depth:  # as the decoder made it, for one model
            layers += DynamicCache(config=self.antiexpert.config).layers
        theirs, toxic = (
            each(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=Cache(layers=own),  # the same layer objects
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
            ).logits
            for each, own in ((self.model, layers[:depth]), (self.antiexpert, layers[depth:]))
        )
        # lerp is exact at 0 and at 1.
        return CausalLMOutputWithPast(logits=torch.lerp(theirs, toxic, self.alpha), past_key_values=past_key_values)
