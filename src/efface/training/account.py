"""What does a trainer say of its run? Before: what is trained, on how much, in how much memory; after: what was."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, Protocol

from efface.training.config import PairConfig
from efface.training.estimate import Estimate, Run
from efface.training.prepare import count_parameters


class Told(Run, Protocol):
    """What of a trainer its account is made of."""

    state: Any

    @property
    def memory(self) -> Estimate: ...

    def account_of_neurons(self) -> dict[str, int]: ...


def describe_run(run: Told) -> list[str]:
    """What is about to be trained, in lines for the user."""
    args, n = run.args, len(run.train_dataset)
    trained, parameters = count_parameters(run.model)
    lines = [
        f"trains {trained:,} of {parameters:,} parameters",
        f"{n:,} pairs, layout {run.layout}, reference {run.reference.kind}",
        _share_in_words(args, n),
        str(run.memory),
    ]
    neurons = run.account_of_neurons()
    if neurons:
        lines.insert(1, "of these only {weights:,}, those of {neurons:,} of {of:,} MLP neurons".format(**neurons))
    if hasattr(run.model.config, "router_aux_loss_coef"):
        lines.append("a mixture of experts: its routers are trained by this loss alone, without a balancing one")
    if args.world_size > 1 and n % args.world_size:
        lines.append(f"{n} pairs do not divide by {args.world_size} processes: the first are seen once more")
    return lines


def _share_in_words(args: PairConfig, n_pairs: int) -> str:
    """As in: 48 steps x 8 = 384 of 10,000 pairs (0.04 epochs). Of several batches a step is made, it says which."""
    share = share_of_pairs(args, n_pairs)
    steps, a_step, drawn, epochs = share["steps"], share["pairs_a_step"], share["pairs_drawn"], share["epochs"]
    factors = {
        "": args.train_batch_size,
        " accumulated": args.gradient_accumulation_steps,
        " processes": args.world_size,
    }
    made_of = [f"{number}{what}" for what, number in factors.items() if number > 1 or not what]
    of = f" ({' x '.join(made_of)})" if len(made_of) > 1 else ""
    whole = steps * a_step == drawn and args.max_batch_tokens is None
    equals = f" x {a_step:,}{of} = " if whole else f", at most {a_step:,}{of} each: "
    drawn_of = f" pairs: {epochs:.2f} epochs of {n_pairs:,}" if epochs > 1 else f" of {n_pairs:,} pairs"
    return f"{steps:,} steps{equals}{drawn:,}{drawn_of}" + ("" if epochs > 1 else f" ({epochs:.2f} epochs)")


def share_of_pairs(args: PairConfig, n_pairs: int) -> dict[str, Any]:
    """How much of the data the run is to see (with max_batch_tokens, at most)."""
    a_batch = args.train_batch_size * args.world_size
    a_step = a_batch * args.gradient_accumulation_steps
    seen = n_pairs // a_batch * a_batch if args.dataloader_drop_last else n_pairs
    an_epoch = max(math.ceil(seen / a_step), 1)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * an_epoch)
    # An epoch's last step takes what is left of the pairs.
    epochs, more = divmod(steps, an_epoch)
    drawn = epochs * seen + more * a_step
    return {"steps": steps, "pairs_a_step": a_step, "pairs_drawn": drawn, "epochs": drawn / n_pairs}


def record_run(run: Told) -> dict[str, Any]:
    """What `results.json` says of the run."""
    pairs, neurons = run.train_dataset.pairs, run.account_of_neurons()
    return {
        "layout": run.layout,
        "reference": run.reference.kind,
        "memory_estimate": {name: size for name, size in asdict(run.memory).items() if size or name != "perturbed"},
        "share_of_pairs": share_of_pairs(run.args, len(run.train_dataset)),
        "truncated": dict(pairs.truncated),
        "dropped": dict(pairs.dropped),
        "steps": run.state.global_step,
        "history": list(_history(run.state.log_history)),
        **({"trainable": neurons} if neurons else {}),
    }


def _history(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Without the Trainer's own `train_loss`, a mean over the steps of one process: another number in a run that was
    interrupted."""
    for row in rows:
        kept = {name: value for name, value in row.items() if name != "train_loss"}
        if kept.keys() - {"epoch", "step"}:
            yield kept
