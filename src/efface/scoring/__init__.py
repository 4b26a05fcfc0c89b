"""JUDGE: who says how toxic a text is."""

from pathlib import Path
from pkgutil import resolve_name

from efface.errors import RunError, UserError, described
from efface.registry import resolve
from efface.scoring.scorer import NamedScorer, Scorer

SCORERS = {
    "alt-profanity-check": "efface.scoring.profanity:ProfanityScorer",
}


WITH_ARGUMENT = {
    "words": "efface.scoring.words:WordListScorer",
    "judge": "efface.scoring.judge:Judge.load",
}


FORMS = {
    "hf:ID_OR_DIR": "any sequence classifier of transformers; hf:ID_OR_DIR#LABEL says which label means toxic",
    "words:FILE": "1 for a text with a word of the list, one word or phrase a line",
    "judge:DIR": "our own second judge, made by `efface scorers --train`; it never selects pairs",
    "mean:A,B,...": "the mean of other scorers",
    "max:A,B,...": "the highest score of other scorers",
    "package.module:attribute": "your own",
}


DEFAULT_SCORER = "alt-profanity-check"


def load_scorer(name: str | Scorer, *, label: str | None = None, device: str | None = None) -> Scorer:
    """The scorer called `name`; a scorer itself is returned as it is.

    Args:
        name: an entry of `SCORERS` or one of `FORMS`. Any existing directory, or an id with a slash, is taken for a
            Hugging Face classifier; `package.module:attribute` is a third party's scorer, scorer class or plain
            function; the members of `mean:` and `max:` have any other form, without commas.
        label: which label of a Hugging Face classifier means toxic; None finds it by name.
        device: of a Hugging Face classifier.

    Raises:
        UserError: if there is no such scorer.
    """
    if not isinstance(name, str):
        return name
    if name in SCORERS:
        return resolve_name(SCORERS[name])()
    kind, _, argument = name.partition(":")
    if kind in WITH_ARGUMENT:
        return resolve_name(WITH_ARGUMENT[kind])(argument)
    if kind in ("mean", "max") and argument:
        from efface.scoring.ensemble import Ensemble

        return Ensemble(kind, [load_scorer(member, label=label, device=device) for member in argument.split(",")])
    if name.startswith("hf:") or Path(name.rpartition("#")[0] or name).is_dir() or ("/" in name and ":" not in name):
        from efface.scoring.hf import HFScorer

        return HFScorer(name.removeprefix("hf:"), label=label, device=device)
    if ":" in name:
        return _third_party(name)
    raise UserError(f"scorer {name!r} is unknown. There are: {'; '.join([*SCORERS, *FORMS])}.")


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
