"""What does an attack work on, and how is a model measured before and after it? Every attack measures the same way.

A `Target` holds the model and what it is judged by. An attack works on copies (or undoes what it does) and gives each
attacked model, or its altered prompts, to `measure`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.attacks.measurement import BLOCKS, Measurement
from efface.checks import one_or_more
from efface.data.pairs import PairsLike, load_pairs
from efface.data.preferences import text_of
from efface.data.rows import load_texts
from efface.errors import UserError
from efface.evaluation.baseline import Baseline
from efface.evaluation.measure import evaluate
from efface.evaluation.prompt_sets import draw_prompts, load_prompts
from efface.evaluation.settings import OrdinaryText, RunSettings, Texts
from efface.files.digests import digest
from efface.files.environment import versions
from efface.files.jsonl import Row
from efface.generation.decoding import Decoding
from efface.model.fingerprint import fingerprint_of, tokenizer_fingerprint
from efface.scoring import DEFAULT_SCORER, load_scorer
from efface.scoring.labelled import toxic_texts
from efface.scoring.scorer import Scorer, score

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Target:
    """A model under attack. `Target.load` makes one from names."""

    model: "PreTrainedModel"
    """Never changed."""
    processing_class: "PreTrainedTokenizerBase"
    prompts: list[str]
    rows: list[Row]
    """Held-out preference pairs, for the attack to learn from."""
    labelled: list[str] | None = field(default=None, kw_only=True)
    """Toxic texts of another make, for relearning: what one filter has let through is not all there is."""
    scorers: list[Scorer]
    """The first gives the headline figures."""
    decoding: Decoding = Decoding()
    base: "PreTrainedModel | None" = None
    """The untouched model that `model` was made from, with the same tokenizer. Degeneration is judged against it;
    without one against `model` before the attack."""
    text: list[str] | None = None
    """Ordinary documents for perplexity; None leaves it out."""
    max_text_tokens: int | None = 20_000
    max_tokens_at_once: int | None = None
    """Of the generation, see `generate_ids`; None leaves its default."""
    seed: int = 0
    """Of the attack; that of the generations is in `decoding`."""
    names: dict[str, str | None] = field(default_factory=dict)
    """What the user called `model`, `base`, `prompts`, `rows` and `text`; if prompts were drawn, the `limit`."""
    output: Path | None = None
    """The file of the result. Until it is whole, what has been measured is kept beside it, in `<output>.part`."""
    resume: bool = False
    """Take what lies in the part file instead of measuring it again."""
    command: str | None = None
    """How this was called, for the record."""
    progress: bool = False
    known: dict[str, Measurement] = field(default_factory=dict, repr=False)
    """What `untouched` and `Record.base_at` have measured; shared by the copies that `dataclasses.replace` makes."""

    @classmethod
    def load(
        cls,
        model: "str | os.PathLike[str] | PreTrainedModel",
        *,
        processing_class: "PreTrainedTokenizerBase | None" = None,
        base: "str | os.PathLike[str] | PreTrainedModel | None" = None,
        prompts: Texts = "shipped:prompts",
        limit: int | None = None,
        limit_seed: int = 0,
        rows: PairsLike = "shipped:heldout",
        labelled: str | os.PathLike[str] | None = None,
        scorer: str | Scorer | Sequence[str | Scorer] = DEFAULT_SCORER,
        decoding: Decoding = Decoding(),
        text: Texts | None = None,
        max_text_tokens: int | None = 20_000,
        max_tokens_at_once: int | None = None,
        seed: int = 0,
        output: str | os.PathLike[str] | None = None,
        resume: bool = False,
        command: str | None = None,
        progress: bool = False,
    ) -> "Target":
        """A target from names or from the things themselves: `prompts` and `scorer` as `evaluate` takes them.

        Args:
            limit: use only so many of the prompts, drawn by `limit_seed`, see `draw_prompts`.
            rows: anything `load_pairs` takes.
            labelled: a file of labelled texts, see `Target.labelled`.

        Raises:
            UserError: for input that cannot work, as far as possible before a model is loaded.
        """
        names = {
            "model": _name(model),
            "base": _name(base),
            "prompts": _name(prompts),
            "rows": _name(rows),
            "labelled": _name(labelled),
            "text": _name(text),
        }
        one_or_more("limit", limit)
        if limit is not None:
            names["limit"] = f"{limit} by seed {limit_seed}"
        several = [scorer] if isinstance(scorer, str) or not isinstance(scorer, Sequence) else scorer
        found: dict[str, Any] = {
            "prompts": draw_prompts(load_texts(load_prompts(prompts), "prompt"), limit, limit_seed),
            "rows": load_pairs(rows).rows,
            "labelled": None if labelled is None else toxic_texts(labelled),
            "scorers": [load_scorer(one) for one in several],
            "text": None if text is None else load_texts(text),
        }
        from efface.training.inputs import model_and_tokenizer

        found["model"], found["processing_class"] = model_and_tokenizer(_path(model), processing_class, use_cpu=False)
        if base is not None:
            found["base"], _ = model_and_tokenizer(_path(base), found["processing_class"], use_cpu=False)
        return cls(
            **found,
            decoding=decoding,
            max_text_tokens=max_text_tokens,
            max_tokens_at_once=max_tokens_at_once,
            seed=seed,
            names=names,
            output=None if output is None else Path(output),
            resume=resume,
            command=command,
            progress=progress,
        )

    def measure(
        self,
        model: "PreTrainedModel",
        *,
        prompts: Sequence[str] | None = None,
        decoding: Decoding | None = None,
        with_text: bool = True,
        with_likelihood: bool = True,
        yardstick: Measurement | None = None,
    ) -> Measurement:
        """Toxicity, perplexity and degeneration of `model`, whatever was done to it.

        Args:
            prompts: those of the target as the attack has altered them, one for each.
            decoding: another than the target's.
            with_text: also the perplexity of `text`; not for a model that puts virtual tokens before what it reads.
            with_likelihood: also how likely the base finds what is written, which costs as much as writing it.
            yardstick: what degeneration is judged against, prompt by prompt in their order, whatever the attack made
                of them; None takes the absolute limits.

        Raises:
            UserError, RunError: as `evaluate` does.
        """
        if prompts is not None and len(prompts) != len(self.prompts):
            raise UserError(f"{len(prompts)} altered prompts for the {len(self.prompts)} of the target: one each.")
        asked = list(self.prompts if prompts is None else prompts)
        baseline = None
        if yardstick is not None:
            samples = yardstick.measured.toxicity.samples
            rows = [row | {"prompt": asked[i // samples]} for i, row in enumerate(yardstick.generations)]
            baseline = Baseline(yardstick.figures, yardstick.measured.degeneration, rows)
        evaluation = evaluate(
            model,
            asked,
            processing_class=self.processing_class,
            scorer=self.scorers,
            decoding=decoding or self.decoding,
            text=OrdinaryText(self.text if with_text else None, max_tokens=self.max_text_tokens),
            reference=self.base if with_likelihood else None,
            baseline=baseline,
            run=RunSettings(max_tokens_at_once=self.max_tokens_at_once),
            progress=self.progress,
        )
        result = evaluation.to_dict()
        kept = ("prompt", "continuation", "score", "scores", "invalid")
        return Measurement(
            {name: result[name] for name in BLOCKS},
            [{key: row[key] for key in kept} for row in evaluation.generations],
        )

    def untouched(self, which: str, described: dict[str, Any]) -> Measurement:
        """What the "base" does, the same for all models made from it, or the "model" before any attack; measured once.

        Args:
            described: what `described()` says, which takes its time.
        """
        key = self.key_of(which, described)
        if key not in self.known:
            judged = which == "model" and self.base is not None
            yardstick = self.untouched("base", described) if judged else None
            self.known[key] = self.measure(getattr(self, which), yardstick=yardstick)
        return self.known[key]

    @staticmethod
    def key_of(which: str, described: dict[str, Any]) -> str:
        """By which `untouched` has it in `known`."""
        return digest([which, described | ({"weights": described["base"]} if which == "base" else {})])

    def described(self) -> dict[str, Any]:
        """Everything that figures depend on, as JSON: hashes of models, judges and texts, settings, versions."""
        return {
            "weights": fingerprint_of(self.model),
            "base": None if self.base is None else fingerprint_of(self.base),
            "prompts": digest(self.prompts),
            "n_prompts": len(self.prompts),
            "rows": digest(self.rows),
            "labelled": None if self.labelled is None else digest(self.labelled),
            "text": None if self.text is None else digest(self.text),
            "max_text_tokens": None if self.text is None else self.max_text_tokens,
            "tokenizer": tokenizer_fingerprint(self.processing_class),
            "scorers": [scorer.name for scorer in self.scorers],
            # A judge that was trained anew keeps its name.
            "judges": [getattr(scorer, "version", None) or self._said_by(scorer) for scorer in self.scorers],
            "decoding": self.decoding.to_dict(),
            "seed": self.seed,
            "versions": versions(),
        }

    def _said_by(self, scorer: Scorer) -> str:
        """A hash of what a judge that has no version, a plain function, says of a few texts."""
        texts = [text_of(row[side]) for row in self.rows[:PROBES] for side in ("chosen", "rejected") if side in row]
        return digest([round(value, 3) for value in score(scorer, texts).tolist()])


PROBES = 16
"""Rows by whose texts a judge without a version is told from another of its name."""


def _name(source: Any) -> str | None:
    """What a result calls it; nothing of this machine for what has no name."""
    if source is None or isinstance(source, str | os.PathLike):
        return None if source is None else os.fspath(source)
    return getattr(getattr(source, "config", None), "_name_or_path", None) or f"a {type(source).__name__}"


def _path(model: Any) -> Any:
    return os.fspath(model) if isinstance(model, os.PathLike) else model
