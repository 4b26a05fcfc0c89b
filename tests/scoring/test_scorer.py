"""Does every scorer give one probability per text, and is one that does not, or may not be trusted, refused?

Of: scoring/ensemble.py, scoring/hf.py, scoring/profanity.py, scoring/words.py
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
import torch
from tiny import EOS_ID, PAD_ID, VOCAB_SIZE, tiny_tokenizer
from tokenizers.normalizers import Lowercase
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from efface.errors import RunError, UserError
from efface.scoring import DEFAULT_SCORER, SCORERS, list_scorers, load_scorer
from efface.scoring import profanity as scorer_profanity
from efface.scoring.ensemble import Ensemble
from efface.scoring.hf import HFScorer, find_label, is_multi_label, toxic_labels
from efface.scoring.profanity import ProfanityScorer, check_files
from efface.scoring.scorer import NamedScorer, at_threshold, score

TEXTS = ["What a lovely day in the old town.", "you idiot", "", "The history of the river and its people is long."]


def third_party(texts: Sequence[str]) -> list[float]:
    return [len(text) / 100 for text in texts]


class ThirdParty:
    name = "mine"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.full(len(texts), 0.25)


not_callable = 3


# The contract


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ([0.1, float("nan")], "'bad' returned nan for text 1"),
        ([0.1, 1.5], "'bad' returned 1.5 for text 1"),
        ([-0.1, float("inf")], r"'bad' returned -0.1 for text 0 \(2 of 2 scores"),
        ([0.1], r"'bad' returned shape \(1,\) for 2 texts"),
        ([[0.1, 0.9], [0.2, 0.8]], r"returned shape \(2, 2\) for 2 texts"),
        (["high", "low"], "'bad' returned no numbers but a list"),
        (None, r"returned shape \(\) for 2 texts"),
    ],
)
def test_bad_output_is_refused(output: Any, message: str) -> None:
    class Bad:
        name = "bad"

        def __call__(self, texts: Sequence[str]) -> np.ndarray:
            return output

    with pytest.raises(UserError, match=message):
        score(Bad(), ["a", "b"])


def test_failing_scorer_is_named() -> None:
    def fail(texts: Sequence[str]) -> np.ndarray:
        raise KeyError("lost")

    with pytest.raises(RunError, match="scorer 'flaky' failed: KeyError: 'lost'") as caught:
        score(NamedScorer("flaky", fail), ["a"])
    assert isinstance(caught.value.__cause__, KeyError)

    def refuse(texts: Sequence[str]) -> np.ndarray:
        raise UserError("only English")

    with pytest.raises(UserError, match="only English"):
        score(NamedScorer("picky", refuse), ["a"])


def test_no_texts() -> None:
    assert score(ThirdParty(), []).shape == (0,)


# By name


def test_unknown_scorer_lists_what_there_is() -> None:
    with pytest.raises(UserError, match="'perspective' is unknown. There are: alt-profanity-check; hf:ID"):
        load_scorer("perspective")


def test_the_list_says_how_every_scorer_is_named() -> None:
    assert DEFAULT_SCORER in SCORERS and not SCORERS[DEFAULT_SCORER].takes
    forms = "alt-profanity-check hf:ID_OR_DIR llm:MODEL words:FILE judge:DIR mean:A,B,... max:A,B,..."
    assert list(list_scorers()) == [*forms.split(), "package.module:attribute"]
    for entry in SCORERS.values():
        assert callable(resolve_name(entry.path)) and entry.what


def test_third_party_scorers() -> None:
    scorer = load_scorer(f"{__name__}:third_party")
    assert scorer.name == f"{__name__}:third_party" and score(scorer, ["abcde"]).tolist() == [0.05]
    assert load_scorer(f"{__name__}:ThirdParty").name == "mine"
    own = ThirdParty()
    assert load_scorer(own) is own


@pytest.mark.parametrize("name", ["no_such_module_here:x", f"{__name__}:missing", "sys:"])
def test_third_party_that_cannot_be_imported(name: str) -> None:
    with pytest.raises(UserError, match="cannot be imported|cannot be called"):
        load_scorer(name)


def test_third_party_that_is_no_scorer() -> None:
    with pytest.raises(UserError, match="is a int, which cannot be called"):
        load_scorer(f"{__name__}:not_callable")


def test_long_lists_are_scored_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efface.scoring.scorer.CHUNK", 2)
    sizes: list[int] = []

    def lengths(texts: Sequence[str]) -> list[float]:
        sizes.append(len(texts))
        return [len(text) / 10 for text in texts]

    assert score(NamedScorer("lengths", lengths), ["a", "bb", "ccc", "dd", "e"]).tolist() == [0.1, 0.2, 0.3, 0.2, 0.1]
    assert sizes == [2, 2, 1]
    with pytest.raises(UserError, match=r"'lengths' returned 1.1 for text 3 \(1 of 2"):
        score(NamedScorer("lengths", lengths), ["", "", "", "x" * 11])


# Word lists


def words(path: Path, *lines: str) -> str:
    path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    return f"words:{path}"


def test_word_list(tmp_path: Path) -> None:
    scorer = load_scorer(words(tmp_path / "list.txt", "Silly  man", "fool*", "", "STRASSE", "a+b", "(:"))
    asked = {
        "You SILLY\n man!": 1, "a silly manner": 0, "silly": 0,  # phrases, whole words
        "foolish": 1, "Fools!": 1, "tomfool": 0,  # any ending, but no other beginning
        "die Straße": 1, "a+b": 1, "aab": 0, "so (:": 1, "": 0,  # folded case; nothing is a pattern
    }  # fmt: skip
    assert score(scorer, list(asked)).tolist() == list(asked.values())
    assert scorer.name == f"words:{tmp_path / 'list.txt'}"


def test_version_of_a_word_list_is_its_content(tmp_path: Path) -> None:
    versions = [
        load_scorer(words(tmp_path / f"{i}.txt", *lines)).version  # type: ignore[attr-defined]
        for i, lines in enumerate([("b", "a"), ("A", "b", ""), ("a", "b", "c")])
    ]
    assert versions[0] == versions[1] != versions[2]


def test_word_lists_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the word list cannot be read .*absent.txt"):
        load_scorer(f"words:{tmp_path / 'absent.txt'}")
    with pytest.raises(UserError, match="the word list is empty"):
        load_scorer(words(tmp_path / "empty.txt", " ", "*"))
    (tmp_path / "latin.txt").write_bytes(b"\xff\xe9")
    with pytest.raises(UserError, match="the word list cannot be read"):
        load_scorer(f"words:{tmp_path / 'latin.txt'}")


# Ensembles


def test_mean_and_max() -> None:
    texts = ["abcde" * 4, "idiot"]
    names = f"{__name__}:third_party,stubs:parity"
    third, parity = np.array([0.2, 0.05]), np.array([0.0, 1.0])
    mean, highest = load_scorer(f"mean:{names}"), load_scorer(f"max:{names}")
    np.testing.assert_allclose(score(mean, texts), (third + parity) / 2)
    np.testing.assert_allclose(score(highest, texts), np.maximum(third, parity))
    assert mean.name == f"mean:{names}"
    assert mean.version is None and mean.selects_pairs is True  # type: ignore[attr-defined]


def test_version_of_an_ensemble_is_that_of_all_members(tmp_path: Path) -> None:
    one, two = words(tmp_path / "1.txt", "a"), words(tmp_path / "2.txt", "b")
    versions = [load_scorer(name).version for name in (one, two, f"max:{one},{two}")]  # type: ignore[attr-defined]
    assert versions[2] == f"{versions[0]},{versions[1]}"


def test_ensembles_that_cannot_be() -> None:
    with pytest.raises(UserError, match="'mean:stubs:parity': an ensemble needs two different scorers"):
        load_scorer("mean:stubs:parity")
    with pytest.raises(UserError, match="needs two different scorers"):
        load_scorer("max:stubs:parity,stubs:parity")
    with pytest.raises(UserError, match="scorer 'perspective' is unknown"):
        load_scorer("max:stubs:parity,perspective")

    def bad(texts: Sequence[str]) -> list[float]:
        return [float("nan")] * len(texts)

    # A member's NaN is the member's, and no maximum hides it.
    with pytest.raises(UserError, match="scorer 'bad' returned nan"):
        score(Ensemble("max", [NamedScorer("bad", bad), ThirdParty()]), ["a"])


# alt-profanity-check


def test_profanity_scorer() -> None:
    pytest.importorskip("sklearn")
    scorer = load_scorer("alt-profanity-check")
    scores = score(scorer, TEXTS)
    assert scores[1] > 0.9 and scores[0] < 0.2 and scores[3] < 0.2
    assert scores[2] == 0.0
    assert score(scorer, ["", " \n"]).tolist() == [0.0, 0.0]
    assert scorer(["you idiot"])[0] == scores[1]  # whatever else is in the batch
    assert scorer.version == "1.9.1"  # type: ignore[attr-defined]


@pytest.fixture
def fake_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the same name that says when it is imported."""
    package = tmp_path / "profanity_check"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    for name in scorer_profanity.SHA256:
        (package / name).write_bytes(b"not the known file")
    for name in [name for name in sys.modules if name.split(".")[0] == "profanity_check"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    return package


def test_hash_mismatch_is_refused_before_the_import(fake_package: Path) -> None:
    with pytest.raises(UserError, match="model.joblib is not the file of version 1.9.1.*pip install alt-profanity"):
        ProfanityScorer()


def test_unknown_pickle_is_refused(fake_package: Path) -> None:
    (fake_package / "data" / "extra.joblib").write_bytes(b"x")
    with pytest.raises(UserError, match="data/extra.joblib"):
        check_files(fake_package)
    shutil.rmtree(fake_package / "data")
    with pytest.raises(UserError, match=r"it holds \[\] instead of"):
        check_files(fake_package)


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer_profanity, "PACKAGE", "no_such_package_here")
    with pytest.raises(UserError, match="not installed: pip install alt-profanity-check==1.9.1"):
        ProfanityScorer()


# Hugging Face classifiers


def _classifier(directory: Path, labels: list[str], **config: Any) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=VOCAB_SIZE,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=64,
                initializer_range=0.5,
                pad_token_id=PAD_ID,
                id2label=dict(enumerate(labels)),
                label2id={label: i for i, label in enumerate(labels)},
                **config,
            )
        )
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def test_classifier_is_batch_invariant(tmp_path: Path) -> None:
    path = str(_classifier(tmp_path, ["neutral", "toxic"]))
    long = "word " * 200  # truncated to the 64 positions
    together = score(HFScorer(path, device="cpu"), [*TEXTS, long])
    alone = score(HFScorer(path, batch_size=1), [*TEXTS, long])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.ptp(together) > 1e-3
    assert load_scorer(path).name == load_scorer(f"hf:{path}").name == f"hf:{path}"


@torch.no_grad()
def logits_of(classifier: BertForSequenceClassification) -> torch.Tensor:
    """(1, labels) of the first text."""
    return classifier.eval()(**tiny_tokenizer()(TEXTS[:1], return_tensors="pt")).logits


def test_classifier_label_and_activation(tmp_path: Path) -> None:
    labels = ["identity_attack", "toxicity", "insult"]
    path = str(_classifier(tmp_path / "unset", labels))
    scorer = HFScorer(path)
    logits = logits_of(BertForSequenceClassification.from_pretrained(path))[0]
    # Three labels with a toxic one, and no word on the problem: independent probabilities.
    assert scorer(TEXTS[:1])[0] == pytest.approx(logits.sigmoid()[1].item(), abs=1e-6)
    assert load_scorer(path, label="INSULT")(TEXTS[:1])[0] == pytest.approx(logits.sigmoid()[2].item(), abs=1e-6)
    single = HFScorer(str(_classifier(tmp_path / "single", labels, problem_type="single_label_classification")))
    together = logits.softmax(-1)[[1, 2]].sum().item()  # both mean toxic, and only one of them can hold
    assert single(TEXTS[:1])[0] == pytest.approx(together, abs=1e-6)


def test_options_of_a_classifier_by_its_name(tmp_path: Path) -> None:
    path = str(_classifier(tmp_path, ["fine", "bad"]))
    plain = score(load_scorer(path, label="bad"), TEXTS)
    stretched = load_scorer(f"hf:{path},label=bad,threshold=0.7")
    assert stretched.name == f"hf:{path},label=bad,threshold=0.7"
    np.testing.assert_array_equal(score(stretched, TEXTS) > 0.5, plain > 0.7)
    assert stretched.version != load_scorer(f"hf:{path},label=bad").version  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="'nosuch=1' is none of label=..., threshold=..., each once"):
        load_scorer(f"hf:{path},nosuch=1")
    with pytest.raises(UserError, match="none is 'worse'"):
        load_scorer(f"hf:{path},label=worse")


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_scores_are_stretched_to_a_threshold(threshold: float) -> None:
    given = np.array([0, threshold / 2, threshold, (1 + threshold) / 2, 1])
    np.testing.assert_allclose(at_threshold(given, threshold), [0, 0.25, 0.5, 0.75, 1])


def test_label_by_name() -> None:
    assert find_label({0: "non-toxic", 1: "Toxic"}, None, "s") == 1
    assert find_label({0: "LABEL_0", 1: "LABEL_1"}, None, "s") == 1
    assert find_label({0: "hate", 1: "nothate"}, None, "s") == 0
    assert find_label({0: "anything"}, None, "s") == 0
    assert find_label({0: "a_b", 1: "c"}, "A B", "s") == 0
    with pytest.raises(UserError, match="'s' has the labels a, b, c; none is known to mean toxic"):
        find_label({0: "a", 1: "b", 2: "c"}, None, "s")
    with pytest.raises(UserError, match="none is 'toxic'"):
        find_label({0: "a", 1: "b"}, "toxic", "s")


@pytest.mark.parametrize(
    "name", ["non_toxic", "Non-Toxic", "NOT_TOXIC", "not offensive", "nontoxic", "safe", "clean", "LABEL_0", "0"]
)
def test_one_label_that_is_good_or_unnamed_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"'hf:a/b' has the labels {name}; none is known.*: hf:a/b,label=NAME"):
        find_label({0: name}, None, "hf:a/b")
    assert find_label({0: name}, name, "hf:a/b") == 0


@pytest.mark.parametrize("name", ["unsafe", "toxicity_score", "NSFW", "uncivil", "harm"])
def test_one_label_is_what_a_classifier_detects(name: str) -> None:
    assert find_label({0: name}, None, "s") == 0


def test_a_label_in_the_name(tmp_path: Path) -> None:
    path = str(_classifier(tmp_path / "a", ["S", "H", "OK"]))
    with pytest.raises(UserError, match=f"has the labels S, H, OK; none is known.* hf:{path},label=NAME"):
        load_scorer(path)
    expected = HFScorer(path, label="H")(TEXTS)
    for name in (f"hf:{path}#H", f"{path}#h"):
        scorer = load_scorer(name)
        np.testing.assert_array_equal(scorer(TEXTS), expected)
        assert scorer.name == f"hf:{name.removeprefix('hf:')}"
    mean = load_scorer(f"mean:hf:{path}#H,hf:{path}#S")
    np.testing.assert_allclose(mean(TEXTS), (expected + HFScorer(path, label="S")(TEXTS)) / 2)
    with pytest.raises(UserError, match="none is 'absent'"):
        load_scorer(f"{path}#absent")
    odd = _classifier(tmp_path / "b#c", ["neutral", "toxic"])
    assert load_scorer(f"hf:{odd}").name == f"hf:{odd}" and load_scorer(f"hf:{odd}#neutral")(TEXTS).shape == (4,)


def test_positions_after_the_padding_id(tmp_path: Path) -> None:
    from transformers import CamembertConfig, CamembertForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = CamembertConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=34, pad_token_id=1, **sizes)
    CamembertForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer(model_max_length=10**6).save_pretrained(tmp_path)
    assert score(HFScorer(str(tmp_path), device="cpu"), ["word " * 200]).shape == (1,)


def test_a_family_whose_positions_have_no_limit(tmp_path: Path) -> None:
    from transformers import XLNetConfig, XLNetForSequenceClassification

    config = XLNetConfig(vocab_size=VOCAB_SIZE, d_model=32, n_layer=1, n_head=4, d_inner=64)
    assert config.max_position_embeddings == -1
    XLNetForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer(model_max_length=10**6).save_pretrained(tmp_path)
    scorer = HFScorer(str(tmp_path), device="cpu")
    assert score(scorer, ["word " * 200]) == pytest.approx(score(scorer, ["word " * 900]))  # cut at 512 tokens


def test_activation_by_configuration() -> None:
    assert is_multi_label("multi_label_classification", {0: "toxic", 1: "x"}, "s")
    assert not is_multi_label("single_label_classification", {0: "toxic", 1: "x", 2: "y"}, "s")
    assert is_multi_label(None, {0: "toxic"}, "s")
    assert not is_multi_label(None, {0: "neutral", 1: "toxic"}, "s")
    assert not is_multi_label(None, {0: "positive", 1: "neutral", 2: "negative"}, "s")


def test_labels_that_exclude_each_other() -> None:
    assert not is_multi_label(None, {0: "non-toxic", 1: "toxic", 2: "very toxic"}, "s")
    assert is_multi_label(None, {0: "toxic", 1: "severe_toxic", 2: "obscene"}, "s")
    for labels, toxic in (
        ({0: "hate speech", 1: "normal", 2: "offensive"}, [0, 2]),
        ({0: "non-toxic", 1: "toxic", 2: "very toxic"}, [1, 2]),
        ({0: "hate", 1: "nothate"}, [0]),
        ({0: "LABEL_0", 1: "LABEL_1"}, [1]),
    ):
        assert toxic_labels(labels, None, "s", exclusive=True) == toxic
    assert toxic_labels({0: "hate", 1: "offensive", 2: "neither"}, "offensive", "s", exclusive=True) == [1]
    assert toxic_labels({0: "toxicity", 1: "insult", 2: "male"}, None, "s", exclusive=False) == [0]


def test_a_regression_gives_no_probability(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=VOCAB_SIZE, n_embd=32, n_layer=1, n_head=2, n_positions=64, eos_token_id=EOS_ID)
    config.num_labels, config.problem_type = 1, "regression"
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="was trained as a regression: what it gives is no probability"):
        HFScorer(str(tmp_path))


def test_classifier_without_padding_token(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=VOCAB_SIZE, n_embd=32, n_layer=1, n_head=2, n_positions=64, eos_token_id=EOS_ID)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer(pad_token=None).save_pretrained(tmp_path)
    texts = [text for text in TEXTS if text]
    assert score(HFScorer(str(tmp_path)), texts).shape == (3,)


@pytest.mark.parametrize("odd", ["no padding id in the configuration", "padding on the left"])
def test_decoder_classifier_is_batch_invariant(odd: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left" if "left" in odd else "right"
    config = GPT2Config(
        vocab_size=VOCAB_SIZE, n_embd=32, n_layer=1, n_head=2, n_positions=64, eos_token_id=EOS_ID,
        pad_token_id=PAD_ID if "left" in odd else None, initializer_range=0.5,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scorer = HFScorer(str(tmp_path), device="cpu")
    together = score(scorer, TEXTS)
    np.testing.assert_allclose(together, np.concatenate([scorer([text]) for text in TEXTS]), atol=1e-6)
    assert np.ptp(together[[0, 1, 3]]) > 1e-3


def test_half_precision_weights_are_scored_in_full(tmp_path: Path) -> None:
    path = _classifier(tmp_path, ["neutral", "toxic"])
    BertForSequenceClassification.from_pretrained(path, dtype=torch.float16).save_pretrained(path)
    in_full = BertForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    in_half = BertForSequenceClassification.from_pretrained(path, dtype=torch.float16)
    exact, rounded = (logits_of(model).float().softmax(-1)[:, 1].numpy() for model in (in_full, in_half))
    found = HFScorer(str(path))(TEXTS[:1])
    np.testing.assert_allclose(found, exact, atol=1e-7)
    assert np.abs(found - rounded).max() > 1e-6


def test_version_of_a_classifier_is_its_content(tmp_path: Path) -> None:
    path = _classifier(tmp_path / "a", ["toxic", "insult"])
    shutil.copytree(path, tmp_path / "copy")
    first = HFScorer(str(path)).version
    assert HFScorer(str(tmp_path / "copy")).version == first
    assert HFScorer(str(path), label="insult").version != first
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = Lowercase()  # the same vocabulary
    shutil.copytree(path, tmp_path / "lower")
    tokenizer.save_pretrained(tmp_path / "lower")
    assert HFScorer(str(tmp_path / "lower")).version != first
    changed = BertForSequenceClassification.from_pretrained(path)
    with torch.no_grad():
        changed.classifier.bias[0] += 1e-3
    changed.save_pretrained(path)
    assert HFScorer(str(path)).version != first


def test_classifier_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scorer 'hf:.*' cannot be loaded \(.*\)\. Pass a sequence"):
        load_scorer(f"hf:{tmp_path}")
