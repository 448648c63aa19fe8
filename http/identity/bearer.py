"""The modes exchange, userinfo and jwks: a bearer token → a Principal.

    1 read      the header and the token's shape; what is malformed costs no request
    2 cache     what was found out about this token a moment ago, good or bad
    3 look up   at the identity service, or by its keys: once, however many ask at one time
    4 policy    account types, organizations and the required right

A definite answer is remembered: an accepted token for cache_seconds, but never past its end, a refused one for
negative_seconds. `Away` is not remembered: nothing was found out. The two are kept apart, so that a flood of bad tokens
cannot drive out the good ones.

The server starts without the identity service and goes on trying in the background; until the first success every
token gets `Away`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from starlette.datastructures import Headers

from gnomon.http.identity.client import IdentityService, Right, account_from
from gnomon.http.identity.clock import Clock
from gnomon.http.identity.jwks import KeyCache
from gnomon.http.identity.options import flag, tls_context
from gnomon.http.identity.principal import Account, Policy, Principal
from gnomon.http.identity.refusals import Away, BadToken, Denied
from gnomon.http.identity.token_cache import ExpiringCache, SharedCalls
from gnomon.http.identity.tokens import ParsedToken, Rules, check_header, credential, parse, time_of, verify_token
from gnomon.http.process.reload import Renew, Renewal, check_file, owner
from gnomon.http.settings import AuthMode, AuthSettings

logger = logging.getLogger("gnomon.http")

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between attempts to reach the identity service at start; doubled each
MARGIN = 10.0  # seconds before its end in which a token is not remembered any more
PASSPORT_ISSUER = "uni-identity"  # a name, not a URL

CheckedToken: TypeAlias = Principal | BadToken | Denied | Away


def digest_of(credential: str) -> bytes:
    return hashlib.sha256(credential.encode()).digest()


class BearerTokens:
    """Accepts what the configured issuer vouches for."""

    def __init__(self, settings: AuthSettings, tls: ssl.SSLContext, clock: Clock) -> None:
        assert settings.issuer is not None
        self.settings = settings
        self.clock = clock
        self.identity = IdentityService(settings, tls)
        self.keys = KeyCache(
            self.identity.fetch_keys,
            settings.jwks_seconds,
            settings.jwks_cooldown_seconds,
            settings.jwks_stale_seconds,
            clock,
        )
        passports = settings.mode is AuthMode.exchange
        types = {None, "jwt"} if passports else {type.lower() for type in settings.jws_types}
        self.rules = Rules(
            algorithms=frozenset(settings.algorithms),
            types=frozenset(types),
            issuer=PASSPORT_ISSUER if passports else settings.issuer,
            audience=settings.audience or "",
            required=("iat", "nbf", "typ", "acctype") if passports else ("iat",),
            leeway=settings.leeway_seconds,
        )
        self.policy = Policy.of(settings)
        self.right = Right.of(settings.required_acl) if settings.required_acl else None
        self.accepted: ExpiringCache[Principal] = ExpiringCache(settings.cache_size, clock)
        self.refused: ExpiringCache[BadToken | Denied] = ExpiringCache(settings.cache_size, clock)
        self.lookups: SharedCalls[CheckedToken] = SharedCalls()
        self.ready = False
        self.away = False
        self.hinted = False
        self.preparing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.preparing = asyncio.create_task(self.prepare())

    async def stop(self) -> None:
        if self.preparing is not None:
            self.preparing.cancel()
            await asyncio.gather(self.preparing, return_exceptions=True)
        await self.lookups.close()
        self.keys.close()
        await self.identity.close()

    def readers(self) -> Sequence[Renew]:
        return [self.read] if self.files() else []

    def files(self) -> dict[str, Path]:
        """The certificates and keys that were given for talking to the identity service, by their flags."""
        names = ("ca_file", "client_certificate", "client_key")
        return {flag(name): path for name in names if (path := getattr(self.settings, name)) is not None}

    def read(self) -> Renewal:
        """Whom to believe to be the identity service, and who we are to it, for the next questions to it."""
        for name, path in self.files().items():
            check_file(name, path)
        tls = tls_context(self.settings)
        told = []
        if self.settings.ca_file is not None:
            trusted = tls.cert_store_stats()["x509"]
            told.append(f"{flag('ca_file')} {self.settings.ca_file} read, certificates in it: {trusted}")
        if self.settings.client_certificate is not None:
            mine = self.settings.client_certificate
            told.append(f"{flag('client_certificate')} {mine} read: {owner(mine)}")
        return Renewal("; ".join(told), lambda: self.identity.renew(tls))

    async def prepare(self) -> None:
        """Tries until the endpoints, and the keys where the mode needs them, have been seen once."""
        wait = FIRST_WAIT
        while True:
            try:
                await self.identity.discover()
                if self.settings.mode is not AuthMode.userinfo:
                    await self.keys.refresh()
                self.ready = True
                self.note(None)
                return
            except Away as away:
                self.note(away)
            except Exception:  # a fault of ours must not end the attempts, and nobody awaits this task to see it
                logger.exception("an attempt to reach the identity service failed")
            await self.clock.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    def note(self, away: Away | None) -> None:
        """Tells the log when the identity service goes, and when a token is accepted again; not what is between.

        A refusal is no sign of its return: in mode jwks anybody can have one, and the log would fill with comings.
        """
        if away is not None and not self.away:
            logger.warning("the identity service at %s is away: %s", self.settings.issuer, away.reason)
        if away is None and self.away:
            logger.warning("the identity service at %s is back", self.settings.issuer)
        self.away = away is not None

    async def authenticate(self, headers: Headers) -> Principal:
        text = credential(headers, self.settings.max_token_bytes)
        digest = digest_of(text)
        verdict: CheckedToken
        try:
            token = parse(text)
            if not self.ready:
                raise Away("the identity service was not reached yet")
            known = self.accepted.get(digest) or self.refused.get(digest)
            verdict = known or await self.lookups.share(digest, lambda: self.decide(token, digest))
        except (BadToken, Away) as refusal:
            verdict = refusal
        if isinstance(verdict, Principal):
            return verdict
        # A new exception each time: one that is kept would collect the frames of all who were given it.
        fresh = type(verdict)(verdict.reason)
        fresh.caller = digest.hex()[:8]
        raise fresh

    async def decide(self, token: ParsedToken, digest: bytes) -> CheckedToken:
        """Finds out, and remembers what is definite. Never raises what is a verdict: nobody may be there to take it."""
        try:
            found = await self.look_up(token)
            organizations = await self.let_in(token, found)
        except (BadToken, Denied) as refusal:
            verdict = type(refusal)(refusal.reason)
            self.refused.put(digest, verdict, self.settings.negative_seconds)
            return verdict
        except Away as away:
            self.note(away)
            return Away(away.reason)
        self.note(None)
        principal = Principal(found.subject, found.type, organizations, found.email, digest.hex()[:8])
        left = float("inf") if found.expires is None else found.expires - self.clock.wall() - MARGIN
        self.accepted.put(digest, principal, min(self.settings.cache_seconds, left))
        return principal

    async def look_up(self, token: ParsedToken) -> Account:
        match self.settings.mode:
            case AuthMode.userinfo:
                return await self.identity.userinfo(token.text)
            case AuthMode.exchange:
                return await self.exchanged(token)
            case _:
                return await self.signed(token)

    async def exchanged(self, token: ParsedToken) -> Account:
        """The passport is the service's answer: one that we must refuse says nothing against the caller's token."""
        passport = await self.identity.exchange(token.text)
        try:
            claims = await self.verified(parse(passport))
        except BadToken as error:
            raise Away(f"a passport that is refused: {error.reason}") from None
        if claims["typ"] != "passport" or not isinstance(claims["acctype"], str):
            raise Away("a passport that is none, or of no account type")
        found = account_from(claims, claims["acctype"], claims.get("org_ids"))
        return Account(found.subject, found.type, found.organizations, found.email, time_of(claims, "exp"))

    async def signed(self, token: ParsedToken) -> Account:
        if token.encrypted and not self.hinted:
            self.hinted = True
            logger.warning(
                "an encrypted token was refused: only the identity service can open it; "
                "--auth-mode exchange and userinfo ask it"
            )
        claims = await self.verified(token)
        email = claims.get("email")
        return Account(claims["sub"], None, (), email if isinstance(email, str) else None, time_of(claims, "exp"))

    async def verified(self, token: ParsedToken) -> dict[str, Any]:
        key = await self.keys.find(check_header(token, self.rules))
        return verify_token(token, key, self.rules, self.clock.wall())

    async def let_in(self, token: ParsedToken, found: Account) -> tuple[str, ...]:
        """The organizations for which the account is let in; Denied if it is not."""
        if self.settings.mode is AuthMode.jwks:
            return ()
        organizations = self.policy.organizations_of(found)
        if self.right is not None and not await self.identity.may(token.text, self.right, organizations):
            raise Denied("without the required right (--auth-required-acl)")
        return organizations
