"""A request through every state of its life, and in each of them: its client leaves, a clock runs out, the server ends.

Nothing here waits for time to pass: the clocks are fired by hand, and every state is held by what the test holds.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.types import Message

import gnomon.reference.text.encode_apart as apart
from gnomon.http import life
from gnomon.http.app import create_app
from gnomon.http.completions import Completions
from gnomon.http.life import Life, Lives
from gnomon.http.observe.record import RECORD_KEY, Record, RequestOutcome
from gnomon.http.settings import Settings
from gnomon.http.trace import Retrace
from gnomon.reference import prompt as prompt_module
from gnomon.reference import tokenizer as tokenizer_module
from gnomon.reference.engine import Event, JobRequest, ReferenceJob, go_on
from gnomon.reference.tokenizer import Tokenizer
from helpers.fake import FakeEngine, always, hashed_logits
from helpers.live import Gate, request_body

QUEUE, REQUEST = 60.0, 600.0
SETTINGS = Settings(queue_seconds=QUEUE, request_seconds=REQUEST, write_seconds=0.05, max_running=1)
COMPLETION, TRACE = "/v1/completions", "/v1/completions/trace"


class QueueJob(ReferenceJob):
    def events(self) -> Iterator[Event]:
        engine = self._engine
        assert isinstance(engine, Engine)
        engine.asked += 1
        while not engine.begins.wait(0.005):
            if self._closed.is_set():
                return
        yield from super().events()


class Engine(FakeEngine):
    """Begins with a job when it is let, and computes a token, or a trace, when it is let."""

    def __init__(self) -> None:
        self.gate = Gate(always(*b"abc"))
        super().__init__(self.gate, context=5000)
        self.begins, self.asked = threading.Event(), 0
        self.begins.set()
        self.traced, self.traces = threading.Event(), 0

    def submit(self, request: JobRequest) -> QueueJob:
        return QueueJob(self, request)

    def states(self, tokens: Sequence[int], check: Callable[[], None] = go_on) -> NDArray[np.float64]:
        self.traces += 1
        try:
            while not self.traced.wait(0.005):
                check()
        finally:
            self.traces -= 1
        return np.stack([hashed_logits(tokens[: i + 1]) for i in range(len(tokens))])


class Client:
    """One request, message by message."""

    def __init__(self, app: Starlette, path: str, body: object) -> None:
        self.body = json.dumps(body).encode()
        self.sent: list[Message] = []
        self.takes = asyncio.Event()
        self.takes.set()
        self.blocked = asyncio.Event()  # it was sent something while it takes nothing
        self._coming: asyncio.Queue[Message] = asyncio.Queue()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(self.body)).encode())]
        self.scope: dict[str, Any] = {
            "type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers,
        }  # fmt: skip
        self.task = asyncio.create_task(app(self.scope, self._coming.get, self._send))

    async def _send(self, message: Message) -> None:
        if not self.takes.is_set():
            self.blocked.set()
            await self.takes.wait()
        self.sent.append(message)

    def give(self, most: int | None = None) -> None:
        """The body, or what of it comes first."""
        piece = self.body[:most]
        self._coming.put_nowait({"type": "http.request", "body": piece, "more_body": most is not None})

    def leave(self) -> None:
        self._coming.put_nowait({"type": "http.disconnect"})

    @property
    def record(self) -> Record:
        record: Record = self.scope[RECORD_KEY]
        return record

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()


class Scene:
    """An application, what a test holds of it, and the clocks that run."""

    def __init__(self, tokenizer: Tokenizer, patch: pytest.MonkeyPatch, directory: Path) -> None:
        self.patch, self.directory = patch, directory
        self.engine = Engine()
        self.app = create_app(self.engine, tokenizer, SETTINGS)
        self.completions: Completions = self.app.state.completions
        self.retrace: Retrace = self.app.state.retrace
        self.clocks: dict[float, Callable[[], None]] = {}
        patch.setattr(Life, "_after", lambda life, seconds, call: self.clocks.__setitem__(round(seconds), call))

    def ask(self, **fields: Any) -> Client:
        client = Client(self.app, COMPLETION, request_body(**{"max_tokens": 3, "temperature": 0, **fields}))
        client.give()
        return client

    def trace(self) -> Client:
        body = {"request": request_body(seed=1, max_tokens=3), "tokens": ["a", "b"]}
        client = Client(self.app, TRACE, body)
        client.give()
        return client

    def at(self, lives: Lives, state: life.State) -> Awaitable[None]:
        return until(lambda: lives.at[state] > 0)


SECONDS = 30  # after which what does not come is a failure


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.002)


async def ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait((task,), timeout=SECONDS)
    assert task.done()
    task.result()


# ---- the states: each brings a request into it, and afterwards lets go of what held it there

State = Callable[[Scene], AbstractAsyncContextManager[Client]]


@asynccontextmanager
async def body_comes(scene: Scene) -> AsyncIterator[Client]:
    client = Client(scene.app, COMPLETION, request_body())
    client.give(9)
    await scene.at(scene.completions.lives, "reading")
    yield client


@asynccontextmanager
async def behind_a_long_body(scene: Scene) -> AsyncIterator[Client]:
    scene.patch.setattr(life, "SHORT_BODY", 0)
    scene.patch.setattr(life, "LONG_BODY", 1)
    async with scene.completions.preparer.long_bodies:
        client = scene.ask()
        await scene.at(scene.completions.lives, "preparing")
        yield client
    scene.patch.setattr(life, "LONG_BODY", 10**6)


@asynccontextmanager
async def encoded_apart(scene: Scene) -> AsyncIterator[Client]:
    """By a process that never comes to an end."""
    script, begun = scene.directory / "script.py", scene.directory / "begun"
    script.write_text(f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(3600)\n")
    scene.patch.setattr(apart, "SCRIPT", str(script))
    scene.patch.setattr(tokenizer_module, "LONG_TEXT", -1)
    client = scene.ask()
    await until(begun.exists)
    yield client
    scene.patch.setattr(tokenizer_module, "LONG_TEXT", 10**6)


@asynccontextmanager
async def between_two_prompts(scene: Scene) -> AsyncIterator[Client]:
    begun, may_go_on, encoded, real = threading.Event(), threading.Event(), [], prompt_module.encode_prompt

    def encode_prompt(prompt: Any, *others: Any) -> Any:
        encoded.append(prompt)
        begun.set()
        assert may_go_on.wait(30)
        return real(prompt, *others)

    scene.patch.setattr(prompt_module, "encode_prompt", encode_prompt)
    scene.patch.setattr(life, "SHORT_BODY", 0)  # so that it takes a turn, which ends with its thread
    client = scene.ask(prompt=["first", "second"])
    await until(begun.is_set)
    yield client
    may_go_on.set()
    await until(lambda: scene.completions.preparer.other_bodies._value >= 2)
    assert encoded == ["first"]
    scene.patch.setattr(prompt_module, "encode_prompt", real)


@asynccontextmanager
async def waits_for_a_place(scene: Scene) -> AsyncIterator[Client]:
    first = scene.ask()
    await until(lambda: scene.engine.gate.begun == 1)
    scene.clocks.clear()
    client = scene.ask(prompt="b")
    await until(lambda: len(scene.completions.open) == 2)
    yield client
    scene.engine.gate.allow(3)
    await ended(first.task)
    assert scene.engine.gate.begun == 3


@asynccontextmanager
async def waits_in_the_engine(scene: Scene) -> AsyncIterator[Client]:
    scene.engine.begins.clear()
    client = scene.ask()
    await until(lambda: scene.engine.asked == 1)
    yield client
    scene.engine.begins.set()
    assert scene.engine.gate.begun == 0


@asynccontextmanager
async def computed(scene: Scene) -> AsyncIterator[Client]:
    client = scene.ask()
    await until(lambda: scene.engine.gate.begun == 1)
    yield client
    scene.engine.gate.allow(1)


@asynccontextmanager
async def streamed(scene: Scene) -> AsyncIterator[Client]:
    client = scene.ask(stream=True)
    scene.engine.gate.allow(1)
    await until(lambda: scene.engine.gate.begun == 2 and len(client.sent) > 1)
    yield client
    scene.engine.gate.allow(1)


@asynccontextmanager
async def sent(scene: Scene) -> AsyncIterator[Client]:
    client = scene.ask()
    client.takes.clear()
    scene.engine.gate.allow(3)
    await until(client.blocked.is_set)
    yield client


@asynccontextmanager
async def event_is_sent(scene: Scene) -> AsyncIterator[Client]:
    client = scene.ask(stream=True)
    client.takes.clear()
    scene.engine.gate.allow(1)
    await until(client.blocked.is_set)
    yield client


@asynccontextmanager
async def trace_waits(scene: Scene) -> AsyncIterator[Client]:
    first = scene.trace()
    await until(lambda: scene.engine.traces == 1)
    scene.clocks.clear()
    client = scene.trace()
    await until(lambda: scene.retrace.lives.at["preparing"] == 2 and QUEUE in scene.clocks)
    yield client
    scene.engine.traced.set()
    await ended(first.task)


@asynccontextmanager
async def trace_computed(scene: Scene) -> AsyncIterator[Client]:
    client = scene.trace()
    await until(lambda: scene.engine.traces == 1)
    yield client


BEFORE = (body_comes, behind_a_long_body, encoded_apart, between_two_prompts, waits_for_a_place, waits_in_the_engine,
          computed, trace_waits, trace_computed)  # fmt: skip
WAITING = (behind_a_long_body, encoded_apart, between_two_prompts, waits_for_a_place, waits_in_the_engine, trace_waits)
BEGUN = (computed, streamed, trace_computed)
SENDING = (sent, event_is_sent)

Told = tuple[str, RequestOutcome]
CLOCK: Told = ("request_timeout", "timed_out")
ENDS: Told = ("draining", "drained")


Judge = Callable[[Client], None]


@pytest.fixture
def walk(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[State, Callable[[Scene, Client], None], Judge], None]:
    """Brings a request into a state, lets an event happen there, judges what came of it, and sees that nothing is
    left: a request like it is answered afterwards."""

    def walked(state: State, happen: Callable[[Scene, Client], None], judge: Judge) -> None:
        async def scene_of() -> None:
            scene = Scene(tokenizer, monkeypatch, tmp_path)
            async with state(scene) as client:
                happen(scene, client)
                if state in BEGUN:  # the engine takes effect between two tokens
                    scene.engine.gate.allow(1)
                await ended(client.task)
                judge(client)
            await nothing_is_left(scene)

        asyncio.run(scene_of())

    return walked


async def nothing_is_left(scene: Scene) -> None:
    completions, preparer = scene.completions, scene.completions.preparer
    await until(lambda: not preparer.long_bodies.locked() and not scene.retrace.turn.locked())
    assert {state: n for lives in (completions.lives, scene.retrace.lives) for state, n in lives.at.items() if n} == {}
    assert (completions.preparing, completions.unfinished, completions.open) == (0, 0, [])
    assert (completions.lives.open, scene.retrace.open, scene.engine.traces) == (set(), 0, 0)
    assert scene.engine.load().busy_slots == 0
    await until(lambda: not at_work(preparer.threads) and not at_work(completions.threads))
    completions.lives._ending = None  # as if the server had not ended
    scene.engine.gate.allow(20)
    client = scene.ask(prompt="c", max_tokens=1)
    await ended(client.task)
    assert client.status == 200
    completions.close()  # or its threads would wait a while for more, among those of the next scene
    scene.retrace.close()


def at_work(threads: Any) -> bool:
    """Whether one of its threads is doing something, and not waiting for a call."""
    running = [thread for thread in threading.enumerate() if thread.name == threads._name]
    return len(running) > threads._spare


# ---- the client leaves


@pytest.mark.parametrize("state", [*BEFORE, streamed, *SENDING])
def test_a_client_that_leaves_ends_whatever_is_done_for_it(walk: Any, state: State) -> None:
    def judge(client: Client) -> None:
        assert client.record.outcome == "cancelled"
        assert client.status == (200 if state is streamed else None)

    walk(state, lambda scene, client: client.leave(), judge)


# ---- a clock runs out, or the server ends


def refused(code: str, outcome: RequestOutcome) -> Judge:
    def judge(client: Client) -> None:
        assert (client.status, client.record.outcome) == (503, outcome)
        assert json.loads(client.text)["error"]["code"] == code

    return judge


def told_in_an_event(code: str, outcome: RequestOutcome) -> Judge:
    def judge(client: Client) -> None:
        assert (client.status, client.record.outcome) == (200, outcome)
        *_, error, done, rest = client.text.split("\n\n")
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == code
        assert (done, rest) == ("data: [DONE]", "")

    return judge


def cut_off(outcome: RequestOutcome) -> Judge:
    def judge(client: Client) -> None:
        assert (client.sent, client.record.outcome) == ([], outcome)

    return judge


def clock(seconds: float) -> Callable[[Scene, Client], None]:
    return lambda scene, client: scene.clocks[seconds]()


def server_ends(scene: Scene, client: Client) -> None:
    lives = scene.retrace.lives if client.scope["path"] == TRACE else scene.completions.lives
    [mine] = [one for one in lives.open if one.record is client.record]
    others = lives.open - {mine}
    lives.open -= others  # those that hold the state go on
    (scene.retrace if lives is scene.retrace.lives else scene.completions).stop()
    lives.open |= others


@pytest.mark.parametrize("state", WAITING)
def test_who_waits_too_long_before_the_engine_begins_is_told_so(walk: Any, state: State) -> None:
    walk(state, clock(QUEUE), refused("queue_timeout", "refused"))


@pytest.mark.parametrize("state", BEFORE)
def test_a_request_whose_time_is_up_is_told_so_whatever_it_waits_for(walk: Any, state: State) -> None:
    walk(state, clock(REQUEST), refused(*CLOCK))


@pytest.mark.parametrize("state", BEFORE)
def test_a_server_that_ends_says_so_whatever_a_request_waits_for(walk: Any, state: State) -> None:
    walk(state, server_ends, refused(*ENDS))


@pytest.mark.parametrize(("happen", "told"), [(clock(REQUEST), CLOCK), (server_ends, ENDS)], ids=["clock", "end"])
def test_a_stream_that_is_ended_says_so_in_an_event(walk: Any, happen: Any, told: Any) -> None:
    walk(streamed, happen, told_in_an_event(*told))


@pytest.mark.parametrize("state", SENDING)
@pytest.mark.parametrize(("happen", "told"), [(clock(REQUEST), CLOCK), (server_ends, ENDS)], ids=["clock", "end"])
def test_who_takes_nothing_of_an_ended_answer_is_cut_off(walk: Any, state: State, happen: Any, told: Any) -> None:
    walk(state, happen, cut_off(told[1]))


@pytest.mark.parametrize("state", [computed, streamed, trace_computed])
def test_the_clock_of_the_queue_ends_nothing_that_has_begun(walk: Any, state: State) -> None:
    def happen(scene: Scene, client: Client) -> None:
        scene.clocks[QUEUE]()
        scene.engine.gate.allow(10)
        scene.engine.traced.set()

    def judge(client: Client) -> None:
        assert (client.status, client.record.outcome) == (200, "answered")

    walk(state, happen, judge)


def test_the_clocks_begin_with_the_head_and_with_the_whole_body(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def run() -> list[list[float]]:
        scene, seen = Scene(tokenizer, monkeypatch, tmp_path), []
        client = Client(scene.app, COMPLETION, request_body(max_tokens=1))
        client.give(9)
        await scene.at(scene.completions.lives, "reading")
        seen.append(sorted(scene.clocks))
        client.body = client.body[9:]
        client.give()
        scene.engine.gate.allow(1)
        await ended(client.task)
        seen.append(sorted(scene.clocks))
        return seen

    assert asyncio.run(run()) == [[REQUEST], [QUEUE, REQUEST]]


def test_a_request_that_comes_when_the_server_has_ended_is_told_so(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def run() -> Client:
        scene = Scene(tokenizer, monkeypatch, tmp_path)
        scene.completions.stop()
        client = scene.ask()
        await ended(client.task)
        return client

    refused(*ENDS)(asyncio.run(run()))


def test_as_many_middle_sized_bodies_are_prepared_at_a_time_as_there_are_processors() -> None:
    """Who has left meanwhile is never begun, and a short body waits for none of them."""

    async def run() -> tuple[int, int]:
        preparer, held, begun = life.Preparer(), threading.Event(), []
        count = preparer.other_bodies._value

        def work() -> None:
            begun.append(1)
            assert held.wait(30)

        tasks = [asyncio.create_task(preparer.prepare(life.SHORT_BODY + 1, work)) for _ in range(count + 3)]
        await until(lambda: len(begun) == count)
        assert await preparer.prepare(life.SHORT_BODY, lambda: 7) == 7
        for task in tasks[count : count + 2]:
            task.cancel()
        held.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        preparer.close()
        return len(begun) - count, preparer.other_bodies._value - count

    assert asyncio.run(run()) == (1, 0)


def test_a_turn_lasts_as_long_as_its_thread() -> None:
    """Until then its memory is taken, whoever has left."""

    async def run() -> list[bool]:
        preparer, held, begun, seen = life.Preparer(), threading.Event(), threading.Event(), []

        def work() -> None:
            begun.set()
            assert held.wait(30)

        task = asyncio.create_task(preparer.prepare(life.LONG_BODY + 1, work))
        await until(begun.is_set)
        task.cancel()
        await asyncio.wait((task,))
        seen.append(preparer.long_bodies.locked())
        held.set()
        await until(lambda: not preparer.long_bodies.locked())
        preparer.close()
        return [*seen, preparer.long_bodies.locked()]

    assert asyncio.run(run()) == [True, False]
