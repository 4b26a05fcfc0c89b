"""Are the neurons and directions that were planted found beyond chance, and others not?

Of: analysis/enrichment.py
"""

import numpy as np
import pytest
import torch
from tiny import FAMILIES, tiny_model

from efface.analysis.enrichment import enrichment
from efface.analysis.overlap import change_of, cosine, overlaps
from efface.errors import UserError
from efface.model.projections import linear_maps, output_weight


def test_moved_neurons_that_are_the_toxic_ones_are_enriched() -> None:
    draw = np.random.default_rng(0)
    toxic = draw.random((4, 250))
    found = enrichment(toxic + 0.01 * draw.random((4, 250)), toxic)
    assert found["n"] == 10 and found["overlap"] >= 8 and found["fold"] > 20 and found["p"] == pytest.approx(1 / 2001)
    chance = enrichment(draw.random((4, 250)), toxic, share=0.1)
    assert chance["p"] > 0.05 and chance["fold"] == pytest.approx(1, abs=0.8)
    none = enrichment(np.zeros((4, 250)), toxic)
    assert none["overlap"] == 0 and none["p"] is None is none["fold"]
    with pytest.raises(UserError, match="two of"):
        enrichment(toxic, toxic[:2])


def test_a_layer_that_moves_as_a_whole_proves_nothing() -> None:
    """Its neurons are the most moved and the most toxic ones, each in an order of its own."""
    draw = np.random.default_rng(0)
    high = np.zeros((4, 250)) + np.array([0, 0, 5, 0])[:, None]
    ps = [enrichment(high + draw.random((4, 250)), high + draw.random((4, 250)), share=0.05)["p"] for _ in range(40)]
    assert 0.3 < np.mean(ps) < 0.8 and np.mean(np.array(ps) < 0.05) < 0.15


def test_chance_gives_false_alarms_as_often_as_it_says() -> None:
    tables = np.random.default_rng(1).random((200, 2, 3, 200))
    ps = [enrichment(one, other, share=0.1, permutations=400)["p"] for one, other in tables]
    assert np.mean(np.array(ps) < 0.05) <= 0.09


def test_a_change_along_the_gradient_is_seen_and_noise_is_at_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = {"a": torch.randn(30, 20, generator=generator), "b": torch.randn(24, 40, generator=generator)}
    left, singular, right = torch.linalg.svd(gradient["a"])
    planted = {"a": torch.outer(left[:, 0], right[0]), "b": torch.zeros(24, 40)}
    found = overlaps({"planted": planted}, gradient, ranks=(1, 4))["planted"]
    assert found["left"] == pytest.approx({"1": 1, "4": 1}, abs=1e-5) == found["right"]
    assert found["chance"]["left"]["4"] == pytest.approx(4 / 30) and found["chance"]["right"]["1"] == pytest.approx(
        0.05
    )
    norm = sum(matrix.square().sum() for matrix in gradient.values()) ** 0.5
    assert found["cosine"] == pytest.approx((singular[0] / norm).item(), abs=1e-5)
    noise = {path: torch.randn(matrix.shape, generator=generator) for path, matrix in gradient.items()}
    unchanged = {path: torch.zeros_like(matrix) for path, matrix in gradient.items()}
    several = overlaps({"noise": noise, "same": gradient, "nothing": unchanged}, gradient)
    at_random, nothing = several["noise"], several["nothing"]
    for side in ("left", "right"):
        for rank, part in at_random[side].items():
            assert part == pytest.approx(at_random["chance"][side][rank], abs=0.12)
    assert several["same"]["cosine"] == pytest.approx(1, abs=1e-5)
    assert nothing["cosine"] is None and set(nothing["left"].values()) == {None}
    with pytest.raises(UserError, match="different matrices"):
        overlaps({"whole": noise, "part": {"a": gradient["a"]}}, gradient)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_change_of_a_model_is_that_of_its_maps(family: str) -> None:
    base, edited = tiny_model(family), tiny_model(family)
    path, module = list(linear_maps(edited).items())[-1]
    with torch.no_grad():
        module.weight.add_(1.0)
    change = change_of(edited, base)
    assert [name for name, matrix in change.items() if matrix.any()] == [path]
    assert change[path].shape == output_weight(module).shape
    assert cosine(change, change) == pytest.approx(1) and cosine(change, change_of(base, base)) is None
