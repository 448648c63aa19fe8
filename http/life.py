"""The life of a request: from its head to its last byte, and what may end it before its time.

    1 reading     its body comes, within --body-seconds (completions.py)
    2 preparing   its body is whole: it waits for a processor, is parsed and encoded, and held against the model
    3 answering   it was let in: it waits for the engine, is computed, read and sent

Three things end it, in each of these, and whatever waits or works for it hears of them by one way, `Life.end`:

    the client    goes away: nobody is answered
    the clocks    --request-seconds from its head; --queue-seconds from when its body was whole until the engine begins
    the server    ends: draining is over, or a second signal came

Before it was let in, that is the end: what waits is cancelled, what works in a thread is stopped (reference/work.py),
and the answer is the error. Afterwards its run is closed, so that the engine stops, and its answer ends with the error,
an event in a stream; a client that has not taken that after --write-seconds is cut off.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

from starlette.types import Receive

from gnomon.http.admission import Answer, QueueTimeout, RequestTimeout
from gnomon.http.errors import Draining
from gnomon.http.observe.record import Record, RequestOutcome
from gnomon.http.settings import Settings
from gnomon.http.threads import Threads
from gnomon.reference.errors import RequestError
from gnomon.reference.work import Work

T = TypeVar("T")

State = Literal["reading", "preparing", "answering"]

OUTCOMES: dict[type[Exception], RequestOutcome] = {Draining: "drained", RequestTimeout: "timed_out"}
"""By what ended a request before its time."""

# A tokenizer needs some 300 times a text's size, whether or not the text then fits the model: 8 MiB become 2.5 GB. So
# bodies of more than LONG_BODY are prepared one at a time, those of more than SHORT_BODY as many as there are
# processors, and shorter ones, which have no more than 4 KiB to encode, without waiting behind either.
LONG_BODY = 256 * 2**10
SHORT_BODY = 4 * 2**10


class Life:
    """One request, and the one place that says why it ended before its time."""

    def __init__(self, record: Record, settings: Settings, retry_after: Callable[[], int], at: Counter[State]) -> None:
        """retry_after: what to tell who waited too long · at: how many requests are in which state."""
        self.record = record
        self.work = Work()  # what is done for it in threads before it is let in
        self.error: RequestError | None = None
        self.whole: float | None = None  # when its body was
        self.is_small = True  # what it takes of memory; known once its body is whole
        self.is_alone = False  # whether its client has left
        self.begun = False  # whether that which it waited for has begun
        self.answer: Answer | None = None
        self._settings, self._retry_after, self._at = settings, retry_after, at
        self._over = asyncio.get_running_loop().create_future()
        self._leaving: asyncio.Task[None] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._state: State = "reading"
        at["reading"] += 1

    # ---- its states

    @property
    def state(self) -> State:
        return self._state

    def _enter(self, state: State) -> None:
        self._at[self._state] -= 1
        self._at[state] += 1
        self._state = state

    def is_whole(self, receive: Receive) -> None:
        """Its body is: from here on all that can come of its client is that it leaves."""
        self._enter("preparing")
        self.record.queued = self.whole = time.monotonic()
        self._leaving = asyncio.create_task(disconnected(receive))
        self._leaving.add_done_callback(self._left)
        self._after(self._settings.queue_seconds, self._waited_too_long)

    def is_let_in(self, answer: Answer) -> None:
        self._enter("answering")
        self.answer = answer
        if self.error is not None:
            answer.end(self.error)

    # ---- its end

    def end(self, error: RequestError) -> None:
        """It ends with this error. The first counts."""
        if self.error is None:
            self.error = error
            if self.answer is not None:
                self.answer.end(error)
            self._wake()

    def _left(self, leaving: asyncio.Task[None]) -> None:
        if not leaving.cancelled():
            self.is_alone = True
            self._wake()

    def _wake(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def _waited_too_long(self) -> None:
        if not self.begun and (self.answer is None or self.answer.run.started is None):
            self.end(QueueTimeout(self._settings.queue_seconds, self._retry_after()))

    def _after(self, seconds: float, call: Callable[[], None]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, call))

    async def live(self, doing: Coroutine[object, object, None]) -> None:
        """All that is done for it, for as long as it may go on. Raises what ended it, if nothing was sent before."""
        seconds = self._settings.request_seconds
        self._after(self.record.arrived + seconds - time.monotonic(), lambda: self.end(RequestTimeout(seconds)))
        task = asyncio.create_task(doing)
        try:
            await asyncio.wait((task, self._over), return_when=asyncio.FIRST_COMPLETED)
            if self.answer is not None and not task.done() and not self.is_alone:
                await self._tell_the_end(task)
            is_done = task.done()
        finally:
            await self._clear(task)
        if is_done:
            task.result()
        elif self.is_alone:
            self.record.outcome = "cancelled"
        elif self.error is not None and self.record.status is None:
            raise self.error

    async def _tell_the_end(self, task: asyncio.Task[None]) -> None:
        """An answer that was ended has yet to say so to its client."""
        assert self._leaving is not None  # it is whole
        of = (task, self._leaving)
        await asyncio.wait(of, timeout=self._settings.write_seconds, return_when=asyncio.FIRST_COMPLETED)

    async def _clear(self, task: asyncio.Task[None]) -> None:
        self.work.stop()
        if self.answer is not None:
            self.answer.run.close()  # before the reader is waited for: it is what it waits for
        tasks = (task,) if self._leaving is None else (task, self._leaving)
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        self._at[self._state] -= 1
        for timer in self._timers:
            timer.cancel()
        if self.error is not None and self.record.outcome in (None, "refused"):
            self.record.outcome = OUTCOMES.get(type(self.error), self.record.outcome)


class Lives:
    """Every request of one endpoint, from its head to its last byte."""

    def __init__(self, settings: Settings, retry_after: Callable[[], int]) -> None:
        self.at: Counter[State] = Counter()
        self.open: set[Life] = set()
        self._settings, self._retry_after = settings, retry_after
        self._ending: RequestError | None = None

    @contextmanager
    def begin(self, record: Record) -> Iterator[Life]:
        life = Life(record, self._settings, self._retry_after, self.at)
        if self._ending is not None:
            life.end(self._ending)
        self.open.add(life)
        try:
            yield life
        finally:
            self.open.discard(life)
            life.close()

    @property
    def unfinished(self) -> int:
        """Requests that have come whole and have yet to be answered."""
        return self.at["preparing"] + self.at["answering"]

    def stop(self, error: RequestError) -> None:
        """The server ends: every request ends with this error, and so does every later one."""
        self._ending = error
        for life in list(self.open):
            life.end(error)


class Preparer:
    """Holds requests against the model, in threads: of those with a long body one at a time, of those whose body is
    neither long nor short as many as there are processors. Whoever waits for its turn and is cancelled is never begun;
    a turn ends when its thread does, since until then its memory is taken."""

    def __init__(self) -> None:
        self.long_bodies = asyncio.Semaphore(1)
        self.other_bodies = asyncio.Semaphore(max(2, os.cpu_count() or 1))
        self.threads = Threads("prepare")

    async def prepare(self, size: int, call: Callable[[], T]) -> T:
        """size: of the body, in bytes."""
        if size <= SHORT_BODY:
            return await asyncio.wrap_future(self.threads.submit(call))
        turn = self.long_bodies if size > LONG_BODY else self.other_bodies
        await turn.acquire()

        def ended(future: asyncio.Future[T]) -> None:
            turn.release()
            if not future.cancelled():
                future.exception()  # or asyncio would tell of the error of a request that nobody waits for

        try:
            preparing = asyncio.wrap_future(self.threads.submit(call))
        except BaseException:  # the system has no thread left
            turn.release()
            raise
        preparing.add_done_callback(ended)
        await asyncio.wait((preparing,))  # which leaves it alone when it is cancelled itself
        return preparing.result()

    def close(self) -> None:
        self.threads.close()


async def disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
