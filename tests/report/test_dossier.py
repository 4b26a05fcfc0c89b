"""Does the report of any mixture of results decide, and say what speaks against?

Of: report/claim.py, report/curves.py, commands/report.py
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import swept
from attacked import attacked, too_dear, unmade
from blocks import blocks_of
from told import evaluation, write_attack, write_audit, write_edit

from efface.cli import main
from efface.errors import UserError
from efface.files.results import read_json, write_json
from efface.report.claim import AGAINST, ATTACKERS, CLAIM, OPEN, VERDICT
from efface.report.dossier import report_about, write_report
from efface.report.limits import MET, NOT_MEASURED
from efface.report.page import Cards, Continuations, Grid, Page, Pictures, Points, Prose

LIMIT = 5_000_000


def text_of(page: Page, title: str) -> str:
    """All that a section says."""
    (section,) = [one for one in page.sections if one.title == title]
    said = []
    for block in section.blocks:
        if isinstance(block, Prose):
            said.append(block.text)
        elif isinstance(block, Points):
            said += block.items
        elif isinstance(block, Grid):
            said += [" | ".join(row) for row in (block.head, *block.rows)]
        else:
            assert isinstance(block, Cards | Pictures | Continuations)
    return "\n".join(said)


@pytest.fixture
def mixture(tmp_path: Path) -> list[Path]:
    """An edit with its training, an audit of another model, one attack of it, an evaluation."""
    write_json(tmp_path / "e.json", evaluation(0.02, "org/other"))
    rows = [attacked("relearn", 30), attacked("sampling", 4), unmade("merge", skipped="needs a base")]
    return [
        write_edit(tmp_path / "edit"),
        write_audit(tmp_path / "audit", *rows),
        write_attack(tmp_path / "attack", {5: 0.2, 10: 0.5}),
        tmp_path / "e.json",
    ]


def test_the_first_page_claims_and_contradicts(mixture: list[Path]) -> None:
    page, rulings = report_about(mixture)
    titles = [section.title for section in page.sections]
    assert titles[:4] == [CLAIM, ATTACKERS, AGAINST, OPEN] and rulings == []
    assert page.first == "30.0 % -> 5.0 % (at most 15.0 %)"
    claim = text_of(page, CLAIM)
    assert "edited (edit) (runs/x/model): of 1 continuations each of 10 prompts (shipped:prompts)" in claim
    assert "of the base's 30.0 % by nasty; perplexity of ordinary text +2.1 %" in claim
    against = text_of(page, AGAINST)
    assert re.search(r"from 10\.0 %, toxicity comes back beyond chance under relearn to \d\d\.\d %", against)
    assert "Hidden states: By the token alone" in against and "sampling to" not in against
    left = text_of(page, OPEN)
    assert "no figure of merge (merge was skipped: needs a base)" in left
    assert "other: nobody has attacked it" in left and "cannot show gcg" in left
    assert "no evidence either way from" in left
    assert "Limits and what was found" not in claim


def test_a_model_that_could_not_be_measured_meets_no_limit_and_is_told_of(tmp_path: Path) -> None:
    folder = write_audit(tmp_path / "a", attacked("relearn", 9))
    result = read_json(folder / "results.json")
    result["models"].append({"name": "broken", "error": "out of memory", "attacks": [], "columns": {}})
    write_json(folder / "results.json", result)
    page, rulings = report_about([folder], require=["share<=0.9"])
    assert [(one.model, one.verdict) for one in rulings] == [("edited", MET), ("broken", NOT_MEASURED)]
    assert "broken was not measured: out of memory" in text_of(page, OPEN)
    (ruling,) = report_about([folder], require=["share<=0.9"], models=["broken"])[1]
    assert ruling.verdict == NOT_MEASURED
    result["models"] = result["models"][1:]  # all that is left is the base, which nobody asks about
    write_json(folder / "results.json", result)
    (ruling,) = report_about([folder], require=["share<=0.9"])[1]
    assert (ruling.model, ruling.verdict) == ("broken", NOT_MEASURED)


def test_of_a_sweep_the_entry_that_others_are_judged_against_is_judged_too(tmp_path: Path) -> None:
    sweep = swept.results()
    for row in sweep["kept"]:
        row |= {"worst": None, "reported": row["reported"] | blocks_of(row["reported"]["toxicity"]["share"])}
    write_json(tmp_path / "s" / "results.json", sweep)
    write_json(tmp_path / "e.json", evaluation(0.02))
    _, rulings = report_about([tmp_path / "s", tmp_path / "e.json"], require=["share<=0.9"])
    assert [one.model for one in rulings] == ["repo", "edited"]


def test_a_model_that_was_measured_otherwise_is_not_set_beside_the_base(tmp_path: Path) -> None:
    versus = {"model": "org/base", "judges": {}, "perplexity_ratio": 1.0, "utility": [], "not_compared": []}
    alike = evaluation(0.02, "org/mine", versus_baseline=versus)
    write_json(tmp_path / "alike.json", alike)
    other = evaluation(0.03, "org/mine", versus_baseline=versus)
    other["settings"] |= {"decoding": {"temperature": 0.5}}
    write_json(tmp_path / "other.json", other)
    page, _ = report_about([write_edit(tmp_path / "edit"), tmp_path / "alike.json", tmp_path / "other.json"])
    said = [line for line in text_of(page, CLAIM).splitlines() if "(org/mine)" in line]
    assert ["of the base's" in line for line in said] == [True, False] and "3.0 %" in said[1]


def test_attackers_stand_beside_their_controls(tmp_path: Path) -> None:
    rows = [attacked("relearn", 4), attacked("sampling", 4), attacked("prefill", 30)]
    controls = [attacked("relearn", 40), attacked("sampling", 4)]
    page, _ = report_about([write_audit(tmp_path / "a", *rows, controls=controls)])
    lines = {line.split(" | ")[0]: line.split(" | ") for line in text_of(page, ATTACKERS).splitlines()}
    assert lines["relearn"][-2].startswith("100.0 % [") and lines["relearn"][-1] == "control"
    assert lines["sampling"][-1] == "none" and lines["prefill"][-2:] == ["", "itself"]
    assert "no evidence either way from sampling:" in text_of(page, OPEN)


def test_what_an_attack_reaches_at_any_cost_is_on_the_first_page(tmp_path: Path) -> None:
    """An attack of which no point counts is not one that reached nothing."""
    page, _ = report_about([write_audit(tmp_path / "audit", too_dear("relearn", 38), attacked("sampling", 5))])
    rows = text_of(page, ATTACKERS)
    assert "relearn | weights | none |  |  |  | every point wrecked the model" in rows
    assert re.search(r"relearn, at any cost \| weights \| 9\d\.\d %", rows)
    assert re.search(
        r"more perplexity than an attacker is granted it comes back under relearn to 9", text_of(page, AGAINST)
    )


def test_a_page_is_written_and_only_a_page_is_replaced(mixture: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    write_report(mixture, path)
    first = path.read_text(encoding="utf-8")
    assert len(first.encode()) < LIMIT and "<b>day" not in first and "Models beside each other" in first
    assert "relearn, rate 0.0001" in first, "the curve of the attack"
    with pytest.raises(UserError, match="already holds a report"):
        write_report(mixture, path)
    write_report(mixture, path, overwrite=True)
    path.write_text("mine")
    with pytest.raises(UserError, match="is not a report as efface wrote it"):
        write_report(mixture, path, overwrite=True)
    assert path.read_text() == "mine"


def test_the_command_ends_with_1_where_a_limit_is_not_met(
    mixture: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*flags: str) -> int:
        return main(["report", *map(str, mixture), "-o", str(tmp_path / "r.html"), "--overwrite", *flags])

    assert run("--about", "other", "--require", "share<=0.1") == 0
    assert "met" in capsys.readouterr().out
    assert run("--about", "other", "--require", "share<=0.1,relearn:10<=0.9") == 1
    captured = capsys.readouterr()
    assert "not measured" in captured.out
    assert captured.err.strip().splitlines()[-1] == (
        "efface: 1 of 2 limits are not met: relearn:10<=0.9 of other (not measured)."
    )
    assert VERDICT in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert run("--about", "nobody") == 2
    assert "no model of these results is called 'nobody'. There are: base" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "gone"), "-o", "x.html"]) == 2
    assert "gone is not there" in capsys.readouterr().err


def test_masking_is_the_users_choice(mixture: list[Path]) -> None:
    for mask, hidden in (("click", True), ("always", False), ("never", False)):
        page, _ = report_about(mixture, mask=mask)
        (texts,) = [block for one in page.sections for block in one.blocks if isinstance(block, Continuations)]
        examples = [example for section in texts.sections for example in section.examples]
        assert examples and any(example.base.hidden for example in examples) == hidden
    with pytest.raises(UserError, match="mask='often' is unknown"):
        report_about(mixture, mask="often")


def test_a_pipe_of_the_pages_name_is_not_waited_for(mixture: list[Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "r.html")
    with pytest.raises(UserError, match="is not a report as efface wrote it"):
        write_report(mixture, tmp_path / "r.html", overwrite=True)


def test_an_audit_beside_an_edit_keeps_its_controls_and_its_base(tmp_path: Path) -> None:
    """Both speak of one base, and that of the audit is joined with that of the edit."""
    audit = write_audit(tmp_path / "audit", attacked("relearn", 20))
    result, column = read_json(audit / "results.json"), {"apart": {}, "any_cost": None, "p_holm": 1.0}
    result["models"][0]["columns"] = {"weights": column | {"judged": attacked("relearn", 20)["judged"]}}
    control = column | {"judged": attacked("relearn", 40)["judged"]}
    result["controls"] = {"base": {"error": None, "attacks": [], "columns": {"weights": control}}}
    write_json(audit / "results.json", result)
    edit = write_edit(tmp_path / "edit")
    for paths in ([audit], [edit, audit], [audit, edit]):
        page, _ = report_about(paths)
        (worst,) = [line for line in text_of(page, ATTACKERS).splitlines() if line.startswith("worst of these")]
        assert worst.split(" | ")[-2].startswith("100.0 %"), worst
        (claim,) = [line for line in text_of(page, CLAIM).splitlines() if "(org/edited)" in line]
        assert "of the base's 40.0 % by nasty" in claim, "as the audit measured it"


def test_where_nothing_says_which_prompts_they_were_shares_are_not_compared(tmp_path: Path) -> None:
    """Of one attack on the edited model and one on the base, files of their own."""
    paths = [write_attack(tmp_path / name, {5: 0.2}) for name in ("edited", "base")]
    result = read_json(paths[1] / "relearn.json")
    result["target"] |= {"names": {"model": "org/base"}, "weights": "b"}
    write_json(paths[1] / "relearn.json", result)
    assert "of the base's" not in text_of(report_about(paths)[0], CLAIM)


def test_what_a_second_result_says_against_a_model_is_told(tmp_path: Path) -> None:
    worse = evaluation(0.3)
    worse["degeneration"] |= {"verdict": "degenerate", "reasons": ["loops"]}
    for name, result in {"a": evaluation(0.1), "b": worse}.items():
        write_json(tmp_path / f"{name}.json", result)
    page, _ = report_about([tmp_path])
    assert "edited: its text is degenerate (loops)" in text_of(page, AGAINST)
    assert "unattacked, up to 40.0 % may be toxic" in text_of(page, OPEN)


def test_no_limit_is_met_where_nothing_but_an_analysis_is(tmp_path: Path) -> None:
    """The exit code too."""
    write_json(tmp_path / "a" / "results.json", {"what": "analysis", "base": "b", "n_pairs": 5, "models": []})
    flags = ["-o", str(tmp_path / "r.html"), "--require", "share<=0.9"]
    assert main(["report", str(tmp_path / "a"), *flags]) == 1


def test_always_masked_words_are_not_in_the_pictures_of_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = {kind: {"shift": 0.1, "cka": 0.9, "along": 0.1} for kind in ("toxic", "benign")}
    tokens = ["a", " ", *"rotten", " vi", "le", " day"]  # none of which tells toxic text
    picture = {"pair": 0, "side": "rejected", "start": 1, "tokens": tokens, "toxic": []}
    drift = {"layers": {"0": layer}, "pictures": [picture | {"shift": [[0.1] * len(tokens)] * 2}]}
    model = {"name": "m", "failed": {}, "blocks": {"drift": drift}}
    write_json(tmp_path / "results.json", {"what": "analysis", "base": "b", "n_pairs": 5, "models": [model]})

    def rude(words: Sequence[str]) -> list[float]:
        return [float(word in ("rotten", "vile")) for word in words]

    def labels(mask: str) -> str:
        blocks = [block for section in report_about([tmp_path], mask=mask)[0].sections for block in section.blocks]
        (pictures,) = [block for block in blocks if isinstance(block, Pictures)]
        return "|".join(re.findall(r"<text[^>]*>([^<]*)</text>", "".join(one.svg for one in pictures.figures)))

    monkeypatch.setattr("efface.report.dossier._scorer", lambda name: rude)
    assert "r|o|t|t|e|n" in labels("never") and "vi|le" in labels("never")
    for mask in ("always", "click"):
        assert "r|•|•|•|•|•|v•|••|day" in labels(mask)
    monkeypatch.setattr("efface.report.dossier._scorer", lambda name: None)
    assert "day" not in labels("always")
