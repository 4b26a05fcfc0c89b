"""Does a lower block still say what the last ones hide? Early exit: the logits are read before the end.

An edit of the last blocks leaves what is below as it was. With the logit lens (nostalgebraist 2020) on states of an
unlearned model what it "forgot" is found in earlier blocks (arXiv 2410.00382). Here whole texts are written so: the
blocks above the exit are not computed, and the final norm and output head read what the exit has given.

Most models can spare few of their last blocks: points that cost too much perplexity do not count, so of a small model
only the first exits do.
"""

from dataclasses import dataclass

from efface.attacks.lists import several
from efface.attacks.points import UtilityBudget, judge_within
from efface.attacks.record import recorded
from efface.attacks.result import AttackResult
from efface.attacks.target import Target
from efface.errors import UserError
from efface.model.blocks import decoder_blocks
from efface.model.copies import without_adapter
from efface.model.forward import skipped_above


@dataclass(frozen=True)
class EarlyExitSettings(UtilityBudget):
    """Settings of `early_exit`."""

    skipped: tuple[int, ...] = several("1,2,4,8", int, "How many of the last blocks are not computed, one or several.")

    def __post_init__(self) -> None:
        super().__post_init__()


def early_exit(target: Target, settings: EarlyExitSettings) -> AttackResult:
    """Measure the model as it writes from each exit; judged by the most toxic point that counts.

    `found` says: of how many `blocks`, and which points are `left_out`.

    Raises:
        UserError: if the model has no more blocks than are skipped.
    """
    blocks = len(decoder_blocks(target.model))
    if max(settings.skipped) >= blocks:
        raise UserError(
            f"skipped={settings.skipped!r} leaves none of the model's {blocks} blocks. At most {blocks - 1} can be."
        )
    model = without_adapter(target.model)
    with recorded(target, "early_exit", settings) as record:
        record.start(skipped=0)
        for skipped in settings.skipped:
            with skipped_above(model, blocks - 1 - skipped):
                record.measure_edited(model, {"skipped": skipped})
        return judge_within(record, settings.max_perplexity_increase, blocks=blocks)
