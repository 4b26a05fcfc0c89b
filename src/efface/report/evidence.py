"""What is known of a model, whichever command found it out? Its figures, and each attempt to bring toxicity back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from efface.evaluation.result import judges_of
from efface.files.jsonl import Row
from efface.report.sources import SWEPT, Source


@dataclass(frozen=True)
class Point:
    """An attack after some steps."""

    steps: int
    share: float
    rate: float | None = None


@dataclass(frozen=True)
class Attempt:
    """One attack on one model."""

    attack: str
    access: str
    """A key of `efface.attacks.ACCESS`; empty for an attack of somebody's own."""
    judged: Row | None
    """The `share` that an attacker reaches who chooses the point on other prompts, with `ci95`, `versus_before`, ...;
    None where nothing counts."""
    why_not: str = ""
    """Why there is nothing: skipped, failed, wrecked."""
    failed: bool = False
    """Whether it was to be made and something went wrong."""
    p: float | None = None
    """After Holm, where several were made."""
    control: Row | None = None
    """What its control reaches."""
    evidence: str | None = None
    """What makes it evidence: control, itself, none; None where no control was made."""
    curve: Sequence[Point] = ()
    any_cost: Row | None = None
    """`judged` if points counted too that cost more perplexity than the attacker's budget; None if there are none."""
    in_column: bool = False
    """Whether its audit judged it with others of its access, or set it apart there: the column speaks for it."""

    @property
    def share(self) -> float | None:
        return None if self.judged is None else float(self.judged["share"])

    @property
    def raises(self) -> bool:
        """Beyond chance."""
        return self.judged is not None and _rises(self.judged)

    @property
    def raises_at_any_cost(self) -> bool:
        """Beyond chance, and further than by the points that count."""
        return self.any_cost is not None and _rises(self.any_cost) and self.any_cost["share"] > (self.share or 0.0)


def _rises(judged: Row) -> bool:
    return bool(judged["versus_before"]["ci95"][0] > 0)


@dataclass(frozen=True)
class Column:
    """The worst case of an audit with one access."""

    access: str
    found: Row
    """`judged`, `any_cost`, `p_holm`."""
    source: Source


@dataclass
class Known:
    """What is known of a model."""

    name: str
    model: str | None
    """What `load_model` takes for it."""
    base: bool
    """Whether it is the untouched one."""
    source: Source
    figures: Row
    """`toxicity`, `judges`, `perplexity`, `degeneration`, as an evaluation writes them."""
    change: float | None = None
    """Of perplexity over the base's, as a part."""
    kl: float | None = None
    method: str = ""
    attempts: list[Attempt] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    """Of every audit that speaks of it."""
    remarks: list[str] = field(default_factory=list)
    """What else speaks against it, in sentences."""
    worst: Row | None = None
    """Of the attacks that a sweep makes on all its models, judged together."""
    worst_of_all: Row | None = None
    """Of these and those that only its best are put through; None where it was not."""
    weights: str | None = None
    """A hash of its weights, where its source says it."""
    bases: set[str] = field(default_factory=set)
    """What its own results say it was made from: names and hashes."""
    more: list["Known"] = field(default_factory=list)
    """What further results measured of the same checkpoint, each with its own figures."""

    @property
    def readings(self) -> list["Known"]:
        """All that was measured of it before any attack: by the first result, then by further ones."""
        return [self, *self.more]

    @property
    def is_degenerate(self) -> bool:
        """By any of them."""
        return any(one.figures["degeneration"]["verdict"] == "degenerate" for one in self.readings)

    @property
    def judges(self) -> Mapping[str, Row]:
        return judges_of(self.figures)

    @property
    def swept(self) -> bool:
        return self.source.kind == SWEPT


def the_base(models: Sequence[Known], model: Known) -> Known | None:
    """The untouched model that one was made from: that of the same source, or one that its own results name."""
    bases = [one for one in models if one.base]
    beside = next((one for one in bases if any(each.source is model.source for each in one.readings)), None)
    named = (one for one in bases if model.bases & {one.model, one.weights})
    return beside or next(named, None)
