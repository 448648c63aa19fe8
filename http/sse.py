"""Server-sent events: the bytes on the wire (LAW.md, section 11).

An event is one `data:` line and an empty line. The line is ASCII JSON, so no client can split it at a Unicode line end.
Which events there are, and when, is decided in completions.py.
"""

from __future__ import annotations

from starlette.types import Send

HEADERS = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # or nginx collects the pieces and delivers them together
)


def event(line: bytes) -> bytes:
    return b"data: " + line + b"\n\n"


DONE = event(b"[DONE]")


async def begin(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})


async def write(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def end(send: Send) -> None:
    await send({"type": "http.response.body", "body": DONE, "more_body": False})
