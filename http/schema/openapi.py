"""GET /openapi.json: the OpenAPI 3.1 document, made of the routes as the application declares them (route.py), of the
schemas (components.py, request.py) and of the errors themselves, which give their own headers and examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from starlette.routing import BaseRoute

from gnomon.http.auth import credential_errors
from gnomon.http.errors import HeadersTooLarge, HttpError, MethodNotAllowed, PathNotFound, ServerFailed, TooSlow
from gnomon.http.schema.components import COMPONENTS, schemas
from gnomon.http.schema.examples import examples_of
from gnomon.http.schema.route import JSON, DescribedRoute, Facts
from gnomon.http.service import SERVER_VERSION
from gnomon.http.settings import AuthMode
from gnomon.reference.errors import RequestError

ABOUT = (
    "Any other path is a 404 and any other method a 405, both in the form of `Error`. HEAD is answered wherever GET "
    "is. What is wrong with the connection itself, too many of them or a message that is no HTTP, is answered before a "
    "route is looked for, by 400, 408, 431, 501, 503 or 505."
)


def document(routes: Iterable[BaseRoute], facts: Facts) -> dict[str, Any]:
    described = [route for route in routes if isinstance(route, DescribedRoute)]
    guarded = facts.auth is not AuthMode.none
    components: dict[str, Any] = {
        "schemas": schemas(facts),
        "responses": {
            "NotFound": _response([PathNotFound("/v2", "this server has GET /livez, …")]),
            "MethodNotAllowed": _response([MethodNotAllowed("PUT", "/livez", "GET")]),
        },
        "parameters": COMPONENTS["parameters"],
        "headers": {"RequestId": COMPONENTS["headers"]["RequestId"]},
    }
    if guarded:
        scheme = COMPONENTS["security"][facts.auth.value]
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer", **scheme}}
    paths: dict[str, Any] = {}
    for route in described:
        operation = _operation(route, facts)
        item = paths.setdefault(route.path_format, {})
        item[route.method.lower()] = operation
        if route.method == "GET":
            item["head"] = _head(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gnomon",
            "version": SERVER_VERSION,
            "summary": "POST /v1/completions with an exact meaning.",
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}] if guarded else [],
        "paths": paths,
        "components": components,
    }


# ---- operations


def _operation(route: DescribedRoute, facts: Facts) -> dict[str, Any]:
    of = route.operation
    parameters = [COMPONENTS["path_parameters"][name] for name in route.param_convertors]
    operation: dict[str, Any] = {
        "operationId": of.name,
        "summary": of.summary,
        "parameters": [*parameters, {"$ref": "#/components/parameters/RequestId"}],
        "responses": {
            "200": {
                "description": of.answer or of.summary,
                "headers": dict(_EVERY_ANSWER),
                "content": {media: _content(schema, facts) for media, schema in of.answers.items()},
            },
            **_responses(_errors(route, facts)),
        },
    }
    if of.description:
        operation["description"] = of.description
    if of.body:
        content = {JSON: _content(of.body, facts)}
        operation["requestBody"] = {"required": True, "description": of.body_description, "content": content}
    if of.is_open and facts.auth is not AuthMode.none:
        operation["security"] = []
    return operation


def _errors(route: DescribedRoute, facts: Facts) -> list[RequestError]:
    """All that can be met there: what stands before the endpoint, and what the endpoint says of itself."""
    settings, of = facts.settings, route.operation
    return [
        *([] if of.is_open else credential_errors(facts.auth, settings.auth)),
        TooSlow.of_head(settings.header_seconds),
        HeadersTooLarge.in_bytes(settings.max_header_bytes + 1, settings.max_header_bytes),
        *([ServerFailed()] if of.can_fail else []),
        *of.errors(facts),
    ]


def _content(schema: str | None, facts: Facts) -> dict[str, Any]:
    if schema is None:
        return {"schema": {"type": "string"}}
    content: dict[str, Any] = {"schema": _ref(schema)}
    examples = examples_of(schema, facts)
    return {**content, "examples": _named(examples)} if examples else content


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


# ---- errors

_EVERY_ANSWER = {"x-request-id": {"$ref": "#/components/headers/RequestId"}}


def _responses(errors: Iterable[RequestError]) -> dict[str, Any]:
    by_status: dict[int, dict[str, RequestError]] = {}
    for error in errors:
        by_status.setdefault(error.status, {})[error.message] = error
    return {str(status): _response(list(of.values())) for status, of in sorted(by_status.items())}


def _response(errors: Sequence[RequestError]) -> dict[str, Any]:
    """The answer to all errors of one status. A header that each of them has is one that a client may rely on."""
    sent = [set(error.headers) if isinstance(error, HttpError) else set() for error in errors]
    headers: dict[str, Any] = dict(_EVERY_ANSWER)
    for name, header in COMPONENTS["headers"].items():
        if any(name in names for names in sent):
            headers[name] = {**header, "required": all(name in names for names in sent)}
    codes = list(dict.fromkeys(error.code for error in errors))
    described = COMPONENTS["statuses"][str(errors[0].status)]
    if any(codes):
        described += " `code` is " + " or ".join("null" if code is None else f"`{code}`" for code in codes) + "."
    examples = {f"{error.code or 'example'}{i or ''}": error.to_json() for i, error in enumerate(errors)}
    return {
        "description": described,
        "headers": headers,
        "content": {JSON: {"schema": _ref("Error"), "examples": _named(examples)}},
    }


def _named(examples: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {"value": value} for name, value in examples.items()}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}
