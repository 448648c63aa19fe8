"""The auth test app: a tiny application behind the errors' form and the authentication, as a client sees it.

A test drives the one event loop, so what goes on in the background goes on while a request, or `until`, is awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, TypeVar

import httpx
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gnomon.http.auth import Authentication, Authenticator, authenticator
from gnomon.http.errors import ErrorForm
from gnomon.http.identity.bearer import BearerTokens
from gnomon.http.identity.principal import Principal, principal_of
from gnomon.http.observe.record import Record, record_of
from gnomon.http.settings import AuthMode, AuthSettings
from helpers.certificate import any_authority
from helpers.identity import FakeIdentity, FakeTime

T = TypeVar("T")

OPEN = frozenset({"/livez"})
AUDIENCE = "gnomon.example"
CHALLENGES = {
    "missing": (401, "Bearer", None),
    "invalid": (401, 'Bearer error="invalid_token"', "invalid_token"),
    "malformed": (400, 'Bearer error="invalid_request"', "invalid_request"),
    "forbidden": (403, 'Bearer error="insufficient_scope"', "insufficient_scope"),
    "unavailable": (503, None, "identity_unavailable"),
}
"""Outcome → status, WWW-Authenticate and code."""


async def whoami(request: Request) -> Response:
    """Answers with the caller; the body is not read."""
    return JSONResponse(asdict(principal_of(request.scope)))


class Recorder:
    """Keeps the record of every request, as the access log will."""

    def __init__(self, app: ASGIApp, records: list[Record]) -> None:
        self.app, self.records = app, records

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.records.append(record_of(scope))
        await self.app(scope, receive, send)


class AuthApp:
    def __init__(self, authenticator: Authenticator, runner: asyncio.Runner) -> None:
        self.authenticator = authenticator
        self.runner = runner
        self.records: list[Record] = []
        inner = Starlette(
            routes=[Route(path, whoami, methods=["GET", "POST"]) for path in ("/v1/completions", "/livez")]
        )
        self.app = Recorder(ErrorForm(Authentication(inner, authenticator, OPEN)), self.records)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://gnomon", headers={"accept": "*/*"}
        )

    @property
    def tokens(self) -> BearerTokens:
        assert isinstance(self.authenticator, BearerTokens)
        return self.authenticator

    async def send(self, *fields: str | bytes, path: str = "/v1/completions", **options: Any) -> httpx.Response:
        """A request with these Authorization fields."""
        lines = [(b"authorization", one if isinstance(one, bytes) else one.encode()) for one in fields]
        return await self.client.request(
            options.pop("method", "POST"), path, headers=[*lines, *options.pop("headers", [])], **options
        )

    def call(self, *fields: str | bytes, **options: Any) -> httpx.Response:
        return self.run(self.send(*fields, **options))

    def show(self, token: str, **options: Any) -> httpx.Response:
        return self.call(f"Bearer {token}", **options)

    def outcome(self, token: str) -> str:
        """The word for what came of the token, after the whole answer was checked against it."""
        return self.checked(self.show(token))

    def checked(self, response: httpx.Response) -> str:
        word = self.records[-1].auth
        assert word is not None
        check_answer(response, word)
        return word

    def together(self, tokens: Sequence[str]) -> list[httpx.Response]:
        async def all_of_them() -> list[httpx.Response]:
            return await asyncio.gather(*(self.send(f"Bearer {token}") for token in tokens))

        return self.run(all_of_them())

    def authenticate(self, token: str) -> Principal:
        return self.run(self.authenticator.authenticate(Headers({"authorization": f"Bearer {token}"})))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def until(self, condition: Callable[[], bool]) -> None:
        async def wait() -> None:
            async with asyncio.timeout(10):
                while not condition():
                    await asyncio.sleep(0.002)

        self.run(wait())


def check_answer(response: httpx.Response, word: str) -> None:
    """An answer as the outcome has it: status, challenge, code and form; one sentence for each outcome."""
    if word in ("accepted", "off"):
        assert response.status_code == 200, response.text
        return
    code, challenge, error = CHALLENGES[word]
    assert response.status_code == code, (word, response.text)
    assert response.headers.get("www-authenticate") == challenge
    assert ("retry-after" in response.headers) == (code == 503)
    body = response.json()["error"]
    assert list(body) == ["message", "type", "param", "code"]
    assert (body["code"], body["param"]) == (error, None)
    assert body["type"] == ("server_error" if code == 503 else "invalid_request_error")


@contextmanager
def auth_app(settings: AuthSettings, time: FakeTime | None = None, ready: bool = True) -> Iterator[AuthApp]:
    """An app whose authenticator has begun; ready: and has seen all that it needs."""
    with asyncio.Runner() as runner:
        opened = AuthApp(authenticator(settings, (time or FakeTime()).clock()), runner)
        runner.run(opened.authenticator.start())
        try:
            if ready:
                opened.until(lambda: opened.authenticator.ready)
            yield opened
        finally:
            runner.run(opened.authenticator.stop())


def settings_for(identity: FakeIdentity, mode: AuthMode, **more: Any) -> AuthSettings:
    """Settings under which the fake service is asked; a time limit that a busy machine keeps."""
    base = AuthSettings(
        mode=mode,
        issuer=identity.issuer,
        audience=None if mode is AuthMode.userinfo else AUDIENCE,
        allow_http_issuer=True,
        http_seconds=10,
        ca_file=any_authority(),
    )
    return replace(base, **more)
