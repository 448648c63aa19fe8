"""The outermost layer: it sees every request come and end, and tells the log, the metrics and OpenTelemetry once.

    1 the record    made here and kept in the scope, with the request's id: the caller's if it is sound, else ours
    2 the answer    gets the id as a header, and is counted as it passes
    3 the end       by return, exception, cancellation or the client's going: judged if nobody has, then told

What a record holds is decided in record.py, how a line looks in logs.py, what is counted in metrics.py.

Decided here: an answer that is not whole is `cancelled` if the client is gone, else `failed`, a cancelled task too;
503 is `refused` like every 4xx, any other 5xx is `failed`.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections import Counter
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gnomon.http.errors import as_request_error, response
from gnomon.http.observe.logs import hide, redacted
from gnomon.http.observe.metrics import Metrics
from gnomon.http.observe.otel import OtelSpans
from gnomon.http.observe.record import RECORD_KEY, Record, RequestOutcome

logger = logging.getLogger("gnomon.access")

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"})
_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_HEADER = b"x-request-id"


class Observed:
    """routes: the paths that are told apart; every other is "other". One that ends in a parameter, such as
    /v1/models/{model}, stands for all below it: a caller's words are no label."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: frozenset[str], otel: OtelSpans | None = None) -> None:
        self.app = app
        self.metrics = metrics
        self.routes = routes
        self.stems = {route.partition("{")[0]: route for route in routes if "{" in route}
        self.otel = otel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        hide(fields(scope, b"authorization"))
        record = self.record(scope)
        scope[RECORD_KEY] = record
        self.metrics.began(record)
        whole = gone = False

        async def heard() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or (message["type"] == "http.disconnect" and not whole)
            return message

        async def counted(message: Message) -> None:
            nonlocal whole, gone
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message = {**message, "headers": with_id(message.get("headers", ()), record.request_id)}
            elif message["type"] == "http.response.body":
                record.bytes_sent += 0 if scope["method"] == "HEAD" else len(message.get("body", b""))
                whole = whole or not message.get("more_body", False)
            try:
                await send(message)
            except OSError:  # how some servers say that the client is gone
                whole, gone = False, True
                raise

        try:
            await self.app(scope, heard, counted)
        except Exception as error:
            if gone or record.status is not None:
                raise
            await response(as_request_error(error))(scope, heard, counted)
        finally:
            record.ended = time.monotonic()
            record.outcome = record.outcome or judged(record.status, whole, gone)
            logger.info(AccessLine.of(record, scope))
            self.metrics.ended(record)
            if self.otel is not None:
                self.otel.request(record, scope["headers"])

    def record(self, scope: Scope) -> Record:
        ids = fields(scope, _HEADER)
        request_id = ids[0].decode() if len(ids) == 1 and _ID.fullmatch(ids[0]) else ""
        if not request_id or redacted(request_id) != request_id:  # none, none that is sound, or a credential
            request_id = uuid.uuid4().hex
        method = scope["method"] if scope["method"] in METHODS else "other"
        return Record(request_id, method, self.route(scope["path"]), on_gap=self.metrics.gap)

    def route(self, path: str) -> str:
        if path in self.routes:
            return path
        return next((route for stem, route in self.stems.items() if path.startswith(stem) and path != stem), "other")


def judged(status: int | None, whole: bool, gone: bool) -> RequestOutcome:
    if gone:
        return "cancelled"
    if status is None or not whole or (status >= 500 and status != 503):
        return "failed"
    return "answered" if status < 400 else "refused"


def fields(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def with_id(headers: list[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    """The headers with this id and no other."""
    return [*(field for field in headers if field[0].lower() != _HEADER), (_HEADER, request_id.encode())]


@dataclass(frozen=True, slots=True)
class AccessLine:
    """What is logged of one request. The client chose the method, the path and perhaps the id, and nothing else."""

    record: Record
    client: str
    method: str
    path: str

    @classmethod
    def of(cls, record: Record, scope: Scope) -> AccessLine:
        client = scope.get("client")
        raw = scope.get("raw_path") or scope["path"].encode(errors="surrogateescape")
        path = raw.partition(b"?")[0].decode("latin-1")  # some servers leave the query in it
        path = as_ascii(redacted(path).encode("latin-1"), 200)  # in this order: an escape would disguise a credential
        return cls(record, client[0] if client else "-", as_ascii(scope["method"].encode(), 20), path)

    def __str__(self) -> str:
        of = self.record
        line = f'{self.client} "{self.method} {self.path}" {of.status or "-"} {of.bytes_sent}B {of.seconds:.3f}s'
        line += f" {of.outcome} id={of.request_id}"
        reason = None if of.reason is None else f'"{of.reason}"'
        words: dict[str, object] = {"auth": of.auth, "caller": of.caller, "reason": reason}
        if of.prompts:
            words |= {
                "completion_id": of.completion_id,
                "stream": "yes" if of.stream else "no",
                "prompts": of.prompts,
                "candidates": of.candidates,
                "max_tokens": of.max_tokens,
                "prompt": of.prompt_tokens,
                "completion": of.completion_tokens,
                "cached": of.cached_tokens,
                "finish": ",".join(f"{reason}:{n}" for reason, n in Counter(of.finish_reasons).items()) or None,
                "queued": None if of.queue_seconds is None else f"{of.queue_seconds:.3f}s",
                "first": None if of.first_token_seconds is None else f"{of.first_token_seconds:.3f}s",
            }
        return line + "".join(f" {name}={value}" for name, value in words.items() if value is not None)

    def members(self) -> dict[str, object]:
        """The same names for every request; null where a value does not apply."""
        of = self.record
        return {
            "client": self.client,
            "method": self.method,
            "path": self.path,
            "route": of.route,
            "status": of.status,
            "bytes": of.bytes_sent,
            "seconds": round(of.seconds, 6),
            "outcome": of.outcome,
            "request_id": of.request_id,
            "auth": of.auth,
            "caller": of.caller,
            "reason": of.reason,
            "completion_id": of.completion_id,
            "stream": of.stream,
            "prompts": of.prompts,
            "candidates": of.candidates,
            "max_tokens": of.max_tokens,
            "prompt_tokens": of.prompt_tokens,
            "completion_tokens": of.completion_tokens,
            "cached_tokens": of.cached_tokens,
            "finish_reasons": dict(Counter(of.finish_reasons)),
            "queue_seconds": None if of.queue_seconds is None else round(of.queue_seconds, 6),
            "first_token_seconds": None if of.first_token_seconds is None else round(of.first_token_seconds, 6),
        }


def as_ascii(sent: bytes, most: int) -> str:
    """Bytes that a client chose, as at most `most` characters of ASCII without quotes, blanks and escape codes."""
    text = "".join(chr(b) if 0x21 <= b <= 0x7E and b not in b'"\\' else f"\\x{b:02x}" for b in sent[: most + 1])
    return text if len(text) <= most else text[: most - 3] + "..."
