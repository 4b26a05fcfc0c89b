"""What do the methods share that change hidden states at inference? Layers, and pairs whose states are looked at."""

from dataclasses import dataclass, field
from typing import Any

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

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.layers = parse_layers(self.args.layers, len(decoder_blocks(self.model)))
        self.rows = self.drawn(self.args.max_pairs)

    def describe(self) -> list[str]:
        after = ", ".join(map(str, self.layers))
        return [f"{len(self.rows)} of {len(self.train_dataset)} pairs, no training steps; after block {after}", NOTE]
