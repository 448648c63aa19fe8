"""Clients that go away, clients that wait, and a server that ends: on a real socket, with an engine that waits."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from starlette.applications import Starlette

from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from gnomon.reference.tokenizer import Tokenizer
from helpers.arriving import ArrivingEngine
from helpers.fake import EOT, FakeEngine, always
from helpers.live import Gate, check_error, connection, eventually, request_body, serving

JSON = "Content-Type: application/json"
CONTEXT = 10_000


@pytest.fixture
def gate() -> Gate:
    return Gate(always(*b"abc"))


@pytest.fixture(params=[FakeEngine, ArrivingEngine])
def app(gate: Gate, tokenizer: Tokenizer, request: pytest.FixtureRequest) -> Starlette:
    return create_app(request.param(gate, context=CONTEXT), tokenizer, Settings(max_running=2, shutdown_seconds=1))


def send_request(client: socket.socket, **fields: object) -> None:
    body = json.dumps(request_body(temperature=0, **fields)).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: gnomon\r\n{JSON}\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)


def send_wide_request(client: socket.socket) -> None:
    """A stream of some megabytes."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    send_request(client, stream=True, max_tokens=CONTEXT - 1, logprobs=20, logit_bias={str(EOT): -100})


def has_stalled(engine: FakeEngine) -> bool:
    calls = engine.calls
    time.sleep(0.2)
    return calls > 0 and engine.calls == calls


def nothing_open(app: Starlette) -> bool:
    return not app.state.completions.open


# ---- a client that goes away


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("steps", [0, 3])
def test_the_engine_stops_within_one_step_when_the_client_goes_away(
    app: Starlette, gate: Gate, stream: bool, reset: bool, steps: int
) -> None:
    with serving(app) as base:
        with connection(base) as client:
            send_request(client, stream=stream, max_tokens=5000, n=2)
            gate.allow(steps)
            assert eventually(lambda: gate.begun == steps + 1)
            if reset:  # linger 0: closing sends RST
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        assert eventually(lambda: nothing_open(app))
        gate.allow(1000)
        time.sleep(0.2)
        assert gate.begun == steps + 1


def test_a_client_that_leaves_while_it_waits_for_its_turn_never_starts(app: Starlette, gate: Gate) -> None:
    with serving(app) as base, connection(base) as first, connection(base) as second:
        for client in (first, second):
            send_request(client, max_tokens=10)
        assert eventually(lambda: gate.begun == 2)
        with connection(base) as third:
            send_request(third, max_tokens=5000)
            assert eventually(lambda: len(app.state.completions.open) == 3)
        assert eventually(lambda: len(app.state.completions.open) == 2)
        gate.allow(1000)
        for client in (first, second):
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        assert eventually(lambda: nothing_open(app))
        assert gate.begun == 20


def test_a_client_that_goes_away_disturbs_no_other(app: Starlette, gate: Gate) -> None:
    with serving(app) as base, ThreadPoolExecutor() as pool:
        body = request_body(temperature=0, max_tokens=6)
        staying = pool.submit(httpx.post, f"{base}/v1/completions", json=body)
        assert eventually(lambda: gate.begun == 1)
        with connection(base) as leaving:
            send_request(leaving, max_tokens=5000)
            assert eventually(lambda: gate.begun == 2)
        assert eventually(lambda: len(app.state.completions.open) == 1)
        gate.allow(1000)
        assert staying.result(10).json()["choices"][0]["text"] == "abcabc"
        again = httpx.post(f"{base}/v1/completions", json=body)
        assert again.json()["choices"][0]["text"] == "abcabc"


@pytest.mark.slow
def test_a_client_that_reads_nothing_does_not_hold_the_engine(tokenizer: Tokenizer) -> None:
    """Its stream waits for it; others get the one place at the engine meanwhile."""
    engine = FakeEngine(always(*b"abc"), context=CONTEXT)
    app = create_app(engine, tokenizer, Settings(max_running=1, shutdown_seconds=1))
    with serving(app, small_buffers=True) as base, connection(base) as deaf:
        send_wide_request(deaf)
        assert eventually(lambda: has_stalled(engine))
        assert 0 < engine.calls < CONTEXT - 1
        for _ in range(3):
            assert httpx.post(f"{base}/v1/completions", json=request_body(max_tokens=2)).status_code == 200
        assert not nothing_open(app)


# ---- a slow request


def test_health_and_errors_are_answered_while_every_reader_waits(app: Starlette, gate: Gate) -> None:
    """The engine computes nothing before all of them are: a single one that waited for it would time out."""
    with serving(app) as base, ThreadPoolExecutor() as pool, httpx.Client(base_url=base, timeout=5) as client:
        body = request_body(temperature=0, max_tokens=2)
        slow = [pool.submit(httpx.post, f"{base}/v1/completions", json=body, timeout=20) for _ in range(4)]
        assert eventually(lambda: len(app.state.completions.open) == 4)
        for _ in range(5):
            assert client.get("/health").status_code == 200
            assert client.get("/v1/models").status_code == 200
            check_error(client.post("/v1/completions", json=request_body(n=0)), 400, "n")
        assert not any(request.done() for request in slow)
        gate.allow(1000)
        assert all(request.result(10).status_code == 200 for request in slow)


# ---- bodies on the wire


def test_a_chunked_body_beyond_the_limit_is_a_413_on_the_wire(app: Starlette, gate: Gate) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(3000):
            yield b" " * 4096

    with serving(app) as base, httpx.Client(base_url=base) as client:
        for content in (endless(), b" " * (9 * 2**20)):
            headers = {"Content-Type": "application/json"}
            check_error(client.post("/v1/completions", content=content, headers=headers, timeout=20), 413)
        assert client.get("/health").status_code == 200
    assert gate.begun == 0


def test_a_client_that_waits_for_100_continue_is_refused_before_it_sends(app: Starlette) -> None:
    with serving(app) as base, connection(base) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: gnomon\r\n{JSON}\r\nContent-Length: 99999999\r\n"
        client.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 413")


# ---- the server's end


def allow_once_stopping(app: Starlette, gate: Gate) -> None:
    if eventually(lambda: bool(app.state.service.draining)):
        gate.allow(5000)


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_ends_ends_the_answers_under_way(app: Starlette, gate: Gate, stream: bool) -> None:
    with ThreadPoolExecutor() as pool:
        with serving(app) as base:
            body = request_body(stream=stream, temperature=0, max_tokens=5000)
            gate.allow(1)
            answer = pool.submit(httpx.post, f"{base}/v1/completions", json=body)
            assert eventually(lambda: gate.begun == 2)
            pool.submit(allow_once_stopping, app, gate)
        response = answer.result(10)
    assert gate.begun <= 3
    if stream:
        assert response.status_code == 200
        assert "the server is draining" in response.text
        assert response.text.endswith("data: [DONE]\n\n")
    else:
        check_error(response, 503, code="draining")
        assert int(response.headers["retry-after"]) > 0


@pytest.mark.slow
def test_clients_that_neither_read_nor_finish_do_not_keep_a_server_alive(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    engine = FakeEngine(always(*b"abc"), context=CONTEXT)
    app = create_app(engine, tokenizer, Settings())
    with ExitStack() as clients:
        with serving(app, Settings(shutdown_seconds=1), small_buffers=True) as base:
            deaf, slow = (clients.enter_context(connection(base)) for _ in range(2))
            send_wide_request(deaf)
            head = f"POST /v1/completions HTTP/1.1\r\nHost: gnomon\r\n{JSON}\r\nContent-Length: 9\r\n\r\n"
            slow.sendall(f"{head}{{".encode())
            assert eventually(lambda: has_stalled(engine))
            begun = time.monotonic()
        assert 0.9 < time.monotonic() - begun < 4
    assert "Traceback" not in caplog.text
