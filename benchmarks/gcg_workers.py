"""How is one side of `gcg.py` made to take a search step, and no more? A process that waits for the word.

    python benchmarks/gcg_workers.py SIDE FOLDER TASK

SIDE is efface, or nanogcg of another environment, which knows nothing of efface: each side imports its own. FOLDER is
the checkpoint that both load, TASK the settings as JSON. It answers words on stdin with one line of JSON on stdout:

    step      one step of the search; {"seconds", "loss" of the best candidate it scored, "evaluations"}
    reset     forget the peak of the resident memory
    memory    bytes: the peak, the libraries alone, before the model, and the model's parameters
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


class Turns:
    """Tells the parent what it asks for, and lets the search make a step when it says so."""

    def __init__(self, channel: TextIO, libraries: int, model: Any):
        self.channel, self.libraries, self.model = channel, libraries, model
        self.loss, self.evaluations = 0.0, 0  # of the last step: the best candidate scored, and how many were

    def ready(self, ids: list[int]) -> None:
        """What must be equal on both sides."""
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids])).logits[0]  # (T, V)
        self.answer({
            "ids": ids, "logits": logits[:, :64].tolist(), "logsumexp": logits.logsumexp(-1).tolist(),
            "threads": torch.get_num_threads(), "dtype": str(self.model.dtype),
            "attention": self.model.config._attn_implementation,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        })  # fmt: skip

    def __iter__(self) -> Iterator[None]:
        for word in map(str.strip, sys.stdin):
            if word == "step":
                started = time.perf_counter()
                yield
                seconds = time.perf_counter() - started
                self.answer({"seconds": seconds, "loss": self.loss, "evaluations": self.evaluations})
            elif word == "reset":
                Path("/proc/self/clear_refs").write_text("5")
                self.answer({})
            elif word == "memory":
                parameters = sum(parameter.nbytes for parameter in self.model.parameters())
                self.answer({"peak": status("VmHWM"), "libraries": self.libraries, "parameters": parameters})
        raise SystemExit  # the parent is gone

    def answer(self, content: dict[str, Any]) -> None:
        print(json.dumps(content), file=self.channel, flush=True)


def run_efface(model: Any, tokenizer: Any, task: dict[str, Any], turns: Turns) -> None:
    from efface.attacks.search.drafts import draft_of
    from efface.attacks.search.gcg import GCGSettings
    from efface.attacks.search.slot import slot_in
    from efface.attacks.search.token_search import TokenSearch

    names = ("search_width", "topk", "length", "init", "search_dtype")
    settings = GCGSettings(early_stop=False, **{name: task[name] for name in names})
    slot = slot_in({"prompt": task["prompt"], "rejected": task["target"]}, tokenizer, "suffix", target_tokens=10**6)
    search = TokenSearch(model, tokenizer, [slot], settings, task["seed"], draft_of(model, settings.search_dtype))
    turns.ready(slot.prompt(search.ids.tolist()) + slot.target)
    for _ in turns:
        before = search.evaluations
        search.step()
        turns.loss, turns.evaluations = search.losses[-1], search.evaluations - before


def run_nanogcg(model: Any, tokenizer: Any, task: dict[str, Any], turns: Turns) -> None:
    import nanogcg.gcg

    class Told(nanogcg.gcg.GCG):
        def _compute_candidates_loss_original(self, search_batch_size: int, input_embeds: Any) -> Any:
            losses = super()._compute_candidates_loss_original(search_batch_size, input_embeds)
            turns.loss, turns.evaluations = losses.min().item(), len(losses)
            return losses

    text = task["init"] * task["length"]
    settings = nanogcg.GCGConfig(
        optim_str_init=text, search_width=task["search_width"], batch_size=task["batch_size"], topk=task["topk"],
        filter_ids=True, use_prefix_cache=True,
    )  # fmt: skip
    nanogcg.gcg.logger.setLevel("ERROR")
    parts = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, task["target"])]
    turns.ready(tokenizer(task["prompt"])["input_ids"] + parts[0] + parts[1])
    transformers.set_seed(task["seed"])  # GCGConfig(seed=...) would also ask for deterministic kernels: slower ones
    nanogcg.gcg.tqdm = lambda steps: turns  # its own loop, held between steps
    Told(model, tokenizer, settings).run(task["prompt"], task["target"])


# ---- memory, as in step_workers.py ----


def status(name: str) -> int:
    """Bytes of a field of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w")  # stdout is for answers alone
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    side, folder, task = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    if side == "efface":  # the libraries are not part of what a search holds
        import efface.attacks.search.gcg  # noqa: F401
    else:
        import nanogcg  # noqa: F401
    libraries = status("VmRSS")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    run = run_efface if side == "efface" else run_nanogcg
    run(model, tokenizer, task, Turns(channel, libraries, model))


if __name__ == "__main__":
    main()
