"""The process around the application: the socket, uvicorn, loading, and a clean end.

    1 bind     before a model is loaded, so that a taken port is known at once
    2 Server   uvicorn with everything named that it would otherwise choose by what happens to be installed
    3 load     in a thread, while probes are answered and requests are told that it is loading
    4 drain    at SIGTERM or Ctrl-C: readiness says 503 at once, nothing new is let in, what was let in is finished, for
               at most `drain_seconds`; a second signal cuts that short
    5 the end  answers still under way are ended with an error, then connections are given a few seconds to close

SIGHUP reads keys and certificates again (reload.py), in every one of these stages. Where it tells that the server's
terminal is gone, it is SIGTERM instead; where it was ignored at the start (nohup), it is ignored. SIGUSR1 and SIGUSR2
are a line in the log. SIGQUIT is left to the system, which ends the process at once: the way out where draining is
not wanted. Python ignores SIGPIPE; a client that is gone is noticed on its connection.

Which engine serves, and what the user sees of a failure, is decided in cli/serve.py.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import ipaddress
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ssl import SSLContext
from types import FrameType
from typing import Any, NamedTuple

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool

from gnomon.http.process.accept import Acceptor
from gnomon.http.process.reload import Renew, ServerCertificate, reload
from gnomon.http.settings import Settings
from gnomon.http.wire import REFUSED_AT_ONCE, protocol
from gnomon.reference.checkpoint.load import Checkpoint
from gnomon.reference.engine import ServedEngine
from gnomon.reference.tokenizer import Tokenizer

log = logging.getLogger("gnomon.http")

AT_FIRST_USE = (
    *("concurrent.futures.thread", "netrc"),
    *(f"encodings.{name}" for name in ("ascii", "idna", "latin_1", "unicode_escape", "utf_8_sig")),
)
"""What Python, asyncio and the collector's client import when they need it: later there may be no descriptor left."""

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
        raise CannotListen(f"{host}: {getattr(error, 'strerror', None) or error}{_meant(host)}") from None


def _meant(host: str) -> str:
    """What to write instead of a form that others have for a host, and this option does not."""
    if host.startswith("unix:") or ("/" in host and "://" not in host):
        return "; a Unix-domain socket cannot be served on: give an address, and bind a proxy to the socket"
    bare = host.partition("://")[2].partition("/")[0] if "://" in host else host
    name, _, port = bare.rpartition(":") if re.search(r"(^[^:]+|\]):[0-9]+$", bare) else (bare, "", "")
    name = name.removeprefix("[").removesuffix("]")
    if not name or name == host:
        return ""
    return f"; give the address alone: --host {name}" + (f" --port {port}" if port else "")


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


NOTED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that are answered in the main loop; by default each would end the process undrained."""


@contextmanager
def signals_held() -> Iterator[None]:
    """Keeps those signals waiting before a Server takes them, and forgets those that come after it has ended."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOTED)
    try:
        yield
    finally:
        for sig in NOTED:  # to be ignored for a moment discards what waits
            signal.signal(sig, signal.signal(sig, signal.SIG_IGN))
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def has_terminal() -> bool:
    """Whether this process belongs to a terminal that is still there. Where there is no descriptor left to find out, it
    is believed to be: without it, a signal would end the server."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return True


class Server(uvicorn.Server):
    """Serves `app`; calls `ready` once it listens and its model, which `load` may have to bring first, is there.

    `run` returns when all has ended. `cut_short`: a second signal came. `failure`: what `load` raised, which ends the
    server.
    """

    def __init__(
        self,
        app: Starlette,
        settings: Settings,
        ready: Callable[[], None],
        load: Loader | None = None,
        refused_at_once: int = REFUSED_AT_ONCE,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=protocol(
                    settings,
                    app.state.metrics.refused_at_the_socket,
                    lambda: bool(app.state.service.draining),
                    refused_at_once,
                ),
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
        self.most = settings.max_connections + refused_at_once  # connections that are open at a time
        self.ready = ready
        self.load = load
        self.failure: BaseException | None = None
        self.cut_short = False
        self._drained_by = 0.0
        self.readers: list[Renew] = list(app.state.readers)
        self.has_terminal = has_terminal()
        self._noted: list[int] = []
        self._reloading: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self.config.ssl is not None and self.settings.tls_certificate is not None and self.settings.tls_key:
            certificate = ServerCertificate(self.settings.tls_certificate, self.settings.tls_key)
            self.config.ssl.sni_callback = certificate.choose
            self.readers.append(certificate.read)
        asyncio.get_running_loop().create_server = self.listen  # type: ignore[method-assign, assignment]
        for name in AT_FIRST_USE:
            importlib.import_module(name)
        await run_in_threadpool(AT_FIRST_USE.count, "")  # anyio's threads
        await super().startup(sockets)
        if self.load is None:
            self.ready()
        else:
            # A daemon: a start that is given up does not wait for a compiler.
            threading.Thread(target=self._load, args=[self.load], name="load", daemon=True).start()

    async def listen(
        self, make: Callable[[], asyncio.Protocol], sock: socket.socket, ssl: SSLContext | None, backlog: int
    ) -> Acceptor:
        """For uvicorn, in the place of the loop's own `create_server`."""
        sock.listen(backlog)
        # a handshake may take as long as a head
        options = {} if ssl is None else {"ssl": ssl, "ssl_handshake_timeout": self.settings.header_seconds}
        return Acceptor(make, sock, lambda: self.most - len(self.server_state.connections), **options)

    @property
    def is_loading(self) -> bool:
        return self.load is not None and self.service.engine is None

    def _load(self, load: Loader) -> None:
        try:
            self.service.open(*load())
            self.retrace.loaded()
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

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            if threading.current_thread() is not threading.main_thread():  # only there can signals be heard
                yield
                return
            heard = [sig for sig in NOTED if signal.getsignal(sig) is not signal.SIG_IGN]
            before = [signal.signal(sig, self.note) for sig in heard]
            mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, NOTED)
            try:
                yield
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                for sig, handler in zip(heard, before, strict=True):
                    signal.signal(sig, handler)

    def note(self, sig: int, frame: FrameType | None) -> None:
        """Hears one of NOTED. Without its terminal, nobody at it could end this server any more."""
        if sig == signal.SIGHUP and self.has_terminal and not has_terminal():
            self.handle_exit(sig, frame)
        else:
            self._noted.append(sig)

    def answer_signals(self) -> None:
        """Reloading goes on beside the loop, once at a time: what comes meanwhile has the files read once more."""
        if self._reloading is not None and not self._reloading.done():
            return
        noted, self._noted = set(self._noted), []
        for sig in sorted(noted - {signal.SIGHUP}):
            name = signal.Signals(sig).name
            log.warning(
                "%s means nothing here; SIGHUP reads keys and certificates again, SIGTERM ends the server", name
            )
        if signal.SIGHUP in noted:
            self._reloading = asyncio.create_task(reload(self.readers))

    async def on_tick(self, counter: int) -> bool:
        if self._noted:
            self.answer_signals()
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
