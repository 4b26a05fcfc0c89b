"""On which prompts are models tuned, reported and attacked? Nothing that settings were chosen on is reported."""

import dataclasses
from collections.abc import Sequence

from efface.attacks.finished import Untouched
from efface.attacks.target import Target
from efface.comparison.config import PromptPart, SweepConfig
from efface.data.rows import load_texts
from efface.errors import UserError
from efface.evaluation.prompt_sets import draw_prompts, load_prompts
from efface.generation.decoding import BFLOAT16, Decoding
from efface.model.precision import is_fast_in_half

Targets = tuple[Target, Target, Target]


def targets_of(config: SweepConfig) -> Targets:
    """The base with the tuning prompts, with the reported ones (without those), and with those of the attacks."""
    in_half = config.decoding_dtype == BFLOAT16 or (config.decoding_dtype == "auto" and is_fast_in_half())
    decoding = Decoding(
        samples=config.samples,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        dtype=BFLOAT16 if in_half else None,
    )
    tuning = _draw(config.tuning)
    reported = [one for part in config.reported for one in _draw(part, without=tuning)]
    attacked = reported if config.attacked is None else _draw(config.attacked, without=tuning)
    target = Target.load(
        config.base,
        base=None,
        prompts=tuning,
        rows=config.heldout,
        labelled=config.labelled,
        scorer=config.scorers,
        decoding=decoding,
        text=load_texts(config.text),
        max_text_tokens=config.max_text_tokens,
        seed=config.seed,
    )
    target = dataclasses.replace(target, base=target.model)
    reported = list(dict.fromkeys(reported))
    under_attack = config.attacks.text_tokens or config.max_text_tokens
    return (
        target,
        dataclasses.replace(target, prompts=reported),
        dataclasses.replace(target, prompts=list(dict.fromkeys(attacked)), max_text_tokens=under_attack),
    )


def knowing(targets: Targets, known: Untouched) -> Targets:
    """The same, and what is known of untouched models."""
    return tuple(dataclasses.replace(one, known=known) for one in targets)  # type: ignore[return-value]


def _draw(part: PromptPart, without: Sequence[str] = ()) -> list[str]:
    left_out = set(without)
    found = [one for one in load_texts(load_prompts(part.prompts), "prompt") if one not in left_out]
    if not found:
        raise UserError(f"prompts {part.prompts!r}: none is left without those that are tuned on. Name others.")
    return draw_prompts(found, part.limit, part.limit_seed)
