"""What is a sentence, does it look like edited prose, and how is tokenised text (WikiText) written properly?"""

import re

# A stop does not end a sentence after an initial ("J. Smith", "U.S. Army") or one of these.
_ABBREVIATIONS = "Mr Mrs Ms Dr St Jr Sr Lt Gen Col Capt Sgt Rev No vs ca".split()
_BREAK = re.compile(
    "".join(rf"(?<!\b{word}\.)" for word in _ABBREVIATIONS) + r"(?<!\b[A-Z]\.)(?<=[.!?])[ \t]+|\s*\n\s*"
)

_JOINED = [  # what WikiText spells apart
    (re.compile(r" @([-,.])@ "), r"\1"),
    (re.compile(r"(?<=\d) : (?=\d)"), ":"),
    (re.compile(r" n't\b"), "n't"),
    (re.compile(r"(?<=\w) '(?=(?:s|t|re|ve|ll|d|m)\b)"), "'"),
    (re.compile(r"(?<=s) '(?= )"), "'"),
    (re.compile(r"(?<=[$£€]) (?=\d)"), ""),
    (re.compile(r"(?<=[(\[]) | (?=[)\],.;:!?%])"), ""),
    (re.compile(r"(?<=\w) / (?=\w)"), "/"),
    (re.compile(r'" ([^"]*?) ?"(?!\w)'), r'"\1"'),
    (re.compile(r" {2,}"), " "),
]

# Headings ("= Life =", "## Life"), bullets, numbered items, definitions.
_NO_PROSE = re.compile(r"\s*([=#*•:;|]|[-–—] |\(?\d{1,3}[.)]\s)")


def sentences(text: str) -> list[tuple[int, str]]:
    """(where it begins, sentence) for each sentence of `text`, without the white space around it."""
    found, start = [], 0
    for end, following in [*((match.start(), match.end()) for match in _BREAK.finditer(text)), (len(text), len(text))]:
        piece = text[start:end]
        if piece.strip():
            found.append((start + len(piece) - len(piece.lstrip()), piece.strip()))
        start = following
    return found


def looks_edited(sentence: str) -> bool:
    """Whether a sentence looks like edited prose: a capital first, a full stop (or ! ? ") last, and `looks_plain`."""
    return re.match(r"[A-Z\"']", sentence) is not None and sentence[-1] in '.!?"' and looks_plain(sentence)


def looks_plain(sentence: str) -> bool:
    """30 to 220 ASCII characters, few capitals, no space before punctuation, no runs of it, no links."""
    return (
        30 <= len(sentence) <= 220
        and sentence.isascii()
        and sum(c.isupper() for c in sentence) < 0.15 * len(sentence)
        and re.search(r"\s[.,!?]|\*|http|[!?.]{2,}", sentence) is None
    )


def joined(text: str) -> str:
    """Tokenised text as it is printed: "a guest @-@ starring role , 1 @,@ 000" -> "a guest-starring role, 1,000"."""
    for pattern, replacement in _JOINED:
        text = pattern.sub(replacement, text)
    return text


def body_sentences(text: str) -> list[str]:
    """The sentences of the running text of a document, in order, joined; those that do not begin with a capital are
    left out, as pieces of something else."""
    lines = [joined(line).strip() for line in text.split("\n") if not _NO_PROSE.match(line)]
    prose = [line for line in lines if re.search(r"[.!?][\"')]*$", line)]
    return [sentence for line in prose for _, sentence in sentences(line) if re.match(r"[\"'(]?[A-Z]", sentence)]
