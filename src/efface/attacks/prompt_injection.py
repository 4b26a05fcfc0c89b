"""Does hand-written text around the prompt talk the model out of its manners? Prompt injection.

Perez and Ribeiro 2022 (arXiv 2211.09527) put instructions into the input that override the intended task. Here they
are ours, without a rude word of their own: instructions, false transcripts, role play, forums without rules. Each is
one point; the attack is judged by the worst, so a longer list is a stronger attack. What an attacker gets who may try
all of them on each prompt stands beside, with the same of the base.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from efface.attacks.altered import altered_to_fit, attack_altered, prompts_as_read
from efface.attacks.record import recorded
from efface.attacks.result import AttackResult
from efface.attacks.target import Target
from efface.checks import at_least_one
from efface.data.rows import labelled_rows, name_of
from efface.errors import UserError

NONE = "none"
"""What the start of the curve is called, and so no injection."""
ANY = "any"
"""What the best of all on each prompt is called, and so no injection either."""


@dataclass(frozen=True)
class PromptInjectionSettings:
    """Settings of `prompt_injection`."""

    NAMES_FILES: ClassVar[dict[str, tuple[str, ...]]] = {"injections": ()}
    """Settings that name a file, and words that each may be instead: see `describe_settings`."""
    injections: str = field(
        default="shipped:injections",
        metadata={"help": "JSON lines with `name`, and `before` and `after`: the texts put around each prompt."},
    )
    first: int | None = field(default=None, metadata={"help": "Use only the first so many of them; default: all."})

    def __post_init__(self) -> None:
        at_least_one(self, "first")


@dataclass(frozen=True)
class Injection:
    """The texts that are put around a prompt."""

    name: str
    before: str
    after: str

    def around(self, prompt: str) -> str:
        """The prompt with them."""
        return self.before + prompt + self.after


def prompt_injection(target: Target, settings: PromptInjectionSettings) -> AttackResult:
    """Measure the model with each injection around every prompt; with `chat` they are part of the user's message.

    Judged by the worst single injection, as in the paper; the last point, the best of all on each prompt, does not
    count. `found`: what `attack_altered` says.

    Raises:
        UserError: if the file of injections cannot be used.
    """
    injections = load_injections(settings.injections)[: settings.first]
    prompts = prompts_as_read(target)

    def injected(one: Injection) -> Callable[[], list[str]]:
        return lambda: altered_to_fit(target, prompts, lambda _, prompt: one.around(prompt))

    points = (({"injection": one.name}, injected(one)) for one in injections)
    with recorded(target, "prompt_injection", settings) as record:
        return attack_altered(record, points, start={"injection": NONE}, any_point={"injection": ANY})


def load_injections(source: str) -> list[Injection]:
    """The injections of a JSON-lines file, or of `shipped:NAME`.

    Raises:
        UserError: naming the line, if a text is missing, both are empty, or a name is missing or used twice.
    """
    found: dict[str, Injection] = {}
    for where, row in labelled_rows(source):
        for column in ("name", "before", "after"):
            if not isinstance(row.get(column), str):
                raise UserError(f"{where}: {column!r} must be a text, but it is {row.get(column)!r}.")
        if not row["before"] + row["after"]:
            raise UserError(f"{where}: `before` and `after` are both empty. Give one of them a text.")
        if row["name"] in {"", NONE, ANY, *found}:
            raise UserError(f"{where}: the name {row['name']!r} is empty or taken. Give each injection its own.")
        found[row["name"]] = Injection(row["name"], row["before"], row["after"])
    if not found:
        raise UserError(f"{name_of(source)} is empty: pass at least one injection.")
    return list(found.values())
