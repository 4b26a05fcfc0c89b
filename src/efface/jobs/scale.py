"""How much of an edit does a utility budget allow, and what is that as a checkpoint? `efface scale`.

A training ends where its steps end: stronger than the budget allows, or weaker. The edit as a whole is scaled to it,
base + a edit (`model/edit.py`), by bisection (`evaluation/budget.py`), as every method of a comparison is.

    DIR/             an ordinary checkpoint, with what is known of the training
    DIR/scale.json   the multiple, what binds, and every reading on the way
"""

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from efface.attacks.target import Target
from efface.checks import positive
from efface.comparison.scaling import Scaler
from efface.errors import RunError, UserError
from efface.evaluation.budget import MOST, UtilityBounds
from efface.files.environment import environment
from efface.files.jsonl import Row
from efface.files.manifest import write_manifest
from efface.files.results import RESULTS, check_output_dir, prepare_output_dir, write_json
from efface.generation.decoding import Decoding
from efface.model.card import record_of, write_card
from efface.model.copies import merged
from efface.model.edit import check_same_parameters, edit_squares, scaled_copy
from efface.model.interventions import attached
from efface.model.load import load_model
from efface.model.save import save_model
from efface.model.vocabulary import check_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SCALE = "scale.json"
BUDGET = "budget"


def scale(
    model: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str],
    output: str | os.PathLike[str],
    bounds: UtilityBounds | None = None,
    most: float = 2.0,
    text: str = "shipped:text",
    max_text_tokens: int | None = 6_000,
    prompts: str = "shipped:prompts",
    limit: int | None = 48,
    seed: int = 0,
    overwrite: bool = False,
    command: str | None = None,
    progress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Row:
    """Write base + a edit with the largest a that a budget allows; see the top of this file.

    Args:
        model: the edited model, as `load_model` takes it; an adapter is merged.
        base: what it was made from.
        output: a run directory.
        bounds: what the edit may cost on ordinary text; by default KL .05 and perplexity +3 %.
        most: the largest multiple that is tried; 1 never makes an edit stronger than it was trained.
        text: ordinary text: JSON lines with `text`.
        max_text_tokens: of its start, for KL and for perplexity.
        prompts, limit: what is written after them, one sample each, tells text from gibberish, beside the base's.
        seed: of the draw of prompts and of the samples.
        overwrite: delete the run that lies there.
        command: how this was called, for the record.
        progress: show progress bars.
        say: is told what came of it, a line each.

    Returns:
        What was written to `scale.json`.

    Raises:
        UserError: for input that cannot work; nothing is written then.
        RunError: if no multiple of the edit fits; nothing is written then.
    """
    bounds = bounds or UtilityBounds()
    positive("most", most)
    read = [model, base, text, prompts]
    check_output_dir(output, overwrite=overwrite, resume=None, inputs=read)
    training = record_of(model)
    target = Target.load(
        base,
        prompts=prompts,
        limit=limit,
        limit_seed=seed,
        text=text,
        decoding=Decoding(samples=1, seed=seed),
        max_text_tokens=max_text_tokens,
        progress=progress,
    )
    edited, tokenizer = load_model(model)
    edited = merged(edited)
    check_vocabulary(edited, target.processing_class)
    check_same_parameters(edited, target.model, "scaled")
    if edit_squares(edited, target.model)[0] == 0 and not attached(edited):
        raise UserError(f"model {os.fspath(model)!r} has the weights of the base: there is no edit to scale.")
    scaler = Scaler(target, {BUDGET: bounds}, most, max_text_tokens, max_text_tokens)
    fitted = scaler.fit(edited)[BUDGET]["fitted"]
    if fitted["a"] is None:
        raise RunError(
            f"no multiple of the edit fits the budget (KL at most {bounds.kl:g} nats a token, perplexity at most "
            f"{bounds.perplexity:+.1%}, no gibberish): {why_none(fitted)}. Allow more, or train a milder edit."
        )
    folder = prepare_output_dir(output, overwrite=overwrite, resume=None)
    save_scaled(edited, target.model, fitted["a"], tokenizer, folder)
    found = {"schema": 1, "what": "scale", "model": os.fspath(model), "base": os.fspath(base), "text": text}
    found |= {"max_text_tokens": max_text_tokens, "prompts": prompts, "limit": limit}
    found |= {
        "bounds": asdict(bounds),
        "most": most,
        "fitted": fitted,
        "base_perplexity": scaler.ordinary.base_perplexity,
    }
    found |= {"environment": environment(seed=seed, model=edited, command=command)}
    write_json(folder / SCALE, found)
    record_scaled(folder, training, {"model": os.fspath(base), "scaled_by": fitted["a"]})
    say(said(fitted))
    return found


def said(fitted: Row) -> str:
    """A line: how much of the edit fits, what it costs, what keeps it from being more."""
    one = next(reading for reading in fitted["readings"] if reading["a"] == fitted["a"])
    bounds = " and ".join(fitted["binding"])
    why = "no more was asked for" if fitted["binding"] == [MOST] else f"{bounds} would break beyond it"
    return f"{one['a']:.2f} of the edit: KL {one['kl']:.3f}, perplexity {one['increase']:+.1%}; {why}"


def why_none(fitted: Row) -> str:
    """What the smallest multiple that was tried breaks."""
    least = min(fitted["readings"], key=lambda reading: reading["a"])
    told = least["guard"] if least["guard"] not in (None, "ok") else " and ".join(least["exceeded"])
    return f"at {least['a']:.3g} of it: {told}"


def save_scaled(
    edited: "PreTrainedModel", base: "PreTrainedModel", a: float, tokenizer: "PreTrainedTokenizerBase", folder: Path
) -> None:
    """Base + a edit, as a checkpoint."""
    save_model(scaled_copy(edited, base, a), tokenizer, folder)


def record_scaled(folder: Path, training: Row | None, mark: Row) -> None:
    """How the edit was trained is how the scaled one was, and by how much it was scaled; of an edit that was scaled
    before, by both together.

    Args:
        training: what is recorded of it; None of an edit of another make.
        mark: what is to be written besides; `scaled_by` at least.
    """
    if training is None:
        write_manifest(folder)
        return
    before = training.get("scaled_by") or 1.0
    write_json(folder / RESULTS, training | mark | {"scaled_by": before * mark["scaled_by"]})
    write_card(folder)
