"""POST /v1/completions/trace: a finished sequence through the reference's sampler again, beside the engine's work.

    1 offered    is there a reference, and does it fit? Judged by the number of parameters, before anything is loaded
    2 room       the line is short: who finds it full gets a 429
    3 prepare    read and held against the model, like a completion; whatever can be refused is refused here
    4 the turn   one at a time, first come, first served, in a thread of its own; the engine is not asked for anything
    5 the end    what ends a trace before its time (life.py) stops the work between two layers of the model, or between
                 two draws

What is computed is decided in reference/trace/replay.py. The reference is loaded for the first trace, from the same
files as the engine's weights; where the engine is the reference, it is that one, and costs no memory. The next turn
comes when the thread has ended, not when its client has gone: there is never more than one sequence in memory.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gnomon.http.admission import LONGEST_RETRY, Admission, clock_errors
from gnomon.http.body import body_errors, check_content_type, take_body
from gnomon.http.errors import Draining, NotFound, QueueFull, Unavailable
from gnomon.http.life import Life, Lives, Preparer
from gnomon.http.observe.record import record_of
from gnomon.http.schema.route import JSON, Facts, Operation, error_of
from gnomon.http.service import Service, not_serving
from gnomon.http.settings import Settings
from gnomon.http.threads import Threads
from gnomon.reference.body.reading import parse_json
from gnomon.reference.checkpoint.errors import CheckpointError
from gnomon.reference.completion import EngineFailed
from gnomon.reference.engine import Engine, NonFiniteLogits, ReferenceEngine
from gnomon.reference.errors import ContextExceeded, ModelNotFound, RequestError
from gnomon.reference.response import json_bytes
from gnomon.reference.tokenizer import Tokenizer
from gnomon.reference.trace.replay import Retracer, Task, TraceRequest, inside, no_label, prepare_trace
from gnomon.reference.work import Stopped, Work

log = logging.getLogger("gnomon.http")

LINE = 8  # traces that may be under way: one at work, the others waiting
MIB = 2**20


class NoLonger(Unavailable):
    """Traces were offered, and cannot be made any more. Which file it is for is a line of the log, and no client's
    business."""

    def __init__(self) -> None:
        why = "the model's files cannot be read as they were when the server started"
        message = f"traces are no longer offered here: {why}; completions go on"
        super().__init__(message, "trace_not_offered", LONGEST_RETRY)


class NotOffered(NotFound):
    def __init__(self, why: str) -> None:
        super().__init__(f"traces are not offered here: {why}", code="trace_not_offered")


def trace_errors(facts: Facts) -> list[RequestError]:
    """What the endpoint raises, one of each kind."""
    settings = facts.settings
    wrong = {"request": {"model": facts.model, "prompt": "Once", "temperature": 3}, "tokens": []}
    context = facts.context or 4096

    def too_long() -> None:
        with inside("request"):
            raise ContextExceeded("the prompt", 9, context, context)

    return [
        error_of(lambda: TraceRequest.from_fields(wrong, settings.limits)),
        no_label(0, "nope"),
        error_of(too_long),
        ModelNotFound("gpt-5", facts.model),
        NotOffered("--trace-memory is 0"),
        *body_errors(settings),
        QueueFull.of_traces(LINE, 3),
        NoLonger(),
        *not_serving(facts),
        *clock_errors(settings),
    ]


class Retrace:
    """The endpoint, as an ASGI application. admission, preparer: those of completions, as it is the same memory."""

    def __init__(self, service: Service, settings: Settings, admission: Admission, preparer: Preparer) -> None:
        self.service = service
        self.settings = settings
        self.admission = admission
        self.preparer = preparer
        self.lives = Lives(settings, self.retry_after)
        self.threads = Threads("trace")
        self.turn = asyncio.Lock()
        self.seconds = 1.0  # that the last one took
        self._retracer: Retracer | None = None  # set in the thread alone
        self._told = False  # whether the log has why there are no traces any more

    @property
    def operation(self) -> Operation:
        return Operation(
            "trace",
            "Recompute how the tokens of a finished choice were drawn.",
            {JSON: "Trace"},
            trace_errors,
            description="The reference, in float64, evaluates the prompt and the given tokens, and draws every token "
            "again as the law has it; one step is shown in full if it is asked for. Traces are made one at a time, "
            "beside the engine's work. Offered where the reference's weights fit this server's memory for them: else "
            "it is not among the endpoints of /v1/capabilities, and a 404 says why.",
            answer="The draws.",
            body="TraceRequest",
            body_description=f"At most {self.settings.max_body_bytes} bytes of JSON, as for /v1/completions.",
        )

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
        return NoLonger()

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
            raise NotOffered(refusal)
        lost = self.lost()
        if lost is not None:
            raise self.no_longer(lost)
        self.room()  # before its body is read, and again when it is
        with self.lives.begin(record) as life:
            await life.live(self.answer(life, request, engine, tokenizer, send))

    async def answer(self, life: Life, request: Request, engine: Engine, tokenizer: Tokenizer, send: Send) -> None:
        task = await self.prepared(life, request, engine, tokenizer)
        await self.turn.acquire()
        life.begun = True
        answer = await self.carry_out(task, tokenizer)
        await Response(answer, media_type="application/json")(request.scope, request.receive, send)

    async def prepared(self, life: Life, request: Request, engine: Engine, tokenizer: Tokenizer) -> Task:
        def prepared(body: bytes) -> Task:
            return self.prepare(body, engine, tokenizer, life.work)

        return await take_body(request, life, self.settings, self.admission, self.preparer, self.room, prepared)

    def room(self) -> None:
        """Raises QueueFull if the line is. Who is still sending a body is not in it."""
        if self.unfinished >= LINE:
            raise QueueFull.of_traces(self.unfinished, self.retry_after())

    def prepare(self, body: bytes, engine: Engine, tokenizer: Tokenizer, work: Work) -> Task:
        settings = self.settings
        work.check()
        limits = settings.limits
        asked = TraceRequest.from_fields(parse_json(body), limits)
        return prepare_trace(asked, engine, tokenizer, settings.served_model_name, settings.trace_tokens, limits, work)

    async def carry_out(self, task: Task, tokenizer: Tokenizer) -> bytes:
        """Takes the turn, and gives it back when the thread has ended: that may be after this was cancelled."""
        work, begun = Work(), time.monotonic()

        def ended(_: asyncio.Future[bytes]) -> None:
            self.seconds = time.monotonic() - begun
            self.turn.release()

        try:
            working = asyncio.wrap_future(self.threads.submit(lambda: self.retrace(task, tokenizer, work.check)))
        except BaseException:  # the system has no thread left
            self.turn.release()
            raise
        working.add_done_callback(ended)
        try:
            return await asyncio.shield(working)
        except NonFiniteLogits as error:
            raise EngineFailed(str(error)) from None
        finally:
            work.stop()

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

    @property
    def open(self) -> int:
        """Traces under way."""
        return len(self.lives.open)

    def retry_after(self) -> int:
        """Seconds until what is under way should be done, each taking as long as the last."""
        return min(max(math.ceil(self.unfinished * self.seconds), 1), LONGEST_RETRY)

    @property
    def unfinished(self) -> int:
        return self.lives.unfinished

    def stop(self) -> None:
        """The server ends."""
        self.lives.stop(Draining())

    def close(self) -> None:
        """Nothing is computed any more."""
        self.threads.close()
