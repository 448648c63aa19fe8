"""Tokens made by hand, sound and unsound: libraries refuse to make most of those that an attacker would send."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

GONE = object()
"""In place of a member's value: the member is left out."""

Sign = Callable[[bytes], bytes]


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def merged(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (base | changes).items() if value is not GONE}


def raw(value: object) -> bytes:
    """JSON of an object; bytes stay as they are, for what is no JSON. NaN is written as Python writes it."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def jws(header: object, payload: object, sign: Sign) -> str:
    signed = f"{b64(raw(header))}.{b64(raw(payload))}"
    return f"{signed}.{b64(sign(signed.encode()))}"


def junk(header: object, segments: int) -> str:
    """A header and as many segments of no meaning as the number asks for."""
    return ".".join([b64(raw(header)), *(b64(secrets.token_bytes(30)) for _ in range(segments - 1))])


# ---- signatures


def ecdsa(key: ec.EllipticCurvePrivateKey, hash: hashes.HashAlgorithm | None = None) -> Sign:
    size = (key.curve.key_size + 7) // 8

    def sign(data: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hash or hashes.SHA512())))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")

    return sign


def der(key: ec.EllipticCurvePrivateKey) -> Sign:
    return lambda data: key.sign(data, ec.ECDSA(hashes.SHA512()))


def rs(key: rsa.RSAPrivateKey, hash: hashes.HashAlgorithm) -> Sign:
    return lambda data: key.sign(data, padding.PKCS1v15(), hash)


def ps(key: rsa.RSAPrivateKey, hash: hashes.HashAlgorithm) -> Sign:
    return lambda data: key.sign(data, padding.PSS(padding.MGF1(hash), hash.digest_size), hash)


def eddsa(key: ed25519.Ed25519PrivateKey) -> Sign:
    return key.sign


def hs(secret: bytes, bits: int) -> Sign:
    return lambda data: hmac.new(secret, data, getattr(hashlib, f"sha{bits}")).digest()


def constant(signature: bytes) -> Sign:
    return lambda data: signature


# ---- public keys as a key set has them


def number(value: int, size: int | None = None) -> str:
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def ec_jwk(key: ec.EllipticCurvePublicKey, **members: Any) -> dict[str, Any]:
    numbers, size = key.public_numbers(), (key.curve.key_size + 7) // 8
    curve = {256: "P-256", 384: "P-384", 521: "P-521"}[key.curve.key_size]
    base = {"kty": "EC", "crv": curve, "x": number(numbers.x, size), "y": number(numbers.y, size)}
    return merged(base, **members)


def rsa_jwk(key: rsa.RSAPublicKey, **members: Any) -> dict[str, Any]:
    numbers = key.public_numbers()
    return merged({"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e)}, **members)


def ed_jwk(key: ed25519.Ed25519PublicKey, **members: Any) -> dict[str, Any]:
    return merged({"kty": "OKP", "crv": "Ed25519", "x": b64(key.public_bytes_raw())}, **members)
