"""When should `gcg` leave a text with nothing better around it? The default of `--patience`, by how far searches get.

    python benchmarks/patience.py [--model MODEL] [--seeds 0 1 2] [--patience 1 5 1000] [--steps 100]

Each seed is another held-out pair and other draws, with 16 tokens of text and of target; all else is gcg's default. 1
always goes on from the best of the last draw, as published; 1000 is more than the steps: it never leaves the best text
so far. MODEL is the untouched SmolLM2-135M-Instruct, or for the figures of docs/attacks.md
`runs/audited/repo-default` (`audited.py`) as well.
Every search is written to `benchmarks/results/patience.json` as it ends, and those that are there are not run again.
"""

import argparse

from common import RESULTS, command

from efface.attacks.search.gcg import GCGSettings
from efface.attacks.search.slot import slot_in
from efface.attacks.search.token_search import TokenSearch
from efface.data.rows import shipped
from efface.files.environment import environment
from efface.files.jsonl import read_jsonl
from efface.files.results import read_json, write_json
from efface.model.load import DEFAULT_MODEL, load_model
from efface.terminal.progress import track

FILE = RESULTS / "patience.json"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default=DEFAULT_MODEL)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--patience", type=int, nargs="+", default=[1, 5, 1000])
    options.add_argument("--steps", type=int, default=100)
    args = options.parse_args()
    model, tokenizer = load_model(args.model)
    model.eval().requires_grad_(False)
    rows = read_jsonl(shipped("heldout"))
    content = read_json(FILE) if FILE.exists() else {"schema": 1, "searches": []}
    finished = {
        tuple(search[name] for name in ("model", "seed", "patience", "steps")) for search in content["searches"]
    }
    for seed in args.seeds:
        for patience in args.patience:
            if (args.model, seed, patience, args.steps) in finished:
                continue
            settings = GCGSettings(
                steps=str(args.steps), patience=patience, length=16, target_tokens=16, early_stop=False
            )
            slot = slot_in(rows[seed], tokenizer, settings.place, target_tokens=settings.target_tokens)
            search = TokenSearch(model, tokenizer, [slot], settings, seed)
            for _ in track(range(args.steps), f"seed {seed}, patience {patience}", show=True):
                search.step()
            content["searches"].append(
                {"model": args.model, "seed": seed, "patience": patience, "steps": args.steps}
                | {"losses": search.losses, "evaluations": search.evaluations}
            )
            content["environment"] = environment(seed=None, model=model, command=command())
            write_json(FILE, content)
            print(f"seed {seed}, patience {patience}: {search.losses[0]:.3f} -> {search.losses[-1]:.3f}", flush=True)


if __name__ == "__main__":
    main()
