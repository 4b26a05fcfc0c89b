"""Which figures stand in a model card? A table to read, and the `model-index` that the Hugging Face hub reads.

Only what was measured, with its conditions; nothing of what a model wrote or was asked.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from efface.files.jsonl import Row
from efface.files.markdown import inert

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TASK = "text-generation"
REAL_TOXICITY_PROMPTS = "allenai/real-toxicity-prompts"
"""Where the hub has what `--prompts rtp:PART` draws from."""


def eval_results(edited: Row) -> "list[EvalResult]":
    """An entry for each figure of an evaluation (`Evaluation.to_dict`): the toxic share by each judge, the perplexity,
    each metric of the utility tasks."""
    from huggingface_hub import EvalResult

    source = _source(edited)
    dataset = REAL_TOXICITY_PROMPTS if source.startswith("rtp:") else "prompts"
    found = [
        EvalResult(
            task_type=TASK,
            dataset_type=dataset,
            dataset_name=f"prompts: {source}",
            metric_type="toxic_share",
            metric_name=f"toxic share, {judge}",
            metric_value=summary["share"],
            metric_args={"judge": judge, **_known(summary, "decoding", "n_prompts", "samples")},
        )
        for judge, summary in edited["judges"].items()
    ]
    perplexity = edited.get("perplexity")
    if perplexity:
        found.append(
            EvalResult(
                task_type=TASK,
                dataset_type="text",
                dataset_name="ordinary text",
                metric_type="perplexity",
                metric_value=perplexity["value"],
                metric_args=_known(perplexity, "tokens", "window", "stride") or None,
            )
        )
    found += [
        EvalResult(
            task_type=TASK,
            dataset_type=ability["task"],
            dataset_name=ability["task"],
            metric_type=ability["metric"],
            metric_value=ability["value"],
            metric_args=_known(ability, "n") or None,
        )
        for ability in edited.get("utility") or ()
    ]
    return found


def figures_section(base: Row | None, edited: Row | None, comparison: Row | None) -> str:
    """A table of both evaluations, or that there is none."""
    if base is None or edited is None:
        return "## Figures\n\nThe run that made it measured none: `efface evaluate` and `efface audit` do."
    lines = ["| | base | this model |", "| --- | --- | --- |"]
    for judge in edited["judges"]:
        shares = [side["judges"].get(judge) for side in (base, edited)]
        if None not in shares:
            lines.append(f"| toxic share, {inert(judge)} | {' | '.join(map(_share, shares))} |")
    if base.get("perplexity") and edited.get("perplexity"):
        values = (f"{one['perplexity']['value']:.2f}" for one in (base, edited))
        lines.append(f"| perplexity | {' | '.join(values)} |")
    verdicts = (inert(one["degeneration"]["verdict"]) for one in (base, edited))
    lines.append(f"| writing | {' | '.join(verdicts)} |")
    first = next(iter(edited["judges"].values()))
    how = f"{first['n_prompts']} prompts ({inert(_source(edited))}) x {first['samples']}"
    how += f", {inert(str(first['decoding']))}"
    text = "## Figures\n\n" + "\n".join(lines) + f"\n\nOf {how}; 95 % intervals over prompts."
    if comparison and comparison.get("share_ratio") is not None:
        text += f" Toxic share, this model over base: {comparison['share_ratio']:.2f}."
    return text


def _share(summary: Mapping[str, Any]) -> str:
    low, high = summary["ci95"]["share"]
    return f"{summary['share']:.3f} [{low:.3f}, {high:.3f}]"


def _source(evaluation: Row) -> str:
    """Where the prompts came from."""
    return str(evaluation["settings"].get("prompts") or "given as a list")


def _known(block: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Some of a block, as far as it is there: in a `model-index` nothing is null."""
    return {name: block[name] for name in names if block.get(name) is not None}
