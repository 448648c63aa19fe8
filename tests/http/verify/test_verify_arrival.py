"""When a stream's events come: a server that holds them back is found, and no sound one is, however busy it is."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from gnomon.http.verify.ask import client, reply
from gnomon.http.verify.ask.exchange import Arrived, Exchange
from gnomon.http.verify.cases import arrival
from gnomon.http.verify.cases.arrival import Timed, timed
from gnomon.http.verify.verdict import Verdict
from helpers.fake import FakeEngine
from helpers.faults import InProcessServer, Model, StreamedBody, judged, logits_of
from helpers.live import serving

BUSY = "while True: pass"


def slow_logits(tokens: Sequence[int]) -> NDArray[np.float64]:
    """3 ms a token, so that an answer takes long enough to be timed."""
    time.sleep(0.003)
    return logits_of(tuple(tokens))


@pytest.fixture(scope="module")
def paced(model: Model) -> Model:
    return Model(FakeEngine(slow_logits, context=128), model.tokenizer)


class Buffering(httpx.AsyncHTTPTransport):
    """A proxy that reads a whole answer before it passes any of it on."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        content = await response.aread()
        return httpx.Response(response.status_code, headers=response.headers, stream=StreamedBody([content]))


class QueueingClock:
    """The clock of whoever asks a server with a queue: while a request waits, so much time goes by for it."""

    WAIT = 0.3

    def __init__(self) -> None:
        self.waited = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.waited


class Queued(InProcessServer):
    """A server that lets every request wait, and then answers in no time."""

    def __init__(self, model: Model, clock: QueueingClock) -> None:
        super().__init__(model)
        self.clock = clock

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.clock.waited += self.clock.WAIT
        return await super().handle_async_request(request)


def found(transport: httpx.AsyncBaseTransport, base: str = "http://gnomon") -> tuple[Verdict, str]:
    judgement = judged(transport, arrival.CASES, base)["stream.as_it_is_made"].judgement
    return judgement.verdict, judgement.reason


@contextmanager
def a_busy_machine(loops: int = 2) -> Iterator[None]:
    """Processes that do nothing but take time."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(loops)]
    try:
        yield
    finally:
        for one in running:
            one.kill()
            one.wait()


@pytest.mark.slow
def test_a_proxy_that_buffers_whole_answers_is_found_and_named(paced: Model) -> None:
    with serving(create_app(*paced, Settings())) as base:
        verdict, reason = found(Buffering(), base)
    assert verdict is Verdict.wrong, reason
    assert "or a proxy that buffers answers, holds events back" in reason


@pytest.mark.slow
def test_in_process_a_server_that_holds_back_is_told_from_one_that_does_not(model: Model, paced: Model) -> None:
    """Httpx's own in-process transport hands over an answer when it is whole."""
    assert found(InProcessServer(model))[0] is Verdict.honoured
    assert found(httpx.ASGITransport(create_app(*paced, Settings())))[0] is Verdict.wrong


@pytest.mark.slow
def test_a_sound_server_on_a_busy_machine_is_not_blamed_and_a_buffering_one_not_praised(paced: Model) -> None:
    with serving(create_app(*paced, Settings())) as base, a_busy_machine():
        sound = [found(httpx.AsyncHTTPTransport(), base) for _ in range(3)]
        held = found(Buffering(), base)
    assert {verdict for verdict, _ in sound} <= {Verdict.honoured, Verdict.unclear}, sound
    assert held[0] in (Verdict.wrong, Verdict.unclear), held


def test_a_server_whose_answers_wait_long_before_they_begin_is_not_blamed(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue delays streams of every length: 0.3 s before an answer of some milliseconds."""
    clock = QueueingClock()
    for module in (client, reply):
        monkeypatch.setattr(module, "time", clock)
    verdict, reason = found(Queued(model, clock))
    assert verdict is Verdict.unclear, reason
    assert "too fast, or too busy, to tell" in reason
    assert clock.waited > 10


def exchange(pieces: list[tuple[float, bytes]]) -> Exchange:
    arrived, content = [], b""
    for seconds, piece in pieces:
        content += piece
        arrived.append(Arrived(seconds, len(content)))
    headers = {"content-type": "text/event-stream"}
    return Exchange("POST", "", b"", None, False, 200, headers, content, None, 9.0, 0, True, tuple(arrived))


def test_comments_and_events_without_text_are_not_the_first_event() -> None:
    """A server that says at once that it is alive, and holds back what it has to say."""
    event = b'data: {"choices": [{"index": 0, "text": "%s"}]}\n\n'
    pieces = [(0.1, b": alive\n\n" + event % b""), (4.0, event % b"a"), (5.0, event % b"b"), (9.0, b"data: [DONE]\n\n")]
    assert timed(exchange(pieces)) == Timed(4.0, 5.0, "ab")
    assert timed(exchange(pieces)).spread == pytest.approx(0.2)


def test_an_event_has_come_when_its_last_piece_has() -> None:
    event = b'data: {"choices": [{"index": 0, "text": "a"}]}\r\n\r\n'
    pieces = [(1.0, event[:20]), (2.0, event[20:] + event[:9]), (3.0, event[9:])]
    assert timed(exchange(pieces)) == Timed(2.0, 3.0, "aa")


@pytest.mark.parametrize(("first", "blamed"), [("a", True), ("\ufffd", False), ("", False)])
def test_a_first_token_that_is_no_character_yet_could_not_be_sent_sooner(first: str, blamed: bool) -> None:
    """What ends a text as U+FFFD waits for the bytes after it, in a long stream until its end."""
    long, short = Timed(1.0, 1.0, f"{first}b"), Timed(0.1, 0.1, first)
    assert arrival.Tries(16, [long] * arrival.TRIES, [short] * arrival.TRIES).is_held_back is blamed


def test_orders_as_odd_as_the_bound_allows_are_2_in_184756() -> None:
    """Counted: of all ways to order ten long and ten short streams, those with at most one pair out of order."""
    orders = {(0, 0): {0: 1}}
    for short in range(11):
        for long in range(11):
            if (short, long) == (0, 0):
                continue
            ways: dict[int, int] = {}
            for before, added in (((short - 1, long), long), ((short, long - 1), 0)):
                for pairs, count in orders.get(before, {}).items():
                    ways[pairs + added] = ways.get(pairs + added, 0) + count
            orders[short, long] = ways
    counts = orders[10, 10]
    few = sum(count for pairs, count in counts.items() if pairs <= arrival.MOST_OUT_OF_ORDER)
    assert (few, sum(counts.values())) == (2, 184_756)
    assert arrival.TRIES == 10
