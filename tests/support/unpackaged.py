"""How does a test take a module of scripts/ or benchmarks/, which are no packages?"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def script(file: str) -> Any:
    """The module of "benchmarks/common", say."""
    spec = importlib.util.spec_from_file_location(f"of_docs_{file.replace('/', '_')}", ROOT / f"{file}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    beside = str((ROOT / file).parent)
    sys.path.insert(0, beside)  # they import each other by name, as when they are run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(beside)
    return module
