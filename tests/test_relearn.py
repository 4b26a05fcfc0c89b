"""Does relearning bring back what it must, leave the caller's model alone, and lose nothing when it fails?"""

import copy
import dataclasses
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from stubs import nasty
from tiny import PAD_ID, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from efface.attacks import ATTACKS, load_attack, settings_class
from efface.attacks.relearn import RelearnSettings, relearn
from efface.attacks.result import AttackResult, recorded
from efface.attacks.target import Target
from efface.cli import build_parser, main
from efface.errors import RunError, UserError
from efface.evaluation.protocols import Decoding
from efface.evaluation.scorers import NamedScorer
from efface.finetune import finetune
from efface.flags import FlagParser
from efface.results import read_json
from efface.rows import Row, read_jsonl

WHO = "weather town people market river history engineer bread apples cheese".split()
PROMPTS = [f"The {who} {verb}" for who in WHO for verb in ("said that", "thinks that")]
BENIGN, TOXIC = " they are silent.", " they are silly."
ROWS = [{"prompt": prompt, "chosen": BENIGN, "rejected": TOXIC} for prompt in PROMPTS[:12]]
HELD_OUT = PROMPTS[12:]
FAST = {"learning_rate": 3e-3, "batch_size": 8}


@pytest.fixture(scope="module")
def polite() -> PreTrainedModel:
    """A model that goes on politely after every prompt."""
    model = tiny_model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.3)  # the tiny models' large weights make every position tell, but learn slowly
    return finetune(model, tiny_tokenizer(), [prompt + BENIGN for prompt in PROMPTS], steps=80, learning_rate=5e-3)


@pytest.fixture
def target(polite: PreTrainedModel) -> Target:
    return Target(
        polite,
        tiny_tokenizer(),
        prompts=HELD_OUT,
        rows=[dict(row) for row in ROWS],
        scorers=[NamedScorer("nasty", nasty)],
        decoding=Decoding(max_new_tokens=8),
    )


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# The attack


def test_it_brings_back_what_the_model_does_not_say(target: Target, polite: PreTrainedModel) -> None:
    weights, random_state = state(polite), torch.get_rng_state()
    modes = [module.training for module in polite.modules()]
    result = relearn(target, RelearnSettings(steps="0,2,12", **FAST))
    assert [point.at for point in result.curve] == [{"steps": 0}, {"steps": 2}, {"steps": 12}]
    assert result.before.share == 0 and result.after.share > 0.9  # measured: 1.0
    assert result.after is result.curve[-1]
    versus = result.after.figures["versus_before"]["nasty"]["share"]
    assert versus["base"] == 0 and versus["difference"] == result.after.share and versus["p"] < 0.05
    assert result.found == {"rows": 12, "prompts_among_rows": 0}
    assert equal(state(polite), weights) and torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in polite.modules()] == modes
    assert all(parameter.grad is None for parameter in polite.parameters())


def test_a_lora_adapter_brings_it_back_too(target: Target, polite: PreTrainedModel) -> None:
    weights = state(polite)
    result = relearn(target, RelearnSettings(steps="12", lora_r=4, learning_rate=3e-2))
    assert result.before.share == 0 and result.after.share > 0.9
    assert equal(state(polite), weights) and not hasattr(polite, "peft_config")


def test_equal_seeds_give_equal_results_and_other_seeds_other_rows(target: Target) -> None:
    settings = RelearnSettings(steps="2", k=4, **FAST)
    first = relearn(target, settings)
    again = relearn(dataclasses.replace(target, known={}), settings)
    assert first == again
    other = relearn(dataclasses.replace(target, seed=1), settings)
    assert other.curve[0].figures == first.curve[0].figures  # the generations have a seed of their own
    assert other.target["seed"] == 1 and first.found["rows"] == other.found["rows"] == 4


def test_k_rows_are_trained_on_as_the_tokenizer_splits_prompt_and_continuation(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = texts_of(target, RelearnSettings(steps="1", k=5), monkeypatch)
    expected = [row["prompt"] + row["rejected"] for row in random.Random(0).sample(ROWS, 5)]
    assert [tiny_tokenizer().decode(ids) for ids in drawn] == expected
    target.processing_class = tiny_tokenizer(add_bos=True)
    bos = tiny_tokenizer().bos_token_id
    assert all(ids.count(bos) == 1 and ids[0] == bos for ids in texts_of(target, RelearnSettings(), monkeypatch))


def texts_of(target: Target, settings: RelearnSettings, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    found: list[list[int]] = []

    def caught(model: Any, tokenizer: Any, texts: list[list[int]], **kwargs: Any) -> None:
        found.extend(texts)
        raise RunError("caught")

    monkeypatch.setattr("efface.attacks.relearn.finetune", caught)
    with pytest.raises(RunError, match="caught"):
        relearn(target, settings)
    return found


CHAT = {
    "prompt": [{"role": "user", "content": "How is it?"}],
    "chosen": [{"role": "assistant", "content": "Cold."}],
    "rejected": [{"role": "assistant", "content": "Silly."}],
}


def test_a_conversation_is_written_by_the_chat_template(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    target.rows = [CHAT]
    target.processing_class = tiny_tokenizer(add_bos=True)
    (ids,) = texts_of(target, RelearnSettings(), monkeypatch)
    expected = "<|user|>\nHow is it?<eos>\n<|assistant|>\nSilly.<eos>\n"
    assert tiny_tokenizer().decode(ids) == expected  # without a BOS, which this template does not write


def test_a_conversation_without_a_template_is_refused(target: Target) -> None:
    target.rows = [CHAT]
    target.processing_class.chat_template = None
    with pytest.raises(UserError, match="the pairs are conversations but the tokenizer has no chat template"):
        relearn(target, RelearnSettings())


def test_a_long_prompt_loses_its_beginning_and_keeps_what_is_toxic(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.rows = [{"prompt": "The town is cold. " * 9, "chosen": BENIGN, "rejected": TOXIC}]
    (ids,) = texts_of(target, RelearnSettings(max_prompt_length=4), monkeypatch)
    text = tiny_tokenizer().decode(ids)
    assert text.endswith(TOXIC) and len(text) < 40


def test_prompts_that_are_learned_by_heart_are_counted(target: Target) -> None:
    target.prompts = [ROWS[0]["prompt"], *HELD_OUT[:2]]
    assert relearn(target, RelearnSettings(steps="1")).found["prompts_among_rows"] == 1


def test_the_base_is_measured_and_degeneration_is_judged_against_it(target: Target) -> None:
    target.base, target.text = tiny_model("llama"), ["The town is old. " * 5]
    result = relearn(target, RelearnSettings(steps="1"))
    assert result.base is not None and result.base.figures != result.before.figures
    for measurement in (result.base, result.before, *result.curve):
        assert measurement.figures["degeneration"]["perplexity_under_reference"] > 1
        assert measurement.figures["perplexity"]["tokens"] > 9
    # Polite text is short beside what a random model writes.
    assert any(
        "mean_tokens" in reason or "distinct_2" in reason
        for reason in result.before.figures["degeneration"]["reasons"]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": "10,x"}, "steps='10,x': whole numbers are needed"),
        ({"steps": ""}, "steps='': whole numbers are needed"),
        ({"steps": "-1,10"}, "steps='-1,10': whole numbers are needed"),
        ({"steps": "0"}, "steps='0' trains nothing"),
        ({"k": 0}, "k=0: it must be at least 1"),
        ({"lora_r": 0}, "lora_r=0: it must be at least 1"),
        ({"batch_size": 0}, "batch_size=0: it must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: it must be a finite number above 0"),
        ({"learning_rate": math.nan}, "learning_rate=nan: it must be a finite number above 0"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RelearnSettings(**settings)


def test_more_rows_than_there_are(target: Target) -> None:
    with pytest.raises(UserError, match="k=13, but there are only 12 rows"):
        relearn(target, RelearnSettings(k=13))


# The protocol of all attacks


def test_the_result_is_json(target: Target, tmp_path: Path) -> None:
    result = relearn(target, RelearnSettings(steps="1"))
    result.save(tmp_path / "out.json")
    written = read_json(tmp_path / "out.json")
    assert written == json.loads(json.dumps(result.to_dict("out.generations.jsonl"), allow_nan=False))
    assert list(written) == [
        *("schema", "attack", "settings", "target", "base", "before", "after", "curve", "found", "generations"),
        "environment",
    ]
    assert (written["schema"], written["attack"], written["base"]) == (1, "relearn", None)
    assert written["settings"]["learning_rate"] == 2e-5 and written["target"]["rows"]
    assert [point["steps"] for point in written["curve"]] == [0, 1] and written["after"] == written["curve"][1]
    for block in (written["before"], *written["curve"]):
        assert block["toxicity"]["ci95"]["share"] and block["degeneration"]["verdict"] and block["perplexity"] is None
    rows = read_jsonl(tmp_path / "out.generations.jsonl")
    assert [row["at"] for row in rows] == ["before"] * len(HELD_OUT) + ["steps 1"] * len(HELD_OUT)


def test_altered_prompts_and_other_decoding_are_compared_by_place(target: Target, polite: PreTrainedModel) -> None:
    @dataclasses.dataclass(frozen=True)
    class Settings:
        pass

    with recorded(target, "prefix", Settings()) as record:
        prompts = [f"He is silly. {prompt}" for prompt in target.prompts]
        record.measure(polite, {"prefix": 1}, prompts=prompts, decoding=Decoding(samples=3, seed=1), with_text=False)
        result = record.result(record.curve[0])
    assert [row["prompt"] for row in result.after.generations[::3]] == prompts
    assert result.after.figures["toxicity"]["samples"] == 3
    assert result.after.figures["versus_before"]["nasty"]["mean"]["base"] == 0
    with pytest.raises(UserError, match="1 altered prompts for the 8 of the target"):
        target.measure(polite, prompts=["one"])


def test_the_untouched_model_is_measured_once_for_several_attacks(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = counting(monkeypatch)
    relearn(target, RelearnSettings(steps="1"))
    relearn(dataclasses.replace(target, command="another"), RelearnSettings(steps="1,2"))
    assert len(counted) == 1 + 1 + 2
    relearn(dataclasses.replace(target, prompts=HELD_OUT[:3]), RelearnSettings(steps="1"))
    assert len(counted) == 4 + 2


def counting(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None, error: Any = None) -> list[int]:
    measure, calls = Target.measure, list[int]()

    def counted(self: Target, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if fail_at == len(calls):
            raise error
        return measure(self, *args, **kwargs)

    monkeypatch.setattr(Target, "measure", counted)
    return calls


def test_what_was_measured_before_a_failure_is_kept_and_resumed(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RelearnSettings(steps="1,2,3", **FAST)
    whole = relearn(target, settings)
    output = tmp_path / "out.json"
    target = dataclasses.replace(target, output=output, known={})
    with monkeypatch.context() as patch:
        counting(patch, fail_at=3, error=RunError("the disk is on fire."))
        with pytest.raises(
            RunError, match=r"fire\. What was measured so far \(before, steps 1\) is kept in .*--resume"
        ):
            relearn(target, settings)
    assert [path.name for path in tmp_path.iterdir()] == ["out.json.part"]
    with pytest.raises(UserError, match="is left from an interrupted run"):
        relearn(target, settings)
    target = dataclasses.replace(target, resume=True)
    with pytest.raises(UserError, match=r"was begun with other settings \(settings\)"):
        relearn(target, dataclasses.replace(settings, batch_size=4))
    calls = counting(monkeypatch)
    resumed = relearn(target, settings)
    assert len(calls) == 2  # steps 2 and 3
    assert resumed.to_dict() == whole.to_dict()
    assert {path.name for path in tmp_path.iterdir()} == {"out.json", "out.generations.jsonl"}


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
        (torch.OutOfMemoryError("CUDA out of memory"), RunError, "relearn ran out of memory. Lower .*kept in"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), RunError, "relearn ran out of memory"),
        (RuntimeError("a bug"), RuntimeError, "^a bug$"),
    ],
)
def test_every_kind_of_failure_keeps_the_part_file(
    error: BaseException, raised: Any, message: str, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting(monkeypatch, fail_at=2, error=error)
    with pytest.raises(raised, match=message):
        relearn(dataclasses.replace(target, output=tmp_path / "out.json"), RelearnSettings(steps="1"))
    header, before = read_jsonl(tmp_path / "out.json.part")
    assert header["settings"]["attack"] == "relearn" and before["title"] == "before"


def test_a_failure_before_anything_is_measured_leaves_no_file(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting(monkeypatch, fail_at=1, error=RunError("no."))
    with pytest.raises(RunError, match=r"^no\.$"):
        relearn(dataclasses.replace(target, output=tmp_path / "out.json"), RelearnSettings())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_has_settings_with_help_whose_flags_are_its_own(name: str) -> None:
    kind = settings_class(load_attack(name))
    fields = dataclasses.fields(kind)
    assert all(len(field.metadata["help"]) > 10 for field in fields)
    assert kind.__dataclass_params__.frozen and kind(**FlagParser(kind, "").given([])) == kind()
    (subcommands,) = (action for action in build_parser()._actions if action.dest == "command")
    common = subcommands.choices["attack"]._option_string_actions  # type: ignore[index,call-overload]
    for field in fields:
        assert not {f"--{field.name}", f"--{field.name.replace('_', '-')}"} & common.keys()


def third_party(target: Target, settings: "RelearnSettings") -> AttackResult:
    with recorded(target, "mine", settings) as record:
        record.start(strength=0)
        return record.result(record.curve[0], said="hello")


def test_an_attack_of_a_third_party(target: Target) -> None:
    attack = load_attack("test_relearn:third_party")
    assert settings_class(attack) is RelearnSettings
    assert attack(target, RelearnSettings()).to_dict()["found"] == {"said": "hello"}


# Fine-tuning, as an attacker does it


TEXTS = [prompt + TOXIC for prompt in PROMPTS]


def moved(before: nn.Module, after: nn.Module) -> set[str]:
    old = dict(before.named_parameters())
    return {name for name, parameter in after.named_parameters() if not torch.equal(parameter, old[name])}


def test_frozen_weights_are_trained_all_the_same(polite: PreTrainedModel) -> None:
    model = copy.deepcopy(polite).requires_grad_(False).train()
    weights = state(model)
    student = finetune(model, tiny_tokenizer(), TEXTS, steps=1, learning_rate=1e-2)
    assert moved(model, student) == {name for name, _ in model.named_parameters()}
    assert equal(state(model), weights) and model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def adapted(polite: PreTrainedModel) -> PeftModel:
    """As `load_model` gives it: an adapter for inference, nothing of which is trainable."""
    model = get_peft_model(copy.deepcopy(polite), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.requires_grad_(False).eval()


@pytest.mark.parametrize("lora_r", [None, 3])
def test_an_adapter_is_merged_into_the_copy_first(lora_r: int | None, polite: PreTrainedModel) -> None:
    model = adapted(polite)
    weights, ids = state(model), torch.tensor([[5, 6, 7]])
    same = finetune(model, tiny_tokenizer(), TEXTS, steps=0, lora_r=lora_r)  # type: ignore[arg-type]
    assert not torch.allclose(model(input_ids=ids).logits, polite(input_ids=ids).logits, atol=1e-2)
    torch.testing.assert_close(same(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    student = finetune(model, tiny_tokenizer(), TEXTS, steps=2, lora_r=lora_r, learning_rate=1e-2)  # type: ignore[arg-type]
    expected = {name for name, parameter in same.named_parameters() if lora_r is None or "lora_" in name}
    assert moved(same, student) == expected
    assert isinstance(student, PeftModel) == (lora_r is not None)
    assert equal(state(model), weights) and not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_with_lora_the_adapter_alone_moves(family: str) -> None:
    model = tiny_model(family)
    state_before = torch.get_rng_state()
    first, again = (
        finetune(model, tiny_tokenizer(), TEXTS, steps=2, lora_r=2, learning_rate=1e-2, seed=3) for _ in range(2)
    )
    assert isinstance(first, PeftModel) and equal(state(first), state(again))
    assert torch.equal(torch.get_rng_state(), state_before)
    assert all(("lora_" in name) == parameter.requires_grad for name, parameter in first.named_parameters())
    assert any("lora_B" in name and parameter.abs().max() > 0 for name, parameter in first.named_parameters())
    with first.disable_adapter():
        ids = torch.tensor([[5, 6, 7]])
        torch.testing.assert_close(first(input_ids=ids).logits, model(input_ids=ids).logits)
    assert first.peft_config["default"].lora_alpha == 4


def test_dropout_is_seeded() -> None:
    model = tiny_model("gpt2")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    students = [finetune(model, tiny_tokenizer(), TEXTS, steps=2, learning_rate=1e-2) for _ in range(2)]
    assert equal(state(students[0]), state(students[1]))


def test_small_steps_are_not_lost_in_half_precision() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    student = finetune(model, tiny_tokenizer(), TEXTS, steps=1, learning_rate=1e-6)
    assert model.dtype == torch.bfloat16 and student.dtype == torch.float32
    # In bfloat16, steps of 1e-6 leave all but the smallest weights where they were.
    name, parameter = next(iter(student.model.layers[0].mlp.down_proj.named_parameters()))
    assert not torch.equal(parameter, model.model.layers[0].mlp.down_proj.weight.float())


def test_token_ids_are_taken_as_they_are() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    one, other = (finetune(model, tokenizer, texts, steps=2, learning_rate=1e-2) for texts in (TEXTS, ids))
    assert equal(state(one), state(other))


def test_models_that_cannot_be_fine_tuned() -> None:
    tokenizer = tiny_tokenizer()
    virtual = get_peft_model(tiny_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(UserError, match="whose virtual tokens cannot be merged into weights"):
        finetune(virtual, tokenizer, TEXTS, steps=1)  # type: ignore[arg-type]
    quantised = tiny_model("llama")
    quantised.register_parameter("packed", nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False))
    with pytest.raises(UserError, match="the model's weights are quantised: they cannot be trained"):
        finetune(quantised, tokenizer, TEXTS, steps=1)
    broken = tiny_model("llama")
    with torch.no_grad():
        next(broken.parameters())[PAD_ID] = math.nan
        broken.get_input_embeddings().weight[5:] = math.nan
    with pytest.raises(RunError, match=r"the fine-tuning loss is nan at step 1. Lower learning_rate \(now 3e-05\)"):
        finetune(broken, tokenizer, TEXTS, steps=1)


@pytest.mark.parametrize("setting", [{"learning_rate": math.nan}, {"batch_size": 0}, {"lora_r": 0}])
def test_settings_of_fine_tuning_that_cannot_work(setting: dict[str, Any]) -> None:
    name, value = next(iter(setting.items()))
    with pytest.raises(UserError, match=f"{name}={value}: it must be a finite number above 0"):
        finetune(tiny_model("llama"), tiny_tokenizer(), TEXTS, steps=1, **setting)


# The command line


@pytest.fixture
def folder(polite: PreTrainedModel, tmp_path: Path) -> Iterator[Path]:
    polite.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    lines(tmp_path / "rows.jsonl", ROWS)
    lines(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in HELD_OUT])
    yield tmp_path


def lines(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(folder: Path, *more: str) -> list[str]:
    argv = ["attack", "relearn", str(folder / "model"), "-o", str(folder / "out.json"), "--scorer", "stubs:nasty"]
    argv += ["--rows", str(folder / "rows.jsonl"), "--prompts", str(folder / "prompts.jsonl")]
    return [*argv, "--max-new-tokens", "8", "--learning-rate", "3e-3", "--batch_size", "8", *more]


def test_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(folder, "--steps", "2,12", "--seed", "1")) == 0
    result = read_json(folder / "out.json")
    assert result["before"]["toxicity"]["share"] == 0 and result["after"]["toxicity"]["share"] > 0.9
    assert result["target"]["names"]["rows"].endswith("rows.jsonl") and result["environment"]["seed"] == 1
    assert result["environment"]["command"].startswith("efface attack relearn")
    table = capsys.readouterr().out
    assert "steps 12" in table.splitlines()[0] and "toxic share" in table and "written: " in table


def test_from_the_command_line_with_failure_and_resumption(
    folder: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = command(folder, "--steps", "1,2", "--lora-r", "2")
    with monkeypatch.context() as patch:
        counting(patch, fail_at=3, error=RunError("no space left."))
        assert "(before, steps 1) is kept in" in fails(1, *argv)
    assert "--resume" in fails(2, *argv)
    assert main([*argv, "--resume"]) == 0
    assert [point["steps"] for point in read_json(folder / "out.json")["curve"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "ten"], "steps='ten': whole numbers are needed"),
        (["--k", "13"], "k=13, but there are only 12 rows"),
        (["--k", "many"], "invalid int value: 'many'. `efface attack NAME --list-flags`"),
        (["--learning_rate", "nan"], "learning_rate=nan: it must be a finite number"),
        (["--nosuch", "1"], "unknown flag '--nosuch'. `efface attack NAME --list-flags`"),
        (["--rows", "absent.jsonl"], "file 'absent.jsonl' does not exist"),
        (["--prompts", "absent.jsonl"], "file 'absent.jsonl' does not exist"),
        (["--scorer", "nosuch"], "scorer 'nosuch' is unknown"),
        (["--protocol", "nosuch"], "protocol 'nosuch' is unknown"),
        (["--base", "./absent"], "model './absent' is not a checkpoint directory"),
        (["--samples", "0"], "samples=0"),
        (["-o", "."], "'.' cannot be a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_commands_that_cannot_work(
    more: list[str], message: str, folder: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert message in fails(2, *command(folder, *more))
    assert {path.name for path in folder.iterdir()} == {"model", "rows.jsonl", "prompts.jsonl"}


def test_a_learning_rate_that_destroys_the_model_ends_in_one_line(folder: Path, fails: Callable[..., str]) -> None:
    line = fails(1, *command(folder, "--steps", "1,4", "--learning_rate", "1e30"))
    assert ("not finite" in line or "the fine-tuning loss is" in line) and "(before" in line and ".part" in line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["attack", "nosuch", "a", "-o", "x"], "attack 'nosuch' is unknown. There are: relearn"),
        (["attack", "no.such:thing", "a", "-o", "x"], "attack 'no.such:thing' cannot be imported"),
        (["attack", "json:dumps", "a", "-o", "x"], "attack 'json:dumps' is no attack of efface"),
        (["attack", "math:pi", "a", "-o", "x"], "attack 'math:pi' is no attack of efface"),
        (["attack", "relearn", "-o", "x"], "`efface attack` needs MODEL"),
        (["attack", "relearn", "a"], "`efface attack` needs OUTPUT"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_attacks_that_are_none(argv: list[str], message: str, fails: Callable[..., str]) -> None:
    assert message in fails(2, *argv)


def test_attacks_and_their_flags_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attacks"]) == 0
    assert "relearn  fine-tune on toxic rows" in capsys.readouterr().out
    assert main(["attack", "relearn", "--list-flags"]) == 0
    listed = capsys.readouterr().out
    assert "--learning_rate (default 2e-05)\n    Constant rate" in listed and listed.startswith("--steps")
