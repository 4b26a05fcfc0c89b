"""Are labelled texts read and labelled token by token, and are the states those of each text alone?"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny import tiny_model, tiny_tokenizer

from efface.analysis.marked import MarkedText, load_marked, marked_states
from efface.analysis.states import pooled_states, token_states
from efface.errors import RunError, UserError
from efface.model.blocks import capture_residuals

SPANS = "He is a silly fool of the old town."


def texts() -> list[MarkedText]:
    return [
        MarkedText.whole(" bought bread, apples and a little cheese.", False, "market", "She went to the market and"),
        MarkedText(SPANS, ((8, 13), (14, 18)), SPANS),
        MarkedText.whole("Silly!", True, "silly"),
        MarkedText.whole(" said silly things", True, "market", "She went to the market and"),
    ]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_marked_states_are_those_of_each_text_on_its_own(family: str) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    found = marked_states(model, tokenizer, texts(), [0, -1], batch_size=2)
    assert list(found) == [0, 1] and (found[0].labels == found[1].labels).all()
    hidden, ids, labels, groups = [], [], [], []
    for text, group in zip(texts(), (0, 1, 2, 0), strict=True):
        lead = tokenizer(text.before)["input_ids"] or [tokenizer.bos_token_id]
        own = tokenizer(text.text)["input_ids"]
        with torch.no_grad(), capture_residuals(model, [1]) as residuals:
            model(input_ids=torch.tensor([lead + own]))
        hidden.append(residuals[1][0, len(lead) :].numpy())
        ids += own
        labels.append(len(own) * [int(bool(text.spans))])
        groups += len(own) * [group]
    np.testing.assert_allclose(found[1].hidden, np.concatenate(hidden), atol=1e-4)
    assert found[1].token_ids.tolist() == ids and found[1].pairs.tolist() == groups
    offsets = tokenizer(SPANS, return_offsets_mapping=True)["offset_mapping"]
    labels[1] = [int(any(max(a, left) < min(b, right) for a, b in ((8, 13), (14, 18)))) for left, right in offsets]
    assert found[1].labels.tolist() == sum(labels, [])
    assert 0 < sum(labels[1]) < len(labels[1])


def test_a_long_text_is_cut() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    (found,) = marked_states(model, tokenizer, [MarkedText.whole("fool " * 300, True, "a")], [0]).values()
    assert len(found.labels) == 64
    (found,) = marked_states(model, tokenizer, texts()[:1], [0], max_tokens=3).values()
    assert len(found.labels) == 3


def test_files_of_three_forms_are_read(tmp_path: Path) -> None:
    table = tmp_path / "pairs.tsv"
    lines = ["toxic\tneutral", "he is a silly man\the is a nice man", "silly\tnice", "he is a silly man\tother"]
    table.write_text("\n".join(lines), encoding="utf-8")
    found = load_marked(table, 2)
    assert [(text.before, text.text, bool(text.spans)) for text in found] == [
        ("he is a", " nice man", False),
        ("he is a", " silly man", True),
        ("", "nice", False),
        ("", "silly", True),
    ]
    assert len({text.group for text in found}) == 2
    rows = [
        {"text": SPANS, "spans": [8, 9, 10]},
        {"text": "toxic to others", "spans": []},
        {"text": "x" * 251, "spans": [1]},
    ]
    spans = tmp_path / "spans.jsonl"
    spans.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert load_marked(spans, 1) == [MarkedText(SPANS, ((8, 9), (9, 10), (10, 11)), SPANS)]
    whole = tmp_path / "whole.jsonl"
    whole.write_text("\n".join(json.dumps({"text": f"text {n}", "toxic": n % 2}) for n in range(9)), encoding="utf-8")
    found = load_marked(whole, 5, seed=1)
    assert load_marked(whole, 5, seed=1) == found != load_marked(whole, 5, seed=2) and len(found) == 5
    assert all(bool(text.spans) == int(text.text[-1]) % 2 for text in found)
    with pytest.raises(UserError, match="has 9 labelled texts or pairs"):
        load_marked(whole, 10)


def test_what_cannot_be_labelled_or_measured_is_refused() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    with pytest.raises(UserError, match="layer 2 does not exist"):
        marked_states(model, tokenizer, texts(), [2])
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="layer 1: a hidden state is not finite"):
        marked_states(model, tokenizer, texts(), [1])

    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="does not tell where its tokens stand"):
        marked_states(model, Slow(), texts(), [0])  # type: ignore[arg-type]


def test_virtual_tokens_are_refused_wherever_states_are_read() -> None:
    """The body that is asked does not see them, or sees the text behind them where its own tokens are looked for."""
    tokenizer = tiny_tokenizer()
    row = {"prompt": "The town", "chosen": " is old", "rejected": " is silly"}
    model = get_peft_model(tiny_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(UserError, match="type PROMPT_TUNING, whose virtual tokens cannot be merged"):
        token_states(model, tokenizer, [row], [1])
    with pytest.raises(UserError, match="type PROMPT_TUNING, whose virtual tokens cannot be merged"):
        marked_states(model, tokenizer, texts(), [1])
    with pytest.raises(UserError, match="type PROMPT_TUNING, whose virtual tokens cannot be merged"):
        pooled_states(model, tokenizer, ["The town"], [1])
    lora = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert len(token_states(lora, tokenizer, [row], [1])[1].hidden), "an adapter in the weights is read"
    assert hasattr(lora, "peft_config"), "and stays"
