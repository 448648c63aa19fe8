"""The groups of the table: each yields rows, once for every dtype."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.settings import bytes_per_token
from gnomon.jax_engine.tools.clients import CompletionsClient, arriving, run_streams
from gnomon.jax_engine.tools.measure import MEBIBYTE, ArithmeticLimit, ReadLimit, cores, interleaved
from gnomon.jax_engine.tools.ratios import NotMeasured, Ratio
from gnomon.jax_engine.tools.workbench import CHUNK, GREEDY_PARAMS, LOADS, SLOTS, Bench, BenchPlan
from gnomon.reference.checkpoint.load import default_model_path, load_checkpoint
from gnomon.reference.checkpoint.tensor_table import expected_tensors
from gnomon.reference.engine import Engine, JobRequest, ReferenceEngine
from gnomon.reference.sampler import SamplingParams

Ratios = Iterator[Ratio | NotMeasured]


class MachineLimits:
    """Bytes/s read and operations/s, measured like any other side."""

    def __init__(self, plan: BenchPlan, dtype: str) -> None:
        scale = 1 if jax.default_backend() == "cpu" else 4  # an accelerator is done with less before it has begun
        self.read = ReadLimit(scale * plan.read).rate
        self.multiply = ArithmeticLimit(scale * plan.matrix, dtype).rate


def against_limit(
    name: str, engine: JaxEngine, sequences: int, tokens: int, seen: float, head: bool,
    took: Sequence[float], limits: Mapping[str, Sequence[float]],
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
    return Ratio(name, "ms", took, [1e3 * needs[which] / rate for rate in limits[which]], other)


def decode_rows(bench: Bench) -> Ratios:
    """Transformer, head and sampler with all slots busy against what memory and arithmetic allow."""
    plan, limits = bench.plan, MachineLimits(bench.plan, bench.dtype)
    kinds = [(slots, load) for slots in (1, SLOTS) for load in LOADS]
    names = {f"decode step, {slots} of {slots} slots busy, {load}": (slots, load) for slots, load in kinds}
    steps = {name: bench.step(bench.engine(slots), slots, LOADS[load]) for name, (slots, load) in names.items()}
    seen = interleaved(plan.rounds, steps | {"read": limits.read, "multiply": limits.multiply})
    for name, (slots, _) in names.items():
        attended = plan.prompt + plan.new / 2
        yield against_limit(name, bench.engine(slots), slots, 1, attended, True, seen[name], seen)


def prefill_rows(bench: Bench) -> Ratios:
    """A whole chunk, the third of its prompt, without the head, against the same limits."""
    engine, limits = bench.engine(), MachineLimits(bench.plan, bench.dtype)
    sides = {"chunk": bench.chunk(engine, 3 * CHUNK), "read": limits.read, "multiply": limits.multiply}
    seen = interleaved(bench.plan.rounds, sides)
    yield against_limit(f"prefill of a chunk of {CHUNK}", engine, 1, CHUNK, 2.5 * CHUNK, False, seen["chunk"], seen)


def overhead(bench: Bench) -> Ratios:
    """Tokens/s through `submit` while all slots are busy against the compiled step, called again and again."""

    def ours(slots: int, params: SamplingParams) -> float:
        return bench.streams(bench.engine(slots), slots, params).steady_rate()

    def theirs(slots: int, step: Callable[[], float]) -> float:
        return 1e3 * slots / step()

    for slots, target in ((1, None), (SLOTS, 0.9)):
        for load, params in LOADS.items():
            bare = partial(theirs, slots, bench.step(bench.engine(slots), slots, params))
            name = f"engine, {slots} of {slots} slots busy, {load}"
            yield bench.compare(name, "tok/s", partial(ours, slots, params), "the bare jitted step", bare, target)


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

    def ours(slots: int, params: SamplingParams) -> float:
        return bench.streams(bench.engine(slots), slots, params).rate()

    other = f"transformers generate, {cores()} threads"
    for slots, target in ((1, 1.3), (SLOTS, 0.95 if bench.dtype == "float32" else 2.0)):
        for load, params in LOADS.items():
            name = f"{slots} at once, --slots {slots}, {plan.prompt} + {new} tokens, {load}"
            batch = partial(theirs, slots, plan.prompt, new, params)
            yield bench.compare(name, "tok/s", partial(ours, slots, params), other, batch, target)
    yield bench.compare(
        f"prefill of {plan.prefill} and a token",
        "tok/s",
        lambda: plan.prefill * run_streams(bench.engine(), bench.prompts(1, plan.prefill), 1, GREEDY_PARAMS).rate(),
        other,
        lambda: plan.prefill * theirs(1, plan.prefill, 1, GREEDY_PARAMS),
        1.0,
    )


def shapes(bench: Bench) -> Ratios:
    """What the one compiled shape costs where a smaller one would do."""
    half, small = SLOTS // 2, CHUNK // 4
    exact = bench.engine(half, small)
    for rows, own in ((1, bench.engine(1)), (half, exact)):
        name = f"decode step of {SLOTS} slots, {rows} busy"
        sides = bench.step(bench.engine(), rows), f"of {rows} slots", bench.step(own, rows)
        yield bench.compare(name, "ms", *sides)
    name = f"prefill of {small} in a chunk of {CHUNK}"
    yield bench.compare(name, "ms", bench.chunk(bench.engine(), small), f"in one of {small}", bench.chunk(exact, small))


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


def start_up(bench: Bench) -> Ratios:
    """`gnomon serve` with an empty cache of compiled programs, then with what it has left there."""
    seen: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
    for _ in range(bench.plan.rounds):
        with tempfile.TemporaryDirectory(dir=bench.scratch) as cache:
            for figures in seen.values():
                with bench.serving(cache=Path(cache)) as server:
                    server.client.ask([1], 1)
                    figures.append((server.ready - server.began, time.perf_counter() - server.began))
    for i, what in enumerate(("it says it serves", "the first answer")):
        warm, cold = ([each[i] for each in figures] for figures in (seen["warm"], seen["cold"]))
        yield Ratio(f"start-up until {what}, warm cache", "s", warm, cold, "cold cache")


def memory_rows(bench: Bench) -> Ratios:
    """The server's peak while it loads and answers long requests in all slots; one round, for it hardly varies."""
    if not Path("/proc/self/status").exists():
        yield NotMeasured("peak memory of the server", "there is no /proc here")
        return
    weights = [bench.checkpoint.parameter_count * jnp.dtype(bench.dtype).itemsize / MEBIBYTE]
    small = bench.plan.small_pool
    for pool, options in (("default pool", ()), (f"pool of {small} MiB", ("--kv-cache-memory", small))):
        with bench.serving(*options) as server:
            server.client.rate(bench.prompts(SLOTS, bench.plan.prefill), 16)
            status = Path(f"/proc/{server.pid}/status").read_text()
            peak = [int(status.partition("VmHWM:")[2].split()[0]) / 1024]  # kB, the most that was resident at a time
        yield Ratio(f"peak memory of the server, {pool}", "MiB", peak, weights, "the weights alone")


def over_http(bench: Bench) -> Ratios:
    """Clients at once, a request each, against the same through `submit`."""

    def theirs(count: int) -> float:
        return bench.streams(bench.engine(), count).rate()

    with bench.serving() as server:
        for count, stream in (*((count, False) for count in bench.plan.clients), (SLOTS, True)):
            name = f"HTTP, {count} at once" + (", streamed" if stream else "")
            ours = partial(bench.http_rate, server.client, count, stream)
            yield bench.compare(name, "tok/s", ours, "engine.submit", partial(theirs, count))


def embedded(bench: Bench) -> Ratios:
    """The embedded model, one request at a time, on both engines."""
    checkpoint = load_checkpoint(default_model_path())
    own = replace(bench, checkpoint=checkpoint, _engines={})
    fast, reference = own.new_engine(), ReferenceEngine(checkpoint)

    def rate(engine: Engine, params: SamplingParams) -> float:
        return own.streams(engine, 1, params).rate()

    for load, params in LOADS.items():
        sides = partial(rate, fast, params), "the reference engine, float64", partial(rate, reference, params)
        yield bench.compare(f"embedded model, one stream, {load}", "tok/s", *sides)
    fast.stop()


def against_peers(bench: Bench) -> Ratios:
    """Running servers of the same model against our own, with default slots and with one."""
    plan = bench.plan
    long = f"{plan.prompt} + {plan.new_of_peers} tokens"
    works = (  # name, requests at once, ids of a prompt, new tokens, tokens counted for each of them
        (f"one stream, {long}", 1, plan.prompt, plan.new_of_peers, 1),
        (f"eight at once, {long}", 8, plan.prompt, plan.new_of_peers, 1),
        (f"prefill of {plan.prefill} and a token", 1, plan.prefill, 1, plan.prefill),
    )

    def rate(client: CompletionsClient, count: int, length: int, new: int, worth: int) -> float:
        return worth * client.rate(bench.prompts(count, length), new)

    with bench.serving() as default, bench.serving("--slots", 1) as single:
        for name, count, *work in works:
            ours = {f"default slots ({SLOTS})": default.client} | ({"--slots 1": single.client} if count == 1 else {})
            clients = ours | {peer.name: peer for peer in bench.peers}
            sides = {side: partial(rate, client, count, *work) for side, client in clients.items()}
            seen = interleaved(plan.rounds, sides)
            for peer in bench.peers:
                for side in ours:
                    yield Ratio(f"HTTP, {name}, {side}", "tok/s", seen[side], seen[peer.name], peer.name)


GROUPS: dict[str, Callable[[Bench], Ratios]] = {
    "decode": decode_rows, "prefill": prefill_rows, "engine": overhead, "transformers": transformers, "shapes": shapes,
    "first-token": first_token, "long-prefill": long_prefill, "startup": start_up, "memory": memory_rows,
    "http": over_http, "embedded": embedded, "peers": against_peers,
}  # fmt: skip
