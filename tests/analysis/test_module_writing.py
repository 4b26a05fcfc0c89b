"""Does each module write what its edit makes it write, and are the models themselves left as they were?"""

import copy
from typing import Any

import torch
from tiny import tiny_model

from efface.analysis.module_writing import best_modules, write_with_modules
from efface.analysis.patching import modules_of
from efface.files.jsonl import Row


def judge(model: Any) -> Row:
    """How far the first parameter of each module is from 0: which edits a model has."""
    named = dict(model.named_parameters())
    return {name: float(named[names[0]].detach().sum()) for name, names in modules_of(model).items()}


def test_a_model_has_the_edit_of_one_module_or_all_but_its() -> None:
    base = tiny_model("llama")
    edited = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in edited.parameters():
            parameter.add_(1)
    before, after = judge(base), judge(edited)
    found = write_with_modules(edited, base, ["0.mlp", "1.attention"], judge)
    assert (found["base"], found["edited"]) == (before, after)
    for name, one in found["modules"].items():
        assert one["alone"] == before | {name: after[name]} and one["without"] == after | {name: before[name]}
    assert judge(base) == before and judge(edited) == after


def test_the_best_do_most_alone() -> None:
    modules = {name: {"alone": {"toxic_mass": mass}} for name, mass in {"a": 0.3, "b": 0.1, "c": 0.2}.items()}
    assert best_modules({"modules": modules}, 2) == ["b", "c"]
