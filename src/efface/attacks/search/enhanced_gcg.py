"""Is there one readable text that, before any prompt, brings toxicity back? Enhanced GCG (Lucki et al. 2024).

A universal prefix is searched on k held-out pairs, whose rejected continuation is forced, and judged on prompts that
it was not searched on. What is wanted of it (forced tokens, the base's hidden states, fluency, no repetition) is in
`prefix_objective.py`, the search in `prefix_search.py` and `flrt.py`. arXiv 2409.18025, after FLRT: Thompson and Sklar
2024, arXiv 2407.17447.
"""

from dataclasses import dataclass, field

from efface.attacks.points import worst
from efface.attacks.result import AttackResult, recorded
from efface.attacks.search.candidates import slot_text
from efface.attacks.search.flrt import OPERATORS
from efface.attacks.search.prefix_search import Search
from efface.attacks.search.slot import altered, universal
from efface.attacks.target import Target
from efface.checks import at_least_one, not_negative
from efface.errors import UserError
from efface.model.blocks import decoder_blocks, parse_layers
from efface.model.copies import eval_mode


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
    operators: str = field(
        default="gradient,sample,insert,delete",
        metadata={
            "help": "What a step may do, drawn at random: gradient (swap by gradient), sample (swap by the model's "
            "own samples), insert (of such a sample), delete. What stands here twice is drawn twice as often."
        },
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
        _ = self.operations

    @property
    def operations(self) -> list[str]:
        """The operators, each as often as it is named."""
        names = [name.strip() for name in self.operators.split(",")]
        if not set(names) <= set(OPERATORS):
            raise UserError(
                f"operators={self.operators!r}: {', '.join(OPERATORS)} are known. Name some, separated by commas."
            )
        return names


def enhanced_gcg(target: Target, settings: EnhancedGCGSettings) -> AttackResult:
    """Search a prefix, put it before the target's prompts, and measure. The weights are left alone.

    `found` says: the `prefix`, its `tokens`, `loss` and the `parts` of the loss (see `prefix_objective.py`); the same
    of the `start`; the `history` of the best loss, from the start; `steps` and `forward_passes` that were done and
    which `budget` ended the search; how many of the prompts it is measured on are among the pairs (none, or the
    figures are of what was searched on). An interrupted search goes on where the part file ends, at most KEEP_EVERY
    steps behind (`prefix_search.py`).

    Raises:
        UserError: without a base, if `w_hidden` is above 0; for settings that do not fit the model or the rows.
        RunError: if a loss is not finite.
    """
    if settings.w_hidden and target.base is None:
        raise UserError(
            "enhanced_gcg needs the model that this one was made from: pass --base. (Or set --w_hidden 0 to search "
            "without its hidden states.)"
        )
    layers = parse_layers(settings.layers, len(decoder_blocks(target.model)))
    slots = universal(target, settings.k, "prefix", length=settings.max_tokens, target_tokens=settings.target_tokens)
    with recorded(target, "enhanced_gcg", settings) as record:
        record.start(steps=0)
        with eval_mode(target.model), eval_mode(target.base or target.model):
            search = Search(record, settings, slots, layers)
            search.run()
        text = slot_text(target.processing_class, search.buffer.best.ids)
        prompts, decoding = altered(target, text, "prefix")
        record.measure(target.model, {"steps": search.steps}, prompts=prompts, decoding=decoding, with_text=False)
        return record.result(worst(record.curve), **search.found())
