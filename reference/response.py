"""The answer's objects and their JSON, whole and in chunks (LAW.md, sections 6, 10 and 11).

A chunk has the form of a whole answer with one choice (or none, for the usage), so one set of classes serves both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Four arrays of one length: a place for every sampled token, and before them for the prompt's with echo.

    token_logprobs[i] and the same token's value in top_logprobs[i] are the same number. Keys are the tokenizer's
    labels. text_offset counts code points from the start of the prompt.
    """

    tokens: tuple[str, ...]
    token_logprobs: tuple[float | None, ...]
    top_logprobs: tuple[Mapping[str, float] | None, ...]
    text_offset: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "tokens": list(self.tokens),
            "token_logprobs": list(self.token_logprobs),
            "top_logprobs": [None if top is None else dict(top) for top in self.top_logprobs],
            "text_offset": list(self.text_offset),
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """One returned candidate, or a piece of one (then finish_reason is None on all but the last)."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: FinishReason | None

    def to_json(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "text": self.text,
            "logprobs": None if self.logprobs is None else self.logprobs.to_json(),
            "finish_reason": self.finish_reason,
        }


@dataclass(frozen=True, slots=True)
class Usage:
    """prompt_tokens: every prompt once · completion_tokens: the sampled tokens of all candidates, the discarded too."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    def to_json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer, or one chunk of a streamed one. `created` is in seconds since 1970."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: tuple[Choice, ...]
    usage: Usage | None = None
    null_usage: bool = False  # a chunk before the usage chunk says "usage": null

    def to_json(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [choice.to_json() for choice in self.choices],
        }
        if self.usage is not None or self.null_usage:
            body["usage"] = None if self.usage is None else self.usage.to_json()
        body["system_fingerprint"] = self.system_fingerprint
        return body

    def to_bytes(self) -> bytes:
        """One line of ASCII JSON. Floats are written as the shortest decimal that restores them."""
        return json_bytes(self.to_json())


_ONE_LINE = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))  # json.dumps makes one a call


def json_bytes(value: object) -> bytes:
    return _ONE_LINE.encode(value).encode("ascii")
