"""A sound answer to a completion request, whole or joined from a stream, and what a case raises where there is none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gnomon.http.verify.ask.exchange import Exchange, Streamed


class Refused(Exception):
    """The server answered a request of a case with an error of 400 to 499."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange.message)
        self.exchange = exchange


class UnsoundAnswer(Exception):
    """No sound answer to a request of a case: an error of the server's own, no JSON, no answer, not a completion."""

    def __init__(self, exchange: Exchange, reason: str) -> None:
        super().__init__(reason)
        self.exchange, self.reason = exchange, reason


class Unclear(Exception):
    """Raised within a case where it cannot go on; the reason becomes the finding's."""


@dataclass(frozen=True, slots=True)
class SoundAnswer:
    """choices: as they came · usage: the object, or {} · parts: of how many chunks each choice came, if streamed."""

    body: Mapping[str, Any]
    choices: tuple[Mapping[str, Any], ...]
    exchange: Exchange

    @property
    def text(self) -> str:
        return self.choices[0]["text"]

    @property
    def texts(self) -> list[str]:
        return [choice["text"] for choice in self.choices]

    @property
    def finish_reason(self) -> Any:
        return self.choices[0].get("finish_reason")

    @property
    def usage(self) -> Mapping[str, Any]:
        usage = self.body.get("usage")
        return usage if isinstance(usage, dict) else {}

    @property
    def has_ended(self) -> bool:
        """Whether the first choice says that it ended before max_tokens."""
        return bool(self.finish_reason == "stop")

    def ended_before(self, tokens: int) -> bool:
        """The same, unless it is billed for all tokens that it might have: some servers say `stop` of every answer."""
        return self.has_ended and self.completion_tokens != tokens

    @property
    def completion_tokens(self) -> Any:
        return self.usage.get("completion_tokens")

    @property
    def prompt_tokens(self) -> Any:
        return self.usage.get("prompt_tokens")

    def logprobs(self, choice: int = 0) -> Lists:
        """The four lists of a choice. Raises Unclear where they are none: a case of their own says so."""
        value = self.choices[choice].get("logprobs")
        lists = Lists.read(value)
        if lists is None:
            raise Unclear("the answer has no logprobs in the API's form of four lists")
        return lists


class Lists(NamedTuple):
    """The logprobs of a choice. `text_offset` is empty where there is none: a case of its own says so."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]

    @classmethod
    def read(cls, value: Any) -> Lists | None:
        if not isinstance(value, dict):
            return None
        tokens, values, tops, offsets = (value.get(name) for name in cls._fields)
        if not (isinstance(tokens, list) and isinstance(values, list) and isinstance(tops, list)):
            return None
        return cls(tokens, values, tops, offsets if isinstance(offsets, list) else [])


def whole(exchange: Exchange) -> SoundAnswer:
    """Raises Refused for an error of 400 to 499, UnsoundAnswer for whatever else is no completion."""
    if exchange.status is not None and 400 <= exchange.status < 500:
        raise Refused(exchange)
    if exchange.trouble is not None:
        raise UnsoundAnswer(exchange, exchange.trouble)
    body = exchange.json
    if not isinstance(body, dict):
        raise UnsoundAnswer(exchange, "the answer is no JSON object")
    if body.get("error"):
        raise UnsoundAnswer(exchange, f"HTTP 200 with an error in it: {exchange.message}")
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not all(_is_choice(choice) for choice in choices):
        raise UnsoundAnswer(exchange, "the answer has no choices with a text each")
    return SoundAnswer(body, tuple(choices), exchange)


def _is_choice(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("text"), str)


def joined(exchange: Exchange) -> SoundAnswer:
    """A stream's chunks as the whole answer they make; its last usage as the usage. Raises as `whole`."""
    if exchange.status is not None and 400 <= exchange.status < 500:
        raise Refused(exchange)
    if exchange.trouble is not None:
        raise UnsoundAnswer(exchange, exchange.trouble)
    streamed = Streamed.read(exchange)
    if streamed.trouble is not None:
        raise UnsoundAnswer(exchange, streamed.trouble)
    choices: dict[int, dict[str, Any]] = {}
    body: dict[str, Any] = {}
    for event in streamed.events:
        if not isinstance(event, dict) or event.get("error"):
            raise UnsoundAnswer(exchange, f"an event of the stream is no chunk but {json.dumps(event)[:120]}")
        body = {**body, **{name: value for name, value in event.items() if name != "choices" and value is not None}}
        pieces = event.get("choices") or []
        for piece in pieces if isinstance(pieces, list) else [None]:
            if not isinstance(piece, dict) or not isinstance(piece.get("text", ""), str):
                raise UnsoundAnswer(exchange, "a chunk's choice has no text")
            index = piece.get("index", 0)
            if not isinstance(index, int):
                raise UnsoundAnswer(exchange, f"a chunk's index is {json.dumps(index)[:40]}")
            choice = choices.setdefault(index, {"index": index, "text": "", "logprobs": None, "finish_reason": None})
            choice["text"] += piece.get("text", "")
            choice["finish_reason"] = piece.get("finish_reason") or choice["finish_reason"]
            choice["logprobs"] = _lengthened(choice["logprobs"], piece.get("logprobs"))
    if not choices:
        raise UnsoundAnswer(exchange, "the stream has no choices")
    return SoundAnswer(body, tuple(choices[index] for index in sorted(choices)), exchange)


def _lengthened(lists: Any, more: Any) -> Any:
    if not isinstance(more, dict):
        return lists
    if lists is None:
        return {name: list(items) if isinstance(items, list) else items for name, items in more.items()}
    return {
        name: lists.get(name, []) + items
        if isinstance(items, list) and isinstance(lists.get(name, []), list)
        else items
        for name, items in more.items()
    }
