"""What does a trainer say of its run? Before: what is trained, on how much, in how much memory; after: what was."""

import math
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

from transformers import Trainer

from efface.model.forward import Head
from efface.training.config import PairConfig
from efface.training.estimate import Estimate, estimate
from efface.training.prepare import count_parameters
from efface.training.reference import Reference

# A mixin is typed as what it is mixed into; at run time Trainer comes after it.
Base = Trainer if TYPE_CHECKING else object


class Account(Base):  # type: ignore[valid-type, misc]
    """The account that a `PairTrainer` gives."""

    args: PairConfig
    layout: str
    reference: Reference | None
    reference_head: Head | None

    @property
    def reference_kind(self) -> str:
        """Where what the reference says comes from."""
        if self.reference_head is None:
            return "not needed"
        if self.reference is None:
            return "from its cache"
        return "with the adapter off" if self.reference.adapter_off else "in memory"

    @cached_property
    def memory(self) -> Estimate:
        """What the run needs, estimated when it is first asked for."""
        return estimate(self)

    def describe(self) -> list[str]:
        """What is about to be trained, in lines for the user."""
        n = len(self.train_dataset)
        trained, parameters = count_parameters(self.model)
        share = self.share_of_pairs()
        lines = [
            f"trains {trained:,} of {parameters:,} parameters",
            f"{n:,} pairs, layout {self.layout}, reference {self.reference_kind}",
            f"{share['steps']:,} steps x {share['pairs_a_step']:,} = {share['pairs_drawn']:,} of {n:,} pairs "
            f"({share['epochs']:.2f} epochs)",
            str(self.memory),
        ]
        if hasattr(self.model.config, "router_aux_loss_coef"):
            lines.append("a mixture of experts: its routers are trained by this loss alone, without a balancing one")
        if self.args.world_size > 1 and n % self.args.world_size:
            lines.append(f"{n} pairs do not divide by {self.args.world_size} processes: the first are seen once more")
        return lines

    def share_of_pairs(self) -> dict[str, Any]:
        """How much of the data the run is to see (with --max_batch_tokens, at most)."""
        n, args = len(self.train_dataset), self.args
        a_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * math.ceil(n / a_step))
        drawn = steps * a_step if args.max_steps > 0 else math.ceil(args.num_train_epochs * n)
        return {"steps": steps, "pairs_a_step": a_step, "pairs_drawn": drawn, "epochs": drawn / n}

    def record(self) -> dict[str, Any]:
        """What `results.json` says of the run."""
        pairs: Any = self.train_dataset.pairs
        return {
            "layout": self.layout,
            "reference": self.reference_kind,
            "memory_estimate": asdict(self.memory),
            "share_of_pairs": self.share_of_pairs(),
            "truncated": dict(pairs.truncated),
            "dropped": dict(pairs.dropped),
            "steps": self.state.global_step,
            "history": self.state.log_history,
        }
