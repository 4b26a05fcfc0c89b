"""What does each block of the analysis say of an edited model beside its base? The modules of `analysis/`, at work.

    certificate    what a fresh probe reads of toxicity beyond the token, in either model
    drift          how far the states have moved, on toxic and on benign text, and along which directions
    lens           how likely toxic words are if norm and head read the states at some depth
    neurons        what each MLP neuron adds along the toxicity direction, and what the edit made of it
    weights        where the change of the weights lies, how concentrated it is, whether toxic neurons have moved
    overlap        whether the edit lies where an attacker's gradient points, and an attacker's own change
    patching       which modules and which groups of neurons are enough, which are needed, from which depth on the
                   states carry the edit, and what a model writes that has the edit of one of the best modules

What both models read, and the direction of toxicity, is `subject.py`'s.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from efface.analysis.concentration import concentration
from efface.analysis.drift import drift, token_shifts
from efface.analysis.enrichment import enrichment
from efface.analysis.erasure import compare_erasure
from efface.analysis.mlp_check import check_writing
from efface.analysis.module_writing import best_modules, write_with_modules
from efface.analysis.neuron_patching import patch_neurons
from efface.analysis.neurons import (
    GROUPS,
    compare_writing,
    cumulative,
    lengths_of,
    random_fall,
    values_of,
)
from efface.analysis.overlap import change_of, cosine, overlaps
from efface.analysis.patching import patch_modules, refuse_other_interventions
from efface.analysis.state_patching import patch_states
from efface.analysis.toxic_mass import Reading, read_pairs
from efface.evaluation.divergence import Divergence
from efface.files.jsonl import Row
from efface.jobs.subject import LENS_PAIRS, Subject
from efface.model.blocks import decoder_blocks
from efface.model.forward import Head
from efface.model.projections import linear_maps, output_weight, refuse_experts
from efface.training.finetune import finetune
from efface.training.likelihood_gradient import likelihood_gradient

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RANKS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
"""Points of the curve over neurons."""
SHOWN = 10
"""Neurons that are listed, and words of each."""
PICTURED = 4
"""Pairs whose tokens are drawn."""
WRITING = 5
"""Modules whose edit is tried in writing."""
BEST = 300
"""Neurons that lower <h, w> most, as a group."""
GRADIENT_PAIRS = 64


def certificate(subject: Subject) -> Row:
    return compare_erasure(subject.original.states, subject.states, seed=subject.seed)


def drifted(subject: Subject) -> Row:
    models, original = (subject.edited, subject.base), subject.original
    found = drift(subject.states, original.states, direction=original.direction)
    everywhere = list(range(len(decoder_blocks(subject.base))))
    pictures = []
    for number, pair in enumerate(original.pairs[:PICTURED]):
        for side, ids in {"chosen": pair.chosen_ids, "rejected": pair.rejected_ids}.items():
            whole = pair.prompt_ids + ids
            tokens = [subject.processing_class.decode([token]) for token in whole]
            shift = token_shifts(*models, whole, everywhere)
            marked = [place for place, token in enumerate(whole) if token in original.toxic]
            picture: Row = {"pair": number, "side": side, "start": len(pair.prompt_ids), "tokens": tokens}
            picture["toxic"] = marked
            pictures.append({**picture, "shift": [[round(float(value), 4) for value in row] for row in shift]})
    return {"layers": found, "pictures": pictures}


def lens(subject: Subject) -> Row:
    """Layer -> the toxic mass of both models there; the last is that of the whole model."""
    original = subject.original
    after = original.toxic_masses_of(subject.edited)
    masses = {str(layer): {"base": mass, "edited": after[layer]} for layer, mass in original.toxic_masses.items()}
    return {"n_pairs": min(LENS_PAIRS, len(original.pairs)), "n_tokens": len(original.toxic), "layers": masses}


def neurons(subject: Subject) -> Row:
    for model in (subject.base, subject.edited):
        check_writing(model)
    before, after = subject.original.writing, subject.writing
    change = compare_writing(before, after)
    ranks = [rank for rank in RANKS if rank < change.fall.size] + [change.fall.size]
    chance = random_fall(before, after, *lengths_of(subject.edited, subject.base), subject.seed)
    parts = {"fires_less": change.fires_less.sum(), "moved": change.moved.sum()}
    groups = {name: change.fall[change.groups == number].sum() for number, name in enumerate(GROUPS)}
    return {
        "n_tokens": subject.original.activity.n_tokens,
        "height": {"base": before.height, "edited": after.height},
        "drop": change.drop,
        "by_neurons": change.by_neurons,
        "ranks": ranks,
        "cumulative": cumulative(change.fall, change.drop, ranks),
        "random": cumulative(chance, change.drop, ranks),
        **{name: _of(value, change.drop) for name, value in parts.items()},
        "groups": {name: _of(value, change.drop) for name, value in groups.items()},
        "sizes": {name: int((change.groups == number).sum()) for number, name in enumerate(GROUPS)},
        "top": _listed(subject, change.fall, before.contributions, after.contributions),
    }


def weights(subject: Subject) -> Row:
    spaces = subject.original.null_spaces
    found = concentration(subject.edited, subject.base, null_spaces=spaces, seed=subject.seed)
    toxic = enrichment(subject.moved_neurons, subject.original.writing.contributions, seed=subject.seed)
    return {**found, "enrichment": toxic}


def overlapping(subject: Subject) -> Row:
    """Of the edit, and of what an attacker then changes, with the forget gradient of the edited model."""
    refuse_experts(subject.edited, "overlap")
    maps = linear_maps(subject.edited)
    modules = list(maps.values())
    batches = subject.original.batches(GRADIENT_PAIRS)
    flat = likelihood_gradient(subject.edited, batches, {"rejected": 1.0}, [module.weight for module in modules])
    gradient = {
        path: part if output_weight(module) is module.weight else part.t()
        for (path, module), part in zip(maps.items(), flat, strict=True)
    }
    edit = change_of(subject.edited, subject.base)
    rows = [pair.prompt_ids + pair.rejected_ids for pair in subject.original.pairs]
    depth = subject.original.depth
    steps, rate = depth.attack_steps, depth.attack_rate
    attacked = finetune(
        subject.edited,
        subject.processing_class,
        rows,
        steps=steps,
        batch_size=8,
        learning_rate=rate,
        max_length=max(map(len, rows)),  # what is toxic stands at the end, behind a prompt of any length
        seed=subject.seed,
    )
    attack = change_of(attacked, subject.edited)
    found = overlaps({"edit": edit, "attack": attack}, gradient)
    return {**found, "cosine": cosine(edit, attack), "steps": steps, "learning_rate": rate}


def patched(subject: Subject) -> Row:
    refuse_other_interventions(subject.edited, subject.base)  # before the long work
    original, tokenizer = subject.original, subject.processing_class
    pairs = original.pairs[: original.depth.patched_pairs]
    divergence = Divergence(subject.base, tokenizer, original.text, max_tokens=original.depth.text_tokens)

    def read(model: "PreTrainedModel") -> Reading:
        return read_pairs(model, tokenizer, pairs, original.toxic)

    models = (subject.edited, subject.base)
    states = patch_states(*models, original.layers, read)
    groups = patch_neurons(*models, _groups(subject), read, seed=subject.seed)
    modules = patch_modules(*models, lambda model: (read(model), divergence.of(model)), progress=True)
    written = write_with_modules(*models, best_modules(modules, WRITING), original.toxicity_of)
    return {"n_pairs": len(pairs), "states": states, "neurons": groups, "written": written, **modules}


def _groups(subject: Subject) -> dict[str, np.ndarray]:
    """Neurons whose firing is patched: those of each of GROUPS, those that lower <h, w> most, and all."""
    change = compare_writing(subject.original.writing, subject.writing)
    found = {name: change.groups == number for number, name in enumerate(GROUPS)}
    best = np.zeros(change.fall.size, dtype=bool)
    best[np.argsort(-change.fall, axis=None, kind="stable")[:BEST]] = True
    return {
        **found,
        f"the first {min(BEST, best.size)}": best.reshape(change.fall.shape),
        "all": best.reshape(change.fall.shape) | True,
    }


BLOCKS: dict[str, Callable[[Subject], Row]] = {
    "certificate": certificate,
    "drift": drifted,
    "lens": lens,
    "neurons": neurons,
    "weights": weights,
    "overlap": overlapping,
    "patching": patched,
}


@torch.no_grad()
def _listed(subject: Subject, fall: np.ndarray, before: np.ndarray, after: np.ndarray) -> list[Row]:
    """The neurons that lower <h, w> most, and the words that their values speak for."""
    head, blocks = Head.of(subject.base), decoder_blocks(subject.base)
    found = []
    for place in np.argsort(-fall, axis=None, kind="stable")[:SHOWN]:
        layer, neuron = (int(number) for number in np.unravel_index(place, fall.shape))
        value = values_of(blocks[layer])[:, neuron].to(head.weight)
        reads = head.weight.shape[1] == len(value)  # not where states are projected before the head (OPT)
        words = (head.weight @ value).topk(SHOWN).indices.tolist() if reads else []
        found.append(
            {
                "layer": layer,
                "neuron": neuron,
                "fall": float(fall[layer, neuron]),
                "base": float(before[layer, neuron]),
                "edited": float(after[layer, neuron]),
                "words": [subject.processing_class.decode([word]) for word in words],
            }
        )
    return found


def _of(part: Any, whole: float) -> float:
    return float(part / whole) if whole else 0.0
