"""The description is the server: valid, complete, and true of every request, answer and error."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.routing import Route

from gnomon.http.app import create_app
from gnomon.http.settings import AuthMode, AuthSettings, Settings
from gnomon.reference import sampler
from gnomon.reference.completion import prepare
from gnomon.reference.errors import InvalidRequest, RequestError
from gnomon.reference.request import BY_NAME, FIELDS, STAGES, CompletionRequest
from gnomon.reference.text.infill import Infill, Order
from gnomon.reference.tokenizer import Tokenizer
from helpers.described import CONTEXT, capabilities_of, description_of
from helpers.fake import EOT, FAKE_VOCAB, PRE, SUF, FakeEngine, hashed_logits
from helpers.live import MODEL, call, events, post, request_body

LAW, PUBLISHED = Settings(), Settings(openai_limits=True, max_candidates=2, max_prompts=1, max_body_bytes=1000)
OPEN = Settings(auth=AuthSettings(open_probes=True, open_metrics=True))
DOCUMENT = description_of(LAW)


@pytest.fixture(scope="module")
def app(tokenizer: Tokenizer) -> Starlette:
    return create_app(FakeEngine(hashed_logits), tokenizer, LAW)


def validator(name: str, described: Mapping[str, Any] = DOCUMENT) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": described["components"]})


def operations(described: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in described["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


# ---- the document


def also(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "mode", [AuthMode.none, AuthMode.exchange, *map(also, (AuthMode.userinfo, AuthMode.jwks, AuthMode.api_key))]
)
@pytest.mark.parametrize("settings", [LAW, PUBLISHED, OPEN], ids=["law", "published", "open"])
@pytest.mark.parametrize(
    ("context", "vocab_size"), [(CONTEXT, FAKE_VOCAB), *(also(*sizes) for sizes in ((5, 30), (None, None)))]
)
def test_it_is_valid_openapi(mode: AuthMode, settings: Settings, context: int | None, vocab_size: int | None) -> None:
    from openapi_spec_validator import OpenAPIV31SpecValidator  # four seconds, which are not to be spent on collecting

    described = description_of(settings, mode, context, vocab_size)
    assert [error.message for error in OpenAPIV31SpecValidator(described).iter_errors()] == []


def test_every_route_has_a_path_and_every_path_a_route(app: Starlette) -> None:
    routes = {
        (method, route.path_format)
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
    }
    assert len(routes) >= len(app.routes)
    assert {(method, path) for method, path, _ in operations(DOCUMENT)} == routes


def test_the_server_serves_it(app: Starlette) -> None:
    assert call(app, "GET", "/openapi.json").json() == json.loads(json.dumps(DOCUMENT))


def test_an_operation_is_known_by_one_id() -> None:
    names = [operation["operationId"] for _, _, operation in operations(DOCUMENT)]
    assert len(names) == len(set(names))


def test_head_is_get_without_the_bodies() -> None:
    for path, item in DOCUMENT["paths"].items():
        assert ("head" in item) == ("get" in item), path
        if "head" in item:
            assert item["head"]["responses"].keys() == item["get"]["responses"].keys()
            assert not any("content" in answer for answer in item["head"]["responses"].values())


# ---- who may call


@pytest.mark.parametrize("mode", [mode for mode in AuthMode if mode is not AuthMode.none])
@pytest.mark.parametrize("open_probes", [False, True])
@pytest.mark.parametrize("open_metrics", [False, True])
def test_every_operation_but_liveness_and_what_was_opened_asks_for_a_token(
    mode: AuthMode, open_probes: bool, open_metrics: bool
) -> None:
    settings = Settings(auth=AuthSettings(open_probes=open_probes, open_metrics=open_metrics))
    described = description_of(settings, mode)
    assert described["security"] == [{"bearer": []}]
    scheme = described["components"]["securitySchemes"]["bearer"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    opened = {"/", "/livez"}
    opened |= {"/readyz", "/health"} if open_probes else set()
    opened |= {"/metrics"} if open_metrics else set()
    for _, path, operation in operations(described):
        statuses = operation["responses"].keys()
        assert (operation.get("security") == []) == (path in opened), path
        assert ("401" in statuses) == (path not in opened), path
        refusable = mode in (AuthMode.exchange, AuthMode.userinfo) and path not in opened
        assert ("403" in statuses) == refusable, path
        assert path.startswith("/v1/completions") or ("400" in statuses) == (path not in opened), path


def test_with_mode_none_nothing_is_asked_for() -> None:
    assert DOCUMENT["security"] == []
    assert "securitySchemes" not in DOCUMENT["components"]
    for _, _, operation in operations(DOCUMENT):
        assert "security" not in operation
        assert not {"401", "403"} & operation["responses"].keys()


@pytest.mark.parametrize("mode", AuthMode)
def test_the_identity_service_is_blamed_only_where_there_is_one(mode: AuthMode) -> None:
    described = description_of(LAW, mode)
    blamed = {path for _, path, operation in operations(described) if "`identity_unavailable`" in json.dumps(operation)}
    asks = mode in (AuthMode.exchange, AuthMode.userinfo, AuthMode.jwks)
    assert blamed == (set(described["paths"]) - {"/", "/livez"} if asks else set())
    assert json.dumps(description_of(OPEN, mode)["paths"]["/readyz"]).count("`identity_unavailable`") == (
        2 if asks else 0
    )


# ---- the request's schema


@pytest.mark.parametrize("name", [field.name for field in FIELDS])
def test_every_field_is_there_with_its_default_its_bounds_and_its_meaning(name: str) -> None:
    request, field = DOCUMENT["components"]["schemas"]["CompletionRequest"], BY_NAME[name]
    schema = request["properties"][name]
    assert (name in request["required"]) == field.required
    assert ("default" in schema) == (not field.required)
    if not field.required:
        assert schema["default"] == field.default
    for end in ("minimum", "maximum"):
        if end in field.schema:
            assert schema[end] == field.schema[end]
    assert field.meaning[1:] in schema["description"]
    assert field.allowed in schema["description"]
    takes_null = Draft202012Validator(schema).is_valid(None)
    assert takes_null == (name != "model")


def test_there_is_no_other_field() -> None:
    request = DOCUMENT["components"]["schemas"]["CompletionRequest"]
    assert list(request["properties"]) == [field.name for field in FIELDS]
    assert request["additionalProperties"] == {"type": "null"}, "null is as good as absent, whatever its name"


@pytest.mark.parametrize(
    ("fields", "admitted"),
    [
        ({"logprobs": 5}, True), ({"logprobs": 6}, False), ({"stop": ["a"] * 4}, True), ({"stop": ["a"] * 5}, False),
        ({"n": 2}, True), ({"n": 3}, False), ({"best_of": 2}, True), ({"best_of": 3}, False), ({"prompt": ["a"]}, True),
        ({"prompt": ["a", "b"]}, False), ({"prompt": [[1]]}, True), ({"prompt": [[1], [1]]}, False),
        ({"prompt": [FAKE_VOCAB - 1]}, True), ({"prompt": [FAKE_VOCAB]}, False), ({"prompt": [[FAKE_VOCAB]]}, False),
        ({"prompt": [1] * CONTEXT}, True), ({"prompt": [1] * (CONTEXT + 1)}, False),
        ({"max_tokens": CONTEXT - 1}, True), ({"max_tokens": CONTEXT}, False), ({"model": "other"}, False),
        ({"logit_bias": {"999": 1}}, True), ({"logit_bias": {"1000": 1}}, False),
    ],
)  # fmt: skip
def test_the_schema_has_this_servers_limits(fields: dict[str, Any], admitted: bool) -> None:
    described = description_of(PUBLISHED)
    assert validator("CompletionRequest", described).is_valid(request_body(**fields)) == admitted


def test_a_context_below_the_default_of_max_tokens_leaves_the_default_legal() -> None:
    described = description_of(LAW, context=5)
    assert validator("CompletionRequest", described).is_valid(request_body(max_tokens=16))


# ---- examples


@pytest.mark.parametrize("mode", AuthMode)
@pytest.mark.parametrize("settings", [LAW, PUBLISHED], ids=["law", "published"])
def test_every_example_is_one_of_its_own_schema(mode: AuthMode, settings: Settings) -> None:
    described = description_of(settings, mode)
    seen: list[str] = []
    for _, _, operation in operations(described):
        parts = [*operation["responses"].values(), *([operation["requestBody"]] if "requestBody" in operation else [])]
        for part in parts:
            for content in part.get("content", {}).values():
                for example in content.get("examples", {}).values():
                    name = content["schema"]["$ref"].rsplit("/", 1)[1]
                    validator(name, described).validate(example["value"])
                    if name == "Event" and example["value"]["data"] != "[DONE]":
                        check_event(json.loads(example["value"]["data"]), described)
                    seen.append(name)
    assert {
        "CompletionRequest", "Completion", "Event", "Error", "Status", "Version", "Model", "Models", "TraceRequest",
    } == set(seen)  # fmt: skip


@pytest.mark.parametrize("settings", [LAW, PUBLISHED], ids=["law", "published"])
def test_every_example_of_a_request_is_answered(settings: Settings, tokenizer: Tokenizer) -> None:
    app = create_app(FakeEngine(hashed_logits), tokenizer, settings)
    described = call(app, "GET", "/openapi.json").json()
    body = described["paths"]["/v1/completions"]["post"]["requestBody"]
    examples = body["content"]["application/json"]["examples"].values()
    assert len(examples) >= 4
    for example in examples:
        assert post(app, example["value"]).status_code == 200, example
    traced = described["paths"]["/v1/completions/trace"]["post"]["requestBody"]
    [example] = traced["content"]["application/json"]["examples"].values()
    assert call(app, "POST", "/v1/completions/trace", json=example["value"]).status_code == 200


# ---- answers


def check_event(value: Any, described: Mapping[str, Any] = DOCUMENT) -> None:
    schema = described["components"]["schemas"]["Event"]["properties"]["data"]["anyOf"][1]["contentSchema"]
    Draft202012Validator({**schema, "components": described["components"]}).validate(value)


SPREAD: tuple[dict[str, Any], ...] = (
    {},
    {"max_tokens": 0},
    {"max_tokens": 0, "echo": True, "logprobs": 2, "prompt": "the end"},
    {"echo": True, "logprobs": 0, "prompt": [1, 2, 3]},
    {"prompt": ["a", "the"], "n": 2, "logprobs": 20, "seed": 1},
    {"prompt": None, "stop": ["e", "t"], "temperature": 0},
    {"prompt": [[1], [240, 159]], "logprobs": 1, "temperature": 2},
    {"suffix": "b", "logprobs": 1},
    {"logit_bias": {"1": 100}, "logprobs": 1, "max_tokens": 3},
)


@pytest.mark.parametrize("fields", [*SPREAD, {"n": 2, "best_of": 4, "logprobs": 3}], ids=str)
def test_an_answer_is_one_of_its_schema(app: Starlette, fields: dict[str, Any]) -> None:
    response = post(app, **fields)
    assert response.status_code == 200
    validator("Completion").validate(response.json())


@pytest.mark.parametrize("options", [None, {"include_usage": True}, {}], ids=str)
@pytest.mark.parametrize("fields", SPREAD, ids=str)
def test_every_chunk_is_one_of_its_schema(
    app: Starlette, fields: dict[str, Any], options: dict[str, Any] | None
) -> None:
    chunks = events(post(app, stream=True, stream_options=options, **fields).content)
    for chunk in chunks:
        validator("CompletionChunk").validate(chunk)
        check_event(chunk)
    assert any(chunk.get("usage") for chunk in chunks) == bool(options)


def test_an_error_in_a_stream_is_an_event_of_the_schema(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    def fails_later(tokens: Sequence[int]) -> NDArray[np.float64]:
        return hashed_logits(tokens) * (np.nan if len(tokens) > 5 else 1)

    app = create_app(FakeEngine(fails_later), tokenizer, LAW)
    *chunks, error = events(post(app, stream=True, logprobs=1).content)
    assert chunks
    assert "not finite" in caplog.text
    validator("Error").validate(error)
    check_event(error)


def test_what_the_schema_forbids_no_answer_has(app: Starlette) -> None:
    """The schemas are closed: a member more, one less, or one of another type is no answer."""
    good = post(app, logprobs=1, max_tokens=2).json()
    check = validator("Completion")
    check.validate(good)
    choice = good["choices"][0]
    for bad in (
        {**good, "extra": 1},
        {name: value for name, value in good.items() if name != "usage"},
        {**good, "usage": None},
        {**good, "model": "other"},
        {**good, "choices": []},
        {**good, "choices": [{**choice, "finish_reason": None}]},
        {**good, "choices": [{**choice, "logprobs": {**choice["logprobs"], "token_logprobs": ["0"]}}]},
    ):
        assert not check.is_valid(bad)


def test_every_get_answers_what_its_schema_says(app: Starlette) -> None:
    described = call(app, "GET", "/openapi.json").json()
    for path, item in described["paths"].items():
        content = item["get"]["responses"]["200"]["content"] if "get" in item else {}
        if "application/json" in content:
            response = call(app, "GET", path.replace("{model}", MODEL))
            assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
            name = content["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
            validator(name, described).validate(response.json())


# ---- errors


def check_documented(response: httpx.Response, method: str, path: str) -> None:
    """The answer is an error in form, of a status that is documented there, with the headers promised."""
    validator("Error").validate(response.json())
    if path in DOCUMENT["paths"] and method.lower() in DOCUMENT["paths"][path]:
        documented = DOCUMENT["paths"][path][method.lower()]["responses"][str(response.status_code)]
    else:
        name = {404: "NotFound", 405: "MethodNotAllowed"}[response.status_code]
        documented = DOCUMENT["components"]["responses"][name]
    code = response.json()["error"]["code"]
    assert code is None or f"`{code}`" in documented["description"]
    assert response.headers["content-type"] in documented["content"]
    headers = {**documented["headers"], "x-request-id": DOCUMENT["components"]["headers"]["RequestId"]}
    for name, header in headers.items():
        assert name in response.headers or not header.get("required")
        if name in response.headers and header["schema"]["type"] == "integer":
            assert int(response.headers[name]) >= header["schema"]["minimum"]


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (400, {"temperature": 3}), (400, {"prompt": []}), (400, {"top_k": 1}), (400, {"max_tokens": CONTEXT}),
        (400, {"logit_bias": {str(FAKE_VOCAB): 1}}), (404, {"model": "other"}), (413, {"user": "a" * 9_000_000}),
    ],
)  # fmt: skip
def test_a_refusal_of_a_request_is_documented(app: Starlette, status: int, fields: dict[str, Any]) -> None:
    response = post(app, **fields)
    assert response.status_code == status
    check_documented(response, "POST", "/v1/completions")


@pytest.mark.parametrize(
    ("status", "method", "path", "content", "media"),
    [
        (400, "POST", "/v1/completions", "{", "application/json"),
        (415, "POST", "/v1/completions", "{}", "text/plain"),
        (405, "PUT", "/v1/completions", "{}", "application/json"),
        (405, "DELETE", "/v1/models", "", "application/json"),
        (404, "GET", "/v1/other", "", "application/json"),
    ],
)
def test_a_refusal_before_the_request_is_read_is_documented(
    app: Starlette, status: int, method: str, path: str, content: str, media: str
) -> None:
    response = call(app, method, path, content=content, headers={"Content-Type": media})
    assert response.status_code == status
    check_documented(response, method, path)


def test_a_fault_and_an_end_are_documented(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    def broken(tokens: Sequence[int]) -> NDArray[np.float64]:
        return np.full(FAKE_VOCAB, np.nan)

    app = create_app(FakeEngine(broken), tokenizer, LAW)
    for status in (500, 503):
        response = post(app)
        assert response.status_code == status
        check_documented(response, "POST", "/v1/completions")
        app.state.completions.stop()
    assert "not finite" in caplog.text


def kinds(of: type[RequestError]) -> set[type[RequestError]]:
    return {of}.union(*(kinds(kind) for kind in of.__subclasses__()))


def test_every_error_there_is_is_documented_where_it_can_be_met() -> None:
    described = description_of(LAW, AuthMode.exchange)
    answers = described["paths"]["/v1/completions"]["post"]["responses"]
    statuses = {str(kind.status) for kind in kinds(RequestError)}
    assert {"400", "401", "403", "404", "408", "413", "415", "429", "431", "500", "503"} <= statuses
    before_any_route = {"405", "501", "505"}  # what is there for POST is no other method; the others: wire.py
    assert answers.keys() == statuses - before_any_route | {"200"}
    assert codes(answers["503"]) == {
        "loading", "draining", "queue_timeout", "request_timeout", "identity_unavailable",
    }  # fmt: skip
    assert codes(answers["400"]) == {None, "context_length_exceeded", "invalid_request"}
    assert codes(answers["429"]) == {"queue_full"}
    assert codes(answers["404"]) == {"model_not_found"}
    assert codes(answers["401"]) == {None, "invalid_token"}
    for path in ("/readyz", "/health"):
        not_ready = described["paths"][path]["get"]["responses"]["503"]
        assert codes(not_ready) == {"loading", "draining", "failing", "identity_unavailable"}
    assert "503" not in described["paths"]["/livez"]["get"]["responses"]


def codes(answer: Mapping[str, Any]) -> set[str | None]:
    """The codes of an answer, by its examples; the description has to name the same."""
    examples = answer["content"]["application/json"]["examples"].values()
    shown = {example["value"]["error"]["code"] for example in examples}
    named = re.findall(r"`(\w+)`|(null)", answer["description"].split("`code` is ")[1])
    assert {code or None for code, _ in named} == shown
    return shown


@pytest.mark.parametrize(
    ("status", "header"), [("401", "WWW-Authenticate"), ("403", "WWW-Authenticate"), ("429", "Retry-After")]
)
def test_a_header_that_always_comes_is_promised(status: str, header: str) -> None:
    answers = description_of(LAW, AuthMode.exchange)["paths"]["/v1/completions"]["post"]["responses"]
    assert answers[status]["headers"][header]["required"]
    assert answers["400"]["headers"]["WWW-Authenticate"]["required"] is False  # a wrong field is no matter of tokens
    assert "Retry-After" not in answers["400"]["headers"]


def test_retry_after_is_promised_where_no_503_is_about_the_requests_own_time() -> None:
    paths = description_of(LAW, AuthMode.exchange)["paths"]
    for path, method, promised in (
        ("/readyz", "get", True),
        ("/v1/models/{model}", "get", True),
        ("/v1/completions", "post", False),
        ("/v1/completions/trace", "post", False),
    ):
        headers = paths[path][method]["responses"]["503"]["headers"]
        assert headers["Retry-After"]["required"] == promised, path
        assert ("X-Should-Retry" in headers) == (not promised), path


# ---- the schema and the server judge alike

SMALL = Settings(max_candidates=40, max_prompts=12)
DESCRIBED = description_of(SMALL)
quick = hypothesis_settings(
    max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def refusal(body: object, tokenizer: Tokenizer) -> InvalidRequest | None:
    try:
        request = CompletionRequest.from_json(json.dumps(body).encode(), SMALL.limits)
        prepare(request, FakeEngine(hashed_logits), tokenizer, MODEL)
    except InvalidRequest as error:
        return error
    return None


def reason_in_words(body: dict[str, Any], tokenizer: Tokenizer) -> str | None:
    """Why a body that the schema admits is refused all the same, judged by what the document says in words."""

    def value(name: str) -> Any:
        sent = body.get(name)
        return BY_NAME[name].default if sent is None and not BY_NAME[name].required else sent

    prompt, stream, suffix = value("prompt"), value("stream"), value("suffix")
    bias, options = (
        [key for key, sent in (value(name) or {}).items() if sent is not None]
        for name in ("logit_bias", "stream_options")
    )
    several = isinstance(prompt, list) and not isinstance(prompt[0], int | float)
    prompts = prompt if several else [prompt]
    candidates = value("best_of") or value("n")
    if candidates < value("n"):
        return "best_of is less than n"
    if stream and candidates > value("n"):
        return "best_of with stream"
    if options and not stream:
        return "stream_options without stream"
    if len(prompts) * candidates > SMALL.max_candidates:
        return "too many candidates"
    if isinstance(value("seed"), float) and abs(value("seed")) > 2**53:
        return "an integer with a decimal point beyond 2 to the power of 53"
    if any(isinstance(v, float) for p in prompts if isinstance(p, list) for v in p):
        return "an id with a decimal point"
    if any(int(v) >= FAKE_VOCAB for v in bias):
        return "a bias beyond the vocabulary"
    if suffix and (value("echo") or any(isinstance(p, list) for p in prompts)):
        return "suffix with echo or ids"
    for p in prompts:
        if isinstance(p, list):
            length = len(p)
        elif suffix:
            length = 3 + len(tokenizer.encode_literal(p or "").ids) + len(tokenizer.encode_literal(suffix).ids)
        else:
            length = len(tokenizer.encode(p).ids) if p else 1
        if length + value("max_tokens") > CONTEXT:
            return "longer than the context"
    return None


def judged(body: object, tokenizer: Tokenizer) -> str:
    """Holds the server's judgement against the schema's, and says what it was."""
    error = refusal(body, tokenizer)
    if not validator("CompletionRequest", DESCRIBED).is_valid(body):
        assert error is not None, body
        return "refused by the schema"
    assert isinstance(body, dict)
    reason = reason_in_words(body, tokenizer)
    assert (error is not None) == (reason is not None), (body, reason, error and error.message)
    return reason or "admitted"


def bodies_of(mode: schemathesis.GenerationMode) -> st.SearchStrategy[Any]:
    operation = schemathesis.openapi.from_dict(DESCRIBED)["/v1/completions"]["POST"]
    return operation.as_strategy(generation_mode=mode).map(lambda case: case.body)


VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, 3, 5, 16, 20, 21, 40, 41, 64, 128, 129, -1, -2, -2.5, 0.5, 1.0, 1.5, 2.0, 1e18, 1e300,
    2**53, 2**63, -(2**63), "", "a", "é€😀", "x" * 70, "<|endoftext|>", MODEL, [], [[]], [""], ["a"], ["a", "b"],
    ["a"] * 12, ["a"] * 13, ["a", 1], [0], [1.0], [FAKE_VOCAB - 1], [FAKE_VOCAB], [1] * 65, [[1], [2]], [[1], ["a"]],
    [[1]] * 13, [None], [True], {}, {"1": 1}, {"1": -101}, {"01": 1}, {"1\n": 1}, {"999": 0}, {"1000": 0},
    {"include_usage": True}, {"include_usage": None}, {"include_usage": 0}, {"other": [{}]}, {"other": None},
)  # fmt: skip


@pytest.mark.slow
@quick
@given(data=st.data())
def test_what_the_schema_admits_is_refused_only_for_the_reasons_in_words(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    body = data.draw(bodies_of(schemathesis.GenerationMode.POSITIVE))
    assert judged(body, tokenizer) != "refused by the schema"


@pytest.mark.slow
@quick
@given(data=st.data())
def test_what_the_schema_refuses_the_server_refuses(tokenizer: Tokenizer, data: st.DataObject) -> None:
    body = data.draw(bodies_of(schemathesis.GenerationMode.NEGATIVE))
    assume(isinstance(body, dict | list | str | int | float | bool | None))
    assert judged(body, tokenizer) == "refused by the schema"


@quick
@given(changes=st.dictionaries(st.sampled_from([*BY_NAME, "top_k", "messages"]), st.sampled_from(VALUES), max_size=3))
def test_schema_and_server_agree_on_a_good_request_with_a_few_wild_fields(
    tokenizer: Tokenizer, changes: dict[str, Any]
) -> None:
    judged({**request_body(max_tokens=1), **changes}, tokenizer)


@pytest.mark.slow
def test_schema_and_server_agree_on_every_field_with_every_value(tokenizer: Tokenizer) -> None:
    seen = {
        judged({**request_body(max_tokens=1), **also, name: value}, tokenizer)
        for name in BY_NAME
        for value in VALUES
        for also in ({}, {"stream": True}, {"n": 2, "best_of": 2}, {"n": 4}, {"suffix": "b"})
    }
    assert seen == {
        "refused by the schema", "admitted", "best_of is less than n", "best_of with stream",
        "stream_options without stream", "too many candidates",
        "an integer with a decimal point beyond 2 to the power of 53", "an id with a decimal point",
        "a bias beyond the vocabulary", "suffix with echo or ids", "longer than the context",
    }  # fmt: skip


# ---- capabilities


def row(name: str, settings: Settings, tokenizer: Tokenizer) -> dict[str, Any]:
    table = capabilities_of(FakeEngine(hashed_logits), tokenizer, settings)
    return next(row for row in table["parameters"] if row["name"] == name)


def test_the_table_has_every_parameter_with_its_default(tokenizer: Tokenizer) -> None:
    table = capabilities_of(FakeEngine(hashed_logits), tokenizer, LAW)
    validator("Capabilities").validate(table)
    assert [row["name"] for row in table["parameters"]] == [field.name for field in FIELDS]
    for field, row in zip(FIELDS, table["parameters"], strict=True):
        assert row["default"] == (None if field.required else field.default)
        assert ", ".join(map(str, row["sections"])) == field.section
    assert table["engine"] == FakeEngine.name


def test_stages_are_those_of_the_samplers_numbered_list(tokenizer: Tokenizer) -> None:
    numbered = dict(re.findall(r"^    (\d) (\w+)", sampler.__doc__ or "", re.MULTILINE))
    assert [int(number) for number in numbered] == list(range(1, len(STAGES) + 1))
    for field in FIELDS:
        stages = row(field.name, LAW, tokenizer)["stages"]
        acting = [stage["number"] for stage in stages or ()]
        assert [stage["name"] for stage in stages or ()] == [STAGES[number - 1] for number in acting]
        module, function = field.where.rsplit(".", 1)
        if module == "sampler":
            assert function in [numbered[str(number)] for number in acting]
        elif field.name != "seed":
            assert stages is None
    assert row("seed", LAW, tokenizer)["stages"] == [{"number": 7, "name": "draw"}]
    assert [stage["name"] for stage in row("temperature", LAW, tokenizer)["stages"]] == ["greedy", "temperature"]


@pytest.mark.parametrize("settings", [LAW, PUBLISHED], ids=["law", "published"])
def test_the_ends_of_a_range_are_accepted_and_nothing_beyond(settings: Settings, tokenizer: Tokenizer) -> None:
    engine, judged = FakeEngine(hashed_logits), 0

    def accepted(**fields: Any) -> bool:
        try:
            prepare(CompletionRequest.from_fields(fields, settings.limits), engine, tokenizer, MODEL)
        except InvalidRequest:
            return False
        return True

    for name in ("max_tokens", "n", "best_of", "temperature", "top_p", "frequency_penalty", "presence_penalty",
                 "logprobs", "seed"):  # fmt: skip
        ends = row(name, settings, tokenizer)["range"]["value"]
        for end, beyond in (("minimum", -1), ("maximum", 1)):
            assert accepted(**{"model": MODEL, "prompt": [1], "max_tokens": 0, name: ends[end]}), (name, end)
            assert not accepted(**{"model": MODEL, "prompt": [1], "max_tokens": 0, name: ends[end] + beyond}), name
            judged += 1
    assert judged == 18
    base = {"model": MODEL, "max_tokens": 0}
    prompt, stop = row("prompt", settings, tokenizer)["range"], row("stop", settings, tokenizer)["range"]
    for size, fits in ((0, True), (1, False)):
        most = prompt["prompts"]["maximum"] + size
        assert accepted(**base, prompt=["a"] * most) == fits
        assert accepted(**base, prompt=[1] * (prompt["tokens"]["maximum"] + size)) == fits
        assert accepted(**base, prompt=[prompt["ids"]["maximum"] + size]) == fits
        assert accepted(**base, prompt="a", stop=["a"] * (stop["strings"]["maximum"] + size)) == fits
        bias = row("logit_bias", settings, tokenizer)["range"]
        assert accepted(**base, prompt="a", logit_bias={str(bias["ids"]["maximum"] + size): 1}) == fits
        assert accepted(**base, prompt="a", logit_bias={"1": bias["values"]["maximum"] + size}) == fits
        assert accepted(**base, prompt="a", logit_bias={"1": bias["values"]["minimum"] - size}) == fits


def test_suffix_is_honoured_exactly_where_the_model_can(tokenizer: Tokenizer) -> None:
    suffix_first = replace(tokenizer, infill=Infill(PRE, SUF, None, Order.spm))
    for able in (tokenizer, suffix_first, replace(tokenizer, infill=None, infill_note="none here")):
        told = row("suffix", LAW, able)
        assert told["honoured"] == (able.infill is not None)
        assert told["reason"] == (None if able.infill else "none here")
        answer = post(create_app(FakeEngine(hashed_logits), able, LAW), suffix="b", max_tokens=1)
        assert (answer.status_code == 200) == told["honoured"]
        facts = capabilities_of(FakeEngine(hashed_logits), able, LAW)
        validator("Capabilities").validate(facts)
        assert facts["model"]["fill_in_the_middle"] == (able.infill._asdict() if able.infill else None)


def test_user_is_said_to_have_no_effect(tokenizer: Tokenizer) -> None:
    told = row("user", LAW, tokenizer)
    assert told["honoured"]
    assert "no effect" in told["reason"]


def test_limits_and_facts_are_those_of_this_server_and_model(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(hashed_logits, eos_ids=frozenset({5, 3}))
    table = capabilities_of(engine, tokenizer, replace(PUBLISHED, max_queue=7, queue_seconds=1.5))
    limits, model = table["limits"], table["model"]
    assert (limits["max_queue"], limits["queue_seconds"], limits["max_body_bytes"]) == (7, 1.5, 1000)
    assert (limits["logprobs"], limits["stop"], limits["openai_limits"]) == (5, 4, True)
    assert (model["id"], model["context"], model["vocab_size"]) == (MODEL, CONTEXT, FAKE_VOCAB)
    assert model["eos_ids"] == [3, 5, EOT]  # the last one is the tokenizer's own
    served = {(method, path) for method, path, _ in operations(DOCUMENT) if method != "HEAD"}
    assert {(end["method"], end["path"]) for end in table["endpoints"]} == served
    assert len(table["endpoints"]) == len(served)


def test_the_server_serves_the_table(app: Starlette, tokenizer: Tokenizer) -> None:
    expected = capabilities_of(FakeEngine(hashed_logits), tokenizer, LAW)
    assert call(app, "GET", "/v1/capabilities").json() == json.loads(json.dumps(expected))


def test_nothing_of_the_description_names_a_key_or_a_file(tokenizer: Tokenizer) -> None:
    secret = Settings(auth=AuthSettings(api_keys=("sk-secret",), api_key_file=Path("/etc/secret")))
    for mode in AuthMode:
        assert "secret" not in json.dumps(description_of(secret, mode))
    assert "secret" not in json.dumps(capabilities_of(FakeEngine(hashed_logits), tokenizer, secret))


def test_descriptions_are_served_while_the_engine_is_busy(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(hashed_logits)
    app = create_app(engine, tokenizer, LAW)

    async def both() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gnomon") as client:
            return [(await client.get(path)).status_code for path in ("/openapi.json", "/v1/capabilities")]

    with engine.turn:
        assert asyncio.run(both()) == [200, 200]
