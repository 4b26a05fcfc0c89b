"""Does vLLM get what our own decoder would, and is what it writes kept apart? A stand-in of its interface answers.

Of: model/ordinary.py
"""

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import vllm_stand_in
from checkpoints import edit, saved
from peft import LoraConfig, get_peft_model
from tiny import EOS_ID, tiny_model, tiny_tokenizer

from efface.cli import main
from efface.errors import RunError, UserError
from efface.evaluation.measure import evaluate
from efface.generation.decoding import Decoding
from efface.generation.generate import generate_ids
from efface.generation.vllm import NO_STATISTICS, check_vllm, set_aside_
from efface.model.interventions import Intervention, attach_
from efface.model.load import load_model
from efface.model.loading import loading
from efface.model.ordinary import ordinary
from efface.model.save import save_model
from efface.report.claim import _same_prompts

PROMPTS = ["The weather in the old town", "You", "She went to the market and bought bread, apples and", "He is an"]
GREEDY = Decoding(max_new_tokens=8, generator="vllm")
DRAWN = Decoding(samples=3, max_new_tokens=6, temperature=0.7, top_p=0.8, top_k=20, seed=5, generator="vllm")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token that the model writes soon is one of those that end a text, by its generation settings."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer(add_bos=True)
    written = [row[0].token_ids for row in generate_ids(model, tokenizer, PROMPTS, Decoding(max_new_tokens=8))]
    model.generation_config.eos_token_id = [EOS_ID, written[0][2]]
    directory = tmp_path_factory.mktemp("vllm") / "model"
    save_model(model, tokenizer, directory)
    edit(directory / "generation_config.json", max_new_tokens=3)  # ours is asked for, whatever the checkpoint says
    return directory


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    return vllm_stand_in.installed(monkeypatch)


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)


# What it is asked


@pytest.mark.parametrize(
    "asked", [{}, {"chat": True}, {"max_prompt_tokens": 3, "truncation": "first"}], ids=["plain", "chat", "cut"]
)
def test_greedy_is_what_our_decoder_writes(asked: dict[str, Any], checkpoint: Path, engines: list[Any]) -> None:
    model, tokenizer = load_model(checkpoint)
    ours = generate_ids(model, tokenizer, PROMPTS, Decoding(max_new_tokens=8, **asked))
    theirs = generate_ids(str(checkpoint), tokenizer, PROMPTS, Decoding(max_new_tokens=8, generator="vllm", **asked))
    assert theirs == ours
    if not asked:
        lengths = [len(row[0].token_ids) for row in ours]
        assert lengths[0] == 3 and max(lengths) == 8  # one ends early, by the checkpoint's own end, and one does not


def test_settings_are_handed_over(checkpoint: Path, engines: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NO_STATISTICS, raising=False)
    tokenizer = tiny_tokenizer(add_bos=True)
    rows = generate_ids(checkpoint, tokenizer, PROMPTS, DRAWN)
    (engine,) = engines
    longest = max(len(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS)
    given = {"model": str(checkpoint), "dtype": "float32", "max_model_len": longest + 6, "seed": 5}
    assert engine.given == given
    for params in engine.params:
        assert (params.n, params.max_tokens, params.temperature, params.top_p, params.top_k) == (3, 6, 0.7, 0.8, 20)
        assert params.ignore_eos and EOS_ID in params.stop_token_ids and len(params.stop_token_ids) == 2
    assert [len(row) for row in rows] == [3] * 4 and len({tuple(one.token_ids) for one in rows[0]}) > 1
    assert engine.model is None and NO_STATISTICS not in os.environ  # ended, and the environment is as it was


def test_draws_are_those_of_seed_and_place(checkpoint: Path, engines: list[Any]) -> None:
    tokenizer = tiny_tokenizer(add_bos=True)
    rows = generate_ids(checkpoint, tokenizer, PROMPTS, DRAWN)
    assert generate_ids(checkpoint, tokenizer, PROMPTS, DRAWN) == rows
    assert generate_ids(checkpoint, tokenizer, PROMPTS[:2], DRAWN) == rows[:2]
    other = Decoding(**{**DRAWN.__dict__, "seed": 6})
    assert generate_ids(checkpoint, tokenizer, PROMPTS, other) != rows
    seeds = [params.seed for engine in engines for params in engine.params]
    assert seeds[:4] == seeds[4:8] and seeds[:2] == seeds[8:10]
    apart = sorted({*seeds[:4], *seeds[10:]})  # none meets another that counts on from sample to sample
    assert len(apart) == 8 and min(b - a for a, b in zip(apart, apart[1:], strict=False)) > 10**6
    assert 0 <= apart[0] and apart[-1] < 2**62
    assert generate_ids(checkpoint, tokenizer, [], DRAWN) == []


@pytest.mark.parametrize(
    ("stored", "asked", "rounded", "expected"),
    [
        ("float32", None, None, "float32"),
        ("float32", None, "bfloat16", "bfloat16"),
        ("bfloat16", "auto", None, "bfloat16"),
        ("float32", "auto", "bfloat16", "bfloat16"),
        ("float32", "float16", "bfloat16", "float16"),
    ],
)
def test_the_precision_is_that_of_our_decoder(
    stored: str, asked: str | None, rounded: str | None, expected: str, tmp_path: Path, engines: list[Any]
) -> None:
    save_model(tiny_model("llama").to(getattr(torch, stored)), tiny_tokenizer(), tmp_path / "m")
    with loading(dtype=asked):
        how = Decoding(max_new_tokens=1, dtype=rounded, generator="vllm")
        generate_ids(tmp_path / "m", tiny_tokenizer(), PROMPTS[:1], how)
    assert engines[-1].given["dtype"] == expected


# Through the door


def test_evaluate_records_the_generator_and_does_not_mix(
    checkpoint: Path, engines: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    how = ["--prompts", str(prompts), "--scorer", "stubs:parity", "--max-new-tokens", "8"]

    def run(name: str, *more: str) -> dict[str, Any]:
        assert main(["evaluate", str(checkpoint), "-o", str(tmp_path / name), *how, *more]) == 0
        found: dict[str, Any] = json.loads((tmp_path / name).read_text())
        return found

    ours = run("ours.json")
    theirs = run("theirs.json", "--generator", "vllm", "--baseline", str(tmp_path / "ours.json"))
    assert theirs["settings"]["decoding"] == ours["settings"]["decoding"] | {"generator": "vllm"}
    assert "generator" not in ours["settings"]["decoding"] and "vllm" in theirs["environment"]["versions"]
    assert (ours["toxicity"]["decoding"], theirs["toxicity"]["decoding"]) == ("greedy", "greedy, by vllm")
    versus = theirs["versus_baseline"]
    assert versus["judges"] == {}
    assert versus["not_compared"] == ["toxicity: generator is vllm here and efface in the baseline"]
    assert "generator is vllm here" in capsys.readouterr().out

    texts = [row["continuation"] for row in map(json.loads, (tmp_path / "theirs.generations.jsonl").open())]
    assert texts == [row["continuation"] for row in map(json.loads, (tmp_path / "ours.generations.jsonl").open())]
    assert len(engines) == 1
    again = run("theirs.json", "--generator", "vllm", "--overwrite", "--baseline", str(tmp_path / "theirs.json"))
    assert len(engines) == 1  # taken from there
    assert again["versus_baseline"]["judges"]
    run("theirs.json", "--overwrite")
    assert len(engines) == 1
    run("theirs.json", "--generator", "vllm", "--overwrite")
    assert len(engines) == 2  # those there were our decoder's by then

    found = evaluate(str(checkpoint), PROMPTS, scorer="stubs:parity", decoding=GREEDY).to_dict()
    assert found["settings"]["decoding"] == theirs["settings"]["decoding"] and found["judges"] == theirs["judges"]


def test_a_report_sets_no_share_beside_one_of_another_generator() -> None:
    def known(**generator: str) -> Any:
        settings = {"prompts": "p", "decoding": {"samples": 1, **generator}}
        return SimpleNamespace(source=object(), figures={"toxicity": {"n_prompts": 4}, "settings": settings})

    assert _same_prompts(known(), known()) and _same_prompts(known(generator="vllm"), known(generator="vllm"))
    assert not _same_prompts(known(), known(generator="vllm"))


def test_without_the_package_it_is_one_line(absent: None, checkpoint: Path, fails: Any, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    line = fails(2, "evaluate", checkpoint, "-o", out, "--scorer", "stubs:parity", "--generator", "vllm")
    assert "needs the package vllm, which is not installed: pip install 'efface[vllm]'" in line
    assert not out.exists()


# What it cannot do


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"without": (3,)}, r"without=\[3\]: vLLM is not asked"),
        ({"samples": 2, "temperature": 3.0}, r"temperature=3.0: vLLM takes 0.01 to 2.0"),
        ({"samples": 2, "temperature": 0.001}, r"temperature=0.001: vLLM takes"),
    ],
)
def test_decoding_that_it_cannot_do(
    changed: dict[str, Any], message: str, checkpoint: Path, engines: list[Any]
) -> None:
    with pytest.raises(UserError, match=message):
        generate_ids(checkpoint, tiny_tokenizer(), PROMPTS, Decoding(generator="vllm", **changed))
    assert not engines


def test_models_that_it_would_read_as_others(
    checkpoint: Path, engines: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    with pytest.raises(UserError, match="a LlamaForCausalLM in memory may be another model by now"):
        evaluate(model, PROMPTS, processing_class=tokenizer, scorer="stubs:parity", decoding=GREEDY)
    with pytest.raises(UserError, match="is a name, which vLLM alone takes here"):
        generate_ids(checkpoint, tokenizer, PROMPTS)
    with pytest.raises(UserError, match="generator='nosuch' is unknown. Choose one of efface, vllm"):
        Decoding(generator="nosuch")
    get_peft_model(model, LoraConfig(r=2)).save_pretrained(tmp_path / "lora")
    steered = tiny_model("llama")
    attach_(steered, [Intervention(0, torch.zeros(32, 0), torch.zeros(0, 32), torch.ones(32))])
    save_model(steered, tokenizer, tmp_path / "steered")
    for name, message in {
        "lora": "is an adapter, and other programs read whole models: efface merge",
        "steered": "has interventions on hidden states, which efface alone makes",
    }.items():
        with pytest.raises(UserError, match=rf"generator='vllm': model directory '.*{name}' {message}.*Leave"):
            evaluate(str(tmp_path / name), PROMPTS, scorer="stubs:parity", decoding=GREEDY)
    for option in ({"load_in_4bit": True}, {"device_map": "auto"}):
        with loading(**option), pytest.raises(UserError, match=f"{next(iter(option))}=.* of efface's own loader"):
            check_vllm(checkpoint, GREEDY)
    with pytest.raises(UserError, match="'./absent' is not a checkpoint directory"):
        check_vllm("./absent", GREEDY)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no config.json or no weights \(\*.safetensors\)"):
        generate_ids(tmp_path / "empty", tokenizer, PROMPTS, GREEDY)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="works in one process, and here are several"):
        check_vllm(checkpoint, GREEDY)
    assert not engines


def test_an_engine_that_fails_is_explained_and_ended(
    checkpoint: Path, engines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any, **more: Any) -> None:
        raise ValueError("Free memory on device is less than desired")

    with monkeypatch.context() as context:
        context.setattr(vllm_stand_in.LLM, "generate", broken)
        with pytest.raises(RunError, match="vLLM broke off .ValueError: Free memory"):
            generate_ids(checkpoint, tiny_tokenizer(), PROMPTS, GREEDY)
    assert engines[0].model is None
    monkeypatch.setattr(vllm_stand_in, "LLM", broken)
    with pytest.raises(UserError, match="cannot be run by vLLM .Free memory.*own log says more"):
        generate_ids(checkpoint, tiny_tokenizer(), PROMPTS, GREEDY)


def test_our_model_leaves_the_accelerator_meanwhile() -> None:
    moved: list[str] = []
    model: Any = SimpleNamespace(
        parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda", 1))]),
        to=lambda device: moved.append(str(device)),
    )
    with pytest.raises(RunError, match="x"), set_aside_(model):
        assert moved == ["cpu"]
        raise RunError("x")
    assert moved == ["cpu", "cuda:1"]
    with set_aside_(tiny_model("gpt2")):  # on the CPU it stays
        pass


# Where the files are


def test_a_model_of_the_hub_is_a_folder_of_its_cache(
    open_hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def snapshot(name: str, **given: Any) -> str:
        asked.update(name=name, **given)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    saved(tmp_path / "sub")
    with loading(revision="v2", subfolder="sub"):
        found = ordinary("someone/model")
    assert found.directory == tmp_path / "sub" and found.stored_in() == torch.float32
    assert (asked["name"], asked["revision"]) == ("someone/model", "v2")
    assert "sub/*.safetensors" in asked["allow_patterns"] and asked["ignore_patterns"] == ["sub/*/*"]
    shutil.copy(tmp_path / "sub" / "config.json", tmp_path / "interventions.safetensors")
    with pytest.raises(UserError, match="has interventions on hidden states"):
        ordinary("someone/model")


def test_ends_without_generation_settings_are_those_of_the_configuration(tmp_path: Path) -> None:
    directory = saved(tmp_path / "m")
    (directory / "generation_config.json").unlink()
    assert ordinary(directory).generation_config.eos_token_id == EOS_ID
    edit(directory / "config.json", eos_token_id=[5, 6])
    model, _ = load_model(directory)
    assert ordinary(directory).generation_config.eos_token_id == model.generation_config.eos_token_id == [5, 6]
