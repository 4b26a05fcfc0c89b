"""What if no linear probe can read toxicity off a layer? LEACE (Belrose et al. 2023, arXiv 2306.03819, section 4).

With states h of the tokens of y+ and y-, their mean and covariance, and z which of the two:

    r(h) = h - W^+ P W (h - mean),    W = (Sigma_hh^1/2)^+,    P the projection onto the columns of W Sigma_hz

(`efface.analysis.directions.LeaceEraser`). `mode="hook"` applies r to the residual stream itself. `mode="edit"` gives
an ordinary checkpoint: r is folded into what the block adds to the stream, W_out <- (I - W^+ P W) W_out for the output
projections of attention and MLP. That is weaker, as what comes from the blocks below passes untouched.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from efface.analysis.directions import LeaceEraser
from efface.analysis.states import TokenStates
from efface.checks import one_of
from efface.errors import UserError
from efface.methods.hooked import HookedConfig, HookedEditor
from efface.model.blocks import decoder_blocks
from efface.model.copies import eval_mode, merged
from efface.model.interventions import Intervention, attach_
from efface.model.projections import attention_output_projection, mlp_output_projection, output_weight

MODES = ("hook", "edit")
RIDGE = 1e-6  # in units of a feature's variance: above what is left of an erased direction by rounding, below all else


@dataclass
class LeaceConfig(HookedConfig):
    """Settings of LEACE. It has no strength: the map is the smallest one that leaves nothing to a linear probe."""

    mode: str = field(
        default="hook",
        metadata={"help": "hook (exact, beside the checkpoint) or edit (weaker, in the weights of the blocks)."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("mode", self.mode, MODES)


class LeaceEditor(HookedEditor):
    """Erase with LEACE. Arguments as `PairEditor`; settings as `LeaceConfig`.

    Several layers are erased from the lowest up, each with those below in place (the paper's concept scrubbing).
    With `mode="edit"` an adapter is merged first.
    """

    config_class = LeaceConfig
    args: LeaceConfig

    def set_up_(self) -> None:
        super().set_up_()
        if self.args.mode == "edit":
            self.model = merged(self.model)
            for layer in self.layers:
                self._check_that_it_can_be_folded(layer)

    def edit_(self) -> dict[str, Any]:
        """Returns for each layer, on the tokens it was fitted to: the `rank` of what is taken out, a probe `before`
        and `after` (`least_squares_probe`), the share of the larger class, and `shift`: the mean length of the change
        of a state, divided by that of a state."""
        found: dict[str, Any] = {}
        for layer in self.layers:
            before = self.states_of(layer)
            eraser = LeaceEraser.fit(before.hidden, before.labels)
            if self.args.mode == "hook":
                attach_(self.model, [leace_intervention(layer, eraser)])
                after = self.states_of(layer).hidden
            else:
                after = self._fold_(layer, eraser, before)
            toxic = float(before.labels.mean())
            lengths = np.linalg.norm(after - before.hidden, axis=1), np.linalg.norm(before.hidden, axis=1)
            found[str(layer)] = {
                "tokens": len(before.labels),
                "larger_class": max(toxic, 1 - toxic),
                "rank": len(eraser.right),
                "before": least_squares_probe(before.hidden, before.labels),
                "after": least_squares_probe(after, before.labels),
                "shift": float(lengths[0].mean() / lengths[1].mean()),
            }
        return {"mode": self.args.mode, "pairs": len(self.rows), "layers": found}

    def describe(self) -> list[str]:
        pairs, note = super().describe()
        return [pairs, note] if self.args.mode == "hook" else [pairs]

    @torch.no_grad()
    def _fold_(self, layer: int, eraser: LeaceEraser, before: TokenStates) -> np.ndarray:
        """Edit the weights of a block; returns the states after it, of the same tokens as `before`."""
        block = decoder_blocks(self.model)[layer]
        fold_(attention_output_projection(block), eraser)
        mlp = mlp_output_projection(block)
        fold_(mlp, eraser)
        after = self.states_of(layer).hidden
        if mlp.bias is not None:  # then the mean along the erased directions, which LEACE keeps, can be given back
            lost = before.hidden.mean(0, dtype=np.float64) - after.mean(0, dtype=np.float64)
            constant = eraser.left @ (eraser.right @ lost)  # (d,)
            mlp.bias.add_(torch.from_numpy(constant).to(mlp.bias.dtype).to(mlp.bias.device))
            after = after + constant.astype(np.float32)
        return after

    @torch.no_grad()
    def _check_that_it_can_be_folded(self, layer: int) -> None:
        """Does the block add to its input what its two output projections give, and nothing else?"""
        block = decoder_blocks(self.model)[layer]
        seen: list[Tensor] = []  # the input, both projections, the output

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        writing = [attention_output_projection(block), mlp_output_projection(block), block]
        ids = torch.arange(8, device=self.model.device)[None]  # any tokens will do
        handles = [block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))]
        handles += [module.register_forward_hook(keep) for module in writing]
        try:
            with eval_mode(self.model):
                self.model.base_model(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        entered, *written, left = (states.reshape(ids.numel(), -1).float() for states in seen)
        error = (left - entered - written[0] - written[1]).norm() / left.norm()
        if error > 10 * torch.finfo(self.model.dtype).eps:
            raise UserError(
                f"mode='edit': block {layer} of {type(self.model).__name__} changes what its output projections give "
                "before it reaches the stream (by a norm, as in Gemma 2 and 3, or an intervention), so LEACE cannot "
                "be folded into them. Use mode=hook."
            )


def leace_intervention(layer: int, eraser: LeaceEraser) -> Intervention:
    """The map as a hook after block `layer`."""
    parts = -eraser.left, eraser.right, eraser.bias
    return Intervention(layer, *(torch.tensor(part, dtype=torch.float32) for part in parts))


@torch.no_grad()
def fold_(module: nn.Linear | Conv1D, eraser: LeaceEraser) -> None:
    """W <- (I - left right) W for an output projection, and the same for its bias: what it gives then has no component
    along the rows of `right`."""
    parameters = [output_weight(module)]  # (d, d_in)
    if module.bias is not None:
        parameters.append(module.bias[:, None])
    for written in parameters:
        exact = written.cpu().double().numpy()
        written -= torch.from_numpy(eraser.left @ (eraser.right @ exact)).to(written.dtype).to(written.device)


def least_squares_probe(hidden: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`accuracy` and `auc` of the least-squares probe of `labels` (n,), 0 or 1, on the states (n, d) it is fitted to.

    In a layer that LEACE was fitted to it is a constant: its accuracy the share of the larger class, its AUC one half.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler

    states = StandardScaler(copy=False).fit_transform(hidden.astype(np.float64))
    probe = RidgeClassifier(alpha=RIDGE * len(states)).fit(states, labels)
    scores = probe.decision_function(states)  # (n,) positive for 1
    if scores.var() < RIDGE:  # a share of 1e-6 explained: rounding
        scores[:] = scores.mean()
    return {
        "accuracy": float(((scores > 0) == (labels == 1)).mean()),
        "auc": float(roc_auc_score(labels, scores)),
    }
