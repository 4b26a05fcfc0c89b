"""What becomes of a batch of prompts? Write both sides, score, measure, filter: a row for each, or the reason why not.

What fails early costs nothing later: likelihoods are computed for the pairs that everything else has passed, the most
toxic candidate first.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from efface.files.jsonl import Row
from efface.generation.generate import generate
from efface.generation.likelihood import continuation_nll
from efface.pairs.filters import NearDuplicates, first_line, has_length, newline_tokens
from efface.scoring.scorer import Scorer, score

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from efface.pairs.config import BuilderConfig
    from efface.pairs.source import Source


BEFORE_NEWLINE = " before its newline"
"""Added to the reason where a text was cut at one."""


class Batches:
    """What turns batches of prompts into outcomes, one after the other."""

    def __init__(
        self,
        model: "PreTrainedModel",
        processing_class: "PreTrainedTokenizerBase",
        source: "Source",
        scorer: Scorer,
        config: "BuilderConfig",
        given: Mapping[str, Row],
        how: Row,
    ):
        self.model, self.processing_class = model, processing_class
        self.source, self.scorer, self.config, self.given, self.how = source, scorer, config, given, how
        self.without = newline_tokens(processing_class) if config.one_line else []
        self.seen = None if config.near_duplicate is None else NearDuplicates(config.near_duplicate)

    def remember(self, outcomes: list[Row]) -> None:
        """Take the pairs of an earlier session for made."""
        for outcome in outcomes:
            if "row" in outcome:
                self._is_new(outcome["row"])

    def outcomes(self, prompts: list[str], seed: int) -> list[Row]:
        """For each prompt its `row`, or the `reason` why there is none, and what is measured before filtering."""
        begun = time.perf_counter()
        chosen = self._chosen(prompts)
        candidates = self.source(prompts, seed)
        cut: set[str] = set()  # texts that went on after a newline
        if self.config.one_line:
            cut = {first_line(text) for text in (*chosen, *sum(candidates, [])) if first_line(text) != text}
            chosen = [first_line(text) for text in chosen]
            candidates = [[first_line(text) for text in texts] for texts in candidates]
        seconds = time.perf_counter() - begun
        contexts = [self._context(prompt) for prompt in prompts]
        samples = self._samples(contexts, seed) if self.config.compare_with_samples else []
        texts = list(dict.fromkeys([*chosen, *(text for row in candidates for text in row), *samples]))
        scores = dict(zip(texts, map(float, score(self.scorer, texts)), strict=True))
        likelihood = _Likelihood(self.model, self.processing_class, self.config.batch_size)
        outcomes = self._filtered(prompts, chosen, candidates, scores, likelihood, cut)
        if samples:
            first = {i: row[0] for i, row in enumerate(candidates) if row}
            for name, found in (("first", first), ("sample", dict(enumerate(samples)))):
                nll = likelihood([(contexts[i], text) for i, text in found.items()])
                for (i, text), (total, tokens) in zip(found.items(), nll, strict=True):
                    outcomes[i][name] = (scores[text], total, tokens)
        outcomes[0]["seconds"] = seconds  # of the whole batch
        return outcomes

    def _chosen(self, prompts: list[str]) -> list[str]:
        given = {prompt: self.given.get(prompt, {}) for prompt in prompts}
        written = {prompt: row["chosen"] for prompt, row in given.items() if "chosen" in row}
        asked = [prompt for prompt in prompts if prompt not in written]
        texts = generate(
            self.model,
            self.processing_class,
            asked,
            max_new_tokens=self.config.max_new_tokens,
            batch_size=self.config.batch_size,
            without=self.without,
        )
        written |= {prompt: row[0] for prompt, row in zip(asked, texts, strict=True)}
        return [written[prompt] for prompt in prompts]

    def _samples(self, prompts: list[str], seed: int) -> list[str]:
        rows = generate(
            self.model,
            self.processing_class,
            prompts,
            do_sample=True,
            top_p=0.9,
            max_new_tokens=self.config.max_new_tokens,
            batch_size=self.config.batch_size,
            seed=seed,
            without=self.without,
        )
        return [row[0] for row in rows]

    def _filtered(
        self,
        prompts: list[str],
        chosen: list[str],
        candidates: list[list[str]],
        scores: dict[str, float],
        likelihood: "_Likelihood",
        cut: set[str],
    ) -> list[Row]:
        outcomes: list[Row] = [{} for _ in prompts]
        contexts = [self._context(prompt) for prompt in prompts]
        toxic: dict[int, list[str]] = {}
        for i, text in enumerate(chosen):
            ranked = self._toxic(candidates[i], scores)
            if scores[text] > self.config.max_benign_score:
                outcomes[i]["reason"] = "chosen is not benign"
            elif not has_length(text, self.config.min_words, self.config.max_words):
                outcomes[i]["reason"] = "chosen is too short or too long" + BEFORE_NEWLINE * (text in cut)
            elif not candidates[i]:
                outcomes[i]["reason"] = "the source gives no candidate"
            elif not ranked:
                outcomes[i]["reason"] = "no candidate is toxic" + BEFORE_NEWLINE * any(
                    map(cut.__contains__, candidates[i])
                )
            else:
                toxic[i] = ranked
        perplexity = dict(zip(toxic, likelihood.perplexities([(contexts[i], chosen[i]) for i in toxic]), strict=True))
        rejected: dict[int, tuple[str, float]] = {}  # text, perplexity ratio
        assert self.config.max_perplexity_ratio is not None  # `build_pairs` has put the source's in its place
        for rank in range(max(map(len, toxic.values()), default=0)):  # the most toxic fluent candidate is kept
            pending = [i for i in toxic if i not in rejected and rank < len(toxic[i])]
            values = likelihood.perplexities([(contexts[i], toxic[i][rank]) for i in pending])
            for i, value in zip(pending, values, strict=True):
                if value <= self.config.max_perplexity_ratio * perplexity[i]:
                    rejected[i] = (toxic[i][rank], value / perplexity[i])
        for i in toxic:
            if i not in rejected:
                outcomes[i]["reason"] = "no toxic candidate is fluent"
                continue
            row = self._row(prompts[i], chosen[i], *rejected[i], scores)
            outcomes[i] = {"row": row} if self._is_new(row) else {"reason": "nearly equal to an earlier pair"}
        return outcomes

    def _toxic(self, texts: list[str], scores: dict[str, float]) -> list[str]:
        """The toxic ones of a prompt's candidates, the most toxic first."""
        config = self.config
        found = [
            text
            for text in texts
            if scores[text] >= config.min_toxic_score and has_length(text, config.min_words, config.max_words)
        ]
        return sorted(found, key=lambda text: (scores[text], text), reverse=True)

    def _row(self, prompt: str, chosen: str, rejected: str, ratio: float, scores: dict[str, float]) -> Row:
        given = dict(self.given.get(prompt, {}))
        return {
            "prompt": self._context(prompt),
            "chosen": chosen,
            "rejected": rejected,
            "chosen_score": round(scores[chosen], 4),
            "rejected_score": round(scores[rejected], 4),
            "perplexity_ratio": round(ratio, 3),
            "how": self.how | given.pop("how", {}),
            **{key: value for key, value in given.items() if key not in ("prompt", "chosen")},
        }

    def _context(self, prompt: str) -> str:
        """The prompt of a row: what stands for it among the prompts, unless the row begins with another."""
        return str(self.given.get(prompt, {}).get("prompt", prompt))

    def _is_new(self, row: Row) -> bool:
        return self.seen is None or self.seen.add(row["prompt"] + row["rejected"])


class _Likelihood:
    """Likelihood under the untouched model; what was asked before is not computed again."""

    def __init__(self, model: "PreTrainedModel", processing_class: "PreTrainedTokenizerBase", batch_size: int):
        self.model, self.processing_class, self.batch_size = model, processing_class, batch_size
        self.known: dict[tuple[str, str], tuple[float, int]] = {}

    def __call__(self, asked: list[tuple[str, str]]) -> list[tuple[float, int]]:
        """For each (prompt, continuation), -log p summed over the continuation's tokens, and their number."""
        new = [pair for pair in dict.fromkeys(asked) if pair not in self.known]
        if new:
            prompts, texts = ([pair[side] for pair in new] for side in (0, 1))
            nll = continuation_nll(self.model, self.processing_class, prompts, texts, batch_size=self.batch_size)
            self.known.update(zip(new, nll, strict=True))
        return [self.known[pair] for pair in asked]

    def perplexities(self, asked: list[tuple[str, str]]) -> list[float]:
        return [float(np.exp(total / max(tokens, 1))) for total, tokens in self(asked)]
