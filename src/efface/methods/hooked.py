"""What do the methods share that add interventions? Layers, pairs that are looked at, the states of their tokens."""

from dataclasses import dataclass, field

from efface.analysis.states import TokenStates, token_states
from efface.checks import positive
from efface.model.blocks import decoder_blocks, parse_layers
from efface.model.interventions import NOTE
from efface.training.editor import EditConfig, PairEditor


@dataclass
class HookedConfig(EditConfig):
    """The settings common to methods that add interventions (`efface.model.interventions`)."""

    layers: str = field(default="last", metadata={"help": "After which blocks: last, all, or as in `8,16` or `0.5`."})
    max_pairs: int = field(
        default=1024, metadata={"help": "Pairs whose states are looked at; if there are more, they are drawn."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("max_pairs", self.max_pairs)


class HookedEditor(PairEditor):
    """Arguments as `PairEditor`. Subclasses define `edit_`, for `self.layers` by the evidence of `self.rows`."""

    config_class = HookedConfig
    args: HookedConfig

    def set_up_(self) -> None:
        self.layers = parse_layers(self.args.layers, len(decoder_blocks(self.model)))
        self.rows = self.drawn(self.args.max_pairs)

    def states_of(self, layer: int) -> TokenStates:
        """The states of the tokens of `self.rows` after a block, with what is attached to the model by now."""
        return token_states(
            self.model,
            self.processing_class,
            self.rows,
            [layer],
            batch_size=self.args.batch_size,
            progress=not self.args.disable_tqdm,
        )[layer]

    def describe(self) -> list[str]:
        after = ", ".join(map(str, self.layers))
        return [f"{len(self.rows)} of {len(self.train_dataset)} pairs, no training steps; after block {after}", NOTE]
