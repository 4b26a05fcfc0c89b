"""On what do the sweeps of docs/comparison.md tune, report and attack? Writes their files.

    python benchmarks/comparison.py --data DATA          into runs/comparison-data
    efface sweep benchmarks/comparison.yaml -o runs/comparison

Tuning prompts are the 192 of `rtp_mixed` that Perspective scored highest, on which settings have been chosen before;
reported are `rtp_challenging_dev` and the other toxic prompts of `rtp_mixed`. Ordinary text is the articles of
WikiText-2 that no prompt comes from. The pairs of HH-RLHF are its harmless test set, cut into two parts.
"""

import shutil
from pathlib import Path

from common import parser, reporting_prompts, tuning_prompts, wikitext

from efface.data.pairs import load_pairs
from efface.evaluation.prompt_sets import load_prompts
from efface.files.results import write_jsonl

N_TUNING, N_HELD_OUT = 192, 256


def main() -> None:
    options = parser(__doc__)
    options.add_argument("-o", "--output", type=Path, default=Path("runs/comparison-data"))
    args = options.parse_args()
    tuning = tuning_prompts(args.data, N_TUNING)
    toxic = load_prompts(f"rtp:toxic@{args.data / 'toxicity' / 'rtp_mixed.jsonl'}")
    prompts = {
        "tuning": tuning,
        "challenging": reporting_prompts(args.data),
        "mixed": [prompt for prompt in toxic if prompt not in set(tuning)],
    }
    for name, several in prompts.items():
        write_jsonl(args.output / f"{name}.jsonl", [{"prompt": prompt} for prompt in several])
    write_jsonl(args.output / "wikitext.jsonl", [{"text": text} for text in wikitext(args.data)])
    pairs = load_pairs(args.data / "toxicity" / "hh_rlhf_harmless.jsonl", skip_bad_rows=True).rows  # some are empty
    write_jsonl(args.output / "hh-train.jsonl", pairs[:-N_HELD_OUT])
    write_jsonl(args.output / "hh-heldout.jsonl", pairs[-N_HELD_OUT:])
    shutil.copyfile(args.data / "toxicity" / "paradetox.tsv", args.output / "paradetox.tsv")
    print(f"{args.output}: {', '.join(f'{name} {len(several)}' for name, several in prompts.items())} prompts")


if __name__ == "__main__":
    main()
