"""What do all methods share? Data, reference, one forward a step, counts, metrics, checkpoints.

A method is a subclass with a `loss`. One batch: `PairCollator` -> `compute_loss` here (one policy forward; what the
reference says, from its cache or live) -> `loss(policy, reference, batch, counts)` in the method's own file.
"""

import logging
import math
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from efface.buckets import forward_epochs_
from efface.chunked import weighted_kl
from efface.data import SIDES, PairBatch, PairCollator, PairReader, ReferenceStates
from efface.dataset import PairDataset
from efface.errors import RunError, UserError
from efface.fingerprint import fingerprint_of
from efface.forward import Forward, Head
from efface.functional import predicting_positions
from efface.methods.config import PairConfig
from efface.methods.frozen import precomputes, set_up_reference
from efface.methods.inputs import budget_loader, make_dataset, tokenize_passages
from efface.methods.passes import choose_layout, policy_forward
from efface.methods.prepare import pad_token_id, prepare_model_
from efface.models import load_model, save_model
from efface.tied import sparse_lookup

logger = logging.getLogger(__name__)


class Counts(NamedTuple):
    """What the means of one optimizer step divide by: all its micro-batches on all processes."""

    chosen: Tensor
    """Continuation tokens of the chosen rows."""
    rejected: Tensor
    passages: Tensor
    """Predicted tokens of ordinary passages."""
    pairs: Tensor

    @classmethod
    def of(cls, batch: PairBatch) -> "Counts":
        mask, n = batch["continuation_mask"], batch["n_pairs"]
        return cls(mask[:n].sum(), mask[n : 2 * n].sum(), mask[2 * n :].sum(), torch.tensor(n, device=mask.device))


class PairTrainer(Trainer):
    """Trainer on preference pairs with TRL's argument names. Subclasses define `loss`.

    Args:
        model: a model, or anything `load_model` takes. Trained in place, as transformers and TRL do.
        args: the method's configuration.
        train_dataset: anything `load_pairs` takes.
        processing_class: the tokenizer; needed only if `model` is an object that does not name its origin.
        ref_model: the frozen reference f0; None means the initial policy (with LoRA: the same model, adapter off).
        peft_config: a `peft.PeftConfig`; the `lora_*` settings are a short form of it.
        retain_text: passages (texts) for the KL on ordinary text; None reads the file in `args.retain_text`.
    """

    config_class: type[PairConfig] = PairConfig
    args: PairConfig
    sides: tuple[str, ...] = ("chosen",)
    """Of which continuations `loss` needs logits; the passages' are always at hand."""

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: PairConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        ref_model: PreTrainedModel | None = None,
        peft_config: Any = None,
        retain_text: list[str] | None = None,
        **trainer_kwargs: Any,
    ):
        args = args if args is not None else self.config_class("efface-output")
        if train_dataset is None:
            raise UserError(
                f"{type(self).__name__} needs train_dataset: a pairs file, a dataset id or a list of dicts."
            )
        rows = PairReader(train_dataset, skip_bad_rows=args.skip_bad_rows)
        next(iter(rows))  # so that a wrong path is reported before the model is loaded
        if isinstance(model, str):
            model, tokenizer = load_model(model, device="cpu" if args.use_cpu else None)
            processing_class = processing_class or tokenizer
        elif processing_class is None:
            from transformers import AutoTokenizer

            processing_class = AutoTokenizer.from_pretrained(model.config.name_or_path)
        adapted = args.lora_r is not None or peft_config is not None
        passages = tokenize_passages(retain_text, args, processing_class)
        dataset = make_dataset(rows, passages, args, processing_class, self.sides)
        # Of the weights as they are before an adapter is put into them.
        fingerprint = fingerprint_of(ref_model or model) if precomputes(args, len(dataset)) else None
        model = prepare_model_(model, args, peft_config)
        self._metric_sums: dict[str, float] = defaultdict(float)
        self._metric_steps = 0
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset,
            eval_dataset=None
            if eval_dataset is None
            else make_dataset(PairReader(eval_dataset), [], args, processing_class, self.sides),
            processing_class=processing_class,
            data_collator=PairCollator(pad_token_id=pad_token_id(processing_class)),  # type: ignore[arg-type]
            **trainer_kwargs,
        )
        self.n_skipped_rows = rows.skipped
        self.model_accepts_loss_kwargs = True  # our losses are already divided by the counts of the whole step
        self.layers = self.layers_of(model)
        self.head = Head.of(model)
        self.layout = self._choose_layout(model)
        self.reference, self.reference_head = set_up_reference(
            model,
            ref_model,
            adapted=adapted,
            datasets=(self.train_dataset, self.eval_dataset),
            layers=self.layers,
            args=args,
            fingerprint=fingerprint,
        )

    # ---- set-up ----

    @property
    def reference_kind(self) -> str:
        """Where what the reference says comes from."""
        if self.reference is None:
            return "from its cache"
        return "with the adapter off" if self.reference.adapter_off else "in memory"

    def layers_of(self, model: PreTrainedModel) -> list[int]:
        """The blocks whose residual stream `loss` needs; by default none."""
        return []

    def _choose_layout(self, model: PreTrainedModel) -> str:
        dataset = self.train_dataset
        example = self.data_collator([dataset[i] for i in range(min(len(dataset), 2))])  # type: ignore[index,arg-type]
        return choose_layout(
            self.args.layout,
            model,
            dataset.pairs.lengths,  # type: ignore[union-attr]
            self.layers,
            projects_rejected="rejected" in self.sides,
            distributed=self.args.world_size > 1,
            example=self._prepare_inputs(example),  # type: ignore[arg-type]
        )

    def get_train_dataloader(self) -> DataLoader:
        if self.args.max_batch_tokens is None:
            return super().get_train_dataloader()
        assert isinstance(self.train_dataset, PairDataset)
        loader, sampler = budget_loader(self.train_dataset, self.args, self._train_batch_size, self.data_collator)
        return forward_epochs_(self.accelerator.prepare(loader), sampler)

    # ---- one step ----

    def loss(
        self, policy: Forward, reference: ReferenceStates, batch: PairBatch, counts: Counts
    ) -> tuple[Tensor, dict[str, float]]:
        """The method's loss and what it logs, both already divided by `counts` so that micro-batches add up.

        `policy.hidden` and `reference["hidden"]` (N, d) are at the positions of `project`, in the same order, ready
        for `self.head` and `self.reference_head`; `policy.residuals[layer]` (M, d) at the tokens of y+, then of y-.
        """
        raise NotImplementedError  # abstract: every method has its own

    def project(self, batch: PairBatch) -> Tensor:
        """(2B + R, T) bool: the positions that predict the continuations of `sides` and the passages."""
        mask, n = predicting_positions(batch["continuation_mask"]), batch["n_pairs"]
        for i, side in enumerate(SIDES):
            if side not in self.sides:
                mask[i * n : (i + 1) * n] = False
        return mask

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: PairBatch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, None]:
        counts = Counts.of(inputs) if num_items_in_batch is None else Counts(*num_items_in_batch.to(self.args.device))
        project = self.project(inputs)
        pairs = inputs["continuation_mask"].clone()  # the tokens that are a pair's continuations
        pairs[2 * inputs["n_pairs"] :] = False
        with sparse_lookup(model):
            policy = policy_forward(model, inputs, project, self.layers, pairs, self.layout)
        if self.reference is None:
            reference = inputs["reference"]
        else:
            reference = self.reference(inputs, project, self.layers)
        loss, metrics = self.loss(policy, reference, inputs, counts)
        if not math.isfinite(loss.item()):
            terms = ", ".join(f"{name} {value:.3g}" for name, value in metrics.items())
            raise RunError(
                f"the loss is {loss.item()} at step {self.state.global_step} ({terms}); stopped before the optimizer "
                "step. Earlier checkpoints are untouched. Lower --learning_rate or the weights, or check the model's "
                "precision."
            )
        if model.training:
            for name, value in metrics.items():
                self._metric_sums[name] += value
            self._metric_steps += bool(self.accelerator.sync_gradients)
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients; the counts are over all processes
        return (loss, None) if return_outputs else loss

    def retain_loss(
        self,
        policy: Forward,
        reference: ReferenceStates,
        batch: PairBatch,
        counts: Counts,
        weight: float,
        text_weight: float,
    ) -> tuple[Tensor, dict[str, float]]:
        """weight * mean KL to the reference over the tokens of y+ + text_weight * the same over those of passages.

        Meant for methods that ask for the logits of chosen continuations alone.
        """
        n = int(batch["continuation_mask"][: batch["n_pairs"]].sum())
        means = policy.hidden.new_ones(len(policy.hidden))  # (N,) chosen tokens first, then passages
        means[:n] /= counts.chosen
        means[n:] /= counts.passages.clamp(min=1)
        weights = torch.cat([weight * means[:n], text_weight * means[n:]])
        states = reference["hidden"].to(self.reference_head.weight.dtype)
        loss, kl = weighted_kl(policy.hidden, self.head, states, self.reference_head, weights)
        metrics = {"retain_loss": (kl * means)[:n].sum().item()}
        if counts.passages:
            metrics["retain_text_loss"] = (kl * means)[n:].sum().item()
        return loss, metrics

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))  # type: ignore[arg-type]
            assert isinstance(loss, Tensor)  # a tuple only on request
            return loss.detach(), None, None

    def _get_num_items_in_batch(self, batch_samples: list[PairBatch], device: torch.device) -> Tensor:
        """(4,) the `Counts` of a whole optimizer step; transformers' own count needs labels, which we do not have."""
        counts = torch.stack([torch.stack(Counts.of(batch)) for batch in batch_samples]).sum(0)
        return self.accelerator.gather(counts.to(device).unsqueeze(0)).sum(0)

    # ---- logs and checkpoints ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._metric_steps:
            names = sorted(self._metric_sums)
            sums = torch.tensor([self._metric_sums[name] for name in names], device=self.args.device)
            sums = self.accelerator.reduce(sums, "sum") / self._metric_steps
            logs |= dict(zip(names, sums.tolist(), strict=True))
            self._metric_sums.clear()
            self._metric_steps = 0
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint is whole or not there: `--resume` continues from the newest one."""
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            # torch.save reports a full disk as a RuntimeError of its zip writer.
            zip_writer = "PytorchStreamWriter" in str(error) or "inline_container" in str(error)
            if isinstance(error, OSError | SafetensorError) or zip_writer:
                reason = str(error).splitlines()[0]
                raise RunError(f"{folder} was not written: {reason}. Earlier checkpoints are untouched.") from error
            raise

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            save_model(model, self.processing_class, output_dir or self.args.output_dir, state_dict=state_dict)  # type: ignore[arg-type]
