"""POST /v1/completions: bytes → CompletionRequest → Run → one JSON object, or events.

    1 the body      its type and its size; both are refused before it is parsed
    2 prepare       read and held against the model in a thread; whatever can be refused is refused here
    3 the answer    read from the engine in threads of our own number, for no longer than the client stays

What a field means is decided in `gnomon.reference`; how an error looks, in errors.py; the bytes of an event, in sse.py.

Decided here: headers are sent when the first chunk is there, so an engine that fails at once is still a 500. A client
that goes away, and a server that ends, close the run: its engine stops within one token, whether or not it streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gnomon.http import sse
from gnomon.http.errors import BodyTooLarge, ShuttingDown, UnsupportedMedia, as_request_error
from gnomon.http.settings import Settings
from gnomon.reference.completion import Run, RunClosed, prepare
from gnomon.reference.engine import Engine
from gnomon.reference.request import CompletionRequest, shown
from gnomon.reference.response import Completion, json_bytes
from gnomon.reference.tokenizer import Tokenizer

T = TypeVar("T")


class Completions:
    """The endpoint, as an ASGI application: it needs to hear of a disconnect while it answers.

    readers: the threads that wait for the engine, so that nothing else ever waits for a thread that does.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, settings: Settings, readers: ThreadPoolExecutor) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.settings = settings
        self.readers = readers
        self.open: list[Run] = []
        self.stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        check_content_type(request.headers)
        body = await read_body(request, self.settings.max_body_bytes)
        run = await run_in_threadpool(self.prepare, body)
        with self.opened(run):
            if run.request.stream:
                await while_connected(receive, self.stream(run, send))
            else:
                await while_connected(receive, self.whole(run, scope, receive, send))

    def prepare(self, body: bytes) -> Run:
        request = CompletionRequest.from_json(body, self.settings.limits)
        return prepare(request, self.engine, self.tokenizer, self.settings.served_model_name)

    async def whole(self, run: Run, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await self.read(lambda: run.whole().to_bytes())
        except RunClosed:  # and the client is still there
            raise ShuttingDown from None
        await Response(body, media_type="application/json")(scope, receive, send)

    async def stream(self, run: Run, send: Send) -> None:
        chunks = run.chunks()
        data = await self.read(lambda: next_event(chunks))
        if data is None:
            raise ShuttingDown
        await sse.begin(send)
        try:
            while data is not None:
                await sse.write(send, data)
                data = await self.read(lambda: next_event(chunks))
            if not run.is_complete:
                raise ShuttingDown
        except Exception as error:
            await sse.write(send, sse.event(json_bytes(as_request_error(error).to_json())))
        await sse.end(send)

    async def read(self, step: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.readers, step)

    @contextmanager
    def opened(self, run: Run) -> Iterator[None]:
        """Closes the run however its answer ends."""
        self.open.append(run)
        if self.stopping:
            run.close()
        try:
            yield
        finally:
            self.open.remove(run)
            run.close()

    def stop(self) -> None:
        """The server ends: every answer under way ends with an error that says so, and so does every later one."""
        self.stopping = True
        for run in self.open:
            run.close()


def next_event(chunks: Iterator[Completion]) -> bytes | None:
    """None at the end: a StopIteration cannot cross from a thread to a coroutine."""
    chunk = next(chunks, None)
    return None if chunk is None else sse.event(chunk.to_bytes())


async def while_connected(receive: Receive, answer: Coroutine[object, object, None]) -> None:
    """Awaits the answer, but no longer than the client is there to take it."""
    answering = asyncio.create_task(answer)
    leaving = asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            answering.result()
    finally:
        answering.cancel()
        leaving.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def check_content_type(headers: Headers) -> None:
    """application/json in UTF-8, said once, and not compressed."""
    sent = headers.getlist("content-type")
    media, *parameters = (part.strip().lower() for part in ";".join(sent).split(";"))
    utf8 = ("", "charset=utf-8", 'charset="utf-8"')
    if media != "application/json" or not all(parameter in utf8 for parameter in parameters):
        was = " and ".join(shown(value) for value in sent) or "missing"
        allowed = "application/json, with charset=utf-8 or none"
        raise UnsupportedMedia(f"the header Content-Type is {was}; it must be {allowed}")
    coding = headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise UnsupportedMedia(f"the header Content-Encoding is {shown(coding)}; send the body as it is, without one")


async def read_body(request: Request, most: int) -> bytes:
    """The body, if it is no longer than `most` bytes: as announced, and as received where nothing is announced."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > most):
        raise BodyTooLarge(f"the body has {announced[:18]} bytes; at most {most} are allowed")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise BodyTooLarge(f"the body has more than the {most} bytes that are allowed")
    return bytes(body)
