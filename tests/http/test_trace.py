"""POST /v1/completions/trace on the network: who gets it, one at a time, beside the engine, and how it ends."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.applications import Starlette

from gnomon.http.app import create_app
from gnomon.http.settings import AuthMode, AuthSettings, Settings
from gnomon.http.trace import LINE
from gnomon.reference import load
from gnomon.reference.checkpoint.errors import CheckpointError
from gnomon.reference.checkpoint.load import Checkpoint, load_checkpoint
from gnomon.reference.engine import JobRequest, Load, ReferenceEngine, ReferenceJob, go_on
from gnomon.reference.system.files import Opened
from gnomon.reference.tokenizer import Tokenizer, load_tokenizer
from helpers.described import description_of
from helpers.fake import FakeEngine, hashed_logits
from helpers.live import call, check_error, eventually, post, request_body, serving
from helpers.models import tiny_llama
from helpers.observed import lines, sample

TRACE = "/v1/completions/trace"


class Other:
    """An engine that is not the reference, and gives what the reference would, but for tokens that are replaced."""

    name, concurrency, fingerprint = "other", 8, "other"

    def __init__(self, inner: ReferenceEngine) -> None:
        self.inner = inner
        self.vocab_size, self.context, self.eos_ids = inner.vocab_size, inner.context, inner.eos_ids

    def submit(self, request: JobRequest) -> ReferenceJob:
        return self.inner.submit(request)

    def load(self) -> Load:
        return self.inner.load()


class Held(FakeEngine):
    """A reference whose passes begin, and go on when they are let."""

    def __init__(self) -> None:
        super().__init__(hashed_logits)
        self.begun, self.ended, self.at_work, self.most = 0, 0, 0, 0
        self.free = threading.Event()

    def states(self, tokens: Sequence[int], check: Callable[[], None] = go_on) -> NDArray[np.float64]:
        self.begun, self.at_work = self.begun + 1, self.at_work + 1
        self.most = max(self.most, self.at_work)
        try:
            while not self.free.wait(0.005):
                check()
            return super().states(tokens, check)
        finally:
            self.at_work, self.ended = self.at_work - 1, self.ended + 1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def app(tokenizer: Tokenizer) -> Starlette:
    return create_app(FakeEngine(hashed_logits), tokenizer, Settings())


@pytest.fixture
def held() -> Iterator[Held]:
    engine = Held()
    yield engine
    engine.free.set()


def trace_body(**fields: Any) -> dict[str, Any]:
    return {"request": request_body(seed=1), "tokens": list("abc"), **fields}


def trace(app: Starlette, **fields: Any) -> httpx.Response:
    return call(app, "POST", TRACE, json=trace_body(**fields))


def beside(tiny: Path, settings: Settings) -> tuple[Starlette, Checkpoint]:
    """A server of another engine, and the checkpoint that its reference would be made from."""
    checkpoint = load_checkpoint(tiny)
    tokenizer = load_tokenizer(tiny, checkpoint.config.vocab_size)
    app = create_app(None, None, settings)
    app.state.service.open(Other(ReferenceEngine(load_checkpoint(tiny))), tokenizer, checkpoint)
    return app, checkpoint


def is_read(checkpoint: Checkpoint) -> bool:
    return "params" in vars(checkpoint)


def offered(app: Starlette) -> bool:
    told = call(app, "GET", "/v1/capabilities").json()
    assert (told["trace"] is not None) == ({"method": "POST", "path": TRACE} in told["endpoints"])
    return told["trace"] is not None


# ---- what it says


def test_what_was_completed_is_traced_token_for_token(app: Starlette) -> None:
    body = request_body(prompt=["a", "the end"], n=2, best_of=3, seed=-9, temperature=0.9, top_p=0.8, logprobs=0)
    for choice in post(app, body).json()["choices"]:
        tokens = choice["logprobs"]["tokens"]
        answer = call(app, "POST", TRACE, json={"request": body, "index": choice["index"], "tokens": tokens, "step": 3})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        told = answer.json()
        assert told["agreement"] == {"tokens": 16, "agree": 16, "first_difference": None}
        assert told["draw"]["winner"] == told["steps"][3]["id"]
        assert told["draw"]["picture"].startswith("<svg ")
        assert answer.content.isascii()


def test_a_streamed_request_is_traced_like_any_other(app: Starlette) -> None:
    body = {**trace_body(), "request": request_body(seed=1, stream=True, stream_options={"include_usage": True})}
    assert call(app, "POST", TRACE, json=body).json() == trace(app).json()


def test_an_answer_is_one_of_its_schema(app: Starlette) -> None:
    described = call(app, "GET", "/openapi.json").json()
    from jsonschema_rs import Draft202012Validator

    judge = Draft202012Validator({"$ref": "#/components/schemas/Trace", "components": described["components"]})
    asks = Draft202012Validator({"$ref": "#/components/schemas/TraceRequest", "components": described["components"]})
    for fields in ({}, {"top_p": 0.5}, {"temperature": 0}, {"top_p": 0}, {"temperature": 1e-308, "max_tokens": 3},
                   {"logit_bias": {"3": 5, "4": -100}, "presence_penalty": 1}):  # fmt: skip
        for step in (None, 2):
            body = trace_body(request=request_body(seed=1, **fields), step=step)
            asks.validate(body)
            answer = call(app, "POST", TRACE, json=body)
            assert answer.status_code == 200
            judge.validate(answer.json())


def test_the_example_of_the_documents_is_traced_in_full() -> None:
    text = (Path(__file__).resolve().parents[2] / "http" / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"{TRACE} -H .* -d '(.*?)'\n", text, re.DOTALL)
    assert found
    told = call(create_app(*load(), Settings()), "POST", TRACE, json=json.loads(found[1])).json()
    assert told["agreement"] == {"tokens": 4, "agree": 4, "first_difference": None}
    assert told["draw"]["step"] == 1


# ---- who gets it


def test_another_engines_reference_is_loaded_when_it_is_first_asked_for(tiny: Path) -> None:
    app, checkpoint = beside(tiny, Settings())
    assert offered(app)
    body = request_body(prompt="the end", seed=3, logprobs=0)
    answer = post(app, body).json()["choices"][0]["logprobs"]
    assert not is_read(checkpoint)
    told = call(app, "POST", TRACE, json={"request": body, "tokens": answer["tokens"]}).json()
    assert is_read(checkpoint)
    assert told["agreement"]["agree"] == 16
    np.testing.assert_allclose([step["logprob"] for step in told["steps"]], answer["token_logprobs"], atol=1e-10)
    assert told["system_fingerprint"].startswith("gnomon-ref-")


def test_the_parameters_decide_whether_it_fits_and_nothing_is_read_to_know(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for parameters, fits in ((3 * 2**17, True), (3 * 2**17 + 1, False)):
        monkeypatch.setattr(Checkpoint, "parameter_count", parameters)
        app, checkpoint = beside(tiny, Settings(trace_memory=3))
        assert offered(app) == fits
        answer = trace(app)
        if fits:
            assert answer.status_code == 200
        else:
            message = check_error(answer, 404, code="trace_not_offered")
            assert "4 MiB" in message
            assert "--trace-memory allows 3" in message
            assert not is_read(checkpoint)


def test_zero_switches_it_off_for_every_engine(tiny: Path, tokenizer: Tokenizer) -> None:
    settings = Settings(trace_memory=0)
    for app in (beside(tiny, settings)[0], create_app(FakeEngine(hashed_logits), tokenizer, settings)):
        assert not offered(app)
        assert "--trace-memory is 0" in check_error(trace(app), 404, code="trace_not_offered")


def test_an_engine_that_is_the_reference_takes_no_more_memory(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(hashed_logits)
    app = create_app(engine, tokenizer, Settings(trace_memory=1))
    assert offered(app)
    told = trace(app)
    assert told.json()["system_fingerprint"].startswith("fake-")


def test_without_a_checkpoint_there_is_no_reference(tiny: Path, tokenizer: Tokenizer) -> None:
    app = create_app(Other(FakeEngine(hashed_logits)), tokenizer, Settings())
    assert not offered(app)
    check_error(trace(app), 404, code="trace_not_offered")


def test_while_the_model_is_loading_nobody_can_know() -> None:
    check_error(trace(create_app(None, None, Settings())), 503, code="loading")


def test_it_asks_for_the_same_credential_as_a_completion(tokenizer: Tokenizer) -> None:
    key = "k" * 32
    settings = Settings(auth=AuthSettings(mode=AuthMode.api_key, api_keys=(key,)))
    app = create_app(FakeEngine(hashed_logits), tokenizer, settings)
    for path in (TRACE, "/v1/completions"):
        for headers in ({}, {"Authorization": "Bearer wrong" + "x" * 30}):
            assert call(app, "POST", path, json=trace_body(), headers=headers).status_code == 401
    headers = {"Authorization": f"Bearer {key}"}
    assert call(app, "POST", TRACE, json=trace_body(), headers=headers).status_code == 200


# ---- what is refused


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"tokens": ["no such label"]}, 400, "tokens[0]", None),
        ({"request": request_body(seed=1, top_p=2)}, 400, "request.top_p", None),
        ({"request": request_body(seed=1, model="x")}, 404, "request.model", "model_not_found"),
        ({"request": request_body()}, 400, "request.seed", None),
        ({"index": 1}, 400, "index", None),
        ({"step": 3}, 400, "step", None),
        ({"request": request_body(seed=1, logprobs=6)}, 400, "request.logprobs", None),
        ({"request": request_body(seed=1, n=3)}, 400, "request.prompt", None),
        ({"tokens": list("abcde")}, 400, "tokens", None),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_and_bounded_as_for_a_completion(
    tokenizer: Tokenizer, fields: dict[str, Any], status: int, param: str, code: str | None
) -> None:
    settings = Settings(openai_limits=True, max_candidates=2, trace_tokens=5)
    app = create_app(FakeEngine(hashed_logits), tokenizer, settings)
    assert trace(app, tokens=list("abcd")).status_code == 200
    assert check_error(trace(app, **fields), status, param, code).startswith(param)


def test_bodies_are_held_to_the_same_type_size_and_form(tokenizer: Tokenizer) -> None:
    app = create_app(FakeEngine(hashed_logits), tokenizer, Settings(max_body_bytes=300))
    text = json.dumps(trace_body())
    kind = {"Content-Type": "application/json"}
    assert call(app, "POST", TRACE, content=text, headers=kind).status_code == 200
    check_error(call(app, "POST", TRACE, content=text, headers={"Content-Type": "text/plain"}), 415)
    check_error(call(app, "POST", TRACE, content=text + " " * 300, headers=kind), 413)
    check_error(call(app, "POST", TRACE, content="{", headers=kind), 400)
    check_error(call(app, "POST", TRACE, content="[]", headers=kind), 400)


def test_every_status_it_can_answer_is_documented(tokenizer: Tokenizer) -> None:
    described = description_of(Settings(), AuthMode.exchange)["paths"]
    ours, theirs = (described[path]["post"]["responses"] for path in (TRACE, "/v1/completions"))
    assert ours.keys() == theirs.keys()
    assert "`trace_not_offered`" in ours["404"]["description"]


# ---- one at a time, beside the engine


def sent(base: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{base}{TRACE}", json=trace_body(**fields), timeout=20)


@contextmanager
def asking(base: str, count: int, **fields: Any) -> Iterator[list[httpx.Response]]:
    """So many traces of different sequences under way; the answers are there at the end."""
    answers: list[httpx.Response] = []

    def ask(i: int) -> None:
        answers.append(sent(base, **{"tokens": list("abc")[: i % 3 + 1], "index": 0, **fields}))

    threads = [threading.Thread(target=ask, args=[i]) for i in range(count)]
    for thread in threads:
        thread.start()
    yield answers
    for thread in threads:
        thread.join(20)


def test_one_is_computed_at_a_time_and_who_finds_the_line_full_is_told_when(held: Held, tokenizer: Tokenizer) -> None:
    app = create_app(held, tokenizer, Settings())
    with serving(app) as base:
        with asking(base, LINE) as answers:
            assert eventually(lambda: app.state.retrace.open == LINE)
            refused = sent(base)
            check_error(refused, 429, code="queue_full")
            assert int(refused.headers["retry-after"]) >= 1
            held.free.set()
        assert [answer.status_code for answer in answers] == [200] * LINE
        assert held.most == 1
        assert sent(base).status_code == 200


def test_neither_the_event_loop_nor_the_engine_waits_for_a_trace(held: Held, tokenizer: Tokenizer) -> None:
    """The reference as the engine is the hardest case: both use the same weights."""
    with serving(create_app(held, tokenizer, Settings())) as base:
        with asking(base, 1) as answers:
            assert eventually(lambda: held.begun == 1)
            assert httpx.get(f"{base}/livez", timeout=5).status_code == 200
            body = request_body(max_tokens=3)
            assert httpx.post(f"{base}/v1/completions", json=body, timeout=5).status_code == 200
            assert not answers
            held.free.set()
        assert answers[0].status_code == 200


def test_a_trace_does_not_wait_for_the_engine(app: Starlette) -> None:
    with app.state.service.engine.turn:
        assert trace(app).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("waits", [False, True])
def test_a_client_that_goes_away_ends_its_work_or_its_waiting(held: Held, tokenizer: Tokenizer, waits: bool) -> None:
    app = create_app(held, tokenizer, Settings())
    with serving(app) as base:
        with asking(base, int(waits)) as answers:
            assert eventually(lambda: held.begun == waits)
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{base}{TRACE}", json=trace_body(tokens=["b"]), timeout=0.3)
            assert eventually(lambda: app.state.retrace.open == waits)
            if not waits:
                assert eventually(lambda: held.ended == 1)
            held.free.set()
        assert [answer.status_code for answer in answers] == [200] * waits
        assert held.begun == 1
        assert sent(base, tokens=["c"]).status_code == 200


@pytest.mark.slow
def test_time_that_is_up_ends_the_waiting_and_the_work(held: Held, tokenizer: Tokenizer) -> None:
    app = create_app(held, tokenizer, Settings(queue_seconds=0.2, request_seconds=0.8))
    with serving(app) as base:
        with asking(base, 1) as first:
            assert eventually(lambda: held.begun == 1)
            waited = sent(base)
            check_error(waited, 503, code="queue_timeout")
            assert "retry-after" in waited.headers
        check_error(first[0], 503, code="request_timeout")
        assert eventually(lambda: held.ended == 1)
        held.free.set()
        assert sent(base).status_code == 200


def test_a_server_that_ends_says_so_to_who_waits(held: Held, tokenizer: Tokenizer) -> None:
    app = create_app(held, tokenizer, Settings())

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gnomon") as client:
            asked = [asyncio.create_task(client.post(TRACE, json=trace_body())) for _ in range(2)]
            while app.state.retrace.unfinished < 2 or not held.begun:
                await asyncio.sleep(0.005)
            app.state.retrace.stop()
            return await asyncio.gather(*asked)

    for answer in asyncio.run(run()):
        check_error(answer, 503, code="draining")
    assert eventually(lambda: held.ended == 1)
    app.state.service.draining = True
    check_error(trace(app), 503, code="draining")


def test_a_draining_server_finishes_its_traces(held: Held, tokenizer: Tokenizer) -> None:
    from gnomon.http.run import Server, bind, url

    app, ready = create_app(held, tokenizer, Settings()), threading.Event()
    with bind("127.0.0.1", 0) as listener:
        server = Server(app, Settings(), ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        assert ready.wait(10)
        with asking(url(listener), 1) as answers:
            assert eventually(lambda: held.begun == 1)
            server.handle_exit(15, None)
            time.sleep(0.4)  # the server looks four times in that time whether all is done
            assert thread.is_alive()
            held.free.set()
        thread.join(10)
    assert not thread.is_alive()
    assert answers[0].status_code == 200


def test_a_long_body_is_prepared_under_the_lock_of_completions(app: Starlette) -> None:
    """A tokenizer needs some 300 times a text's size, whichever endpoint it works for."""
    assert app.state.retrace.preparer is app.state.completions.preparer

    async def run() -> bool:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gnomon") as client:
            async with app.state.completions.preparer.long_bodies:
                body = json.dumps(trace_body()) + " " * 300_000
                headers = {"Content-Type": "application/json"}
                long = asyncio.create_task(client.post(TRACE, content=body, headers=headers))
                short = await client.post(TRACE, json=trace_body())
                is_waiting = not long.done()
            return is_waiting and short.status_code == (await long).status_code == 200

    assert asyncio.run(run())


# ---- faults of ours, and what is told of it


def test_logits_that_are_not_finite_are_a_500_and_the_next_trace_works(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(tokens: Sequence[int]) -> NDArray[np.float64]:
        return hashed_logits(tokens) * (np.nan if tokens[0] == ord("x") else 1)

    app = create_app(FakeEngine(broken), tokenizer, Settings())
    assert "not finite" in check_error(trace(app, request=request_body(prompt="x", seed=1)), 500)
    assert "not finite" in caplog.text
    assert trace(app).status_code == 200


def test_weights_that_cannot_be_read_are_a_503_with_the_cause_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    app, _ = beside(tiny_llama(tmp_path), Settings())
    monkeypatch.setattr(Opened, "read_into", fails)
    message = check_error(trace(app), 503, code="trace_not_offered")
    assert "safetensors" not in message
    assert "model.safetensors: Input/output error" in caplog.text
    check_error(trace(app), 503, code="trace_not_offered")  # and not a turn that nobody gives back
    monkeypatch.undo()
    assert trace(app).status_code == 200


def test_it_is_logged_and_counted_and_is_no_completion(app: Starlette, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gnomon.access")
    trace(app)
    trace(app, tokens=[5])
    metrics = app.state.metrics
    for code in ("200", "400"):
        assert sample(metrics, "gnomon_http_requests_total", route=TRACE, method="POST", code=code) == 1
    assert sample(metrics, "gnomon_requests_received_total") == 0
    assert sample(metrics, "gnomon_generation_tokens_total") == 0
    first, second = lines(caplog.records)
    assert (first.record.outcome, second.record.outcome) == ("answered", "refused")
    assert f'"POST {TRACE}" 200' in str(first)
    assert "completion" not in str(first).replace(TRACE, "")
    assert "abc" not in re.sub(r"\bid=\w+", "", caplog.text)  # which is random, and may spell anything


def test_the_settings_say_how_long_a_sequence_may_be(tokenizer: Tokenizer) -> None:
    for tokens, most in ((5, 5), (1024, 64)):
        app = create_app(FakeEngine(hashed_logits), tokenizer, replace(Settings(), trace_tokens=tokens))
        assert call(app, "GET", "/v1/capabilities").json()["trace"] == {"tokens": most}


# ---- the model's files while it is served


@pytest.mark.parametrize("harm", ["replaced", "removed"])
def test_a_model_whose_directory_is_replaced_is_traced_as_it_was_served(tmp_path: Path, harm: str) -> None:
    model = tiny_llama(tmp_path / "model", seed=1)
    app, _ = beside(model, Settings())
    app.state.retrace.loaded()
    expected = trace(beside(tiny_llama(tmp_path / "same", seed=1), Settings())[0]).json()
    if harm == "replaced":
        model.rename(tmp_path / "old")
        tiny_llama(model, seed=2)
    else:
        shutil.rmtree(model)
    answer = trace(app)
    assert (answer.status_code, answer.json()["steps"]) == (200, expected["steps"])
    assert offered(app)


def test_files_written_to_in_place_end_traces_in_words_and_capabilities_have_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a file that stays open that cannot be helped, and must be seen: a trace of other weights would accuse the
    engine. Completions go on, and a client is not told where the files are."""
    model = tiny_llama(tmp_path / "model")
    app, checkpoint = beside(model, Settings())
    app.state.retrace.loaded()
    assert offered(app)
    os.truncate(model / "model.safetensors", 1000)
    assert not offered(app)
    for _ in range(2):
        answer = trace(app)
        message = check_error(answer, 503, code="trace_not_offered")
        assert "no longer offered here" in message
        assert str(tmp_path) not in answer.text
    assert [str(model / "model.safetensors") in record.getMessage() for record in caplog.records] == [True]
    assert post(app).status_code == 200
    assert not is_read(checkpoint)


def test_a_reference_that_was_made_needs_no_file_any_more(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    app, _ = beside(model, Settings())
    first = trace(app)
    os.truncate(model / "model.safetensors", 1000)
    assert (trace(app).content, offered(app)) == (first.content, True)


@pytest.mark.parametrize("settings", [Settings(trace_memory=0), Settings()])
def test_files_that_no_trace_will_read_are_closed_when_the_model_is_there(tmp_path: Path, settings: Settings) -> None:
    checkpoint = load_checkpoint(tiny_llama(tmp_path / "model"))
    engine = ReferenceEngine(load_checkpoint(tmp_path / "model"))
    tokenizer = load_tokenizer(tmp_path / "model", checkpoint.config.vocab_size)
    app = create_app(None, None, settings)
    app.state.service.open(Other(engine) if settings.trace_memory == 0 else engine, tokenizer, checkpoint)
    app.state.retrace.loaded()
    with pytest.raises(CheckpointError, match="Bad file descriptor"):
        _ = checkpoint.params
