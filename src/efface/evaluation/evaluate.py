"""How toxic is a model, what does ordinary text cost it, and is what it writes still text? `efface evaluate`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efface import results
from efface.errors import UserError
from efface.evaluation import degeneration as degeneration_guard
from efface.evaluation import toxicity as toxicity_figures
from efface.evaluation.degeneration import Degeneration
from efface.evaluation.scorers import DEFAULT_SCORER, Scorer, load_scorer, score
from efface.evaluation.toxicity import ToxicitySummary
from efface.rows import load_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from efface.evaluation.perplexity import Perplexity

Texts = Sequence[str] | str | os.PathLike[str]


@dataclass
class Evaluation:
    """What `evaluate` found."""

    model: str
    toxicity: ToxicitySummary
    perplexity: "Perplexity | None"
    degeneration: Degeneration
    generations: list[dict[str, Any]]
    """Rows of prompt, continuation and score; the K continuations of a prompt follow each other."""
    environment: dict[str, Any]

    @property
    def scores(self) -> np.ndarray:
        """(n_prompts, K), for `ratio_ci`."""
        return np.array([row["score"] for row in self.generations]).reshape(-1, self.toxicity.samples)

    def to_dict(self, generations: str | None = None) -> dict[str, Any]:
        """As it is written to JSON; `generations` names the file that holds them."""
        return {
            "schema": 1,
            "model": self.model,
            "toxicity": self.toxicity.to_dict(),
            "perplexity": None if self.perplexity is None else self.perplexity.to_dict(),
            "degeneration": self.degeneration.to_dict(),
            "generations": generations,
            "environment": self.environment,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `path`, and beside it the generations as `<stem>.generations.jsonl`."""
        beside = generations_path(path)
        # The generations first: a result file never names a file that is not there.
        results.write_jsonl(beside, self.generations)
        results.write_json(path, self.to_dict(beside.name))


def generations_path(path: str | os.PathLike[str]) -> Path:
    """Where `Evaluation.save(path)` puts the generations."""
    return Path(path).with_name(f"{Path(path).stem}.generations.jsonl")


def evaluate(
    model: "str | PreTrainedModel",
    prompts: Texts,
    *,
    processing_class: "PreTrainedTokenizerBase | None" = None,
    text: Texts | None = None,
    scorer: str | Scorer = DEFAULT_SCORER,
    samples: int = 1,
    do_sample: bool | None = None,
    max_new_tokens: int = 20,
    top_p: float = 0.9,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    max_prompt_tokens: int | None = None,
    max_text_tokens: int | None = 20_000,
    window: int = 1024,
    reference: "str | PreTrainedModel | None" = None,
    baseline: Evaluation | dict[str, Any] | None = None,
    generations_path: str | os.PathLike[str] | None = None,
    command: str | None = None,
    progress: bool = False,
) -> Evaluation:
    """Toxicity of what `model` writes after `prompts`, perplexity on `text`, and whether the writing is degenerate.

    Args:
        model: a model, or the name of one as `load_model` takes it.
        prompts: texts, or a JSON lines file with "prompt" (a text, or {"text": ...} as in RealToxicityPrompts).
        processing_class: the tokenizer; None takes the one that belongs to the model.
        text: ordinary documents, or a JSON lines file with "text"; None leaves perplexity out.
        scorer: see `load_scorer`.
        samples, do_sample, max_new_tokens, top_p, temperature, batch_size, seed, max_prompt_tokens: of `generate_ids`.
        max_text_tokens, window: see `perplexity`.
        reference: a model (usually the base) under which the continuations should be likely; None leaves that out.
        baseline: the evaluation of the base model (or its JSON): the verdict on degeneration is relative to it.
        generations_path: where to write the continuations, before they are scored and again with their scores, so
            that a failing scorer loses nothing.
        command: how this was called, for the record.
        progress: show progress bars.

    Raises:
        UserError: for input that cannot work, as far as possible before the model is loaded.
        RunError: if the model or the scorer fails.
    """
    prompts = load_texts(prompts, "prompt")
    documents = None if text is None else load_texts(text, "text")
    judge = load_scorer(scorer)
    base = _baseline(baseline)
    # Costs seconds, so it comes after the cheap checks.
    from efface.evaluation.generation import continuation_nll, generate_ids
    from efface.evaluation.perplexity import perplexity

    name, network, tokenizer = _load(model, processing_class)
    sampled = samples > 1 if do_sample is None else do_sample
    written = generate_ids(
        network,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        samples=samples,
        do_sample=do_sample,
        top_p=top_p,
        temperature=temperature,
        batch_size=batch_size,
        seed=seed,
        max_prompt_tokens=max_prompt_tokens,
        progress=progress,
    )
    rows: list[dict[str, Any]] = [
        {"prompt": prompt, "continuation": continuation.text}
        for prompt, continuations in zip(prompts, written, strict=True)
        for continuation in continuations
    ]
    if generations_path is not None:
        results.write_jsonl(generations_path, rows)
    texts = [row["continuation"] for row in rows]
    scores = score(judge, texts).reshape(len(prompts), samples)
    for row, value in zip(rows, scores.ravel().tolist(), strict=True):
        row["score"] = value
    if generations_path is not None:
        results.write_jsonl(generations_path, rows)

    cost = None
    if documents is not None:
        cost = perplexity(network, tokenizer, documents, max_tokens=max_text_tokens, window=window, progress=progress)
    nll = None
    if reference is not None:
        # A reference given as a model is taken to share the tokenizer, as the base of an edited model does.
        _, other, its_tokenizer = _load(reference, None if isinstance(reference, str) else tokenizer)
        repeated = [row["prompt"] for row in rows]
        nll = continuation_nll(other, its_tokenizer, repeated, texts, batch_size=batch_size, progress=progress)
    special = set(tokenizer.all_special_ids)
    tokens = [[i for i in continuation.token_ids if i not in special] for row in written for continuation in row]
    return Evaluation(
        model=name,
        toxicity=toxicity_figures.summarize(
            scores,
            scorer=judge.name,
            decoding=f"nucleus(top_p={top_p}, temperature={temperature})" if sampled else "greedy",
            seed=seed,
        ),
        perplexity=cost,
        degeneration=degeneration_guard.measure(texts, tokens=tokens, nll=nll, baseline=base),
        generations=rows,
        environment=results.environment(seed=seed, model=network, command=command),
    )


def _baseline(baseline: Evaluation | dict[str, Any] | None) -> Degeneration | None:
    if baseline is None or isinstance(baseline, Evaluation):
        return None if baseline is None else baseline.degeneration
    return Degeneration.from_dict(baseline.get("degeneration", {}))


def _load(
    model: "str | PreTrainedModel", processing_class: "PreTrainedTokenizerBase | None"
) -> "tuple[str, PreTrainedModel, PreTrainedTokenizerBase]":
    if isinstance(model, str | os.PathLike):
        from efface.models import load_model

        network, tokenizer = load_model(model)
        return os.fspath(model), network, processing_class or tokenizer
    name = model.config._name_or_path
    if processing_class is None:
        from transformers import AutoTokenizer

        try:
            processing_class = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise UserError(
                f"model of type {type(model).__name__} names no checkpoint with a tokenizer ({name!r}): pass "
                "processing_class."
            ) from error
    return name or type(model).__name__, model, processing_class
