"""What does `repo` need of memory and time for models that are not here? On paper, from the shape of a model alone.

    python benchmarks/scale.py [--json benchmarks/results/scale.json]

Memory is what `efface.training.estimate`, which every run prints before its first step, says of a model of this shape
on the meta device, where tensors have sizes and no contents; bytes that are kept for the backward pass are counted in
a forward there. Time is arithmetic: operations over what a card is assumed to do (CARD), and gradients over what the
network is assumed to carry. Nothing of this was run on such a model or such a card.
"""

import argparse
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from common import command
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from efface.files.environment import environment
from efface.files.results import write_json
from efface.training.estimate import checkpointed, estimate, saved_for_backward

SHAPES: dict[str, dict[str, Any]] = {  # those of Llama 3
    "1B": {"layers": 16, "width": 2048, "mlp": 8192, "heads": 32, "kv_heads": 8, "tied": True},
    "8B": {"layers": 32, "width": 4096, "mlp": 14336, "heads": 32, "kv_heads": 8, "tied": False},
    "70B": {"layers": 80, "width": 8192, "mlp": 28672, "heads": 64, "kv_heads": 8, "tied": False},
}
VOCABULARY = 128_256
WAYS: dict[str, dict[str, Any]] = {
    "full": {"reference": "live", "flags": "--bf16 true"},
    "full, checkpointing": {
        "reference": "live",
        "checkpointing": True,
        "flags": "--bf16 true --gradient_checkpointing true",
    },
    "full, cached reference": {
        "reference": "head",
        "checkpointing": True,
        "flags": "--bf16 true --precompute_reference on --gradient_checkpointing true",
    },
    "LoRA": {
        "reference": "adapter",
        "lora": 16,
        "checkpointing": True,
        "flags": "--lora_r 16 --bf16 true --gradient_checkpointing true",
    },
    "LoRA, bfloat16 base": {
        "reference": "adapter",
        "lora": 16,
        "checkpointing": True,
        "dtype": "bfloat16",
        "flags": "--lora_r 16 --dtype bfloat16 --bf16 true --gradient_checkpointing true",
    },
    "QLoRA": {
        "reference": "adapter",
        "lora": 16,
        "checkpointing": True,
        "dtype": "bfloat16",
        "bits": 4,
        "flags": "--load-in-4bit --lora_r 16 --bf16 true --gradient_checkpointing true",
    },
}
PAIRS, PROMPT, CONTINUATION = 8, 128, 128  # a micro-batch of a card: pairs, tokens
CARDS = (1, 8, 64)
EPOCH = 10_000  # pairs
CARD = {"memory": 80e9, "flops": 989e12, "share": 0.35, "within": 450e9, "across": 50e9, "a_node": 8}
"""An H100 SXM as its data sheet says (bytes, bfloat16 operations a second, bytes a second between cards of a node and
between nodes); `share` of its operations is what is assumed to be reached."""
BLOCK = 64  # weights that share a scale in NF4


def shaped(shape: dict[str, Any], dtype: str, lora: int | None) -> Any:
    """The model, of the right sizes and without contents."""
    config = LlamaConfig(
        hidden_size=shape["width"], intermediate_size=shape["mlp"], num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"], num_key_value_heads=shape["kv_heads"],
        tie_word_embeddings=shape["tied"], vocab_size=shape.get("vocabulary", VOCABULARY),
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        if lora is None:
            return model
        from peft import LoraConfig, get_peft_model

        return get_peft_model(model, LoraConfig(r=lora, target_modules="all-linear", task_type="CAUSAL_LM"))


def kept_per_token(model: nn.Module, tokens: int) -> float:
    """Bytes a token that autograd keeps of the blocks, in a forward of two rows."""
    body: Any = model.get_submodule("base_model.model.model" if hasattr(model, "peft_config") else "model")
    ids = torch.zeros(2, tokens, dtype=torch.long, device="meta")
    mask = torch.ones(2, 1, tokens, tokens, dtype=torch.bool, device="meta")  # given, or its contents are looked at
    with saved_for_backward(model) as sizes, mock.patch.object(F, "scaled_dot_product_attention", _flash):
        states = body(input_ids=ids, attention_mask=mask, use_cache=False)
        kept = sum(sizes.values()) / (2 * tokens)
        del states  # until here, or what is kept would be freed and counted again under one number
    return kept


def _flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **given: Any) -> torch.Tensor:
    """The attention that a real device takes; the meta device would take one that keeps (heads, T, T)."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]


class Quantised:
    """The parameters of a model whose linear maps of the blocks lie in 4 bits, with a scale for each BLOCK."""

    def __init__(self, model: Any):
        self.model, self.config, self.dtype = model, model.config, model.dtype

    def named_parameters(self) -> Any:
        for name, one in self.model.named_parameters():
            small = one.requires_grad or one.ndim < 2 or "embed_tokens" in name or "lm_head" in name
            yield name, one if small else torch.empty(one.numel() // 2 + 4 * one.numel() // BLOCK, dtype=torch.uint8,
                                                      device="meta")  # fmt: skip

    def parameters(self) -> Any:
        return (one for _, one in self.named_parameters())


def on_paper(shape: dict[str, Any], way: dict[str, Any], parts: int = 1) -> dict[str, Any]:
    """What `efface train repo` would print of this model, in bytes, and how many parameters there are.

    Args:
        parts: cards over which FSDP2 cuts the weights.
    """
    model = shaped(shape, way.get("dtype", "float32"), way.get("lora"))
    width = PROMPT + CONTINUATION
    kept = kept_per_token(model, width)
    if way.get("checkpointing"):
        kept = checkpointed(kept, model)
    head = model.get_output_embeddings().weight
    reference = {"live": sum(one.nbytes for one in model.parameters()), "head": head.nbytes, "adapter": 0}
    counted = Quantised(model) if way.get("bits") == 4 else model
    run: Any = SimpleNamespace(
        model=counted,
        args=SimpleNamespace(
            optim="adamw_torch_fused", train_batch_size=PAIRS, max_batch_tokens=None, retain_text_tokens=0,
            device=torch.device("cpu"),
        ),
        train_dataset=SimpleNamespace(
            states=None, pairs=SimpleNamespace(lengths=np.array([[PROMPT, CONTINUATION, CONTINUATION]]))
        ),
        head=SimpleNamespace(weight=head),
        reference=SimpleNamespace(nbytes=reference[way["reference"]]),
        passage_stream=SimpleNamespace(per_batch=0),
        perturbed=SimpleNamespace(kinds=()),
        neurons=None, parts=parts,
    )  # fmt: skip
    found = dataclasses.asdict(estimate(run, kept)) | {"available": None}
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    return {"memory": found, "total": estimate(run, kept).total, "trained": trained,
            "parameters": sum(one.numel() for one in model.parameters())}  # fmt: skip


def a_card(found: dict[str, Any], cards: int, *, zero: int = 0) -> float:
    """Bytes on each of so many cards, which all hold the whole model: buckets of gradients are there twice, and what
    DeepSpeed's stage 1 (optimizer) or 2 (and gradients) spreads is there once."""
    memory = found["memory"]
    total = float(found["total"] + (memory["gradients"] if cards > 1 else 0))
    total -= memory["optimizer"] * (1 - 1 / cards) if zero >= 1 else 0
    return total - (2 * memory["gradients"] * (1 - 1 / cards) if zero >= 2 and cards > 1 else 0)


def cut(shape: dict[str, Any], way: dict[str, Any], whole: dict[str, Any], cards: int) -> float | None:
    """Bytes on each card under FSDP2: what training needs of the parts, or, where that is more, the whole model and
    its reference, which are looked at once before they are cut. None for what FSDP2 was not tried with (4 bits)."""
    if way.get("bits") == 4 or cards == 1:
        return None
    loaded = whole["memory"]["parameters"] + whole["memory"]["reference"]
    return float(max(on_paper(shape, way, cards)["total"], loaded))


def seconds_of_a_step(found: dict[str, Any], way: dict[str, Any], cards: int) -> float:
    """2 operations a weight and token forward, 2 for the states' gradients and 2 for those of trained weights, a
    forward more for a live reference and one for checkpointing; then the gradients go round all cards."""
    tokens = 2 * PAIRS * (PROMPT + CONTINUATION)
    passes = 4 + 2 * (way.get("lora") is None) + 2 * (way["reference"] != "head") + 2 * bool(way.get("checkpointing"))
    work = passes * found["parameters"] * tokens / (CARD["flops"] * CARD["share"])
    speed = CARD["within"] if cards <= CARD["a_node"] else CARD["across"]
    return work + 2 * found["memory"]["gradients"] * (1 - 1 / cards) / speed


def table() -> list[dict[str, Any]]:
    rows = []
    for size, shape in SHAPES.items():
        for name, way in WAYS.items():
            found = on_paper(shape, way)
            rows.append({"size": size, "way": name, "flags": way["flags"], **found, "cards": {}})
            for cards in CARDS:
                seconds = seconds_of_a_step(found, way, cards)
                rows[-1]["cards"][str(cards)] = {
                    "bytes": a_card(found, cards),
                    "bytes_zero_1": a_card(found, cards, zero=1),
                    "bytes_zero_2": a_card(found, cards, zero=2),
                    "bytes_fsdp_2": cut(shape, way, found, cards),
                    "seconds_a_step": seconds,
                    "epoch_seconds": seconds * EPOCH / (PAIRS * cards),
                }
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, default=None, metavar="OUT")
    args = options.parse_args()
    assumed = {"shapes": SHAPES, "vocabulary": VOCABULARY, "card": CARD, "epoch": EPOCH, "pairs": PAIRS,
               "tokens": {"prompt": PROMPT, "continuation": CONTINUATION}}  # fmt: skip
    rows = table()
    for row in rows:
        one = row["cards"]["1"]
        print(f"{row['size']:4} {row['way']:24} {one['bytes'] / 2**30:8.1f} GiB {one['seconds_a_step']:7.2f} s a step")
    if args.json is not None:
        made = environment(seed=None, model=None, command=command())
        write_json(args.json, {"what": "on paper, nothing was run", "assumed": assumed, "rows": rows,
                               "environment": made})  # fmt: skip


if __name__ == "__main__":
    main()
