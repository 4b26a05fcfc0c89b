"""What can be set for every method? `transformers.TrainingArguments` and what efface adds to them."""

import dataclasses
import logging
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import TrainingArguments

from efface.checks import all_finite, at_least, at_least_one, one_of, positive
from efface.errors import UserError
from efface.model.devices import default_device, has_bfloat16
from efface.training import DEFAULT_STEPS
from efface.training.neurons import read_choice
from efface.training.optimizers import OPTIMIZERS
from efface.training.passes import LAYOUTS
from efface.training.reference_cache import DTYPES
from efface.training.sharded import refuse_sharded
from efface.training.withstand import parse_withstand

logger = logging.getLogger(__name__)

MEANINGLESS = {
    "resume_from_checkpoint": "`train()` takes it as an argument; on the command line --resume goes on in -o DIR",
    "do_train": "`train` trains",
    "do_predict": "see `efface evaluate`",
    "label_smoothing_factor": "there are no labels; label_smoothing is DPO's",
    "label_names": "there are no labels",
    "fp16_full_eval": "it would turn the weights that are trained to half precision. Leave it out",
    "bf16_full_eval": "it would turn the weights that are trained to half precision. Leave it out",
    "train_sampling_strategy=group_by_length": "max_batch_tokens batches pairs of like length",
}
"""Fields of `TrainingArguments`, or values of them, that would be accepted and not heeded, or do harm; and why."""

WITHSTAND_HELP = (
    "Take each step's gradient where an adversary would leave the weights, and apply it here: "
    "relearn:DELTA/K/KEEP/ROWS, attacker:DELTA/K, round:BITS, merge:ALPHA, lora:RANK, noise:SCALE, sharpness:RHO; "
    "one, or several with commas between, of which one is drawn for each step (docs/methods.md), or none."
)


@dataclass
class PairConfig(TrainingArguments):
    """The settings common to all methods, on top of every `transformers.TrainingArguments`.

    The defaults below that differ from transformers' are ours, chosen by measurement (docs/defaults.md).
    """

    default_steps: ClassVar[int] = DEFAULT_STEPS
    """`max_steps`, if neither that nor `num_train_epochs` is given."""

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate of the model."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Pairs in a micro-batch."})
    # None is "not given": of steps and epochs the one that is given counts.
    max_steps: int = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": f"Optimizer steps, which beat --num_train_epochs; {DEFAULT_STEPS} (repo: 144) if neither is given."
        },
    )
    num_train_epochs: float = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Passes over the pairs, in place of --max_steps."}
    )
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
    optim: str = field(  # type: ignore[assignment]  # there it is one of a closed list
        default=next(each.default for each in dataclasses.fields(TrainingArguments) if each.name == "optim"),
        metadata={
            "help": "The optimizer: normalized_sgd (each tensor moves by the rate, w - lr g / ||g||), or any of "
            "transformers' (adamw_torch, sgd, adafactor, ...)."
        },
    )
    max_prompt_length: int = field(default=128, metadata={"help": "Tokens; a longer prompt loses its beginning."})
    max_completion_length: int = field(default=128, metadata={"help": "Tokens; a longer continuation loses its end."})
    skip_bad_rows: bool = field(default=False, metadata={"help": "Drop and count bad pairs instead of stopping."})
    disable_dropout: bool = field(
        default=True, metadata={"help": "Train without dropout, so that the KL is 0 at step 0."}
    )
    trainable_layers: None | str | tuple[float, ...] = field(
        default=None,
        metadata={
            "help": "Train only these decoder blocks (`8,16,-1`, `0.5`, `last`), of an adapter its weights there; "
            "default: everything."
        },
    )
    trainable: str = field(
        default="all",
        metadata={
            "help": "all, or toxic_neurons:SHARE[/value|attribution]: of the MLP neurons (of --trainable-layers) only "
            "this share is trained: those whose value vectors point most toward what is toxic, or that do most for y-."
        },
    )
    lora_r: int | None = field(default=None, metadata={"help": "Rank of a LoRA adapter; default: full fine-tuning."})
    lora_alpha: int | None = field(default=None, metadata={"help": "LoRA scale; default twice the rank."})
    lora_target_modules: None | str | tuple[str, ...] = field(  # in this order, too
        default="all-linear", metadata={"help": "Comma-separated names, or all-linear."}
    )
    retain_text: str | None = field(
        default=None,
        metadata={"help": "JSON lines with `text`: ordinary passages whose KL is kept low beside the pairs."},
    )
    w_retain_text: float = field(default=1.0, metadata={"help": "Weight of the KL on the passages of --retain_text."})
    retain_text_per_pair: float = field(default=0.25, metadata={"help": "Passages for each pair in a batch."})
    retain_text_tokens: int = field(
        default=64, metadata={"help": "Tokens of a passage that are used; rows are padded to the longest."}
    )
    withstand: str | None = field(default=None, metadata={"help": WITHSTAND_HELP})
    sam_rho: float = field(default=0.0, metadata={"help": "The former name of --withstand sharpness:RHO; 0 for none."})
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
            "it beside the model; auto: on if every pair is seen at least once, off under --bf16, where other batches "
            "round otherwise."
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
        if self.withstand == "none" or (self.sam_rho and self.withstand == type(self).withstand):
            self.withstand = None  # a method's default gives way to what is asked for
        if isinstance(self.lora_target_modules, str) and self.lora_target_modules != "all-linear":
            self.lora_target_modules = tuple(name.strip() for name in self.lora_target_modules.split(","))
        self._count_steps()
        all_finite(self)
        self._check_ranges()
        self.perturbations()  # can they be read?
        refuse_meaningless(self)
        read_choice(self.trainable)
        one_of("layout", self.layout, ("auto", *LAYOUTS))
        one_of("precompute_reference", self.precompute_reference, ("auto", "on", "off"))
        one_of("reference_dtype", self.reference_dtype, DTYPES)
        if self.bf16 is None:
            self.bf16 = default_device().type != "cpu" and has_bfloat16(default_device())
        refuse_sharded(self)
        if self.ddp_find_unused_parameters is None:
            # Which weights get a gradient depends on what is in the batch (a passage or none, which experts).
            # transformers leaves this out with gradient checkpointing, for reentrant checkpoints, which ours are not.
            self.ddp_find_unused_parameters = True
        own = str(self.optim) if self.optim in OPTIMIZERS else None  # a name that transformers does not know
        self.optim = self.optim if own is None else "sgd"
        super().__post_init__()
        self.optim = self.optim if own is None else own
        if self.fp16:
            raise UserError("fp16 scales the loss, which the discriminators cannot follow. Use bf16 or float32.")
        kwargs = dict(self.gradient_checkpointing_kwargs or {})  # type: ignore[arg-type]
        if kwargs.setdefault("use_reentrant", False):
            raise UserError("use_reentrant=True cuts captured hidden states off the graph. Leave it out.")
        self.gradient_checkpointing_kwargs = kwargs
        self.dataloader_pin_memory = self.dataloader_pin_memory and default_device().type == "cuda"
        self.remove_unused_columns = False  # our batches are not named after the model's arguments
        if self.n_gpu > 1:
            raise UserError(
                f"{self.n_gpu} GPUs in one process would split pairs apart. "
                "Launch with `torchrun` or `accelerate launch`."
            )

    def perturbations(self) -> list[Any]:
        """What steps are to withstand, made anew; empty if nothing."""
        if self.sam_rho and self.withstand is not None:
            raise UserError(
                f"sam_rho={self.sam_rho} is the former name of withstand='sharpness:{self.sam_rho}', and withstand="
                f"{self.withstand!r} is given too. Put all of it into withstand, with commas between."
            )
        asked = f"sharpness:{self.sam_rho}" if self.sam_rho else self.withstand
        return [] if asked is None else parse_withstand(asked)

    def _count_steps(self) -> None:
        """Steps or epochs, whichever is given; of both the steps, as in transformers."""
        steps: Any = self.max_steps  # None, in spite of the type, if it is not given; epochs likewise
        epochs: Any = self.num_train_epochs
        if steps is not None and steps > 0 and epochs is not None:
            logger.warning(
                "max_steps=%d and num_train_epochs=%g are both given: the steps count, as in transformers.",
                steps,
                epochs,
            )
        if steps is None:
            self.max_steps = self.default_steps if epochs is None else -1
        if self.max_steps == 0:
            raise UserError("max_steps=0 trains nothing. Give a number of steps, or -1 to count by num_train_epochs.")
        if epochs is None:
            self.num_train_epochs = TrainingArguments.num_train_epochs
        positive("num_train_epochs", self.num_train_epochs)

    def _check_ranges(self) -> None:
        at_least_one(
            self,
            *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
            *("max_prompt_length", "max_completion_length", "max_batch_tokens", "lora_r", "lora_alpha"),
        )
        at_least(self, 2, "retain_text_tokens")  # the first token of a passage is not predicted
        at_least(
            self,
            0,
            *("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps", "seed", "data_seed"),
            *("dataloader_num_workers", "retain_text_per_pair", "w_retain_text", "sam_rho"),
        )


def refuse_meaningless(settings: Any) -> None:
    """Raise a `UserError` if a field of `MEANINGLESS` is set to something else than its default."""
    for each in dataclasses.fields(settings):
        value = getattr(settings, each.name)
        why = MEANINGLESS.get(each.name, MEANINGLESS.get(f"{each.name}={value}"))
        if why is not None and value != each.default:
            raise UserError(f"{each.name}={value!r} has no use here: {why}.")


def check_config(trainer: Any, args: Any) -> None:
    """Raise a `UserError` if `args` are of another class than the method's, such as `TrainingArguments`."""
    wanted, given = trainer.config_class, type(args)
    if not isinstance(args, wanted):
        raise UserError(
            f"{type(trainer).__name__} takes args of {wanted.__name__}, not {given.__name__}, which lacks "
            f"settings of the method. Use {wanted.__module__}.{wanted.__name__}, which takes every field of "
            "TrainingArguments."
        )
