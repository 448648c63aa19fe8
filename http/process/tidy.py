"""Memory that requests have left free goes back to the system.

glibc keeps what is freed within the process, in an arena for each of many threads: after large bodies and answers that
is hundreds of MB that nobody uses. `malloc_trim` gives it back. It looks at the free pieces of every arena, for some
milliseconds, so it is called in a thread, a moment after requests that were not small, and seldom. Other C libraries
have no such call, and nothing is done there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gnomon.http.threads import NoThread, Threads
from gnomon.reference.system.heap import TRIM

DELAY_SECONDS = 2.0  # after the first of the requests, so that it is once for many


class Tidy:
    def __init__(self, threads: Threads, trim: Callable[[int], Any] | None = TRIM) -> None:
        self._threads = threads
        self._trim = trim
        self._due: asyncio.TimerHandle | None = None

    def soon(self) -> None:
        """Called in the event loop, when a request that was not small has ended."""
        if self._trim is not None and self._due is None:
            self._due = asyncio.get_running_loop().call_later(DELAY_SECONDS, self._now, self._trim)

    def _now(self, trim: Callable[[int], Any]) -> None:
        self._due = None
        with suppress(NoThread):  # the next request asks again
            self._threads.submit(lambda: trim(0))

    def close(self) -> None:
        if self._due is not None:
            self._due.cancel()
