"""Who runs when: prompts waiting and prefilling, candidates in slots, and the pages they hold. Plain Python; no jax
here.

The rule is first come, first served, a prompt at a time: jobs take turns in the order of their arrival, and one that
has had a prompt admitted and has more goes to the end of the line, so that a batch of thousands keeps no other job
waiting for more than one of its prompts. A job's prompts are admitted in their order, the candidates of a prompt in the
order of their numbers, and all candidates of a prompt before the next prompt's. A candidate is admitted when a slot is
free and the pages for its whole length, `m + max_tokens`, can be reserved; so nothing is ever preempted or computed
twice. At most one chunk of one prompt is prefilled between two decode steps: that bounds what a long prompt costs the
running streams.

    PromptWork (a prompt of a job) ─ waiting ─▶ prefilling, a chunk a step ─▶ ready: its candidates enter slots ─▶ done

The whole prompt pages are shared by the prompt's candidates; the partly filled last page is copied for each of them.

What a call costs does not grow with the works that wait: the line is a map, so that a work leaves it from anywhere at
once, and the head of the line is looked up in the prefix cache once, however long it is blocked.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gnomon.jax_engine.cache import PagePool, PrefixCache


@dataclass(eq=False, slots=True)
class PromptWork:
    """One prompt of a job: what is to be prefilled, and the candidates that grow from it.

    Many may wait, so nothing is made for one before it is needed: Python's collector, which stops every thread, looks
    at each list and each set.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    candidates: int
    score: bool  # wants its own log-probabilities: then every chunk is computed, none taken from the cache
    owner: Any = None  # the job, for the engine
    index: int = 0  # which of the job's prompts this is
    pages: Sequence[int] = ()  # of the prompt, held by this work until its candidates have begun
    names: list[bytes] | None = None  # of the prompt's chunks; None: not looked up in the cache yet
    chunks_done: int = 0
    cached_tokens: int = 0
    next_candidate: int = 0
    hidden: Any = None  # the last position's hidden state, once prefilled; for the engine
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
    """A candidate in a slot, from its admission to its last token."""

    work: PromptWork
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
        self.waiting: OrderedDict[PromptWork, None] = OrderedDict()  # in the order of arrival
        self._lines: OrderedDict[Any, OrderedDict[PromptWork, None]] = (
            OrderedDict()
        )  # the same by job; first: whose turn it is
        self.running: dict[int, Running] = {}  # by slot
        self._running_of: dict[PromptWork, dict[int, Running]] = {}  # by work and candidate; no empty ones
        self._closed_of: dict[PromptWork, set[int]] = {}  # of works in line: the candidates that were closed one by one
        self._free_slots = list(range(slots - 1, -1, -1))

    # ---- arrivals

    def submit(self, work: PromptWork) -> None:
        self.waiting[work] = None
        self._lines.setdefault(work.owner, OrderedDict())[work] = None

    @property
    def head(self) -> PromptWork | None:
        """The first prompt of the job whose turn it is. It stays the head until all its candidates have begun."""
        for line in self._lines.values():
            return next(iter(line))
        return None

    def _leave(self, work: PromptWork) -> None:
        """Takes a work out of the line. If it was the head, the turn passes to the next job."""
        was_head = work is self.head
        del self.waiting[work]
        line = self._lines[work.owner]
        del line[work]
        if not line:
            del self._lines[work.owner]
        elif was_head:
            self._lines.move_to_end(work.owner)

    # ---- prefill

    def next_chunk(self) -> tuple[PromptWork, int] | None:
        """The chunk to prefill in this step, (work, chunk's number): of the first work in line, if it may start."""
        work = self.head
        if work is None or work.is_prefilled or not (work.admitted or self._start(work)):
            return None
        return work, work.chunks_done

    def _start(self, work: PromptWork) -> bool:
        """Reserves the prompt's pages and the first candidate's, and takes what the prefix cache has."""
        if work.max_tokens > 0 and not self._free_slots:
            return False
        if work.names is None:
            self._look_up(work)
        needed = self._pages(len(work.prompt)) - len(work.pages)
        if not self.prefixes.make_room(needed + self._own_pages(work)):
            return False
        work.pages = [*work.pages, *self.pool.take(needed)]
        work.cached_tokens = work.chunks_done * self.chunk
        work.admitted = True
        return True

    def _look_up(self, work: PromptWork) -> None:
        """Holds what the prefix cache has of the prompt. A work that must wait keeps it: nobody behind it could use it,
        and nothing enters the cache before it has started."""
        work.names = self.prefixes.names(work.prompt)
        usable = [] if work.score else work.names[: (len(work.prompt) - 1) // self.chunk]  # never the last position's
        found = self.prefixes.find(usable)
        work.pages = [page for pages in found for page in pages]
        work.chunks_done = len(found)

    def chunk_done(self, work: PromptWork, hidden: Any) -> None:
        """The engine has prefilled the chunk it was given; `hidden` is None unless it was the prompt's last."""
        work.chunks_done += 1
        if hidden is not None:
            work.hidden = hidden
            self._remember(work)
            if work.is_over:
                self._finish(work)

    def _remember(self, work: PromptWork) -> None:
        per_chunk = self.chunk // self.page_size
        names = work.names or ()
        for i, name in enumerate(names):
            self.prefixes.add(name, work.pages[i * per_chunk : (i + 1) * per_chunk])
        self.prefixes.touch(names)

    # ---- slots

    def admit(self) -> list[Running]:
        """Puts candidates of the prefilled work at the head of the line into free slots, as far as slots and pages
        go."""
        begun = []
        while (work := self.head) is not None and work.is_prefilled:
            self._pass_over_closed(work)
            if work.is_over:
                self._finish(work)
                continue
            if not self._free_slots or not self.prefixes.make_room(self._own_pages(work)):
                break
            begun.append(self._begin(work))
        return begun

    def _pass_over_closed(self, work: PromptWork) -> None:
        closed = self._closed_of.get(work, ())
        while not work.is_over and work.next_candidate in closed:
            work.next_candidate += 1

    def _begin(self, work: PromptWork) -> Running:
        whole = len(work.prompt) // self.page_size
        shared, partial = work.pages[:whole], work.pages[whole:]
        own = self.pool.take(self._own_pages(work))
        self.pool.hold(shared)
        sequence = Running(
            work,
            work.next_candidate,
            self._free_slots.pop(),
            [*shared, *own],
            (partial[0], own[0]) if partial else None,
        )
        work.next_candidate += 1
        self.running[sequence.slot] = sequence
        self._running_of.setdefault(work, {})[sequence.candidate] = sequence
        return sequence

    def _finish(self, work: PromptWork) -> None:
        """All candidates have begun (or none is wanted): the prompt's own hold on its pages ends."""
        self.pool.release(work.pages)
        work.pages = ()
        self._leave(work)
        self._closed_of.pop(work, None)

    def end(self, sequence: Running) -> None:
        """A candidate needs no further step: its slot and pages are free at once. Ending twice is ending once."""
        if self.running.get(sequence.slot) is not sequence:
            return
        del self.running[sequence.slot]
        running = self._running_of[sequence.work]
        del running[sequence.candidate]
        if not running:
            del self._running_of[sequence.work]
        self.pool.release(sequence.pages)
        self._free_slots.append(sequence.slot)

    # ---- closing

    def close(self, work: PromptWork, candidate: int | None = None) -> None:
        """Ends one candidate, or the whole work, wherever it is. One that has ended costs nothing."""
        for sequence in self._in_slots(work, candidate):
            sequence.is_over = True
            self.end(sequence)
        if work in self.waiting and (candidate is None or self._is_last_closed(work, candidate)):
            work.next_candidate = work.candidates
            self._finish(work)

    def _in_slots(self, work: PromptWork, candidate: int | None) -> list[Running]:
        running = self._running_of.get(work, {})
        if candidate is None:
            return list(running.values())
        return [running[candidate]] if candidate in running else []

    def _is_last_closed(self, work: PromptWork, candidate: int) -> bool:
        """Whether all candidates are closed now. That does not take back the wish for the prompt's scores, as closing
        the work does."""
        closed = self._closed_of.setdefault(work, set())
        closed.add(candidate)
        return len(closed) == work.candidates and (work.is_prefilled or not work.score)

    # ---- measures

    def _pages(self, positions: int) -> int:
        return -(-positions // self.page_size)

    def _own_pages(self, work: PromptWork) -> int:
        """What each candidate needs beside the shared pages: the rest of its length, its copy of the partial page
        too."""
        if work.max_tokens == 0:
            return 0
        return self._pages(len(work.prompt) + work.max_tokens) - len(work.prompt) // self.page_size

    def largest_need(self, context: int) -> int:
        """The pages that a prompt and one candidate filling the whole context can need at once."""
        return self._pages(context) + 1

    @property
    def held_pages(self) -> int:
        """The pages that works hold; those of chunks that are only cached are not among them."""
        return self.pool.size - self.pool.free - self.prefixes.unused_pages

    def works(self) -> Iterator[PromptWork]:
        yield from self.waiting
        yield from (work for work in self._running_of if work not in self.waiting)

    def check(self) -> None:
        """The bookkeeping is consistent: every held page has exactly the holders that this scheduler and its cache know
        of, and what is counted is what there is."""
        self.pool.check()
        self.prefixes.check()
        of_works: list[Sequence[int]] = [s.pages for s in self.running.values()]
        of_works += [work.pages for work in self.waiting]
        holders = Counter(page for pages in [*of_works, *self.prefixes.held()] for page in pages)
        assert holders == self.pool.held(), (holders, self.pool.held())
        assert self.held_pages == len({page for pages in of_works for page in pages})
        assert sorted([*self._free_slots, *self.running]) == list(range(len(self._free_slots) + len(self.running)))
        by_work = {(s.work, s.candidate): s for s in self.running.values()}
        assert by_work == {(work, c): s for work, of in self._running_of.items() for c, s in of.items()}
        assert all(self._running_of.values())
        assert self._closed_of.keys() <= self.waiting.keys()
        assert all(self._lines.values())
        assert {work for line in self._lines.values() for work in line} == self.waiting.keys()
        assert all(work is self.head or not (work.pages or work.admitted) for work in self.waiting)
