"""The bounds on work: who may wait, for how long, in which order, and what those who may not are told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.applications import Starlette

from gnomon.http.admission import Admission, Answer, Pace, Places
from gnomon.http.app import create_app
from gnomon.http.completions import Completions
from gnomon.http.errors import Draining, QueueFull
from gnomon.http.life import LONG_BODY
from gnomon.http.settings import Settings
from gnomon.http.trace import LINE
from gnomon.reference.completion import Run, prepare
from gnomon.reference.engine import Engine
from gnomon.reference.request import CompletionRequest
from gnomon.reference.response import Usage
from gnomon.reference.tokenizer import Tokenizer
from gnomon.reference.work import Work
from helpers.fake import EOT, FakeEngine, always
from helpers.live import MODEL, Gate, check_error, connection, events, eventually, post, request_body, serving


@pytest.fixture
def gate() -> Gate:
    return Gate(always(*b"abc"))


def app_of(gate: Gate, tokenizer: Tokenizer, **settings: Any) -> Starlette:
    return create_app(FakeEngine(gate, context=5000), tokenizer, Settings(max_running=1, **settings))


class Clients:
    """Requests under way, each in a thread of its own."""

    def __init__(self, app: Starlette, base: str, pool: ThreadPoolExecutor) -> None:
        self.app, self.url, self.pool = app, f"{base}/v1/completions", pool
        self.sent = 0

    def send(self, **fields: Any) -> Future[httpx.Response]:
        """Sends a request and waits until the server counts it."""
        body = request_body(temperature=0, **{"max_tokens": 2, **fields})
        answer = self.pool.submit(httpx.post, self.url, json=body, timeout=30)
        self.sent += 1
        assert eventually(lambda: len(self.app.state.completions.open) == self.sent)
        return answer


def run_of(tokenizer: Tokenizer, **fields: Any) -> Run:
    engine = FakeEngine(always(*b"abc"), context=5000)
    request = CompletionRequest.from_fields({"model": MODEL, "prompt": "a", **fields})
    return prepare(request, engine, tokenizer, MODEL)


# ---- the queue's bounds


def test_one_request_more_than_may_wait_is_a_429_that_says_when_to_come_back(gate: Gate, tokenizer: Tokenizer) -> None:
    app = app_of(gate, tokenizer, max_queue=2)
    with ThreadPoolExecutor() as pool, serving(app) as base:
        clients = Clients(app, base, pool)
        first = clients.send()
        assert eventually(lambda: gate.begun == 1)
        waiting = [clients.send(), clients.send()]
        for _ in range(3):
            refused = httpx.post(clients.url, json=request_body())
            message = check_error(refused, 429, code="queue_full")
            assert "2 waiting" in message
            assert int(refused.headers["retry-after"]) >= 1
        gate.allow(1000)
        assert all(answer.result(20).status_code == 200 for answer in (first, *waiting))
        assert httpx.post(clients.url, json=request_body(max_tokens=1)).status_code == 200


def test_a_request_that_is_running_does_not_count_as_waiting(gate: Gate, tokenizer: Tokenizer) -> None:
    app = app_of(gate, tokenizer, max_queue=1)
    with ThreadPoolExecutor() as pool, serving(app) as base:
        clients = Clients(app, base, pool)
        first = clients.send()
        assert eventually(lambda: gate.begun == 1)
        second = clients.send()
        assert httpx.post(clients.url, json=request_body()).status_code == 429
        gate.allow(1000)
        assert [first.result(20).status_code, second.result(20).status_code] == [200, 200]


def test_what_the_engine_begins_with_stops_waiting_and_what_ends_before_that_too(tokenizer: Tokenizer) -> None:
    admission = Admission(Settings())
    with admission.admitted(run_of(tokenizer)) as first, admission.admitted(run_of(tokenizer)) as second:
        chunks = first.run.chunks()
        assert list(admission.waiting()) == [first, second]
        assert admission.waiting_tokens() == 34
        next(chunks)
        assert list(admission.waiting()) == [second]
        assert admission.waiting_tokens() == 17
        assert list(admission.open) == [first, second]
        chunks.close()
    assert not admission.waiting()
    assert admission.waiting_tokens() == 0


def test_the_tokens_that_may_wait_are_bounded_too(gate: Gate, tokenizer: Tokenizer) -> None:
    app = app_of(gate, tokenizer, max_queued_tokens=100)
    with ThreadPoolExecutor() as pool, serving(app) as base:
        clients = Clients(app, base, pool)
        answers = [clients.send()]
        assert eventually(lambda: gate.begun == 1)
        answers.append(clients.send(max_tokens=30, n=2))  # 1 + 60 tokens
        refused = httpx.post(clients.url, json=request_body(max_tokens=39))  # 40 more
        message = check_error(refused, 429, code="queue_full")
        assert "61 tokens" in message
        assert "40" in message
        answers.append(clients.send(max_tokens=38))  # exactly 100
        gate.allow(5000)
        assert all(answer.result(20).status_code == 200 for answer in answers)


def test_a_request_that_alone_is_more_than_may_wait_is_a_400_as_waiting_is_no_cure(
    gate: Gate, tokenizer: Tokenizer
) -> None:
    gate.allow(5000)
    app = app_of(gate, tokenizer, max_queued_tokens=41)
    assert post(app, max_tokens=20, n=2).status_code == 200
    message = check_error(post(app, max_tokens=21, n=2), 400, "max_tokens")
    assert "43 tokens" in message
    assert "41" in message


def test_a_full_queue_is_known_before_a_body_is_parsed(gate: Gate, tokenizer: Tokenizer) -> None:
    """A body that is no JSON would be a 400."""
    app = app_of(gate, tokenizer, max_queue=1)
    with ThreadPoolExecutor() as pool, serving(app) as base:
        clients = Clients(app, base, pool)
        answers = [clients.send()]
        assert eventually(lambda: gate.begun == 1)
        answers.append(clients.send())
        refused = httpx.post(clients.url, content=b"{", headers={"Content-Type": "application/json"})
        assert refused.status_code == 429
        gate.allow(1000)
        assert all(answer.result(20).status_code == 200 for answer in answers)


def test_prompts_are_bounded_by_name(gate: Gate, tokenizer: Tokenizer) -> None:
    gate.allow(1000)
    app = app_of(gate, tokenizer, max_prompts=3)
    assert post(app, prompt=["a"] * 3, max_tokens=1).status_code == 200
    assert "4 prompts" in check_error(post(app, prompt=["a"] * 4, max_tokens=1), 400, "prompt")
    assert "at most 3" in check_error(post(app, prompt=[[1], [2], [3], [4]]), 400, "prompt")


def test_retry_after_is_what_waits_divided_by_the_pace_of_the_last_minute(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("gnomon.http.admission.time", SimpleNamespace(monotonic=lambda: now))
    admission = Admission(Settings())
    with admission.admitted(run_of(tokenizer, max_tokens=499)):
        assert admission.retry_after() == 1  # nothing is known yet
        with admission.admitted(run_of(tokenizer)) as done:
            assert done.run.whole().usage == Usage(1, 16, 0)
        now += 10  # 17 tokens in 10 seconds
        assert admission.retry_after() == 120  # 500 tokens at 1.7 a second, and no longer than two minutes
        admission._pace.count(483)
        assert admission.retry_after() == 10  # 500 tokens at 50 a second
        now += 61
        assert admission.retry_after() == 1  # that minute is over


def test_what_was_finished_more_than_a_minute_ago_is_kept_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks for the pace of a server that refuses nobody."""
    now = 1000.0
    monkeypatch.setattr("gnomon.http.admission.time", SimpleNamespace(monotonic=lambda: now))
    pace = Pace()
    for _ in range(1000):
        pace.count(1)
        now += 1
    assert len(pace._done) <= 61
    assert pace.tokens_per_second() == pytest.approx(1)


# ---- order


def test_places_are_given_first_come_first_served_and_those_who_left_are_passed_over(tokenizer: Tokenizer) -> None:
    async def scene() -> list[str]:
        places, order = Places(1), []
        answers = {name: Answer(run_of(tokenizer)) for name in "abcdef"}

        async def visit(name: str) -> None:
            async with places.place(answers[name]):
                order.append(name)
                await asyncio.sleep(0)

        async with places.place(Answer(run_of(tokenizer))):
            tasks = {name: asyncio.create_task(visit(name)) for name in "abcdef"}
            await asyncio.sleep(0)
            tasks["b"].cancel()
            answers["d"].end(Draining())
        results = await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert isinstance(results[1], asyncio.CancelledError)
        assert isinstance(results[3], Draining)
        async with places.place(Answer(run_of(tokenizer))):  # none was lost
            order.append("last")
        return order

    assert asyncio.run(scene()) == ["a", "c", "e", "f", "last"]


def test_a_place_given_in_the_moment_of_leaving_goes_to_the_next(tokenizer: Tokenizer) -> None:
    async def scene() -> list[str]:
        places, order = Places(1), []

        async def visit(name: str) -> None:
            async with places.place(Answer(run_of(tokenizer))):
                order.append(name)

        async with places.place(Answer(run_of(tokenizer))):
            first, second = (asyncio.create_task(visit(name)) for name in "ab")
            await asyncio.sleep(0)
        first.cancel()  # its turn has come, it has not run yet
        third = asyncio.create_task(visit("c"))
        _, waiting = await asyncio.wait([first, second, third], timeout=5)
        for task in waiting:  # nobody's, if the place was lost
            task.cancel()
        return order

    assert asyncio.run(scene()) == ["b", "c"]


def test_leaving_a_place_twice_frees_it_once(tokenizer: Tokenizer) -> None:
    async def scene() -> int:
        places, answer, inside, most = Places(1), Answer(run_of(tokenizer)), 0, 0

        async def visit() -> None:
            nonlocal inside, most
            async with places.place(Answer(run_of(tokenizer))):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.01)
                inside -= 1

        async with places.place(answer):
            places.leave(answer)
            places.leave(answer)
        await asyncio.gather(visit(), visit(), visit())
        return most

    assert asyncio.run(scene()) == 1


# ---- time


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_who_waits_too_long_is_told_so_with_a_503(gate: Gate, tokenizer: Tokenizer, stream: bool) -> None:
    app = app_of(gate, tokenizer, queue_seconds=0.3)
    with ThreadPoolExecutor() as pool, serving(app) as base:
        clients = Clients(app, base, pool)
        running = clients.send()
        assert eventually(lambda: gate.begun == 1)
        waiting = clients.send(stream=stream)
        refused = waiting.result(20)
        assert "0.3 seconds" in check_error(refused, 503, code="queue_timeout")
        assert int(refused.headers["retry-after"]) >= 1
        assert not running.done()  # what has begun may take longer
        gate.allow(1000)
        assert running.result(20).status_code == 200
        assert gate.begun == 2


def test_a_request_that_takes_too_long_is_ended_and_its_engine_stops(gate: Gate, tokenizer: Tokenizer) -> None:
    app = app_of(gate, tokenizer, request_seconds=0.4)
    with ThreadPoolExecutor() as pool, serving(app) as base:
        clients = Clients(app, base, pool)
        gate.allow(1)
        streamed = clients.send(stream=True, max_tokens=4000)
        assert eventually(lambda: gate.begun == 2)
        assert eventually(lambda: app.state.completions.open[0].error is not None)
        gate.allow(4000)
        *chunks, error = events(streamed.result(20).content)
        assert [chunk["choices"][0]["text"] for chunk in chunks[:1]] == ["a"]
        assert error["error"]["code"] == "request_timeout"
        assert gate.begun <= 4
        clients.sent = 0
        assert eventually(lambda: not app.state.completions.open)


def test_a_whole_answer_that_takes_too_long_is_a_503(gate: Gate, tokenizer: Tokenizer) -> None:
    app = app_of(gate, tokenizer, request_seconds=0.3)
    with ThreadPoolExecutor() as pool, serving(app) as base:
        clients = Clients(app, base, pool)
        late = clients.send(max_tokens=4000)
        assert eventually(lambda: gate.begun == 1)
        assert eventually(lambda: app.state.completions.open[0].error is not None)
        gate.allow(4000)
        assert "0.3 seconds" in check_error(late.result(20), 503, code="request_timeout")
        assert gate.begun <= 2


def test_a_body_that_is_slow_in_coming_is_a_408(gate: Gate, tokenizer: Tokenizer) -> None:
    app = app_of(gate, tokenizer, body_seconds=0.2)
    with serving(app) as base, connection(base) as client:
        head = "POST /v1/completions HTTP/1.1\r\nHost: gnomon\r\nContent-Type: application/json\r\nContent-Length: 99"
        client.sendall(f'{head}\r\n\r\n{{"model": "'.encode())
        answer = b""
        while piece := client.recv(4096):  # to the end: such a connection is of no further use
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"11 bytes had come" in answer
    assert gate.begun == 0


# ---- signs of life


def test_a_silent_stream_is_kept_alive_by_comments_and_stays_what_it_is(gate: Gate, tokenizer: Tokenizer) -> None:
    app = app_of(gate, tokenizer, ping_seconds=0.05)
    with serving(app) as base:
        body = request_body(temperature=0, max_tokens=2, stream=True)
        with httpx.stream("POST", f"{base}/v1/completions", json=body, timeout=20) as response:
            assert response.status_code == 200  # before the engine has made anything
            lines = response.iter_lines()
            assert [next(lines) for _ in range(4)] == [": the answer is being made", ""] * 2
            gate.allow(1000)
            data = [line for line in lines if line and not line.startswith(":")]
    assert data[-1] == "data: [DONE]"
    texts = [json.loads(line[6:])["choices"][0]["text"] for line in data[:-1]]
    assert "".join(texts) == "ab"


def test_a_stream_that_waits_for_its_turn_is_kept_alive_and_ends_with_an_error_event(
    gate: Gate, tokenizer: Tokenizer
) -> None:
    app = app_of(gate, tokenizer, ping_seconds=0.05, queue_seconds=0.5)
    with ThreadPoolExecutor() as pool, serving(app) as base:
        clients = Clients(app, base, pool)
        running = clients.send()
        assert eventually(lambda: gate.begun == 1)
        waiting = clients.send(stream=True)
        response = waiting.result(20)
        assert response.status_code == 200
        lines = [line for line in response.text.split("\n\n") if line]
        assert lines[0].startswith(": ")
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "queue_timeout"
        assert lines[-1] == "data: [DONE]"
        gate.allow(1000)
        assert running.result(20).status_code == 200


def test_a_stream_that_is_not_silent_gets_no_comment(tokenizer: Tokenizer) -> None:
    app = create_app(FakeEngine(always(*b"abc"), context=5000), tokenizer, Settings(ping_seconds=5))
    text = post(app, stream=True, max_tokens=200, logit_bias={str(EOT): -100}).text
    assert not [line for line in text.split("\n") if line.startswith(":")]


# ---- what is refused is gone


def test_nothing_of_a_refused_request_is_left(gate: Gate, tokenizer: Tokenizer) -> None:
    admission = Admission(Settings(max_queue=1))
    with admission.admitted(run_of(tokenizer)):
        with pytest.raises(QueueFull), admission.admitted(run_of(tokenizer)):
            pytest.fail("it was let in")
        assert len(admission.open) == 1
    assert not admission.open
    assert not admission.waiting()
    assert admission.waiting_tokens() == 0


def test_two_requests_at_one_place_take_turns_and_both_are_whole(tokenizer: Tokenizer, tmp_path: Path) -> None:
    seen: list[int] = []

    def logits_of(tokens: Sequence[int]) -> NDArray[np.float64]:
        seen.append(tokens[0])
        return always(*b"abc")(tokens)

    app = create_app(FakeEngine(logits_of, context=5000), tokenizer, Settings(max_running=1))
    with ThreadPoolExecutor() as pool, serving(app) as base:
        answers = [
            pool.submit(
                httpx.post,
                f"{base}/v1/completions",
                json=request_body(prompt=[v], temperature=0, max_tokens=50),
                timeout=30,
            )
            for v in (65, 66)
        ]
        assert all(answer.result(30).json()["usage"]["completion_tokens"] == 50 for answer in answers)
    assert seen in ([65] * 50 + [66] * 50, [66] * 50 + [65] * 50)


def test_long_bodies_are_prepared_one_at_a_time_and_short_ones_beside_them(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text needs hundreds of times its size while it is encoded: twenty of 8 MB took 24 GB, and the process."""
    app = create_app(FakeEngine(always(*b"abc")), tokenizer, Settings())
    preparing, at_work, most = Completions.prepare, 0, 0
    short_beside: list[int] = []

    def counted(self: Completions, body: bytes, engine: Engine, tokenizer: Tokenizer, work: Work) -> Run:
        nonlocal at_work, most
        if len(body) <= LONG_BODY:
            short_beside.append(at_work)
            return preparing(self, body, engine, tokenizer, work)
        at_work += 1
        most = max(most, at_work)
        assert eventually(lambda: bool(short_beside))
        time.sleep(0.01)
        at_work -= 1
        return preparing(self, body, engine, tokenizer, work)

    monkeypatch.setattr(Completions, "prepare", counted)

    async def together() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gnomon") as client:
            asked = [
                asyncio.create_task(client.post("/v1/completions", json=request_body(prompt="a" * LONG_BODY)))
                for _ in range(4)
            ]
            await asyncio.sleep(0.05)
            return [await client.post("/v1/completions", json=request_body()), *await asyncio.gather(*asked)]

    assert [answer.status_code for answer in asyncio.run(together())] == [200, 400, 400, 400, 400]
    assert most == 1
    assert short_beside == [1]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/completions/trace"])
def test_clients_that_are_slow_to_send_their_bodies_take_nobodys_place(
    gate: Gate, tokenizer: Tokenizer, path: str
) -> None:
    """A few bytes a second would refuse everybody else for --body-seconds; what they hold is bounded by its bytes."""
    app = app_of(gate, tokenizer, max_queue=2)
    head = f"POST {path} HTTP/1.1\r\nHost: gnomon\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    endpoint = app.state.retrace if path.endswith("trace") else app.state.completions
    with serving(app) as base, ExitStack() as slow:
        for _ in range(LINE + 2):
            slow.enter_context(connection(base)).sendall(f"{head}{{".encode())
        assert eventually(lambda: endpoint.lives.at["reading"] == LINE + 2)
        assert eventually(lambda: app.state.completions.admission.arriving_bytes == LINE + 2)
        gate.allow(100)
        asked = request_body(max_tokens=1)
        body = {"request": asked | {"seed": 1}, "index": 0, "tokens": [1]} if path.endswith("trace") else asked
        answer = httpx.post(f"{base}{path}", json=body)
        assert answer.status_code != 429, answer.text
