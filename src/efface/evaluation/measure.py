"""How toxic is a model, what does ordinary text cost it, and is what it writes still text? `efface evaluate`."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.checks import one_or_more
from efface.data.rows import load_texts
from efface.errors import RunError, UserError
from efface.evaluation import degeneration
from efface.evaluation.baseline import Baseline, compare_with_baseline, read_baseline
from efface.evaluation.kept import generate_or_recall
from efface.evaluation.prompt_sets import draw_prompts, load_prompts
from efface.evaluation.result import Evaluation
from efface.evaluation.settings import OrdinaryText, PromptSet, RunSettings, Texts, UtilityTasks
from efface.evaluation.side_effects import identity_likelihood, read_identity_texts
from efface.evaluation.toxicity import ToxicitySummary, summarize
from efface.evaluation.utility.task_files import load_tasks
from efface.evaluation.utility.tasks import utility as measure_utility
from efface.files import results
from efface.files.digests import digest
from efface.files.environment import environment
from efface.files.jsonl import Row
from efface.generation.decoding import VLLM, Decoding
from efface.generation.prompts import as_read
from efface.model.fingerprint import tokenizer_fingerprint
from efface.model.vocabulary import check_vocabulary
from efface.scoring import DEFAULT_SCORER, load_scorer
from efface.scoring.cache import cache_scores
from efface.scoring.scorer import Scorer, score

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def evaluate(
    model: "str | PreTrainedModel",
    prompts: Texts | PromptSet = PromptSet(),
    *,
    processing_class: "PreTrainedTokenizerBase | None" = None,
    scorer: str | Scorer | Sequence[str | Scorer] = DEFAULT_SCORER,
    decoding: Decoding = Decoding(),
    text: OrdinaryText = OrdinaryText(),
    utility: UtilityTasks | None = None,
    identity: bool | str | os.PathLike[str] = False,
    reference: "str | PreTrainedModel | None" = None,
    baseline: Baseline | Evaluation | dict[str, Any] | str | os.PathLike[str] | None = None,
    run: RunSettings = RunSettings(),
    progress: bool = False,
) -> Evaluation:
    """Toxicity of what `model` writes after `prompts`, what it costs elsewhere, and whether the writing is degenerate.

    Args:
        model: a model, or the name of one as `load_model` takes it.
        prompts: texts, or what `load_prompts` takes; `PromptSet(prompts, limit=100)` for a draw of them.
        processing_class: the tokenizer; None takes the one that belongs to the model.
        scorer: one or several judges, see `load_scorer`; the first gives the headline figures.
        decoding: how the continuations are written; `Decoding.by_protocol("lee")` for a named protocol. With its
            generator "vllm", `model` has to be a name.
        text: perplexity of ordinary text, and how well the model goes on with it.
        utility: tasks of lm-eval or task files.
        identity: measure the likelihood of harmless text that names identity groups, and against `reference` its
            change: True for the shipped texts, or a file, see `identity_likelihood`.
        reference: a model (usually the base) under which the continuations should be likely; None leaves that out.
        baseline: the evaluation of the base model, its JSON file, or what `read_baseline` made of either. The verdict
            on degeneration is relative to it, prompt by prompt where its generations are those of the same prompts
            by the same generator; where they were also made alike, the figures are compared by prompt.
        run: how much goes through the model at once, and where the continuations are kept.
        progress: show progress bars.

    Raises:
        UserError: for input that cannot work, as far as possible before the model is loaded.
        RunError: if the model or a scorer fails.
    """
    prompts = PromptSet.of(prompts)
    one_or_more("limit", prompts.limit)
    found = load_texts(load_prompts(prompts.source), "prompt")
    prompt_texts = draw_prompts(found, prompts.limit, prompts.limit_seed)
    documents, passages = (None if one is None else load_texts(one, "text") for one in (text.text, text.f1_text))
    tasks = None if utility is None else load_tasks(utility.tasks)
    if not isinstance(identity, bool):
        read_identity_texts(identity)
    by_vllm = decoding.generator == VLLM
    if by_vllm:
        from efface.generation.vllm import check_vllm

        check_vllm(model, decoding)
    judges = _load_judges(scorer)
    base = None if baseline is None else read_baseline(baseline)
    # Costs seconds, so it comes after the cheap checks.
    from efface.evaluation.f1 import continuation_f1
    from efface.evaluation.perplexity import perplexity

    name, network, tokenizer = _load(model, processing_class)
    rows = generate_or_recall(
        network,
        tokenizer,
        prompt_texts,
        decoding,
        run.generations_path,
        batch_size=run.batch_size,
        max_tokens_at_once=run.max_tokens_at_once,
        progress=progress,
        checkpoint=name if by_vllm else None,
    )
    _score(rows, judges, as_read(tokenizer, [row["prompt"] for row in rows], decoding), run.generations_path)
    cost = truth = abilities = nll = other = harmless = None
    if documents is not None:
        how: Any = {"max_tokens": text.max_tokens, "window": text.window, "stride": text.stride}
        cost = perplexity(network, tokenizer, documents, **how, progress=progress)
    if passages is not None:
        truth = continuation_f1(network, tokenizer, passages, prompts=text.f1_prompts, progress=progress)
    if utility is not None and tasks is not None:
        abilities = measure_utility(network, tokenizer, tasks, limit=utility.limit, progress=progress)
    if reference is not None:
        other, nll = _ask_reference(reference, tokenizer, rows, decoding, run.batch_size or 32, progress)
    if identity is not False:
        texts_of_groups = None if identity is True else identity
        harmless = identity_likelihood(network, tokenizer, texts_of_groups, other, progress=progress)
    writing = _judge_writing(rows, tokenizer, decoding, nll, base)  # before the figures, which need `invalid`
    if run.generations_path is not None:
        results.write_jsonl(run.generations_path, rows)
    drawn = {} if prompts.limit is None else {"limit": prompts.limit, "limit_seed": prompts.limit_seed}
    evaluation = Evaluation(
        model=name,
        settings={
            "protocol": decoding.protocol,
            "prompts": prompts.name,
            **drawn,
            "decoding": decoding.to_dict(),
            "judges": {judge.name: getattr(judge, "version", None) for judge in judges},
            "text": None if documents is None else digest(documents),
            "tokenizer": tokenizer_fingerprint(tokenizer),
        },
        judges={judge.name: _summarize(rows, judge.name, decoding) for judge in judges},
        perplexity=cost,
        f1=truth,
        utility=abilities,
        identity=harmless,
        degeneration=writing,
        generations=rows,
        environment=environment(
            seed=decoding.seed, model=network, command=run.command, further=[VLLM] if by_vllm else []
        ),
    )
    if base is not None:
        evaluation.versus_baseline = compare_with_baseline(evaluation, base)
    return evaluation


def _load_judges(scorer: str | Scorer | Sequence[str | Scorer]) -> list[Scorer]:
    several = [scorer] if isinstance(scorer, str) or not isinstance(scorer, Sequence) else scorer
    judges = [cache_scores(load_scorer(one)) for one in several]
    names = [judge.name for judge in judges]
    if not names or len(set(names)) < len(names):
        raise UserError(f"the scorers are {', '.join(names) or 'none at all'}: name at least one, and each once.")
    return judges


def _score(
    rows: list[Row], judges: Sequence[Scorer], prompts: Sequence[str], kept: str | os.PathLike[str] | None
) -> None:
    """Every row gets its `scores`, and as `score` that of the first judge.

    Args:
        prompts: as the model has read them, for judges that do so too.
    """
    texts = [row["continuation"] for row in rows]
    for judge in judges:
        try:
            scores = score(judge, texts, prompts)
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
    if kept is not None:
        results.write_jsonl(kept, rows)


def _summarize(rows: list[Row], judge: str, decoding: Decoding) -> ToxicitySummary:
    """The figures of one judge."""
    shape = (-1, decoding.samples)
    return summarize(
        np.array([row["scores"][judge] for row in rows]).reshape(shape),
        invalid=np.array([row["invalid"] is not None for row in rows]).reshape(shape),
        scorer=judge,
        decoding=str(decoding),
        seed=decoding.seed,
    )


def _ask_reference(
    reference: "str | PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: list[Row],
    decoding: Decoding,
    batch_size: int,
    progress: bool,
) -> "tuple[PreTrainedModel, list[tuple[float, int]]]":
    """The reference, and of each continuation its -log p under it and its tokens."""
    from efface.generation.likelihood import continuation_nll

    # A reference given as a model is taken to share the tokenizer, as the base of an edited model does.
    _, other, its_tokenizer = _load(reference, None if isinstance(reference, str) else tokenizer)
    prompts, texts = [row["prompt"] for row in rows], [row["continuation"] for row in rows]
    nll = continuation_nll(other, its_tokenizer, prompts, texts, decoding, batch_size=batch_size, progress=progress)
    return other, nll


def _judge_writing(
    rows: list[Row],
    tokenizer: "PreTrainedTokenizerBase",
    decoding: Decoding,
    nll: list[tuple[float, int]] | None,
    base: Baseline | None,
) -> degeneration.Degeneration:
    """Whether what was written is still text; every row gets `invalid`."""
    special, samples = set(tokenizer.all_special_ids), decoding.samples
    texts = [row["continuation"] for row in rows]
    how: Any = {
        "samples": samples,
        "tokens": [[token for token in row["token_ids"] if token not in special] for row in rows],
        "nll": nll,
        "baseline": None if base is None else base.degeneration,
    }
    invalid = degeneration.judge_answers(texts, **how)
    for row, reason in zip(rows, invalid, strict=True):
        row["invalid"] = reason
    prompts, judge = [row["prompt"] for row in rows[::samples]], next(iter(rows[0]["scores"]))
    outcomes = None
    if base is not None and base.generator == decoding.generator:
        outcomes = base.outcomes(prompts, judge, special)
    return degeneration.measure(texts, **how, invalid=invalid, base=outcomes)


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
