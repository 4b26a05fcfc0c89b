"""Is the module that makes an edit found by patching, and is what no model says read right?

Of: analysis/toxic_mass.py
"""

import contextlib
import copy
from typing import Any

import pytest
import torch
from polite import ROWS
from tiny import FAMILIES, tiny_model, tiny_tokenizer

from efface.analysis import patching
from efface.analysis.module_writing import write_with_modules
from efface.analysis.patching import modules_of, patch_modules, swapped
from efface.analysis.toxic_mass import Reading, read_pairs, toxic_tokens
from efface.data.pair_tokens import TokenizedPair, tokenize_pairs
from efface.errors import RunError, UserError
from efface.evaluation.divergence import Divergence
from efface.model.blocks import decoder_blocks
from efface.model.interventions import Intervention, attach_

PAIRS = tokenize_pairs(ROWS, tiny_tokenizer())
TEXT = ["The history of the town is the history of its river.", "She went to the market and bought bread."]


def test_toxic_tokens_are_those_of_rejected() -> None:
    pairs = [
        TokenizedPair([3], [10, 11, 12, 13], [20, 21, 11, 20]),
        TokenizedPair([3], [14, 11, 15, 16], [20, 22, 11]),
    ]
    assert toxic_tokens(pairs) == [20]
    with pytest.raises(UserError, match="no token stands 3 times"):
        toxic_tokens([TokenizedPair([3], [10], [11])])
    assert toxic_tokens(PAIRS)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_reading_is_what_the_logits_say(family: str) -> None:
    model, toxic = tiny_model(family), [20, 21, 40]
    found = read_pairs(model, tiny_tokenizer(), PAIRS, toxic, batch_size=3)
    mass, nll = [], {"chosen_ids": [], "rejected_ids": []}
    for pair in PAIRS:
        for side, values in nll.items():
            ids = pair.prompt_ids + getattr(pair, side)
            log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1).double()[len(pair.prompt_ids) - 1 : -1]
            values += (-log_p.gather(1, torch.tensor(getattr(pair, side))[:, None])[:, 0]).tolist()
            mass += log_p[:, toxic].exp().sum(1).tolist() if side == "rejected_ids" else []
    chosen, rejected = (sum(values) / len(values) for values in nll.values())
    assert found.toxic_mass == pytest.approx(sum(mass) / len(mass), rel=1e-4)
    assert (found.chosen_nll, found.rejected_nll) == pytest.approx((chosen, rejected), rel=1e-4)
    assert found.margin == pytest.approx(chosen - rejected, rel=1e-3)
    broken = tiny_model(family)
    with torch.no_grad():
        broken.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(RunError, match="not finite"):
        read_pairs(broken, tiny_tokenizer(), PAIRS, toxic)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_of_one_module(family: str) -> None:
    model = tiny_model(family)
    modules = modules_of(model)
    assert sorted(sum(modules.values(), [])) == sorted(name for name, _ in model.named_parameters())
    assert {"0.attention", "0.mlp", "0.norms", "1.attention", "1.mlp", "outside"} <= set(modules)


def test_what_is_swapped_comes_back_to_the_bit() -> None:
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    state, names = copy.deepcopy(model.state_dict()), modules_of(model)["1.mlp"]
    with pytest.raises(KeyError), swapped(model, other, names):
        assert torch.equal(dict(model.named_parameters())[names[0]], dict(other.named_parameters())[names[0]])
        raise KeyError
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def reader(base: Any) -> Any:
    tokenizer = tiny_tokenizer()
    toxic, divergence = toxic_tokens(PAIRS), Divergence(base, tokenizer, TEXT)
    return lambda model: (read_pairs(model, tokenizer, PAIRS, toxic), divergence.of(model))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_one_module_that_an_edit_changed_is_enough_and_needed(family: str) -> None:
    base, edited = tiny_model(family), tiny_model(family)
    with torch.no_grad():
        for parameter in [*decoder_blocks(edited)[0].parameters()]:
            parameter.add_(1e-4)  # hardly anything, everywhere
        for name, parameter in edited.named_parameters():
            if name in modules_of(edited)["1.mlp"]:
                parameter.mul_(0.2)
    read = reader(base)
    if read(edited)[0].toxic_mass > read(base)[0].toxic_mass:
        base, edited = edited, base  # whichever way it falls
        read = reader(base)
    found = patch_modules(edited, base, read)
    assert found["base"]["kl"] == pytest.approx(0, abs=1e-6) and found["edited"]["kl"] > 1e-3
    modules = found["modules"]
    assert set(modules) == {"0.attention", "0.mlp", "0.norms", "1.mlp"}
    assert modules["1.mlp"]["enough"] == pytest.approx(1, abs=0.02) == modules["1.mlp"]["needed"]
    assert all(
        abs(one[what]) < 0.02 for name, one in modules.items() if name != "1.mlp" for what in ("enough", "needed")
    )
    assert modules["1.mlp"]["squares"] > 0.99 and 0 < modules["1.mlp"]["parameters"] < 0.5
    assert [point["k"] for point in found["sufficient"]] == [1, 2, 4]
    assert found["sufficient"][-1]["of_fall"] == pytest.approx(1, abs=1e-5)
    assert found["sufficient"][0]["of_fall"] == pytest.approx(1, abs=0.02)
    assert found["necessary"][0]["of_fall"] == pytest.approx(0, abs=0.02)
    assert found["necessary"][-1]["toxic_mass"] == pytest.approx(found["base"]["toxic_mass"], rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_what_is_not_computed_again_changes_no_figure(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, edited = tiny_model(family), tiny_model(family, seed=1)
    found = patch_modules(edited, base, reader(base))
    monkeypatch.setattr(patching, "begun_at", lambda *args: contextlib.nullcontext())
    assert patch_modules(edited, base, reader(base)) == found and "outside" in found["modules"]


def steered(model: Any, layer: int, length: float) -> Any:
    attach_(model, [Intervention(layer, torch.zeros(32, 0), torch.zeros(0, 32), torch.arange(32.0) * length)])
    return model


def test_an_intervention_of_both_acts_once_and_one_of_the_edit_alone_is_refused() -> None:
    base, edited = (steered(tiny_model("llama"), 0, 0.1) for _ in range(2))
    with torch.no_grad():
        decoder_blocks(edited)[1].mlp.down_proj.weight.mul_(-1)
    found = patch_modules(edited, base, reader(base))
    assert found["modules"]["1.mlp"]["alone"] == found["edited"]
    assert found["modules"]["1.mlp"]["without"] == found["base"]
    for other in (tiny_model("llama"), steered(tiny_model("llama"), 1, 0.1), steered(tiny_model("llama"), 0, 0.2)):
        with pytest.raises(UserError, match="which are not the same ones"):
            patch_modules(edited, other, reader(other))
        with pytest.raises(UserError, match="1 interventions and the base [01], which are not the same ones"):
            write_with_modules(edited, other, ["1.mlp"], lambda model: {})


def test_identical_models_have_nothing_to_patch() -> None:
    model = tiny_model("llama")
    found = patch_modules(copy.deepcopy(model), model, lambda one: (Reading(0.1, 0.0, 1.0, 1.0), 0.0))
    assert found["modules"] == {} and found["sufficient"] == [] == found["necessary"]
    with pytest.raises(UserError, match="they cannot be patched"):
        patch_modules(tiny_model("gpt2"), model, reader(model))
