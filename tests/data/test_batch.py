"""Does a row become exactly the tokens it should, and does a bad row stop the load with a line that says why?"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tiny import BOS_ID, EOS_ID, tiny_tokenizer

from efface.data.batch import Example, PairCollator, with_passages
from efface.data.dataset import PairDataset, PassageStream
from efface.data.pair_tokens import TokenizedPair, tokenize_pair
from efface.data.pairs import Pairs, load_pairs
from efface.data.rows import load_texts, shipped
from efface.data.tokens import encode_continuation, encode_prompt
from efface.errors import UserError

GOOD = {"prompt": "The weather", "chosen": " was cold", "rejected": " is for fools"}
CHAT = {
    "prompt": [{"role": "user", "content": "How is the weather?"}],
    "chosen": [{"role": "assistant", "content": "It is cold."}],
    "rejected": [{"role": "assistant", "content": "Look, you fool."}],
}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# Reading


def test_sources_agree(tmp_path: Path) -> None:
    rows = [GOOD | {"source": "a", "score": 0.5}, GOOD | {"prompt": "", "source": "b", "score": 1.0}]
    path = write(tmp_path / "pairs.jsonl", *rows)
    for source in (path, Path(path), rows, Dataset.from_list(rows), Pairs(rows)):
        pairs = load_pairs(source)
        assert pairs.rows == rows and pairs.skipped == 0 and len(pairs) == 2  # extra columns are kept


def test_blank_lines_windows_line_ends_and_byte_order_marks_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf\n"
        + json.dumps(GOOD).encode()
        + b"\r\n  \r\n"
        + json.dumps(GOOD | {"prompt": "\u2028"}).encode()
    )
    assert [row["prompt"] for row in load_pairs(path).rows] == ["The weather", "\u2028"]


def test_columns_of_pair_toxicity(tmp_path: Path) -> None:
    row = {"prompt_text": "The weather", "unpert_gen_text": " was cold", "pert_gen_text": " is for fools", "gold": "x"}
    assert load_pairs(write(tmp_path / "pairs.jsonl", row)).rows == [GOOD | {"gold": "x"}]


def test_conversations_are_kept(tmp_path: Path) -> None:
    assert load_pairs(write(tmp_path / "pairs.jsonl", CHAT)).rows == [CHAT]


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "not JSON": ("{'prompt': 1}\n", r"not valid JSON \(Expecting property name .* at column 2\)\. Each line must be"),
    "cut off": ('{"prompt": "a", "chosen"\n', "not valid JSON"),
    "not an object": (["a"], "a row must be a JSON object with prompt, chosen, rejected, not list"),
    "no prompt": (
        {"chosen": "a", "rejected": "b"},
        "field 'prompt' is missing, and chosen and rejected have no beginning in common .*--skip-bad",
    ),
    "no rejected": ({"prompt": "a", "chosen": "b"}, "field 'rejected' is missing"),
    "no field at all": ({}, "field 'prompt' is missing .found nothing"),
    "empty chosen": (GOOD | {"chosen": ""}, "field 'chosen' is empty. Give a continuation"),
    "blank rejected": (GOOD | {"rejected": " \n"}, "field 'rejected' is empty"),
    "empty message": (CHAT | {"chosen": [{"role": "assistant", "content": " "}]}, "field 'chosen' is empty"),
    "number": (GOOD | {"prompt": 3}, "field 'prompt' is int; it must be text or a list of chat messages"),
    "null": (GOOD | {"chosen": None}, "field 'chosen' is NoneType"),
    "list of texts": (GOOD | {"rejected": ["a"]}, "field 'rejected', turn 1 is str; a chat message is needed"),
    "no messages": (CHAT | {"prompt": []}, "field 'prompt' is an empty list"),
    "message without role": (CHAT | {"prompt": [{"content": "a"}]}, "field 'prompt', turn 1: 'role' is missing"),
    "identical": (GOOD | {"rejected": GOOD["chosen"]}, "chosen and rejected are identical, so nothing can be learned"),
    "mixed": (GOOD | {"chosen": CHAT["chosen"]}, "must be all text or all lists of chat messages"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_stops_the_load_at_its_line(kind: str, tmp_path: Path) -> None:
    row, message = BAD_ROWS[kind]
    path = write(tmp_path / "pairs.jsonl", GOOD, "\n", row, GOOD)
    with pytest.raises(UserError, match=rf"^{path}:3: .*{message}"):
        load_pairs(path)
    pairs = load_pairs(path, skip_bad_rows=True)
    assert (len(pairs), pairs.skipped) == (2, 1)
    if not isinstance(row, str):
        with pytest.raises(UserError, match=rf"^row 1: .*{message}"):
            load_pairs([GOOD, row])


def test_broken_utf8(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(UserError, match=rf"{path}:2: not valid UTF-8 at byte 15. Re-encode"):
        load_pairs(path)
    assert load_pairs(path, skip_bad_rows=True).skipped == 1


@pytest.mark.parametrize("name", ["absent.jsonl", "./absent", "absent.json"])
def test_missing_file(name: str) -> None:
    with pytest.raises(UserError, match=f"pairs file '{name}' does not exist or is no file. Build one with"):
        load_pairs(name)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist or is no file"):
        load_pairs(tmp_path)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "pairs.jsonl", GOOD)

    def refuse(self: Path, mode: str) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the tests may run as root, who may read everything
    with pytest.raises(UserError, match="file '.*pairs.jsonl' cannot be read: Permission denied"):
        load_pairs(path)


def test_nothing_usable(tmp_path: Path) -> None:
    path = write(tmp_path / "empty.jsonl", "\n")
    with pytest.raises(UserError, match=rf"'{path}' holds no usable pairs \(0 bad rows\). Build some"):
        load_pairs(path)
    with pytest.raises(UserError, match=r"the given list holds no usable pairs \(1 bad rows; the last: row 0: field "):
        load_pairs([{}], skip_bad_rows=True)


@pytest.mark.parametrize("reason", ["no route to the hub", ""])
def test_hub_dataset_without_network(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, split: str) -> None:
        assert (name, split) == ("someone/pairs", "train")
        raise ConnectionError(*[reason] * bool(reason))

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(
        UserError, match=rf"'someone/pairs' is no local file .*\({reason or 'ConnectionError'}\). Check the name"
    ):
        load_pairs("someone/pairs")


def test_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda name, split: Dataset.from_list([GOOD, GOOD | {"chosen": ""}]))
    with pytest.raises(UserError, match="^someone/pairs row 1: field 'chosen' is empty"):
        load_pairs("someone/pairs")
    assert load_pairs("someone/pairs", skip_bad_rows=True).rows == [GOOD]


def test_unknown_shipped_name() -> None:
    with pytest.raises(UserError, match="shipped:nothing does not exist. Shipped with the package:"):
        load_pairs("shipped:nothing")
    with pytest.raises(UserError, match="shipped:nothing does not exist"):
        shipped("nothing")


def test_load_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.jsonl", {"text": "One.", "prompt": "p"}, {"text": "Two."})
    assert load_texts(path) == ["One.", "Two."]
    with pytest.raises(UserError, match=rf"{path}:2: 'prompt' must be a text, but it is"):
        load_texts(path, field="prompt")
    with pytest.raises(UserError, match=rf"{write(tmp_path / 'bad.jsonl', '[')}:1: not valid JSON"):
        load_texts(tmp_path / "bad.jsonl")
    with pytest.raises(UserError, match=r"two.jsonl:1: a row must be a JSON object, not list"):
        load_texts(write(tmp_path / "two.jsonl", ["a"]))
    with pytest.raises(UserError, match="empty.jsonl' is empty: pass at least one text"):
        load_texts(write(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError, match="does not exist"):
        load_texts(tmp_path / "absent.jsonl")


# Rows to token ids


@pytest.mark.parametrize("add_bos", [False, True])
def test_the_boundary_is_stable(add_bos: bool) -> None:
    tokenizer = tiny_tokenizer(add_bos=add_bos)
    # " the" is one token of this tokenizer and "the" splits otherwise: tokenised as one text, the boundary would move.
    row = {"prompt": "They said that t", "chosen": "he weather is cold", "rejected": "hey are wrong"}
    pair = tokenize_pair(row, tokenizer)
    assert pair.prompt_ids == tokenizer(row["prompt"])["input_ids"]
    assert pair.prompt_ids.count(BOS_ID) == add_bos and (pair.prompt_ids[0] == BOS_ID) == add_bos
    for side, ids in (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids)):
        assert ids == tokenizer(row[side], add_special_tokens=False)["input_ids"]
        assert BOS_ID not in ids and EOS_ID not in ids
        assert tokenizer.decode(ids) == row[side]
    whole = tokenizer(row["prompt"] + row["chosen"])["input_ids"]
    assert whole != pair.prompt_ids + pair.chosen_ids  # the example is one where it matters
    batch = PairCollator(pad_token_id=0)([pair])
    starts = batch["continuation_mask"].int().argmax(1)
    assert starts.tolist() == [len(pair.prompt_ids)] * 2


def test_a_tokenizer_that_closes_every_text_does_not_close_the_prompt() -> None:
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS_ID), ("<eos>", EOS_ID)]
    )
    assert tokenizer("The town")["input_ids"][-1] == EOS_ID
    prompt_ids = encode_prompt(tokenizer, "The town")
    assert prompt_ids[0] == BOS_ID and EOS_ID not in prompt_ids
    assert encode_prompt(tokenizer, "The town<eos>")[-1] == EOS_ID  # the user's own stays


@pytest.mark.parametrize("add_bos", [False, True])
def test_truncation_keeps_the_end_of_the_prompt_and_the_bos(add_bos: bool) -> None:
    tokenizer = tiny_tokenizer(add_bos=add_bos)
    row = {
        "prompt": "The history of the town is its river",
        "chosen": " and its people",
        "rejected": " and silly fools",
    }
    whole = tokenize_pair(row, tokenizer)
    short = tokenize_pair(row, tokenizer, max_prompt_length=4, max_completion_length=2)
    assert len(short.prompt_ids) == 4 and len(whole.prompt_ids) > 5
    if add_bos:
        assert short.prompt_ids == [BOS_ID, *whole.prompt_ids[-3:]]
        assert tokenize_pair(row, tokenizer, max_prompt_length=1).prompt_ids == [BOS_ID]
    else:
        assert short.prompt_ids == whole.prompt_ids[-4:]
    assert short.chosen_ids == whole.chosen_ids[:2] and short.rejected_ids == whole.rejected_ids[:2]
    assert tokenize_pair(row, tokenizer, max_prompt_length=len(whole.prompt_ids)) == whole


def test_an_empty_prompt_still_has_a_token_to_predict_from() -> None:
    row = GOOD | {"prompt": ""}
    assert tokenize_pair(row, tiny_tokenizer()).prompt_ids == [BOS_ID]
    assert tokenize_pair(row, tiny_tokenizer(add_bos=True)).prompt_ids == [BOS_ID]
    assert tokenize_pair(row, tiny_tokenizer(bos_token=None)).prompt_ids == [EOS_ID]
    with pytest.raises(UserError, match="the prompt has no tokens and the tokenizer no BOS or EOS"):
        tokenize_pair(row, tiny_tokenizer(bos_token=None, eos_token=None))


def test_a_continuation_without_tokens() -> None:
    with pytest.raises(UserError, match="chosen has no tokens under this tokenizer: ' was cold'"):
        tokenize_pair(GOOD, tiny_tokenizer(), max_completion_length=0)


def test_a_continuation_gets_no_invented_space() -> None:
    """SentencePiece-style tokenizers put a space before every text; a continuation stands as it is."""
    from tokenizers import pre_tokenizers

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert tokenizer.decode(tokenizer("cheese")["input_ids"]) == " cheese"
    assert tokenizer.decode(encode_continuation(tokenizer, "cheese")) == "cheese"
    assert tokenizer.decode(encode_continuation(tokenizer, " cheese")) == " cheese"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=20))
def test_any_text_survives_as_a_continuation(text: str) -> None:
    tokenizer = tiny_tokenizer()
    if any(str(token) in text for token in tokenizer.all_special_tokens):
        return
    assert tokenizer.decode(encode_continuation(tokenizer, text)) == text


@pytest.mark.parametrize("add_bos", [False, True])
def test_conversations_go_through_the_chat_template(add_bos: bool) -> None:
    tokenizer = tiny_tokenizer(add_bos=add_bos)
    tokenizer.chat_template = "{{ bos_token }}" + str(tokenizer.chat_template)
    pair = tokenize_pair(CHAT, tokenizer)
    assert pair.prompt_ids.count(BOS_ID) == 1  # the template's own, not a second one of the tokenizer
    text = tokenizer.decode(pair.prompt_ids, skip_special_tokens=False)
    assert text == "<bos><|user|>\nHow is the weather?<eos>\n<|assistant|>\n"
    assert tokenizer.decode(pair.chosen_ids, skip_special_tokens=False) == "It is cold.<eos>\n"
    assert tokenizer.decode(pair.rejected_ids, skip_special_tokens=False) == "Look, you fool.<eos>\n"


def test_conversations_without_a_chat_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="the pairs are conversations but the tokenizer has no chat template"):
        tokenize_pair(CHAT, tokenizer)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] }}{% endfor %}{{ messages | length }}"
    )
    with pytest.raises(UserError, match="does not continue its own generation prompt with chosen"):
        tokenize_pair(CHAT, tokenizer)


# Token ids to a batch


def test_the_collator_stacks_chosen_rows_first_and_passages_last() -> None:
    pairs = [TokenizedPair([5, 6], [7], [8, 9]), TokenizedPair([3], [4, 4, 4], [2])]
    batch = with_passages(PairCollator(pad_token_id=0)([Example(pairs[0]), pairs[1]]), [[11, 12, 13]], 0)
    assert batch["n_pairs"] == 2
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [3, 4, 4, 4], [5, 6, 8, 9], [3, 2, 0, 0], [11, 12, 13, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert batch["continuation_mask"].int().tolist() == [
        [0, 0, 1, 0],
        [0, 1, 1, 1],
        [0, 0, 1, 1],
        [0, 1, 0, 0],
        [0, 1, 1, 0],
    ]
    assert [batch[key].dtype for key in ("input_ids", "attention_mask", "continuation_mask")] == [
        torch.long,
        torch.long,
        torch.bool,
    ]


def test_the_example_in_the_collators_docstring() -> None:
    batch = PairCollator(pad_token_id=0)([TokenizedPair([5, 6], [7], [8, 9])])
    assert repr(batch["input_ids"]) == "tensor([[5, 6, 7, 0],\n        [5, 6, 8, 9]])"


def test_a_padding_id_that_is_also_a_token_is_not_counted() -> None:
    pairs = [TokenizedPair([9, 5], [9], [9, 9]), TokenizedPair([9], [9, 9, 9], [5])]
    batch = PairCollator(pad_token_id=9)(pairs)
    assert batch["attention_mask"].sum(1).tolist() == [3, 4, 4, 2]
    assert batch["continuation_mask"].sum(1).tolist() == [1, 3, 2, 1]


def test_a_passage_longer_than_the_pairs_widens_the_batch() -> None:
    batch = with_passages(PairCollator(pad_token_id=9)([TokenizedPair([5], [7], [8, 6])]), [[1, 2, 3, 4], [2, 3]], 9)
    assert batch["input_ids"].tolist() == [[5, 7, 9, 9], [5, 8, 6, 9], [1, 2, 3, 4], [2, 3, 9, 9]]
    assert batch["attention_mask"].sum(1).tolist() == [2, 3, 4, 2]
    assert batch["continuation_mask"].sum(1).tolist() == [1, 2, 3, 1]


@given(st.integers(1, 20), st.integers(1, 7), st.integers(0, 5))
def test_every_micro_batch_has_as_many_passages_and_every_turn_has_all(n: int, per_batch: int, seed: int) -> None:
    stream = PassageStream(n, per_batch, seed)
    batches = [stream.numbers(i) for i in range(3 * n)]
    assert all(len(batch) == per_batch for batch in batches)
    dealt = [number for batch in batches for number in batch]
    for turn in range(len(dealt) // n):
        assert sorted(dealt[turn * n : (turn + 1) * n]) == list(range(n))
    assert PassageStream(n, per_batch, seed).numbers(3 * n - 1) == batches[-1]  # the number alone decides
    assert PassageStream(0, per_batch, seed).numbers(0) == []


def test_passages_are_shuffled_anew_in_each_turn() -> None:
    stream = PassageStream(50, 50, seed=1)
    assert stream.numbers(0) != stream.numbers(1) != sorted(stream.numbers(1))
    assert stream.numbers(0) != PassageStream(50, 50, seed=2).numbers(0)


@pytest.mark.parametrize("sides", [("chosen",), ("chosen", "rejected")])
def test_what_the_reference_is_asked_comes_back_in_the_order_of_the_batch(sides: tuple[str, ...]) -> None:
    pairs = [TokenizedPair([1, 2], [3, 4], [5]), TokenizedPair([6], [7], [8, 9]), TokenizedPair([1], [2, 2, 2], [3])]
    dataset = PairDataset(pairs, [[10, 11, 12], [13, 14]], sides)
    items = list(dataset.items)
    assert items[: len(sides)] == [([1, 2], [3, 4]), ([1, 2], [5])][: len(sides)]
    assert items[-2:] == [([10], [11, 12]), ([13], [14])] and len(items) == 3 * len(sides) + 2
    # A reference whose state at a predicted token is the token itself.
    dataset.states = [
        {"hidden": torch.tensor(ids)[:, None].float(), "norms": -torch.tensor(ids)[:, None].float()}
        for _, ids in items
    ]
    batch = dataset.add_passages(PairCollator(pad_token_id=0)([dataset[2], dataset[0]]), [1, 0], 0)
    mask, n = batch["continuation_mask"].clone(), 2
    assert batch["reference"]["norms"].flatten().tolist() == [-float(i) for i in batch["input_ids"][:n][mask[:n]]]
    if "rejected" not in sides:
        mask[n : 2 * n] = False
    assert batch["reference"]["hidden"].flatten().tolist() == batch["input_ids"][mask].tolist()
