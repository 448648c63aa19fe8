"""Who may call: the authenticator of the chosen mode, and the middleware that asks it before anything else happens.

    exchange, userinfo, jwks   bearer.py
    api-key                    keys that the operator handed out, kept and compared as digests
    none                       everybody, whatever the header says (LAW.md, section 12)

The middleware answers nothing: it raises a refusal, and ErrorForm, outside it, gives it its form. No body is read
before a caller is known. A caller is asked for once: a stream that was let in may outlive its token.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gnomon.http.identity.bearer import BearerTokens, digest_of
from gnomon.http.identity.clock import SYSTEM, Clock
from gnomon.http.identity.options import ConfigError, api_keys, check_settings, flag, tls_context
from gnomon.http.identity.principal import ANYONE, PRINCIPAL_KEY, Principal, principal_of
from gnomon.http.identity.refusals import Away, BadToken, Denied, Refusal
from gnomon.http.identity.tokens import credential
from gnomon.http.observe.record import record_of
from gnomon.http.process.reload import Renew, Renewal, check_file
from gnomon.http.schema.route import error_of
from gnomon.http.settings import AuthMode, AuthSettings
from gnomon.reference.errors import RequestError

__all__ = ["Authentication", "Authenticator", "ConfigError", "Principal", "authenticator", "principal_of"]


class Authenticator(Protocol):
    ready: bool  # whether it has all it needs to accept anybody

    async def start(self) -> None:
        """Begins what goes on in the background; returns at once."""

    async def stop(self) -> None: ...

    async def authenticate(self, headers: Headers) -> Principal:
        """Who calls; raises a Refusal."""

    def readers(self) -> Sequence[Renew]:
        """What of it SIGHUP reads again."""


def authenticator(settings: AuthSettings, clock: Clock = SYSTEM) -> Authenticator:
    """The authenticator of the chosen mode; ConfigError says what cannot be meant."""
    check_settings(settings)
    match settings.mode:
        case AuthMode.none:
            return Anyone()
        case AuthMode.api_key:
            return KeyHolders(settings)
        case _:
            return BearerTokens(settings, tls_context(settings), clock)


def credential_errors(mode: AuthMode, settings: AuthSettings) -> list[RequestError]:
    """What a caller may be told of its credential, one of each kind."""
    if mode is AuthMode.none:
        return []
    most = settings.max_token_bytes
    two = Headers(raw=[(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")])
    told = [error_of(lambda: credential(two, most)), error_of(lambda: credential(Headers(), most)), BadToken("")]
    if mode in (AuthMode.exchange, AuthMode.userinfo):
        told.append(Denied(""))
    return [*told, *([] if mode is AuthMode.api_key else [Away("")])]


class Anyone:
    """Mode none."""

    def __init__(self) -> None:
        self.ready = True

    async def start(self) -> None:
        """Nothing of it goes on in the background."""

    async def stop(self) -> None:
        """Nothing of it goes on in the background."""

    async def authenticate(self, headers: Headers) -> Principal:
        return ANYONE

    def readers(self) -> Sequence[Renew]:
        return ()


class KeyHolders:
    """Mode api-key. The keys themselves are forgotten at once; those of a file can be read again."""

    def __init__(self, settings: AuthSettings) -> None:
        self.ready = True
        self.digests = tuple(map(digest_of, api_keys(settings)))
        self.settings = replace(settings, api_keys=())
        self.most = settings.max_token_bytes

    async def start(self) -> None:
        """Nothing of it goes on in the background."""

    async def stop(self) -> None:
        """Nothing of it goes on in the background."""

    async def authenticate(self, headers: Headers) -> Principal:
        digest = digest_of(credential(headers, self.most))
        name = digest.hex()[:8]
        # all of them, always: how long it takes tells nothing of which key was nearly met
        if sum([hmac.compare_digest(digest, one) for one in self.digests]) == 0:
            refusal = BadToken("no such key")
            refusal.caller = name
            raise refusal
        return Principal(f"key {name}", None, (), None, name)

    def readers(self) -> Sequence[Renew]:
        return [self.read]

    def read(self) -> Renewal:
        """The keys as their file has them now. One that is not there any more is refused from then on."""
        file = self.settings.api_key_file
        if file is None:
            sources = f"{flag('api_keys')} or from a pipe"
            raise ConfigError(f"the keys came from {sources}, which cannot be read again: start anew to change them")
        check_file(flag("api_key_file"), file)
        digests = tuple(map(digest_of, api_keys(self.settings)))
        before, now = set(self.digests), set(digests)
        told = f"keys read from {file}: {len(now)}, new {len(now - before)}, no longer let in {len(before - now)}"

        def use() -> None:
            self.digests = digests

        return Renewal(told, use)


class Authentication:
    """Lets a request through with its Principal in the scope, or raises a refusal."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator, open_paths: frozenset[str]) -> None:
        self.app = app
        self.authenticator = authenticator
        self.open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self.open_paths:
            scope[PRINCIPAL_KEY] = await self.ask(scope)
        await self.app(scope, receive, send)

    async def ask(self, scope: Scope) -> Principal:
        record = record_of(scope)
        try:
            principal = await self.authenticator.authenticate(Headers(scope=scope))
        except Refusal as refusal:
            record.auth, record.caller, record.reason = refusal.outcome, refusal.caller, refusal.reason
            raise
        record.auth, record.caller = "off" if principal is ANYONE else "accepted", principal.digest
        return principal
