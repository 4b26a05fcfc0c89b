"""efface: erase toxicity from the hidden representations of open-weight language models; attack and explain it."""

from pkgutil import resolve_name
from typing import Any

__version__ = "0.1.0"

# Public name -> where it lives. Resolved on first use: importing efface costs nothing.
_EXPORTS = {
    "REPOConfig": "efface.methods.repo:REPOConfig",
    "REPOTrainer": "efface.methods.repo:REPOTrainer",
    "PairCollator": "efface.data.batch:PairCollator",
    "UserError": "efface.errors:UserError",
    "Decoding": "efface.generation.decoding:Decoding",
    "evaluate": "efface.evaluation.measure:evaluate",
    "load_model": "efface.model.load:load_model",
    "load_pairs": "efface.data.pairs:load_pairs",
    "save_model": "efface.model.save:save_model",
}
__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'efface' has no attribute {name!r}")
    return resolve_name(_EXPORTS[name])
