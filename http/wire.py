"""The server's edge on the socket: uvicorn's HTTP/1.1 protocol, with bounds, and errors in the API's form.

    Wire               one client: the clocks of its head, its silence and its reading; its refusals; how it is closed
    WatchedTransport   the transport as uvicorn sees it: whatever closes it comes by Wire
    protocol           the class for `uvicorn.Config(http=...)`

A connection is closed in three steps, since a socket that is closed with bytes unread is reset, and the reset
overtakes the answer: flush and say that it was all, read on for a while without looking, close.

uvicorn's class is no public interface: pyproject.toml admits no version newer than the one that this was tested with,
and tests/http/test_uvicorn.py names every attribute of it that is used here.

How the bytes that come are read as requests is decided in framing.py; what a request means once it is whole, and how
long its body may take, in the application.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, cast

import h11
from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from gnomon.http.errors import HttpError, MalformedRequest, TooSlow, Unavailable
from gnomon.http.framing import Connection
from gnomon.http.observe.record import record_of
from gnomon.http.settings import Settings
from gnomon.reference.response import json_bytes

logger = logging.getLogger("gnomon.http")

LINGER_SILENCE = 2.0  # seconds without a byte after which the client is thought to be done; a tenth while stopping
LINGER_SECONDS = 30.0
LINGER_BYTES = 64 * 2**20  # a body some times larger than any limit may be sent to its end before its 413 is read
REFUSED_AT_ONCE = 64  # connections beyond the bound that are told so; those beyond these are cut without a word
REFUSED_SECONDS = 1.0  # for such a connection's request, so that the answer can follow it
TLS_BUFFER = 64 * 2**10  # above TLS, as asyncio has it without TLS; there its own figure is eight times that
FIRST_PROBE, LAST_PROBE = 0.02, 5.0  # seconds between two attempts to learn whether a silent client is there


class WatchedTransport(asyncio.Transport):
    """A transport that tells its protocol of every write, and leaves closing to it."""

    def __init__(self, inner: asyncio.Transport, wire: Wire) -> None:
        super().__init__()
        self.inner = inner
        self.wire = wire

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self.wire.closing:
            self.inner.write(data)
            self.wire.wrote(len(data))

    def close(self) -> None:
        self.wire.close()

    def is_closing(self) -> bool:
        return self.wire.closing or self.inner.is_closing()

    def abort(self) -> None:
        self.inner.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.inner.get_extra_info(name, default)

    def pause_reading(self) -> None:
        if not self.wire.closing:  # what is read then is dropped
            self.inner.pause_reading()

    def resume_reading(self) -> None:
        if self.wire.slicing is None:  # else it is resumed when what was read has been looked at
            self.inner.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self.inner.get_write_buffer_size()


class Wire(H11Protocol):
    """One client. refused: the connections beyond the bound, shared by all of one server."""

    conn: Connection
    inner: asyncio.Transport
    lowest: asyncio.Transport

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        loop: asyncio.AbstractEventLoop | None,
        settings: Settings,
        refused: set[Wire],
        on_refusal: Callable[[int], None],
        is_ending: Callable[[], bool],
        refused_at_once: int,
    ) -> None:
        super().__init__(config, server_state, app_state, loop)
        self.refused_at_once = refused_at_once
        self.settings = settings
        self.refused = refused
        self.on_refusal = on_refusal
        self.conn = Connection(settings.max_header_bytes, settings.idle_seconds, lambda: self.stopping or is_ending())
        self.timeout_keep_alive = settings.idle_seconds  # type: ignore[assignment]  # call_later takes it
        self.tls = False
        self.closing = False
        self.eof = False
        self.stopping = False
        self.timers: dict[str, asyncio.TimerHandle] = {}
        self.slicing: asyncio.Handle | None = None  # the turn in which the rest of a read is looked at
        self.written = self.taken = 0  # bytes, and how many of them have left for the client
        self.taken_at = 0.0
        self.lingers_until = 0.0
        self.dropped = self.dropped_before = 0  # bytes read while closing

    # ---- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.inner = transport
        self.lowest = below_tls(transport)
        self.tls = transport.get_extra_info("sslcontext") is not None
        if self.tls:
            transport.set_write_buffer_limits(high=TLS_BUFFER)
        super().connection_made(WatchedTransport(transport, self))
        seconds = self.settings.header_seconds
        if len(self.connections) - len(self.refused) > self.settings.max_connections:
            if len(self.refused) >= self.refused_at_once:
                self.closing = True
                transport.abort()
                return
            self.refused.add(self)
            most = self.settings.max_connections
            message = f"{most} connections are open, as many as may; send the request again, or on an open connection"
            self.conn.refuse_all = Unavailable(message, "too_busy")
            seconds = min(seconds, REFUSED_SECONDS)
        self.after(seconds, "head", self.head_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        for timer in self.timers.values():
            timer.cancel()
        self.timers.clear()
        self.refused.discard(self)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server ends. Whoever waits for an answer gets it."""
        self.stopping = True
        if self.answering:
            self.cycle.keep_alive = False
        elif not self.closing:
            self.close_now()
        elif "linger" in self.timers:
            self.linger()

    def timeout_keep_alive_handler(self) -> None:
        if not self.closing:
            self.close_now()

    def after(self, seconds: float, name: str, call: Callable[[], None]) -> None:
        """One clock of each name: setting it again is setting it anew."""
        self.forget(name)
        self.timers[name] = self.loop.call_later(seconds, call)

    def forget(self, name: str) -> None:
        if name in self.timers:
            self.timers.pop(name).cancel()

    # ---- what comes

    def data_received(self, data: bytes) -> None:
        if self.closing:
            self.dropped += len(data)
            if self.dropped > LINGER_BYTES:
                self.close_now()
            return
        super().data_received(data)
        self.looked()

    def looked(self) -> None:
        """All that came has been looked at, or as much of it as may be in one turn."""
        self.settle()
        pipelined = self.conn.their_state not in (h11.IDLE, h11.SEND_BODY)
        if pipelined and self.flow.read_paused and self.conn.unparsed <= self.settings.max_header_bytes:
            # uvicorn stops reading at a pipelined request, and at any that offers an upgrade; but only who reads
            # hears of a client that goes away.
            self.flow.resume_reading()

    def handle_events(self) -> None:
        if self.closing:
            return
        super().handle_events()
        if self.conn.refusal is not None:
            self.refuse(self.conn.refusal)
        elif self.conn.more and self.slicing is None:
            self.inner.pause_reading()
            self.slicing = self.loop.call_soon(self.next_slice)

    def next_slice(self) -> None:
        """Goes on with what was read, after whatever else was ready to run."""
        self.slicing = None
        if self.closing:
            return
        self.handle_events()
        self.looked()
        if self.slicing is None and not self.flow.read_paused and not self.closing:
            self.inner.resume_reading()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client sends no more. That it still reads is believed until it is known not to; under TLS it is not."""
        self.eof = True
        if self.closing or self.tls:  # asyncio closes what is under TLS, whatever we say
            self.close_now()
        else:
            self.settle()
        return not self.tls

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.settle()

    def _should_upgrade(self) -> bool:
        return False  # an offer, and declined by answering in HTTP/1.1

    @property
    def answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def settle(self) -> None:
        """Sets the clock that belongs to where the connection stands now."""
        if self.closing:
            return
        state = self.conn.their_state
        if self.eof:
            if state is h11.SEND_BODY or (state is h11.IDLE and self.conn.head):
                self.refuse(MalformedRequest("the request ended before it was whole"))
            elif not self.answering:
                self.close()
            elif "probe" not in self.timers:
                self.probe(FIRST_PROBE)
        elif state is not h11.IDLE:
            self.forget("head")
        elif self.timeout_keep_alive_task is None or self.conn.head:
            self._unset_keepalive_if_required()
            if "head" not in self.timers:
                self.after(self.settings.header_seconds, "head", self.head_late)

    def head_late(self) -> None:
        self.forget("head")
        self.refuse(self.conn.refuse_all or TooSlow.of_head(self.settings.header_seconds))

    # ---- what goes

    def refuse(self, error: HttpError) -> None:
        """Answers in the application's place and closes. An answer of the application's that has begun is cut."""
        if self.closing:
            return
        self.conn.refusal = error
        if self.answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.inner.abort()
                return
        self.on_refusal(error.status)
        # a request whose body broke off has an id already
        request_id = (record_of(cast(Scope, self.scope)).request_id if self.answering else "") or uuid.uuid4().hex
        client = self.client[0] if self.client else "-"
        logger.info("%s refused at the socket: %d id=%s", client, error.status, request_id)
        body = json_bytes(error.to_json())
        headers: Mapping[str, str] = {
            **{name.decode(): value.decode() for name, value in self.server_state.default_headers},
            **{name.lower(): value for name, value in error.headers.items()},
            "content-type": "application/json",
            "content-length": str(len(body)),
            "x-request-id": request_id,
            "connection": "close",
        }
        lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", *map(": ".join, headers.items())]
        head = "\r\n".join([*lines, "", ""]).encode("ascii")
        self.transport.write(head if self.conn.is_head else head + body)
        self.transport.close()

    def wrote(self, size: int) -> None:
        self.written += size
        if "write" not in self.timers and self.buffered:
            self.watch()

    @property
    def buffered(self) -> int:
        """Bytes that the client's side has not taken yet."""
        size = self.inner.get_write_buffer_size()
        return size if self.lowest is self.inner else size + self.lowest.get_write_buffer_size()

    def watch(self) -> None:
        """Cuts a client that takes nothing for too long. Looks often: a client may take a little from time to time."""
        self.taken = self.written - self.buffered
        self.taken_at = self.loop.time()
        self.after(self.settings.write_seconds / 8, "write", self.look)

    def look(self) -> None:
        self.forget("write")
        buffered = self.buffered
        if not buffered and not self.inner.is_closing():
            return
        if self.written - buffered > self.taken:
            self.watch()
        elif self.loop.time() - self.taken_at < self.settings.write_seconds:
            self.after(self.settings.write_seconds / 8, "write", self.look)
        else:
            self.inner.abort()

    def probe(self, wait: float) -> None:
        """A closed client and a half-closed one look alike until something is sent: the closed one resets. Before an
        answer has begun, a 100 is something to send, which a client must skip; HTTP/1.0 has no such thing."""
        self.forget("probe")
        if self.closing or not self.answering or self.cycle.response_started or self.scope["http_version"] == "1.0":
            return
        interim = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
        self.transport.write(self.conn.send(interim))
        self.after(wait, "probe", lambda: self.probe(min(2 * wait, LAST_PROBE)))

    # ---- the end

    def close(self) -> None:
        """Closes once everything is flushed and the client is done, or is thought to be."""
        if self.closing:
            return
        self.closing = True
        self.forget("head")
        self._unset_keepalive_if_required()
        whole = self.conn.refusal is None and self.conn.their_state is not h11.SEND_BODY
        if self.eof or (self.tls and whole):  # TLS has no half-close: who reads to the end must not wait for it
            self.close_now()
            return
        try:
            if not self.tls:
                self.inner.write_eof()
        except OSError:  # reset meanwhile
            self.inner.abort()
            return
        self.inner.resume_reading()
        self.lingers_until = self.loop.time() + LINGER_SECONDS
        self.linger()

    def linger(self) -> None:
        self.dropped_before = self.dropped
        self.after(LINGER_SILENCE * (0.1 if self.stopping else 1), "linger", self.lingered)

    def lingered(self) -> None:
        now = self.loop.time()
        if self.buffered:  # how long that may take, `look` decides
            self.lingers_until = now + LINGER_SECONDS
            self.linger()
        elif self.dropped > self.dropped_before and now < self.lingers_until:
            self.linger()
        else:
            self.close_now()

    def close_now(self) -> None:
        self.closing = True
        if not self.inner.is_closing():  # asyncio's TLS transport cannot be asked anything more once it is closed twice
            self.inner.close()
        if "write" not in self.timers:
            self.watch()


def below_tls(transport: asyncio.Transport) -> asyncio.Transport:
    """The transport that has the socket. Under TLS asyncio keeps it to itself, and with it whether anything is taken:
    a private name, without which a client under TLS has `write_seconds` for what lies there."""
    lower = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    return lower if isinstance(lower, asyncio.Transport) else transport


def protocol(
    settings: Settings,
    on_refusal: Callable[[int], None] = lambda status: None,
    is_ending: Callable[[], bool] = lambda: False,
    refused_at_once: int = REFUSED_AT_ONCE,
) -> type[asyncio.Protocol]:
    """The protocol of one server. uvicorn makes one object a connection.

    on_refusal: told the status of every answer that is given here, and so is unknown to the application.
    is_ending: whether the server is to end, so that every answer is its connection's last.
    refused_at_once: how many connections beyond the bound are told so at a time.
    """
    refused: set[Wire] = set()

    class Configured(Wire):
        def __init__(
            self,
            config: Config,
            server_state: ServerState,
            app_state: dict[str, Any],
            _loop: asyncio.AbstractEventLoop | None = None,
        ) -> None:
            super().__init__(
                config, server_state, app_state, _loop, settings, refused, on_refusal, is_ending, refused_at_once
            )

    return Configured
