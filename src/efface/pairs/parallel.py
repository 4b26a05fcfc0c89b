"""How do parallel texts become pairs without being split? Each is a continuation, of an empty prompt.

Whoever has a toxic text beside its neutral rewriting (ParaDetox) has both sides already: nothing has to be split, so
that none is lost for being lower case, short or without a full stop, as in `corpus.py`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from efface.data.text import joined
from efface.errors import UserError
from efface.pairs.corpus import Corpus, cut_tokens
from efface.scoring.labelled import rows_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_parallel(
    files: Sequence[str], processing_class: "PreTrainedTokenizerBase", *, max_tokens: int = 20
) -> Corpus:
    """Both sides of each row, up to `max_tokens` tokens of each; the toxic one stands for its row, whose prompt is "".

    Args:
        files: JSON lines, or tables with a header (`.tsv`, `.csv`), with `toxic` and `neutral`.
        processing_class: a fast tokenizer, which tells where in a text a token stands.

    Raises:
        UserError: naming file and line of a row that cannot be read; if no row has both sides.
    """
    corpus = Corpus()
    for file in files:
        for _, row in rows_of(file):
            corpus.rows_read += 1
            toxic, neutral = (
                cut_tokens(processing_class, joined(side).strip(), max_tokens) if isinstance(side, str) else ""
                for side in (row.get("toxic"), row.get("neutral"))
            )
            if not (toxic and neutral):
                corpus.counts["row has no neutral text beside a toxic one"] += 1
                continue
            if toxic == neutral:
                corpus.counts["both sides are equal"] += 1
            elif toxic in corpus.rejected:
                corpus.counts["toxic text is there already"] += 1
            else:
                corpus.rejected[toxic] = toxic
                corpus.given[toxic] = {"prompt": "", "chosen": neutral, "how": {"split": "never"}}
                corpus.counts["whole"] += 1
    if not corpus.rejected:
        raise UserError(
            f"split='never' takes rows with `toxic` and `neutral`, and none of the {corpus.rows_read} rows of "
            f"{', '.join(files)} has both ({dict(corpus.counts)}). Leave it out to split labelled sentences."
        )
    return corpus
