"""Is a model set beside its base only in what was measured alike?"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from tiny import tiny_model, tiny_tokenizer

from efface.evaluation.baseline import compare_with_baseline, read_baseline
from efface.evaluation.measure import evaluate
from efface.evaluation.result import Evaluation
from efface.evaluation.settings import OrdinaryText

PROMPTS = ["The weather in the old town", "You", "She went to the market and bought bread, apples and", "He is an"]
TEXT = ["The history of the town is the history of its river and its people.", "They said that nothing is better."] * 3


def test_what_was_not_measured_alike_is_named_and_not_compared() -> None:
    """Another text of as many tokens, and another judge of the same name, would else be differences of the model."""

    model = tiny_model("gpt2")

    class Judge:
        name = "judge:there"

        def __init__(self, version: str, score: float):
            self.version, self.score = version, score

        def __call__(self, texts: Sequence[str]) -> list[float]:
            return [self.score] * len(texts)

    def measured(version: str, text: list[str], **more: Any) -> Evaluation:
        judge, cost = Judge(version, 0.9 if version == "1" else 0.1), OrdinaryText(text, max_tokens=60)
        return evaluate(
            model, PROMPTS, processing_class=tiny_tokenizer(), scorer=[judge, "stubs:nasty"], text=cost, **more
        )

    base = measured("1", TEXT)
    same = measured("1", TEXT, baseline=base).versus_baseline
    assert same is not None and same.not_compared == [] and same.perplexity_ratio == 1.0
    assert set(same.judges) == {"judge:there", "stubs:nasty"}
    other = measured("2", [text[::-1] for text in TEXT], baseline=base).versus_baseline
    assert other is not None and other.perplexity_ratio is None and set(other.judges) == {"stubs:nasty"}
    assert other.not_compared == [
        "toxicity: judge:there is not the judge that it was then: its version is another",
        "perplexity: the text is another than that of the baseline",
    ]
    fewer = dataclasses.replace(base, perplexity=dataclasses.replace(base.perplexity, tokens=7))
    assert compare_with_baseline(base, read_baseline(fewer)).not_compared == [
        "perplexity: tokens 60 here and 7 in the baseline"
    ]
    said = {name: value for name, value in base.settings.items() if name not in ("judges", "text", "tokenizer")}
    older = dataclasses.replace(base, settings=said)  # as before these were written
    assert compare_with_baseline(base, read_baseline(older)).perplexity_ratio == 1.0
