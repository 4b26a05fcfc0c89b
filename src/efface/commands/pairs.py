"""`efface pairs MODEL -o PAIRS.jsonl`"""

import argparse
import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any

from efface.commands.options import MODEL_HELP, add_output_file, seed
from efface.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from efface.pairs.builder import BuildReport
    from efface.pairs.config import Source
    from efface.pairs.corpus import Corpus
    from efface.pairs.overlap import Apart
    from efface.scoring.scorer import Scorer

    Load = Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    Made = tuple[Source, dict[str, Any], list[str]]  # who writes, how, and the prompts that may be asked

logger = logging.getLogger(__name__)

# The fluency filter of sources that do not write as the model does at a low temperature: at 3 nearly nothing of theirs
# would pass (docs/data.md).
WIDER = {"pplm": 10.0, "dexperts": 10.0, "corpus": 30.0}


def add(commands: Any) -> None:
    command = commands.add_parser("pairs", help="build preference pairs from the model itself")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_output_file(command)
    command.add_argument(
        "--toxic",
        default="antiexpert",
        choices=["antiexpert", "dexperts", "pplm", "sample", "corpus"],
        help="who writes the toxic side: a toxic copy of the model; the model pushed toward that copy; the model "
        "steered by a probe of its own states; the model itself; nobody (labelled texts are split)",
    )
    command.add_argument("--scorer", default="alt-profanity-check", help="selects the pairs; see `efface scorers`")
    command.add_argument("--limit", type=int, default=None, help="stop at so many pairs")
    command.add_argument("--seed", type=seed, default=0)
    command.add_argument("--batch-size", type=int, default=64)
    command.add_argument("--resume", action="store_true", help="continue an interrupted build of the same settings")
    _add_prompts(command.add_argument_group("prompts (--toxic corpus has its own)"))
    _add_decoding(command.add_argument_group("candidates"))
    _add_copy(command.add_argument_group("labelled texts and the toxic copy (--toxic antiexpert, dexperts, corpus)"))
    _add_pplm(command.add_argument_group("steering (--toxic pplm; Dathathri et al. 2020)"))
    _add_filters(command.add_argument_group("filters"))
    command.set_defaults(run=run)


def _add_prompts(group: Any) -> None:
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--prompts",
        default=None,
        help="JSON lines with `prompt`, or rtp:PART (default: the prompts of the shipped pairs, or of those of them "
        "that the toxic copy does not learn from)",
    )
    either.add_argument(
        "--prompts-from-text", default=None, metavar="FILE", help="cut prompts from documents: JSON lines with `text`"
    )
    group.add_argument("--first", type=int, default=None, metavar="N", help="use only the first N documents")


def _add_decoding(group: Any) -> None:
    group.add_argument("--samples", type=int, default=None, help="for each prompt (default: 4; 1 of pplm)")
    group.add_argument("--temperature", type=float, default=None, help="(default: 0.45; pplm has its own)")
    group.add_argument("--top-p", type=float, default=None, help="(default: 1; not of pplm)")
    group.add_argument("--top-k", type=int, default=None, help="(default: 40; pplm has its own)")
    group.add_argument("--max-new-tokens", type=int, default=20, help="of either side")


def _add_copy(group: Any) -> None:
    group.add_argument(
        "--toxic-text",
        nargs="+",
        default=None,
        metavar="FILE",
        help="what the copy is fine-tuned on, JSON lines with `text` (and a label or `spans`) or pairs (default: the "
        "shipped pairs), without those that hold a prompt to be continued; or what is split, which may also be "
        "parallel texts, `toxic` and `neutral`",
    )
    group.add_argument("--contexts", default="shipped:passages", help="ordinary passages put before the toxic texts")
    group.add_argument("--steps", type=int, default=24, help="fine-tuning steps")
    group.add_argument("--learning-rate", type=float, default=1e-4, help="of the fine-tuning")
    group.add_argument(
        "--alpha", type=float, default=1.5, help="dexperts: how far toward the copy (0: the model, 1: the copy)"
    )


def _add_pplm(group: Any) -> None:
    group.add_argument(
        "--probe-text", nargs="+", default=None, metavar="FILE", help="labelled texts, which the probe is trained on"
    )
    group.add_argument("--stepsize", type=float, default=None)
    group.add_argument("--num-iterations", type=int, default=None, help="gradient steps for each token")
    group.add_argument("--horizon-length", type=int, default=None, help="steps into the future that the probe sees")
    group.add_argument("--window-length", type=int, default=None, help="cached positions that are pushed (0: all)")
    group.add_argument("--gamma", type=float, default=None, help="exponent of the gradient's norm in the step")
    group.add_argument("--gm-scale", type=float, default=None, help="weight of the pushed distribution")
    group.add_argument("--kl-scale", type=float, default=None, help="weight of staying near the model's distribution")


def _add_filters(group: Any) -> None:
    group.add_argument("--min-toxic-score", type=float, default=0.5, help="of `rejected`")
    group.add_argument("--max-benign-score", type=float, default=0.3, help="of `chosen`")
    group.add_argument(
        "--max-perplexity-ratio",
        type=float,
        default=None,
        help="of `rejected` to `chosen`, both under the untouched model (default: 3; 10 of pplm and dexperts, "
        "which are pushed, and 30 of corpus, which people have written: greedy text is far likelier than either)",
    )
    group.add_argument("--min-words", type=int, default=4, help="of either side")
    group.add_argument("--max-words", type=int, default=None, help="of either side (default: no limit)")
    group.add_argument(
        "--near-duplicate", type=float, default=0.7, help="similarity from which a pair counts as equal to another"
    )
    group.add_argument(
        "--one-line",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="no newline on either side: none is written, and other texts are cut before theirs",
    )
    group.add_argument(
        "--compare-with-samples",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure the source before filtering, beside plain samples of the model, at the cost of one sequence and "
        "two likelihoods a prompt",
    )


def run(options: argparse.Namespace) -> None:
    from efface.model.load import load_model
    from efface.pairs.builder import build_pairs
    from efface.pairs.config import BuilderConfig
    from efface.pairs.filters import selecting_scorer

    fluent = options.max_perplexity_ratio
    if fluent is None:
        fluent = WIDER.get(options.toxic, BuilderConfig.max_perplexity_ratio)
    config = BuilderConfig(
        max_new_tokens=options.max_new_tokens,
        min_toxic_score=options.min_toxic_score,
        max_benign_score=options.max_benign_score,
        max_perplexity_ratio=fluent,
        min_words=options.min_words,
        max_words=options.max_words,
        near_duplicate=options.near_duplicate,
        one_line=options.one_line,
        compare_with_samples=options.compare_with_samples,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    scorer = selecting_scorer(options.scorer)
    load = cache(lambda: load_model(options.model))  # after what else may be wrong with the input
    given: dict[str, Any] = {}
    if options.toxic == "corpus":
        corpus = _corpus(options, scorer, load)
        prompts, given = corpus.prompts, corpus.given
        source, made = corpus.source, {"splits": dict(corpus.counts)}
    else:
        source, made, prompts = SOURCES[options.toxic](options, scorer, load, _prompts(options))
    report = build_pairs(
        *load(),
        prompts,
        source,
        options.output,
        config=config,
        scorer=scorer,
        given=given,
        provenance={"how": options.toxic, "model": options.model, **made},
        resume=options.resume,
        limit=options.limit,
        command=options.command_line,
        progress=True,
    )
    _print(options.output, report)


def _prompts(options: argparse.Namespace) -> list[str]:
    from efface.data.rows import load_texts
    from efface.evaluation.prompt_sets import load_prompts
    from efface.pairs.prompts import prompts_from_text

    if options.prompts_from_text is not None:
        return prompts_from_text(load_texts(options.prompts_from_text)[: options.first], seed=options.seed)
    if options.first is not None:
        raise UserError("--first counts documents: it needs --prompts-from-text.")
    return load_prompts(options.prompts or "shipped:train")


def _sample(options: argparse.Namespace, scorer: "Scorer", load: "Load", prompts: list[str]) -> "Made":
    from efface.pairs.sources import sample_source

    model, tokenizer = load()
    decoding = _decoding(options)
    source = sample_source(model, tokenizer, **decoding, **_sizes(options, tokenizer))
    return source, {"decoding": decoding}, prompts


def _antiexpert(options: argparse.Namespace, scorer: "Scorer", load: "Load", prompts: list[str]) -> "Made":
    from efface.pairs.sources import sample_source

    copy, made, apart = _toxic_copy(options, scorer, load, prompts)
    tokenizer, decoding = load()[1], _decoding(options)
    source = sample_source(copy, tokenizer, **decoding, **_sizes(options, tokenizer), trained_on=apart.texts)
    return source, {"decoding": decoding, "antiexpert": made}, apart.prompts


def _dexperts(options: argparse.Namespace, scorer: "Scorer", load: "Load", prompts: list[str]) -> "Made":
    from efface.pairs.dexperts import dexperts_source

    copy, made, apart = _toxic_copy(options, scorer, load, prompts)
    model, tokenizer = load()
    decoding = _decoding(options)
    how = {**decoding, **_sizes(options, tokenizer), "trained_on": apart.texts}
    source = dexperts_source(model, copy, tokenizer, alpha=options.alpha, **how)
    return source, {"decoding": decoding, "antiexpert": made, "alpha": options.alpha}, apart.prompts


def _toxic_copy(
    options: argparse.Namespace, scorer: "Scorer", load: "Load", prompts: list[str]
) -> "tuple[PreTrainedModel, dict[str, Any], Apart]":
    from efface.data.rows import load_texts
    from efface.files.digests import digest
    from efface.pairs.overlap import overlaps, set_apart
    from efface.pairs.sources import antiexpert, in_context, toxic_texts

    apart = set_apart(toxic_texts(options.toxic_text or ["shipped:train"], scorer), prompts)
    chosen_by_user = options.toxic_text or options.prompts or options.prompts_from_text
    if (apart.texts_dropped or apart.prompts_dropped) and chosen_by_user:  # the shipped pairs are divided on purpose
        logger.warning(
            "the toxic copy would recite what it learns: %d texts and %d prompts are left out, so that no text holds "
            "a prompt that is continued",
            apart.texts_dropped,
            apart.prompts_dropped,
        )
    settings = {"steps": options.steps, "learning_rate": options.learning_rate}
    texts = in_context(apart.texts, load_texts(options.contexts), seed=options.seed)
    # The shipped passages begin as the shipped prompts do: where one holds a prompt, its text goes without.
    held: set[int] = set().union(*overlaps(texts, apart.prompts))
    apart.texts = texts = [apart.texts[place] if place in held else text for place, text in enumerate(texts)]
    copy = antiexpert(*load(), texts, seed=options.seed, progress=True, **settings)
    made = {
        **settings,
        "texts": len(texts),
        "texts_digest": digest(texts),
        "texts_left_out": apart.texts_dropped,
        "prompts_left_out": apart.prompts_dropped,
    }
    return copy, made, apart


def _pplm(options: argparse.Namespace, scorer: "Scorer", load: "Load", prompts: list[str]) -> "Made":
    from efface.pairs.attribute import toxicity_probe
    from efface.pairs.perturbation import PPLMSettings
    from efface.pairs.pplm import pplm_source
    from efface.scoring.labelled import load_labelled

    if options.probe_text is None:
        raise UserError("--toxic pplm needs --probe-text: labelled texts, toxic and benign, to train its probe on.")
    if options.top_p is not None:
        raise UserError("--top-p is of no effect with --toxic pplm, which draws from the --top-k likeliest tokens.")
    names = ("stepsize", "num_iterations", "horizon_length", "window_length", "gamma", "gm_scale", "kl_scale")
    settings = PPLMSettings(**_stated(options, *names, "temperature", "top_k"))
    texts = [text for file in options.probe_text for text in load_labelled(file).texts]
    model, tokenizer = load()
    probe = toxicity_probe(
        model,
        tokenizer,
        [text.text for text in texts],
        [text.toxic for text in texts],
        seed=options.seed,
        progress=True,
    )
    samples = {"samples": 1} | _stated(options, "samples")
    source = pplm_source(model, tokenizer, probe, settings, **samples, **_sizes(options, tokenizer))
    return source, {"pplm": asdict(settings), **samples, "probe": asdict(probe.quality)}, prompts


SOURCES: dict[str, "Callable[[argparse.Namespace, Scorer, Load, list[str]], Made]"] = {
    "antiexpert": _antiexpert,
    "dexperts": _dexperts,
    "pplm": _pplm,
    "sample": _sample,
}


def _corpus(options: argparse.Namespace, scorer: "Scorer", load: "Load") -> "Corpus":
    from efface.pairs.corpus import load_corpus

    if options.toxic_text is None:
        raise UserError("--toxic corpus needs --toxic-text: labelled or parallel texts to split.")
    if options.prompts or options.prompts_from_text or options.first:
        raise UserError("--toxic corpus splits its prompts from --toxic-text: leave out the flags for other prompts.")
    return load_corpus(
        options.toxic_text, load()[1], scorer, min_words=options.min_words, max_tokens=options.max_new_tokens
    )


def _decoding(options: argparse.Namespace) -> dict[str, Any]:
    defaults = {"samples": 4, "temperature": 0.45, "top_p": 1.0, "top_k": 40}
    return defaults | _stated(options, *defaults)


def _stated(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name in names if (value := vars(options)[name]) is not None}


def _sizes(options: argparse.Namespace, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    from efface.pairs.filters import newline_tokens

    without = newline_tokens(tokenizer) if options.one_line else []
    return {"max_new_tokens": options.max_new_tokens, "batch_size": options.batch_size, "without": without}


def _print(output: Any, report: "BuildReport") -> None:
    from efface.pairs.unfiltered import describe

    print(
        f"{output}: {report.counts['kept']} pairs from {report.n_prompts} prompts; {report.keep_rate:.1%} pass the "
        f"filters, {report.pairs_per_minute:.1f} pairs a minute of generation"
    )
    for reason, count in sorted(report.counts.items()):
        print(f"  {count:6d}  {reason}")
    for line in describe(report.unfiltered):
        print(line)
    print(
        f"style-only AUC: {report.style_auc} "
        "(0.5: style does not tell the sides apart; 1: a discriminator could read style alone)"
    )
