"""How do tests of many small models keep Python from looking for cycles most of the time?

Short: the answer is three settings.
"""

import gc
import sys
import types


def freeze() -> None:
    """From here on Python's collections are rare and leave out what is imported, and accelerate makes none.

    Each training ends with a collection by accelerate, which walks all that torch and transformers have imported: most
    of the time that a tiny one takes. Python's own take a fifth of the rest at their usual threshold of 700 objects.
    Tests that ask what is freed collect themselves.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)
    memory = sys.modules.get("accelerate.utils.memory")
    if memory is not None:
        memory.gc = types.SimpleNamespace(collect=lambda: 0)  # type: ignore[attr-defined]
