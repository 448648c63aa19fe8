"""JaxEngine: the waist of reference/engine.py on compiled programs, many requests at once, the same bytes under load.

One thread owns the device. A step of it is:

    1 take      arrivals and closings, from any thread
    2 prefill   one chunk of the first prompt in line, if there is one
    3 admit     candidates of prefilled prompts into free slots
    4 decode    one token for every running slot: transformer, then sample; the slots that have just begun skip the
    former
    5 hand out  tokens and logprobs as events, ends to the scheduler

Why neighbours cannot change a byte: every program has one compiled shape, whatever the load: prefill [1, chunk],
decode and
sample [slots], score [chunk]. Chunks are cut at absolute positions; hidden states leave prefill and pass through the
same head and sampler as those of decode; no row reads another row; nothing is ever computed twice by another path.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from gnomon.jax_engine import sampler
from gnomon.jax_engine.model import SCRATCH_PAGE, Batch, Cache, Params, empty_cache, hidden_states, unembed
from gnomon.jax_engine.sampler import Rows, Sampled, ranking, report, sample
from gnomon.jax_engine.scheduler import Running, Scheduler, Work
from gnomon.reference.checkpoint import Checkpoint
from gnomon.reference.engine import LOWEST_LOGPROB, Done, Event, Failed, PromptScored, Ranking, Token
from gnomon.reference.model import ModelConfig
from gnomon.reference.sampler import SamplingParams

log = logging.getLogger(__name__)

NOT_FINITE = "the model produced logits that are not finite"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The shapes of the compiled programs and the size of the pool."""

    slots: int = 8  # the decode batch
    page_size: int = 32  # positions
    chunk: int = 128  # positions prefilled at once; a multiple of the page
    pool_tokens: int | None = None  # positions that the key/value pool holds; None: see `default_pool_tokens`
    dtype: str = "float32"  # of the weights and the pool: float32 or bfloat16
    compilation_cache: Path | None = None  # where compiled programs are kept for the next start; None: nowhere


# ---- the programs


def prefill(config: ModelConfig, params: Params, cache: Cache, batch: Batch) -> tuple[Array, Cache]:
    """One chunk of one prompt, [1, chunk] → hidden states [chunk, D]."""
    x, cache = hidden_states(config, params, batch, cache)
    return x[0], cache


def decode(config: ModelConfig, params: Params, cache: Cache, batch: Batch) -> tuple[Array, Cache]:
    """The last token of every slot, [slots, 1] → hidden states [slots, D]."""
    x, cache = hidden_states(config, params, batch, cache)
    return x[:, 0], cache


def sample_rows(
    params: Params, hidden: Array, begun: Array, is_new: Array, running: Array, bias: Array, counts: Array, rows: Rows
) -> tuple[Sampled, Array]:
    """The one head and the one sampler. Rows that are new take their hidden state from `begun` [slots, D], where
    prefill left it; counts [slots, V] come back with the sampled tokens of the running rows added."""
    logits = unembed(jnp.where(is_new[:, None], begun, hidden), params)
    drawn = sample(jnp.where(running[:, None], logits, 0.0), bias, counts, rows)
    return drawn, counts.at[jnp.arange(len(counts)), drawn.token].add(running.astype(counts.dtype))


def score(params: Params, hidden: Array, targets: Array) -> tuple[Array, Array, Array, Array]:
    """The log-probabilities of targets [chunk] given hidden [chunk, D], the rankings there, and which rows are
    finite."""
    logits = unembed(hidden, params)
    logprobs = report(logits)
    top_ids = ranking(logits)
    picked = jnp.take_along_axis(logprobs, targets[:, None], axis=-1)[:, 0]
    return picked, top_ids, jnp.take_along_axis(logprobs, top_ids, axis=-1), jnp.isfinite(logits).all(axis=-1)


def begin(
    cache: Cache, begun: Array, bias: Array, counts: Array, slot: Array, hidden: Array, bias_row: Array,
    copy_from: Array, copy_to: Array,
) -> tuple[Cache, Array, Array, Array]:  # fmt: skip
    """A candidate enters a slot: its hidden state and bias are put there, its counts cleared, its partial page
    copied."""
    copied = [(k.at[copy_to].set(k[copy_from]), v.at[copy_to].set(v[copy_from])) for k, v in cache]
    return copied, begun.at[slot].set(hidden), bias.at[slot].set(bias_row), counts.at[slot].set(0)


def bytes_per_token(config: ModelConfig, dtype: str) -> int:
    """What one position costs in the key/value pool."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * jnp.dtype(dtype).itemsize


def default_pool_tokens(config: ModelConfig, settings: EngineSettings) -> int:
    """Room for four full contexts a slot, so that prefixes stay cached, in at most a quarter of the device's memory."""
    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    if memory is None:  # a CPU has no limit of its own
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    affordable = memory // 4 // bytes_per_token(config, settings.dtype)
    return min(affordable, 4 * settings.slots * config.max_position_embeddings)


class Program(NamedTuple):
    """A function to compile, arguments of its one shape, and which of them it may overwrite."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    donated: tuple[int, ...]


# ---- jobs


class JaxJob:
    """One request's end of the engine: a queue of events, read by one reader."""

    def __init__(self, engine: JaxEngine, works: Sequence[tuple[Work, int]], params: SamplingParams, top: int) -> None:
        self.params = params
        self.top = top
        self.seeds = [seed for _, seed in works]
        self.works = [work for work, _ in works]
        self.scored: dict[int, list[tuple[float, Ranking]]] = {}
        self._engine = engine
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._open = {(work.index, c) for work in self.works for c in range(work.candidates)}
        self._awaited = {work.index for work in self.works if work.score}

    @property
    def cached_tokens(self) -> int:
        return sum(work.cached_tokens for work in self.works)

    def put(self, event: Event | None) -> None:
        self._queue.put(event)

    def events(self) -> Iterator[Event]:
        while self._open or self._awaited:
            event = self._queue.get()
            if event is None:
                continue  # something was closed; is anything left to wait for?
            if isinstance(event, Failed):
                yield event
                return
            if isinstance(event, PromptScored):
                if event.prompt in self._awaited:
                    self._awaited.discard(event.prompt)
                    yield event
            elif (event.prompt, event.candidate) in self._open:
                if isinstance(event, Done):
                    self._open.discard((event.prompt, event.candidate))
                yield event

    def close(self, prompt: int | None = None, candidate: int | None = None) -> None:
        if prompt is None or candidate is None:
            self._open.clear()
            self._awaited.clear()
            self._engine.close_works(self.works)
        else:
            self._open.discard((prompt, candidate))
            work = self.works[prompt]
            self._engine.post(lambda scheduler: scheduler.close(work, candidate))
        self._queue.put(None)


# ---- the engine


class JaxEngine:
    """Serves a checkpoint on whatever device jax has.

    Making one compiles every program (`progress` gets a line for each) and starts the thread; `stop` ends it. Raises
    ValueError if the pool is too small for one sequence of the whole context.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: EngineSettings | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings or EngineSettings()
        self.config = checkpoint.config
        self.vocab_size = self.config.vocab_size
        self.context = self.config.max_position_embeddings
        self.eos_ids = self.config.eos_token_ids
        s = self.settings
        jax.config.update("jax_default_matmul_precision", "highest")  # type: ignore[no-untyped-call]
        if s.compilation_cache is not None:
            jax.config.update("jax_compilation_cache_dir", str(s.compilation_cache))  # type: ignore[no-untyped-call]
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # type: ignore[no-untyped-call]
        self.pool_tokens = default_pool_tokens(self.config, s) if s.pool_tokens is None else s.pool_tokens
        self._scheduler = Scheduler(s.slots, self.pool_tokens // s.page_size, s.page_size, s.chunk)
        need = self._scheduler.largest_need(self.context)
        if self._scheduler.pool.size < need:
            raise ValueError(
                f"a key/value pool of {self.pool_tokens} tokens holds less than one sequence of the context, "
                f"{self.context} positions; give at least {need * s.page_size} tokens, "
                f"{need * s.page_size * bytes_per_token(self.config, s.dtype)} bytes"
            )
        self._params = _place(checkpoint.params, jnp.dtype(s.dtype))
        self._table_width = -(-self.context // s.page_size) + 1
        self._clear_device()
        self._compile(progress or (lambda line: None))
        self.fingerprint = self._fingerprint()
        self._clear_device()
        self._inbox: queue.SimpleQueue[Callable[[Scheduler], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="gnomon-jax", daemon=True)
        self._thread.start()

    def _clear_device(self) -> None:
        s = self.settings
        self._cache = empty_cache(self.config, self._scheduler.pool.size + 1, s.page_size, jnp.dtype(s.dtype))
        self._begun = jnp.zeros((s.slots, self.config.hidden_size), jnp.float32)
        self._bias = jnp.zeros((s.slots, self.vocab_size), jnp.float32)
        self._counts = jnp.zeros((s.slots, self.vocab_size), jnp.int32)

    def programs(self) -> dict[str, Program]:
        """Every program that the engine runs, with arguments of the shapes it is compiled for, and no others."""
        s, hidden = self.settings, self.config.hidden_size
        nobody, at = np.zeros(s.slots, bool), np.int32(0)
        weights, state = self._params, (self._bias, self._counts)
        return {
            "prefill": Program(
                partial(prefill, self.config), (weights, self._cache, self._chunk_batch([], [0], 0)), (1,)
            ),
            "decode": Program(partial(decode, self.config), (weights, self._cache, self._decode_batch({})), (1,)),
            "sample": Program(
                sample_rows, (weights, self._begun, self._begun, nobody, nobody, *state, self._rows({})), (6,)
            ),
            "score": Program(score, (weights, jnp.zeros((s.chunk, hidden)), np.zeros(s.chunk, np.int32)), ()),
            "begin": Program(
                begin,
                (
                    self._cache,
                    self._begun,
                    *state,
                    at,
                    jnp.zeros(hidden),
                    np.zeros(self.vocab_size, np.float32),
                    at,
                    at,
                ),
                (0, 1, 2, 3),
            ),
        }

    def _compile(self, progress: Callable[[str], None]) -> None:
        """Every program, once, ahead of time; all shapes are known now."""
        self._programs: dict[str, Any] = {}
        for name, program in self.programs().items():
            started = time.monotonic()
            jitted = jax.jit(program.function, donate_argnums=program.donated)
            self._programs[name] = jitted.lower(*program.arguments).compile()
            progress(f"compiled {name} in {time.monotonic() - started:.1f} s")

    # ---- the waist

    def submit(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        params: SamplingParams,
        candidates: int,
        top: int,
        score: bool,
    ) -> JaxJob:
        works = [
            Work(tuple(prompt), params.max_tokens, candidates if params.max_tokens else 0, score, index=j)
            for j, prompt in enumerate(prompts)
        ]
        job = JaxJob(self, list(zip(works, seeds, strict=True)), params, top)
        for work in works:
            work.owner = job
        if params.max_tokens == 0:
            job._open = {(j, c) for j in range(len(works)) for c in range(candidates)}
            if not score:
                for j, c in sorted(job._open):
                    job.put(Done(j, c))
                return job

        def message(scheduler: Scheduler) -> None:
            for work in works:
                scheduler.submit(work)

        self.post(message)
        return job

    def post(self, message: Callable[[Scheduler], object] | None) -> None:
        """Has the engine's thread call `message(scheduler)` before its next step; None ends the thread."""
        self._inbox.put(message)

    def close_works(self, works: Sequence[Work]) -> None:
        def message(scheduler: Scheduler) -> None:
            for work in works:
                scheduler.close(work)

        self.post(message)

    def stop(self) -> None:
        self.post(None)
        self._thread.join()

    # ---- the thread that owns the device

    def _run(self) -> None:
        while self._take():
            try:
                self._step()
            except Exception:
                log.exception("the engine failed; the requests it was working on get an error")
                self._fail_all("the engine failed")
                # the failed program may have consumed the arrays it was to overwrite; nobody holds a page now
                self._scheduler.prefixes.make_room(self._scheduler.pool.size)
                self._clear_device()

    def _take(self) -> bool:
        """Arrivals and closings; waits for one if there is nothing to do. False: stop."""
        idle = not self._scheduler.waiting and not self._scheduler.running
        while idle or not self._inbox.empty():
            message = self._inbox.get()
            if message is None:
                self._fail_all("the engine was stopped")
                return False
            message(self._scheduler)
            idle = not self._scheduler.waiting and not self._scheduler.running
        return True

    def _step(self) -> None:
        chunk = self._scheduler.next_chunk()
        if chunk is not None:
            self._prefill(*chunk)
        begun = self._scheduler.admit()
        for sequence in begun:
            self._begin(sequence)
        running = dict(self._scheduler.running)
        if running:
            self._decode(running, {sequence.slot for sequence in begun})

    def _prefill(self, work: Work, number: int) -> None:
        start = number * self.settings.chunk
        ids = work.prompt[start : start + self.settings.chunk]
        batch = self._chunk_batch(ids, work.pages, start)
        hidden, self._cache = self._programs["prefill"](self._params, self._cache, batch)
        last = start + len(ids) == len(work.prompt)
        if work.score and not self._score(work, hidden, start, len(ids)):
            self._fail(work.owner, NOT_FINITE)
            return
        self._scheduler.chunk_done(work, hidden[len(ids) - 1] if last else None)
        if last and work.score:
            self._hand_out_scores(work)

    def _score(self, work: Work, hidden: Array, start: int, count: int) -> bool:
        """Scores the tokens that follow this chunk's positions; False if a row that matters is not finite."""
        following = work.prompt[start + 1 : start + count + 1]
        targets = np.zeros(self.settings.chunk, np.int32)
        targets[: len(following)] = following
        lps, ids, top_lps, finite = jax.device_get(self._programs["score"](self._params, hidden, targets))
        if not finite[: len(following)].all():
            return False
        top = work.owner.top
        work.owner.scored.setdefault(work.index, []).extend(
            (_decimal(lps[i]), _ranking(ids[i], top_lps[i], top)) for i in range(len(following))
        )
        return True

    def _hand_out_scores(self, work: Work) -> None:
        scored = work.owner.scored.pop(work.index, [])
        lps = (None, *(lp for lp, _ in scored))
        work.owner.put(PromptScored(work.index, lps, (None, *(top for _, top in scored))))
        if work.max_tokens == 0:
            for j, c in sorted(work.owner._open):
                if j == work.index:
                    work.owner.put(Done(j, c))

    def _begin(self, sequence: Running) -> None:
        bias = np.zeros(self.vocab_size, np.float32)
        for v, value in (sequence.work.owner.params.logit_bias or {}).items():
            bias[v] = value
        copy_from, copy_to = sequence.copy or (SCRATCH_PAGE, SCRATCH_PAGE)
        self._cache, self._begun, self._bias, self._counts = self._programs["begin"](
            self._cache, self._begun, self._bias, self._counts,
            np.int32(sequence.slot), sequence.work.hidden, bias, np.int32(copy_from), np.int32(copy_to),
        )  # fmt: skip

    def _decode(self, running: dict[int, Running], new: set[int]) -> None:
        hidden = self._begun
        if len(new) < len(running):
            batch = self._decode_batch({slot: s for slot, s in running.items() if slot not in new})
            hidden, self._cache = self._programs["decode"](self._params, self._cache, batch)
        slots = np.arange(self.settings.slots)
        drawn, self._counts = self._programs["sample"](
            self._params, hidden, self._begun, np.isin(slots, list(new)), np.isin(slots, list(running)),
            self._bias, self._counts, self._rows(running),
        )  # fmt: skip
        drawn = jax.device_get(drawn)
        for slot, sequence in running.items():
            self._hand_out(sequence, slot, drawn)

    def _hand_out(self, sequence: Running, slot: int, drawn: Sampled) -> None:
        work, job = sequence.work, sequence.work.owner
        if self._scheduler.running.get(slot) is not sequence:
            return  # its job has failed in this very step
        if not drawn.finite[slot]:
            self._fail(job, NOT_FINITE)
            return
        token = int(drawn.token[slot])
        sequence.sampled.append(token)
        top = _ranking(drawn.top_ids[slot], drawn.top_logprobs[slot], job.top)
        job.put(Token(work.index, sequence.candidate, token, _decimal(drawn.logprob[slot]), top))
        if token in job.params.end_ids or len(sequence.sampled) == work.max_tokens:
            self._scheduler.end(sequence)
            job.put(Done(work.index, sequence.candidate))

    def _fail(self, job: JaxJob, message: str) -> None:
        for work in job.works:
            self._scheduler.close(work)
        job.put(Failed(message))

    def _fail_all(self, message: str) -> None:
        for job in {id(work.owner): work.owner for work in self._scheduler.works()}.values():
            self._fail(job, message)

    # ---- the arguments of the programs

    def _chunk_batch(self, ids: Sequence[int], pages: Sequence[int], start: int) -> Batch:
        chunk = self.settings.chunk
        tokens = np.zeros((1, chunk), np.int32)
        tokens[0, : len(ids)] = ids
        tables = np.full((1, self._table_width), SCRATCH_PAGE, np.int32)
        tables[0, : len(pages)] = pages
        return Batch(tokens, start + np.arange(chunk, dtype=np.int32)[None], np.arange(chunk)[None] < len(ids), tables)

    def _decode_batch(self, running: dict[int, Running]) -> Batch:
        slots = self.settings.slots
        tokens, positions = np.zeros((slots, 1), np.int32), np.zeros((slots, 1), np.int32)
        live = np.zeros((slots, 1), bool)
        tables = np.full((slots, self._table_width), SCRATCH_PAGE, np.int32)
        for slot, sequence in running.items():
            tokens[slot] = sequence.sampled[-1]
            positions[slot] = sequence.position
            live[slot] = True
            tables[slot, : len(sequence.pages)] = sequence.pages
        return Batch(tokens, positions, live, tables)

    def _rows(self, running: dict[int, Running]) -> Rows:
        slots = self.settings.slots
        rows = Rows(
            temperature=np.ones(slots, np.float32),
            top_p=np.ones(slots, np.float32),
            frequency_penalty=np.zeros(slots, np.float32),
            presence_penalty=np.zeros(slots, np.float32),
            is_greedy=np.ones(slots, bool),
            is_nucleus=np.zeros(slots, bool),
            seed_high=np.zeros(slots, np.uint32),
            seed_low=np.zeros(slots, np.uint32),
            candidate=np.zeros(slots, np.uint32),
            step=np.zeros(slots, np.uint32),
        )
        for slot, sequence in running.items():
            params: SamplingParams = sequence.work.owner.params
            seed = sequence.work.owner.seeds[sequence.work.index] % 2**64
            values: tuple[Any, ...] = (  # in the order of Rows
                max(params.temperature, sampler.LOWEST_TEMPERATURE),
                params.top_p,
                params.frequency_penalty,
                params.presence_penalty,
                params.temperature == 0,
                params.temperature != 0 and params.top_p != 1,
                seed >> 32,
                seed & 0xFFFFFFFF,
                sequence.candidate,
                len(sequence.sampled),
            )
            for array, value in zip(rows, values, strict=True):
                array[slot] = value
        return rows

    # ---- the fingerprint

    def _fingerprint(self) -> str:
        """A hash of all that decides the numbers, and of the output bits of every program on a fixed probe."""
        digest = hashlib.sha256()
        for folder in (Path(__file__).parent, Path(__file__).parent.parent / "reference"):
            for source in sorted(folder.glob("*.py")):
                digest.update(source.read_bytes())
        device = jax.devices()[0]
        flags = [os.environ.get(name) for name in ("XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION", "LIBTPU_INIT_ARGS")]
        decides = (jax.__version__, version("jaxlib"), device.platform, device.device_kind, platform.machine(), flags)
        s = self.settings
        shapes = (s.slots, s.page_size, s.chunk, self._scheduler.pool.size, str(s.dtype))
        digest.update(repr((decides, shapes, self.config, os.cpu_count())).encode())
        for leaf in jax.tree.leaves(self._params):
            digest.update(np.asarray(leaf).tobytes())
        for bits in self._probe():
            digest.update(np.asarray(bits).tobytes())
        return "gnomon-jax-" + digest.hexdigest()[:16]

    def _probe(self) -> Iterator[Any]:
        s = self.settings
        ids = [(7 * i + 1) % self.vocab_size for i in range(min(s.chunk, self.context - 1))]
        pages = list(range(1, -(-(len(ids) + 1) // s.page_size) + 1))
        hidden, self._cache = self._programs["prefill"](self._params, self._cache, self._chunk_batch(ids, pages, 0))
        yield hidden
        yield from self._programs["score"](self._params, hidden, np.arange(s.chunk, dtype=np.int32) % self.vocab_size)
        batch = self._decode_batch({})
        batch.tokens[:], batch.positions[:], batch.live[0] = 1, len(ids), True
        batch.tables[:, : len(pages)] = pages
        hidden, self._cache = self._programs["decode"](self._params, self._cache, batch)
        yield hidden
        rows = self._rows({})
        rows.is_greedy[:], rows.is_nucleus[:], rows.top_p[:], rows.temperature[:] = False, True, 0.9, 0.7
        everyone = np.ones(s.slots, bool)
        drawn, self._counts = self._programs["sample"](
            self._params, hidden, self._begun, ~everyone, everyone, self._bias, self._counts, rows
        )
        yield from drawn


def _place(params: Params, dtype: Any) -> Params:
    """Weights on the device in their dtype; norms stay in float32."""

    def convert(leaf: NDArray[np.float64]) -> Array:
        return jnp.asarray(leaf, dtype if leaf.ndim > 1 else jnp.float32)

    placed: Params = jax.tree.map(convert, {key: leaf for key, leaf in params.items() if key != "lm_head"})
    tied = params["lm_head"] is params["embed_tokens"]
    return {**placed, "lm_head": placed["embed_tokens"] if tied else convert(params["lm_head"])}


def _decimal(value: np.float32) -> float:
    """The float whose repr is the shortest decimal that restores the float32."""
    return max(float(str(value)), LOWEST_LOGPROB)


def _ranking(ids: NDArray[np.int32], logprobs: NDArray[np.float32], top: int) -> Ranking:
    return tuple((int(ids[i]), _decimal(logprobs[i])) for i in range(min(top, len(ids))))
