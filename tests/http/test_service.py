"""Whether the server can answer: loading, ready, failing, draining; and what probes and requests are told meanwhile."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.applications import Starlette

from gnomon.http import service as service_module
from gnomon.http.app import create_app
from gnomon.http.completions import Completions
from gnomon.http.run import Server, bind, url
from gnomon.http.service import FAULTS
from gnomon.http.settings import Settings
from gnomon.reference.completion import Run
from gnomon.reference.engine import Engine
from gnomon.reference.tokenizer import Tokenizer
from gnomon.reference.work import Work
from helpers.fake import FakeEngine, always
from helpers.live import call, check_error, eventually, post, request_body

PROBES = ("/readyz", "/health")


class Moody:
    """Logits that are only there while the mood is good."""

    def __init__(self) -> None:
        self.good = True
        self.calls = 0

    def __call__(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        self.calls += 1
        if not self.good:
            raise RuntimeError("the device is gone")
        return always(*b"abc")(tokens)


def check_trouble(app: Starlette, code: str) -> None:
    for path in PROBES:
        response = call(app, "GET", path)
        check_error(response, 503, code=code)
        assert int(response.headers["retry-after"]) >= 1
    assert call(app, "GET", "/livez").status_code == 200


def check_ready(app: Starlette) -> None:
    for path in ("/livez", *PROBES):
        response = call(app, "GET", path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})


def faults(app: Starlette) -> float:
    return counted(call(app, "GET", "/metrics").text)


def counted(metrics: str) -> float:
    """The faults of the engine that the metrics tell of."""
    [line] = [line for line in metrics.splitlines() if line.startswith("gnomon_engine_faults_total ")]
    return float(line.split()[1])


# ---- loading


def test_while_it_loads_probes_and_requests_are_told_so_and_then_it_serves(tokenizer: Tokenizer) -> None:
    app = create_app(None, None, Settings())
    check_trouble(app, "loading")
    for stream in (False, True):
        refused = post(app, stream=stream)
        assert int(refused.headers["retry-after"]) >= 1
        check_error(refused, 503, code="loading")
    check_error(call(app, "GET", "/v1/models"), 503, code="loading")
    about = call(app, "GET", "/version").json()
    assert (about["engine"], about["system_fingerprint"]) == (None, None)
    app.state.service.open(FakeEngine(always(*b"abc")), tokenizer)
    check_ready(app)
    assert post(app, temperature=0, max_tokens=3).json()["choices"][0]["text"] == "abc"
    assert call(app, "GET", "/version").json()["system_fingerprint"].startswith("fake-")


def test_the_version_names_what_runs(tokenizer: Tokenizer) -> None:
    about = call(create_app(FakeEngine(always(97)), tokenizer, Settings(served_model_name="mine")), "GET", "/version")
    fingerprint = post(
        create_app(FakeEngine(always(97)), tokenizer, Settings()), max_tokens=0
    ).json()["system_fingerprint"]  # fmt: skip
    assert about.json() == {
        "name": "gnomon", "version": "0.1.0", "model": "mine", "engine": "reference", "system_fingerprint": fingerprint,
    }  # fmt: skip


def test_the_model_is_loaded_while_the_server_listens(tokenizer: Tokenizer) -> None:
    loaded, ready = threading.Event(), threading.Event()

    def load() -> tuple[FakeEngine, Tokenizer, None]:
        assert loaded.wait(20)
        return FakeEngine(always(*b"abc")), tokenizer, None

    with bind("127.0.0.1", 0) as listener:
        app, base = create_app(None, None, Settings()), url(listener)
        server = Server(app, Settings(), ready.set, load)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert eventually(lambda: server.started)
            assert httpx.get(f"{base}/livez").status_code == 200
            check_error(httpx.get(f"{base}/readyz"), 503, code="loading")
            assert not ready.is_set()
            loaded.set()
            assert ready.wait(20)
            assert httpx.get(f"{base}/readyz").status_code == 200
        finally:
            loaded.set()
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_cause(tokenizer: Tokenizer) -> None:
    def load() -> tuple[FakeEngine, Tokenizer, None]:
        raise ValueError("no such weights")

    with bind("127.0.0.1", 0) as listener:
        server = Server(create_app(None, None, Settings()), Settings(), lambda: pytest.fail("ready?"), load)
        server.run(sockets=[listener])
    assert str(server.failure) == "no such weights"


@pytest.mark.slow
def test_a_request_that_is_being_prepared_when_the_server_is_to_end_is_finished(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, prepare = threading.Event(), threading.Event(), Completions.prepare
    ready, answers = threading.Event(), []

    def slow(self: Completions, body: bytes, engine: Engine, tokenizer: Tokenizer, work: Work) -> Run:
        begun.set()
        assert go_on.wait(20)
        return prepare(self, body, engine, tokenizer, work)

    monkeypatch.setattr(Completions, "prepare", slow)
    settings = Settings(shutdown_seconds=0.1)
    with bind("127.0.0.1", 0) as listener:
        server = Server(create_app(FakeEngine(always(*b"abc")), tokenizer, settings), settings, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        assert ready.wait(20)
        address = f"{url(listener)}/v1/completions"
        client = threading.Thread(target=lambda: answers.append(httpx.post(address, json=request_body()).status_code))
        client.start()
        try:
            assert begun.wait(20)
            server.handle_exit(15, None)
            thread.join(1)
            assert thread.is_alive()
        finally:
            go_on.set()
            client.join(20)
            thread.join(20)
    assert not thread.is_alive()
    assert answers == [200]


# ---- an engine that fails


def test_one_fault_is_a_500_and_the_next_request_works(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    mood = Moody()
    app = create_app(FakeEngine(mood), tokenizer, Settings())
    mood.good = False
    assert "device" not in check_error(post(app), 500)
    assert "the device is gone" in caplog.text
    check_ready(app)
    mood.good = True
    assert post(app).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_that_repeats_turns_readiness_to_503_until_the_engine_answers(
    tokenizer: Tokenizer, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    mood = Moody()
    app = create_app(FakeEngine(mood), tokenizer, Settings())
    mood.good = False
    for _ in range(FAULTS - 1):
        check_error(post(app, stream=stream), 500)
    check_ready(app)
    check_error(post(app, stream=stream), 500)
    check_trouble(app, "failing")
    mood.good = True
    assert post(app, stream=stream).status_code == 200  # requests are tried all the same
    check_ready(app)


def test_faults_with_an_answer_between_them_are_no_repetition(tokenizer: Tokenizer) -> None:
    mood = Moody()
    app = create_app(FakeEngine(mood), tokenizer, Settings())
    for i in range(4 * FAULTS):
        mood.good = i % FAULTS == 0
        post(app)
        check_ready(app)
    assert faults(app) == 4 * (FAULTS - 1)


def test_who_is_at_fault_is_not_the_engine(tokenizer: Tokenizer) -> None:
    app = create_app(FakeEngine(always(*b"abc")), tokenizer, Settings())
    for _ in range(FAULTS):
        check_error(post(app, temperature=3), 400, "temperature")
        check_error(post(app, model="other"), 404, "model", "model_not_found")
    check_ready(app)


def test_a_failing_server_that_nobody_sends_to_finds_back_by_itself(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    mood = Moody()
    app = create_app(FakeEngine(mood), tokenizer, Settings())
    mood.good = False
    for _ in range(FAULTS):
        post(app)
    calls = mood.calls
    check_trouble(app, "failing")
    assert eventually(lambda: mood.calls == calls + 1)  # one token was tried,
    check_trouble(app, "failing")
    assert mood.calls == calls + 1  # and no second one so soon
    mood.good = True
    monkeypatch.setattr(service_module, "PROBE_SECONDS", 0.0)
    assert call(app, "GET", "/readyz").status_code == 503  # this look has it try
    assert eventually(lambda: call(app, "GET", "/readyz").status_code == 200)
    assert "answers again" in caplog.text


# ---- draining


def test_a_draining_server_lets_nobody_in_and_is_not_ready(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(always(*b"abc"))
    app = create_app(engine, tokenizer, Settings())
    app.state.service.draining = True
    check_trouble(app, "draining")
    for stream in (False, True):
        refused = post(app, stream=stream)
        check_error(refused, 503, code="draining")
        assert int(refused.headers["retry-after"]) >= 1
    assert engine.calls == 0


def test_probes_do_not_touch_the_engine(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(always(*b"abc"))
    check_ready(create_app(engine, tokenizer, Settings()))
    assert engine.calls == 0


def test_an_answer_that_is_ended_by_us_is_no_fault_of_the_engine(tokenizer: Tokenizer) -> None:
    """Were it one, a server under load whose requests time out would call itself broken."""

    async def scene() -> Any:
        app = create_app(FakeEngine(always(*b"abc"), context=5000), tokenizer, Settings(request_seconds=0.01))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gnomon") as client:
            body = {"model": "gnomon-stories", "prompt": "a", "max_tokens": 4900, "logit_bias": {"266": -100}}
            answers = [await client.post("/v1/completions", json=body) for _ in range(FAULTS)]
            ready = await client.get("/readyz")
            text = (await client.get("/metrics")).text
        return [answer.status_code for answer in answers], ready.status_code, counted(text)

    assert asyncio.run(scene()) == ([503] * FAULTS, 200, 0)
