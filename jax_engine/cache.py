"""Pages of the key/value pool, and the prefix cache over them: who holds which page, in plain Python; no jax here.

A page is held by counting: every sequence and every cached chunk that uses it holds it once, and it is free when nobody
does. A chunk is a whole canonical piece of a prompt (fixed size, cut at absolute positions), named by the hash of
all ids from position 0 to its end, so that equal chunks with equal histories, and only those, share pages. Only what
prefill wrote enters the cache. Chunks nobody uses are given up from the least recently used on, when their pages are
needed.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

SCRATCH_PAGE = 0


class PagePool:
    """`pages` pages, numbered from 1; page 0 is scratch and never given out."""

    def __init__(self, pages: int) -> None:
        self.size = pages
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

    def release(self, pages: Sequence[int]) -> None:
        for page in pages:
            assert self._holders[page] > 0
            self._holders[page] -= 1
            if self._holders[page] == 0:
                self._free.append(page)

    def is_shared(self, page: int) -> bool:
        return self._holders[page] > 1

    def held(self) -> dict[int, int]:
        """Page → how many hold it, for the pages that somebody holds."""
        return {page: count for page, count in enumerate(self._holders) if count}

    def check(self) -> None:
        """Every page is either free once or held."""
        assert sorted(self._free) == [page for page in range(1, self.size + 1) if self._holders[page] == 0]


class PrefixCache:
    """Chunks of prompts by the hash of everything up to their end; the pages are held in the pool."""

    def __init__(self, pool: PagePool, chunk: int) -> None:
        self._pool = pool
        self._chunk = chunk
        self._chunks: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()  # least recently used first

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

    def find(self, names: Sequence[bytes]) -> list[tuple[int, ...]]:
        """The pages of the longest cached run of `names` from the first on, held for the caller."""
        found = []
        for name in names:
            if name not in self._chunks:
                break
            self._pool.hold(self._chunks[name])
            found.append(self._chunks[name])
        self.touch(names[: len(found)])
        return found

    def touch(self, names: Sequence[bytes]) -> None:
        """Marks a chain as used just now, its beginning last of all: a later chunk is of no use without the earlier."""
        for name in reversed(names):
            if name in self._chunks:
                self._chunks.move_to_end(name)

    def add(self, name: bytes, pages: Sequence[int]) -> None:
        """Keeps a chunk that prefill has just written; a chunk already there stays as it is."""
        if name not in self._chunks:
            self._pool.hold(pages)
            self._chunks[name] = tuple(pages)

    def held(self) -> list[tuple[int, ...]]:
        """The pages of every cached chunk."""
        return list(self._chunks.values())

    def make_room(self, count: int) -> bool:
        """Gives up chunks nobody else holds, least recently used first, until `count` pages are free.

        False, and nothing is given up, if that would not be enough.
        """
        unused = [name for name, pages in self._chunks.items() if not any(map(self._pool.is_shared, pages))]
        reachable = self._pool.free + sum(len(self._chunks[name]) for name in unused)
        if reachable < count:
            return False
        for name in unused:
            if self._pool.free >= count:
                break
            self._pool.release(self._chunks.pop(name))
        return True
