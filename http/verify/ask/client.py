"""Requests to a server that may do anything: each has an exchange, or one of three exceptions and no other.

    Client    sends; bounds the time, the bytes and, with `Budget`, the tokens; follows no redirect, keeps no cookie

HTML, no JSON, a closed connection, a redirect: all of these are an exchange. `CannotReach` ends a run: nobody listens,
or a row of requests had no answer and the plain one that was answered at the beginning has none now. `OutOfBudget` and
`Busy` (429 or 503 with `Retry-After`, again after waiting) end a case.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, NamedTuple

import httpx

from gnomon.http.verify.ask.exchange import Exchange
from gnomon.http.verify.ask.reply import Reply, billed, oddity, read_reply
from gnomon.http.verify.ask.safe import Secret
from gnomon.reference.checkpoint.network import proxy_note, unusable

CONNECT_SECONDS = 10.0

RECONNECTS = (0.2, 1.0, 3.0)
"""Seconds before each further try of a server that was there and does not listen now."""

MOST_WAITS = 4

LONGEST_RETRY_AFTER = 20.0
"""How often, and how many seconds at most, a request waits where it is told to."""

MOST_SILENT = 8
"""So many requests in a row without any answer, and the server is asked whether it is still there."""


class CannotReach(Exception):
    """No server answers at this address, or none that can be spoken to; the words are for the user."""


class Busy(Exception):
    """The server goes on saying that the request should wait."""


class OutOfBudget(Exception):
    """The next request could exceed the budget of tokens."""


class Budget:
    """How many tokens the run may cost. A request is charged what it may cost at most before it is sent, and what it
    did cost after; so the bound holds with several requests under way."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.spent = 0
        self._held = 0

    def reserve(self, tokens: int) -> None:
        if self.spent + self._held + tokens > self.tokens:
            raise OutOfBudget
        self._held += tokens

    def settle(self, reserved: int, cost: int) -> None:
        self._held -= reserved
        self.spent += cost


class Outgoing(NamedTuple):
    """What Client.send is asked to send; it says what each part is."""

    method: str
    path: str
    body: bytes | None = None
    content_type: str | None = "application/json"
    cost: int = 0
    key: str | None = None
    first_events: int | None = None


class Client:
    """Speaks to one server. At most `concurrency` requests are under way at a time, but for those of a crowd."""

    def __init__(
        self,
        base: str,
        api_key: str | None,
        budget: Budget,
        concurrency: int = 4,
        timeout: float = 60,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """base: the address before /completions, such as http://127.0.0.1:8000/v1 · timeout: seconds for one answer,
        from its request to its last byte · transport: for tests. Raises CannotReach."""
        self.base = base
        self.budget = budget
        self.requests = 0
        self.plain: bytes | None = None  # a request that was answered: whether the server is still there is asked by it
        self._key = api_key
        self._secret = Secret(api_key)
        self._timeout = timeout
        self._turns = asyncio.Semaphore(concurrency)
        self._answered = False
        self._silent = 0
        self._asking = asyncio.Lock()
        try:
            self._http = httpx.AsyncClient(
                timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
                transport=transport,
                trust_env=transport is None,
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
                headers={
                    "user-agent": "gnomon-verify",
                    "accept": "application/json, text/event-stream",
                    "accept-encoding": "identity",
                },
            )
        except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:  # of the variables for proxies and trust
            raise CannotReach(f"nothing can be asked: {unusable(error)}") from None

    async def close(self) -> None:
        await self._http.aclose()

    async def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        content_type: str | None = "application/json",
        cost: int = 0,
        key: str | None = None,
        first_events: int | None = None,
        crowd: bool = False,
    ) -> Exchange:
        """One request. cost: tokens that it may cost at most · key: instead of the user's · first_events: leave a
        stream after so many events · crowd: without waiting for a turn. Raises CannotReach, OutOfBudget, Busy."""
        outgoing = Outgoing(method, path, body, content_type, cost, key, first_events)
        self.budget.reserve(cost)
        spent = cost
        try:
            if crowd:
                exchange = await self._with_retries(outgoing)
            else:
                async with self._turns:
                    exchange = await self._with_retries(outgoing)
            spent = exchange.tokens
            return exchange
        finally:
            self.budget.settle(cost, spent)

    async def _with_retries(self, outgoing: Outgoing) -> Exchange:
        """The answer; that of a later try where the server asks to wait."""
        for tries in range(MOST_WAITS + 1):
            exchange = await self._exchange(outgoing)
            wait = _wait(exchange, tries)
            if wait is None:
                break
            if tries == MOST_WAITS or wait > LONGEST_RETRY_AFTER:
                raise Busy(
                    f"the server has no room for the request: HTTP {exchange.status} after {tries + 1} tries; "
                    "try again later, or with a smaller --concurrency"
                )
            await asyncio.sleep(wait)
        await self._notice(exchange)
        return exchange

    async def _notice(self, exchange: Exchange) -> None:
        """Counts the requests that had no answer at all. Raises CannotReach if the server is gone."""
        if exchange.status is not None:
            self._answered, self._silent = True, 0
            return
        self._silent += 1
        if self.plain is None or self._silent < MOST_SILENT:
            return
        async with self._asking:
            if self._silent < MOST_SILENT:  # another request has asked meanwhile
                return
            plain = await self._exchange(Outgoing("POST", "/completions", self.plain))
            self.budget.settle(0, plain.tokens)
            if plain.status is None:
                raise CannotReach(
                    f"{self.base} no longer answers: {self._silent} requests in a row had no answer, "
                    f"and a plain one, too: {plain.trouble}"
                )
            self._silent = 0

    async def _exchange(self, outgoing: Outgoing) -> Exchange:
        method, path, body, content_type, cost, key, first_events = outgoing
        url = self.base + path
        key = self._key if key is None else key
        headers = {} if content_type is None or body is None else {"content-type": content_type}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        began = time.monotonic()
        status, replied, content, trouble, arrived = await self._reply(method, url, body, headers, first_events)
        if status != 200:  # before anything is cut out of it; what a 200 says is hidden where it is shown
            content = self._secret.out_of_bytes(content)
        if trouble is None and status is not None:
            trouble = oddity(status, replied, content)
        tokens = cost if status is None else billed(status, content, cost)
        streamed = body is not None and b'"stream": true' in body
        return Exchange(
            method, url, body, content_type if body is not None else None, key is not None, status, replied, content,
            trouble, time.monotonic() - began, tokens, streamed, arrived,
        )  # fmt: skip

    async def _reply(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], first_events: int | None
    ) -> Reply:
        """A connection that the server has closed since the last request is no trouble: the request goes out again on
        a new one. So it does where nobody listens, for some seconds."""
        reconnects = list(RECONNECTS) if self._answered else []
        while True:
            got = Reply(None, {})
            used = _Used()
            self.requests += 1
            began = time.monotonic()
            try:
                async with (
                    asyncio.timeout(self._timeout),
                    self._http.stream(
                        method, url, content=body, headers=dict(headers), extensions={"trace": used.trace}
                    ) as reply,
                ):
                    replied = {name: self._secret.out_of(value) for name, value in reply.headers.items()}
                    got = Reply(reply.status_code, replied)
                    got = Reply(reply.status_code, replied, *await read_reply(reply, first_events, began))
            except httpx.ConnectError as error:
                if not reconnects:
                    raise CannotReach(
                        f"{self.base} cannot be reached: {_words(error)}{proxy_note(self.base)}"
                    ) from None
                await asyncio.sleep(reconnects.pop(0))
                continue
            except httpx.ConnectTimeout:
                got = got._replace(trouble=f"no connection within {min(self._timeout, CONNECT_SECONDS):g} s")
            except (TimeoutError, httpx.TimeoutException):
                got = got._replace(trouble=f"no whole answer within {self._timeout:g} s")
            except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
                if got.status is None and used.again:
                    continue
                got = got._replace(trouble=f"the connection broke: {self._secret.out_of(_words(error))}")
            return got


class _Used:
    """Whether a request went out on a connection that had served before."""

    def __init__(self) -> None:
        self._opened = self._sent = False

    async def trace(self, event: str, info: Any) -> None:
        self._opened |= event.startswith("connection.connect")
        self._sent |= event.startswith("http11.send_request_headers")

    @property
    def again(self) -> bool:
        return self._sent and not self._opened


def _wait(exchange: Exchange, tries: int) -> float | None:
    """Seconds to wait before the next try; None if the answer is one."""
    said = exchange.headers.get("retry-after", "")
    if exchange.status != 429 and not (exchange.status == 503 and said):
        return None
    return max(float(said), 0.1) if said.isascii() and said.isdigit() else 2.0**tries


def _words(error: Exception) -> str:
    said = " ".join(str(error).split())
    return said[:200] or type(error).__name__
