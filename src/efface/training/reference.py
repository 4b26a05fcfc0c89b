"""What does the frozen reference f0 say? Its final hidden states where continuations are predicted.

One protocol, three ways: it is not asked (`NoReference`); it is asked live, a model of its own or the trained one with
its LoRA adapter off (`LiveReference`); or it was asked before training (`reference_setup.CachedReference`).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from efface.data.batch import PairBatch, ReferenceStates
from efface.data.dataset import PairDataset
from efface.model.chunked import weighted_kl
from efface.model.copies import eval_mode
from efface.model.forward import Forward, Head, forward
from efface.model.layout import Layout, plain_layout
from efface.model.padding import most_columns
from efface.training.passes import of_pairs, policy_forward


class Reference(Protocol):
    """What a training run asks of its reference, wherever that is."""

    @property
    def kind(self) -> str:
        """Where what it says comes from, for the user."""

    @property
    def head(self) -> Head | None:
        """Turns its states into logits; None if it is not asked at all."""

    @property
    def nbytes(self) -> int:
        """Of memory, beside the trained model's."""

    @property
    def kept_in(self) -> str | None:
        """The dtype in which its states are kept; None if they are not."""

    def states(
        self, batch: PairBatch, project: Tensor, layers: Sequence[int], residuals: Sequence[str] = ()
    ) -> ReferenceStates:
        """Its states where `project` (rows, T) asks for them, and the residuals after `layers` at the tokens of the
        sides in `residuals`."""

    def prepare(self, dataset: PairDataset) -> None:
        """Ask it now what it cannot be asked batch by batch.

        Raises:
            UserError: if it cannot be asked any more.
            RunError: if what it says cannot be kept.
        """


class NoReference:
    """The loss asks none."""

    kind = "not needed"
    head = None
    nbytes = 0
    kept_in = None

    def states(
        self, batch: PairBatch, project: Tensor, layers: Sequence[int], residuals: Sequence[str] = ()
    ) -> ReferenceStates:
        nothing = torch.empty(0, 0, device=project.device)
        return ReferenceStates(hidden=nothing, norms=nothing)

    def prepare(self, dataset: PairDataset) -> None:
        return


@dataclass
class LiveReference:
    """A model that is asked in every step."""

    model: nn.Module
    adapter_off: bool
    """`model` is the trained one; its adapter is switched off for the time of a call."""
    autocast: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    """The precision of the policy's forward."""
    layout: str | None = None
    """In half precision: the policy's, in which the reference then runs as well. A matrix of another shape rounds
    otherwise, and what rounds otherwise in bfloat16 is a KL (1e-4 nats a token on SmolLM2) that nobody asked for.
    None: the rows that are asked for alone, whatever their shape."""

    kept_in = None

    @property
    def kind(self) -> str:
        return "with the adapter off" if self.adapter_off else "in memory"

    @cached_property
    def head(self) -> Head:
        return Head.of(self.model).frozen()

    @property
    def nbytes(self) -> int:
        return 0 if self.adapter_off else sum(parameter.nbytes for parameter in self.model.parameters())

    def prepare(self, dataset: PairDataset) -> None:
        return

    def states(
        self, batch: PairBatch, project: Tensor, layers: Sequence[int], residuals: Sequence[str] = ()
    ) -> ReferenceStates:
        """As `Reference.states`: the rows that are asked for alone go through it, without a graph."""
        n, number = batch["n_pairs"], torch.arange(len(project), device=project.device)
        row_is = {"chosen": number < n, "rejected": (number >= n) & (number < 2 * n)}  # (rows,) each
        if self.layout is not None:
            return self._as_the_policy(batch, project, layers, residuals)
        captured = sum((row_is[side] for side in residuals), torch.zeros_like(row_is["chosen"]))
        rows = project.any(1) | captured
        layout = plain_layout(
            batch["input_ids"][rows], batch["attention_mask"][rows], masked=True, widest=most_columns(self.model)
        )
        capture = (batch["continuation_mask"] & (row_is["chosen"] | captured)[:, None])[rows]
        found = self.forward(layout, project[rows], layers, capture)
        chosen = int(capture[row_is["chosen"][rows]].sum())
        states = ReferenceStates(hidden=found.hidden, norms=norms_of(found, layers, chosen))
        if residuals:
            first = 0 if "chosen" in residuals else chosen
            states["residuals"] = {layer: found.residuals[layer][first:] for layer in layers}
        return states

    @torch.no_grad()
    def _as_the_policy(
        self, batch: PairBatch, project: Tensor, layers: Sequence[int], residuals: Sequence[str]
    ) -> ReferenceStates:
        """As `states`, through the very forward that the policy runs."""
        assert self.layout is not None
        capture = of_pairs(batch)
        with self._ready(batch["input_ids"].device):
            found = policy_forward(self.model, batch, project, layers, capture, self.layout, exact=True)
        chosen = int(capture[: batch["n_pairs"]].sum())
        states = ReferenceStates(hidden=found.hidden, norms=norms_of(found, layers, chosen))
        if residuals:
            start, end = 0 if "chosen" in residuals else chosen, None if "rejected" in residuals else chosen
            states["residuals"] = {layer: found.residuals[layer][start:end] for layer in layers}
        return states

    @torch.no_grad()
    def forward(self, layout: Layout, project: Tensor, layers: Sequence[int], capture: Tensor) -> Forward:
        """As `efface.model.forward.forward`."""
        with self._ready(layout.input_ids.device):
            return forward(self.model, layout, project, layers, capture)

    def precision(self, device: torch.device | str) -> torch.dtype | None:
        """What the autocast of its forward rounds to, if there is one."""
        kind = torch.device(device).type
        with self.autocast():
            return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

    @contextlib.contextmanager
    def _ready(self, device: torch.device) -> Iterator[None]:
        """Within, the model is the reference: on `device`, without adapter and dropout, in the policy's precision."""
        if not self.adapter_off:
            self.model.to(device)
        switched = self.model.disable_adapter() if self.adapter_off else contextlib.nullcontext()  # type: ignore[operator]
        with self.autocast(), eval_mode(self.model), switched:
            yield


def norms_of(found: Forward, layers: Sequence[int], n: int) -> Tensor:
    """(n, layers) norms of the first n captured residuals."""
    norms = [found.residuals[layer][:n].float().norm(dim=-1) for layer in layers]
    return torch.stack(norms, -1) if norms else found.hidden[:, :0]


@torch.no_grad()
def mean_kl(hidden: Tensor, head: Head, expected: Tensor, expected_head: Head) -> float:
    """Mean KL( expected || found ) in nats a token, of final hidden states (N, d) and the heads that go with them."""
    _, kl = weighted_kl(hidden, head, expected, expected_head, hidden.new_ones(len(hidden)))
    return float(kl.mean())
