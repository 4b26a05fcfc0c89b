"""How is any method run on a tiny model?"""

from pathlib import Path
from typing import Any

from checkpoints import saved
from tiny import tiny_model, tiny_tokenizer
from trained import ROWS
from transformers import PretrainedConfig

from efface.methods import METHODS, load_method
from efface.training.trainer import PairTrainer

# What the defaults, made for real models, do not fit on two layers and eight pairs.
TINY: dict[str, dict[str, Any]] = {
    "lox": {"strength": 0.5},
    "profs": {"first_layer": "0"},
    "repselect": {"adversary_steps": 2, "kl_tokens": 256},
    "task_vector": {"scales": "0.5", "max_steps": 2},
}


def build(method: str, model: Any, folder: Path, **settings: Any) -> Any:
    found = load_method(method)
    defaults: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, **TINY.get(method, {})}
    if issubclass(found, PairTrainer):
        defaults |= {"max_steps": 2, "logging_steps": 1, "retain_text": None, "learning_rate": 1e-3}
    config: Any = found.config_class
    if method == "lox":  # which is of an edited model: of another one, here
        family = getattr(model, "config", PretrainedConfig(model_type="llama")).model_type
        defaults["base"] = str(saved(folder / "base", family, seed=1))
    others: dict[str, Any] = {"processing_class": tiny_tokenizer()}
    if method == "retain":  # which leaves a model that is its own reference as it is
        others["ref_model"] = tiny_model(
            getattr(model, "config", PretrainedConfig(model_type="llama")).model_type, seed=1
        )
    if "eval_dataset" in settings:
        others["eval_dataset"] = settings.pop("eval_dataset")
    return found(model, config(str(folder), **defaults | settings), ROWS, **others)


TRAINED = [name for name in METHODS if issubclass(load_method(name), PairTrainer)]
