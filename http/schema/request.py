"""The schema of a completion's request: that of every field, with this server's limits.

What a schema cannot say (how two fields go together, what only the model knows) is said in words, beside the field. A
request that the schema admits is refused for one of those reasons or not at all; tests/http/schema/test_openapi.py
holds the two against each other.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from gnomon.http.schema.route import Facts
from gnomon.reference.request import BIAS_ENTRIES, FIELDS, Field


def request_schema(facts: Facts) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for field in FIELDS:
        schema = narrowed(field, facts)
        first, *rest = field.meaning.split(" ")
        meaning = " ".join((first if "_" in first else first.capitalize(), *rest))
        said = [
            f"{meaning}.",
            f"The law ({field.section}) allows: {field.allowed}.",
        ]
        said += _WORDS.get(field.name, ())
        if not field.required:
            schema = {**or_null(schema), "default": field.default}
        elif field.name == "prompt":
            schema = or_null(schema)
        properties[field.name] = {**schema, "description": " ".join(said)}
    limit = facts.settings.max_candidates
    return {
        "type": "object",
        "properties": properties,
        "required": [field.name for field in FIELDS if field.required],
        "additionalProperties": {"type": "null"},
        "description": "null is the same as leaving a field out, whatever its name, and an entry of logit_bias or "
        "stream_options too; only a prompt of null says something. Where this server allows less than the law, the "
        "schema says how much. The prompts times the candidates of each (best_of, or "
        f"else n) are at most {limit}. An integer may be written as 16.0, up to 2 to the power of 53.",
    }


_WORDS: Mapping[str, Sequence[str]] = {  # what the schema of the field cannot say, and the table does not
    "prompt": (
        "Its tokens and max_tokens together must fit the model's context. Ids must be below the vocabulary's size, "
        "and written without a decimal point. A text that encodes to no token is refused.",
    ),
    "suffix": ("Only with prompts that are texts, and not together with echo.",),
    "logit_bias": (
        f"Ids must be below the vocabulary's size. At most {BIAS_ENTRIES} entries whose values are not null.",
    ),
    "stream_options": ("An empty object, or one whose members are null, is allowed without stream too.",),
}


def or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    return {**schema, "type": [schema["type"], "null"]}


def narrowed(field: Field, facts: Facts) -> dict[str, Any]:
    """The field's schema with this server's limits, null aside."""
    schema: dict[str, Any] = copy.deepcopy(dict(field.schema))
    limits, context, vocab_size = facts.settings.limits, facts.context, facts.vocab_size
    match field.name:
        case "model":
            schema["enum"] = [facts.model]
        case "prompt":
            _, texts, ids, lists = schema["anyOf"]
            texts["maxItems"] = lists["maxItems"] = min(limits.prompts, limits.candidates)
            if vocab_size is not None:
                ids["items"]["maximum"] = vocab_size - 1
            if context is not None:
                ids["maxItems"] = context
            lists["items"] = ids
        case "n" | "best_of":
            schema["maximum"] = min(schema["maximum"], limits.candidates)
        case "max_tokens" if context is not None and context > field.default:
            schema["maximum"] = context - 1
        case "logprobs":
            schema["maximum"] = min(schema["maximum"], limits.logprobs)
        case "stop":
            schema["anyOf"][1]["maxItems"] = min(schema["anyOf"][1]["maxItems"], limits.stop)
        case "logit_bias" if vocab_size is not None:
            digits = len(str(vocab_size - 1))
            (values,) = schema["patternProperties"].values()
            schema["patternProperties"] = {f"^(0|[1-9][0-9]{{0,{digits - 1}}})$": values}
    return schema
