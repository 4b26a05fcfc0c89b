"""Where do MLPs write toxicity, and what if they cannot? ProFS (Uppaal et al. 2024, arXiv 2405.13967, algorithm 1).

For every block l from `first_layer` on, with the mean states of continuations as rows of X_toxic and X_benign (N, d):

    T = (X_toxic - X_benign)(I - m m^T)       m: the direction of the mean of X_benign
    T = U S V^T;  V: its top `rank` right singular vectors (d, rank)
    W <- (I - V V^T) W                        W (d, d_ff): what the MLP writes, its "value" matrix

so that what the MLP adds to the residual stream has no component in the toxic subspace.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from efface.analysis.states import token_states
from efface.checks import positive
from efface.errors import RunError, UserError
from efface.model.blocks import decoder_blocks, parse_layers
from efface.model.copies import merged
from efface.model.projections import mlp_output_projection, output_weight, project_out_, through_norm
from efface.terminal.progress import track
from efface.training.editor import EditConfig, PairEditor


@dataclass
class ProFSConfig(EditConfig):
    """Settings of ProFS; the defaults are those of the reference implementation for GPT-2 medium."""

    rank: int = field(
        default=2, metadata={"help": "Directions taken out of every MLP (the authors: 2 for GPT-2, 10 for 6B and 7B)."}
    )
    first_layer: str = field(
        default="0.42",
        metadata={"help": "The lowest block that is edited, such as `12` or, as a depth, `0.42` (10 of 24)."},
    )
    max_pairs: int = field(
        default=500, metadata={"help": "Pairs that the subspace is found from; if there are more, they are drawn."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("rank", self.rank)
        positive("max_pairs", self.max_pairs)


class ProFSEditor(PairEditor):
    """Edit with ProFS. Arguments as `PairEditor`; settings as `ProFSConfig`. An adapter is merged first."""

    config_class = ProFSConfig
    args: ProFSConfig

    def set_up_(self) -> None:
        self.model = merged(self.model)
        self.blocks = decoder_blocks(self.model)
        first = parse_layers(self.args.first_layer, len(self.blocks))
        if len(first) != 1:
            raise UserError(f"first_layer={self.args.first_layer!r} names {len(first)} blocks. Give one.")
        self.layers = list(range(first[0], len(self.blocks)))
        self.writers = {layer: mlp_output_projection(self.blocks[layer]) for layer in self.layers}
        self.rows = self.drawn(self.args.max_pairs)
        limit = min(len(self.rows), len(output_weight(self.writers[first[0]])) - 1)  # the mean takes one dimension
        if self.args.rank > limit:
            raise UserError(
                f"rank={self.args.rank}: the differences of {len(self.rows)} pairs span at most {limit} directions. "
                "Lower the rank or give more pairs."
            )

    def edit_(self) -> dict[str, Any]:
        """Returns the blocks that were edited and, of each MLP's output weights, the share of the squared norm that
        was taken out."""
        embedded = self._sentence_embeddings()
        # All of them before the first edit, so that an error leaves the model as it was.
        bases = {layer: toxic_subspace(sides[0], sides[1], self.args.rank) for layer, sides in embedded.items()}
        removed = {}
        for layer, basis in bases.items():
            removed[str(layer)] = project_out_(self.writers[layer], through_norm(basis, self.blocks[layer]))
        return {"layers": self.layers, "pairs": len(self.rows), "removed": removed}

    def _sentence_embeddings(self) -> dict[int, np.ndarray]:
        """Layer -> (2, N, d), toxic and benign: the mean state over the tokens of a continuation of its prompt."""
        found: dict[int, list[np.ndarray]] = {layer: [] for layer in self.layers}
        size = self.args.batch_size
        for start in track(range(0, len(self.rows), size), "hidden states", show=not self.args.disable_tqdm):
            chunk = self.rows[start : start + size]  # of which no more than the means is kept
            states = token_states(self.model, self.processing_class, chunk, self.layers, batch_size=size)
            for layer, tokens in states.items():
                side = tokens.pairs + len(chunk) * (1 - tokens.labels)  # (tokens,) which of the means; toxic first
                sums = np.zeros((2 * len(chunk), tokens.hidden.shape[1]), dtype=np.float32)
                np.add.at(sums, side, tokens.hidden)
                found[layer].append((sums / np.bincount(side)[:, None]).reshape(2, len(chunk), -1))
        embedded = {layer: np.concatenate(parts, axis=1) for layer, parts in found.items()}
        for layer, table in embedded.items():
            if not np.isfinite(table).all():
                raise RunError(f"block {layer}: a state is not finite. The model is broken, or its dtype too small.")
        return embedded

    def describe(self) -> list[str]:
        return [
            f"{len(self.rows)} of {len(self.train_dataset)} pairs, no training steps; {self.args.rank} direction(s) "
            f"out of the MLPs of blocks {self.layers[0]} to {self.layers[-1]}"
        ]


def toxic_subspace(toxic: np.ndarray, benign: np.ndarray, rank: int) -> np.ndarray:
    """(d, rank) float64, orthonormal columns: the directions along which toxic states differ most from benign ones.

    The direction of the benign mean is left out: it is what all text shares, and taking it away breaks the model.

    Args:
        toxic: (N, d), a row for each pair.
        benign: (N, d), likewise.

    Raises:
        UserError: if the differences span less than `rank` directions.
    """
    mean = benign.mean(0, dtype=np.float64)  # (d,)
    mean /= np.linalg.norm(mean) or 1.0
    differences = toxic.astype(np.float64) - benign
    scale = np.linalg.norm(differences)  # rounding is relative to what was there before the mean is taken away
    differences -= np.outer(differences @ mean, mean)
    _, singular, directions = np.linalg.svd(differences, full_matrices=False)  # (k,), (k, d)
    found = int((singular > scale * max(differences.shape) * np.finfo(np.float64).eps).sum())
    if rank > found:
        raise UserError(
            f"rank={rank}: toxic and benign states differ in only {found} direction(s). Lower the rank or give more "
            "pairs."
        )
    return directions[:rank].T
