"""Do protocols and sources of prompts mean what the papers say?

Of: evaluation/prompt_sets.py
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_model, tiny_tokenizer

from efface.errors import UserError
from efface.evaluation.measure import evaluate
from efface.evaluation.prompt_sets import load_prompts
from efface.evaluation.settings import PromptSet
from efface.generation.decoding import Decoding
from efface.generation.generate import generate
from efface.model.fingerprint import tokenizer_fingerprint
from efface.scoring.scorer import NamedScorer

NEVER = NamedScorer("never", lambda texts: np.zeros(len(texts)))


# Protocols


def test_the_protocols_are_those_of_the_papers() -> None:
    lee, gehman = Decoding.by_protocol("lee"), Decoding.by_protocol("gehman")
    assert str(lee) == "greedy" and (lee.samples, lee.max_new_tokens) == (1, 20)
    assert (lee.max_prompt_tokens, lee.truncation) == (32, "first")
    assert str(gehman) == "nucleus(top_p=0.9, temperature=1.0)"
    assert (gehman.samples, gehman.max_new_tokens, gehman.max_prompt_tokens) == (25, 20, None)


def test_explicit_settings_override_a_protocol() -> None:
    found = Decoding.by_protocol("gehman", samples=4, top_p=None, seed=3)
    assert (found.samples, found.top_p, found.seed) == (4, 0.9, 3)
    assert Decoding.by_protocol("gehman", samples=1).sampled
    assert not Decoding.by_protocol("gehman", do_sample=False, samples=1).sampled
    assert Decoding.by_protocol("lee", samples=2).sampled
    assert Decoding.by_protocol(max_new_tokens=5).max_new_tokens == 5
    with pytest.raises(UserError, match="protocol 'leee' is unknown. There are: lee, gehman"):
        Decoding.by_protocol("leee")


def test_settings_without_effect_are_recorded_as_none() -> None:
    greedy = Decoding.by_protocol("lee", seed=3).to_dict()
    assert greedy == Decoding.by_protocol("lee", seed=4, top_p=0.5).to_dict()
    assert (greedy["do_sample"], greedy["top_p"], greedy["seed"], greedy["truncation"]) == (False, None, None, "first")
    sampled = Decoding.by_protocol("gehman", seed=3).to_dict()
    assert (sampled["do_sample"], sampled["top_p"], sampled["seed"], sampled["truncation"]) == (True, 0.9, 3, None)


def test_later_settings_are_recorded_only_where_they_have_an_effect() -> None:
    """Records of before they were settings have no such keys, and are compared with new ones."""
    plain = Decoding(samples=2).to_dict()
    assert not {"top_k", "without", "protocol"} & plain.keys()
    assert Decoding(top_k=5).to_dict() == Decoding().to_dict()  # greedy
    found = Decoding(samples=2, top_k=5, without=[3, 4], protocol="gehman")  # type: ignore[arg-type]
    assert found.to_dict() == plain | {"top_k": 5, "without": [3, 4]}
    assert found == Decoding(samples=2, top_k=5, without=(3, 4))  # whatever they were made from


def test_evaluate_follows_and_records_the_protocol() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    prompts = ["The weather in the old town was cold and the people there were silent. " * 3, "You"]
    run: dict[str, Any] = {"processing_class": tokenizer, "scorer": NEVER}
    found = evaluate(model, prompts, decoding=Decoding.by_protocol("lee"), **run)
    written = generate(model, tokenizer, prompts, max_prompt_tokens=32, truncation="first")
    assert [row["continuation"] for row in found.generations] == [row[0] for row in written]
    assert found.settings == {
        "protocol": "lee",
        "prompts": None,
        "decoding": Decoding.by_protocol("lee").to_dict(),
        "judges": {NEVER.name: None},
        "text": None,
        "tokenizer": tokenizer_fingerprint(tokenizer),
    }
    how = Decoding.by_protocol("gehman", samples=3, max_prompt_tokens=20)
    sampled = evaluate(model, PromptSet(prompts, limit=1), decoding=how, **run)
    assert sampled.scores.shape == (1, 3) and sampled.settings["decoding"]["max_prompt_tokens"] == 20
    chat = evaluate(model, prompts[1:], decoding=Decoding.by_protocol("lee", chat=True), **run)
    assert chat.generations[0]["continuation"] == generate(model, tokenizer, ["You"], chat=True)[0][0]
    assert chat.settings["decoding"]["chat"] is True


# Prompts


def nested(text: Any, toxicity: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": {"text": text, "toxicity": toxicity}, "continuation": {"text": " and"}, **more}


def flat(text: Any, toxicity: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": text, "prompt_toxicity": toxicity, "continuation": " and", **more}


def rows(form: Any) -> list[dict[str, Any]]:
    return [
        form("one", 0.1, challenging=False),
        form("two", 0.9, challenging=True),
        form("three", 0.5, challenging=False),
        form("four", 0.2, challenging=True),
        form("five", None, challenging=False),
    ]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


@pytest.mark.parametrize("form", [nested, flat])
def test_parts_of_real_toxicity_prompts_from_a_file(tmp_path: Path, form: Any) -> None:
    path = write(tmp_path / "rtp.jsonl", rows(form))
    assert load_prompts(f"rtp:challenging@{path}") == ["two", "four"]
    assert load_prompts(f"rtp:nontoxic@{path}") == ["one", "four"]
    assert load_prompts(f"rtp:toxic@{path}") == ["two", "three"]
    assert load_prompts(path) == load_prompts(str(path)) == ["one", "two", "three", "four", "five"]
    found = evaluate(tiny_model("gpt2"), f"rtp:challenging@{path}", processing_class=tiny_tokenizer(), scorer=NEVER)
    assert [row["prompt"] for row in found.generations] == ["two", "four"]
    assert found.settings["prompts"] == f"rtp:challenging@{path}"


@pytest.mark.parametrize(
    ("part", "row", "message"),
    [
        (
            "challenging",
            {"prompt": 3, "challenging": True},
            "'prompt' must be a text or hold one as 'text', but it is 3",
        ),
        ("challenging", nested(None, 0.1, challenging=True), "'prompt' must be a text or hold one"),
        ("challenging", {"prompt": "a"}, "'challenging' must be true or false, but it is None"),
        ("nontoxic", {"prompt": "a"}, "'prompt_toxicity' must be a score or null, but it is 'missing'"),
        ("nontoxic", {"prompt": {"text": "a"}}, "'toxicity' must be a score or null, but it is 'missing'"),
        ("nontoxic", nested("a", "high"), "'toxicity' must be a score or null, but it is 'high'"),
    ],
)
def test_malformed_prompts_are_named_with_file_and_line(tmp_path: Path, part: str, row: Any, message: str) -> None:
    path = write(tmp_path / "rtp.jsonl", [*rows(flat), row])
    with pytest.raises(UserError, match=rf"rtp\.jsonl:6: {message}"):
        load_prompts(f"rtp:{part}@{path}")


def test_prompts_that_are_not_there(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(UserError, match=r"empty\.jsonl has no challenging prompts among its 0 rows"):
        load_prompts(f"rtp:challenging@{empty}")
    none = write(tmp_path / "none.jsonl", [flat("a", 0.9, challenging=False)])
    with pytest.raises(UserError, match=r"none\.jsonl has no nontoxic prompts among its 1 rows"):
        load_prompts(f"rtp:nontoxic@{none}")
    with pytest.raises(UserError, match=r"absent\.jsonl' does not exist"):
        load_prompts("rtp:nontoxic@absent.jsonl")
    with pytest.raises(UserError, match="prompts 'rtp:all' are unknown. There are: rtp:challenging, rtp:nontoxic"):
        load_prompts("rtp:all")


def test_the_hub_is_asked_and_its_absence_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, split: str) -> list[dict[str, Any]]:
        assert (name, split) == ("allenai/real-toxicity-prompts", "train")
        return rows(nested)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert load_prompts("rtp:challenging") == ["two", "four"]

    def fail(name: str, split: str) -> Any:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(UserError) as caught:
        load_prompts("rtp:nontoxic")
    assert str(caught.value).startswith(
        "rtp:nontoxic needs the dataset allenai/real-toxicity-prompts of the Hugging Face"
    )
    assert "(no route). Pass rtp:nontoxic@FILE" in str(caught.value) and "\n" not in str(caught.value)
