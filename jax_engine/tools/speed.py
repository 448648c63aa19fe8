"""The examination's last section: the read bandwidth of the device, and how near to it a decode step comes."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax

from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.settings import bytes_per_token
from gnomon.jax_engine.tools.examined import SEED, Examination, ExaminedModel, Extent, SayLine
from gnomon.jax_engine.tools.lines import row
from gnomon.jax_engine.tools.measure import DTYPES, LLAMA_135M, ReadLimit, interleaved, make_checkpoint, seconds
from gnomon.reference.checkpoint.load import load_checkpoint
from gnomon.reference.engine import Failed, JobRequest, Token
from gnomon.reference.prng import DrawKey
from gnomon.reference.sampler import SamplingParams

LIVE = 256  # positions that every slot holds when the timing of decode steps begins
LARGE_CONTEXT = 1024


def speed(examined: ExaminedModel, found: Examination, say: SayLine) -> list[str]:
    """The read bandwidth, and for every model how long a decode step takes beside its floor. Never a fault."""
    say("speed: the floor of a decode step is to read the weights and the live keys and values at this bandwidth")
    extent = examined.extent
    name = "embedded" if examined.embedded else "this model"
    benches = [TimedPrograms(name, examined.engine(dtype), extent.timings) for dtype in DTYPES]
    if extent.large_model:
        with tempfile.TemporaryDirectory(prefix="gnomon-doctor-") as scratch:
            checkpoint = load_checkpoint(make_checkpoint(Path(scratch) / "llama", LLAMA_135M, LARGE_CONTEXT))
            for dtype in DTYPES:
                settings = replace(examined.settings(dtype), pool_tokens=4 * LARGE_CONTEXT)
                benches.append(TimedPrograms("135M, random", JaxEngine(checkpoint, settings), extent.timings))
    measure(benches, extent, found)
    b = found["bandwidth"]
    rate = f"{b['bytes_per_second'] / 1e9:,.1f} GB/s"
    say(row("read bandwidth", f"{rate}, best of {b['runs']} reads of {b['bytes'] >> 20:,} MiB"))
    titles = ("step ms", "sampling", "floor ms", "share", "tokens/s", "served/s", "prefill/s")
    say(f"  {'':<23}" + "".join(f"{title:>11}" for title in titles))
    for d in found["decode"]:
        cells = (
            f"{d['step_ms']:,.2f}",
            f"{d['sampling_ms']:,.2f}",
            f"{d['floor_ms']:,.3f}",
            f"{100 * d['share']:.0f} %",
            f"{d['tokens_per_second']:,.0f}",
            f"{d['served_tokens_per_second']:,.0f}",
            f"{d['prefill_tokens_per_second']:,.0f}",
        )
        say(f"  {d['model'] + ', ' + d['dtype']:<23}" + "".join(f"{cell:>11}" for cell in cells))
    slots, live = found["decode"][0]["slots"], found["decode"][0]["live_positions"]
    say(f"  a step is a token for each of {slots} slots, {live} positions long; sampling is part of it")
    say("  served is what leaves the engine while all slots are taken; prefill is a chunk of one prompt")
    return []


class TimedPrograms:
    """The programs of an engine, called as it calls them. Making one times the engine itself, then stops it: after
    that its device is ours."""

    def __init__(self, name: str, engine: JaxEngine, timings: int) -> None:
        settings = engine.settings
        self.name, self.dtype, self.slots = name, settings.dtype, settings.slots
        start = min(LIVE, engine.context // 2)
        self.live = start + timings  # in the middle of the timing: `step` and `sampling` move on by one each
        self.chunk = min(settings.chunk, start)
        try:
            self.served = statistics.median(_served(engine, start) for _ in range(3))
        finally:
            engine.stop()
        self._device = engine.device
        self._device.clear()
        pages = -(-(start + 2 * timings + 4) // settings.page_size)
        self._pages = range(1, pages + 1)
        _, hidden = self._device.prefill([1] * self.chunk, self._pages, 0)
        for i in range(self.slots):
            own = range(1 + i * pages, 1 + (i + 1) * pages)
            self._device.begin(i, own, start, hidden, SamplingParams(), DrawKey(SEED, i, 0), None)
        # an input embedding that is not the head's too is hardly read: a row for every slot
        read = {name: leaf for name, leaf in self._device.params.items() if name != "embed_tokens"}
        self.step_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(read))
        self.step_bytes += self.slots * self.live * bytes_per_token(engine.config, settings)

    def step(self) -> object:
        """A token for every slot, down to the host."""
        return jax.device_get(self._device.step(range(self.slots), ()))

    def sampling(self) -> object:
        """The second half of a step alone, the head, the draw and its report: what a step of new sequences is."""
        return jax.device_get(self._device.step(range(self.slots), range(self.slots)))

    def prefill(self) -> object:
        """One chunk."""
        return jax.device_get(self._device.prefill([1] * self.chunk, self._pages, 0)[1])


def _served(engine: JaxEngine, positions: int) -> float:
    """Tokens a second that come out of the engine, every slot taken, counted from the first ones on."""
    slots, tokens = engine.settings.slots, min(32, positions // 2)
    prompt = [1] * (positions - tokens)
    arrivals = []
    for event in engine.submit(
        JobRequest([prompt], [SEED], SamplingParams(max_tokens=tokens), slots, 0, False)
    ).events():
        if isinstance(event, Failed):
            raise RuntimeError(event.message)
        if isinstance(event, Token):
            arrivals.append(time.perf_counter())
    return slots * (tokens - 1) / (arrivals[-1] - arrivals[0])


def measure(benches: Sequence[TimedPrograms], extent: Extent, found: Examination) -> None:
    """Times reads and steps in turn, so that what else the machine does strikes all of them alike."""
    device = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    size = extent.cpu_bytes if device.platform == "cpu" or limit is None else min(extent.gpu_bytes, limit // 8)
    read = ReadLimit(size)
    steps = [call for bench in benches for call in (bench.step, bench.sampling)]
    reads, *stepped = _timed([read.once, *steps], extent.timings)
    prefills = _timed([bench.prefill for bench in benches], -(-extent.timings // 3))
    bandwidth = read.bytes / min(reads)
    found["bandwidth"] = {"bytes_per_second": bandwidth, "bytes": read.bytes, "runs": extent.timings}
    found["decode"] = [
        {
            "model": bench.name,
            "dtype": bench.dtype,
            "slots": bench.slots,
            "live_positions": bench.live,
            "step_bytes": bench.step_bytes,
            "step_ms": 1e3 * (step := statistics.median(stepped[2 * i])),
            "sampling_ms": 1e3 * statistics.median(stepped[2 * i + 1]),
            "floor_ms": 1e3 * (floor := bench.step_bytes / bandwidth),
            "share": floor / step,
            "tokens_per_second": bench.slots / step,
            "served_tokens_per_second": bench.served,
            "prefill_tokens_per_second": bench.chunk / statistics.median(prefills[i]),
        }
        for i, bench in enumerate(benches)
    ]


def _timed(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of every call, in turn."""
    return list(interleaved(rounds, {str(i): partial(seconds, call) for i, call in enumerate(calls)}).values())
