"""GET /v1/capabilities: each parameter with its range on this server, the limits, and facts of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from starlette.routing import BaseRoute

from gnomon.http.schema.request import narrowed
from gnomon.http.schema.route import EVENTS, DescribedRoute, Facts
from gnomon.http.settings import AuthMode, Settings
from gnomon.reference.completion import end_ids
from gnomon.reference.engine import ServedEngine
from gnomon.reference.request import BIAS_ENTRIES, FIELDS, STAGES, Field
from gnomon.reference.tokenizer import Tokenizer

SHOWN_LIMITS = (
    "max_candidates",
    "max_prompts",
    "max_body_bytes",
    "max_answer_bytes",
    "max_header_bytes",
    "max_connections",
    "max_running",
    "max_queue",
    "max_queued_tokens",
    "max_queued_bytes",
    "header_seconds",
    "body_seconds",
    "queue_seconds",
    "request_seconds",
    "write_seconds",
    "idle_seconds",
)


def limits_schema() -> dict[str, Any]:
    names = (*SHOWN_LIMITS, "context", "logprobs", "stop")
    properties: dict[str, Any] = {name: {"type": ["number", "null"]} for name in names}
    properties["openai_limits"] = {"type": "boolean"}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def capabilities(
    engine: ServedEngine,
    tokenizer: Tokenizer,
    settings: Settings,
    routes: Iterable[BaseRoute],
    traced: bool,
) -> dict[str, Any]:
    """Every parameter with what it is on this server, and the facts one needs to use it. traced: whether traces are
    offered."""
    facts = Facts(settings, settings.served_model_name, engine.context, AuthMode.none, engine.vocab_size)
    infill = tokenizer.infill
    return {
        "model": {
            "id": settings.served_model_name,
            "context": engine.context,
            "vocab_size": engine.vocab_size,
            "eos_ids": sorted(end_ids(engine, tokenizer)),
            "bos_id": tokenizer.bos_id,
            "end_of_text_id": tokenizer.end_of_text_id,
            "fill_in_the_middle": None if infill is None else infill._asdict(),
        },
        "engine": engine.name,
        "parameters": [_parameter(field, facts, tokenizer) for field in FIELDS],
        "limits": {
            **{name: getattr(settings, name) for name in SHOWN_LIMITS},
            "context": engine.context,
            "logprobs": settings.limits.logprobs,
            "stop": settings.limits.stop,
            "openai_limits": settings.openai_limits,
        },
        "streaming": {
            "media_type": EVENTS,
            "last_event": "[DONE]",
            "include_usage": True,
            "best_of": False,
            "ping_seconds": settings.ping_seconds,
        },
        "endpoints": [
            {"method": route.method, "path": route.path_format}
            for route in routes
            if isinstance(route, DescribedRoute) and (traced or route.name != "trace")
        ],
        "trace": {"tokens": min(settings.trace_tokens, engine.context)} if traced else None,
    }


def _parameter(field: Field, facts: Facts, tokenizer: Tokenizer) -> dict[str, Any]:
    honoured, reason = True, None
    if field.name == "suffix" and tokenizer.infill is None:
        honoured, reason = False, tokenizer.infill_note
    elif field.name == "user":
        reason = field.meaning
    return {
        "name": field.name,
        "honoured": honoured,
        "reason": reason,
        "type": field.type,
        "required": field.required,
        "default": None if field.required else field.default,
        "allowed": field.allowed,
        "range": _range(field, facts),
        "meaning": field.meaning,
        "sections": [int(number) for number in field.section.split(", ")],
        "stages": [{"number": number, "name": STAGES[number - 1]} for number in field.stages] or None,
    }


def _range(field: Field, facts: Facts) -> dict[str, Any] | None:
    """What is bounded → its ends. Read off the schema that the request is described by."""
    schema = narrowed(field, facts)
    match field.name:
        case "prompt":
            _, texts, ids, _ = schema["anyOf"]
            return {"prompts": _sizes(texts), "tokens": _sizes(ids), "ids": _ends(ids["items"])}
        case "stop":
            text, texts = schema["anyOf"]
            return {"strings": _sizes(texts), "characters": _lengths(text)}
        case "logit_bias":
            values = _ends(*schema["patternProperties"].values())
            ids = {"minimum": 0} if facts.vocab_size is None else {"minimum": 0, "maximum": facts.vocab_size - 1}
            return {"ids": ids, "values": values, "entries": {"minimum": 0, "maximum": BIAS_ENTRIES}}
        case "user":
            return {"characters": _lengths(schema)}
        case _:
            ends = _ends(schema)
            return {"value": ends} if ends else None


def _ends(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {end: schema[end] for end in ("minimum", "maximum") if end in schema}


def _lengths(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"minimum": schema.get("minLength", 0), "maximum": schema["maxLength"]}


def _sizes(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"minimum": schema.get("minItems", 0), "maximum": schema["maxItems"]}
