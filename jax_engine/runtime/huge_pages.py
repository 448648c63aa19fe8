"""Memory on pages of 2 MiB, where the system has them: to find what is read in every step takes fewer entries of its
table of pages.

Asked for by madvise, so that it works with the system's setting "madvise" as with "always"; where there are none, with
"never" or on other systems, memory is as it always was.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

HUGE_PAGE = 2**21  # bytes
MAP_BYTES = 2**28  # of a map; what of it nobody has touched takes no memory
ALIGNED = 64  # bytes; XLA's CPU backend takes an array as it is, without a copy, if it begins at a multiple of these


class HugePages:
    """Arrays for good: each is cut from the rest of a map, which is given back when all of its arrays are gone."""

    def __init__(self) -> None:
        self._rest: NDArray[np.uint8] = np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Of zeros."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        whole = -(-size // ALIGNED) * ALIGNED
        if whole > len(self._rest):
            self._rest = _map(max(whole, MAP_BYTES))
        mine, self._rest = self._rest[:size], self._rest[whole:]
        return mine.view(dtype).reshape(shape)


def _map(size: int) -> NDArray[np.uint8]:
    """Bytes that begin at the beginning of a huge page."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        memory = np.zeros(size + HUGE_PAGE, np.uint8)
    else:
        mapped = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a system that was built without them
            mapped.madvise(mmap.MADV_HUGEPAGE)
        memory = np.frombuffer(mapped, np.uint8)
    start = -memory.ctypes.data % HUGE_PAGE
    return memory[start : start + size]
