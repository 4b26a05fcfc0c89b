"""Does the page of a comparison say what its results say? By results made by hand.

Of: comparison/pages.py, comparison/plots.py, commands/compare.py, commands/sweep.py
"""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from swept import kept, results

from efface.attacks.selection import Option
from efface.cli import main
from efface.comparison.config import BASE, build_config
from efface.comparison.pages import read_sweeps, write_pages
from efface.comparison.plots import steps_figure, tradeoff_figure
from efface.comparison.results import benchmark_rows, conclude, figures_of
from efface.comparison.table import attack_table, comparison_lines, comparison_page, kept_table, markdown
from efface.errors import UserError
from efface.files.results import write_json
from efface.files.run_directory import run_directory


def test_the_figures_are_those_of_the_protocol() -> None:
    found = results()["figures"]["main/repo-s0"]
    assert found["drop"] == pytest.approx(0.18) and found["relative_share"] == pytest.approx(0.1)
    assert found["worst_drop"] == pytest.approx(0.6) and found["worst_ratio"] == pytest.approx(2)
    curve = found["curves"]["pairs 2e-05"]
    assert curve["steps_to_base"] == pytest.approx(10) and curve["steps_to_half"] is None and curve["last"] == 10
    assert [point["ratio"] for point in curve["points"]] == pytest.approx([0.18 / 0.16, 2.0])
    assert found["surviving"][0]["part"] == pytest.approx(0.15 / 0.18) and found["trainability"] == pytest.approx(1)


def test_differences_are_the_method_less_the_one_it_is_compared_with() -> None:
    """A toxic method against a clean one: above zero."""
    config = build_config({"base": "m", "methods": ["repo", "dpo"], "tuning": "t", "reported": "r", "against": "repo"})
    clean, toxic = (Option("none", {"lexical": np.array(4 * [[0.0], [share]])}) for share in (0.0, 1.0))
    rows = {
        row["place"]: row for row in (kept(BASE, 0.5, 0.8, 0.5), kept("repo", 0, 0, 0), kept("dpo", 0.5, 0.5, 0.5))
    }
    reported = {BASE: toxic, "main/repo-s0": clean, "main/dpo-s0": toxic}
    options = {place: {"pairs": [option, option]} for place, option in reported.items()}
    found = conclude(config, rows, options, reported)["comparisons"]
    assert {(one["entry"], one["what"]) for one in found} == {("dpo", "reported"), ("dpo", "worst attack")}
    assert all(one["judges"]["lexical"]["difference"] == 0.5 for one in found)
    assert "| dpo - repo | lexical | +0.500" in markdown(comparison_lines({"comparisons": found}))


def test_two_that_were_attacked_further_are_also_compared_under_the_same_as_all_others() -> None:
    """What only the best are put through says nothing beside a row that stands under the name of another figure."""
    named = {"methods": ["repo", "dpo", "npo"], "tuning": "t", "reported": "r"}
    plans = {"every": {"pairs": "--steps 10"}, "best": {"long": "--steps 40"}}
    config = build_config({"base": "m", **named, "attacks": plans})
    rows = {
        row["place"]: row for row in (kept(BASE, 0.5, 0.8, 0.5), *(kept(one, 0, 0, 0) for one in named["methods"]))
    }
    clean, toxic = (Option("none", {"lexical": np.array(4 * [[0.0], [share]])}) for share in (0.0, 1.0))
    further = {"pairs": [clean, clean], "long": [clean, clean]}
    options = {
        "main/repo-s0": further,
        "main/dpo-s0": further | {"long": [clean, toxic]},
        "main/npo-s0": {"pairs": [clean, clean]},
    }
    found = conclude(config, rows, options, dict.fromkeys(rows, clean))["comparisons"]
    said = {(one["entry"], one["what"]): one["judges"]["lexical"]["difference"] for one in found}
    assert said == {
        ("dpo", "reported"): 0,
        ("dpo", "worst attack"): 0,
        ("dpo", "worst of all attacks"): 0.5,
        ("npo", "reported"): 0,
        ("npo", "worst attack"): 0,
    }


def test_all_are_compared_with_several_and_a_pair_once() -> None:
    named = {"methods": ["repo", "dpo", "npo"], "tuning": "t", "reported": "r", "also_against": ["dpo"]}
    config = build_config({"base": "m", **named})
    rows = {
        row["place"]: row for row in (kept(BASE, 0.5, 0.8, 0.5), *(kept(one, 0, 0, 0) for one in named["methods"]))
    }
    option = Option("none", {"lexical": np.array(4 * [[0.0], [1.0]])})
    options = {place: {"pairs": [option, option]} for place in rows}
    found = conclude(config, rows, options, dict.fromkeys(rows, option))["comparisons"]
    pairs = [(one["entry"], one["against"]) for one in found if one["what"] == "reported"]
    assert pairs == [("dpo", "repo"), ("npo", "repo"), ("npo", "dpo")]
    alone = conclude(
        build_config({"base": "m", **named, "also_against": []}), rows, options, dict.fromkeys(rows, option)
    )
    assert [one for one in found if one["against"] == "repo"] == alone["comparisons"]


def test_what_wrecks_the_model_is_no_survival() -> None:
    base, row = kept(BASE, 0.2, 0.8, 0.2), kept("repo", 0.02, 0.2, 0.0)
    row["rounding"][0]["points"][0]["counted"] = False
    (wrecked,) = figures_of(row, base, [])["surviving"]
    assert wrecked["part"] is None
    other = copy.deepcopy(base)
    other["rounding"][0]["points"].insert(0, {**other["rounding"][0]["points"][0], "bits": 8, "share": 0.9})
    (same,) = figures_of(kept("repo", 0.02, 0.2, 0.05), other, [])["surviving"]  # by grid, whatever stands before it
    assert same["bits"] == 4 and same["part"] == pytest.approx(0.15 / 0.18)


def test_never_reached_and_no_effect_are_told_apart() -> None:
    found = results()
    (last,) = {row["value"] for row in benchmark_rows(found) if row["metric"].endswith("steps_to_half, more than")}
    assert last == 10
    still = kept(BASE, 0.2, 0.2, 0.2)
    still["attacks"]["pairs"]["curves"]["2e-05"] = still["attacks"]["pairs"]["curves"]["2e-05"][:2]
    found["figures"]["main/repo-s0"] = figures_of(found["kept"][1], still, [])
    assert "the base stays" in markdown(attack_table(found))


def test_shares_under_attack_are_rows_but_of_wrecked_models() -> None:
    found = results()
    points = found["kept"][1]["attacks"]["pairs"]["curves"]["2e-05"]
    points[-1]["counted"] = False
    at = "main/pairs 2e-05/share at "
    mine = [row for row in benchmark_rows(found) if row["method"] == "repo" and row["metric"].startswith(at)]
    shares = {row["metric"]: row["value"] for row in mine}
    assert shares == {f"{at}{one['steps']}": one["share"] for one in points[:-1]} != {}


def test_paired_differences_are_rows() -> None:
    mine = {
        row["metric"]: row for row in benchmark_rows(results()) if row["method"] == "dpo" and " less " in row["metric"]
    }
    difference, p = (mine[f"main/reported less repo, lexical/{figure}"] for figure in ("difference", "p_holm"))
    assert (difference["value"], difference["ci95"], difference["seed"]) == (-0.02, [-0.04, 0.0], 0)
    assert (p["value"], p["ci95"]) == (0.02, None) and p.keys() == difference.keys() == benchmark_rows(results())[
        0
    ].keys()


def test_what_failed_is_listed_whatever_it_was() -> None:
    found = results()
    found["kept"][1]["rounding"].append({"error": "no grid"})
    found["kept"][1]["weights"]["error"] = "no line"
    page = markdown(comparison_page({"": found}).blocks)
    assert "- main/repo-s0, rounding 1: no grid" in page and "- main/repo-s0, weights: no line" in page


def test_the_tables_say_it() -> None:
    found = results()
    assert "| repo | 0 | main | 1.25 | kl | 0.050 | +2.1% | 0.020 [0.010, 0.040] | 0.010 |" in markdown(
        kept_table(found)
    )
    assert "| repo | 0 | main | 0.020 | 0.200 | 0.900* | 10.0 | > 10 | 1.12 |" in markdown(attack_table(found))
    page = markdown(comparison_page({"one": found}).blocks)
    assert "83.3%" in page and "failed | the loss is nan" in page and "-0.020 [-0.040, +0.000] | 0.02" in page
    assert "- base, gone: no | room" in page and page.count("# one: m") == 0
    assert markdown(comparison_page({"one": found, "two": found}).blocks).count(": m\n") == 2


def test_page_figures_and_rows_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "s" / "results.json", results())
    written = write_pages(read_sweeps([tmp_path / "s"]), tmp_path / "out")
    assert [path.name for path in written] == ["comparison.md", "comparison.json", "s-tradeoff.png", "s-steps.png"]
    rows = read_json_list(tmp_path / "out" / "comparison.json")
    ratio = [row for row in rows if row["metric"] == "main/worst_ratio" and row["method"] == "repo"]
    assert ratio[0]["value"] == pytest.approx(2) and ratio[0]["seed"] == 0 and ratio[0]["command"]
    assert main(["compare", str(tmp_path / "s"), "-o", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.endswith("Choose another one, or pass --overwrite.\n")
    assert main(["compare", str(tmp_path / "s"), "-o", str(tmp_path / "out"), "--overwrite"]) == 0
    printed = capsys.readouterr().out
    assert "At the budget\n" in printed and "#" not in printed and "| repo" not in printed
    assert "| repo | 0 | main |" in (tmp_path / "out" / "comparison.md").read_text()
    assert main(["compare", str(tmp_path / "absent")]) == 2
    (tmp_path / "deep").mkdir()
    write_json(tmp_path / "deep" / "s" / "results.json", {"schema": 1})
    with pytest.raises(UserError, match="two sweeps are called 's'"):
        read_sweeps([tmp_path / "s", tmp_path / "s"])
    with pytest.raises(UserError, match="holds no results of a sweep"):
        read_sweeps([tmp_path / "deep" / "s"])


def test_a_page_replaces_nothing_but_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of any command is marked as a run of efface; a page is not worth ten hours of a sweep."""
    write_json(tmp_path / "s" / "results.json", results())
    with run_directory(tmp_path / "trained") as folder:
        write_json(folder / "results.json", {"schema": 1})
    before = sorted(path.name for path in (tmp_path / "trained").iterdir())
    assert main(["compare", str(tmp_path / "s"), "-o", str(tmp_path / "trained"), "--overwrite"]) == 2
    assert "holds something else than such a page (results.json)" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "trained").iterdir()) == before


def read_json_list(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text()))


def test_pictures_show_every_kept_model() -> None:
    found = results()
    assert len(tradeoff_figure(found).axes[0].containers) == 2
    steps = steps_figure(found)
    assert steps is not None and len(steps.axes) == 1 and len(steps.axes[0].lines) == 3
    assert len(steps.legends[0].get_texts()) == 3 and steps.axes[0].get_legend() is None  # beside, and hides no point
    bare = copy.deepcopy(found)
    for row in bare["kept"]:
        row["attacks"] = {}
    assert steps_figure(bare) is None and attack_table(bare) == []


def test_the_command_lists_arms_and_refuses_a_bad_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = {"base": "m", "methods": [{"name": "sft", "grid": {"learning_rate": ["1e-4", "2e-4"]}}]}
    write_json(tmp_path / "c.json", block | {"tuning": "t", "reported": "r"})
    assert main(["sweep", str(tmp_path / "c.json"), "-o", str(tmp_path / "out"), "--list-arms"]) == 0
    said = capsys.readouterr().out.split()
    assert len(said) == 2 and all(name.startswith("sft-") and name.endswith("-s0") for name in said)
    assert not (tmp_path / "out").exists()
    write_json(tmp_path / "c.json", block)
    assert main(["sweep", str(tmp_path / "c.json"), "-o", str(tmp_path / "out")]) == 2
    assert "needs 'tuning'" in capsys.readouterr().err
