"""The wire, answers that are streamed: the bytes of the events, when they are sent, and what becomes of errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.applications import Starlette

from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from gnomon.reference.tokenizer import Tokenizer
from helpers.arriving import ArrivingEngine
from helpers.fake import FakeEngine, always, hashed_logits
from helpers.live import Gate, check_error, events, post, request_body, serving


@pytest.fixture(params=[FakeEngine, ArrivingEngine])
def engine_kind(request: pytest.FixtureRequest) -> type[FakeEngine]:
    """One whose jobs are computed by who reads them, and one whose jobs go on by themselves."""
    kind: type[FakeEngine] = request.param
    return kind


@pytest.fixture
def app(tokenizer: Tokenizer, engine_kind: type[FakeEngine]) -> Starlette:
    return create_app(engine_kind(hashed_logits), tokenizer, Settings())


def joined(chunks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices that the chunks of a stream add up to."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for piece in chunk["choices"]:
            choice = choices.setdefault(piece["index"], {**piece, "text": "", "logprobs": None, "finish_reason": None})
            assert choice["finish_reason"] is None, "a piece after the last"
            choice["text"] += piece["text"]
            choice["finish_reason"] = piece["finish_reason"]
            if piece["logprobs"] is not None:
                arrays = choice["logprobs"] = choice["logprobs"] or {name: [] for name in piece["logprobs"]}
                for name, values in piece["logprobs"].items():
                    arrays[name] += values
    return [choices[index] for index in sorted(choices)]


# ---- the form


def test_events_are_lines_of_ascii_json_that_no_proxy_holds_back(app: Starlette) -> None:
    response = post(app, prompt="é", echo=True, stream=True, max_tokens=5, n=2)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-length" not in response.headers
    chunks = events(response.content)
    assert len(chunks) > 1
    assert all(list(c) == ["id", "object", "created", "model", "choices", "system_fingerprint"] for c in chunks)
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    for name in ("id", "object", "created", "model", "system_fingerprint"):
        assert len({chunk[name] for chunk in chunks}) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 3, "prompt": ["the end", "a"], "logprobs": 2},
        {"echo": True, "logprobs": 0, "prompt": [104, 195, 169]},
        {"stop": ["e", " t"], "logprobs": 1, "max_tokens": 40},
        {"max_tokens": 0},
        {"max_tokens": 0, "echo": True, "logprobs": 1, "prompt": "the end"},
        {"suffix": "the", "seed": -1},
    ],
)
def test_joined_chunks_are_the_answer_that_is_not_streamed(app: Starlette, fields: dict[str, Any]) -> None:
    fields = {"seed": 7, "max_tokens": 12, **fields}
    whole = post(app, **fields).json()
    chunks = events(post(app, stream=True, stream_options={"include_usage": True}, **fields).content)
    assert joined(chunks[:-1]) == whole["choices"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], whole["usage"])


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_usage": None, "other": None}])
def test_there_is_no_usage_unless_it_is_asked_for(app: Starlette, options: object) -> None:
    chunks = events(post(app, stream=True, stream_options=options).content)
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)


def test_a_streamed_request_that_is_wrong_is_an_ordinary_400(app: Starlette) -> None:
    check_error(post(app, stream=True, temperature=3), 400, "temperature")


# ---- when


def test_a_chunk_is_sent_before_the_next_token_is_computed(tokenizer: Tokenizer, engine_kind: type[FakeEngine]) -> None:
    gate = Gate(always(*b"abc"))
    app = create_app(engine_kind(gate), tokenizer, Settings())
    body = request_body(stream=True, temperature=0, max_tokens=3)
    with serving(app) as base:
        gate.allow(1)  # the headers come with the first token
        with httpx.stream("POST", f"{base}/v1/completions", json=body) as response:
            lines = response.iter_lines()
            for letter in "abc":
                assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["text"] == letter
                assert next(lines) == ""
                gate.allow(1)
            assert [*lines] == ["data: [DONE]", ""]


# ---- errors


def fails_at(step: int, error: Exception | None) -> Any:
    """Logits that fail when the prompt "x" has `step` tokens after it: with `error`, or by not being finite."""

    def logits_of(tokens: Sequence[int]) -> NDArray[np.float64]:
        logits = always(*b"abc")(tokens)
        if tokens[0] == ord("x") and len(tokens) == 1 + step:
            if error is not None:
                raise error
            return logits * np.nan
        return logits

    return logits_of


FAULTS = pytest.mark.parametrize("error", [None, RuntimeError("the secret")], ids=["not finite", "unexpected"])


@FAULTS
def test_an_engine_that_fails_before_the_first_chunk_is_a_500(
    tokenizer: Tokenizer, error: Exception | None, caplog: pytest.LogCaptureFixture, engine_kind: type[FakeEngine]
) -> None:
    app = create_app(engine_kind(fails_at(0, error)), tokenizer, Settings())
    assert "secret" not in check_error(post(app, prompt="x", stream=True), 500)
    assert ("not finite" if error is None else "the secret") in caplog.text
    assert post(app, stream=True).status_code == 200


@FAULTS
def test_an_engine_that_fails_later_is_one_error_event_and_the_end(
    tokenizer: Tokenizer, error: Exception | None, caplog: pytest.LogCaptureFixture, engine_kind: type[FakeEngine]
) -> None:
    app = create_app(engine_kind(fails_at(2, error)), tokenizer, Settings())
    response = post(app, prompt="x", stream=True, temperature=0, stream_options={"include_usage": True})
    assert response.status_code == 200
    *chunks, last = events(response.content)
    assert joined(chunks)[0]["text"] == "ab"
    assert list(last) == ["error"]
    assert list(last["error"]) == ["message", "type", "param", "code"]
    assert last["error"]["type"] == "server_error"
    assert "secret" not in response.text
    assert ("not finite" if error is None else "the secret") in caplog.text
    assert events(post(app, stream=True).content)


def test_a_server_that_ends_says_so_in_every_open_stream(tokenizer: Tokenizer) -> None:
    gate = Gate(always(*b"abc"))
    app = create_app(FakeEngine(gate), tokenizer, Settings())
    body = request_body(stream=True, temperature=0, max_tokens=50)
    received = b""
    with serving(app) as base:
        gate.allow(1)
        with httpx.stream("POST", f"{base}/v1/completions", json=body) as response:
            for piece in response.iter_bytes():
                if not received:
                    app.state.completions.stop()
                    gate.allow(49)
                received += piece
    first, *_, last = events(received)
    assert first["choices"][0]["text"] == "a"
    assert last["error"]["type"] == "server_error"
    assert "the server is draining" in last["error"]["message"]
    assert gate.begun <= 3
