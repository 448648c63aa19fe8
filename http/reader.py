"""Who reads the engine for the answers: one thread for all of those whose jobs go on by themselves, else a thread each.

    1 begin     in a thread: to hand a job over may take a while, and where the engine computes in its reader's thread
                the answer is read to its end in that way
    2 wait      no thread does: the engine says when something has come
    3 turn      one thread takes what has come for each answer that wants more, and makes bytes of it
    4 deliver   all of that is handed to the event loop together

So a step of the engine wakes one thread and then the loop, however many answers it has tokens for; with a thread for
each, waking them took five times as long as what they did. What comes while a turn lasts is taken by the next one, more
at a time the busier the server is. An answer whose client is slow wants nothing meanwhile: its events wait in its job,
which knows how many there can be. What one answer is given of a turn is bounded, so that none holds up the others.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Generic, NamedTuple, TypeVar

from gnomon.http.threads import NoThread, Panic, Threads
from gnomon.reference.completion import Run

T = TypeVar("T")

MOST_AT_ONCE = 8  # parts of one answer in a turn
TOGETHER_SECONDS = 0.005  # for what is delivered together


class Delivery(NamedTuple):
    """What a turn has made for an answer: its next parts, None at its end, or an error."""

    wanted: asyncio.Future[Any]
    parts: list[Any] | None
    error: Exception | None = None

    def hand_over(self) -> None:
        if self.wanted.done():
            return  # whoever wanted it is gone
        if self.error is None:
            self.wanted.set_result(self.parts)
        else:
            self.wanted.set_exception(self.error)


class AnswerReading(Generic[T]):
    """One run on its way to its client. parts: what is read, with None wherever going on may mean to wait.

    Its owner sees to it that the run is closed.
    """

    def __init__(self, reader: Reader, run: Run, parts: Iterator[T | None]) -> None:
        self.has_come = False  # something that nobody has taken
        self.wanted: asyncio.Future[list[T] | None] | None = None
        self._reader, self._run = reader, run
        self._parts = parts
        self._error: Exception | None = None

    async def next(self) -> list[T] | None:
        """The next parts of it, or None at its end. Raises what reading raises, once all before it has been given."""
        parts: list[T] | None = []
        while parts == []:
            if self._run.is_arriving:
                self.wanted = wanted = asyncio.get_running_loop().create_future()
                if self.has_come:
                    self._reader.look(self)
                parts = await wanted
            else:
                parts = await asyncio.wrap_future(self._reader.threads.submit(self.take))
        return parts

    def woken(self) -> None:
        """By the engine. It says first that something has come and looks then whether that is wanted; whoever wants it
        does the same the other way round. So one of the two sees the other, or both do."""
        self.has_come = True
        if self.wanted is not None:
            self._reader.look(self)

    def take(self) -> list[T] | None:
        """What has come: none, if nothing has. Waits only for what a run computes when it is read."""
        if self._error is not None:
            raise self._error
        taken: list[T] = []
        try:
            while len(taken) < MOST_AT_ONCE:
                part = next(self._parts)
                if part is not None:
                    taken.append(part)
                elif self._run.is_arriving and self.has_come:
                    # The look that has found nothing may lie before what has come: that of an earlier turn, which had
                    # its share while what that look released was being given. After this, another one begins.
                    self.has_come = False
                elif taken or self._run.is_arriving:
                    return taken
        except StopIteration:
            if not taken:
                return None
        except Exception as error:
            if not taken:
                raise
            self._error = error
        self.has_come = True  # or it is not known that nothing has
        return taken

    def close(self) -> None:
        """Lets go of what was read: the job knows this object, and this object all of the run."""
        self._parts = iter(())


class Reader:
    """threads: those in which turns are taken, and answers are read that cannot be read in turns."""

    def __init__(self, threads: Threads) -> None:
        self.threads = threads
        self._lock = threading.Lock()
        self._ready: list[AnswerReading[Any]] = []
        self._is_turning = False

    def look(self, reading: AnswerReading[Any]) -> None:
        """Something may have come for a reading. Called in any thread."""
        with self._lock:
            self._ready.append(reading)
            if self._is_turning:
                return
            self._is_turning = True
        try:
            self.threads.submit(self._turns)
        except NoThread as error:
            while ready := self._taken():
                _deliver([Delivery(one.wanted, None, error) for one in ready if one.wanted is not None])

    def _taken(self) -> list[AnswerReading[Any]]:
        """Those that are ready; none, and the turns are over."""
        with self._lock:
            ready, self._ready = self._ready, []
            self._is_turning = bool(ready)
            return ready

    def _turns(self) -> None:
        while ready := self._taken():
            made: list[Delivery] = []
            began = time.monotonic()
            for reading in ready:
                delivery = self._turn(reading)
                if delivery is not None:
                    made.append(delivery)
                if time.monotonic() - began > TOGETHER_SECONDS:
                    _deliver(made)
                    made, began = [], time.monotonic()
            _deliver(made)

    def _turn(self, reading: AnswerReading[Any]) -> Delivery | None:
        wanted = reading.wanted
        if wanted is None or not reading.has_come:
            return None  # somebody else was quicker
        try:
            parts = reading.take()
        except Exception as error:
            made = Delivery(wanted, None, error)
        except BaseException as error:
            made = Delivery(wanted, None, Panic(f"{type(error).__name__}: {error}"))
        else:
            if parts == []:
                return None
            made = Delivery(wanted, parts)
        reading.wanted = None
        return made


def _deliver(made: list[Delivery]) -> None:
    """To the event loops that wait for it."""
    for loop in {delivery.wanted.get_loop() for delivery in made}:
        own = [delivery for delivery in made if delivery.wanted.get_loop() is loop]
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(_hand_over, own)


def _hand_over(made: list[Delivery]) -> None:
    for delivery in made:
        delivery.hand_over()
