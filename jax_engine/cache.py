"""Pages of the key/value pool, and the prefix cache over them: who holds which page, in plain Python; no jax here.

A page is held by counting: every sequence and every cached chunk that uses it holds it once, and it is free when nobody
does. A chunk is a whole canonical piece of a prompt (fixed size, cut at absolute positions), named by the hash of
all ids from position 0 to its end, so that equal chunks with equal histories, and only those, share pages. Only what
prefill wrote enters the cache. Chunks nobody uses are given up from the least recently used on, when their pages are
needed.

Nothing here looks through what is cached: the chunks nobody uses are counted, and kept by when they were used last, as
their holders come and go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SCRATCH_PAGE = 0  # where idle rows and padding write; never part of a sequence
NEVER = 2**63  # later than any use


class PagePool:
    """`pages` pages, numbered from 1; page 0 is scratch and never given out.

    on_shared: told of a page that gets a second holder, and of one that has only one left.
    """

    def __init__(self, pages: int) -> None:
        self.size = pages
        self.on_shared: Callable[[int], None] = lambda page: None
        self._free = list(range(pages, 0, -1))
        self._holders = [0] * (pages + 1)

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` free pages, held once each; there must be so many."""
        assert count <= self.free
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._holders[page] = 1
        return pages

    def hold(self, pages: Sequence[int]) -> None:
        for page in pages:
            assert self._holders[page] > 0
            self._holders[page] += 1
            if self._holders[page] == 2:
                self.on_shared(page)

    def release(self, pages: Sequence[int]) -> None:
        for page in pages:
            assert self._holders[page] > 0
            self._holders[page] -= 1
            if self._holders[page] == 0:
                self._free.append(page)
            elif self._holders[page] == 1:
                self.on_shared(page)

    def is_shared(self, page: int) -> bool:
        return self._holders[page] > 1

    def held(self) -> dict[int, int]:
        """Page → how many hold it, for the pages that somebody holds."""
        return {page: count for page, count in enumerate(self._holders) if count}

    def check(self) -> None:
        """Every page is either free once or held."""
        assert sorted(self._free) == [page for page in range(1, self.size + 1) if self._holders[page] == 0]


@dataclass(eq=False, slots=True)
class Chunk:
    """A piece of a prompt whose keys and values are kept."""

    name: bytes
    pages: tuple[int, ...]
    used: int  # when it was used last: a number that grows with every use
    shared: int  # of its pages: how many somebody else holds too

    @property
    def is_unused(self) -> bool:
        return self.shared == 0


class PrefixCache:
    """Chunks of prompts by the hash of everything up to their end; the pages are held in the pool."""

    def __init__(self, pool: PagePool, chunk: int) -> None:
        self.unused_pages = 0  # of chunks nobody else holds: they can be had
        self._pool = pool
        self._chunk = chunk
        self._chunks: dict[bytes, Chunk] = {}
        self._chunk_of: dict[int, Chunk] = {}  # by page
        self._uses = 0
        self._unused: dict[int, Chunk] = {}  # by when they were used last
        self._uses_of_unused = MinTree(pool.size + 1)  # each at its chunk's first page
        pool.on_shared = self._sharing_changed

    def __len__(self) -> int:
        return len(self._chunks)

    def names(self, ids: Sequence[int]) -> list[bytes]:
        """The name of every whole chunk of a prompt: a hash chain from position 0."""
        names, digest = [], b""
        array = np.asarray(ids, np.int64)
        for end in range(self._chunk, len(ids) + 1, self._chunk):
            digest = hashlib.sha256(digest + array[end - self._chunk : end].tobytes()).digest()
            names.append(digest)
        return names

    # ---- use

    def find(self, names: Sequence[bytes]) -> list[tuple[int, ...]]:
        """The pages of the longest cached run of `names` from the first on, held for the caller."""
        found = []
        for name in names:
            chunk = self._chunks.get(name)
            if chunk is None:
                break
            self._pool.hold(chunk.pages)
            found.append(chunk.pages)
        self.touch(names[: len(found)])
        return found

    def touch(self, names: Sequence[bytes]) -> None:
        """Marks a chain as used just now, its beginning last of all: a later chunk is of no use without the earlier."""
        for name in reversed(names):
            chunk = self._chunks.get(name)
            if chunk is not None:
                self._use(chunk)

    def add(self, name: bytes, pages: Sequence[int]) -> None:
        """Keeps a chunk that prefill has just written, for which its holder's pages are held once more; a chunk
        already there stays as it is. No page is in two chunks."""
        if name in self._chunks:
            return
        self._pool.hold(pages)
        chunk = Chunk(name, tuple(pages), self._next_use(), shared=len(pages))
        assert self._chunk_of.keys().isdisjoint(pages)
        self._chunk_of.update(dict.fromkeys(pages, chunk))
        self._chunks[name] = chunk

    def held(self) -> list[tuple[int, ...]]:
        """The pages of every cached chunk."""
        return [chunk.pages for chunk in self._chunks.values()]

    def _next_use(self) -> int:
        self._uses += 1
        return self._uses

    def _use(self, chunk: Chunk) -> None:
        if chunk.is_unused:
            self._no_longer_unused(chunk)
        chunk.used = self._next_use()
        if chunk.is_unused:
            self._now_unused(chunk)

    # ---- what can be given up

    def make_room(self, count: int) -> bool:
        """Gives up chunks nobody else holds, least recently used first, until `count` pages are free.

        False, and nothing is given up, if that would not be enough.
        """
        if self._pool.free + self.unused_pages < count:
            return False
        while self._pool.free < count:
            self._give_up(self._unused[self._uses_of_unused.least])
        return True

    def _give_up(self, chunk: Chunk) -> None:
        self._no_longer_unused(chunk)
        del self._chunks[chunk.name]
        for page in chunk.pages:
            del self._chunk_of[page]
        self._pool.release(chunk.pages)

    def _sharing_changed(self, page: int) -> None:
        """Somebody else holds this page now, or nobody else does any more."""
        chunk = self._chunk_of.get(page)
        if chunk is None:
            return
        if self._pool.is_shared(page):
            if chunk.is_unused:
                self._no_longer_unused(chunk)
            chunk.shared += 1
        else:
            chunk.shared -= 1
            if chunk.is_unused:
                self._now_unused(chunk)

    def _now_unused(self, chunk: Chunk) -> None:
        self.unused_pages += len(chunk.pages)
        self._unused[chunk.used] = chunk
        self._uses_of_unused.put(chunk.pages[0], chunk.used)

    def _no_longer_unused(self, chunk: Chunk) -> None:
        self.unused_pages -= len(chunk.pages)
        del self._unused[chunk.used]
        self._uses_of_unused.put(chunk.pages[0], NEVER)

    def check(self) -> None:
        """What is counted is what a look at every chunk finds."""
        chunks = self._chunks.values()
        for chunk in chunks:
            assert chunk.shared == sum(map(self._pool.is_shared, chunk.pages))
        unused = {chunk.used: chunk for chunk in chunks if chunk.is_unused}
        assert unused == self._unused
        assert self.unused_pages == sum(len(chunk.pages) for chunk in unused.values())
        assert self._uses_of_unused.least == min(unused, default=NEVER)
        assert self._chunk_of == {page: chunk for chunk in chunks for page in chunk.pages}


class MinTree:
    """The smallest of many numbers, each at a place of its own: a segment tree. A change costs a step for each level
    whose smallest number it changes, and no more than log2 of the places."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._smallest = [NEVER] * (2 * places)  # [1]: of all; [i]: of [2i] and [2i + 1]; the last half: the numbers

    @property
    def least(self) -> int:
        return self._smallest[1]

    def put(self, place: int, number: int) -> None:
        smallest, at = self._smallest, self._places + place
        smallest[at] = number
        while at > 1:
            at //= 2
            number = min(smallest[2 * at], smallest[2 * at + 1])
            if smallest[at] == number:
                return
            smallest[at] = number
