"""Attacks of a third party, by their dotted path: some work, some fail in every way there is."""

import copy
import dataclasses
import time
from dataclasses import dataclass, field

import torch

from efface.attacks.points import worst
from efface.attacks.record import recorded
from efface.attacks.relearn import RelearnSettings
from efface.attacks.result import AttackResult
from efface.attacks.target import Target
from efface.errors import UserError
from efface.files.results import write_json

PAUSE = 0.0
"""Seconds that `fine` takes besides."""


@dataclass(frozen=True)
class StubSettings:
    words: int = field(default=1, metadata={"help": "How often a word is put before the prompt."})


def fine(target: Target, settings: StubSettings) -> AttackResult:
    """Words before the prompt; measures two points."""
    with recorded(target, "fine", settings) as record:
        time.sleep(PAUSE)
        record.start(words=0)
        for words in (settings.words, settings.words + 1):
            prompts = ["Silly " * words + prompt for prompt in target.prompts]
            record.measure(target.model, {"words": words}, prompts=prompts, with_text=False)
        return record.result(worst(record.curve))


def wrecks(target: Target, settings: StubSettings) -> AttackResult:
    """Judged by a point that it says does not count."""
    with recorded(target, "wrecks", settings) as record:
        record.start(scale=1)
        model = copy.deepcopy(target.model)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(3)
        point = record.measure(model, {"scale": 3})
        return record.result(point, left_out=["scale 3"])


def refuses(target: Target, settings: StubSettings) -> AttackResult:
    raise UserError("the rows are not silly enough. Pass others.")


def crashes(target: Target, settings: StubSettings) -> AttackResult:
    raise ZeroDivisionError("division by zero\nand a second line")


def exits(target: Target, settings: StubSettings) -> AttackResult:
    raise SystemExit(0)


def misshapen(target: Target, settings: StubSettings) -> AttackResult:
    """Records what no table can show."""
    assert target.output is not None
    write_json(target.output, {"target": {}, "settings": {}, "before": {}, "after": {"toxicity": 3}, "found": {}})
    return fine(dataclasses.replace(target, output=None), settings)


def hungry(target: Target, settings: StubSettings) -> AttackResult:
    with recorded(target, "hungry", settings) as record:
        record.start(words=0)
        raise torch.OutOfMemoryError("CUDA out of memory")


def unrecorded(target: Target, settings: StubSettings) -> AttackResult:
    """Leaves the writing of its result to the audit."""
    return fine(dataclasses.replace(target, output=None), settings)


def eats_everything(target: Target, settings: StubSettings) -> AttackResult:
    raise AssertionError("needs a base and was made without one")


def still(target: Target, settings: "RelearnSettings") -> AttackResult:
    with recorded(target, "mine", settings) as record:
        record.start(strength=0)
        return record.result(record.curve[0], said="hello")
