"""Who may start, who waits and who must go: the bounds on the work that this server takes on.

    1 room      is there any at all? Asked before the body is parsed, so that refusing costs little: 429
    2 arrive    a body is counted as it comes, byte by byte, until it has been prepared: 429
    3 admit     the prepared run is counted, by requests, by the tokens it may come to and by the bytes it keeps: 429,
                with how long the queue will take at the pace of the last minute; 400 if it alone is more than may ever
                wait
    4 place     first come, first served, for one of so many places at the engine

A request waits (in step 4, or then in the engine's own queue) until the engine begins with it. For how long is decided
in life.py, how an answer is read and sent in completions.py.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

from gnomon.http.errors import QueueFull, Unavailable
from gnomon.http.settings import Settings
from gnomon.reference.completion import Run, RunClosed
from gnomon.reference.errors import InvalidRequest, RequestError
from gnomon.reference.prompt import MoreThanMayWait

LONGEST_RETRY = 120  # seconds; beyond that an estimate is worth nothing
PACE_SECONDS = 60.0
BETWEEN_CHECKS = 64 * 2**10  # bytes of one body between two looks at the bound on all of them


class QueueTimeout(Unavailable):
    def __init__(self, seconds: float, retry_after: int) -> None:
        message = f"the request waited for {seconds:g} seconds, as long as this server lets one wait; send it again"
        super().__init__(message, "queue_timeout", retry_after)


class RequestTimeout(Unavailable):
    """Waiting cures nothing here: there is no Retry-After, and clients that ask x-should-retry are told so."""

    def __init__(self, seconds: float) -> None:
        message = f"the request took {seconds:g} seconds, as long as this server lets one take; ask for less at a time"
        super().__init__(message, "request_timeout")
        self.headers = {"X-Should-Retry": "false"}


def clock_errors(settings: Settings) -> list[RequestError]:
    """What a request's own clocks end it with (life.py)."""
    return [QueueTimeout(settings.queue_seconds, 3), RequestTimeout(settings.request_seconds)]


def check_alone(run: Run, most: int) -> None:
    """Raises InvalidRequest for a run that alone is more bytes than may ever wait: no waiting could cure that."""
    held = run.held_bytes
    if sum(held.values()) > most:
        param = max(held, key=held.__getitem__)
        raise InvalidRequest(
            param,
            f"{param}: the request would take {sum(held.values())} bytes while it waits, {held[param]} of them for "
            f"{param}; at most {most} on this server",
        )


class Answer:
    """A run on its way to its client, and the one place that says why it was ended before its time."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.tokens = run.largest_tokens
        self.bytes = sum(run.held_bytes.values())
        self.arrived = time.monotonic()
        self.error: RequestError | None = None
        self.turn: asyncio.Future[None] | None = None
        self.has_place = False

    def end(self, error: RequestError) -> None:
        """Close the run, and have the answer end with `error`. The first error counts."""
        if self.error is None:
            self.error = error
        self.run.close()
        if self.turn is not None:
            self.turn.get_loop().call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if self.turn is not None and not self.turn.done():
            self.turn.set_exception(self.error or RunClosed())


class Places:
    """`count` places, given first come, first served."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._line: OrderedDict[asyncio.Future[None], None] = OrderedDict()  # whoever leaves is out of it at once

    @asynccontextmanager
    async def place(self, answer: Answer) -> AsyncIterator[None]:
        """Waits for a place and holds it, until the end or until it is left. Raises the answer's error if it is
        ended meanwhile."""
        if answer.error is not None:
            raise answer.error
        if self._free:
            self._free -= 1
        else:
            await self._wait(answer)
        answer.has_place = True
        try:
            yield
        finally:
            self.leave(answer)

    def leave(self, answer: Answer) -> None:
        """Leaving twice is leaving once."""
        if answer.has_place:
            answer.has_place = False
            self._give()

    async def _wait(self, answer: Answer) -> None:
        answer.turn = turn = asyncio.get_running_loop().create_future()
        self._line[turn] = None
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._give()  # cancelled in the moment in which its turn had come
            else:
                self._line.pop(turn, None)
            raise

    def _give(self) -> None:
        while self._line:
            turn, _ = self._line.popitem(last=False)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class Pace:
    """Tokens a second, over the last minute."""

    def __init__(self) -> None:
        self._done: deque[tuple[float, int]] = deque()
        self._tokens = 0  # of all of them

    def count(self, tokens: int) -> None:
        self._forget()  # here too: a server that refuses nobody is never asked for its pace
        self._done.append((time.monotonic(), tokens))
        self._tokens += tokens

    def _forget(self) -> None:
        begin = time.monotonic() - PACE_SECONDS
        while self._done and self._done[0][0] < begin:
            self._tokens -= self._done.popleft()[1]

    def tokens_per_second(self) -> float | None:
        """None if nothing was finished in that time."""
        self._forget()
        if not self._done:
            return None
        return self._tokens / max(time.monotonic() - self._done[0][0], 1.0)


class Waiting:
    """The answers with which the engine has not begun, counted as they come, begin and go.

    The engine begins in a thread of its own and tells nobody; so those that it has been given are asked, and they are
    no more than there are places at it. The others have not begun.
    """

    def __init__(self) -> None:
        self._answers: dict[Answer, None] = {}
        self._given: dict[Answer, None] = {}  # of them: what the engine has
        self._tokens = self._bytes = 0

    def add(self, answer: Answer) -> None:
        self._answers[answer] = None
        self._tokens += answer.tokens
        self._bytes += answer.bytes
        answer.run.on_submit = partial(self._given.setdefault, answer)  # called in the thread that reads the run

    def discard(self, answer: Answer) -> None:
        """Once the run has begun, or is closed, so that the engine is not given it any more."""
        self._given.pop(answer, None)
        if answer in self._answers:
            del self._answers[answer]
            answer.run.on_submit = None  # it knows the answer, which knows the run: both would wait for a collection
            self._tokens -= answer.tokens
            self._bytes -= answer.bytes

    @property
    def answers(self) -> Collection[Answer]:
        self._pass_over_begun()
        return self._answers.keys()

    @property
    def tokens(self) -> int:
        """That they may come to."""
        self._pass_over_begun()
        return self._tokens

    @property
    def bytes(self) -> int:
        """That they keep."""
        self._pass_over_begun()
        return self._bytes

    def _pass_over_begun(self) -> None:
        for answer in list(self._given):
            if answer.run.started is not None:
                self.discard(answer)


class Arrival:
    """A body on its way to a run: what has come of it counts among the bytes that wait."""

    def __init__(self, admission: Admission) -> None:
        self.bytes = 0
        self._admission = admission
        self._checked = -BETWEEN_CHECKS

    def grow(self, size: int) -> None:
        """The body is of so many bytes now. Raises QueueFull where they are more than may wait."""
        self._admission.arriving_bytes += size - self.bytes
        self.bytes = size
        if size >= self._checked + BETWEEN_CHECKS:
            self._checked = size
            self._admission.check_bytes(0)


class Admission:
    """Every answer under way, and the bounds on them."""

    def __init__(self, settings: Settings) -> None:
        self.open: dict[Answer, None] = {}
        self.arriving_bytes = 0  # of bodies that are being read, or are read and not yet prepared
        self._settings = settings
        self._pace = Pace()
        self._waiting = Waiting()

    # ---- measures

    def waiting(self) -> Collection[Answer]:
        return self._waiting.answers

    def waiting_tokens(self) -> int:
        return self._waiting.tokens

    def waiting_bytes(self) -> int:
        return self.arriving_bytes + self._waiting.bytes

    def retry_after(self) -> int:
        """Seconds until what waits now should have begun, at the pace of the last minute."""
        pace = self._pace.tokens_per_second()
        seconds = self.waiting_tokens() / pace if pace else 1.0
        return min(max(math.ceil(seconds), 1), LONGEST_RETRY)

    # ---- in and out

    def room(self, preparing: int = 0) -> None:
        """Raises QueueFull if not even the smallest request could wait. preparing: those that have come whole already,
        and wait too."""
        if len(self.waiting()) + preparing >= self._settings.max_queue:
            raise QueueFull.of_requests(self._settings.max_queue, self.retry_after())

    @contextmanager
    def arriving(self) -> Iterator[Arrival]:
        """Counts a body from its first byte until it has become a run, or is refused."""
        arrival = Arrival(self)
        try:
            yield arrival
        finally:
            self.arriving_bytes -= arrival.bytes

    def check_bytes(self, more: int) -> None:
        """Raises QueueFull if so many more bytes may not wait now."""
        held, most = self.waiting_bytes(), self._settings.max_queued_bytes
        if held + more > most:
            message = f"the waiting requests take {held} bytes and this one {more} more; at most {most} may wait"
            raise QueueFull(message, self.retry_after())

    @contextmanager
    def admitted(self, run: Run) -> Iterator[Answer]:
        """Counts the run until its answer has ended, however it ends, and closes it then.

        Raises QueueFull, or InvalidRequest for what no waiting could cure.
        """
        answer, most = Answer(run), self._settings.max_queued_tokens
        if answer.tokens > most:
            raise MoreThanMayWait(answer.tokens, most)
        check_alone(run, self._settings.max_queued_bytes)
        self.room()
        self.check_bytes(answer.bytes)
        tokens = self.waiting_tokens()
        if tokens + answer.tokens > most:
            message = (
                f"the waiting requests may come to {tokens} tokens and this one to {answer.tokens}; "
                f"at most {most} may wait"
            )
            raise QueueFull(message, self.retry_after())
        self.open[answer] = None
        self._waiting.add(answer)
        try:
            yield answer
        finally:
            del self.open[answer]
            run.close()
            self._waiting.discard(answer)
            usage = run.usage
            if run.started is not None:
                self._pace.count(usage.prompt_tokens + usage.completion_tokens)
