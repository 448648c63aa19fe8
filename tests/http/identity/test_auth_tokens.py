"""Attacks on signed tokens, mode jwks: each token is sound but for one thing, and that thing is enough.

One app serves a whole table, since nothing that is refused leaves a trace that another token could meet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from gnomon.http.identity.jwks import ALGORITHMS
from gnomon.http.settings import AuthMode
from helpers.auth_app import AUDIENCE, AuthApp, auth_app, settings_for
from helpers.forge import (
    GONE,
    Sign,
    b64,
    constant,
    der,
    ec_jwk,
    ecdsa,
    ed_jwk,
    eddsa,
    hs,
    jws,
    merged,
    ps,
    raw,
    rs,
    rsa_jwk,
    unb64,
)
from helpers.identity import FakeIdentity, FakeTime, SigningKey, served_identity

LEEWAY = 5


class Issuer(NamedTuple):
    """The app in mode jwks, its issuer, and the forge."""

    at: AuthApp
    identity: FakeIdentity
    rsa: rsa.RSAPrivateKey

    @property
    def key(self) -> SigningKey:
        return self.identity.keys[0]

    def header(self, **changes: Any) -> dict[str, Any]:
        return merged({"alg": "ES512", "kid": self.key.kid, "typ": "at+jwt"}, **changes)

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = self.identity.now
        base = {"iss": self.identity.issuer, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 300}
        return merged(base, **changes)

    def token(self, header: object = None, claims: object = None, sign: Sign | None = None) -> str:
        """A token that would be accepted, but for what is given."""
        return jws(
            self.header() if header is None else header,
            self.claims() if claims is None else claims,
            sign or ecdsa(self.key.private),
        )


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with served_identity() as identity:
        settings = settings_for(identity, AuthMode.jwks, leeway_seconds=LEEWAY, max_token_bytes=50_000)
        with auth_app(settings, identity.time) as at:
            yield Issuer(at, identity, rsa.generate_private_key(65537, 2048))


@pytest.fixture(scope="module")
def liberal(issuer: Issuer) -> Iterator[Issuer]:
    """The same issuer, where every algorithm is allowed that can be."""
    settings = settings_for(issuer.identity, AuthMode.jwks, algorithms=tuple(sorted(ALGORITHMS)))
    with auth_app(settings, issuer.identity.time) as at:
        yield issuer._replace(at=at)


def test_the_token_from_which_all_attacks_are_made_is_accepted(issuer: Issuer) -> None:
    assert issuer.at.outcome(issuer.token()) == "accepted"
    caller = issuer.at.show(issuer.token(claims=issuer.claims(email="ada@example.org"))).json()
    assert (caller["subject"], caller["email"], caller["account_type"]) == ("ada", "ada@example.org", None)


# ---- algorithms


def pem_secret(issuer: Issuer) -> bytes:
    return issuer.key.pem


def jwk_secret(issuer: Issuer) -> bytes:
    return json.dumps(issuer.key.jwk).encode()


SECRETS: dict[str, Callable[[Issuer], bytes]] = {
    "the public PEM": pem_secret,
    "the public PEM without its last line end": lambda issuer: pem_secret(issuer).strip(),
    "the public JWK": jwk_secret,
    "the compact public JWK": lambda issuer: json.dumps(issuer.key.jwk, separators=(",", ":")).encode(),
    "nothing": lambda issuer: b"",
    "the kid": lambda issuer: issuer.key.kid.encode(),
}


@pytest.mark.parametrize("bits", [256, 384, 512])
@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("allowed", ["issuer", "liberal"])
def test_a_public_key_is_no_secret(secret: str, bits: int, allowed: str, request: pytest.FixtureRequest) -> None:
    at: Issuer = request.getfixturevalue(allowed)
    token = at.token(at.header(alg=f"HS{bits}"), sign=hs(SECRETS[secret](at), bits))
    assert at.at.outcome(token) == "invalid"


@pytest.mark.parametrize("signature", [b"", b"\0", b"\0" * 132])
@pytest.mark.parametrize(
    "alg", ["none", "None", "NONE", "nOnE", "", " none", "null", "ES512 ", "es512", "Es512", "ES0512"]
)
@pytest.mark.parametrize("allowed", ["issuer", "liberal"])
def test_an_unsigned_token_is_no_token(
    alg: str, signature: bytes, allowed: str, request: pytest.FixtureRequest
) -> None:
    at: Issuer = request.getfixturevalue(allowed)
    assert at.at.outcome(at.token(at.header(alg=alg), sign=constant(signature))) == "invalid"


def test_a_sound_signature_under_a_wrong_name_is_refused(issuer: Issuer) -> None:
    for alg in ("es512", "ES256", "ES384", "EdDSA", "RS512", "none", "HS512", "ES512\0", "ＥＳ512"):
        assert issuer.at.outcome(issuer.token(issuer.header(alg=alg))) == "invalid"


def foreign(name: str, key: rsa.RSAPrivateKey) -> tuple[str, Sign, dict[str, Any]]:
    """An algorithm, a signature by a key that is not the issuer's, and that key's public half."""
    if name.startswith("ES"):
        curve, hash = {
            "ES256": (ec.SECP256R1(), hashes.SHA256()),
            "ES384": (ec.SECP384R1(), hashes.SHA384()),
            "ES512": (ec.SECP521R1(), hashes.SHA512()),
        }[name]
        private = ec.generate_private_key(curve)
        return name, ecdsa(private, hash), ec_jwk(private.public_key())
    if name == "EdDSA":
        edwards = ed25519.Ed25519PrivateKey.generate()
        return name, eddsa(edwards), ed_jwk(edwards.public_key())
    hash = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}[name[2:]]
    return name, (rs if name.startswith("RS") else ps)(key, hash), rsa_jwk(key.public_key())


@pytest.mark.parametrize("alg", sorted(ALGORITHMS))
@pytest.mark.parametrize("allowed", ["issuer", "liberal"])
def test_another_key_under_the_same_kid_signs_nothing(alg: str, allowed: str, request: pytest.FixtureRequest) -> None:
    at: Issuer = request.getfixturevalue(allowed)
    _, sign, _ = foreign(alg, at.rsa)
    assert at.at.outcome(at.token(at.header(alg=alg), sign=sign)) == "invalid"


@pytest.mark.parametrize("alg", sorted(ALGORITHMS))
def test_an_issuers_key_signs_by_the_algorithms_that_are_allowed_and_no_other(
    alg: str, issuer: Issuer, identity: FakeIdentity, time: FakeTime
) -> None:
    _, sign, jwk = foreign(alg, issuer.rsa)
    identity.key_set = {"keys": [{**jwk, "kid": "k"}]}
    own = issuer._replace(identity=identity)
    token = own.token(own.header(alg=alg, kid="k"), sign=sign)
    for algorithms in ((alg,), tuple(sorted(ALGORITHMS - {alg}))):
        with auth_app(settings_for(identity, AuthMode.jwks, algorithms=algorithms), time) as at:
            assert at.outcome(token) == ("accepted" if algorithms == (alg,) else "invalid")


@pytest.mark.parametrize(("declared", "used"), [("RS256", "PS256"), ("PS256", "RS256"), ("RS256", "RS512")])
def test_a_key_that_declares_its_algorithm_is_used_by_no_other(
    declared: str, used: str, issuer: Issuer, identity: FakeIdentity, time: FakeTime
) -> None:
    identity.key_set = {"keys": [rsa_jwk(issuer.rsa.public_key(), kid="k", alg=declared)]}
    own = issuer._replace(identity=identity)
    with auth_app(settings_for(identity, AuthMode.jwks, algorithms=(declared, used)), time) as at:
        for alg, expected in ((declared, "accepted"), (used, "invalid")):
            assert at.outcome(own.token(own.header(alg=alg, kid="k"), sign=foreign(alg, issuer.rsa)[1])) == expected


ORDER = int(
    "01fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffa"
    "51868783bf2f966b7fcc0148f709a5d03bb5c9b8899c47aebb6fb71e91386409",
    16,
)  # of the group on P-521

SIGNATURES: dict[str, Callable[[Issuer], Sign]] = {
    "zeros": lambda issuer: constant(bytes(132)),
    "ones": lambda issuer: constant(b"\xff" * 132),
    "r and s of one": lambda issuer: constant((1).to_bytes(66, "big") * 2),
    "r and s of the group's order": lambda issuer: constant(ORDER.to_bytes(66, "big") * 2),
    "r of zero": lambda issuer: constant(bytes(66) + (1).to_bytes(66, "big")),
    "one byte": lambda issuer: constant(b"\0"),
    "truncated by one": lambda issuer: lambda data: ecdsa(issuer.key.private)(data)[:-1],
    "truncated to r": lambda issuer: lambda data: ecdsa(issuer.key.private)(data)[:66],
    "longer by one": lambda issuer: lambda data: ecdsa(issuer.key.private)(data) + b"\0",
    "zero before it": lambda issuer: lambda data: b"\0" + ecdsa(issuer.key.private)(data),
    "twice": lambda issuer: lambda data: ecdsa(issuer.key.private)(data) * 2,
    "r and s exchanged": lambda issuer: (
        lambda data: ecdsa(issuer.key.private)(data)[66:] + ecdsa(issuer.key.private)(data)[:66]
    ),
    "DER": lambda issuer: der(issuer.key.private),
    "over SHA-256": lambda issuer: ecdsa(issuer.key.private, hashes.SHA256()),
    "over the payload alone": lambda issuer: lambda data: ecdsa(issuer.key.private)(data.split(b".")[1]),
    "over nothing": lambda issuer: lambda data: ecdsa(issuer.key.private)(b""),
    "the signed text itself": lambda issuer: lambda data: data,
    "of another token": lambda issuer: constant(unb64(issuer.token(claims=issuer.claims(sub="bob")).split(".")[2])),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_only_the_one_form_of_a_signature_counts(name: str, issuer: Issuer) -> None:
    assert issuer.at.outcome(issuer.token(sign=SIGNATURES[name](issuer))) == "invalid"


@pytest.mark.parametrize("segment", [0, 1, 2])
def test_a_flipped_bit_anywhere_is_enough(segment: int, issuer: Issuer) -> None:
    parts = issuer.token().split(".")
    data = unb64(parts[segment])
    for position in range(0, len(data), max(1, len(data) // 12)):
        for bit in (0, 7):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            token = ".".join([*parts[:segment], b64(bytes(flipped)), *parts[segment + 1 :]])
            assert issuer.at.outcome(token) == "invalid"


def test_parts_of_two_sound_tokens_make_none(issuer: Issuer) -> None:
    mine, yours = issuer.token().split("."), issuer.token(claims=issuer.claims(sub="bob")).split(".")
    assert issuer.at.outcome(".".join([mine[0], yours[1], mine[2]])) == "invalid"
    assert issuer.at.outcome(".".join([mine[0], yours[1], yours[2]])) == "accepted"  # the headers are equal


# ---- the header


HEADERS: dict[str, dict[str, Any]] = {
    "kid missing": {"kid": GONE},
    "kid unknown": {"kid": "unknown"},
    "kid empty": {"kid": ""},
    "kid of 10 kB": {"kid": "k" * 10_000},
    "kid a path": {"kid": "../../../../dev/null"},
    "kid a URL": {"kid": "file:///etc/passwd"},
    "kid SQL": {"kid": "' UNION SELECT 'secret' --"},
    "kid a command": {"kid": "key; sleep 10 |"},
    "kid a list": {"kid": ["k"]},
    "kid an object": {"kid": {"k": 1}},
    "kid a number": {"kid": 0},
    "kid true": {"kid": True},
    "kid null": {"kid": None},
    "kid with NUL": {"kid": "k\0"},
    "kid half a surrogate pair": {"kid": "\ud800"},
    "crit of something unknown": {"crit": ["exp"], "exp": 1},
    "crit of something known": {"crit": ["kid"]},
    "crit empty": {"crit": []},
    "crit null": {"crit": None},
    "crit of b64": {"crit": ["b64"], "b64": False},
    "b64 false": {"b64": False},
    "b64 true": {"b64": True},
    "zip": {"zip": "DEF"},
    "cty of a nested token": {"cty": "JWT"},
    "cty of anything": {"cty": "text/plain"},
    "typ missing": {"typ": GONE},
    "typ null": {"typ": None},
    "typ empty": {"typ": ""},
    "typ a list": {"typ": ["at+jwt"]},
    "typ a number": {"typ": 1},
    "typ of a refresh token": {"typ": "unikorn-cloud.org/rt+jwt"},
    "typ of an authorization code": {"typ": "unikorn-cloud.org/authcode+jwt"},
    "typ of a login state": {"typ": "unikorn-cloud.org/loginstate+jwt"},
    "typ of a logout token": {"typ": "logout+jwt"},
    "typ of a proof of possession": {"typ": "dpop+jwt"},
    "typ of an event": {"typ": "secevent+jwt"},
    "typ with a space": {"typ": " at+jwt"},
    "typ of another branch": {"typ": "text/at+jwt"},
    "typ twice prefixed": {"typ": "application/application/at+jwt"},
    "enc": {"enc": "A256GCM"},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_is_not_exactly_as_it_must_be_is_refused(name: str, issuer: Issuer) -> None:
    assert issuer.at.outcome(issuer.token(issuer.header(**HEADERS[name]))) == "invalid"


@pytest.mark.parametrize("typ", ["at+jwt", "AT+JWT", "application/at+jwt", "Application/AT+jwt", "JWT", "jwt"])
def test_a_type_is_compared_as_media_types_are(typ: str, issuer: Issuer) -> None:
    assert issuer.at.outcome(issuer.token(issuer.header(typ=typ))) == "accepted"


@pytest.mark.parametrize(
    "text",
    [
        b'{"alg":"none","alg":"ES512","kid":"KID","typ":"at+jwt"}',
        b'{"alg":"ES512","alg":"none","kid":"KID","typ":"at+jwt"}',
        b'{"alg":"ES512","alg":"ES512","kid":"KID","typ":"at+jwt"}',
        b'{"alg":"ES512","kid":"other","kid":"KID","typ":"at+jwt"}',
        b'{"alg":"ES512","kid":"KID","typ":"dpop+jwt","typ":"at+jwt"}',
        b'{"alg":"ES512","\\u0061lg":"ES512","kid":"KID","typ":"at+jwt"}',
    ],
)
def test_a_signed_header_with_a_member_twice_is_refused(text: bytes, issuer: Issuer) -> None:
    header = text.replace(b"KID", issuer.key.kid.encode())
    assert issuer.at.outcome(issuer.token(header)) == "invalid"


def attackers(issuer: Issuer) -> tuple[Sign, dict[str, dict[str, Any]]]:
    """A key of the attacker's, and all the ways to tell the server of it."""
    private = ec.generate_private_key(ec.SECP521R1())
    url = issuer.identity.issuer + "/evil"
    jwk = ec_jwk(private.public_key(), kid=issuer.key.kid, use="sig", alg="ES512")
    return ecdsa(private), {
        "jku": {"jku": url},
        "x5u": {"x5u": url},
        "jwk": {"jwk": jwk},
        "x5c": {"x5c": [b64(private.private_bytes_raw() if hasattr(private, "private_bytes_raw") else b"certificate")]},
        "x5t": {"x5t": b64(b"\0" * 20), "x5t#S256": b64(b"\0" * 32)},
        "a kid that is a URL": {"kid": url},
        "a jwk that is a URL": {"jwk": url},
        "an issuer in the header": {"iss": url},
        "all of them": {"jku": url, "x5u": url, "jwk": jwk, "kid": "attackers"},
    }


WAYS = (
    "jku",
    "x5u",
    "jwk",
    "x5c",
    "x5t",
    "a kid that is a URL",
    "a jwk that is a URL",
    "an issuer in the header",
    "all of them",
)


@pytest.mark.parametrize("way", WAYS)
def test_where_a_token_says_its_key_is_nobody_looks(way: str, issuer: Issuer) -> None:
    sign, ways = attackers(issuer)
    before = len(issuer.identity.seen)
    assert issuer.at.outcome(issuer.token(issuer.header(**ways[way]), sign=sign)) == "invalid"
    issuer.identity.time.now += 31  # now an unknown kid may cause a fetch of the true key set, and nothing else
    assert issuer.at.outcome(issuer.token(issuer.header(**ways[way]), sign=sign)) == "invalid"
    assert {seen.path for seen in issuer.identity.seen[before:]} <= {"/oauth2/v2/jwks"}


@pytest.mark.parametrize("way", ["jku", "x5u", "jwk", "x5c", "x5t", "an issuer in the header"])
def test_a_sound_token_may_say_so_and_still_nobody_looks(way: str, issuer: Issuer) -> None:
    _, ways = attackers(issuer)
    before = len(issuer.identity.seen)
    assert issuer.at.outcome(issuer.token(issuer.header(**ways[way]))) == "accepted"
    assert len(issuer.identity.seen) == before


# ---- claims

NAN, HUGE = float("nan"), 1e30


def now_plus(seconds: float) -> Callable[[Issuer], Any]:
    return lambda issuer: issuer.identity.now + seconds


def always(value: Any) -> Callable[[Issuer], Any]:
    return lambda issuer: value


CLAIMS: dict[str, tuple[str, Callable[[Issuer], Any]]] = {
    "exp past": ("exp", now_plus(-3600)),
    "exp just outside the leeway": ("exp", now_plus(-LEEWAY)),
    "exp missing": ("exp", always(GONE)),
    "exp null": ("exp", always(None)),
    "exp a string": ("exp", lambda issuer: str(issuer.identity.now + 300)),
    "exp true": ("exp", always(True)),
    "exp a list": ("exp", lambda issuer: [issuer.identity.now + 300]),
    "exp NaN": ("exp", always(NAN)),
    "exp Infinity": ("exp", always(float("inf"))),
    "exp 1e30": ("exp", always(HUGE)),
    "exp past the year 9999": ("exp", always(253_402_300_800)),
    "exp in milliseconds": ("exp", lambda issuer: (issuer.identity.now + 300) * 1000),
    "exp a whole number of 400 digits": ("exp", always(10**400)),
    "exp negative": ("exp", always(-1)),
    "exp zero": ("exp", always(0)),
    "nbf outside the leeway": ("nbf", now_plus(LEEWAY + 1)),
    "nbf far in the future": ("nbf", now_plus(10**6)),
    "nbf a string": ("nbf", always("0")),
    "nbf true": ("nbf", always(True)),
    "nbf null": ("nbf", always(None)),
    "nbf NaN": ("nbf", always(NAN)),
    "iat outside the leeway": ("iat", now_plus(LEEWAY + 1)),
    "iat missing": ("iat", always(GONE)),
    "iat a string": ("iat", lambda issuer: str(issuer.identity.now)),
    "iat false": ("iat", always(False)),
    "iat NaN": ("iat", always(NAN)),
    "iat negative": ("iat", always(-5)),
    "iss wrong": ("iss", always("https://identity.example")),
    "iss missing": ("iss", always(GONE)),
    "iss null": ("iss", always(None)),
    "iss empty": ("iss", always("")),
    "iss with a slash": ("iss", lambda issuer: issuer.identity.issuer + "/"),
    "iss in capitals": ("iss", lambda issuer: issuer.identity.issuer.upper()),
    "iss with a space": ("iss", lambda issuer: issuer.identity.issuer + " "),
    "iss without a scheme": ("iss", lambda issuer: issuer.identity.issuer.removeprefix("http://")),
    "iss a list": ("iss", lambda issuer: [issuer.identity.issuer]),
    "iss with ours as its beginning": ("iss", lambda issuer: issuer.identity.issuer + ".evil.example"),
    "iss a passport's": ("iss", always("uni-identity")),
    "aud missing": ("aud", always(GONE)),
    "aud null": ("aud", always(None)),
    "aud empty": ("aud", always("")),
    "aud wrong": ("aud", always("another.example")),
    "aud a list without ours": ("aud", always(["another.example", "third.example"])),
    "aud an empty list": ("aud", always([])),
    "aud containing ours": ("aud", always(f"x{AUDIENCE}x")),
    "aud a part of ours": ("aud", always(AUDIENCE[:-1])),
    "aud ours in capitals": ("aud", always(AUDIENCE.upper())),
    "aud ours and others, in one string": ("aud", always(f"{AUDIENCE} another.example")),
    "aud a list in a list": ("aud", always([[AUDIENCE]])),
    "aud a list with a number": ("aud", always([AUDIENCE, 1])),
    "aud an object": ("aud", always({AUDIENCE: True})),
    "aud a number": ("aud", always(1)),
    "sub missing": ("sub", always(GONE)),
    "sub empty": ("sub", always("")),
    "sub null": ("sub", always(None)),
    "sub a number": ("sub", always(7)),
    "sub a list": ("sub", always(["ada"])),
    "sub with a line end": ("sub", always("ada\nroot")),
    "sub with NUL": ("sub", always("ada\0")),
    "sub half a surrogate pair": ("sub", always("\udc00")),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_that_is_not_exactly_as_it_must_be_is_refused(name: str, issuer: Issuer) -> None:
    claim, value = CLAIMS[name]
    assert issuer.at.outcome(issuer.token(claims=issuer.claims(**{claim: value(issuer)}))) == "invalid"


SOUND: dict[str, tuple[str, Callable[[Issuer], Any]]] = {
    "exp just inside the leeway": ("exp", now_plus(1 - LEEWAY)),
    "exp with a fraction": ("exp", now_plus(0.5)),
    "nbf just inside the leeway": ("nbf", now_plus(LEEWAY)),
    "iat just inside the leeway": ("iat", now_plus(LEEWAY)),
    "nbf past": ("nbf", now_plus(-1000)),
    "aud a list with ours": ("aud", always(["another.example", AUDIENCE])),
    "aud a list of ours": ("aud", always([AUDIENCE])),
    "sub with a space": ("sub", always("Ada Lovelace")),
    "email of a wrong type": ("email", always(7)),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_claim_at_the_edge_of_what_is_allowed_is_accepted(name: str, issuer: Issuer) -> None:
    claim, value = SOUND[name]
    assert issuer.at.outcome(issuer.token(claims=issuer.claims(**{claim: value(issuer)}))) == "accepted"


def test_without_leeway_a_token_ends_in_the_second_of_its_exp(identity: FakeIdentity, time: FakeTime) -> None:
    with auth_app(settings_for(identity, AuthMode.jwks, leeway_seconds=0), time) as at:
        claims = {"iss": identity.issuer, "aud": AUDIENCE, "sub": "ada", "iat": identity.now}
        for exp, expected in ((identity.now, "invalid"), (identity.now + 1, "accepted")):
            assert at.outcome(identity.sign(claims | {"exp": exp}, typ="at+jwt")) == expected
        for name in ("nbf", "iat"):
            early = claims | {"exp": identity.now + 9, name: identity.now + 1}
            assert at.outcome(identity.sign(early, typ="at+jwt")) == "invalid"


PAYLOADS: dict[str, Callable[[Issuer], bytes]] = {
    "a member twice": lambda issuer: raw(issuer.claims())[:-1] + b',"sub":"root"}',
    "exp twice": lambda issuer: b'{"exp":1,' + raw(issuer.claims())[1:],
    "a nested member twice": lambda issuer: raw(issuer.claims())[:-1] + b',"x":{"a":1,"a":2}}',
    "nested 5,000 deep": lambda issuer: raw(issuer.claims())[:-1] + b',"x":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "objects 2,000 deep": lambda issuer: raw(issuer.claims())[:-1] + b',"x":' + b'{"a":' * 2000 + b"1" + b"}" * 2001,
    "invalid UTF-8": lambda issuer: raw(issuer.claims())[:-1] + b',"x":"\xff"}',
    "an overlong slash": lambda issuer: raw(issuer.claims())[:-1] + b',"x":"\xc0\xaf"}',
    "a byte order mark": lambda issuer: b"\xef\xbb\xbf" + raw(issuer.claims()),
    "UTF-16": lambda issuer: raw(issuer.claims()).decode().encode("utf-16"),
    "a comma too many": lambda issuer: raw(issuer.claims())[:-1] + b",}",
    "something behind it": lambda issuer: raw(issuer.claims()) + b"{}",
    "a list": lambda issuer: b"[" + raw(issuer.claims()) + b"]",
    "a string": lambda issuer: raw(json.dumps(issuer.claims())),
    "null": lambda issuer: b"null",
    "NaN in a claim of no meaning": lambda issuer: raw(issuer.claims(x=NAN)),
    "no JSON": lambda issuer: b"\0\1\2",
    "compressed": lambda issuer: b"x\x9c\xabV*\xceO\x04\x00\x05N\x01\xb0",
    "another token": lambda issuer: issuer.token().encode(),
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_payload_that_is_not_one_clear_object_is_refused(name: str, issuer: Issuer) -> None:
    assert issuer.at.outcome(issuer.token(claims=PAYLOADS[name](issuer))) == "invalid"


# ---- other tokens of the same issuer, and of others


def test_what_the_issuer_made_for_another_purpose_is_no_access_token(issuer: Issuer) -> None:
    identity = issuer.identity
    passport = identity.claims("passport", "ada", 60, iss="uni-identity", aud=[AUDIENCE], acctype="user", org_ids=["o"])
    for token in (
        identity.id_token(),
        identity.sign(identity.claims("fed", "ada", 60, aud=["cli"]), typ="at+jwt"),
        identity.sign(passport),
        identity.sign(passport, typ="at+jwt"),
        identity.refresh_token(),
        identity.system_token(),
    ):
        assert issuer.at.outcome(token) == "invalid"


def test_another_issuers_key_of_the_same_name_signs_nothing(issuer: Issuer) -> None:
    other = SigningKey()
    other.kid = issuer.key.kid
    assert issuer.at.outcome(issuer.identity.sign(issuer.claims(), other, typ="at+jwt")) == "invalid"


@pytest.mark.parametrize("legacy", [False, True])
def test_an_encrypted_token_is_refused_with_one_hint_in_the_log(
    legacy: bool, identity: FakeIdentity, time: FakeTime, caplog: pytest.LogCaptureFixture
) -> None:
    with auth_app(settings_for(identity, AuthMode.jwks), time) as at:
        for number in range(3):
            assert at.outcome(identity.service_token(f"sa-{number}", legacy=legacy)) == "invalid"
    hints = [record.getMessage() for record in caplog.records if "--auth-mode exchange" in record.getMessage()]
    assert len(hints) == 1


def test_types_are_those_that_the_option_names(identity: FakeIdentity, time: FakeTime) -> None:
    settings = replace(settings_for(identity, AuthMode.jwks), jws_types=("access+jwt",))
    claims = {"iss": identity.issuer, "aud": AUDIENCE, "sub": "ada", "iat": identity.now, "exp": identity.now + 60}
    with auth_app(settings, time) as at:
        assert at.outcome(identity.sign(claims, typ="access+jwt")) == "accepted"
        assert at.outcome(identity.sign(claims, typ="at+jwt")) == "invalid"
