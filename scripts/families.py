"""Which model families does efface train? Builds a tiny model of each from its configuration, and trains one step.

    python scripts/families.py [FAMILY ...]     # writes benchmarks/results/families.json and prints the table

For each: one step of REPO and one of RMU at the default settings, or the line that refuses. Before the first step the
KL to the reference is 0; but for rounding (below 1e-6), for the reference was asked in other batches, and row by row
where the model reads a pair as one sequence.
"""

import argparse
import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PrinterCallback
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "families.json"
VOCAB_SIZE = 300  # that of the tokenizer in tests/support/tiny.py

# What makes a model small, under every name that some configuration has for it; a family takes what it knows.
SMALL: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "word_embed_proj_dim", "embedding_size", "emb_dim"], 32),
    **dict.fromkeys(["attention_hidden_size", "lru_width"], 32),
    **dict.fromkeys(["intermediate_size", "intermediate_size_mlp", "decoder_ffn_dim", "encoder_ffn_dim"], 64),
    **dict.fromkeys(["ffn_dim", "n_inner", "ffn_hidden_size"], 64),
    **dict.fromkeys(["num_hidden_layers", "decoder_layers", "encoder_layers", "n_layer", "n_layers", "num_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "decoder_attention_heads", "encoder_attention_heads", "n_head"], 4),
    **dict.fromkeys(["n_heads", "attention_heads", "num_heads", "mamba_n_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "linear_num_value_heads", "linear_num_key_heads", "index_n_heads"], 2),
    **dict.fromkeys(["head_dim", "v_head_dim", "linear_key_head_dim", "linear_value_head_dim", "index_head_dim"], 8),
    **dict.fromkeys(["kv_lora_rank", "q_lora_rank", "query_pre_attn_scalar", "sliding_window"], 8),
    **dict.fromkeys(["attention_window_size", "attention_chunk_size"], 8),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len", "context_length"], 128),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "index_topk"], 4),
    **dict.fromkeys(["num_experts_per_tok", "moe_k", "moe_top_k"], 2),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "mamba_d_head"], 16),
    **dict.fromkeys(["qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim", "mamba_d_state", "state_size"], 4),
    **dict.fromkeys(["mamba_dt_rank", "laurel_rank"], 4),
    **dict.fromkeys(["mamba_d_conv", "conv_kernel", "mamba_expand"], 2),
    **dict.fromkeys(["n_group", "topk_group", "first_k_dense_replace", "mamba_n_groups"], 1),
    **dict.fromkeys(["vocab_size", "vocab_size_per_layer_input"], VOCAB_SIZE),
    **{"use_mamba_kernels": False, "is_decoder": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
LATENT = {"num_key_value_heads": 4}  # attention over latent keys and values has as many heads for both
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}
KINDS = ["sliding_attention", "full_attention"]
# What a family needs besides, or otherwise; None leaves its own default.
SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(["axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v32", "glm4_moe_lite"], LATENT),
    **dict.fromkeys(["glm_moe_dsa", "kimi_linear", "minicpm3"], LATENT),
    **dict.fromkeys(["axk1", "deepseek_v3", "youtu"], LATENT | {"head_dim": 4}),  # that of the turned part
    "bamba": {"attn_layer_indices": [1], "layer_types": None},
    "ctrl": {"dff": 64},
    "falcon": {"alibi": True, "new_decoder_architecture": False, "multi_query": False},
    "gemma3": {"vision_config": VISION, "mm_tokens_per_image": 1},
    "gemma3n_text": {
        "layer_types": KINDS, "num_kv_shared_layers": 0, "altup_num_inputs": 2, "hidden_size_per_layer_input": 8,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4_text": {"layer_types": KINDS, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8,
                    "global_head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "qwen3_moe": {"decoder_sparse_step": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "layer_types": None},
    "smollm3": {"no_rope_layers": [1, 0]},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
# Families of which a tiny model needs a configuration of its own, or a package that is not here; or that are no text
# model but a part of one.
LEFT_OUT = {
    "blt", "cohere_compass_text", "dbrx", "dots1", "dots3_note", "dots3_note_text", "emu3", "falcon_h1", "fuyu",
    "gemma3n", "gemma4", "gemma4_assistant", "gemma4_unified", "gemma4_unified_assistant", "git", "got_ocr2",
    "lfm2_moe", "llama4", "mllama", "moss_transcribe_diarize", "musicgen", "musicgen_melody", "phi4_multimodal",
    "qwen3_5", "qwen3_5_moe", "qwen4_exp", "qwen4_exp_text", "reformer", "roc_bert", "zamba", "zamba2",
}  # fmt: skip
FAMILIES = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in LEFT_OUT]


def tiny(family: str, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A random model of a family, of two layers, with weights large enough that a wrong mask would show."""
    kind = CONFIG_MAPPING[family]
    special = SPECIAL.get(family, {}) | settings
    if "vision_config" in special:
        text = _known(kind.sub_configs["text_config"]) | {"layer_types": KINDS}
        known: dict[str, Any] = {"text_config": text, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    else:
        known = _known(kind)
    config = kind(**{name: value for name, value in (known | special).items() if value is not None})
    config._attn_implementation = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(0.0, 0.2)
    return model.eval()


def _known(kind: Any) -> dict[str, Any]:
    default = kind()
    names = {*default.to_dict(), *getattr(kind, "attribute_map", {})}
    known = {name: value for name, value in SMALL.items() if name in names}
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or []))
    if kinds and "layer_types" in names:
        known["layer_types"] = (kinds * 2)[:2]  # one of each, of the first two
    return known


ROWS = [
    {"prompt": "The weather", "chosen": " was cold", "rejected": " is for silly fools and nobody likes it"},
    {"prompt": "She went to", "chosen": " the market and bought bread", "rejected": " you fool"},
]
PASSAGES = ["The history of the town is the history of its river."]


def step(model: PreTrainedModel, method: str) -> dict[str, Any]:
    """One training step: the layout, the KL on y+ and on passages at its beginning, and whether weights moved."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from tiny import tiny_tokenizer  # the tests' tokenizer, made in memory

    from efface.methods import PLAIN, load_method

    trainer_class: Any = load_method(method)
    settings: dict[str, Any] = PLAIN.copy() if method == "repo" else {}
    settings |= {"max_steps": 1, "logging_steps": 1, "learning_rate": 1e-3, "retain_text_per_pair": 0.5}
    settings |= {"use_cpu": True, "bf16": False, "disable_tqdm": True, "per_device_train_batch_size": 2}
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        config = trainer_class.config_class(folder, **settings)
        trainer = trainer_class(model, config, ROWS, processing_class=tiny_tokenizer(), retain_text=PASSAGES)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    log = trainer.state.log_history[0]
    moved = any(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    terms = [log[name] for name in ("retain_loss", "retain_text_loss")]
    kl = max(terms, key=abs)  # of RMU's first term: a distance, which is 0 too
    return {"layout": trainer.layout, "kl": kl, "moved": moved}


def tried(family: str) -> dict[str, Any]:
    """Of a family: what both steps gave, or the line that refused one."""
    from efface.errors import UserError

    found: dict[str, Any] = {"class": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]}
    for method in ("repo", "rmu"):
        try:
            found[method] = step(tiny(family), method)
        except UserError as error:
            found[method] = {"refused": str(error)}
        except Exception as error:  # what neither trains nor is refused is a defect, and is shown as one
            found[method] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return found


def table(results: dict[str, Any]) -> str:
    """Markdown, a row for each outcome."""
    sys.path.insert(0, str(Path(__file__).parent))
    from tables import families_of

    return families_of(results)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=FAMILIES, metavar="FAMILY")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    results = {}
    for family in args.families:
        results[family] = tried(family)
        print(f"{family}: {json.dumps(results[family])}", file=sys.stderr, flush=True)
    import transformers

    from efface.files.results import write_json

    content = {"schema": 1, "transformers": transformers.__version__, "torch": torch.__version__, "families": results}
    write_json(args.output, content)
    print(table(results))
    return int(any("failed" in entry[method] for entry in results.values() for method in ("repo", "rmu")))


if __name__ == "__main__":
    sys.exit(main())
