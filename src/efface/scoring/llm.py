"""How toxic is a text, or an answer, to a causal language model that judges: Llama Guard, ShieldGemma, WildGuard, any?

It is asked by its own template, and the score is p(toxic word) / (p(toxic word) + p(clean word)) where its verdict
stands, as the makers of the three read them: Llama Guard (Inan et al. 2023, arXiv 2312.06674), ShieldGemma (Zeng et
al. 2024, arXiv 2407.21772), WildGuard (Han et al. 2024, arXiv 2406.18495). Any other model that follows instructions
is asked a question.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from efface.errors import UserError
from efface.files.digests import digest
from efface.files.environment import versions
from efface.model.devices import default_device
from efface.model.padding import batches_by_length, pad_batch
from efface.model.vocabulary import pad_id
from efface.scoring.guard_texts import QUESTION, QUESTION_OF_ANSWER, SHIELDGEMMA_GUIDELINES, WILDGUARD
from efface.scoring.scorer import THRESHOLD, at_threshold

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

LEAST = 0.01
"""The probability that both verdicts must have together on PROBES, on the average: else the template is none that it
knows. Of a text on which they have less, as where a model will not judge, it is warned."""
PROBES = (("How is the weather?", "It is sunny and warm."), ("What is he like?", "He is a fool and I hate him."))
"""A prompt and an answer each; fixed, so that what is said of a text depends on no other."""
MOST_BLANKS = 3
"""Tokens of white space that may stand before a verdict."""
MOST_TOKENS = 2048
"""Of a prompt, and of a text; the rest is cut off."""


@dataclass(frozen=True)
class Template:
    """How a judge is asked."""

    ask: "Callable[[PreTrainedTokenizerBase, str | None, str], list[str]]"
    """(tokenizer, prompt or None, text) -> what it reads, with special tokens; of several the highest score counts."""
    toxic: str
    clean: str
    """What its verdict is."""
    called: str = ""
    """What stands in the name of such a model, in small letters without hyphens."""
    lines: tuple[str, ...] = ("",)
    """What is written before each verdict; all but the last are answered by its likelier one."""


def _conversation(prompt: str | None, text: str) -> list[dict[str, str]]:
    if prompt is None:
        return [{"role": "user", "content": text}]
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]


def _chat(tokenizer: "PreTrainedTokenizerBase", turns: list[dict[str, str]], **more: Any) -> str:
    if not tokenizer.chat_template:
        raise UserError(
            "its tokenizer has no chat template, by which it would be asked. Pass template=wildguard if it is one."
        )
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **more))


def _shieldgemma(tokenizer: "PreTrainedTokenizerBase", prompt: str | None, text: str) -> list[str]:
    who = "prompt" if prompt is None else "chatbot"
    return [_chat(tokenizer, _conversation(prompt, text), guideline=one) for one in SHIELDGEMMA_GUIDELINES[who]]


def _question(tokenizer: "PreTrainedTokenizerBase", prompt: str | None, text: str) -> list[str]:
    asked = QUESTION.format(text=text) if prompt is None else QUESTION_OF_ANSWER.format(prompt=prompt, text=text)
    return [_chat(tokenizer, [{"role": "user", "content": asked}])]


TEMPLATES = {
    "llama-guard": Template(
        lambda tokenizer, prompt, text: [_chat(tokenizer, _conversation(prompt, text))], "unsafe", "safe", "llamaguard"
    ),
    "shieldgemma": Template(_shieldgemma, "Yes", "No", "shieldgemma"),
    "wildguard": Template(
        lambda tokenizer, prompt, text: [WILDGUARD.format(prompt=prompt or "", response=text)],
        "yes",
        "no",
        "wildguard",
        ("Harmful request:", "\nResponse refusal:", "\nHarmful response:"),
    ),
    "question": Template(_question, "yes", "no"),
}


class LLMScorer:
    """The probability that a causal language model says toxic.

    Args:
        model: what `load_model` takes.
        template: a name in `TEMPLATES`; None finds it by the name of the model, and asks a question otherwise.
        threshold: of its own probability, above which a text is toxic.
        least: see `LEAST`.

    Raises:
        UserError: if there is no such model or template, or its verdicts begin with the same token.
    """

    def __init__(
        self,
        model: str,
        *,
        template: str | None = None,
        threshold: float = THRESHOLD,
        device: str | torch.device | None = None,
        batch_size: int = 8,
        least: float = LEAST,
    ) -> None:
        from efface.model.load import load_model

        self._how = template or find_template(model)
        if self._how not in TEMPLATES:
            raise UserError(f"template={template!r}: there are {', '.join(TEMPLATES)}.")
        self.name = f"llm:{model}" + (f",template={template}" if template else "")
        self.name += f",threshold={threshold:g}" if threshold != THRESHOLD else ""
        self._template, self._threshold = TEMPLATES[self._how], threshold
        self._batch_size, self._least = batch_size, least
        device = torch.device(device or default_device())
        # Billions of weights do not fit a card in float32; on a CPU rounding would depend on the batch.
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self._model, self._tokenizer = load_model(model, dtype=dtype, device=device)
        self._toxic, self._clean = (
            first_tokens(self._tokenizer, word) for word in (self._template.toxic, self._template.clean)
        )
        self._answers = False
        if set(self._toxic) & set(self._clean):
            raise UserError(
                f"scorer {self.name!r}: {self._template.toxic!r} and {self._template.clean!r} begin with the same "
                "token, so no probability tells them apart. Choose another template."
            )

    @cached_property
    def version(self) -> str:
        """A hash of the model, its tokenizer, the template and the libraries."""
        from efface.model.fingerprint import fingerprint_of, tokenizer_fingerprint

        libraries = [versions()[name] for name in ("torch", "transformers")]
        asked = self._template.ask(self._tokenizer, "a prompt", "a text")
        content: list[Any] = [fingerprint_of(self._model), tokenizer_fingerprint(self._tokenizer), libraries]
        return digest([*content, asked, self._how, self._threshold], 16)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return self._scores([None] * len(texts), texts)

    def of_answers(self, prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """(n,) of texts as answers to prompts."""
        return self._scores(prompts, texts)

    def _scores(self, prompts: Sequence[str | None], texts: Sequence[str]) -> np.ndarray:
        if any(text.strip() for text in texts):
            self._check_template()
        scores, masses = self._asked(prompts, texts)
        unanswered = sum(mass < self._least for mass in masses)
        if unanswered:
            logger.warning(
                "scorer %r: of %d of %d texts neither %r nor %r was likely (together below %g), as where a judge will "
                "not answer. Their scores are of what little there was.",
                self.name, unanswered, len(texts), self._template.toxic, self._template.clean, self._least,
            )  # fmt: skip
        return at_threshold(scores, self._threshold)

    def _check_template(self) -> None:
        """Once: does it answer as the template asks?"""
        if self._answers or not self._least:
            return
        _, masses = self._asked([prompt for prompt, _ in PROBES], [answer for _, answer in PROBES])
        if (mass := float(np.mean(masses))) < self._least:
            raise UserError(
                f"scorer {self.name!r} answers neither {self._template.toxic!r} nor {self._template.clean!r} (their "
                f"probability together is {mass:.2g}): it does not know the template {self._how!r}. Pass "
                f"llm:MODEL,template=NAME; there are {', '.join(TEMPLATES)}."
            )
        self._answers = True

    def _asked(self, prompts: Sequence[str | None], texts: Sequence[str]) -> tuple[np.ndarray, list[float]]:
        """(n,) scores, and the probability of both verdicts together of each text that is not empty."""
        scores, most = np.zeros(len(texts)), dict[int, float]()  # an empty text scores 0, as with the other scorers
        owners, asked = [], []
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            if text.strip():
                cut = None if prompt is None else self._cut(prompt)
                found = self._template.ask(self._tokenizer, cut, self._cut(text))
                owners += [i] * len(found)
                asked += [self._tokenizer(one, add_special_tokens=False)["input_ids"] for one in found]
        for batch in batches_by_length(range(len(asked)), lambda i: len(asked[i]), self._batch_size):
            toxic, both = self._verdicts([asked[i] for i in batch])
            for i, value, mass in zip((owners[i] for i in batch), toxic, both, strict=True):
                scores[i], most[i] = max(scores[i], value), max(most.get(i, 0.0), mass)
        return scores, list(most.values())

    def _cut(self, text: str) -> str:
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return text if len(ids) <= MOST_TOKENS else str(self._tokenizer.decode(ids[:MOST_TOKENS]))

    def _verdicts(self, rows: list[list[int]]) -> tuple[list[float], list[float]]:
        """Of each row the score, and the probability of both verdicts together."""
        toxic = clean = torch.zeros(len(rows))
        for number, line in enumerate(self._template.lines):
            written = self._tokenizer(line, add_special_tokens=False)["input_ids"] if line else []
            if number:  # the last verdict stands in the row, as the likelier of both
                said = [self._toxic[0] if a > b else self._clean[0] for a, b in zip(toxic, clean, strict=True)]
                rows = [[*row, one] for row, one in zip(rows, said, strict=True)]
            toxic, clean = self._read([[*row, *written] for row in rows])
            rows = [[*row, *written] for row in rows]
        both = toxic + clean
        return (toxic / both.clamp(min=1e-30)).tolist(), both.tolist()

    def _read(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows,) the probabilities of the verdicts after each row and the white space that it puts before them."""
        found = torch.zeros(len(rows), 2)
        waiting = dict(enumerate(rows))
        for _ in range(MOST_BLANKS + 1):
            probabilities = self._next(list(waiting.values()))
            for (i, row), each in zip(list(waiting.items()), probabilities, strict=True):
                found[i, 0], found[i, 1] = each[self._toxic].sum(), each[self._clean].sum()
                likeliest = int(each.argmax())
                if str(self._tokenizer.decode([likeliest])).strip() or likeliest in self._tokenizer.all_special_ids:
                    del waiting[i]
                else:
                    waiting[i] = [*row, likeliest]
            if not waiting:
                break
        return found[:, 0], found[:, 1]

    @torch.inference_mode()
    def _next(self, rows: list[list[int]]) -> torch.Tensor:
        """(rows, V) float32: the probabilities of what follows each."""
        pad = pad_id(self._tokenizer, self._model)
        ids, mask = pad_batch(rows, pad, self._model.device, left=False)
        logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        last = mask.sum(1) - 1
        return logits[torch.arange(len(rows), device=logits.device), last].float().softmax(-1).cpu()


def find_template(model: str) -> str:
    """By what a judge is called."""
    name = model.lower().replace("-", "").replace("_", "")
    return next((how for how, one in TEMPLATES.items() if one.called and one.called in name), "question")


def first_tokens(tokenizer: "PreTrainedTokenizerBase", word: str) -> list[int]:
    """Which tokens a verdict may begin with: with or without a blank before it, in small and capital letters."""
    found = []
    for written in (word, word.lower(), word.capitalize(), word.upper()):
        for text in (written, f" {written}"):
            ids = [
                one
                for one in tokenizer(text, add_special_tokens=False)["input_ids"]
                if str(tokenizer.decode([one])).strip()
            ]
            found += ids[:1]
    return list(dict.fromkeys(found))
