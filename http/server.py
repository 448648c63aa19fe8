"""The process around the application: the socket, uvicorn, its log, and a clean end.

    1 bind     before a model is loaded, so that a taken port is known at once; loopback addresses only
    2 Server   uvicorn with everything named that it would otherwise choose by what happens to be installed
    3 the end  answers under way are ended with an error, then connections are given a few seconds to close

Which engine serves, and what the user sees of a failure, is decided in cli.py.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging.config
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from gnomon.http.settings import Settings
from gnomon.http.wire import protocol


class CannotListen(Exception):
    """The address cannot be served, with the reason."""


def bind(host: str, port: int) -> socket.socket:
    """A socket on a loopback address, which nobody can connect to before a Server listens on it."""
    address = "127.0.0.1" if host == "localhost" else host
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        ip = None
    if ip is None or not ip.is_loopback:
        raise CannotListen(
            f"{host}: only loopback addresses (127.0.0.1, ::1, localhost) are served, "
            "since there is no authentication yet"
        )
    listener = socket.socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6)
    try:
        # A port whose last connections have yet to time out is free; one that is listened on is not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise CannotListen(f"{host} port {port}: {getattr(error, 'strerror', None) or error}") from None
    return listener


def url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Serves `app`, calls `ready` once it listens, and ends within `settings.shutdown_seconds`."""

    def __init__(self, app: Starlette, settings: Settings, ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=protocol(settings),
                h11_max_incomplete_event_size=settings.max_header_bytes,
                ws="none",
                lifespan="on",
                log_config=None,
                server_header=False,
                proxy_headers=False,  # nothing is believed that a client says about where it comes from
            )
        )
        self.stop_answers = app.state.completions.stop
        self.settings = settings
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.stop_answers()
        loop = asyncio.get_running_loop()
        cut = loop.call_later(self.settings.shutdown_seconds, self.cut)
        await super().shutdown(sockets)
        cut.cancel()

    def cut(self) -> None:
        """Ends the connections of clients that neither read nor finish what they send."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Once is enough. At a second Ctrl-C uvicorn would drop everything, with tracebacks."""
        if not self.should_exit:
            super().handle_exit(sig, frame)


def log_to_stderr() -> None:
    """One line for every request and every fault; of uvicorn's own remarks only the warnings."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(message)s"}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "loggers": {
                "gnomon": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
                "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
                "uvicorn.access": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
            },
        }
    )
