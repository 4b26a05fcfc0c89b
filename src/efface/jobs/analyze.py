"""What has an edit done to a model, where, and how much of it? `efface analyze`: every block of every model, once.

    DIR/parts/NAME/BLOCK.json    as `explained.py` gives it; written as it is finished
    DIR/results.json             all of it

Blocks, whose files were made by the same models, tokenizer, pairs and settings (patching: and by the same judge), are
taken by the next run of the same command.
One edited model is held at a time, beside the base.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.audit.battery import folder_of
from efface.checks import not_negative, positive
from efface.data.pairs import load_pairs, rows_digest
from efface.data.rows import load_texts
from efface.errors import RunError, UserError, reason_of
from efface.files.digests import digest
from efface.files.environment import environment, versions
from efface.files.events import Journal, recorded
from efface.files.jsonl import Row
from efface.files.results import RESULTS, check_output_dir, read_json, write_json
from efface.files.run_directory import run_directory
from efface.jobs.erasure import HELD_OUT

if TYPE_CHECKING:
    from efface.jobs.subject import Original

PROBES = 16
"""Rows by whose texts a judge without a version is told from another of its name."""
NAMES = ("certificate", "drift", "lens", "neurons", "weights", "overlap", "patching")


def check_blocks(only: Sequence[str], patched_pairs: int) -> list[str]:
    """The blocks that are made. Raises UserError for one that there is not."""
    unknown = [name for name in only if name not in NAMES]
    if unknown:
        raise UserError(f"no block of the analysis is called {unknown[0]!r}. There are: {', '.join(NAMES)}.")
    if "patching" in only and not patched_pairs:
        raise UserError("patching needs pairs to read: set patched_pairs (--patch 16).")
    return [name for name in NAMES if (not only or name in only) and (name != "patching" or patched_pairs)]


def analyze(
    models: Mapping[str, str],
    base: str,
    *,
    output: str | os.PathLike[str],
    pairs: Any = HELD_OUT,
    text: Any = "shipped:text",
    n_pairs: int = 200,
    patched_pairs: int = 0,
    attack_steps: int = 10,
    attack_rate: float = 1e-4,
    scorer: str | None = None,
    only: Sequence[str] = (),
    seed: int = 0,
    overwrite: bool = False,
    resume: bool = False,
    command: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Row:
    """Analyse edited models beside their base; see the top of this file and `explained.py`.

    Args:
        models: name -> what `load_model` takes.
        base: what they were made from.
        output: a run directory.
        pairs: what `load_pairs` takes; others than were trained on.
        text: ordinary text, what `load_texts` takes.
        n_pairs: the first so many are read.
        patched_pairs: on so many each module is patched; 0: `patching` is left out.
        attack_steps, attack_rate: of the attacker whose change is looked at.
        scorer: judges what models write that have the edit of one module (patching); None: the default judge.
        only: the blocks that are made; all.
        seed: of controls, resamples, generation and the attacker.
        overwrite, resume: delete what lies in `output`, or take it as far as it goes.
        command: how this was called, for the record.
        say: is told what is done next, a line each.

    Returns:
        What `results.json` says: for each model its `blocks`, and `failed`, block -> why.

    Raises:
        UserError: for input that cannot work, before a model is loaded.
    """
    from efface.analysis.rounds import PARTS  # on use: it imports numpy, and NAMES is asked for by --help

    not_negative("patched_pairs", patched_pairs)
    for name, value in {"n_pairs": n_pairs, "attack_steps": attack_steps, "attack_rate": attack_rate}.items():
        positive(name, value)
    blocks = check_blocks(only, patched_pairs)
    rows, texts = load_pairs(pairs).rows[:n_pairs], load_texts(text)
    if len(rows) < PARTS:
        raise UserError(f"{len(rows)} pairs are too few for a probe, which needs {PARTS}. Give more.")
    check_output_dir(output, overwrite=overwrite, resume=resume, inputs=[base, *models.values(), pairs, text])

    from efface.jobs.subject import Depth, Original
    from efface.model.fingerprint import fingerprint_of, tokenizer_fingerprint
    from efface.model.load import load_model

    judge = _judge(scorer, rows) if "patching" in blocks else None
    depth = Depth(
        n_pairs, patched_pairs=patched_pairs, attack_steps=attack_steps, attack_rate=attack_rate, scorer=scorer
    )
    original, tokenizer = load_model(base)
    read: list[Any] = [fingerprint_of(original), tokenizer_fingerprint(tokenizer), rows_digest(rows), digest(texts)]
    read += [dataclasses.asdict(depth), seed, versions()]
    with (
        run_directory(output, overwrite=overwrite, resume=resume, inputs=[*models.values()]) as folder,
        recorded(folder, say, command=command) as journal,
    ):
        shared = Original(original, tokenizer, rows, texts, depth, seed)
        told: list[Row] = []
        for name, source in models.items():
            told.append(_explained(name, source, blocks, shared, read, judge, folder, journal))
            results = {
                "schema": 1,
                "what": "analysis",
                "base": base,
                "n_pairs": len(rows),
                "settings": dataclasses.asdict(depth) | {"seed": seed, "pairs": str(pairs), "text": str(text)},
                "models": told,
                "environment": environment(seed=seed, model=original, command=command),
            }
            write_json(folder / RESULTS, results)
        return results


def _judge(scorer: str | None, rows: Sequence[Row]) -> str:
    """What a judge is known by, since one that was trained anew keeps its name: its version, or a hash of what it says
    of a few texts if it has none (a plain function)."""
    from efface.data.preferences import text_of
    from efface.scoring import DEFAULT_SCORER, load_scorer
    from efface.scoring.scorer import score

    judge = load_scorer(scorer or DEFAULT_SCORER)
    texts = [text_of(row[side]) for row in rows[:PROBES] for side in ("chosen", "rejected")]
    return getattr(judge, "version", None) or digest([round(value, 3) for value in score(judge, texts).tolist()])


def _explained(
    name: str,
    source: str,
    blocks: Sequence[str],
    original: "Original",
    read: list[Any],
    judge: str | None,
    folder: Path,
    journal: Journal,
) -> Row:
    """What `results.json` says of an edited model; its blocks are written as they are made, or taken as they lie."""
    from efface.jobs.explained import BLOCKS
    from efface.jobs.subject import Subject
    from efface.model.fingerprint import fingerprint_of
    from efface.model.load import load_model

    edited = load_model(source)[0]
    weights, subject = fingerprint_of(edited), Subject(edited, original)
    model: Row = {"name": name, "model": source, "blocks": {}, "failed": {}}
    for block in blocks:
        made_by = digest([block, weights, *read, judge if block == "patching" else None])
        file = folder / "parts" / folder_of(name) / f"{block}.json"
        found = read_json(file) if file.exists() else {}
        if found.get("made_by") != made_by:
            journal(f"{name}: {block}")
            try:
                with journal.during("block", model=name, block=block):
                    write_json(file, {"schema": 1, "made_by": made_by, "found": BLOCKS[block](subject)})
            except (UserError, RunError) as error:  # whatever it is, the others are made
                model["failed"][block] = reason_of(error)
                journal(f"{name}: {block} failed: {reason_of(error)}")
                continue
            found = read_json(file)
        model["blocks"][block] = found["found"]
    return model
