"""What can be set for every method? `transformers.TrainingArguments` and what efface adds to them."""

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from efface.checks import not_negative, one_of
from efface.errors import UserError
from efface.methods.passes import LAYOUTS
from efface.methods.reference import DTYPES
from efface.methods.sharded import refuse_sharded


@dataclass
class PairConfig(TrainingArguments):
    """The settings common to all methods, on top of every `transformers.TrainingArguments`.

    The defaults below that differ from transformers' are ours, chosen by measurement (docs/defaults.md).
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of the model."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Pairs in a micro-batch."})
    max_steps: int = field(default=48, metadata={"help": "Optimizer steps; -1 to count by --num_train_epochs."})
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
    w_retain_text: float = field(default=1.0, metadata={"help": "Weight of the KL on the passages of --retain_text."})
    retain_text_per_pair: float = field(default=0.25, metadata={"help": "Passages for each pair in a batch."})
    retain_text_tokens: int = field(
        default=64, metadata={"help": "Tokens of a passage that are used; rows are padded to the longest."}
    )
    sam_rho: float = field(
        default=0.0,
        metadata={
            "help": "Radius of a sharpness-aware step (Foret et al. 2021; against relearning: Fan et al. 2025, arXiv "
            "2502.05374); 0 for a plain step, at half the cost."
        },
    )

    layout: str = field(
        default="auto",
        metadata={
            "help": "plain (a row for each continuation), shared (a pair is one sequence and its prompt is computed "
            "once), apart (plain, but rejected rows run only to the highest layer in use), or auto, the cheapest."
        },
    )
    precompute_reference: str = field(
        default="auto",
        metadata={
            "help": "on: compute what the reference says once, into a cache on disk, and train without it; off: run "
            "it beside the model; auto: on if every pair is seen at least once."
        },
    )
    reference_dtype: str = field(
        default="float32",
        metadata={"help": "Of the states in that cache: float32, or bfloat16 or float16 (its error is logged)."},
    )
    max_batch_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Batch pairs of like length, at most --per_device_train_batch_size and so many tokens (padding "
            "and both continuations included) in a micro-batch."
        },
    )

    def __post_init__(self) -> None:
        if self.retain_text == "none":
            self.retain_text = None
        one_of("layout", self.layout, ("auto", *LAYOUTS))
        one_of("precompute_reference", self.precompute_reference, ("auto", "on", "off"))
        one_of("reference_dtype", self.reference_dtype, DTYPES)
        not_negative("w_retain_text", self.w_retain_text)
        not_negative("sam_rho", self.sam_rho)
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        refuse_sharded(self)
        if self.ddp_find_unused_parameters is None:
            # Which weights get a gradient depends on what is in the batch (a passage or none, which experts).
            # transformers leaves this out with gradient checkpointing, for reentrant checkpoints, which ours are not.
            self.ddp_find_unused_parameters = True
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
