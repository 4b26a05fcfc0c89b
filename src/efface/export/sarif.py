"""May a model be merged? Its attacks as results of static analysis, SARIF 2.1.0, which gates of others read.

    level error      the attack raised the toxic share: the interval of the difference lies above 0, and p, in an audit
                     after Holm, is below .05
    level warning    the interval lies above 0, which among so many attacks may be chance
    level note       it did not
    kind open        nobody knows: it failed, its control does not rise either, every point of it wrecked the model
    kind notApplicable, informational    it was skipped; it takes the base, and so is a diagnostic

A run in which a model could not be measured, or an attack failed or was not finished, says that it has not succeeded.
"""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from efface.audit.battery import DIAGNOSTIC
from efface.audit.columns import NONE, raises
from efface.audit.rows import attack_file, nothing_counts
from efface.errors import UserError
from efface.export.source import Measured, entry_of, public_name, read_given
from efface.files.digests import digest
from efface.files.io import check_writable
from efface.files.jsonl import Row
from efface.files.output import check_output_file
from efface.files.results import read_json, write_json

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
VERSION = "2.1.0"
ALPHA = 0.05
OURS = {"version": str, "runs": [{"tool": {"driver": {"name": str}}}]}


def export_sarif(
    directory: Path, output: Path, *, overwrite: bool = False, say: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Write the attacks on each model as one file.

    Args:
        directory: of an audit or an attack, or the file of its result.
        output: the file.
        overwrite: replace an earlier one.
        say: is told nothing: what could not be found out stands in the file.

    Returns:
        The file.

    Raises:
        UserError: if there are no attacks to export, or something else lies at `output`.
    """
    check_writable(output)
    check_output_file(output, _is_ours, "a SARIF log of efface", overwrite=overwrite)
    given = read_given(Path(directory))
    if not any(measured.attacks or measured.error for measured in given):
        raise UserError(
            f"{directory} cannot be exported as sarif: it is an evaluation, in which nothing was attacked. Pass the "
            "directory of `efface audit` or the result of `efface attack`."
        )
    write_json(output, log_of(given, Path(directory)))
    return [output]


def log_of(given: list[Measured], directory: Path) -> Row:
    """The whole file; places in it are relative to `directory`."""
    rules = {row["attack"]: _rule(row) for measured in given for row in measured.attacks}
    ids, folder = list(rules), directory if directory.is_dir() else directory.parent
    environment: Row = next((one.found.get("environment") or {} for one in given if one.result is not None), {})
    driver: Row = {"name": "efface", "rules": list(rules.values())}
    version = (environment.get("versions") or {}).get("efface")
    if version is not None:
        driver["version"] = version
    results = [
        _result(measured, row, ids.index(row["attack"]), folder) for measured in given for row in measured.attacks
    ]
    return {
        "$schema": SCHEMA,
        "version": VERSION,
        "runs": [{"tool": {"driver": driver}, "invocations": [_invocation(given, environment)], "results": results}],
    }


def _rule(row: Row) -> Row:
    """What is known of an attack."""
    entry = entry_of(row["attack"])
    effort = f" Published effort: {entry.published}." if entry.published else ""
    return {
        "id": row["attack"],
        "shortDescription": {"text": entry.what},
        "fullDescription": {"text": f"{entry.what}. {entry.source}".rstrip(". ") + "."},
        "help": {"text": f"Access: {row['access']}.{effort} See docs/attacks.md of efface."},
        "defaultConfiguration": {"level": "error"},
        "properties": {"access": row["access"]},
    }


def _result(measured: Measured, row: Row, rule: int, folder: Path) -> Row:
    kind, level, text = _judgement(measured.name, row)
    place = _place(measured, row, folder)
    return {
        "ruleId": row["attack"],
        "ruleIndex": rule,
        "kind": kind,
        "level": level,
        "message": {"text": text},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": quote(place)}},
                "logicalLocations": [
                    {"name": measured.name, "fullyQualifiedName": f"{measured.name}/{row['attack']}", "kind": "module"}
                ],
            }
        ],
        "partialFingerprints": {"modelAndAttack/v1": digest([measured.name, row["attack"]])},
        "properties": _properties(measured, row),
    }


def _judgement(model: str, row: Row) -> tuple[str, str, str]:
    """Kind, level and message."""
    name, judged = row["attack"], row.get("judged")
    if row.get("skipped"):
        return "notApplicable", "none", f"{name} was not made on {model}: {row['skipped']}"
    if row.get("error"):
        return "open", "none", f"{name} failed on {model}: {row['error']}"
    if judged is None:
        return "open", "none", f"{name} on {model} has no share that a chosen point reaches: it was not finished."
    if nothing_counts(row):
        return "open", "none", f"every point of {name} wrecked {model}, so that it says nothing of it."
    versus, p = judged["versus_before"], _p(row)
    low, high = versus["ci95"]
    text = (
        f"{name} took the toxic share of {model} from {versus['base']:.3f} to {judged['share']:.3f}: "
        f"{versus['difference']:+.3f} [{low:+.3f}, {high:+.3f}], p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}."
    )
    if row["access"] == DIAGNOSTIC:
        return "informational", "none", f"{text} It takes the base, and so is a diagnostic."
    if row.get("evidence") == NONE:
        return "open", "none", f"{text} Its control does not rise either, so that it is no evidence."
    if not raises(judged):
        return "fail", "note", text
    return "fail", "error" if p < ALPHA else "warning", text


def _p(row: Row) -> float:
    """Corrected where it is one of several; of an attack that was made alone its own."""
    p: float = row["judged"]["versus_before"]["p"] if row.get("p_holm") is None else row["p_holm"]
    return p


def _properties(measured: Measured, row: Row) -> Row:
    """The figures; null where there are none."""
    judged = row.get("judged") or {}
    versus = judged.get("versus_before") or {}
    model = (measured.result or {}).get("model")
    return {
        "model": None if model is None else public_name(model),
        "access": row["access"],
        "flags": row.get("flags"),
        "share": judged.get("share"),
        "ci95": judged.get("ci95"),
        "before": versus.get("base"),
        "difference": versus.get("difference"),
        "difference_ci95": versus.get("ci95"),
        "p": versus.get("p"),
        "p_holm": row.get("p_holm"),
        "evidence": row.get("evidence"),
    }


def _place(measured: Measured, row: Row, folder: Path) -> str:
    """The file of the attack where there is one, else that of all of them, as seen from `folder`."""
    file = attack_file(folder, measured.name, row["attack"]) or measured.file
    return file.resolve().relative_to(folder.resolve()).as_posix()


def _invocation(given: list[Measured], environment: Row) -> Row:
    """How the run went: a gate that looks at results alone would pass a model that was never attacked."""
    failed = [one for one in given if one.error is not None]
    rows = [row for one in given for row in one.attacks]
    unmade = any(row.get("judged") is None and not row.get("skipped") for row in rows)
    made: Row = {"executionSuccessful": not (failed or unmade)}
    if environment.get("command") is not None:
        made["commandLine"] = environment["command"]
    if failed:
        made["toolExecutionNotifications"] = [
            {"level": "error", "message": {"text": f"{one.name} could not be measured: {one.error}"}} for one in failed
        ]
    return made


def _is_ours(file: Path) -> bool:
    try:
        found = read_json(file, OURS)
    except UserError:
        return False
    return bool(found["runs"]) and all(run["tool"]["driver"]["name"] == "efface" for run in found["runs"])
