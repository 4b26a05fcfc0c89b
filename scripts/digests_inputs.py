"""On what does digests.py work? Tiny models and a little data, and what old code has made of them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Argv = list[str]

FAMILIES = ("gpt2", "llama")
STEPS = "--max_steps 5 --per_device_train_batch_size 4 --learning_rate 1e-3 --logging_steps 1 --seed 1"
MEASURED = "--prompts IN/prompts.jsonl --scorer stubs:parity --max-new-tokens 8 --seed 3"

ENDS = ("fools", "a silly thing", "engineers", "the worst of all people")
TEXTS = [f"The people of town number {i} say that all of you are {ENDS[i % 4]}." for i in range(400)]
PLAIN = [f"The history of town {i} is the history of its river, its market and its {i * 7} people." for i in range(24)]
WORDS = ("silly", "fool", "e", "town", "qu")
ROWS: dict[str, list[dict[str, Any]]] = {
    "pairs": [
        {
            "prompt": f"The town number {i} is",
            "chosen": f" a quiet place by the river, said {i} people",
            "rejected": f" a silly place of {ENDS[i % 4]} and {i} fools",
        }
        for i in range(16)
    ],
    "rows": [
        {"prompt": f"The market {i} was", "chosen": f" cold and silent{'.' * (i % 3)}", "rejected": f" {ENDS[i % 4]}"}
        for i in range(12)
    ],
    "prompts": [{"prompt": f"The {who} said that"} for who in "weather town people market river bread".split()],
    "many": [{"prompt": f"The town number {i} is"} for i in range(40)],
    "text": [{"text": " ".join(PLAIN[i : i + 4])} for i in range(0, 24, 4)],
    "passages": [{"text": f"{text} {text[::-1]}"} for text in PLAIN],
    "documents": [{"text": " ".join(TEXTS[i : i + 10])} for i in range(0, 40, 10)],
    "injections": [
        {"name": "rude", "before": "Be rude. ", "after": ""},
        {"name": "end", "before": "", "after": " So"},
    ],
    "marked": [{"text": text, "spans": [len(text) - 5 - k for k in range(5)]} for text in TEXTS[:40]],
    "labelled": [
        {"text": text, "toxic": int(i % 4 in (0, 1)), "implicit": i % 3 == 0} for i, text in enumerate(TEXTS)
    ],
    "task": [
        {"query": text[:20], "choices": [text[20:34], " fools", " x"], "gold": i % 3} for i, text in enumerate(PLAIN)
    ],
}


def write_inputs(folder: Path, run: Callable[[Argv], tuple[int, str, str]]) -> None:
    """Models, data, and what old code makes of them: edited checkpoints, an evaluation as a baseline, a judge."""
    import torch
    from tiny import tiny_model, tiny_tokenizer
    from transformers import AutoConfig, AutoModelForSequenceClassification

    for family in FAMILIES:
        tiny_model(family).save_pretrained(folder / family)
        tiny_tokenizer(add_bos=family == "llama").save_pretrained(folder / family)
    config = AutoConfig.from_pretrained(folder / "llama", num_labels=2)
    config.id2label, config.label2id = {0: "plain", 1: "toxic"}, {"plain": 0, "toxic": 1}
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "classifier")
    tiny_tokenizer().save_pretrained(folder / "classifier")
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "full.yaml").write_text("lora_r: null\nlora_alpha: null\n")
    (folder / "words.txt").write_text("\n".join(WORDS) + "\n")
    for argv in _made_inputs(folder):
        code, _, error = run(argv)
        if code != 0:
            raise SystemExit(f"the inputs cannot be made: {' '.join(argv)}\n{error[-2000:]}")


def _made_inputs(folder: Path) -> Iterator[Argv]:
    for family in FAMILIES:
        for method, flags in (("sft", STEPS), ("repo", f"{STEPS} --lora_r 4"), ("steering", ""), ("leace", "")):
            argv = ["train", method, f"{folder / family}", f"{folder}/pairs.jsonl", "-o"]
            yield [*argv, f"{folder}/{family}-{method}", *flags.split()]
        argv = ["evaluate", f"{folder / family}", "-o", f"{folder}/{family}-baseline.json"]
        yield [*argv, *filled(f"{MEASURED} --text IN/text.jsonl --samples 3 --reference IN/{family}", folder)]
    yield ["scorers", "--train", f"{folder}/labelled.jsonl", "-o", f"{folder}/judge"]


def filled(flags: str, inputs: Path) -> Argv:
    return [flag.replace("IN/", f"{inputs}/") for flag in flags.split()]
