"""Are weights that a checkpoint lacks an error that names them? They would be random numbers."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import WEIGHTS, edit, logits, rewrite, saved
from safetensors.torch import load_file
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from efface.errors import UserError
from efface.model.load import load_model
from efface.model.save import save_model
from efface.scoring.hf import HFScorer

QUICK = {"gpt2", "gemma3", "qwen2", "opt"}


FAMILY_GRID = [family if family in QUICK else pytest.param(family, marks=pytest.mark.full) for family in FAMILIES]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILY_GRID)
def test_every_weight_is_needed_and_a_tied_one_once(
    family: str, tied: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, family, tie_word_embeddings=tied)
    capfd.readouterr()
    names = list(load_file(tmp_path / WEIGHTS))
    model, _ = load_model(tmp_path)
    heads = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (heads[0] is heads[1]) == tied
    for name in (names[0], names[len(names) // 2]):
        shutil.copytree(tmp_path, tmp_path / "cut")
        rewrite(tmp_path / "cut", lambda tensors, name=name: {k: v for k, v in tensors.items() if k != name})
        with pytest.raises(UserError, match=r"cut' lacks \d of \d+ weights \(.*\): they would be random numbers") as e:
            load_model(tmp_path / "cut")
        assert "LOAD REPORT" not in capfd.readouterr().err  # transformers tells it in a table
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


def test_a_model_of_the_hub_that_is_not_whole(open_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"missing_keys": {"lm_head.weight"}, "unexpected_keys": set(), "mismatched_keys": {("a.b", (1,), (2,))}}
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: (tiny_model("qwen2"), info))
    with pytest.raises(UserError, match=r"model 'some/one' lacks 2 of 27 weights \(a.b, lm_head.weight\)"):
        load_model("some/one")


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
