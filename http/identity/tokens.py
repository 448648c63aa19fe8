"""What an Authorization header holds, and whether a signed token is what it says. No network, no cache, no clock.

    1 credential    exactly one field, the scheme Bearer in any case, one word behind it, within a size
    2 parse         segments, their alphabet, the header: an encrypted token (5 segments, `enc`) or a signed one (3)
    3 check_header  the algorithm, the type and the key's name are such as the rules allow
    4 verify        the signature by PyJWT, then the claims by us

PyJWT would let pass a duplicate member, a time that is a string, a bool or 1e30, and a missing `exp`; so it is asked
for the signature only. What a token says about where its key may be found (jku, x5u, jwk, x5c) is never looked at.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import jwt
from starlette.datastructures import Headers

from gnomon.http.identity.jwks import Key
from gnomon.http.identity.refusals import BadToken, MalformedHeader, Missing

SCHEME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*")
ONE_WORD = re.compile(r" +([\x21-\x7e]+)")
BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
LAST_SECOND = 253_402_300_799  # of the year 9999; 1e30 is no time
UNREAD = ("crit", "b64", "zip", "cty")  # each changes what the payload is; we would have to understand it


def credential(headers: Headers, most: int) -> str:
    """The one word behind Bearer."""
    fields = headers.getlist("authorization")
    if not fields:
        raise Missing("no Authorization field")
    if len(fields) > 1:
        raise MalformedHeader("several Authorization fields", most)
    scheme = SCHEME.match(fields[0])
    assert scheme is not None  # it matches the empty word
    if scheme.group().lower() != "bearer":
        raise Missing("another scheme")
    rest = fields[0][scheme.end() :]
    if len(rest.strip(" ")) > most:
        raise MalformedHeader("a credential beyond the limit", most)
    word = ONE_WORD.fullmatch(rest)
    if word is None:
        raise BadToken("not one word of visible ASCII behind the scheme")
    return word.group(1)


@dataclass(frozen=True, slots=True)
class ParsedToken:
    """A token that is well formed. Nothing in it is believed yet."""

    text: str
    header: dict[str, Any]
    encrypted: bool


def parse(text: str) -> ParsedToken:
    """Tells the two forms of a token apart, as the identity service does."""
    segments = text.split(".")
    encrypted = len(segments) == 5
    if not encrypted and len(segments) != 3:
        raise BadToken("neither three segments nor five")
    for position, segment in enumerate(segments):
        if not segment and encrypted and position == 1:
            continue  # the older encrypted tokens have no encrypted key: ECDH-ES agrees on one
        decode_segment(segment)
    header = read_object(decode_segment(segments[0]))
    if not is_text(header.get("alg")):
        raise BadToken("a header without alg")
    if encrypted != is_text(header.get("enc")) or ("enc" in header) != encrypted:
        raise BadToken("enc and the number of segments disagree")
    return ParsedToken(text, header, encrypted)


def decode_segment(segment: str) -> bytes:
    """base64url without padding, in the one spelling that its bytes have."""
    if not BASE64URL.fullmatch(segment):
        raise BadToken("a segment that is empty or not base64url")
    try:
        data = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except binascii.Error:
        raise BadToken("a segment of an impossible length") from None
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != segment:
        raise BadToken("a segment with bits to spare")
    return data


def read_object(data: bytes) -> dict[str, Any]:
    """A JSON object whose members have different names, with finite numbers."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_members, parse_constant=_not_a_number)
    except (ValueError, RecursionError):
        raise BadToken("not JSON, or ambiguous JSON") from None
    if not isinstance(value, dict):
        raise BadToken("JSON, but not an object")
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member occurs twice")
    return members


def _not_a_number(word: str) -> NoReturn:
    raise ValueError(word)


def is_text(value: object) -> bool:
    """A string of at least one character, all of them printable (half of a surrogate pair is not)."""
    return isinstance(value, str) and value != "" and value.isprintable()


@dataclass(frozen=True, slots=True)
class Rules:
    """What a signed token must be to be accepted."""

    algorithms: frozenset[str]
    types: frozenset[str | None]  # the header's typ, in lower case; None: it may have none
    issuer: str
    audience: str
    required: tuple[str, ...]  # claims, beside iss, aud, sub and exp
    leeway: float  # seconds


def check_header(token: ParsedToken, rules: Rules) -> str:
    """The name of the key to verify by."""
    if token.encrypted:
        raise BadToken("an encrypted token; only the identity service can open it")
    if token.header["alg"] not in rules.algorithms:
        raise BadToken("an algorithm that is not allowed")
    type = token.header.get("typ")
    if type is not None and not isinstance(type, str):
        raise BadToken("a typ that is no string")
    if (type and type.lower().removeprefix("application/")) not in rules.types:
        raise BadToken("a typ that is not allowed")
    if any(name in token.header for name in UNREAD):
        raise BadToken("a header that asks for more than a signature")
    kid = token.header.get("kid")
    if not isinstance(kid, str) or not is_text(kid):
        raise BadToken("a kid that is missing or no string")
    return kid


def verify_token(token: ParsedToken, key: Key, rules: Rules, now: float) -> dict[str, Any]:
    """The claims of a token whose header was checked, if `key` signed it and every claim is as it must be."""
    algorithm = token.header["alg"]
    if algorithm not in key.algorithms:
        raise BadToken("an algorithm that is not the key's")
    try:
        jws = jwt.PyJWS().decode_complete(token.text, key.public, algorithms=[algorithm])
    except (jwt.PyJWTError, ValueError, TypeError):
        raise BadToken("not signed by the key it names") from None
    claims = read_object(jws["payload"])
    check_claims(claims, rules, now)
    return claims


def check_claims(claims: dict[str, Any], rules: Rules, now: float) -> None:
    for name in ("iss", "aud", "sub", "exp", *rules.required):
        if name not in claims:
            raise BadToken(f"without {name}")
    if claims["iss"] != rules.issuer:
        raise BadToken("of another issuer")
    if rules.audience not in audiences(claims["aud"]):
        raise BadToken("for another audience")
    if not is_text(claims["sub"]):
        raise BadToken("a sub that names nobody")
    if now >= time_of(claims, "exp") + rules.leeway:
        raise BadToken("expired")
    for name in ("nbf", "iat"):
        if name in claims and time_of(claims, name) > now + rules.leeway:
            raise BadToken("of the future")


def audiences(value: object) -> Iterable[str]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    raise BadToken("an aud that is neither a string nor a list of strings")


def time_of(claims: dict[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadToken(f"{name} is no number")
    if not 0 <= value <= LAST_SECOND:  # NaN is in no range
        raise BadToken(f"{name} is no time")
    return float(value)
