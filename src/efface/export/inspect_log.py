"""How does one page through what a model wrote? As logs of Inspect AI, for `inspect view --log-dir OUT`.

A sample is a prompt, an epoch one of its continuations; each judge is a scorer. The log is made of Inspect's own
classes, which check it, and written as JSON by its naming, by which the viewer finds it. No result says when it was
made: the time in a log is that of the export.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import UserError, reason_of
from efface.evaluation.result import judges_of
from efface.export import check_export_dir, prepare_export_dir
from efface.export.generations import place_of, read_generations
from efface.export.source import Measured, public_name, read_given
from efface.files.jsonl import Row
from efface.files.results import write_json
from efface.scoring.scorer import THRESHOLD

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalResults, EvalSample

TASK = "efface-evaluate"
KEPT = ("degeneration", "perplexity", "f1", "utility", "identity", "versus_baseline")
"""Blocks of an evaluation that Inspect has no place for: they stand in the metadata of its results."""


def export_inspect(
    directory: Path, output: Path, *, overwrite: bool = False, say: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Write a log of each evaluation, with its generations, into `output`.

    Args:
        directory: of an evaluation, a demo or detox run, or the file of its result.
        output: a new or empty folder, or one of an earlier export.
        overwrite: replace that.
        say: is told nothing: what cannot be exported is an error.

    Returns:
        The files.

    Raises:
        UserError: if Inspect is not installed, there are no generations, or the folder holds something else.
    """
    _check_installed()
    check_export_dir(output, "inspect", _is_own, overwrite=overwrite, directory=directory)
    logs = {}
    now = datetime.now(UTC).replace(microsecond=0)
    for measured in read_given(Path(directory)):
        rows = read_generations(measured) if measured.result is not None else None
        if rows is None:
            raise UserError(
                f"{measured.name} of {directory} cannot be exported as inspect: a log is of generations, and there is "
                "no .generations.jsonl beside it. Pass an evaluation with its generations."
            )
        name = f"{now:%Y-%m-%dT%H-%M-%S}+00-00_{TASK}-{re.sub(r'[^A-Za-z0-9]+', '-', measured.name)}"
        logs[f"{name}_{measured.identity[:8]}.json"] = log_of(measured, rows, now.isoformat())
    folder = prepare_export_dir(output, "inspect", overwrite=overwrite)
    for name, log in logs.items():
        write_json(folder / name, log.model_dump(mode="json", exclude_none=True))
    return [folder / name for name in logs]


def log_of(measured: Measured, rows: list[Row], now: str) -> "EvalLog":
    """The log of an evaluation with its generations."""
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSpec
    from inspect_ai.model import GenerateConfig

    found, toxicity = measured.found, measured.found["toxicity"]
    settings, environment = (found.get(name) or {} for name in ("settings", "environment"))
    decoding = settings.get("decoding") or {}
    prompts, version = settings.get("prompts"), (environment.get("versions") or {}).get("efface")
    samples = samples_of(measured, rows)
    return EvalLog(
        status="success",
        eval=EvalSpec(
            eval_id=measured.identity,
            run_id=measured.identity,
            task_id=measured.identity,
            created=now,
            task=TASK,
            dataset=EvalDataset(
                name=None if prompts is None else public_name(prompts),
                samples=toxicity["n_prompts"],
                sample_ids=list(range(1, toxicity["n_prompts"] + 1)),
            ),
            model=public_name(found.get("model") or measured.name),
            model_generate_config=GenerateConfig(
                max_tokens=decoding.get("max_new_tokens"),
                temperature=decoding.get("temperature"),
                top_p=decoding.get("top_p"),
                top_k=decoding.get("top_k"),
                seed=decoding.get("seed"),
            ),
            config=EvalConfig(epochs=toxicity["samples"]),
            packages={} if version is None else {"efface": version},
            metadata={"settings": settings, "environment": environment},
        ),
        results=_results(found, len(samples)),
        samples=samples,
    )


def samples_of(measured: Measured, rows: list[Row]) -> "list[EvalSample]":
    """A sample for each continuation."""
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, ModelOutput
    from inspect_ai.scorer import Score

    toxicity = measured.found["toxicity"]
    model = public_name(measured.found.get("model") or measured.name)
    samples = []
    for number, row in enumerate(rows):
        prompt, epoch = place_of(number, toxicity["samples"])
        written = row["continuation"]
        scores = {judge: row["scores"][judge] for judge in judges_of(measured.found)}
        samples.append(
            EvalSample(
                id=prompt,
                epoch=epoch,
                input=row["prompt"],
                target="",
                messages=[ChatMessageUser(content=row["prompt"]), ChatMessageAssistant(content=written)],
                output=ModelOutput.from_content(model, written, stop_reason="unknown"),
                scores={
                    judge: Score(value=value, answer=written, metadata={"toxic": value > THRESHOLD})
                    for judge, value in scores.items()
                },
                metadata={"invalid": row.get("invalid")},
            )
        )
    return samples


def _is_own(entry: Path) -> bool:
    """Whether a file has the name of a log that is written above: not one of Inspect's own runs."""
    return entry.suffix == ".json" and f"_{TASK}-" in entry.name


def _results(found: Row, n: int) -> "EvalResults":
    from inspect_ai.log import EvalMetric, EvalResults, EvalScore

    scores = []
    for judge, figures in judges_of(found).items():
        metrics: dict[str, Any] = {}
        for name, ends in figures["ci95"].items():
            if figures.get(name) is not None:
                metrics[name] = EvalMetric(name=name, value=figures[name], metadata={"ci95": ends})
        scores.append(EvalScore(name=judge, scorer=judge, scored_samples=n, metrics=metrics))
    kept = {name: found[name] for name in KEPT if found.get(name) is not None}
    return EvalResults(total_samples=n, completed_samples=n, scores=scores, metadata=kept)


def _check_installed() -> None:
    try:
        import inspect_ai.log  # noqa: F401
    except Exception as error:  # a package of many parts, any of which may be missing or too old
        raise UserError(
            f"the format inspect needs the package inspect_ai, which cannot be imported ({reason_of(error)}). Install "
            "it: pip install efface[inspect]"
        ) from error
