"""The identity service as a client sees it: five questions, each with a definite answer or `Away`.

    discover       where its endpoints are; they lie on the issuer's own origin unless an option says otherwise
    fetch_keys     its key set
    exchange       a caller's token → a passport, not verified yet (RFC 8693)
    userinfo       a caller's token → the account
    may            whether the caller has a right

One answer has a time limit and 64 KiB. No redirect is followed, no proxy and no cookie used: a token goes to the
configured service and nowhere else. Whatever answer we do not understand is no answer; only a plain 401 makes a token
bad. What is remembered of the answers is decided in bearer.py and jwks.py.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx

from gnomon.http.identity.jwks import Key, load_keys
from gnomon.http.identity.principal import Account
from gnomon.http.identity.refusals import Away, BadToken, Denied
from gnomon.http.identity.tokens import is_text, read_object
from gnomon.http.settings import AuthMode, AuthSettings

MOST_REPLY_BYTES = 64 * 2**10
GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
PASSPORT = "urn:nscale:params:oauth:token-type:passport"
AUTHZ = "https://unikorn-cloud.org/authz"


class Endpoints(NamedTuple):
    """The URLs that the mode needs; None for the others."""

    token: str | None = None
    userinfo: str | None = None
    jwks: str | None = None


NEEDED = {
    AuthMode.exchange: ("token", "jwks"),
    AuthMode.userinfo: ("userinfo",),
    AuthMode.jwks: ("jwks",),
}
MEMBERS = {"token": "token_endpoint", "userinfo": "userinfo_endpoint", "jwks": "jwks_uri"}


class Right(NamedTuple):
    """`compute:instances:read` is the operation `read` on what is named `compute:instances`."""

    name: str
    operation: str

    @classmethod
    def of(cls, text: str) -> Right:
        name, _, operation = text.rpartition(":")
        return cls(name, operation)


class ServiceReply(NamedTuple):
    status: int
    body: bytes


class IdentityService:
    def __init__(self, settings: AuthSettings, tls: ssl.SSLContext) -> None:
        assert settings.mode is not None
        assert settings.issuer is not None
        self.issuer = settings.issuer
        self.audience = settings.audience
        self.seconds = settings.http_seconds
        self.wanted = NEEDED[settings.mode]
        self.chosen = Endpoints(settings.token_url, settings.userinfo_url, settings.jwks_url)
        self.endpoints = Endpoints()
        # Not the pool's own bound: who is cancelled while waiting there may take a connection along for good.
        self.turns = asyncio.Semaphore(settings.max_parallel)
        self.parallel = settings.max_parallel
        self.client = self.client_with(tls)
        self.leaving: set[asyncio.Task[None]] = set()

    def client_with(self, tls: ssl.SSLContext) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            verify=tls,
            timeout=self.seconds,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=self.parallel),
            follow_redirects=False,
            trust_env=False,
            # one caller's cookie must not go along with the next caller's token
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "gnomon"},
        )

    def renew(self, tls: ssl.SSLContext) -> None:
        """New connections by these certificates. What is under way ends on its own, which takes `seconds` at most."""
        leaving = asyncio.get_running_loop().create_task(self.leave(self.client))
        self.leaving.add(leaving)
        leaving.add_done_callback(self.leaving.discard)
        self.client = self.client_with(tls)

    async def leave(self, client: httpx.AsyncClient) -> None:
        try:
            await asyncio.sleep(self.seconds)
        finally:
            await client.aclose()

    async def close(self) -> None:
        for leaving in self.leaving:
            leaving.cancel()
        await asyncio.gather(*self.leaving, return_exceptions=True)
        await self.client.aclose()

    async def discover(self) -> None:
        """Finds the endpoints. Those that an option names are not looked for."""
        found = self.chosen._asdict()
        missing = [name for name in self.wanted if found[name] is None]
        if missing:
            document = await self.get_object(self.issuer.rstrip("/") + "/.well-known/openid-configuration")
            if document.get("issuer") != self.issuer:
                raise Away("its discovery document names another issuer (--auth-issuer)")
            for name in missing:
                found[name] = document.get(MEMBERS[name])
                if not same_origin(found[name], self.issuer):
                    raise Away(f"{MEMBERS[name]} of its discovery document is not on the issuer's origin")
        self.endpoints = Endpoints(**found)

    async def fetch_keys(self) -> dict[str, Key]:
        return load_keys(await self.get_object(self.known("jwks")))

    async def exchange(self, token: str) -> str:
        """The passport that the service gives for the token."""
        form = {
            "grant_type": GRANT,
            "subject_token": token,
            "subject_token_type": ACCESS_TOKEN,
            "requested_token_type": PASSPORT,
            "audience": self.audience or "",
        }
        answer = await self.ask("POST", self.known("token"), form=form)
        if answer.status == 400 and json_of(answer).get("error") == "invalid_scope":
            raise Denied("the identity service refuses the exchange")
        passport = json_of(definite(answer)).get("access_token")
        if not isinstance(passport, str):
            raise Away("an exchange without a passport")
        return passport

    async def userinfo(self, token: str) -> Account:
        answer = definite(await self.ask("GET", self.known("userinfo"), token=token))
        claims = json_of(answer)
        authz = claims.get(AUTHZ)
        if authz is None:
            return account_from(claims, None, None)
        if not isinstance(authz, dict) or not isinstance(authz.get("acctype"), str):
            raise Away("a userinfo answer whose account type is no string")
        return account_from(claims, authz["acctype"], authz.get("orgIds"))

    async def may(self, token: str, right: Right, organizations: Iterable[str]) -> bool:
        """Whether the right is held globally, in one of the organizations, or in a project of one."""
        base = self.issuer.rstrip("/") + "/api/v1/"
        try:
            async with asyncio.timeout(self.seconds):  # for all of them: an account may have many organizations
                document = json_of(definite(await self.ask("GET", base + "acl", token=token)))
                if granted(document.get("global"), right):
                    return True
                for one in organizations:
                    url = f"{base}organizations/{quote(one, safe='')}/acl"
                    answer = await self.ask("GET", url, token=token)
                    if answer.status not in (403, 404) and grants(json_of(definite(answer)), right, one):
                        return True
        except TimeoutError:
            raise Away("no answer in time") from None
        return False

    async def get_object(self, url: str) -> dict[str, Any]:
        answer = await self.ask("GET", url)
        if answer.status != 200:
            raise Away(f"status {answer.status}")
        return json_of(answer)

    async def ask(
        self, method: str, url: str, *, token: str | None = None, form: Mapping[str, str] | None = None
    ) -> ServiceReply:
        """One request and its whole answer, in time; or Away."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        body = bytearray()
        try:
            # the whole of it, the wait for its turn too: under load a caller is told to come again, not kept
            async with (
                asyncio.timeout(self.seconds),
                self.turns,
                self.client.stream(method, url, headers=headers, data=form) as response,
            ):
                async for piece in response.aiter_raw():  # as it comes: nothing is unpacked
                    body += piece
                    if len(body) > MOST_REPLY_BYTES:
                        raise Away("an answer of more than 64 KiB")
        except TimeoutError:
            raise Away("no answer in time") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            untrusted = "certificate verify failed" in str(error).lower()
            raise Away(
                "its certificate is not trusted (--auth-ca-file)" if untrusted else type(error).__name__
            ) from None
        if response.status_code >= 500:
            raise Away(f"status {response.status_code}")
        return ServiceReply(response.status_code, bytes(body))

    def known(self, name: str) -> str:
        url = getattr(self.endpoints, name)
        if url is None:
            raise Away("its endpoints are not known yet")
        return str(url)


def same_origin(url: object, issuer: str) -> bool:
    if not isinstance(url, str) or not is_text(url):
        return False
    try:
        there, home = httpx.URL(url), httpx.URL(issuer)
    except httpx.InvalidURL:
        return False
    return (there.scheme, there.host, there.port, there.userinfo) == (home.scheme, home.host, home.port, b"")


def definite(answer: ServiceReply) -> ServiceReply:
    """An answer to a question about a token: 200, or what it says against the token."""
    match answer.status:
        case 200:
            return answer
        case 401:
            raise BadToken("the identity service refuses it")
        case 403:
            raise Denied("the identity service forbids it")
        case status:
            raise Away(f"status {status}")


def json_of(answer: ServiceReply) -> dict[str, Any]:
    try:
        return read_object(answer.body)
    except BadToken as error:
        raise Away(f"an answer that is {error.reason}") from None


def account_from(claims: Mapping[str, Any], type: str | None, organizations: object) -> Account:
    """What userinfo and passports say alike; Away if it is not of the right types."""
    subject, email = claims.get("sub"), claims.get("email")
    if not isinstance(subject, str) or not is_text(subject):
        raise Away("an account without a subject")
    if email is not None and not isinstance(email, str):
        raise Away("an e-mail address that is no string")
    if organizations is None:
        organizations = []
    if not isinstance(organizations, list) or not all(map(is_text, organizations)):
        raise Away("organizations that are no list of strings")
    return Account(subject, type, tuple(organizations), email or None)


def grants(document: Mapping[str, Any], right: Right, organization: str) -> bool:
    """Whether an organization's ACL has the right: everywhere, in the organization, or in one of its projects."""
    if granted(document.get("global"), right):
        return True
    for one in rows(document.get("organizations")):
        if one.get("id") == organization:
            projects = (project.get("endpoints") for project in rows(one.get("projects")))
            if any(granted(endpoints, right) for endpoints in (one.get("endpoints"), *projects)):
                return True
    return False


def granted(endpoints: object, right: Right) -> bool:
    return any(
        one.get("name") == right.name and right.operation in strings(one.get("operations")) for one in rows(endpoints)
    )


def rows(value: object) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise Away("an ACL that is no list of objects")
    return value


def strings(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise Away("an ACL whose operations are no list of strings")
    return value
