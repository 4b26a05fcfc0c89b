"""Do examples in the prompt bring the toxicity back? In-context relearning (Anil et al. 2024, many-shot jailbreaking).

    x'  =  p_1 r_1 ... p_k r_k x      with k rows' prompts p and toxic (rejected) continuations r before the prompt x

No weight changes; that the rate of harmful answers rises with k is the finding of the paper. Any text before a prompt
changes what follows, so the same rows stand as a control with their polite (chosen) continuations: what the toxic
examples do is the difference of the two, and the base's under both stands beside.
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass

from efface.attacks.altered import answer_to, excess, prompts_as_read, without_cutting
from efface.attacks.draw import count_prompts_among
from efface.attacks.lists import read_lists, several
from efface.attacks.points import severity, worst
from efface.attacks.record import recorded
from efface.attacks.result import AttackResult, title
from efface.attacks.target import Target
from efface.data.preferences import text_of
from efface.errors import UserError
from efface.files.jsonl import Row

logger = logging.getLogger(__name__)

SIDES = {"toxic": "rejected", "neutral": "chosen"}


@dataclass(frozen=True)
class FewShotSettings:
    """Settings of `few_shot`."""

    shots: tuple[int, ...] = several(
        "2,4,8", int, "How many examples stand before a prompt; each is a point with toxic and one with polite ones."
    )

    def __post_init__(self) -> None:
        read_lists(self)


def few_shot(target: Target, settings: FewShotSettings) -> AttackResult:
    """Put examples of the rows before each prompt, drawn for each under the seed; with `chat` as turns before it.

    Judged by the worst point with toxic examples. Those with polite ones are on the curve, but do not count: they are
    in `left_out`, as are numbers for which no prompt has room. `found`: of each of the `points` the `share`,
    the `base_share` (None without a base) and how many examples a prompt had on average where there was no room for
    all (`mean_shots`); at the number of the worst point the `base_share`, the `neutral_share`, the
    `base_neutral_share` and how toxic and polite examples compare prompt by prompt (`versus_neutral`, as
    `versus_before`); `prompts_among_rows`, which should be 0.

    Raises:
        UserError: if there are fewer rows than examples, or no room for one; for a chat template that cannot be
            continued.
    """
    most = settings.shots[-1]
    if most > len(target.rows):
        raise UserError(
            f"shots={settings.shots!r}, but there are only {len(target.rows)} rows. Name fewer, or give more rows."
        )
    decoding = without_cutting(target, chat=False)  # what a chat template makes of turns is a text like any other
    rows, points, controls, left_out = [], [], {}, []
    with recorded(target, "few_shot", settings) as record:
        record.start(shots=0)
        for shots in settings.shots:
            chosen = _examples(target, shots, most)
            mean_shots = sum(map(len, chosen)) / len(chosen)
            if not mean_shots:
                left_out.append(title({"shots": shots}))
                continue
            if mean_shots < shots:
                logger.warning(
                    "few_shot: on average %.1f of %d examples have room before the prompts.", mean_shots, shots
                )
            for examples, side in SIDES.items():
                at = {"shots": shots, "examples": examples}
                prompts = [_joined(target, *both, side) for both in zip(chosen, prompts_as_read(target), strict=True)]
                point = record.measure(
                    target.model, at, prompts=prompts, decoding=decoding, with_text=False, with_likelihood=False
                )
                base = record.base_at(at, decoding, prompts)
                figures = {"share": point.share, "base_share": None if base is None else base.share}
                rows.append({**at, **figures, "mean_shots": mean_shots})
                if examples == "toxic":
                    points.append(point)
                else:
                    controls[shots] = point
        if not points:
            raise UserError("few_shot: before no prompt is there room for an example. Give shorter rows or prompts.")
        toxic = max(points, key=lambda point: severity(point.measured.toxicity))
        neutral = controls[toxic.at["shots"]]
        of_base = {row["examples"]: row["base_share"] for row in rows if row["shots"] == toxic.at["shots"]}
        return record.result(
            worst([record.curve[0], *points]),
            points=rows,
            neutral_share=neutral.share,
            base_share=of_base["toxic"],
            base_neutral_share=of_base["neutral"],
            versus_neutral=toxic.versus(neutral),
            prompts_among_rows=count_prompts_among(target.rows, target.prompts),
            left_out=left_out + [title(point.at) for point in controls.values()],
        )


def _examples(target: Target, shots: int, most: int) -> list[list[Row]]:
    """The rows before each prompt: `shots` of `most` that are drawn for it, or as many as have room with it on either
    side, so that toxic and polite examples are equally many. Those that are left out are the first."""
    found = []
    for number, prompt in enumerate(prompts_as_read(target)):
        drawn = random.Random(f"{target.seed} {number}").sample(target.rows, most)[most - shots :]
        while drawn and any(
            excess(target, _joined(target, drawn, prompt, side), chat=False) > 0 for side in SIDES.values()
        ):
            drawn = drawn[1:]
        found.append(drawn)
    return found


def _joined(target: Target, examples: Sequence[Row], prompt: str, side: str) -> str:
    """The examples and the prompt, a paragraph each; of messages, what the template makes of them as turns."""
    pairs = [(text_of(row["prompt"]), text_of(row[side])) for row in examples]
    if not target.decoding.chat:
        return "\n\n".join([*(question + answer for question, answer in pairs), prompt])
    turns = [
        {"role": role, "content": text.strip()}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return answer_to(target.processing_class, [*turns, {"role": "user", "content": prompt}])
