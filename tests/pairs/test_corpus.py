"""Are labelled texts split where they should be, do labels reach their tokens, and what prompts do documents give?

Of: data/text.py, pairs/prompts.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from efface.data.pair_tokens import tokenize_pair
from efface.data.text import body_sentences, joined, looks_edited, sentences
from efface.errors import UserError
from efface.files.jsonl import read_jsonl
from efface.pairs.builder import build_pairs
from efface.pairs.config import BuilderConfig
from efface.pairs.corpus import Corpus, load_corpus, token_labels
from efface.pairs.prompts import prompts_from_text
from efface.scoring.scorer import NamedScorer

FOOLS = NamedScorer("fools", lambda texts: [0.9 if "fool" in text else 0.1 for text in texts])


@pytest.fixture
def corpus(tmp_path: Path) -> Any:
    def make(*rows: dict[str, Any], **settings: Any) -> Corpus:
        file = tmp_path / "rows.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        return load_corpus([str(file)], tiny_tokenizer(), FOOLS, **{"max_tokens": 100, **settings})

    return make


def marked(text: str, *parts: str) -> dict[str, Any]:
    return {
        "text": text,
        "spans": [i for part in parts for i in range(text.index(part), text.index(part) + len(part))],
    }


# Spans


def test_a_marked_sentence_is_split_before_its_first_span(corpus: Any) -> None:
    text = "It is cold. They said to me that silly fools live here in the old town, fools. You bad men."
    made = corpus(marked(text, "silly fools", "town, fools", "bad"))
    assert made.rejected == {"They said to me that": " silly fools live here in the old town, fools."}
    (given,) = made.given.values()
    assert given == {"how": {"split": "spans"}, "rejected_spans": [(1, 12), (34, 45)]}
    rejected = made.rejected["They said to me that"]
    assert [rejected[start:end] for start, end in given["rejected_spans"]] == ["silly fools", "town, fools"]
    assert made.counts == {
        "split: spans": 1,
        "marked sentence is not edited or has no room before its span": 1,
        "sentence does not look edited": 0,
    }
    assert made.prompts == ["They said to me that"] and made.source(made.prompts, 3) == [[rejected]]


@pytest.mark.parametrize(
    ("text", "part", "prompt"),
    [
        # Half a word is marked: the whole word goes to the continuation.
        ("All of them are unbelievably silly people who never listen.", "believably", "All of them are"),
        # Too little is left after it: some words before the span go to the continuation too.
        ("All of them are known to be in this town bunch of fools.", "fools", "All of them are known to be in this"),
        # Too little stands before it.
        ("All of the fools in this town never listen to anybody.", "fools", None),
        ("all of them are known to be fools by the whole town.", "fools", None),  # not edited
    ],
)
def test_where_a_marked_sentence_is_split(text: str, part: str, prompt: str | None, corpus: Any) -> None:
    if prompt is None:
        with pytest.raises(UserError, match=r"none of the sentences of .* could be split .* Give more text"):
            corpus(marked(text, part))
        return
    made = corpus(marked(text, part))
    assert made.rejected == {prompt: text[len(prompt) :]}
    ((start, end),) = made.given[prompt]["rejected_spans"]
    assert text[len(prompt) :][start:end] == part


def test_a_continuation_is_cut_to_tokens_with_its_spans(corpus: Any) -> None:
    text = "They said to me that silly fools live here in the old town, and more of these fools."
    made = corpus(marked(text, "silly fools", "these fools"), max_tokens=12)
    (rejected,) = made.rejected.values()
    assert rejected.startswith(" silly fools") and " silly fools live here in the old town".startswith(rejected)
    assert len(tiny_tokenizer()(rejected)["input_ids"]) == 12
    assert made.given["They said to me that"]["rejected_spans"] == [(1, 12)]
    made = corpus(marked(text, "silly fools live"), max_tokens=3)
    (rejected,) = made.rejected.values()
    assert made.given["They said to me that"]["rejected_spans"] == [(1, len(rejected))]


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Like SentencePiece: a text that starts a sequence gets a space in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    lines = ["you are a silly fool, they said\n", "\nthe town is unbelievably cold\n"]
    tokenizer.train_from_iterator(lines * 3, trainers.BpeTrainer(vocab_size=80, special_tokens=["<unk>", "<pad>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), tiny_tokenizer(add_bos=True), metaspace_tokenizer()])
@pytest.mark.parametrize("text", [" you are a silly fool, they said", "you are silly"])
def test_labels_of_tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    start = text.index("silly")
    row = {"prompt": "They said", "chosen": " cold", "rejected": text}
    ids = tokenize_pair(row, tokenizer).rejected_ids
    labels = token_labels(tokenizer, text, [(start, start + 5)])
    assert len(labels) == len(ids) and 0 < sum(labels) < len(labels)
    said = tokenizer.decode([token for token, label in zip(ids, labels, strict=True) if label])
    assert said.strip() == "silly"
    # A token counts as soon as one of its characters does.
    assert sum(token_labels(tokenizer, text, [(start + 1, start + 2)])) == 1
    assert sum(token_labels(tokenizer, text, [])) == 0 and sum(token_labels(tokenizer, text, [(3, 3)])) == 0
    assert all(token_labels(tokenizer, text, [[0, len(text)]]))


def test_a_tokenizer_that_does_not_know_where_its_tokens_stand() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="does not tell where its tokens stand"):
        token_labels(Slow(), "a", [])  # type: ignore[arg-type]


# Parallel and plain texts


def test_parallel_texts_are_split_where_they_part(corpus: Any, tmp_path: Path) -> None:
    table = tmp_path / "parallel.tsv"
    table.write_text(
        "id\ttoxic\tneutral\n"
        "1\ti think that all of these fools should go home now .\ti think that all of these people should go home .\n"
        "2\tyou fool go home\tplease go home\n"  # they share no beginning, and the toxic one is not edited
        "3\tYou and all the others in town are great fools.\tAll are great.\n"
    )
    made = load_corpus([str(table)], tiny_tokenizer(), FOOLS, max_tokens=100)
    assert made.rejected == {
        "i think that all of these": " fools should go home now.",
        "You and all the others": " in town are great fools.",
    }
    assert made.given["i think that all of these"] == {
        "how": {"split": "parallel"},
        "chosen": " people should go home.",
    }
    assert made.given["You and all the others"] == {"how": {"split": "sentence"}}
    assert made.counts == {"split: parallel": 1, "split: sentence": 1, "sentence does not look edited": 1}


def test_enough_is_left_of_both_sides_of_parallel_texts(corpus: Any) -> None:
    pair = {"toxic": "i am so very tired of all of these fools", "neutral": "i am so very tired of all of these"}
    made = corpus(pair, min_words=3)
    assert made.rejected == {"i am so very tired of": " all of these fools"}
    assert made.given["i am so very tired of"]["chosen"] == " all of these"
    with pytest.raises(UserError, match="none of the sentences"):
        corpus(pair, min_words=5)
    with pytest.raises(UserError, match="none of the sentences"):  # nothing sets the two apart
        corpus({"toxic": pair["toxic"], "neutral": pair["toxic"]})


def test_plain_sentences_are_split_in_the_middle(corpus: Any) -> None:
    first = "Nobody in this old town listens to such fools."
    made = corpus(
        {"text": f"{first} Kind people live in the other old town here.", "toxic": 1},
        {"text": "Everybody in this old town listens to such fools.", "toxic": 0},
        {"text": "Somebody with no label calls all of them fools.", "source": "a file of toxic texts"},
        {"text": "Unbelievably indistinguishable misunderstanding fools.", "label": "toxic"},
        {"text": "Nobody in this old room knows any other fools.", "label": "toxic"},  # the same prompt
    )
    assert made.rejected == {
        "Nobody in this old": " town listens to such fools.",
        "Somebody with no label": " calls all of them fools.",
    }
    assert made.counts == {
        "split: sentence": 2,
        "sentence is not toxic": 1,
        "sentence is too short": 1,
        "prompt is there already": 1,
        "sentence does not look edited": 0,
        "row is labelled benign": 1,
    }
    assert made.rows_read == 5


def test_a_row_without_text(corpus: Any) -> None:
    with pytest.raises(UserError, match=r"rows.jsonl:2: a row needs 'text' \(with a label or 'spans'\), or"):
        corpus({"text": "a"}, {"prompt": "a"})


def test_a_corpus_becomes_pairs(corpus: Any, tmp_path: Path) -> None:
    made = corpus(
        marked("They said to me that silly fools live here in the old town.", "silly fools"),
        {"toxic": "i think that all of these fools should go", "neutral": "i think that all of these men should go"},
        min_words=3,
        max_tokens=20,
    )
    output = tmp_path / "pairs.jsonl"
    config = BuilderConfig(max_new_tokens=5, min_words=0, max_perplexity_ratio=1e9)
    model = tiny_model("gpt2")
    build_pairs(
        model, made.prompts, made.source, output=output, processing_class=tiny_tokenizer(),
        config=config, scorer=FOOLS, given=made.given, provenance={"how": "corpus"},
    )  # fmt: skip
    spans, parallel = read_jsonl(output)
    assert spans["rejected_spans"] == [[1, 12]] and spans["rejected"][1:12] == "silly fools"
    assert spans["how"]["split"] == "spans" and spans["how"]["source"] == parallel["how"]["source"] == "corpus"
    assert parallel["chosen"] == " men should go" and parallel["how"]["split"] == "parallel"
    assert "rejected_spans" not in parallel


def test_real_spans_stay_on_their_words(shared_data: Path) -> None:
    file = shared_data / "toxicity" / "civil_comments_toxic_spans.jsonl"
    made = load_corpus([str(file)], tiny_tokenizer(), FOOLS)
    texts = [(row["text"], set(row["spans"])) for row in read_jsonl(file)]
    assert len(made.prompts) > 1000
    for prompt in made.prompts[:50]:
        rejected = made.rejected[prompt]
        text, offsets = next(found for found in texts if prompt + rejected in found[0] and found[1])
        start = text.index(prompt + rejected) + len(prompt)
        spans = made.given[prompt]["rejected_spans"]
        inside = {start + i for first, last in spans for i in range(first, last)}
        assert inside == {i for i in offsets if start <= i < start + len(rejected)}
        assert not offsets & set(range(start - len(prompt), start))


# Sentences and prompts


def test_sentences_know_where_they_stand() -> None:
    text = 'He met Dr. Smith. J. R. Lee of the U.S. Army left!  "Why?" he said.\n\n Then he\nwent.'
    assert [sentence for _, sentence in sentences(text)] == [
        "He met Dr. Smith.",
        "J. R. Lee of the U.S. Army left!",
        '"Why?" he said.',
        "Then he",
        "went.",
    ]
    assert all(text[start : start + len(sentence)] == sentence for start, sentence in sentences(text))
    assert sentences(" \n ") == [] and not looks_edited("")


@pytest.mark.parametrize(
    ("tokenised", "printed"),
    [
        ("a guest @-@ starring role , 1 @,@ 000 of 2 @.@ 5", "a guest-starring role, 1,000 of 2.5"),
        ('the episode " Teddy \'s Story " , he said .', 'the episode "Teddy\'s Story", he said.'),
        (
            "the ships ' guns ( 20 @,@ 321 t ) didn 't fire at 23 : 00 ;",
            "the ships' guns (20,321 t) didn't fire at 23:00;",
        ),
        ("it cost $ 5 , or 3 % of 9 km / h : nothing", "it cost $5, or 3% of 9 km/h: nothing"),
        ('An ordinary text, "as it is" (more or less) isn\'t changed.',) * 2,
    ],
)
def test_tokenised_text_is_joined(tokenised: str, printed: str) -> None:
    assert joined(tokenised) == printed


DOCUMENT = """= The old town =
The weather in the old town was cold and the people there were silent , as @-@ is the custom in all of it . She went .
= = History = =
* The history of the town is the history of its river and its people and of nothing else at all .
1. The history of the town is the history of its river and its people and of nothing else at all .
The history of the town is the history of its river and its people and of everything else :
and the others of the town were silent as they had been for years and years and years and years .
He is an engineer who thinks that the other engineers are wrong , and he said so in the spring ."""


def test_body_sentences() -> None:
    weather = "The weather in the old town was cold and the people there were silent, as-is the custom in all of it."
    engineer = "He is an engineer who thinks that the other engineers are wrong, and he said so in the spring."
    assert body_sentences(DOCUMENT) == [weather, "She went.", engineer]


def test_prompts_are_the_beginnings_of_sentences() -> None:
    whole = [sentence for sentence in body_sentences(DOCUMENT) if len(sentence.split()) > 2]
    lengths = set()
    for seed in range(20):
        prompts = prompts_from_text([DOCUMENT], min_words=3, max_words=6, seed=seed)
        assert prompts == prompts_from_text([DOCUMENT], min_words=3, max_words=6, seed=seed)
        assert sorted(next(i for i, text in enumerate(whole) if text.startswith(p + " ")) for p in prompts) == [0, 1]
        lengths |= {len(prompt.split()) for prompt in prompts}
    assert lengths == {3, 4, 5, 6}
    assert len(prompts_from_text([DOCUMENT] * 3, min_words=3, max_words=3)) == 2  # equal ones occur once
    assert len(prompts_from_text([DOCUMENT], min_words=16, max_words=16)) == 1  # the other ends too soon


def test_documents_without_prompts() -> None:
    with pytest.raises(UserError, match=r"no sentence of the 2 documents has 12 words. Give running text"):
        prompts_from_text(["= Title =", "It is short ."])
    with pytest.raises(UserError, match=r"min_words=9, max_words=8: the first must be at least 1, the second not"):
        prompts_from_text([DOCUMENT], min_words=9, max_words=8)


def test_wikitext_gives_clean_prompts(shared_data: Path) -> None:
    articles = [row["text"] for row in read_jsonl(shared_data / "text" / "wikitext2_raw_test.jsonl")]
    prompts = prompts_from_text(articles[:20])
    assert len(prompts) > 1500 and len(set(prompts)) == len(prompts)
    assert all(8 <= len(prompt.split()) <= 20 for prompt in prompts)
    assert not any("@" in prompt or " ," in prompt or " ." in prompt or prompt.startswith("=") for prompt in prompts)
