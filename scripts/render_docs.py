"""Do README and docs say what the result files say? Renders every table (`tables.py`) from `benchmarks/results/`, and
the picture of the comparison.

    python scripts/render_docs.py [--check]

A table stands between `<!-- table: NAME -->` and `<!-- end table -->`; `--check` (run by the tests) only compares.
"""

import argparse
import re
import sys
from pathlib import Path

import comparison_figure
from tables import ROOT, TABLES

from efface.errors import UserError

BLOCK = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end table -->)", re.DOTALL)


def rendered(text: str) -> str:
    """`text` with every table made anew."""
    return BLOCK.sub(lambda match: match[1] + _made(match[2]) + match[4], text)


def _made(name: str) -> str:
    try:
        return TABLES[name]()
    except (UserError, KeyError, FileNotFoundError) as error:  # no such file yet, or not that part of it
        if isinstance(error, UserError) and not isinstance(error.__cause__, FileNotFoundError):
            raise
        return "*Not measured yet.*\n"


def documents() -> list[Path]:
    return [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "benchmarks" / "LOG.md",
        *sorted((ROOT / "docs").glob("*.md")),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 if a table differs from its result file")
    args = parser.parse_args()
    stale = [
        path for path in documents() if rendered(path.read_text(encoding="utf-8")) != path.read_text(encoding="utf-8")
    ]
    for path in stale:
        if not args.check:
            path.write_text(rendered(path.read_text(encoding="utf-8")), encoding="utf-8")
    if not comparison_figure.is_current():
        stale.append(comparison_figure.PICTURE)
        if not args.check:
            comparison_figure.draw()
    for path in stale:
        print(f"{'stale' if args.check else 'rendered'}: {path.relative_to(ROOT)}")
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
