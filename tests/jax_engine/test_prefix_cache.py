"""The prefix cache against a model of it that looks at everything each time: who is given up, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gnomon.jax_engine.cache import NEVER, MinTree, PagePool, PrefixCache

PAGES_A_CHUNK = 2


@dataclass
class Model:
    """A list of chunks, the least recently used first, and the lists of pages that somebody holds. Nothing is counted:
    whatever is asked is looked up in them."""

    size: int
    chunks: list[tuple[bytes, tuple[int, ...]]] = field(default_factory=list)
    holders: list[list[int]] = field(default_factory=list)

    def free(self) -> int:
        cached = [page for _, pages in self.chunks for page in pages]
        return self.size - len({*cached, *(page for pages in self.holders for page in pages)})

    def unused(self) -> list[tuple[bytes, tuple[int, ...]]]:
        held = {page for pages in self.holders for page in pages}
        return [chunk for chunk in self.chunks if held.isdisjoint(chunk[1])]

    def make_room(self, count: int) -> bool:
        if self.free() + sum(len(pages) for _, pages in self.unused()) < count:
            return False
        while self.free() < count:
            self.chunks.remove(self.unused()[0])
        return True

    def pages_of(self, name: bytes) -> tuple[int, ...] | None:
        return dict(self.chunks).get(name)

    def touch(self, names: Sequence[bytes]) -> None:
        for name in reversed(names):
            pages = self.pages_of(name)
            if pages is not None:
                self.chunks.remove((name, pages))
                self.chunks.append((name, pages))


@dataclass
class Both:
    """A cache and its model, to which the same happens."""

    pool: PagePool
    cache: PrefixCache
    model: Model

    @classmethod
    def of(cls, size: int) -> Both:
        pool = PagePool(size)
        return cls(pool, PrefixCache(pool, PAGES_A_CHUNK), Model(size))

    def make_room(self, count: int) -> bool:
        made = self.cache.make_room(count)
        assert made == self.model.make_room(count)
        return made

    def prefill(self, names: list[bytes], is_scored: bool) -> None:
        """A prompt: what is cached is taken, the rest computed and kept; its pages are held until `leave`."""
        found = [] if is_scored else self.cache.find(names)
        cached = [pages for pages in map(self.model.pages_of, names) if pages is not None]
        assert is_scored or found == cached[: len(found)]
        self.model.touch(names[: len(found)])
        held = [page for pages in found for page in pages]
        self.model.holders.append(held)
        missing = len(names) * PAGES_A_CHUNK - len(held)
        if self.make_room(missing):
            held += self.pool.take(missing)
            for i, name in enumerate(names):
                self.keep(name, held[i * PAGES_A_CHUNK : (i + 1) * PAGES_A_CHUNK])
            self.cache.touch(names)
            self.model.touch(names)

    def keep(self, name: bytes, pages: list[int]) -> None:
        self.cache.add(name, pages)
        if self.model.pages_of(name) is None:
            self.model.chunks.append((name, tuple(pages)))

    def hold_one_page(self, number: int) -> None:
        """Of some cached chunk: then the chunk is in use."""
        if self.model.chunks:
            _, pages = self.model.chunks[number % len(self.model.chunks)]
            self.pool.hold(pages[:1])
            self.model.holders.append(list(pages[:1]))

    def leave(self, number: int) -> None:
        if self.model.holders:
            self.pool.release(self.model.holders.pop(number % len(self.model.holders)))

    def check(self) -> None:
        self.pool.check()
        self.cache.check()
        assert set(self.cache.held()) == {pages for _, pages in self.model.chunks}
        assert self.pool.free == self.model.free()
        assert self.cache.unused_pages == sum(len(pages) for _, pages in self.model.unused())


def chain(prompt: int, chunks: int) -> list[bytes]:
    return [b"%d.%d" % (prompt, i) for i in range(chunks)]


numbers = st.integers(0, 40)
calls = st.lists(
    st.one_of(
        st.tuples(st.just("prefill"), st.integers(0, 3), st.integers(1, 5), st.booleans()),
        st.tuples(st.just("touch"), st.integers(0, 3), st.integers(1, 5)),
        st.tuples(st.just("hold"), numbers),
        st.tuples(st.just("leave"), numbers),
        st.tuples(st.just("room"), numbers),
    ),
    max_size=60,
)


@given(calls, st.integers(1, 40))
def test_what_is_given_up_is_what_a_look_at_every_chunk_chooses(plan: list[tuple[Any, ...]], size: int) -> None:
    both = Both.of(size)
    for name, *arguments in plan:
        first, second, third = (*map(int, arguments), 0, 0)[:3]
        if name == "prefill":
            both.prefill(chain(first, second), bool(third))
        elif name == "touch":
            both.cache.touch(chain(first, second))
            both.model.touch(chain(first, second))
        elif name == "hold":
            both.hold_one_page(first)
        elif name == "leave":
            both.leave(first)
        else:
            both.make_room(first)
        both.check()
    while both.model.holders:
        both.leave(0)
    for count in range(size + 1):  # one after the other, so that the order of the last ones is held against it too
        assert both.make_room(count)
        both.check()
    assert len(both.cache) == 0


@given(st.integers(1, 20), st.lists(st.tuples(st.integers(0, 19), st.one_of(st.just(NEVER), st.integers(0, 9)))))
def test_the_tree_knows_the_smallest_of_its_numbers(places: int, changes: list[tuple[int, int]]) -> None:
    tree, numbers = MinTree(places), [NEVER] * places
    for place, number in changes:
        tree.put(place % places, number)
        numbers[place % places] = number
        assert tree.least == min(numbers)
