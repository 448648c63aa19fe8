"""What this server is, for machines: the OpenAPI 3.1 document, and the table of what it honours.

    document        GET /openapi.json: paths, the request's schema, every answer and every error
    capabilities    GET /v1/capabilities: each parameter with its range here, the limits, the model

Both are made from what decides: the request's schema from `FIELDS` and this server's limits, the errors from the
classes in errors.py, which give their own headers and examples. What a schema cannot say (how two fields go together,
what only the model knows) is said in words, beside the field. A request that the schema admits is refused for one of
those reasons or not at all; tests/http/schema/test_openapi.py holds the two against each other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

from gnomon.http.admission import QueueTimeout, RequestTimeout
from gnomon.http.errors import (
    BadAuthorization,
    BodyTooLarge,
    Draining,
    Forbidden,
    HeadersTooLarge,
    HttpError,
    MethodNotAllowed,
    NotFound,
    QueueFull,
    TooSlow,
    Unauthorized,
    Unavailable,
    UnsupportedMedia,
)
from gnomon.http.settings import AuthMode, Settings
from gnomon.http.trace import NoLonger
from gnomon.reference.completion import end_ids
from gnomon.reference.engine import LOWEST_LOGPROB, Engine
from gnomon.reference.errors import ContextExceeded, InvalidRequest, ModelNotFound, RequestError
from gnomon.reference.request import BIAS_ENTRIES, FIELDS, STAGES, Field
from gnomon.reference.response import json_bytes
from gnomon.reference.text.infill import Order
from gnomon.reference.tokenizer import Tokenizer

VERSION = version("gnomon")  # once: it is read from a file

JSON = "application/json"
EVENTS = "text/event-stream"
IDENTITY = (AuthMode.exchange, AuthMode.userinfo, AuthMode.jwks)  # modes in which somebody else vouches for a caller

TRACE = ("POST", "/v1/completions/trace")
ENDPOINTS = (
    ("GET", "/"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/health"),
    ("GET", "/version"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/v1/capabilities"),
    ("POST", "/v1/completions"),
    TRACE,
)


class Server(NamedTuple):
    """What the document depends on. context, vocab_size: None while no model is loaded."""

    settings: Settings
    model: str
    context: int | None
    auth: AuthMode
    vocab_size: int | None


def document(
    settings: Settings, model: str, context: int | None, auth: AuthMode, vocab_size: int | None = None
) -> dict[str, Any]:
    """The OpenAPI document. auth: the mode in force, since settings may leave it to the address."""
    server = Server(settings, model, context, auth, vocab_size)
    guarded = auth is not AuthMode.none
    components: dict[str, Any] = {
        "schemas": _schemas(server),
        "responses": {
            "NotFound": _response([NotFound('no such path: "/v2"; this server has GET /livez, …')]),
            "MethodNotAllowed": _response([MethodNotAllowed('"PUT" is no method of "/livez"; it has GET', "GET")]),
        },
        "parameters": {"RequestId": _REQUEST_ID_PARAMETER},
        "headers": {"RequestId": _REQUEST_ID_HEADER},
    }
    if guarded:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", **_SCHEMES[auth]}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gnomon",
            "version": VERSION,
            "summary": "POST /v1/completions with an exact meaning.",
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}] if guarded else [],
        "paths": _paths(server),
        "components": components,
    }


_ABOUT = (
    "Any other path is a 404 and any other method a 405, both in the form of `Error`. HEAD is answered wherever GET "
    "is. What is wrong with the connection itself, too many of them or a message that is no HTTP, is answered before a "
    "route is looked for, by 400, 408, 431, 501, 503 or 505."
)

_SCHEMES: Mapping[AuthMode, Mapping[str, str]] = {
    AuthMode.exchange: {
        "description": "A token of the identity service, sealed or signed. The server exchanges it there (RFC 8693) "
        "for a passport, which it verifies itself."
    },
    AuthMode.userinfo: {
        "description": "A token of the identity service. The server asks its userinfo endpoint whose it is."
    },
    AuthMode.jwks: {
        "description": "A JWT signed by the issuer and made out for this server. The server verifies it with the "
        "issuer's published keys.",
        "bearerFormat": "JWT",
    },
    AuthMode.api_key: {"description": "One of the keys that the operator of this server has handed out."},
}


# ---- paths


def _paths(server: Server) -> dict[str, Any]:
    settings, model = server.settings, server.model
    guarded = server.auth is not AuthMode.none
    credentials = _credential_errors(server.auth)
    not_ready = [
        Unavailable("the model is loading", "loading"),
        Draining(),
        Unavailable("the engine has failed several times in a row", "failing"),
        *_identity_errors(server.auth),
    ]

    def get(
        name: str,
        summary: str,
        content: Mapping[str, Any],
        errors: Sequence[RequestError] = (),
        open: bool = False,
        faultless: bool = False,
        parameters: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:
        """open: no credential is asked for. faultless: nothing in it can fail."""
        faults = [] if faultless else [_FAULT]
        refusals = [] if open else credentials
        operation: dict[str, Any] = {
            "operationId": name,
            "summary": summary,
            "parameters": [*parameters, _REQUEST_ID],
            "responses": {"200": _ok(summary, content), **_responses([*refusals, *_SLOW_OR_LARGE, *faults, *errors])},
        }
        if open and guarded:
            operation["security"] = []
        return {"get": operation, "head": _head(operation)}

    status = _content("Status", {"status": "ok"})
    probed = settings.auth.open_probes
    text = {"schema": {"type": "string"}}
    metrics = {"text/plain": text, "application/openmetrics-text": text}
    page = {"text/html": text}
    return {
        "/": get("page", "The page for people: an HTML file that calls this API.", page, open=True, faultless=True),
        "/livez": get("livez", "The process answers.", status, open=True, faultless=True),
        "/readyz": get("readyz", "Requests would be served now.", status, not_ready, probed),
        "/health": get("health", "The same as /readyz.", status, not_ready, probed),
        "/version": get("version", "What runs here.", _content("Version", _version_example(model))),
        "/metrics": get(
            "metrics",
            "Counters and gauges for Prometheus; OpenMetrics to whom accepts that.",
            metrics,
            open=settings.auth.open_metrics,
        ),
        "/openapi.json": get("openapi", "This document.", {JSON: {"schema": _ref("Document")}}),
        "/v1/models": get(
            "models",
            "The one model.",
            _content("Models", _models_example(server)),
            [Unavailable("the model is loading", "loading")],
        ),
        "/v1/models/{model}": get(
            "model",
            "The model by its id.",
            _content("Model", _model_example(server)),
            [Unavailable("the model is loading", "loading"), ModelNotFound("gpt-5", model)],
            parameters=[_MODEL_PARAMETER],
        ),
        "/v1/capabilities": get(
            "capabilities",
            "Every parameter with its range on this server, the server's limits, and facts of the model.",
            {JSON: {"schema": _ref("Capabilities")}},
            [Unavailable("the model is loading", "loading")],
        ),
        "/v1/completions": {"post": _completions(server, credentials)},
        "/v1/completions/trace": {"post": _trace(server, credentials)},
    }


def _completions(server: Server, credentials: Sequence[RequestError]) -> dict[str, Any]:
    settings = server.settings
    errors = [
        InvalidRequest("temperature", "temperature: 3 is not allowed; give a number from 0 to 2"),
        ContextExceeded("the prompt", 9, server.context or 4096, server.context or 4096),
        *credentials,
        ModelNotFound("gpt-5", server.model),
        *_SLOW_OR_LARGE,
        TooSlow(f"the body was not whole within {settings.body_seconds:g} seconds"),
        BodyTooLarge(f"the body has more than the {settings.max_body_bytes} bytes that are allowed"),
        UnsupportedMedia("the header Content-Type is missing; it must be application/json, with charset=utf-8 or none"),
        QueueFull(f"{settings.max_queue} requests are waiting already; try again in 3 seconds", 3),
        _FAULT,
        Unavailable("the model is loading", "loading"),
        Draining(),
        QueueTimeout(settings.queue_seconds, 3),
        RequestTimeout(settings.request_seconds),
        *_identity_errors(server.auth),
    ]
    whole = {"schema": _ref("Completion"), "examples": _named(_completion_examples(server.model))}
    events = {"schema": _ref("Event"), "examples": _named(_event_examples(server.model))}
    return {
        "operationId": "completions",
        "summary": "Complete one or more prompts.",
        "description": "The whole request is judged before anything is generated or a header is sent. Nothing is "
        "clamped and no field is ignored.",
        "parameters": [_REQUEST_ID],
        "requestBody": {
            "required": True,
            "description": f"At most {settings.max_body_bytes} bytes of JSON in UTF-8, not compressed. No key may "
            "occur twice, no number be NaN or infinite, no string hold half of a surrogate pair.",
            "content": {JSON: {"schema": _ref("CompletionRequest"), "examples": _named(_request_examples(server))}},
        },
        "responses": {
            "200": _ok(
                "The completions. As application/json without `stream`, in one piece. As text/event-stream with it: "
                "the schema is that of one event, whose `data` is a line of JSON. There is one choice in an event; "
                "joined by index they are the answer in one piece. An error after the first event is an event with "
                "the form of `Error`. The last event is `[DONE]`. Lines that begin with a colon are comments that "
                "keep a silent stream open.",
                {JSON: whole, EVENTS: events},
            ),
            **_responses(errors),
        },
    }


def _trace(server: Server, credentials: Sequence[RequestError]) -> dict[str, Any]:
    settings = server.settings
    errors = [
        InvalidRequest("request.temperature", "request.temperature: 3 is not allowed; give a number from 0 to 2"),
        InvalidRequest("tokens[0]", 'tokens[0]: "nope" is no label of this model'),
        _of_inner(ContextExceeded("the prompt", 9, server.context or 4096, server.context or 4096)),
        *credentials,
        ModelNotFound("gpt-5", server.model),
        NotFound("traces are not offered here: --trace-memory is 0", code="trace_not_offered"),
        *_SLOW_OR_LARGE,
        TooSlow(f"the body was not whole within {settings.body_seconds:g} seconds"),
        BodyTooLarge(f"the body has more than the {settings.max_body_bytes} bytes that are allowed"),
        UnsupportedMedia("the header Content-Type is missing; it must be application/json, with charset=utf-8 or none"),
        QueueFull("8 traces are under way; send the request again later", 3),
        _FAULT,
        NoLonger("the model's files cannot be read as they were when the server started"),
        Unavailable("the model is loading", "loading"),
        Draining(),
        QueueTimeout(settings.queue_seconds, 3),
        RequestTimeout(settings.request_seconds),
        *_identity_errors(server.auth),
    ]
    example = {"request": _request_examples(server)["text"], "index": 0, "tokens": [], "step": None}
    return {
        "operationId": "trace",
        "summary": "Recompute how the tokens of a finished choice were drawn.",
        "description": "The reference, in float64, evaluates the prompt and the given tokens, and draws every token "
        "again as the law has it; one step is shown in full if it is asked for. Traces are made one at a time, beside "
        "the engine's work. Offered where the reference's weights fit this server's memory for them: else it is not "
        "among the endpoints of /v1/capabilities, and a 404 says why.",
        "parameters": [_REQUEST_ID],
        "requestBody": {
            "required": True,
            "description": f"At most {settings.max_body_bytes} bytes of JSON, as for /v1/completions.",
            "content": {JSON: {"schema": _ref("TraceRequest"), "examples": _named({"nothing sampled": example})}},
        },
        "responses": {
            "200": _ok("The draws.", {JSON: {"schema": _ref("Trace")}}),
            **_responses(errors),
        },
    }


def _of_inner(error: InvalidRequest) -> InvalidRequest:
    """An error of the request inside a trace's."""
    return InvalidRequest(f"request.{error.param}", f"request.{error.message}", error.code)


_FAULT = RequestError("the server failed to answer this request; its log has the cause")
_SLOW_OR_LARGE = (
    TooSlow("the headers were not whole in time"),
    HeadersTooLarge("the request line and the headers are longer than this server allows"),
)


def _credential_errors(auth: AuthMode) -> list[RequestError]:
    """What a caller is told of its credential, where one is asked for."""
    if auth is AuthMode.none:
        return []
    errors: list[RequestError] = [
        BadAuthorization("there are two Authorization headers; send one"),
        Unauthorized("no bearer token was sent; send one in the header Authorization", None),
        Unauthorized("the bearer token is not accepted"),
    ]
    if auth in (AuthMode.exchange, AuthMode.userinfo):
        errors.append(Forbidden("this account may not use this server"))
    return [*errors, *_identity_errors(auth)]


def _identity_errors(auth: AuthMode) -> list[RequestError]:
    return [Unavailable("the identity service does not answer", "identity_unavailable")] if auth in IDENTITY else []


# ---- answers


_REQUEST_ID_HEADER = {
    "description": "The request's id: the one that was sent, if it was fit, or a new one.",
    "required": True,
    "schema": {"type": "string"},
}
_REQUEST_ID_PARAMETER = {
    "name": "x-request-id",
    "in": "header",
    "description": "An id to find the request by in the server's log. One that is not fit for a log is replaced.",
    "schema": {"type": "string"},
}
_MODEL_PARAMETER = {
    "name": "model",
    "in": "path",
    "required": True,
    "description": "The id of a served model. A slash in it may be sent as it is, or as %2F.",
    "schema": {"type": "string", "minLength": 1},
}
_EVERY_ANSWER = {"x-request-id": {"$ref": "#/components/headers/RequestId"}}
_REQUEST_ID = {"$ref": "#/components/parameters/RequestId"}

_HEADERS: Mapping[str, Mapping[str, Any]] = {
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}},
    "X-Should-Retry": {
        "description": "Whether sending it again could help, for clients that ask; there is no Retry-After then.",
        "schema": {"type": "string", "const": "false"},
    },
    "WWW-Authenticate": {"description": "The challenge (RFC 6750).", "schema": {"type": "string"}},
    "Allow": {"description": "The methods of this path.", "schema": {"type": "string"}},
}

_STATUSES: Mapping[int, str] = {
    400: "The request is at fault; `param` names the field, if it is one.",
    401: "There is no credential, or it is not accepted.",
    403: "The credential is good, and the answer is no.",
    404: "There is no such model, or no such path.",
    405: "The path has other methods.",
    408: "The request was not whole in time.",
    413: "The body is too long.",
    415: "The body is not application/json in UTF-8, or it is compressed.",
    429: "The queue is full; waiting cures it.",
    431: "The request line and the headers are too long.",
    500: "The server failed; the request is not at fault.",
    503: "Not now.",
}


def _ok(description: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": description, "headers": dict(_EVERY_ANSWER), "content": dict(content)}


def _responses(errors: Iterable[RequestError]) -> dict[str, Any]:
    by_status: dict[int, dict[str, RequestError]] = {}
    for error in errors:
        by_status.setdefault(error.status, {})[error.message] = error
    return {str(status): _response(list(of.values())) for status, of in sorted(by_status.items())}


def _response(errors: Sequence[RequestError]) -> dict[str, Any]:
    """The answer to all errors of one status. A header that each of them has is one that a client may rely on."""
    sent = [set(error.headers) if isinstance(error, HttpError) else set() for error in errors]
    headers: dict[str, Any] = dict(_EVERY_ANSWER)
    for name, header in _HEADERS.items():
        if any(name in names for names in sent):
            headers[name] = {**header, "required": all(name in names for names in sent)}
    codes = [error.code for error in errors]
    described = _STATUSES[errors[0].status]
    if any(codes):
        described += " `code` is " + " or ".join("null" if code is None else f"`{code}`" for code in codes) + "."
    examples = {f"{error.code or 'example'}{i or ''}": error.to_json() for i, error in enumerate(errors)}
    return {
        "description": described,
        "headers": headers,
        "content": {JSON: {"schema": _ref("Error"), "examples": _named(examples)}},
    }


def _head(get: Mapping[str, Any]) -> dict[str, Any]:
    """HEAD of what GET is answered for: the same without the body."""
    return {
        **get,
        "operationId": f"{get['operationId']}Head",
        "responses": {
            status: {key: value for key, value in answer.items() if key != "content"}
            for status, answer in get["responses"].items()
        },
    }


def _content(schema: str, example: Mapping[str, Any]) -> dict[str, Any]:
    return {JSON: {"schema": _ref(schema), "examples": _named({"example": example})}}


def _named(examples: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {"value": value} for name, value in examples.items()}


# ---- examples


def _request_examples(server: Server) -> dict[str, Any]:
    scored = {"prompt": "Once", "max_tokens": 0, "echo": True, "logprobs": 1}
    streamed = {"prompt": "Once", "max_tokens": 8, "stream": True, "stream_options": {"include_usage": True}}
    examples: dict[str, Any] = {
        "text": {"prompt": "Once", "max_tokens": 8, "temperature": 0.7, "top_p": 0.9, "seed": 1, "stop": ["\n\n"]},
        "ids": {"prompt": [[1, 2, 3]], "max_tokens": 8, "temperature": 0, "logit_bias": {"5": -100}},
        "scored": scored,
        "streamed": streamed,
    }
    if server.settings.max_candidates >= 3:
        examples["best of three"] = {"prompt": "Once", "max_tokens": 8, "n": 2, "best_of": 3, "logprobs": 0}
    return {name: {"model": server.model, **fields} for name, fields in examples.items()}


def _completion_examples(model: str) -> dict[str, Any]:
    scores = {
        "tokens": ["On", "ce"],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {"ce": -0.5}],
        "text_offset": [0, 2],
    }
    return {
        "text": _completion_example(model, " upon a time", None, "length", (1, 8)),
        "scored": _completion_example(model, "Once", scores, "length", (2, 0)),
    }


def _event_examples(model: str) -> dict[str, Any]:
    chunk = _completion_example(model, " upon", None, None, None)
    return {
        "chunk": {"data": _line(chunk)},
        "usage": {"data": _line({**_completion_example(model, "", None, None, (1, 8)), "choices": []})},
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


def _version_example(model: str) -> dict[str, Any]:
    return {
        "name": "gnomon",
        "version": VERSION,
        "model": model,
        "engine": "jax",
        "system_fingerprint": "jax-0123456789abcdef",
    }


def _model_example(server: Server) -> dict[str, Any]:
    row = {"id": server.model, "object": "model", "created": 1_750_000_000, "owned_by": "gnomon"}
    return {**row, "max_model_len": server.context or 4096}


def _models_example(server: Server) -> dict[str, Any]:
    return {"object": "list", "data": [_model_example(server)]}


# ---- schemas


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Mapping[str, Any], optional: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """An object of these members and, unless it is said otherwise, no others."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
        **more,
    }


def _array(items: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": dict(items), **more}


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    if "$ref" in schema:
        return {"anyOf": [dict(schema), {"type": "null"}]}
    return {**schema, "type": [schema["type"], "null"]}


_TEXT: Mapping[str, Any] = {"type": "string"}
_COUNT: Mapping[str, Any] = {"type": "integer", "minimum": 0}
_FLAG: Mapping[str, Any] = {"type": "boolean"}
_NUMBER: Mapping[str, Any] = {"type": "number"}


def _schemas(server: Server) -> dict[str, Any]:
    model = {"type": "string", "enum": [server.model]}
    logprob = {"type": "number", "minimum": LOWEST_LOGPROB}
    by_label = {"type": "object", "additionalProperties": logprob}
    finish_reason = {"type": "string", "enum": ["stop", "length"]}

    def choice(finish_reason: Mapping[str, Any]) -> dict[str, Any]:
        logprobs = _or_null(_ref("Logprobs"))
        return _object({"index": _COUNT, "text": _TEXT, "logprobs": logprobs, "finish_reason": dict(finish_reason)})

    def completion(choices: Mapping[str, Any], usage: Mapping[str, Any], optional: Sequence[str]) -> dict[str, Any]:
        members = {
            "id": {"type": "string", "pattern": "^cmpl-"},
            "object": {"const": "text_completion"},
            "created": {**_COUNT, "description": "In seconds since 1970."},
            "model": model,
            "choices": dict(choices),
            "usage": dict(usage),
            "system_fingerprint": {
                **_TEXT,
                "description": "The same fingerprint, request and seed (or temperature 0): the same choices.",
            },
        }
        return _object(members, optional)

    event = {"anyOf": [_ref("CompletionChunk"), _ref("Error")]}
    return {
        "CompletionRequest": _request(server),
        "Completion": completion(_array(_ref("Choice"), minItems=1), _ref("Usage"), ()),
        "CompletionChunk": completion(_array(_ref("ChunkChoice"), maxItems=1), _or_null(_ref("Usage")), ("usage",)),
        "Event": {
            "type": "object",
            "properties": {
                "data": {
                    "anyOf": [
                        {"const": "[DONE]"},
                        {"type": "string", "contentMediaType": JSON, "contentSchema": event},
                    ]
                }
            },
            "required": ["data"],
        },
        "Choice": choice(finish_reason),
        "ChunkChoice": choice({"type": ["string", "null"], "enum": ["stop", "length", None]}),
        "Logprobs": _object(
            {
                "tokens": _array(_TEXT),
                "token_logprobs": _array(_or_null(logprob)),
                "top_logprobs": _array(_or_null(by_label)),
                "text_offset": _array(_COUNT),
            },
            description="Four arrays of one length. Only the first place of an echoed prompt has null.",
        ),
        "Usage": _object(
            {
                "prompt_tokens": _COUNT,
                "completion_tokens": {**_COUNT, "description": "Of all candidates, returned or not."},
                "total_tokens": _COUNT,
                "prompt_tokens_details": _object({"cached_tokens": _COUNT}),
            }
        ),
        "Error": _object(
            {
                "error": _object(
                    {
                        "message": {**_TEXT, "minLength": 1},
                        "type": {"type": "string", "enum": ["invalid_request_error", "server_error"]},
                        "param": {"type": ["string", "null"], "description": "The field at fault."},
                        "code": {"type": ["string", "null"]},
                    }
                )
            }
        ),
        "Status": _object({"status": {"const": "ok"}}),
        "Version": _object(
            {
                "name": {"const": "gnomon"},
                "version": _TEXT,
                "model": model,
                "engine": {"type": ["string", "null"], "description": "null while the model is loading."},
                "system_fingerprint": {"type": ["string", "null"], "description": "null while the model is loading."},
            }
        ),
        "Models": _object({"object": {"const": "list"}, "data": _array(_ref("Model"))}),
        "Model": _object(
            {
                "id": model,
                "object": {"const": "model"},
                "created": _COUNT,
                "owned_by": {"const": "gnomon"},
                "max_model_len": {"type": "integer", "minimum": 1},
            }
        ),
        "Document": {
            "type": "object",
            "properties": {"openapi": {"type": "string", "pattern": "^3\\.1\\."}},
            "required": ["openapi", "info", "paths", "components"],
        },
        **_trace_schemas(server, model),
        **_capability_schemas(model),
    }


def _trace_schemas(server: Server, model: Mapping[str, Any]) -> dict[str, Any]:
    maybe, maybe_count = _or_null(_NUMBER), _or_null(_COUNT)
    word = {"type": "string", "pattern": "^[0-9a-f]{8}$"}
    words = _or_null(_array(word, minItems=2, maxItems=2))
    return {
        "TraceRequest": _object(
            {
                "request": {
                    **_ref("CompletionRequest"),
                    "description": "The body that the completion was asked for with. Errors name its fields as "
                    "`request.seed`. A `seed` is required unless `temperature` is 0; `stream` makes no difference.",
                },
                "index": {
                    **_or_null(_COUNT),
                    "default": 0,
                    "description": "The choice's index in the answer; below the prompts times n.",
                },
                "tokens": _array(
                    _TEXT,
                    maxItems=server.settings.trace_tokens,
                    description="The labels of the choice's sampled tokens, as `logprobs.tokens` has them, without "
                    "the prompt's; at most request.max_tokens. With the prompt's they are at most "
                    f"{server.settings.trace_tokens} on this server.",
                ),
                "step": {
                    **_or_null(_COUNT),
                    "default": None,
                    "description": "The token whose draw is wanted in full; below the number of tokens.",
                },
            },
            ("index", "step"),
            additionalProperties={"type": "null"},
        ),
        "Trace": _object(
            {
                "object": {"const": "completion.trace"},
                "model": dict(model),
                "system_fingerprint": {**_TEXT, "description": "Of the reference."},
                "candidate": {
                    **_COUNT,
                    "description": "The choice's number among the candidates, which is in the random key. With best_of "
                    "above n, found by its draws: the one that differs from the tokens the fewest times.",
                },
                "prompt_tokens": _array(_TEXT),
                "agreement": _object({"tokens": _COUNT, "agree": _COUNT, "first_difference": maybe_count}),
                "steps": _array(
                    _object(
                        {
                            "step": _COUNT,
                            "token": _TEXT,
                            "id": _COUNT,
                            "reference_token": {
                                **_TEXT,
                                "description": "What the reference draws here, after the "
                                "prompt and the given tokens before this one.",
                            },
                            "reference_id": _COUNT,
                            "logprob": {
                                "type": "number",
                                "minimum": LOWEST_LOGPROB,
                                "description": "The reference's, of the given token.",
                            },
                            "margin": {
                                **maybe,
                                "description": "By how much the reference's token won; null if it was alone.",
                            },
                            "agrees": _FLAG,
                        }
                    )
                ),
                "draw": _or_null(_ref("Draw")),
            }
        ),
        "Draw": _object(
            {
                "step": _COUNT,
                "greedy": _FLAG,
                "seed": {"type": ["string", "null"], "description": "In digits. null: greedy, with nothing random."},
                "candidate": _COUNT,
                "key": {**words, "description": "The random key of this step; null if greedy."},
                "stages": _array(_TEXT, description="Of the law of one draw, those that this one went through."),
                "candidates": _array(
                    _object(
                        {
                            "id": _COUNT,
                            "label": _TEXT,
                            "rank": {**_COUNT, "description": "By z, the lower id first on a tie."},
                            "logit": _NUMBER,
                            "logprob": _NUMBER,
                            "bias": _NUMBER,
                            "penalty": {**_NUMBER, "description": "What stage 3 added: logit + bias + penalty = z."},
                            "z": _NUMBER,
                            "at_temperature_1": {**_NUMBER, "description": "softmax of z."},
                            "scaled": {
                                **maybe,
                                "description": "The distance from the largest z, divided by the "
                                "temperature; null if greedy, or minus infinity.",
                            },
                            "probability": {**maybe, "description": "softmax of scaled, before the nucleus."},
                            "mass_before": {
                                **maybe,
                                "description": "The probability of all ranks before this one: "
                                "what top_p is compared with.",
                            },
                            "kept": _or_null(_FLAG),
                            "chance": {
                                **maybe,
                                "description": "softmax of scaled over the kept tokens, 0 for the others: how likely "
                                "this draw was to give it.",
                            },
                            "words": {**words, "description": "The 64 random bits of this token at this step."},
                            "noise": maybe,
                            "score": {**maybe, "description": "scaled + noise; null for what could not win."},
                            "count": {**_COUNT, "description": "How often this candidate had sampled it before."},
                            "why": {**_TEXT, "description": "What became of it, in words."},
                        }
                    ),
                    description="The tokens that mattered, by rank: the most probable before and after the stages, "
                    "those with a bias, the winner, the runner-up and the given token.",
                ),
                "others": _object(
                    {"count": _COUNT, "probability": maybe, "kept": maybe_count, "chance": maybe, "best_score": maybe},
                    description="All tokens that are not listed, together.",
                ),
                "winner": _COUNT,
                "runner_up": maybe_count,
                "margin": maybe,
                "picture": {**_TEXT, "description": "All of this as SVG.", "contentMediaType": "image/svg+xml"},
            }
        ),
    }


def _capability_schemas(model: Mapping[str, Any]) -> dict[str, Any]:
    id_or_null = {"type": ["integer", "null"], "minimum": 0}
    ends = {"minimum": _NUMBER, "maximum": _NUMBER}
    limits = {name: {"type": ["number", "null"]} for name in (*_LIMITS, "context", "logprobs", "stop")}
    return {
        "Capabilities": _object(
            {
                "model": _object(
                    {
                        "id": dict(model),
                        "context": {**_COUNT, "description": "Prompt and sampled tokens together."},
                        "vocab_size": _COUNT,
                        "eos_ids": _array(_COUNT),
                        "bos_id": id_or_null,
                        "end_of_text_id": id_or_null,
                        "fill_in_the_middle": _or_null(
                            _object(
                                {
                                    "prefix": _COUNT,
                                    "suffix": _COUNT,
                                    "middle": id_or_null,
                                    "order": {"type": "string", "enum": list(Order)},
                                }
                            )
                        ),
                    }
                ),
                "engine": _TEXT,
                "parameters": _array(_ref("Parameter")),
                "limits": _object({**limits, "openai_limits": _FLAG}),
                "streaming": _object(
                    {
                        "media_type": {"const": EVENTS},
                        "last_event": {"const": "[DONE]"},
                        "include_usage": _FLAG,
                        "best_of": {**_FLAG, "description": "Whether best_of may exceed n with stream."},
                        "ping_seconds": _NUMBER,
                    }
                ),
                "endpoints": _array(_object({"method": _TEXT, "path": _TEXT})),
                "trace": {
                    **_or_null(_object({"tokens": _COUNT})),
                    "description": "Up to how many tokens of prompt and completion are traced; null where they are "
                    "not.",
                },
            }
        ),
        "Parameter": _object(
            {
                "name": {"type": "string", "enum": [field.name for field in FIELDS]},
                "honoured": {**_FLAG, "description": "false: a value that asks for something is a 400."},
                "reason": {"type": ["string", "null"]},
                "type": _TEXT,
                "required": _FLAG,
                "default": {},
                "allowed": {**_TEXT, "description": "In words, as the law has it; the numbers here are in `range`."},
                "range": {
                    "type": ["object", "null"],
                    "description": "What is bounded, and its ends on this server, both allowed.",
                    "additionalProperties": _object(ends, ("minimum", "maximum")),
                },
                "meaning": _TEXT,
                "sections": _array(_COUNT, description="Of the law."),
                "stages": {
                    **_or_null(_array(_object({"number": _COUNT, "name": {"type": "string", "enum": [*STAGES]}}))),
                    "description": "Of the law of one draw; null for what acts elsewhere.",
                },
            }
        ),
    }


# ---- the request


def _request(server: Server) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for field in FIELDS:
        schema = _narrowed(field, server)
        first, *rest = field.meaning.split(" ")
        meaning = " ".join((first if "_" in first else first.capitalize(), *rest))
        said = [
            f"{meaning}.",
            f"The law ({field.section}) allows: {field.allowed}.",
        ]
        said += _WORDS.get(field.name, ())
        if not field.required:
            schema = {**_or_null(schema), "default": field.default}
        elif field.name == "prompt":
            schema = _or_null(schema)
        properties[field.name] = {**schema, "description": " ".join(said)}
    limit = server.settings.max_candidates
    return _object(
        properties,
        [field.name for field in FIELDS if not field.required],
        additionalProperties={"type": "null"},
        description="null is the same as leaving a field out, whatever its name, and an entry of logit_bias or "
        "stream_options too; only a prompt of null says something. Where this server allows less than the law, the "
        "schema says how much. The prompts times the candidates of each (best_of, or "
        f"else n) are at most {limit}. An integer may be written as 16.0, up to 2 to the power of 53.",
    )


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


def _narrowed(field: Field, server: Server) -> dict[str, Any]:
    """The field's schema with this server's limits, null aside."""
    schema: dict[str, Any] = copy.deepcopy(dict(field.schema))
    limits, context, vocab_size = server.settings.limits, server.context, server.vocab_size
    match field.name:
        case "model":
            schema["enum"] = [server.model]
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


# ---- capabilities

_LIMITS = (
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


def capabilities(
    engine_name: str, engine: Engine, tokenizer: Tokenizer, settings: Settings, traced: bool
) -> dict[str, Any]:
    """Every parameter with what it is on this server, and the facts one needs to use it. traced: whether POST
    /v1/completions/trace is offered."""
    server = Server(settings, settings.served_model_name, engine.context, AuthMode.none, engine.vocab_size)
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
        "engine": engine_name,
        "parameters": [_parameter(field, server, tokenizer) for field in FIELDS],
        "limits": {
            **{name: getattr(settings, name) for name in _LIMITS},
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
            {"method": method, "path": path} for method, path in ENDPOINTS if traced or (method, path) != TRACE
        ],
        "trace": {"tokens": min(settings.trace_tokens, engine.context)} if traced else None,
    }


def _parameter(field: Field, server: Server, tokenizer: Tokenizer) -> dict[str, Any]:
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
        "range": _range(field, server),
        "meaning": field.meaning,
        "sections": [int(number) for number in field.section.split(", ")],
        "stages": [{"number": number, "name": STAGES[number - 1]} for number in field.stages] or None,
    }


def _range(field: Field, server: Server) -> dict[str, Any] | None:
    """What is bounded → its ends. Read off the schema that the request is described by."""
    schema = _narrowed(field, server)
    match field.name:
        case "prompt":
            _, texts, ids, _ = schema["anyOf"]
            return {"prompts": _sizes(texts), "tokens": _sizes(ids), "ids": _ends(ids["items"])}
        case "stop":
            text, texts = schema["anyOf"]
            return {"strings": _sizes(texts), "characters": _lengths(text)}
        case "logit_bias":
            values = _ends(*schema["patternProperties"].values())
            ids = {"minimum": 0} if server.vocab_size is None else {"minimum": 0, "maximum": server.vocab_size - 1}
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
