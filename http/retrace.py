"""POST /v1/completions/trace: a finished sequence through the reference's sampler again, beside the engine's work.

    1 offered    is there a reference, and does it fit? Judged by the number of parameters, before anything is loaded
    2 room       the line is short: who finds it full gets a 429
    3 prepare    read and held against the model, like a completion; whatever can be refused is refused here
    4 the turn   one at a time, first come, first served, in a thread of its own; the engine is not asked for anything
    5 the end    a client that goes away, time that is up and a server that ends stop the work: between two layers of
                 the model, or between two draws

What is computed is decided in reference/replay.py. The reference is loaded for the first trace, from the same files as
the engine's weights; where the engine is the reference, it is that one, and costs no memory. The next turn comes when
the thread has ended, not when its client has gone: there is never more than one sequence in memory.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gnomon.http.admission import LONGEST_RETRY, QueueTimeout, RequestTimeout
from gnomon.http.completions import LONG_BODY, check_content_type, disconnected, read_body
from gnomon.http.errors import Draining, NotFound, QueueFull, Unavailable
from gnomon.http.record import record_of
from gnomon.http.service import Service
from gnomon.http.settings import Settings
from gnomon.http.threads import Threads
from gnomon.reference.checkpoint import CheckpointError
from gnomon.reference.completion import EngineFailed
from gnomon.reference.engine import Engine, NonFiniteLogits, ReferenceEngine
from gnomon.reference.replay import Retracer, Task, TraceRequest, prepare_trace
from gnomon.reference.request import parse_json
from gnomon.reference.response import json_bytes
from gnomon.reference.tokenizer import Tokenizer

log = logging.getLogger("gnomon.http")

LINE = 8  # traces that may be under way: one at work, the others waiting
MIB = 2**20


class NoLonger(Unavailable):
    """Traces were offered, and cannot be made any more. Which file it is for is a line of the log, and no client's
    business."""

    def __init__(self, why: str) -> None:
        message = f"traces are no longer offered here: {why}; completions go on"
        super().__init__(message, "trace_not_offered", LONGEST_RETRY)


class Stopped(Exception):
    """Nobody waits for this work any more."""


class Retrace:
    """The endpoint, as an ASGI application. long_bodies: the lock that bodies of more than LONG_BODY are prepared
    under, here and elsewhere."""

    def __init__(self, service: Service, settings: Settings, long_bodies: asyncio.Lock) -> None:
        self.service = service
        self.settings = settings
        self.long_bodies = long_bodies
        self.threads = Threads("trace")
        self.turn = asyncio.Lock()
        self.open = 0
        self.seconds = 1.0  # that the last one took
        self._answering: set[asyncio.Task[None]] = set()
        self._retracer: Retracer | None = None  # set in the thread alone
        self._told = False  # whether the log has why there are no traces any more

    def refusal(self) -> str | None:
        """Why there are no traces here; None if there are. Asked of a service that has its model."""
        most = self.settings.trace_memory
        if most == 0:
            return "--trace-memory is 0"
        if isinstance(self.service.engine, ReferenceEngine):
            return None
        checkpoint = self.service.checkpoint
        if checkpoint is None:
            return "the reference has no checkpoint"
        need = math.ceil(checkpoint.parameter_count * 8 / MIB)
        if need > most:
            return f"the reference's weights, in float64, would take {need} MiB; --trace-memory allows {most}"
        return None

    @property
    def offered(self) -> bool:
        return self.refusal() is None and self.lost() is None

    def lost(self) -> str | None:
        """Why there are no traces any more; None if there are, or never were: the files that the reference is yet to be
        made from were written to. They are open, so that they may be replaced or removed."""
        checkpoint = self.service.checkpoint
        if self._retracer is not None or checkpoint is None or isinstance(self.service.engine, ReferenceEngine):
            return None
        return checkpoint.changed

    def no_longer(self, why: str) -> NoLonger:
        if not self._told:
            log.error("traces are no longer offered: %s", why)
        self._told = True
        return NoLonger("the model's files cannot be read as they were when the server started")

    def loaded(self) -> None:
        """The model is there. Its files are closed if no reference is made from them later."""
        checkpoint = self.service.checkpoint
        if checkpoint is not None and (self.refusal() or isinstance(self.service.engine, ReferenceEngine)):
            checkpoint.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, record = Request(scope, receive), record_of(scope)
        check_content_type(request.headers)
        engine, tokenizer = self.service.model()
        refusal = self.refusal()
        if refusal is not None:
            raise NotFound(f"traces are not offered here: {refusal}", code="trace_not_offered")
        lost = self.lost()
        if lost is not None:
            raise self.no_longer(lost)
        if self.open >= LINE:
            raise QueueFull(f"{self.open} traces are under way; send the request again later", self.retry_after())
        self.open += 1
        try:
            reading = read_body(request, self.settings.max_body_bytes, self.settings.body_seconds)
            answering = asyncio.create_task(self.answer(await reading, engine, tokenizer, scope, receive, send))
            leaving = asyncio.create_task(disconnected(receive))
            self._answering.add(answering)
            try:
                seconds = self.settings.request_seconds
                await asyncio.wait((answering, leaving), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if answering.cancelled():
                    record.outcome = "drained"
                    raise Draining
                if answering.done():
                    answering.result()
                elif leaving.done():
                    record.outcome = "cancelled"
                else:
                    record.outcome = "timed_out"
                    raise RequestTimeout(seconds)
            finally:
                self._answering.discard(answering)
                answering.cancel()
                leaving.cancel()
                await asyncio.gather(answering, leaving, return_exceptions=True)
        finally:
            self.open -= 1

    async def answer(
        self, body: bytes, engine: Engine, tokenizer: Tokenizer, scope: Scope, receive: Receive, send: Send
    ) -> None:
        async with self.long_bodies if len(body) > LONG_BODY else nullcontext():
            task = await asyncio.wrap_future(self.threads.submit(partial(self.prepare, body, engine, tokenizer)))
        del body  # the task has what is needed of it
        seconds = self.settings.queue_seconds
        try:
            async with asyncio.timeout(seconds):
                await self.turn.acquire()
        except TimeoutError:
            raise QueueTimeout(seconds, self.retry_after()) from None
        answer = await self.carry_out(task, tokenizer)
        await Response(answer, media_type="application/json")(scope, receive, send)

    def prepare(self, body: bytes, engine: Engine, tokenizer: Tokenizer) -> Task:
        settings = self.settings
        limits = settings.limits
        asked = TraceRequest.from_fields(parse_json(body), limits)
        return prepare_trace(asked, engine, tokenizer, settings.served_model_name, settings.trace_tokens, limits)

    async def carry_out(self, task: Task, tokenizer: Tokenizer) -> bytes:
        """Takes the turn, and gives it back when the thread has ended: that may be after this was cancelled."""
        stopped, begun = threading.Event(), time.monotonic()

        def check() -> None:
            if stopped.is_set():
                raise Stopped

        def ended(_: asyncio.Future[bytes]) -> None:
            self.seconds = time.monotonic() - begun
            self.turn.release()

        try:
            working = asyncio.wrap_future(self.threads.submit(lambda: self.retrace(task, tokenizer, check)))
        except BaseException:  # the system has no thread left
            self.turn.release()
            raise
        working.add_done_callback(ended)
        try:
            return await asyncio.shield(working)
        except NonFiniteLogits as error:
            raise EngineFailed(str(error)) from None
        finally:
            stopped.set()

    def retrace(self, task: Task, tokenizer: Tokenizer, check: Callable[[], None]) -> bytes:
        try:
            check()
            if self._retracer is None:
                self._retracer = Retracer(self.reference(), tokenizer)
            return json_bytes(self._retracer.carry_out(task, check).to_json())
        except Stopped:
            return b""  # to nobody
        except CheckpointError as error:  # written to since it was asked, or a disk that fails
            raise self.no_longer(str(error)) from None

    def reference(self) -> ReferenceEngine:
        engine, checkpoint = self.service.engine, self.service.checkpoint
        if isinstance(engine, ReferenceEngine):
            return engine
        assert checkpoint is not None  # `refusal` has been asked
        return ReferenceEngine(checkpoint)

    def retry_after(self) -> int:
        """Seconds until what is under way should be done, each taking as long as the last."""
        return min(max(math.ceil(self.open * self.seconds), 1), LONGEST_RETRY)

    @property
    def unfinished(self) -> int:
        """Traces that have come whole and have yet to be answered."""
        return len(self._answering)

    def stop(self) -> None:
        """The server ends: every trace under way ends with an error that says so."""
        for answering in self._answering:
            answering.cancel()

    def close(self) -> None:
        """Nothing is computed any more."""
        self.threads.close()
