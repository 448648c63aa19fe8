"""What a request keeps while it waits: what is counted of it is what it takes, and nothing else is kept."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.types import Message

from gnomon.http.admission import BETWEEN_CHECKS, Admission
from gnomon.http.app import create_app
from gnomon.http.completions import Completions
from gnomon.http.settings import Settings
from gnomon.reference.completion import Run, prepare
from gnomon.reference.request import CompletionRequest
from gnomon.reference.stop import StopMatcher
from gnomon.reference.tokenizer import Tokenizer
from helpers.fake import FAKE_VOCAB, FakeEngine, always, hashed_logits
from helpers.live import MODEL, Gate, check_error, connection, eventually, post, request_body, serving

MIB = 2**20

SHAPES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a text": {"prompt": "once upon a time " * 250},
    "an echoed text": {"prompt": "once upon a time " * 250, "echo": True},
    "an echoed text of wide characters": {"prompt": "\U0001f600é " * 500, "echo": True},
    "an echoed text with its places": {"prompt": "once upon a time " * 250, "echo": True, "logprobs": 5},
    "ids": {"prompt": [list(range(1, 201)) * 5] * 4},
    "ids with their places": {"prompt": [list(range(1, 201)) * 5] * 4, "echo": True, "logprobs": 0},
    "many prompts": {"prompt": ["a"] * 400},
    "many echoed prompts": {"prompt": ["ab"] * 400, "echo": True, "logprobs": 0},
    "many candidates": {"prompt": ["a"] * 16, "n": 128},
    "stop strings": {"stop": [chr(ord("0") + i) * 1024 for i in range(64)]},
    "wide stop strings": {"stop": [chr(0x1F600 + i) * 1024 for i in range(64)]},
    "a bias": {"logit_bias": {str(v): -1.5 for v in range(FAKE_VOCAB)}},
    "a user": {"user": "u" * 1024},
}
QUICK = ("an echoed text with its places", "a bias")


def body_of(fields: dict[str, Any]) -> bytes:
    return json.dumps(request_body(**{"max_tokens": 1, **fields})).encode()


def prepared(body: bytes, tokenizer: Tokenizer) -> Run:
    engine = FakeEngine(always(*b"abc"), context=5000)
    return prepare(CompletionRequest.from_json(body), engine, tokenizer, MODEL)


@contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Bytes that Python's objects have taken since, and still take."""
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()

    def taken() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before

    try:
        yield taken
    finally:
        tracemalloc.stop()


def least_taken(make: Callable[[], object], tries: int = 3) -> int:
    """Bytes that what `make` returns takes: the least of some tries, since other threads of this process, a worker's
    that sends its results say, allocate meanwhile, and the first of its kind fills caches."""

    def one() -> int:
        with traced() as taken:
            held = make()
            size = taken()
            del held
        return size

    return min(one() for _ in range(tries))


# ---- what is counted


@pytest.mark.parametrize(
    "shape", [*QUICK, *(pytest.param(s, marks=pytest.mark.slow) for s in SHAPES if s not in QUICK)]
)
def test_what_is_counted_of_a_run_is_what_it_takes_within_a_factor_of_two(shape: str, tokenizer: Tokenizer) -> None:
    body, count = body_of(SHAPES[shape]), 3
    real = least_taken(lambda: [prepared(body, tokenizer) for _ in range(count)], tries=2) / count
    counted = sum(prepared(body, tokenizer).held_bytes.values())
    assert real / 2 <= counted <= real * 2, (real, counted)


@pytest.mark.slow
def test_a_waiting_prompt_is_four_bytes_a_token_and_no_text_unless_it_is_echoed(tokenizer: Tokenizer) -> None:
    text = "ab " * 1600
    tokens = len(prepared(body_of({"prompt": text}), tokenizer).prompts[0].ids)
    for fields, most in (({"prompt": text}, 0), ({"prompt": text, "echo": True}, len(text))):
        waiting = partial(prepared, body_of(fields), tokenizer)
        assert least_taken(waiting) < 4096 + 4 * tokens + most, fields
        assert waiting().usage.prompt_tokens == tokens


@pytest.mark.slow
def test_a_waiting_run_has_no_candidates_yet(tokenizer: Tokenizer) -> None:
    """146 bytes ask for 2,048 of them, at a kilobyte and more each."""
    body = body_of({"prompt": ["a"] * 16, "n": 128, "max_tokens": 0})
    assert least_taken(lambda: prepared(body, tokenizer)) < 16_384
    assert len(prepared(body, tokenizer).whole().choices) == 2048


def test_a_run_that_has_not_begun_is_not_complete_and_has_used_its_prompts_alone(tokenizer: Tokenizer) -> None:
    run = prepared(body_of({"n": 3}), tokenizer)
    assert not run.is_complete
    assert run.finish_reasons == []
    assert (run.usage.prompt_tokens, run.usage.completion_tokens) == (1, 0)
    run.close()
    assert list(run.chunks()) == []


# ---- stop strings


@pytest.mark.slow
def test_a_stop_strings_table_is_made_only_as_far_as_a_text_comes_in_it() -> None:
    stops = ["ab" * 500_000, "x" * 1_000_000]

    def begun() -> StopMatcher:
        matcher = StopMatcher(stops)
        for char in "ababababax":
            assert matcher.push(char) == 0
        assert matcher.held == 1
        return matcher

    assert least_taken(begun) < 4096


def test_a_stop_strings_table_is_four_bytes_a_character_and_shared_by_the_candidates(tokenizer: Tokenizer) -> None:
    stop = "a" * 1000 + "b"
    engine = FakeEngine(always(*b"a" * 1000, ord("c")), context=5000)
    body = body_of({"stop": stop, "n": 2, "max_tokens": 1001, "temperature": 0, "seed": 1})
    run = prepare(CompletionRequest.from_json(body), engine, tokenizer, MODEL)
    assert {choice.text for choice in run.whole().choices} == {"a" * 1000 + "c"}
    tables = {id(table): table for one in run._candidates.values() for table in one._matcher._fallbacks}
    (table,) = tables.values()
    assert (table._lengths.itemsize, len(table._lengths)) == (4, 1001)


# ---- what the server keeps


class Waiting:
    """Requests that were sent to an application and are waiting, or were refused."""

    def __init__(self, app: Starlette) -> None:
        self.app = app
        self.statuses: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def send(self, pieces: Callable[[], Iterator[bytes]]) -> None:
        """Sends one, and returns when it waits or has its answer."""
        task, before = asyncio.create_task(self._ask(pieces())), len(self.statuses)
        completions: Completions = self.app.state.completions
        waiting = len(completions.open)
        while len(completions.open) == waiting and len(self.statuses) == before:
            await asyncio.sleep(0.001)
        self.tasks.append(task)

    async def _ask(self, pieces: Iterator[bytes]) -> None:
        async def receive() -> Message:
            piece = next(pieces, None)
            if piece is None:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": piece, "more_body": piece != b""}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.statuses.append(message["status"])

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/completions",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        await self.app(scope, receive, send)

    async def leave(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


LARGEST: dict[str, Callable[[], bytes]] = {
    **{shape: lambda fields=fields: body_of(fields) for shape, fields in SHAPES.items()},  # type: ignore[misc]
    "a stop string of megabytes": lambda: body_of({"stop": "x" * (2 * MIB - 200)}),
    "a user of megabytes": lambda: body_of({"user": "x" * (2 * MIB - 200)}),
    "a model's name of megabytes": lambda: body_of({"model": "x" * (2 * MIB - 200)}),
    "a body of nulls": lambda: body_of({})[:-1] + b"".join(b',"k%d":null' % i for i in range(20_000)) + b"}",
    "a body of white space": lambda: body_of({}) + b" " * (2 * MIB - 200),
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", LARGEST)
def test_requests_of_every_shape_that_wait_take_no_more_than_the_bound_on_bytes(
    shape: str, tokenizer: Tokenizer
) -> None:
    count, each = 5, 48 * 2**10  # of one: its tasks and what the test itself keeps of it
    most = 2**18 if len(LARGEST[shape]()) < 2**18 else 4 * MIB
    gate = Gate(always(*b"abc"), seconds=300)
    settings = Settings(max_running=1, max_queued_bytes=most, queue_seconds=300)
    app = create_app(FakeEngine(gate, context=5000), tokenizer, settings)

    def pieces() -> Iterator[bytes]:
        yield LARGEST[shape]()
        yield b""

    async def scene() -> tuple[int, int]:
        waiting = Waiting(app)
        await waiting.send(lambda: iter([body_of({"max_tokens": 3}), b""]))
        while not gate.begun:
            await asyncio.sleep(0.001)
        with traced() as taken:
            for _ in range(count):
                await waiting.send(pieces)
            held = taken()
        admission: Admission = app.state.completions.admission
        assert admission.arriving_bytes == 0
        counted = admission.waiting_bytes()
        assert set(waiting.statuses) <= {429, 400, 404}
        gate.allow(10)
        app.state.completions.stop()
        await waiting.leave()
        return held, counted

    held, counted = asyncio.run(scene())
    assert counted <= most
    assert held <= 2 * counted + count * each


@pytest.mark.slow
def test_the_server_lets_go_of_a_request_whatever_ended_it_without_a_collection(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Run] = weakref.WeakSet()
    init = Run.__init__

    def known(self: Run, *arguments: Any) -> None:
        init(self, *arguments)
        alive.add(self)

    monkeypatch.setattr(Run, "__init__", known)
    gc.collect()
    gc.disable()
    try:
        for stream in (False, True):
            for end in ENDS:
                ENDS[end](tokenizer, stream)
                assert eventually(lambda: not alive), (end, stream)
    finally:
        gc.enable()


@contextmanager
def gated(tokenizer: Tokenizer, **settings: Any) -> Iterator[tuple[Gate, Starlette, str]]:
    gate = Gate(always(*b"abc"))
    app = create_app(FakeEngine(gate, context=5000), tokenizer, Settings(max_running=1, **settings))
    with serving(app) as base:
        yield gate, app, f"{base}/v1/completions"


def answered(tokenizer: Tokenizer, stream: bool) -> None:
    with gated(tokenizer) as (gate, _, url):
        gate.allow(10)
        assert httpx.post(url, json=request_body(max_tokens=3, stream=stream), timeout=30).status_code == 200


def refused(tokenizer: Tokenizer, stream: bool) -> None:
    with gated(tokenizer, max_queued_tokens=4) as (_, _, url):
        assert httpx.post(url, json=request_body(max_tokens=9, stream=stream), timeout=30).status_code == 400


def failed(tokenizer: Tokenizer, stream: bool) -> None:
    engine = FakeEngine(lambda tokens: np.full(FAKE_VOCAB, np.nan))
    with serving(create_app(engine, tokenizer, Settings())) as base:
        answer = httpx.post(f"{base}/v1/completions", json=request_body(stream=stream), timeout=30)
        assert answer.status_code == 500


def timed_out(tokenizer: Tokenizer, stream: bool, **seconds: float) -> None:
    """A stream that has begun, since it was silent for long enough, ends with an event and not with a status."""
    with ThreadPoolExecutor() as pool, gated(tokenizer, ping_seconds=0.1, **seconds) as (gate, _, url):
        first = pool.submit(httpx.post, url, json=request_body(max_tokens=3), timeout=30)
        assert eventually(lambda: gate.begun > 0)
        answer = httpx.post(url, json=request_body(max_tokens=3, stream=stream), timeout=30)
        assert "seconds" in answer.text
        gate.allow(10)
        first.result(30)


def ended(tokenizer: Tokenizer, stream: bool) -> None:
    with ThreadPoolExecutor() as pool, gated(tokenizer) as (gate, app, url):
        answer = pool.submit(httpx.post, url, json=request_body(max_tokens=3, stream=stream), timeout=30)
        assert eventually(lambda: gate.begun > 0)
        app.state.completions.stop()
        gate.allow(10)
        assert "draining" in answer.result(30).text  # in an event, if the stream had begun


def left(tokenizer: Tokenizer, stream: bool) -> None:
    with gated(tokenizer) as (gate, app, url):
        with connection(url.removesuffix("/v1/completions")) as client:
            body = body_of({"max_tokens": 3, "stream": stream})
            client.sendall(HEAD % len(body) + body)
            assert eventually(lambda: gate.begun > 0)
        gate.allow(10)
        assert eventually(lambda: not app.state.completions.open)


ENDS: dict[str, Callable[[Tokenizer, bool], None]] = {
    "an answer": answered,
    "a refusal": refused,
    "a fault": failed,
    "its time in the queue": lambda tokenizer, stream: timed_out(tokenizer, stream, queue_seconds=0.5),
    "its time altogether": lambda tokenizer, stream: timed_out(tokenizer, stream, request_seconds=0.5),
    "the server's end": ended,
    "the client": left,
}

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: gnomon\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


# ---- the bound


def test_the_bytes_that_may_wait_are_bounded_beside_the_requests_and_the_tokens(tokenizer: Tokenizer) -> None:
    fields: dict[str, Any] = {"prompt": "ab " * 1500, "echo": True, "max_tokens": 1}
    one = sum(prepared(body_of(fields), tokenizer).held_bytes.values())
    most = 3 * one + len(body_of(fields)) + 1000  # a fourth may still arrive, but the run that it becomes is larger
    with ThreadPoolExecutor() as pool, gated(tokenizer, max_queued_bytes=most) as (gate, app, url):
        first = pool.submit(httpx.post, url, json=request_body(max_tokens=1), timeout=60)
        assert eventually(lambda: gate.begun > 0)
        waiting = []
        for count in (1, 2, 3):
            waiting.append(pool.submit(httpx.post, url, content=body_of(fields), headers=JSON, timeout=60))
            assert eventually(lambda count=count: len(app.state.completions.open) == 1 + count)  # type: ignore[misc]
        one_more = pool.submit(httpx.post, url, content=body_of(fields), headers=JSON, timeout=60)
        assert eventually(one_more.done)
        answer = one_more.result()
        message = check_error(answer, 429, code="queue_full")
        assert f"take {3 * one} bytes and this one {one} more; at most {most} may wait" in message
        assert int(answer.headers["retry-after"]) >= 1
        gate.allow(100)
        assert [each.result(60).status_code for each in (first, *waiting)] == [200] * 4
        assert httpx.post(url, content=body_of(fields), headers=JSON, timeout=60).status_code == 200


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("prompt", {"prompt": ["a"] * 400}),
        ("stop", {"stop": [chr(ord("0") + i) * 1024 for i in range(64)]}),
        ("logit_bias", {"logit_bias": {str(v): 0.25 for v in range(FAKE_VOCAB)}}),
    ],
)
def test_a_request_of_more_bytes_than_may_wait_is_a_400_that_names_the_field(
    field: str, fields: dict[str, Any], tokenizer: Tokenizer
) -> None:
    held = prepared(body_of(fields), tokenizer).held_bytes
    for most, status in ((sum(held.values()), 200), (sum(held.values()) - 1, 400)):
        settings = Settings(max_queued_bytes=most, max_body_bytes=MIB)
        if len(body_of(fields)) > most:
            status = 413
        answer = post(create_app(FakeEngine(always(*b"abc")), tokenizer, settings), max_tokens=1, **fields)
        assert answer.status_code == status, answer.text[:200]
        if status == 400:
            message = check_error(answer, 400, field)
            assert f"{sum(held.values())} bytes" in message
            assert f"at most {most}" in message


def test_a_body_longer_than_the_bytes_that_may_wait_is_a_413(tokenizer: Tokenizer) -> None:
    app = create_app(FakeEngine(hashed_logits), tokenizer, Settings(max_queued_bytes=5000))
    assert "at most 5000" in check_error(post(app, user="u" * 1000, prompt="a" * 5000), 413)


def test_bodies_that_are_arriving_count_among_the_bytes_that_wait(tokenizer: Tokenizer) -> None:
    """Three clients have sent all but the end of theirs: a fourth is refused while it sends, and not once they left."""
    size = 2 * BETWEEN_CHECKS
    part = HEAD % (2 * size) + b" " * size
    body = b" " * size + body_of({})
    with gated(tokenizer, max_queued_bytes=3 * size + 5000) as (gate, app, url):
        admission: Admission = app.state.completions.admission
        gate.allow(1000)
        base = url.removesuffix("/v1/completions")
        with connection(base) as one, connection(base) as two, connection(base) as three:
            for client in (one, two, three):
                client.sendall(part)
            assert eventually(lambda: admission.arriving_bytes == 3 * size)
            message = check_error(httpx.post(url, content=body, headers=JSON, timeout=60), 429, code="queue_full")
            assert f"at most {3 * size + 5000} may wait" in message
            assert httpx.post(url, json=request_body(max_tokens=1), timeout=60).status_code == 200
        assert eventually(lambda: admission.arriving_bytes == 0)
        assert httpx.post(url, content=body, headers=JSON, timeout=60).status_code == 200
