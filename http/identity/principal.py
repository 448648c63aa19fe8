"""Who calls, and whether such a one is let in.

Account     what the identity service, or a signed token, says of the caller
Policy      account types and organizations that are let in
Principal   the caller as the rest of the server knows it, in the ASGI scope
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Scope

from gnomon.http.identity.refusals import Denied
from gnomon.http.settings import AuthSettings

PRINCIPAL_KEY = "gnomon.principal"


@dataclass(frozen=True, slots=True)
class Account:
    subject: str
    type: str | None  # user, service or system; None: nobody said
    organizations: tuple[str, ...]
    email: str | None
    expires: float | None = None  # seconds since 1970; None: nobody said


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls. `digest` is 8 hex digits of the credential's SHA-256, the only trace of it that may be logged."""

    subject: str
    account_type: str | None
    organizations: tuple[str, ...]  # those for which the caller was let in
    email: str | None
    digest: str | None


ANYONE = Principal("anyone", None, (), None, None)


def principal_of(scope: Scope) -> Principal:
    """The caller of a request that went through Authentication; anyone, on a path that is open."""
    principal: Principal = scope.get(PRINCIPAL_KEY, ANYONE)
    return principal


@dataclass(frozen=True, slots=True)
class Policy:
    """Whom the identity service's accounts must be to be let in."""

    account_types: frozenset[str]
    organizations: frozenset[str]  # empty: whoever has one
    require_authz: bool  # False: an account of which no type was said may be anything

    @classmethod
    def of(cls, settings: AuthSettings) -> Policy:
        return cls(frozenset(settings.account_types), frozenset(settings.organizations), settings.require_authz)

    def organizations_of(self, account: Account) -> tuple[str, ...]:
        """The account's organizations that are let in; Denied if the account is not."""
        if account.type is None and self.require_authz:
            raise Denied("an account of unknown type (--auth-require-authz)")
        if account.type is not None and account.type not in self.account_types:
            raise Denied("an account type that is not let in")
        if self.organizations:
            let_in = tuple(one for one in account.organizations if one in self.organizations)
        else:
            let_in = account.organizations
        if not let_in and (self.organizations or account.type is not None):
            raise Denied("no organization that is let in")
        return let_in
