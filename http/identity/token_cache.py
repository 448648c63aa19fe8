"""What is remembered of tokens, and how many may ask about one at a time. Keys are digests; no token is ever kept.

    ExpiringCache   a bounded map whose entries end; the one that was not asked for the longest makes room
    SharedCalls     equal questions that are asked at one time are asked once

A call is a task of its own: it belongs to nobody who waits for it, so nobody who leaves can end it for the others.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Generic, TypeVar

from gnomon.http.identity.clock import Clock

T = TypeVar("T")


class ExpiringCache(Generic[T]):
    def __init__(self, size: int, clock: Clock) -> None:
        self._size = size
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, T]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._entries)

    def get(self, key: bytes) -> T | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        end, value = entry
        if self._clock.monotonic() >= end:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return value

    def put(self, key: bytes, value: T, seconds: float) -> None:
        if seconds <= 0:
            return
        self._entries[key] = (self._clock.monotonic() + seconds, value)
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)


class SharedCalls(Generic[T]):
    def __init__(self) -> None:
        self._under_way: dict[bytes, asyncio.Task[T]] = {}

    async def share(self, key: bytes, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The answer of `ask`, or of one that was asked with this key before and has yet to answer."""
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(ask())
            task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task)

    def _ended(self, key: bytes, task: asyncio.Task[T]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # looked at, or asyncio would complain when everybody has left

    async def close(self) -> None:
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
