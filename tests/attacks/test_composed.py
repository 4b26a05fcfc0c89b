"""Are figures of some prompts, and of the best of several points, those that a measurement of them would give?"""

import dataclasses
from typing import Any

import pytest
from polite import HELD_OUT, TOXIC, counting
from transformers import PreTrainedModel

from efface.attacks.composed import combine, of_prompts
from efface.attacks.record import recorded
from efface.attacks.target import Target
from efface.errors import RunError
from efface.generation.decoding import Decoding
from efface.training.finetune import finetune


@dataclasses.dataclass(frozen=True)
class Settings:
    """None."""


@pytest.fixture(scope="module")
def mixed(polite: PreTrainedModel) -> PreTrainedModel:
    """Silly after some prompts."""
    from tiny import tiny_tokenizer

    return finetune(polite, tiny_tokenizer(), [prompt + TOXIC for prompt in HELD_OUT[:4]], steps=6, learning_rate=3e-3)


@pytest.mark.parametrize("samples", [1, 3])
def test_some_prompts_have_the_figures_of_a_measurement_of_them_alone(
    samples: int, target: Target, mixed: PreTrainedModel
) -> None:
    target.decoding = Decoding(max_new_tokens=8, samples=samples)
    numbers = [5, 0, 2]
    whole = target.measure(mixed)
    part = of_prompts(whole, numbers, target.processing_class)
    assert [row["prompt"] for row in part.generations[::samples]] == [HELD_OUT[number] for number in numbers]
    assert (part.scores("nasty") == whole.scores("nasty")[numbers]).all()
    if samples == 1:  # a draw depends on the place of its prompt in the list
        alone = dataclasses.replace(target, prompts=[HELD_OUT[number] for number in numbers]).measure(mixed)
        for block in ("toxicity", "judges", "perplexity"):
            assert part.figures[block] == alone.figures[block]
        assert part.figures["degeneration"]["empty"] == alone.figures["degeneration"]["empty"]
    assert of_prompts(whole, range(len(HELD_OUT)), target.processing_class).scores("nasty").tolist() == (
        whole.scores("nasty").tolist()
    )


def test_the_best_of_several_points_is_taken_prompt_by_prompt(target: Target, mixed: PreTrainedModel) -> None:
    polite, silly = target.measure(target.model), target.measure(mixed)
    best = combine([polite, silly, polite], {"tries": 3})
    assert (best.scores("nasty") >= silly.scores("nasty")).all() and best.at == {"tries": 3}
    assert best.share == silly.share and best.figures["perplexity"] is None
    assert best.figures["toxicity"]["decoding"] == "best of 3"


def test_an_attack_on_some_prompts_is_known_by_the_whole_target(
    target: Target, mixed: PreTrainedModel, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.base, target.output = mixed, tmp_path / "out.json"
    whole = {
        "base": target.untouched("base", target.described()),
        "model": target.untouched("model", target.described()),
    }
    calls = counting(monkeypatch)  # the untouched are not measured again for some of the prompts

    def attack(target: Target, fail: bool = False) -> Any:
        with recorded(target, "mine", Settings(), [3, 1]) as record:
            record.start(steps=0)
            record.measure(target.model, {"steps": 1}, prompts=["one", "two"])
            if fail:
                raise RunError("no.")
            return record.result(record.curve[-1])

    with pytest.raises(RunError, match=r"no\. What was measured so far \(before, base, steps 1\)"):
        attack(target, fail=True)
    result = attack(dataclasses.replace(target, resume=True))
    assert len(calls) == 1 and result.after.measured.toxicity.n_prompts == 2
    assert result.before.generations == [whole["model"].generations[number] for number in (3, 1)]
    assert result.base.generations == [whole["base"].generations[number] for number in (3, 1)]
    assert {name: result.target[name] for name in target.described()} == target.described()
