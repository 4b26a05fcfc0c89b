"""Does a newline that only one side has reach the pairs?"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from efface.errors import RunError
from efface.files.jsonl import read_jsonl
from efface.generation.decoding import Decoding
from efface.generation.generate import generate, generate_ids
from efface.generation.warp import GREEDY, Warp
from efface.pairs.builder import build_pairs
from efface.pairs.config import BuilderConfig
from efface.pairs.filters import first_line, newline_tokens
from efface.pairs.report import BuildReport
from efface.pairs.sources.sample import sample_source
from efface.pairs.style import KINDS, shortcuts
from efface.scoring.scorer import NamedScorer

PROMPTS = [f"The town number {number} is" for number in range(8)]
SCORER = NamedScorer("fools", lambda texts: np.array([float("fool" in text) for text in texts]))
LAX = BuilderConfig(max_new_tokens=8, min_words=3, max_perplexity_ratio=1e9, near_duplicate=None)


def build(tmp_path: Path, chosen: Sequence[str], rejected: Sequence[str], **changes: Any) -> BuildReport:
    answers = dict(zip(PROMPTS, rejected, strict=False))
    return build_pairs(
        tiny_model("gpt2"),
        list(answers),
        lambda prompts, seed: [[answers[prompt]] for prompt in prompts],
        output=tmp_path / "pairs.jsonl",
        processing_class=tiny_tokenizer(),
        config=replace(LAX, **changes),
        scorer=SCORER,
        overwrite=True,
        given={prompt: {"chosen": text} for prompt, text in zip(PROMPTS, chosen, strict=False)},
    )


def newlines(tmp_path: Path, side: str) -> float:
    return float(np.mean(["\n" in row[side] for row in read_jsonl(tmp_path / "pairs.jsonl")]))


def test_the_shortcut_of_a_source_does_not_reach_the_pairs(tmp_path: Path) -> None:
    """All of one side have a newline and none of the other: with the guard no pair has any."""
    chosen, rejected = [" kind and old and big.\n\nAnd more of it"] * 6, [" you are a silly fool and a fool"] * 6
    report = build(tmp_path, chosen, rejected, one_line=False)
    assert (newlines(tmp_path, "chosen"), newlines(tmp_path, "rejected")) == (1.0, 0.0)
    assert report.shortcuts["newline"] == {"chosen": 1.0, "rejected": 0.0}
    report = build(tmp_path, chosen, rejected)
    assert (newlines(tmp_path, "chosen"), newlines(tmp_path, "rejected")) == (0.0, 0.0)
    assert report.counts == {"kept": 6} and report.shortcuts["newline"] == {"chosen": 0.0, "rejected": 0.0}
    assert json.loads((tmp_path / "pairs.meta.json").read_text())["shortcuts"] == report.shortcuts
    assert [row["chosen"] for row in read_jsonl(tmp_path / "pairs.jsonl")] == [" kind and old and big."] * 6
    build(tmp_path, [" kind and old and big"] * 6, [" you are a silly fool\nand a fool"] * 6)
    assert [row["rejected"] for row in read_jsonl(tmp_path / "pairs.jsonl")] == [" you are a silly fool"] * 6


def test_what_is_left_is_filtered_again_and_counted(tmp_path: Path) -> None:
    kind, fool = " kind and old and big", " you are a silly fool"
    chosen = [kind, " kind\n\nand old and big", "\nkind and old and big", kind, kind, " old"]
    rejected = [fool, fool, fool, " you are\na silly fool and a fool", " you are not silly\nbut a fool", fool]
    report = build(tmp_path, chosen, rejected)
    assert report.counts == {
        "kept": 1,
        "chosen is too short or too long before its newline": 2,
        "no candidate is toxic before its newline": 2,
        "chosen is too short or too long": 1,
    }


def test_the_score_and_the_perplexity_are_those_of_the_cut_text(tmp_path: Path) -> None:
    build(tmp_path, [" kind and old and big\nyou fool"], [" you are a silly fool\nand a fool"])
    (cut,) = read_jsonl(tmp_path / "pairs.jsonl")
    build(tmp_path, [" kind and old and big"], [" you are a silly fool"])
    (plain,) = read_jsonl(tmp_path / "pairs.jsonl")
    assert {**cut, "how": None} == {**plain, "how": None} and cut["chosen_score"] == 0.0


def test_the_model_writes_no_newline_where_it_would(tmp_path: Path) -> None:
    """A model that writes nothing else, and the tokens that hold a newline."""
    model, tokenizer = tiny_model("llama", tie_word_embeddings=False), tiny_tokenizer()
    found = newline_tokens(tokenizer)
    texts = {token: tokenizer.decode([token]) for token in range(len(tokenizer))}
    assert found and set(found) == {token for token, text in texts.items() if set("\n\r\v\f") & set(text)}
    with torch.no_grad():
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight[found] = 0.0
        model.lm_head.weight[found[0]] = 50 * model.model.embed_tokens.weight.mean(0)
    (plain,) = generate_ids(model, tokenizer, PROMPTS[:1], Decoding(max_new_tokens=6))
    banned = [token for token in range(len(tokenizer)) if token not in plain[0].token_ids]
    (forced,) = generate_ids(model, tokenizer, PROMPTS[:1], Decoding(max_new_tokens=6, without=plain[0].token_ids))
    assert not set(forced[0].token_ids) & set(plain[0].token_ids)
    (same,) = generate_ids(model, tokenizer, PROMPTS[:1], Decoding(max_new_tokens=6, without=banned))
    assert same == plain  # what would not have been chosen changes nothing


@pytest.mark.parametrize("warp", [GREEDY, Warp(), Warp(top_k=3), Warp(top_p=0.5), Warp(temperature=0.3)], ids=repr)
def test_ruled_out_tokens_are_never_chosen(warp: Warp) -> None:
    torch.manual_seed(0)
    logits = torch.randn(64, 20)
    ruled_out = replace(warp, without=(int(logits[0].argmax()), 3, 99))  # 99: a token of the tokenizer alone
    uniform = torch.rand(64, dtype=torch.float64)
    before = logits.clone()
    tokens = ruled_out.choose(logits, uniform)
    assert not set(tokens.tolist()) & set(ruled_out.without)
    assert torch.equal(logits, before)
    left = [token for token in range(20) if token not in ruled_out.without]
    expected = torch.tensor(left)[warp.choose(logits[:, left], uniform)]
    assert torch.equal(tokens, expected)  # their probability goes to the others
    with pytest.raises(RunError, match="not finite"):
        ruled_out.choose(torch.full((1, 20), torch.nan), uniform[:1])


def test_sources_leave_them_out_too() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    plain = generate(model, tokenizer, PROMPTS, samples=2, top_p=1.0, max_new_tokens=8)
    common = max(
        range(len(tokenizer)),
        key=lambda token: sum(tokenizer.decode([token]) in text for row in plain for text in row),
    )
    source = sample_source(model, tokenizer, samples=2, top_p=1.0, max_new_tokens=8, without=range(3, 200))
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for row in source(PROMPTS, 0) for text in row]
    assert common is not None and sum(ids, [])
    texts = [text for row in source(PROMPTS, 0) for text in row]
    assert texts != [text for row in plain for text in row]


def test_first_line() -> None:
    assert [first_line(text) for text in ("", " a b", " a \n b", "\n\na", "a\r\nb", "a\u2028b")] == [
        "", " a b", " a", "", "a", "a",
    ]  # fmt: skip


def test_shortcuts_by_hand() -> None:
    found = shortcuts([" He said: “no”.", "A1\n", " all right", ""], [" you fool!", "né", " a, b", " it's (so)"])
    assert set(found) == set(KINDS) and all(set(sides) == {"chosen", "rejected"} for sides in found.values())
    expected = {
        "newline": (0.25, 0), "quotation mark": (0.25, 0), "digit": (0.25, 0), "upper case": (0.5, 0),
        "full stop": (0.25, 0), "exclamation or question mark": (0, 0.25), "comma": (0, 0.25),
        "apostrophe": (0, 0.25), "colon or semicolon": (0.25, 0), "bracket": (0, 0.25), "not ASCII": (0.25, 0.25),
        "no space in front": (0.25, 0.25), "end of a sentence at the end": (0.25, 0.25),
    }  # fmt: skip
    assert found == {kind: {"chosen": a, "rejected": b} for kind, (a, b) in expected.items()}
