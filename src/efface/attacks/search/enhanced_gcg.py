"""Is there one readable text that, before any prompt, brings toxicity back? Enhanced GCG (Lucki et al. 2024).

A universal prefix is searched on `k` held-out prompts, after which the base's own toxic continuations are forced, and
judged on prompts that it was not searched on. What is wanted of it (forced tokens, the base's hidden states, fluency,
no repetition) is in `prefix_objective.py`, the search in `prefix_search.py` and `flrt.py`. arXiv 2409.18025, after
FLRT: Thompson and Sklar 2024, arXiv 2407.17447.
"""

from collections.abc import Sequence

from efface.attacks.draw import draw
from efface.attacks.points import worst
from efface.attacks.record import recorded
from efface.attacks.result import AttackResult
from efface.attacks.search.candidates import slot_text
from efface.attacks.search.hidden_distance import edited_layers
from efface.attacks.search.own_targets import own_targets
from efface.attacks.search.prefix_search import PrefixSearch, bare_prompt
from efface.attacks.search.prefix_settings import EnhancedGCGSettings
from efface.attacks.search.slot import Slot, altered, check_slots_fit, has_room, slot_before, slot_in
from efface.attacks.target import Target
from efface.errors import UserError
from efface.files.jsonl import Row
from efface.model.blocks import decoder_blocks, parse_layers
from efface.model.copies import eval_mode
from efface.model.vocabulary import pad_id


def enhanced_gcg(target: Target, settings: EnhancedGCGSettings) -> AttackResult:
    """Search a prefix, put it before the target's prompts, and measure. The weights are left alone.

    `found` says: the `prefix`, its `tokens`, `loss` and the `parts` of the loss (see `prefix_objective.py`); the same
    of the `start`; the `history` of the best loss, from the start; the `steps`, the `evaluations` (candidates) and the
    tokens put through either model (`tokens_read`); the `layers` that are compared, and the `scale` of their term; how
    many of the prompts it is measured on are among the rows (none, or the figures are of what was searched on). An
    interrupted search goes on where the part file ends, at most KEEP_EVERY steps behind (`prefix_search.py`).

    Raises:
        UserError: without a base, if `w_hidden` is above 0; for settings that do not fit the model or the rows.
        RunError: if a loss is not finite.
    """
    if settings.w_hidden and target.base is None:
        raise UserError(
            "enhanced_gcg needs the model that this one was made from: pass base=MODEL. (Or set w_hidden=0 to search "
            "without its hidden states.)"
        )
    rows, slots = slots_of(target, settings)
    with recorded(target, "enhanced_gcg", settings) as record:
        record.start(steps=0)
        with eval_mode(target.model), eval_mode(target.base or target.model):
            search = PrefixSearch(record, settings, rows, slots, _layers(target, settings, slots))
            search.run()
        text = slot_text(target.processing_class, search.buffer.best.ids)
        prompts, decoding = altered(target, text, "prefix")
        record.measure(target.model, {"steps": search.steps}, prompts=prompts, decoding=decoding, with_text=False)
        return record.result(worst(record.curve), **search.found())


def slots_of(target: Target, settings: EnhancedGCGSettings) -> tuple[list[Row], list[Slot]]:
    """The rows to search on, and a slot in each.

    Raises:
        UserError: if there are fewer rows than `k`, or none has a toxic continuation, or one does not fit into the
            model.
    """
    tokenizer, chat = target.processing_class, target.decoding.chat
    if settings.targets == "rows":
        rows = draw(target.rows, settings.k, target.seed)
        slots = [slot_in(row, tokenizer, "prefix", target_tokens=settings.target_tokens, chat=chat) for row in rows]
    else:
        plain = [row for row in target.rows if isinstance(row["prompt"], str)]
        draw(plain, settings.k, target.seed, "rows whose prompt is no conversation")  # there are as many
        prompts = [row["prompt"] for row in plain]
        tokens = settings.max_tokens + settings.target_tokens
        wanted, asked = own_targets(
            target,
            prompts,
            settings.k,
            tokens=settings.target_tokens,
            draws=settings.draws,
            fits=lambda prompt: has_room(target, prompt, "prefix", tokens),
        )
        if not wanted:
            raise UserError(
                f"none of {asked} rows has a toxic continuation among {settings.draws} that the base writes after its "
                "prompt. Raise draws, or set targets=rows to force the rejected ones."
            )
        rows = [plain[one.number] for one in wanted]
        slots = [slot_before(one.ids, prompts[one.number], tokenizer, "prefix", chat=chat) for one in wanted]
    check_slots_fit(target, slots, settings.max_tokens)
    return rows, slots


def _layers(target: Target, settings: EnhancedGCGSettings, slots: Sequence[Slot]) -> list[int]:
    """The blocks to compare; none without a weight for it, or where the two models do not differ."""
    if not settings.w_hidden or target.base is None:
        return []
    if settings.layers != "edited":
        return parse_layers(settings.layers, len(decoder_blocks(target.model)))
    bare = [bare_prompt(slot, target.processing_class) for slot in slots]
    return edited_layers(target.model, target.base, bare, slots, pad_id(target.processing_class, target.model))
