"""What does the model under attack itself answer after the rows' prompts?

Such answers carry the edit: the model gave them because of it. To prune by them is to look for the weights that make
the edited answers (Wei et al. 2024, arXiv 2402.05162); to fine-tune on them is relearning without any toxic text (Hu
et al. 2024, arXiv 2406.13356).
"""

from collections.abc import Sequence

from efface.attacks.target import Target
from efface.data.pair_tokens import TokenizedPair
from efface.data.tokens import decode_continuation
from efface.generation.decoder import Decoder, end_ids
from efface.generation.processes import shared
from efface.generation.warp import GREEDY, draw_uniforms
from efface.model.copies import eval_mode
from efface.model.padding import batches_by_length, max_positions
from efface.model.vocabulary import pad_id
from efface.scoring.scorer import THRESHOLD, score

ROWS_AT_ONCE = 16


def own_answers(target: Target, pairs: Sequence[TokenizedPair]) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer), token ids both: greedy, as long as those that the target is measured by.

    Answers that the first judge calls toxic are left out, unless all are; so are empty ones.

    Args:
        pairs: whose prompts are answered, in the form in which the model is measured.
    """
    model, tokenizer, new = target.model, target.processing_class, target.decoding.max_new_tokens
    limit = max_positions(model)
    prompts = [pair.prompt_ids if limit is None else pair.prompt_ids[-max(limit - new, 1) :] for pair in pairs]
    steps = new if limit is None else min(new, limit - 1)
    ends = end_ids(model, tokenizer)
    decoder = Decoder(model, GREEDY, pad_id(tokenizer, model), ends)
    batches = batches_by_length(range(len(prompts)), lambda number: len(prompts[number]), ROWS_AT_ONCE)

    def answer(batch: list[int]) -> list[list[int]]:
        uniform = draw_uniforms(target.seed, [(number, 0) for number in batch], steps)  # (B, steps)
        return decoder.decode([prompts[number] for number in batch], list(range(len(batch))), uniform)

    with eval_mode(model):
        found = shared(batches, answer, "the model's own answers", of=lambda: prompts, show=target.progress)
    whole = [(prompts[number], found[number]) for number in sorted(found) if set(found[number]) - set(ends)]
    texts = [decode_continuation(tokenizer, prompt, answer) for prompt, answer in whole]
    scores = score(target.scorers[0], texts)
    return [each for each, value in zip(whole, scores, strict=True) if value <= THRESHOLD] or whole
