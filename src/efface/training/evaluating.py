"""How does a trainer evaluate on pairs? By every term of its loss over all of them; which of them may select."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from efface.data.dataset import PairDataset
from efface.data.pairs import PairReader
from efface.errors import UserError
from efface.training.config import PairConfig
from efface.training.inputs import make_dataset
from efface.training.metrics import Metrics
from efface.training.reference import Reference
from efface.training.step import Counts


class EvaluatesPairs(Trainer):
    """What a `PairTrainer` does in an evaluation; a class, since it goes between those that override `Trainer`."""

    args: PairConfig
    sides: tuple[str, ...]
    layers: list[int]
    reference: Reference
    terms_that_select: tuple[str, ...] = ("loss",)
    """By which of the terms that `loss` logs `load_best_model_at_end` may choose."""
    _longest: int | None
    _evaluated: Counts | None
    _left: int
    """Batches of an evaluation that are still to be counted."""
    metrics: Metrics

    def loss_does_not_select(self, args: Any) -> str | None:
        """Why the lowest loss of an evaluation is not the best model, if so."""
        return None

    def _check_evaluation(self, args: PairConfig, trainer_kwargs: dict[str, Any]) -> None:
        """Raise a `UserError` for what an evaluation on pairs cannot do."""
        if trainer_kwargs.get("compute_metrics") is not None:
            raise UserError(
                "compute_metrics would get predictions and labels, and pairs have neither. Every term of the loss is "
                "logged as eval_NAME; for figures of your own use a callback's on_evaluate, or efface.evaluate."
            )
        metric = args.metric_for_best_model or ""
        of_loss = metric == "loss" or (metric.endswith("_loss") and metric.removesuffix("_loss").startswith("eval"))
        reason = self.loss_does_not_select(args)
        known = {f"eval_{name}" for name in self.terms_that_select} | set(self.terms_that_select)
        if reason and (metric.startswith(("adversary/", "eval_adversary/")) or (of_loss and metric not in known)):
            raise UserError(
                f"metric_for_best_model={metric!r}: {reason}. Choose the best model by "
                f"{' or '.join('eval_' + name for name in self.terms_that_select)}, or by what `efface evaluate` says."
            )

    def _tokenized(self, source: Any, args: PairConfig, tokenizer: Any) -> Any:
        """Pairs to evaluate on as a `PairDataset`; of several by name, a dict of them."""
        if isinstance(source, PairDataset):
            return source
        if isinstance(source, dict):  # also a DatasetDict
            return {name: self._tokenized(one, args, tokenizer) for name, one in source.items()}
        rows = PairReader(source, skip_bad_rows=args.skip_bad_rows)
        return make_dataset(rows, [], args, tokenizer, self.sides, max_positions=self._longest)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `Trainer.evaluate`, on pairs in any form that `load_pairs` takes: every term of the loss, as `eval_NAME`.

        The terms are means over all pairs or tokens of the data set, without ordinary passages.

        Raises:
            UserError: for pairs that are no pairs, or new ones of which the reference cannot be asked any more.
        """
        known = (
            isinstance(self.eval_dataset, dict) and isinstance(eval_dataset, str) and eval_dataset in self.eval_dataset
        )
        if eval_dataset is not None and not known:
            eval_dataset = self._tokenized(eval_dataset, self.args, self.processing_class)
            for dataset in datasets_in(eval_dataset):
                self.reference.prepare(dataset)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As `Trainer.get_eval_dataloader`; of several processes each reads pairs that no other reads (`share_of`).

        The usual one begins again from the first pair until all have full batches, which would count these twice.
        """
        loader = super().get_eval_dataloader(eval_dataset)
        if self.args.world_size == 1:
            return loader
        return DataLoader(
            loader.dataset,
            batch_sampler=self._share(loader)[0],
            collate_fn=loader.collate_fn,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def _share(self, loader: DataLoader) -> tuple[list[list[int]], int]:
        n: int = len(loader.dataset)  # type: ignore[arg-type]
        return share_of(n, self.args.eval_batch_size, self.args.process_index, self.args.world_size)

    def evaluation_loop(
        self, dataloader: DataLoader, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """As `Trainer.evaluation_loop`; loss and terms are sums over the whole of `dataloader`, divided once."""
        training, self.metrics = self.metrics, Metrics()
        self._left = self._share(dataloader)[1]
        counts = torch.zeros(len(Counts._fields), dtype=torch.long)
        for i, batch in enumerate(dataloader):
            if i < self._left:
                counts += torch.stack(Counts.of(batch)).cpu()
        counts = counts.to(self.args.device)
        self._evaluated = Counts(*self.accelerator.reduce(counts, "sum"))
        try:
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)  # type: ignore[misc]
            totals = self.metrics.totals(self.accelerator)
        finally:
            self.metrics, self._evaluated = training, None
        assert output.metrics is not None
        output.metrics.update({f"{metric_key_prefix}_{k}": v for k, v in totals.items()})
        return output

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        assert self._evaluated is not None
        whole, self.metrics = self.metrics, Metrics()
        with torch.no_grad():
            counts = torch.stack(list(self._evaluated))
            loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=counts)
            assert isinstance(loss, Tensor)  # a tuple only on request
            loss = loss.detach() / self.accelerator.num_processes  # which compute_loss multiplies by, for DDP
            self.metrics.add({"loss": loss.item()})
        terms, self.metrics = self.metrics.sums, whole
        # What does not count is said nevertheless: processes add up what all of them name.
        self.metrics.add(terms if self._left > 0 else dict.fromkeys(terms, 0.0))
        self._left -= 1
        return loss, None, None


def share_of(n: int, size: int, process: int, processes: int) -> tuple[list[list[int]], int]:
    """The pairs that one of several processes evaluates: their numbers by batch, and how many of these batches count.

    Every pair counts in one process. All have as many batches, since they wait for each other in each: who has fewer
    pairs reads the first one again, which does not count.

    Args:
        n: pairs in all.
        size: the most of a batch.
        process: which of them, from 0.
        processes: how many there are.
    """
    shares = np.array_split(np.arange(n), processes)  # the first are the largest
    rounds = math.ceil(len(shares[0]) / size)
    own = [batch.tolist() for batch in np.array_split(shares[process], rounds) if len(batch)]
    return own + [[0]] * (rounds - len(own)), len(own)


def datasets_in(data: Any) -> list[PairDataset]:
    """The data sets in `data`, which is one, a dict of them, or None."""
    found = data.values() if isinstance(data, dict) else [data]
    return [one for one in found if isinstance(one, PairDataset)]
