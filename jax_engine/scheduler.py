"""Who runs when: prompts waiting and prefilling, candidates in slots, and the pages they hold. Plain Python; no jax
here.

The rule is first come, first served, and nothing ever overtakes: prompts are admitted in the order of their arrival,
the candidates of a prompt in the order of their numbers, and all candidates of a prompt before the next prompt's. A
candidate is admitted when a slot is free and the pages for its whole length, `m + max_tokens`, can be reserved; so
nothing is ever preempted or computed twice. At most one chunk of one prompt is prefilled between two decode steps:
that bounds what a long prompt costs the running streams.

    Work (one prompt of a job) ─ waiting ─▶ prefilling, a chunk a step ─▶ ready: its candidates enter slots ─▶ done

The whole prompt pages are shared by the prompt's candidates; the partly filled last page is copied for each of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gnomon.jax_engine.cache import PagePool, PrefixCache


@dataclass(eq=False, slots=True)
class Work:
    """One prompt of a job: what is to be prefilled, and the candidates that grow from it."""

    prompt: tuple[int, ...]
    max_tokens: int
    candidates: int
    score: bool  # wants its own log-probabilities: then every chunk is computed, none taken from the cache
    owner: Any = None  # the job, for the engine
    index: int = 0  # which of the job's prompts this is
    pages: list[int] = field(default_factory=list)  # of the prompt, held by this work until its candidates have begun
    chunks_done: int = 0
    cached_tokens: int = 0
    next_candidate: int = 0
    closed: set[int] = field(default_factory=set)
    hidden: Any = None  # the last position's hidden state, once prefilled; the engine's business
    admitted: bool = False

    @property
    def is_prefilled(self) -> bool:
        return self.hidden is not None

    @property
    def is_over(self) -> bool:
        """No candidate is left to begin."""
        return self.next_candidate >= self.candidates


@dataclass(eq=False, slots=True)
class Running:
    """A candidate in a slot."""

    work: Work
    candidate: int
    slot: int
    pages: list[int]  # the whole sequence's, in order
    copy: tuple[int, int] | None  # (from, to): the prompt's partly filled last page, and this candidate's own
    steps: int = 0  # how many of its tokens have been asked for,
    handed_out: int = 0  # and how many have come
    is_over: bool = False  # its last token has come, or nobody wants one: what else comes is dropped


class Scheduler:
    """The bookkeeping between the engine's steps. Call `next_chunk`, then `admit`, once a step."""

    def __init__(self, slots: int, pages: int, page_size: int, chunk: int) -> None:
        assert chunk % page_size == 0
        self.page_size = page_size
        self.chunk = chunk
        self.pool = PagePool(pages)
        self.prefixes = PrefixCache(self.pool, chunk)
        self.waiting: deque[Work] = deque()
        self.running: dict[int, Running] = {}  # by slot
        self._free_slots = list(range(slots - 1, -1, -1))

    # ---- arrivals

    def submit(self, work: Work) -> None:
        self.waiting.append(work)

    # ---- prefill

    def next_chunk(self) -> tuple[Work, int] | None:
        """The chunk to prefill in this step, (work, chunk's number): of the first work in line, if it may start."""
        work = self.waiting[0] if self.waiting else None
        if work is None or work.is_prefilled or not (work.admitted or self._start(work)):
            return None
        return work, work.chunks_done

    def _start(self, work: Work) -> bool:
        """Reserves the prompt's pages and the first candidate's, and takes what the prefix cache has."""
        if work.max_tokens > 0 and not self._free_slots:
            return False
        names = [] if work.score else self.prefixes.names(work.prompt)
        usable = names[: (len(work.prompt) - 1) // self.chunk]  # never the chunk with the last position
        found = self.prefixes.find(usable)
        taken = [page for pages in found for page in pages]
        needed = self._pages(len(work.prompt)) - len(taken)
        if not self.prefixes.make_room(needed + self._own_pages(work)):
            self.pool.release(taken)
            return False
        work.pages = taken + self.pool.take(needed)
        work.chunks_done = len(found)
        work.cached_tokens = len(found) * self.chunk
        work.admitted = True
        return True

    def chunk_done(self, work: Work, hidden: Any) -> None:
        """The engine has prefilled the chunk it was given; `hidden` is None unless it was the prompt's last."""
        work.chunks_done += 1
        if hidden is not None:
            work.hidden = hidden
            self._remember(work)
            if work.is_over:
                self._finish(work)

    def _remember(self, work: Work) -> None:
        per_chunk = self.chunk // self.page_size
        names = self.prefixes.names(work.prompt)
        for i, name in enumerate(names):
            self.prefixes.add(name, work.pages[i * per_chunk : (i + 1) * per_chunk])
        self.prefixes.touch(names)

    # ---- slots

    def admit(self) -> list[Running]:
        """Puts candidates of the prefilled work at the head of the line into free slots, as far as slots and pages
        go."""
        begun = []
        while self.waiting and self.waiting[0].is_prefilled:
            work = self.waiting[0]
            while not work.is_over and work.next_candidate in work.closed:
                work.next_candidate += 1
            if work.is_over:
                self._finish(work)
                continue
            if not self._free_slots or not self.prefixes.make_room(self._own_pages(work)):
                break
            begun.append(self._begin(work))
        return begun

    def _begin(self, work: Work) -> Running:
        whole = len(work.prompt) // self.page_size
        shared, partial = work.pages[:whole], work.pages[whole:]
        own = self.pool.take(self._own_pages(work))
        self.pool.hold(shared)
        sequence = Running(
            work,
            work.next_candidate,
            self._free_slots.pop(),
            shared + own,
            (partial[0], own[0]) if partial else None,
        )
        work.next_candidate += 1
        self.running[sequence.slot] = sequence
        return sequence

    def _finish(self, work: Work) -> None:
        """All candidates have begun (or none is wanted): the prompt's own hold on its pages ends."""
        self.pool.release(work.pages)
        work.pages = []
        self.waiting.remove(work)

    def end(self, sequence: Running) -> None:
        """A candidate needs no further step: its slot and pages are free at once. Ending twice is ending once."""
        if self.running.get(sequence.slot) is not sequence:
            return
        del self.running[sequence.slot]
        self.pool.release(sequence.pages)
        self._free_slots.append(sequence.slot)

    # ---- closing

    def close(self, work: Work, candidate: int | None = None) -> None:
        """Ends one candidate, or the whole work, wherever it is."""
        work.closed |= set(range(work.candidates)) if candidate is None else {candidate}
        for sequence in [s for s in self.running.values() if s.work is work and s.candidate in work.closed]:
            sequence.is_over = True
            self.end(sequence)
        if work in self.waiting and len(work.closed) == work.candidates and not self._score_pending(work, candidate):
            work.next_candidate = work.candidates
            self._finish(work)

    def _score_pending(self, work: Work, candidate: int | None) -> bool:
        """Closing candidates one by one does not take back the wish for the prompt's scores; closing the work does."""
        return work.score and candidate is not None and not work.is_prefilled

    # ---- measures

    def _pages(self, positions: int) -> int:
        return -(-positions // self.page_size)

    def _own_pages(self, work: Work) -> int:
        """What each candidate needs beside the shared pages: the rest of its length, its copy of the partial page
        too."""
        if work.max_tokens == 0:
            return 0
        return self._pages(len(work.prompt) + work.max_tokens) - len(work.prompt) // self.page_size

    def largest_need(self, context: int) -> int:
        """The pages that a prompt and one candidate filling the whole context can need at once."""
        return self._pages(context) + 1

    def works(self) -> Iterator[Work]:
        yield from self.waiting
        yield from {id(s.work): s.work for s in self.running.values() if s.work not in self.waiting}.values()

    def check(self) -> None:
        """The books balance: every held page has exactly the holders that this scheduler and its cache know of."""
        self.pool.check()
        holders: dict[int, int] = {}
        lists: list[Sequence[int]] = [s.pages for s in self.running.values()]
        lists += [work.pages for work in self.waiting]
        lists += self.prefixes.held()
        for pages in lists:
            for page in pages:
                holders[page] = holders.get(page, 0) + 1
        assert holders == self.pool.held(), (holders, self.pool.held())
        assert sorted([*self._free_slots, *self.running]) == list(range(len(self._free_slots) + len(self.running)))
