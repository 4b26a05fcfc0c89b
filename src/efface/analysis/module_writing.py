"""What does a model write that has the edit of one module alone, or all of it but that? The best of `patching.py`.

`patching.py` reads given text, without chance; here the modules that did most are asked to write, and a judge scores
it, since a probability of toxic words is no toxicity.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from efface.analysis.patching import modules_of, refuse_other_interventions, swapped
from efface.files.jsonl import Row
from efface.model.copies import merged_copy, without_adapter
from efface.model.edit import move_

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Judge = Callable[["PreTrainedModel"], Row]
"""A model -> what was found of what it writes: `share`, `ci95`, ..."""


def best_modules(patched: Row, most: int) -> list[str]:
    """Those of `patch_modules` that do most alone, the best first."""
    modules = patched["modules"]
    return sorted(modules, key=lambda name: modules[name]["alone"]["toxic_mass"])[:most]


def write_with_modules(edited: "PreTrainedModel", base: "PreTrainedModel", names: Sequence[str], judge: Judge) -> Row:
    """What models write that have the edit of one module, or all but its; needs memory for a third model.

    Args:
        names: of modules, as `patching.modules_of` calls them.

    Returns:
        `base` and `edited` as the judge says, and `modules`: name -> `alone` and `without`.

    Raises:
        UserError: if their interventions are not the same ones.
    """
    refuse_other_interventions(edited, base)
    edited, base = without_adapter(edited), without_adapter(base)
    student = merged_copy(base)
    parameters = modules_of(student)
    found: dict[str, Row] = {}
    for name in names:
        with swapped(student, edited, parameters[name]):
            found[name] = {"alone": judge(student)}
    move_(student, edited, 1.0)
    for name in names:
        with swapped(student, base, parameters[name]):
            found[name]["without"] = judge(student)
    return {"base": judge(base), "edited": judge(edited), "modules": found}
