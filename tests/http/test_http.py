"""The wire, answers that are not streamed: forms, errors, limits; in-process, over an engine of known logits."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.applications import Starlette

from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from gnomon.reference.body.shown import shown
from gnomon.reference.completion import prepare
from gnomon.reference.request import CompletionRequest
from gnomon.reference.tokenizer import Tokenizer
from helpers.fake import FAKE_VOCAB, FakeEngine, hashed_logits
from helpers.live import MODEL, call, check_error, exchange, post, request_body

GETS = (
    "/", "/livez", "/readyz", "/health", "/version", "/metrics", "/openapi.json", "/v1/models", f"/v1/models/{MODEL}",
    "/v1/capabilities",
)  # fmt: skip
ROUTES = {**dict.fromkeys(GETS, "GET"), "/v1/completions": "POST", "/v1/completions/trace": "POST"}
KNOWN = ", ".join(f"{method} {path.replace(MODEL, '{model}')}" for path, method in ROUTES.items())


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(hashed_logits)


@pytest.fixture
def app(engine: FakeEngine, tokenizer: Tokenizer) -> Starlette:
    return create_app(engine, tokenizer, Settings())


# ---- answers


def test_an_answer_has_every_member_of_the_law_and_no_other(app: Starlette) -> None:
    response = post(app, prompt=["a", "b"], n=2, logprobs=1, max_tokens=3, seed=1)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.content.isascii()
    assert b"\n" not in response.content
    body = response.json()
    members = ["id", "object", "created", "model", "choices", "usage", "system_fingerprint"]
    assert list(body) == members
    assert body["id"].startswith("cmpl-")
    assert (body["object"], body["model"]) == ("text_completion", MODEL)
    assert body["system_fingerprint"].startswith("fake-")
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert list(body["choices"][0]) == ["index", "text", "logprobs", "finish_reason"]
    assert list(body["choices"][0]["logprobs"]) == ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
    assert body["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 12,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_http_adds_nothing_to_what_the_reference_answers(
    app: Starlette, engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    fields = request_body(prompt=["the end", "a"], n=2, best_of=3, echo=True, logprobs=2, stop=["e"], seed=-1)
    request = CompletionRequest.from_json(json.dumps(fields).encode())
    expected = prepare(request, engine, tokenizer, MODEL).whole().to_json()
    answer = post(app, fields).json()
    assert {**answer, "id": "", "created": 0} == {**expected, "id": "", "created": 0}


def test_models_is_a_list_of_the_served_model_with_its_context(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    app = create_app(engine, tokenizer, Settings(served_model_name="mine"))
    body = call(app, "GET", "/v1/models").json()
    created = body["data"][0].pop("created")
    assert isinstance(created, int)
    assert body == {
        "object": "list",
        "data": [{"id": "mine", "object": "model", "owned_by": "gnomon", "max_model_len": engine.context}],
    }
    assert post(app, model="mine", max_tokens=0).status_code == 200


@pytest.mark.parametrize("name", ["mine", "owner/name", "a/b/c", "sp ace", "é", "50%", "models"])
def test_a_model_is_found_by_its_id_with_slashes_encoded_or_not(
    engine: FakeEngine, tokenizer: Tokenizer, name: str
) -> None:
    app = create_app(engine, tokenizer, Settings(served_model_name=name))
    (expected,) = call(app, "GET", "/v1/models").json()["data"]
    for path in (quote(name), quote(name, safe="")):
        response = call(app, "GET", f"/v1/models/{path}")
        assert (response.status_code, response.json()) == (200, expected)
        other = call(app, "GET", f"/v1/models/{path}x")
        assert json.dumps(f"{name}x") in check_error(other, 404, "model", "model_not_found")
    if "/" in name:
        check_error(call(app, "GET", f"/v1/models/{name.partition('/')[0]}"), 404, "model", "model_not_found")


def test_health_answers_without_the_engine(app: Starlette, engine: FakeEngine) -> None:
    response = call(app, "GET", "/health")
    assert (response.status_code, response.json(), engine.calls) == (200, {"status": "ok"}, 0)


@pytest.mark.parametrize("token", [None, "Bearer", "Bearer ", "Bearer x", "Basic eDp5", ""])
def test_any_or_no_token_passes_while_authentication_is_off(app: Starlette, token: str | None) -> None:
    headers = {} if token is None else {"Authorization": token}
    body = request_body(max_tokens=0)
    assert call(app, "POST", "/v1/completions", json=body, headers=headers).status_code == 200


# ---- paths and methods


@pytest.mark.parametrize("path", ["/index.html", "/v1", "/v1/", "/tokenize", "/v1/tokenize", "/é%0A", "/favicon.ico"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_a_404_that_names_the_known_ones(app: Starlette, method: str, path: str) -> None:
    message = check_error(call(app, method, path, json={}), 404)
    assert message.endswith(f"this server has {KNOWN}")
    assert json.dumps(unquote(path)) in message


MEANT = {
    "POST /v1/completions": (
        "/v1/completions/", "//v1/completions", "/v1//completions", "/v1/v1/completions", "/completions",
        "/v1/completion", "/v1/Completions", "/openai/v1/completions", "/api/v1/completions/", "/v1/chat/completions",
        "/chat/completions", "/v1/engines/x/completions", "/openai/deployments/a/b/completions", "/generate",
        "/api/generate", "/completion", "/v1/embeddings", "/v1/responses", "/v1/images/generations",
    ),
    "POST /v1/completions/trace": ("/v1/completions/trace/", "/completions/trace", "/v1/completions/traces"),
    "GET /v1/models": (
        "/v1/models/", "/v1//models", "//v1/models//", "/models", "/api/models", "/v1/model", "/v1/engines",
    ),
    "GET /v1/capabilities": ("/capabilities", "/v1/capabilities/"),
    "GET /livez": ("/livez/", "/ping", "/healthz", "/v1/livez"),
    "GET /readyz": ("/readyz/", "/ready"),
    "GET /health": ("/health/", "/v1/health", "//health"),
    "GET /metrics": ("/metrics/", "/v1/metrics"),
    "GET /version": ("/version/", "/api/version", "/v1/version"),
    "GET /openapi.json": ("/openapi.json/", "/docs", "/docs/", "/redoc", "/v1/openapi.json", "/openapi.yaml"),
}  # fmt: skip


@pytest.mark.parametrize(("route", "path"), [(route, path) for route, paths in MEANT.items() for path in paths])
def test_a_path_that_somebody_tries_is_a_404_that_says_the_right_one(app: Starlette, route: str, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        if path == "/v1/models/" and method != "GET":
            continue  # a model without a name: the path of models by name, which has GET
        response = call(app, method, f"http://gnomon{path}", json=request_body(max_tokens=0))
        message = check_error(response, 404)
        assert json.dumps(path) in message
        assert route in message, message
        assert len(message) < 200, "the right one, and not all of them"
        assert "location" not in response.headers, "a redirect would lose a body"


def test_a_long_path_costs_no_search(app: Starlette) -> None:
    message = check_error(call(app, "GET", "/v1/completion" + "s" * 5000), 404)
    assert message.endswith(f"this server has {KNOWN}")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (method, path)
        for path, own in ROUTES.items()
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW")
        if method != own
    ],
)
def test_another_method_is_a_405_that_names_the_allowed_ones(app: Starlette, method: str, path: str) -> None:
    response = call(app, method, path, json={})
    allowed = {"GET": "GET, HEAD", "POST": "POST"}[ROUTES[path]]
    assert response.headers["allow"] == allowed
    assert allowed in check_error(response, 405)


@pytest.mark.parametrize("path", GETS)
def test_head_is_answered_where_get_is_and_without_a_body(app: Starlette, path: str) -> None:
    response = call(app, "HEAD", path)
    assert (response.status_code, response.content) == (200, b"")


def test_head_of_completions_is_a_405(app: Starlette) -> None:
    response = call(app, "HEAD", "/v1/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_a_broken_host_header_does_not_break_the_answer(app: Starlette) -> None:
    check_error(call(app, "GET", "/nope", headers={"Host": "[::"}), 404)
    check_error(call(app, "PUT", "/health", headers={"Host": "[::"}), 405)


# ---- the body's type and size


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON", "application/json;charset=utf-8", 'application/json ; charset="UTF-8"',
     "application/json;", "application/json;;", "application/json;charset=utf8", "application/json; CHARSET=UTF8",
     "application/json; charset=utf-8; boundary=x", "application/json; version=1", "application/json;odata=minimal;q=1",
     'application/json; profile="a;charset=utf-16"', "application/json;charset=utf-8;charset=UTF8",
     "application/json ;  charset = utf-8 "],
)  # fmt: skip
def test_json_in_utf8_is_accepted_whatever_else_its_type_says(app: Starlette, content_type: str) -> None:
    content = json.dumps(request_body(max_tokens=0))
    response = call(app, "POST", "/v1/completions", content=content, headers={"Content-Type": content_type})
    assert response.status_code == 200


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "text/json", "application/x-www-form-urlencoded", "application/jsonx",
     "application/json; charset=latin-1", "application/json; charset=utf-16", "application/vnd.api+json",
     "application/json, text/plain", "application/json charset=utf-8", "application/json; charset", ";", "é", "=",
     "application/json; charset*=utf-16''utf-8", "application/json; a=" + "x" * 300],
)  # fmt: skip
def test_any_other_content_type_is_a_415_that_says_what_was_sent(app: Starlette, content_type: str | None) -> None:
    message = refused_type(app, *([] if content_type is None else [content_type]))
    sent = "missing" if content_type is None else shown(content_type)
    assert message.startswith(f"the header Content-Type is {sent}; ")
    assert message.endswith("it must be application/json, with charset=utf-8 or none")


def refused_type(app: Starlette, *sent: str) -> str:
    headers = [(b"content-type", value.encode("latin-1")) for value in sent]
    content = json.dumps(request_body())
    for path in ("/v1/completions", "/v1/completions/trace"):
        message = check_error(call(app, "POST", path, content=content, headers=headers), 415)
    return message


@pytest.mark.parametrize("name", ["utf-16", "latin1", "us-ascii", "", "utf-8x"])
def test_a_foreign_charset_is_named(app: Starlette, name: str) -> None:
    for written in (f'"{name}"', *([name] if name else [])):
        for after in ("", "; charset=utf-8"):
            message = refused_type(app, f"application/json; charset={written}{after}")
            assert f'the charset "{name}" is not allowed' in message


def test_curl_without_a_header_is_told_the_header(app: Starlette) -> None:
    message = refused_type(app, "application/x-www-form-urlencoded")
    assert "curl sends that with -d unless it is told -H 'Content-Type: application/json'" in message


def test_two_content_types_are_a_415_even_if_equal(app: Starlette) -> None:
    for second in ("text/plain", "application/json"):
        message = refused_type(app, "application/json", second)
        assert f'"application/json" and "{second}"; send it once' in message


def test_a_compressed_body_is_a_415_and_not_decoded(app: Starlette) -> None:
    content = gzip.compress(json.dumps(request_body()).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert '"gzip"' in check_error(call(app, "POST", "/v1/completions", content=content, headers=headers), 415)


def test_a_body_is_measured_as_received_and_the_limit_itself_is_allowed(
    engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    body = json.dumps(request_body(max_tokens=0)).encode()
    for limit, status in ((len(body), 200), (len(body) - 1, 413)):
        app = create_app(engine, tokenizer, Settings(max_body_bytes=limit))

        async def pieces() -> Any:
            for i in range(len(body)):
                yield body[i : i + 1]

        for content in (body, pieces()):  # announced by Content-Length, and not announced
            response = call(
                app, "POST", "/v1/completions", content=content, headers={"Content-Type": "application/json"}
            )
            assert response.status_code == status
            if status == 413:
                assert str(limit) in check_error(response, 413)


def test_a_body_announced_too_long_is_refused_unread(app: Starlette) -> None:
    for announced in (str(Settings().max_body_bytes + 1), "9" * 5000):
        sent, received = exchange(app, iter([b"{"]), content_length=announced)
        assert (sent[0]["status"], received) == (413, 0)


def test_a_body_that_never_ends_is_read_no_further_than_the_limit(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    app = create_app(engine, tokenizer, Settings(max_body_bytes=1000))
    sent, received = exchange(app, itertools.repeat(b" " * 100), content_length="5")
    assert sent[0]["status"] == 413
    assert received == 1100


def test_a_client_that_leaves_before_its_body_is_whole_gets_no_answer(app: Starlette, engine: FakeEngine) -> None:
    assert exchange(app, iter([b'{"model": "gnomon', b"-stories"])).sent == []
    assert engine.calls == 0


def test_the_type_is_judged_before_the_size_and_the_size_before_the_json(
    engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    app = create_app(engine, tokenizer, Settings(max_body_bytes=10))
    for content_type, content, status in (
        ("text/plain", "x" * 11, 415),
        ("application/json", "x" * 11, 413),
        ("application/json", "x" * 10, 400),
    ):
        headers = {"Content-Type": content_type}
        check_error(call(app, "POST", "/v1/completions", content=content, headers=headers), status)


# ---- what the request says


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[1], [2], [FAKE_VOCAB]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"n": 129}, "n"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {str(FAKE_VOCAB): 1}}, f"logit_bias.{FAKE_VOCAB}"),
        ({"seed": 2**63}, "seed"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"suffix": "b", "echo": True}, "suffix"),
        ({"stream_options": {"include_usages": True}}, "stream_options.include_usages"),
        ({"user": 5}, "user"),
        ({"top_k": 5}, "top_k"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_field_that_is_wrong_is_a_400_that_names_it_before_anything_is_generated(
    app: Starlette, engine: FakeEngine, fields: dict[str, Any], param: str, stream: bool
) -> None:
    message = check_error(post(app, **{"stream": stream, **fields}), 400, param)
    assert message.startswith(param)
    assert engine.calls == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None), (b"x", None), (b"[]", None), (b"null", None), (b"{}", "model"), (b'{"model":"m"}', "prompt"),
        (b'{"model":"\xff"}', None), (b"[" * 100_000, None), (b'{"a":' * 100_000, None),
        (b'{"model":"m","prompt":"a","n":1,"n":1}', "n"), (b'{"model":"m","prompt":"a","top_p":NaN}', "top_p"),
        (b'{"model":"m","prompt":"a","seed":' + b"9" * 5000 + b"}", "seed"),
        (b'{"model":"m","prompt":"\\ud800"}', "prompt"), (b'\xef\xbb\xbf{"model":"m","prompt":"a"}', None),
    ],
)  # fmt: skip
def test_a_body_that_is_no_request_is_a_400(app: Starlette, body: bytes, param: str | None) -> None:
    headers = {"Content-Type": "application/json"}
    check_error(call(app, "POST", "/v1/completions", content=body, headers=headers), 400, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"max_tokens": 64}, "max_tokens"), ({"prompt": "a" * 65}, "prompt")],
    ids=["together", "alone"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_beyond_the_context_is_a_400_with_its_code(
    app: Starlette, engine: FakeEngine, fields: dict[str, Any], param: str, stream: bool
) -> None:
    message = check_error(post(app, **{"stream": stream, **fields}), 400, param, "context_length_exceeded")
    assert message.startswith(f"{param}: This model's maximum context length is 64 tokens. ")
    assert engine.calls == 0


def test_more_tokens_than_any_queue_takes_have_no_code_of_the_context(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    app = create_app(engine, tokenizer, Settings(max_queued_tokens=50))
    message = check_error(post(app, max_tokens=60), 400, "max_tokens")
    assert "at most 50 on this server" in message


def test_an_unknown_model_is_a_404_with_its_code(app: Starlette) -> None:
    assert '"gpt-5"' in check_error(post(app, model="gpt-5"), 404, "model", "model_not_found")


def test_openai_limits_and_max_candidates_are_the_servers_choice(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    law = Settings()
    published = replace(law, openai_limits=True, max_candidates=3)
    too_much: list[tuple[dict[str, Any], str]] = [
        ({"logprobs": 6}, "logprobs"),
        ({"stop": list("abcde")}, "stop"),
        ({"n": 2, "prompt": ["a", "b"]}, "prompt"),
    ]
    for fields, param in too_much:
        assert post(create_app(engine, tokenizer, law), max_tokens=0, **fields).status_code == 200
        check_error(post(create_app(engine, tokenizer, published), max_tokens=0, **fields), 400, param)


# ---- faults of ours


def test_an_unexpected_exception_is_a_500_without_its_text_and_its_cause_is_logged(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(tokens: Sequence[int]) -> NDArray[np.float64]:
        if tokens[0] == ord("x"):
            raise RuntimeError("the secret") from KeyError("the cause")
        return hashed_logits(tokens)

    app = create_app(FakeEngine(broken), tokenizer, Settings())
    message = check_error(post(app, prompt="x"), 500)
    assert "secret" not in message
    assert "Traceback" not in message
    assert "the secret" in caplog.text
    assert "the cause" in caplog.text
    assert post(app, prompt="a").status_code == 200


def test_an_exception_before_the_engine_is_a_500_too(
    app: Starlette, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("the secret")

    with monkeypatch.context() as patch:
        patch.setattr("gnomon.http.completions.prepare", broken)
        assert "secret" not in check_error(post(app), 500)
    assert "the secret" in caplog.text
    assert post(app).status_code == 200


def test_logits_that_are_not_finite_are_a_500_of_that_request_alone(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(tokens: Sequence[int]) -> NDArray[np.float64]:
        logits = hashed_logits(tokens)
        return logits * np.nan if tokens[0] == ord("x") else logits

    app = create_app(FakeEngine(broken), tokenizer, Settings())
    assert "not finite" in check_error(post(app, prompt="x"), 500)
    assert "not finite" in caplog.text
    assert post(app, prompt="a").status_code == 200


def test_a_server_that_ends_answers_503_and_when_to_try_again(app: Starlette, engine: FakeEngine) -> None:
    app.state.completions.stop()
    for stream in (False, True):
        response = post(app, stream=stream)
        check_error(response, 503, code="draining")
        assert int(response.headers["retry-after"]) > 0
    assert engine.calls == 0


# ---- anything at all

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 16, 64, 2**31, 2**53, 2**63, -(2**63), 10**400, 0.5, 1.0, -0.0, 1e-300, 1e300,
    float("nan"), float("inf"), "", "a", "é€😀", "\x00", "\ud800", "<|endoftext|>", "x" * 5000, [], [[]], [1], [1, 2],
    [[1], [2]], [0.0], [True], ["a"], ["a", "b"], ["a", 1], [None], {}, {"1": 1}, {"01": 1}, {"include_usage": True},
    {"include_usage": 1}, {"a": {"b": [{}]}}, MODEL,
)  # fmt: skip
NAMES = (*CompletionRequest.__dataclass_fields__, "prompt", "stream_options", "top_k", "", "\ud800", "messages")
GOOD = {"prompt": "the end", "seed": 3, "logprobs": 2, "max_tokens": 4}


def arbitrary_body(rng: random.Random) -> bytes:
    """A request with a few wild fields, sometimes with a few wild bytes."""
    fields = request_body(max_tokens=3)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        fields[rng.choice(NAMES)] = rng.choice(VALUES)
    body = bytearray(json.dumps(fields).encode())
    for _ in range(rng.choice((0, 0, 0, 1, 5))):
        i = rng.randrange(len(body))
        body[i : i + rng.randrange(3)] = rng.choice((b"", b"\xff", b"\x00", b"{", b"]", b'"', b"\\", b"1e999", b","))
    return bytes(body)


def test_whatever_is_sent_is_a_200_or_an_error_in_form_and_the_next_request_works(
    engine: FakeEngine, tokenizer: Tokenizer
) -> None:
    """600 bodies; a never-seen 500 in one of a hundred would be missed with odds of 1 in 400."""
    app = create_app(engine, tokenizer, Settings(max_candidates=8, max_body_bytes=4000))
    rng = random.Random(20)
    headers = {"Content-Type": "application/json"}

    async def run() -> dict[int, int]:
        seen: dict[int, int] = {}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gnomon") as client:
            expected = (await client.post("/v1/completions", json=request_body(**GOOD))).json()["choices"]
            for _ in range(600):
                body = arbitrary_body(rng)
                response = await client.post("/v1/completions", content=body, headers=headers)
                seen[response.status_code] = seen.get(response.status_code, 0) + 1
                if response.status_code != 200:
                    error = response.json()["error"]
                    assert response.status_code in (400, 404, 413), (body, error)
                    assert list(error) == ["message", "type", "param", "code"], body
                    assert "\n" not in error["message"]
                if rng.random() < 0.1:
                    good = await client.post("/v1/completions", json=request_body(**GOOD))
                    assert good.json()["choices"] == expected, body
        return seen

    seen = asyncio.run(run())
    assert min(seen.get(status, 0) for status in (200, 400, 404, 413)) > 3, seen


def test_no_package_hides_the_standard_librarys_http() -> None:
    import gnomon.http.app

    assert not Path(gnomon.http.app.__file__).with_name("__init__.py").exists()
