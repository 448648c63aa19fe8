"""Rows about `gnomon serve`; with a baseline, the same of its server, in turn."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax.numpy as jnp

from gnomon.jax_engine.tools.clients import RunningServer
from gnomon.jax_engine.tools.measure import MEBIBYTE, interleaved
from gnomon.jax_engine.tools.ratios import NotMeasured, Ratio, Ratios
from gnomon.jax_engine.tools.workbench import LOADS, ROWS, Bench
from gnomon.reference.checkpoint.load import default_model_path, load_checkpoint
from gnomon.reference.engine import Engine, ReferenceEngine
from gnomon.reference.sampler import SamplingParams

SAMPLED = next(name for name in LOADS if name != "greedy")


def against_baseline(name: str, unit: str, seen: Mapping[str, Sequence[float]], target: float | None = None) -> Ratios:
    """A row if there is a baseline; if there is none, only where a target asks for one, a row that says so."""
    if "baseline" in seen:
        yield Ratio(f"{name}, against the baseline", unit, seen["ours"], seen["baseline"], "the baseline", target)
    elif target is not None:
        yield NotMeasured(f"{name}, against the baseline", "no --baseline was given")


def sampling(bench: Bench) -> Ratios:
    """Streams that draw their tokens against the same that take the likeliest."""

    def rate(server: RunningServer, params: SamplingParams) -> float:
        return server.client.rate(bench.prompts(ROWS, bench.plan.prompt), bench.plan.new, params=params)

    with bench.servers() as servers:
        sides = {
            f"{version}, {load}": partial(rate, server, params)
            for version, server in servers.items()
            for load, params in LOADS.items()
        }
        seen = interleaved(bench.plan.rounds, sides)
    name = f"{ROWS} streams, {SAMPLED}"
    for version in servers:
        ours = version == "ours"
        sampled, greedy = seen[f"{version}, {SAMPLED}"], seen[f"{version}, greedy"]
        of = name if ours else f"{name}, the baseline's"
        yield Ratio(of, "tok/s", sampled, greedy, "the same server, greedy", 0.95 if ours else None)
    yield from against_baseline(name, "tok/s", {version: seen[f"{version}, {SAMPLED}"] for version in servers})


def over_http(bench: Bench) -> Ratios:
    """Clients at once, a request each, against the same through `submit`."""
    with bench.servers() as servers:
        for count, stream in (*((count, False) for count in bench.plan.clients), (ROWS, True)):
            name = f"HTTP, {count} at once" + (", streamed" if stream else "")
            yield from _http_rows(bench, servers, name, count, stream, bench.engine())


def _http_rows(
    bench: Bench, servers: Mapping[str, RunningServer], name: str, count: int, stream: bool, engine: Engine,
    target: float | None = None,
) -> Ratios:  # fmt: skip
    """target: against the baseline."""

    def rate(server: RunningServer) -> float:
        return server.client.rate(bench.prompts(count, bench.plan.prompt), bench.plan.new, stream)

    sides: dict[str, Callable[[], float]] = {version: partial(rate, server) for version, server in servers.items()}
    sides["submit"] = lambda: bench.streams(engine, count).rate()
    seen = interleaved(bench.plan.rounds, sides)
    yield Ratio(name, "tok/s", seen["ours"], seen["submit"], "engine.submit")
    yield from against_baseline(name, "tok/s", seen, target)


def embedded(bench: Bench) -> Ratios:
    """The embedded model: one request on both engines, then many streams over HTTP, where Python is the time."""
    own = _of_embedded(bench)
    fast, reference = own.engine(), ReferenceEngine(own.checkpoint)
    try:
        for load, params in LOADS.items():
            ours, theirs = (
                lambda engine=engine, params=params: own.streams(engine, 1, params).rate()
                for engine in (fast, reference)
            )
            other = "the reference engine, float64"
            yield bench.compare(f"embedded model, one stream, {load}", "tok/s", ours, other, theirs)
        with own.servers() as servers:
            name = f"embedded model over HTTP, {bench.plan.many} at once, streamed"
            yield from _http_rows(own, servers, name, bench.plan.many, True, fast, target=2.0)
    finally:
        own.close()


def _of_embedded(bench: Bench) -> Bench:
    return Bench(
        bench.plan, bench.dtype, load_checkpoint(default_model_path()), bench.scratch, (), bench.baseline, bench.said
    )


def start_up(bench: Bench) -> Ratios:
    """`gnomon serve` with an empty cache of compiled programs, then with what it has left there."""
    for model, of in (("embedded model", _of_embedded(bench)), ("this model", bench)):
        seen: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for _ in range(bench.plan.rounds):
            for version, serve in of.versions().items():
                with tempfile.TemporaryDirectory(dir=bench.scratch) as cache:
                    for state in ("cold", "warm"):
                        with serve(cache=Path(cache)) as server:
                            server.client.rate([[1]], 1)
                            figures = (server.ready - server.began, time.perf_counter() - server.began)
                            seen.setdefault((version, state), []).append(figures)
        for i, what in enumerate(("it says it serves", "the first answer")):
            name = f"start-up, {model}, until {what}, warm cache"
            took = {key: [figures[i] for figures in each] for key, each in seen.items()}
            most = 3.0 if (model, i) == ("embedded model", 0) else None
            yield Ratio(name, "s", took["ours", "warm"], took["ours", "cold"], "cold cache", most=most)
            warm = {version: took[version, state] for version, state in took if state == "warm"}
            yield from against_baseline(name, "s", warm)


def memory_rows(bench: Bench) -> Ratios:
    """The most that was resident until the server said it serves, and what is after long requests in many slots, over
    the weights and the pool; one round, for it hardly varies."""
    if not Path("/proc/self/status").exists():
        yield NotMeasured("memory of the server", "there is no /proc here")
        return
    pool = bench.plan.pool
    both = bench.checkpoint.parameter_count * jnp.dtype(bench.dtype).itemsize / MEBIBYTE + pool
    seen: dict[str, dict[str, list[float]]] = {"peak of the start": {}, "resident memory": {}}
    for version, serve in bench.versions().items():
        with serve("--kv-cache-memory", pool) as server:
            seen["peak of the start"][version] = [_resident(server.pid, "VmHWM")]
            server.client.rate(bench.prompts(ROWS, bench.plan.prefill), 16)
            seen["resident memory"][version] = [_resident(server.pid, "VmRSS")]
    for (what, figures), most in zip(seen.items(), (1.15, 1.1), strict=True):
        name, other = f"{what}, at most {most:g} × the other side", f"the weights and a pool of {pool:,} MiB"
        yield Ratio(name, "MiB", figures["ours"], [both], other, 1 / most)
        yield from against_baseline(what, "MiB", figures)


def _resident(pid: int, entry: str) -> float:
    """MiB: VmRSS is what is resident, VmHWM the most that was at a time."""
    return int(Path(f"/proc/{pid}/status").read_text().partition(f"{entry}:")[2].split()[0]) / 1024
