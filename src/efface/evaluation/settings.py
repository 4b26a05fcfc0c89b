"""What is to be measured, on what, and what is kept of it? The arguments of `evaluate` that belong together."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from efface.evaluation.utility.task_files import TaskFile

Texts = Sequence[str] | str | os.PathLike[str]
"""Texts themselves, or what names them: a file, shipped data, a dataset of the hub."""


@dataclass(frozen=True)
class PromptSet:
    """Which prompts a model goes on from."""

    source: Texts = "shipped:prompts"
    """Texts, or what `load_prompts` takes: a JSON lines file with "prompt", or "rtp:challenging", say."""
    limit: int | None = None
    """Only so many of them, drawn by `limit_seed`, see `draw_prompts`."""
    limit_seed: int = 0
    """The seed of the generations has no part in it, so that other draws of text are made on the same prompts."""

    @classmethod
    def of(cls, prompts: "Texts | PromptSet") -> "PromptSet":
        """The set itself, or all of some prompts."""
        return prompts if isinstance(prompts, PromptSet) else cls(prompts)

    @property
    def name(self) -> str | None:
        """What a result calls it; None for a list of texts."""
        return os.fspath(self.source) if isinstance(self.source, str | os.PathLike) else None


@dataclass(frozen=True)
class OrdinaryText:
    """What ordinary text costs the model, and whether it can go on with it."""

    text: Texts | None = None
    """Documents whose perplexity is measured, or a JSON lines file with "text"; None leaves perplexity out."""
    max_tokens: int | None = 20_000
    """Of `text`; this, `window` and `stride` are those of `perplexity`."""
    window: int = 1024
    stride: int | None = None
    f1_text: Texts | None = None
    """Documents whose paragraphs the model should go on with, see `continuation_f1`; None leaves it out."""
    f1_prompts: int = 500
    """How many prompts are cut from `f1_text`, at most."""


@dataclass(frozen=True)
class UtilityTasks:
    """What the model can still do, by lm-evaluation-harness."""

    tasks: Sequence[str | os.PathLike[str] | TaskFile]
    """Names of its tasks, or task files, see `utility`."""
    limit: int | None = None
    """Only the first so many rows of each, as with lm-eval's own --limit, with whose figures it is compared."""


@dataclass(frozen=True)
class RunSettings:
    """How the work is done and what is kept of it. No figure depends on it."""

    batch_size: int | None = None
    """Continuations at once, at most; this and the next are those of `generate_ids`, None leaves its defaults."""
    max_tokens_at_once: int | None = None
    generations_path: str | os.PathLike[str] | None = None
    """Where the continuations are written, before they are scored and again with their scores, so that a failing
    scorer loses nothing. If the same continuations lie there already, they are not made again."""
    command: str | None = None
    """How this was called, for the record."""
