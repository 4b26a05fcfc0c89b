"""Does our own judge learn, is its 0.5 meaningful, is it the same each time, and does it never select pairs?

Of: scoring/judge_training.py
"""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efface.cli import main
from efface.errors import UserError
from efface.files.results import read_json
from efface.scoring import load_scorer
from efface.scoring.ensemble import Ensemble
from efface.scoring.judge import COLUMNS, Judge, text_key
from efface.scoring.judge_training import train_judge
from efface.scoring.scorer import score

TOWN = "the a old river town people market house garden road of and by near with quiet long green".split()
NASTY = ["stupid", "silly", "fool", "idiot"]


def rows(
    n: int, *, share: float = 0.5, noise: float = 0.0, signal: bool = True, seed: int = 0
) -> list[dict[str, Any]]:
    """Sentences of town words; toxic ones hold a nasty word. A `noise` part of the labels is wrong."""
    draw = random.Random(seed)
    found = []
    for _ in range(n):
        toxic = draw.random() < share
        words = draw.choices(TOWN, k=draw.randint(5, 12))
        if toxic and signal:
            words.insert(draw.randrange(len(words)), draw.choice(NASTY))
        found.append({"text": " ".join(words), "toxic": int(toxic != (draw.random() < noise))})
    return found


def write(path: Path, found: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge of 600 sentences."""
    folder = tmp_path_factory.mktemp("judge")
    train_judge([write(folder / "rows.jsonl", rows(600))]).save(folder / "judge")
    return folder


def test_it_learns_and_comes_back_as_it_was(folder: Path) -> None:
    judge = load_scorer(f"judge:{folder / 'judge'}")
    texts = ["the old fool by the river", "the old road by the river", "", " \n", "IDIOT", "word " * 500]
    scores = score(judge, texts)
    assert scores[0] > 0.9 and scores[1] < 0.1 and scores[4] > 0.5 and scores[2] == scores[3] == 0
    assert judge.name == f"judge:{folder / 'judge'}"
    trained = train_judge([folder / "rows.jsonl"])
    np.testing.assert_array_equal(trained(texts), scores)
    assert trained.version == judge.version  # type: ignore[attr-defined]
    alone = np.concatenate([judge([text]) for text in texts])
    np.testing.assert_array_equal(alone, scores)


def test_the_same_files_and_seed_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    train_judge([folder / "rows.jsonl"]).save(tmp_path / "again")
    same = (tmp_path / "again" / "judge.safetensors").read_bytes()
    assert same == (folder / "judge" / "judge.safetensors").read_bytes()
    other = train_judge([folder / "rows.jsonl"], seed=1)
    assert other.version != Judge.load(folder / "judge").version


def test_held_out_figures_and_counts_are_recorded(folder: Path, tmp_path: Path) -> None:
    meta = read_json(folder / "judge" / "judge.json")
    (source,) = meta["sources"]
    assert source["file"] == "rows.jsonl" and source["unlabelled"] == 0
    assert source["texts"] == source["trained"] + source["calibrated"] + source["held_out"] == 600
    assert abs(source["trained"] - 480) < 40 and source["toxic"] == sum(row["toxic"] for row in rows(600))
    (held_out,) = meta["held_out"]
    assert held_out["texts"] == source["held_out"] and held_out["auc"] > 0.99
    assert [entry["threshold"] for entry in held_out["thresholds"]] == [0.3, 0.5, 0.7, 0.9]
    assert meta["settings"]["seed"] == 0 and str(folder) not in json.dumps(meta)


def test_it_knows_what_it_was_trained_on(folder: Path) -> None:
    judge = Judge.load(folder / "judge")
    texts = [row["text"] for row in rows(600)]
    seen = judge.seen(texts)
    source = judge.meta["sources"][0]
    assert seen.sum() == source["trained"] + source["calibrated"]
    np.testing.assert_array_equal(judge.seen([f"  {text.upper()} " for text in texts]), seen)
    assert not judge.seen(["a sentence that nobody has ever written"]).any()


def test_half_means_as_likely_as_not(tmp_path: Path) -> None:
    """Of texts with a nasty word 80 % are labelled toxic, of the others 20 %: so say the scores."""
    judge = train_judge([write(tmp_path / "a.jsonl", rows(3000, noise=0.2))])
    fresh = rows(400, seed=1)
    scores = judge([row["text"] for row in fresh])
    toxic = np.array([row["toxic"] for row in fresh], dtype=bool)
    assert scores[toxic].mean() == pytest.approx(0.8, abs=0.06)
    assert scores[~toxic].mean() == pytest.approx(0.2, abs=0.06)


def test_the_share_of_toxic_rows_does_not_move_the_middle(tmp_path: Path) -> None:
    """Labels that nothing in the text tells: with 20 % toxic ones every score is still about one half."""
    judge = train_judge([write(tmp_path / "a.jsonl", rows(2000, share=0.2, signal=False))])
    assert judge([row["text"] for row in rows(200, seed=1)]).mean() == pytest.approx(0.5, abs=0.07)


def test_texts_of_a_group_stay_together(tmp_path: Path) -> None:
    """The neutral half of a parallel sentence is as much seen as the toxic one."""
    draw = random.Random(0)
    pairs = [(" ".join(draw.choices(TOWN, k=8)), draw.choice(NASTY)) for _ in range(400)]
    table = tmp_path / "pairs.tsv"
    table.write_text("toxic\tneutral\n" + "".join(f"{text} {word}\t{text}\n" for text, word in pairs))
    judge = train_judge([table])
    toxic = judge.seen([f"{text} {word}" for text, word in pairs])
    np.testing.assert_array_equal(toxic, judge.seen([text for text, _ in pairs]))
    assert 0 < toxic.sum() < 400


def test_what_two_files_share_counts_once(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "rows.jsonl", tmp_path / "copy.jsonl")
    more = write(tmp_path / "more.jsonl", [*rows(50, seed=5), *rows(600)])
    judge = train_judge([folder / "rows.jsonl", more])
    assert [source["texts"] for source in judge.meta["sources"]] == [600, 50]


def test_ordinary_documents_are_benign_sentences(folder: Path, tmp_path: Path) -> None:
    sentence = "The fool on the hill number {} is a song of the old town."
    text = " ".join(sentence.format(i) for i in range(400))
    benign = write(tmp_path / "wiki.jsonl", [{"text": "= Heading =\n" + text}])
    judge = train_judge([folder / "rows.jsonl"], benign=[benign])
    source = judge.meta["sources"][1]
    assert (source["file"], source["texts"], source["toxic"]) == ("wiki.jsonl", 400, 0)
    assert judge.meta["held_out"][1]["auc"] is None
    fresh = [sentence.format(1000)]
    assert judge(fresh)[0] < Judge.load(folder / "judge")(fresh)[0]


def test_it_never_selects_pairs(folder: Path) -> None:
    judge = Judge.load(folder / "judge")
    assert judge.selects_pairs is False
    words = folder / "words.txt"
    words.write_text("fool\n")
    ensemble = load_scorer(f"max:words:{words},judge:{folder / 'judge'}")
    assert isinstance(ensemble, Ensemble) and ensemble.selects_pairs is False
    np.testing.assert_array_equal(ensemble.seen([rows(600)[0]["text"]]), judge.seen([rows(600)[0]["text"]]))


def test_too_few_texts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="40 texts leave .* ones to be .*: a judge needs 20"):
        train_judge([write(tmp_path / "few.jsonl", rows(40))])
    with pytest.raises(UserError, match="leave 0 toxic ones to be trained"):
        train_judge([write(tmp_path / "benign.jsonl", rows(300, share=0.0))])
    with pytest.raises(UserError, match="no sentence of running text in 1 documents"):
        train_judge([], benign=[write(tmp_path / "list.jsonl", [{"text": "* a\n* b"}])])


def test_folders_that_hold_no_judge(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no judge .judge.json is missing.. Make one with `efface scorers --tra"):
        load_scorer(f"judge:{tmp_path}")
    (tmp_path / "judge.json").write_text('{"schema": 1}')
    with pytest.raises(UserError, match="is not that of a judge of this version"):
        load_scorer(f"judge:{tmp_path}")
    shutil.copy(folder / "judge" / "judge.json", tmp_path)
    with pytest.raises(UserError, match="is damaged .*judge.safetensors is no regular file"):
        load_scorer(f"judge:{tmp_path}")
    whole = (folder / "judge" / "judge.safetensors").read_bytes()
    (tmp_path / "judge.safetensors").write_bytes(whole[:1000])
    with pytest.raises(UserError, match="is damaged .*SafetensorError"):
        load_scorer(f"judge:{tmp_path}")
    Judge(np.ones(3, np.float32), np.ones(3, np.float32), slope=1, intercept=0, seen=[], meta={}).save(tmp_path / "b")
    with pytest.raises(UserError, match=rf"is damaged .*shape \(3,\) instead of \({COLUMNS},\)"):
        load_scorer(f"judge:{tmp_path / 'b'}")


def test_keys_differ_by_words_alone() -> None:
    assert text_key("The  old\ntown ") == text_key("the old town") != text_key("the old towns")


def test_train_on_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["scorers", "--train", str(folder / "rows.jsonl"), "-o", str(tmp_path / "made")]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert re.search(r"rows.jsonl +\d+ of \d+ +1\.000 \[", printed)
    assert f"use it as judge:{tmp_path / 'made'}" in printed
    weights = (tmp_path / "made" / "judge.safetensors").read_bytes()
    assert main(argv) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main([*argv, "--overwrite", "--seed", "1"]) == 0
    assert (tmp_path / "made" / "judge.safetensors").read_bytes() != weights
    # It is used by its name; what it was trained on is left out.
    capsys.readouterr()
    assert main(["scorers", "--check", str(folder / "rows.jsonl"), "--scorer", f"judge:{tmp_path / 'made'}"]) == 0
    held_out = read_json(tmp_path / "made" / "judge.json")["held_out"][0]["texts"]
    assert f" of {held_out} " in capsys.readouterr().out
