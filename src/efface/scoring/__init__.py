"""JUDGE: who says how toxic a text is, by name. A new scorer is one file and one entry here."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from efface.errors import RunError, UserError, described
from efface.registry import Entry, resolve
from efface.scoring.scorer import NamedScorer, Scorer


@dataclass(frozen=True)
class ScorerEntry(Entry):
    """At its path is what makes the scorer: of nothing, or of what its name takes."""

    takes: str = ""
    """What stands behind the colon: `FILE` of `words:FILE`. Nothing for a scorer that is its name alone."""
    made_of: str = "argument"
    """What that is, for the one who makes it: an "argument", "members" with commas, a "classifier" of transformers or
    an "llm", which have options, and a device."""


DEFAULT_SCORER = "alt-profanity-check"
SCORERS = {
    "alt-profanity-check": ScorerEntry("efface.scoring.profanity:ProfanityScorer", "the linear model from PyPI"),
    "hf": ScorerEntry(
        "efface.scoring.hf:HFScorer",
        "any sequence classifier of transformers; hf:ID_OR_DIR,label=NAME,threshold=T says which label means toxic, "
        "and from where on",
        takes="ID_OR_DIR",
        made_of="classifier",
    ),
    "llm": ScorerEntry(
        "efface.scoring.llm:LLMScorer",
        "a causal language model that judges, prompt and continuation: Llama Guard, ShieldGemma, WildGuard, or any, "
        "asked a question; llm:MODEL,template=NAME,threshold=T",
        takes="MODEL",
        made_of="llm",
    ),
    "words": ScorerEntry(
        "efface.scoring.words:WordListScorer",
        "1 for a text with a word of the list, one word or phrase a line",
        takes="FILE",
    ),
    "judge": ScorerEntry(
        "efface.scoring.judge:Judge.load",
        "our own second judge, made by `efface scorers --train`; it never selects pairs",
        takes="DIR",
    ),
    "mean": ScorerEntry(
        "efface.scoring.ensemble:Ensemble", "the mean of other scorers", takes="A,B,...", made_of="members"
    ),
    "max": ScorerEntry(
        "efface.scoring.ensemble:Ensemble", "the highest score of other scorers", takes="A,B,...", made_of="members"
    ),
}


def list_scorers() -> dict[str, str]:
    """What may be written for a scorer -> what it is."""
    known = {
        f"{name}:{entry.takes}" if entry.takes else name: entry.what if entry.takes else entry.path
        for name, entry in SCORERS.items()
    }
    return known | {"package.module:attribute": "your own"}


def load_scorer(name: str | Scorer, *, label: str | None = None, device: str | None = None) -> Scorer:
    """The scorer called `name`; a scorer itself is returned as it is.

    Args:
        name: one of `list_scorers()`. Any existing directory, or an id with a slash, is taken for a Hugging Face
            classifier; `package.module:attribute` is a third party's scorer, scorer class or plain function; the
            members of `mean:` and `max:` have any other form, without commas.
        label: which label of a Hugging Face classifier means toxic; None finds it by name.
        device: of a Hugging Face classifier.

    Raises:
        UserError: if there is no such scorer.
    """
    if not isinstance(name, str):
        return name
    check_scorer(name)
    kind, colon, argument = name.partition(":")
    entry = SCORERS.get(kind)
    if entry is not None and entry.made_of == "argument" and (entry.takes or not colon):
        return resolve_name(entry.path)(*([argument] if entry.takes else []))
    if entry is not None and entry.made_of == "members" and argument:
        members = [load_scorer(member, label=label, device=device) for member in argument.split(",")]
        return resolve_name(entry.path)(kind, members)
    if entry is not None and entry.made_of == "llm" and argument:
        model, options = split_options(name, argument, ("template", "threshold"))
        return resolve_name(entry.path)(model, device=device, **options)
    if _is_classifier(name):
        model, options = split_options(name, name.removeprefix("hf:"), ("label", "threshold"))
        return resolve_name(SCORERS["hf"].path)(model, device=device, **{"label": label} | options)
    return _third_party(name)


def load_known_scorer(name: str) -> Scorer:
    """The scorer that a file of results names, whose maker is not trusted: one of `SCORERS`, from this machine.

    Raises:
        UserError: if it is none of them, or is not here: nobody's code is imported for it, and nothing fetched.
    """
    from efface.model.hub import from_cache  # on use: it imports huggingface_hub

    kind, _, argument = name.partition(":")
    entry = SCORERS.get(kind)
    if entry is None or bool(argument) != bool(entry.takes):
        raise UserError(f"scorer {name!r} is none of efface's own, and is not loaded because a file names it.")
    for member in argument.split(",") if entry.made_of == "members" else ():
        load_known_scorer(member)
    with from_cache(True):
        return load_scorer(name)


def check_scorer(name: str) -> None:
    """Raise a `UserError` if there is no such scorer, as far as that is seen without importing or reading it."""
    kind, colon, argument = name.partition(":")
    entry = SCORERS.get(kind)
    if entry is not None and entry.made_of == "members" and argument:
        for member in argument.split(","):
            check_scorer(member)
    elif entry is not None and entry.takes in ("FILE", "DIR") and argument and not os.path.lexists(argument):
        what = "word list" if entry.takes == "FILE" else "judge"
        raise UserError(f"scorer {name!r}: the {what} cannot be read (no {argument!r} is there). Name another.")
    elif not colon and (entry is None or entry.takes) and not _is_classifier(name):
        raise UserError(f"scorer {name!r} is unknown. There are: {'; '.join(list_scorers())}.")


def _is_classifier(name: str) -> bool:
    """Whether a name stands for a classifier of transformers."""
    return (
        name.startswith("hf:") or Path(name.rpartition("#")[0] or name).is_dir() or ("/" in name and ":" not in name)
    )


def split_options(name: str, given: str, known: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """`DIR,label=bad,threshold=0.7` -> "DIR", {"label": "bad", "threshold": 0.7}.

    Raises:
        UserError: for another option, or a threshold that is no number between 0 and 1.
    """
    if Path(given).is_dir():  # whatever it is called
        return given, {}
    model, *rest = given.split(",")
    options: dict[str, Any] = {}
    for one in rest:
        key, equals, value = one.partition("=")
        if key not in known or not equals or key in options:
            raise UserError(
                f"scorer {name!r}: {one!r} is none of {', '.join(f'{key}=...' for key in known)}, each once."
            )
        options[key] = _between(name, value) if key == "threshold" else value
    return model, options


def _between(name: str, value: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (number := float(value)) < 1:
            return number
    raise UserError(f"scorer {name!r}: threshold={value} must be a number between 0 and 1.")


def _third_party(name: str) -> Scorer:
    found = resolve("scorer", name, {}, "package.module:attribute")
    try:
        scorer = found() if isinstance(found, type) else found
    except (UserError, RunError):
        raise
    except (Exception, SystemExit) as error:  # a third party's code
        raise UserError(f"scorer {name!r} cannot be made: {described(error)}.") from error
    if not callable(scorer):
        raise UserError(f"scorer {name!r} is a {type(scorer).__name__}, which cannot be called with a list of texts.")
    return scorer if hasattr(scorer, "name") else NamedScorer(name, scorer)
