"""What comes back for one request, read within bounds: of bytes, packed or not, and of a stream's events."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import NamedTuple

import httpx

from gnomon.http.verify.ask.exchange import MOST_ANSWER_BYTES, Arrived

PIECE_BYTES = 2**20
"""How much of a packed answer is unpacked before the sum is looked at."""

EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
"""What an event of a stream ends with: an empty line, after each of the line ends that the format has."""


class Reply(NamedTuple):
    """What came back for one request; status None: nothing did."""

    status: int | None
    headers: dict[str, str]
    content: bytes = b""
    trouble: str | None = None
    arrived: tuple[Arrived, ...] = ()


async def read_reply(
    reply: httpx.Response, first_events: int | None, began: float
) -> tuple[bytes, str | None, tuple[Arrived, ...]]:
    """Content, trouble, and when each piece came, in seconds since `began`."""
    content = bytearray()
    trouble = None
    arrived: list[Arrived] = []
    async with aclosing(_decoded(reply)) as pieces:
        async for piece in pieces:
            if piece is None:
                coding = reply.headers["content-encoding"]
                trouble = f"the answer's content encoding {coding!r:.60} cannot be read"
                break
            content += piece
            arrived.append(Arrived(time.monotonic() - began, len(content)))
            if len(content) > MOST_ANSWER_BYTES:
                trouble = f"the answer has more than {MOST_ANSWER_BYTES // 2**20} MiB"
                break
            if first_events is not None and sum(map(content.count, EVENT_ENDS)) >= first_events:
                break
    return bytes(content), trouble, tuple(arrived)


async def _decoded(reply: httpx.Response) -> AsyncGenerator[bytes | None, None]:
    """The body in pieces of bounded size; None where it cannot be decoded. httpx would decode a piece to any size."""
    coding = reply.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "", "gzip"):
        yield None
        return
    unzip = zlib.decompressobj(31) if coding == "gzip" else None
    async for piece in reply.aiter_raw():
        if unzip is None:
            yield piece
            continue
        try:
            yield unzip.decompress(piece, PIECE_BYTES)
            while unzip.unconsumed_tail:
                yield unzip.decompress(unzip.unconsumed_tail, PIECE_BYTES)
        except zlib.error:
            yield None
            return


def oddity(status: int, headers: Mapping[str, str], content: bytes) -> str | None:
    """What is wrong with an answer that came whole, in one line, before anyone asks what it means."""
    kind = headers.get("content-type", "").split(";")[0].strip().lower()
    if 300 <= status < 400:
        return f"HTTP {status}: sends us on to {headers.get('location', 'nowhere')!r:.120}, which is not followed"
    if status >= 500:
        return f"HTTP {status}"
    if status == 200 and kind == "text/event-stream":
        return None
    if kind not in ("application/json", "application/problem+json"):
        return f"HTTP {status} with the content type {kind or 'missing'!r:.60}, not application/json"
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return f"HTTP {status} with a body that is no JSON"
    return None


def billed(status: int, content: bytes, most: int) -> int:
    """The tokens that the answer says it used; what it may have used at most, where it does not say."""
    if status != 200:
        return 0
    at = content.rfind(b'"usage"')
    if at < 0:
        return most
    try:
        usage, _ = json.JSONDecoder().raw_decode(
            content[content.index(b":", at) + 1 :].decode("utf-8", "replace").lstrip()
        )
        said = int(usage["prompt_tokens"]) + int(usage["completion_tokens"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return most
    return min(max(said, 0), 2 * most + 64)  # a wrong usage is a finding, and must not end the run
