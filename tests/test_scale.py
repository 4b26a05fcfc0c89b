"""Does what docs/scale.md says of larger models and more machines hold, as far as a CPU can tell?"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from processes import FSDP
from tiny import tiny_model, tiny_tokenizer
from trained import build as builder
from unpackaged import script

from efface.errors import UserError
from efface.files.events import read_events
from efface.files.results import read_json
from efface.methods.repo import REPOConfig
from efface.training.estimate import checkpointed, estimate, kept_per_token

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
REFUSED = {"zero3": "ZeRO stage 3"}
build = builder


@pytest.fixture(scope="module")
def scale() -> Any:
    return script("benchmarks/scale")


# On paper


@pytest.mark.parametrize("way", [{"reference": "head"}, {"reference": "adapter", "lora": 2}], ids=["full", "adapter"])
def test_a_model_without_contents_is_estimated_like_one_that_is_there(way: dict[str, Any], build: Any, scale: Any):
    model = tiny_model("llama", hidden_size=64, intermediate_size=192, num_hidden_layers=4)
    lora = {"lora_r": 2, "lora_target_modules": "all-linear"} if "lora" in way else {"precompute_reference": "on"}
    trainer = build(model, layout="plain", **lora)
    shape = {"layers": 4, "width": 64, "mlp": 192, "heads": 4, "kv_heads": 2, "tied": True, "vocabulary": 300}
    there, paper = estimate(trainer), scale.on_paper(shape, way)["memory"]
    for name in ("parameters", "gradients", "optimizer", "reference"):
        assert paper[name] == getattr(there, name), name
    on_paper = scale.kept_per_token(scale.shaped(shape, "float32", way.get("lora")), 24)
    assert on_paper == pytest.approx(kept_per_token(trainer), rel=0.15)  # padding and masks of the real batch
    assert 0 < checkpointed(on_paper, model) < on_paper


def test_the_table_is_what_the_script_makes_today(scale: Any) -> None:
    stored = read_json(ROOT / "benchmarks" / "results" / "scale.json")
    assert stored["what"] == "on paper, nothing was run" and stored["assumed"]["card"] == scale.CARD
    assert [(row["size"], row["way"]) for row in stored["rows"]] == [
        (size, way) for size in scale.SHAPES for way in scale.WAYS
    ]
    for name in ("full", "QLoRA"):
        found = scale.on_paper(scale.SHAPES["1B"], scale.WAYS[name])
        row = next(row for row in stored["rows"] if (row["size"], row["way"]) == ("1B", name))
        assert {part: row[part] for part in found} == json.loads(json.dumps(found))


def test_more_cards_never_need_more_than_twice_the_gradients_beside(scale: Any) -> None:
    memory = {"gradients": 4.0, "optimizer": 8.0}
    found = {"memory": memory, "total": 20.0, "parameters": 1}
    assert scale.a_card(found, 1) == scale.a_card(found, 1, zero=2) == 20.0
    assert (scale.a_card(found, 8), scale.a_card(found, 8, zero=1)) == (24.0, 17.0)
    assert scale.a_card(found, 8, zero=2) == 10.0


def test_of_cut_weights_a_card_holds_its_part_and_what_is_at_work(scale: Any) -> None:
    shape = {"layers": 4, "width": 64, "mlp": 192, "heads": 4, "kv_heads": 2, "tied": True, "vocabulary": 300}
    way = {"reference": "head"}
    whole, cut = (scale.on_paper(shape, way, parts)["memory"] for parts in (1, 8))
    size, outside = whole["parameters"], 4 * (300 * 64 + 64)  # embedding and last norm
    at_work = outside + 2 * (size - outside) // 4
    assert cut["parameters"] == cut["gradients"] == size // 8 + at_work
    assert (cut["optimizer"], cut["activations"]) == (2 * size // 8, whole["activations"])
    found = scale.on_paper(shape, way)
    assert scale.cut(shape, way, found, 8) == scale.on_paper(shape, way, 8)["total"]
    assert scale.cut(shape, way, found, 1) is scale.cut(shape, way | {"bits": 4}, found, 8) is None
    live = scale.on_paper(shape, {"reference": "live"})
    live["memory"]["reference"] = 10**9  # the whole model does not get smaller by being cut later
    assert scale.cut(shape, way, live, 8) == size + 10**9


def test_what_was_not_run_says_so() -> None:
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    for line in re.findall(r"^\| .*(?:ddp\.yaml|zero1|load-in-4bit --lora|device-map|vLLM).*$", text, re.MULTILINE):
        assert "not run" in line or "fit" in line, line
    assert text.startswith("# Larger models, more machines\n\n**Not run.**")


# Launching


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_reads_the_file(file: Path) -> None:
    config = load_config_from_file(str(file))
    kinds = {"cpu": DistributedType.MULTI_GPU, "ddp": DistributedType.MULTI_GPU, "fsdp2": DistributedType.FSDP}
    assert config.distributed_type == kinds.get(file.stem, DistributedType.DEEPSPEED)
    stage = re.fullmatch(r"zero(\d)", file.stem)
    assert getattr(config, "deepspeed_config", {}).get("zero_stage") == (int(stage[1]) if stage else None)
    assert ("REFUSES" in file.read_text()) == (file.stem in REFUSED)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_would_cut_the_weights_is_refused(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variables that accelerate's own launcher sets for the file."""
    given = launch_command_parser().parse_args(["--config_file", str(file), "train.py"])
    arguments, *_ = _validate_launch_command(given)
    arguments.deepspeed_fields_from_accelerate_config, deepspeed = "", arguments.use_deepspeed
    found = prepare_deepspeed_cmd_env(arguments)[1] if deepspeed else prepare_multi_gpu_env(arguments)
    for name, value in found.items():
        if name.startswith(("ACCELERATE_USE", "ACCELERATE_DEEPSPEED", "FSDP")):
            monkeypatch.setenv(name, value)
    if file.stem in REFUSED:
        with pytest.raises(UserError, match=f"{REFUSED[file.stem]}.*cuts the weights into parts"):
            REPOConfig(str(tmp_path), use_cpu=True)
    elif not deepspeed:  # which is not installed
        REPOConfig(str(tmp_path), use_cpu=True, withstand="none")
    if file.stem == "fsdp2":
        assert {name: found[name] for name in FSDP} == FSDP  # what is tested in two processes


@pytest.mark.full
def test_two_processes_of_a_cpu_train_as_the_file_says(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"The town {i} is", "chosen": " a quiet place", "rejected": " a silly one"} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", port]
    launch += ["--config_file", str(ROOT / "configs" / "accelerate" / "cpu.yaml"), "-m", "efface"]
    flags = "--max_steps 2 --logging_steps 1 --use_cpu true --retain_text none --per_device_train_batch_size 2".split()
    command = [*launch, "train", "repo", str(tmp_path / "model"), str(tmp_path / "pairs.jsonl")]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out"), *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = read_json(tmp_path / "out" / "results.json")
    assert result["steps"] == 2 and result["share_of_pairs"]["pairs_a_step"] == 4  # of two processes
    events = [row["event"] for row in read_events(tmp_path / "out")]
    assert events.count("begin") == events.count("end") == 1  # the first process alone writes


# Many machines


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "slurm").glob("*.sh")), ids=lambda file: file.name)
def test_bash_reads_the_script(file: Path) -> None:
    done = subprocess.run([shutil.which("bash") or "bash", "-n", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not run on a cluster" in file.read_text()


@pytest.mark.parametrize(
    ("file", "given", "task", "made"),
    [
        ("sweep_array.sh", ["C.yaml", "runs/s"], "1", "sweep C.yaml -o runs/s --resume --arm two"),
        ("sweep_array.sh", ["C.yaml", "runs/s"], None, "sweep C.yaml -o runs/s --resume"),
        ("audit_array.sh", ["M.txt", "B", "runs/a", "--budget", "standard"], "0",
         "audit first=models/first --base B -o runs/a/first --resume --budget standard"),
    ],
)  # fmt: skip
def test_a_task_runs_its_part(file: str, given: list[str], task: str | None, made: str, tmp_path: Path) -> None:
    """With a command in the place of efface that prints what it is given."""
    fake = tmp_path / "bin" / "efface"
    fake.parent.mkdir()
    fake.write_text('#!/usr/bin/env bash\n[[ "$*" == *--list-arms ]] && printf "one\\ntwo\\n" || echo "$@"\n')
    fake.chmod(0o755)
    (tmp_path / "M.txt").write_text("models/first\nmodels/second\n")
    environment = os.environ | {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    environment |= {} if task is None else {"SLURM_ARRAY_TASK_ID": task}
    done = subprocess.run(
        [shutil.which("bash") or "bash", str(ROOT / "configs" / "slurm" / file), *given],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, made), done.stderr
