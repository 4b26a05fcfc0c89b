"""What does digests.py make? A `Case` for every command line whose results must not change."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digests_inputs import FAMILIES, MEASURED, STEPS, Argv, filled


@dataclass(frozen=True)
class Case:
    """One entry: a command that leaves its files in a folder."""

    name: str
    argv: Argv
    """Without -o."""
    output: str = "out"
    """What -o names in that folder; "": the command has none."""
    stop: Callable[[Path], bool] | None = None
    """When, looking at the folder, it is first to be interrupted; None: never."""
    resumes: bool = True
    """Whether the command has a flag --resume, if it was interrupted."""
    keeps: str = "nothing"
    """Files of the interrupted work that must not be made again."""
    spoil: Callable[[Path], None] | None = None
    """Changes the interrupted work, such that it shows in the result whether it was used."""
    read: Callable[[list[str]], list[str]] = list
    """What of the lines on standard output counts."""

    def command(self, folder: Path) -> Argv:
        return [*self.argv, *(["-o", f"{folder}/{self.output}"] if self.output else [])]


def flags_only(lines: list[str]) -> list[str]:
    """Of --list-flags: names, in one spelling, and defaults; no help."""
    found = (re.match(r"--(\S+) \(default (.*)\)$", line) for line in lines)
    names = ((match[1].replace("-", "_"), re.sub(" at 0x[0-9a-f]+", "", match[2])) for match in found if match)
    return sorted(f"{name} = {default}" for name, default in names)


def without_minutes(lines: list[str]) -> list[str]:
    """The last column of an audit's table."""
    return [re.sub(r" +\d+\.\d$", "", line) for line in lines]


def without_modules(lines: list[str]) -> list[str]:
    """Where the objects of a registry stand may change."""
    return [re.sub(r"\befface(\.\w+)+:", "efface:", line) for line in lines]


# Training

RETAIN = "--retain_text IN/passages.jsonl --retain_text_tokens 24"
TRAININGS = {
    "repo": {
        "bf16": "--bf16 true --use_cpu true",
        "lora": "--lora_r 4",
        "retain_text": RETAIN,
        "without_text": "--retain_text none",
        "reference_off": "--precompute_reference off",
        "reference_on": "--precompute_reference on",
        "reference_bfloat16": "--precompute_reference on --reference_dtype bfloat16",
        "linear": "--discriminator linear",
        "ensemble": "--discriminator_ensemble 2 --discriminator_reinit 2 --discriminator_steps 1",
        "wasserstein": "--adversary wasserstein",
        "sequence": "--erase_unit sequence --erase_schedule ramp",
        "all_layers": "--erase_layers all --erase_side both",
        "bound_token": "--bound token --grl_schedule constant",
        "bound_layer": "--bound layer",
        "sam": "--sam_rho 0.05",
        "relearn": "--withstand relearn:1e-3/2/2",
        "layout_plain": "--layout plain",
        "layout_shared": "--layout shared",
        "chunked": "--max_batch_tokens 128",
        "npo": "--npo_weight 0.5",
        "top_layer": "--trainable_layers 1",
        "accumulated": "--gradient_accumulation_steps 2",
        "checkpointed": "--gradient_checkpointing true",
    },
    "sft": {"configured": "--config IN/full.yaml", "text": RETAIN, "lora": "--lora_r 4"},
    "dpo": {"robust": "--loss_type robust --label_smoothing 0.1", "lora": "--lora_r 4"},
    "npo": {"nll": "--retain nll --beta 0.5"},
    "rmu": {"all": "--steer_layer last --w_retain 1"},
    "circuit_breakers": {"small": "--lora_r 2 --alpha 3", "text": RETAIN},
    "repnoise": {"last": "--noise_layers last --mmd_tokens 16"},
    "profs": {"first": "--first_layer 0 --rank 4"},
    "leace": {"edit": "--mode edit --layers all"},
    "steering": {"strong": "--strength 3 --layers all"},
    "task_vector": {"scale": "--scales 0.5,4 --max_perplexity_increase 1"},
}
WITHOUT_STEPS = ("profs", "leace", "steering")
"""Methods that have no trainer's settings."""


def trainings(inputs: Path) -> Iterator[Case]:
    from efface.methods import METHODS

    for method in METHODS:
        if method in ("lox", "gptq"):  # which are of an edit, and so of two models
            continue
        steps = "" if method in WITHOUT_STEPS else "--seed 1" if method == "task_vector" else STEPS
        for variant, flags in {"": "", **TRAININGS.get(method, {})}.items():
            for family in FAMILIES:
                yield training(
                    f"{method}{variant and '-'}{variant}-{family}", method, family, f"{steps} {flags}", inputs
                )
    for start in ("gpt2-sft", "llama-sft"):
        argv = ["robustify", f"{inputs}/{start}", f"{inputs}/pairs.jsonl", *f"{STEPS} --alpha 0.3".split()]
        yield Case(f"robustify-{start}", argv)
    for family in FAMILIES:
        for method, flags in (("repo", ""), ("dpo", "--lora_r 4"), ("undo", "")):
            flags += f" {STEPS} --save_strategy steps --save_steps 2"
            name = f"resumed-{method}-{family}"
            stop = {"stop": lambda folder: (folder / "out" / "checkpoint-2" / "trainer_state.json").exists()}
            yield training(name, method, family, flags, inputs, keeps="out/checkpoint-2/*.safetensors", **stop)


def training(name: str, method: str, family: str, flags: str, inputs: Path, **more: Any) -> Case:
    argv = ["train", method, f"{inputs}/{family}", f"{inputs}/pairs.jsonl", *filled(flags, inputs)]
    return Case(f"train-{name}", argv, **more)


# Attacks

PAIRS = "--mode universal --add_after 1 --search_dtype float32"  # random models write nothing that could be forced
SOFT = "--max_prompt_length 32 --max_completion_length 16"
ATTACKS = {
    "relearn": {
        "": "--steps 1,2 --learning_rates 1e-3,1e-2",
        "lora": "--steps 2 --lora_r 2 --learning_rates 1e-2",
        "benign": "--steps 2 --data benign",
        "text": "--steps 2 --data text --documents IN/passages.jsonl --k 4",
    },
    "orthogonalize": {"": "--layers own,0.5,last --forms hook,affine,weights --max_pairs 8 --batch_size 4"},
    "unalign": {"": "--vectors 7,16 --scales 2,10 --max_pairs 8", "mean": "--vectors 4 --direction means --layer 0"},
    "prune": {"": "--q 0.03,0.3 --max_rows 8 --documents IN/passages.jsonl"},
    "quantize": {"": "--bits 8,4", "asymmetric": "--bits 3 --scheme asymmetric --group_size 16 --embeddings true"},
    "merge": {"": "--alphas 0.25,0.5,1.5"},
    "sampling": {"": "--temperatures 0.7,1 --nuclei 0.9,1 --draws 2"},
    "prefill": {"": "--words 1,3"},
    "prompt_injection": {
        "": "--injections IN/injections.jsonl",
        "first": "--injections IN/injections.jsonl --first 1",
    },
    "perturb": {"": "--rates 0.15 --tries 2", "points": "--kinds swap,mix --rates 0.15 --tries 1 --best_of false"},
    "few_shot": {"": "--shots 1,2"},
    "embedding_attack": {"": f"--steps 1,2 --max_steps 2 --n_tokens 3 {SOFT}"},
    "gcg": {
        "": f"--steps 2,4 --search_width 8 --topk 8 --length 6 --target_tokens 8 --k 1 {PAIRS}",
        "prefix": f"--steps 3 --search_width 8 --topk 8 --n_replace 2 --length 5 --place prefix --k 2 {PAIRS}",
    },
    "enhanced_gcg": {"": "--steps 3 --search_width 4 --buffer_size 3 --choices 8 --k 2 --targets rows"},
}
HALF = {  # attack -> lines of its part file after which it is interrupted
    "relearn": ("--steps 1,2,3 --learning_rates 1e-3", 4),
    "gcg": (f"--steps 2,4,6 --search_width 8 --topk 8 --length 6 --target_tokens 8 --k 1 {PAIRS}", 6),
    "enhanced_gcg": ("--steps 6 --search_width 4 --buffer_size 3 --choices 8 --k 2 --targets rows", 5),
    "embedding_attack": (f"--steps 1,2,4 --max_steps 4 --n_tokens 3 {SOFT}", 4),
}


def attacks(inputs: Path) -> Iterator[Case]:
    for family in FAMILIES:
        target = f"{MEASURED} --rows IN/rows.jsonl --base IN/{family} --text IN/text.jsonl"
        for name, variants in ATTACKS.items():
            for variant, flags in variants.items():
                argv = ["attack", name, f"{inputs}/{family}-sft", *filled(f"{target} {flags}", inputs)]
                yield Case(f"attack-{name}{variant and '-'}{variant}-{family}", argv, "out.json")
        for name, (flags, lines) in HALF.items():
            argv = ["attack", name, f"{inputs}/{family}-sft", *filled(f"{target} {flags}", inputs)]
            yield Case(f"attack-resumed-{name}-{family}", argv, "out.json", stop=part_of("out.json.part", lines))
        audit = ["audit", f"plain={inputs}/{family}-sft", f"lora={inputs}/{family}-repo"]
        chosen = f"{target} --limit 4 --only quantize,merge,prefill,sampling,perturb --budget quick"
        argv = [*audit, *filled(chosen, inputs)]
        yield Case(f"audit-{family}", argv, read=without_minutes)
        yield Case(
            f"audit-resumed-{family}",
            argv,
            read=without_minutes,
            stop=part_of("out/plain/prefill/result.json.part", 2),  # the third attack
            keeps="out/plain/*/result.json",
        )


def part_of(file: str, lines: int) -> Callable[[Path], bool]:
    def written(folder: Path) -> bool:
        return (folder / file).exists() and (folder / file).read_bytes().count(b"\n") >= lines

    return written


# Figures, pairs and the rest

WHOLE = "--text IN/text.jsonl --max-text-tokens 300 --identity --utility IN/task.jsonl --f1-text IN/text.jsonl"
ALL = "alt-profanity-check stubs:parity words:IN/words.txt"
EVALUATIONS = {
    "greedy": f"{WHOLE} --reference IN/FAMILY --baseline IN/FAMILY-baseline.json --scorer {ALL}",
    "sampled": f"{WHOLE} --samples 3 --baseline IN/FAMILY-baseline.json --window 32 --stride 16 --batch-size 4",
    "protocol": "--protocol gehman --limit 3 --text IN/text.jsonl --window 64",
    "lee": "--protocol lee --reference IN/FAMILY",
    "chat": "--chat --samples 2 --temperature 0.7 --top-p 0.8 --max-prompt-tokens 9 --truncation first",
    "judges": "--scorer hf:IN/classifier#toxic judge:IN/judge mean:words:IN/words.txt,stubs:nasty",
    "most": "--scorer max:stubs:nasty,stubs:parity words:IN/words.txt --samples 2 --temperature 1.5",
}
GENERATIONS = "out.generations.jsonl"
KINDS = {
    "sample": "--prompts IN/many.jsonl --temperature 1",
    "antiexpert": "--prompts IN/many.jsonl --temperature 1 --steps 2 --toxic-text IN/labelled.jsonl",
    "dexperts": "--prompts IN/many.jsonl --temperature 1 --steps 2 --alpha 1.5",
    "pplm": "--prompts IN/many.jsonl --probe-text IN/labelled.jsonl --num-iterations 1",
    "corpus": "--toxic-text IN/marked.jsonl",
}
FILTERS = "--scorer stubs:parity --min-words 0 --max-perplexity-ratio 1e9 --max-new-tokens 4"


def evaluations(inputs: Path) -> Iterator[Case]:
    for family in FAMILIES:
        for name, flags in EVALUATIONS.items():
            argv = [
                "evaluate",
                f"{inputs}/{family}-sft",
                *filled(f"{MEASURED} {flags}".replace("FAMILY", family), inputs),
            ]
            yield Case(f"evaluate-{name}-{family}", argv, "out.json")
        for model in ("repo", "steering", "leace"):
            argv = ["evaluate", f"{inputs}/{family}-{model}", *filled(f"{MEASURED} --text IN/text.jsonl", inputs)]
            yield Case(f"evaluate-{model}-{family}", argv, "out.json")
        argv = ["evaluate", f"{inputs}/{family}", *filled(f"{MEASURED} --samples 2", inputs)]
        yield Case(
            f"evaluate-resumed-{family}",
            argv,
            "out.json",
            stop=lambda folder: (folder / GENERATIONS).exists(),
            resumes=False,  # it looks by itself for generations that lie there
            spoil=lambda folder: spoil(folder / GENERATIONS),
        )


def spoil(file: Path) -> None:
    """A continuation that no model wrote: it is in the result only if the file was used."""
    first, *others = file.read_text().splitlines()
    row = json.loads(first) | {"continuation": " by hand"}
    file.write_text("\n".join([json.dumps(row), *others]) + "\n")


def pairs(inputs: Path) -> Iterator[Case]:
    for family in FAMILIES:
        for kind, flags in KINDS.items():
            argv = ["pairs", f"{inputs}/{family}", "--toxic", kind, *filled(f"{FILTERS} {flags}", inputs)]
            yield Case(f"pairs-{kind}-{family}", argv, "out.jsonl")
            if kind in ("sample", "antiexpert", "corpus"):
                stop = part_of("out.jsonl.part", 17)
                yield Case(f"pairs-resumed-{kind}-{family}", [*argv, "--batch-size", "16"], "out.jsonl", stop=stop)
        argv = ["pairs", f"{inputs}/{family}", *filled(f"{FILTERS} --toxic sample --temperature 1 --seed 2", inputs)]
        argv += [*filled("--prompts-from-text IN/documents.jsonl --first 2 --no-compare-with-samples", inputs)]
        yield Case(f"pairs-documents-{family}", argv, "out.jsonl")


def scorers_and_demo(inputs: Path) -> Iterator[Case]:
    train = ["scorers", "--train", f"{inputs}/labelled.jsonl", "--benign", f"{inputs}/text.jsonl"]
    yield Case("scorers-train", train)
    names = filled(f"{ALL} hf:IN/classifier#toxic judge:IN/judge max:stubs:parity,stubs:nasty", inputs)
    files = [f"{inputs}/labelled.jsonl", f"{inputs}/marked.jsonl"]
    yield Case("scorers-check", ["scorers", "--check", *files, "--scorer", *names], "out.json")
    for family in FAMILIES:
        argv = ["demo", "--model", f"{inputs}/{family}", "--max-steps", "3"]
        yield Case(f"demo-{family}", argv)
        yield Case(
            f"demo-resumed-{family}",
            argv,
            stop=lambda folder: (folder / "out" / "model" / "results.json").exists(),
            keeps="out/model/*.safetensors",
        )


def lists(inputs: Path) -> Iterator[Case]:
    from efface.attacks import ATTACKS as NAMES
    from efface.methods import METHODS

    for name in ("methods", "attacks", "scorers", "models"):
        yield Case(f"list-{name}", [name], "", read=without_modules)
    for name in METHODS:
        yield Case(f"flags-train-{name}", ["train", name, "--list-flags"], "", read=flags_only)
    for name in NAMES:
        yield Case(f"flags-attack-{name}", ["attack", name, "--list-flags"], "", read=flags_only)


def cases(inputs: Path) -> Iterator[Case]:
    for group in (lists, trainings, attacks, evaluations, pairs, scorers_and_demo):
        yield from group(inputs)
