"""What do all methods share? Data, reference, one forward a step, counts, metrics, checkpoints.

A mixture of experts is trained by the method's loss alone: the balancing loss of its routers is not added.

A method is a subclass with a `loss`, and with `needs`, which says what that asks for. One batch: `PairCollator` ->
`compute_loss` here (one policy forward; what the reference says, from its cache or live) -> `loss(step)` in the
method's own file, put together from the terms of a `Step`.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import TrainOutput

from efface.data.batch import PairBatch, PairCollator, predicting_positions
from efface.data.buckets import forward_epochs_
from efface.data.dataset import PairDataset
from efface.data.pairs import PairsLike
from efface.data.preferences import SIDES
from efface.model.blocks import decoder_blocks
from efface.model.copies import merged
from efface.model.fingerprint import fingerprint_of
from efface.model.forward import Head
from efface.model.head_check import check_head
from efface.model.padding import max_positions
from efface.model.precision import is_half
from efface.model.tied import sparse_lookup
from efface.model.vocabulary import pad_id
from efface.training.account import describe_run, record_run
from efface.training.checkpoints import WholeCheckpoints
from efface.training.config import PairConfig, check_config
from efface.training.estimate import Estimate, estimate
from efface.training.evaluating import EvaluatesPairs, datasets_in
from efface.training.inputs import (
    budget_loader,
    deal_passages,
    given_reference,
    make_dataset,
    model_and_tokenizer,
    pair_reader,
    tokenize_passages,
)
from efface.training.metrics import Metrics, raise_if_loss_not_finite, raise_if_not_finite
from efface.training.neurons import TrainsNeurons
from efface.training.passes import choose_layout, of_pairs, policy_forward
from efface.training.perturbed import Perturbed, TakesPerturbedSteps
from efface.training.prepare import Trainable, prepare_model_, raise_if_out_of_reach
from efface.training.processes import parting
from efface.training.reference import NoReference, Reference
from efface.training.reference_check import check_first_batch
from efface.training.reference_setup import precomputes, set_up_reference
from efface.training.sharded import parts_of
from efface.training.step import Counts, Loss, Needs, Step

if TYPE_CHECKING:
    from peft import PeftConfig


class PairTrainer(EvaluatesPairs, TakesPerturbedSteps, WholeCheckpoints, TrainsNeurons):
    """Trainer on preference pairs with TRL's argument names. Subclasses define `loss`, and `needs` where it asks for
    something else than the KL on y+.

    Args:
        model: a model, or anything `load_model` takes. Trained in place, as transformers and TRL do.
        args: the method's configuration.
        train_dataset: anything `load_pairs` takes.
        eval_dataset: held-out pairs, or several sets by name, on which the loss is measured.
        processing_class: the tokenizer; needed only if `model` is an object that does not name its origin.
        ref_model: the frozen reference f0, or its name; None means the initial policy (with LoRA: adapter off).
        peft_config: a `peft.PeftConfig`; the `lora_*` settings are a short form of it.
        retain_text: passages (texts) for the KL on ordinary text; None reads the file in `args.retain_text`.
        trainer_kwargs: `callbacks`, `optimizers` and the like, as `transformers.Trainer` takes them.

    Raises:
        UserError: for pairs, settings or a model that cannot be trained so.
    """

    config_class: type[PairConfig] = PairConfig
    args: PairConfig
    merges_adapter: bool = False
    """Whether an adapter of the given model is merged into its weights, which are then trained."""
    checkpoint_files: tuple[str, ...] = ()
    """What a checkpoint holds beside what transformers puts there; without them training does not go on from it."""

    def __init__(
        self,
        model: str | os.PathLike[str] | PreTrainedModel,
        args: PairConfig | None = None,
        train_dataset: PairsLike | None = None,
        eval_dataset: PairsLike | Mapping[str, PairsLike] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        ref_model: str | os.PathLike[str] | PreTrainedModel | None = None,
        peft_config: "PeftConfig | None" = None,
        retain_text: list[str] | None = None,
        **trainer_kwargs: Any,
    ):
        args = args if args is not None else self.config_class("efface-output")
        check_config(self, args)
        self._check_evaluation(args, trainer_kwargs)
        rows = pair_reader(train_dataset, type(self).__name__, skip_bad_rows=args.skip_bad_rows)
        adapted = args.lora_r is not None or peft_config is not None
        model, processing_class = model_and_tokenizer(
            model, processing_class, use_cpu=args.use_cpu, new_adapter=adapted
        )
        if self.merges_adapter:
            model = merged(model)
        self.needed = self.needs(args, len(decoder_blocks(model)))
        self.sides, self.layers = self.needed.sides, self.needed.layers
        given: Any = given_reference(ref_model, model, use_cpu=args.use_cpu)
        self._longest = max_positions(model)
        self.padding = pad_id(processing_class, model)
        passages = tokenize_passages(retain_text, args, processing_class, max_positions=self._longest)
        dataset = make_dataset(rows, passages, args, processing_class, self.sides, max_positions=self._longest)
        needs_reference = self.needed.reference or (bool(passages) and args.w_retain_text > 0)
        states_only, self.half = not self.needed.residuals, bool(args.bf16) or is_half(model)
        cached = needs_reference and precomputes(args, len(dataset), half=self.half, states_only=states_only)
        # Of the weights as they are before an adapter is put into them.
        fingerprint = fingerprint_of(given or model) if cached else None
        set_seed(args.seed)  # as Trainer does, but before the adapter's start is drawn
        self._trainable = Trainable(model, adapted=adapted)
        model = prepare_model_(model, args, peft_config, off_is_reference=needs_reference and given is None)
        self.metrics = Metrics()
        self.perturbed = Perturbed.of(args)
        self.checkpoint_files = (*self.checkpoint_files, *self.perturbed.files)
        self._evaluated: Counts | None = None
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset,
            eval_dataset=None if eval_dataset is None else self._tokenized(eval_dataset, args, processing_class),
            processing_class=processing_class,
            data_collator=PairCollator(pad_token_id=self.padding),  # type: ignore[arg-type]
            **trainer_kwargs,
        )
        self.parts = parts_of(self.accelerator, args, model)
        self.n_skipped_rows = rows.skipped
        self.model_accepts_loss_kwargs = True  # our losses are already divided by the counts of the whole step
        self.choose_neurons_()
        if self.needed.pushes and self.layers:
            raise_if_out_of_reach(model, self.layers, self.needed.pushes)
        self.head = Head.of(model)
        with self.accelerator.autocast():
            check_head(model, self.head, self.layers)
        self.passage_stream = deal_passages(len(passages), args, self._train_batch_size)
        self.layout = choose_layout(
            args.layout,
            model,
            dataset.pairs.lengths,  # type: ignore[attr-defined]
            self.layers,
            sides=self.sides,
            distributed=args.world_size > 1,
            example=self.example(2),
        )
        self.reference: Reference = NoReference()
        if needs_reference:
            self.reference = set_up_reference(
                model,
                given,
                head=self.head,
                adapted=adapted,
                datasets=[one for data in (self.train_dataset, self.eval_dataset) for one in datasets_in(data)],
                layers=self.layers,
                args=args,
                fingerprint=fingerprint,
                autocast=self.accelerator.autocast,
                layout=self.layout,
                half=self.half,
            )
            if given is None and peft_config is None:  # an adapter of one's own may start anywhere
                batch = self.example(args.train_batch_size, self.passage_stream.numbers(0))
                asked = self.project(batch)
                how: Any = {"layout": self.layout, "half": self.half, "autocast": self.accelerator.autocast}
                check_first_batch(model, self.head, self.reference, batch, asked, args=args, **how)
        self.set_up_()

    def set_up_(self) -> None:
        """What a method needs besides; called once model, data and reference are there."""

    @classmethod
    def needs(cls, args: Any, n_blocks: int) -> Needs:
        """What `loss` asks for under these settings, of a model of so many blocks; by default the KL on y+."""
        return Needs()

    def example(self, n: int, passages: Sequence[int] = ()) -> PairBatch:
        """The first `n` pairs as a batch, with the passages of these numbers, where the model is."""
        dataset: Any = self.train_dataset
        batch: Any = self.data_collator([dataset[i] for i in range(min(len(dataset), n))])
        return self._prepare_inputs(dataset.add_passages(batch, passages, self.padding))  # type: ignore[return-value]

    def get_train_dataloader(self) -> DataLoader:
        if self.args.max_batch_tokens is None:
            return super().get_train_dataloader()
        assert isinstance(self.train_dataset, PairDataset)
        loader, sampler = budget_loader(self.train_dataset, self.args, self._train_batch_size, self.data_collator)
        return forward_epochs_(self.accelerator.prepare(loader), sampler)

    def get_batch_samples(
        self, epoch_iterator: Iterator[PairBatch], num_batches: int, device: torch.device
    ) -> tuple[list[PairBatch], Tensor | None]:
        """The micro-batches of one optimizer step, each with its passages, and their `Counts`."""
        batches: list[PairBatch] = list(itertools.islice(epoch_iterator, num_batches))
        first = self.state.global_step * self.args.gradient_accumulation_steps
        dataset: Any = self.train_dataset
        for i, batch in enumerate(batches):
            number = (first + i) * self.args.world_size + self.args.process_index
            batches[i] = dataset.add_passages(batch, self.passage_stream.numbers(number), self.padding)
        self._micro_batches = batches
        return batches, self._get_num_items_in_batch(batches, device) if batches else None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `Trainer.train`. The caller's model gets back what of it required a gradient before.

        Raises:
            RunError: if the loss, or a weight after the last step, is not finite.
        """
        model: Any = self.model
        with parting(self), self._trainable.in_training(model), self.perturbed.in_training(model):
            result = super().train(resume_from_checkpoint, *args, **kwargs)
            raise_if_not_finite(self.model, self.state.global_step)  # type: ignore[arg-type]
        return result

    def loss(self, step: Step) -> Loss:
        """The method's loss and what it logs: means over the whole optimizer step, to which micro-batches add up."""
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
        with sparse_lookup(model):
            policy = policy_forward(
                *(model, inputs, project, self.layers, of_pairs(inputs), self.layout),
                exact=self.half,
                whole=self.parts > 1,
            )
        policy.hidden = policy.hidden.to(self.head.weight.dtype)  # the head is outside the forward's autocast
        with self.perturbed.lifted():
            reference = self.reference.states(inputs, project, self.layers, self.needed.residuals)
        heads = self.head, self.reference.head
        loss, metrics = self.loss(
            Step(inputs, counts, policy, reference, *heads, self.needed, self.args.w_retain_text)
        )
        loss = loss + policy.nothing
        raise_if_loss_not_finite(loss, metrics, self.state.global_step, self.accelerator)
        if self.recording or self._evaluated is not None:
            self.metrics.add(metrics, ends_step=bool(self.accelerator.sync_gradients))
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients; the counts are over all processes
        return (loss, None) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[PairBatch], device: torch.device) -> Tensor:
        """(4,) the `Counts` of a whole optimizer step; transformers' own count needs labels, which we do not have."""
        counts = torch.stack([torch.stack(Counts.of(batch)) for batch in batch_samples]).sum(0)
        return self.accelerator.gather(counts.to(device).unsqueeze(0)).sum(0)

    @property
    def recording(self) -> bool:
        """Does what is computed now count: for logs, for the discriminators? Not in evaluation, nor where a
        perturbation looks for the place at which the gradient is taken."""
        return bool(self.model.training) and not self._looking  # type: ignore[union-attr]

    @cached_property
    def memory(self) -> Estimate:
        """What the run needs, estimated when it is first asked for."""
        return estimate(self)

    def describe(self) -> list[str]:
        """What is about to be trained, in lines for the user."""
        return describe_run(self)

    def record(self) -> dict[str, Any]:
        """What `results.json` says of the run."""
        return record_run(self)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.metrics.steps and not any(name.startswith("eval") for name in logs):
            logs |= self.metrics.totals(self.accelerator, self.metrics.steps)
            self.metrics = Metrics()
        super().log(logs, start_time)
