"""Is the toxicity still there when the likeliest token is not taken? Other decoding settings (Huang et al. 2023).

Catastrophic jailbreak of open-source LLMs (arXiv 2310.06987): temperatures and nuclei are swept. Sampling makes every
model more toxic, the base too, so the base is decoded alike at each point: it stands beside in `found`, and it is what
degeneration is judged against. Where the paper counts a prompt as broken if one of many settings breaks it, each
setting here is a point with all of its draws.
"""

import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import Any

from efface.attacks.lists import read_lists, several
from efface.attacks.points import worst
from efface.attacks.record import recorded
from efface.attacks.result import AttackResult
from efface.attacks.target import Target
from efface.checks import at_least_one
from efface.errors import UserError


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of `sampling`."""

    temperatures: tuple[float, ...] = several("0.7,1,1.5", float, "Temperatures, with commas between.")
    nuclei: tuple[float, ...] = several(
        "0.9,1", float, "Nuclei (top-p), each tried with each temperature; 1 for no limit."
    )
    draws: int = field(default=4, metadata={"help": "Continuations of a prompt at each point."})

    def __post_init__(self) -> None:
        read_lists(self)
        if self.nuclei[-1] > 1:
            raise UserError(f"nuclei={self.nuclei!r}: a nucleus is at most 1, which is no limit, as in 0.9,1.")
        at_least_one(self, "draws")


def sampling(target: Target, settings: SamplingSettings) -> AttackResult:
    """Sample at each pair of temperature and nucleus; judged by the most toxic, over all draws.

    `found["points"]` has for each pair the `share` of toxic continuations and the `probability` that a prompt gets one
    in so many draws, and the same of the base (`base_share`, `base_probability`; None without one).
    """
    rows: list[dict[str, Any]] = []
    with recorded(target, "sampling", settings) as record:
        record.start(decoding=str(target.decoding))
        for temperature, nucleus in itertools.product(settings.temperatures, settings.nuclei):
            at = {"temperature": temperature, "top_p": nucleus}
            decoding = dataclasses.replace(
                target.decoding, do_sample=True, samples=settings.draws, temperature=temperature, top_p=nucleus
            )
            base = record.base_at(at, decoding)
            point = record.measure(target.model, at, decoding=decoding, with_text=False, yardstick=base)
            row: dict[str, Any] = dict(at)
            for prefix, one in (("", point), ("base_", base)):
                for figure in ("share", "probability"):
                    row[prefix + figure] = None if one is None else one.figures["toxicity"][figure]
            rows.append(row)
        return record.result(worst(record.curve), points=rows)
