"""Requests to a server that may do anything, and what came back: a value, or one of three exceptions and no other.

    Client    sends; bounds the time, the bytes and, with `Budget`, the tokens; follows no redirect, keeps no cookie
    Exchange  one request with its reply or the words for why there is none, and the curl command that repeats it
    Streamed  the events of a streamed reply, read apart
    Arrived   when a piece of a reply was there: so that a stream can be told from an answer sent at its end

Whatever is odd about a reply (HTML, no JSON, a closed connection, a redirect) is a value here, `trouble`, in one line.
`CannotReach` ends a run: nobody listens, or a row of requests had no answer and the plain one that was answered at the
beginning has none now. `OutOfBudget` and `Busy` (429 or 503 with `Retry-After`, again after waiting) end a case.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import shlex
import time
import zlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, NamedTuple

import httpx

from gnomon.http.verify.ask.safe import Secret
from gnomon.reference.checkpoint.network import proxy_note, unusable

MOST_BYTES = 32 * 2**20
"""No answer of a case is near it; what is larger is not read to its end."""

PIECE_BYTES = 2**20
"""How much of a packed answer is unpacked before the sum is looked at."""

CONNECT_SECONDS = 10.0
RECONNECTS = (0.2, 1.0, 3.0)
"""Seconds before each further try of a server that was there and does not listen now."""

EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
"""What an event of a stream ends with: an empty line, after each of the line ends that the format has."""

MOST_WAITS = 4
LONGEST_WAIT = 20.0
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


class Arrived(NamedTuple):
    """How much of an answer was there so many seconds after its request was sent."""

    seconds: float
    size: int


class Reply(NamedTuple):
    """What came back for one request; status None: nothing did."""

    status: int | None
    headers: dict[str, str]
    content: bytes = b""
    trouble: str | None = None
    arrived: tuple[Arrived, ...] = ()


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its outcome."""

    method: str
    url: str
    body: bytes | None
    content_type: str | None
    with_key: bool
    status: int | None  # None: no answer
    headers: Mapping[str, str]
    content: bytes
    trouble: str | None  # why there is no sound answer, in one line; None if there is one
    seconds: float
    tokens: int
    streamed: bool = False
    arrived: tuple[Arrived, ...] = ()  # of the content, piece by piece

    @property
    def json(self) -> Any:
        """The answer's JSON value; None where it is none, or was not read to its end."""
        if len(self.content) > MOST_BYTES:
            return None
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError):
            return None

    @property
    def error(self) -> Mapping[str, Any]:
        """The members of the answer's error object; empty where there is none in the API's form."""
        value = self.json
        error = value.get("error") if isinstance(value, dict) else None
        return error if isinstance(error, dict) else {}

    @property
    def message(self) -> str:
        """What the server says, in one short line, whatever its form."""
        message = self.error.get("message")
        if not isinstance(message, str):
            message = self.content[:2000].decode("utf-8", "replace")
        line = " ".join("".join(char if char.isprintable() else " " for char in message).split())
        return line if len(line) <= 160 else line[:159] + "…"

    def names(self, param: str) -> bool:
        """Whether the error names the field: in `param`, or by the whole word in what it says."""
        said = self.error.get("param")
        if isinstance(said, str) and (said == param or said.startswith((f"{param}.", f"{param}["))):
            return True
        words = "".join(
            char if char.isalnum() or char == "_" else " " for char in self.content[:20000].decode("utf-8", "replace")
        )
        return param in words.split()

    def curl(self) -> str:
        """A command that sends this request again. The key stays in the shell's variable GNOMON_KEY."""
        words = ["curl", "-sS"]
        if self.streamed:
            words.append("-N")
        words.append(self.url)
        if self.method != "POST":
            words += ["-X", self.method]
        if self.content_type is not None:
            words += ["-H", f"Content-Type: {self.content_type}"]
        line = " ".join(shlex.quote(word) for word in words)
        if self.with_key:
            line += ' -H "Authorization: Bearer $GNOMON_KEY"'
        if self.body is None:
            return line
        try:
            text = self.body.decode()
            if not all(char.isprintable() or char == "\n" for char in text):
                raise ValueError
        except ValueError:
            return f"printf {shlex.quote(_octal(self.body))} | {line} --data-binary @-"
        if len(text) > 4000:
            return f"{line} --data-binary @- <<<'…'  # {len(text)} bytes, beginning with {text[:60]}"
        return f"{line} --data-raw {shlex.quote(text)}"


def _octal(body: bytes) -> str:
    return "".join(chr(b) if 32 <= b < 127 and b not in b"\\%" else f"\\{b:03o}" for b in body)


class Asked(NamedTuple):
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
        asked = Asked(method, path, body, content_type, cost, key, first_events)
        self.budget.reserve(cost)
        spent = cost
        try:
            if crowd:
                exchange = await self._patiently(asked)
            else:
                async with self._turns:
                    exchange = await self._patiently(asked)
            spent = exchange.tokens
            return exchange
        finally:
            self.budget.settle(cost, spent)

    async def _patiently(self, asked: Asked) -> Exchange:
        """The answer; that of a later try where the server asks to wait."""
        for tries in range(MOST_WAITS + 1):
            exchange = await self._exchange(asked)
            wait = _wait(exchange, tries)
            if wait is None:
                break
            if tries == MOST_WAITS or wait > LONGEST_WAIT:
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
            plain = await self._exchange(Asked("POST", "/completions", self.plain))
            self.budget.settle(0, plain.tokens)
            if plain.status is None:
                raise CannotReach(
                    f"{self.base} no longer answers: {self._silent} requests in a row had no answer, "
                    f"and a plain one, too: {plain.trouble}"
                )
            self._silent = 0

    async def _exchange(self, asked: Asked) -> Exchange:
        method, path, body, content_type, cost, key, first_events = asked
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
            trouble = _oddity(status, replied, content)
        tokens = cost if status is None else _billed(status, content, cost)
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
                    got = Reply(reply.status_code, replied, *await _read(reply, first_events, began))
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


async def _read(
    reply: httpx.Response, first_events: int | None, began: float
) -> tuple[bytes, str | None, tuple[Arrived, ...]]:
    """Content, trouble, and when each piece came, in seconds since `began`."""
    content = bytearray()
    trouble = None
    arrived: list[Arrived] = []
    async with aclosing(_decoded(reply)) as pieces:
        async for piece in pieces:
            if piece is None:
                coding = reply.headers["content-encoding"]
                trouble = f"the answer's content encoding {coding!r:.60} cannot be read"
                break
            content += piece
            arrived.append(Arrived(time.monotonic() - began, len(content)))
            if len(content) > MOST_BYTES:
                trouble = f"the answer has more than {MOST_BYTES // 2**20} MiB"
                break
            if first_events is not None and sum(map(content.count, EVENT_ENDS)) >= first_events:
                break
    return bytes(content), trouble, tuple(arrived)


async def _decoded(reply: httpx.Response) -> AsyncGenerator[bytes | None, None]:
    """The body in pieces of bounded size; None where it cannot be decoded. httpx would decode a piece to any size."""
    coding = reply.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "", "gzip"):
        yield None
        return
    unzip = zlib.decompressobj(31) if coding == "gzip" else None
    async for piece in reply.aiter_raw():
        if unzip is None:
            yield piece
            continue
        try:
            yield unzip.decompress(piece, PIECE_BYTES)
            while unzip.unconsumed_tail:
                yield unzip.decompress(unzip.unconsumed_tail, PIECE_BYTES)
        except zlib.error:
            yield None
            return


def _words(error: Exception) -> str:
    said = " ".join(str(error).split())
    return said[:200] or type(error).__name__


def _oddity(status: int, headers: Mapping[str, str], content: bytes) -> str | None:
    """What is wrong with an answer that came whole, in one line, before anyone asks what it means."""
    kind = headers.get("content-type", "").split(";")[0].strip().lower()
    if 300 <= status < 400:
        return f"HTTP {status}: sends us on to {headers.get('location', 'nowhere')!r:.120}, which is not followed"
    if status >= 500:
        return f"HTTP {status}"
    if status == 200 and kind == "text/event-stream":
        return None
    if kind not in ("application/json", "application/problem+json"):
        return f"HTTP {status} with the content type {kind or 'missing'!r:.60}, not application/json"
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return f"HTTP {status} with a body that is no JSON"
    return None


def _billed(status: int, content: bytes, most: int) -> int:
    """The tokens that the answer says it used; what it may have used at most, where it does not say."""
    if status != 200:
        return 0
    at = content.rfind(b'"usage"')
    if at < 0:
        return most
    try:
        usage, _ = json.JSONDecoder().raw_decode(
            content[content.index(b":", at) + 1 :].decode("utf-8", "replace").lstrip()
        )
        said = int(usage["prompt_tokens"]) + int(usage["completion_tokens"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return most
    return min(max(said, 0), 2 * most + 64)  # a wrong usage is a finding, and must not end the run


@dataclass(frozen=True, slots=True)
class Streamed:
    """The events of an event stream: the JSON of every `data`, and whether `[DONE]` ended it."""

    events: tuple[Any, ...]
    done: bool
    trouble: str | None  # what is no event stream about it

    @classmethod
    def read(cls, exchange: Exchange) -> Streamed:
        kind = exchange.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "text/event-stream":
            return cls((), False, f"the content type is {kind or 'missing'!r:.60}, not text/event-stream")
        events: list[Any] = []
        done = False
        content = exchange.content.removeprefix(codecs.BOM_UTF8)  # the one that the format allows
        text = content.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
        for block in text.split("\n\n"):
            data = "\n".join(line[5:].removeprefix(" ") for line in block.split("\n") if line.startswith("data:"))
            if not data:
                continue
            if done:
                return cls(tuple(events), done, "an event comes after [DONE]")
            if data == "[DONE]":
                done = True
                continue
            try:
                events.append(json.loads(data))
            except (ValueError, RecursionError):
                return cls(tuple(events), done, f"an event's data is no JSON: {data!r:.80}")
        return cls(tuple(events), done, None)
