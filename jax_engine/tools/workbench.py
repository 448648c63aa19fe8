"""What is measured, and how much: the model in one dtype, its engines and servers, and prompts for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.settings import NATIVE_SLOTS, EngineSettings
from gnomon.jax_engine.tools.bare import BarePrograms
from gnomon.jax_engine.tools.clients import CompletionsClient, RunningServer, Streams, run_streams, serving
from gnomon.jax_engine.tools.measure import LLAMA_135M, MEBIBYTE, interleaved
from gnomon.jax_engine.tools.ratios import Ratio
from gnomon.reference.checkpoint.load import Checkpoint
from gnomon.reference.engine import Engine
from gnomon.reference.sampler import SamplingParams

SLOTS, CHUNK = NATIVE_SLOTS, EngineSettings().chunk
GREEDY_PARAMS = SamplingParams(temperature=0.0)  # end_ids is empty: nothing ends early
LOADS = {"greedy": GREEDY_PARAMS, "temperature 0.8 and top_p 0.95": SamplingParams(temperature=0.8, top_p=0.95)}


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """How much is measured; lengths in tokens."""

    shape: tuple[int, ...] = LLAMA_135M  # of the random model
    context: int = 2048
    rounds: int = 3
    prompt: int = 32
    new: int = 64
    new_of_peers: int = 128
    prefill: int = 400
    long: int = 8 * CHUNK  # the prompt that is prefilled beside a stream
    prefix: int = 4 * CHUNK + 1  # all but its last token can be found in the prefix cache
    clients: tuple[int, ...] = (1, 8, 32)
    calls: int = 8  # of a compiled program, for one figure
    read: int = 512 * MEBIBYTE  # bytes, far more than the caches hold
    matrix: int = 2048  # the side of the matrices that are multiplied
    small_pool: int = 256  # MiB of keys and values


QUICK_PLAN = BenchPlan(
    (512, 64, 128, 2, 4, 2), context=512, rounds=1, new=24, new_of_peers=16, long=3 * CHUNK, prefix=3 * CHUNK + 1,
    clients=(1, 8), read=64 * MEBIBYTE, matrix=256, small_pool=16,
)  # fmt: skip


@dataclass
class Bench:
    """The model in one dtype, and what is made from it once a group asks for it."""

    plan: BenchPlan
    dtype: str
    checkpoint: Checkpoint
    scratch: Path
    peers: Sequence[CompletionsClient]
    said: set[str]  # what the engines say about themselves when they are made
    _engines: dict[tuple[int, int], JaxEngine] = field(default_factory=dict)
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

    def engine(self, slots: int = SLOTS, chunk: int = CHUNK) -> JaxEngine:
        """An engine of these shapes; its pool holds a context a slot, not the default's four: no step sees that."""
        if (slots, chunk) not in self._engines:
            pool = max(slots, 2) * self.checkpoint.config.max_position_embeddings
            self._engines[slots, chunk] = self.new_engine(slots=slots, chunk=chunk, pool_tokens=pool)
        return self._engines[slots, chunk]

    def new_engine(self, **settings: Any) -> JaxEngine:
        """With the servers' compilation cache: without one an engine computes in another way than `gnomon serve`."""
        cache = self.scratch / "cache" / "gnomon" / "jax"
        return JaxEngine(
            self.checkpoint,
            EngineSettings(dtype=self.dtype, compilation_cache=cache, **settings),
            lambda line: self.said.add(line) if line.startswith("products by ") else None,
        )

    def streams(self, engine: Engine, count: int, params: SamplingParams = GREEDY_PARAMS) -> Streams:
        return run_streams(engine, self.prompts(count, self.plan.prompt), self.plan.new, params)

    def step(self, engine: JaxEngine, rows: int, params: SamplingParams = GREEDY_PARAMS) -> Callable[[], float]:
        """The milliseconds of a decode step with `rows` busy slots, as in the middle of a run: all have begun, none
        has ended."""
        bare = BarePrograms(
            engine, BarePrograms.STEP, (rows + self.plan.new) // 2, lambda: self.streams(engine, rows, params)
        )
        return partial(bare.milliseconds, self.plan.calls)

    def chunk(self, engine: JaxEngine, length: int) -> Callable[[], float]:
        """The milliseconds of the last chunk of a prompt's prefill."""
        number = -(-length // engine.settings.chunk)
        bare = BarePrograms(
            engine, ["prefill"], number, lambda: run_streams(engine, self.prompts(1, length), 1, GREEDY_PARAMS)
        )
        return partial(bare.milliseconds, self.plan.calls)

    def http_rate(self, client: CompletionsClient, count: int, stream: bool = False) -> float:
        return client.rate(self.prompts(count, self.plan.prompt), self.plan.new, stream)

    def serving(self, *options: object, cache: Path | None = None) -> AbstractContextManager[RunningServer]:
        """`gnomon serve` of this model; compiled programs are kept in `cache`, by default one of this run."""
        return serving(self.checkpoint, self.dtype, cache or self.scratch / "cache", *options)

    def close(self) -> None:
        for engine in self._engines.values():
            engine.stop()
        self._engines.clear()
