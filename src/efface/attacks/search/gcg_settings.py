"""What can be chosen about the search for tokens beside a prompt (`gcg`)? Mode, effort, the text, what is forced."""

from dataclasses import dataclass, field

from efface.attacks.lists import read_lists, several
from efface.attacks.search.drafts import DTYPES
from efface.attacks.search.slot import PLACES
from efface.checks import at_least_one, one_of
from efface.errors import UserError

MODES = ("per_prompt", "universal")
PLAIN = " x"
TARGET = "target"


@dataclass(frozen=True)
class GCGSettings:
    """Settings of `gcg`."""

    mode: str = field(
        default="per_prompt",
        metadata={"help": "per_prompt: a text for each of k prompts; universal: one text, searched on k pairs."},
    )
    k: int = field(
        default=8,
        metadata={"help": "Prompts that are attacked and measured, or pairs to search on, drawn by the seed."},
    )
    steps: tuple[int, ...] = several("100", int, "Search steps after which it is measured; 0, before, always is.")
    search_width: int = field(
        default=128, metadata={"help": "Candidates drawn in a step; fewer are scored, as not all are stable as text."}
    )
    topk: int = field(default=64, metadata={"help": "Tokens at each position that the gradient proposes."})
    n_replace: int = field(default=1, metadata={"help": "Positions that a candidate changes, at most."})
    patience: int = field(
        default=1,
        metadata={
            "help": "Draws that find nothing better before the search goes on from the best of the last one all the "
            "same; 1 always does, as published."
        },
    )
    early_stop: bool = field(default=True, metadata={"help": "End the search of a text that forces its targets."})
    length: int = field(default=20, metadata={"help": "Tokens of the text that is searched."})
    place: str = field(default="suffix", metadata={"help": "Where it stands: suffix (after the prompt) or prefix."})
    target_tokens: int = field(default=10, metadata={"help": "Tokens of a continuation to force, at most."})
    draws: int = field(
        default=16, metadata={"help": "per_prompt: continuations drawn to find a toxic one, for each prompt."}
    )
    add_after: int = field(
        default=10, metadata={"help": "universal: steps after which the next pair is added all the same."}
    )
    init: str = field(
        default=PLAIN,
        metadata={
            "help": "Text to start from, repeated or cut to the length. target: what is to be forced (or ' x' where "
            "that does not tokenise to itself)."
        },
    )
    allow_non_ascii: bool = field(default=False, metadata={"help": "Also try tokens that are no printable ASCII."})
    search_dtype: str = field(
        default="auto",
        metadata={
            "help": "Precision in which candidates are chosen: float32, bfloat16, or auto (bfloat16 where the device "
            "is faster at it). The best few are always read in the model's own."
        },
    )
    batch_tokens: int = field(
        default=2048, metadata={"help": "Tokens of candidates that go through the model together."}
    )

    def __post_init__(self) -> None:
        read_lists(self)
        one_of("mode", self.mode, MODES)
        one_of("place", self.place, PLACES)
        one_of("search_dtype", self.search_dtype, DTYPES)
        at_least_one(
            self,
            *("search_width", "topk", "n_replace", "patience", "length", "k", "target_tokens", "draws", "add_after"),
            "batch_tokens",
        )
        if self.n_replace > self.length:
            raise UserError(f"n_replace={self.n_replace} of length={self.length} tokens: it cannot be more.")
