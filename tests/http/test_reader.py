"""One thread reads all answers whose jobs go on by themselves: nothing is lost, no one holds up the others."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from gnomon.http.app import create_app
from gnomon.http.reader import MOST_AT_ONCE, AnswerReading, Reader
from gnomon.http.settings import Settings
from gnomon.http.threads import NoThread, Panic, Threads
from gnomon.jax_engine.engine import JaxJob
from gnomon.reference.engine import ArrivingJob
from gnomon.reference.tokenizer import Tokenizer
from helpers.arriving import ArrivingEngine
from helpers.fake import FakeEngine, always, hashed_logits
from helpers.live import MODEL, Gate, eventually, post


class Parts:
    """What a run would give: numbers as they are put in, and what is raised; it ends with None."""

    is_arriving = True

    def __init__(self, is_arriving: bool = True) -> None:
        self.is_arriving = is_arriving
        self.come: deque[int | BaseException | None] = deque()
        self.threads: set[str] = set()

    def parts(self) -> Iterator[int | None]:
        while True:
            self.threads.add(threading.current_thread().name)
            if not self.come:
                yield None
                continue
            part = self.come.popleft()
            if isinstance(part, BaseException):
                raise part
            if part is None:
                return
            yield part


Scene = Callable[[Reader, Parts, AnswerReading[int]], Any]


def played(scene: Scene, threads: Threads | None = None) -> Any:
    """What comes of a scene with one run that has begun and has nothing to give yet."""
    pool = Threads("reader", idle_seconds=0.05) if threads is None else threads

    async def play() -> Any:
        reader, run = Reader(pool), Parts()
        reading: AnswerReading[int] = AnswerReading(reader, run, run.parts())  # type: ignore[arg-type]
        return await scene(reader, run, reading)

    try:
        return soon(play())
    finally:
        pool.close()


def soon(scene: Coroutine[Any, Any, Any]) -> Any:
    """What comes of it; that something never comes is the failure of a claim."""
    try:
        return asyncio.run(asyncio.wait_for(scene, 20))
    except TimeoutError:
        raise AssertionError("what was waited for did not come") from None


def test_what_comes_together_is_given_together_and_no_more_of_one_answer_than_its_share() -> None:
    async def scene(reader: Reader, run: Parts, reading: AnswerReading[int]) -> None:
        run.come.extend(range(3 * MOST_AT_ONCE))
        run.come.append(None)
        reading.woken()
        given = [await reading.next() for _ in range(4)]
        assert given == [list(range(i, i + MOST_AT_ONCE)) for i in (0, MOST_AT_ONCE, 2 * MOST_AT_ONCE)] + [None]
        assert run.threads == {"reader"}

    played(scene)


def test_nothing_is_lost_whoever_comes_first() -> None:
    """Whoever waits looks for what has come, and what comes for who waits: a thousand times at the same time."""

    async def scene(reader: Reader, run: Parts, reading: AnswerReading[int]) -> list[int]:
        def engine() -> None:
            for i in range(1000):
                run.come.append(i)
                reading.woken()
            run.come.append(None)
            reading.woken()

        threading.Thread(target=engine).start()
        given: list[int] = []
        while (parts := await reading.next()) is not None:
            given += parts
        return given

    for _ in range(5):
        assert played(scene) == list(range(1000))


def test_what_comes_after_a_look_that_found_nothing_is_given_though_its_none_is_still_to_come() -> None:
    """A run looks, finds nothing, and gives first what it had held back until then, and its None after that."""

    async def scene(reader: Reader, run: Parts, reading: AnswerReading[int]) -> None:
        def parts() -> Iterator[int | None]:
            yield from range(MOST_AT_ONCE)
            yield None
            yield from run.parts()

        own: AnswerReading[int] = AnswerReading(reader, run, parts())  # type: ignore[arg-type]
        own.woken()
        assert await own.next() == list(range(MOST_AT_ONCE))
        run.come.append(99)
        own.woken()
        assert await own.next() == [99]

    played(scene)


def test_an_error_comes_after_what_was_there_before_it() -> None:
    async def scene(reader: Reader, run: Parts, reading: AnswerReading[int]) -> None:
        run.come.extend([1, 2, ValueError("later")])
        reading.woken()
        seen: list[Any] = []
        for _ in range(2):
            try:
                seen.append(await reading.next())
            except ValueError as error:
                seen.append(str(error))
        assert seen == [[1, 2], "later"]

    played(scene)


def test_what_is_no_exception_ends_the_answer_and_not_the_turns() -> None:
    async def scene(reader: Reader, run: Parts, reading: AnswerReading[int]) -> None:
        other = Parts()
        second: AnswerReading[int] = AnswerReading(reader, other, other.parts())  # type: ignore[arg-type]
        run.come.append(SystemExit(3))
        other.come.append(5)
        first = asyncio.ensure_future(reading.next())
        await asyncio.sleep(0)
        reading.woken()
        with pytest.raises(Panic):
            await first
        second.woken()
        assert await second.next() == [5]

    played(scene)


def test_an_answer_that_nobody_waits_for_any_more_holds_up_nobody() -> None:
    async def scene(reader: Reader, run: Parts, reading: AnswerReading[int]) -> None:
        waiting = asyncio.ensure_future(reading.next())
        await asyncio.sleep(0.01)
        waiting.cancel()
        reading.close()
        run.come.append(1)
        reading.woken()
        other = Parts()
        second: AnswerReading[int] = AnswerReading(reader, other, other.parts())  # type: ignore[arg-type]
        other.come.append(5)
        second.woken()
        assert await second.next() == [5]

    played(scene)


def test_where_the_system_has_no_thread_left_those_who_wait_are_told() -> None:
    class NoThreads(Threads):
        def submit(self, call: Any) -> Any:
            raise NoThread("none left")

    async def scene(reader: Reader, run: Parts, reading: AnswerReading[int]) -> None:
        for _ in range(2):
            waiting = asyncio.ensure_future(reading.next())
            await asyncio.sleep(0)
            reading.woken()
            with pytest.raises(NoThread):
                await waiting

    played(scene, NoThreads("none"))


def test_a_run_that_is_computed_by_its_reader_is_read_a_part_at_a_time() -> None:
    async def scene(reader: Reader, run: Parts, reading: AnswerReading[int]) -> None:
        computed = Parts(is_arriving=False)

        def parts() -> Iterator[int | None]:
            for i in range(3):
                yield from (None, i, None)

        own: AnswerReading[int] = AnswerReading(reader, computed, parts())  # type: ignore[arg-type]
        assert [await own.next() for _ in range(4)] == [[0], [1], [2], None]

    played(scene)


# ---- served

BODY = {"model": MODEL, "prompt": "a", "max_tokens": 2, "temperature": 0}


@pytest.fixture
def app(tokenizer: Tokenizer) -> Starlette:
    return create_app(ArrivingEngine(hashed_logits), tokenizer, Settings())


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 7}, {"max_tokens": 0}, {"n": 3, "best_of": 5, "logprobs": 2, "stop": ["e", " t"]},
        {"prompt": ["a", "b c"], "n": 2, "echo": True}, {"echo": True, "logprobs": 3, "max_tokens": 4},
    ],
)  # fmt: skip
def test_an_answer_is_the_same_as_from_an_engine_that_its_reader_computes(
    app: Starlette, tokenizer: Tokenizer, fields: dict[str, Any]
) -> None:
    other = create_app(FakeEngine(hashed_logits), tokenizer, Settings())
    ours, theirs = (post(one, seed=3, **fields).json() for one in (app, other))
    assert ours["choices"] == theirs["choices"]
    assert ours["usage"] == theirs["usage"]


def test_answers_that_wait_for_the_engine_hold_no_thread(tokenizer: Tokenizer) -> None:
    gate = Gate(always(*b"abc"))
    app = create_app(ArrivingEngine(gate), tokenizer, Settings())

    def threads() -> int:
        return sum(thread.name == "completions" for thread in threading.enumerate())

    async def scene() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gnomon") as client:
            asked = [asyncio.create_task(client.post("/v1/completions", json=BODY)) for _ in range(20)]
            while gate.begun < 20:
                await asyncio.sleep(0.01)
            completions = app.state.completions.threads
            while completions._spare < threads():  # all of them are done
                await asyncio.sleep(0.01)
            gate.allow(40)
            assert {answer.json()["choices"][0]["text"] for answer in await asyncio.gather(*asked)} == {"ab"}

    soon(scene())
    app.state.completions.close()
    assert eventually(lambda: threads() == 0)


def test_the_jax_engines_jobs_can_be_read_without_waiting() -> None:
    assert issubclass(JaxJob, ArrivingJob)
