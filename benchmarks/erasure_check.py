"""Is toxicity erased from the hidden states? A fresh linear probe on held-out pairs, against its controls.

    python benchmarks/erasure_check.py [--models NAME=DIR ...]

Trains REPO as `make demo` does, and retain-only, on the shipped pairs (or takes checkpoints), probes the untouched
model and both at the trained layer on the shipped held-out pairs, and writes `benchmarks/results/erasure_check.json`.
"""

from dataclasses import asdict
from typing import Any

from common import RESULTS, command, parser, train_repo

from efface.analysis.probes import fresh_probe
from efface.analysis.states import token_states
from efface.data.pairs import load_pairs
from efface.files.results import environment, write_json
from efface.methods.repo import REPOConfig
from efface.model.blocks import decoder_blocks, parse_layers
from efface.model.load import DEFAULT_MODEL, load_model

ARMS: dict[str, dict[str, Any] | None] = {"base": None, "repo": {}, "retain only": {"w_erase": 0.0}}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--models", nargs="*", default=[], metavar="NAME=DIR", help="checkpoints instead of training")
    options.add_argument("--layers", default=None, help="probe these (default: those REPO erases from)")
    args = options.parse_args()
    given = dict(entry.split("=", 1) for entry in args.models)
    rows = load_pairs("shipped:heldout").rows
    base, tokenizer = load_model(DEFAULT_MODEL)
    layers = parse_layers(args.layers or REPOConfig("unused").erase_layers, len(decoder_blocks(base)))
    found: dict[str, Any] = {}
    for name, settings in ARMS.items():
        if name in given:
            model, _ = load_model(given[name])
        else:
            model = base if settings is None else train_repo(**settings).model
        for layer, states in token_states(model, tokenizer, rows, layers).items():
            found.setdefault(str(layer), {})[name] = asdict(fresh_probe(states))
            print(
                layer,
                name,
                {
                    key: value if isinstance(value, int) else _short(value)
                    for key, value in found[str(layer)][name].items()
                },
                flush=True,
            )
    for layer, results in found.items():
        remaining = {name: results[name]["excess"] / results["base"]["excess"] for name in results}
        found[layer]["excess_remaining"] = remaining
        print(
            f"layer {layer}: excess over token identity that remains: "
            + ", ".join(f"{name} {share:.2f}" for name, share in remaining.items())
        )
    stamp = environment(seed=0, model=base, command=command())
    write_json(RESULTS / "erasure_check.json", {"schema": 1, "layers": found, "environment": stamp})


def _short(value: Any) -> Any:
    return [round(entry, 3) for entry in value] if isinstance(value, (list, tuple)) else round(value, 3)


if __name__ == "__main__":
    main()
