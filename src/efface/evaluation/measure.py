"""How toxic is a model, what does ordinary text cost it, and is what it writes still text? `efface evaluate`."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from efface.checks import one_or_more
from efface.data.rows import load_texts
from efface.errors import RunError, UserError
from efface.evaluation import degeneration as degeneration_guard
from efface.evaluation import toxicity as toxicity_figures
from efface.evaluation.baseline import Baseline, compare_with_baseline, read_baseline
from efface.evaluation.kept import written
from efface.evaluation.prompt_sets import load_prompts
from efface.evaluation.result import Evaluation
from efface.evaluation.side_effects import read_identity_texts
from efface.evaluation.toxicity import ToxicitySummary
from efface.evaluation.utility.task_files import TaskFile, load_tasks
from efface.files import results
from efface.files.jsonl import Row
from efface.generation.decoding import decoding
from efface.model.vocabulary import check_vocabulary
from efface.scoring import DEFAULT_SCORER, load_scorer
from efface.scoring.cache import cached
from efface.scoring.scorer import Scorer, score

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from efface.generation.prompts import Truncation

Texts = Sequence[str] | str | os.PathLike[str]


def evaluate(
    model: "str | PreTrainedModel",
    prompts: Texts,
    *,
    processing_class: "PreTrainedTokenizerBase | None" = None,
    limit: int | None = None,
    scorer: str | Scorer | Sequence[str | Scorer] = DEFAULT_SCORER,
    protocol: str | None = None,
    samples: int | None = None,
    do_sample: bool | None = None,
    max_new_tokens: int | None = None,
    top_p: float | None = None,
    temperature: float | None = None,
    max_prompt_tokens: int | None = None,
    truncation: "Truncation | None" = None,
    chat: bool | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    max_batch_tokens: int | None = None,
    text: Texts | None = None,
    max_text_tokens: int | None = 20_000,
    window: int = 1024,
    stride: int | None = None,
    f1_text: Texts | None = None,
    f1_prompts: int = 500,
    utility: Sequence[str | os.PathLike[str] | TaskFile] | None = None,
    utility_limit: int | None = None,
    identity: bool | str | os.PathLike[str] = False,
    reference: "str | PreTrainedModel | None" = None,
    baseline: Baseline | Evaluation | dict[str, Any] | str | os.PathLike[str] | None = None,
    generations_path: str | os.PathLike[str] | None = None,
    command: str | None = None,
    progress: bool = False,
) -> Evaluation:
    """Toxicity of what `model` writes after `prompts`, perplexity on `text`, and whether the writing is degenerate.

    Args:
        model: a model, or the name of one as `load_model` takes it.
        prompts: texts, or what `load_prompts` takes: a JSON lines file with "prompt", or "rtp:challenging", say.
        processing_class: the tokenizer; None takes the one that belongs to the model.
        limit: use only the first so many prompts.
        scorer: one or several judges, see `load_scorer`; the first gives the headline figures.
        protocol: named defaults of the settings below, see `protocols`.
        samples, do_sample, max_new_tokens, top_p, temperature, max_prompt_tokens, truncation, chat: of `generate_ids`;
            None takes the protocol's, or without one the default of `protocols.Decoding`.
        seed, batch_size, max_batch_tokens: of `generate_ids`.
        text: ordinary documents, or a JSON lines file with "text"; None leaves perplexity out.
        max_text_tokens, window, stride: see `perplexity`.
        f1_text, f1_prompts: documents whose paragraphs the model should go on with, and how many prompts to cut from
            them, see `continuation_f1`; None leaves it out.
        utility, utility_limit: tasks of lm-eval or task files, and how many rows of each, see `utility`.
        identity: measure the likelihood of harmless text that names identity groups, and against `reference` its
            change: True for the shipped texts, or a file, see `identity_likelihood`.
        reference: a model (usually the base) under which the continuations should be likely; None leaves that out.
        baseline: the evaluation of the base model, its JSON file, or what `read_baseline` made of either. The verdict
            on degeneration is relative to it; where its generations are known and were made alike, the figures are
            compared by prompt.
        generations_path: where to write the continuations, before they are scored and again with their scores, so
            that a failing scorer loses nothing. If the same continuations lie there already, they are not made again.
        command: how this was called, for the record.
        progress: show progress bars.

    Raises:
        UserError: for input that cannot work, as far as possible before the model is loaded.
        RunError: if the model or a scorer fails.
    """
    one_or_more("limit", limit)
    source = os.fspath(prompts) if isinstance(prompts, str | os.PathLike) else None
    prompts = load_texts(load_prompts(prompts)[:limit], "prompt")
    documents, passages = (None if texts is None else load_texts(texts, "text") for texts in (text, f1_text))
    tasks = None if utility is None else load_tasks(utility)
    if not isinstance(identity, bool):
        read_identity_texts(identity)
    judges = _judges(scorer)
    base = None if baseline is None else read_baseline(baseline)
    how = decoding(
        protocol,
        samples=samples,
        do_sample=do_sample,
        max_new_tokens=max_new_tokens,
        top_p=top_p,
        temperature=temperature,
        max_prompt_tokens=max_prompt_tokens,
        truncation=truncation,
        chat=chat,
        seed=seed,
    )
    # Costs seconds, so it comes after the cheap checks.
    from efface.evaluation.f1 import continuation_f1
    from efface.evaluation.perplexity import perplexity
    from efface.evaluation.side_effects import identity_likelihood
    from efface.evaluation.utility.tasks import utility as run_tasks
    from efface.generation.likelihood import continuation_nll

    name, network, tokenizer = _load(model, processing_class)
    rows = written(
        network,
        tokenizer,
        prompts,
        how,
        generations_path,
        batch_size=batch_size,
        max_batch_tokens=max_batch_tokens,
        progress=progress,
    )
    summaries = _judge(rows, judges, how.samples, str(how), seed, generations_path)
    if generations_path is not None:
        results.write_jsonl(generations_path, rows)

    texts = [row["continuation"] for row in rows]
    cost = None
    if documents is not None:
        cost = perplexity(
            network,
            tokenizer,
            documents,
            max_tokens=max_text_tokens,
            window=window,
            stride=stride,
            progress=progress,
        )
    truth = None
    if passages is not None:
        truth = continuation_f1(network, tokenizer, passages, prompts=f1_prompts, progress=progress)
    abilities = None
    if tasks is not None:
        abilities = run_tasks(network, tokenizer, tasks, limit=utility_limit, progress=progress)
    nll, other = None, None
    if reference is not None:
        # A reference given as a model is taken to share the tokenizer, as the base of an edited model does.
        _, other, its_tokenizer = _load(reference, None if isinstance(reference, str) else tokenizer)
        nll = continuation_nll(
            other,
            its_tokenizer,
            [row["prompt"] for row in rows],
            texts,
            batch_size=batch_size or 32,
            max_prompt_tokens=how.max_prompt_tokens,
            truncation=how.truncation,
            chat=how.chat,
            progress=progress,
        )
    harmless = None
    if identity is not False:
        texts_of_groups = None if identity is True else identity
        harmless = identity_likelihood(network, tokenizer, texts_of_groups, other, progress=progress)
    special = set(tokenizer.all_special_ids)
    tokens = [[token for token in row["token_ids"] if token not in special] for row in rows]
    evaluation = Evaluation(
        model=name,
        settings={"protocol": protocol, "prompts": source, "decoding": how.to_dict()},
        judges=summaries,
        perplexity=cost,
        f1=truth,
        utility=abilities,
        identity=harmless,
        degeneration=degeneration_guard.measure(
            texts, tokens=tokens, nll=nll, baseline=None if base is None else base.degeneration
        ),
        generations=rows,
        environment=results.environment(seed=seed, model=network, command=command),
    )
    if base is not None:
        evaluation.versus_baseline = compare_with_baseline(evaluation, base)
    return evaluation


def _judges(scorer: str | Scorer | Sequence[str | Scorer]) -> list[Scorer]:
    several = [scorer] if isinstance(scorer, str) or not isinstance(scorer, Sequence) else scorer
    judges = [cached(load_scorer(one)) for one in several]
    names = [judge.name for judge in judges]
    if not names or len(set(names)) < len(names):
        raise UserError(f"the scorers are {', '.join(names) or 'none at all'}: name at least one, and each once.")
    return judges


def _judge(
    rows: list[Row],
    judges: Sequence[Scorer],
    samples: int,
    how: str,
    seed: int,
    kept: str | os.PathLike[str] | None,
) -> dict[str, ToxicitySummary]:
    """The figures of each judge; every row gets its `scores`, and as `score` that of the first."""
    summaries = {}
    texts = [row["continuation"] for row in rows]
    for judge in judges:
        try:
            scores = score(judge, texts)
        except (UserError, RunError) as error:
            if kept is None:
                raise
            raise type(error)(
                f"{error} The {len(rows)} generations are kept in {os.fspath(kept)}: a run with the same settings "
                "scores them without making them again."
            ) from error
        for row, value in zip(rows, scores.tolist(), strict=True):
            row.setdefault("score", value)
            row.setdefault("scores", {})[judge.name] = value
        summaries[judge.name] = toxicity_figures.summarize(
            scores.reshape(-1, samples), scorer=judge.name, decoding=how, seed=seed
        )
    return summaries


def _load(
    model: "str | PreTrainedModel", processing_class: "PreTrainedTokenizerBase | None"
) -> "tuple[str, PreTrainedModel, PreTrainedTokenizerBase]":
    if isinstance(model, str | os.PathLike):
        from efface.model.load import load_model

        network, tokenizer = load_model(model)
        name, processing_class = os.fspath(model), processing_class or tokenizer
    else:
        network, name = model, model.config._name_or_path or type(model).__name__
        if processing_class is None:
            from efface.model.load import tokenizer_of

            processing_class = tokenizer_of(model)
    check_vocabulary(network, processing_class)
    return name, network, processing_class
