"""How large an answer may be: counted from the request alone, and refused by the field to lower before it is made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from gnomon.reference.body.answer_size import Size, answer_bytes, check_size, text_bytes
from gnomon.reference.completion import prepare
from gnomon.reference.errors import InvalidRequest
from gnomon.reference.request import CompletionRequest, Limits
from gnomon.reference.response import json_bytes
from gnomon.reference.tokenizer import Tokenizer
from gnomon.reference.trace.replay import TraceRequest, prepare_trace
from helpers.fake import FakeEngine, hashed_logits
from helpers.live import MODEL, call, check_error, post

MOST = Limits().answer_bytes


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(hashed_logits)


def request(**fields: Any) -> CompletionRequest:
    return CompletionRequest.from_fields({"model": MODEL, "prompt": "a", "max_tokens": 10, **fields})


def test_the_count_is_the_one_that_the_documents_give() -> None:
    two = [Size(7, 20), Size(9, 30)]
    assert answer_bytes(request(), two) == 2 * 160 + 2 * 10 * 8
    assert answer_bytes(request(n=3), two) == 3 * (2 * 160 + 2 * 10 * 8)
    assert answer_bytes(request(best_of=4), two) == 4 * (2 * 160 + 2 * 10 * 8)
    assert answer_bytes(request(logprobs=0), two) == 2 * 160 + 2 * 10 * 96
    assert answer_bytes(request(logprobs=20), two) == 2 * 160 + 2 * 10 * 736
    assert answer_bytes(request(echo=True), two) == 2 * 160 + 2 * 10 * 8 + 50
    assert answer_bytes(request(echo=True, logprobs=5, n=2), two) == 2 * (2 * 160 + 3 * 50 + (20 + 16) * 256)


def test_a_texts_bytes_are_those_of_its_json() -> None:
    for text in ("", "plain", 'a"b\\c\n\x00\x7f', "é中😀" * 50_000):
        assert text_bytes(text) == len(json_bytes(text)) - 2


def test_evaluations_that_score_whole_contexts_in_batches_are_served() -> None:
    score = request(echo=True, logprobs=1, max_tokens=1)
    for count, length in ((64, 4096), (16, 32_768), (4, 131_072), (1, 500_000)):
        check_size(score, [Size(length, 4 * length)] * count, MOST)
    check_size(request(echo=True, logprobs=20, max_tokens=1), [Size(131_072, 4 * 131_072)], MOST)
    check_size(request(best_of=20, logprobs=5, max_tokens=4096), [Size(100, 400)] * 6, MOST)
    check_size(request(n=128, max_tokens=4096, prompt=["a"] * 16), [Size(100, 400)] * 16, MOST)
    check_size(request(max_tokens=900), [Size(100, 400)] * 2048, MOST)


@pytest.mark.parametrize(
    ("param", "fields"),
    {
        "n": {"n": 128, "echo": True, "logprobs": 20, "max_tokens": 1},
        "best_of": {"best_of": 20, "logprobs": 20, "max_tokens": 60},
        "logprobs": {"logprobs": 20, "max_tokens": 600},
        "echo": {"echo": True, "max_tokens": 1},
        "max_tokens": {"max_tokens": 200_000},
        "prompt": {"prompt": ["a"] * 2048, "logprobs": 0, "echo": True, "max_tokens": 200_000},
    }.items(),
)
def test_the_field_that_alone_would_cure_it_is_named_with_both_numbers(param: str, fields: dict[str, Any]) -> None:
    asked, most = request(**fields), 400_000
    sizes = [Size(500, 2000 if param != "echo" else most)] * len(asked.prompts)
    if param == "prompt":
        sizes = [Size(500, most)] * len(asked.prompts)
    with pytest.raises(InvalidRequest) as refused:
        check_size(asked, sizes, most)
    assert refused.value.param == param
    for said in (f"{param}: ", f" {answer_bytes(asked, sizes)} bytes", f"at most {most} on this server", "leave out"):
        assert said in refused.value.message


def test_one_byte_decides() -> None:
    asked, sizes = request(logprobs=3), [Size(4, 4)]
    size = answer_bytes(asked, sizes)
    check_size(asked, sizes, size)
    with pytest.raises(InvalidRequest):
        check_size(asked, sizes, size - 1)


def test_a_server_refuses_it_before_the_engine_is_asked_for_anything(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    app = create_app(engine, tokenizer, Settings(max_answer_bytes=40_000))
    refused = post(app, prompt=[[97] * 20] * 2, n=16, echo=True, logprobs=20, max_tokens=1)
    message = check_error(refused, 400, "n")
    assert "501632 bytes" in message
    assert "at most 40000 on this server" in message
    streamed = post(app, prompt=[[97] * 20] * 2, n=16, echo=True, logprobs=20, max_tokens=1, stream=True)
    assert check_error(streamed, 400, "n") == message
    assert engine.calls == 0
    assert post(app, prompt=[[97] * 20], echo=True, logprobs=20, max_tokens=1).status_code == 200


def test_by_default_a_request_of_44_kilobytes_gets_no_406_megabytes(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(hashed_logits, context=512)
    body = {"prompt": [[97 + i % 26 for i in range(511)]] * 16, "n": 128, "echo": True, "logprobs": 20, "max_tokens": 1}
    message = check_error(post(create_app(engine, tokenizer, Settings()), **body), 400, "n")
    assert f"at most {MOST} on this server" in message
    assert engine.calls == 0


def test_openais_limits_leave_the_bound_as_it_is() -> None:
    assert replace(Settings(), openai_limits=True, max_answer_bytes=5).limits == Limits(5, 4, answer_bytes=5)


def test_a_library_has_the_same_bound(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    asked = request(n=2, logprobs=20)
    prepare(asked, engine, tokenizer, MODEL)
    with pytest.raises(InvalidRequest, match="may come to"):
        prepare(asked, engine, tokenizer, MODEL, Limits(answer_bytes=10_000))


def test_a_trace_is_refused_by_the_servers_bound_and_no_other(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    fields = {"request": {"model": MODEL, "prompt": "a", "n": 2, "logprobs": 20, "seed": 1, "max_tokens": 10},
              "index": 0, "tokens": []}  # fmt: skip
    asked = TraceRequest.from_fields(fields)
    prepare_trace(asked, engine, tokenizer, MODEL, 100, Limits(answer_bytes=20_000))
    with pytest.raises(InvalidRequest) as refused:
        prepare_trace(asked, engine, tokenizer, MODEL, 100, Limits(answer_bytes=10_000))
    assert refused.value.param == "request.n"


def test_capabilities_say_it(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    app = create_app(engine, tokenizer, Settings(max_answer_bytes=12_345))
    assert call(app, "GET", "/v1/capabilities").json()["limits"]["max_answer_bytes"] == 12_345
