"""The parts of the OpenAPI document that are no code: components.json, filled with what this server decides.

A text "$name" there stands for a value of this server's, and "${name}" within a text for its digits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gnomon.http.schema.capabilities import limits_schema
from gnomon.http.schema.request import request_schema
from gnomon.http.schema.route import Facts
from gnomon.reference.engine import LOWEST_LOGPROB
from gnomon.reference.request import FIELDS, STAGES
from gnomon.reference.text.infill import Order

COMPONENTS: Mapping[str, Any] = json.loads(Path(__file__).with_name("components.json").read_text("utf-8"))


def schemas(facts: Facts) -> dict[str, Any]:
    values = {
        "models": [facts.model],
        "trace_tokens": facts.settings.trace_tokens,
        "lowest_logprob": LOWEST_LOGPROB,
        "fields": [field.name for field in FIELDS],
        "stages": list(STAGES),
        "orders": list(Order),
        "limits": limits_schema(),
    }
    return {"CompletionRequest": request_schema(facts), **filled(COMPONENTS["schemas"], values)}


def filled(part: Any, values: Mapping[str, Any]) -> Any:
    """A copy, with the values in their places."""
    match part:
        case dict():
            return {name: filled(value, values) for name, value in part.items()}
        case list():
            return [filled(value, values) for value in part]
        case str() if part[:1] == "$":
            return values[part[1:]]
        case str() if "${" in part:
            for name, value in values.items():
                part = part.replace(f"${{{name}}}", str(value))
    return part
