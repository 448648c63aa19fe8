"""The examination's third section: the same requests alone, among neighbours, backwards from a warm prefix cache, and
on a second engine."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.tools.examined import NAME, SEED, Examination, ExaminedModel, SayLine
from gnomon.jax_engine.tools.measure import DTYPES
from gnomon.reference.completion import prepare
from gnomon.reference.request import CompletionRequest
from gnomon.reference.tokenizer import Tokenizer


def same_bytes(examined: ExaminedModel, found: Examination, say: SayLine) -> list[str]:
    """The same requests must give the same bytes of `choices` whatever else the engine does or did."""
    say("same bytes: requests alone; among neighbours; all at once, backwards, from a warm cache; on a second engine")
    titles = f"{'under load':>13}{'neighbours':>12}{'backwards':>12}{'cached ids':>12}{'second':>12}"
    say(f"  {'answers that differ':<21}{titles}   its fingerprint")
    problems = []
    for dtype in DTYPES:
        part = found[dtype] = compare_bytes(examined, dtype)
        differing = {
            name: f"{part[name]['differing']} of {part[name]['answers']}"
            for name in ("under_load", "backwards", "second_engine")
        }
        same = part["second_engine"]["fingerprint"] == part["fingerprint"]
        say(
            f"  {dtype:<21}{differing['under_load']:>13}{part['under_load']['neighbours']:>12,}"
            f"{differing['backwards']:>12}{part['backwards']['cached_tokens']:>12,}{differing['second_engine']:>12}"
            f"   {'the same' if same else 'another: nothing is promised'}"
        )
        promised = ("under_load", "backwards", "second_engine") if same else ("under_load", "backwards")
        if not part["under_load"]["neighbours"]:
            problems.append(f"{dtype}: no neighbour had its answer before the requests had theirs")
        problems += [
            f"{dtype}: {differing[name]} answers differ ({name.replace('_', ' ')})"
            for name in promised
            if part[name]["differing"]
        ]
    return problems


def compare_bytes(examined: ExaminedModel, dtype: str) -> Examination:
    """How many answers differ from those of a fresh engine that does nothing else."""
    engine, bodies, repeats = examined.engine(dtype, 1), examined.bodies(1), examined.extent.repeats

    def ask(body: Mapping[str, Any]) -> tuple[str, int]:
        return choices_of(engine, examined.tokenizer, body)

    alone = [ask(body)[0] for body in bodies]
    load = Neighbours(examined, engine)
    with load:
        loaded = [ask(body)[0] for _ in range(repeats) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        backwards = list(pool.map(ask, bodies[::-1]))[::-1]
    second = examined.engine(dtype, 0)
    elsewhere = [choices_of(second, examined.tokenizer, body)[0] for body in bodies]
    cached = sum(tokens for _, tokens in backwards)
    return {
        "fingerprint": engine.fingerprint,
        "under_load": {**_compared(alone * repeats, loaded), "neighbours": load.visits},
        "backwards": {**_compared(alone, [choices for choices, _ in backwards]), "cached_tokens": cached},
        "second_engine": {**_compared(alone, elsewhere), "fingerprint": second.fingerprint},
    }


def choices_of(engine: JaxEngine, tokenizer: Tokenizer, body: Mapping[str, Any]) -> tuple[str, int]:
    """The bytes of the choices, and how many prompt tokens the prefix cache had: the one thing that may differ."""
    whole = prepare(CompletionRequest.from_fields(body), engine, tokenizer, NAME).whole()
    return json.dumps([choice.to_json() for choice in whole.choices]), whole.usage.cached_tokens if whole.usage else 0


def _compared(expected: Sequence[str], given: Sequence[str]) -> Examination:
    return {"answers": len(given), "differing": sum(a != b for a, b in zip(expected, given, strict=True))}


class Neighbours:
    """Random neighbours that come and go while the context is open; a third of them leave in the middle."""

    def __init__(self, examined: ExaminedModel, engine: JaxEngine) -> None:
        self.visits = 0
        self._examined, self._engine = examined, engine
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(examined.extent.neighbours)

    def __enter__(self) -> None:
        self._neighbours = [
            self._pool.submit(self._visit, number) for number in range(self._examined.extent.neighbours)
        ]

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._pool.shutdown()
        self.visits = sum(neighbour.result() for neighbour in self._neighbours)

    def _visit(self, number: int) -> int:
        rng, visits = random.Random(SEED + number), 0
        while not self._over.is_set():
            request = CompletionRequest.from_fields(self._body(rng))
            leaves_after = rng.randint(1, 8) if rng.random() < 1 / 3 else request.max_tokens * request.n + 1
            run = prepare(request, self._engine, self._examined.tokenizer, NAME)
            with closing(run.chunks()) as chunks:
                for read, _ in enumerate(chunks, 1):
                    if read == leaves_after or self._over.is_set():
                        break
            visits += 1
        return visits

    def _body(self, rng: random.Random) -> dict[str, Any]:
        vocab_size, longest = self._examined.config.vocab_size, self._examined.longest
        return {
            "model": NAME,
            "prompt": [rng.randrange(vocab_size) for _ in range(rng.choice([1, 7, rng.randint(1, longest // 2)]))],
            "max_tokens": rng.randint(1, longest // 4),
            "temperature": rng.choice([0, 0.7, 1.3]),
            "top_p": rng.choice([1, 0.9]),
            "frequency_penalty": rng.choice([0, 0.5]),
            "logit_bias": {str(rng.randrange(vocab_size)): 2.5},
            "n": rng.randint(1, 3),
            "seed": rng.randint(0, 2**31),
            "stream": True,
        }
