"""How is a model made to say toxic things without training it? PPLM: push its cached keys and values, then decode.

Dathathri et al. 2020 (arXiv 1912.02164), as Lee et al. 2024 (arXiv 2401.01967) made the toxic side of PairToxicity
with it: the attribute model is a linear toxicity probe. At every step the keys and values are pushed
(`perturbation.py`), and the next token is drawn from the renormalised geometric mean (section 3.3 of the paper)

    p~^gm_scale * p^(1 - gm_scale)

of the distributions with and without the push. The push stays in the keys and values for the steps that follow.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface.analysis.probes import LinearProbe
from efface.data.tokens import decode_continuation
from efface.errors import UserError
from efface.generation.decoder import end_ids
from efface.generation.generate import Continuation
from efface.generation.prompts import encode_prompts
from efface.generation.warp import Warp, draw_uniforms
from efface.model.copies import eval_mode, frozen
from efface.model.padding import batches_by_length
from efface.pairs.perturbation import Perturbation, fuse
from efface.pairs.pplm_settings import PPLMSettings
from efface.pairs.source import Source
from efface.terminal.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def pplm_source(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    probe: LinearProbe,
    settings: PPLMSettings | None = None,
    *,
    samples: int = 1,
    max_new_tokens: int = 20,
    batch_size: int = 32,
    without: Sequence[int] = (),
    progress: bool = False,
) -> Source:
    """Candidates are what `model` says when PPLM steers it by `probe` (`--toxic pplm`)."""

    def candidates(prompts: Sequence[str], seed: int) -> list[list[str]]:
        rows = pplm_generate(
            model,
            processing_class,
            prompts,
            probe,
            settings,
            samples=samples,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
            without=without,
            progress=progress,
        )
        return [[continuation.text for continuation in row] for row in rows]

    return candidates


def pplm_generate(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    probe: LinearProbe,
    settings: PPLMSettings | None = None,
    *,
    samples: int = 1,
    max_new_tokens: int = 20,
    batch_size: int = 32,
    seed: int = 0,
    without: Sequence[int] = (),
    progress: bool = False,
) -> list[list[Continuation]]:
    """`samples` steered continuations of each prompt.

    The model comes back as it was: its weights get no gradient and keep their `requires_grad`.

    Args:
        probe: of the mean residual stream after the last block, as `toxicity_probe` trains it; 1 means toxic.
        batch_size: sequences at once (a prompt with 4 samples is 4 sequences); the results do not depend on it.
        seed: the draws of a sequence depend on it and on the numbers of its prompt and sample alone.
        without: ids of tokens that are never written.

    Raises:
        UserError: for settings or prompts that cannot work, a probe of another width, or a model without a cache of
            keys and values (state spaces, linear attention).
    """
    settings = settings or PPLMSettings()
    if samples < 1 or max_new_tokens < 1 or batch_size < 1 or seed < 0:
        raise UserError(
            f"samples={samples}, max_new_tokens={max_new_tokens}, batch_size={batch_size}, seed={seed}: "
            "the first three must be at least 1, the seed at least 0."
        )
    if samples > 1 and settings.top_k == 1:
        raise UserError(f"samples={samples} with top_k=1 (greedy) gives {samples} equal texts. Ask for one.")
    width = model.config.get_text_config(decoder=True).hidden_size
    if len(probe.weight) != width:
        raise UserError(
            f"the probe reads states of {len(probe.weight)} numbers, those of the model have {width}: it was trained "
            "on another model. Train one on this model (toxicity_probe)."
        )
    room = max_new_tokens + settings.horizon_length
    encoded = encode_prompts(model, processing_class, prompts, room=room)
    sequences = [(number, sample) for number in range(len(encoded)) for sample in range(samples)]
    batches = batches_by_length(sequences, lambda sequence: len(encoded[sequence[0]]), batch_size)
    done: dict[tuple[int, int], Continuation] = {}
    with eval_mode(model), frozen(model):
        perturbation = Perturbation(model, processing_class, probe, settings)
        ends = end_ids(model, processing_class)
        for batch in track(batches, "PPLM", show=progress):
            draws = draw_uniforms(seed, batch, max_new_tokens)
            new = _decode(perturbation, [encoded[number] for number, _ in batch], draws, ends, without)
            for sequence, ids in zip(batch, new, strict=True):
                text = decode_continuation(processing_class, encoded[sequence[0]], ids)
                done[sequence] = Continuation(text, ids)
    return [[done[number, sample] for sample in range(samples)] for number in range(len(encoded))]


def _decode(
    perturbation: Perturbation,
    prompts: Sequence[list[int]],
    uniform: Tensor,
    ends: Sequence[int],
    without: Sequence[int] = (),
) -> list[list[int]]:
    """The new tokens of each prompt, up to and including an end token; `uniform` is (B, max_new_tokens)."""
    settings, batch = perturbation.settings, perturbation.start(prompts)
    warp = Warp(settings.temperature, settings.top_k, without=tuple(without))
    rows: list[list[int]] = [[] for _ in prompts]
    running = torch.arange(len(prompts))  # which prompts are still in the batch
    for step in range(uniform.shape[1]):
        pushed, plain = perturbation.step(batch)
        chosen = warp.choose(fuse(pushed, plain, settings.gm_scale), uniform[running, step])  # (B,)
        batch.append(chosen)
        tokens = chosen.tolist()
        for number, token in zip(running.tolist(), tokens, strict=True):
            rows[number].append(token)
        going = torch.tensor([token not in ends for token in tokens])
        if not going.any():
            break
        if not going.all():
            running = running[going]
            batch.keep(going.nonzero()[:, 0].to(chosen.device))
    return rows
