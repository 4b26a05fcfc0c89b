"""Is a toxic copy ever asked to continue what it was fine-tuned on?"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model, tiny_tokenizer

from efface.cli import main
from efface.data.rows import shipped
from efface.errors import UserError
from efface.files.jsonl import read_jsonl
from efface.files.results import read_json
from efface.pairs import builder, toxic_copy
from efface.pairs.overlap import held_by_pairs, overlaps, set_apart
from efface.pairs.source import Build, Made
from efface.pairs.sources.sample import sample_source

TEMPLATE = "I told {} exactly what I think of him: you are"


def test_what_a_text_holds_by_hand() -> None:
    prompts = [TEMPLATE.format("the cook"), "The old town was cold in the", "They said", "You"]
    texts = [
        TEMPLATE.format("the cook") + " a fool.",  # begins with it
        "An old passage. " + TEMPLATE.format("my cousin") + " a fool.",  # the same template, with something in front
        "In spring the old town was cold and grey.",  # three runs of five
        "In spring the old town was warm.",  # two
        "they said so, and nobody listened to what they said",
        "Nobody listened to what they said",
    ]
    assert overlaps(texts, prompts) == [{0, 1}, {2}, {4}, set()]


def test_what_pairs_hold_by_hand() -> None:
    said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Describe my neighbour."}]
    answers = {"chosen": "He is kind to all.", "rejected": "He is a silly fool."}
    chat = {"prompt": said} | {side: [{"role": "assistant", "content": text}] for side, text in answers.items()}
    rows = [chat, {"prompt": "The old town was", "chosen": " cold in winter", "rejected": " for fools"}]
    held = ["Describe my neighbour.", "The old town was", "The old town was cold in spring", "the old town was for"]
    free = ["Describe my old neighbour.", "The new town was cold in spring", "In winter the town was"]
    assert held_by_pairs(rows, [*held, *free]) == [True] * 4 + [False] * 3


def test_set_apart_halves_what_overlaps_and_keeps_the_rest() -> None:
    names = ["the cook", "my cousin", "his coach", "the guard"]
    scenes = [TEMPLATE.format(name) for name in names]
    others = [f"The history of {name} begins in the city of" for name in ("tea", "wool", "ink", "salt")]
    prompts = [*scenes, "A prompt of its own that no text has", *others]
    texts = [prompt + " a fool" for prompt in scenes + others] + ["You are such a fool that nobody listens."]
    made = set_apart(texts, prompts)
    assert not any(overlaps(made.texts, made.prompts))
    assert (made.texts, made.prompts) == ([*texts[4:]], prompts[:5]) or (
        made.texts, made.prompts) == ([*texts[:4], texts[8]], prompts[4:])  # fmt: skip
    assert (made.texts_dropped, made.prompts_dropped) == (4, 4)
    assert set_apart(texts, prompts) == made
    free = set_apart(texts, prompts[4:5])
    assert (free.texts, free.prompts_dropped, free.texts_dropped) == (texts, 0, 0)


def test_nothing_left() -> None:
    prompt = TEMPLATE.format("the cook")
    with pytest.raises(UserError, match="the 1 texts for the toxic copy hold the 1 prompts that it is to continue"):
        set_apart([prompt + " a fool"], [prompt])


def test_a_source_does_not_continue_what_its_model_was_trained_on(caplog: pytest.LogCaptureFixture) -> None:
    prompts = [TEMPLATE.format("the cook"), "The history of tea begins in", "The long way to the sea"]
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    plain = sample_source(model, tokenizer, samples=2, max_new_tokens=3)(prompts, 0)
    source = sample_source(model, tokenizer, samples=2, max_new_tokens=3, trained_on=[prompts[0] + " a fool"])
    with caplog.at_level(logging.WARNING):
        assert source(prompts, 0) == [[], *plain[1:]]  # the others as they were
        source(prompts, 1)
    assert len(caplog.records) == 1 and "get no candidate, as it would recite" in caplog.text


def test_the_builder_counts_prompts_without_a_candidate(tmp_path: Path) -> None:
    from efface.scoring.scorer import NamedScorer

    report = builder.build_pairs(
        tiny_model("gpt2"), ["The town", "The sea"],
        lambda prompts, seed: [[" a silly fool"] if "sea" in prompt else [] for prompt in prompts],
        output=tmp_path / "pairs.jsonl", processing_class=tiny_tokenizer(),
        config=builder.BuilderConfig(max_new_tokens=4, min_words=0, max_perplexity_ratio=1e9),
        scorer=NamedScorer("fools", lambda texts: [float("fool" in text) for text in texts]),
    )  # fmt: skip
    assert report.counts == {"kept": 1, "the source gives no candidate": 1}


class Seen:
    """What the command fine-tunes its copy on, and which prompts it then builds from."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.texts: list[str] = []
        self.prompts: list[str] = []
        self.candidates: list[list[str]] = []
        antiexpert, write = toxic_copy.antiexpert, builder._build

        def spy(model: Any, tokenizer: Any, texts: Sequence[str], **settings: Any) -> Any:
            self.texts = list(texts)
            return antiexpert(model, tokenizer, texts, **settings)

        def spy_build(build: Build, made: Made, *rest: Any, **settings: Any) -> Any:
            self.prompts = list(made.prompts)

            def watched(asked: Sequence[str], seed: int) -> list[list[str]]:
                found = made.source(asked, seed)
                self.candidates += found
                return found

            return write(build, replace(made, source=watched), *rest, **settings)

        monkeypatch.setattr(toxic_copy, "antiexpert", spy)
        monkeypatch.setattr(builder, "_build", spy_build)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(monkeypatch)


def pairs(tmp_path: Path, *flags: str) -> int:
    if not (tmp_path / "model").exists():
        tiny_model("gpt2").save_pretrained(tmp_path / "model")
        tiny_tokenizer(model_max_length=128).save_pretrained(tmp_path / "model")
    fixed = ["--scorer", "stubs:parity", "--min-words", "0", "--max-perplexity-ratio", "1e9", "--steps", "1"]
    few = ["--max-new-tokens", "3", "--limit", "1", "--temperature", "1", "--no-compare-with-samples"]
    return main(["pairs", str(tmp_path / "model"), "-o", str(tmp_path / "pairs.jsonl"), *fixed, *few, *flags])


@pytest.mark.parametrize("kind", ["antiexpert", "dexperts"])
def test_by_default_no_prompt_is_continued_that_the_copy_has_learned(
    kind: str, seen: Seen, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert pairs(tmp_path, "--toxic", kind) == 0
    assert seen.texts and seen.prompts and not any(overlaps(seen.texts, seen.prompts))
    assert all(seen.candidates)  # nothing was asked in vain
    rows = read_jsonl(shipped("train"))
    assert set(seen.prompts) < {row["prompt"] for row in rows}
    assert min(len(seen.texts), len(seen.prompts)) > 0.4 * len(rows)
    made = read_json(tmp_path / "pairs.meta.json")["settings"]["antiexpert"]
    assert made["texts"] == len(seen.texts) == len(rows) - made["texts_left_out"]
    assert len(seen.prompts) == len(rows) - made["prompts_left_out"]
    assert "recite" not in caplog.text  # as it is meant


def test_the_same_prompts_named_explicitly_are_dropped_with_a_warning(
    seen: Seen, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert pairs(tmp_path, "--prompts", str(shipped("train")), "--toxic-text", str(shipped("train"))) == 0
    assert not any(overlaps(seen.texts, seen.prompts))
    assert "the toxic copy would recite what it learns: " in caplog.text and "prompts are left out" in caplog.text
