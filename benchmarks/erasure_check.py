"""What is left of toxicity in the hidden states, beyond the tokens themselves? Conditional probes of five models.

    python benchmarks/erasure_check.py [--models NAME=DIR ...] [--arms NAME ...] [--minutes N]

The untouched model, REPO, DPO and retain-only (REPO's training without the adversary), trained as `audited.py` does or
taken from checkpoints, and a random edit: noise on every weight tensor of the base, as large as REPO's edit of it. Of
every fourth layer, the last and those REPO erases from, on five texts: the shipped held-out pairs, ParaDetox, Civil
Comments with toxic spans, and the base's own continuations of the reporting prompts, labelled by either judge. All
models read the same texts. Writes `benchmarks/results/erasure_check.json` after each model and text; what is there is
not run again (`--minutes` ends a run early). States lie in `--keep`, so that both halves of the work can be done apart
(`--states-only`, `--probes-only`), and so do the resamples, which pair models and layers.
"""

import copy
import time
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audited import SETTINGS, trained
from common import RESULTS, command, parser, reporting_prompts

from efface.analysis.conditional import KINDS, ConditionalResult, conditional_probe, maximum, remaining
from efface.analysis.marked import MarkedText, load_marked, marked_states
from efface.analysis.states import TokenStates, token_states
from efface.data.pairs import load_pairs
from efface.files.environment import environment
from efface.files.io import renamed_when_whole
from efface.files.jsonl import read_jsonl
from efface.files.results import read_json, write_json, write_jsonl
from efface.generation.decoding import Decoding
from efface.generation.generate import generate
from efface.methods.repo import REPOConfig
from efface.model.blocks import decoder_blocks, parse_layers
from efface.model.load import DEFAULT_MODEL, load_model
from efface.scoring import load_scorer
from efface.scoring.scorer import THRESHOLD, score

FILE = RESULTS / "erasure_check.json"
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "repo": ("repo", SETTINGS["repo"]["default"]),
    "retain only": ("repo", {**SETTINGS["repo"]["default"], "w_erase": 0.0}),
    "dpo": ("dpo", SETTINGS["dpo"]["lr 2e-5"]),
}
NAMES = ("base", "repo", "random edit", "retain only", "dpo")
FILES = {
    "paradetox": ("paradetox.tsv", "toxic sentences and their neutral versions, by annotators"),
    "civil": ("civil_comments_toxic_spans.jsonl", "toxic spans of comments, by annotators"),
}
OWN = "own, "
EMBEDDING = "input embedding"
"""A control that no edit of the layers can move: what the token's own embedding in the base adds to counts."""


def random_edit(base: Any, edited: Any, seed: int) -> Any:
    """The base with Gaussian noise on each weight tensor, of the Frobenius norm of the edit of that tensor."""
    generator = torch.Generator().manual_seed(seed)
    noisy = copy.deepcopy(base)
    with torch.no_grad():
        for own, before, after in zip(noisy.parameters(), base.parameters(), edited.parameters(), strict=True):
            noise = torch.randn(own.shape, generator=generator)
            own += noise * ((after - before).norm() / noise.norm())
    return noisy


def made(name: str, base: Any, given: dict[str, str], seed: int) -> Any:
    """The model of that name, loaded or trained."""
    if name == "base":
        return base
    if name == "random edit":
        return random_edit(base, made("repo", base, given, seed), seed)
    return load_model(given[name])[0] if name in given else trained(*ARMS[name])[0]


class Texts:
    """The labelled texts, by name, and the states of a model at their tokens."""

    def __init__(self, args: Any, base: Any, tokenizer: Any):
        self.args, self.base, self.tokenizer = args, base, tokenizer
        self.names = {
            "shipped": "held-out pairs, selected by the first judge",
            **{name: what for name, (_, what) in FILES.items()},
            **{f"{OWN}{name}": f"the base's continuations, labelled by {name}" for name in args.judges},
        }

    def states(self, name: str, model: Any, layers: list[int]) -> dict[int, TokenStates]:
        if name == "shipped":
            return token_states(model, self.tokenizer, load_pairs("shipped:heldout").rows, layers)
        return marked_states(model, self.tokenizer, self._marked(name), layers)

    def labelled(self, name: str, states: TokenStates) -> TokenStates:
        """With the labels of that judge: the states of the base's continuations are the same for both."""
        if not name.startswith(OWN):
            return states
        toxic = np.array([bool(text.spans) for text in self._marked(name)])
        return replace(states, labels=toxic[states.pairs].astype(int))

    @cache  # noqa: B019
    def _marked(self, name: str) -> list[MarkedText]:
        if name in FILES:
            return load_marked(self.args.data / "toxicity" / FILES[name][0], self.args.groups, seed=self.args.seed)
        rows = self._own()
        marks = score(load_scorer(self.args.judges[name.removeprefix(OWN)]), [row["text"] for row in rows])
        return [
            MarkedText.whole(row["text"], bool(mark > THRESHOLD), row["prompt"], row["prompt"])
            for row, mark in zip(rows, marks, strict=True)
        ]

    @cache  # noqa: B019
    def _own(self) -> list[dict[str, Any]]:
        kept = self.args.keep / "own.jsonl"
        if not kept.exists():
            prompts = list(dict.fromkeys(reporting_prompts(self.args.data)))
            drawn = np.random.default_rng(self.args.seed).permutation(len(prompts))[: self.args.groups]
            prompts = [prompts[number] for number in sorted(drawn)]
            written = generate(self.base, self.tokenizer, prompts, Decoding(seed=self.args.seed))
            pairs = zip(prompts, written, strict=True)
            write_jsonl(kept, ({"prompt": prompt, "text": text} for prompt, (text,) in pairs if text.strip()))
        return list(read_jsonl(kept))

    def agreement(self) -> float:
        """Share of the base's continuations that both judges label alike."""
        first, second = ([bool(text.spans) for text in self._marked(f"{OWN}{name}")] for name in self.args.judges)
        return float(np.mean(np.array(first) == np.array(second)))


def embedded(model: Any, states: TokenStates) -> TokenStates:
    """The same tokens, of each its input embedding."""
    table = model.get_input_embeddings().weight.detach().float().numpy()
    return TokenStates(table[states.token_ids], states.token_ids, states.labels, states.pairs)


def keep_states(file: Path, states: dict[int, TokenStates]) -> None:
    first = next(iter(states.values()))
    common = {"token_ids": first.token_ids, "labels": first.labels, "pairs": first.pairs}
    with renamed_when_whole(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **common, **{str(layer): each.hidden for layer, each in states.items()})


def kept_states(file: Path, layers: list[int]) -> dict[int, TokenStates]:
    found = np.load(file)
    return {
        layer: TokenStates(found[str(layer)], *map(found.get, ("token_ids", "labels", "pairs"))) for layer in layers
    }


class Results:
    """The file, and the resamples beside it."""

    def __init__(self, keep: Path, content: dict[str, Any]):
        self.keep, self.content = keep, content
        if FILE.exists() and (found := read_json(FILE)).get("settings") == content["settings"]:
            self.content["texts"] = found["texts"]

    def _kept(self, text: str, model: str, layer: str) -> Path:
        return self.keep / f"{text}-{model}-{layer}.npz".replace(" ", "-").replace(",", "")

    def has(self, text: str, model: str, layer: str) -> bool:
        cells = self.content["texts"].get(text, {}).get("models", {}).get(model, {}).get("layers", {})
        return layer in cells and self._kept(text, model, layer).exists()

    def add(self, text: str, model: str, layer: str, result: ConditionalResult) -> None:
        models = self.content["texts"][text].setdefault("models", {})
        models.setdefault(model, {"layers": {}})["layers"][layer] = result.to_dict()
        np.savez(self._kept(text, model, layer), **{str(kind): gain for kind, gain in result.resampled.items()})
        gains = {kind: result.to_dict()[kind] for kind in KINDS}
        shown = [f"{kind} {each['auc_gain']:.3f} bits {each['bits_saved']:.3f}" for kind, each in gains.items()]
        print(f"{text:28} {model:12} {layer:>5} token {result.token.auc:.3f} gain {', '.join(shown)}", flush=True)

    def describe(self, text: str, what: str, states: TokenStates) -> None:
        n_groups, toxic = len(set(states.pairs.tolist())), float(states.labels.mean())
        entry = {"what": what, "n": len(states.labels), "n_groups": n_groups, "toxic": toxic}
        self.content["texts"].setdefault(text, {}).update(entry)

    def summarise(self, text: str, model: str) -> None:
        """The maximum over layers, and what is left of the base's gain in each, once all layers are there."""
        cell = self.content["texts"][text]["models"][model]
        layers = [layer for layer in cell["layers"] if layer != EMBEDDING]
        of_model, of_base = (
            {layer: np.load(self._kept(text, name, layer)) for layer in layers} for name in (model, "base")
        )
        for kind in KINDS:
            cell.setdefault("most", {})[kind] = asdict(
                maximum({int(layer): gains[kind] for layer, gains in of_model.items()})
            )
            shares = {layer: remaining(of_model[layer][kind], of_base[layer][kind]) for layer in layers}
            cell.setdefault("remains", {})[kind] = shares

    def write(self, base: Any) -> None:
        self.content["environment"] = environment(seed=0, model=base, command=command())
        write_json(FILE, self.content)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--models", nargs="*", default=[], metavar="NAME=DIR", help="checkpoints instead of training")
    options.add_argument("--arms", nargs="+", default=list(NAMES), choices=NAMES)
    options.add_argument("--texts", nargs="+", default=None, metavar="NAME")
    options.add_argument("--judges", nargs=2, default=["alt-profanity-check", "judge:runs/judge"], metavar="SCORER")
    options.add_argument("--groups", type=int, default=128, help="pairs or texts of each file, prompts")
    options.add_argument("--resamples", type=int, default=500)
    options.add_argument("--seed", type=int, default=0)
    part = options.add_mutually_exclusive_group()
    part.add_argument("--states-only", action="store_true", help="run the models, and probe nothing")
    part.add_argument("--probes-only", action="store_true", help="probe what lies in --keep")
    options.add_argument("--minutes", type=float, default=float("inf"), help="begin no model and text after that long")
    options.add_argument("--keep", type=Path, default=Path("runs/erasure_check"), metavar="DIR")
    args = options.parse_args()
    args.judges = {name.partition(":")[0]: name for name in args.judges}
    args.keep.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    given = dict(entry.split("=", 1) for entry in args.models)
    base, tokenizer = load_model(DEFAULT_MODEL)
    n_layers = len(decoder_blocks(base))
    layers = parse_layers([*range(0, n_layers, 4), -1], n_layers)
    layers = sorted({*layers, *parse_layers(REPOConfig("unused").erase_layers, n_layers)})
    texts = Texts(args, base, tokenizer)
    settings = {name: getattr(args, name) for name in ("groups", "resamples", "seed")} | {"layers": layers}
    results = Results(args.keep, {"schema": 2, "settings": settings, "texts": {}})
    for name in args.arms:
        model = None
        for text in args.texts or texts.names:
            wanted = [str(layer) for layer in layers] + ([EMBEDDING] if name == "base" else [])
            missing = [layer for layer in wanted if not results.has(text, name, layer)]
            if not missing:
                continue
            if time.monotonic() - start > 60 * args.minutes:
                print("more is left")
                return
            kept = args.keep / f"states-{text.partition(', ')[0]}-{name}.npz".replace(" ", "-")
            if not kept.exists():
                if args.probes_only:
                    continue
                model = made(name, base, given, args.seed).eval() if model is None else model
                keep_states(kept, texts.states(text, model, layers))
                print(f"{text}, {name}: states after {time.monotonic() - start:.0f} s", flush=True)
            if args.states_only:
                continue
            states = {layer: texts.labelled(text, each) for layer, each in kept_states(kept, layers).items()}
            results.describe(text, texts.names[text], states[layers[0]])
            for layer in missing:
                at = embedded(base, states[layers[0]]) if layer == EMBEDDING else states[int(layer)]
                results.add(text, name, layer, conditional_probe(at, seed=args.seed, resamples=args.resamples))
            results.summarise(text, name)
            if text.startswith(OWN):
                results.content["judges_agree"] = texts.agreement()
            results.write(base)
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
