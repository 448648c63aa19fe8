"""The identity service as it should not be: away, slow, lying, rotated; and what the server does while it is.

Whatever is not a definite word on the token is a 503 and is not remembered, so that the next request works when the
service does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.types import ASGIApp

from gnomon.http.settings import AuthMode, AuthSettings
from helpers.auth_app import AUDIENCE, auth_app, settings_for
from helpers.certificate import certificate
from helpers.forge import GONE, b64, rsa_jwk
from helpers.identity import FakeIdentity, FakeTime, SigningKey, served_identity
from helpers.loopback import answer, closed_port, drip, drop, half, hang, loopback, slow, status

ENDPOINT = {AuthMode.exchange: "token", AuthMode.userinfo: "userinfo"}
ASKING = [AuthMode.exchange, AuthMode.userinfo]
HTML = answer(b"<html><body>Sign in</body></html>", content_type="text/html")
GOOD = b'{"sub":"sa-1","https://unikorn-cloud.org/authz":{"acctype":"service","orgIds":["org-1"]}}'

FAULTS: dict[str, tuple[ASGIApp, str]] = {
    "400 of another kind": (answer(b'{"error":"invalid_request"}', 400), "unavailable"),
    "400 of no JSON": (answer(b"bad request", 400), "unavailable"),
    "401": (answer(b'{"error":"access_denied"}', 401), "invalid"),
    "401 without a body": (answer(b"", 401), "invalid"),
    "402": (status(402), "unavailable"),
    "403": (answer(b'{"error":"forbidden"}', 403), "forbidden"),
    "404": (status(404), "unavailable"),
    "405": (status(405), "unavailable"),
    "408": (status(408), "unavailable"),
    "429": (status(429), "unavailable"),
    "500": (status(500), "unavailable"),
    "502": (answer(b"<html>bad gateway</html>", 502), "unavailable"),
    "503": (status(503), "unavailable"),
    "504": (status(504), "unavailable"),
    "201": (answer(GOOD, 201), "unavailable"),
    "204": (answer(b"", 204), "unavailable"),
    "301 to elsewhere": (answer(b"", 301, location="/evil"), "unavailable"),
    "302 to elsewhere": (answer(b"", 302, location="/evil"), "unavailable"),
    "307 to elsewhere": (answer(b"", 307, location="/evil"), "unavailable"),
    "308 to elsewhere": (answer(b"", 308, location="/evil"), "unavailable"),
    "304": (answer(b"", 304), "unavailable"),
    "HTML with a 200": (HTML, "unavailable"),
    "nothing with a 200": (answer(b""), "unavailable"),
    "JSON that is cut": (answer(GOOD[:-3]), "unavailable"),
    "a list": (answer(b"[]"), "unavailable"),
    "an empty object": (answer(b"{}"), "unavailable"),
    "a member twice": (answer(b'{"sub":"a",' + GOOD[1:]), "unavailable"),
    "invalid UTF-8": (answer(b'{"x":"\xff",' + GOOD[1:]), "unavailable"),
    "just over 64 KiB": (answer(b" " * (2**16 + 1 - len(GOOD)) + GOOD), "unavailable"),
    "20 MiB": (answer(b" " * 20 * 2**20 + GOOD), "unavailable"),
    "compressed": (answer(b"\x1f\x8b\x08\0\0\0\0\0\0\3", content_encoding="gzip"), "unavailable"),
    "headers of a megabyte": (answer(GOOD, x_large="x" * 2**20), "unavailable"),
    "a cut connection": (drop, "unavailable"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ASKING)
@pytest.mark.parametrize("name", FAULTS)
def test_only_a_definite_answer_decides_and_the_rest_is_forgotten(
    name: str, mode: AuthMode, identity: FakeIdentity, time: FakeTime
) -> None:
    token = identity.service_token()
    with auth_app(settings_for(identity, mode), time) as at:
        identity.instead[ENDPOINT[mode]], expected = FAULTS[name]
        assert at.outcome(token) == expected
        del identity.instead[ENDPOINT[mode]]
        assert at.outcome(token) == ("accepted" if expected == "unavailable" else expected)
        assert "/evil" not in [seen.path for seen in identity.seen]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ASKING)
@pytest.mark.parametrize("fault", [hang, half])
def test_an_answer_that_is_not_whole_in_time_is_none(
    fault: ASGIApp, mode: AuthMode, identity: FakeIdentity, time: FakeTime
) -> None:
    token = identity.service_token()
    with auth_app(settings_for(identity, mode, http_seconds=0.3), time) as at:
        identity.instead[ENDPOINT[mode]] = fault
        assert at.outcome(token) == "unavailable"
        assert identity.calls[ENDPOINT[mode]] == 1


def test_an_answer_that_comes_drop_by_drop_is_not_waited_for(identity: FakeIdentity, time: FakeTime) -> None:
    """The limit is on the whole: a limit on silence alone would let this answer in, after two seconds."""
    with auth_app(settings_for(identity, AuthMode.userinfo, http_seconds=0.4), time) as at:
        identity.instead["userinfo"] = drip(GOOD, pieces=40, seconds=0.05)
        assert at.outcome(identity.service_token()) == "unavailable"


def test_an_exchange_that_is_refused_for_its_scope_is_a_403(identity: FakeIdentity, time: FakeTime) -> None:
    with auth_app(settings_for(identity, AuthMode.exchange), time) as at:
        identity.instead["token"] = answer(b'{"error":"invalid_scope"}', 400)
        assert at.outcome(identity.service_token()) == "forbidden"


USERINFOS: dict[str, tuple[dict[str, Any], str]] = {
    "sub missing": ({"sub": GONE}, "unavailable"),
    "sub empty": ({"sub": ""}, "unavailable"),
    "sub a number": ({"sub": 1}, "unavailable"),
    "sub null": ({"sub": None}, "unavailable"),
    "email a list": ({"email": ["a@example.org"]}, "unavailable"),
    "authz missing": ({"authz": GONE}, "forbidden"),
    "authz null": ({"authz": None}, "forbidden"),
    "authz a string": ({"authz": "user"}, "unavailable"),
    "acctype missing": ({"authz": {"orgIds": ["org-1"]}}, "unavailable"),
    "acctype a number": ({"authz": {"acctype": 1, "orgIds": ["org-1"]}}, "unavailable"),
    "acctype system": ({"authz": {"acctype": "system", "orgIds": ["org-1"]}}, "forbidden"),
    "acctype unknown": ({"authz": {"acctype": "root", "orgIds": ["org-1"]}}, "forbidden"),
    "orgIds missing": ({"authz": {"acctype": "user"}}, "forbidden"),
    "orgIds null": ({"authz": {"acctype": "user", "orgIds": None}}, "forbidden"),
    "orgIds empty": ({"authz": {"acctype": "user", "orgIds": []}}, "forbidden"),
    "orgIds a string": ({"authz": {"acctype": "user", "orgIds": "org-1"}}, "unavailable"),
    "orgIds numbers": ({"authz": {"acctype": "user", "orgIds": [1]}}, "unavailable"),
}


@pytest.mark.parametrize("name", USERINFOS)
def test_a_userinfo_answer_is_believed_member_by_member(name: str, identity: FakeIdentity, time: FakeTime) -> None:
    changes, expected = USERINFOS[name]
    identity.userinfo_changes = {
        key.replace("authz", "https://unikorn-cloud.org/authz"): changes[key] for key in changes
    }
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:
        assert at.outcome(identity.service_token()) == expected


def test_an_identity_service_before_1_17_needs_an_option(identity: FakeIdentity, time: FakeTime) -> None:
    identity.authz = False
    settings = settings_for(identity, AuthMode.userinfo)
    token = identity.service_token()
    for chosen, expected in (
        (settings, "forbidden"),
        (replace(settings, require_authz=False), "accepted"),
        (replace(settings, require_authz=False, organizations=("org-1",)), "forbidden"),  # it cannot be seen
    ):
        with auth_app(chosen, time) as at:
            assert at.outcome(token) == expected


def test_a_token_that_the_service_refuses_is_refused_in_the_servers_own_words(
    identity: FakeIdentity, time: FakeTime
) -> None:
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:
        identity.instead["userinfo"] = answer(b'{"error":"x"}', 401, www_authenticate='Bearer realm="inside"')
        response = at.show(identity.service_token())
        assert "inside" not in response.text + str(response.headers)


def test_one_callers_cookie_does_not_go_along_with_the_next(identity: FakeIdentity, time: FakeTime) -> None:
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:
        identity.instead["userinfo"] = answer(GOOD, set_cookie="session=ada; Path=/")
        for number in range(2):
            assert at.outcome(identity.service_token(f"sa-{number}")) == "accepted"
    assert all("cookie" not in seen.headers for seen in identity.seen)


def test_a_proxy_of_the_environment_gets_no_token(
    identity: FakeIdentity, time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, closed_port())
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:
        assert at.outcome(identity.service_token()) == "accepted"


# ---- discovery

ISSUERS: dict[str, dict[str, Any]] = {
    "issuer missing": {"issuer": GONE},
    "issuer another": {"issuer": "https://identity.example"},
    "issuer with a slash": {"issuer": "SELF/"},
    "issuer in capitals": {"issuer": "CAPITALS"},
    "issuer a list": {"issuer": ["SELF"]},
    "endpoint missing": {"ENDPOINT": GONE},
    "endpoint null": {"ENDPOINT": None},
    "endpoint a number": {"ENDPOINT": 1},
    "endpoint empty": {"ENDPOINT": ""},
    "endpoint a path": {"ENDPOINT": "/oauth2/v2/userinfo"},
    "endpoint on another host": {"ENDPOINT": "http://evil.example/userinfo"},
    "endpoint on another port": {"ENDPOINT": "http://127.0.0.1:9/userinfo"},
    "endpoint by another scheme": {"ENDPOINT": "HTTPS/userinfo"},
    "endpoint by no scheme": {"ENDPOINT": "//127.0.0.1/userinfo"},
    "endpoint a file": {"ENDPOINT": "file:///etc/passwd"},
    "endpoint with a user": {"ENDPOINT": "USER/userinfo"},
    "endpoint with ours as its user": {"ENDPOINT": "SELF@evil.example/userinfo"},
    "endpoint that only begins with ours": {"ENDPOINT": "SELF.evil.example/userinfo"},
    "endpoint with a line end": {"ENDPOINT": "SELF/\r\nuserinfo"},
    "endpoint not a URL": {"ENDPOINT": "http://[::1"},
}
MEMBERS = {AuthMode.exchange: "token_endpoint", AuthMode.userinfo: "userinfo_endpoint", AuthMode.jwks: "jwks_uri"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MEMBERS)
@pytest.mark.parametrize("name", ISSUERS)
def test_a_discovery_document_may_not_lead_a_token_away(
    name: str, mode: AuthMode, identity: FakeIdentity, time: FakeTime
) -> None:
    for member, value in ISSUERS[name].items():
        if isinstance(value, str):
            for word, text in (
                ("CAPITALS", identity.issuer.upper()),
                ("HTTPS", identity.issuer.replace("http:", "https:")),
                ("USER", identity.issuer.replace("//", "//ada:secret@")),
                ("SELF", identity.issuer),
            ):
                value = value.replace(word, text)
        identity.discovery_changes[member.replace("ENDPOINT", MEMBERS[mode])] = value
    with auth_app(settings_for(identity, mode), time, ready=False) as at:
        at.until(lambda: at.authenticator.ready or len(time.slept) > 1)
        assert not at.authenticator.ready
        assert at.outcome(identity.service_token()) == "unavailable"
        assert {seen.path for seen in identity.seen} == {"/.well-known/openid-configuration"}
        identity.discovery_changes = {}
        at.until(lambda: at.authenticator.ready)


def test_an_endpoint_that_an_option_names_may_lie_anywhere(identity: FakeIdentity, time: FakeTime) -> None:
    with loopback() as elsewhere:
        elsewhere.app = answer(GOOD)
        url = elsewhere.base + "/who"
        with auth_app(settings_for(identity, AuthMode.userinfo, userinfo_url=url), time) as at:
            assert at.outcome(identity.service_token()) == "accepted"
    assert identity.seen == []  # nothing was left to discover


@pytest.mark.parametrize("fault", [status(500), HTML, drop, answer(b"", 302, location="/evil"), answer(b" " * 2**17)])
def test_discovery_is_tried_until_it_succeeds(fault: ASGIApp, identity: FakeIdentity, time: FakeTime) -> None:
    identity.instead["discovery"] = fault
    token = identity.service_token()
    with auth_app(settings_for(identity, AuthMode.exchange), time, ready=False) as at:
        at.until(lambda: len(time.slept) >= 9)
        assert time.slept[:9] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
        assert not at.authenticator.ready
        assert at.outcome(token) == "unavailable"
        assert at.outcome("junk") == "invalid"  # what is no token needs no service
        del identity.instead["discovery"]
        at.until(lambda: at.authenticator.ready)
        assert at.outcome(token) == "accepted"


def test_the_server_starts_before_its_identity_service_and_needs_no_restart(time: FakeTime) -> None:
    base = closed_port()
    identity = FakeIdentity(base, time)
    token = identity.service_token()
    with auth_app(settings_for(identity, AuthMode.exchange), time, ready=False) as at:
        at.until(lambda: len(time.slept) > 1)
        assert not at.authenticator.ready
        assert at.outcome(token) == "unavailable"
        with loopback(port=urlsplit(base).port or 0) as served:
            served.app = identity
            at.until(lambda: at.authenticator.ready)
            assert at.outcome(token) == "accepted"


def test_a_connection_that_is_refused_later_is_a_503_until_it_is_not(time: FakeTime) -> None:
    with served_identity(time) as identity:
        first, second = identity.service_token("sa-1"), identity.service_token("sa-2")
        with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:
            assert at.outcome(first) == "accepted"
            at.tokens.identity.endpoints = at.tokens.identity.endpoints._replace(userinfo=closed_port())
            assert at.outcome(second) == "unavailable"
            assert at.outcome(first) == "accepted"  # it lives out what is remembered of it
            assert at.authenticator.ready
            time.now += 60
            assert at.outcome(first) == "unavailable"
            at.tokens.identity.endpoints = at.tokens.identity.endpoints._replace(
                userinfo=identity.issuer + "/oauth2/v2/userinfo"
            )
            assert at.outcome(first) == at.outcome(second) == "accepted"


def test_a_fault_of_ours_does_not_end_the_attempts(
    identity: FakeIdentity, time: FakeTime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from gnomon.http.identity.client import IdentityService

    sound, faults = IdentityService.discover, iter([ZeroDivisionError("a fault")])

    async def discover(self: IdentityService) -> None:
        for fault in faults:
            raise fault
        await sound(self)

    monkeypatch.setattr(IdentityService, "discover", discover)
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:
        assert at.outcome(identity.service_token()) == "accepted"
    assert "ZeroDivisionError" in caplog.text


def test_the_log_tells_of_an_outage_once_and_of_its_end(
    identity: FakeIdentity, time: FakeTime, caplog: pytest.LogCaptureFixture
) -> None:
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at, caplog.at_level(logging.WARNING):
        identity.instead["userinfo"] = status(502)
        for number in range(5):
            assert at.outcome(identity.service_token(f"sa-{number}")) == "unavailable"
        del identity.instead["userinfo"]
        assert at.outcome(identity.service_token()) == "accepted"
    lines = [record.getMessage() for record in caplog.records if record.name == "gnomon.http"]
    service = f"the identity service at {identity.issuer}"
    assert lines == [f"{service} is away: status 502", f"{service} is back"]


def test_bad_tokens_in_an_outage_do_not_fill_the_log(
    identity: FakeIdentity, time: FakeTime, caplog: pytest.LogCaptureFixture
) -> None:
    with auth_app(settings_for(identity, AuthMode.jwks), time) as at, caplog.at_level(logging.WARNING):
        identity.instead["jwks"] = status(502)
        time.now += 301
        for number in range(5):
            assert at.outcome(plain(identity, SigningKey(), jti=str(number))) == "unavailable"
            assert at.outcome(plain(identity, sub="", jti=str(number))) == "invalid"
    lines = [record.getMessage() for record in caplog.records if record.name == "gnomon.http"]
    assert lines == [
        "the key set was not renewed: status 502",
        f"the identity service at {identity.issuer} is away: an unknown kid, and the key set cannot be fetched",
    ]


# ---- TLS


def test_the_identity_service_is_known_by_its_certificate(tmp_path: Path, time: FakeTime) -> None:
    ours, others = certificate(tmp_path, "ours", "127.0.0.1"), certificate(tmp_path, "others", "127.0.0.1")
    misnamed = certificate(tmp_path, "misnamed", "127.0.0.2")
    for shown, trusted, expected in (
        (ours, ours.certificate, True),
        (ours, None, False),  # by the authorities of the public
        (ours, others.certificate, False),
        (misnamed, misnamed.certificate, False),
    ):
        time.slept.clear()
        with served_identity(time, tls=shown) as identity:
            settings = AuthSettings(mode=AuthMode.userinfo, issuer=identity.issuer, ca_file=trusted, http_seconds=10)
            with auth_app(settings, time, ready=False) as at:
                at.until(lambda at=at: at.authenticator.ready or len(time.slept) > 1)  # type: ignore[misc]
                assert at.authenticator.ready == expected
                assert at.outcome(identity.service_token()) == ("accepted" if expected else "unavailable")
                assert (identity.seen != []) == expected


def test_we_show_the_identity_service_our_certificate(tmp_path: Path, time: FakeTime) -> None:
    theirs, ours = certificate(tmp_path, "theirs", "127.0.0.1"), certificate(tmp_path, "ours", "127.0.0.1")
    with served_identity(time, tls=theirs._replace(clients=ours.certificate)) as identity:
        settings = AuthSettings(
            mode=AuthMode.userinfo, issuer=identity.issuer, ca_file=theirs.certificate, http_seconds=10
        )
        with auth_app(settings, time, ready=False) as at:
            at.until(lambda: len(time.slept) > 1)
            assert not at.authenticator.ready
        shown = replace(settings, client_certificate=ours.certificate, client_key=ours.key)
        with auth_app(shown, time) as at:
            assert at.outcome(identity.service_token()) == "accepted"


# ---- keys


def plain(identity: FakeIdentity, key: SigningKey | None = None, **claims: Any) -> str:
    """A signed token of mode jwks."""
    base = {"iss": identity.issuer, "aud": AUDIENCE, "sub": "ada", "iat": identity.now, "exp": identity.now + 36_000}
    return identity.sign(base | claims, key, typ="at+jwt")


def test_a_new_key_is_found_and_the_old_one_serves_beside_it(identity: FakeIdentity, time: FakeTime) -> None:
    old = plain(identity)
    with auth_app(settings_for(identity, AuthMode.jwks), time) as at:
        assert at.outcome(old) == "accepted"
        identity.rotate()
        time.now += 31
        assert at.outcome(plain(identity)) == "accepted"
        time.now += 60  # what was remembered of the old token is over
        assert at.outcome(old) == "accepted"
        assert identity.calls["jwks"] == 2


def test_a_key_that_is_dropped_ends_its_tokens_within_the_ttl(identity: FakeIdentity, time: FakeTime) -> None:
    old = plain(identity)
    with auth_app(settings_for(identity, AuthMode.jwks), time) as at:
        assert at.outcome(old) == "accepted"
        identity.rotate()
        identity.rotate()
        time.now += 299
        assert at.outcome(old) == "accepted"
        time.now += 1
        at.outcome(plain(identity))  # the set is fetched, whoever asks
        time.now += 50
        assert at.outcome(old) == "invalid"


def test_a_new_key_serves_mode_exchange_at_once(identity: FakeIdentity, time: FakeTime) -> None:
    with auth_app(settings_for(identity, AuthMode.exchange), time) as at:
        identity.rotate()
        time.now += 31
        assert at.outcome(identity.service_token()) == "accepted"


def test_a_flood_of_unknown_keys_is_one_fetch_a_cooldown(identity: FakeIdentity, time: FakeTime) -> None:
    with auth_app(settings_for(identity, AuthMode.jwks), time) as at:
        assert identity.calls["jwks"] == 1
        for period in range(3):
            for _ in range(4):
                answers = at.together([plain(identity, SigningKey()) for _ in range(5)])
                assert {response.status_code for response in answers} == {401}
            assert identity.calls["jwks"] == 1 + period  # the first period began with the fetch at start
            time.now += 30
        assert at.outcome(plain(identity)) == "accepted"


def test_a_fetch_that_fails_begins_a_cooldown_too(identity: FakeIdentity, time: FakeTime) -> None:
    with auth_app(settings_for(identity, AuthMode.jwks), time) as at:
        time.now += 301  # the set is old
        identity.instead["jwks"] = status(500)
        for _ in range(10):
            assert at.outcome(plain(identity, jti=b64(str(_).encode()))) == "accepted"
        assert identity.calls["jwks"] == 2
        assert at.outcome(plain(identity, SigningKey())) == "unavailable"  # it may be a new key


def test_an_old_set_serves_on_and_then_no_longer_and_then_again(identity: FakeIdentity, time: FakeTime) -> None:
    settings = settings_for(identity, AuthMode.jwks, jwks_seconds=300, jwks_stale_seconds=1000)
    token = plain(identity)
    with auth_app(settings, time) as at:
        identity.instead["jwks"] = drop
        time.now += 1299
        assert at.outcome(token) == "accepted"
        time.now += 51
        assert at.outcome(token) == "unavailable"
        del identity.instead["jwks"]
        time.now += 31
        assert at.outcome(token) == "accepted"


KEY_SETS: dict[str, Callable[[FakeIdentity], object]] = {
    "empty": lambda identity: {"keys": []},
    "without keys": lambda identity: {},
    "keys null": lambda identity: {"keys": None},
    "keys an object": lambda identity: {"keys": identity.keys[0].jwk},
    "a list": lambda identity: [identity.keys[0].jwk],
    "HTML": lambda identity: b"<html>",
    "over 64 keys": lambda identity: {"keys": [SigningKey().jwk for _ in range(64)] + [identity.keys[0].jwk]},
    "over 64 KiB": lambda identity: {"keys": [identity.keys[0].jwk], "x": "x" * 2**16},
    "only a secret": lambda identity: {"keys": [secret(identity)]},
    "only for encryption": lambda identity: {"keys": [identity.keys[0].jwk | {"use": "enc"}]},
    "use a list": lambda identity: {"keys": [identity.keys[0].jwk | {"use": ["sig"]}]},
    "only to sign": lambda identity: {"keys": [identity.keys[0].jwk | {"key_ops": ["sign"]}]},
    "operations a string": lambda identity: {"keys": [identity.keys[0].jwk | {"key_ops": "verify"}]},
    "a private key": lambda identity: {"keys": [private_jwk(identity.keys[0])]},
    "one name for two keys": lambda identity: {
        "keys": [identity.keys[0].jwk, SigningKey().jwk | {"kid": identity.keys[0].kid}]
    },
    "no name": lambda identity: {"keys": [{**identity.keys[0].jwk, "kid": None}]},
    "an empty name": lambda identity: {"keys": [{**identity.keys[0].jwk, "kid": ""}]},
    "another algorithm": lambda identity: {"keys": [{**identity.keys[0].jwk, "alg": "ES256"}]},
    "the algorithm none": lambda identity: {"keys": [{**identity.keys[0].jwk, "alg": "none"}]},
    "an algorithm that is a list": lambda identity: {"keys": [{**identity.keys[0].jwk, "alg": ["ES512"]}]},
    "a point that is not on the curve": lambda identity: {"keys": [{**identity.keys[0].jwk, "y": b64(b"\1" * 66)}]},
    "a number that is no string": lambda identity: {"keys": [{**identity.keys[0].jwk, "x": 7}]},
    "a number that is no base64": lambda identity: {"keys": [{**identity.keys[0].jwk, "x": "é"}]},
    "another curve's name": lambda identity: {"keys": [{**identity.keys[0].jwk, "crv": "P-256"}]},
    "an unknown curve": lambda identity: {"keys": [{**identity.keys[0].jwk, "crv": "P-999"}]},
    "a curve that is a list": lambda identity: {"keys": [{**identity.keys[0].jwk, "crv": ["P-521"]}]},
    "an unknown type": lambda identity: {"keys": [{**identity.keys[0].jwk, "kty": "AKP"}]},
    "an RSA key of 1,024 bits": lambda identity: {
        "keys": [rsa_jwk(rsa.generate_private_key(65537, 1024).public_key(), kid=identity.keys[0].kid)]
    },
    "an RSA key of a million bits": lambda identity: {
        "keys": [{"kty": "RSA", "n": "x" * 60_000, "e": "AQAB", "kid": identity.keys[0].kid}]
    },
    "words": lambda identity: {"keys": ["key", 7, None, []]},
}


def private_jwk(key: SigningKey) -> dict[str, Any]:
    value = key.private.private_numbers().private_value
    return key.jwk | {"d": b64(value.to_bytes(66, "big"))}


def secret(identity: FakeIdentity) -> dict[str, Any]:
    """What a forger would like to have in the set: the public key as the secret of an HMAC."""
    return {"kty": "oct", "k": b64(identity.keys[0].pem), "kid": identity.keys[0].kid, "alg": "HS512", "use": "sig"}


@pytest.mark.slow
@pytest.mark.parametrize("name", KEY_SETS)
def test_a_set_without_a_usable_key_is_no_set_and_the_last_one_serves_on(
    name: str, identity: FakeIdentity, time: FakeTime
) -> None:
    document = KEY_SETS[name](identity)
    with auth_app(settings_for(identity, AuthMode.jwks), time) as at:
        identity.key_set = document
        time.now += 301
        assert at.outcome(plain(identity)) == "accepted"
        assert identity.calls["jwks"] == 2
    with auth_app(settings_for(identity, AuthMode.jwks), time, ready=False) as at:
        time.slept.clear()
        at.until(lambda: len(time.slept) > 1)
        assert not at.authenticator.ready
        assert at.outcome(plain(identity)) == "unavailable"


def test_a_key_is_used_among_entries_that_are_none(identity: FakeIdentity, time: FakeTime) -> None:
    junk: list[object] = ["key", 7, None, {}, {"kty": "EC"}, secret(identity) | {"kid": "s"}]
    encrypting = SigningKey().jwk | {"use": "enc", "kid": identity.keys[0].kid}  # one name, but not for signatures
    identity.key_set = {"keys": [*junk, encrypting, identity.keys[0].jwk]}
    with auth_app(settings_for(identity, AuthMode.jwks), time) as at:
        assert at.outcome(plain(identity)) == "accepted"


@pytest.mark.parametrize("missing", ["use", "alg"])
def test_a_key_need_not_say_what_its_type_says(missing: str, identity: FakeIdentity, time: FakeTime) -> None:
    identity.key_set = {"keys": [{name: value for name, value in identity.keys[0].jwk.items() if name != missing}]}
    with auth_app(settings_for(identity, AuthMode.jwks), time) as at:
        assert at.outcome(plain(identity)) == "accepted"


def test_two_keys_of_one_name_are_nobodys_while_a_third_serves(identity: FakeIdentity, time: FakeTime) -> None:
    twin = SigningKey()
    twin.kid = identity.keys[0].kid
    third = SigningKey()
    identity.key_set = {"keys": [identity.keys[0].jwk, twin.jwk, third.jwk]}
    with auth_app(settings_for(identity, AuthMode.jwks), time) as at:
        assert at.outcome(plain(identity)) == at.outcome(plain(identity, twin)) == "invalid"
        assert at.outcome(plain(identity, third)) == "accepted"


def test_the_requests_that_wait_for_a_fetch_share_it(identity: FakeIdentity, time: FakeTime) -> None:
    with auth_app(settings_for(identity, AuthMode.jwks), time) as at:
        time.now += 301
        identity.instead["jwks"] = slow(identity.router, 0.2)
        tokens = [plain(identity, jti=str(number)) for number in range(20)]
        assert {response.status_code for response in at.together(tokens)} == {200}
        assert identity.calls["jwks"] == 2


def test_more_questions_than_may_be_asked_at_once_wait_their_turn(identity: FakeIdentity, time: FakeTime) -> None:
    most = 0
    now = 0

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await slow(identity.router, 0.02)(scope, receive, send)
        now -= 1

    identity.instead["userinfo"] = counted
    with auth_app(settings_for(identity, AuthMode.userinfo, max_parallel=3), time) as at:
        tokens = [identity.service_token(f"sa-{number}") for number in range(12)]
        assert {response.status_code for response in at.together(tokens)} == {200}
    assert most == 3


@pytest.mark.slow
def test_questions_that_were_given_up_keep_no_place_from_later_ones(identity: FakeIdentity, time: FakeTime) -> None:
    """Many more than may be asked at once, of a service that does not answer: it has to be asked again afterwards."""
    with auth_app(settings_for(identity, AuthMode.userinfo, max_parallel=4, http_seconds=0.4), time) as at:
        for fault in (hang, slow(identity.router, 0.15)):
            identity.instead["userinfo"] = fault
            for _ in range(2):
                at.together([identity.service_token(f"sa-{number}") for number in range(40)])
        del identity.instead["userinfo"]
        tokens = [identity.service_token(f"late-{number}") for number in range(4)]
        assert {response.status_code for response in at.together(tokens)} == {200}
