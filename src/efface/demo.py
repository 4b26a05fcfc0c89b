"""What is the main job, from pairs to report? `efface demo`: base figures, REPO, edited figures, one table, one page.

Everything lands in one directory; a finished stage is not done again (`base.json`, `model/`, `edited.json`), so an
interrupted demo goes on where it was.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from efface.data.rows import load_texts
from efface.errors import UserError
from efface.evaluation.result import EVALUATION
from efface.files.jsonl import Row, read_jsonl
from efface.files.rerun import check_plan, read_plan, write_plan
from efface.files.results import RESULTS, check_output_dir, environment, prepare_output_dir, read_json, write_json
from efface.files.shapes import check_shape
from efface.report.table import evaluation_table
from efface.training import DEFAULT_STEPS

SETTINGS: dict[str, Any] = {
    "max_steps": DEFAULT_STEPS,
    "logging_steps": 2,
    "disable_tqdm": False,
}
PAIRS = "shipped:train"
SAMPLES = 4
TEXT_TOKENS = 8_000
SEED = 0
STAGES = ("base", "edited")
MEASURED = EVALUATION | {"perplexity": {"value": float, "tokens": int}}
"""The shape of what either stage has measured."""


def run(
    output: Path,
    *,
    model_name: str | None = None,
    max_steps: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    command: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Detoxify a model on the shipped pairs and show it.

    Args:
        output: gets `model/`, `base.json`, `edited.json`, `figure.png`, `report.html` and `results.json`.
        say: is told at every step what happens and how long it should take.

    Returns:
        What was written to `results.json`.
    """
    from efface.model.load import DEFAULT_MODEL

    name = model_name or DEFAULT_MODEL
    settings = SETTINGS | ({} if max_steps is None else {"max_steps": max_steps})
    plan = {"model": name, "settings": settings, "samples": SAMPLES, "text_tokens": TEXT_TOKENS, "seed": SEED}
    # What the user may have got wrong is checked before anything in the output directory is deleted or written.
    output = check_output_dir(output, overwrite=overwrite, resume=resume, inputs=[name])
    if resume:
        check_plan(output, read_plan(output), plan, "a demo", {})
    start = time.monotonic()

    def step(number: int, text: str) -> None:
        say(f"\n[{number}/5, {time.monotonic() - start:4.0f} s] {text}")

    from efface.model.load import load_model

    step(1, f"load {name} (half a minute; the first time another minute to download and convert it)")
    load_model(name)
    write_plan(prepare_output_dir(output, overwrite=overwrite, resume=resume), plan)
    step(2, f"measure the untouched model: 128 held-out prompts x {SAMPLES} samples, perplexity (1 minute)")
    _evaluate(name, output / "base.json", command=command)
    step(3, f"REPO: {settings['max_steps']} steps on the shipped pairs (about 4 s a step on 2 cores)")
    _train(name, output / "model", settings, command=command, say=say)
    step(4, "measure the edited model in the same way (1 to 2 minutes)")
    _evaluate(str(output / "model"), output / "edited.json", base=name, command=command)
    step(5, "write the report (a few seconds)")
    result = _report(output, plan, command)
    base, edited, comparison = read_json(output / "base.json"), read_json(output / "edited.json"), result["comparison"]
    say("\n" + evaluation_table({"base": base, "edited": edited}))
    ratio, low, high = (
        math.inf if x is None else x for x in (comparison["share_ratio"], *comparison["share_ratio_ci95"])
    )
    say(f"\ntoxic share, edited / base: {ratio:.2f} [{low:.2f}, {high:.2f}]")
    say(f"perplexity: {100 * comparison['perplexity_change']:+.1f} %")
    say(f"\nreport: {output / 'report.html'}\nmodel:  {output / 'model'} (an ordinary Hugging Face checkpoint)")
    return result


def _evaluate(model: str, file: Path, *, base: str | None = None, command: str | None) -> None:
    if file.exists():
        return
    from efface.evaluation.measure import evaluate
    from efface.evaluation.result import generations_path
    from efface.evaluation.settings import OrdinaryText, RunSettings
    from efface.generation.decoding import Decoding

    evaluate(
        model,
        load_texts("shipped:prompts", field="prompt"),
        decoding=Decoding(samples=SAMPLES, seed=SEED),
        text=OrdinaryText(load_texts("shipped:text"), max_tokens=TEXT_TOKENS),
        reference=base or model,
        baseline=None if base is None else file.with_name("base.json"),
        run=RunSettings(generations_path=generations_path(file), command=command),
        progress=True,
    ).save(file)


def _train(
    name: str, directory: Path, settings: dict[str, Any], *, command: str | None, say: Callable[[str], None]
) -> None:
    if (directory / RESULTS).exists():
        return
    from efface.methods import load_method
    from efface.training.run import train

    train(
        load_method("repo"),
        name,
        PAIRS,
        directory,
        settings,
        method="repo",
        overwrite=directory.exists(),
        command=command,
        say=say,
    )


def _rows(file: Path) -> list[Row]:
    rows = read_jsonl(file)
    check_shape(rows, [{"prompt": str, "continuation": str, "score": float}], str(file))
    if len(rows) != SAMPLES * len(load_texts("shipped:prompts", field="prompt")):
        raise UserError(f"{file} has {len(rows)} rows, which are not {SAMPLES} of each prompt. Pass overwrite=True.")
    return rows


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _report(output: Path, plan: dict[str, Any], command: str | None) -> dict[str, Any]:
    from efface.evaluation.comparison import ratio_ci
    from efface.report.figures import Findings, draw
    from efface.report.html import write_report
    from efface.scoring import load_scorer

    base, edited = (read_json(output / f"{name}.json", MEASURED) for name in STAGES)
    training = read_json(output / "model" / RESULTS, {"history": [dict], "settings": dict})
    base_rows, edited_rows = (_rows(output / f"{name}.generations.jsonl") for name in STAGES)
    scores = [np.array([row["score"] for row in rows]).reshape(-1, SAMPLES) for rows in (base_rows, edited_rows)]
    ratio = ratio_ci(scores[1], scores[0])
    comparison = {
        # JSON has no infinity, which the ratio is where the base (of a resample) is not toxic at all.
        "share_ratio": _finite(ratio.ratio),
        "share_ratio_ci95": [_finite(ratio.lower), _finite(ratio.upper)],
        "perplexity_change": edited["perplexity"]["value"] / base["perplexity"]["value"] - 1,
    }
    figures = draw(Findings(base, edited, training["history"]), output)
    examples = [
        {
            "prompt": b["prompt"],
            "base": b["continuation"],
            "base_score": b["score"],
            "edited": e["continuation"],
            "edited_score": e["score"],
        }
        for b, e in list(zip(base_rows, edited_rows, strict=True))[:: SAMPLES * 6][:20]
    ]
    write_report(
        output / "report.html",
        title="efface demo",
        base=base,
        edited=edited,
        history=training["history"],
        figures=figures,
        comparison=comparison,
        examples=examples,
        settings={
            "method": "repo",
            "model": plan["model"],
            "pairs": PAIRS,
            **training["settings"],
            "command": command,
        },
        scorer=load_scorer(base["toxicity"]["scorer"]),
    )
    result = {
        "schema": 1,
        "plan": plan,
        "base": base,
        "edited": edited,
        "comparison": comparison,
        "environment": environment(seed=SEED, model=None, command=command),
    }
    write_json(output / RESULTS, result)
    return result
