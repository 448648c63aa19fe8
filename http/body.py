"""A request's body on its way in, for completions and traces alike: its type, its size and its time. What is wrong with
them is refused before any of it is parsed. What its JSON means is decided in reference/request.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from email.message import Message
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.requests import Request

from gnomon.http.admission import Admission
from gnomon.http.errors import BodyTooLarge, TooSlow, UnsupportedMedia
from gnomon.http.life import SHORT_BODY, Life, Preparer
from gnomon.http.schema.route import error_of
from gnomon.http.settings import Settings
from gnomon.reference.body.shown import shown
from gnomon.reference.errors import RequestError

T = TypeVar("T")

LONGEST_MEDIA = 256  # characters of a Content-Type: a longer one takes its parser a time that grows with the square


def body_errors(settings: Settings) -> list[RequestError]:
    """One of each kind of what is raised here."""
    return [
        TooSlow.of_body(settings.body_seconds, 512),
        BodyTooLarge.as_received(settings.max_body_bytes),
        error_of(lambda: check_content_type(Headers())),
    ]


def check_content_type(headers: Headers) -> None:
    """application/json in UTF-8, said once, and not compressed. Parameters other than charset say nothing of a JSON
    text (RFC 8259, section 11) and are passed over. application/vnd.api+json and its like are other formats."""
    sent = headers.getlist("content-type")
    trouble = media_trouble(sent[0]) if len(sent) == 1 else "send it once" if sent else ""
    if trouble is not None:
        was = " and ".join(shown(value) for value in sent) or "missing"
        allowed = "it must be application/json, with charset=utf-8 or none"
        raise UnsupportedMedia("; ".join(filter(None, (f"the header Content-Type is {was}", trouble, allowed))))
    coding = headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise UnsupportedMedia(f"the header Content-Encoding is {shown(coding)}; send the body as it is, without one")


def media_trouble(sent: str) -> str | None:
    """What is wrong with one Content-Type, "" where it goes without saying; None for JSON in UTF-8."""
    if len(sent) > LONGEST_MEDIA:
        return f"it has {len(sent)} characters, at most {LONGEST_MEDIA} are allowed"
    message = Message()
    message["content-type"] = sent
    (media, _), *parameters = message.get_params(failobj=[("", "")])
    if media.lower() == "application/x-www-form-urlencoded":
        return "curl sends that with -d unless it is told -H 'Content-Type: application/json'"
    if media.lower() != "application/json":
        return ""
    charsets = [value for name, value in parameters if name.lower() == "charset"]
    other = next((value for value in charsets if str(value).lower() not in ("utf-8", "utf8")), None)
    return None if other is None else f"the charset {shown(other)} is not allowed"


async def take_body(
    request: Request,
    life: Life,
    settings: Settings,
    admission: Admission,
    preparer: Preparer,
    room: Callable[[], None],
    prepare: Callable[[bytes], T],
) -> T:
    """From the first byte of a body to what `prepare` makes of it in a thread. The body is let go here: what an answer
    needs of it is in what was made.

    room: asked again once the body is whole; raises QueueFull if there is none.
    """
    with admission.arriving() as arrival:
        most = min(settings.max_body_bytes, settings.max_queued_bytes)
        body = await read_body(request, most, settings.body_seconds, arrival.grow)
        room()
        life.is_whole(request.receive)
        life.is_small = len(body) <= SHORT_BODY
        return await preparer.prepare(len(body), lambda: prepare(body))


async def read_body(
    request: Request, most: int, seconds: float, grown: Callable[[int], None] = lambda size: None
) -> bytes:
    """The body, if it is no longer than `most` bytes, as announced and as received, and whole within `seconds`.

    grown: told the size of what has come, whenever more has; what it raises ends the reading.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > most):
        raise BodyTooLarge.as_announced(announced[:18], most)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > most:
                    raise BodyTooLarge.as_received(most)
                grown(len(body))
    except TimeoutError:
        raise TooSlow.of_body(seconds, len(body)) from None
    return bytes(body)
