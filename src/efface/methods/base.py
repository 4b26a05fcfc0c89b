"""What do all methods share? Configuration, data, reference, one forward a step, counts, metrics, checkpoints.

A method is a subclass with a `loss`. One batch: `PairCollator` -> `compute_loss` here (one policy forward, the
reference's forward on the rows that need it) -> `loss(policy, reference, batch, counts)` in the method's own file.
"""

import copy
import logging
import math
import shutil
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from efface.data import PairBatch, PairCollator, PairDataset, load_pairs, tokenize_pair
from efface.errors import RunError, UserError
from efface.functional import predicting_positions, token_kl
from efface.models import Forward, decoder_blocks, forward, load_model, parse_layers, save_model, tokens_of

logger = logging.getLogger(__name__)


@dataclass
class PairConfig(TrainingArguments):
    """The settings common to all methods, on top of every `transformers.TrainingArguments`.

    The defaults below that differ from transformers' are ours, chosen by measurement (docs/defaults.md).
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of the model."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Pairs in a micro-batch."})
    max_steps: int = field(default=40, metadata={"help": "Optimizer steps; -1 to count by --num_train_epochs."})
    logging_steps: float = field(default=5, metadata={"help": "Log every so many steps (or this fraction of them)."})
    save_strategy: str = field(default="no", metadata={"help": "no, steps or epoch; the final model is always saved."})
    report_to: None | str | list[str] = field(  # in the order that HfArgumentParser needs
        default="none", metadata={"help": "Trackers, such as tensorboard or wandb."}
    )
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "bfloat16 autocast; by default where a GPU supports it."}
    )
    gradient_checkpointing_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Always non-reentrant: a reentrant checkpoint would cut captured states off the graph."},
    )
    max_prompt_length: int = field(default=128, metadata={"help": "Tokens; a longer prompt loses its beginning."})
    max_completion_length: int = field(default=128, metadata={"help": "Tokens; a longer continuation loses its end."})
    skip_bad_rows: bool = field(default=False, metadata={"help": "Drop and count bad pairs instead of stopping."})
    disable_dropout: bool = field(
        default=True, metadata={"help": "Train without dropout, so that the KL is 0 at step 0."}
    )
    trainable_layers: str | None = field(
        default=None,
        metadata={"help": "Train only these decoder blocks (`8,16,-1`, `0.5`, `last`); default: everything."},
    )
    lora_r: int | None = field(default=None, metadata={"help": "Rank of a LoRA adapter; default: full fine-tuning."})
    lora_alpha: int | None = field(default=None, metadata={"help": "LoRA scale; default twice the rank."})
    lora_target_modules: str = field(default="all-linear", metadata={"help": "Comma-separated names, or all-linear."})
    retain_text: str | None = field(
        default=None,
        metadata={"help": "JSON lines with `text`: ordinary passages whose KL is kept low beside the pairs."},
    )
    retain_text_per_pair: float = field(default=0.25, metadata={"help": "Passages for each pair in a batch."})
    retain_text_tokens: int = field(
        default=32, metadata={"help": "Tokens of a passage that are used; rows are padded to the longest."}
    )

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        super().__post_init__()
        if self.max_steps == 0:
            raise UserError(
                "max_steps=0 trains nothing. Give a number of steps, or -1 to count by --num_train_epochs."
            )
        if self.per_device_train_batch_size < 1:
            raise UserError(f"per_device_train_batch_size={self.per_device_train_batch_size}: it must be at least 1.")
        if self.fp16:
            raise UserError("fp16 scales the loss, which the discriminators cannot follow. Use --bf16 or float32.")
        kwargs = dict(self.gradient_checkpointing_kwargs or {})  # type: ignore[arg-type]
        if kwargs.setdefault("use_reentrant", False):
            raise UserError("use_reentrant=True cuts captured hidden states off the graph. Leave it out.")
        self.gradient_checkpointing_kwargs = kwargs
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        self.remove_unused_columns = False  # our batches are not named after the model's arguments
        if self.n_gpu > 1:
            raise UserError(
                f"{self.n_gpu} GPUs in one process would split pairs apart. "
                "Launch with `torchrun` or `accelerate launch`."
            )


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
    layers: list[int] = []
    """The blocks whose residual stream `loss` needs."""

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
        pairs = load_pairs(train_dataset, skip_bad_rows=args.skip_bad_rows)
        if isinstance(model, str):
            model, tokenizer = load_model(model, device="cpu" if args.use_cpu else None)
            processing_class = processing_class or tokenizer
        elif processing_class is None:
            from transformers import AutoTokenizer

            processing_class = AutoTokenizer.from_pretrained(model.config.name_or_path)
        self.n_skipped_rows = pairs.skipped
        self.reference = self._prepare_models(model, args, ref_model, peft_config)
        model = self.reference.policy
        if args.disable_dropout:
            disable_dropout_(model)
        passages = self._tokenize_passages(args, processing_class, retain_text)
        self._metric_sums: dict[str, float] = defaultdict(float)
        self._metric_steps = 0
        super().__init__(
            model=model,
            args=args,
            train_dataset=self._tokenize(pairs.rows, args, processing_class, passages),
            eval_dataset=None
            if eval_dataset is None
            else self._tokenize(load_pairs(eval_dataset).rows, args, processing_class, []),
            processing_class=processing_class,
            data_collator=PairCollator(pad_token_id=pad_token_id(processing_class)),  # type: ignore[arg-type]
            **trainer_kwargs,
        )
        self.model_accepts_loss_kwargs = True  # our losses are already divided by the counts of the whole step

    # ---- set-up ----

    def _prepare_models(
        self, model: PreTrainedModel, args: PairConfig, ref_model: PreTrainedModel | None, peft_config: Any
    ) -> "Reference":
        if args.lora_r is not None:
            peft_config = peft_config or _lora_config(args)
        if peft_config is not None:
            from peft import get_peft_model

            if args.trainable_layers is not None:
                raise UserError(
                    "--trainable_layers is for full fine-tuning; with LoRA choose by --lora_target_modules."
                )
            try:
                model = get_peft_model(model, peft_config)
            except ValueError as error:  # a rank of 0, modules the model does not have
                raise UserError(f"the LoRA adapter does not fit the model: {error}") from error
            if args.gradient_checkpointing:
                model.enable_input_require_grads()
        elif args.trainable_layers is not None:
            train_only_(model, parse_layers(args.trainable_layers, len(decoder_blocks(model))))
        if ref_model is None and not hasattr(model, "disable_adapter"):
            ref_model = copy.deepcopy(model)
        if ref_model is not None:
            ref_model.requires_grad_(False).eval()
        return Reference(model, ref_model)

    def _tokenize(
        self,
        rows: list[dict[str, Any]],
        args: PairConfig,
        tokenizer: PreTrainedTokenizerBase,
        passages: list[list[int]],
    ) -> PairDataset:
        pairs = [
            tokenize_pair(
                row,
                tokenizer,
                max_prompt_length=args.max_prompt_length,
                max_completion_length=args.max_completion_length,
            )
            for row in rows
        ]
        return PairDataset(pairs, passages, args.retain_text_per_pair)

    def _tokenize_passages(
        self, args: PairConfig, tokenizer: PreTrainedTokenizerBase, texts: list[str] | None
    ) -> list[list[int]]:
        if texts is None and args.retain_text is not None:
            from efface.rows import load_texts

            texts = load_texts(args.retain_text)
        passages = [tokens_of(tokenizer, text)[: args.retain_text_tokens] for text in texts or []]
        passages = [ids for ids in passages if len(ids) > 1]
        if texts and not passages:
            raise UserError("retain_text has no passage of two tokens or more.")
        return passages

    # ---- one step ----

    def loss(
        self, policy: Forward, reference: Forward, batch: PairBatch, counts: Counts
    ) -> tuple[Tensor, dict[str, float]]:
        """The method's loss and what it logs, both already divided by `counts` so that micro-batches add up.

        `policy.logits` and `reference.logits` (N, V) are at the positions of `project`, in the same order.
        """
        raise NotImplementedError  # abstract: every method has its own

    def project(self, batch: PairBatch) -> Tensor:
        """(2B + R, T) bool: where `loss` needs logits. By default where chosen texts and passages are predicted."""
        mask = predicting_positions(batch["continuation_mask"])
        mask[batch["n_pairs"] : 2 * batch["n_pairs"]] = False
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
        policy = forward(model, inputs["input_ids"], inputs["attention_mask"], project, self.layers)
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
        self, policy: Forward, reference: Forward, batch: PairBatch, counts: Counts
    ) -> tuple[Tensor, Tensor]:
        """Token-wise KL to the reference: (mean over the tokens of y+, mean over the tokens of passages)."""
        kl = token_kl(reference.logits, policy.logits)  # (N,) chosen tokens first, then passages
        n_chosen = int(batch["continuation_mask"][: batch["n_pairs"]].sum())
        return kl[:n_chosen].sum() / counts.chosen, kl[n_chosen:].sum() / counts.passages.clamp(min=1)

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


@dataclass
class Reference:
    """The frozen reference f0: a model of its own, or the policy with its LoRA adapter off."""

    policy: PreTrainedModel
    model: PreTrainedModel | None

    def __call__(self, batch: PairBatch, project: Tensor, layers: list[int]) -> Forward:
        """Forward of those rows alone that `project` asks anything of; without a graph."""
        rows = project.any(dim=1)
        inputs = batch["input_ids"][rows], batch["attention_mask"][rows], project[rows]
        with torch.no_grad():
            if self.model is not None:
                self.model.to(batch["input_ids"].device)  # type: ignore[arg-type]
                return forward(self.model, *inputs, layers)
            with self.policy.disable_adapter():  # type: ignore[operator]
                return forward(self.policy, *inputs, layers)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id to fill up rows with. Which one does not matter: masks, never ids, tell padding from tokens."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def disable_dropout_(model: nn.Module) -> None:
    """Set every dropout of `model` to 0, in place: the modules, and the rates that blocks keep as plain numbers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):  # OPT's `dropout` and `layerdrop`, `attention_dropout` of many
            if isinstance(value, float) and ("dropout" in name or name == "layerdrop"):
                setattr(module, name, 0.0)


def train_only_(model: nn.Module, layers: list[int]) -> None:
    """Freeze everything but the parameters of these decoder blocks, in place."""
    model.requires_grad_(False)
    blocks = decoder_blocks(model)
    for layer in layers:
        blocks[layer].requires_grad_(True)


def _lora_config(args: PairConfig) -> Any:
    from peft import LoraConfig

    assert args.lora_r is not None
    names = args.lora_target_modules
    return LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha or 2 * args.lora_r,
        target_modules=names if names == "all-linear" else names.split(","),
        task_type="CAUSAL_LM",
    )
