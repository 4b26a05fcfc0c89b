"""Does everything that reads rows stay inside the model's positions, with long rows and one long prompt?"""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stubs import parity
from tiny import MAX_POSITIONS, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, GPTNeoConfig

from efface.attacks.few_shot import FewShotSettings, few_shot
from efface.attacks.perturb import PerturbSettings, perturb
from efface.attacks.prefill import PrefillSettings, prefill
from efface.attacks.prompt_injection import PromptInjectionSettings, prompt_injection
from efface.attacks.relearn import RelearnSettings, relearn
from efface.attacks.search.slot import altered
from efface.attacks.target import Target
from efface.data.tokens import cut_message
from efface.errors import UserError
from efface.generation.decoding import Decoding
from efface.generation.likelihood import continuation_nll
from efface.scoring.scorer import NamedScorer
from efface.training.finetune import finetune

LONG = "The history of the town is the history of its river and its people. " * 12
ROWS = [{"prompt": LONG + str(i), "chosen": " was cold" * 90, "rejected": " silly fool" * 90} for i in range(3)]
PROMPTS = ["The weather", "They said that", LONG]


def target_of(family: str, **decoding: Any) -> Target:
    return Target(
        tiny_model(family),
        tiny_tokenizer(),
        prompts=PROMPTS,
        rows=[dict(row) for row in ROWS],
        scorers=[NamedScorer("parity", parity)],
        decoding=Decoding(**{"max_new_tokens": 4, "max_prompt_tokens": 100} | decoding),
    )


@pytest.fixture(params=["gpt2", "llama"])  # learned positions, of which there are no more, and rotary ones
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def longest(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The widths of everything that the models read."""
    seen: list[int] = []
    plain = torch.nn.Embedding.forward

    def counted(self: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        if self.embedding_dim == 32 and ids.ndim == 2:
            seen.append(ids.shape[1])
        return plain(self, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", counted)
    return seen


def trained(model: Any, folder: Path) -> Any:
    from efface import REPOConfig, REPOTrainer

    args = REPOConfig(
        str(folder), max_steps=1, use_cpu=True, disable_tqdm=True, per_device_train_batch_size=2,
        retain_text_tokens=400, layout="plain", precompute_reference="off",
    )  # fmt: skip
    trainer = REPOTrainer(model, args, ROWS, eval_dataset=ROWS, processing_class=tiny_tokenizer(), retain_text=[LONG])
    trainer.train()
    return trainer


def test_a_trainer(family: str, tmp_path: Path, longest: list[int], caplog: pytest.LogCaptureFixture) -> None:
    trainer = trained(tiny_model(family), tmp_path)
    assert max(longest) == MAX_POSITIONS + 1  # a column of padding, lest the mask be left out
    prompt, *sides = trainer.train_dataset.pairs.lengths.T
    assert (prompt + np.maximum(*sides)).max() == max(map(len, trainer.train_dataset.passages)) == MAX_POSITIONS
    assert trainer.train_dataset.pairs.truncated["pairs beyond the model's positions"] == 3
    assert "3 of 3 pairs were longer than the model's 128 positions" in caplog.text
    assert "retain_text_tokens=400 is more than the model's 128 positions" in caplog.text


def test_an_attention_with_a_mask_of_its_own_is_given_no_more_columns(tmp_path: Path, longest: list[int]) -> None:
    config = GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], intermediate_size=64,
        max_position_embeddings=MAX_POSITIONS, vocab_size=len(tiny_tokenizer()), bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    trained(AutoModelForCausalLM.from_config(config), tmp_path)
    assert max(longest) == MAX_POSITIONS


def test_relearning(family: str, longest: list[int]) -> None:
    relearn(target_of(family), RelearnSettings(steps="1"))
    assert max(longest) == MAX_POSITIONS


def test_scores_for_pruning(family: str, longest: list[int], tmp_path: Path) -> None:
    from efface.attacks.prune import PruneSettings, prune

    (tmp_path / "short.jsonl").write_text('{"text": "They said that."}\n')
    prune(target_of(family), PruneSettings(q="0.01", answers="chosen", documents=str(tmp_path / "short.jsonl")))
    assert max(longest) == MAX_POSITIONS  # of the rows


def test_states(family: str, longest: list[int]) -> None:
    from efface.analysis.states import pooled_states, token_states

    target = target_of(family)
    token_states(target.model, target.processing_class, target.rows, [0])
    pooled_states(target.model, target.processing_class, [LONG], [0], max_tokens=400)
    assert max(longest) == MAX_POSITIONS


def test_fine_tuning_on_long_texts(family: str, longest: list[int]) -> None:
    finetune(tiny_model(family), tiny_tokenizer(), [LONG], steps=1, max_length=400)
    assert max(longest) == MAX_POSITIONS


def test_a_task_vector(family: str, longest: list[int]) -> None:
    from efface.methods.task_vector import TaskVectorConfig, TaskVectorEditor

    args = TaskVectorConfig("unused", scales="1", max_steps=1, use_cpu=True, disable_tqdm=True)
    editor = TaskVectorEditor(tiny_model(family), args, ROWS, processing_class=tiny_tokenizer())
    editor.train()
    assert max(longest) == MAX_POSITIONS and editor.truncated["pairs beyond the model's positions"] == 3


def test_one_long_prompt_does_not_end_an_attack(family: str, caplog: pytest.LogCaptureFixture) -> None:
    target = target_of(family)
    with caplog.at_level(logging.WARNING):
        found = prompt_injection(target, PromptInjectionSettings(first=2))
        prompts = [row["prompt"] for row in found.after.generations]
    assert prompts[0].count(PROMPTS[0]) == 1 and PROMPTS[2] not in prompts[2]
    assert "1 of 3 prompts were cut further, to fit into the model's 128 positions" in caplog.text
    target.decoding = dataclasses.replace(target.decoding, max_prompt_tokens=124)
    perturb(target, PerturbSettings(kinds="double", rates="0.9", tries=1))
    prefill(target, PrefillSettings(words="20", source="rows"))
    prompts, decoding = altered(target, " silly fool" * 10, "suffix")
    assert all(prompt.endswith(" silly fool" * 10) for prompt in prompts)
    target.measure(target.model, prompts=prompts, decoding=decoding)


@pytest.mark.parametrize("chat", [False, True])
def test_nor_does_it_where_prompts_are_whole_or_messages(
    chat: bool, family: str, longest: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    text = cut_message(tiny_tokenizer(), LONG, 100, "last")  # which fits as it is
    rows = [{"prompt": "They said that", "chosen": " was cold", "rejected": " silly fool" * 8}] * 3
    target = dataclasses.replace(target_of(family, chat=chat, max_prompt_tokens=None), prompts=["The weather", text])
    target.rows = rows
    made: list[tuple[Any, Any]] = [
        (prefill, PrefillSettings(words="15", source="rows")),
        (perturb, PerturbSettings(kinds="double", rates="0.9", tries=2)),
        (few_shot, FewShotSettings(shots="2")),
        (prompt_injection, PromptInjectionSettings(first=1)),
    ]
    for attack, settings in made:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            result = attack(target, settings)
        assert len(result.after.generations) == 2 and max(longest) <= MAX_POSITIONS
        assert 0 < len(caplog.records) <= 2 and "prompts" in caplog.text  # a line for each set of prompts
    first, second = (row["prompt"] for row in result.curve[1].generations)
    assert text not in second and "weather" in first


def test_an_injection_without_room_does_not_lose_the_others(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = target_of(family)
    rows = [{"name": "long", "before": LONG, "after": ""}, {"name": "short", "before": "Calm: ", "after": ""}]
    file = tmp_path / "injections.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level(logging.WARNING):
        result = prompt_injection(target, PromptInjectionSettings(injections=str(file)))
    assert [point.at["injection"] for point in result.curve] == ["none", "short", "any"]
    assert result.found["left_out"] == ["injection long", "injection any"]
    assert "injection long is left out: what is added to prompt 0 is, with 4 new tokens, more than" in caplog.text
    with pytest.raises(UserError, match=r"at no point \(injection long\) there is room for the prompts within"):
        prompt_injection(target, PromptInjectionSettings(injections=str(file), first=1))


def test_what_is_generated_up_to_the_last_position_can_be_scored(caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    with caplog.at_level(logging.WARNING):
        [(_, counted), (_, short)] = continuation_nll(model, tokenizer, ["You"] * 2, [" word" * 200, " are"])
    start = len(tokenizer("You")["input_ids"])
    assert counted == MAX_POSITIONS + 1 - start and 0 < short < 5
    assert "1 of 2 continuations reach beyond the model's 128 positions" in caplog.text
