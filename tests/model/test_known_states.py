"""Does a model that is asked again compute the same from what it knows, and compute less?"""

from typing import Any

import pytest
import torch
from tiny import FAMILIES, tiny_model

from efface.analysis.patching import modules_of, swapped
from efface.model.blocks import decoder_blocks
from efface.model.interventions import Intervention, attach_
from efface.model.known_states import begun_at, remembered

KNOWN = torch.tensor([[3, 20, 21, 22], [3, 40, 41, 42]])
OTHER = torch.tensor([[3, 50, 51, 52], [3, 40, 41, 42]])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_change_above_is_read_to_the_bit_without_what_is_below(family: str) -> None:
    model, other = tiny_model(family).eval(), tiny_model(family, seed=1).eval()
    with remembered(model) as texts:
        before = model(KNOWN).logits
        model(OTHER[:1])
    assert [len(text.given) for text in texts] == [len(decoder_blocks(model))] * 2
    computed: list[Any] = []
    first = next(decoder_blocks(model)[0].children())
    handle = first.register_forward_hook(lambda *args: computed.append(args))
    with swapped(model, other, modules_of(model)["1.attention"]):
        expected = [model(ids).logits for ids in (KNOWN, OTHER)]
        computed.clear()
        with begun_at(model, 1, texts):
            found = model(KNOWN).logits
            assert not computed, "the first block is not asked"
            assert torch.equal(model(OTHER).logits, expected[1]), "what it has not read is computed"
            assert computed
    assert torch.equal(found, expected[0]) and not torch.equal(found, before)
    handle.remove()
    assert torch.equal(model(KNOWN).logits, before) and not any("forward" in vars(b) for b in decoder_blocks(model))


def test_nothing_is_left_behind_by_a_reading_that_fails() -> None:
    model = tiny_model("llama")
    with pytest.raises(KeyError), remembered(model), begun_at(model, 1, []):
        raise KeyError
    assert not any("forward" in vars(block) for block in decoder_blocks(model))


@torch.no_grad()
def test_what_intervenes_on_a_known_state_does_so_once() -> None:
    model = tiny_model("llama")
    attach_(model, [Intervention(0, -torch.ones(32, 1) / 64, torch.ones(1, 32), torch.arange(32.0))] * 2)
    with remembered(model) as texts:
        before = model(KNOWN).logits
    with begun_at(model, 1, texts):
        assert torch.equal(model(KNOWN).logits, before)
        other = model(OTHER).logits
    assert torch.equal(other, model(OTHER).logits) and not torch.equal(other, before)
