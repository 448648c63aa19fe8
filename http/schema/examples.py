"""What the OpenAPI document shows of requests and answers. Its examples of errors are the errors: openapi.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gnomon.http.errors import Draining
from gnomon.http.schema.route import Facts
from gnomon.http.service import SERVER_VERSION
from gnomon.reference.response import json_bytes


def examples_of(schema: str, facts: Facts) -> dict[str, Any]:
    """Name → example."""
    return EXAMPLES[schema](facts) if schema in EXAMPLES else {}


def _request_examples(facts: Facts) -> dict[str, Any]:
    scored = {"prompt": "Once", "max_tokens": 0, "echo": True, "logprobs": 1}
    streamed = {"prompt": "Once", "max_tokens": 8, "stream": True, "stream_options": {"include_usage": True}}
    examples: dict[str, Any] = {
        "text": {"prompt": "Once", "max_tokens": 8, "temperature": 0.7, "top_p": 0.9, "seed": 1, "stop": ["\n\n"]},
        "ids": {"prompt": [[1, 2, 3]], "max_tokens": 8, "temperature": 0, "logit_bias": {"5": -100}},
        "scored": scored,
        "streamed": streamed,
    }
    if facts.settings.max_candidates >= 3:
        examples["best of three"] = {"prompt": "Once", "max_tokens": 8, "n": 2, "best_of": 3, "logprobs": 0}
    return {name: {"model": facts.model, **fields} for name, fields in examples.items()}


def _completion_examples(facts: Facts) -> dict[str, Any]:
    scores = {
        "tokens": ["On", "ce"],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {"ce": -0.5}],
        "text_offset": [0, 2],
    }
    return {
        "text": _completion_example(facts.model, " upon a time", None, "length", (1, 8)),
        "scored": _completion_example(facts.model, "Once", scores, "length", (2, 0)),
    }


def _event_examples(facts: Facts) -> dict[str, Any]:
    chunk = _completion_example(facts.model, " upon", None, None, None)
    return {
        "chunk": {"data": _line(chunk)},
        "usage": {"data": _line({**_completion_example(facts.model, "", None, None, (1, 8)), "choices": []})},
        "error": {"data": _line(Draining().to_json())},
        "end": {"data": "[DONE]"},
    }


def _line(value: object) -> str:
    return json_bytes(value).decode()


def _completion_example(
    model: str, text: str, logprobs: object, finish_reason: str | None, tokens: tuple[int, int] | None
) -> dict[str, Any]:
    example: dict[str, Any] = {
        "id": "cmpl-5f0c1d2e3b4a59687f6e5d4c",
        "object": "text_completion",
        "created": 1_750_000_000,
        "model": model,
        "choices": [{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}],
    }
    if tokens is not None:
        prompt, sampled = tokens
        details = {"cached_tokens": 0}
        example["usage"] = {
            "prompt_tokens": prompt,
            "completion_tokens": sampled,
            "total_tokens": prompt + sampled,
            "prompt_tokens_details": details,
        }
    example["system_fingerprint"] = "jax-0123456789abcdef"
    return example


def _version_example(facts: Facts) -> dict[str, Any]:
    return {
        "name": "gnomon",
        "version": SERVER_VERSION,
        "model": facts.model,
        "engine": "jax",
        "system_fingerprint": "jax-0123456789abcdef",
    }


def _model_example(facts: Facts) -> dict[str, Any]:
    row = {"id": facts.model, "object": "model", "created": 1_750_000_000, "owned_by": "gnomon"}
    return {**row, "max_model_len": facts.context or 4096}


def _models_example(facts: Facts) -> dict[str, Any]:
    return {"object": "list", "data": [_model_example(facts)]}


def _trace_examples(facts: Facts) -> dict[str, Any]:
    request = _request_examples(facts)["text"]
    return {"nothing sampled": {"request": request, "index": 0, "tokens": [], "step": None}}


EXAMPLES: Mapping[str, Callable[[Facts], dict[str, Any]]] = {
    "CompletionRequest": _request_examples,
    "Completion": _completion_examples,
    "Event": _event_examples,
    "TraceRequest": _trace_examples,
    "Status": lambda facts: {"example": {"status": "ok"}},
    "Version": lambda facts: {"example": _version_example(facts)},
    "Model": lambda facts: {"example": _model_example(facts)},
    "Models": lambda facts: {"example": _models_example(facts)},
}
