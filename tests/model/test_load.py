"""Is a checkpoint that is not whole, or whose files do not belong together, refused in one line that says why?

Weights that are missing would be random numbers; `test_models.py` has what is good and what is no model at all.
"""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from efface.errors import RunError, UserError, explained
from efface.model.load import load_model, tokenizer_of
from efface.model.save import save_model
from efface.scoring.hf import HFScorer

WEIGHTS = "model.safetensors"


def saved(directory: Path, family: str = "llama", **overrides: Any) -> Path:
    save_model(tiny_model(family, **overrides), tiny_tokenizer(), directory)
    return directory


def edit(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def rewrite(directory: Path, change: Any, name: str = WEIGHTS) -> None:
    """`change` gets the tensors of a file by their names and returns those that are to be in it."""
    save_file(change(load_file(directory / name)), directory / name, metadata={"format": "pt"})


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 6, 7, 8, 9, 10]])).logits


# Weights that are not there


QUICK = {"gpt2", "gemma3", "qwen2", "opt"}
FAMILY_GRID = [family if family in QUICK else pytest.param(family, marks=pytest.mark.full) for family in FAMILIES]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILY_GRID)
def test_every_weight_is_needed_and_a_tied_one_once(family: str, tied: bool, tmp_path: Path) -> None:
    saved(tmp_path, family, tie_word_embeddings=tied)
    names = list(load_file(tmp_path / WEIGHTS))
    model, _ = load_model(tmp_path)
    heads = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (heads[0] is heads[1]) == tied
    for name in (names[0], names[len(names) // 2]):
        shutil.copytree(tmp_path, tmp_path / "cut")
        rewrite(tmp_path / "cut", lambda tensors, name=name: {k: v for k, v in tensors.items() if k != name})
        with pytest.raises(UserError, match=r"cut' lacks \d of \d+ weights \(.*\): they would be random numbers") as e:
            load_model(tmp_path / "cut")
        assert name.rpartition(".")[2] in str(e.value) or tied  # of tied ones either name
        shutil.rmtree(tmp_path / "cut")


@pytest.mark.parametrize(
    ("family", "old"),
    [
        ("gpt2", {"transformer.h.0.attn.bias": torch.ones(1, 1, 128, 128), "transformer.h.0.attn.masked_bias": None}),
        ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
        ("gpt_neox", {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(4)}),
    ],
)
def test_buffers_of_older_checkpoints_do_no_harm(family: str, old: dict[str, Any], tmp_path: Path) -> None:
    saved(tmp_path, family)
    extra = {name: torch.tensor(-1e4) if value is None else value for name, value in old.items()}
    rewrite(tmp_path, lambda tensors: tensors | extra)
    torch.testing.assert_close(logits(load_model(tmp_path)[0]), logits(tiny_model(family)), rtol=0, atol=0)


def test_a_checkpoint_of_the_body_alone_with_a_tied_head_is_whole(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    save_model(model, tiny_tokenizer(), tmp_path)
    model.transformer.save_pretrained(tmp_path)  # its names lack the prefix, as those of the first GPT-2 do
    torch.testing.assert_close(logits(load_model(tmp_path)[0]), logits(model), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("prefix", "maker"), [("module.", "DistributedDataParallel"), ("_orig_mod.", "torch.compile")]
)
def test_a_prefix_before_all_names_is_named(prefix: str, maker: str, tmp_path: Path) -> None:
    saved(tmp_path, "qwen2")
    rewrite(tmp_path, lambda tensors: {prefix + name: value for name, value in tensors.items()})
    with pytest.raises(UserError, match=rf"Its names begin with '{prefix}', as {maker} leaves them: take that off"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": 3, "layer_types": None},
        {"num_hidden_layers": 1, "layer_types": None},
        {"mlp_bias": True},
        {"attention_bias": True},
        {"model_type": "qwen2", "architectures": None},
        {"tie_word_embeddings": False},
        {"intermediate_size": 128},
        {"vocab_size": 400},
    ],
)
def test_a_config_of_another_model_is_refused(fields: dict[str, Any], tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path / "config.json", **fields)
    with pytest.raises(UserError, match="would be random numbers|cannot be loaded|weights of more blocks"):
        load_model(tmp_path)


def test_no_tensor_at_all(tmp_path: Path) -> None:
    saved(tmp_path)
    rewrite(tmp_path, lambda tensors: {"unrelated": torch.ones(1)})
    with pytest.raises(
        UserError, match=r"weights .*It holds 1 other tensors \(unrelated\): is config.json that of ano"
    ):
        load_model(tmp_path)


def test_more_layers_than_could_be_built(tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path / "config.json", num_hidden_layers=2**31)
    with pytest.raises(
        UserError, match=rf"has {2**31} layers by its config.json \(num_hidden_layers\), but 20 tensors"
    ):
        load_model(tmp_path)


def test_a_model_of_the_hub_that_is_not_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"missing_keys": {"lm_head.weight"}, "unexpected_keys": set(), "mismatched_keys": {("a.b", (1,), (2,))}}
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: (tiny_model("qwen2"), info))
    with pytest.raises(UserError, match=r"model 'some/one' lacks 2 of 27 weights \(a.b, lm_head.weight\)"):
        load_model("some/one")


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd"])
def test_an_index_that_names_files_elsewhere(name: str, tmp_path: Path) -> None:
    saved(tmp_path / "other")
    path = saved(tmp_path / "model")
    names = dict.fromkeys(load_file(path / WEIGHTS), name)
    (path / WEIGHTS).rename(path / "unused.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(UserError, match=rf"has weights elsewhere \('{name}' in model.safetensors.index.json\)"):
        load_model(path)


# Judges


def test_a_classifier_whose_head_is_new_is_no_judge(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=300, **sizes)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"scorer 'hf:.*' lacks 2 of \d+ weights \(classifier.bias, classifier.weight\)"
    ):
        HFScorer(str(tmp_path))


def test_a_language_model_is_no_judge(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scorer 'hf:.*' lacks 1 of \d+ weights \(score.weight\)"):
        HFScorer(str(saved(tmp_path, "gpt2")))


# Adapters


def adapter(directory: Path, config: Any = None, family: str = "llama") -> tuple[Path, torch.Tensor]:
    """A saved adapter with its base beside it, and what it computes."""
    base, tokenizer = load_model(saved(directory / "base", family))
    config = config or LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(base, config)
    save_model(model, tokenizer, directory / "adapter")
    return directory / "adapter", logits(model.eval())


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
        LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1], init_lora_weights=False),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"], init_lora_weights=False),
        LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"], init_lora_weights=False),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
    ids=["linear", "one layer", "modules_to_save", "embeddings", "prompt tuning"],
)
def test_a_whole_adapter_loads(config: Any, tmp_path: Path) -> None:
    path, expected = adapter(tmp_path, config)
    torch.testing.assert_close(logits(load_model(path)[0]), expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_is_frozen_unless_it_is_to_be_trained(tmp_path: Path) -> None:
    path, expected = adapter(tmp_path)
    frozen, _ = load_model(path)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    model, _ = load_model(path, trainable=True)
    moved = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved == {name for name, _ in model.named_parameters() if "lora_" in name} and not model.training
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    logits_with_graph = model(input_ids=torch.tensor([[5, 6, 7]])).logits
    logits_with_graph.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("rename", "match"),
    [
        (lambda name: name.replace("self_attn", "attention"), r"lacks \d+ of \d+ weights .*It holds"),
        (lambda name: f"module.{name}", r"Its names begin with 'module.'|It holds \d+ other tensors"),
        (lambda name: name if "layers.0" in name else None, r"lacks \d+ of \d+ weights \(base_model.*layers.1"),
    ],
)
def test_an_adapter_whose_names_do_not_match_is_refused(rename: Any, match: str, tmp_path: Path) -> None:
    path, _ = adapter(tmp_path)
    rewrite(
        path,
        lambda tensors: {rename(name): value for name, value in tensors.items() if rename(name)},
        "adapter_model.safetensors",
    )
    with pytest.raises(UserError, match=match):
        load_model(path)


@pytest.mark.parametrize(
    "fields",
    [{"layers_to_transform": [99]}, {"layers_to_transform": [0]}, {"target_modules": ["q_proj"]}, {"r": 4}],
)
def test_an_adapter_with_the_config_of_another_is_refused(fields: dict[str, Any], tmp_path: Path) -> None:
    path, _ = adapter(tmp_path, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    edit(path / "adapter_config.json", **fields)
    with pytest.raises(UserError, match="tensors have no place there|cannot be loaded"):
        load_model(path)


def test_an_adapter_without_effect_is_refused(tmp_path: Path) -> None:
    path, _ = adapter(tmp_path)
    edit(path / "adapter_config.json", layers_to_transform=[99], target_modules=["q_proj"])
    rewrite(path, lambda tensors: {}, "adapter_model.safetensors")
    with pytest.raises(UserError, match="it adapts none of its modules|not found in the base model"):
        load_model(path)


def test_adapters_that_name_themselves_or_each_other(tmp_path: Path) -> None:
    path, _ = adapter(tmp_path)
    edit(path / "adapter_config.json", base_model_name_or_path=str(path))
    with pytest.raises(UserError, match=r"adapter '.*adapter' is its own base model \(.* -> .*\). Put the model"):
        load_model(path)
    shutil.copytree(path, tmp_path / "other")
    edit(path / "adapter_config.json", base_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(UserError, match="is its own base model"):
        load_model(path)


def test_an_adapter_of_an_adapter(tmp_path: Path) -> None:
    path, _ = adapter(tmp_path)
    shutil.copytree(path, tmp_path / "second")
    edit(tmp_path / "second" / "adapter_config.json", base_model_name_or_path=str(path))
    with pytest.raises(UserError, match="was made for '.*adapter', which is an adapter itself. Merge that"):
        load_model(tmp_path / "second")


@pytest.mark.parametrize("base", [5, ["a"], {"a": 1}])
def test_a_base_that_is_no_name(base: Any, tmp_path: Path) -> None:
    path, _ = adapter(tmp_path)
    edit(path / "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(UserError, match="names no base model: base_model_name_or_path in adapter_config.json is"):
        load_model(path)


# Files of a wrong shape

WRONG: list[Any] = [None, [], {}, "x", -1, 0, 1.5, [None], {"a": 1}, 10**30]


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_fields_of_a_wrong_type_are_refused_or_do_no_harm(name: str, step: int, tmp_path: Path) -> None:
    saved(tmp_path / "model")
    file = tmp_path / "model" / name
    content = file.read_text()
    pairs = [(field, value) for field in json.loads(content) for value in WRONG]
    for field, value in pairs[:: 7 * step]:  # 7 and the number of values have no common factor: each comes up
        file.write_text(json.dumps(json.loads(content) | {field: value}))
        try:
            load_model(tmp_path / "model")
        except (UserError, RunError) as error:
            assert "\n" not in str(error) and len(str(error)) < 1000 + len(str(tmp_path))


@pytest.mark.parametrize("content", ["[]", "5", "null", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "{", "", "\0"])
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "generation_config.json", "adapter_config.json"]
)
def test_json_that_is_none(name: str, content: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    (path / name).write_text(content)
    try:
        load_model(path)
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "no-such-method"])
def test_a_quantised_model_without_its_package(method: str, tmp_path: Path) -> None:
    saved(tmp_path)
    flags = {"load_in_4bit": True} if method == "bitsandbytes" else {}  # else it would stand for any of them
    edit(tmp_path / "config.json", quantization_config={"quant_method": method, "bits": 4, "group_size": 128, **flags})
    known = r"cannot be loaded \(.+\). (Install what it needs|Save)"
    unknown = "is quantised by 'no-such-method', which this transformers does not know"
    with pytest.raises(UserError, match=unknown if method == "no-such-method" else known):
        load_model(tmp_path)


def test_code_of_a_repository_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for name in ("config.json", "tokenizer_config.json"):
        content = (tmp_path / name).read_text()
        classes = {
            "AutoConfig": "evil.Evil",
            "AutoModelForCausalLM": "evil.Evil",
            "AutoTokenizer": ["evil.Evil", None],
        }
        edit(tmp_path / name, auto_map=classes, model_type="evil", tokenizer_class="Evil")
        with pytest.raises(UserError, match="it needs code of its own.* Code from a repository is never run"):
            load_model(tmp_path)
        if name == "config.json":
            with pytest.raises(UserError, match="it needs code of its own"):
                HFScorer(str(tmp_path))
        (tmp_path / name).write_text(content)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["x" * 5000, "./" + "y/" * 3000, "z" * 300 + ".gguf", "a\0b", "\n", ""])
def test_names_that_no_file_system_takes(name: str) -> None:
    with pytest.raises(UserError) as error:
        load_model(name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_an_unknown_dtype(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dtype 'float7' is none of torch's"):
        load_model(tmp_path, dtype="float7")


# The true reason


class Panic(BaseException):
    """As the Rust of tokenizers raises it."""


Panic.__name__ = "PanicException"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        SafetensorError("Error while deserializing: I/O error: Cannot allocate memory (os error 12)"),
    ],
)
def test_want_of_memory_is_no_damaged_file(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    saved(tmp_path)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(RunError, match=r"model directory '.*' does not fit into memory \(.+\). Pass a smaller one"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("model_type"), r"\(KeyError: 'model_type'\). Again."),
        (Exception("bad file\nat line 3"), r"\(bad file\). Again."),
        (Panic("Option::unwrap()"), r"\(Option::unwrap\(\)\). Again."),
        (ValueError("x" * 5000 + "\x1b[2J"), r"\(x{297}\.\.\.\). Again."),
        (ValueError("a\x1b[2Jb"), r"\(a \[2Jb\). Again."),
        (OSError(errno.EACCES, "Permission denied", "/some/file"), r"\(Permission denied\). Again."),
        (RecursionError(), r"\(RecursionError\). Again."),
    ],
)
def test_one_line_whatever_is_raised(error: BaseException, reason: str) -> None:
    with pytest.raises(UserError, match=f"^it cannot be loaded {reason}$"), explained("it", "Again."):
        raise error


def test_what_is_ours_and_an_interruption_pass() -> None:
    for error in (UserError("a"), RunError("b"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as found, explained("it"):
            raise error
        assert found.value is error


def test_a_model_object_that_names_no_tokenizer() -> None:
    model: PreTrainedModel = tiny_model("gpt2")
    model.config._name_or_path = "/no/such/place"
    with pytest.raises(
        UserError, match="GPT2LMHeadModel names no checkpoint with a tokenizer: '/no/such/place' cannot"
    ):
        tokenizer_of(model)


def test_a_tokenizer_of_another_kind_of_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise Exception("data did not match any variant of untagged enum")  # bare, as tokenizers raises it

    saved(tmp_path)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(
        UserError, match=r"cannot be loaded \(data did not match any variant.*\). Save the model again"
    ):
        load_model(tmp_path)
