"""Are parallel texts taken whole, is it told what became of each row, and do the pairs train?"""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model, tiny_tokenizer

from efface.commands.pairs import _page
from efface.data.pair_tokens import tokenize_pair
from efface.errors import UserError
from efface.files.jsonl import read_jsonl
from efface.pairs.builder import build_pairs
from efface.pairs.config import BuilderConfig
from efface.pairs.parallel import load_parallel
from efface.pairs.sources.corpus import CorpusSource
from efface.scoring.scorer import NamedScorer

FOOLS = NamedScorer("fools", lambda texts: [0.9 if "fool" in text else 0.1 for text in texts])
ROWS = [
    {"toxic": "you fool go home", "neutral": "please go home"},  # lower case, no full stop, nothing in common
    {"toxic": "what fools live here", "neutral": "what people live here"},
    {"toxic": "what fools live here", "neutral": "who lives here"},  # the same toxic text
    {"toxic": "all alike", "neutral": "all alike"},
    {"toxic": "no fool has an answer", "neutral": " "},
    {"text": "not a parallel row, you fool"},
    {"toxic": "nobody is one at all", "neutral": "nobody is"},  # which the judge calls benign
]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return str(path)


def test_what_becomes_of_each_row(file: str) -> None:
    corpus = load_parallel([file], tiny_tokenizer(), max_tokens=100)
    assert corpus.prompts == ["you fool go home", "what fools live here", "nobody is one at all"]
    assert corpus.given["you fool go home"] == {
        "prompt": "",
        "chosen": "please go home",
        "how": {"split": "never"},
    }
    assert corpus.rows_read == sum(corpus.counts.values()) == len(ROWS)
    assert corpus.counts == {
        "whole": 3,
        "toxic text is there already": 1,
        "both sides are equal": 1,
        "row has no neutral text beside a toxic one": 2,
    }


def test_both_sides_are_cut_to_tokens(file: str) -> None:
    corpus = load_parallel([file], tiny_tokenizer(), max_tokens=5)
    for toxic, given in corpus.given.items():
        assert len(tiny_tokenizer()(toxic)["input_ids"]) <= 5
        assert len(tiny_tokenizer()(given["chosen"])["input_ids"]) <= 5


def build(file: str, output: Path, **settings: Any) -> Any:
    config = BuilderConfig(max_new_tokens=40, min_words=2, max_perplexity_ratio=1e9, **settings)
    source = CorpusSource(toxic_text=(file,), split="never")
    return build_pairs(
        tiny_model("gpt2"), None, source, output=output, processing_class=tiny_tokenizer(), config=config, scorer=FOOLS
    )


@pytest.mark.parametrize("compare", [True, False])
def test_whole_texts_become_pairs_that_train(compare: bool, file: str, tmp_path: Path) -> None:
    output = tmp_path / "pairs.jsonl"
    report = build(file, output, compare_with_samples=compare)
    rows = read_jsonl(output)
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == [
        ("", "please go home", "you fool go home"),
        ("", "what people live here", "what fools live here"),
    ]
    assert report.counts == {"kept": 2, "no candidate is toxic": 1} and report.n_prompts == 3
    for row in rows:
        pair = tokenize_pair(row, tiny_tokenizer())
        assert pair.prompt_ids and pair.chosen_ids and pair.rejected_ids
    printed = str(_page(output, report))
    assert "7 rows read" in printed and "2  row has no neutral text beside a toxic one" in printed
    assert "--split never" not in printed


def test_who_splits_parallel_texts_is_told_that_they_need_none(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    whole = {"toxic": "You and all the others in town are great fools.", "neutral": "All are great."}
    file.write_text("\n".join(map(json.dumps, [*ROWS[:2], whole, *ROWS[3:5]])))
    config = BuilderConfig(max_new_tokens=100, min_words=3, max_perplexity_ratio=1e9, compare_with_samples=False)
    report = build_pairs(
        tiny_model("gpt2"),
        None,
        CorpusSource(toxic_text=(str(file),)),
        output=tmp_path / "pairs.jsonl",
        processing_class=tiny_tokenizer(),
        config=config,
        scorer=FOOLS,
    )
    printed = str(_page(tmp_path / "pairs.jsonl", report))
    assert "5 rows read" in printed and "4  sentence does not look edited" in printed
    assert "--split never takes them whole" in " ".join(printed.split())


def test_refused(tmp_path: Path, file: str) -> None:
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text(json.dumps(ROWS[5]))
    with pytest.raises(UserError, match="none of the 1 rows of .*labelled.jsonl has both"):
        load_parallel([str(labelled)], tiny_tokenizer())
    source = CorpusSource(toxic_text=(file,), split="always")
    with pytest.raises(UserError, match="split='always': it is one of auto, never"):
        build_pairs(
            tiny_model("gpt2"),
            None,
            source,
            output=tmp_path / "out.jsonl",
            processing_class=tiny_tokenizer(),
            scorer=FOOLS,
        )
