"""The plain formulas, as the papers write them: no pieces, no shared prompts, no cache. All else must equal them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efface.data.batch import PairBatch
from efface.model.blocks import capture_residuals
from efface.model.padding import position_ids


def token_kl(reference_logits: Tensor, logits: Tensor) -> Tensor:
    """(N,) KL( f0(.|context) || f(.|context) ) from logits (N, V)."""
    expected, found = reference_logits.log_softmax(-1), logits.log_softmax(-1)
    return (expected.exp() * (expected - found)).sum(-1)


def token_log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """(N,) log f(target | context)."""
    return logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


def repo_terms(model: nn.Module, untouched: nn.Module, batch: PairBatch, layers: list[int]) -> dict[str, Tensor]:
    """What design section 2 needs of a batch: KL at every predicted token, states at every continuation token."""
    inputs = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "position_ids": position_ids(batch["attention_mask"]),
    }
    with capture_residuals(model, layers) as residuals:
        logits = model(**inputs).logits  # (2B + R, T, V)
    with torch.no_grad():
        expected = untouched(**inputs).logits
    mask, n = batch["continuation_mask"], batch["n_pairs"]
    kl = token_kl(expected, logits)[:, :-1]  # the token at t is predicted at t - 1
    terms = {"chosen_kl": kl[:n][mask[:n, 1:]], "passage_kl": kl[2 * n :][mask[2 * n :, 1:]]}
    for layer in layers:
        terms[f"benign/{layer}"] = residuals[layer][:n][mask[:n]]
        terms[f"toxic/{layer}"] = residuals[layer][n : 2 * n][mask[n : 2 * n]]
    return terms


def repo_loss(
    model: nn.Module,
    untouched: nn.Module,
    discriminators: nn.ModuleDict,
    batch: PairBatch,
    *,
    w_retain: float,
    w_retain_text: float,
    w_erase: float,
    strength: float,
) -> Tensor:
    """Design section 2 with `erase_side=toxic` and no bound: gradient reversal written as a minus sign."""
    layers = [int(layer) for layer in discriminators]
    terms = repo_terms(model, untouched, batch, layers)
    loss = w_retain * terms["chosen_kl"].mean()
    if len(terms["passage_kl"]):
        loss = loss + w_retain_text * terms["passage_kl"].mean()
    for layer in layers:
        logit = {side: discriminators[str(layer)](terms[f"{side}/{layer}"]) for side in ("benign", "toxic")}
        # Minus the discriminator's loss, as the model sees it; the benign side is not pushed.
        toxic = F.binary_cross_entropy_with_logits(logit["toxic"], torch.ones_like(logit["toxic"]))
        loss = loss - w_erase * strength * 0.5 * toxic / len(layers)
    return loss
