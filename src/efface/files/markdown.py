"""How does text of anybody's making stand in Markdown? As text: it opens no tag, no link, no cell and no code.

Model cards and pages of tables are shown by sites that render HTML in them; what was measured or read is quoted there.
Short: three ways to quote, and nothing else.
"""

import re

from efface.errors import escaped

# A tag or comment, not "p < 0.05"; the link of "[text](url)", not the interval "[0.1, 0.2]"; code.
_MARKUP = re.compile(r"<(?=[A-Za-z/!?])|(?<=\])[(\[:]|[\\`]|&(?=#?\w+;)")


def inert(text: str) -> str:
    """`text` on one line, also in a cell."""
    return inert_lines(" ".join(text.split("\n"))).replace("|", "\\|")


def inert_lines(text: str) -> str:
    """`text` with its line ends and what begins a line: for paragraphs whose marks are our own."""
    return _MARKUP.sub(lambda match: "\\" + match.group(), escaped(text))


def code(text: str) -> str:
    """`text` as code, in a sentence or a cell; backticks would end it."""
    return "`" + escaped(" ".join(text.split("\n"))).replace("`", "'").replace("|", "\\|") + "`"
