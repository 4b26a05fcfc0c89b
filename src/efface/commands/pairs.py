"""`efface pairs MODEL -o PAIRS.jsonl`"""

import argparse
from typing import TYPE_CHECKING, Any

from efface.commands.early import check_named
from efface.commands.fields import Field, add_field, described_fields, flag_of, given_fields
from efface.commands.options import MODEL_HELP, add_file_reuse, add_loading, add_output_file, seed
from efface.commands.printing import show
from efface.errors import UserError
from efface.pairs import SOURCES, load_source
from efface.pairs.config import BuilderConfig
from efface.pairs.source import missing_setting
from efface.terminal.table import Page, Table

if TYPE_CHECKING:
    from efface.pairs.report import BuildReport
    from efface.pairs.source import SourceSettings


def add(commands: Any) -> None:
    command = commands.add_parser("pairs", help="build preference pairs from the model itself")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_output_file(command)
    command.add_argument(
        "--toxic",
        default="antiexpert",
        choices=list(SOURCES),
        help=f"who writes the toxic side: {'; '.join(entry.what for entry in SOURCES.values())}",
    )
    command.add_argument("--scorer", default="alt-profanity-check", help="selects the pairs; see `efface scorers`")
    command.add_argument("--limit", type=int, default=None, help="stop at so many pairs")
    command.add_argument("--seed", type=seed, default=0, help="of whatever is drawn")
    add_file_reuse(command, "pairs")
    _add_prompts(command.add_argument_group("prompts (--toxic corpus has its own)"))
    _add_sources(command)
    _add_filters(command.add_argument_group("what is kept, and how it is drawn"))
    add_loading(command)
    command.set_defaults(run=run, refuse=check_named)


def _add_prompts(group: Any) -> None:
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--prompts",
        default=None,
        help="JSON lines with `prompt`, or rtp:PART (default: the prompts of the shipped pairs, or of those of them "
        "that the toxic copy does not learn from)",
    )
    either.add_argument(
        "--prompts-from-text", default=None, metavar="FILE", help="cut prompts from documents: JSON lines with `text`"
    )
    group.add_argument("--first", type=int, default=None, metavar="N", help="use only the first N documents")


def _add_sources(command: argparse.ArgumentParser) -> None:
    """The settings of all sources: those that the same ones share in a group, and each once."""
    owners: dict[str, dict[str, Field]] = {}  # setting -> source -> its field
    for name in SOURCES:
        for field in described_fields(load_source(name)):
            owners.setdefault(field.name, {})[name] = field
    groups = {titles: command.add_argument_group(titles) for titles in dict.fromkeys(map(_title, owners.values()))}
    for fields in owners.values():
        texts = dict.fromkeys(field.metadata["help"] for field in fields.values())
        defaults = {name: field.default for name, field in fields.items()}
        add_field(groups[_title(fields)], next(iter(fields.values())), "; or ".join(texts), defaults)


def _add_filters(group: Any) -> None:
    for field in described_fields(BuilderConfig):
        of_sources = {
            name: getattr(entry, field.name) for name, entry in SOURCES.items() if hasattr(entry, field.name)
        }
        add_field(group, field, field.metadata["help"], of_sources or {"": field.default})


def _title(sources: dict[str, Field]) -> str:
    return f"--toxic {', '.join(sources)}"


def run(options: argparse.Namespace) -> None:
    from efface.pairs.builder import build_pairs

    report = build_pairs(
        options.model,
        _prompts(options),
        _source(options),
        output=options.output,
        config=BuilderConfig(**given_fields(options, BuilderConfig), seed=options.seed),
        scorer=options.scorer,
        overwrite=options.overwrite,
        resume=options.resume,
        limit=options.limit,
        command=options.command_line,
        progress=True,
    )
    show(_page(options.output, report))


def _source(options: argparse.Namespace) -> "SourceSettings":
    """The settings of the source, or what is wrong with its flags."""
    name, kind = options.toxic, load_source(options.toxic)
    _refuse_settings_of_others(options)
    settings = kind(**given_fields(options, kind))
    missing = missing_setting(settings)
    if missing is not None:
        raise UserError(f"--toxic {name} needs {flag_of(missing.name)}: {missing.metadata['needed']}.")
    own = SOURCES[name].prompts_from
    if own and (options.prompts or options.prompts_from_text or options.first):
        raise UserError(
            f"--toxic {name} splits its prompts from {flag_of(own)}: leave out the flags for other prompts."
        )
    return settings


def _refuse_settings_of_others(options: argparse.Namespace) -> None:
    """Raise a `UserError` if a flag was given that the chosen source does not have: nothing would come of it."""
    owners: dict[str, list[str]] = {}  # setting -> sources
    for name in SOURCES:
        for field in described_fields(load_source(name)):
            owners.setdefault(field.name, []).append(name)
    for setting, names in owners.items():
        if options.toxic not in names and getattr(options, setting) is not None:
            raise UserError(
                f"{flag_of(setting)} is of no effect with --toxic {options.toxic}: it is a setting of "
                f"{', '.join(names)}. Leave it out, or choose another source."
            )


def _prompts(options: argparse.Namespace) -> str | list[str] | None:
    if options.prompts_from_text is None:
        if options.first is not None and not SOURCES[options.toxic].prompts_from:
            raise UserError("--first counts documents: it needs --prompts-from-text.")
        return options.prompts or None
    from efface.data.rows import load_texts
    from efface.pairs.prompts import prompts_from_text

    return prompts_from_text(load_texts(options.prompts_from_text)[: options.first], seed=options.seed)


def _page(output: Any, report: "BuildReport") -> Page:
    from efface.pairs.unfiltered import describe

    first = (
        f"{output}: {report.counts['kept']} pairs from {report.n_prompts} prompts; {report.keep_rate:.1%} pass the "
        "filters"
    )
    if report.settings.get("split") != "never":  # which writes nothing
        first += f", {report.pairs_per_minute:.1f} pairs a minute of generation"
    auc = "not measured, there are too few pairs" if report.style_auc is None else report.style_auc
    last = (
        f"style-only AUC: {auc} (0.5: style does not tell the sides apart; 1: a discriminator could read style alone)"
    )
    figures = describe(report.unfiltered)
    whole = [*_rows_read(report), first, _counted(report.counts), *(["\n".join(figures)] if figures else []), last]
    return Page(whole)


def _rows_read(report: "BuildReport") -> list[Table | str]:
    """What became of the rows of a corpus; nothing where no such was read."""
    from efface.pairs.corpus import NOT_EDITED

    splits = report.settings.get("splits")
    if not splits:
        return []
    found: list[Table | str] = [f"{report.settings['rows_read']} rows read, of which became:", _counted(splits)]
    if splits.get(NOT_EDITED, 0) > report.n_prompts:
        found.append("(parallel texts, `toxic` beside `neutral`, need no split: --split never takes them whole)")
    return found


def _counted(counts: dict[str, int]) -> Table:
    return Table([(str(count), reason) for reason, count in sorted(counts.items())], prose=(1,))
