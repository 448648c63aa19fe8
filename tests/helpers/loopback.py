"""A real server on a free loopback port, in a thread, for any ASGI application; and ways in which one misbehaves."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send


class Tls(NamedTuple):
    certificate: Path
    key: Path
    clients: Path | None = None  # whose certificates a client must show


class Loopback:
    """An address whose application can be changed while it is served."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.app: ASGIApp = status(404)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@contextmanager
def loopback(tls: Tls | None = None, port: int = 0) -> Iterator[Loopback]:
    # asyncio sends small pieces at once only on sockets that say TCP; else each answer here would take 40 ms
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()  # so that a client may connect before the server has started
        host, port = listener.getsockname()
        served = Loopback(f"{'https' if tls else 'http'}://{host}:{port}")
        secure: dict[str, Any] = {}
        if tls is not None:
            secure = {"ssl_certfile": tls.certificate, "ssl_keyfile": tls.key}
            if tls.clients is not None:
                secure |= {"ssl_ca_certs": tls.clients, "ssl_cert_reqs": 2}
        config = uvicorn.Config(
            served, loop="asyncio", http="h11", ws="none", lifespan="off", log_config=None, access_log=False, **secure
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield served
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


def closed_port() -> str:
    """The URL of a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


# ---- answers that no sound service gives


def answer(body: bytes, code: int = 200, **headers: str) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": code, "headers": lines})
        await send({"type": "http.response.body", "body": body})

    return app


def status(code: int) -> ASGIApp:
    return answer(b"{}", code)


async def gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def hang(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers nothing for as long as the client waits."""
    await gone(receive)


async def half(scope: Scope, receive: Receive, send: Send) -> None:
    """Begins an answer and leaves it at that."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
    await send({"type": "http.response.body", "body": b'{"sub":', "more_body": True})
    await gone(receive)


def drip(body: bytes, pieces: int, seconds: float) -> ASGIApp:
    """A sound answer after `pieces` spaces, each of which comes before a client loses its patience with silence."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        for _ in range(pieces):
            await send({"type": "http.response.body", "body": b" ", "more_body": True})
            await asyncio.sleep(seconds)
        await send({"type": "http.response.body", "body": body})

    return app


async def drop(scope: Scope, receive: Receive, send: Send) -> None:
    """Cuts the connection. `send` is a method of uvicorn's request, which has the transport."""
    send.__self__.transport.abort()  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    await gone(receive)


def slow(app: ASGIApp, seconds: float) -> ASGIApp:
    async def later(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(seconds)
        await app(scope, receive, send)

    return later
