"""Server-sent events: the bytes on the wire (LAW.md, section 11).

An event is one `data:` line and an empty line. The line is ASCII JSON, so no client can split it at a Unicode line end.
Which events there are, and when, is decided in completions.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator

from starlette.types import Send

HEADERS = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or nginx collects the pieces and delivers them together
)


def event(line: bytes) -> bytes:
    return b"".join(pieces([line]))


def pieces(line: Iterable[bytes]) -> Iterator[bytes]:
    """An event whose line comes in pieces."""
    yield b"data: "
    yield from line
    yield b"\n\n"


DONE = event(b"[DONE]")


PING = b": the answer is being made\n\n"


STALL_SECONDS = 1.0


class Events:
    """An answer made of events: the headers go with the first of them, a comment goes where there is long silence."""

    def __init__(self, send: Send) -> None:
        self.begun = False
        self._send = send
        self._sending = False
        self._since = time.monotonic()  # when sending, or the silence, began

    async def write(self, *data: bytes, last: bool = False) -> None:
        """One event, in one piece or more: nothing comes between them, and the loop may go on after each."""
        self._sending, self._since = True, time.monotonic()
        if not self.begun:
            self.begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
        for i, piece in enumerate(data, 1):
            await self._send({"type": "http.response.body", "body": piece, "more_body": not last or i < len(data)})
            if i < len(data):
                await asyncio.sleep(0)
        self._sending, self._since = False, time.monotonic()

    async def end(self) -> None:
        await self.write(DONE, last=True)

    async def watch(self, ping_seconds: float, stalled: Callable[[], None]) -> None:
        """Sends a comment when nothing was sent for `ping_seconds`; calls `stalled` when the client takes nothing.

        For ever, until it is cancelled.
        """
        while True:
            await asyncio.sleep(min(ping_seconds, STALL_SECONDS))
            lasting = time.monotonic() - self._since
            if self._sending and lasting >= STALL_SECONDS:
                stalled()
            elif not self._sending and lasting >= ping_seconds:
                await self.write(PING)
