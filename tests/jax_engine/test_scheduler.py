"""The scheduler with a model that is only counted: every arrival in the end done, nothing leaked, nobody overtaken."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnomon.jax_engine.cache import PagePool, PrefixCache
from gnomon.jax_engine.scheduler import PromptWork, Running, Scheduler

PAGE, CHUNK, CONTEXT = 4, 8, 48


@dataclass
class World:
    """An engine's loop around a scheduler, in which a decode step is `length -= 1`."""

    scheduler: Scheduler
    lengths: dict[tuple[int, int], int] = field(default_factory=dict)  # (work's number, candidate) → tokens it will get
    begun: list[tuple[int, int]] = field(default_factory=list)
    ended: set[tuple[int, int]] = field(default_factory=set)
    prefilled: list[tuple[int, int]] = field(default_factory=list)
    written: dict[int, tuple[int, ...] | None] = field(default_factory=dict)  # page → the ids whose keys it holds

    def step(self) -> None:
        chunk = self.scheduler.next_chunk()
        if chunk is not None:
            work, number = chunk
            end = min((number + 1) * CHUNK, len(work.prompt))
            for at in range(number * CHUNK, end, PAGE):
                self.written[work.pages[at // PAGE]] = work.prompt[: min(at + PAGE, end)]
            self.prefilled.append((work.index, number))
            self.scheduler.chunk_done(work, "hidden" if end == len(work.prompt) else None)
        for sequence in self.scheduler.admit():
            self.enter(sequence)
        for sequence in list(self.scheduler.running.values()):
            sequence.steps += 1
            name = sequence.work.index, sequence.candidate
            if sequence.steps == self.lengths[name]:
                self.scheduler.end(sequence)
                self.ended.add(name)
        self.scheduler.check()

    def enter(self, sequence: Running) -> None:
        """A candidate must find its whole prompt in its pages, and a last page of its own."""
        prompt = sequence.work.prompt
        if sequence.copy is not None:
            source, target = sequence.copy
            self.written[target] = self.written.get(source)
        for i in range(-(-len(prompt) // PAGE)):
            assert self.written.get(sequence.pages[i]) == prompt[: min((i + 1) * PAGE, len(prompt))]
        assert len(sequence.pages) * PAGE >= len(prompt) + sequence.work.max_tokens
        own = sequence.pages[len(prompt) // PAGE :]
        for other in self.scheduler.running.values():
            assert other is sequence or not set(own) & set(other.pages), "a page to be written is shared"
        self.begun.append((sequence.work.index, sequence.candidate))


arrivals = st.lists(
    st.tuples(
        st.integers(0, 6),  # steps before it comes
        st.integers(1, 40),  # prompt length
        st.integers(0, 3),  # which of a few prefixes it begins with
        st.integers(1, 8),  # max_tokens
        st.integers(1, 5),  # candidates
        st.booleans(),  # scores
        st.lists(st.integers(1, 8), min_size=5, max_size=5),  # when each candidate ends
        st.one_of(st.none(), st.integers(0, 30)),  # the step in which the whole work is closed, if it is
    ),
    max_size=14,
)


@given(arrivals, st.integers(1, 4), st.integers(0, 20))
def test_random_arrivals_all_end_and_nothing_leaks(plan: list[tuple[Any, ...]], slots: int, spare: int) -> None:
    """Exact: after every step the state is consistent, candidates begin in order, and in the end all is free."""
    scheduler = Scheduler(slots, CONTEXT // PAGE + 1 + spare, PAGE, CHUNK)
    world = World(scheduler)
    works: list[PromptWork] = []
    closed: set[PromptWork] = set()
    closings: list[list[Any]] = []  # [arrivals to wait, work]
    for wait, length, prefix, max_tokens, candidates, score, ends, close_after in plan:
        for _ in range(wait):
            world.step()
        prompt = tuple((prefix * 7 + i) % 11 for i in range(length))
        work = PromptWork(prompt, max_tokens, candidates, score, index=len(works))
        works.append(work)
        for c in range(candidates):
            world.lengths[work.index, c] = min(ends[c], max_tokens)
        scheduler.submit(work)
        if close_after is not None:
            closings.append([close_after, work])
        for closing in closings:
            if closing[0] == 0:
                scheduler.close(closing[1])
                closed.add(closing[1])
                scheduler.check()
            closing[0] -= 1
    for _ in range(5000):
        if not scheduler.waiting and not scheduler.running:
            break
        world.step()
    assert not scheduler.waiting
    assert not scheduler.running
    assert world.begun == sorted(world.begun), "somebody was overtaken"
    for work in works:
        for c in range(work.candidates):
            assert (work.index, c) in world.ended or work in closed
    assert scheduler.prefixes.make_room(scheduler.pool.size), "a page is held by nobody known"


def test_jobs_take_turns_a_prompt_at_a_time_and_keep_the_order_of_their_own() -> None:
    """A batch of thousands keeps no other job waiting for more than one of its prompts."""
    scheduler, order = Scheduler(slots=1, pages=20, page_size=4, chunk=8), []
    for owner, index in (("a", 0), ("a", 1), ("a", 2), ("b", 0), ("c", 0), ("c", 1)):
        scheduler.submit(PromptWork((1, 2, 3), 1, 2, False, owner=owner, index=index))
    while scheduler.waiting:
        chunk = scheduler.next_chunk()
        if chunk is not None:
            scheduler.chunk_done(chunk[0], hidden=object())
        for sequence in scheduler.admit():
            order.append(f"{sequence.work.owner}{sequence.work.index}.{sequence.candidate}")
            scheduler.end(sequence)
        scheduler.check()
    assert order == [f"{prompt}.{c}" for prompt in ("a0", "b0", "c0", "a1", "c1", "a2") for c in (0, 1)]


def test_a_second_equal_prompt_takes_all_whole_chunks_but_that_of_its_last_position() -> None:
    scheduler = Scheduler(1, 40, PAGE, CHUNK)
    world = World(scheduler)
    for index, length in enumerate((24, 24, 25)):
        work = PromptWork(tuple(range(length)), 1, 1, False, index=index)
        world.lengths[index, 0] = 1
        scheduler.submit(work)
        for _ in range(6):
            world.step()
        assert work.cached_tokens == [0, 16, 24][index]


def test_a_chunk_is_shared_only_once_it_is_written() -> None:
    scheduler = Scheduler(2, 40, PAGE, CHUNK)
    world = World(scheduler)
    left = PromptWork(tuple(range(30)), 1, 1, False, index=0)
    scheduler.submit(left)
    world.step()
    scheduler.close(left)  # after its first chunk of several
    after = PromptWork(tuple(range(30)), 1, 1, False, index=1)
    world.lengths[1, 0] = 1
    scheduler.submit(after)
    for _ in range(6):
        world.step()
    assert after.cached_tokens == 0
    assert (1, 0) in world.ended


def test_a_prompt_that_is_scored_takes_nothing_from_the_cache() -> None:
    scheduler = Scheduler(1, 40, PAGE, CHUNK)
    world = World(scheduler)
    for index, score in enumerate((False, True)):
        world.lengths[index, 0] = 1
        scheduler.submit(PromptWork(tuple(range(24)), 1, 1, score, index=index))
        for _ in range(6):
            world.step()
    assert [number for index, number in world.prefilled if index == 1] == [0, 1, 2]


def test_equal_chunks_after_different_beginnings_are_not_shared() -> None:
    cache = PrefixCache(PagePool(10), CHUNK)
    same = list(range(8))
    first, second = cache.names([*range(8), *same]), cache.names([*range(1, 9), *same])
    assert first[1] != second[1]


def test_the_least_recently_used_chunk_goes_first_and_ends_before_beginnings() -> None:
    pool = PagePool(6)
    cache = PrefixCache(pool, CHUNK)
    for prompt in ([1] * 16, [2] * 8):
        names = cache.names(prompt)
        for name in names:
            pages = pool.take(2)
            cache.add(name, pages)
            pool.release(pages)
        cache.touch(names)
    assert pool.free == 0
    old = cache.names([1] * 16)
    assert cache.make_room(2)
    assert len(cache.find(old)) == 1  # the second chunk of the older chain went, its beginning is still there


def test_making_room_gives_nothing_up_if_it_would_not_be_enough() -> None:
    pool = PagePool(4)
    cache = PrefixCache(pool, CHUNK)
    pages = pool.take(2)
    cache.add(b"chunk", pages)
    pool.release(pages)
    pool.take(2)
    assert not cache.make_room(3)
    assert len(cache) == 1


def test_a_pool_that_holds_too_many_is_an_error_at_once() -> None:
    pool = PagePool(2)
    with pytest.raises(AssertionError):
        pool.take(3)
