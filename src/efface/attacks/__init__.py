"""BREAK: the attacks by name. A new one is one file and one entry here; a dotted path of a third party works too.

An attack is a function `attack(target: Target, settings: ItsSettings) -> AttackResult`, see `target.py` and
`result.py`; its settings are a frozen dataclass with a help text under each field.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from efface.errors import UserError
from efface.registry import Entry, resolve

if TYPE_CHECKING:
    from efface.attacks.result import AttackResult
    from efface.attacks.target import Target


ATTACKS = {
    "relearn": Entry(
        "efface.attacks.relearn:relearn",
        "fine-tune on toxic rows, polite rows or ordinary text; all weights or LoRA",
        "Lucki et al. 2024, arXiv 2409.18025",
    ),
    "orthogonalize": Entry(
        "efface.attacks.orthogonalize:orthogonalize",
        "take a direction that the edit added out of the hidden states or the weights",
        "Lucki et al. 2024, arXiv 2409.18025; Arditi et al. 2024, arXiv 2406.11717",
    ),
    "unalign": Entry(
        "efface.attacks.unalign:unalign",
        "scale the key vectors of the most toxic MLP values",
        "Lee et al. 2024, arXiv 2401.01967",
    ),
    "prune": Entry(
        "efface.attacks.prune:prune",
        "set weights to zero that polite answers need and ordinary text does not",
        "Wei et al. 2024, arXiv 2402.05162",
    ),
    "quantize": Entry(
        "efface.attacks.quantize:quantize",
        "round the weights to 8 or 4 bits",
        "Kolbeinsson et al. 2024, arXiv 2407.06483",
    ),
    "merge": Entry(
        "efface.attacks.merge:merge",
        "move the weights back toward the base, or beyond it",
        "Wortsman et al. 2022, arXiv 2203.05482; Ilharco et al. 2023, arXiv 2212.04089",
    ),
    "sampling": Entry(
        "efface.attacks.sampling:sampling",
        "sample at other temperatures and nuclei",
        "Huang et al. 2023, arXiv 2310.06987",
    ),
    "prefill": Entry(
        "efface.attacks.prefill:prefill",
        "force the first words of a toxic continuation",
        "Qi et al. 2024, arXiv 2406.05946",
    ),
    "prompt_injection": Entry(
        "efface.attacks.prompt_injection:prompt_injection",
        "put hand-written adversarial text around the prompt",
        "Perez and Ribeiro 2022, arXiv 2211.09527",
    ),
    "perturb": Entry(
        "efface.attacks.perturb:perturb",
        "character and spacing noise on the prompt",
        "Hughes et al. 2024, arXiv 2412.03556",
    ),
    "soft_prompt": Entry(
        "efface.attacks.soft_prompt:soft_prompt",
        "optimise vectors before the prompt (an upper bound: they are no text)",
        "Schwinn et al. 2024, arXiv 2402.09063",
    ),
    "gcg": Entry(
        "efface.attacks.search.gcg:gcg",
        "search tokens around the prompt that force a toxic continuation",
        "Zou et al. 2023, arXiv 2307.15043",
    ),
    "enhanced_gcg": Entry(
        "efface.attacks.search.enhanced_gcg:enhanced_gcg",
        "search one fluent prefix that also undoes the edit's hidden states",
        "Lucki et al. 2024, arXiv 2409.18025; Thompson and Sklar 2024, arXiv 2407.17447",
    ),
}


def load_attack(name: str) -> "Callable[[Target, Any], AttackResult]":
    """The attack called `name`, or at the dotted path `package.module:function`.

    Raises:
        UserError: if there is no such attack.
    """
    found = resolve("attack", name, ATTACKS, "package.module:function")
    settings_class(found, name)
    return found


def settings_class(attack: Any, name: str = "") -> type[Any]:
    """The dataclass that the parameter `settings` of an attack is annotated with.

    Raises:
        UserError: if it has none, and so is no attack.
    """
    try:
        found: Any = inspect.signature(attack).parameters["settings"].annotation
    except (TypeError, ValueError, KeyError):  # nothing to call, or nothing so called
        found = None
    if isinstance(found, str):  # a module that postpones the evaluation of annotations
        found = getattr(attack, "__globals__", {}).get(found)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise UserError(
            f"attack {name or attack!r} is no attack of efface: a function (target, settings) is needed whose "
            "`settings` are annotated with a dataclass."
        )
    return found
