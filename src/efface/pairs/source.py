"""What is a source of candidates: what may it use, and what does it give?

By name (`--toxic`) a source is a frozen dataclass of its settings with a method `make(build) -> Made`; whoever has a
function from prompts to candidates needs none and passes that.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from efface.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from efface.files.jsonl import Row
    from efface.pairs.config import BuilderConfig
    from efface.scoring.scorer import Scorer

Source = Callable[[Sequence[str], int], list[list[str]]]
"""(prompts, seed) -> the candidate continuations of each prompt."""

PROMPTS = "shipped:train"
"""Where no prompts are named, those of the shipped pairs are continued."""


@dataclass(frozen=True)
class Made:
    """Who writes the candidates, for which prompts, and how."""

    source: Source
    prompts: Sequence[str]
    how: "Row" = field(default_factory=dict)
    """Recorded in the report's settings."""
    given: "Mapping[str, Row]" = field(default_factory=dict)
    """Columns that the row of a prompt has from the start; with a `chosen` among them the model writes none."""


@dataclass(frozen=True)
class Build:
    """What a source may use. Neither model nor prompts are loaded before they are asked for."""

    model: "PreTrainedModel | str | os.PathLike[str]"
    processing_class: "PreTrainedTokenizerBase | None"
    named_prompts: "Sequence[str] | str | os.PathLike[str] | None"
    """As the user gave them; None leaves the choice to the source."""
    scorer: "Scorer"
    config: "BuilderConfig"
    progress: bool = False

    @cached_property
    def loaded(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """The model, which no source may change, and its tokenizer."""
        from efface.model.load import load_model, tokenizer_of

        if isinstance(self.model, str | os.PathLike):
            model, tokenizer = load_model(self.model)
            return model, self.processing_class or tokenizer
        return self.model, self.processing_class or tokenizer_of(self.model)

    @cached_property
    def fingerprint(self) -> str:
        """What tells the model and its tokenizer from others of the same name."""
        from efface.files.digests import digest
        from efface.model.fingerprint import fingerprint_of, tokenizer_fingerprint

        model, tokenizer = self.loaded
        return digest([fingerprint_of(model), tokenizer_fingerprint(tokenizer)])

    @property
    def name(self) -> str:
        """What the report calls the model."""
        if isinstance(self.model, str | os.PathLike):
            return os.fspath(self.model)
        return self.model.config._name_or_path or type(self.model).__name__

    def prompts(self) -> list[str]:
        """The prompts that the user named, or those of the shipped pairs.

        Raises:
            UserError: if the file cannot be read.
        """
        from efface.evaluation.prompt_sets import load_prompts

        named = PROMPTS if self.named_prompts is None else self.named_prompts
        return load_prompts(named) if isinstance(named, str | os.PathLike) else list(named)

    def sizes(self) -> dict[str, Any]:
        """The arguments of `sample_source` and its like that `BuilderConfig` has."""
        from efface.pairs.filters import newline_tokens

        without = newline_tokens(self.loaded[1]) if self.config.one_line else []
        return {
            "max_new_tokens": self.config.max_new_tokens,
            "batch_size": self.config.batch_size,
            "without": without,
        }


class SourceSettings(Protocol):
    """A source by its settings: a frozen dataclass with this method.

    The metadata of its fields has a `help` and, of what must be given, under `needed` what it is and for what.
    """

    def make(self, build: Build) -> Made: ...


def missing_setting(settings: Any) -> "dataclasses.Field[Any] | None":
    """The first field of a source's settings that must be given and is not."""
    needed = (each for each in dataclasses.fields(settings) if "needed" in each.metadata)
    return next((each for each in needed if not getattr(settings, each.name)), None)


def check_settings(name: str, settings: Any) -> None:
    """Raise a `UserError` if the source called `name` lacks a setting."""
    missing = missing_setting(settings)
    if missing is not None:
        raise UserError(f"source {name!r} needs {missing.name}: {missing.metadata['needed']}.")
