"""How do results stand beside those of other laboratories? As records of Every Eval Ever, schema 0.3.0.

    OUT/data/efface/ORGANISATION/MODEL/UUID.json             a model that was measured, and the attacks on it
    OUT/data/efface/ORGANISATION/MODEL/UUID_samples.jsonl    what it wrote, where that lies beside the result

The same result has the same UUID whenever it is exported. Who evaluated, and when, no result says: the record says
"unknown", and has the time of the export alone.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from efface.errors import UserError
from efface.evaluation.result import judges_of
from efface.export import check_export_dir, prepare_export_dir
from efface.export.eee_metrics import mean_id, results_of, strings
from efface.export.generations import place_of, read_generations
from efface.export.source import Measured, public_name, read_given
from efface.files.jsonl import Row
from efface.files.results import write_json, write_jsonl
from efface.scoring.scorer import THRESHOLD

SCHEMA = "0.3.0"
COLLECTION = "efface"
UNKNOWN = "unknown"


def export_eee(
    directory: Path, output: Path, *, overwrite: bool = False, say: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Write a record of each model that was measured, and of each of its generations, under `output`.

    Args:
        directory: of an evaluation, an attack, an audit, a demo or detox run, or the file of one of its results.
        output: a new or empty folder, or one of an earlier export.
        overwrite: replace that.
        say: is told, in a line each, what could not be written.

    Returns:
        The files.

    Raises:
        UserError: if there is nothing to export, or the folder holds something else.
    """
    check_export_dir(output, "eee", _is_own, overwrite=overwrite, directory=directory)
    found = read_given(Path(directory))
    for measured in found:
        _tell_missing(measured, say)
    given = [(measured, read_generations(measured)) for measured in found if measured.result is not None]
    if not given:
        raise UserError(f"{directory} has no model that could be measured: there is nothing to export.")
    folder, written = prepare_export_dir(output, "eee", overwrite=overwrite), []
    for measured, rows in given:
        record = record_of(measured, str(int(time.time())))
        place = Path("data", COLLECTION, *folders_of(record["model_info"]["id"]))
        stem = folder / place / measured.identity
        if rows is not None:
            samples = stem.with_name(f"{stem.name}_samples.jsonl")
            lines = instances_of(measured, rows, record)
            write_jsonl(samples, lines)
            record["detailed_evaluation_results"] = {
                "format": "jsonl",
                "file_path": (place / samples.name).as_posix(),
                "hash_algorithm": "sha256",
                "checksum": hashlib.sha256(samples.read_bytes()).hexdigest(),
                "total_rows": len(lines),
            }
            written.append(samples)
        write_json(stem.with_name(f"{stem.name}.json"), record)
        written.append(stem.with_name(f"{stem.name}.json"))
    return written


def record_of(measured: Measured, now: str) -> Row:
    """The record of a model, without what it wrote.

    Args:
        now: in seconds since 1970.
    """
    found = measured.found
    environment = found.get("environment") or {}
    versions = dict(environment.get("versions") or {})
    model = public_name(found.get("model") or measured.name)
    ours, transformers = versions.pop("efface", None), versions.get("transformers")
    engine = {"inference_engine": {"name": "transformers", "version": transformers}} if transformers else {}
    where = {name: environment.get(name) for name in ("commit", "device", "dtype", "threads", "seed")}
    return {
        "schema_version": SCHEMA,
        "evaluation_id": f"{COLLECTION}-{measured.identity[:8]}/{model}/{now}",
        "retrieved_timestamp": now,
        "source_metadata": {
            "source_name": "efface",
            "source_type": "evaluation_run",
            "source_organization_name": UNKNOWN,
            "evaluator_relationship": "other",
        },
        "eval_library": {
            "name": "efface",
            "version": ours or UNKNOWN,
            "additional_details": strings(**versions, **where),
        },
        "model_info": {
            "name": measured.name,
            "id": model,
            **engine,
            "additional_details": {"deployment_type": "self_deployed", "model_availability": UNKNOWN},
        },
        "evaluation_results": results_of(measured),
    }


def instances_of(measured: Measured, rows: list[Row], record: Row) -> list[Row]:
    """A line for each continuation and judge: its score is a part of that judge's mean, and it is correct where the
    score is not above the threshold, of which the toxic share is the rest."""
    samples = measured.found["toxicity"]["samples"]
    lines = []
    for number, row in enumerate(rows):
        prompt, which = place_of(number, samples)
        same: dict[str, Any] = {
            "schema_version": SCHEMA,
            "evaluation_id": record["evaluation_id"],
            "model_id": record["model_info"]["id"],
            "evaluation_name": "toxicity",
            "sample_id": f"{prompt}.{which}",
            "sample_hash": hashlib.sha256(row["prompt"].encode("utf-8", "replace")).hexdigest(),
            "interaction_type": "single_turn",
            "input": {"raw": row["prompt"], "reference": []},
            "output": {"raw": [row["continuation"]]},
            "answer_attribution": [
                {
                    "turn_idx": 0,
                    "source": "output.raw",
                    "extracted_value": row["continuation"],
                    "extraction_method": "the whole continuation",
                    "is_terminal": True,
                }
            ],
        }
        for judge in judges_of(measured.found):
            score = row["scores"][judge]
            lines.append(
                same
                | {
                    "evaluation_result_id": mean_id(judge),
                    "evaluation": {"score": score, "is_correct": score <= THRESHOLD},
                    "metadata": strings(judge=judge, threshold=THRESHOLD, invalid=row.get("invalid")),
                }
            )
    return lines


def folders_of(model: str) -> tuple[str, str]:
    """Organisation and model, as names of folders: those of an id of the hub, else "local" and the last part."""
    organisation, slash, name = model.rpartition("/")
    hub = re.fullmatch(r"\w[\w.-]*/[\w.-]+", model) is not None and not os.path.isdir(model)
    return _folder(organisation if slash and hub else "local"), _folder(name)


def _is_own(entry: Path) -> bool:
    """Whether an entry of the folder of an export has only what is written above: not the records of others too."""
    return entry.name == "data" and entry.is_dir() and [each.name for each in entry.iterdir()] == [COLLECTION]


def _folder(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or UNKNOWN


def _tell_missing(measured: Measured, say: Callable[[str], None]) -> None:
    if measured.result is None:
        say(f"{measured.name}: left out, since it could not be measured")
    for row in measured.attacks:
        if row.get("judged") is None:
            say(f"{measured.name}: without {row['attack']}, which has no share that a chosen point reaches")
    if measured.generations is not None and not measured.generations.exists():
        say(f"{measured.name}: without its generations, since {measured.generations} is not there")
