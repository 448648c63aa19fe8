"""Every answer that is not a 200, in the API's form (LAW.md, section 12).

    RequestError      knows its status and its four members; below are those that only HTTP can raise
    ErrorForm         the middleware that turns whatever is raised inside it into an answer: what is not a RequestError
                      is a fault of ours, logged with its cause, and the client is told nothing of it
    unknown_route     what Starlette's router raises for an unknown path or method

Where an error after the first byte of a stream goes is decided in completions.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Self

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gnomon.http.paths import meant
from gnomon.http.schema.route import DescribedRoute
from gnomon.http.threads import NoThread
from gnomon.reference.body.shown import shown
from gnomon.reference.errors import RequestError
from gnomon.reference.response import json_bytes

logger = logging.getLogger("gnomon.http")


class HttpError(RequestError):
    """An error that HTTP itself knows, with the headers that belong to it."""

    type = "invalid_request_error"
    headers: Mapping[str, str] = {}


class NotFound(HttpError):
    status = 404


class PathNotFound(NotFound):
    def __init__(self, path: str, instead: str) -> None:
        super().__init__(f"no such path: {shown(path)}; {instead}")


class MethodNotAllowed(HttpError):
    status = 405

    def __init__(self, method: str, path: str, allowed: str) -> None:
        super().__init__(f"{shown(method)} is no method of {shown(path)}; it has {allowed}")
        self.headers = {"Allow": allowed}


class BodyTooLarge(HttpError):
    status = 413

    @classmethod
    def as_announced(cls, size: str, most: int) -> Self:
        return cls(f"the body has {size} bytes; at most {most} are allowed")

    @classmethod
    def as_received(cls, most: int) -> Self:
        return cls(f"the body has more than the {most} bytes that are allowed")


class UnsupportedMedia(HttpError):
    status = 415


class Unauthorized(HttpError):
    """401. `error` is the challenge's code (RFC 6750, section 3.1); None where no token was sent at all."""

    status = 401

    def __init__(self, message: str, error: str | None = "invalid_token") -> None:
        super().__init__(message, code=error)
        challenge = "Bearer" if error is None else f'Bearer error="{error}"'
        self.headers = {"WWW-Authenticate": challenge}


class Forbidden(HttpError):
    """403: we know who it is, and the answer is no."""

    status = 403

    def __init__(self, message: str) -> None:
        super().__init__(message, code="insufficient_scope")
        self.headers = {"WWW-Authenticate": 'Bearer error="insufficient_scope"'}


class BadAuthorization(HttpError):
    """400: two Authorization fields, or a token beyond any size."""

    status = 400

    def __init__(self, message: str) -> None:
        super().__init__(message, code="invalid_request")
        self.headers = {"WWW-Authenticate": 'Bearer error="invalid_request"'}


class MalformedRequest(HttpError):
    """400: not HTTP, or HTTP whose end is in doubt."""

    status = 400
    headers: Mapping[str, str] = {"Connection": "close"}


class UnknownCoding(HttpError):
    status = 501
    type = "server_error"
    headers: Mapping[str, str] = {"Connection": "close"}


class UnknownVersion(HttpError):
    status = 505
    type = "server_error"
    headers: Mapping[str, str] = {"Connection": "close"}


class TooSlow(HttpError):
    """408: the request was not whole in time."""

    status = 408
    headers: Mapping[str, str] = {"Connection": "close"}

    @classmethod
    def of_head(cls, seconds: float) -> Self:
        return cls(f"the request's headers were not whole within {seconds:g} seconds")

    @classmethod
    def of_body(cls, seconds: float, size: int) -> Self:
        return cls(f"the body was not whole after {seconds:g} seconds; {size} bytes had come")


class HeadersTooLarge(HttpError):
    status = 431
    headers: Mapping[str, str] = {"Connection": "close"}

    @classmethod
    def in_bytes(cls, size: int, most: int) -> Self:
        return cls(f"the request line and headers have {size} bytes or more; at most {most} are allowed")

    @classmethod
    def in_fields(cls, fields: int, most: int) -> Self:
        return cls(f"the request has {fields} header fields; at most {most} are allowed")


class QueueFull(HttpError):
    """429: waiting cures it, and we say how long."""

    status = 429

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message, code="queue_full")
        self.headers = {"Retry-After": str(retry_after)}

    @classmethod
    def of_requests(cls, most: int, retry_after: int) -> Self:
        return cls(f"the queue is full, with {most} waiting; send the request again later", retry_after)

    @classmethod
    def of_traces(cls, under_way: int, retry_after: int) -> Self:
        return cls(f"{under_way} traces are under way; send the request again later", retry_after)


class Unavailable(HttpError):
    """503: not now."""

    status = 503
    type = "server_error"

    def __init__(self, message: str, code: str, retry_after: int = 1) -> None:
        super().__init__(message, code=code)
        self.headers = {"Retry-After": str(retry_after)}


class Draining(Unavailable):
    def __init__(self) -> None:
        super().__init__("the server is draining, since it is to end; send the request again", "draining")


class ServerFailed(RequestError):
    """500: a fault of ours, of which the client is told nothing; the log has its cause."""

    def __init__(self) -> None:
        super().__init__("the server failed to answer this request; its log has the cause")


def as_request_error(error: Exception) -> RequestError:
    """The error to answer with. A fault of ours goes to the log, with its cause unless it has a message of its own."""
    if isinstance(error, NoThread):
        logger.warning("a request was refused, since the system starts no further thread: %s", error)
        return Unavailable("the system has no thread left for this request; send it again", "too_busy")
    if isinstance(error, RequestError):
        if error.status == 500:
            logger.error("%s", error.message)
        return error
    logger.error("a request failed", exc_info=error)
    return ServerFailed()


def let_go(error: Exception) -> None:
    """To be called once an error has been told. An error knows the frames that it came through, and one of them knows
    the error: the request that they hold would live on until the next collection of garbage."""
    error.__traceback__ = error.__context__ = error.__cause__ = None


def response(error: RequestError) -> Response:
    headers = error.headers if isinstance(error, HttpError) else None
    return Response(json_bytes(error.to_json()), error.status, headers, media_type="application/json")


class ErrorForm:
    """Answers for whatever is raised inside it. An answer that has already begun can only be broken off."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except ClientDisconnect:
            pass  # went away before its request was complete: nobody to answer
        except Exception as error:
            if begun:
                raise
            told = response(as_request_error(error))
            let_go(error)
            await told(scope, receive, send)


async def unknown_route(request: Request, error: Exception) -> Response:
    """The router's 404 and 405, in the API's form. The path is the scope's: a URL would need a sound Host header."""
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow")
    if allowed is not None:
        allowed = ", ".join(sorted(allowed.split(", ")))
        return response(MethodNotAllowed(request.method, request.scope["path"], allowed))
    return response(no_such_path(request))


def no_such_path(request: Request) -> NotFound:
    routes = {route.path_format: str(route) for route in request.app.routes if isinstance(route, DescribedRoute)}
    path = request.scope["path"]
    instead = meant(path, routes) or f"this server has {', '.join(routes.values())}"
    return PathNotFound(path, instead)
