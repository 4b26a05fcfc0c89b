"""How does lm-evaluation-harness run on a model in memory, and leave the process as it was?

`lm_eval.evaluate` is called, not `simple_evaluate`: the latter adds nothing to the scores, but seeds the process and
asks git, pip and the hub about the environment.
"""

import contextlib
import copy
import difflib
import logging
import math
import os
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.errors import RunError, UserError, reason_of
from efface.evaluation.utility.task_files import TaskFile
from efface.terminal.progress import shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Of the standard errors that have no formula, those of figures such as perplexity or F1.
RESAMPLES = 1000


def run_harness(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    tasks: Sequence[str | TaskFile],
    *,
    limit: int | None,
    batch_size: int,
    seed: int,
    progress: bool,
) -> dict[str, Any]:
    """What `lm_eval.evaluate` returns: `results` and `samples` by task."""
    from efface.model.copies import eval_mode

    with eval_mode(model), _contain(seed, progress=progress):
        import lm_eval

        loaded = _load(tasks, seed)
        lm = _in_memory(model, processing_class, batch_size, progress=progress)
        try:
            return lm_eval.evaluate(lm, loaded, limit=limit, bootstrap_iters=RESAMPLES)
        except UserError:
            raise
        except ValueError as error:  # tasks that run generated code, or need images
            raise UserError(f"lm-eval refuses these tasks: {error}") from error


@contextlib.contextmanager
def _contain(seed: int, *, progress: bool) -> Iterator[None]:
    """Keep to itself what lm-eval does to its process: printing, logging, random states, a pool of processes."""
    import torch

    from efface.model.devices import keep_random_state

    states = random.getstate(), np.random.get_state()
    theirs, variable = logging.getLogger("lm_eval"), "DISABLE_MULTIPROC"
    level, multiprocessing = theirs.level, os.environ.get(variable)
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        if not (progress and shown()):  # lm-eval draws its bars on standard error, asked or not
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        stack.enter_context(keep_random_state())
        try:
            theirs.setLevel(logging.ERROR)
            os.environ[variable] = "1"
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            theirs.setLevel(level)
            os.environ.pop(variable)
            if multiprocessing is not None:
                os.environ[variable] = multiprocessing


def _load(chosen: Sequence[str | TaskFile], seed: int) -> dict[str, Any]:
    """What `lm_eval.evaluate` takes: tasks and groups by name, with their data."""
    from lm_eval.tasks import TaskManager

    # Reading the list of lm-eval's own tasks takes seconds.
    manager = TaskManager(include_defaults=any(isinstance(task, str) for task in chosen))
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for task in chosen:
        found = _own_task(manager, task) if isinstance(task, str) else manager.load(_multiple_choice(task))
        for part, items in loaded.items():
            items.update(found[part])
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed)
    return loaded


def _own_task(manager: Any, name: str) -> dict[str, Any]:
    if name not in manager.all_tasks:
        close = difflib.get_close_matches(name, manager.all_tasks)
        hint = f"Did you mean {', '.join(close)}?" if close else "`lm-eval ls tasks` lists them."
        raise UserError(f"task {name!r} is neither a file nor one of lm-eval's tasks. {hint}")
    try:
        return manager.load(name)
    except Exception as error:  # the hub client raises a dozen unrelated types; all mean that there is no data
        raise UserError(
            f"task {name!r}: lm-eval could not load its data ({reason_of(error)}). Check the network, or pass rows of "
            "your own as a file of JSON lines."
        ) from error


def _multiple_choice(task: TaskFile) -> Any:
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    return ConfigurableTask(
        config={
            "task": task.name,
            "output_type": "multiple_choice",
            # From memory: nothing is looked for on the hub or left in a cache.
            "custom_dataset": lambda: {"test": Dataset.from_list(task.rows)},
            "test_split": "test",
            "doc_to_text": lambda row: task.context(row["query"]),
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "target_delimiter": "",
            "metric_list": [
                {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
            ],
        }
    )


def _in_memory(
    model: "PreTrainedModel", processing_class: "PreTrainedTokenizerBase", batch_size: int, *, progress: bool
) -> Any:
    from lm_eval.models.huggingface import HFLM

    from efface.generation.likelihood import MAX_LOGITS
    from efface.generation.processes import shared
    from efface.model.padding import batches_by_length

    budget = MAX_LOGITS // model.config.get_text_config(decoder=True).vocab_size  # tokens

    class InMemory(HFLM):
        """HFLM in batches that a limit on their logits keeps small, whose answers must be finite."""

        def _loglikelihood_tokens(self, requests: list[Any], *_: Any, **__: Any) -> list[tuple[float, bool]]:
            """(log p of a continuation given its context, whether it is the greedy one) of each request."""
            tokens = [context + continuation for _, context, continuation in requests]
            longest = max(map(len, tokens), default=0)
            if longest > self.max_length + 1:
                logger.warning(
                    "prompts of up to %d tokens are cut on the left: the model has %d positions",
                    longest,
                    self.max_length,
                )
            # As HFLM sorts: continuations of one token that share their context are neighbours and cost one forward.
            order = sorted(range(len(tokens)), key=tokens.__getitem__)
            batches = batches_by_length(order, lambda i: len(tokens[i]), batch_size, max_tokens=budget)
            ask = super()._loglikelihood_tokens

            def of_batch(batch: list[int]) -> list[tuple[float, bool]]:
                found: list[tuple[float, bool]] = ask([requests[i] for i in batch], disable_tqdm=True)
                if not all(math.isfinite(value) for value, _ in found):
                    raise RunError("the model's output is not finite (NaN or infinite logits): it cannot be scored.")
                return [(float(value), bool(greedy)) for value, greedy in found]

            answers = shared(batches, of_batch, "utility", of=lambda: tokens, show=progress)
            return [(answers[i][0], answers[i][1]) for i in range(len(requests))]

    # A copy, since HFLM gives a tokenizer without a pad token one.
    return InMemory(pretrained=model, tokenizer=copy.deepcopy(processing_class), batch_size=batch_size)
