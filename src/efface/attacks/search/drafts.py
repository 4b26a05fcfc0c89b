"""Is a copy in half precision the faster reader here? A search may let it choose which candidates are read exactly.

Short: one decision, for all searches. Measured on a CPU with AMX (docs/attacks.md, "How fast is gcg?").
"""

import copy
from typing import TYPE_CHECKING

from efface.checks import one_of
from efface.model.precision import is_fast_in_half, is_wide

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = ("auto", "float32", "bfloat16")
VERIFIED = 4  # of the best by the draft, which are read exactly; the best of all is practically always among them


def draft_of(model: "PreTrainedModel", search_dtype: str) -> "PreTrainedModel | None":
    """A copy of `model` in bfloat16; None if it is to read itself: for "float32", where it is in half precision
    already or quantised, or for "auto" where the device is no faster at it.

    Raises:
        UserError: for another `search_dtype`.
    """
    one_of("search_dtype", search_dtype, DTYPES)
    slow = search_dtype == "auto" and not is_fast_in_half(model.device)
    if search_dtype == "float32" or slow or not is_wide(model):
        return None
    return copy.deepcopy(model).requires_grad_(False).bfloat16()
