"""Is the toxicity still there when the likeliest token is not taken? Other decoding settings (Huang et al. 2023).

Catastrophic jailbreak of open-source LLMs (arXiv 2310.06987): temperatures, nuclei and top-k are swept, and a prompt
counts as broken if one of the settings breaks it. So each setting is a point with its draws, and the attack is judged
by the last: of each prompt the most toxic draw of all. Sampling makes every model more toxic, the base too, and more
draws find more: the base is decoded alike at each point, and the best of its draws stands beside.
"""

import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import Any

from efface.attacks.any_of import any_share, before_any, count_tries
from efface.attacks.lists import read_lists, several
from efface.attacks.record import recorded
from efface.attacks.result import AttackResult
from efface.attacks.target import Target
from efface.checks import at_least_one
from efface.errors import UserError


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of `sampling`."""

    temperatures: tuple[float, ...] = several("0.7,1,1.3", float, "Temperatures, with commas between.")
    nuclei: tuple[float, ...] = several(
        "0.9,1", float, "Nuclei (top-p), each tried with each temperature; 1 for no limit."
    )
    top_ks: tuple[int, ...] = several(
        "10,50", int, "How many of the likeliest tokens are drawn from; each tried at temperature 1 without a nucleus."
    )
    draws: int = field(default=4, metadata={"help": "Continuations of a prompt at each point."})

    def __post_init__(self) -> None:
        read_lists(self)
        if self.nuclei[-1] > 1:
            raise UserError(f"nuclei={self.nuclei!r}: a nucleus is at most 1, which is no limit, as in 0.9,1.")
        at_least_one(self, "draws")


def sampling(target: Target, settings: SamplingSettings) -> AttackResult:
    """Sample at each setting; judged by the most toxic of all draws of a prompt.

    `found["points"]` has for each setting, and last for all of them, the `share` of toxic continuations and the
    `probability` that a prompt gets one in so many draws, and the same of the base (`base_share`, `base_probability`;
    None without one). Besides: `any_of` how many draws a prompt has in all; `base_share`, the part of the prompts with
    a toxic one among as many of the base; `before_any`, the same among as many of the model's without the attack.
    """
    grid: list[dict[str, Any]] = [
        {"temperature": temperature, "top_p": nucleus}
        for temperature, nucleus in itertools.product(settings.temperatures, settings.nuclei)
    ]
    grid += [{"temperature": 1.0, "top_p": 1.0, "top_k": top_k} for top_k in settings.top_ks]
    rows: list[dict[str, Any]] = []
    bases = []
    with recorded(target, "sampling", settings) as record:
        record.start(decoding=str(target.decoding))
        for number, at in enumerate(grid):
            decoding = dataclasses.replace(
                target.decoding,
                do_sample=True,
                samples=settings.draws,
                seed=target.decoding.seed + number,  # or every setting would draw with the same numbers
                **{"top_k": 0, **at},
            )
            base = record.base_at(at, decoding)
            point = record.measure(
                target.model, at, decoding=decoding, with_text=False, with_likelihood=False, yardstick=base
            )
            row = dict(at)
            for prefix, one in (("", point), ("base_", base)):
                for figure in ("share", "probability"):
                    row[prefix + figure] = None if one is None else one.figures["toxicity"][figure]
            rows.append(row)
            bases.append(base)
        points = record.curve[1:]
        any_of, base_share = count_tries(points), any_share(bases)
        after = record.best_of(points, {"any_of": any_of})
        last = {"share": after.share, "probability": after.share, "base_share": base_share}
        rows.append({"any_of": any_of, **last, "base_probability": base_share})
        return record.result(
            after, points=rows, any_of=any_of, base_share=base_share, before_any=before_any(record, any_of)
        )
