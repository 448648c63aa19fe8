"""Rows about the engine in this process: what it reaches of the machine's limits, and what its parts cost."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.settings import bytes_per_token
from gnomon.jax_engine.tools.clients import GREEDY_PARAMS, arriving, run_streams
from gnomon.jax_engine.tools.measure import ArithmeticLimit, ReadLimit, cores, interleaved
from gnomon.jax_engine.tools.ratios import NotMeasured, Ratio, Ratios
from gnomon.jax_engine.tools.workbench import CHUNK, LOADS, ROWS, Bench, BenchPlan
from gnomon.reference.checkpoint.tensor_table import expected_tensors
from gnomon.reference.engine import JobRequest
from gnomon.reference.sampler import SamplingParams

BUSY = 4  # processes
LEAST_MS = 1e-3  # a difference of two times may come out as nothing, or less


class MachineLimits:
    """Bytes/s read and operations/s, measured like any other side."""

    def __init__(self, plan: BenchPlan, dtype: str) -> None:
        scale = 1 if jax.default_backend() == "cpu" else 4  # an accelerator is done with less before it has begun
        self.read = ReadLimit(scale * plan.read).rate
        self.multiply = ArithmeticLimit(scale * plan.matrix, dtype).rate


def against_limit(
    name: str, engine: JaxEngine, sequences: int, tokens: int, seen: float, head: bool,
    took: Sequence[float], limits: Mapping[str, Sequence[float]], target: float | None = None,
) -> Ratio:  # fmt: skip
    """A program's milliseconds against the longer of the times that its reading and its arithmetic need at least.

    It takes `tokens` new tokens in each of `sequences`, each attending to `seen` positions, and applies the head or
    not. Every matrix is read once, and so are the keys and values of every sequence.
    """
    c, itemsize = engine.config, jnp.dtype(engine.settings.dtype).itemsize
    shapes = expected_tensors(c)
    matrices = sum(int(np.prod(shape)) for name, shape in shapes.items() if ".layers." in name and len(shape) == 2)
    matrices += c.vocab_size * c.hidden_size if head else 0
    attention = 4 * c.num_attention_heads * c.head_dim * c.num_hidden_layers * seen
    needs = {
        "read": matrices * itemsize + sequences * seen * bytes_per_token(c, engine.settings),
        "multiply": sequences * tokens * (2 * matrices + attention),
    }
    which = max(needs, key=lambda side: needs[side] / median(limits[side]))
    unit, of = {"read": ("B", "bandwidth"), "multiply": ("FLOP", "arithmetic")}[which]
    other = f"the {of} limit: {needs[which] / 1e9:.3g} G{unit} at {median(limits[which]) / 1e9:.3g} G{unit}/s"
    return Ratio(name, "ms", took, [1e3 * needs[which] / rate for rate in limits[which]], other, target)


def decode_rows(bench: Bench) -> Ratios:
    """Transformer, head and sampler with so many live rows against what memory and arithmetic allow."""
    plan, limits, engine = bench.plan, MachineLimits(bench.plan, bench.dtype), bench.engine()
    kinds = [(rows, load) for rows in (1, ROWS) for load in LOADS]
    names = {f"decode step, {rows} row{'s' * (rows > 1)}, {load}": (rows, load) for rows, load in kinds}
    steps = {name: bench.step(engine, rows, LOADS[load]) for name, (rows, load) in names.items()}
    seen = interleaved(plan.rounds, steps | {"read": limits.read, "multiply": limits.multiply})
    for name, (rows, load) in names.items():
        attended = plan.prompt + plan.new / 2
        target = 0.65 if (rows, load) == (1, "greedy") else None
        yield against_limit(name, engine, rows, 1, attended, True, seen[name], seen, target)


def prefill_rows(bench: Bench) -> Ratios:
    """A whole chunk, the third of its prompt, without the head, against the same limits."""
    engine, limits = bench.engine(), MachineLimits(bench.plan, bench.dtype)
    sides = {"chunk": bench.chunk(engine, 3 * CHUNK), "read": limits.read, "multiply": limits.multiply}
    seen = interleaved(bench.plan.rounds, sides)
    yield against_limit(f"prefill of a chunk of {CHUNK}", engine, 1, CHUNK, 2.5 * CHUNK, False, seen["chunk"], seen)


def length_rows(bench: Bench) -> Ratios:
    """What a longer past of one row adds to a step, against reading its keys and values."""
    engine, plan = bench.engine(), bench.plan
    steps = {
        "short": bench.step(engine, 1, length=plan.prompt),
        "long": bench.step(engine, 1, length=plan.prompt + plan.added),
    }
    seen = interleaved(plan.rounds, steps | {"read": MachineLimits(plan, bench.dtype).read})
    added = [max(long - short, LEAST_MS) for short, long in zip(seen["short"], seen["long"], strict=True)]
    size = plan.added * bytes_per_token(engine.config, engine.settings)
    reading = [1e3 * size / rate for rate in seen["read"]]
    other = f"reading their {size / 1e6:.3g} MB"
    yield Ratio(f"what {plan.added:,} positions of one row add to a step", "ms", added, reading, other, most=3.0)


def overhead(bench: Bench) -> Ratios:
    """Tokens/s through `submit` while so many streams run against the compiled step, called again and again."""
    engine = bench.engine()

    def ours(rows: int, params: SamplingParams) -> float:
        return bench.streams(engine, rows, params).steady_rate()

    def theirs(rows: int, step: Callable[[], float]) -> float:
        return 1e3 * rows / step()

    for rows, target in ((1, None), (ROWS, 0.95)):
        for load, params in LOADS.items():
            bare = partial(theirs, rows, bench.step(engine, rows, params))
            name = f"engine, {rows} stream{'s' * (rows > 1)}, {load}"
            yield bench.compare(name, "tok/s", partial(ours, rows, params), "the bare jitted step", bare, target)


def beside_others(bench: Bench) -> Ratios:
    """A step while other processes take all the time that they are given, against what the system leaves of one: with
    a thread for each core, that many of all that want to run."""
    step = bench.step(bench.engine(), ROWS)
    times = (cores() + BUSY) / cores()

    def disturbed() -> float:
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY)]
        try:
            time.sleep(0.5)  # until they run
            return step()
        finally:
            for other in others:
                other.kill()
                other.wait()

    name = f"decode step, {ROWS} rows, beside {BUSY} busy processes"
    yield bench.compare(name, "ms", disturbed, f"{times:g} times one alone", lambda: times * step(), 0.6)


def transformers(bench: Bench) -> Ratios:
    """transformers' `generate` on the same weights and the CPU; on both sides from the prompt to the last token."""
    plan, new = bench.plan, bench.plan.new
    absent = [package for package in ("torch", "transformers") if importlib.util.find_spec(package) is None]
    if absent or jax.default_backend() != "cpu":
        why = f"{' and '.join(absent)} not installed" if absent else f"jax runs on {jax.default_backend()}"
        yield NotMeasured("against transformers generate", why)
        return
    os.environ["HF_HUB_OFFLINE"] = "1"  # before the import: the model is a local directory
    torch, hf = map(importlib.import_module, ("torch", "transformers"))
    hf.utils.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    torch.set_num_threads(cores())
    model = hf.AutoModelForCausalLM.from_pretrained(bench.checkpoint.path, dtype=getattr(torch, bench.dtype)).eval()

    def theirs(count: int, length: int, new: int, params: SamplingParams) -> float:
        how = {"do_sample": True, "temperature": params.temperature, "top_p": params.top_p, "top_k": 0}
        how = how if params.temperature > 0 else {"do_sample": False}
        began = time.perf_counter()
        ids = torch.tensor(bench.prompts(count, length))
        how |= {"max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **how)
        assert out.shape == (count, length + new)
        return count * new / (time.perf_counter() - began)

    def ours(count: int, params: SamplingParams) -> float:
        return bench.streams(bench.engine(), count, params).rate()

    other = f"transformers generate, {cores()} threads"
    for count, target in ((1, 1.3), (ROWS, 0.95 if bench.dtype == "float32" else 2.0)):
        for load, params in LOADS.items():
            batch = partial(theirs, count, plan.prompt, new, params)
            name = f"{count} at once, {plan.prompt} + {new} tokens, {load}"
            yield bench.compare(name, "tok/s", partial(ours, count, params), other, batch, target)
    yield bench.compare(
        f"prefill of {plan.prefill} and a token",
        "tok/s",
        lambda: plan.prefill * run_streams(bench.engine(), bench.prompts(1, plan.prefill), 1, GREEDY_PARAMS).rate(),
        other,
        lambda: plan.prefill * theirs(1, plan.prefill, 1, GREEDY_PARAMS),
        1.0,
    )


def live_slots(bench: Bench) -> Ratios:
    """What each number of slots costs one stream, and what it gives to many, against the default number."""
    plan, default = bench.plan, bench.engine()
    new = {1: plan.new, plan.many: plan.new // 2}  # with one slot, many streams take their time

    def rate(engine: JaxEngine, count: int) -> float:
        return run_streams(engine, bench.prompts(count, plan.prompt), new[count], GREEDY_PARAMS).rate()

    for count in new:
        sides = {slots: partial(rate, bench.engine(slots), count) for slots in plan.slots}
        seen = interleaved(
            plan.rounds,
            {str(slots): side for slots, side in sides.items()} | {"default": partial(rate, default, count)},
        )
        for slots in plan.slots:
            other = f"the default of {default.settings.slots} slots"
            name = f"--slots {slots}, {'one stream' if count == 1 else f'{count} streams'}"
            yield Ratio(name, "tok/s", seen[str(slots)], seen["default"], other)


def chunks(bench: Bench) -> Ratios:
    """What the one compiled length of a chunk costs where a shorter one would do."""
    small = CHUNK // 4
    short, long = bench.chunk(bench.engine(chunk=small), small), bench.chunk(bench.engine(), small)
    yield bench.compare(f"prefill of {small} in a chunk of {CHUNK}", "ms", long, f"in one of {small}", short)


def first_token(bench: Bench) -> Ratios:
    """The same prompt, unknown and then known."""
    length = bench.plan.prefix
    known = bench.prompts(1, length)

    def warm() -> float:
        streams = run_streams(bench.engine(), known, 1, GREEDY_PARAMS)
        return 1e3 * (streams.times[0][0] - streams.began)

    def cold() -> float:
        known[:] = bench.prompts(1, length)
        return warm()

    seen = interleaved(bench.plan.rounds, {"cold": cold, "warm": warm})
    yield Ratio(f"first token of a prompt of {length}, warm prefix", "ms", seen["warm"], seen["cold"], "cold prefix")


def long_prefill(bench: Bench) -> Ratios:
    """The time between two tokens of a stream while a long prompt is prefilled, and before."""
    engine, plan = bench.engine(), bench.plan

    def gaps() -> tuple[float, float]:
        params = replace(GREEDY_PARAMS, max_tokens=plan.new)
        stream = arriving(
            engine.submit(JobRequest(bench.prompts(1, plan.prompt), [0], params, candidates=1, top=0, score=False))
        )
        with ThreadPoolExecutor(1) as pool:
            alone = [next(stream) for _ in range(plan.new // 4)]
            beside = pool.submit(run_streams, engine, bench.prompts(1, plan.long), 1, GREEDY_PARAMS)
            both = [alone[-1], *stream]
        steps = [1e3 * (after - before) for before, after in pairwise(both) if before < beside.result().times[0][0]]
        return median(steps), median(1e3 * (after - before) for before, after in pairwise(alone))

    ours, theirs = zip(*[gaps() for _ in range(plan.rounds + 1)][1:], strict=True)
    yield Ratio(f"between two tokens, prefill of {plan.long} under way", "ms", ours, theirs, "the same stream before")
