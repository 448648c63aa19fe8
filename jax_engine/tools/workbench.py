"""What is measured, and how much: the model in one dtype, its engines and servers, and prompts for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.settings import EngineSettings
from gnomon.jax_engine.tools.bare import BarePrograms
from gnomon.jax_engine.tools.clients import (
    GREEDY_PARAMS,
    CompletionsClient,
    RunningServer,
    Streams,
    run_streams,
    serving,
)
from gnomon.jax_engine.tools.measure import LLAMA_135M, MEBIBYTE, RandomModel, interleaved
from gnomon.jax_engine.tools.ratios import Ratio
from gnomon.reference.checkpoint.load import Checkpoint
from gnomon.reference.engine import Engine
from gnomon.reference.sampler import SamplingParams

CHUNK = EngineSettings().chunk
ROWS = 8  # the streams of most rows
LOADS = {"greedy": GREEDY_PARAMS, "temperature 0.8 and top_p 0.95": SamplingParams(temperature=0.8, top_p=0.95)}


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """How much is measured; lengths in tokens."""

    shape: RandomModel = LLAMA_135M  # of the random model
    context: int = 1280
    rounds: int = 3
    prompt: int = 32
    new: int = 64
    new_of_peers: int = 128
    prefill: int = 400
    after: int = 800  # the prompt after which a decode is timed
    added: int = 1000  # the positions whose cost in a step is measured
    long: int = 8 * CHUNK  # the prompt that is prefilled beside a stream
    prefix: int = 4 * CHUNK + 1  # all but its last token can be found in the prefix cache
    clients: tuple[int, ...] = (1, 8, 32)
    slots: tuple[int, ...] = (1, 8, 32, 64)
    many: int = 32  # streams
    calls: int = 16  # of a compiled program, for one figure
    read: int = 512 * MEBIBYTE  # bytes, far more than the caches hold
    matrix: int = 2048  # the side of the matrices that are multiplied
    pool: int = 1440  # MiB of keys and values whose server's memory is measured

    @property
    def longest(self) -> int:
        """The positions of the longest sequence that a peer is asked for, rounded up to 1,024s."""
        return -(-(self.after + self.new_of_peers) // 1024) * 1024


QUICK_PLAN = BenchPlan(
    RandomModel((512, 64, 128, 2, 2, 1), LLAMA_135M.entries), context=1152, rounds=1, new=24, new_of_peers=16,
    long=3 * CHUNK, prefix=3 * CHUNK + 1, clients=(1, 8), slots=(1, 8), many=9, read=64 * MEBIBYTE, matrix=256, pool=64,
)  # fmt: skip


@dataclass
class Bench:
    """The model in one dtype, and what is made from it once a group asks for it."""

    plan: BenchPlan
    dtype: str
    checkpoint: Checkpoint
    scratch: Path
    peers: Sequence[str | CompletionsClient] = ()  # names of installed ones, and running ones
    baseline: Path | None = None  # an interpreter that has another version of gnomon
    said: set[str] = field(default_factory=set)  # what the engines say about themselves when they are made
    _engines: dict[tuple[int | None, int], JaxEngine] = field(default_factory=dict)
    _rng: np.random.Generator = field(default_factory=np.random.default_rng)  # unseeded: servers remember prompts

    def compare(
        self, name: str, unit: str, ours: Callable[[], float], other: str, theirs: Callable[[], float],
        target: float | None = None,
    ) -> Ratio:  # fmt: skip
        seen = interleaved(self.plan.rounds, {"ours": ours, "theirs": theirs})
        return Ratio(name, unit, seen["ours"], seen["theirs"], other, target)

    def prompts(self, count: int, length: int) -> list[list[int]]:
        """Random ids, other ones at every call, so that no prefix is known."""
        prompts: list[list[int]] = self._rng.integers(1, self.checkpoint.config.vocab_size, (count, length)).tolist()
        return prompts

    # ---- engines

    def engine(self, slots: int | None = None, chunk: int = CHUNK) -> JaxEngine:
        """An engine of these shapes, by default with the slots of a default one. Its pool is smaller than a default
        one's, which no step sees: four contexts, and 256 positions for each slot that was asked for."""
        if (slots, chunk) not in self._engines:
            pool = max(4 * self.checkpoint.config.max_position_embeddings, 256 * (slots or 0))
            chosen = {} if slots is None else {"slots": slots}
            self._engines[slots, chunk] = self.new_engine(**chosen, chunk=chunk, pool_tokens=pool)
        return self._engines[slots, chunk]

    def new_engine(self, **settings: Any) -> JaxEngine:
        """With the servers' compilation cache: without one an engine computes in another way than `gnomon serve`."""
        cache = self.scratch / "cache" / "gnomon" / "jax"
        return JaxEngine(
            self.checkpoint,
            EngineSettings(dtype=self.dtype, compilation_cache=cache, **settings),
            lambda line: self.said.add(line) if line.startswith("products by ") else None,
        )

    def streams(
        self, engine: Engine, count: int, params: SamplingParams = GREEDY_PARAMS, length: int | None = None
    ) -> Streams:
        """length: of the prompts."""
        return run_streams(engine, self.prompts(count, length or self.plan.prompt), self.plan.new, params)

    def step(
        self, engine: JaxEngine, rows: int, params: SamplingParams = GREEDY_PARAMS, length: int | None = None
    ) -> Callable[[], float]:
        """The milliseconds of a decode step with `rows` busy slots, as in the middle of a run: all have begun, none
        has ended."""
        at, load = (rows + self.plan.new) // 2, partial(self.streams, engine, rows, params, length)
        return partial(BarePrograms(engine, BarePrograms.STEP, at, load).milliseconds, self.plan.calls)

    def chunk(self, engine: JaxEngine, length: int) -> Callable[[], float]:
        """The milliseconds of the last chunk of a prompt's prefill."""
        number = -(-length // engine.settings.chunk)
        bare = BarePrograms(
            engine, ["prefill"], number, lambda: run_streams(engine, self.prompts(1, length), 1, GREEDY_PARAMS)
        )
        return partial(bare.milliseconds, self.plan.calls)

    def close(self) -> None:
        for engine in self._engines.values():
            engine.stop()
        self._engines.clear()

    # ---- servers

    def serving(self, *options: object, cache: Path | None = None) -> AbstractContextManager[RunningServer]:
        """`gnomon serve` of this model; compiled programs are kept in `cache`, by default one of this run."""
        return serving(self.checkpoint, self.dtype, cache or self.scratch / "cache", *options)

    def versions(self) -> Mapping[str, Callable[..., AbstractContextManager[RunningServer]]]:
        """`serving` of this version and, if it was asked for, of the baseline."""
        if self.baseline is None:
            return {"ours": self.serving}
        return {"ours": self.serving, "baseline": self._serving_baseline}

    def _serving_baseline(self, *options: object, cache: Path | None = None) -> AbstractContextManager[RunningServer]:
        own = cache or self.scratch / "cache-of-baseline"
        return serving(self.checkpoint, self.dtype, own, *options, python=self.baseline)

    @contextmanager
    def servers(self, *options: object) -> Iterator[dict[str, RunningServer]]:
        """One of each version, all running."""
        with ExitStack() as stack:
            yield {name: stack.enter_context(serve(*options)) for name, serve in self.versions().items()}
