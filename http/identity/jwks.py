"""The keys that tokens are signed by: which entries of a key set are used, and when the set is fetched.

    load_keys   public EC, RSA and OKP keys for signatures, each under a name that no other has; the rest is left out
    KeyCache    a set is used for a while, fetched again when it is old or a token names a key it lacks, and serves on
                for a longer while when it cannot be fetched

Between two fetches that requests cause lies a cooldown, counted from every attempt: neither an outage nor a flood of
made-up key names becomes a fetch a request. An answer without one usable key counts as no answer.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from jwt.algorithms import AllowedPublicKeys

from gnomon.http.identity.clock import Clock
from gnomon.http.identity.refusals import Away, BadToken

logger = logging.getLogger("gnomon.http")

MOST_KEYS = 64
RSA_BITS = range(2048, 8192 + 1)  # below it is breakable; above it, one verification is a burden
RSA = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
CURVES = {
    ("EC", "P-256"): frozenset({"ES256"}),
    ("EC", "P-384"): frozenset({"ES384"}),
    ("EC", "P-521"): frozenset({"ES512"}),
    ("OKP", "Ed25519"): frozenset({"EdDSA"}),
    ("OKP", "Ed448"): frozenset({"EdDSA"}),
}
ALGORITHMS = RSA.union(*CURVES.values())
"""All that can ever be allowed. No `none`, and no HS…: a public key must not become a secret."""

NUMBERS = {"EC": ("x", "y"), "OKP": ("x",), "RSA": ("n", "e")}


@dataclass(frozen=True, slots=True)
class Key:
    kid: str
    algorithms: frozenset[str]  # that may be used with it
    public: AllowedPublicKeys


def load_keys(document: Mapping[str, Any]) -> dict[str, Key]:
    """The usable keys of a key set, by name. A name that two of them have is nobody's."""
    entries = document.get("keys")
    if not isinstance(entries, list):
        raise Away("a key set without keys")
    if len(entries) > MOST_KEYS:
        raise Away("a key set of too many keys")
    usable = [key for key in map(load_key, entries) if key is not None]
    names = [key.kid for key in usable]
    keys = {key.kid: key for key in usable if names.count(key.kid) == 1}
    if len(keys) < len(entries):
        logger.info("of %d keys in the key set, %d can be used", len(entries), len(keys))
    if not keys:
        raise Away("a key set without a usable key")
    return keys


def load_key(entry: object) -> Key | None:
    """The public key of an entry; None if it is none, is not for signatures, or is not sound."""
    if not isinstance(entry, dict):
        return None
    kid, kty, operations = entry.get("kid"), entry.get("kty"), entry.get("key_ops", ["verify"])
    if not isinstance(kid, str) or not kid or not isinstance(kty, str):
        return None
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    if "d" in entry or not all(isinstance(entry.get(number), str) for number in NUMBERS.get(kty, ("oct has none",))):
        return None  # a private key that is published is no key any more
    algorithms = RSA if kty == "RSA" else CURVES.get((kty, str(entry.get("crv"))), frozenset())
    if "alg" in entry:
        algorithms = algorithms.intersection([entry["alg"]] if isinstance(entry["alg"], str) else ())
    if not algorithms:
        return None
    try:
        public = jwt.PyJWK(entry, algorithm=min(algorithms)).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if kty == "RSA" and public.key_size not in RSA_BITS:
        return None
    return Key(kid, algorithms, public)


class KeyCache:
    """The issuer's keys, as fresh as they need to be. Times are those of the monotonic clock."""

    def __init__(
        self,
        fetch: Callable[[], Awaitable[dict[str, Key]]],
        seconds: float,
        cooldown: float,
        stale: float,
        clock: Clock,
    ) -> None:
        self._fetch = fetch
        self._seconds = seconds
        self._cooldown = cooldown
        self._stale = stale
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self._fetched = -math.inf
        self._attempted = -math.inf
        self._failed = False
        self._under_way: asyncio.Task[None] | None = None

    async def find(self, kid: str) -> Key:
        """The key of this name; Away if that cannot be said now."""
        if self._age >= self._seconds or kid not in self._keys:
            await self._refresh_unless_cooling()
        if self._age >= self._seconds + self._stale:
            raise Away("no key set, or one that is too old")
        if kid in self._keys:
            return self._keys[kid]
        if self._failed:  # it may be a new key, and we could not see it
            raise Away("an unknown kid, and the key set cannot be fetched")
        raise BadToken("an unknown kid")

    async def refresh(self) -> None:
        """Fetches the set, or waits for the fetch that is under way. Away if that fails."""
        await self._shared_fetch()
        if self._failed:
            raise Away("the key set cannot be fetched")

    def close(self) -> None:
        if self._under_way is not None:
            self._under_way.cancel()

    @property
    def _age(self) -> float:
        return self._clock.monotonic() - self._fetched

    async def _refresh_unless_cooling(self) -> None:
        if self._under_way is not None or self._clock.monotonic() - self._attempted >= self._cooldown:
            await self._shared_fetch()

    async def _shared_fetch(self) -> None:
        if self._under_way is None:
            self._under_way = asyncio.create_task(self._attempt())
        await asyncio.shield(self._under_way)  # whoever began it may leave; the others still wait for it

    async def _attempt(self) -> None:
        self._attempted = self._clock.monotonic()
        try:
            self._keys = await self._fetch()
            self._fetched = self._clock.monotonic()
            self._failed = False
        except Away as away:
            self._failed = True
            logger.warning("the key set was not renewed: %s", away.reason)
        finally:
            self._under_way = None
