"""Is a judging language model asked as its makers do, and is its score the probability of its verdict?

Of: scoring/guard_texts.py
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from efface.errors import UserError
from efface.evaluation.measure import evaluate
from efface.generation.decoding import Decoding
from efface.model.save import save_model
from efface.scoring import load_scorer
from efface.scoring.cache import cache_scores
from efface.scoring.llm import TEMPLATES, LLMScorer, find_template, first_tokens
from efface.scoring.scorer import score

CHAT = (
    "{{ guideline or '' }}{% for turn in messages %}<{{ turn['role'] }}>{{ turn['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<verdict>{% endif %}"
)
PROMPTS = ["The town is", "What do you think of him?", "The town is"]
TEXTS = [" old.", " He is a fool and everybody says so, day after day.", "  "]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge") / "tiny"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    save_model(tiny_model("llama"), tokenizer, folder)
    return folder


def scorer_of(judge: Path, template: str, **more: object) -> LLMScorer:
    return LLMScorer(str(judge), template=template, least=0, device="cpu", **more)  # type: ignore[arg-type]


@torch.no_grad()
def by_hand(scorer: LLMScorer, template: str, prompt: str, text: str) -> float:
    """p(toxic) / (p(toxic) + p(clean)) from one pass over each of the texts that it is asked, the highest of them."""
    model, tokenizer, how = scorer._model, scorer._tokenizer, TEMPLATES[template]
    found = []
    for whole in how.ask(tokenizer, prompt, text):
        ids, toxic, clean = tokenizer(whole, add_special_tokens=False)["input_ids"], 0.0, 1.0
        for number, line in enumerate(how.lines):
            if number:
                ids = [*ids, (scorer._toxic if toxic > clean else scorer._clean)[0]]
            ids = [*ids, *(tokenizer(line, add_special_tokens=False)["input_ids"] if line else [])]
            p = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
            toxic, clean = p[scorer._toxic].sum().item(), p[scorer._clean].sum().item()
        found.append(toxic / (toxic + clean))
    return max(found)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_score_is_the_probability_of_its_verdict(template: str, judge: Path) -> None:
    scorer = scorer_of(judge, template)
    if set(scorer._tokenizer.decode(scorer._next([[5]]).argmax(-1).tolist()).strip()) == set():
        pytest.skip("the tiny model writes white space first")
    found = score(scorer, TEXTS, PROMPTS)
    expected = [by_hand(scorer, template, *both) for both in zip(PROMPTS[:2], TEXTS[:2], strict=True)]
    np.testing.assert_allclose(found, [*expected, 0], atol=1e-5)
    np.testing.assert_allclose(found, score(scorer_of(judge, template, batch_size=1), TEXTS, PROMPTS), atol=1e-5)
    assert not np.allclose(found[:2], score(scorer, TEXTS)[:2], atol=1e-6)  # the prompt is read


def test_it_is_asked_in_the_words_of_its_makers(judge: Path) -> None:
    tokenizer = scorer_of(judge, "question")._tokenizer
    (guard,) = TEMPLATES["llama-guard"].ask(tokenizer, "Hi {x}", " there")
    assert guard == "<user>Hi {x}\n<assistant> there\n<verdict>"
    (alone,) = TEMPLATES["llama-guard"].ask(tokenizer, None, "there")
    assert alone == "<user>there\n<verdict>"
    harassment, hate = TEMPLATES["shieldgemma"].ask(tokenizer, "Hi", "there")
    assert harassment.startswith('"No Harassment": The chatbot shall not') and hate.startswith('"No Hate Speech": The')
    assert harassment.endswith("<user>Hi\n<assistant>there\n<verdict>")
    (wild,) = TEMPLATES["wildguard"].ask(tokenizer, "Hi", "there")
    assert "Human user:\nHi\n\nAI assistant:\nthere\n\n---\n\nAnswers: [/INST]\n<|assistant|>\n" in wild
    assert find_template("meta-llama/Llama-Guard-3-8B") == find_template("meta-llama/LlamaGuard-7b") == "llama-guard"
    assert find_template("google/shieldgemma-2b") == "shieldgemma" and find_template("me/any") == "question"


def test_white_space_before_the_verdict_is_passed_over(judge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_of(judge, "question")
    blank = next(i for i in range(len(scorer._tokenizer)) if scorer._tokenizer.decode([i]) == " ")
    rows_seen = []

    def after(rows: Sequence[list[int]]) -> torch.Tensor:
        rows_seen.append(list(rows))
        p = torch.zeros(len(rows), len(scorer._tokenizer))
        for each, row in zip(p, rows, strict=True):
            each[blank if row[-1] != blank else scorer._toxic[0]] = 0.6
            each[scorer._clean[0]] = 0.2
        return p

    monkeypatch.setattr(scorer, "_next", after)
    assert scorer(["a", "b"]).tolist() == pytest.approx([0.75, 0.75])
    assert len(rows_seen) == 2 and all(row[-1] == blank for row in rows_seen[1])


def test_a_model_that_does_not_answer_is_refused(judge: Path) -> None:
    with pytest.raises(UserError, match="answers neither 'yes' nor 'no' .* template 'question'. Pass llm:MODEL,templ"):
        LLMScorer(str(judge), least=0.9)(["a text"])
    with pytest.raises(UserError, match="template='nosuch': there are llama-guard, shieldgemma"):
        LLMScorer(str(judge), template="nosuch")


def test_what_it_says_of_a_text_depends_on_no_other(
    judge: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = LLMScorer(str(judge), template="question", device="cpu")
    refused = scorer._tokenizer("a fool", add_special_tokens=False)["input_ids"]

    def after(rows: Sequence[list[int]]) -> torch.Tensor:
        p = torch.zeros(len(rows), len(scorer._tokenizer))
        for each, row in zip(p, rows, strict=True):
            asked = scorer._tokenizer.decode(row)
            each[scorer._toxic[0]], each[scorer._clean[0]] = (3e-5, 1e-5) if "zebra" in asked else (0.2, 0.6)
            each[refused[0]] = 0.1
        return p

    monkeypatch.setattr(scorer, "_next", after)
    assert scorer(["a horse", "a zebra"]).tolist() == pytest.approx([0.25, 0.75])
    assert "of 1 of 2 texts neither 'yes' nor 'no' was likely (together below 0.01)" in caplog.text
    assert scorer(["a zebra"]).tolist() == pytest.approx([0.75])


def test_a_prompt_is_not_what_a_model_is_asked_about(judge: Path) -> None:
    (asked,) = TEMPLATES["question"].ask(scorer_of(judge, "question")._tokenizer, "You fool, the bull", "dog is nice.")
    assert 'Text: "You fool, the bull"' in asked and 'Continuation: "dog is nice."' in asked
    assert "Is the continuation toxic?" in asked


def test_it_reads_what_the_model_has_read_of_a_prompt(judge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, read = scorer_of(judge, "llama-guard"), list[str]()
    monkeypatch.setattr(
        scorer, "of_answers", lambda prompts, texts: read.extend(prompts) or np.full(len(texts), 0.5), raising=False
    )
    model, prompt = tiny_model("gpt2"), "one two three four five six seven eight"
    decoding = Decoding(max_prompt_tokens=2, truncation="last", max_new_tokens=3, samples=1)
    evaluate(model, [prompt], processing_class=tiny_tokenizer(), scorer=scorer, decoding=decoding)
    ids = tiny_tokenizer()(prompt)["input_ids"]
    assert read == [tiny_tokenizer().decode(ids[-2:])]


def test_a_tokenizer_without_template(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    save_model(tiny_model("llama"), tokenizer, tmp_path / "plain")
    with pytest.raises(UserError, match="no chat template"):
        LLMScorer(str(tmp_path / "plain"))(["a text"])


def test_verdicts_with_and_without_blank_and_capital(judge: Path) -> None:
    tokenizer = scorer_of(judge, "question")._tokenizer
    written = [tokenizer.decode([one]).strip() for one in first_tokens(tokenizer, "yes")]
    assert written and all("yes".startswith(one.lower()) for one in written)


def test_an_evaluation_shows_it_the_prompts_and_caches_by_them(judge: Path, tmp_path: Path) -> None:
    scorer = cache_scores(scorer_of(judge, "llama-guard"), tmp_path / "scores.sqlite")
    found = evaluate(
        tiny_model("gpt2"),
        ["The town", "The river"],
        processing_class=tiny_tokenizer(),
        scorer=scorer,
        decoding=Decoding(max_new_tokens=4),
    )
    rows = found.generations
    prompts, texts = ([row[name] for row in rows] for name in ("prompt", "continuation"))
    plain = scorer_of(judge, "llama-guard")
    np.testing.assert_allclose([row["score"] for row in rows], score(plain, texts, prompts), atol=1e-6)
    same = score(scorer, [texts[0], texts[0]], ["The town", "Another"])
    np.testing.assert_allclose(same, score(plain, [texts[0]] * 2, ["The town", "Another"]), atol=1e-6)
    assert same[0] != same[1]


def test_by_name_with_options(judge: Path) -> None:
    scorer = load_scorer(f"llm:{judge},template=llama-guard,threshold=0.9")
    assert scorer.name == f"llm:{judge},template=llama-guard,threshold=0.9"
    for options, message in (
        (",threshold=2", "threshold=2 must be a number between 0 and 1"),
        (",label=x", "'label=x' is none of template=..., threshold=..., each once"),
    ):
        with pytest.raises(UserError, match=message):
            load_scorer(f"llm:{judge}{options}")
