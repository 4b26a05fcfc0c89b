"""Is F1 that of generated tokens against the true continuation, on prompts that are always the same?"""

from dataclasses import asdict

import pytest
import torch
from tiny import BOS_ID, tiny_model, tiny_tokenizer

from efface.errors import UserError
from efface.evaluation.f1 import continuation_f1, overlap
from efface.generation.decoding import Decoding
from efface.generation.generate import generate_ids

SENTENCE = "The history of the town is the history of its river and its people, they said in the spring. "
DOCUMENTS = [f" = Title = \n{SENTENCE * 2}\n\n{'It is ' + SENTENCE * 2}", f"Short.\n{'Then ' + SENTENCE * 2}"]
SMALL = {"prompt_tokens": 8, "max_new_tokens": 6}


def test_overlap_by_hand() -> None:
    # 7 is shared twice, 1 once: 3 of 4 predicted tokens, 3 of 5 true ones.
    assert overlap([7, 7, 7, 1], [7, 1, 7, 2, 3]) == (0.75, 0.6, pytest.approx(2 * 0.75 * 0.6 / 1.35))
    assert overlap([1, 2], [2, 1]) == (1.0, 1.0, 1.0)
    assert overlap([1], [2]) == overlap([], [2]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("add_bos", [False, True])
def test_prompts_are_the_beginnings_of_paragraphs(add_bos: bool) -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer(add_bos=add_bos)
    found = continuation_f1(model, tokenizer, DOCUMENTS, **SMALL)
    paragraphs = [SENTENCE * 2, "It is " + SENTENCE * 2, "Then " + SENTENCE * 2]
    expected = []
    for paragraph in paragraphs:
        ids = tokenizer(paragraph.strip())["input_ids"]
        assert (ids[0] == BOS_ID) is add_bos
        with torch.no_grad():
            written = model.generate(torch.tensor([ids[:8]]), max_new_tokens=6, do_sample=False)[0, 8:].tolist()
        expected.append(overlap([token for token in written if token > BOS_ID + 1], ids[8:14]))
    assert found.n_prompts == 3
    means = [sum(column) / 3 for column in zip(*expected, strict=True)]
    assert [found.precision, found.recall, found.f1] == pytest.approx(means)
    assert found == continuation_f1(model, tokenizer, DOCUMENTS, batch_size=1, **SMALL)
    assert all(low <= value <= high for (low, high), value in
               zip(found.ci95.values(), (found.precision, found.recall, found.f1), strict=True))  # fmt: skip


def test_a_model_that_knows_the_text_has_a_f1_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    asked = {}

    def recite(model: object, processing_class: object, prompts: list[str], decoding: Decoding, **_: object) -> object:
        asked.update(asdict(decoding), prompts=prompts)
        rows = generate_ids(tiny_model("gpt2"), tokenizer, prompts, Decoding(max_new_tokens=1, max_prompt_tokens=8))
        for row, prompt in zip(rows, prompts, strict=True):
            row[0].token_ids = [*tokenizer(prompt)["input_ids"][8:14], tokenizer.eos_token_id]
        return rows

    monkeypatch.setattr("efface.evaluation.f1.generate_ids", recite)
    found = continuation_f1(tiny_model("gpt2"), tokenizer, DOCUMENTS * 5, prompts=5, **SMALL)
    assert (found.precision, found.recall, found.f1) == (1.0, 1.0, 1.0)
    assert found.ci95["f1"] == [1.0, 1.0] and found.n_prompts == 5
    assert (asked["max_prompt_tokens"], asked["truncation"], asked["max_new_tokens"]) == (8, "first", 6)
    # Evenly spread over the fifteen paragraphs: every third.
    assert asked["prompts"] == [(SENTENCE * 2).strip()] * 5


def test_f1_refuses() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    with pytest.raises(
        UserError, match=r"none of the 1 paragraphs has 52 tokens \(32 for the prompt, 20 that follow\)"
    ):
        continuation_f1(model, tokenizer, ["Too short."])
    with pytest.raises(UserError, match="prompts=0, prompt_tokens=32: both must be at least 1"):
        continuation_f1(model, tokenizer, DOCUMENTS, prompts=0)
