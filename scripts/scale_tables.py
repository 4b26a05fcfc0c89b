"""What would models of 1B to 70B parameters take? What `benchmarks/scale.py` has reckoned, and with what."""

import json
from pathlib import Path
from typing import Any

from sweep_tables import table

FILE = Path(__file__).parent.parent / "benchmarks" / "results" / "scale.json"
GIB = 2**30
PARTS = ("parameters", "gradients", "optimizer", "reference", "activations")
DEVICE = 80e9 / GIB


def _read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def shapes() -> str:
    """What stands for each size."""
    found = _read()
    parameters = {row["size"]: row["parameters"] for row in found["rows"] if row["way"] == "full"}
    rows = [
        [
            size,
            f"{parameters[size]:,}",
            *(str(shape[name]) for name in ("layers", "width", "mlp", "heads", "kv_heads")),
        ]
        for size, shape in found["assumed"]["shapes"].items()
    ]
    return table(["size", "parameters", "layers", "width", "MLP", "heads", "of keys"], rows)


def memory() -> str:
    """GiB on one card, by what they are for, as a run prints them."""
    rows = []
    for row in _read()["rows"]:
        sizes = [f"{row['memory'][part] / GIB:.1f}" for part in PARTS]
        total = row["total"] / GIB
        rows.append([row["size"], row["way"], f"`{row['flags']}`", *sizes, f"{total:.1f}", _fits(total)])
    return table(["size", "way", "flags", *PARTS, "in all", "one card of 80 GB"], rows)


def _fits(gib: float) -> str:
    return "fits" if gib < 0.95 * DEVICE else "does not fit"


def cards() -> str:
    """GiB on each of 1, 8 and 64 cards, plainly, with DeepSpeed's stages and FSDP2; seconds a step; minutes an
    epoch."""
    rows = []
    for row in _read()["rows"]:
        for count, found in row["cards"].items():
            names = ("bytes", "bytes_zero_1", "bytes_zero_2", "bytes_fsdp_2")
            gib = {name: found[name] / GIB for name in names[: 4 if int(count) > 1 else 1] if found[name] is not None}
            least = min(gib.values())
            shown = [f"{gib[name]:.1f}" if name in gib else "" for name in names]
            times = [f"{found['seconds_a_step']:.2f}", f"{found['epoch_seconds'] / 60:.1f}"]
            fits = least < 0.95 * DEVICE
            rows.append([row["size"], row["way"], count, *shown, *(times if fits else ["", ""]),
                         "not run" if fits else "does not fit"])  # fmt: skip
    head = [
        "size",
        "way",
        "cards",
        "GiB a card",
        "with ZeRO-1",
        "with ZeRO-2",
        "with FSDP2",
        "s a step",
        "min an epoch",
        "",
    ]
    return table(head, rows)


def assumed() -> str:
    """In one line what time is reckoned with."""
    found = _read()["assumed"]
    card, tokens = found["card"], found["tokens"]
    giga = {name: card[name] / 1e9 for name in ("memory", "within", "across")}
    return (
        f"A micro-batch is {found['pairs']} pairs a card of {tokens['prompt']} + {tokens['continuation']} tokens a "
        f"side, an epoch {found['epoch']:,} pairs. A card has {giga['memory']:.0f} GB and does "
        f"{card['flops'] / 1e12:.0f} TFLOP/s in bfloat16, of which {card['share']:.0%} are reached; {card['a_node']} "
        f"cards stand in a node, {giga['within']:.0f} GB/s between them and {giga['across']:.0f} GB/s between nodes.\n"
    )
