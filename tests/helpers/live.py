"""The application in three settings: called in-process, driven message by message, and on a real socket."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.types import Message

from gnomon.http.run import Server, bind, url
from gnomon.http.settings import Settings
from helpers.fake import LogitsOf

MODEL = "gnomon-stories"


def call(app: Starlette, method: str, path: str, **options: Any) -> httpx.Response:
    """One request, in-process. An exception that leaves the application is raised here."""

    async def request() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gnomon") as client:
            return await client.request(method, path, **options)

    return asyncio.run(request())


def post(app: Starlette, body: object = None, **fields: Any) -> httpx.Response:
    """POST /v1/completions of `body`, or of a request with `fields`."""
    return call(app, "POST", "/v1/completions", json=request_body(**fields) if body is None else body)


def request_body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "a", **fields}


def check_error(response: httpx.Response, status: int, param: str | None = None, code: str | None = None) -> str:
    """Checks an answer against section 12 and returns its message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    error = body["error"]
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert (error["param"], error["code"]) == (param, code), error
    assert isinstance(error["message"], str)
    assert error["message"]
    assert response.content.isascii()
    return str(error["message"])


def events(body: bytes) -> list[Any]:
    """The events of a complete stream, without the last, after checking the form of every one."""
    assert body.isascii()
    assert body.endswith(b"data: [DONE]\n\n")
    lines = body.decode().removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") and "\n" not in line and "\r" not in line for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


class Exchange(NamedTuple):
    """What the application sent, as ASGI messages, and how much of the request's body it asked for."""

    sent: list[Message]
    received: int


def exchange(app: Starlette, pieces: Iterator[bytes], **headers: str) -> Exchange:
    """POST /v1/completions, message by message; the client disconnects where `pieces` ends."""
    sent: list[Message] = []
    received = 0

    async def receive() -> Message:
        nonlocal received
        piece = next(pieces, None)
        if piece is None:
            return {"type": "http.disconnect"}
        received += len(piece)
        return {"type": "http.request", "body": piece, "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    lines = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in lines.items()],
    }
    asyncio.run(app(scope, receive, send))
    return Exchange(sent, received)


class Gate:
    """Logits that are computed no faster than a test allows."""

    def __init__(self, logits_of: LogitsOf, seconds: float = 20) -> None:
        """seconds: that a step waits at most until it is allowed."""
        self.begun = 0
        self._logits_of, self._seconds = logits_of, seconds
        self._permits = threading.Semaphore(0)

    def __call__(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        self.begun += 1
        assert self._permits.acquire(timeout=self._seconds), "the test allowed too few steps"
        return self._logits_of(tokens)

    def allow(self, steps: int) -> None:
        for _ in range(steps):
            self._permits.release()


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether the condition comes true within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@contextmanager
def connection(base: str) -> Iterator[socket.socket]:
    host, port = base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        yield client


@contextmanager
def serving(app: Starlette, settings: Settings | None = None, small_buffers: bool = False) -> Iterator[str]:
    """The application on a free port of a real server; the base URL. Leaving ends the server within seconds.

    small_buffers: the server has to wait for a client that does not read after some 100 kB instead of megabytes.
    """
    listener = bind("127.0.0.1", 0)
    if small_buffers:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ready = threading.Event()
    server = Server(app, settings or Settings(), ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    assert ready.wait(10)
    try:
        yield url(listener)
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
