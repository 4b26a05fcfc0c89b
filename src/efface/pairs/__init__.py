"""MAKE: preference pairs from the model itself. The sources of the toxic side by name.

A new source is one file with the frozen dataclass of its settings (see `source.py`), and one entry here.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from efface.errors import UserError
from efface.registry import Entry, resolve

if TYPE_CHECKING:
    from efface.pairs.source import SourceSettings


@dataclass(frozen=True)
class PairSource(Entry):
    """`what` says who writes the toxic side."""

    max_perplexity_ratio: float = 3.0
    """The fluency filter, where none is asked for. At 3 nearly nothing would pass of sources that do not write as the
    model does at a low temperature (docs/data.md)."""
    prompts_from: str = ""
    """The setting from which it takes prompts of its own; without one it continues those that are named."""


SOURCES = {
    "antiexpert": PairSource(
        "efface.pairs.sources.antiexpert:AntiexpertSource",
        "a toxic copy of the model",
        "the anti-expert of Liu et al. 2021, arXiv 2105.03023",
    ),
    "dexperts": PairSource(
        "efface.pairs.sources.dexperts:DExpertsSource",
        "the model pushed toward that copy",
        "Liu et al. 2021, arXiv 2105.03023",
        max_perplexity_ratio=10.0,
    ),
    "pplm": PairSource(
        "efface.pairs.sources.pplm:PPLMSource",
        "the model steered by a probe of its own states",
        "Dathathri et al. 2020, arXiv 1912.02164; Lee et al. 2024, arXiv 2401.01967",
        max_perplexity_ratio=10.0,
    ),
    "sample": PairSource("efface.pairs.sources.sample:SampleSource", "the model itself", "(control)"),
    "corpus": PairSource(
        "efface.pairs.sources.corpus:CorpusSource",
        "nobody (labelled texts are split)",
        "SemEval 2021; ParaDetox, Logacheva et al. 2022",
        max_perplexity_ratio=30.0,
        prompts_from="toxic_text",
    ),
}


def load_source(name: str) -> "type[SourceSettings]":
    """The settings class of the source called `name`, or at the dotted path `package.module:Class`.

    Raises:
        UserError: if there is no such source.
    """
    found: type[SourceSettings] = resolve("pair source", name, SOURCES, "package.module:Class")
    if not (isinstance(found, type) and all(hasattr(found, each) for each in ("__dataclass_fields__", "make"))):
        raise UserError(
            f"pair source {name!r} is no source of efface: a dataclass of settings with a method make(build) is "
            "needed, see efface.pairs.source."
        )
    return found


def find_source_name(kind: type) -> str:
    """The name of a settings class in `SOURCES`, or its dotted path."""
    path = f"{kind.__module__}:{kind.__qualname__}"
    return next((name for name, entry in SOURCES.items() if entry.path == path), path)
