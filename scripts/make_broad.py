"""Make `shipped:broad` and `shipped:broad-heldout` from the embedded model: toxic pairs with many words, not three.

    python scripts/make_broad.py --toxic-text TEXTS.jsonl [TEXTS.tsv ...] [--work runs/broad]

Each file of labelled texts (what `efface.scoring.labelled` reads) only fine-tunes a throw-away copy of the model, that
then pushes the model (DExperts); no text of theirs is copied, and what shares six words in a row with one is dropped.
Everything that is written was sampled from the model: prompts (`broad_prompts.py`), several `rejected` from every copy
(`broad_texts.py`), several `chosen` with the same decoding, of which pairs are chosen (`broad_selection.py`). What is
done lies in the work folder, and the same command goes on from there.
"""

import argparse
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from broad_prompts import DECODING as PROMPT_DECODING
from broad_prompts import beginnings
from broad_selection import CAP, MOST_AUC, PERSON_CAP, RUN_CAP, choose, distinct_2, figures, nearest, spread
from broad_texts import (
    KEEP,
    Families,
    Filters,
    benign_candidates,
    labelled,
    lessons,
    toxic_candidates,
)

from efface.data.rows import load_texts, shipped
from efface.files.digests import digest
from efface.files.environment import environment
from efface.files.jsonl import Row, read_jsonl
from efface.files.part import PartFile
from efface.files.results import read_json, write_json, write_jsonl
from efface.generation.decoding import BFLOAT16
from efface.generation.generate import generate
from efface.generation.likelihood import continuation_nll
from efface.model.load import DEFAULT_MODEL, load_model
from efface.model.precision import is_fast_in_half, read_in
from efface.pairs.dexperts import dexperts_source
from efface.pairs.filters import newline_tokens
from efface.pairs.toxic_copy import antiexpert, in_context
from efface.scoring import DEFAULT_SCORER, load_scorer

SEED = 20261129
EXPERT: dict[str, Any] = {"steps": 24, "learning_rate": 1e-4, "batch_size": 12}
ALPHA, CONTEXTS = 1.1, 0.25
"""How far the model is pushed; share of the lessons behind an ordinary sentence (a prompt is the beginning of one)."""
DECODING = {"temperature": 0.7, "top_p": 1.0, "top_k": 40, "max_new_tokens": 20}
WARMER = 1.0
"""Half of the candidates for `chosen` are drawn so: what is pushed is less likely than what is not."""
SAMPLES = {"rejected": 1, "chosen": 2}
"""Of each copy; of the model, at either temperature."""
BATCH = 64
"""Prompts between two saves."""
OTHERS = ("train", "heldout", "prompts")
"""Shipped sets, like whose prompts none may begin."""

logger = logging.getLogger("make_broad")


class Workshop:
    """The model, the judge and the folder where the stages lie."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.model, self.tokenizer = load_model(DEFAULT_MODEL)
        self.scorer = load_scorer(DEFAULT_SCORER)
        self.without = newline_tokens(self.tokenizer)
        self.dtype = BFLOAT16 if is_fast_in_half() else None  # text is written in it

    def stage(
        self, name: str, items: Sequence[Any], settings: Row, work: Callable[[list[Any], int], list[Row]]
    ) -> list[Row]:
        """A row for each item, made in batches that are saved; what was made with these settings is only read."""
        settings = {**settings, "items": digest(list(items))}
        path = self.args.work / f"{name.replace(' ', '_')}-{digest(settings)}.jsonl"
        if path.exists():
            return read_jsonl(path)
        part = PartFile(path, settings, batch=BATCH, resume=True)
        for start in range(len(part.outcomes), len(items), BATCH):
            begun = time.perf_counter()
            rows = work(list(items[start : start + BATCH]), start)
            rows[0]["seconds"] = round(time.perf_counter() - begun, 2)  # of the whole batch
            part.append(rows)
            logger.info("%s: %d of %d, %.0f s", name, len(part.outcomes), len(items), rows[0]["seconds"])
        write_jsonl(path, part.outcomes)
        part.remove()
        return part.outcomes

    def toxic(self, kind: str, number: int, texts: list[str], prompts: list[str]) -> list[Row]:
        """What the model says when it is pushed toward the copy that has learned these texts."""
        seed = SEED + 1000 * number
        copies: list[tuple[Any, list[str]]] = []  # made when the first batch asks for it

        def work(batch: list[str], start: int) -> list[Row]:
            if not copies:
                taught = in_context(texts, load_texts("shipped:passages"), share=CONTEXTS, seed=seed)
                logger.info("%s: the copy learns %d texts", kind, len(taught))
                copies.append((antiexpert(self.model, self.tokenizer, taught, seed=seed, **EXPERT), taught))
            copy, taught = copies[0]
            source = dexperts_source(
                self.model, copy, self.tokenizer, alpha=ALPHA, samples=SAMPLES["rejected"], without=self.without,
                trained_on=taught, **DECODING,
            )  # fmt: skip
            with read_in(self.model, self.dtype), read_in(copy, self.dtype):
                return [{"texts": found} for found in source(batch, seed + start)]

        settings = {
            "seed": seed,
            "alpha": ALPHA,
            "dtype": self.dtype,
            "contexts": CONTEXTS,
            "expert": EXPERT,
            "decoding": DECODING,
            "samples": SAMPLES["rejected"],
        }
        return self.stage(f"toxic {kind}", prompts, settings | {"taught": digest(texts)}, work)

    def benign(self, prompts: list[str]) -> list[Row]:
        """Several `chosen` of each prompt, drawn as `rejected` is and warmer."""
        settings: dict[str, Any] = {**DECODING, "samples": SAMPLES["chosen"], "do_sample": True, "dtype": self.dtype}
        warmer = settings | {"temperature": WARMER}

        def work(batch: list[str], start: int) -> list[Row]:
            drawn = [
                generate(self.model, self.tokenizer, batch, seed=start + seed, without=self.without, **kind)
                for seed, kind in ((SEED - 1000, settings), (SEED - 2000, warmer))
            ]
            return [{"texts": [*one, *other]} for one, other in zip(*drawn, strict=True)]

        return self.stage("benign", prompts, settings | {"warmer": WARMER, "seed": SEED}, work)

    def perplexities(self, asked: list[tuple[str, str]]) -> list[float]:
        """Of each (prompt, continuation) under the untouched model."""

        def work(batch: list[tuple[str, str]], start: int) -> list[Row]:
            prompts, texts = ([pair[side] for pair in batch] for side in (0, 1))
            nll = continuation_nll(self.model, self.tokenizer, prompts, texts, batch_size=BATCH)
            return [{"perplexity": float(np.exp(total / max(tokens, 1)))} for total, tokens in nll]

        return [row["perplexity"] for row in self.stage("perplexity", asked, {}, work)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toxic-text", nargs="+", type=Path, required=True, help="labelled texts; one copy a file")
    parser.add_argument("--output", type=Path, default=Path("src/efface/data/shipped"))
    parser.add_argument("--work", type=Path, default=Path("runs/broad"), help="what is done on the way")
    parser.add_argument("--samples", type=int, default=PROMPT_DECODING["samples"], help="prompts of an opener to try")
    parser.add_argument("--limit", type=int, help="so many prompts only, for a try")
    parser.add_argument("--pairs", type=int, nargs=2, default=(480, 128), help="to train on, to hold out; at most")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.work.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    make(Workshop(args))
    logger.info("done in %.0f s", time.perf_counter() - begun)


def make(shop: Workshop) -> None:
    """Everything."""
    asked, dropped_prompts = _prompts(shop)
    prompts = [row["prompt"] for row in asked]
    texts = labelled(shop.args.toxic_text, shop.scorer)
    learned = Families(shop.scorer, [text for found in texts.values() for text in found])
    taught = lessons(texts, learned, EXPERT["steps"] * EXPERT["batch_size"], SEED)
    filters = Filters.of(shop.args.toxic_text, shop.scorer)

    dropped: dict[str, Counter[str]] = defaultdict(Counter)
    candidates: list[Row] = []
    seconds = 0.0
    for number, (kind, lesson) in enumerate(taught.items(), 1):
        rows = shop.toxic(kind, number, lesson, prompts)
        seconds += sum(row.get("seconds", 0) for row in rows)
        found = [
            (prompt, text) for prompt, row in zip(prompts, rows, strict=True) for text in dict.fromkeys(row["texts"])
        ]
        candidates += toxic_candidates(kind, found, shop.scorer, filters, dropped[kind])
        logger.info("%s: %s", kind, dict(dropped[kind]))
    rows = shop.benign(prompts)
    seconds += sum(row.get("seconds", 0) for row in rows)
    benign = benign_candidates(prompts, rows, shop.scorer, filters.names, dropped["chosen"])
    logger.info("chosen: %s", dict(dropped["chosen"]))
    candidates = [row for row in candidates if row["prompt"] in benign]

    everything = [*candidates, *(row for found in benign.values() for row in found)]
    for row, value in zip(
        everything, shop.perplexities([(row["prompt"], row["text"]) for row in everything]), strict=True
    ):
        row["perplexity"] = value
    scale = spread([row["text"] for row in everything])
    pairs = []
    for row in candidates:
        pair = nearest(row, benign[row["prompt"]], scale, KEEP["max_perplexity_ratio"])
        if row["perplexity"] > KEEP["max_perplexity"] or pair is None:
            dropped[row["kind"]]["not fluent"] += 1
        else:
            pairs.append(pair)
    write(shop, asked, pairs, {
        "prompts": {"asked": len(prompts), "dropped": dict(dropped_prompts)},
        "taught": {kind: len(lesson) for kind, lesson in taught.items()},
        "dropped": {kind: dict(sorted(counts.items())) for kind, counts in dropped.items()},
        "generation_minutes": round(seconds / 60, 1),
    })  # fmt: skip


def _prompts(shop: Workshop) -> tuple[list[Row], Counter[str]]:
    path = shop.args.work / f"prompts-{SEED}-{shop.args.samples}.json"
    if not path.exists():
        others = [row["prompt"] for name in OTHERS for row in read_jsonl(shipped(name))]
        made = beginnings(shop.model, shop.tokenizer, shop.scorer, others, samples=shop.args.samples, seed=SEED)
        write_json(path, {"prompts": made.prompts, "dropped": dict(made.dropped)})
    found = read_json(path)
    logger.info("prompts: %d; dropped: %s", len(found["prompts"]), found["dropped"])
    return found["prompts"][: shop.args.limit], Counter(found["dropped"])


def write(shop: Workshop, asked: list[Row], pairs: list[Row], more: Row) -> None:
    """Both files and what is to be said of them beside the shipped training pairs."""
    settings = {
        "model": DEFAULT_MODEL, "scorer": shop.scorer.name, "source": "dexperts", "alpha": ALPHA, "contexts": CONTEXTS,
        "antiexpert": EXPERT,
        "decoding": DECODING, "warmer": WARMER, "samples": SAMPLES, "dtype": shop.dtype,
        "prompt_decoding": PROMPT_DECODING, "keep": KEEP,
        "most": {"a_word": CAP, "three_words": RUN_CAP, "a_person_alone": PERSON_CAP, "style_auc": MOST_AUC},
    }  # fmt: skip
    marks = {"source": "dexperts", "settings": digest(settings)}
    origin = {row["prompt"]: row for row in asked}
    old = read_jsonl(shipped("train"))
    families = Families(shop.scorer, [row["rejected"] for row in (*old, *pairs)])
    parts, selection = {}, {}
    for name, part, wanted in zip(("broad", "broad-heldout"), ("train", "heldout"), shop.args.pairs, strict=True):
        made = choose([pair for pair in pairs if origin[pair["prompt"]]["part"] == part], families, wanted)
        parts[name] = [{**row, "register": origin[row["prompt"]]["register"], "how": marks} for row in made.rows]
        for row in parts[name]:
            del row["distance"]
        selection[name] = {"banned_for_style": made.banned, "style_auc_before": made.first_auc}
        write_jsonl(shop.args.output / f"{name}.jsonl", parts[name])
    common = [word for word, _ in Counter(f for row in old for f in families(row["rejected"])).most_common(3)]
    sets = {"train": old, **parts}
    equal = min(map(len, sets.values()))
    meta = {
        "schema": 1,
        "script": "scripts/make_broad.py",
        "seed": SEED,
        "settings": settings,
        **more,
        "pairs_that_passed": len(pairs),
        "selection": selection,
        "sets": {
            name: figures(rows, families, common)
            | {"distinct_2": {side: distinct_2(rows, side, equal) for side in ("chosen", "rejected")}}
            for name, rows in sets.items()
        },
        "distinct_2_of": equal,
        "environment": environment(
            seed=SEED, model=shop.model, command="python scripts/make_broad.py --toxic-text ..."
        ),
    }
    write_json(shop.args.output / "broad_meta.json", meta)
    for name in sets:
        logger.info("%s: %s", name, {key: value for key, value in meta["sets"][name].items() if key != "shortcuts"})


if __name__ == "__main__":
    main()
