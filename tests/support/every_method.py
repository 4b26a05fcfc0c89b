"""How is any method run on a tiny model?"""

from pathlib import Path
from typing import Any

from checkpoints import on_grid_
from tiny import tiny_model, tiny_tokenizer
from trained import ROWS
from transformers import PretrainedConfig

from efface.methods import METHODS, load_method
from efface.model.save import save_model
from efface.training.trainer import PairTrainer

# What the defaults, made for real models, do not fit on two layers and eight pairs.
TINY: dict[str, dict[str, Any]] = {
    "lox": {"strength": 0.5},
    "profs": {"first_layer": "0"},
    "repselect": {"adversary_steps": 2, "kl_tokens": 256},
    "task_vector": {"scales": "0.5", "max_steps": 2},
}


OF_AN_EDIT = ("lox", "gptq")


def build(method: str, model: Any, folder: Path, **settings: Any) -> Any:
    found = load_method(method)
    defaults: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, **TINY.get(method, {})}
    if issubclass(found, PairTrainer):
        defaults |= {"max_steps": 2, "logging_steps": 1, "retain_text": None, "learning_rate": 1e-3}
    config: Any = found.config_class
    if method in OF_AN_EDIT:  # of another model, here
        family = getattr(model, "config", PretrainedConfig(model_type="llama")).model_type
        base = tiny_model(family, seed=1)
        save_model(on_grid_(base) if method == "gptq" else base, tiny_tokenizer(), folder / "base")
        defaults["base"] = str(folder / "base")
    others: dict[str, Any] = {"processing_class": tiny_tokenizer()}
    if method == "retain":  # which leaves a model that is its own reference as it is
        others["ref_model"] = tiny_model(
            getattr(model, "config", PretrainedConfig(model_type="llama")).model_type, seed=1
        )
    if "eval_dataset" in settings:
        others["eval_dataset"] = settings.pop("eval_dataset")
    return found(model, config(str(folder), **defaults | settings), ROWS, **others)


TRAINED = [name for name in METHODS if issubclass(load_method(name), PairTrainer)]
