"""What glibc keeps of freed memory, and the call that gives it back.

It keeps what is freed within the process, in an arena for each of many threads: after programs have been compiled, or
large bodies and answers made, that is tens or hundreds of MB that nobody uses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

TRIM: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""Looks at the free pieces of every arena, for some milliseconds. None: another C library, which has no such call."""


def give_back() -> None:
    if TRIM is not None:
        TRIM(0)
