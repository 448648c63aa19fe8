"""Threads for what blocks: reading an engine, preparing a request. As many as are at work, and after a while no more.

Tried in the place of this (anyio 4.16, with a limiter of infinity): a thread that dies before its first line, as where
there is no memory for it, hangs the event loop for ever; a SystemExit that a call raises is raised in the loop's own
task; and the threads of the busiest moment stay until another call comes. A ThreadPoolExecutor, like asyncio's, keeps
them until the process ends.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
ThreadCall = tuple[Future[Any], Callable[[], Any]]

IDLE_SECONDS = 2.0
START_SECONDS = 1.0


class NoThread(Exception):
    """The system starts no further thread: there are too many, or there is too little memory."""


class Panic(Exception):
    """A call raised what is no Exception (a library in Rust that panicked, a SystemExit). An event loop that is handed
    such a thing ends, or passes it by everything that makes an answer of an error."""


class Started(threading.Event):
    """What `Thread.start` waits for, but not for ever. (Thread._started is a private name.)"""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(START_SECONDS if timeout is None else timeout)


class Threads:
    """One for every call under way: no call ever waits for another's end. Whoever calls bounds how many there are.
    Where the system has no thread left, `submit` raises NoThread."""

    def __init__(self, name: str, idle_seconds: float = IDLE_SECONDS) -> None:
        self._name = name
        self._idle_seconds = idle_seconds
        self._calls: deque[ThreadCall] = deque()  # each for one of the waiting threads
        # Not a SimpleQueue: its `get` with a timeout may wait for ever when another thread takes the item it woke for.
        self._changed = threading.Condition(threading.Lock())
        self._spare = 0  # threads that wait for a call, less the calls that wait for a thread
        self._closed = False

    def submit(self, call: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._changed:
            if self._spare:
                self._spare -= 1
                self._calls.append((future, call))
                self._changed.notify()
                return future
        # Not by the queue: where the system has no thread left, the call would stay there and be taken for a later one.
        thread = threading.Thread(target=self._work, args=[[(future, call)]], name=self._name)
        try:
            start(thread)
        except NoThread:
            if future.cancel():  # if the thread comes to life yet, it does nothing
                raise
        return future

    def close(self) -> None:
        """A thread without work ends now, and any other with its work."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self, first: list[ThreadCall]) -> None:
        item: ThreadCall | None = first.pop()  # or the thread would keep it until it ends
        while item is not None:
            _carry_out(*item)
            item = None  # or an answer would live on while its thread waits
            item = self._next()

    def _next(self) -> ThreadCall | None:
        """What a thread that has done its work is to do next; None: it is to end."""
        with self._changed:
            self._spare += 1
            self._changed.wait_for(lambda: self._calls or self._closed, self._idle_seconds)
            if self._calls:
                return self._calls.popleft()
            self._spare -= 1
            return None


def start(thread: threading.Thread) -> None:
    """Starts a thread from the event loop. Raises NoThread, for one too that has not begun within START_SECONDS."""
    thread._started = Started()  # type: ignore[attr-defined]
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:
        raise NoThread(str(error) or "no memory for one") from None
    if thread.ident is None:
        raise NoThread("one was started and did not begin, as where there is no memory for it")


def _carry_out(future: Future[T], call: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except Exception as error:
        future.set_exception(error)
    except BaseException as error:
        broken = Panic(f"{type(error).__name__}: {error}")
        broken.__cause__ = error
        future.set_exception(broken)
        del broken
    else:
        future.set_result(result)
    finally:
        del future, call  # an error knows this frame: what its request held would live on until the next collection
