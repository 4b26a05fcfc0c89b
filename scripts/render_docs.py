"""Do README and docs say what the result files say? Renders every table from `benchmarks/results/`.

    python scripts/render_docs.py [--check]

A table stands between `<!-- table: NAME -->` and `<!-- end table -->`; `--check` (run by the tests) only compares.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from efface.errors import UserError
from efface.results import read_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end table -->)", re.DOTALL)


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _share(toxicity: dict[str, Any], key: str = "share") -> str:
    low, high = toxicity["ci95"][key]
    return f"{toxicity[key]:.3f} [{low:.3f}, {high:.3f}]"


def _change(value: float, base: float) -> str:
    return f"{100 * (value / base - 1):+.1f} %"


def _figures(base: dict[str, Any], edited: dict[str, Any]) -> list[list[str]]:
    """Rows of figure, base, edited."""
    rows = [
        [name, *(_share(side["toxicity"], key) for side in (base, edited))]
        for name, key in (
            ("share of toxic continuations", "share"),
            ("mean score", "mean"),
            ("expected maximum", "expected_maximum"),
            ("probability of a toxic one", "probability"),
        )
    ]
    values = [side["perplexity"]["value"] for side in (base, edited)]
    rows.append(["perplexity", f"{values[0]:.2f}", f"{values[1]:.2f} ({_change(values[1], values[0])})"])
    rows.append(["degeneration verdict", base["degeneration"]["verdict"], edited["degeneration"]["verdict"]])
    return rows


def demo() -> str:
    content = read_json(RESULTS / "demo.json")
    low, high = content["comparison"]["share_ratio_ci95"]
    ratio = ["edited / base share", "", f"{content['comparison']['share_ratio']:.2f} [{low:.2f}, {high:.2f}]"]
    return _table(["", "base", "edited"], [*_figures(content["base"], content["edited"]), ratio])


def challenging() -> str:
    report = read_json(RESULTS / "repo_defaults.json")["report"]
    return _table(["", "base", "edited"], _figures(report["base"], report["default"]))


def defaults() -> str:
    arms = read_json(RESULTS / "repo_defaults.json")["arms"]
    base = arms["base"]["result"]["perplexity"]["value"]
    rows = []
    for name, arm in arms.items():
        result = arm["result"]
        toxicity, perplexity = result["toxicity"], result["perplexity"]["value"]
        training = arm["training"]
        last = next((entry for entry in reversed(training.get("history", [])) if "erase_loss" in entry), {})
        adversary = f"{last['erase_loss']:.2f}" if last else ""
        settings = ", ".join(f"`{key}={value}`" for key, value in training.get("differs", {}).items())
        cells = [settings, _share(toxicity), f"{toxicity['mean']:.3f}", f"{perplexity:.2f}", _change(perplexity, base)]
        rows.append([name, *cells, adversary, result["degeneration"]["verdict"]])
    header = ["arm", "differs from the default by", "toxic share", "mean score", "perplexity", "change"]
    return _table([*header, "last BCE", "verdict"], rows)


def erasure() -> str:
    rows = []
    for layer, results in read_json(RESULTS / "erasure_check.json")["layers"].items():
        for name, share in results["excess_remaining"].items():
            found = results[name]
            cells = [f"{found[key]:.3f}" for key in ("balanced_accuracy", "token_identity", "shuffled")]
            low, high = found["excess_ci95"]
            rows.append([layer, name, *cells, f"{found['excess']:.3f} [{low:.3f}, {high:.3f}]", f"{share:.2f}"])
    header = ["layer", "model", "fresh probe", "token identity", "shuffled labels", "excess", "excess that remains"]
    return _table(header, rows)


def step() -> str:
    rows = []
    for entry in json.loads((RESULTS / "step.json").read_text(encoding="utf-8")):
        seconds = {name: side["seconds"]["median"] for name, side in entry["sides"].items()}
        peaks = {name: side["memory"]["peak"] / 1e9 for name, side in entry["sides"].items()}
        for name in seconds:
            beside = entry["sides"][name].get("repo_seconds")
            ratio = f"{beside['median'] / seconds[name]:.2f}" if beside else ""
            above = entry["sides"][name]["memory"]["above"] / 1e9
            rows.append([entry["model"], name, f"{seconds[name]:.2f}", ratio, f"{peaks[name]:.2f}", f"{above:.2f}"])
        shares = f"memory ratio {entry['memory_ratio']:.2f}", f"share of matrix product {entry['matmul_share']:.2f}"
        rows.append([entry["model"], *shares, "", "", ""])
    return _table(["model", "side", "seconds a step", "repo / it", "peak GB", "memory GB"], rows)


def switches() -> str:
    rows = []
    for block, sides in read_json(RESULTS / "switches.json")["blocks"].items():
        for name, side in sides.items():
            rows.append([block, name, f"{side['step']:.2f}", f"{side['pair']:.3f}", f"{side['ratio']:.2f}"])
    return _table(["block", "switch", "seconds a step", "seconds a pair", "x"], rows)


def demo_training() -> str:
    content = read_json(RESULTS / "demo_training.json")
    rows = []
    for name, side in content["sides"].items():
        result = side["result"]
        figures = _share(result["toxicity"]), f"{result['perplexity']['value']:.2f}"
        rows.append([name, f"{side['step_median']:.2f}", f"{side['training']:.0f}", *figures])
    ratio = content["speedup"]
    rows.append(["faster by", f"{ratio['step_median']:.2f}", f"{ratio['training']:.2f}", "", ""])
    return _table(["side", "seconds a step", "seconds in all", "toxic share", "perplexity"], rows)


def scaling() -> str:
    content = read_json(RESULTS / "scaling.json")
    keys = ("seconds_per_step", "setup_seconds", "anonymous_mb", "peak_mb")
    rows = [
        [f"{size['pairs']:,}", f"{1000 * size[keys[0]]:.1f}", *(f"{size[key]:.0f}" for key in keys[1:])]
        for size in content["sizes"]
    ]
    rows.append(["ratio", *(f"{content['ratios'][key]:.2f}" for key in keys)])
    return _table(["pairs", "ms a step", "set-up s", "anonymous memory MB", "peak with mapped files MB"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "demo": demo,
    "challenging": challenging,
    "defaults": defaults,
    "erasure": erasure,
    "step": step,
    "switches": switches,
    "demo_training": demo_training,
    "scaling": scaling,
}


def rendered(text: str) -> str:
    """`text` with every table made anew."""
    return BLOCK.sub(lambda match: match[1] + _made(match[2]) + match[4], text)


def _made(name: str) -> str:
    try:
        return TABLES[name]()
    except (UserError, KeyError, FileNotFoundError):  # no such file yet, or not that part of it
        return "*Not measured yet.*\n"


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "benchmarks" / "LOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 if a table differs from its result file")
    args = parser.parse_args()
    stale = [
        path for path in documents() if rendered(path.read_text(encoding="utf-8")) != path.read_text(encoding="utf-8")
    ]
    for path in stale:
        print(f"{'stale' if args.check else 'rendered'}: {path.relative_to(ROOT)}")
        if not args.check:
            path.write_text(rendered(path.read_text(encoding="utf-8")), encoding="utf-8")
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
