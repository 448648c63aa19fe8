"""The process around the application: the socket, uvicorn, loading, and a clean end.

    1 bind     before a model is loaded, so that a taken port is known at once
    2 Server   uvicorn with everything named that it would otherwise choose by what happens to be installed
    3 load     in a thread, while probes are answered and requests are told that it is loading
    4 drain    at SIGTERM or Ctrl-C: readiness says 503 at once, nothing new is let in, what was let in is finished, for
               at most `drain_seconds`; a second signal cuts that short
    5 the end  answers still under way are ended with an error, then connections are given a few seconds to close

Which engine serves, and what the user sees of a failure, is decided in cli.py.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

import uvicorn
from starlette.applications import Starlette

from gnomon.http.settings import Settings
from gnomon.http.wire import protocol
from gnomon.reference.checkpoint import Checkpoint
from gnomon.reference.engine import ServedEngine
from gnomon.reference.tokenizer import Tokenizer

log = logging.getLogger("gnomon.http")

Loader = Callable[[], tuple[ServedEngine, Tokenizer, Checkpoint | None]]


class CannotListen(Exception):
    """The address cannot be served, with the reason."""


class Address(NamedTuple):
    family: socket.AddressFamily
    kind: socket.SocketKind
    protocol: int
    name: str
    sockaddr: Any


def resolved(host: str, port: int) -> Address:
    """The address that a host's name stands for. Raises CannotListen."""
    if not host:
        raise CannotListen("the host is an empty string; 0.0.0.0 or :: is every address of this machine")
    name = "127.0.0.1" if host == "localhost" else host
    try:
        return Address(*socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0])
    except (OSError, OverflowError, UnicodeError) as error:
        raise CannotListen(f"{host}: {getattr(error, 'strerror', None) or error}") from None


def is_loopback(address: Address) -> bool:
    """Whether only processes of this machine can connect."""
    return ipaddress.ip_address(address.sockaddr[0].partition("%")[0]).is_loopback


def bind(host: str, port: int) -> socket.socket:
    """A socket on an address, which nobody can connect to before a Server listens on it."""
    address = resolved(host, port)
    # with its protocol named: asyncio switches Nagle's delays off only for sockets that say they are TCP
    listener = socket.socket(address.family, address.kind, address.protocol)
    try:
        # A port whose last connections have yet to time out is free; one that is listened on is not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address.sockaddr)
    except OSError as error:
        listener.close()
        raise CannotListen(f"{host} port {port}: {error.strerror or error}") from None
    return listener


def url(listener: socket.socket, scheme: str = "http") -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class Server(uvicorn.Server):
    """Serves `app`; calls `ready` once it listens and its model, which `load` may have to bring first, is there.

    `run` returns when all has ended. `cut_short`: a second signal came. `failure`: what `load` raised, which ends the
    server.
    """

    def __init__(
        self, app: Starlette, settings: Settings, ready: Callable[[], None], load: Loader | None = None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=protocol(settings, app.state.metrics.refused_at_the_socket),
                h11_max_incomplete_event_size=settings.max_header_bytes,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,  # access.py writes one
                server_header=False,
                proxy_headers=False,  # nothing is believed that a client says about where it comes from
                ssl_certfile=settings.tls_certificate,
                ssl_keyfile=settings.tls_key,
            )
        )
        self.service, self.completions, self.retrace = app.state.service, app.state.completions, app.state.retrace
        self.settings = settings
        self.ready = ready
        self.load = load
        self.failure: BaseException | None = None
        self.cut_short = False
        self._drained_by = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self.settings.tls_certificate is not None:  # a handshake counts as no connection yet, and may take a minute
            loop, seconds = asyncio.get_running_loop(), self.settings.header_seconds
            loop.create_server = functools.partial(loop.create_server, ssl_handshake_timeout=seconds)  # type: ignore[method-assign]
        await super().startup(sockets)
        if self.load is None:
            self.ready()
        else:
            # A daemon: a start that is given up does not wait for a compiler.
            threading.Thread(target=self._load, args=[self.load], name="load", daemon=True).start()

    @property
    def is_loading(self) -> bool:
        return self.load is not None and self.service.engine is None

    def _load(self, load: Loader) -> None:
        try:
            self.service.open(*load())
            self.ready()
        except BaseException as error:
            self.failure = error
            self.should_exit = True

    @property
    def unfinished(self) -> int:
        return int(self.completions.unfinished + self.retrace.unfinished)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal asks for an end, the second for a quick one. Neither is raised again afterwards."""
        if self.service.draining:
            self.cut_short = True
        self.service.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self.service.draining and self._is_drained():
            self.should_exit = True
        return await super().on_tick(counter)

    def _is_drained(self) -> bool:
        if not self._drained_by:
            under_way, most = self.unfinished, self.settings.drain_seconds
            log.info(
                "draining: nothing new is let in; %d requests are to be finished in %g s at most; "
                "a second signal ends it now",
                under_way,
                most,
            )
            self._drained_by = time.monotonic() + most
        return not self.unfinished or self.cut_short or time.monotonic() >= self._drained_by

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.draining = True
        if self.unfinished:
            log.info("draining is over: %d requests are not finished, and end with an error", self.unfinished)
        self.completions.stop()
        self.retrace.stop()
        loop = asyncio.get_running_loop()
        cut = loop.call_later(self.settings.shutdown_seconds, self.cut)
        await super().shutdown(sockets)
        cut.cancel()
        if self.failure is None:
            log.info("stopped")

    def cut(self) -> None:
        """Ends the connections of clients that neither read nor finish what they send."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
