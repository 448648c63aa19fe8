"""POST /v1/completions: bytes → CompletionRequest → Run → one JSON object, or events.

    1 the body      body.py. Nothing of it is kept once the run is there
    2 prepare       read and held against the model in a thread; whatever can be refused is refused here
    3 admission     is there room for it? admission.py
    4 the answer    read from the engine, encoded and sent. reader.py

What ends any of these before its time (the client leaves, a clock, the server ends) is decided in life.py; what a
field means, in `gnomon.reference`; how an error looks, in errors.py; the bytes of an event, in sse.py.

Decided here: headers are sent when the first chunk is there, so an engine that fails at once is still a 500; but a
stream that has been silent for `ping_seconds` begins with a comment, which tells all that stand between that it is
alive. Who the client is was asked before its body was read; a stream outlives its token.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from gnomon.http import sse
from gnomon.http.admission import Admission, Answer, Places, clock_errors
from gnomon.http.answer import send_json
from gnomon.http.body import body_errors, check_content_type, take_body
from gnomon.http.errors import Draining, QueueFull, as_request_error, let_go
from gnomon.http.life import Life, Lives, Preparer
from gnomon.http.observe.record import Record, record_of
from gnomon.http.process.tidy import Tidy
from gnomon.http.reader import AnswerReading, Reader
from gnomon.http.schema.route import EVENTS, JSON, Facts, Operation, error_of
from gnomon.http.service import Service, not_serving
from gnomon.http.settings import Settings
from gnomon.http.threads import NoThread, Threads
from gnomon.reference.body.writing import blocks
from gnomon.reference.completion import Run, prepare
from gnomon.reference.engine import Engine
from gnomon.reference.errors import ContextExceeded, ModelNotFound, RequestError
from gnomon.reference.request import CompletionRequest
from gnomon.reference.response import json_bytes
from gnomon.reference.tokenizer import Tokenizer
from gnomon.reference.work import Work

T = TypeVar("T")

LARGE_ANSWER = 2**20  # bytes


def completion_errors(facts: Facts) -> list[RequestError]:
    """What the endpoint raises, one of each kind."""
    settings = facts.settings
    wrong = {"model": facts.model, "prompt": "Once", "temperature": 3}
    context = facts.context or 4096
    return [
        error_of(lambda: CompletionRequest.from_fields(wrong, settings.limits)),
        ContextExceeded("the prompt", 9, context, context),
        ModelNotFound("gpt-5", facts.model),
        *body_errors(settings),
        QueueFull.of_requests(settings.max_queue, 3),
        *not_serving(facts),
        *clock_errors(settings),
    ]


class Completions:
    """The endpoint, as an ASGI application: it needs to hear of a disconnect while it answers."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self.service = service
        self.settings = settings
        self.admission = Admission(settings)
        # at most one for every connection, so that no answer ever waits for a thread that waits for another
        self.threads = Threads("completions")
        self.reader = Reader(self.threads)
        self.writing = threading.Lock()
        self.preparer = Preparer()
        self.tidy = Tidy(self.threads)
        self.lives = Lives(settings, self.admission.retry_after)

    @property
    def operation(self) -> Operation:
        return Operation(
            "completions",
            "Complete one or more prompts.",
            {JSON: "Completion", EVENTS: "Event"},
            completion_errors,
            description="The whole request is judged before anything is generated or a header is sent. Nothing is "
            "clamped and no field is ignored.",
            answer="The completions. As application/json without `stream`, in one piece. As text/event-stream with "
            "it: the schema is that of one event, whose `data` is a line of JSON. There is one choice in an event; "
            "joined by index they are the answer in one piece. An error after the first event is an event with the "
            "form of `Error`. The last event is `[DONE]`. Lines that begin with a colon are comments that keep a "
            "silent stream open.",
            body="CompletionRequest",
            body_description=f"At most {self.settings.max_body_bytes} bytes of JSON in UTF-8, not compressed. No key "
            "may occur twice, no number be NaN or infinite, no string hold half of a surrogate pair.",
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, record = Request(scope, receive), record_of(scope)
        check_content_type(request.headers)
        engine, tokenizer = self.service.model()
        self.admission.room(self.preparing)  # before its body is read, and again when it is
        with self.lives.begin(record) as life:
            try:
                await life.live(self.answer(life, request, engine, tokenizer, send))
            finally:
                if not life.is_small:
                    self.tidy.soon()

    async def answer(self, life: Life, request: Request, engine: Engine, tokenizer: Tokenizer, send: Send) -> None:
        record = life.record
        run = await self.prepared(life, request, engine, tokenizer)
        describe(run, record)
        with self.admission.admitted(run) as answer:
            life.is_let_in(answer)
            try:
                if run.request.stream:
                    await self.stream(answer, record, send)
                else:
                    await self.whole(answer, record, send)
            finally:
                tally(run, record)

    async def prepared(self, life: Life, request: Request, engine: Engine, tokenizer: Tokenizer) -> Run:

        def room() -> None:
            self.admission.room(self.preparing)

        def prepared(body: bytes) -> Run:
            return self.prepare(body, engine, tokenizer, life.work)

        return await take_body(request, life, self.settings, self.admission, self.preparer, room, prepared)

    def prepare(self, body: bytes, engine: Engine, tokenizer: Tokenizer, work: Work) -> Run:
        settings = self.settings
        work.check()
        limits, name = settings.limits, settings.served_model_name
        request = CompletionRequest.from_json(body, limits)
        return prepare(request, engine, tokenizer, name, limits, work, settings.max_queued_tokens)

    async def whole(self, answer: Answer, record: Record, send: Send) -> None:
        async with self.places.place(answer):
            with self.reading(answer, answer.run.whole_bytes()) as reading:
                parts = await self.read(answer, reading.next())
            assert parts is not None
            body = await self.read(answer, self.called(lambda: self.written(parts[0])))
        self.service.sound()
        await send_json(body, send)
        if sum(map(len, body)) > LARGE_ANSWER:
            self.tidy.soon()
        record.outcome = "answered"

    async def stream(self, answer: Answer, record: Record, send: Send) -> None:
        events = sse.Events(send)
        watching = asyncio.create_task(events.watch(self.settings.ping_seconds, lambda: self.places.leave(answer)))
        try:
            async with self.places.place(answer):
                with self.reading(answer, self.events(answer.run)) as reading:
                    while (parts := await self.read(answer, reading.next())) is not None:
                        await events.write(*blocks(piece for part in parts for piece in part))
            if answer.error is not None:
                raise answer.error
        except Exception as error:
            if not events.begun:
                raise
            told = as_request_error(error)
            record.outcome = "failed" if told.status == 500 else "refused"
            let_go(error)
            await events.write(sse.event(json_bytes(told.to_json())))
        else:
            self.service.sound()
        finally:
            watching.cancel()
        await events.end()
        record.outcome = record.outcome or "answered"

    def events(self, run: Run) -> Iterator[list[bytes] | None]:
        """The bytes of its events; None where going on may mean to wait."""
        for chunk in run.chunk_bytes():
            yield None if chunk is None else self.written(sse.pieces(chunk))

    @contextmanager
    def reading(self, answer: Answer, parts: Iterator[T | None]) -> Iterator[AnswerReading[T]]:
        """Prompts that are scored are long work to encode: what is read of them is no turn's, but a thread's."""
        run = answer.run
        reading = AnswerReading(self.reader, run, parts)
        if not run.is_scored:
            run.woken = reading.woken
        try:
            yield reading
        finally:
            run.woken = None
            reading.close()

    def written(self, pieces: Iterator[bytes]) -> list[bytes]:
        """All pieces, in blocks for the socket. One answer at a time gets on with it: of any number of threads that
        write, only one keeps the loop waiting for the interpreter."""
        made = blocks(pieces)
        body: list[bytes] = []
        while True:
            with self.writing:
                block = next(made, None)
            if block is None:
                return body
            body.append(block)

    async def read(self, answer: Answer, coming: Awaitable[T]) -> T:
        """What comes of the engine. Raises what ended the answer, or the engine's fault, which is counted."""
        try:
            return await coming
        except NoThread:
            raise  # no fault of the engine
        except Exception:
            if answer.error is not None:
                raise answer.error from None
            self.service.fault(answer.run.started or answer.arrived)
            raise

    async def called(self, step: Callable[[], T]) -> T:
        """In a thread."""
        return await asyncio.wrap_future(self.threads.submit(step))

    @cached_property
    def places(self) -> Places:
        engine = self.service.engine
        assert engine is not None  # `model` has been asked
        return Places(self.settings.max_running or engine.concurrency)

    @property
    def open(self) -> list[Answer]:
        """The answers under way."""
        return list(self.admission.open)

    @property
    def preparing(self) -> int:
        """Requests that have come whole and are not admitted yet. One whose body is still being read waits for nothing
        of ours: it counts as a connection, and by its bytes."""
        return self.lives.at["preparing"]

    @property
    def unfinished(self) -> int:
        return self.lives.unfinished

    def stop(self) -> None:
        """The server ends."""
        self.lives.stop(Draining())

    def close(self) -> None:
        """Nothing is read any more."""
        self.tidy.close()
        self.preparer.close()
        self.threads.close()


def describe(run: Run, record: Record) -> None:
    """What the record can know before anything is generated; from here on it hears of every token."""
    request = run.request
    record.completion_id, record.stream = run.id, request.stream
    record.prompts, record.candidates, record.max_tokens = len(run.prompts), request.candidates, request.max_tokens
    record.prompt_tokens = run.usage.prompt_tokens
    run.on_token = record.token


def tally(run: Run, record: Record) -> None:
    """What the record can know at the end."""
    record.completion_tokens, record.cached_tokens = run.usage.completion_tokens, run.usage.cached_tokens
    record.finish_reasons, record.started = tuple(run.finish_reasons), run.started
