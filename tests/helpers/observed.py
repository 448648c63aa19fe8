"""A small application under the real middleware, an endpoint that ends in every way there is, and clients to suit."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from prometheus_client.openmetrics.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from gnomon.http.errors import ErrorForm, Unavailable, unknown_route
from gnomon.http.observe.access import AccessLine, Observed
from gnomon.http.observe.logs import JsonLines, Lines, TextLines
from gnomon.http.observe.metrics import Metrics, ServerLoad
from gnomon.http.observe.otel import OtelSpans
from gnomon.http.observe.record import Record, record_of
from gnomon.reference.engine import Load
from gnomon.reference.errors import InvalidRequest

ROUTES = frozenset({"/ok", "/v1/completions"})
IDLE = ServerLoad(running=0, waiting=0, waiting_tokens=0, waiting_bytes=0, engine=Load(8, 0, 0, 0))
TEXT, JSON = TextLines(), JsonLines()
PROMPT = "the-prompt-of-this-request"


class Endpoint:
    """Does what the header x-act says."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        act = request.headers.get("x-act", "ok")
        body = await request.body()
        if act == "refuse":
            raise InvalidRequest("prompt", "prompt is refused")
        if act == "busy":
            raise Unavailable("the queue is full of others", "busy")
        if act == "fault":
            raise RuntimeError("the cause")
        if act == "silent":
            return
        complete(record_of(scope))
        if act == "ok":
            await Response(body)(scope, receive, send)
            await receive()  # a disconnect, which is what servers say when the answer is whole
            return
        if act == "stuck":
            await asyncio.Event().wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"the endpoint's")]})
        await send({"type": "http.response.body", "body": b"one ", "more_body": True})
        if act == "break":
            raise RuntimeError(f"the cause, of {request.headers.get('authorization')}")
        if act == "stuck halfway":
            await asyncio.Event().wait()
        if act == "listen":
            assert (await receive())["type"] == "http.disconnect"
            return
        await send({"type": "http.response.body", "body": b"two", "more_body": False})


def complete(record: Record) -> None:
    """What the real endpoint would write down of two candidates of two and one tokens."""
    record.completion_id = "cmpl-1"
    record.stream, record.prompts, record.candidates, record.max_tokens = True, 1, 2, 2
    record.prompt_tokens, record.cached_tokens, record.completion_tokens = 12, 8, 3
    record.queued, record.started = record.arrived + 0.5, record.arrived + 2
    for candidate, seconds in ((0, 3.0), (1, 3.25), (0, 3.5)):
        record.token(0, candidate, record.arrived + seconds)
    record.finish_reasons = ("length", "stop")


@dataclass
class RecordedSpans:
    """Stands where OtelSpans stands, and keeps the records."""

    records: list[Record] = field(default_factory=list)

    def request(self, record: Record, headers: object) -> None:
        self.records.append(record)


@dataclass
class World:
    """The application and all that is told of its requests."""

    app: Starlette
    metrics: Metrics
    otel: RecordedSpans

    def sample(self, name: str, **labels: str) -> float:
        return sample(self.metrics, name, **labels)


def world(otel: OtelSpans | None = None) -> World:
    metrics, recorded = Metrics("mine", lambda: IDLE, "1.2"), RecordedSpans()

    async def ok(request: Request) -> Response:
        return PlainTextResponse("hello")

    app = Starlette(
        routes=[Route("/ok", ok, methods=["GET"]), Route("/v1/completions", Endpoint(), methods=["POST"])],
        middleware=[
            Middleware(Observed, metrics=metrics, routes=ROUTES, otel=otel or cast("OtelSpans", recorded)),
            Middleware(ErrorForm),
        ],
        exception_handlers={HTTPException: unknown_route},
    )
    app.router.redirect_slashes = False
    return World(app, metrics, recorded)


@dataclass
class Seen:
    """What a client got, and the exception that left the application."""

    sent: list[Message]
    raised: BaseException | None

    @property
    def ids(self) -> list[bytes]:
        return [value for key, value in self.sent[0]["headers"] if key.lower() == b"x-request-id"]


def drive(
    app: Any,
    method: str = "POST",
    path: str = "/v1/completions",
    act: str = "ok",
    headers: Sequence[tuple[bytes, bytes]] = (),
    leaves: bool = False,
    hung_up: bool = False,
    cancel_after: int | None = None,
    **scope: Any,
) -> Seen:
    """One request, message by message.

    leaves: the client goes before its body is whole · hung_up: sending to it fails · cancel_after: the task is
    cancelled when it has sent so many messages.
    """
    sent: list[Message] = []
    body = json.dumps({"prompt": PROMPT}).encode()
    messages = iter([{"type": "http.request", "body": body, "more_body": leaves}])
    reached = asyncio.Event()

    async def receive() -> Message:
        return next(messages, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        if hung_up:
            raise OSError("gone")
        sent.append(message)
        if len(sent) == cancel_after:
            reached.set()

    async def run() -> Seen:
        if cancel_after == 0:
            reached.set()
        task = asyncio.create_task(app(full, receive, send))
        if cancel_after is not None:
            await reached.wait()
            for _ in range(20):  # to where it waits
                await asyncio.sleep(0)
            assert not task.done()
            task.cancel()
        await asyncio.wait([task])
        raised = asyncio.CancelledError() if task.cancelled() else task.exception()
        return Seen(sent, raised)

    full = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "client": ("127.0.0.1", 5),
        "headers": [(b"x-act", act.encode()), *headers],
        **scope,
    }
    return asyncio.run(run())


def lines(records: Sequence[logging.LogRecord]) -> list[AccessLine]:
    return [record.msg for record in records if isinstance(record.msg, AccessLine)]


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    """The value of one sample of the exposition, 0 where it has none yet."""
    body, _ = metrics.expose("application/openmetrics-text")
    found = [
        s.value
        for family in text_string_to_metric_families(body.decode())  # type: ignore[no-untyped-call]
        for s in family.samples
        if s.name == name and s.labels.items() >= labels.items()
    ]
    return sum(found)


def formatted(of: Lines, message: object, *args: object, exc: BaseException | None = None) -> str:
    info = None if exc is None else (type(exc), exc, exc.__traceback__)
    return of.format(logging.LogRecord("gnomon.http", logging.INFO, "", 0, message, args, info))


def line_of(method: str, path: bytes) -> AccessLine:
    scope = {"method": method, "path": "/", "raw_path": path, "client": ("::1", 1)}
    return AccessLine.of(Record("id", "other", "other"), scope)
