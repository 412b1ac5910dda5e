"""Imports without Python's search for garbage."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Imports within the block are quicker, and what they made is never searched for garbage.

    Torch and Lightning make some 350,000 objects that stay to the end. While their number grows,
    Python searches all of them for garbage again and again, which takes a fifth of the time. Later
    searches, during training or decoding, would take 0.15 s each.

    Only the first block of a process exempts anything: before a later one, there may be garbage,
    such as the previous job of a sweep.
    """
    enabled, first = gc.isenabled(), gc.get_freeze_count() == 0
    gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
            # The last search, at the end of the process, must see everything: otherwise Triton's
            # library reports its own objects as leaks.
            atexit.register(gc.unfreeze)
        if enabled:
            gc.enable()
