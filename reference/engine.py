"""The engine interface: what every engine offers to all that stands above it, and the reference's own engine.

Above the interface there are requests, text, JSON; below it there are token ids and nothing else. An engine knows no
text, no stop strings, no `n`, no HTTP. It is handed prompts as ids and gives back events; whoever reads the events
decides what they mean, and says `close` when a candidate need not go on.

`ReferenceEngine` is the plain decode loop: the whole sequence through the model for every token, no batch, no cache,
one candidate after the other. It is slow, and simple on purpose: the other engine is tested against it.
"""

from __future__ import annotations

import hashlib
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gnomon.reference.body.rankings import Ranking, Rankings
from gnomon.reference.checkpoint.load import Checkpoint
from gnomon.reference.prng import DrawKey
from gnomon.reference.sampler import SamplingParams, report, sample
from gnomon.reference.system import blas
from gnomon.reference.system.sources import sources_hash
from gnomon.reference.transformer import activate, hidden_states, unembed
from gnomon.reference.work import Stopped

T = TypeVar("T")

LOWEST_LOGPROB = -9999.0


@dataclass(frozen=True, slots=True)
class PromptScored:
    """The log-probability of every token of a prompt given those before it; position 0 has None. Comes before its
    tokens."""

    prompt: int
    logprobs: tuple[float | None, ...]
    tops: Sequence[Ranking | None]


@dataclass(frozen=True, slots=True)
class Token:
    """One sampled token. `logprob` is a Python float whose repr is the shortest decimal that restores the engine's
    float."""

    prompt: int
    candidate: int
    id: int
    logprob: float
    top: Ranking


@dataclass(frozen=True, slots=True)
class Done:
    """A candidate has ended by itself: `max_tokens` reached, or its last token is one of `end_ids`."""

    prompt: int
    candidate: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine cannot go on with this job. No event follows; no other job is touched."""

    message: str


Event = PromptScored | Token | Done | Failed


class Load(NamedTuple):
    """How busy an engine is, at a glance that stops nobody."""

    slots: int  # sequences it works on at one time
    busy_slots: int
    pages: int  # of its key/value cache; 0: it has none
    held_pages: int  # those that work under way needs; what is only kept for later requests does not count


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What an engine is asked for: `candidates` candidates for every prompt. All of it is valid and nothing of it is
    checked here or by an engine: what a user may get wrong is refused above."""

    prompts: Sequence[Sequence[int]]  # at least one, none empty: ids in [0, V), each `len + max_tokens ≤ context`
    seeds: Sequence[int]  # one a prompt; any int, taken mod 2⁶⁴
    params: SamplingParams
    candidates: int  # at least 1
    top: int  # how many ids of each position's ranking to report; 0: none
    score: bool  # whether `PromptScored` is wanted


class Job(Protocol):
    """One request at work: all candidates of all its prompts. Times are `time.monotonic`, in seconds."""

    @property
    def open(self) -> AbstractSet[tuple[int, int]]:
        """(prompt, candidate) of those that have events to come: all at first, less those that are done or closed. It
        is the job's own set and changes under the reader; whoever keeps it copies it."""

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in a prefix cache, each prompt counted once. Final once the first event has come."""

    @property
    def started(self) -> float | None:
        """When the engine began to work on it; None while it waits."""

    @property
    def made(self) -> float:
        """When the event that was read last was made, however late it was read."""

    def events(self) -> Iterator[Event]:
        """All events in one merged, blocking stream, to be read once, by one reader.

        Ends when every candidate is done or closed, or after `Failed`. Events of one candidate come in order; those of
        different candidates and prompts interleave as the engine likes.
        """

    def close(self, prompt: int | None = None, candidate: int | None = None) -> None:
        """Stop one candidate (`prompt` and `candidate` given) or everything. The one word for cancelling: thread-safe,
        idempotent, frees what is held and wakes a blocked reader. No event of what was closed follows the reader's own
        call."""


@runtime_checkable
class ArrivingJob(Protocol):
    """A job that goes on whether it is read or not: one thread can read any number of them."""

    def arrived(self, woken: Callable[[], object]) -> Iterator[Event | None]:
        """What `events` gives, without waiting: None where no event is there yet. When the next one comes, or something
        is closed, `woken` is called, in any thread; also where nobody has found that none was there."""


class Engine(Protocol):
    """What runs the model. `fingerprint`: same fingerprint, same job → the same events, whatever else is going on."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def context(self) -> int:
        """The most positions a sequence may have: prompt and sampled tokens together."""

    @property
    def eos_ids(self) -> frozenset[int]: ...

    @property
    def fingerprint(self) -> str: ...

    def submit(self, request: JobRequest) -> Job:
        """Starts what is asked for. Returns at once; the work may wait. It raises nothing: what goes wrong later is the
        event `Failed`."""


class ServedEngine(Engine, Protocol):
    """An engine that a server can put to work: it says how much of it to give, and how busy it is."""

    @property
    def name(self) -> str:
        """What users call it."""

    @property
    def concurrency(self) -> int:
        """How many jobs to hand over at one time: one more would be no better off inside than outside."""

    def load(self) -> Load: ...


class NonFiniteLogits(ArithmeticError):
    """The model produced NaN or infinite logits: broken weights, or numbers beyond the range of its dtype."""


def go_on() -> None:
    """The check of work that nothing stops."""


class ReferenceEngine:
    """The definition, at work: the model and `sampler.sample` in a loop, in float64, in the reader's own thread, and in
    no other: see blas.py. `progress` gets a line that says which library computes the products."""

    name = "reference"
    concurrency = 8  # jobs that take turns; more would only make each of them slower

    def __init__(self, checkpoint: Checkpoint, progress: Callable[[str], None] | None = None) -> None:
        self.config = checkpoint.config
        self.params = checkpoint.params
        self.vocab_size = checkpoint.config.vocab_size
        self.context = checkpoint.config.max_position_embeddings
        self.eos_ids = checkpoint.config.eos_token_ids
        self.turn = threading.Lock()  # one forward pass at a time, so that concurrent jobs take turns token by token
        with blas.NUMPYS.one_thread():
            self.fingerprint = _fingerprint(self, blas.NUMPYS)
            if progress is not None:
                progress(str(blas.NUMPYS))

    def submit(self, request: JobRequest) -> ReferenceJob:
        return ReferenceJob(self, request)

    def load(self) -> Load:
        return Load(slots=1, busy_slots=int(self.turn.locked()), pages=0, held_pages=0)

    def last_logits(self, tokens: Sequence[int], check: Callable[[], None] = go_on) -> NDArray[np.float64]:
        """Raw logits [V] of the position after `tokens` [T]. check: as in `states`."""
        with self.turn:
            return self.logits(self.states(tokens, check)[-1])

    def all_logits(self, tokens: Sequence[int], check: Callable[[], None] = go_on) -> NDArray[np.float64]:
        """Raw logits [T, V] of the position after each of `tokens` [T]."""
        with self.turn:
            return self.logits(self.states(tokens, check))

    def states(self, tokens: Sequence[int], check: Callable[[], None] = go_on) -> NDArray[np.float64]:
        """The last layer's output [T, D] at each of `tokens` [T], without waiting for a turn. `check` is called before
        every layer; what it raises ends the work."""
        params = {**self.params, "layers": _checked(self.params["layers"], check)}
        with blas.NUMPYS.one_thread():
            return hidden_states(self.config, params, tokens)

    def logits(self, states: NDArray[np.float64]) -> NDArray[np.float64]:
        """Raw logits [..., V] of states [..., D]. Raises NonFiniteLogits."""
        with blas.NUMPYS.one_thread():
            return _finite(unembed(self.config, self.params, states))


class ReferenceJob:
    """Computes while it is read; `close` takes effect between two layers of the model."""

    cached_tokens = 0

    def __init__(self, engine: ReferenceEngine, request: JobRequest) -> None:
        self.request = request
        self.open = {(j, c) for j in range(len(request.prompts)) for c in range(request.candidates)}
        self._engine = engine
        self._closed = threading.Event()
        self.started: float | None = None

    @property
    def made(self) -> float:
        return time.monotonic()  # an event is made when it is read

    def close(self, prompt: int | None = None, candidate: int | None = None) -> None:
        if prompt is None or candidate is None:
            self._closed.set()
            self.open.clear()
        else:
            self.open.discard((prompt, candidate))

    def events(self) -> Iterator[Event]:
        self.started = time.monotonic()
        try:
            for j, prompt_ids in enumerate(self.request.prompts):
                yield from self._prompt_events(j, tuple(prompt_ids))
        except NonFiniteLogits as error:
            yield Failed(str(error))
        except Stopped:
            return

    def _check(self) -> None:
        if self._closed.is_set():
            raise Stopped

    def _prompt_events(self, j: int, prompt_ids: tuple[int, ...]) -> Iterator[Event]:
        """One prompt: its own scores if wanted, then its candidates, a token each in turn."""
        if self._closed.is_set():
            return
        if self.request.score:
            yield self._score_prompt(j, prompt_ids)
        sampled: dict[int, list[int]] = {c: [] for c in range(self.request.candidates) if (j, c) in self.open}
        for step in range(self.request.params.max_tokens + 1):
            for c in sampled:
                if self._closed.is_set():
                    return
                if (j, c) not in self.open:
                    continue
                if step == self.request.params.max_tokens:
                    self.open.discard((j, c))
                    yield Done(j, c)
                    continue
                token = self._sample(j, c, prompt_ids, sampled[c])
                sampled[c].append(token.id)
                yield token
                if token.id in self.request.params.end_ids and (j, c) in self.open:
                    self.open.discard((j, c))
                    yield Done(j, c)

    def _sample(self, j: int, c: int, prompt_ids: tuple[int, ...], sampled: list[int]) -> Token:
        logits = self._engine.last_logits([*prompt_ids, *sampled], self._check)
        key = DrawKey(self.request.seeds[j], c, step=len(sampled))
        counts = np.bincount(np.array(sampled, np.int64), minlength=len(logits))
        token, logprobs = sample(logits, counts, self.request.params, key)
        return Token(j, c, token, reported(logprobs[token]), ranking(logits, logprobs, self.request.top))

    def _score_prompt(self, j: int, prompt_ids: tuple[int, ...]) -> PromptScored:
        lps: list[float | None] = [None]
        tops = Rankings([None])
        if len(prompt_ids) > 1:
            logits = self._engine.all_logits(prompt_ids[:-1], self._check)
            logprobs = report(logits)
            for i, v in enumerate(prompt_ids[1:]):
                lps.append(reported(logprobs[i, v]))
                tops.append(ranking(logits[i], logprobs[i], self.request.top))
        return PromptScored(j, tuple(lps), tops)


def ranking(logits: NDArray[np.float64], logprobs: NDArray[np.float64], top: int) -> Ranking:
    """The `top` ids of largest logit in the order (−logit, id), with their log-probabilities; logits, logprobs [V]."""
    if top == 0:
        return ()
    order = np.argsort(-logits, kind="stable")[:top]
    return tuple((int(v), reported(logprobs[v])) for v in order)


def reported(logprob: np.float64) -> float:
    return max(float(logprob), LOWEST_LOGPROB)


def _checked(layers: Iterable[T], check: Callable[[], None]) -> Iterator[T]:
    for layer in layers:
        check()
        yield layer


def _finite(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(logits).all():
        raise NonFiniteLogits("the model produced logits that are not finite")
    return logits


PROBE = 128  # positions
LONG_PROBE = 512  # where threads may share the work: a product is cut for them only from a few hundred on


def _fingerprint(engine: ReferenceEngine, library: blas.Blas) -> str:
    """A hash of all that decides the numbers: sources, weights, NumPy and its BLAS, the machine, and the bits it
    computes.

    The bits of the probe stand for what cannot be listed: which instructions the C library takes, say. To be called
    within `library.one_thread`.
    """
    digest = hashlib.sha256(sources_hash(Path(__file__).parent))
    for decides in (np.__version__, np.show_config(mode="dicts")["SIMD Extensions"], library.decides()):
        digest.update(repr(decides).encode())
    digest.update(f"{platform.machine()} {engine.config}".encode())
    for array in _leaves(engine.params):
        digest.update(np.ascontiguousarray(array).data)
    for values in _elementary():
        digest.update(values.tobytes())
    length = min(PROBE if library.is_held else LONG_PROBE, engine.context)
    probe = [(7 * i + 1) % engine.vocab_size for i in range(length)]
    digest.update(unembed(engine.config, engine.params, hidden_states(engine.config, engine.params, probe)).tobytes())
    return "gnomon-ref-" + digest.hexdigest()[:16]


def _elementary() -> Iterator[NDArray[np.float64]]:
    """Every function that NumPy or the C library computes for the model and the sampler, at thousands of arguments: the
    versions they choose from when a process starts differ in the last bit of a few in a hundred."""
    x = np.linspace(-30, 30, 4001)
    yield from (activate(x, kind) for kind in ("silu", "gelu", "gelu_tanh"))
    yield from (np.exp(x), np.log(1 + abs(x)), np.log1p(abs(x)), np.sqrt(abs(x)), np.sin(x), np.cos(x), np.tanh(x))


def _leaves(tree: object) -> Iterator[NDArray[np.float64]]:
    if isinstance(tree, np.ndarray):
        yield tree
    elif isinstance(tree, dict):
        for key in sorted(tree):
            yield from _leaves(tree[key])
    elif isinstance(tree, list):
        for item in tree:
            yield from _leaves(item)
