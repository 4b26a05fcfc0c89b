"""How does each figure of a result become one of Every Eval Ever? With its interval, its judge, and what it means.

A figure that a result does not hold is left out, as is what the schema only would like to have.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from efface.audit.rows import nothing_counts
from efface.evaluation.prompt_sets import HUB, RTP
from efface.evaluation.result import judges_of
from efface.export.source import Measured, public_name
from efface.files.jsonl import Row
from efface.scoring.scorer import THRESHOLD

NOT_NAMED = "not named in the result"
"""Where a figure is of texts that the result says nothing more of."""
FALLING = frozenset({"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "mse", "ter"})
"""Metrics of lm-eval of which less is better."""


@dataclass(frozen=True)
class Metric:
    """What a figure is."""

    what: str
    falling: bool = True
    """Whether less is better."""
    unit: str | None = "proportion"
    least: float | str | None = 0
    """This and `most` are None, as `unit`, where nobody says."""
    most: float | str | None = 1


TOXICITY = {
    "mean": Metric("mean of the judge's scores of all continuations", unit="score"),
    "share": Metric(f"share of all continuations that the judge scores above {THRESHOLD}"),
    "expected_maximum": Metric("mean over prompts of the highest score of a prompt's continuations", unit="score"),
    "probability": Metric(f"share of prompts with at least one continuation that is scored above {THRESHOLD}"),
    "invalid": Metric("share of all continuations that are not toxic, but no answer either"),
    "clean": Metric("share of all continuations that are neither toxic nor invalid", falling=False),
}
WRITING = {
    "repetition": Metric("mean over continuations of the share of 3-grams that stood there before"),
    "distinct_1": Metric("distinct tokens of all tokens of all continuations", falling=False),
    "distinct_2": Metric("the same of 2-grams", falling=False),
    "distinct_3": Metric("the same of 3-grams", falling=False),
    "empty": Metric("share of continuations without a letter"),
    "non_text": Metric("share of the others in which fewer than half of the visible characters are letters"),
    "perplexity_under_reference": Metric(
        "perplexity of the continuations under a reference model", unit="perplexity", least=1, most="Infinity"
    ),
}
PERPLEXITY = Metric("perplexity of ordinary text", unit="perplexity", least=1, most="Infinity")
EXCESS = Metric(
    "how much less likely an edit has made harmless text that names identity groups, beyond what it did to control "
    "texts",
    unit="nats per token",
    least="-Infinity",
    most="Infinity",
)
CONTINUED = "of the words of the continuation with those that the text went on with"
F1 = {name: Metric(f"{name} {CONTINUED}", falling=False) for name in ("precision", "recall", "f1")}
ATTACKED = Metric(
    "share of toxic continuations that an attacker reaches who chooses the point of the attack on other prompts than "
    "he is judged on"
)


def results_of(measured: Measured) -> list[Row]:
    """`evaluation_results`: of the evaluation, then of the attacks."""
    found = measured.found
    return [*_toxicity(found), *_rest(found), *_utility(found), *_attacks(measured)]


def mean_id(judge: str) -> str:
    """The identifier of the figure that a generation's score by a judge is a part of."""
    return f"toxicity/{judge}/mean"


def strings(**values: Any) -> dict[str, str]:
    """As the schema wants further details: texts alone. What is None is left out."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
        if value is not None
    }


def _toxicity(found: Row) -> Iterator[Row]:
    verdict = strings(verdict=found["degeneration"]["verdict"], reasons=found["degeneration"].get("reasons"))
    for judge, figures in judges_of(found).items():
        for name, metric in TOXICITY.items():
            if figures.get(name) is not None:
                yield _result(
                    found,
                    f"toxicity/{judge}/{name}",
                    metric,
                    figures[name],
                    ci95=figures["ci95"].get(name),
                    n=figures["n_prompts"],
                    judge=judge,
                    # A model that writes no text has no toxicity worth the name: that stands beside every figure.
                    told=verdict | strings(samples=figures["samples"]),
                )


def _rest(found: Row) -> Iterator[Row]:
    for name, metric in WRITING.items():
        value = found["degeneration"].get(name)
        if value is not None:
            yield _result(found, f"degeneration/{name}", metric, value)
    cost, words = found.get("perplexity"), found.get("f1")
    if cost is not None:
        told = strings(tokens=cost["tokens"], window=cost.get("window"), stride=cost.get("stride"))
        yield _result(found, "perplexity", PERPLEXITY, cost["value"], told=told, source=NOT_NAMED)
    for name, metric in F1.items():
        if words is not None and words.get(name) is not None:
            interval, n = words["ci95"].get(name), words.get("n_prompts")
            yield _result(found, f"continuation/{name}", metric, words[name], ci95=interval, n=n, source=NOT_NAMED)
    groups: Row = (found.get("identity") or {}).get("identity") or {}
    if groups.get("excess") is not None:
        interval = groups.get("ci95")
        yield _result(found, "identity/excess", EXCESS, groups["excess"], ci95=interval, source=NOT_NAMED)


def _utility(found: Row) -> Iterator[Row]:
    """lm-eval has metrics of every unit and range, and a result does not say which."""
    for one in found.get("utility") or []:
        falling = one["metric"].partition(",")[0] in FALLING
        metric = Metric(f"{one['metric']} of {one['task']}", falling, unit=None, least=None, most=None)
        name = f"utility/{one['task']}/{one['metric']}"
        yield _result(found, name, metric, one["value"], stderr=one.get("stderr"), n=one["n"], source=one["task"])


def _attacks(measured: Measured) -> Iterator[Row]:
    for row in measured.attacks:
        if row.get("judged") is None:
            continue
        told = strings(
            attack=row["attack"],
            flags=row.get("flags") or None,
            access=row["access"],
            evidence=row.get("evidence"),
            p_holm=row.get("p_holm"),
            chosen=row["judged"]["chosen"],
            any_of=row["judged"].get("any_of"),
            every_point_wrecked_the_model=True if nothing_counts(row) else None,
        )
        for judge, figures in row["judged"]["judges"].items():
            versus = figures["versus_before"]
            before = strings(before=versus["base"], difference=versus["difference"], difference_ci95=versus["ci95"])
            yield _result(
                measured.found,
                f"attack/{row['attack']}/{judge}/share",
                ATTACKED,
                figures["share"],
                ci95=figures["ci95"],
                n=(row.get("before") or measured.found)["toxicity"]["n_prompts"],
                judge=judge,
                told=told | before | strings(p=versus["p"]),
            )


def _result(
    found: Row,
    name: str,
    metric: Metric,
    score: float,
    *,
    ci95: Any = None,
    stderr: float | None = None,
    n: int | None = None,
    judge: str | None = None,
    told: Mapping[str, str] | None = None,
    source: str | None = None,
) -> Row:
    """One of `evaluation_results`.

    Args:
        name: identifies it in the run.
        ci95: [lower, upper].
        n: how many prompts or rows the interval or standard error is over.
        told: further details.
        source: the texts, where they are not the prompts.
    """
    config: Row = {
        "evaluation_description": metric.what,
        "metric_id": f"efface.{name.replace('/', '.')}",
        "metric_name": name.rpartition("/")[2],
        "lower_is_better": metric.falling,
    }
    if metric.unit is not None:
        config["metric_unit"] = metric.unit
    if metric.least is not None:
        config |= {"score_type": "continuous", "min_score": metric.least, "max_score": metric.most}
    if judge is not None:
        config["metric_parameters"] = {"judge": judge, "threshold": THRESHOLD}
    uncertainty: Row = {}
    if ci95 is not None:
        uncertainty["confidence_interval"] = {"lower": ci95[0], "upper": ci95[1], "confidence_level": 0.95}
    if stderr is not None:
        uncertainty["standard_error"] = {"value": stderr}
    if n is not None:
        uncertainty["num_samples"] = n
    score_details: Row = {"score": score}
    if told:
        score_details["details"] = dict(told)
    if uncertainty:
        score_details["uncertainty"] = uncertainty
    data = _prompts(found) if source is None else {"dataset_name": source, "source_type": "other"}
    return {
        "evaluation_result_id": name,
        "evaluation_name": name.partition("/")[0],
        "source_data": data,
        "metric_config": config,
        "score_details": score_details,
        "generation_config": _decoding(found),
    }


def _prompts(found: Row) -> Row:
    """Where the prompts are from."""
    settings = found.get("settings") or {}
    name, n = settings.get("prompts"), found["toxicity"]["n_prompts"]
    drawn = strings(limit=settings.get("limit"), limit_seed=settings.get("limit_seed"))
    if name in [f"rtp:{part}" for part in RTP]:  # as they are on the hub, not in a file of the user's
        return {
            "dataset_name": name,
            "source_type": "hf_dataset",
            "hf_repo": HUB,
            "samples_number": n,
            "additional_details": drawn,
        }
    more = strings(samples_number=n) | drawn
    known = NOT_NAMED if name is None else public_name(name)
    return {"dataset_name": known, "source_type": "other", "additional_details": more}


def _decoding(found: Row) -> Row:
    """How the continuations were written; what has no effect is null in the result, and left out here."""
    settings = found.get("settings") or {}
    decoding = {name: value for name, value in (settings.get("decoding") or {}).items() if value is not None}
    named = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "max_new_tokens": "max_tokens"}
    arguments = {theirs: decoding.pop(ours) for ours, theirs in named.items() if ours in decoding}
    command = (found.get("environment") or {}).get("command")
    if command is not None:
        arguments["execution_command"] = command
    more = strings(protocol=settings.get("protocol"), **decoding)
    return {"generation_args": arguments, "additional_details": more}
