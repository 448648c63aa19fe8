"""Requests to a server that may do anything, and what came back: no exception but `CannotReach` and `OutOfBudget`.

    Client    sends; bounds the time, the bytes and, with `Budget`, the tokens; follows no redirect
    Exchange  one request with its reply or the words for why there is none, and the curl command that repeats it
    Streamed  the events of a streamed reply, read apart

Whatever is odd about a reply (HTML, no JSON, a closed connection, a redirect) is a value here, `trouble`, in one line.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

MOST_BYTES = 32 * 2**20
"""No answer of a case is near it; what is larger is not read to its end."""


class CannotReach(Exception):
    """No server answers at this address, or none that can be spoken to; the words are for the user."""


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

    @property
    def json(self) -> Any:
        """The answer's JSON value; None where it is none."""
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
        except UnicodeDecodeError:
            return f"printf {shlex.quote(_octal(self.body))} | {line} --data-binary @-"
        if len(text) > 4000:
            return f"{line} --data-binary @- <<<'…'  # {len(text)} bytes, beginning with {text[:60]}"
        return f"{line} --data-raw {shlex.quote(text)}"


def _octal(body: bytes) -> str:
    return "".join(chr(b) if 32 <= b < 127 and b not in b"\\%" else f"\\{b:03o}" for b in body)


class Client:
    """Speaks to one server. At most `concurrency` requests are under way at a time, but for those of `burst`."""

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
        from its request to its last byte · transport: for tests."""
        self.base = base
        self.budget = budget
        self._key = api_key
        self._timeout = timeout
        self._turns = asyncio.Semaphore(concurrency)
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10)),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            transport=transport,
            trust_env=transport is None,
            headers={"user-agent": "gnomon-verify", "accept": "application/json, text/event-stream"},
        )

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
        stream after so many events · crowd: without waiting for a turn. Raises CannotReach, OutOfBudget."""
        self.budget.reserve(cost)
        spent = cost
        try:
            if crowd:
                exchange = await self._exchange(method, path, body, content_type, cost, key, first_events)
            else:
                async with self._turns:
                    exchange = await self._exchange(method, path, body, content_type, cost, key, first_events)
            spent = exchange.tokens
            return exchange
        finally:
            self.budget.settle(cost, spent)

    async def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | None,
        content_type: str | None,
        cost: int,
        key: str | None,
        first_events: int | None,
    ) -> Exchange:
        url = self.base + path
        key = self._key if key is None else key
        headers = {} if content_type is None or body is None else {"content-type": content_type}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        status, replied, content, trouble = None, {}, b"", None
        began = time.monotonic()
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._http.stream(method, url, content=body, headers=headers) as reply,
            ):
                status, replied = reply.status_code, dict(reply.headers)
                content, trouble = await _read(reply, first_events)
        except httpx.ConnectError as error:
            raise CannotReach(f"{self.base} cannot be reached: {_words(error)}") from None
        except (TimeoutError, httpx.TimeoutException):
            trouble = f"no whole answer within {self._timeout:g} s"
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            trouble = f"the connection broke: {_words(error)}"
        if trouble is None and status is not None:
            trouble = _oddity(status, replied, content)
        tokens = cost if status is None else _billed(status, content, cost)
        streamed = body is not None and b'"stream": true' in body
        return Exchange(
            method, url, body, content_type if body is not None else None, key is not None, status, replied, content,
            trouble, time.monotonic() - began, tokens, streamed,
        )  # fmt: skip


async def _read(reply: httpx.Response, first_events: int | None) -> tuple[bytes, str | None]:
    content = bytearray()
    async for piece in reply.aiter_bytes():
        content += piece
        if len(content) > MOST_BYTES:
            return bytes(content), f"the answer has more than {MOST_BYTES // 2**20} MiB"
        if first_events is not None and content.count(b"\n\n") >= first_events:
            break
    return bytes(content), None


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
        return int(usage["prompt_tokens"]) + int(usage["completion_tokens"])
    except (ValueError, TypeError, KeyError):
        return most


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
        text = exchange.content.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
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
