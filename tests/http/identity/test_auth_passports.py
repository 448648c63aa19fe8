"""Mode exchange: what the identity service hands back is held to every rule too.

A passport that is refused says nothing against the caller's token: the answer is 503, and nothing is remembered. An
account that the passport names soundly, but that may not come in, is a 403.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from gnomon.http.settings import AuthMode
from helpers.auth_app import AUDIENCE, AuthApp, auth_app, settings_for
from helpers.forge import GONE, b64, constant, der, ecdsa, hs, jws, raw, unb64
from helpers.identity import FakeIdentity, FakeTime, SigningKey, served_identity
from helpers.loopback import answer

AWAY, NO = "unavailable", "forbidden"

CLAIMS: dict[str, tuple[dict[str, Any], str]] = {
    "as it is": ({}, "accepted"),
    "iss wrong": ({"iss": "https://identity.example"}, AWAY),
    "iss missing": ({"iss": GONE}, AWAY),
    "iss in capitals": ({"iss": "UNI-IDENTITY"}, AWAY),
    "iss a list": ({"iss": ["uni-identity"]}, AWAY),
    "aud missing": ({"aud": GONE}, AWAY),
    "aud empty": ({"aud": []}, AWAY),
    "aud another": ({"aud": ["another.example"]}, AWAY),
    "aud containing ours": ({"aud": [f"x{AUDIENCE}"]}, AWAY),
    "aud several with ours": ({"aud": ["another.example", AUDIENCE]}, "accepted"),
    "sub missing": ({"sub": GONE}, AWAY),
    "sub empty": ({"sub": ""}, AWAY),
    "sub a number": ({"sub": 7}, AWAY),
    "exp past": ({"exp": 1_700_000_000}, AWAY),
    "exp missing": ({"exp": GONE}, AWAY),
    "exp a string": ({"exp": "1900000000"}, AWAY),
    "exp true": ({"exp": True}, AWAY),
    "exp NaN": ({"exp": float("nan")}, AWAY),
    "exp 1e30": ({"exp": 1e30}, AWAY),
    "nbf in the future": ({"nbf": 1_900_000_000}, AWAY),
    "nbf missing": ({"nbf": GONE}, AWAY),
    "iat in the future": ({"iat": 1_900_000_000}, AWAY),
    "iat missing": ({"iat": GONE}, AWAY),
    "typ an access token's": ({"typ": "fed"}, AWAY),
    "typ in capitals": ({"typ": "Passport"}, AWAY),
    "typ missing": ({"typ": GONE}, AWAY),
    "typ a list": ({"typ": ["passport"]}, AWAY),
    "acctype missing": ({"acctype": GONE}, AWAY),
    "acctype null": ({"acctype": None}, AWAY),
    "acctype a list": ({"acctype": ["user"]}, AWAY),
    "acctype system": ({"acctype": "system"}, NO),
    "acctype unknown": ({"acctype": "robot"}, NO),
    "acctype empty": ({"acctype": ""}, NO),
    "acctype in capitals": ({"acctype": "USER"}, NO),
    "acctype user": ({"acctype": "user"}, "accepted"),
    "org_ids missing": ({"org_ids": GONE}, NO),
    "org_ids null": ({"org_ids": None}, NO),
    "org_ids empty": ({"org_ids": []}, NO),
    "org_ids a string": ({"org_ids": "org-1"}, AWAY),
    "org_ids numbers": ({"org_ids": [1]}, AWAY),
    "org_ids an empty name": ({"org_ids": [""]}, AWAY),
    "org_ids an object": ({"org_ids": {"org-1": True}}, AWAY),
    "email a number": ({"email": 7}, AWAY),
}


@pytest.fixture(scope="module")
def lasting() -> Iterator[tuple[AuthApp, FakeIdentity]]:
    with served_identity() as identity, auth_app(settings_for(identity, AuthMode.exchange), identity.time) as at:
        yield at, identity


@pytest.fixture
def exchange(lasting: tuple[AuthApp, FakeIdentity]) -> Iterator[tuple[AuthApp, FakeIdentity]]:
    """The app in mode exchange; what a test makes of the passports ends with the test."""
    yield lasting
    lasting[1].passport_changes = {}
    lasting[1].passport = lasting[1].sign


@pytest.mark.parametrize("name", CLAIMS)
def test_a_passport_is_believed_claim_by_claim(name: str, exchange: tuple[AuthApp, FakeIdentity]) -> None:
    at, identity = exchange
    identity.passport_changes, expected = CLAIMS[name]
    assert at.outcome(identity.service_token()) == expected


def by_another_key(identity: FakeIdentity) -> Callable[[dict[str, Any]], str]:
    other = SigningKey()
    other.kid = identity.keys[0].kid
    return lambda claims: identity.sign(claims, other)


def made(header: dict[str, Any], sign: Callable[[bytes], bytes]) -> Callable[[dict[str, Any]], str]:
    return lambda claims: jws(header, claims, sign)


PASSPORTS: dict[str, Callable[[FakeIdentity], Callable[[dict[str, Any]], str]]] = {
    "signed by an unknown key": lambda identity: lambda claims: identity.sign(claims, SigningKey()),
    "signed by another key under a known name": by_another_key,
    "not signed": lambda identity: made({"alg": "none", "kid": identity.keys[0].kid}, constant(b"\0")),
    "with an empty signature": lambda identity: lambda claims: identity.sign(claims).rpartition(".")[0] + ".",
    "signed by the public key as a secret": lambda identity: made(
        {"alg": "HS512", "kid": identity.keys[0].kid}, hs(identity.keys[0].pem, 512)
    ),
    "signed on another curve": lambda identity: made(
        {"alg": "ES256", "kid": identity.keys[0].kid}, ecdsa(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    ),
    "with a DER signature": lambda identity: made(
        {"alg": "ES512", "kid": identity.keys[0].kid}, der(identity.keys[0].private)
    ),
    "without a kid": lambda identity: lambda claims: identity.sign(claims, kid=GONE),
    "with crit": lambda identity: lambda claims: identity.sign(claims, crit=["x"], x=1),
    "with the typ of a refresh token": lambda identity: (
        lambda claims: identity.sign(claims, typ="unikorn-cloud.org/rt+jwt")
    ),
    "with the typ of an access token": lambda identity: lambda claims: identity.sign(claims, typ="at+jwt"),
    "encrypted": lambda identity: lambda claims: identity.encrypt(identity.sign(claims)),
    "a word": lambda identity: lambda claims: "passport",
    "empty": lambda identity: lambda claims: "",
    "with a claim twice": lambda identity: (
        lambda claims: jws(
            {"alg": "ES512", "kid": identity.keys[0].kid},
            raw(claims)[:-1] + b',"sub":"root"}',
            ecdsa(identity.keys[0].private),
        )
    ),
}


@pytest.mark.parametrize("name", PASSPORTS)
def test_a_passport_that_the_service_did_not_sign_lets_nobody_in(
    name: str, exchange: tuple[AuthApp, FakeIdentity]
) -> None:
    at, identity = exchange
    identity.passport = PASSPORTS[name](identity)
    token = identity.service_token()
    assert at.outcome(token) == "unavailable"
    identity.passport = identity.sign
    assert at.outcome(token) == "accepted"  # nothing was held against the token


@pytest.mark.parametrize(
    "body", [b"{}", b'{"access_token":7}', b'{"access_token":null}', b'{"access_token":["a"]}', b"[]"]
)
def test_an_exchange_without_a_passport_is_no_answer(body: bytes, identity: FakeIdentity, time: FakeTime) -> None:
    with auth_app(settings_for(identity, AuthMode.exchange), time) as at:
        identity.instead["token"] = answer(body, content_type="application/json")
        assert at.outcome(identity.service_token()) == "unavailable"


def test_the_passport_is_asked_for_us_and_by_form(identity: FakeIdentity, time: FakeTime) -> None:
    token = identity.user_token("ada@example.org", "org-1", "org-2")
    with auth_app(settings_for(identity, AuthMode.exchange), time) as at:
        caller = at.show(token).json()
    assert caller["organizations"] == ["org-1", "org-2"]
    assert (caller["subject"], caller["account_type"], caller["email"]) == (
        "ada@example.org",
        "user",
        "ada@example.org",
    )
    assert identity.forms[0]["audience"] == AUDIENCE
    assert identity.forms[0]["subject_token"] == token
    exchanged = [seen for seen in identity.seen if seen.path == "/oauth2/v2/token"]
    assert [(seen.method, seen.query) for seen in exchanged] == [("POST", b"")]
    assert "authorization" not in exchanged[0].headers


@pytest.mark.parametrize("mode", [AuthMode.exchange, AuthMode.userinfo])
def test_what_is_no_access_token_lets_nobody_in(mode: AuthMode, identity: FakeIdentity, time: FakeTime) -> None:
    """A passport, an ID token and the rest, shown as if they were access tokens."""
    with auth_app(settings_for(identity, AuthMode.exchange), time) as at:
        at.show(identity.service_token("sa-0"))
    passport = identity.issued[0]
    expired = identity.service_token("sa-1", lifetime=0)
    other_issuer = FakeIdentity("http://identity.example", time)
    other_issuer.keys = identity.keys  # a service that shares the keys, and so their names
    with auth_app(settings_for(identity, mode), time) as at:
        tokens = {
            "passport": passport,
            "ID token": identity.id_token(),
            "refresh token": identity.refresh_token(),
            "expired": expired,
            "of another issuer": other_issuer.service_token("sa-0"),
            "by an unknown key": identity.mint(identity.claims("sa", "sa-0", 60, sa={"oid": "o"}), SigningKey()),
            "of an unknown account": identity.mint(identity.claims("sa", "nobody", 60, sa={"oid": "o"})),
            "not yet valid": identity.mint(identity.claims("sa", "sa-0", 60, sa={"oid": "o"}, nbf=identity.now + 9)),
        }
        assert {name: at.outcome(token) for name, token in tokens.items()} == dict.fromkeys(tokens, "invalid")
        assert at.outcome(identity.system_token()) == "forbidden"


@pytest.mark.parametrize("segment", range(5))
def test_an_encrypted_token_that_was_changed_anywhere_lets_nobody_in(
    segment: int, identity: FakeIdentity, time: FakeTime
) -> None:
    parts = identity.service_token().split(".")
    data = bytearray(unb64(parts[segment]))
    data[len(data) // 2] ^= 1
    parts[segment] = b64(bytes(data))
    with auth_app(settings_for(identity, AuthMode.userinfo), time) as at:
        assert at.outcome(".".join(parts)) == "invalid"


@pytest.mark.parametrize(
    ("seconds", "expected"), [(5, "accepted"), (6, "unavailable"), (-64, "accepted"), (-65, "unavailable")]
)
def test_the_services_clock_may_differ_by_the_leeway(
    seconds: int, expected: str, identity: FakeIdentity, time: FakeTime
) -> None:
    """A passport lives for 60 seconds of the service's clock."""
    identity.offset = seconds
    with auth_app(settings_for(identity, AuthMode.exchange), time) as at:
        assert at.outcome(identity.service_token()) == expected
