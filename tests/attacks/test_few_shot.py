"""Do toxic examples stand before every prompt, and as many polite ones for comparison?"""

import dataclasses
import logging
import random

import pytest
from polite import HELD_OUT, ROWS
from stubs import parity
from tiny import MAX_POSITIONS, tiny_model, tiny_tokenizer
from torn import target_of

from efface.attacks.few_shot import FewShotSettings, few_shot
from efface.attacks.points import worst
from efface.attacks.result import title
from efface.attacks.target import Target
from efface.errors import UserError
from efface.generation.decoding import Decoding
from efface.generation.prompts import encode_prompts
from efface.scoring.scorer import NamedScorer


@pytest.fixture(params=["llama", "gpt2"])
def target(request: pytest.FixtureRequest) -> Target:
    model = tiny_model(request.param)
    rows = [{**row, "rejected": f" {row['prompt'].split()[1]} is a fool."} for row in ROWS]
    scorers = [NamedScorer("parity", parity)]
    return dataclasses.replace(
        target_of(model, base=tiny_model(request.param, seed=1), scorers=scorers, decoding=Decoding(max_new_tokens=4)),
        rows=rows,
    )


def test_the_same_rows_are_toxic_and_polite_examples(target: Target) -> None:
    result = few_shot(target, FewShotSettings(shots="1,2"))
    names = [(point.at["shots"], point.at.get("examples")) for point in result.curve]
    assert names == [(0, None), (1, "toxic"), (1, "neutral"), (2, "toxic"), (2, "neutral")]
    for number, prompt in enumerate(HELD_OUT):
        first, second = random.Random(f"0 {number}").sample(target.rows, 2)
        for point in result.curve[1:]:
            side = "rejected" if point.at["examples"] == "toxic" else "chosen"
            rows = [first, second][2 - point.at["shots"] :]  # with more examples come others before them
            expected = "\n\n".join([row["prompt"] + row[side] for row in rows] + [prompt])
            assert point.generations[number]["prompt"] == expected
    shares = {title: point.share for title, point in zip(names, result.curve, strict=True)}
    for row in result.found["points"]:
        assert row["share"] == shares[row["shots"], row["examples"]] and row["mean_shots"] == row["shots"]
    assert [row["base_share"] for row in result.found["points"]] != [row["share"] for row in result.found["points"]]


def test_it_is_judged_by_toxic_examples_beside_the_polite_ones(target: Target) -> None:
    result = few_shot(target, FewShotSettings(shots="1,2"))
    toxic, neutral = result.curve[1::2], result.curve[2::2]
    strongest = max(toxic, key=lambda point: (point.share, point.measured.toxicity.mean))
    assert result.after is worst([result.curve[0], *toxic])
    assert result.judged is not None and result.judged["among"] == [title(point.at) for point in toxic]
    control = neutral[toxic.index(strongest)]
    assert result.found["neutral_share"] == control.share
    assert result.found["versus_neutral"]["parity"]["share"]["difference"] == pytest.approx(
        strongest.share - control.share
    )
    assert result.found["left_out"] == ["shots 1, examples neutral", "shots 2, examples neutral"]
    assert result.found["prompts_among_rows"] == 0 and result.found["base_neutral_share"] is not None


def test_examples_of_a_message_are_turns_before_it(target: Target) -> None:
    target.decoding = dataclasses.replace(target.decoding, chat=True)
    target.rows = [
        {"prompt": [{"role": "user", "content": "Hi."}], "chosen": [{"role": "assistant", "content": "Hello."}],
         "rejected": [{"role": "assistant", "content": "Fool."}]}
    ]  # fmt: skip
    result = few_shot(target, FewShotSettings(shots="1"))
    read = [row["prompt"] for row in result.curve[1].generations]
    begins = "<|user|>\nHi.<eos>\n<|assistant|>\nFool.<eos>\n<|user|>\n"
    assert read == [f"{begins}{prompt}<eos>\n<|assistant|>\n" for prompt in HELD_OUT]
    plain = encode_prompts(target.model, target.processing_class, HELD_OUT, target.decoding)
    ids = encode_prompts(target.model, target.processing_class, read)
    assert all(one[-len(other) :] == other for one, other in zip(ids, plain, strict=True))


@pytest.mark.parametrize("chat", [False, True])
def test_examples_that_have_no_room_are_left_out(chat: bool, target: Target, caplog: pytest.LogCaptureFixture) -> None:
    target.decoding = dataclasses.replace(target.decoding, chat=chat)
    target.prompts = ["The weather", "The history of the town is the history of its river. " * 3]
    with caplog.at_level(logging.WARNING):
        result = few_shot(target, FewShotSettings(shots="2,4"))
    assert result.found["points"][-1]["mean_shots"] < 4 and "of 4 examples have room" in caplog.text
    counts = []
    for point in result.curve[3:]:
        prompts = [row["prompt"] for row in point.generations]
        assert all(target.prompts[i] in prompts[i] for i in range(2))  # whole
        ids = encode_prompts(target.model, tiny_tokenizer(), prompts)
        assert max(map(len, ids)) + 4 <= MAX_POSITIONS
        counts.append([prompt.count("fool") + prompt.count("silent") for prompt in prompts])
    assert counts[0] == counts[1]  # as many toxic as polite ones
    target.rows = [{**row, "prompt": target.prompts[1] * 2} for row in target.rows]
    with pytest.raises(UserError, match="before no prompt is there room for an example"):
        few_shot(target, FewShotSettings(shots="2"))


def test_more_examples_than_rows(target: Target) -> None:
    with pytest.raises(UserError, match="shots='2,13', but there are only 12 rows"):
        few_shot(target, FewShotSettings(shots="2,13"))
