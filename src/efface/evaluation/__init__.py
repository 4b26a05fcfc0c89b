"""MEASURE: generation, scorers, toxicity, perplexity, degeneration; `evaluate` puts them together."""

# Not lazy: the function shares its name with its module, and only an import here makes sure that the function wins.
# The module imports torch and transformers when called.
from efface.evaluation.measure import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
