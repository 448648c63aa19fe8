"""What is examined: a model, the engines that are started for it, and a fixed set of requests."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.settings import MOST_CONTEXTS, EngineSettings, default_pool_tokens
from gnomon.jax_engine.tools.lines import without_names
from gnomon.reference.checkpoint.load import Checkpoint, default_model_path
from gnomon.reference.engine import ReferenceEngine
from gnomon.reference.tokenizer import Tokenizer

Examination = dict[str, Any]  # what json.dumps takes
SayLine = Callable[[str], None]

SEED = 20261123
NAME = "m"  # the id under which requests are prepared


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of everything is done."""

    rounds: int  # of the set of requests that is judged
    tokens: int  # sampled for a candidate
    longest: int  # positions of a request at most; the reference's work grows with the square of it
    repeats: int  # of the set of requests whose bytes are compared, under load
    neighbours: int
    timings: int  # of everything that is timed
    cpu_bytes: int  # of the array that is read for the bandwidth
    gpu_bytes: int
    large_model: bool


FULL_EXTENT = Extent(6, 48, 512, 3, 16, timings=15, cpu_bytes=2**29, gpu_bytes=2**32, large_model=True)
QUICK_EXTENT = Extent(1, 12, 288, 1, 5, timings=5, cpu_bytes=2**27, gpu_bytes=2**30, large_model=False)


class ExaminedModel:
    """What is examined: a model, and the engines that are started for it. cache: see EngineSettings."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        extent: Extent,
        cache: Path | None = None,
        announce: SayLine = lambda line: None,
    ) -> None:
        self.announce = announce  # is told before what takes long
        self.checkpoint, self.tokenizer, self.extent, self.cache = checkpoint, tokenizer, extent, cache
        self.notes: list[str] = []  # what the engine said last while it started, but for the times of compilation
        self.config = checkpoint.config
        self.embedded = checkpoint.path == default_model_path()
        self.longest = min(self.config.max_position_embeddings, extent.longest)
        self._engines: dict[tuple[str, int], JaxEngine] = {}

    @cached_property
    def reference(self) -> ReferenceEngine:
        return ReferenceEngine(self.checkpoint)

    def engine(self, dtype: str, number: int = 0) -> JaxEngine:
        """The engine of that number; started, with every program compiled anew, when it is first asked for."""
        if (dtype, number) not in self._engines:
            jax.clear_caches()  # type: ignore[no-untyped-call]
            said: list[str] = []
            settings = self.settings(dtype)
            self._engines[dtype, number] = JaxEngine(self.checkpoint, settings, said.append, self.announce)
            self.notes = [without_names(line) for line in said if not line.startswith("compiled ")]
        return self._engines[dtype, number]

    def settings(self, dtype: str) -> EngineSettings:
        """Those of `gnomon serve`, but for a smaller pool where the context is long: several engines live here at
        once."""
        plain = EngineSettings(dtype=dtype, compilation_cache=self.cache)
        enough = max(MOST_CONTEXTS * FULL_EXTENT.longest, self.config.max_position_embeddings + 2 * plain.page_size)
        return replace(plain, pool_tokens=min(default_pool_tokens(self.config, plain), enough))

    def bodies(self, rounds: int) -> list[dict[str, Any]]:
        """The fixed set of requests, `rounds` times with other prompts and seeds."""
        rng = random.Random(SEED)
        infill = self.tokenizer.infill is not None
        return [
            body
            for _ in range(rounds)
            for body in request_kinds(rng, self.config.vocab_size, self.longest, self.extent.tokens, infill)
        ]

    def stop(self) -> None:
        for engine in self._engines.values():
            engine.stop()
        self._engines.clear()


OPENINGS = (
    "Once upon a time",
    "The little fox",
    "One day, Tom and Lily went to the park.",
    "There was an old house",
    'Mom said, "',
    "A bird sat on the tree and",
)


def request_kinds(rng: random.Random, vocab_size: int, longest: int, tokens: int, infill: bool) -> list[dict[str, Any]]:
    """One request of every kind: greedy, sampled, nucleus, penalties, bias, several prompts and candidates, scores, a
    gap, prompts over several chunks and up to `longest` positions."""
    opening = rng.choice(OPENINGS)
    tokens = min(tokens, longest // 4)
    room = longest - tokens

    def ids(count: int) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(count)]

    bias = {str(v): rng.uniform(-8, 8) for v in ids(5)}
    kinds: list[dict[str, Any]] = [
        {"prompt": opening, "temperature": 0},
        {"prompt": opening, "temperature": 0, "frequency_penalty": 0.9, "presence_penalty": 0.4},
        {"prompt": opening, "temperature": 1, "n": 3},
        {"prompt": opening, "temperature": 0.8, "top_p": 0.9, "n": 2, "best_of": 4},
        {"prompt": opening, "temperature": 1.4, "top_p": 0.5, "frequency_penalty": -0.5, "presence_penalty": 1.2},
        {"prompt": rng.choice(OPENINGS), "temperature": 1, "logit_bias": bias, "stop": ["e", "\n"]},
        {"prompt": None, "temperature": 0.7, "logprobs": 20},
        {"prompt": [ids(1), ids(room // 3), ids(room // 2)], "temperature": 1.2, "top_p": 0.95},
        {"prompt": opening, "temperature": 0.5, "echo": True, "logprobs": 0},
        {"prompt": ids(room), "temperature": 0.9, "n": 2},
        {"prompt": ids(longest), "max_tokens": 0, "echo": True},
    ]
    if infill:
        kinds.append({"prompt": opening, "suffix": " They were happy.", "temperature": 0.8, "n": 2})
    common = {"model": NAME, "max_tokens": tokens, "logprobs": 5}
    return [{**common, "seed": rng.randint(-(2**63), 2**63 - 1), **kind} for kind in kinds]
