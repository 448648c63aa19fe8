"""No token, key or passport leaves the server: everything it emits is collected, and searched.

Searched are answers, log records of every logger at DEBUG with their arguments and tracebacks, standard output and
error, the requests' records, the exceptions themselves with their chains, and what is remembered. Every outcome is
brought about first, and a fault of ours too.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import traceback
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from starlette.datastructures import Headers

from gnomon.http.auth import Authenticator
from gnomon.http.identity.client import IdentityService
from gnomon.http.settings import AuthMode, AuthSettings
from helpers.auth_app import AUDIENCE, CHALLENGES, AuthApp, auth_app, settings_for
from helpers.forge import b64
from helpers.identity import FakeIdentity, FakeTime
from helpers.loopback import answer, drop, status

KEY = "sk-" + "Zz9".join("abcdefgh")


class Everything(logging.Handler):
    """Whatever is logged, by whomever, in words and in parts."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.said: list[str] = []
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.said += [self.format(record), repr(record.__dict__)]


@pytest.fixture
def everything() -> Iterator[Everything]:
    root, handler = logging.getLogger(), Everything()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


async def raised_by(authenticator: Authenticator, field: str) -> list[str]:
    """The exception that refuses, and every other in its chain, as a debugger's user would see them."""
    try:
        await authenticator.authenticate(Headers({"authorization": field}))
    except Exception as error:
        chain: list[BaseException | None] = [error, error.__cause__, error.__context__]
        return [*traceback.format_exception(error), *(f"{one!r} {one} {getattr(one, 'args', '')}" for one in chain)]
    return []


def seen(at: AuthApp, field: str) -> list[str]:
    """What comes of a field, before the authentication and behind it."""
    response = at.call(field)
    return [response.text, str(response.headers), repr(at.records[-1]), *at.run(raised_by(at.authenticator, field))]


def spellings(secret: str) -> set[str]:
    """The secret and what would give it away; its digest too, but for the eight digits that are its name."""
    digest = hashlib.sha256(secret.encode())
    return {
        secret,
        quote(secret),
        b64(secret.encode()),
        base64.b64encode(secret.encode()).decode().rstrip("="),
        secret.encode().hex(),
        digest.hexdigest()[:12],
        *(part for part in secret.split(".")[1:] if len(part) > 15),
    }


def check_nothing_leaks(said: list[str], secrets: list[str]) -> None:
    text = "\n".join(said)
    for secret in secrets:
        assert not [spelling for spelling in spellings(secret) if spelling in text]


@pytest.mark.parametrize("mode", [AuthMode.exchange, AuthMode.userinfo, AuthMode.jwks])
def test_no_token_and_no_passport_leaves_in_any_other_way(
    mode: AuthMode,
    identity: FakeIdentity,
    time: FakeTime,
    everything: Everything,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signed = identity.sign(
        {"iss": identity.issuer, "aud": AUDIENCE, "sub": "ada", "iat": identity.now, "exp": identity.now + 60},
        typ="at+jwt",
    )
    tokens = {
        "service": identity.service_token(),
        "old form": identity.service_token("sa-2", legacy=True),
        "no organization": identity.user_token("bob@example.org"),
        "system": identity.system_token(),
        "refresh": identity.refresh_token(),
        "ID token": identity.id_token(),
        "expired": identity.service_token("sa-3", lifetime=0),
        "signed": signed,
        "badly signed": signed[:-9] + "A" * 9,
        "by an unknown key": identity.sign({"iss": identity.issuer}, kid="unknown", typ="at+jwt"),
        "cut": identity.service_token("sa-4")[:-5] + ".",
    }
    away, faulty = identity.service_token("sa-5"), identity.service_token("sa-6")
    if mode is AuthMode.jwks:  # a key that may be a new one, and a token that is opened
        away, faulty = identity.sign({"iss": identity.issuer}, kid="another", typ="at+jwt"), signed
    said: list[str] = []
    with auth_app(settings_for(identity, mode, max_token_bytes=3000), time) as at:
        for token in tokens.values():
            for field in (
                f"Bearer {token}",
                f"Basic {token}",
                f"Bearer {token}é",
                f"Bearer {token * 4}",
                f"bearer\t{token}",
            ):
                said += seen(at, field)
        said += [at.call(f"Bearer {signed}", f"Bearer {token}").text for token in tokens.values()]
        endpoints = ("token", "userinfo", "jwks")
        for fault in (status(500), drop, answer(b"<html>"), answer(away.encode()), answer(b"", 302, location="/x")):
            identity.instead = dict.fromkeys(endpoints, fault)
            time.now += 400
            said += seen(at, f"Bearer {away}")
        identity.instead = {}

        def broken(*arguments: object) -> None:
            raise ZeroDivisionError("a fault of ours")

        for name in ("exchange", "userinfo"):
            monkeypatch.setattr(IdentityService, name, broken)
        monkeypatch.setattr("gnomon.http.identity.bearer.verify_token", broken)
        said += seen(at, f"Bearer {faulty}")
        assert "ZeroDivisionError" in "".join(said), "the fault was not met"
        outcomes = {record.auth for record in at.records}
        said += [repr(vars(at.tokens)), repr(at.tokens.accepted._entries), repr(at.tokens.refused._entries)]
    assert outcomes >= (set(CHALLENGES) | {"accepted"}) - ({"forbidden"} if mode is AuthMode.jwks else set())
    printed = capfd.readouterr()
    said += [*everything.said, printed.out, printed.err]
    assert any("httpcore" in line for line in everything.said), "nothing of the network was logged"
    assert (identity.issued != []) == (mode is AuthMode.exchange)
    check_nothing_leaks(said, [*tokens.values(), away, faulty, *identity.issued])


def test_no_key_leaves_in_any_other_way(everything: Everything, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    settings = AuthSettings(mode=AuthMode.api_key, api_keys=(KEY,))
    with auth_app(settings) as at:
        for field in (f"Bearer {KEY}", f"Bearer {KEY}x", f"Basic {KEY}", f"Bearer {KEY} {KEY}", f"Bearer {KEY * 999}"):
            said += seen(at, field)
        said += [at.call(f"Bearer {KEY}", f"Bearer {KEY}").text]
        said += [repr(settings), repr(vars(at.authenticator))]
        assert {record.auth for record in at.records} == {"accepted", "invalid", "missing", "malformed"}
    printed = capfd.readouterr()
    check_nothing_leaks([*said, *everything.said, printed.out, printed.err], [KEY, KEY + "x"])


def test_the_search_finds_what_it_is_told_to_find(everything: Everything) -> None:
    logging.getLogger("anywhere").debug("told %s", KEY)
    with pytest.raises(AssertionError):
        check_nothing_leaks(everything.said, [KEY])
    with pytest.raises(AssertionError):
        check_nothing_leaks([hashlib.sha256(KEY.encode()).hexdigest()], [KEY])


def test_a_refusal_keeps_no_frame_of_those_who_were_refused(identity: FakeIdentity, time: FakeTime) -> None:
    """An exception that is kept would keep its traceback, and the frames in it would keep their tokens."""
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:
        token = identity.refresh_token()
        for _ in range(3):
            at.show(token)
        kept = [value for _, value in at.tokens.refused._entries.values()]
        assert [(one.__traceback__, one.__context__, one.__cause__) for one in kept] == [(None, None, None)]


def test_asyncios_own_debug_mode_tells_no_token(
    identity: FakeIdentity, time: FakeTime, everything: Everything, capfd: pytest.CaptureFixture[str]
) -> None:
    """It logs coroutines and callbacks by their repr."""
    token = identity.service_token()
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:

        async def scene() -> None:
            loop = asyncio.get_running_loop()
            loop.set_debug(True)
            loop.slow_callback_duration = 0  # everything is slow: everything is logged
            await at.send(f"Bearer {token}")
            loop.set_debug(False)

        at.run(scene())
    printed = capfd.readouterr()
    assert any("Executing" in line for line in everything.said)
    check_nothing_leaks([*everything.said, printed.out, printed.err], [token])
