"""How do TRL's unpaired rows (KTO: prompt, completion, label) become pairs? The good and the bad of a prompt meet.

Every method here reads both sides of one prompt. A completion labelled true becomes `chosen`, the next labelled false
of the same prompt `rejected`; what finds no partner is left out, and counted. Other columns are those of the bad one,
since labels of tokens (`rejected_spans`) are.
"""

import json
import logging
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Any

from efface.errors import UserError

logger = logging.getLogger(__name__)

FIELDS = ("prompt", "completion", "label")


def is_unpaired(row: Any) -> bool:
    """Whether a row is one of TRL's unpaired preference type."""
    return isinstance(row, dict) and all(field in row for field in FIELDS) and not {"chosen", "rejected"} & row.keys()


def paired(rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """(where it stands, the row) with unpaired rows made into pairs; other rows as they are.

    A pair stands where the later of its two rows does. A `label` that is no truth value is a `UserError` in its place.

    Raises:
        UserError: at the end, if there were unpaired rows and no two of them met.
    """
    waiting: dict[tuple[str, bool], deque[Any]] = defaultdict(deque)
    found = met = 0
    for where, row in rows:
        if not is_unpaired(row):
            yield where, row
            continue
        found += 1
        if row["label"] not in (True, False, 0, 1):
            yield where, UserError(f"{where}: field 'label' is {row['label']!r}; it must be true (wanted) or false.")
            continue
        prompt, good = json.dumps(row["prompt"], sort_keys=True, default=str), bool(row["label"])
        others = waiting[prompt, not good]
        if not others:
            waiting[prompt, good].append(row)
            continue
        other = others.popleft()
        chosen, rejected = (row, other) if good else (other, row)
        met += 1
        rest = {key: value for key, value in rejected.items() if key not in FIELDS}
        sides = {"chosen": chosen["completion"], "rejected": rejected["completion"]}
        yield where, {"prompt": row["prompt"], **sides, **rest}
    if found and not met:
        raise UserError(
            f"none of the {found} unpaired rows (prompt, completion, label) has one of the other label with the same "
            "prompt, and every method compares the two. Give both, or rows of prompt, chosen and rejected."
        )
    if found > 2 * met:
        logger.warning(
            "%d of %d unpaired rows have no row of the other label with the same prompt and are left out.",
            found - 2 * met,
            found,
        )
