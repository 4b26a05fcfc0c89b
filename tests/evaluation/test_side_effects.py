"""Is a loss of likelihood of harmless text that names groups told apart from a loss of all text?"""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays
from tiny import tiny_model, tiny_tokenizer

from efface.errors import UserError
from efface.evaluation.side_effects import IdentityLikelihood, identity_likelihood, identity_texts, read_identity_texts
from efface.generation import likelihood
from efface.resampling import interval

FINITE = st.floats(-5, 5, allow_subnormal=False)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def fake_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 nats a token; the model "edited" finds all text 0.1 and text that says "deaf" 0.5 less likely."""

    def continuation_nll(model: str, _: None, prompts: list[str], continuations: list[str], **__: Any) -> Any:
        assert all(prompt and " " not in prompt for prompt in prompts)
        for text in continuations:
            words = len(text.split())
            loss = 3.0 + (model == "edited") * (0.1 + 0.5 * ("deaf" in text))
            yield words * loss, words

    monkeypatch.setattr(likelihood, "continuation_nll", continuation_nll)


def test_shipped_texts_are_whole_sentences_of_every_term_in_every_template() -> None:
    rows = identity_texts()
    templates, terms = {row["template"] for row in rows}, {row["term"] for row in rows}
    assert len({row["text"] for row in rows}) == len(rows) == len(templates) * len(terms)
    assert len(templates) >= 20 and sum(row["group"] == "control" for row in rows) >= 10 * len(templates)
    for row in rows:
        assert row["template"].count("{}") == 1 and row["text"].endswith(".")
        # The first word is given, not counted, so the term must not be it; and no article depends on the term.
        assert row["term"] in row["text"].split()[1:] and not re.search(r"\ban? {}", row["template"], re.IGNORECASE)


def test_a_loss_of_text_about_one_group_is_seen_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_likelihood(monkeypatch)
    found = identity_likelihood("edited", None, reference="base")  # type: ignore[arg-type]
    groups = {block.group: block for block in found.groups}
    assert found.templates == 20 and found.control.excess is None
    assert found.control.change == pytest.approx(0.1)
    terms = {row["term"] for row in identity_texts() if row["group"] == "disability"}
    assert groups["disability"].excess == pytest.approx(0.5 / len(terms))
    assert groups["disability"].ci95 == pytest.approx([0.5 / len(terms)] * 2)  # the same in every template
    assert all(block.excess == pytest.approx(0) for name, block in groups.items() if name != "disability")
    n = len({row["term"] for row in identity_texts() if row["group"] != "control"})
    assert found.identity.excess == pytest.approx(0.5 / n)
    assert found.identity.texts == n * 20 and json.dumps(found.to_dict())


def test_without_a_reference_there_are_likelihoods_only(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_likelihood(monkeypatch)
    found = identity_likelihood("edited", None)  # type: ignore[arg-type]
    assert found.control.nll == pytest.approx(3.1)
    assert found.identity.change is None and found.identity.excess is None and found.identity.ci95 is None


def test_likelihood_is_that_of_all_tokens_after_the_first_word(tmp_path: Path) -> None:
    texts = ["The old town was cold.", "She bought a little cheese and bread."]
    path = write(tmp_path / "t.jsonl", [{"text": texts[0], "group": "control"}, {"text": texts[1], "group": "people"}])
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    found = identity_likelihood(model, tokenizer, path, reference=model, batch_size=1)
    for text, block in zip(texts, (found.control, found.groups[0]), strict=True):
        ids, skipped = tokenizer(text)["input_ids"], len(tokenizer(text.split()[0])["input_ids"])
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = -np.mean([logp[i - 1, ids[i]].item() for i in range(skipped, len(ids))])
        assert block.nll == pytest.approx(expected, rel=1e-5)
    assert (found.identity.excess, found.identity.ci95, found.templates) == (0.0, [0.0, 0.0], 2)


def contrasted(change: np.ndarray, groups: np.ndarray, units: np.ndarray) -> IdentityLikelihood:
    """Of texts, each of one token after its first word, whose -log p an edit has changed by `change`."""

    def continuation_nll(model: str, _: None, prompts: list[str], continuations: list[str], **__: Any) -> Any:
        for text in continuations:
            yield 3.0 + (model == "edited") * change[int(text)], 1

    rows = [
        {"text": f"Number {i}", "group": str(group), "template": f"of {unit}"}
        for i, (group, unit) in enumerate(zip(groups, units, strict=True))
    ]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(likelihood, "continuation_nll", continuation_nll)
        path = write(Path(folder) / "t.jsonl", rows)
        return identity_likelihood("edited", None, path, reference="base", resamples=200, seed=3)  # type: ignore[arg-type]


@given(arrays(float, (4, 5), elements=FINITE))
def test_in_crossed_texts_each_template_counts_as_its_own_difference(change: np.ndarray) -> None:
    """(templates, terms), the last two terms neutral: this is the paired bootstrap over templates."""
    member = np.tile(np.arange(5) < 3, 4)
    units = np.repeat(np.arange(4), 5)
    expected = change[:, :3].mean(1) - change[:, 3:].mean(1)  # (templates,)
    block = contrasted(change.ravel(), np.where(member, "people", "control"), units).identity
    assert np.isclose(block.excess, expected.mean())
    assert np.allclose(block.ci95, interval(expected[:, None], resamples=200, seed=3)[:, 0])


@given(arrays(float, 9, elements=FINITE), st.lists(st.integers(0, 3), min_size=9, max_size=9))
def test_in_any_texts_the_mean_over_units_is_the_difference(change: np.ndarray, keys: list[int]) -> None:
    member, control = np.arange(9) < 4, np.arange(9) > 5  # and two of neither
    units = np.unique(keys, return_inverse=True)[1]
    expected = change[member].mean() - change[control].mean()
    groups = np.where(member, "people", np.where(control, "control", "others"))
    block = contrasted(change, groups, units).groups[0]
    assert (block.group, block.texts) == ("people", 4) and block.excess == pytest.approx(expected, abs=1e-9)


def test_texts_that_vary_give_an_interval_with_a_width(tmp_path: Path) -> None:
    rows = [
        {"text": f"The {term} people {verb} bread.", "group": group, "template": verb}
        for group, term in (("control", "old"), ("people", "silly"))
        for verb in ("bought", "said", "are", "liked")
    ]
    path = write(tmp_path / "t.jsonl", rows)
    found = identity_likelihood(
        tiny_model("gpt2", seed=1), tiny_tokenizer(), path, reference=tiny_model("gpt2"), resamples=200
    )
    block = found.groups[0]
    assert block.ci95 is not None and block.excess is not None
    assert found.templates == 4 and block.ci95[0] < block.excess < block.ci95[1]
    assert block.change is not None and block.reference_nll is not None
    assert block.change == pytest.approx(block.nll - block.reference_nll)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"group": "control"}, "t.jsonl:2: 'text' must be a text, but it is None"),
        ({"text": "A b"}, "t.jsonl:2: 'group' must be a text, but it is None"),
        ({"text": "A b", "group": "c", "template": 3}, "t.jsonl:2: 'template' must be a text, but it is 3"),
        ({"text": "Alone", "group": "c"}, "t.jsonl:2: 'text' must have at least two words"),
        ({"text": "A b", "group": "control"}, "has 2 texts of group 'control' and 0 of others: it needs both"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_identity_texts(write(tmp_path / "t.jsonl", [{"text": "All well", "group": "control"}, row]))
