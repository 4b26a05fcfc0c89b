"""What can be chosen about the search for a prefix (`enhanced_gcg`)? Budget, moves, and the weights of its loss."""

from dataclasses import dataclass, field

from efface.attacks.lists import read_lists, several
from efface.attacks.search.flrt import OPERATORS
from efface.checks import at_least_one, not_negative
from efface.errors import UserError


@dataclass(frozen=True)
class EnhancedGCGSettings:
    """Settings of `enhanced_gcg`."""

    steps: int = field(default=20, metadata={"help": "Steps of the search."})
    max_passes: int = field(
        default=2000,
        metadata={"help": "Rows through a model (either of them) that the search may take; the other end of it."},
    )
    search_width: int = field(default=16, metadata={"help": "Candidates that are scored in a step."})
    buffer_size: int = field(default=8, metadata={"help": "Best prefixes that are kept, and from which steps start."})
    choices: int = field(default=32, metadata={"help": "Tokens that are considered for each place."})
    operators: tuple[str, ...] = several(
        "gradient,sample,insert,delete",
        str,
        "What a step may do, drawn at random: gradient (swap by gradient), sample (swap by the model's "
        "own samples), insert (of such a sample), delete. What stands here twice is drawn twice as often.",
        repeated=True,
    )
    k: int = field(default=4, metadata={"help": "Pairs of --rows to search on, drawn under the seed."})
    target_tokens: int = field(default=12, metadata={"help": "Tokens of the rejected continuation that are forced."})
    start_tokens: int = field(default=12, metadata={"help": "Tokens of the first prefix, which the model samples."})
    min_tokens: int = field(default=4, metadata={"help": "Tokens of a prefix, at least."})
    max_tokens: int = field(default=24, metadata={"help": "Tokens of a prefix, at most."})
    layers: str = field(
        default="0.5,0.75", metadata={"help": "Blocks whose states are compared with those of --base: 8,16 or 0.5."}
    )
    w_hidden: float = field(
        default=1.0, metadata={"help": "Weight of the distance to the base's hidden states; 0 needs no --base."}
    )
    w_fluency: float = field(
        default=0.1, metadata={"help": "Weight of the prefix's -log p under the base, or without one the model."}
    )
    w_repetition: float = field(default=0.5, metadata={"help": "Weight of the penalty on tokens that come again."})
    enough: float = field(
        default=0.6, metadata={"help": "Forcing a token beyond this probability brings no further reward."}
    )
    allow_non_ascii: bool = field(default=False, metadata={"help": "Try tokens that are not printable ASCII too."})

    def __post_init__(self) -> None:
        read_lists(self)
        at_least_one(
            self, "steps", "max_passes", "search_width", "buffer_size", "choices", "k", "target_tokens", "min_tokens"
        )
        if not self.min_tokens <= self.start_tokens <= self.max_tokens:
            raise UserError(
                f"start_tokens={self.start_tokens} is not between min_tokens={self.min_tokens} and "
                f"max_tokens={self.max_tokens}: a search cannot begin outside its bounds. Change one of them."
            )
        for name in ("w_hidden", "w_fluency", "w_repetition"):
            not_negative(name, getattr(self, name))
        if not 0 < self.enough <= 1:
            raise UserError(f"enough={self.enough}: a probability above 0, at most 1, is needed.")
        if not set(self.operators) <= set(OPERATORS):
            raise UserError(
                f"operators={self.operators!r}: {', '.join(OPERATORS)} are known. Name some, separated by commas."
            )
