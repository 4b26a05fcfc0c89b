"""Does `efface analyze` find in a whole model what was planted there, and nothing in an untouched one?

Of: commands/analyze.py, report/analysis_figures.py, report/analysis_table.py, jobs/subject.py
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import stubs
import torch
from polite import ROWS
from tiny import tiny_model, tiny_tokenizer

from efface.cli import main
from efface.data.pair_tokens import tokenize_pair
from efface.errors import UserError
from efface.files.events import read_events
from efface.files.results import read_json, write_jsonl
from efface.jobs import subject
from efface.jobs.analyze import NAMES, analyze
from efface.jobs.explained import BLOCKS
from efface.model.blocks import decoder_blocks
from efface.model.projections import mlp_output_projection, output_weight
from efface.model.save import save_model
from efface.report.analysis_figures import _label, figures_of, write_figures
from efface.report.analysis_table import analysis_page
from efface.report.dossier import report_about
from efface.report.page import Pictures

TEXT = ["The history of the town is the history of its river.", "She went to the market and bought bread."] * 2


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, itself again, and one with another MLP in its last block."""
    folder = tmp_path_factory.mktemp("models")
    base = tiny_model("llama")
    planted = copy.deepcopy(base)
    with torch.no_grad():
        output_weight(mlp_output_projection(decoder_blocks(planted)[1]))[:, :3] *= -1
    for name, model in {"base": base, "same": base, "planted": planted}.items():
        save_model(model, tiny_tokenizer(), folder / name)
    write_jsonl(folder / "pairs.jsonl", [*ROWS, *({**row, "prompt": f"Then {row['prompt']}"} for row in ROWS)])
    write_jsonl(folder / "text.jsonl", [{"text": text} for text in TEXT])
    return folder


def given(models: Path, **more: Any) -> dict[str, Any]:
    files = {"pairs": str(models / "pairs.jsonl"), "text": str(models / "text.jsonl")}
    return {
        "base": str(models / "base"),
        "n_pairs": 24,
        "patched_pairs": 4,
        "attack_steps": 2,
        "scorer": "stubs:parity",
        **files,
        **more,
    }


@pytest.fixture(scope="module")
def whole(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("whole") / "out"
    names = {"same": str(models / "same"), "planted": str(models / "planted")}
    return analyze(names, **given(models), output=folder), folder


def test_there_is_a_block_for_each_name() -> None:
    assert tuple(BLOCKS) == NAMES


def test_an_untouched_model_shows_nothing(whole: Any) -> None:
    results, folder = whole
    assert read_json(folder / "results.json") == json.loads(json.dumps(results))
    blocks = results["models"][0]["blocks"]
    assert set(blocks) == set(NAMES) and not results["models"][0]["failed"]
    assert all(layer["change"] == 0 for layer in blocks["certificate"]["layers"].values())
    events = read_events(folder)
    made = [(row["model"], row["block"]) for row in events if row["event"] == "block finished"]
    assert made == [(name, block) for name in ("same", "planted") for block in NAMES] and events[-1]["event"] == "end"
    assert all(layer["toxic"]["shift"] == 0 for layer in blocks["drift"]["layers"].values())
    assert all(layer["base"] == layer["edited"] for layer in blocks["lens"]["layers"].values())
    assert blocks["neurons"]["drop"] == 0 == blocks["neurons"]["by_neurons"]
    assert blocks["weights"]["squares"] == 0 and blocks["weights"]["enrichment"]["p"] is None
    assert blocks["overlap"]["edit"]["cosine"] is None is blocks["overlap"]["cosine"]
    assert blocks["patching"]["modules"] == {} and blocks["patching"]["edited"]["kl"] == pytest.approx(0, abs=1e-6)


def test_a_planted_change_is_located_by_every_block(whole: Any) -> None:
    results, _ = whole
    blocks = results["models"][1]["blocks"]
    first, last = blocks["drift"]["layers"].values()
    assert first["toxic"]["shift"] == 0 < last["toxic"]["shift"]
    assert len(blocks["drift"]["pictures"]) == 8
    picture = blocks["drift"]["pictures"][0]
    assert len(picture["shift"]) == 2 and len(picture["shift"][0]) == len(picture["tokens"]) > picture["start"]
    depths = list(blocks["lens"]["layers"].values())
    assert depths[0]["base"] == depths[0]["edited"] and depths[-1]["base"] != depths[-1]["edited"]
    neurons = blocks["neurons"]
    assert neurons["drop"] != 0 and neurons["by_neurons"] == pytest.approx(1, rel=1e-3)
    assert neurons["moved"] == pytest.approx(1, rel=1e-3) and neurons["fires_less"] == pytest.approx(0, abs=1e-3)
    assert sum(neurons["groups"].values()) == pytest.approx(neurons["by_neurons"])
    assert sum(neurons["sizes"].values()) == neurons["ranks"][-1] == 128
    assert blocks["weights"]["parts"]["1.mlp"] == pytest.approx(1)
    assert blocks["weights"]["neurons"]["top"] > 3 * blocks["weights"]["neurons"]["random"]["top"]
    assert set(blocks["patching"]["modules"]) == {"1.mlp"}
    (module,) = blocks["patching"]["modules"].values()
    assert set(blocks["patching"]["states"]) == {"0", "1"}
    firing, written = blocks["patching"]["neurons"], blocks["patching"]["written"]
    assert firing["all"]["neurons"] == 128 and len(firing) == 6
    if firing["all"]["enough"] is not None:  # values were planted: no neuron fires otherwise below the last block
        assert firing["all"]["enough"] == pytest.approx(0, abs=1e-3)
    (alone,) = written["modules"].values()
    assert alone["alone"] == written["edited"] and alone["without"] == written["base"], "it is all of the edit"
    if module["enough"] is not None:  # the toxic mass falls
        assert [one["enough"] for one in blocks["patching"]["states"].values()] == pytest.approx([0, 1], abs=1e-4)
        assert module["enough"] == pytest.approx(1, abs=1e-4) == module["needed"]
    assert blocks["overlap"]["attack"]["cosine"] > 0.1  # an attacker goes along the forget gradient
    assert len(neurons["top"]) == 10 and all(len(one["words"]) == 10 for one in neurons["top"])


def test_the_table_has_a_column_for_each_model(whole: Any) -> None:
    results, _ = whole
    page = analysis_page(results)
    table = page.blocks[1]
    assert list(table.head) == ["block", "figure", "same", "planted"]  # type: ignore[union-attr]
    said = str(page)
    for word in (*NAMES, "24 pairs", "moved neurons among toxic ones", "1 to 1"):
        assert word in said, word


def test_there_is_a_picture_for_each_block_and_toxic_words_are_masked(whole: Any, tmp_path: Path) -> None:
    results, _ = whole
    written = write_figures(results, tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in written}
    assert {f"{name}.svg" for name in NAMES if name != "overlap"} <= names
    assert {"tokens/planted-0-rejected.svg", "tokens/same-3-chosen.svg"} <= names and len(names) == 6 + 16
    assert all(path.read_text().startswith("<?xml") for path in written)
    assert _label(" silly", True) == "s••••" and _label("\n", False) == "·" and _label("$a$", False) == "$a$"
    picture = results["models"][1]["blocks"]["drift"]["pictures"][1]
    assert picture["side"] == "rejected" and picture["toxic"] and min(picture["toxic"]) >= picture["start"]


def test_in_a_report_every_token_of_an_offensive_word_is_masked(whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    results, folder = whole

    def with_o(words: Sequence[str]) -> list[float]:
        return [float("o" in word) for word in words]

    one_of_them = results | {"models": results["models"][:1]}
    pictures = {name: figure for name, figure in figures_of(one_of_them, with_o) if name.startswith("tokens/")}
    drawn = results["models"][0]["blocks"]["drift"]["pictures"]
    assert len(pictures) == 8 and any("o" in "".join(one["tokens"]) for one in drawn)
    for figure in pictures.values():
        labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
        assert not any("o" in label[1:] for label in labels), labels
    monkeypatch.setattr("efface.report.dossier._scorer", lambda name: None)
    page, _ = report_about([folder])  # without a judge they are left out
    blocks = [block for section in page.sections for block in section.blocks if isinstance(block, Pictures)]
    assert blocks and not any(one.name.startswith("tokens/") for block in blocks for one in block.figures)


def test_finished_blocks_are_taken_and_others_made(models: Path, whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    results, folder = whole
    names = {"same": str(models / "same"), "planted": str(models / "planted")}
    made: list[str] = []
    for name in NAMES:
        monkeypatch.setitem(BLOCKS, name, lambda subject, name=name: made.append(name) or {})
    again = analyze(names, **given(models), output=folder, resume=True)
    assert not made and again["models"] == results["models"]
    (folder / "parts" / "planted" / "lens.json").unlink()
    analyze(names, **given(models, n_pairs=20), output=folder, only=["lens"], resume=True)
    assert made == ["lens", "lens"]  # of other pairs both are other ones


def test_what_another_tokenizer_or_judge_has_made_is_made_again(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    for name in NAMES:
        monkeypatch.setitem(BLOCKS, name, lambda subject, name=name: made.append(name) or {})
    tokenizer = tiny_tokenizer()
    save_model(tiny_model("llama"), tokenizer, tmp_path / "base")

    def run(**more: Any) -> list[str]:
        made.clear()
        settings = given(models, base=str(tmp_path / "base"), only=["lens", "patching"], **more)
        analyze({"same": str(models / "same")}, **settings, output=tmp_path / "out", resume=True)
        return list(made)

    assert run() == ["lens", "patching"] and run() == []
    monkeypatch.setattr(stubs, "parity", stubs.quarters)  # under the same name
    assert run() == ["patching"] and run() == [], "the other blocks ask no judge"
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(tmp_path / "base")
    assert run() == ["lens", "patching"] and run() == []


def test_the_base_is_read_once_for_all_models(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    for name in ("probe_states", "activity", "null_spaces", "read_pairs", "generate_ids"):
        made = getattr(subject, name)

        def counted(*args: Any, name: str = name, made: Any = made, **how: Any) -> Any:
            read.append(name)
            return made(*args, **how)

        monkeypatch.setattr(subject, name, counted)
    names = {"same": str(models / "same"), "planted": str(models / "planted")}
    blocks = [name for name in NAMES if name != "patching"]
    analyze(names, **given(models), output=tmp_path / "out", only=blocks)
    expected = {"probe_states": 3, "activity": 3, "null_spaces": 1, "read_pairs": 3 * 2, "generate_ids": 1}
    assert {name: read.count(name) for name in expected} == expected, "two edited models and their base"


def test_conversations_are_gone_on_with_inside_the_chat_template(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talks = [
        {"prompt": [{"role": "user", "content": f"{row['prompt']} {number}"}]}
        | {side: [{"role": "assistant", "content": row[side].strip()}] for side in ("chosen", "rejected")}
        for number, row in enumerate([*ROWS, *ROWS])
    ]
    write_jsonl(tmp_path / "talks.jsonl", talks)
    spoken: list[Any] = []
    activity = subject.activity
    monkeypatch.setattr(subject, "activity", lambda *args, **how: spoken.append(args[2]) or activity(*args, **how))
    settings = given(models, pairs=str(tmp_path / "talks.jsonl"))
    results = analyze({"planted": str(models / "planted")}, **settings, output=tmp_path / "out")
    assert not results["models"][0]["failed"] and set(results["models"][0]["blocks"]) == set(NAMES)
    first = spoken[0][0]
    wanted = tokenize_pair(talks[0], tiny_tokenizer()).prompt_ids
    assert first.ids[: first.start] == wanted


def test_a_block_that_fails_does_not_lose_the_others(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(subject: Any) -> Any:
        raise UserError("this model has no lens.")

    monkeypatch.setitem(BLOCKS, "lens", fails)
    flags = ["--pairs", str(models / "pairs.jsonl"), "--text", str(models / "text.jsonl"), "--n-pairs", "20"]
    flags += ["--base", str(models / "base"), "--only", "lens,weights", "-o", str(tmp_path / "out")]
    assert main(["analyze", f"mine={models / 'planted'}", *flags]) == 1
    told = capsys.readouterr()
    assert "top 1 % of the neurons" in told.out and "failed: mine, lens" in told.err
    results = read_json(tmp_path / "out" / "results.json")
    assert list(results["models"][0]["blocks"]) == ["weights"]
    assert results["models"][0]["failed"] == {"lens": "this model has no lens."}


def test_bad_input_is_one_line(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    names = {"planted": str(models / "planted")}
    with pytest.raises(UserError, match="no block of the analysis is called 'lenses'"):
        analyze(names, **given(models), output=out, only=["lenses"])
    with pytest.raises(UserError, match="patching needs pairs"):
        analyze(names, **given(models, patched_pairs=0), output=out, only=["patching"])
    with pytest.raises(UserError, match="4 pairs are too few"):
        analyze(names, **given(models, n_pairs=4), output=out)
    with pytest.raises(UserError, match="attack_rate=0"):
        analyze(names, **given(models, attack_rate=0), output=out)
    assert not out.exists()
    assert main(["analyze", str(models / "absent"), "--base", str(models / "base"), "-o", str(out)]) == 2
    assert "absent" in capsys.readouterr().err and not out.exists()
