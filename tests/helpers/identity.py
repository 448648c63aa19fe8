"""A fake identity service that does the real work, for the tests: it signs, encrypts, opens and looks up.

    keys         at most two P-521 keys, the newest first; `rotate` makes one and forgets the oldest
    tokens       a signed JWT (ES512, by hand) inside an encrypted one (by joserfc, which the server does not use)
    state        service accounts with their one valid token; users with a valid token a session
    endpoints    discovery, key set, token exchange, userinfo, ACL; statuses and bodies as the real service's
    knobs        `instead[endpoint]` answers in its place; `seen` and `calls` say what was asked

A change of the state answers at once; the real service may lag. Secrets are made when a test starts.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwe, jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gnomon.http.identity.clock import Clock
from helpers import forge
from helpers.forge import b64, ec_jwk, ecdsa, merged, raw, unb64
from helpers.loopback import loopback

HOUR, DAY = 3600, 86400
EXCHANGE_FORM = {
    "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
    "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
    "requested_token_type": "urn:nscale:params:oauth:token-type:passport",
}


class FakeTime:
    """A clock that stands still until a test moves it. A sleep is noted and takes no time."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.slept: list[float] = []

    def clock(self) -> Clock:
        return Clock(lambda: self.now, lambda: self.now, self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0.002)


class SigningKey:
    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP521R1())
        self.kid = b64(secrets.token_bytes(32))
        # The real service derives it from the private key, and has 16 bytes under the name of a 32-byte algorithm.
        self.wrapping = OctKey.import_key(secrets.token_bytes(32))

    @property
    def jwk(self) -> dict[str, Any]:
        return ec_jwk(self.private.public_key(), use="sig", alg="ES512", kid=self.kid)

    @property
    def pem(self) -> bytes:
        return self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def to_joserfc(self) -> ECKey:
        """Without `use`: joserfc would not agree on a key with one that is for signatures."""
        return ECKey.import_key(
            self.private.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


@dataclass
class ServiceAccount:
    organization: str
    token: str | None


@dataclass
class User:
    organizations: tuple[str, ...]
    active: bool = True
    sessions: dict[str, str] = field(default_factory=dict)  # client → its valid token


class Seen(NamedTuple):
    method: str
    path: str
    query: bytes
    headers: dict[str, str]


class Rejected(Exception):
    """An answer in the service's form of errors."""

    def __init__(self, status: int, error: str, description: str) -> None:
        self.status, self.error, self.description = status, error, description


class FakeIdentity:
    """An application for `served_identity`."""

    def __init__(self, issuer: str, time: FakeTime) -> None:
        self.issuer = issuer
        self.time = time
        self.offset = 0.0  # of this service's clock
        self.keys = [SigningKey()]
        self.service_accounts: dict[str, ServiceAccount] = {}
        self.users: dict[str, User] = {}
        self.global_acl: list[dict[str, Any]] = []
        self.organization_acl: dict[str, dict[str, Any]] = {}
        self.instead: dict[str, ASGIApp] = {}
        self.discovery_changes: dict[str, Any] = {}
        self.key_set: object = None  # in place of the true one
        self.authz = True  # whether userinfo tells the account type, as it does from 1.17
        self.userinfo_changes: dict[str, Any] = {}
        self.passport: Callable[[dict[str, Any]], str] = self.sign
        self.passport_changes: dict[str, Any] = {}
        self.issued: list[str] = []  # every passport
        self.seen: list[Seen] = []
        self.forms: list[dict[str, str]] = []  # of the exchanges
        self.calls: Counter[str] = Counter()
        self.router = Starlette(
            routes=[
                self.route("discovery", "/.well-known/openid-configuration", self.discovery, "GET"),
                self.route("jwks", "/oauth2/v2/jwks", self.jwks, "GET"),
                self.route("token", "/oauth2/v2/token", self.token, "POST"),
                self.route("userinfo", "/oauth2/v2/userinfo", self.userinfo, "GET", "POST"),
                self.route("acl", "/api/v1/acl", self.acl, "GET"),
                self.route("acl", "/api/v1/organizations/{id}/acl", self.acl, "GET"),
            ],
            exception_handlers={Rejected: rejected},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.seen.append(Seen(scope["method"], scope["path"], scope["query_string"], headers))
        endpoint = NAMES.get(scope["path"], "acl")
        self.calls[endpoint] += 1
        await self.instead.get(endpoint, self.router)(scope, receive, send)

    @staticmethod
    def route(name: str, path: str, endpoint: Callable[[Request], Awaitable[Response]], *methods: str) -> Route:
        return Route(path, endpoint, name=name, methods=methods)

    # ---- keys and tokens

    def rotate(self) -> SigningKey:
        self.keys = [SigningKey(), *self.keys][:2]
        return self.keys[0]

    @property
    def now(self) -> int:
        return int(self.time.now + self.offset)

    def sign(self, claims: dict[str, Any], key: SigningKey | None = None, **header: Any) -> str:
        key = key or self.keys[0]
        return forge.jws(merged({"alg": "ES512", "kid": key.kid}, **header), claims, ecdsa(key.private))

    def encrypt(self, inner: str, key: SigningKey | None = None, legacy: bool = False, typ: str = "at+jwt") -> str:
        key = key or self.keys[0]
        header = {"enc": "A256GCM", "typ": typ, "cty": "JWT", "kid": key.kid}
        if legacy:
            wrapped = {"alg": "ECDH-ES"} | header
            return jwe.encrypt_compact(wrapped, inner.encode(), key.to_joserfc(), algorithms=["ECDH-ES", "A256GCM"])
        wrapped = {"alg": "A256GCMKW"} | header
        return jwe.encrypt_compact(wrapped, inner.encode(), key.wrapping, algorithms=["A256GCMKW", "A256GCM"])

    def claims(self, kind: str, subject: str, lifetime: int, **changes: Any) -> dict[str, Any]:
        base = {
            "jti": str(uuid.uuid4()),
            "iss": self.issuer,
            "aud": [urlsplit(self.issuer).hostname],
            "sub": subject,
            "iat": self.now,
            "nbf": self.now,
            "exp": self.now + lifetime,
            "typ": kind,
        }
        return merged(base, **changes)

    def mint(self, claims: dict[str, Any], key: SigningKey | None = None, legacy: bool = False) -> str:
        return self.encrypt(self.sign(claims, key), key, legacy)

    def service_token(
        self, id: str = "sa-1", organization: str = "org-1", legacy: bool = False, lifetime: int = 90 * DAY
    ) -> str:
        """A new token of the service account; the old one is worth nothing from now on."""
        token = self.mint(self.claims("sa", id, lifetime, sa={"oid": organization}), legacy=legacy)
        self.service_accounts[id] = ServiceAccount(organization, token)
        return token

    def user_token(self, email: str = "ada@example.org", *organizations: str, client: str = "cli") -> str:
        user = self.users.setdefault(email, User(organizations))
        fed = {"idp": "google", "cid": client, "uid": "u-1", "sco": "openid email"}
        user.sessions[client] = self.mint(self.claims("fed", email, HOUR, fed=fed))
        return user.sessions[client]

    def system_token(self, name: str = "region") -> str:
        return self.mint(self.claims("svc", name, HOUR, svc={"x5t@S256": b64(secrets.token_bytes(32))}))

    def refresh_token(self) -> str:
        claims = self.claims("fed", "ada@example.org", 90 * DAY)
        return self.encrypt(self.sign(claims), typ="unikorn-cloud.org/rt+jwt")

    def id_token(self) -> str:
        return self.sign(self.claims("fed", "ada@example.org", HOUR, aud=["cli"]))

    def opened(self, token: str) -> dict[str, Any]:
        """The claims of an access token that is valid in every respect."""
        try:
            claims = self.decrypted(token)
        except (JoseError, ValueError, KeyError, TypeError, AttributeError):
            raise DENIED from None
        if claims["iss"] != self.issuer or claims["aud"] != [urlsplit(self.issuer).hostname]:
            raise DENIED
        if not claims["nbf"] <= self.now < claims["exp"] or not self.is_current(claims, token):
            raise DENIED
        return claims

    def decrypted(self, token: str) -> dict[str, Any]:
        header = json.loads(unb64(token.split(".")[0]))
        keys = {key.kid: key for key in self.keys}
        if header["typ"] != "at+jwt" or len(token.split(".")) != 5:
            raise ValueError("no access token")
        outer = keys[header["kid"]]
        opener = outer.to_joserfc() if header["alg"] == "ECDH-ES" else outer.wrapping
        allowed = ["A256GCMKW", "ECDH-ES", "A256GCM"]
        inner = jwe.decrypt_compact(token, opener, algorithms=allowed).plaintext
        assert inner is not None
        kid = json.loads(unb64(inner.decode().split(".")[0]))["kid"]
        payload = jws.deserialize_compact(inner, keys[kid].to_joserfc(), algorithms=["ES512"]).payload
        claims: dict[str, Any] = json.loads(payload)
        return claims

    def is_current(self, claims: dict[str, Any], token: str) -> bool:
        match claims["typ"]:
            case "sa":
                account = self.service_accounts.get(claims["sub"])
                return account is not None and account.token == token
            case "fed":
                user = self.users.get(claims["sub"])
                return user is not None and user.active and user.sessions.get(claims["fed"]["cid"]) == token
            case kind:
                return bool(kind == "svc")

    def account(self, claims: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        match claims["typ"]:
            case "sa":
                return "service", (claims["sa"]["oid"],)
            case "fed":
                return "user", self.users[claims["sub"]].organizations
            case _:
                return "system", ()

    # ---- endpoints

    async def discovery(self, request: Request) -> Response:
        base = {
            "issuer": self.issuer,
            "authorization_endpoint": self.issuer + "/oauth2/v2/authorization",
            "token_endpoint": self.issuer + "/oauth2/v2/token",
            "userinfo_endpoint": self.issuer + "/oauth2/v2/userinfo",
            "jwks_uri": self.issuer + "/oauth2/v2/jwks",
            "scopes_supported": ["openid", "email", "profile"],
            "grant_types_supported": [
                "authorization_code",
                "client_credentials",
                "refresh_token",
                EXCHANGE_FORM["grant_type"],
            ],
            "id_token_signing_alg_values_supported": ["ES512"],
        }
        return JSONResponse(merged(base, **self.discovery_changes))

    async def jwks(self, request: Request) -> Response:
        true = {"keys": [key.jwk for key in self.keys]}
        return Response(raw(true if self.key_set is None else self.key_set), headers={"cache-control": "no-cache"})

    async def token(self, request: Request) -> Response:
        if request.url.query:
            raise Rejected(400, "invalid_request", "parameters in the query")
        form = dict(parse_qsl((await request.body()).decode(), strict_parsing=True))
        self.forms.append(form)
        if any(form.get(name) != value for name, value in EXCHANGE_FORM.items()):
            raise Rejected(400, "invalid_request", "not a token exchange")
        claims = self.opened(form["subject_token"])
        audience = form.get("audience")
        acctype, organizations = self.account(claims)
        base = {
            "iss": "uni-identity",
            "sub": claims["sub"],
            "aud": [audience] if audience else [],
            "jti": str(uuid.uuid4()),
            "iat": self.now,
            "nbf": self.now,
            "exp": min(self.now + 60, claims["exp"]),
            "typ": "passport",
            "acctype": acctype,
            "source": "uni",
            "org_ids": list(organizations),
            "src_iss": self.issuer,
        }
        if acctype == "user":
            base["email"] = claims["sub"]
        self.issued.append(self.passport(merged(base, **self.passport_changes)))
        return JSONResponse(
            {
                "access_token": self.issued[-1],
                "issued_token_type": EXCHANGE_FORM["requested_token_type"],
                "token_type": "N_A",
                "expires_in": 60,
            }
        )

    async def userinfo(self, request: Request) -> Response:
        claims = self.opened(bearer(request))
        acctype, organizations = self.account(claims)
        answer: dict[str, Any] = {"sub": claims["sub"]}
        if acctype == "user":
            answer |= {"email": claims["sub"], "email_verified": True}
        if self.authz:
            answer["https://unikorn-cloud.org/authz"] = {"acctype": acctype, "orgIds": list(organizations)}
        return JSONResponse(merged(answer, **self.userinfo_changes))

    async def acl(self, request: Request) -> Response:
        _, organizations = self.account(self.opened(bearer(request)))
        organization = request.path_params.get("id")
        if organization is None:
            return JSONResponse({"global": self.global_acl})
        if organization not in organizations:
            raise Rejected(403, "forbidden", "no member of the organization")
        entry = {"id": organization} | self.organization_acl.get(organization, {})
        return JSONResponse({"global": self.global_acl, "organizations": [entry]})


@contextmanager
def served_identity(time: FakeTime | None = None, **options: Any) -> Iterator[FakeIdentity]:
    """A service of its own on a real port. options: of `helpers.loopback`. Most tests share one: the fixture
    `identity`."""
    with loopback(**options) as served:
        served.app = identity = FakeIdentity(served.base, time or FakeTime())
        yield identity


NAMES = {
    "/.well-known/openid-configuration": "discovery",
    "/oauth2/v2/jwks": "jwks",
    "/oauth2/v2/token": "token",
    "/oauth2/v2/userinfo": "userinfo",
}
DENIED = Rejected(401, "access_denied", "the token is invalid")


def bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise Rejected(401, "access_denied", "no bearer token")
    return token


async def rejected(request: Request, error: Exception) -> Response:
    assert isinstance(error, Rejected)
    headers = {"cache-control": "no-cache"}
    if error.status == 401:
        headers["www-authenticate"] = f'Bearer error="{error.error}", error_description="{error.description}"'
    body = {"error": error.error, "error_description": error.description, "trace_id": secrets.token_hex(16)}
    return JSONResponse(body, error.status, headers)
