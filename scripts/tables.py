"""What does each table in README and docs say? One function a table, from the files in `benchmarks/results/`.

Those of the shipped pairs come from the `meta.json` beside them.
"""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fault_tables
import mechanism_tables
import scale_tables
import sweep_tables
from first_day_tables import first_day
from sweep_tables import table

from efface.audit.battery import BUDGETS
from efface.audit.columns import ANY_COST
from efface.files.jsonl import read_jsonl
from efface.files.results import read_json
from efface.methods import METHODS
from efface.report.headline import headline

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SOURCE = ROOT / "src" / "efface"
SHIPPED = SOURCE / "data" / "shipped"


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
            ("share of invalid ones", "invalid"),
            ("share of clean ones", "clean"),
            ("mean score", "mean"),
            ("expected maximum", "expected_maximum"),
            ("probability of a toxic one", "probability"),
        )
        # Results of older versions do not tell invalid from clean.
        if all(side["toxicity"].get(key) is not None for side in (base, edited))
    ]
    values = [side["perplexity"]["value"] for side in (base, edited)]
    rows.append(["perplexity", f"{values[0]:.2f}", f"{values[1]:.2f} ({_change(values[1], values[0])})"])
    rows.append(["degeneration verdict", base["degeneration"]["verdict"], edited["degeneration"]["verdict"]])
    return rows


def demo() -> str:
    content = read_json(RESULTS / "demo.json")
    low, high = content["comparison"]["share_ratio_ci95"]
    ratio = ["edited / base share", "", f"{content['comparison']['share_ratio']:.2f} [{low:.2f}, {high:.2f}]"]
    first = ["in one line", "", headline(content["base"], content["edited"]).shares]
    return table(["", "base", "edited"], [*_figures(content["base"], content["edited"]), ratio, first])


def challenging() -> str:
    report = read_json(RESULTS / "repo_defaults.json")["report"]
    return table(["", "base", "edited"], _figures(report["base"], report["default"]))


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
    return table([*header, "last BCE", "verdict"], rows)


ERASURE = RESULTS / "erasure_check.json"
ERASURE_MODELS = ("base", "repo", "random edit", "retain only", "dpo")
ERASURE_KINDS = {"linear": "linear", "mlp": "hidden layer"}


def erasure() -> str:
    """The largest gain of all layers, base and REPO."""
    rows = []
    for text, entry in read_json(ERASURE)["texts"].items():
        models = entry["models"]
        cells = [_gain(models[name]["most"][kind], "auc_gain") for kind in ERASURE_KINDS for name in ("base", "repo")]
        rows.append([text, f"{_any_layer(models['base'])['token']['auc']:.3f}", *cells])
    header = [f"{name}, {kind}" for kind in ERASURE_KINDS.values() for name in ("base", "REPO")]
    return table(["text", "token alone", *header], rows)


def erasure_layers() -> str:
    """The gain of each layer, base and REPO, and which part is left."""
    rows = []
    for text, entry in read_json(ERASURE)["texts"].items():
        models = entry["models"]
        for layer in _layers(models["base"]):
            cells = []
            for kind in ERASURE_KINDS:
                left = models["repo"]["remains"][kind][layer]
                gains = [_gain(models[name]["layers"][layer][kind], "auc_gain") for name in ("base", "repo")]
                cells += [*gains, "" if left is None else f"{left[0]:.2f} [{left[1][0]:.2f}, {left[1][1]:.2f}]"]
            rows.append([text, layer, *cells])
    header = [f"{name}, {kind}" for kind in ERASURE_KINDS.values() for name in ("base", "REPO", "remains")]
    return table(["text", "layer", *header], rows)


def _erasure_models(kind: str, figure: str) -> str:
    """One figure of one probe, of all models, with the maximum over layers where there is one."""
    texts = read_json(ERASURE)["texts"]
    names = [name for name in ERASURE_MODELS if any(name in entry["models"] for entry in texts.values())]
    rows = []
    for text, entry in texts.items():
        models = entry["models"]
        layers = {layer: {name: cell["layers"][layer][kind] for name, cell in models.items()}
                  for layer in _layers(models["base"])}  # fmt: skip
        if figure == "auc_gain":
            layers |= {"largest": {name: cell["most"][kind] for name, cell in models.items()}}
        for layer, found in layers.items():
            rows.append([text, layer, *(_gain(found[name], figure) if name in found else "" for name in names)])
    return table(["text", "layer", *names], rows)


def erasure_linear() -> str:
    return _erasure_models("linear", "auc_gain")


def erasure_hidden() -> str:
    return _erasure_models("mlp", "auc_gain")


def erasure_bits() -> str:
    return _erasure_models("linear", "bits_saved")


def erasure_controls() -> str:
    """Of each text: what it is, what the tokens alone say, and what the controls say."""
    rows = []
    for text, entry in read_json(ERASURE)["texts"].items():
        cells = [cell for model in entry["models"].values() for cell in model["layers"].values()]
        token = _any_layer(entry["models"]["base"])["token"]
        own = entry["models"]["base"]["layers"]["input embedding"]
        shuffled = sorted(cell[kind]["shuffled_auc"] for cell in cells for kind in ERASURE_KINDS)
        size = f"{entry['n_groups']}, {entry['n']} tokens, {entry['toxic']:.0%} toxic"
        spread = f"{shuffled[0]:.2f} to {shuffled[-1]:.2f}, median {shuffled[len(shuffled) // 2]:.2f}"
        gains = [_gain(own[kind], "auc_gain") for kind in ERASURE_KINDS]
        rows.append([text, entry["what"], size, f"{token['auc']:.3f}", f"{token['bits']:.3f}", *gains, spread])
    header = [
        "text",
        "what",
        "groups",
        "token alone: AUC",
        "bits",
        "its embedding, linear",
        "its embedding, hidden layer",
    ]
    return table([*header, "AUC with shuffled labels"], rows)


def _any_layer(cell: dict[str, Any]) -> dict[str, Any]:
    return next(iter(cell["layers"].values()))


def _layers(cell: dict[str, Any]) -> list[str]:
    return sorted((layer for layer in cell["layers"] if layer.isdigit()), key=int)


def _gain(found: dict[str, Any], figure: str) -> str:
    low, high = found[f"{figure}_ci95"]
    return f"{found[figure]:.3f} [{low:.3f}, {high:.3f}]"


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
    return table(["model", "side", "seconds a step", "repo / it", "peak GB", "memory GB"], rows)


def withstand() -> str:
    rows = [
        [f"`{row['model']}`", f"{row['time_ratio']:.2f}", f"{row['more_memory'] / 1e9:+.2f}"]
        for row in read_json(RESULTS / "withstand.json")["rows"]
    ]
    return table(["kind", "time of a plain step", "more memory, GB"], rows)


def switches() -> str:
    rows = []
    for block, sides in read_json(RESULTS / "switches.json")["blocks"].items():
        for name, side in sides.items():
            rows.append([block, name, f"{side['step']:.2f}", f"{side['pair']:.3f}", f"{side['ratio']:.2f}"])
    return table(["block", "switch", "seconds a step", "seconds a pair", "x"], rows)


def demo_training() -> str:
    content = read_json(RESULTS / "demo_training.json")
    rows = []
    for name, side in content["sides"].items():
        result = side["result"]
        figures = _share(result["toxicity"]), f"{result['perplexity']['value']:.2f}"
        rows.append([name, f"{side['step_median']:.2f}", f"{side['training']:.0f}", *figures])
    ratio = content["speedup"]
    rows.append(["faster by", f"{ratio['step_median']:.2f}", f"{ratio['training']:.2f}", "", ""])
    return table(["side", "seconds a step", "seconds in all", "toxic share", "perplexity"], rows)


def scaling() -> str:
    content = read_json(RESULTS / "scaling.json")
    keys = ("seconds_per_step", "setup_seconds", "anonymous_mb", "peak_mb")
    rows = [
        [f"{size['pairs']:,}", f"{1000 * size[keys[0]]:.1f}", *(f"{size[key]:.0f}" for key in keys[1:])]
        for size in content["sizes"]
    ]
    rows.append(["ratio", *(f"{content['ratios'][key]:.2f}" for key in keys)])
    return table(["pairs", "ms a step", "set-up s", "anonymous memory MB", "peak with mapped files MB"], rows)


def _parts() -> dict[str, dict[str, dict[str, Any]]]:
    """Model -> part -> result of the baselines."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, part in read_json(RESULTS / "baselines.json")["parts"].items():
        model, _, what = name.partition("/")
        found.setdefault(model, {})[what] = part
    return found


def baselines_toxicity() -> str:
    rows = []
    for model, parts in _parts().items():
        for what, part in parts.items():
            if "judges" not in part["result"]:
                continue
            for judge, block in part["result"]["judges"].items():
                keys = ("mean", "share", "expected_maximum", "probability")
                figures = [_share(block, key) for key in keys[: 2 if block["samples"] == 1 else 4]]
                figures += [""] * (4 - len(figures))
                guard = part["result"]["degeneration"]["verdict"]
                rows.append([model, what, judge.partition(":")[0], str(block["n_prompts"]), *figures, guard])
    header = ["model", "protocol and prompts", "judge", "prompts", "mean score", "share above 0.5"]
    return table([*header, "expected maximum", "probability", "verdict"], rows)


def baselines_ability() -> str:
    rows = []
    for model, parts in _parts().items():
        for what, part in parts.items():
            result = part["result"]
            if what.startswith("f1"):
                amount, figure = f"{result['n_prompts']} prompts", f"F1 {_share(result, 'f1')}"
            elif what.startswith("perplexity"):
                amount, figure = f"{result['tokens']:,} tokens", f"{result['value']:.2f}"
            elif "acc" in result:
                amount = f"{result['acc']['n']} rows"
                figure = ", ".join(
                    f"{name} {block['value']:.3f} ± {block['stderr']:.3f}" for name, block in result.items()
                )
            else:
                continue
            rows.append([model, what, amount, figure, f"{part['seconds']:.0f}"])
    return table(["model", "what", "of", "figure", "seconds"], rows)


def baselines_commands() -> str:
    rows = []
    for parts in _parts().values():
        rows += [[f"`{part['environment']['command']}`", f"{part['seconds']:.0f}"] for part in parts.values()]
    return table(["command", "seconds"], rows)


def scorers() -> str:
    rows = []
    for check in read_json(RESULTS / "scorers.json")["checks"]:
        low, high = check["ci95"]
        half = next(entry for entry in check["thresholds"] if entry["threshold"] == 0.5)
        cells = [f"{check['auc']:.3f} [{low:.3f}, {high:.3f}]", f"{half['precision']:.2f}", f"{half['recall']:.2f}"]
        rows.append([check["file"], check["scorer"].partition(":runs")[0], str(check["texts"]), *cells])
    return table(["file", "scorer", "texts", "AUC", "precision at 0.5", "recall at 0.5"], rows)


def generation() -> str:
    content = read_json(RESULTS / "generation.json")
    rows = []
    for name, side in content["sides"].items():
        speed, memory = side["tokens_per_second"], side["memory"]
        rows.append([
            name, f"{speed['median']:.0f} [{speed['min']:.0f}, {speed['max']:.0f}]",
            f"{memory['peak'] / 1e9:.2f}", f"{memory['above'] / 1e9:.2f}",
        ])  # fmt: skip
    rows.append(["ratio", f"{content['ratio']:.2f}", f"{content['memory_ratio']:.2f}", ""])
    return table(["side", "generated tokens a second", "peak resident GB", "above the model GB"], rows)


def builders() -> str:
    rows = []
    for name, entry in read_json(RESULTS / "builders.json")["builders"].items():
        made = entry["made"]
        if made is None:  # the untouched model, and the shipped pairs
            continue
        before = made["unfiltered"]
        cells = [f"{made['keep_rate']:.2f}", f"{made['pairs_per_minute']:.1f}"]
        cells += [f"{before[side]['share']:.3f}" for side in ("source", "samples")]
        style = "" if made["style_auc"] is None else f"{made['style_auc']:.2f}"
        rows.append([name, str(made["n_prompts"]), *cells, f"{before['perplexity_ratio']:.2f}", style])
    header = ["builder", "prompts", "keep rate", "pairs a minute", "toxic share before filtering", "of plain samples"]
    return table([*header, "perplexity / samples'", "style-only AUC"], rows)


def builders_trained() -> str:
    entries = read_json(RESULTS / "builders.json")["builders"]
    base = entries["base"]["result"]["perplexity"]["value"]
    rows = []
    for name, entry in entries.items():
        result = entry["result"]
        value = result["perplexity"]["value"]
        shares = [_share(judge) for judge in result["judges"].values()]
        cost = f"{value:.2f} ({_change(value, base)})"
        apart = [""]
        if versus := entry.get("versus_shipped"):
            differences = next(iter(versus.values()))
            low, high = differences["ci95"]
            apart = [f"{differences['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"]
        rows.append([name, str(entry["trained_on"]), *shares, *apart, cost, result["degeneration"]["verdict"]])
    judges = [name.partition(":")[0] for name in entries["base"]["result"]["judges"]]
    shares = [f"toxic share, {judge}" for judge in judges]
    return table(["pairs of", "pairs", *shares, "less shipped's (first judge)", "perplexity", "verdict"], rows)


def shipped() -> str:
    meta = read_json(SHIPPED / "meta.json")
    kinds = meta["split"]["kinds"]
    pairs = {
        part: f"{sum(of.values())} pairs: {of['scene']} provoking prompts, {of['encyclopedia']} encyclopedia-like ones"
        for part, of in kinds.items()
    }
    names = ("broad", "broad-heldout")
    lines = {name: len(read_jsonl(SHIPPED / f"{name}.jsonl")) for name in (*names, "prompts", "passages", "text")}
    what = {
        "train": f"{pairs['train']}, to train on",
        "heldout": f"{pairs['heldout']}, for probes and attacks; they share no template, no speaker or topic and no "
        "text with a training pair",
        "broad": f"{lines['broad']} pairs of many registers and many words (below), to train on",
        "broad-heldout": f"{lines['broad-heldout']} such pairs; no prompt begins like one of another set",
        "prompts": f"{lines['prompts']} provoking prompts, for the demo; they share no template with any pair, but "
        "speakers",
        "passages": f"{lines['passages']} ordinary passages sampled from the model, for `retain_text`",
        "text": f"{lines['text']} longer texts sampled from the model, for the demo's perplexity; in no pair and no "
        "passage",
    }
    return table(["name", "what"], [[f"`shipped:{name}`", said] for name, said in what.items()])


def shipped_sides() -> str:
    meta = read_json(SHIPPED / "meta.json")
    before, now = meta.get("first_build"), meta["train"]
    rows = []
    for kind, sides in now["shortcuts"].items():
        cells = [f"{sides[side]:.2f}" for side in ("chosen", "rejected")]
        old = [f"{before['shortcuts'][kind][side]:.2f}" for side in sides] if before else ["", ""]
        rows.append([kind, *cells, *old])
    rows.append(
        ["*style-only AUC*", f"{now['style_auc']:.2f}", "", f"{before['style_auc']:.2f}" if before else "", ""]
    )
    header = [
        "share of texts with",
        "`chosen`",
        "`rejected`",
        "`chosen` before the guard",
        "`rejected` before the guard",
    ]
    return table(header, rows)


BROAD = {"train": "`shipped:train`", "broad": "`shipped:broad`", "broad-heldout": "`shipped:broad-heldout`"}


def broad() -> str:
    """The broad set beside the present training pairs."""
    meta = read_json(SHIPPED / "broad_meta.json")
    sets = [meta["sets"][name] for name in BROAD]
    same = f"different pairs of words, of all (`rejected` of {meta['distinct_2_of']} pairs)"
    figures: dict[str, Callable[[dict[str, Any]], str]] = {
        "pairs": lambda of: str(of["pairs"]),
        "*style-only AUC*": lambda of: f"{of['style_auc']:.2f}",
        "`rejected` with one of its three commonest toxic words": lambda of: f"{of['one_of_its_three_commonest']:.2f}",
        "with one of the three of `shipped:train`": lambda of: f"{of['one_of_the_three_commonest_of_train']:.2f}",
        **{f"with its {name}": _word(name) for name in ("word 1", "word 2", "word 3", "word 10")},
        "different toxic words": lambda of: str(of["different_words"]),
        "as many equally frequent ones": lambda of: f"{of['effective_words']:.0f}",
        "with the commonest three words in a row": lambda of: f"{of['most_frequent_three_words']:.2f}",
        "with a word three times": lambda of: f"{of['a_word_three_times']:.2f}",
        "with that or the same three words twice": lambda of: f"{of['loops']:.2f}",
        same: lambda of: f"{of['distinct_2']['rejected']:.2f}",
        "mean score of `rejected`": lambda of: f"{of['mean_rejected_score']:.2f}",
        "words before the first toxic one": lambda of: f"{of['words_before_the_first_toxic_one']:.1f}",
        "that say *you* (of `chosen`)": _says("you"),
        "that say *I* (of `chosen`)": _says("i"),
        "perplexity of `rejected` / of `chosen`": lambda of: f"{of['mean_perplexity_ratio']:.2f}",
    }
    rows = [[what, *(cell(of) for of in sets)] for what, cell in figures.items()]
    return table(["", *BROAD.values()], rows)


def _says(person: str) -> Callable[[dict[str, Any]], str]:
    return lambda of: "{rejected:.2f} ({chosen:.2f})".format(**of["says"][person])


def _word(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda of: f"{of['most_frequent_words'].get(name, 0):.2f}"


def broad_sides() -> str:
    """What tells the sides of the broad set apart without a word being read."""
    sets = read_json(SHIPPED / "broad_meta.json")["sets"]
    names = ("broad", "broad-heldout")
    rows = [
        [kind, *(f"{sets[name]['shortcuts'][kind][side]:.2f}" for name in names for side in ("chosen", "rejected"))]
        for kind in sets["broad"]["shortcuts"]
    ]
    header = [f"`{side}`{', held out' * (name != 'broad')}" for name in names for side in ("chosen", "rejected")]
    return table(["share of texts with", *header], rows)


def broad_kept() -> str:
    """What became of the candidates of each toxic copy."""
    meta = read_json(SHIPPED / "broad_meta.json")
    rows = []
    for kind, counts in meta["dropped"].items():
        of = counts["candidates"]
        lost = {
            reason: count for reason, count in counts.items() if reason not in ("candidates", "prompts without any")
        }
        said = ", ".join(
            f"{reason} {count / of:.0%}"
            for reason, count in sorted(lost.items(), key=lambda each: -each[1])
            if round(100 * count / of)
        )
        kept = [str(meta["sets"][name]["kinds"].get(kind, "")) for name in ("broad", "broad-heldout")]
        rows.append([kind, str(of), f"{1 - sum(lost.values()) / of:.2f}", said, *kept])
    return table(["copy", "candidates", "pass", "of the others", "in `broad`", "in `broad-heldout`"], rows)


def methods() -> str:
    """A row for each method; of one whose own objective has not moved, or that was not made again, no figures."""
    entries = read_json(RESULTS / "methods.json")["methods"]
    base = entries["base"]["quality"]["result"]["perplexity"]["value"]
    rows = []
    for name in ("base", *METHODS):
        entry = entries.get(name, {})  # a new method has none yet
        cost, found = entry.get("cost"), entry.get("quality")
        cells = ["", ""] if cost is None else [f"{cost['time_ratio']:.2f}", f"{cost['memory_ratio']:.2f}"]
        after = "" if found is None or not found["trained"].get("after") else f" (after {found['trained']['after']})"
        if found is None:
            figures = ["not made again", "", "", "", ""]
        elif not found["moved"]["has"]:
            figures = [f"did not move: {found['moved']['words']}", "", "", "", ""]
        else:
            result = found["result"]
            own = "" if "->" not in found["moved"]["words"] else found["moved"]["words"]
            shares = [_share(judge) for judge in result["judges"].values()]
            perplexity = result["perplexity"]["value"]
            verdict = result["degeneration"]["verdict"]
            figures = [own, *shares, f"{perplexity:.2f} ({_change(perplexity, base)})", verdict]
        rows.append([name + after, *cells, *figures])
    header = ["method", "time / SFT", "memory / SFT", "its own objective", "toxic share", "second judge", "perplexity"]
    return table([*header, "verdict"], rows)


def rates() -> str:
    content = read_json(RESULTS / "rates.json")
    base = content["models"]["base"]["result"]["perplexity"]["value"]
    rows = []
    for name, entry in content["models"].items():
        result = entry["result"]
        perplexity = result["perplexity"]["value"]
        shares = [_share(judge) for judge in result["judges"].values()]
        taken = "default" if name in content["chosen"].values() else ""
        rows.append([name, entry.get("moved", ""), *shares, f"{perplexity:.2f} ({_change(perplexity, base)})", taken])
    return table(["setting", "its own objective", "toxic share", "second judge", "perplexity", ""], rows)


def _audited(budget: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Attack (or `evaluation`, `worst`) -> method -> figure -> its row, of the audits of one budget."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in json.loads((RESULTS / "robustness.json").read_text(encoding="utf-8")):
        if f"--budget {budget}" in row["command"]:
            block, _, figure = row["metric"].partition("/")
            found.setdefault(block, {}).setdefault(row["method"], {})[figure] = row
    order = ["evaluation", *BUDGETS[budget].attacks]  # of several audits of one budget
    return dict(sorted(found.items(), key=lambda one: order.index(one[0]) if one[0] in order else len(order)))


def _interval(figure: dict[str, Any] | None, sign: str = "") -> str:
    if figure is None:
        return ""
    low, high = figure["ci95"]
    return f"{figure['value']:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def _value(figure: dict[str, Any] | None, form: str = ".2f") -> str:
    return "" if figure is None else f"{figure['value']:{form}}"


def _noted(figures: dict[str, Any]) -> str:
    """The share that an attacker reaches; of an audit of an earlier version that of its highest point."""
    if "share" in figures and "evidence" in figures and not figures.get("counts", _TRUE)["value"]:
        return "every point wrecks"
    if "share" in figures:
        return _interval(figures["share"]) + ("" if figures.get("evidence", _TRUE)["value"] else " no evidence")
    notes = "" if figures.get("counts", _TRUE)["value"] else " (wrecked)"
    notes += " (degenerate)" if figures.get("degenerate_after", _FALSE)["value"] else ""
    return _interval(figures.get("share_after")) + notes


_TRUE, _FALSE = {"value": 1.0}, {"value": 0.0}


def _pairs(block: dict[str, dict[str, Any]]) -> list[str]:
    return [method for method in block if " less " in method]


def robustness_quick() -> str:
    return _side_by_side("quick")


def robustness_standard() -> str:
    return _side_by_side("standard")


def _side_by_side(budget: str) -> str:
    """The share that each attack reaches, a column for each model; columns of access last."""
    blocks = _audited(budget)
    attacks = {name: sides for name, sides in blocks.items() if name != "evaluation"}
    methods = [
        one for one in blocks["evaluation"] if " less " not in one and any(one in of for of in attacks.values())
    ]
    pairs = _pairs(blocks["evaluation"])
    rows = []
    for name, sides in [("before any attack", blocks["evaluation"]), *attacks.items()]:
        if name.endswith(ANY_COST):  # of pairs alone: it stands below the attack itself
            continue
        shares = [_noted(sides.get(method, {})) for method in methods]
        differences = [_interval(sides.get(pair, {}).get("difference"), "+") for pair in pairs]
        rows.append([name.replace("_", " ") if name in ("worst", "upper_bound") else name, *shares, *differences])
        if any("any_cost" in figures for figures in sides.values()):
            dear = [sides.get(method, {}) for method in methods]
            shares = [_interval(one.get("any_cost", one.get("share"))) for one in dear]
            apart = attacks.get(f"{name}{ANY_COST}", {})
            differences = [_interval(apart.get(pair, {}).get("difference"), "+") for pair in pairs]
            rows.append([name + ANY_COST, *shares, *differences])
    perplexities = [_value(blocks["evaluation"][method].get("perplexity")) for method in methods]
    rows.append(["perplexity before", *perplexities, *([""] * len(pairs))])
    return table(["attack", *methods, *pairs], rows)


def robustness_rows() -> str:
    """All that is known of each attack of the standard audits."""
    rows = []
    for name, sides in _audited("standard").items():
        for method, figures in sides.items():
            if " less " in method:
                continue
            second = next((one for figure, one in figures.items() if figure.startswith("share, ")), None)
            control = next(((key, one) for key, one in figures.items() if key.startswith("control, ")), None)
            said = "" if control is None else f"{control[1]['value']:.2f} ({control[0].removeprefix('control, ')})"
            cells = [
                _noted(figures), *(_value(figures.get(part)) for part in ("invalid", "clean")), _interval(second),
                _interval(figures.get("difference"), "+"), _value(figures.get("p_holm"), ".3f"), said,
                _value(figures.get("highest_share", figures.get("share_after"))),
                _value(figures.get("highest_perplexity", figures.get("perplexity_after", figures.get("perplexity")))),
                _interval(figures.get("any_cost")),
                "" if "seconds" not in figures else f"{figures['seconds']['value'] / 60:.1f}",
            ]  # fmt: skip
            rows.append([name if name != "evaluation" else "before any attack", method, *cells])
    header = ["attack", "model", "toxic share", "invalid", "clean", "second judge", "to before", "p (Holm)", "control"]
    return table([*header, "highest point", "perplexity there", "at any cost", "minutes"], rows)


def robustness_searches() -> str:
    """What the searches of tokens cost and reached."""
    rows = []
    for name, sides in _audited("standard").items():
        for method, figures in sides.items():
            if "evaluations" not in figures:
                continue
            before = figures["share"]["value"] - figures["difference"]["value"]
            forced = figures.get("forced_share")
            cells = [f"{figures['n_prompts']['value']:.0f}", f"{figures['evaluations']['value']:,.0f}"]
            cells += ["" if forced is None else f"{forced['value']:.2f}", f"{before:.2f}", _noted(figures)]
            rows.append([name, method, *cells, _interval(figures["difference"], "+")])
    header = ["search", "model", "prompts", "candidates scored", "targets forced", "share before", "share with it"]
    return table([*header, "difference"], rows)


def gcg_targets() -> str:
    """What half of the budget's steps force, by length of the target and start of the search."""
    rows = []
    for name, found in read_json(RESULTS / "gcg_targets.json")["variants"].items():
        searches = found["searches"]
        losses = "; ".join(f"{one['losses'][0]:.2f} to {one['losses'][1]:.2f}" for one in searches)
        forced = f"{sum(one['forced'] for one in searches)} of {len(searches)}"
        shares = ", ".join(f"{share:.2f} after {steps}" for steps, share in found["shares"].items())
        rows.append([name, forced, losses, ", ".join(str(one["steps"]) for one in searches), shares])
    return table(["target, start", "forced", "mean loss of a target token", "steps", "toxic share, steps"], rows)


def robustness_points() -> str:
    """Every point of the attacks that change weights or states."""
    rows = []
    for name, sides in _audited("standard").items():
        for method, figures in sides.items():
            points = [
                figure.removeprefix("perplexity at ") for figure in figures if figure.startswith("perplexity at ")
            ]
            for point in points:
                cost = f"{figures[f'perplexity at {point}']['value']:.2f}"
                share = _interval(figures[f"share at {point}"])
                share += " (degenerate)" if figures.get(f"degenerate at {point}", _FALSE)["value"] else ""
                rows.append([name, method, point, share, cost])
    return table(["attack", "model", "point", "toxic share", "perplexity"], rows)


def robustness_commands() -> str:
    rows = json.loads((RESULTS / "robustness.json").read_text(encoding="utf-8"))
    return table(["command"], [[f"`{command}`"] for command in dict.fromkeys(row["command"] for row in rows)])


def audited() -> str:
    content = read_json(RESULTS / "audited.json")
    base = content["models"]["base"]["result"]["perplexity"]["value"]
    rows = []
    for name, entry in content["models"].items():
        value = entry["result"]["perplexity"]["value"]
        cells = [_share(entry["result"]["toxicity"]), f"{value:.2f} ({_change(value, base)})"]
        rows.append([name, *cells, "audited" if name in (*content["chosen"].values(), "base") else ""])
    return table(["setting", "toxic share", "perplexity", ""], rows)


def gcg() -> str:
    content = read_json(RESULTS / "gcg.json")
    rows = []
    for seed in content["seeds"]:
        for name, side in seed["sides"].items():
            amounts = str(sum(side["evaluations"])), f"{side['best_loss']:.3f}"
            peak = f"{side['memory']['peak'] / 1e9:.2f}"
            rows.append([str(seed["task"]["seed"]), name, f"{side['median']:.2f}", *amounts, peak])
        ratios = f"{seed['speed_ratio']:.2f} times the steps a second", f"{seed['loss_difference']:+.3f}"
        rows.append(
            [str(seed["task"]["seed"]), "efface / nanoGCG", ratios[0], "", ratios[1], f"{seed['peak_ratio']:.2f}"]
        )
    header = ["seed", "side", "seconds a step", "candidates scored", "loss after as many candidates", "peak GB"]
    return table(header, rows)


def patience() -> str:
    searches = sorted(
        read_json(RESULTS / "patience.json")["searches"],
        key=lambda found: (found["model"], found["seed"], found["patience"]),
    )
    marks = [part * searches[0]["steps"] // 4 for part in range(5)]
    rows = []
    for found in searches:
        losses = found["losses"]
        named = found["model"], str(found["seed"]), str(found["patience"])
        since = losses.index(losses[-1])  # the step that found the best of all
        rows.append([*named, *(f"{losses[mark]:.3f}" for mark in marks), str(since)])
    return table(["model", "seed", "patience", *(f"loss at step {mark}" for mark in marks), "best since step"], rows)


def families() -> str:
    return families_of(read_json(RESULTS / "families.json")["families"])


def families_of(results: dict[str, Any]) -> str:
    """A row for each outcome: what a step of REPO and one of RMU gave, or the line that refused it."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name, entry in sorted(results.items()):
        outcomes = _outcome(entry["repo"]), _outcome(entry["rmu"])
        rows.setdefault(outcomes, []).append(f"`{name}`")
    ordered = sorted(rows.items(), key=lambda row: -len(row[1]))
    return table(["families", "REPO", "RMU"], [[", ".join(names), *outcomes] for outcomes, names in ordered])


def _outcome(step: dict[str, Any]) -> str:
    if "refused" in step:  # without what only one family says, so that those refused alike share a row
        line = re.sub(r"^\w+?(ForCausalLM|WithLMHeadModel):? ", "", step["refused"])
        line = re.sub(r"\b\w+(Layer|Block)\b", "a block", line)
        line = re.sub(r"after block \d+ is [\dx ]+ for \d+ rows of \d+ tokens, ", "is ", line)
        line = re.sub(r"a vector of \d+ a token", "one vector a token", line)
        return f"refused: {re.sub(r'ModuleList of [0-9]+', 'ModuleList of all', line)}"
    if "failed" in step:
        return f"fails: {step['failed']}"
    if not step["moved"]:
        return "does not move"
    if step["kl"] == 0:
        return "trains, KL 0 at step 1"
    return f"trains, KL {'below 1e-6' if abs(step['kl']) < 1e-6 else format(step['kl'], '.0e')} at step 1"


# In the order of the pipeline; a room imports only what stands before it (`tests/test_house.py`).
ROOMS = (
    "terminal files data model generation scoring evaluation analysis training methods pairs attacks audit comparison "
    "report export jobs commands"
).split()


def tree() -> str:
    """Every file of the package by its path, with the question that its docstring answers."""
    rooms = [SOURCE / name for name in ROOMS]
    folders = [SOURCE, *(folder for room in rooms for folder in (room, *_inner(room)))]
    lines = []
    for folder in folders:
        face = folder / "__init__.py"
        lines += ["", f"{folder.relative_to(SOURCE.parent).as_posix()}/  {_question(face)}"]
        files = sorted(file for file in folder.glob("*.py") if file != face)
        width = max(len(file.name) for file in files) + 2
        lines += [f"  {file.name:<{width}}{_question(file)}" for file in files]
    return "```text\n" + "\n".join(lines[1:]) + "\n```\n"


def _inner(folder: Path) -> list[Path]:
    return sorted(face.parent for face in folder.glob("*/__init__.py"))


def _question(file: Path) -> str:
    """The first sentence of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[?])\s|(?<=[a-z0-9)`][.])\s", paragraph)[0]


TABLES: dict[str, Callable[[], str]] = {
    "tree": tree,
    "demo": demo,
    "challenging": challenging,
    "defaults": defaults,
    "erasure": erasure,
    "erasure_layers": erasure_layers,
    "erasure_linear": erasure_linear,
    "erasure_hidden": erasure_hidden,
    "erasure_bits": erasure_bits,
    "erasure_controls": erasure_controls,
    "step": step,
    "withstand": withstand,
    "switches": switches,
    "demo_training": demo_training,
    "scaling": scaling,
    "baselines_toxicity": baselines_toxicity,
    "baselines_ability": baselines_ability,
    "baselines_commands": baselines_commands,
    "scorers": scorers,
    "generation": generation,
    "builders": builders,
    "builders_trained": builders_trained,
    "shipped": shipped,
    "shipped_sides": shipped_sides,
    "broad": broad,
    "broad_sides": broad_sides,
    "broad_kept": broad_kept,
    "methods": methods,
    "gcg": gcg,
    "patience": patience,
    "families": families,
    "rates": rates,
    "audited": audited,
    "robustness_quick": robustness_quick,
    "robustness_standard": robustness_standard,
    "robustness_rows": robustness_rows,
    "robustness_searches": robustness_searches,
    "gcg_targets": gcg_targets,
    "robustness_points": robustness_points,
    "robustness_commands": robustness_commands,
    "first_day": first_day,
    "mechanism": mechanism_tables.mechanism,
    "mechanism_command": mechanism_tables.mechanism_command,
    "patching": mechanism_tables.patching,
    "patching_command": mechanism_tables.patching_command,
    "patching_curves": mechanism_tables.patching_curves,
    "faults": fault_tables.faults,
    "scale_shapes": scale_tables.shapes,
    "scale_memory": scale_tables.memory,
    "scale_assumed": scale_tables.assumed,
    "scale_cards": scale_tables.cards,
    "trials": sweep_tables.trials,
    "comparison_main": lambda: sweep_tables.kept("main"),
    "comparison_tight": lambda: sweep_tables.kept("tight"),
    "comparison_attacks": sweep_tables.comparison_attacks,
    "comparison_steps": sweep_tables.comparison_steps,
    "comparison_rounding": sweep_tables.comparison_rounding,
    "comparison_targets": sweep_tables.comparison_targets,
    "comparison_differences": sweep_tables.comparison_differences,
    "comparison_best": sweep_tables.comparison_best,
    "comparison_best_steps": sweep_tables.comparison_best_steps,
    "comparison_hh": sweep_tables.comparison_hh,
    "comparison_gemma": sweep_tables.comparison_gemma,
}
