"""JaxEngine: the engine interface of reference/engine.py on compiled programs: many requests at once, and the same
bytes under load.

One thread owns the device. A step of it is:

    1 take      arrivals and closings, from any thread, for so many works at most
    2 prefill   one chunk of the first prompt in line, if there is one
    3 admit     candidates of prefilled prompts into free slots
    4 step      one more token asked of the device for every running slot
    5 hand out  what the step before asked for has come: tokens and logprobs as events, ends to the scheduler

So the device works on a step while the host hands out the one before. A sequence whose last token has been asked for
leaves its slot at once; one that ends by an end token is found out a step later, and that step's token is dropped.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from gnomon.jax_engine.device import Device, Program
from gnomon.jax_engine.kernels.choice import choose_kernels
from gnomon.jax_engine.runtime.backend import one_line, require_devices
from gnomon.jax_engine.runtime.cores import usable_cores
from gnomon.jax_engine.runtime.pins import pinned, refused_option
from gnomon.jax_engine.runtime.settings import EngineSettings, bytes_per_token, check_memory, default_pool_tokens, sized
from gnomon.jax_engine.sampler import Reported, Sampled
from gnomon.jax_engine.scheduler import PromptWork, Running, Scheduler
from gnomon.reference.body.rankings import Ranking, Rankings
from gnomon.reference.checkpoint.load import Checkpoint
from gnomon.reference.engine import LOWEST_LOGPROB, Done, Event, Failed, JobRequest, Load, PromptScored, Token
from gnomon.reference.prng import DrawKey

__all__ = ["EngineSettings", "JaxEngine", "bytes_per_token", "default_pool_tokens"]

log = logging.getLogger(__name__)

NOT_FINITE = "the model produced logits that are not finite"
STOPPED = "the engine was stopped"
EXIT_SECONDS = 10.0  # for a step that is under way when the process ends

# Works that arrive or are closed between two steps: some milliseconds. What more of them there are waits in its order,
# so that a thousand requests with thousands of prompts each, all given up at once, hold no running stream up.
WORKS_A_STEP = 1024

Message = Callable[[Scheduler], object]


# ---- jobs


class JaxJob:
    """One request's end of the engine: a queue of events, read by one reader."""

    def __init__(self, engine: JaxEngine, request: JobRequest) -> None:
        params, score = request.params, request.score
        candidates = request.candidates if params.max_tokens else 0  # else nothing grows from a prompt
        self.request = request
        self.works = [
            PromptWork(tuple(prompt), params.max_tokens, candidates, score, owner=self, index=j)
            for j, prompt in enumerate(request.prompts)
        ]
        self.open = {(work.index, c) for work in self.works for c in range(request.candidates)}
        self.scored: dict[int, tuple[list[float | None], Rankings]] = {}  # of prompts that are being prefilled
        self.started: float | None = None
        self.made = 0.0
        self.has_failed = False
        self._is_over = False  # a failure has been read
        self._engine = engine
        self._woken: Callable[[], object] = _wakes_nobody
        self._queue: queue.SimpleQueue[tuple[float, Sequence[Event]]] = queue.SimpleQueue()  # what came at one time
        self._awaited = {work.index for work in self.works if score}

    @property
    def cached_tokens(self) -> int:
        return sum(work.cached_tokens for work in self.works)

    def put(self, *events: Event) -> None:
        """What has come at one time; nothing where something was closed."""
        self._queue.put((time.monotonic(), events))
        self._woken()

    def put_done(self, prompt: int) -> None:
        """All candidates of a prompt have ended, none of them with a token."""
        self.put(*(Done(prompt, c) for c in range(self.request.candidates)))

    def fail(self, message: str) -> None:
        self.has_failed = True
        self.put(Failed(message))

    def events(self) -> Iterator[Event]:
        while self._is_awaited:
            self.made, events = self._queue.get()
            yield from self._read(events)

    def arrived(self, woken: Callable[[], object]) -> Iterator[Event | None]:
        self._woken = woken
        try:
            while self._is_awaited:
                try:
                    self.made, events = self._queue.get_nowait()
                except queue.Empty:
                    yield None
                else:
                    yield from self._read(events)
        finally:
            self._woken = _wakes_nobody  # whoever reads knows the job: both would wait for a collection

    @property
    def _is_awaited(self) -> bool:
        return not self._is_over and bool(self.open or self._awaited)

    def _read(self, events: Sequence[Event]) -> Iterator[Event]:
        """Those that are still wanted when their turn comes."""
        for event in events:
            if isinstance(event, Failed):
                self._is_over = True
                yield event
            elif isinstance(event, PromptScored):
                if event.prompt in self._awaited:
                    self._awaited.discard(event.prompt)
                    yield event
            elif (event.prompt, event.candidate) in self.open:
                if isinstance(event, Done):
                    self.open.discard((event.prompt, event.candidate))
                yield event

    def close(self, prompt: int | None = None, candidate: int | None = None) -> None:
        """What has ended, failed or been closed before is not closed again."""
        if prompt is None or candidate is None:
            is_over = self.has_failed or not (self.open or self._awaited)
            self.open.clear()
            self._awaited.clear()
            if not is_over:
                self._engine.close_works(self.works)
        elif (prompt, candidate) in self.open:
            self.open.discard((prompt, candidate))
            self._engine.post(partial(Scheduler.close, work=self.works[prompt], candidate=candidate))
        self.put()


class Pending(NamedTuple):
    """What the device is at work on: whose it is, and what to do with it once it is there."""

    jobs: Sequence[JaxJob]
    hand_out: Callable[[], None]


# ---- the engine


class JaxEngine:
    """Serves a checkpoint on whatever device jax has.

    Making one compiles every program (`progress` gets a line for each, `announce` one before what takes long) and
    starts the thread; `stop` ends it. Raises NoDevice if jax has none of the platforms it is to run on; ValueError if
    the pool is too small for one sequence of the whole context or larger than the memory, or the model cannot be cut
    over so many devices; MemoryError if the device's memory does not hold it. What jax is set to elsewhere in this
    process changes nothing here, and the engine changes nothing of it (see pins.py).
    """

    name = "jax"
    concurrency = 256  # it has a queue of its own, and is never to be short of work

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: EngineSettings | None = None,
        progress: Callable[[str], None] | None = None,
        announce: Callable[[str], None] | None = None,
    ) -> None:
        require_devices()
        if (why := refused_option()) is not None:
            raise ValueError(why)
        settings = settings or EngineSettings()
        progress = progress or (lambda line: None)
        announce = announce or progress
        self.config = checkpoint.config
        self.vocab_size = self.config.vocab_size
        self.context = self.config.max_position_embeddings
        self.eos_ids = self.config.eos_token_ids
        with pinned():
            kernels = choose_kernels(
                settings.native,
                settings.tensor_parallel,
                settings.compilation_cache,
                settings.threads or usable_cores(),
                progress,
                announce,
            )
        self.settings = s = sized(settings, self.config, kernels.are_native)
        check_memory(checkpoint, s)
        self._scheduler = self._new_scheduler()
        need = self._scheduler.largest_need(self.context)
        if self._scheduler.pool.size < need:
            raise ValueError(
                f"a key/value pool of {s.pool_tokens} tokens holds less than one sequence of the context, "
                f"{self.context} positions; give at least {need * s.page_size} tokens, "
                f"{need * s.page_size * bytes_per_token(self.config, s)} bytes"
            )
        try:
            with pinned():
                self.device = Device(checkpoint, s, kernels, self._scheduler.pool.size, progress, announce)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise MemoryError(f"the device's memory does not hold the model and its pool: {one_line(error)}") from error
        self.fingerprint = self.device.fingerprint
        self._pending: deque[Pending] = deque()
        self._inbox: queue.SimpleQueue[Iterable[Message] | None] = queue.SimpleQueue()
        self._taking: Iterator[Message] = iter(())  # what is left of the last that was taken from the inbox
        self._posting = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="gnomon-jax", daemon=True)
        self._thread.start()
        atexit.register(self._stop_at_exit)

    def _new_scheduler(self) -> Scheduler:
        s = self.settings
        return Scheduler(s.slots, s.pool_tokens // s.page_size, s.page_size, s.chunk)

    def programs(self) -> dict[str, Program]:
        """Every program that the engine runs, with arguments of the shapes it is compiled for, and no others."""
        with pinned():
            return self.device.programs()

    # ---- the engine interface

    def submit(self, request: JobRequest) -> JaxJob:
        job = JaxJob(self, request)
        if request.params.max_tokens == 0 and not request.score:
            job.started = time.monotonic()
            for work in job.works:
                job.put_done(work.index)
        elif not self.post_each(partial(_submit, work=work) for work in job.works):
            job.fail(STOPPED)
        return job

    def post(self, message: Message) -> bool:
        """Has the engine's thread call `message(scheduler)` before its next step, or a later one if much is to be done
        before. False: it was stopped."""
        return self.post_each([message])

    def post_each(self, messages: Iterable[Message]) -> bool:
        """All of them in their order, each of the size of one work; as many in one step as have room."""
        with self._posting:
            if not self._stopped:
                self._inbox.put(messages)
            return not self._stopped

    def load(self) -> Load:
        """Read beside the engine's thread: four numbers, and nothing that grows with what waits."""
        scheduler = self._scheduler
        return Load(self.settings.slots, len(scheduler.running), scheduler.pool.size, scheduler.held_pages)

    def close_works(self, works: Sequence[PromptWork]) -> None:
        self.post_each(partial(Scheduler.close, work=work) for work in works)

    def stop(self) -> None:
        """Ends the thread; requests under way fail, and so do later ones."""
        self._ask_to_stop()
        self._thread.join()
        atexit.unregister(self._stop_at_exit)

    def _ask_to_stop(self) -> None:
        with self._posting:
            if not self._stopped:
                self._stopped = True
                self._inbox.put(None)

    def _stop_at_exit(self) -> None:
        """Python ends a thread that wants the interpreter after its end; within a call of XLA that aborts the process,
        whatever it had done. A step that hangs is not waited for."""
        self._ask_to_stop()
        self._thread.join(EXIT_SECONDS)

    # ---- the thread that owns the device

    def _run(self) -> None:
        with pinned():
            self._serve()

    def _serve(self) -> None:
        is_inconsistent = False
        while True:
            try:
                if not self._take():
                    self._fail_all(STOPPED)
                    return
                # tried anew for every arrival: as long as it fails, that request fails and nobody waits
                if is_inconsistent:
                    self.device.clear()
                    is_inconsistent = False
                self._step()
            except Exception:
                log.exception("the engine failed; the requests it was working on get an error")
                self._fail_all("the engine failed")
                is_inconsistent = True  # the failed program may have consumed the arrays it was to overwrite

    def _take(self) -> bool:
        """Arrivals and closings, WORKS_A_STEP at most; waits for one if there is nothing to do. False: stop."""
        for _ in range(WORKS_A_STEP):
            message = next(self._taking, None)
            if message is not None:
                message(self._scheduler)
                continue
            if not self._is_idle() and self._inbox.empty():
                break
            messages = self._inbox.get()
            if messages is None:
                return False
            self._taking = iter(messages)
        return True

    def _is_idle(self) -> bool:
        return not (self._scheduler.waiting or self._scheduler.running or self._pending)

    def _step(self) -> None:
        pending = len(self._pending)
        chunk = self._scheduler.next_chunk()
        if chunk is not None:
            self._prefill(*chunk)
        begun = self._scheduler.admit()
        for sequence in begun:
            self._begin(sequence)
        if self._scheduler.running:
            self._ask({sequence.slot for sequence in begun})
        for _ in range(pending):
            self._pending[0].hand_out()
            self._pending.popleft()

    def _prefill(self, work: PromptWork, number: int) -> None:
        if work.owner.started is None:
            work.owner.started = time.monotonic()
        start = number * self.settings.chunk
        ids = work.prompt[start : start + self.settings.chunk]
        hidden, last_hidden = self.device.prefill(ids, work.pages, start)
        is_last = start + len(ids) == len(work.prompt)
        if work.score:
            following = work.prompt[start + 1 : start + len(ids) + 1]
            scored = self.device.score(hidden, following)
            self._pending.append(
                Pending([work.owner], lambda: self._hand_out_scores(work, scored, len(following), is_last))
            )
        self._scheduler.chunk_done(work, last_hidden if is_last else None)

    def _hand_out_scores(self, work: PromptWork, scored: Reported, count: int, is_last: bool) -> None:
        """`count` scores of a chunk have come; with the prompt's last ones all of them are handed out."""
        job = work.owner
        if job.has_failed:
            return
        lps, ids, top_lps, finite = jax.device_get(scored)
        if not finite[:count].all():
            self._fail(job, NOT_FINITE)
            return
        scores, tops = job.scored.setdefault(work.index, ([None], Rankings([None])))
        for i in range(count):
            scores.append(_decimal(lps[i]))
            tops.append(_ranking(ids[i], top_lps[i], job.request.top))
        if is_last:
            job.put(PromptScored(work.index, tuple(scores), tops))
            del job.scored[work.index]
            if work.max_tokens == 0:
                job.put_done(work.index)

    def _begin(self, sequence: Running) -> None:
        work, asked = sequence.work, sequence.work.owner.request
        key = DrawKey(asked.seeds[work.index], sequence.candidate, step=0)
        self.device.begin(
            sequence.slot, sequence.pages, len(work.prompt), work.hidden, asked.params, key, sequence.copy
        )

    def _ask(self, new: set[int]) -> None:
        """One more token for every running slot."""
        running = dict(self._scheduler.running)
        drawn = self.device.step(running, new)
        self._pending.append(Pending([s.work.owner for s in running.values()], lambda: self._hand_out(running, drawn)))
        for sequence in running.values():
            sequence.steps += 1
            if sequence.steps == sequence.work.max_tokens:
                self._scheduler.end(sequence)

    def _hand_out(self, asked: dict[int, Running], drawn: Sampled) -> None:
        """A step's tokens have come. Each job is given all of its own at once: to wake a reader takes longer than to
        make an event."""
        token, logprobs, finite = jax.device_get((drawn.token, drawn.logprob, drawn.finite))
        tokens, is_finite = token.tolist(), finite.tolist()
        tops = None  # fetched where somebody has asked for them
        events: dict[JaxJob, list[Event]] = {}
        for slot, sequence in asked.items():
            work, job = sequence.work, sequence.work.owner
            if sequence.is_over or job.has_failed:
                continue
            if not is_finite[slot]:
                events.pop(job, None)
                self._fail(job, NOT_FINITE)
                continue
            top: Ranking = ()
            if job.request.top:
                if tops is None:
                    tops = jax.device_get((drawn.top_ids, drawn.top_logprobs))
                top = _ranking(tops[0][slot], tops[1][slot], job.request.top)
            own = events.setdefault(job, [])
            own.append(Token(work.index, sequence.candidate, tokens[slot], _decimal(logprobs[slot]), top))
            sequence.handed_out += 1
            if tokens[slot] in job.request.params.end_ids or sequence.handed_out == work.max_tokens:
                sequence.is_over = True
                self._scheduler.end(sequence)
                own.append(Done(work.index, sequence.candidate))
        for job, own in events.items():
            job.put(*own)

    def _fail(self, job: JaxJob, message: str) -> None:
        if not job.has_failed:
            job.fail(message)
            self.close_works(job.works)

    def _fail_all(self, message: str) -> None:
        """Every job under way fails. The scheduler's state may be inconsistent, so it is thrown away and not
        closed."""
        jobs = [work.owner for work in self._scheduler.works()]
        jobs += [job for pending in self._pending for job in pending.jobs]
        self._pending.clear()
        self._scheduler = self._new_scheduler()
        for job in {id(job): job for job in jobs}.values():
            job.fail(message)


def _submit(scheduler: Scheduler, work: PromptWork) -> None:
    """The engine may have failed since the first works of a job arrived, and thrown those away."""
    if not work.owner.has_failed:
        scheduler.submit(work)


def _wakes_nobody() -> None:
    """Until somebody reads a job, and after that."""


def _decimal(value: np.float32) -> float:
    """The float whose repr is the shortest decimal that restores the float32."""
    return max(float(str(value)), LOWEST_LOGPROB)


def _ranking(ids: NDArray[np.int32], logprobs: NDArray[np.float32], top: int) -> Ranking:
    return tuple((int(ids[i]), _decimal(logprobs[i])) for i in range(min(top, len(ids))))
