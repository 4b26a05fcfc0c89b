"""How many tokens a second does `efface` write for a measurement, beside a plain batched `model.generate`?

    python benchmarks/generation.py [--model MODEL] [--prompts FILE] [--json benchmarks/results/generation.json]

25 samples of at most 20 new tokens for each of 16 prompts, from the nucleus of 0.9, float32, on the CPU. `--prompts`
takes JSON lines with "prompt" (or `shipped:NAME`); of these, 16 of evenly spread length are taken, in their order.

    efface        `generate_ids` with its defaults
    transformers  `model.generate` on batches of 32, each prompt repeated 25 times, in the order of the file

Each side is a process of its own that does the whole job when told to; they take turns, so noise hits both alike.

Time: seconds of the whole job, tokenizing and decoding to text included; medians of the timed turns. A side's tokens
are those up to and including the end of the text, of whatever it drew, so they are counted; the ratio is that of the
medians of tokens a second.

Memory: `peak` is the most that a process held resident during the timed turns, `above` is that less what it held with
the model loaded, before its first turn.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from common import command
from step_workers import peak, reset_peak, resident

from efface.data.rows import load_texts
from efface.files.environment import environment
from efface.files.results import write_json
from efface.model.load import DEFAULT_MODEL, load_model

SAMPLES, TOP_P, NEW_TOKENS = 25, 0.9, 20
N_PROMPTS = 16
BATCH = 32  # of transformers
SIDES = ("efface", "transformers")
GB = 1e9

Job = Callable[[int], list[list[int]]]
"""A number to draw with -> the new tokens of each sequence."""


def job(side: str, model: Any, tokenizer: Any, prompts: list[str]) -> Job:
    import torch

    from efface.generation.decoder import end_ids
    from efface.generation.decoding import Decoding
    from efface.generation.generate import generate_ids

    def ours(seed: int) -> list[list[int]]:
        rows = generate_ids(
            model,
            tokenizer,
            prompts,
            Decoding(samples=SAMPLES, top_p=TOP_P, max_new_tokens=NEW_TOKENS, seed=seed),
        )
        return [continuation.token_ids for row in rows for continuation in row]

    @torch.no_grad()
    def theirs(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        repeated = [prompt for prompt in prompts for _ in range(SAMPLES)]
        ends, new = end_ids(model, tokenizer), []
        for start in range(0, len(repeated), BATCH):
            batch = tokenizer(repeated[start : start + BATCH], return_tensors="pt", padding=True)
            output = model.generate(
                **batch, do_sample=True, top_p=TOP_P, top_k=0, temperature=1.0, max_new_tokens=NEW_TOKENS,
                pad_token_id=tokenizer.pad_token_id, eos_token_id=ends,
            )  # fmt: skip
            new += output[:, batch["input_ids"].shape[1] :].tolist()
            tokenizer.batch_decode(output, skip_special_tokens=True)
        stops = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in new]
        return [row[:stop] for row, stop in zip(new, stops, strict=True)]

    if side == "efface":
        return ours
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return theirs


def serve(channel: Connection, side: str, name: str, prompts: list[str]) -> None:
    """A side's process: does the job for each seed it is sent, "reset"s its peak, ends with what "memory" it held."""
    model, tokenizer = load_model(name, device="cpu")
    run = job(side, model, tokenizer, prompts)
    held = resident()
    whole_life = False
    channel.send(None)  # ready
    while True:
        word = channel.recv()
        if word == "reset":
            whole_life = not reset_peak()
            channel.send(None)
        elif word == "memory":
            channel.send({"loaded": held, "peak": peak(), "above": peak() - held, "peak_of_whole_life": whole_life})
            return
        else:
            started = time.perf_counter()
            rows = run(word)
            seconds = time.perf_counter() - started
            channel.send({"seconds": seconds, "tokens": sum(map(len, rows)), "sequences": len(rows)})


def measure(name: str, prompts: list[str], turns: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    channels: dict[str, Connection] = {}
    processes = []
    for side in SIDES:
        channels[side], other = context.Pipe()
        processes.append(context.Process(target=serve, args=(other, side, name, prompts), daemon=True))
        processes[-1].start()
        other.close()
        channels[side].recv()

    def ask(side: str, word: Any) -> Any:
        channels[side].send(word)
        return channels[side].recv()

    answers: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for turn in range(turns + 1):  # the first warms up
        for side in SIDES:
            if turn == 1:
                ask(side, "reset")
            answer = ask(side, turn)
            if turn:
                answers[side].append(answer)
            print(f"{side:14}{'' if turn else 'warming up':12}{answer['tokens'] / answer['seconds']:8.0f} tokens/s")
    sides = {side: summary(answers[side]) | {"memory": ask(side, "memory")} for side in SIDES}
    for process in processes:
        process.join()
    ours, theirs = (sides[side]["tokens_per_second"]["median"] for side in SIDES)
    return {
        "model": name,
        "ratio": ours / theirs,
        "memory_ratio": sides["efface"]["memory"]["peak"] / sides["transformers"]["memory"]["peak"],
        "sides": sides,
    }


def summary(answers: list[dict[str, Any]]) -> dict[str, Any]:
    rates = [answer["tokens"] / answer["seconds"] for answer in answers]
    return {
        "tokens_per_second": {"median": statistics.median(rates), "min": min(rates), "max": max(rates), "all": rates},
        "seconds": [answer["seconds"] for answer in answers],
        "tokens": [answer["tokens"] for answer in answers],
        "sequences": answers[0]["sequences"],
    }


def spread_by_length(prompts: list[str], n: int) -> list[str]:
    """n prompts from the shortest to the longest, in the order in which they stand."""
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    chosen = {order[round(place * (len(order) - 1) / max(n - 1, 1))] for place in range(n)}
    return [prompts[number] for number in sorted(chosen)]


def report(entry: dict[str, Any]) -> str:
    lines = [
        f"\n{entry['model']}: {SAMPLES} samples of {entry['settings']['prompts']} prompts\n",
        f"{'':14}{'tokens/s: median [min, max]':>30}{'peak GB':>10}{'above the model':>17}",
    ]
    for side, found in entry["sides"].items():
        rate, memory = found["tokens_per_second"], found["memory"]
        text = f"{rate['median']:.0f} [{rate['min']:.0f}, {rate['max']:.0f}]"
        lines.append(f"{side:14}{text:>30}{memory['peak'] / GB:10.2f}{memory['above'] / GB:17.2f}")
    lines += [f"\nratio         {entry['ratio']:.2f}", f"memory_ratio  {entry['memory_ratio']:.2f}"]
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default=DEFAULT_MODEL)
    options.add_argument("--prompts", default="shipped:prompts", metavar="FILE")
    options.add_argument("--turns", type=int, default=4, help="timed ones, after one for warming up")
    options.add_argument("--json", type=Path, default=None, metavar="OUT")
    args = options.parse_args()
    prompts = spread_by_length(load_texts(args.prompts, "prompt"), N_PROMPTS)
    entry = measure(args.model, prompts, args.turns)
    entry["settings"] = {
        "prompts": len(prompts), "prompt_file": args.prompts, "samples": SAMPLES, "top_p": TOP_P,
        "max_new_tokens": NEW_TOKENS, "batch_of_transformers": BATCH, "turns": args.turns,
    }  # fmt: skip
    entry["environment"] = environment(seed=0, model=None, command=command())
    print(report(entry))
    if args.json is not None:
        write_json(args.json, entry)


if __name__ == "__main__":
    main()
