"""`efface scorers`: list them, train our own (`--train`), measure what they are worth (`--check`)"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.commands.early import check_scorers
from efface.commands.lists import table_of
from efface.commands.options import seed
from efface.commands.printing import sayer, show
from efface.data.rows import check_source
from efface.errors import UserError
from efface.terminal.table import Notes, Table

if TYPE_CHECKING:
    from efface.scoring.check import Check, Quality


def add(commands: Any) -> None:
    command = commands.add_parser("scorers", help="list the toxicity scorers, train our own judge, or check them")
    either = command.add_mutually_exclusive_group()
    either.add_argument(
        "--train",
        nargs="+",
        metavar="FILE",
        help="train a judge on labelled texts: JSON lines with `text` and `toxic`, `label` or `spans`, or a .tsv such "
        "as ParaDetox's; it is used as judge:DIR and never selects pairs",
    )
    either.add_argument("--check", nargs="+", metavar="FILE", help="measure scorers on labelled texts")
    command.add_argument(
        "--benign",
        nargs="+",
        default=[],
        metavar="FILE",
        help="with --train: JSON lines with `text`, all benign",
    )
    command.add_argument(
        "--scorer",
        nargs="+",
        default=["alt-profanity-check"],
        metavar="NAME",
        help="with --check: which ones (default: alt-profanity-check)",
    )
    command.add_argument(
        "-o", "--output", metavar="PATH", help="with --train: the judge's folder; with --check: a JSON file"
    )
    command.add_argument("--overwrite", action="store_true", help="replace the judge, or the check, that is there")
    command.add_argument("--seed", type=seed, default=0, help="of the split, and of the bootstrap")
    command.set_defaults(run=run, refuse=refuse)


def refuse(options: argparse.Namespace) -> None:
    for file in [*(options.train or []), *(options.check or []), *options.benign]:
        check_source(file, "texts")
    if options.check:
        check_scorers(options.scorer)


def run(options: argparse.Namespace) -> None:
    if options.train:
        _train(options)
    elif options.check:
        _check(options)
    elif options.output or options.benign:
        raise UserError("--output and --benign go with --train FILE... or --check FILE...: name the labelled texts.")
    else:
        from efface.scoring import list_scorers

        show(table_of(list_scorers()))


def _train(options: argparse.Namespace) -> None:
    if options.output is None:
        raise UserError("--train needs -o DIR, the folder of the judge.")
    from efface.files.results import prepare_output_dir
    from efface.scoring.judge_training import train_judge

    if not options.overwrite:
        prepare_output_dir(options.output)  # refused before the work, not after it
    judge = train_judge(options.train, benign=options.benign, seed=options.seed, command=options.command_line)
    judge.save(options.output, overwrite=options.overwrite)
    show(_table([(entry["file"], entry) for entry in judge.meta["held_out"]], "held out:"))
    sayer(options)(f"use it as judge:{options.output}")


def _check(options: argparse.Namespace) -> None:
    from efface.files.environment import environment
    from efface.files.io import check_writable
    from efface.files.output import check_output_file, is_stamped
    from efface.files.results import write_json
    from efface.scoring.check import check_scorers

    if options.output is not None:
        check_writable(Path(options.output))

        def is_check(file: Path) -> bool:
            return is_stamped(file, {"checks": list})

        check_output_file(options.output, is_check, "a check of scorers", overwrite=options.overwrite)
    checks = check_scorers(options.check, options.scorer, seed=options.seed, progress=True)
    for name in dict.fromkeys(check.scorer for check in checks):
        notes = Notes()
        lines = [line for check in checks if check.scorer == name for line in _lines(check, notes)]
        show(_table(lines, f"{name}:", notes))
    if options.output is not None:
        stamp = environment(seed=options.seed, model=None, command=options.command_line)
        write_json(
            Path(options.output),
            {"schema": 1, "checks": [check.to_dict() for check in checks], "environment": stamp},
        )


def _lines(check: "Check", notes: Notes) -> Iterator[tuple[str, dict[str, Any]]]:
    """A file, and its implicit and explicit texts apart, if it has such."""
    left_out = f"left out: {check.unlabelled} rows without a label, {check.seen} texts seen in training"
    mark = f" {notes.mark(left_out)}" if check.unlabelled or check.seen else ""
    yield check.file + mark, check.quality.to_dict()
    for kind in ("implicit", "explicit"):
        quality: Quality | None = getattr(check, kind)
        if quality is not None:
            yield f"- {kind}", quality.to_dict()


def _table(lines: Sequence[tuple[str, dict[str, Any]]], title: str, notes: Sequence[str] = ()) -> Table:
    """How many texts, AUC with its interval, and precision and recall at each threshold."""
    thresholds = [entry["threshold"] for entry in lines[0][1]["thresholds"]] if lines else []
    rows = []
    for name, quality in lines:
        auc = "-" if quality["auc"] is None else "{:.3f} [{:.3f}, {:.3f}]".format(quality["auc"], *quality["ci95"])
        at = [f"{_number(entry['precision'])}/{_number(entry['recall'])}" for entry in quality["thresholds"]]
        rows.append((name, f"{quality['toxic']} of {quality['texts']}", auc, *at))
    head = ("", "toxic", "AUC", *(f"above {each}" for each in thresholds))
    explained = f"{title} at each threshold precision/recall of the toxic ones" if rows else title
    return Table(rows, head if rows else (), title=explained, notes=notes)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
