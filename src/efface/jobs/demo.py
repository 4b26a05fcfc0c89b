"""What is the main job, from pairs to report? `efface demo`: base figures, REPO, edited figures, one table, one page.

Everything lands in one directory; a finished stage is not done again (`base.json`, `model/`, `edited.json`,
`erasure.json`), so an interrupted demo goes on where it was. `efface detox` (`detox.py`) is the same on another model,
with pairs of its own, the strength chosen, and an audit.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from efface.data.rows import load_texts
from efface.files.environment import environment, versions
from efface.files.events import recorded
from efface.files.rerun import check_plan, read_plan, write_plan
from efface.files.results import RESULTS, check_output_dir, read_json, write_json
from efface.files.run_directory import run_directory
from efface.jobs.before_after import compare_sides, measure_side, read_sides, tell, write_page
from efface.jobs.erasure import measure_erasure
from efface.methods import PLAIN
from efface.model.card import write_card
from efface.terminal.table import Block

SETTINGS: dict[str, Any] = {
    **PLAIN,
    "logging_steps": 2,
    "disable_tqdm": False,
}
PAIRS = "shipped:train"
SAMPLES = 4
TEXT_TOKENS = 8_000
SEED = 0


def run(
    output: Path,
    *,
    model_name: str | None = None,
    max_steps: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    command: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    show: Callable[[Block], None] = lambda block: None,
) -> dict[str, Any]:
    """Detoxify a model on the shipped pairs and show it.

    Args:
        output: gets `model/`, `base.json`, `edited.json`, `erasure.json`, `figure.png`, `report.html` and
            `results.json`.
        say: is told at every step what happens and how long it should take.
        show: is given what came of it.

    Returns:
        What was written to `results.json`.
    """
    from efface.model.load import DEFAULT_MODEL

    name = model_name or DEFAULT_MODEL
    settings = SETTINGS | ({} if max_steps is None else {"max_steps": max_steps})
    plan = {"model": name, "settings": settings, "samples": SAMPLES, "text_tokens": TEXT_TOKENS, "seed": SEED}
    # What the user may have got wrong is checked before anything in the output directory is deleted or written.
    output = check_output_dir(output, overwrite=overwrite, resume=resume, inputs=[name])
    start = time.monotonic()

    def numbered(number: int, text: str) -> str:
        return f"\n[{number}/5, {time.monotonic() - start:4.0f} s] {text}"

    from efface.model.fingerprint import fingerprint_of
    from efface.model.load import load_model

    say(numbered(1, f"load {name} (half a minute; the first time another minute to download and convert it)"))
    plan |= {"model of": fingerprint_of(load_model(name)[0]), "versions": versions()}
    if resume:
        check_plan(output, read_plan(output), plan, "a demo", {})
    with (
        run_directory(output, overwrite=overwrite, resume=resume, inputs=[name]),
        recorded(output, say, command=command) as journal,
    ):

        def step(number: int, text: str) -> None:
            journal.stage(text, numbered(number, text))

        write_plan(output, plan)
        step(2, f"measure the untouched model: 128 held-out prompts x {SAMPLES} samples, perplexity (1 minute)")
        _evaluate(name, output / "base.json", command=command)
        step(
            3,
            f"REPO, the erasure alone: {settings['max_steps']} steps on the shipped pairs (about 4 s each on 2 cores)",
        )
        _train(name, output / "model", settings, command=command, say=journal)
        step(4, "measure the edited model in the same way (1 to 2 minutes)")
        _evaluate(str(output / "model"), output / "edited.json", base=name, command=command)
        step(5, "probe the hidden states of both models on held-out pairs, write the report (half a minute)")
        erasure = measure_erasure(name, str(output / "model"), output, trained_on=PAIRS, seed=SEED, say=journal)
        result = _report(output, plan, command, erasure)
        tell(output, result["comparison"], show)
        journal(f"\nreport: {output / 'report.html'}\nmodel:  {output / 'model'} (an ordinary checkpoint)")
        return result


def _evaluate(model: str, file: Path, *, base: str | None = None, command: str | None) -> None:
    measure_side(
        model,
        file,
        prompts=load_texts("shipped:prompts", field="prompt"),
        texts=load_texts("shipped:text"),
        text_tokens=TEXT_TOKENS,
        samples=SAMPLES,
        seed=SEED,
        base=base,
        command=command,
    )


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


def _report(output: Path, plan: dict[str, Any], command: str | None, erasure: dict[str, Any]) -> dict[str, Any]:
    n_prompts = len(load_texts("shipped:prompts", field="prompt"))
    training = read_json(output / "model" / RESULTS, {"history": [dict], "settings": dict})
    comparison = compare_sides(output, n_prompts)
    base, edited = read_sides(output)
    write_card(output / "model", base=base, edited=edited, comparison=comparison)
    result = {
        "schema": 1,
        "plan": plan,
        "base": base,
        "edited": edited,
        "comparison": comparison,
        "erasure": erasure,
        "environment": environment(seed=SEED, model=None, command=command),
    }
    write_json(output / RESULTS, result)
    write_page(output, title="efface demo", training=training, erasure=erasure)
    return result
