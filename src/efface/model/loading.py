"""How are weights put into memory? One set of options for `load_model` and for every command.

A command states them once, with `loading`, and whatever is loaded inside follows: model, base, reference, judge. The
revision and the folder are of one model alone, the one that the command is about.
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch

from efface.checks import one_of
from efface.errors import UserError
from efface.model.devices import whole_device

ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


@dataclass(frozen=True)
class Loading:
    """Options of loading; None leaves what is usual.

    Raises:
        UserError: for values that are none, or that exclude each other.
    """

    dtype: torch.dtype | str | None = None
    """Of the weights in memory: float32 (usual), bfloat16, float16, or auto, as they are stored."""
    device: torch.device | str | None = None
    """Usually the accelerator, if there is one."""
    device_map: str | Mapping[str, Any] | None = None
    """Spread over several devices, as transformers does it: auto, balanced, ... or module -> device."""
    attn_implementation: str | None = None
    load_in_4bit: bool = False
    """NF4 by bitsandbytes, computed in bfloat16: for QLoRA, and a GPU."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face id."""
    subfolder: str | None = None
    """Of the directory or repository, in which the model lies."""
    model: str | None = None
    """Of which the last two are; None: of any."""

    def __post_init__(self) -> None:
        if isinstance(self.dtype, str) and self.dtype != "auto":
            named = getattr(torch, self.dtype, None)
            if not isinstance(named, torch.dtype) or not named.is_floating_point:
                raise UserError(f"dtype {self.dtype!r} is none of weights. Pass float32, bfloat16, float16 or auto.")
        if self.attn_implementation is not None:
            one_of("attn_implementation", self.attn_implementation, ATTENTION)
        if self.device is not None and self.device_map is not None:
            raise UserError("device and device_map exclude each other: one device, or several. Give one.")
        if self.load_in_4bit and self.dtype is not None:
            raise UserError("load_in_4bit and dtype exclude each other: weights are of 4 bits, or of that type.")

    @property
    def precision(self) -> torch.dtype | str:
        """What `from_pretrained` takes as `dtype`."""
        if self.load_in_4bit:
            return torch.bfloat16
        if self.dtype is None:
            return torch.float32
        return getattr(torch, self.dtype) if isinstance(self.dtype, str) and self.dtype != "auto" else self.dtype

    @property
    def placed(self) -> bool:
        """Whether transformers itself puts the weights where they go."""
        return self.device_map is not None or self.load_in_4bit

    @property
    def settings(self) -> dict[str, Any]:
        """Further arguments of `from_pretrained`."""
        found: dict[str, Any] = {}
        if self.attn_implementation is not None:
            found["attn_implementation"] = self.attn_implementation
        if self.device_map is not None:
            found["device_map"] = self.device_map
        if self.load_in_4bit:
            from transformers import BitsAndBytesConfig

            found["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=torch.bfloat16,
                bnb_4bit_use_double_quant=True,
            )
            found.setdefault("device_map", {"": self.device or whole_device()})
        return found


@dataclass(frozen=True)
class Origin:
    """Where on the hub the weights of a model lie: an adapter of it is on these alone what it is."""

    revision: str | None = None
    """The commit, where it is known."""
    subfolder: str | None = None


def set_origin_(model: Any, origin: Origin) -> None:
    """Note on a model where it has been loaded from; none is noted on one that does not come from the hub."""
    model._efface_origin = origin


def origin_of(model: Any) -> Origin:
    """What `set_origin_` has noted on a model, or on the one inside an adapter."""
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(owner, "_efface_origin", Origin())


USUAL = Loading()
_CURRENT: ContextVar[Loading] = ContextVar("loading", default=USUAL)


@contextlib.contextmanager
def loading(**options: Any) -> Iterator[None]:
    """Inside, models are loaded with these options (fields of `Loading`), unless told otherwise."""
    token = _CURRENT.set(Loading(**options))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def how_to_load(name: str, **given: Any) -> Loading:
    """The options in force for a model of that name; those of `given` that are not None come before them."""
    current = _CURRENT.get()
    if current.model not in (None, name):
        current = replace(current, revision=None, subfolder=None)
    told = {key: value for key, value in given.items() if value is not None}
    if "device" in told:  # a caller who says where knows why, and in which precision likewise
        current = replace(current, device_map=None)
    if "dtype" in told:
        current = replace(current, load_in_4bit=False)
    return replace(current, **told)
