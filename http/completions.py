"""POST /v1/completions: bytes → CompletionRequest → Run → one JSON object, or events.

    1 the body      its type, its size and its time; what is wrong with them is refused before it is parsed. Nothing of
                    it is kept once the run is there
    2 prepare       read and held against the model in a thread; whatever can be refused is refused here
    3 admission     is there room for it? admission.py
    4 the answer    read from the engine in threads of our own number

What ends any of these before its time (the client leaves, a clock, the server ends) is decided in life.py; what a
field means, in `gnomon.reference`; how an error looks, in errors.py; the bytes of an event, in sse.py.

Decided here: headers are sent when the first chunk is there, so an engine that fails at once is still a 500; but a
stream that has been silent for `ping_seconds` begins with a comment, which tells all that stand between that it is
alive. Who the client is was asked before its body was read; a stream outlives its token.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from email.message import Message
from functools import cached_property
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from gnomon.http import sse
from gnomon.http.admission import Admission, Answer, Places
from gnomon.http.answer import send_json
from gnomon.http.errors import BodyTooLarge, Draining, TooSlow, UnsupportedMedia, as_request_error, let_go
from gnomon.http.life import SHORT_BODY, Life, Lives, Preparer
from gnomon.http.observe.record import Record, record_of
from gnomon.http.process.tidy import Tidy
from gnomon.http.service import Service
from gnomon.http.settings import Settings
from gnomon.http.threads import NoThread, Threads
from gnomon.reference.body.shown import shown
from gnomon.reference.body.writing import blocks
from gnomon.reference.completion import Run, prepare
from gnomon.reference.engine import Engine
from gnomon.reference.request import CompletionRequest
from gnomon.reference.response import json_bytes
from gnomon.reference.tokenizer import Tokenizer
from gnomon.reference.work import Work

T = TypeVar("T")

LARGE_ANSWER = 2**20  # bytes

LONGEST_MEDIA = 256  # characters of a Content-Type: a longer one takes its parser a time that grows with the square


class Completions:
    """The endpoint, as an ASGI application: it needs to hear of a disconnect while it answers."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self.service = service
        self.settings = settings
        self.admission = Admission(settings)
        # at most one for every connection, so that no answer ever waits for a thread that waits for another
        self.threads = Threads("completions")
        self.writing = threading.Lock()
        self.preparer = Preparer()
        self.tidy = Tidy(self.threads)
        self.lives = Lives(settings, self.admission.retry_after)

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
                account(run, record)

    async def prepared(self, life: Life, request: Request, engine: Engine, tokenizer: Tokenizer) -> Run:
        """From the first byte of a body to its run. The body is let go here: what an answer needs of it is in its
        run."""
        settings = self.settings
        with self.admission.arriving() as arrival:
            most = min(settings.max_body_bytes, settings.max_queued_bytes)
            body = await read_body(request, most, settings.body_seconds, arrival.grow)
            self.admission.room(self.preparing)
            life.is_whole(request.receive)
            life.is_small = len(body) <= SHORT_BODY
            return await self.preparer.prepare(len(body), lambda: self.prepare(body, engine, tokenizer, life.work))

    def prepare(self, body: bytes, engine: Engine, tokenizer: Tokenizer, work: Work) -> Run:
        settings = self.settings
        work.check()
        limits, name = settings.limits, settings.served_model_name
        request = CompletionRequest.from_json(body, limits)
        return prepare(request, engine, tokenizer, name, limits, work, settings.max_queued_tokens)

    async def whole(self, answer: Answer, record: Record, send: Send) -> None:
        async with self.places.place(answer):
            pieces = await self.read(answer, answer.run.whole_bytes)
            body = await self.read(answer, lambda: self.written(pieces))
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
                chunks = answer.run.chunk_bytes()
                while (data := await self.read(answer, lambda: self.next_event(chunks))) is not None:
                    await events.write(*data)
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

    def next_event(self, chunks: Iterator[Iterator[bytes]]) -> list[bytes] | None:
        """None at the end: a StopIteration cannot cross from a thread to a coroutine."""
        chunk = next(chunks, None)
        return None if chunk is None else self.written(sse.pieces(chunk))

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

    async def read(self, answer: Answer, step: Callable[[], T]) -> T:
        """One step of reading the engine. Raises what ended the answer, or the engine's fault, which is counted."""
        try:
            return await asyncio.wrap_future(self.threads.submit(step))
        except NoThread:
            raise  # no fault of the engine
        except Exception:
            if answer.error is not None:
                raise answer.error from None
            self.service.fault(answer.run.started or answer.arrived)
            raise

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


def account(run: Run, record: Record) -> None:
    """What the record can know at the end."""
    record.completion_tokens, record.cached_tokens = run.usage.completion_tokens, run.usage.cached_tokens
    record.finish_reasons, record.started = tuple(run.finish_reasons), run.started


def check_content_type(headers: Headers) -> None:
    """application/json in UTF-8, said once, and not compressed. Parameters other than charset say nothing of a JSON
    text (RFC 8259, section 11) and are passed over. application/vnd.api+json and its like are other formats."""
    sent = headers.getlist("content-type")
    trouble = media_trouble(sent[0]) if len(sent) == 1 else "send it once" if sent else ""
    if trouble is not None:
        was = " and ".join(shown(value) for value in sent) or "missing"
        allowed = "it must be application/json, with charset=utf-8 or none"
        raise UnsupportedMedia("; ".join(filter(None, (f"the header Content-Type is {was}", trouble, allowed))))
    coding = headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise UnsupportedMedia(f"the header Content-Encoding is {shown(coding)}; send the body as it is, without one")


def media_trouble(sent: str) -> str | None:
    """What is wrong with one Content-Type, "" where it goes without saying; None for JSON in UTF-8."""
    if len(sent) > LONGEST_MEDIA:
        return f"it has {len(sent)} characters, at most {LONGEST_MEDIA} are allowed"
    message = Message()
    message["content-type"] = sent
    (media, _), *parameters = message.get_params(failobj=[("", "")])
    if media.lower() == "application/x-www-form-urlencoded":
        return "curl sends that with -d unless it is told -H 'Content-Type: application/json'"
    if media.lower() != "application/json":
        return ""
    charsets = [value for name, value in parameters if name.lower() == "charset"]
    other = next((value for value in charsets if str(value).lower() not in ("utf-8", "utf8")), None)
    return None if other is None else f"the charset {shown(other)} is not allowed"


async def read_body(
    request: Request, most: int, seconds: float, grown: Callable[[int], None] = lambda size: None
) -> bytes:
    """The body, if it is no longer than `most` bytes, as announced and as received, and whole within `seconds`.

    grown: told the size of what has come, whenever more has; what it raises ends the reading.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > most):
        raise BodyTooLarge(f"the body has {announced[:18]} bytes; at most {most} are allowed")
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > most:
                    raise BodyTooLarge(f"the body has more than the {most} bytes that are allowed")
                grown(len(body))
    except TimeoutError:
        raise TooSlow(f"the body was not whole after {seconds:g} seconds; {len(body)} bytes had come") from None
    return bytes(body)
