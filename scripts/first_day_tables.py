"""What did efface say on a user's first day? From what `benchmarks/first_day.py` recorded."""

import json
import re
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
POINTS = {
    1: "Nothing of mine is lost",
    2: "Install",
    3: "My data",
    4: "My model",
    5: "My judge",
    6: "What is printed",
    7: "One line instead of a traceback",
    8: "Handing it over",
    9: "README's other commands, made small",
}


def first_day() -> str:
    """The transcript by point; a command that did not end as it should says so."""
    content = json.loads((RESULTS / "first_day.json").read_text(encoding="utf-8"))
    installed = ", ".join(f"{name} {version}" for name, version in content["installed"].items())
    parts = [f"The environment: `pip install .`, with {installed}.\n"]
    for point, title in POINTS.items():
        shown = [each for each in content["shown"] if each["point"] == point]
        if shown:
            parts.append(f"\n### {point}. {title}\n")
        for each in shown:
            code = each["found"] if each["found"] == each["rc"] else f"{each['found']}, **not** {each['rc']}"
            output = re.sub(r"\n{3,}", "\n\n", each["output"])  # where bars stood
            said = f"$ {each['command']}\n{output}"
            parts.append(f"\n{each['title']} (exit code {code}):\n\n```text\n{said}\n```\n")
    return "".join(parts)
