"""Is a prompt that is computed once the same prompt, for every family, and is the cheapest layout that fits chosen?

Of: training/passes.py
"""

import logging
from typing import Any

import pytest
import torch
from forwards import RAGGED, Lengths, batch_of
from hypothesis import given
from hypothesis import strategies as st
from tiny import FAMILIES, tiny_model
from torch import Tensor

from efface.data.batch import PairBatch, PairCollator, predicting_positions, with_passages
from efface.data.pair_tokens import TokenizedPair
from efface.errors import UserError
from efface.model.chunked import token_log_probabilities
from efface.model.forward import Head, forward
from efface.model.layout import STEADY, plain_layout, shared_layout
from efface.training.passes import LAYOUTS, choose_layout, policy_forward


def pair_tokens(batch: PairBatch) -> Tensor:
    mask = batch["continuation_mask"].clone()
    mask[2 * batch["n_pairs"] :] = False
    return mask


# The hand-made example


def test_a_pair_is_one_sequence_in_which_the_continuations_do_not_see_each_other() -> None:
    model = tiny_model("llama")
    batch = with_passages(PairCollator(pad_token_id=0)([TokenizedPair([5, 6, 7], [8, 9], [3, 4, 2])]), [[10, 11]], 0)
    layout = shared_layout(batch, model)
    # The pair and the passage are packed into one row, which is never shorter than STEADY.
    assert layout.input_ids.tolist() == [[5, 6, 7, 8, 9, 3, 4, 2, 10, 11, *[5] * (STEADY - 10)]]
    assert layout.position_ids.tolist()[0][:10] == [0, 1, 2, 3, 4, 3, 4, 5, 0, 1]
    assert isinstance(layout.attention_mask, Tensor) and layout.attention_mask.shape == (1, 1, STEADY, STEADY)
    assert layout.attention_mask[0, 0, :10, :10].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 1],
    ]
    assert not layout.attention_mask[0, 0, :10, 10:].any()  # nobody sees padding
    real = batch["attention_mask"].bool()
    assert torch.equal(layout.input_ids.flatten()[layout.place[real]], batch["input_ids"][real])
    # The token that predicts the first of either continuation is the last of the one prompt.
    before = predicting_positions(batch["continuation_mask"])
    assert layout.place[before].tolist() == [2, 3, 2, 5, 6, 8]


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=6),
    st.lists(st.integers(2, 20), max_size=4),
)
def test_every_token_stands_somewhere_once_and_sees_its_own_sequence(lengths: Lengths, passages: list[int]) -> None:
    batch = batch_of(lengths, passages)
    layout = shared_layout(batch, _MODEL)
    mask = layout.attention_mask
    assert isinstance(mask, Tensor)
    real, flat = batch["attention_mask"].bool(), layout.input_ids.flatten()
    assert torch.equal(flat[layout.place[real]], batch["input_ids"][real])
    width, n = layout.input_ids.shape[1], len(lengths)
    assert width == max([STEADY] + [sum(pair) for pair in lengths] + passages)
    places = layout.place[real].unique()
    assert len(places) == sum(map(sum, lengths)) + sum(passages)  # prompts once
    for row in range(len(real)):
        own = layout.place[row][real[row]]  # where the tokens of this sequence stand, in order
        r, columns = own // width, own % width
        assert len(r.unique()) == 1
        sees = mask[r[0], 0][columns]  # (T, S)
        assert torch.equal(sees[:, columns], torch.ones(len(own), len(own), dtype=torch.bool).tril())
        assert sees.sum(1).tolist() == list(range(1, len(own) + 1))  # and nothing else
        assert torch.equal(layout.position_ids[r[0]][columns], torch.arange(len(own)))
    assert mask.any(-1).all() and n > 0


_MODEL = tiny_model("llama")


# What a model computes with it


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_gives_what_the_plain_one_gives(family: str, attention: str) -> None:
    """Final states of both continuations (what DPO and NPO need), residuals and gradients; sliding windows of 8 and 16
    tokens are shorter than the rows."""
    if (family, attention) == ("gemma2", "sdpa"):
        pytest.skip("transformers' sdpa attention has no soft-capping")
    model = tiny_model(family)
    model.set_attn_implementation(attention)
    batch = batch_of(RAGGED, [20, 3])
    project, capture = predicting_positions(batch["continuation_mask"]), pair_tokens(batch)
    ids = batch["input_ids"][batch["continuation_mask"]]
    results = []
    for layout in ("plain", "shared"):
        model.zero_grad()
        found = policy_forward(model, batch, project, [0, 1], capture, layout)
        log_probabilities = token_log_probabilities(found.hidden, Head.of(model), ids)
        (torch.sigmoid(log_probabilities).sum() + sum(r.square().mean() for r in found.residuals.values())).backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((found, log_probabilities.detach(), gradients))
    (plain, plain_lp, plain_g), (shared, shared_lp, shared_g) = results
    torch.testing.assert_close(shared.hidden, plain.hidden, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shared_lp, plain_lp, rtol=1e-5, atol=1e-5)
    for layer in (0, 1):
        torch.testing.assert_close(shared.residuals[layer], plain.residuals[layer], rtol=1e-5, atol=1e-5)
    assert plain_g.keys() == shared_g.keys()
    for name in plain_g:
        torch.testing.assert_close(shared_g[name], plain_g[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_rejected_rows_computed_apart(family: str) -> None:
    model = tiny_model(family)
    batch = batch_of(RAGGED, [20, 3])
    project, capture, n = predicting_positions(batch["continuation_mask"]), pair_tokens(batch), batch["n_pairs"]
    project[n : 2 * n] = False
    plain, apart = (policy_forward(model, batch, project, [0], capture, layout) for layout in ("plain", "apart"))
    torch.testing.assert_close(apart.hidden, plain.hidden, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(apart.residuals[0], plain.residuals[0], rtol=1e-5, atol=1e-5)


def test_a_mask_that_is_wrong_would_show() -> None:
    """The control: the same rows under an ordinary causal mask give other states."""
    model = tiny_model("llama")
    batch = batch_of(RAGGED)
    layout = shared_layout(batch, model)
    right = model(input_ids=layout.input_ids, attention_mask=layout.attention_mask, position_ids=layout.position_ids)
    causal = model(input_ids=layout.input_ids, position_ids=layout.position_ids)
    assert (right.logits - causal.logits).abs().max() > 0.1


# The choice


def choose(model: Any, wanted: str = "auto", lengths: Lengths | None = None, layers: Any = (1,), **more: Any) -> str:
    settings: dict[str, Any] = {"sides": ("chosen",), "distributed": False, "example": batch_of(RAGGED)}
    return choose_layout(wanted, model, lengths or RAGGED, layers, **(settings | more))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shares_its_prompts(family: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="efface.training.passes"):
        assert choose(tiny_model(family), lengths=[(32, 32, 32)]) == "shared"
    assert (
        "layout shared: 0.75 of the plain layout's work; not apart, as rejected rows must run to the end"
        in caplog.text
    )


def test_the_cheapest_layout_is_chosen() -> None:
    model = tiny_model("llama")
    assert choose(model, layers=[0], lengths=[(2, 30, 30)]) == "apart"  # 32 * 2 + 32 of 128, shared 62 * 2
    assert choose(model, layers=[0], lengths=[(30, 2, 2)]) == "shared"
    assert choose(model, layers=[0], lengths=[(2, 30, 30)], sides=("chosen", "rejected")) == "shared"
    assert choose(model, layers=[0], lengths=[(2, 30, 30)], distributed=True) == "shared"
    assert [choose(model, layout, layers=[0]) for layout in LAYOUTS] == list(LAYOUTS)


def test_rows_of_which_nothing_is_asked_are_not_computed(caplog: pytest.LogCaptureFixture) -> None:
    model, batch = tiny_model("llama"), batch_of(RAGGED)
    n = batch["n_pairs"]
    nothing = torch.zeros_like(batch["continuation_mask"])
    for first, side in ((0, "chosen"), (n, "rejected")):
        project = nothing.clone()
        project[first : first + n] = predicting_positions(batch["continuation_mask"])[first : first + n]
        rows: list[int] = []
        handle = model.register_forward_pre_hook(
            lambda module, args, kwargs, rows=rows: rows.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        found = policy_forward(model, batch, project, [], nothing, "plain")
        handle.remove()
        assert rows == [n]
        layout = plain_layout(batch["input_ids"], batch["attention_mask"])
        torch.testing.assert_close(found.hidden, forward(model, layout, project).hidden)
        with caplog.at_level(logging.INFO, logger="efface.training.passes"):
            assert choose(model, layers=[], sides=(side,)) == "plain"
        assert "not shared, as only one continuation of a pair is computed" in caplog.text


def test_what_does_not_fit_is_refused_or_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("llama")
    with pytest.raises(UserError, match="layout='apart' does not fit: rejected rows must run to the end"):
        choose(model, "apart", layers=[1])
    with pytest.raises(UserError, match="layout='apart' does not fit: under several processes"):
        choose(model, "apart", layers=[0], distributed=True)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match="layout='shared' does not fit: its attention is 'flash_attention_2'; sdpa or"):
        choose(model, "shared")
    with caplog.at_level(logging.INFO, logger="efface.training.passes"):
        assert choose(model) == "plain"
    assert "layout plain: 1.00 of the plain layout's work; not shared, as its attention is" in caplog.text
    mixed = tiny_model("qwen2")
    mixed.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(UserError, match="'shared' does not fit: it has layers of kind linear_attention"):
        choose(mixed, "shared")


def test_a_model_that_ignores_the_mask_is_found_out(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    attend = model.model.layers[0].self_attn.forward
    model.model.layers[0].self_attn.forward = lambda *args, attention_mask=None, **kwargs: attend(
        *args, attention_mask=None, **kwargs
    )
    with caplog.at_level(logging.INFO, logger="efface.training.passes"):
        assert choose(model) == "plain"
    assert "not shared, as it gives other hidden states with it (relative difference" in caplog.text


def test_plain_rows_stay_where_they_are() -> None:
    batch = batch_of(RAGGED)
    layout = plain_layout(batch["input_ids"], batch["attention_mask"])
    assert layout.input_ids is batch["input_ids"]
    states = torch.randn(*batch["input_ids"].shape, 3)
    mask = batch["continuation_mask"]
    assert torch.equal(layout.take(states, mask), states[mask])
