"""Which way is toxic, to the model itself? The attribute model of PPLM, trained on labelled texts.

A linear probe of the mean over a text's tokens of the residual stream after the last block: the W of Lee et al. 2024
(arXiv 2401.01967, section 3.1). It is kept under `EFFACE_CACHE/probes/KEY.safetensors`, with its held-out quality; KEY
is a hash of the model, its tokenizer, the texts, their labels, the settings and the versions of the libraries.
"""

import contextlib
import logging
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from efface.analysis.probes import LinearProbe, fit_probe
from efface.analysis.states import pooled_states
from efface.errors import RunError, UserError
from efface.files.digests import key_of
from efface.files.environment import versions
from efface.files.results import cache_dir
from efface.model.fingerprint import fingerprint_of, tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def toxicity_probe(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    labels: Sequence[bool | int],
    *,
    max_texts: int | None = 1500,
    max_tokens: int = 64,
    batch_size: int = 16,
    regularisation: float = 0.001,
    seed: int = 0,
    progress: bool = False,
) -> LinearProbe:
    """A probe of the mean last residual state of `texts`, with its held-out quality, from the cache if it is there.

    As many texts of either label are used, drawn with `seed`; blank ones are left out.

    Args:
        labels: true or 1 for toxic, false or 0 for benign.
        max_texts: of both labels together; None uses all.
        max_tokens: a text counts up to here.
        regularisation: scikit-learn's C, inverse strength of the L2 penalty; at 0.1 and above the direction is noisy,
            and no longer that of toxic words.

    Raises:
        UserError: if texts and labels do not belong together, or a label has fewer texts than folds (5).
    """
    chosen = _balanced(texts, labels, max_texts, seed)
    made_by = [fingerprint_of(model), tokenizer_fingerprint(processing_class), versions()]
    key = key_of([2, *made_by, max_tokens, regularisation, seed, chosen])
    path = cache_dir() / "probes" / f"{key}.safetensors"
    with contextlib.suppress(UserError):  # not there, or damaged: trained anew
        return LinearProbe.load(path)
    (states,) = pooled_states(
        model,
        processing_class,
        [text for text, _ in chosen],
        [-1],
        batch_size=batch_size,
        max_tokens=max_tokens,
        progress=progress,
    ).values()
    probe = fit_probe(states, np.array([label for _, label in chosen]), regularisation=regularisation, seed=seed)
    try:
        probe.save(path)
    except RunError as error:  # it is at hand, and only the next run would have been shorter
        logger.warning("%s Set EFFACE_CACHE to a folder that can be written, or it is trained every time.", error)
    return probe


def _balanced(
    texts: Sequence[str], labels: Sequence[bool | int], max_texts: int | None, seed: int
) -> list[tuple[str, int]]:
    """The texts to train on with their labels, as many of either, in a seeded order."""
    if len(texts) != len(labels):
        raise UserError(f"{len(texts)} texts but {len(labels)} labels: each needs its own.")
    if not set(labels) <= {0, 1}:
        other = next(label for label in labels if label not in (0, 1))
        raise UserError(f"the label {other!r} is neither 1 (toxic) nor 0 (benign). Map the labels to these.")
    labelled = [(text, int(label)) for text, label in zip(texts, labels, strict=True) if text.strip()]
    sides = [[row for row in labelled if row[1] == side] for side in (0, 1)]
    size = min(map(len, sides))
    if max_texts is not None:
        size = min(size, max_texts // 2)
    if size < 5:
        raise UserError(
            f"a toxicity probe needs at least 5 texts of either label, but there are {len(sides[1])} toxic and "
            f"{len(sides[0])} benign ones (max_texts={max_texts}). Give more labelled text."
        )
    chooser = random.Random(seed)
    chosen = [row for side in sides for row in chooser.sample(side, size)]
    chooser.shuffle(chosen)
    return chosen
