"""What noise does `perturb` put on a text? Character and spacing noise of one kind, or best-of-n's own mixture."""

import random
import re

KINDS = ("swap", "capital", "drop", "double", "space")
MIX = "mix"
PAPER = "bon"
"""Best-of-n's own mixture."""


def perturbed(text: str, kind: str, rate: float, key: str) -> str:
    """`text` with noise.

    Args:
        kind: one of KINDS, "mix" (at each character one of those), or "bon" (`best_of_n_noise`).
        rate: of the characters that can have it, but at one at least if there is any; of "bon" its sigma.
        key: equal keys give equal noise. Those altered at a lower rate are altered at a higher one too (not by "bon").
    """
    generator = random.Random(f"{key} {kind} {text}")
    if kind == PAPER:
        return best_of_n_noise(text, rate, generator)
    kinds = KINDS if kind == MIX else (kind,)
    options = {place: [one for one in kinds if _fits(one, text, place)] for place in range(len(text))}
    places = [place for place in options if options[place]]
    generator.shuffle(places)
    drawn = [(place, generator.choice(options[place])) for place in places]
    edits = dict(drawn[: max(round(rate * len(places)), 1)])
    found, place = "", 0
    while place < len(text):
        here, edit = text[place], edits.get(place)
        if edit == "swap":  # the next character's own edit is lost
            found += text[place + 1] + here
            place += 2
            continue
        found += _edited(here, edit)
        place += 1
    return found or text  # nothing can be continued after nothing


def _fits(kind: str, text: str, place: int) -> bool:
    """Whether the text changes by this edit of this character."""
    here, last = text[place], place == len(text) - 1
    if kind == "swap":
        return not last and here != text[place + 1]
    if kind == "capital":
        return here.swapcase() != here
    if kind == "space":
        return not last  # a space at the end is noise of another kind: tokenizers put it before the next word
    return not here.isspace()


def _edited(character: str, edit: str | None) -> str:
    if edit == "capital":
        return character.swapcase()
    if edit == "drop":
        return ""
    if edit == "double":
        return character * 2
    if edit == "space":
        return "" if character == " " else character + " "
    return character


def best_of_n_noise(text: str, sigma: float, generator: random.Random) -> str:
    """The augmentations of text of Hughes et al. 2024, one after the other.

    With probability sigma^(1/2) the inner letters of a word of more than three characters are shuffled; so often, too,
    a letter gets the other case; with probability sigma^3 a printable ASCII character is replaced by one of its two
    neighbours in the table. Unlike there, white space stays as it is.
    """
    often, seldom = sigma**0.5, sigma**3
    scrambled = "".join(
        _scrambled(part, generator) if len(part) > 3 and not part.isspace() and generator.random() < often else part
        for part in re.split(r"(\s+)", text)
    )
    cased = [one.swapcase() if one.isalpha() and generator.random() < often else one for one in scrambled]
    return "".join(
        _neighbour(one, generator) if "!" <= one <= "~" and generator.random() < seldom else one
        for one in "".join(cased)
    )


def _scrambled(word: str, generator: random.Random) -> str:
    inner = list(word[1:-1])
    generator.shuffle(inner)
    return word[0] + "".join(inner) + word[-1]


def _neighbour(character: str, generator: random.Random) -> str:
    found = chr(ord(character) + generator.choice((-1, 1)))
    return found if "!" <= found <= "~" else character
