"""Do the lines of other libraries do a terminal no harm? Log records and warnings are escaped, whoever prints them.

transformers has a handler of its own, and quotes what a checkpoint's files say: a line of such a file could colour the
terminal, move its cursor or rename its window.
Short: one context manager.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from efface.errors import escaped


@contextlib.contextmanager
def harmless() -> Iterator[None]:
    """Inside, control characters of every log record and warning are written as in source code."""
    make, form = logging.getLogRecordFactory(), warnings.formatwarning

    def record_of(*args: Any, **given: Any) -> logging.LogRecord:
        record = make(*args, **given)
        # Arguments that do not fit their message are logging's to tell.
        with contextlib.suppress(TypeError, ValueError, KeyError):
            record.msg, record.args = escaped(record.getMessage()), ()
        return record

    def warning_of(*args: Any, **given: Any) -> str:
        return escaped(form(*args, **given))

    logging.setLogRecordFactory(record_of)
    warnings.formatwarning = warning_of
    try:
        yield
    finally:
        logging.setLogRecordFactory(make)
        warnings.formatwarning = form
