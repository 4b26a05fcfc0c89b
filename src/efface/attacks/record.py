"""Where is an attack until it is done? What it has measured is kept, one by one; an interrupted run goes on there."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from efface.attacks.composed import combine, of_prompts
from efface.attacks.lists import describe_settings
from efface.attacks.measurement import Measurement
from efface.attacks.result import AttackResult, check_result_file, title
from efface.attacks.selection import NOTHING, judge_chosen, option_of
from efface.attacks.target import Target
from efface.checks import all_finite
from efface.errors import NotFinite, RunError, UserError, out_of_memory
from efface.files.digests import digest
from efface.files.environment import environment
from efface.files.jsonl import Row
from efface.files.part import PartFile
from efface.generation.decoding import Decoding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


class Record:
    """An attack in the making: what it measures is kept, in memory and in the part file of the target's output.

    Args:
        attack: its name.
        settings: its settings, a dataclass.
        prompts: numbers of those of the target that are attacked, if not all are. It is still the whole target that
            `described` tells of: by that an earlier run is known again.

    Raises:
        UserError: if a part file lies there and the target does not say `resume`, or it was begun otherwise; if
            something else than the result of an attack has the name of the output.
    """

    def __init__(self, target: Target, attack: str, settings: Any, prompts: Sequence[int] | None = None):
        self.whole, self.prompts = target, prompts
        self.target, self.attack, self.settings = target, attack, describe_settings(settings)
        if prompts is not None:
            self.target = dataclasses.replace(target, prompts=[target.prompts[i] for i in prompts])
        self.described = target.described()
        self.curve: list[Measurement] = []
        self.broken: list[str] = []
        """Titles of the edited models whose output was not finite, which have no point on the curve."""
        self.part: PartFile | None = None
        if target.output is not None:
            check_result_file(target.output, overwrite=True)
            made_by = {"attack": attack, "settings": self.settings, **self.described}
            self.part = PartFile(target.output, made_by, batch=1, resume=target.resume, shape={"title": str})
        self.rows: list[Row] = [] if self.part is None else self.part.outcomes
        for number, row in enumerate(self.rows, 2):
            assert self.part is not None
            if not _is_state(row):  # of which the search itself knows whether it is one
                Measurement.from_dict(row, f"{self.part.path}:{number}")

    @property
    def base(self) -> Measurement | None:
        if self.target.base is None:
            return None
        return self._once("base", lambda: self._untouched("base"))

    @property
    def before(self) -> Measurement:
        return self._once("before", lambda: self._untouched("model"))

    def has(self, at: dict[str, Any]) -> bool:
        """Whether an earlier, interrupted run has measured this point: then what leads to it alone may be skipped."""
        return any(row["title"] == title(at) for row in self.rows)

    def base_at(
        self, at: dict[str, Any], decoding: Decoding, prompts: Sequence[str] | None = None
    ) -> Measurement | None:
        """The base decoded (and prompted) as the point `at` is, None without one; not part of the curve. It is the
        same for all models made from this base, so it is measured once for them, and cheaply, as `attempt` does."""
        if self.target.base is None:
            return None
        return self._once(f"base, {title(at)}", lambda: self._write_as_base(prompts, decoding))

    def attempt(
        self,
        model: "PreTrainedModel",
        at: dict[str, Any],
        *,
        prompts: Sequence[str] | None = None,
        decoding: Decoding | None = None,
    ) -> Measurement:
        """One of many tries, of which `best_of` makes a point, or a control: kept, but no point of the curve.

        It is cheap: without the perplexity of text, and without the likelihood under the base.
        """

        def make() -> Measurement:
            as_base = self._is_base(model)
            return self._write_as_base(prompts, decoding) if as_base else self._write(model, prompts, decoding)

        return self._once(title(at), lambda: dataclasses.replace(make(), at=at))

    def start(self, **at: Any) -> None:
        """The curve begins here: at this point the model is untouched."""
        self.curve.append(dataclasses.replace(self.before, at=at))

    def measure(
        self,
        model: "PreTrainedModel",
        at: dict[str, Any],
        *,
        prompts: Sequence[str] | None = None,
        decoding: Decoding | None = None,
        with_text: bool = True,
        with_likelihood: bool = True,
        yardstick: Measurement | None = None,
    ) -> Measurement:
        """The next point of the curve, called `at`; arguments as those of `Target.measure`.

        Degeneration is judged against the base, or what was before, if no other `yardstick` is given. If the part file
        has the point, it is taken from there: to go on, an attack repeats its work, not its measurements.
        """
        base, before = self.base, self.before

        def make() -> Measurement:
            point = self.target.measure(
                model,
                prompts=prompts,
                decoding=decoding,
                with_text=with_text,
                with_likelihood=with_likelihood,
                yardstick=yardstick or base or before,
            )
            if self._is_base(model) and not with_text:
                self.target.known[self._key_of_base(prompts, decoding)] = point
            return Measurement(point.figures | {"versus_before": point.versus(before)}, point.generations, at)

        point = self._once(title(at), make)
        self.curve.append(point)
        return point

    def measure_edited(self, model: "PreTrainedModel", at: dict[str, Any]) -> None:
        """As `measure`, for a model that the attack has edited: one whose output is not finite has no point.

        Whoever breaks a model so has not won; the other points must not be lost over it.
        """
        try:
            self.measure(model, at)
        except NotFinite as error:
            logger.warning("%s: %s is left out: %s", self.attack, title(at), error)
            self.broken.append(title(at))

    def measure_control(self, model: "PreTrainedModel", at: dict[str, Any]) -> Measurement:
        """A measurement that is not of the attack and no point of its curve, called `at`; without ordinary text."""
        yardstick = self.base or self.before
        return self._once(title(at), lambda: self.target.measure(model, with_text=False, yardstick=yardstick))

    def best_of(self, points: Sequence[Measurement], at: dict[str, Any]) -> Measurement:
        """The next point of the curve, made of others: of each prompt the continuation that the first judge scores
        highest at any of `points`. An attacker reaches it who may try them all on every prompt and sees the score."""
        point = combine(points, at)
        point.figures["versus_before"] = point.versus(self.before)
        self.curve.append(point)
        return point

    def keep(self, name: str, state: Any) -> None:
        """Write down where the attack stands, if there is a part file: what an interrupted run goes on from.

        Args:
            name: what it is called where a failure says what is kept.
            state: JSON.
        """
        if self.part is not None:
            self.part.append([{"title": name, "state": state}])

    def kept(self, name: str) -> list[Any]:
        """The states that were kept under `name` and what follows it ("search" for "search, step 10"), in their order.

        A part file of an earlier version is read like one of this.
        """
        return [
            row["state"] if "state" in row else row["journal"]
            for row in self.rows
            if _is_state(row) and row["title"].startswith(name)
        ]

    def result(self, after: Measurement, *, among: Sequence[Measurement] | None = None, **found: Any) -> AttackResult:
        """The attack is done, and judged. Saved if the target has an output, and the part file is removed.

        Args:
            after: the highest point of the curve.
            among: the points that count; None takes all that `found` does not name as `left_out`.
            found: what else the attack has to say, as JSON.
        """
        target, before = self.target, self.before
        left_out = found.get("left_out", [])
        counted = [point for point in self.curve if title(point.at) not in left_out] if among is None else among
        attacked = [point for point in counted if point.generations is not before.generations]
        options = [option_of(NOTHING, before), *(option_of(title(point.at), point) for point in attacked)]
        result = AttackResult(
            attack=self.attack,
            settings=self.settings,
            target={"names": target.names, **self.described},
            base=self.base,
            before=before,
            after=after,
            judged=judge_chosen(options, target.seed),
            curve=self.curve,
            found=found,
            environment=environment(seed=target.seed, model=target.model, command=target.command),
        )
        if self.part is not None:
            assert target.output is not None
            result.save(target.output)
            self.part.remove()
        return result

    def tell_what_is_kept(self) -> str:
        """A sentence on where what has been measured is; empty if there is nothing, and then no file is left."""
        if self.part is None:
            return ""
        if not self.rows:
            self.part.remove()
            return ""
        points = ", ".join(row["title"] for row in self.rows)
        return f" What was measured so far ({points}) is kept in {self.part.path}: resume=True goes on from there."

    def _untouched(self, which: str) -> Measurement:
        found = self.whole.untouched(which, self.described)
        return found if self.prompts is None else of_prompts(found, self.prompts, self.target.processing_class)

    def _is_base(self, model: "PreTrainedModel") -> bool:
        """Whether it is the base that is attacked, and this is what is left of it: unchanged."""
        return model is self.target.model and self.described["weights"] == self.described["base"]

    def _key_of_base(self, prompts: Sequence[str] | None, decoding: Decoding | None) -> str:
        measured = self.described | {"weights": self.described["base"]}
        asked = list(self.target.prompts if prompts is None else prompts)
        return digest(["base", measured, asked, (decoding or self.target.decoding).to_dict()])

    def _write_as_base(self, prompts: Sequence[str] | None, decoding: Decoding | None) -> Measurement:
        key, known = self._key_of_base(prompts, decoding), self.target.known
        if key not in known:
            assert self.target.base is not None
            known[key] = self._write(self.target.base, prompts, decoding)
        return known[key]

    def _write(
        self, model: "PreTrainedModel", prompts: Sequence[str] | None, decoding: Decoding | None
    ) -> Measurement:
        return self.target.measure(model, prompts=prompts, decoding=decoding, with_text=False, with_likelihood=False)

    def _once(self, name: str, make: Callable[[], Measurement]) -> Measurement:
        for row in self.rows:
            if row["title"] == name:
                return Measurement(row["figures"], row["generations"], row["at"])
        found = make()
        row = {"title": name, **asdict(found)}
        if self.part is None:
            self.rows.append(row)
        else:
            self.part.append([row])
        return self._once(name, make)


def _is_state(row: Row) -> bool:
    """Whether `Record.keep` has written it; enhanced_gcg called it a journal once."""
    return "state" in row or "journal" in row


@contextlib.contextmanager
def recorded(target: Target, attack: str, settings: Any, prompts: Sequence[int] | None = None) -> Iterator[Record]:
    """The record of one run of an attack; if it fails, the error says what is kept. Arguments as those of `Record`.

    Raises:
        UserError: if a setting is no finite number.
        RunError: also for want of memory.
    """
    all_finite(settings)
    record = Record(target, attack, settings, prompts)
    try:
        yield record
    except BaseException as error:
        kept = record.tell_what_is_kept()
        if isinstance(error, UserError | RunError):
            raise type(error)(f"{error}{kept}") from error
        if out_of_memory(error):
            raise RunError(
                f"{attack} ran out of memory. Lower max_tokens_at_once or the attack's own batch size.{kept}"
            ) from error
        raise
