"""Is a tokenizer larger than its model refused where that matters, and is padding put elsewhere where it does not?"""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model, tiny_tokenizer

from efface.attacks.relearn import RelearnSettings, relearn
from efface.attacks.target import Target
from efface.errors import UserError
from efface.evaluation.measure import evaluate
from efface.generation.decoding import Decoding
from efface.methods.dpo import DPOConfig, DPOTrainer
from efface.model.load import load_model
from efface.model.save import save_model
from efface.model.vocabulary import check_vocabulary, embedding_rows, pad_id
from efface.scoring.scorer import NamedScorer

ROOT = Path(__file__).resolve().parents[2]
ROWS = [{"prompt": f"The man number {i}", "chosen": " is silent" * i, "rejected": " is silly"} for i in range(1, 5)]


def padded_outside() -> Any:
    """Its [PAD] is 300; the models have rows 0 to 299."""
    tokenizer = tiny_tokenizer(pad_token=None)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 300
    return tokenizer


def test_an_id_to_pad_with() -> None:
    model = tiny_model("llama")
    assert embedding_rows(model) == 300
    assert pad_id(tiny_tokenizer(), model) == 0
    assert pad_id(tiny_tokenizer(pad_token=None), model) == 2
    assert pad_id(tiny_tokenizer(pad_token=None, eos_token=None), model) == 0
    assert pad_id(padded_outside(), model) == 2


def test_a_padding_token_without_a_row_is_no_obstacle(tmp_path: Path) -> None:
    save_model(tiny_model("llama"), padded_outside(), tmp_path / "model")
    model, tokenizer = load_model(tmp_path / "model")
    scorer = NamedScorer("half", lambda texts: [0.5] * len(texts))
    prompts, text = ["The man said that he", "You"], ["The weather was cold.", "She went to the market and the town."]
    found = evaluate(model, prompts, processing_class=tokenizer, scorer=scorer, text=text, max_new_tokens=4)
    same = evaluate(model, prompts, processing_class=tiny_tokenizer(), scorer=scorer, text=text, max_new_tokens=4)
    assert found.to_dict()["perplexity"] == same.to_dict()["perplexity"]
    assert [row["token_ids"] for row in found.generations] == [row["token_ids"] for row in same.generations]
    args = DPOConfig(str(tmp_path / "out"), max_steps=1, use_cpu=True, per_device_train_batch_size=4, report_to="none")
    DPOTrainer(str(tmp_path / "model"), args, ROWS).train()
    target = Target(
        model, tokenizer, prompts=prompts, rows=ROWS, scorers=[scorer], decoding=Decoding(max_new_tokens=4)
    )
    relearn(target, RelearnSettings(steps="1"))


def test_a_word_without_a_row_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["silly"])
    save_model(tiny_model("llama"), tokenizer, tmp_path)
    match = r"model '.*' has 300 rows of embeddings, but its tokenizer uses ids up to 300 \('silly' is 300\). Pass the"
    with pytest.raises(UserError, match=match):
        load_model(tmp_path)
    with pytest.raises(UserError, match="the model has 300 rows of embeddings"):
        DPOTrainer(tiny_model("llama"), DPOConfig(str(tmp_path), use_cpu=True), ROWS, processing_class=tokenizer)


def test_a_vocabulary_of_another_model_is_refused() -> None:
    with pytest.raises(UserError, match="has 250 rows of embeddings, but its tokenizer uses ids up to 299"):
        check_vocabulary(tiny_model("gpt2", vocab_size=250), tiny_tokenizer())
    check_vocabulary(tiny_model("gpt2", vocab_size=320), tiny_tokenizer())  # padded to a round number, as usual


def test_a_special_token_that_the_tokenizer_itself_puts_in_is_refused() -> None:
    model = tiny_model("gpt2")
    turn = tiny_tokenizer()
    turn.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    check_vocabulary(model, turn)  # it stands in no text
    turn.chat_template = "<|turn|>{{ messages[0]['content'] }}"
    with pytest.raises(UserError, match=r"\('<|turn|>' is 300\)"):
        check_vocabulary(model, turn)
    turn.chat_template = "{{ raise_exception('never') }}"  # reported where it is used
    check_vocabulary(model, turn)
    first = tiny_tokenizer(add_bos=True)
    rules = json.loads(first.backend_tokenizer.to_str())
    rules["post_processor"]["special_tokens"]["<bos>"]["ids"] = [300]
    rules["added_tokens"].append(dict(rules["added_tokens"][1], id=300, content="<start>"))
    first._tokenizer = type(first.backend_tokenizer).from_str(json.dumps(rules))
    with pytest.raises(UserError, match="'<start>' is 300"):
        check_vocabulary(model, first)


def test_nobody_pads_with_another_id() -> None:
    """A new caller that takes the tokenizer's own id would fail on such a model alone."""
    for file in (ROOT / "src" / "efface").rglob("*.py"):
        content = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(content)) if "pad_token_id" in content else ():
            read = isinstance(node, ast.Attribute) and node.attr == "pad_token_id" and isinstance(node.ctx, ast.Load)
            owner = ast.unparse(node.value) if isinstance(node, ast.Attribute) else ""
            allowed = file.name in ("vocabulary.py", "hf.py") or owner in ("self", "config")
            assert not read or allowed, f"{file.name}:{node.lineno}: pad with efface.model.vocabulary.pad_id"
