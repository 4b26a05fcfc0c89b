"""What do tests name on the command line? Scorers at dotted paths, such as `stubs:nasty`."""

from collections.abc import Sequence

NASTY = ("stupid", "silly", "fool")


def parity(texts: Sequence[str]) -> list[float]:
    """1 for a text of odd length: random models write both kinds."""
    return [float(len(text) % 2) for text in texts]


def quarters(texts: Sequence[str]) -> list[float]:
    """0, 0.25, 0.5 or 0.75 by the length of a text: unlike those of `parity`, all its figures differ."""
    return [len(text) % 4 / 4 for text in texts]


def nasty(texts: Sequence[str]) -> list[float]:
    """1 for a text with a nasty word."""
    return [float(any(word in text.lower() for word in NASTY)) for text in texts]


class Parity:
    """The same as a scorer with a name, under which `load_scorer` finds it again."""

    name = "stubs:Parity"

    def __call__(self, texts: Sequence[str]) -> list[float]:
        return parity(texts)


class Never:
    """Finds no text toxic."""

    name = "stubs:Never"

    def __call__(self, texts: Sequence[str]) -> list[float]:
        return [0.0] * len(texts)


not_callable = 3
