"""A server of bare sockets, which can send what no framework would: a function a connection, bytes in, bytes out."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from helpers.loopback import Tls


class Asked(NamedTuple):
    """A request, as far as a script needs it."""

    line: str
    headers: str
    body: bytes


Script = Callable[[socket.socket, Asked], None]
"""Answers one request; the connection is closed when it returns."""


class RawServer:
    def __init__(self, base: str, stopped: threading.Event) -> None:
        self.base = base
        self.asked: list[Asked] = []
        self.stopped = stopped

    def hang(self) -> None:
        """Waits until the test is over."""
        self.stopped.wait(30)


@contextmanager
def raw_server(
    script: Callable[[RawServer, socket.socket, Asked], None], tls: Tls | None = None
) -> Iterator[RawServer]:
    """The script behind a free port of 127.0.0.1. Leaving ends all connections."""
    context = None
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key)
    stopped = threading.Event()
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        listener.settimeout(0.05)
        served = RawServer(f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}", stopped)

        def answer(client: socket.socket) -> None:
            with suppress(OSError), client:  # the client may leave, or refuse our certificate
                client.settimeout(20)
                secured = client if context is None else context.wrap_socket(client, server_side=True)
                with secured:
                    asked = _read(secured)
                    if asked is not None:
                        served.asked.append(asked)
                        script(served, secured, asked)

        def accept() -> None:
            while not stopped.is_set():
                with suppress(TimeoutError):
                    client, _ = listener.accept()
                    threads.append(threading.Thread(target=answer, args=(client,), daemon=True))
                    threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield served
        finally:
            stopped.set()
            accepting.join()
            for thread in threads:
                thread.join(5)


def _read(client: socket.socket) -> Asked | None:
    """A request with its body; None if none comes."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(65536)
        if not piece:
            return None
        data += piece
        if data[0] == 0x16:  # TLS, where none is spoken
            return Asked("", "", data)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    length = next((int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:")), 0)
    while len(body) < length:
        piece = client.recv(65536)
        if not piece:
            return None
        body += piece
    return Asked(lines[0], "\n".join(lines[1:]), body)


def http(body: bytes, status: str = "200 OK", kind: str = "application/json", *more: str) -> bytes:
    """A whole answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close", *more]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
