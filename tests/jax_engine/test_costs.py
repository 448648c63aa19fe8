"""What a call costs does not grow with what waits or is cached: operations are counted, not seconds.

An operation is a bytecode instruction, in whatever Python function the call comes through. What C code compares is seen
too, since all that waits here has an `__eq__` in Python.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from gnomon.http.admission import Admission, Answer, Pace, Places
from gnomon.http.settings import Settings
from gnomon.jax_engine.cache import PagePool, PrefixCache
from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.scheduler import PromptWork, Scheduler

PAGE, CHUNK = 4, 8
SIZES = (100, 10_000, 1_000_000)
STEPS_OF_A_TREE = 20  # of as many places as the largest pool here has pages; a step is some 30 operations


def operations(call: Callable[[], object]) -> int:
    """How many the call takes."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def test_a_call_that_looks_at_everything_is_seen() -> None:
    works = [waiting_work() for _ in range(100)]
    last = waiting_work()
    assert operations(lambda: (*works, last).index(last)) > 300
    assert operations(lambda: [work.index for work in works]) > 300


@pytest.fixture(autouse=True)
def no_collection_meanwhile() -> Iterator[None]:
    """A million objects are made at once; the collector would look at them again and again."""
    gc.disable()
    yield
    gc.enable()


class Compared(PromptWork):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = PromptWork.__hash__


def waiting_work(prompt: tuple[int, ...] = (1,)) -> PromptWork:
    return Compared(prompt, 4, 1, False)


# ---- works in line


def line_of(size: int) -> tuple[Scheduler, list[PromptWork]]:
    """One slot, in which the first work's first candidate is; its second is the next, and `size` works wait behind."""
    scheduler = Scheduler(1, 100, PAGE, CHUNK)
    first = Compared((1,) * 10, 4, 2, False)
    scheduler.submit(first)
    for number in range(2):
        assert scheduler.next_chunk() == (first, number)
        scheduler.chunk_done(first, "hidden" if number else None)
    assert len(scheduler.admit()) == 1
    works = [waiting_work() for _ in range(size)]
    for work in works:
        scheduler.submit(work)
    return scheduler, works


def costs_of_a_line(size: int) -> dict[str, int]:
    scheduler, works = line_of(size)
    engine: Any = SimpleNamespace(_scheduler=scheduler, settings=SimpleNamespace(slots=1))
    ended = waiting_work()
    costs = {
        "a step that is blocked": operations(scheduler.next_chunk) + operations(scheduler.admit),
        "an arrival": operations(lambda: scheduler.submit(waiting_work())),
        "closing one in the middle": operations(lambda: scheduler.close(works[size // 2])),
        "closing the last": operations(lambda: scheduler.close(works[-1])),
        "closing a candidate": operations(lambda: scheduler.close(works[size // 3], 0)),
        "closing one that has ended": operations(lambda: scheduler.close(ended)),
        "the load": operations(lambda: JaxEngine.load(engine)),
        "closing the first": operations(lambda: scheduler.close(next(iter(scheduler.waiting)))),
        "the next one's chunk": operations(scheduler.next_chunk),
    }
    scheduler.pool.check()
    assert len(scheduler.waiting) == size - 2
    return costs


def test_the_line_costs_the_same_whoever_waits_in_it() -> None:
    few, more, many = map(costs_of_a_line, SIZES)
    assert few == more == many
    assert max(few.values()) < 1000


def test_a_step_that_is_blocked_costs_the_same_for_a_prompt_of_any_length() -> None:
    """Nothing of it is hashed or looked up again; the first time it is both."""
    seen = []
    for chunks in (10, 100, 10_000):
        pages = 2 * chunks + 10
        scheduler = Scheduler(2, pages, PAGE, CHUNK)
        prompt = (1,) * (chunks * CHUNK)
        _prefill(scheduler, PromptWork(prompt, 40, 1, False))
        assert len(scheduler.admit()) == 1
        assert scheduler.pool.free == 0
        blocked = PromptWork((*prompt, 2), 4, 1, False)
        scheduler.submit(blocked)
        assert operations(scheduler.next_chunk) > 10 * chunks
        assert len(blocked.pages) == 2 * chunks
        seen.append(operations(scheduler.next_chunk) + operations(scheduler.admit))
        assert not blocked.admitted
    assert seen[0] == seen[1] == seen[2] < 500


def _prefill(scheduler: Scheduler, work: PromptWork) -> None:
    scheduler.submit(work)
    while not work.is_prefilled:
        assert scheduler.next_chunk() == (work, work.chunks_done)
        is_last = (work.chunks_done + 1) * CHUNK >= len(work.prompt)
        scheduler.chunk_done(work, "hidden" if is_last else None)


# ---- cached chunks


def cache_of(size: int) -> tuple[PagePool, PrefixCache, list[bytes]]:
    """`size` chunks of one page each, of which the longest unused half is in use, and the others were used once more in
    the order in which they came."""
    pool = PagePool(size + 2)
    cache = PrefixCache(pool, PAGE)
    names = [i.to_bytes(4, "big") for i in range(size)]
    pages = pool.take(size)
    for name, page in zip(names, pages, strict=True):
        cache.add(name, (page,))
    pool.release(pages[size // 2 :])
    for name in names[size // 2 :]:
        cache.touch((name,))
    assert cache.unused_pages == size - size // 2
    return pool, cache, names[size // 2 :]


def costs_of_a_cache(size: int) -> dict[str, int]:
    pool, cache, unused = cache_of(size)
    everything = pool.free + len(unused)
    costs = {
        "no room": operations(lambda: cache.make_room(everything + 1)),
        "room there is": operations(lambda: cache.make_room(2)),
        "room to be made": operations(lambda: cache.make_room(3)),
        "a chunk that is taken": operations(lambda: cache.find(unused[-1:])),
        "one that is used": operations(lambda: cache.touch(unused[1:2])),
    }
    assert len(cache) == size - 1
    assert cache.find(unused[:1]) == []  # the least recently used of those nobody used
    assert len(cache.find(unused[1:2])) == 1
    return costs


@pytest.mark.parametrize("size", [10_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_the_cache_costs_the_same_whatever_is_in_it(size: int) -> None:
    """But for the steps of its tree, whose number grows with the digits of the number of pages."""
    few, many = costs_of_a_cache(100), costs_of_a_cache(size)
    for blocked in ("no room", "room there is"):
        assert few[blocked] == many[blocked]
    assert max(many.values()) <= max(few.values()) + 2 * 30 * STEPS_OF_A_TREE


# ---- requests that wait


class WaitingRequest:
    """What admission knows of an answer, and no more."""

    __slots__ = ("bytes", "has_place", "run", "tokens")

    def __init__(self, run: Any) -> None:
        self.run, self.tokens, self.bytes, self.has_place = run, 7, 100, False

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__


def run_that_waits() -> Any:
    usage = SimpleNamespace(prompt_tokens=1, completion_tokens=2)
    held = {"prompt": 100}
    return SimpleNamespace(
        started=None, largest_tokens=5, held_bytes=held, usage=usage, on_submit=None, close=lambda: None
    )


def costs_of_admission(size: int) -> dict[str, int]:
    admission = Admission(Settings(max_queue=10**9, max_queued_tokens=10**12, max_queued_bytes=10**12))
    shared = run_that_waits()
    for _ in range(size):
        answer: Any = WaitingRequest(shared)
        admission.open[answer] = None
        admission._waiting.add(answer)

    def one_comes_and_goes() -> None:
        run = run_that_waits()
        with admission.admitted(run):
            run.on_submit()
            assert len(admission.waiting()) == size + 1
            run.started = 1.0
            assert len(admission.waiting()) == size
            assert admission.waiting_tokens() == 7 * size

    return {
        "room": operations(admission.room),
        "one that comes and goes": operations(one_comes_and_goes),
        "what waits": operations(lambda: len(admission.waiting())),
        "its tokens": operations(admission.waiting_tokens),
        "when to come back": operations(admission.retry_after),
    }


@pytest.mark.slow
def test_admission_costs_the_same_whoever_waits() -> None:
    few, more, many = map(costs_of_admission, SIZES)
    assert few == more == many


def costs_of_places(size: int) -> dict[str, int]:
    async def scene() -> dict[str, int]:
        places = Places(1)
        async with places.place(_answer()):
            others: Any = [WaitingRequest(None) for _ in range(size)]
            first = places.place(_answer()).__aenter__()
            first.send(None)  # a coroutine, up to where it waits
            for other in others:
                places._line[other] = None
            last = places.place(_answer()).__aenter__()
            last.send(None)

            def leave() -> None:
                with pytest.raises(asyncio.CancelledError):
                    last.throw(asyncio.CancelledError)

            leaving = operations(leave)
            giving = operations(places._give)
            assert len(places._line) == size
            places._line.clear()
            first.close()
        return {"leaving the line": leaving, "giving a place": giving}

    return asyncio.run(scene())


def _answer() -> Answer:
    return Answer(run_that_waits())


def test_a_place_is_left_and_given_at_the_same_cost_whoever_is_in_line() -> None:
    few, more, many = map(costs_of_places, SIZES)
    assert few == more == many


def test_the_pace_costs_the_same_whatever_was_done_in_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gnomon.http.admission.time", SimpleNamespace(monotonic=lambda: 1000.0))
    seen = []
    for size in SIZES:
        pace = Pace()
        for _ in range(size):
            pace.count(3)
        assert pace.tokens_per_second() == 3 * size
        seen.append(operations(pace.tokens_per_second) + operations(partial(pace.count, 3)))
    assert seen[0] == seen[1] == seen[2]
