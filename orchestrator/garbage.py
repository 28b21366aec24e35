"""When Python does not look for reference cycles: while much is made that stays."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

#: At exit Python frees everything, and compiled modules complain of what they still find (nanobind's "leaked").
atexit.register(gc.unfreeze)


@contextmanager
def made_to_stay() -> Iterator[None]:
    """Pause the search for cycles, and leave out of every later one what exists when the body has succeeded.

    For imports and the like, once each: cycles that are garbage by then are never freed. Importing MLflow and opening a
    new database takes 2.4 to 3.2 s of CPU where Ray has been imported, 0.7 to 0.9 of them such searches.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_enabled:  # else another thread is at it, and will
            gc.enable()
