"""Same request, same bytes, whatever else the engine is doing. Exact: not a margin, not a tolerance."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.settings import EngineSettings
from gnomon.reference.checkpoint.load import Checkpoint
from gnomon.reference.completion import EngineFailed, prepare
from gnomon.reference.request import CompletionRequest
from gnomon.reference.tokenizer import Tokenizer
from helpers.judge import random_request

CONTEXT = 256
SETTINGS = EngineSettings(slots=4, page_size=8, chunk=32, pool_tokens=2048)


SLOWER = [pytest.param(name, marks=pytest.mark.slow) for name in ("bfloat16", "native float32", "native bfloat16")]


@pytest.fixture(scope="module", params=["float32", *SLOWER])
def engine(request: pytest.FixtureRequest, model: tuple[Checkpoint, Tokenizer]) -> Iterator[JaxEngine]:
    *native, dtype = request.param.split()
    cache = request.getfixturevalue("native_cache" if native else "engine_cache")
    engine = JaxEngine(model[0], settings(dtype=dtype, native=bool(native), compilation_cache=cache))
    if native and engine.device.kernels.description == "XLA":
        engine.stop()
        pytest.skip("no C++ compiler here")
    yield engine
    engine.stop()


def settings(**changes: Any) -> EngineSettings:
    return EngineSettings(**{name: getattr(SETTINGS, name) for name in SETTINGS.__slots__} | changes)


def bodies(vocab_size: int, count: int = 6) -> list[dict[str, Any]]:
    """The requests whose bytes are compared: greedy and sampled, all with logprobs, short and over several chunks."""
    rng = random.Random(4)
    long = [rng.randrange(vocab_size) for _ in range(150)]
    common = {"model": "m", "logprobs": 5, "max_tokens": 12, "seed": 11}
    return [
        {**common, "prompt": "the old house", "temperature": 0},
        {**common, "prompt": "the old house", "temperature": 1, "n": 3, "top_p": 0.9},
        {**common, "prompt": long, "temperature": 0.8, "n": 2, "best_of": 4, "frequency_penalty": 0.7},
        {**common, "prompt": [long[:90], long[:64], [5]], "temperature": 1.3, "presence_penalty": 1.0},
        {**common, "prompt": long, "echo": True, "temperature": 0.5},
        {**common, "prompt": long[:65], "logit_bias": {"7": 3.5}, "stop": ["e"], "max_tokens": 40},
    ][:count]


def answer(engine: JaxEngine, tokenizer: Tokenizer, body: dict[str, Any]) -> str:
    """The bytes of the choices; `cached_tokens` is the one thing that may differ, and is not among them."""
    run = prepare(CompletionRequest.from_fields(body), engine, tokenizer, "m")
    try:
        return json.dumps([choice.to_json() for choice in run.whole().choices])
    except EngineFailed as error:
        return f"failed: {error}"


def joined(engine: JaxEngine, tokenizer: Tokenizer, body: dict[str, Any]) -> str:
    """The same from a stream's chunks."""
    run = prepare(CompletionRequest.from_fields({**body, "stream": True}), engine, tokenizer, "m")
    whole: dict[int, dict[str, Any]] = {}
    for chunk in run.chunks():
        for piece in (choice.to_json() for choice in chunk.choices):
            if piece["index"] not in whole:
                whole[piece["index"]] = piece
                continue
            choice = whole[piece["index"]]
            choice["text"] += piece["text"]
            choice["finish_reason"] = piece["finish_reason"]
            for name, array in piece["logprobs"].items():
                choice["logprobs"][name] += array
    return json.dumps([whole[index] for index in sorted(whole)])


def alone(engine: JaxEngine, tokenizer: Tokenizer) -> list[str]:
    return [answer(engine, tokenizer, body) for body in bodies(engine.vocab_size)]


def under_load(engine: JaxEngine, tokenizer: Tokenizer, neighbours: int, run: Callable[[], list[str]]) -> list[str]:
    """What `run` gives while random neighbours come and go; a third of them leave in the middle."""
    stop = threading.Event()

    def neighbour(number: int) -> int:
        rng, done = random.Random(number), 0
        while not stop.is_set():
            body = random_request(rng, engine.vocab_size, engine.context)
            run = prepare(CompletionRequest.from_fields({**body, "stream": False}), engine, tokenizer, "m")
            if rng.random() < 0.33:
                chunks = run.chunks()
                next(chunks, None)
                chunks.close()
            else:
                run.whole()
            done += 1
        return done

    with ThreadPoolExecutor(neighbours) as pool:
        others = [pool.submit(neighbour, number) for number in range(neighbours)]
        try:
            given = run()
        finally:
            stop.set()
        assert sum(other.result() for other in others) >= 1
    return given


def in_threads(engine: JaxEngine, tokenizer: Tokenizer, order: list[int]) -> list[str]:
    all_bodies = bodies(engine.vocab_size)
    with ThreadPoolExecutor(len(order)) as pool:
        futures = {i: pool.submit(answer, engine, tokenizer, all_bodies[i]) for i in order}
    return [futures[i].result() for i in range(len(all_bodies))]


@pytest.mark.parametrize("neighbours", [7, pytest.param(40, marks=pytest.mark.slow)])
def test_neighbours_that_come_and_go_change_no_byte(
    engine: JaxEngine, model: tuple[Checkpoint, Tokenizer], neighbours: int
) -> None:
    tokenizer = model[1]
    expected = alone(engine, tokenizer)
    assert under_load(engine, tokenizer, neighbours, lambda: alone(engine, tokenizer)) == expected


def test_a_warm_prefix_cache_changes_no_byte(engine: JaxEngine, model: tuple[Checkpoint, Tokenizer]) -> None:
    tokenizer = model[1]
    fresh = JaxEngine(model[0], engine.settings)
    try:
        cold = alone(fresh, tokenizer)
        assert alone(fresh, tokenizer) == cold
        body = bodies(fresh.vocab_size)[2]
        run = prepare(CompletionRequest.from_fields(body), fresh, tokenizer, "m").whole()
        assert run.usage is not None
        assert run.usage.cached_tokens == 128  # four chunks of 32 out of 150; the last, partial one is never taken
    finally:
        fresh.stop()
    assert fresh.fingerprint == engine.fingerprint
    assert alone(engine, tokenizer) == cold  # another process's life, other traffic before: the same bytes


def test_the_order_of_arrival_changes_no_byte(engine: JaxEngine, model: tuple[Checkpoint, Tokenizer]) -> None:
    expected = alone(engine, model[1])
    assert in_threads(engine, model[1], [5, 3, 1, 0, 2, 4]) == expected
    assert in_threads(engine, model[1], [0, 1, 2, 3, 4, 5]) == expected


def test_a_stream_joins_to_the_same_bytes(engine: JaxEngine, model: tuple[Checkpoint, Tokenizer]) -> None:
    for body in bodies(engine.vocab_size):
        if body.get("best_of", 1) <= body.get("n", 1):
            assert joined(engine, model[1], body) == answer(engine, model[1], body)


def test_nan_in_every_free_page_changes_no_byte(engine: JaxEngine, model: tuple[Checkpoint, Tokenizer]) -> None:
    expected = alone(engine, model[1])
    poisoned = threading.Event()

    def poison(_: object) -> None:
        held = set(engine._scheduler.pool.held())
        free = np.array([page for page in range(1, engine._scheduler.pool.size + 1) if page not in held])
        engine.device.cache = [(k.at[free].set(jnp.nan), v.at[free].set(jnp.nan)) for k, v in engine.device.cache]
        poisoned.set()

    engine.post(poison)
    assert poisoned.wait(10)
    assert alone(engine, model[1]) == expected


@pytest.mark.slow
def test_a_pool_so_small_that_requests_wait_changes_no_byte(
    model: tuple[Checkpoint, Tokenizer], engine_cache: Path
) -> None:
    kept: dict[str, Any] = {"native": False, "compilation_cache": engine_cache}
    roomy, tight = (JaxEngine(model[0], settings(pool_tokens=size, **kept)) for size in (2048, CONTEXT + 8))
    try:
        expected = alone(roomy, model[1])
        assert under_load(tight, model[1], 7, lambda: alone(tight, model[1])) == expected
    finally:
        roomy.stop()
        tight.stop()


def native_answers(model: tuple[Checkpoint, Tokenizer], **changes: Any) -> tuple[str, Any]:
    """The fingerprint of a native engine with these settings, and its answers."""
    engine = JaxEngine(model[0], settings(native=True, **changes))
    try:
        if engine.device.kernels.description == "XLA":
            pytest.skip("no C++ compiler here")
        return engine.fingerprint, alone(engine, model[1])
    finally:
        engine.stop()


@pytest.mark.slow
def test_neither_threads_nor_processors_are_in_the_bytes_or_the_fingerprint(
    model: tuple[Checkpoint, Tokenizer], native_cache: Path
) -> None:
    """One, more than there are processors, and as many as this process may use when it may use one."""
    bound = os.sched_getaffinity(0)
    given = []
    try:
        for threads, processors in ((1, bound), (5, bound), (None, {min(bound)})):
            os.sched_setaffinity(0, processors)
            given.append(native_answers(model, threads=threads, compilation_cache=native_cache))
    finally:
        os.sched_setaffinity(0, bound)
    assert given[1:] == given[:1] * 2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_natively_neither_slots_nor_threads_nor_the_pool_are_in_the_bytes_or_the_fingerprint(
    model: tuple[Checkpoint, Tokenizer], native_cache: Path, dtype: str
) -> None:
    given = []
    for slots, threads, pool in ((1, 1, 2048), (8, 2, 1024), (32, 1, 2048), (40, 2, 4096)):
        sizes: dict[str, Any] = {"slots": slots, "threads": threads, "pool_tokens": pool, "dtype": dtype}
        given.append(native_answers(model, compilation_cache=native_cache, **sizes))
    assert given[1:] == given[:1] * 3
