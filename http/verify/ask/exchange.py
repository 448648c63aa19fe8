"""A request with what came back for it. Whatever is odd about a reply is a value here, `trouble`, in one line.

Exchange  one request with its reply or the words for why there is none, and the curl command that repeats it
Streamed  the events of a streamed reply, read apart
Arrived   when a piece of a reply was there: so that a stream can be told from an answer sent at its end
"""

from __future__ import annotations

import codecs
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

MOST_ANSWER_BYTES = 32 * 2**20
"""No answer of a case is near it; what is larger is not read to its end."""


class Arrived(NamedTuple):
    """How much of an answer was there so many seconds after its request was sent."""

    seconds: float
    size: int


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request with what came back for it."""

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
        if len(self.content) > MOST_ANSWER_BYTES:
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
