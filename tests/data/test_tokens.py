"""Are the ids of a prompt and of what follows those of the whole text, whatever the kind of tokenizer?"""

import json
import string
from functools import cache

import pytest
from forwards import TEXT
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import BOS_ID, EOS_ID, tiny_tokenizer
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from efface.data.tokens import (
    continuation_offsets,
    cut_ids,
    decode_continuation,
    encode_continuation,
    encode_prompt,
    token_ids,
    tokens_of,
)
from efface.errors import UserError

WORDS = (
    "the weather in old town was cold and people there were silent She went to market bought bread You are a silly "
    "fool nobody likes things that you say He is an engineer hello said hell the he man"
).split()
LINES = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(0, len(WORDS), 3)] + ["a\n\nb\n c", "it's  12, 345.", "é ü 漢"]
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def _train(tokenizer: Tokenizer, lines: list[str], **trainer: object) -> Tokenizer:
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(min_frequency=1, show_progress=False, **trainer))
    return tokenizer


def _byte_level(**settings: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**settings)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return _train(tokenizer, LINES, vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet)


def _sentence_piece(normalizer: object, pre_tokenizer: object, decoder: list[object]) -> Tokenizer:
    """The parts of a converted SentencePiece BPE with byte fallback, as in Llama 2, Mistral and Gemma."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    words = [f"\u2581{word}" for word in WORDS] * 3 + [f"\u2581{letter}" for letter in string.ascii_letters] + WORDS
    alphabet = list(string.ascii_letters + string.punctuation + string.digits + "\u2581")
    _train(tokenizer, words, vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet)
    trained = json.loads(tokenizer.to_str())["model"]
    vocabulary = trained["vocab"] | {byte: len(trained["vocab"]) + i for i, byte in enumerate(BYTES)}
    tokenizer.model = models.BPE(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in trained["merges"]],
        byte_fallback=True,
        unk_token="<unk>",
        fuse_unk=True,
    )
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Sequence(decoder)
    return tokenizer


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=list(string.ascii_lowercase + string.punctuation + string.digits),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


SPACE, RAW = decoders.Replace("\u2581", " "), [decoders.ByteFallback(), decoders.Fuse()]
STRIP = decoders.Strip(" ", 1, 0)


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A small tokenizer of a kind that is in use."""
    if kind in ("byte level", "byte level, prefix space"):
        made = _byte_level(add_prefix_space=kind.endswith("space"))
    elif kind == "byte level, own regex":
        made = _byte_level(add_prefix_space=False, use_regex=False)
        split = pre_tokenizers.Split(
            Regex(r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"), "isolated"
        )
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    elif kind == "Llama 2":
        normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        made = _sentence_piece(normalizer, None, [SPACE, *RAW, STRIP])
    elif kind == "Gemma":
        made = _sentence_piece(normalizers.Replace(" ", "\u2581"), None, [SPACE, *RAW])
    elif kind.startswith("metaspace"):
        scheme = kind.removeprefix("metaspace ")
        metaspace = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=scheme != "first")  # type: ignore[arg-type]
        made = _sentence_piece(None, metaspace, [SPACE, *RAW, *([] if scheme == "never" else [STRIP])])
    elif kind == "word piece":
        made = _word_piece()
    elif kind == "strips and lowers":
        made = _byte_level(add_prefix_space=False)
        made.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()])
    else:
        assert kind == "added tokens"
        made = _byte_level(add_prefix_space=False)
        made.add_tokens([AddedToken("silly fool"), AddedToken("[X]", lstrip=True, rstrip=True)])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


KINDS = [
    "byte level",
    "byte level, prefix space",
    "byte level, own regex",
    "Llama 2",
    "Gemma",
    "metaspace first",
    "metaspace always",
    "metaspace never",
    "word piece",
    "strips and lowers",
    "added tokens",
]

PIECES = st.lists(
    st.sampled_from(
        [*WORDS, " ", " ", "  ", "\n", "\n\n", ".", ",", "'s", "12", "345", "é", "漢", "\t", "silly fool", "[X]"]
    ),
    max_size=6,
).map("".join)
TEXTS = PIECES | st.text(st.characters(codec="utf-8", exclude_characters="\r<\u2581"), max_size=8)


def exactly(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(prompt=TEXTS, text=TEXTS)
@example(prompt="\x80\x80\x80ࠀ𐀀𐀀", text="\x1f")  # more bytes without a token of their own than are decoded with it
def test_ids_are_those_of_the_whole_text(kind: str, prompt: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    whole, before = tokens_of(tokenizer, prompt + text), tokens_of(tokenizer, prompt)
    ids = encode_continuation(tokenizer, text, prompt)
    if whole[: len(before)] == before:  # the tokenizer does not merge across the boundary
        assert before + ids == whole
    # What a normaliser takes away at a text's own ends, it does not take away in the middle of the whole.
    elif kind not in ("strips and lowers", "word piece", "added tokens"):
        assert exactly(tokenizer, before + ids) == exactly(tokenizer, whole)
    if kind not in ("word piece", "strips and lowers"):
        said = decode_continuation(tokenizer, before, ids)
        if "\N{REPLACEMENT CHARACTER}" not in tokenizer.decode(before):  # a character in two
            assert tokenizer.decode(before, skip_special_tokens=True) + said == tokenizer.decode(
                before + ids, skip_special_tokens=True
            )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompt", "text"),
    [("He said", " hello"), ("He said ", "hello"), ("Q\n", "hello"), ("He said", "\n\nhello"), ("He hel", "lo there")],
)
def test_a_prompt_and_what_follows_decode_to_both(kind: str, prompt: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    before, ids = encode_prompt(tokenizer, prompt), encode_continuation(tokenizer, text, prompt)
    whole = tokens_of(tokenizer, prompt + text)
    if kind == "strips and lowers" and prompt[-1].isspace():
        return  # its prompt has lost the space that would have to stand between
    assert exactly(tokenizer, before + ids) == exactly(tokenizer, whole)
    if kind not in ("word piece", "strips and lowers"):
        assert decode_continuation(tokenizer, before, ids) == text


def test_llama_2_gets_no_space_that_is_not_there() -> None:
    tokenizer = tokenizer_of("Llama 2")

    def tokens(prompt: str, text: str) -> list[str]:
        return tokenizer.convert_ids_to_tokens(encode_continuation(tokenizer, text, prompt))

    assert tokens("He said", " hello") == ["▁hello"]
    assert tokens("Q\n", "hello") == ["hello"] != tokens("Q\n", " hello")
    assert encode_continuation(tokenizer, "hello") != encode_continuation(tokenizer, " hello")  # behind anything
    # Of what a model writes, the first space stays.
    hello = tokenizer.convert_tokens_to_ids("▁hello")
    assert tokenizer.decode([hello]) == "hello"
    assert decode_continuation(tokenizer, encode_prompt(tokenizer, "He said"), [hello]) == " hello"
    assert decode_continuation(tokenizer, [tokenizer.bos_token_id], [hello]) == "hello"  # it begins the text


def test_a_character_whose_bytes_are_parted_is_the_continuations() -> None:
    tokenizer = tokenizer_of("byte level")
    ids = token_ids(tokenizer, "a \N{SNOWMAN}")
    assert len(ids) > 3 and decode_continuation(tokenizer, ids[:-1], ids[-1:]) == "\N{SNOWMAN}"


@pytest.mark.parametrize("kind", ["byte level", "byte level, prefix space", "Llama 2", "metaspace first"])
@pytest.mark.parametrize("text", [" you are a silly fool", "you are silly"])
@pytest.mark.parametrize("prompt", [None, "They said", "They said: "])
def test_offsets_are_those_of_the_tokens(kind: str, text: str, prompt: str | None) -> None:
    tokenizer = tokenizer_of(kind)
    ids, offsets = encode_continuation(tokenizer, text, prompt), continuation_offsets(tokenizer, text, prompt)
    assert len(ids) == len(offsets)
    assert "".join(text[start:end] for start, end in offsets).replace(" ", "") == text.replace(" ", "")
    assert offsets[-1][1] == len(text)


def test_a_text_that_begins_with_a_bos_gets_one() -> None:
    tokenizer = tokenizer_of("byte level")
    assert tokens_of(tokenizer, "<s>hello") == tokens_of(tokenizer, "hello")
    assert tokens_of(tokenizer, "<s><s>hello").count(tokenizer.bos_token_id) == 2  # the user's own second one
    assert encode_continuation(tokenizer, " there", "<s>hello") == encode_continuation(tokenizer, " there", "hello")


def test_half_of_a_character_is_no_text() -> None:
    with pytest.raises(UserError, match=r"the text holds half of a character \(\\ud83d at character 3"):
        token_ids(tokenizer_of("byte level"), "abc\ud83d")


@pytest.mark.parametrize("add_bos", [False, True])
def test_tokens_of(add_bos: bool) -> None:
    tokenizer = tiny_tokenizer(add_bos=add_bos)
    ids = tokens_of(tokenizer, TEXT)
    assert ids == tokenizer(TEXT)["input_ids"] and (BOS_ID in ids) == add_bos
    assert tokens_of(tokenizer, "") == [BOS_ID] * add_bos
    assert tokens_of(tokenizer, TEXT + "<eos>")[-1] == EOS_ID


def test_a_prompt_that_is_cut_keeps_its_bos_and_the_end_that_is_asked_for() -> None:
    ids = [1, 5, 6, 7, 8]
    assert cut_ids(ids, None, 1) == cut_ids(ids, 5, 1) == ids
    assert cut_ids(ids, 3, 1) == [1, 7, 8] and cut_ids(ids, 3, None) == [6, 7, 8]
    assert cut_ids(ids, 3, 1, keep="first") == [1, 5, 6] and cut_ids(ids, 3, 9, keep="first") == [1, 5, 6]
    assert cut_ids(ids, 1, 1) == [1] and cut_ids(ids, 1, 1, least=1) == [1, 8]
