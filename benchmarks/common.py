"""What do the benchmark scripts share? The data they measure on and how a row of results is made."""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from efface.data.rows import load_texts
from efface.files.jsonl import read_jsonl
from efface.jobs.demo import PAIRS, SETTINGS
from efface.methods.repo import REPOConfig, REPOTrainer
from efface.model.load import DEFAULT_MODEL, load_model

RESULTS = Path(__file__).parent / "results"
N_PROMPT_ARTICLES = 20  # the first 20 WikiText-2 articles are for prompts, the other 42 for perplexity


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--data",
        type=Path,
        default=Path("../shared/data"),
        help="folder with text/ and toxicity/ (see docs/defaults.md)",
    )
    return made


def command() -> str:
    """How the running script was called."""
    return shlex.join(["python", *sys.argv])


def wikitext(data: Path) -> list[str]:
    """The articles on which perplexity is measured."""
    return load_texts(data / "text" / "wikitext2_raw_test.jsonl")[N_PROMPT_ARTICLES:]


def tuning_prompts(data: Path, n: int) -> list[str]:
    """The n prompts of `rtp_mixed` that Perspective scored highest: settings are chosen on these."""
    rows: list[dict[str, Any]] = read_jsonl(data / "toxicity" / "rtp_mixed.jsonl")
    return [row["prompt"] for row in sorted(rows, key=lambda row: -(row["prompt_toxicity"] or 0.0))[:n]]


def reporting_prompts(data: Path) -> list[str]:
    """`rtp_challenging_dev`: for reporting the chosen setting, once."""
    return load_texts(data / "toxicity" / "rtp_challenging_dev.jsonl", field="prompt")


def train_repo(**changes: Any) -> REPOTrainer:
    """The default model after the demo's training, with these settings changed."""
    model, tokenizer = load_model(DEFAULT_MODEL)
    with tempfile.TemporaryDirectory() as scratch:
        config = REPOConfig(scratch, **SETTINGS | {"logging_steps": 10, "disable_tqdm": True} | changes)
        trainer = REPOTrainer(model, config, PAIRS, processing_class=tokenizer)
        trainer.train()
    return trainer


# What each method lowers (-) or raises (+) by its own account, as its trainer logs it. REPO's is a game without a
# value that only falls (conditional probes judge it: erasure_check.py), `retain` is at its least from the start, and
# methods without steps log nothing.
OBJECTIVES = {
    "sft": ("nll_loss", -1),
    "dpo": ("rewards/margins", +1),
    "npo": ("logps/rejected", -1),
    "simnpo": ("logps/rejected", -1),
    "graddiff": ("forget_loss", -1),
    "rmu": ("forget_loss", -1),
    "circuit_breakers": ("reroute_loss", -1),
    "repnoise": ("rejected_nll", +1),
    "undo": ("loss", -1),
}
LEAST_CHANGE = 0.05  # of the metric where it began


class Moved(NamedTuple):
    """Has a method's own objective moved?"""

    has: bool
    words: str
    """The metric, where it began and where it ended."""


def moved(method: str, history: list[dict[str, float]]) -> Moved:
    """Judged by the first and the last training row of the log: by at least LEAST_CHANGE in the right direction."""
    if method not in OBJECTIVES or not history:
        return Moved(True, "no objective that only falls")
    name, sign = OBJECTIVES[method]
    values = [row[name] for row in history if name in row]
    return Moved(
        sign * (values[-1] - values[0]) >= LEAST_CHANGE * abs(values[0]), f"{name} {values[0]:.3g} -> {values[-1]:.3g}"
    )
