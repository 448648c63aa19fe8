"""Work that somebody waits for, and that ends when nobody does any more.

Who waits calls `stop`, from any thread. Work in a thread asks `check` between two steps; what cannot ask, since it goes
on in a process of its own, is ended by what it has given to `ended_by`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """Nobody waits for this work any more."""


class Work:
    """What who waits and who works share: the one stops it, the other asks whether to go on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._end: Callable[[], object] | None = None

    def stop(self) -> None:
        """Thread-safe, idempotent."""
        with self._lock:
            self._stopped = True
            if self._end is not None:
                self._end()

    def check(self) -> None:
        """Raises Stopped if nobody waits any more."""
        if self._stopped:
            raise Stopped

    @contextmanager
    def ended_by(self, end: Callable[[], object]) -> Iterator[None]:
        """Has `end` called if the work is stopped inside; raises Stopped then, whatever came of it."""
        with self._lock:
            self.check()
            self._end = end
        try:
            yield
        finally:
            with self._lock:
                self._end = None
            self.check()
