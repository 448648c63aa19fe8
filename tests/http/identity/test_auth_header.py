"""What may be written into an Authorization header, and what is asked of nobody: through the middleware, and on a wire.

The same table in every mode that reads a credential: KEY is replaced by one that is valid there.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from starlette.types import Message, Receive, Scope, Send

from gnomon.http.auth import Authentication, authenticator
from gnomon.http.identity.refusals import Missing
from gnomon.http.settings import AuthMode, AuthSettings
from helpers.auth_app import AuthApp, auth_app, settings_for
from helpers.forge import b64, junk, raw
from helpers.identity import FakeIdentity, FakeTime, served_identity
from helpers.loopback import loopback

API_KEY = "key-" + "k" * 30
API = AuthSettings(mode=AuthMode.api_key, api_keys=(API_KEY,))

FIELDS: dict[str, tuple[list[bytes], str]] = {
    "no field": ([], "missing"),
    "an empty field": ([b""], "missing"),
    "only spaces": ([b"   "], "missing"),
    "the scheme alone": ([b"Bearer"], "invalid"),
    "the scheme and a space": ([b"Bearer "], "invalid"),
    "the credential alone": ([b"KEY"], "missing"),
    "Basic": ([b"Basic KEY"], "missing"),
    "Token": ([b"Token KEY"], "missing"),
    "JWT": ([b"JWT KEY"], "missing"),
    "Negotiate": ([b"Negotiate KEY"], "missing"),
    "a scheme that begins like ours": ([b"BearerX KEY"], "missing"),
    "a scheme that ends like ours": ([b"XBearer KEY"], "missing"),
    "a space before the scheme": ([b" Bearer KEY"], "missing"),
    "small letters": ([b"bearer KEY"], "accepted"),
    "capitals": ([b"BEARER KEY"], "accepted"),
    "mixed letters": ([b"bEaReR KEY"], "accepted"),
    "two spaces": ([b"Bearer  KEY"], "accepted"),
    "a tab": ([b"Bearer\tKEY"], "invalid"),
    "a space and a tab": ([b"Bearer \tKEY"], "invalid"),
    "no space": ([b"BearerKEY"], "missing"),
    "a colon": ([b"Bearer: KEY"], "invalid"),
    "an equals sign": ([b"Bearer =KEY"], "invalid"),
    "padding": ([b"Bearer KEY="], "invalid"),
    "a space at the end": ([b"Bearer KEY "], "invalid"),
    "quotes": ([b'Bearer "KEY"'], "invalid"),
    "brackets": ([b"Bearer <KEY>"], "invalid"),
    "two tokens": ([b"Bearer KEY KEY"], "invalid"),
    "two tokens and a comma": ([b"Bearer KEY,KEY"], "invalid"),
    "two credentials in one field": ([b"Bearer KEY, Bearer KEY"], "invalid"),
    "two schemes": ([b"Bearer Bearer KEY"], "invalid"),
    "another scheme behind a comma": ([b"Basic eDp5, Bearer KEY"], "missing"),
    "twice the same field": ([b"Bearer KEY", b"Bearer KEY"], "malformed"),
    "the good field first": ([b"Bearer KEY", b"Bearer other"], "malformed"),
    "the good field last": ([b"Bearer other", b"Bearer KEY"], "malformed"),
    "a good field and an empty one": ([b"Bearer KEY", b""], "malformed"),
    "a good field and a Basic one": ([b"Basic eDp5", b"Bearer KEY"], "malformed"),
    "two empty fields": ([b"", b""], "malformed"),
    "CR LF in the token": ([b"Bearer KEY\r\nX-Admin: 1"], "invalid"),
    "LF at the end": ([b"Bearer KEY\n"], "invalid"),
    "CR before the token": ([b"Bearer \rKEY"], "invalid"),
    "NUL at the end": ([b"Bearer KEY\0"], "invalid"),
    "NUL in the scheme": ([b"Bear\0er KEY"], "missing"),
    "DEL": ([b"Bearer KEY\x7f"], "invalid"),
    "Latin-1": ([b"Bearer KEY\xe9"], "invalid"),
    "UTF-8": (["Bearer KEYé".encode()], "invalid"),
    "a non-breaking space": ([b"Bearer\xa0KEY"], "invalid"),
    "full-width letters": (["Ｂｅａｒｅｒ KEY".encode()], "missing"),
    "a long s for the s of no scheme": (["Baſic KEY".encode()], "missing"),
    "the Kelvin sign": (["Bearer KEY\u212a".encode()], "invalid"),
}


@contextmanager
def door_of(mode: AuthMode, identity: FakeIdentity, time: FakeTime) -> Iterator[tuple[AuthApp, str]]:
    """An app, and a credential that it takes."""
    settings = API if mode is AuthMode.api_key else settings_for(identity, mode)
    with auth_app(settings, time) as opened:
        yield opened, API_KEY if mode is AuthMode.api_key else identity.service_token()


MODES = (AuthMode.api_key, AuthMode.userinfo)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FIELDS)
def test_a_credential_is_one_word_behind_one_bearer_in_one_field(
    name: str, mode: AuthMode, identity: FakeIdentity, time: FakeTime
) -> None:
    fields, expected = FIELDS[name]
    with door_of(mode, identity, time) as (at, credential):
        response = at.call(*(field.replace(b"KEY", credential.encode()) for field in fields))
        assert at.checked(response) == expected
        if expected != "accepted":
            assert identity.calls["userinfo"] == 0
            assert credential not in response.text + str(response.headers)


@pytest.mark.parametrize("over", [0, 1])
def test_a_credential_may_be_as_long_as_the_limit_and_no_longer(over: int) -> None:
    key = "k" * 40
    settings = AuthSettings(mode=AuthMode.api_key, api_keys=(key,), max_token_bytes=40)
    with auth_app(settings) as at:
        assert at.outcome(key + over * "k") == ("malformed" if over else "accepted")


@pytest.mark.parametrize("over", [0, 1])
def test_an_oversize_token_is_refused_before_anything_is_asked(
    over: int, identity: FakeIdentity, time: FakeTime
) -> None:
    token = identity.service_token()
    settings = settings_for(identity, AuthMode.userinfo, max_token_bytes=len(token) - over)
    with auth_app(settings, time) as at:
        assert at.outcome(token) == ("malformed" if over else "accepted")
        assert identity.calls["userinfo"] == 1 - over


def test_megabytes_are_refused_like_one_byte_too_many() -> None:
    with auth_app(API) as at:
        assert at.checked(at.call(b"Bearer " + b"k" * 2**20)) == "malformed"
        assert at.checked(at.call(b"Bearer " + b" " * 2**20)) == "invalid"


ELSEWHERE = {
    "query": {"params": {"access_token": API_KEY}},
    "form": {"data": {"access_token": API_KEY}},
    "JSON body": {"json": {"access_token": API_KEY}},
    "cookie": {"headers": [(b"cookie", b"access_token=" + API_KEY.encode())]},
    "x-api-key": {"headers": [(b"x-api-key", API_KEY.encode())]},
    "proxy-authorization": {"headers": [(b"proxy-authorization", b"Bearer " + API_KEY.encode())]},
    "x-forwarded-authorization": {"headers": [(b"x-forwarded-authorization", b"Bearer " + API_KEY.encode())]},
    "user name in the address": {"headers": [(b"host", f"{API_KEY}@gnomon".encode())]},
}


@pytest.mark.parametrize("place", ELSEWHERE)
def test_a_credential_counts_nowhere_else_than_in_its_header(place: str) -> None:
    with auth_app(API) as at:
        assert at.checked(at.call(**ELSEWHERE[place])) == "missing"  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "BREW"])
def test_no_method_goes_round_the_authentication(method: str) -> None:
    preflight = [(b"origin", b"https://example.org"), (b"access-control-request-method", b"POST")]
    with auth_app(API) as at:
        response = at.call(method=method, headers=preflight)
        assert response.status_code == 401
        assert at.records[-1].auth == "missing"


SHAPES = {
    "one word": "token",
    "an empty header": f".{b64(b'{}')}.{b64(b'x')}",
    "two segments": junk({"alg": "ES512"}, 2),
    "four segments": junk({"alg": "ES512"}, 4),
    "four segments with enc": junk({"alg": "A256GCMKW", "enc": "A256GCM"}, 4),
    "six segments": junk({"alg": "A256GCMKW", "enc": "A256GCM"}, 6),
    "only dots, signed": "..",
    "only dots, encrypted": "....",
    "a dot too many at the end": junk({"alg": "ES512"}, 3) + ".",
    "enc with three segments": junk({"alg": "ES512", "enc": "A256GCM"}, 3),
    "no enc with five": junk({"alg": "A256GCMKW"}, 5),
    "no alg with three": junk({"kid": "a"}, 3),
    "no alg with five": junk({"enc": "A256GCM"}, 5),
    "alg a number": junk({"alg": 512}, 3),
    "alg null": junk({"alg": None}, 3),
    "alg a list": junk({"alg": ["ES512"]}, 3),
    "alg empty": junk({"alg": ""}, 3),
    "alg with a line end": junk({"alg": "ES512\n"}, 3),
    "enc a number": junk({"alg": "A256GCMKW", "enc": 1}, 5),
    "enc empty": junk({"alg": "A256GCMKW", "enc": ""}, 5),
    "enc null with three": junk({"alg": "ES512", "enc": None}, 3),
    "alg twice": junk(b'{"alg":"none","alg":"ES512"}', 3),
    "enc twice": junk(b'{"alg":"A256GCMKW","enc":"A256GCM","enc":"A256GCM"}', 5),
    "a nested member twice": junk(b'{"alg":"ES512","jwk":{"x":1,"x":2}}', 3),
    "a header that is a list": junk(b'["alg"]', 3),
    "a header that is a string": junk(b'"alg"', 3),
    "a header that is null": junk(b"null", 3),
    "a header that is no JSON": junk(b"{alg:ES512}", 3),
    "a header with something behind it": junk(b'{"alg":"ES512"}{}', 3),
    "a header with NaN": junk(b'{"alg":"ES512","x":NaN}', 3),
    "a header with Infinity": junk(b'{"alg":"ES512","x":-Infinity}', 3),
    "a header with a number of 5,000 digits": junk(b'{"alg":"ES512","x":' + b"1" * 5000 + b"}", 3),
    "a header in UTF-16": junk('{"alg":"ES512"}'.encode("utf-16"), 3),
    "a header with a byte order mark": junk('\ufeff{"alg":"ES512"}'.encode(), 3),
    "a header of invalid UTF-8": junk(b'{"alg":"ES512\xff"}', 3),
    "a header nested 5,000 deep": junk(b'{"alg":' + b"[" * 2500 + b"]" * 2500 + b"}", 3),
    "standard base64": "+/" + junk({"alg": "ES512"}, 3),
    "padded": junk({"alg": "ES512"}, 3) + "==",
    "a segment of an impossible length": junk({"alg": "ES512"}, 2) + ".abcde",
    "a segment with bits to spare": junk({"alg": "ES512"}, 2) + ".ab",
    "percent-encoded dots": junk({"alg": "ES512"}, 3).replace(".", "%2E"),
    "an empty payload": f"{b64(raw({'alg': 'ES512'}))}..{b64(b'x')}",
    "an empty signature": f"{b64(raw({'alg': 'none'}))}.{b64(b'{}')}.",
    "an empty key and an empty tag": f"{b64(raw({'alg': 'dir', 'enc': 'A256GCM'}))}..{b64(b'x')}.{b64(b'x')}.",
    "an empty initial vector": f"{b64(raw({'alg': 'dir', 'enc': 'A256GCM'}))}...{b64(b'x')}.{b64(b'x')}",
}


@pytest.fixture(scope="module", params=[AuthMode.exchange, AuthMode.userinfo, AuthMode.jwks])
def lasting(request: pytest.FixtureRequest) -> Iterator[tuple[AuthApp, FakeIdentity]]:
    """One app for a whole table of refusals."""
    with served_identity() as identity, auth_app(settings_for(identity, request.param), identity.time) as at:
        yield at, identity


@pytest.mark.parametrize("name", SHAPES)
def test_what_has_not_the_shape_of_a_token_is_refused_without_a_question(
    name: str, lasting: tuple[AuthApp, FakeIdentity]
) -> None:
    at, identity = lasting
    before = len(identity.seen)
    assert at.outcome(SHAPES[name]) == "invalid"
    assert len(identity.seen) == before


def test_a_password_based_token_of_a_billion_rounds_is_never_worked_on(identity: FakeIdentity, time: FakeTime) -> None:
    """The service may do what it likes with it; here it would take minutes, and it takes no time."""
    token = junk({"alg": "PBES2-HS512+A256KW", "enc": "A256GCM", "p2s": b64(b"salt"), "p2c": 10**9}, 5)
    with auth_app(settings_for(identity, AuthMode.jwks), time) as at:
        assert at.outcome(token) == "invalid"
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:
        assert at.outcome(token) == "invalid"
        assert identity.calls["userinfo"] == 1  # it was the service that refused it


# ---- the middleware


@pytest.mark.parametrize("fields", [(), ("Bearer no-key-of-ours",), ("Basic eDp5",), ("Bearer a", "Bearer b")])
def test_an_open_path_asks_nobody(fields: tuple[str, ...]) -> None:
    with auth_app(API) as at:
        response = at.call(*fields, path="/livez")
        assert response.status_code == 200
        assert response.json()["subject"] == "anyone"
        assert at.records[-1].auth is None


@pytest.mark.parametrize(
    "path", ["/livez/", "//livez", "/LIVEZ", "/livez;a=b", "/livez%00", "/./livez", "/livez/../v1", "/"]
)
def test_a_path_that_resembles_an_open_one_is_not_open(path: str) -> None:
    refused_untouched(path)


def test_no_body_is_read_before_the_caller_is_known_and_the_middleware_answers_nothing() -> None:
    refused_untouched("/v1/completions")


def refused_untouched(path: str) -> None:
    """Without a token: nothing is read, nothing answered, and nothing behind the middleware is reached."""
    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}

    async def unreached(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("let through")

    async def silent() -> Message:
        raise AssertionError("read")

    async def unheard(message: Message) -> None:
        raise AssertionError("answered")

    middleware = Authentication(unreached, authenticator(API), frozenset({"/livez"}))
    with pytest.raises(Missing):
        asyncio.run(middleware(scope, silent, unheard))


def test_a_lifespan_goes_through() -> None:
    reached = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["type"])

    async def silent() -> Message:
        return {"type": "lifespan.startup"}

    async def unheard(message: Message) -> None:
        raise AssertionError("answered")

    asyncio.run(Authentication(inner, authenticator(API), frozenset())({"type": "lifespan"}, silent, unheard))
    assert reached == ["lifespan"]


def test_record_and_scope_tell_the_caller_by_a_digest() -> None:
    with auth_app(API) as at:
        caller = at.show(API_KEY).json()
        assert len(caller["digest"]) == 8
        assert at.records[-1].caller == caller["digest"]
        at.show("another-key-of-nobody")
        assert at.records[-1].caller not in (None, caller["digest"])
        at.call()
        assert at.records[-1].caller is None


# ---- on a wire

WIRE = {
    "one field": (b"Authorization: Bearer KEY\r\n", 200),
    "a name in small letters": (b"authorization: Bearer KEY\r\n", 200),
    "two fields": (b"Authorization: Bearer KEY\r\nauthorization: Bearer KEY\r\n", 400),
    "another behind the first": (b"Authorization: Basic eDp5\r\nAuthorization: Bearer KEY\r\n", 400),
    "NUL": (b"Authorization: Bearer KEY\0\r\n", 400),
    "a bare LF ends a line": (b"Authorization: Bearer KEY\nX: y\r\n", 200),
    "a bare CR": (b"Authorization: Bearer KEY\rX: y\r\n", 400),
    "a space before the colon": (b"Authorization : Bearer KEY\r\n", 400),
    "non-ASCII": (b"Authorization: Bearer KEY\xff\r\n", 401),
    "an underscore for nothing": (b"Authori_zation: Bearer KEY\r\n", 401),
    "a header in the trailer": (b"Transfer-Encoding: chunked\r\n", 401),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WIRE)
def test_on_the_wire_a_header_is_what_the_middleware_takes_it_for(name: str) -> None:
    lines, expected = WIRE[name]
    lines = lines.replace(b"KEY", API_KEY.encode())
    body = b"0\r\nAuthorization: Bearer " + API_KEY.encode() + b"\r\n\r\n" if b"chunked" in lines else b""
    with loopback() as served, auth_app(API) as at:
        served.app = at.app
        address = urlsplit(served.base)
        with socket.create_connection((str(address.hostname), address.port or 0), timeout=10) as client:
            client.sendall(b"GET /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + lines + b"\r\n" + body)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
    head = answer.split(b"\r\n\r\n")[0]
    assert head.startswith(b"HTTP/1.1 %d " % expected), head
    assert API_KEY.encode() not in answer
