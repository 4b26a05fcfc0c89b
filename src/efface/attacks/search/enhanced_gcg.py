"""Is there one readable text that, before any prompt, brings toxicity back? Enhanced GCG (Lucki et al. 2024).

A universal prefix is searched on k held-out pairs, whose rejected continuation is forced, and judged on prompts that
it was not searched on. What is wanted of it (forced tokens, the base's hidden states, fluency, no repetition) is in
`prefix_objective.py`, the search in `prefix_search.py` and `flrt.py`. arXiv 2409.18025, after FLRT: Thompson and Sklar
2024, arXiv 2407.17447.
"""

from efface.attacks.points import worst
from efface.attacks.record import recorded
from efface.attacks.result import AttackResult
from efface.attacks.search.candidates import slot_text
from efface.attacks.search.prefix_search import PrefixSearch
from efface.attacks.search.prefix_settings import EnhancedGCGSettings
from efface.attacks.search.slot import altered, universal
from efface.attacks.target import Target
from efface.errors import UserError
from efface.model.blocks import decoder_blocks, parse_layers
from efface.model.copies import eval_mode


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
            "enhanced_gcg needs the model that this one was made from: pass base=MODEL. (Or set w_hidden=0 to search "
            "without its hidden states.)"
        )
    layers = parse_layers(settings.layers, len(decoder_blocks(target.model)))
    slots = universal(target, settings.k, "prefix", length=settings.max_tokens, target_tokens=settings.target_tokens)
    with recorded(target, "enhanced_gcg", settings) as record:
        record.start(steps=0)
        with eval_mode(target.model), eval_mode(target.base or target.model):
            search = PrefixSearch(record, settings, slots, layers)
            search.run()
        text = slot_text(target.processing_class, search.buffer.best.ids)
        prompts, decoding = altered(target, text, "prefix")
        record.measure(target.model, {"steps": search.steps}, prompts=prompts, decoding=decoding, with_text=False)
        return record.result(worst(record.curve), **search.found())
