"""The examination behind `gnomon doctor`: is the engine sound on the device that is here, and how fast is it?

    environment   versions, device, memory, the variables that matter; the engine is started
    parity        a fixed set of requests; every float32 token is judged against the reference (reference/parity.py)
    same_bytes    requests alone, among neighbours, backwards from a warm prefix cache, on a second engine
    speed         the read bandwidth of the device, and how near to it a decode step comes

Every section fills its own part of the report and prints it; one that raises is recorded, and the others still run.
The verdict is `sound`, or `unsound` with reasons; speed is never one of them. A report names no user, host or path.
"""

from __future__ import annotations

import json
import os
import platform
import random
import re
import socket
import statistics
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.pins import pinned
from gnomon.jax_engine.runtime.settings import EngineSettings, bytes_per_token, default_pool_tokens
from gnomon.reference.checkpoint.load import Checkpoint, default_model_path
from gnomon.reference.completion import EngineFailed, prepare
from gnomon.reference.engine import Failed, JobRequest, ReferenceEngine, Token
from gnomon.reference.model_config import Family, ModelConfig
from gnomon.reference.parity import RecordingEngine, Tally, judge_recording
from gnomon.reference.prng import DrawKey
from gnomon.reference.request import CompletionRequest
from gnomon.reference.sampler import SamplingParams
from gnomon.reference.tokenizer import Tokenizer

Report = dict[str, Any]  # what json.dumps takes
Say = Callable[[str], None]

SEED = 20261123
NAME = "m"  # the id under which requests are prepared
DTYPES = ("float32", "bfloat16")


class Tolerance(NamedTuple):
    """See reference/parity.py."""

    logit_error: float  # δ₀
    logprob: float  # τ, nats


EMBEDDED = Tolerance(2e-4, 4e-4)  # of 50,680 log-probabilities of the full set the worst was off by 7.9e-5 (on a CPU)
OTHER = Tolerance(1e-3, 2e-3)  # nothing is known of the model, but errors grow with its depth


@dataclass(frozen=True, slots=True)
class Effort:
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


FULL = Effort(6, 48, 512, 3, 16, timings=15, cpu_bytes=2**29, gpu_bytes=2**32, large_model=True)
QUICK = Effort(1, 12, 288, 1, 5, timings=5, cpu_bytes=2**27, gpu_bytes=2**30, large_model=False)


class Patient:
    """What is examined: a model, and the engines that are started for it. cache: see EngineSettings."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        effort: Effort,
        cache: Path | None = None,
        announce: Say = lambda line: None,
    ) -> None:
        self.announce = announce  # is told before what takes long
        self.checkpoint, self.tokenizer, self.effort, self.cache = checkpoint, tokenizer, effort, cache
        self.notes: list[str] = []  # what the engine said last while it started, but for the times of compilation
        self.config = checkpoint.config
        self.embedded = checkpoint.path == default_model_path()
        self.longest = min(self.config.max_position_embeddings, effort.longest)
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
        enough = max(4 * plain.slots * FULL.longest, self.config.max_position_embeddings + 2 * plain.page_size)
        return replace(plain, pool_tokens=min(default_pool_tokens(self.config, plain), enough))

    def bodies(self, rounds: int) -> list[dict[str, Any]]:
        """The fixed set of requests, `rounds` times with other prompts and seeds."""
        rng = random.Random(SEED)
        infill = self.tokenizer.infill is not None
        return [
            body
            for _ in range(rounds)
            for body in requests(rng, self.config.vocab_size, self.longest, self.effort.tokens, infill)
        ]

    def stop(self) -> None:
        for engine in self._engines.values():
            engine.stop()
        self._engines.clear()


def examine(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    say: Say = print,
    quick: bool = False,
    cache: Path | None = None,
    announce: Say = lambda line: None,
) -> Report:
    """Runs every section; `say` gets each line as it comes, and `announce` one before every engine that is built. The
    report's `verdict` is `sound` or `unsound`.

    cache: the directory that `gnomon serve` has, so that what is built there once is examined here; XLA's programs are
    compiled anew all the same.
    """
    patient = Patient(checkpoint, tokenizer, QUICK if quick else FULL, cache, announce)
    started, now = time.monotonic(), datetime.now(UTC)
    report: Report = {"gnomon": version("gnomon"), "date": now.isoformat(timespec="seconds"), "quick": quick}
    say(f"gnomon doctor{' --quick' if quick else ''}, version {report['gnomon']}, {now:%Y-%m-%d %H:%M} UTC")
    reasons: list[str] = []
    try:
        with _no_compilation_cache(), pinned():
            for name, section in SECTIONS.items():
                found: Report = {}
                report[name], began = found, time.monotonic()
                say("")
                try:
                    faults = section(patient, found, say)
                except Exception as error:
                    found["error"] = last_line(error)
                    say(row("error", shorten(found["error"])))
                    faults = [found["error"]]
                found["seconds"] = round(time.monotonic() - began, 1)
                reasons += [f"{name.replace('_', ' ')}: {fault}" for fault in faults]
    finally:
        patient.stop()
    report.update(verdict="unsound" if reasons else "sound", reasons=reasons)
    report["seconds"] = round(time.monotonic() - started, 1)
    say("")
    say(f"verdict: {report['verdict']}, after {report['seconds']:.0f} s")
    for reason in reasons:
        say(f"  {shorten(reason)}")
    return report


@contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """A program that another start has compiled would say nothing about this one."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)  # type: ignore[no-untyped-call]


# ---- lines


def row(label: str, value: object) -> str:
    return f"  {label:<21} {value}"


def shorten(text: str) -> str:
    return textwrap.shorten(text, 116, placeholder=" ...")


def last_line(error: Exception) -> str:
    """Of the traceback, without the notes that jax adds."""
    return without_names(textwrap.shorten(f"{type(error).__name__}: {error}", 500, placeholder=" ..."))


def without_names(text: str) -> str:
    """The text without what could say whose machine this is: paths and the host's name."""
    home, host = os.path.expanduser("~"), socket.gethostname()
    if len(home) > 1:
        text = text.replace(home, "/~")  # it may have spaces in it
    text = re.sub(r"(?<![\w.])/[^\s'\",:;()]+", "<path>", text)
    return re.sub(rf"\b{re.escape(host)}\b", "<host>", text) if host else text


# ---- environment

PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm60-plugin", "jax-rocm7-plugin", "libtpu")
VARIABLES = (
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "JAX_PLATFORMS",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_ENABLE_X64",
    "JAX_NUMPY_DTYPE_PROMOTION",
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "NVIDIA_TF32_OVERRIDE",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HSA_OVERRIDE_GFX_VERSION",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)


def environment(patient: Patient, found: Report, say: Say) -> list[str]:
    """Versions, device, memory, variables; then the float32 engine is started. Never a fault, but it may raise."""
    say("environment")
    names = ("jax", "jaxlib", "numpy")
    found["python"] = platform.python_version()
    found["system"] = f"{platform.system()} {platform.machine()}"
    found["processors"] = os.cpu_count()
    found["processor"] = _processor()
    found["versions"] = {name: version(name) for name in names}
    found["plugins"] = {name: installed for name in PLUGINS if (installed := _version(name))}
    found["variables"] = {name: without_names(os.environ[name]) for name in VARIABLES if name in os.environ}
    say(row("python", f"{found['python']}, {found['system']}, {found['processors']} x {found['processor']}"))
    say(row("libraries", ", ".join(f"{name} {number}" for name, number in found["versions"].items())))
    say(row("plugins", ", ".join(f"{name} {number}" for name, number in found["plugins"].items()) or "none"))
    say(row("variables", " ".join(f"{name}={value}" for name, value in found["variables"].items()) or "none"))

    device = jax.devices()[0]
    found["device"] = {
        "platform": device.platform,
        "kind": device.device_kind,
        "count": len(jax.devices()),
        "runtime": without_names(" ".join(device.client.platform_version.split())),
        "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        "machine_memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    d = found["device"]
    say(row("device", f"{d['count']} x {d['kind']}, platform {d['platform']}, runtime {d['runtime']}"))
    own = "" if d["memory_bytes"] is None else f"{d['memory_bytes'] / 2**30:.1f} GiB of the device for jax, "
    say(row("memory", f"{own}{d['machine_memory_bytes'] / 2**30:.1f} GiB of the machine"))

    c, s = patient.config, patient.settings("float32")
    found["model"] = {
        "embedded": patient.embedded,
        "parameters": patient.checkpoint.parameter_count,
        "layers": c.num_hidden_layers,
        "width": c.hidden_size,
        "vocabulary": c.vocab_size,
        "context": c.max_position_embeddings,
    }
    which = "embedded" if patient.embedded else "of a directory"
    say(
        row(
            "model",
            f"{which}, {found['model']['parameters']:,} parameters, {c.num_hidden_layers} layers of width "
            f"{c.hidden_size}, {c.vocab_size:,} ids, context {c.max_position_embeddings:,}",
        )
    )
    started = time.monotonic()
    engine = patient.engine("float32")
    found["engine"] = {
        "slots": s.slots,
        "page_size": s.page_size,
        "chunk": s.chunk,
        "pool_tokens": engine.pool_tokens,
        "start_seconds": round(time.monotonic() - started, 2),
        "notes": patient.notes,
    }
    found["fingerprint"] = engine.fingerprint
    e = found["engine"]
    shape = f"{e['slots']} slots, pages of {e['page_size']}, chunks of {e['chunk']}, a pool of {e['pool_tokens']:,}"
    say(row("engine", f"{shape} positions; started in {e['start_seconds']:.1f} s"))
    for note in e["notes"]:
        say(row("", textwrap.shorten(note, 96, placeholder=" ...")))
    say(row("fingerprint", f"{found['fingerprint']} (float32)"))
    return []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's model, where the system tells."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# ---- requests

OPENINGS = (
    "Once upon a time",
    "The little fox",
    "One day, Tom and Lily went to the park.",
    "There was an old house",
    'Mom said, "',
    "A bird sat on the tree and",
)


def requests(rng: random.Random, vocab_size: int, longest: int, tokens: int, infill: bool) -> list[dict[str, Any]]:
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


# ---- parity


def parity(patient: Patient, found: Report, say: Say) -> list[str]:
    """Every token, log-probability and ranking of the float32 engine, teacher-forced, against the reference."""
    say("parity: the float32 engine against the reference, token by token")
    tolerance = EMBEDDED if patient.embedded else OTHER
    engine, reference, tally = patient.engine("float32"), patient.reference, Tally()
    for body in patient.bodies(patient.effort.rounds):
        recorder = RecordingEngine(engine)
        run = prepare(CompletionRequest.from_fields(body), recorder, patient.tokenizer, NAME)
        with suppress(EngineFailed):  # the recording has it too, as a fault
            run.whole()
        judge_recording(reference, recorder.recordings[0], tally, *tolerance)
    found.update(
        requests=tally.requests,
        tokens=tally.tokens,
        excused=tally.excused,
        most_excused=tally.most_excused,
        logprobs=tally.logprobs,
        worst_logprob=tally.worst_logprob,
        tolerance={"logit_error": tolerance.logit_error, "logprob": tolerance.logprob},
        faults=len(tally.faults),
        first_faults=tally.faults[:10],
    )
    say(row("requests", f"{found['requests']:,}"))
    say(row("sampled tokens", f"{found['tokens']:,}, {found['excused']} excused ({found['most_excused']} allowed)"))
    worst = f"the worst of {found['logprobs']:,} is off by {found['worst_logprob']:.1e}"
    say(row("log-probabilities", f"{worst} ({tolerance.logprob:.0e} allowed)"))
    say(row("faults", found["faults"] or "none"))
    for fault in found["first_faults"][:3]:
        say(f"    {shorten(fault)}")
    problems = []
    if tally.faults:
        problems.append(f"{len(tally.faults)} faults, the first: {tally.faults[0]}")
    if tally.excused > tally.most_excused:
        problems.append(f"{tally.excused} of {tally.tokens} tokens were excused, {tally.most_excused} may be")
    if not tally.tokens:
        problems.append("no token was sampled")
    return problems


# ---- same bytes


def same_bytes(patient: Patient, found: Report, say: Say) -> list[str]:
    """The same requests must give the same bytes of `choices` whatever else the engine does or did."""
    say("same bytes: requests alone; among neighbours; all at once, backwards, from a warm cache; on a second engine")
    titles = f"{'under load':>13}{'neighbours':>12}{'backwards':>12}{'cached ids':>12}{'second':>12}"
    say(f"  {'answers that differ':<21}{titles}   its fingerprint")
    problems = []
    for dtype in DTYPES:
        part = found[dtype] = compare(patient, dtype)
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


def compare(patient: Patient, dtype: str) -> Report:
    """How many answers differ from those of a fresh engine that does nothing else."""
    engine, bodies, repeats = patient.engine(dtype, 1), patient.bodies(1), patient.effort.repeats

    def ask(body: Mapping[str, Any]) -> tuple[str, int]:
        return answer(engine, patient.tokenizer, body)

    alone = [ask(body)[0] for body in bodies]
    load = Load(patient, engine)
    with load:
        loaded = [ask(body)[0] for _ in range(repeats) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        backwards = list(pool.map(ask, bodies[::-1]))[::-1]
    second = patient.engine(dtype, 0)
    elsewhere = [answer(second, patient.tokenizer, body)[0] for body in bodies]
    cached = sum(tokens for _, tokens in backwards)
    return {
        "fingerprint": engine.fingerprint,
        "under_load": {**_compared(alone * repeats, loaded), "neighbours": load.visits},
        "backwards": {**_compared(alone, [choices for choices, _ in backwards]), "cached_tokens": cached},
        "second_engine": {**_compared(alone, elsewhere), "fingerprint": second.fingerprint},
    }


def answer(engine: JaxEngine, tokenizer: Tokenizer, body: Mapping[str, Any]) -> tuple[str, int]:
    """The bytes of the choices, and how many prompt tokens the prefix cache had: the one thing that may differ."""
    whole = prepare(CompletionRequest.from_fields(body), engine, tokenizer, NAME).whole()
    return json.dumps([choice.to_json() for choice in whole.choices]), whole.usage.cached_tokens if whole.usage else 0


def _compared(expected: Sequence[str], given: Sequence[str]) -> Report:
    return {"answers": len(given), "differing": sum(a != b for a, b in zip(expected, given, strict=True))}


class Load:
    """Random neighbours that come and go while the context is open; a third of them leave in the middle."""

    def __init__(self, patient: Patient, engine: JaxEngine) -> None:
        self.visits = 0
        self._patient, self._engine = patient, engine
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(patient.effort.neighbours)

    def __enter__(self) -> None:
        self._neighbours = [self._pool.submit(self._visit, number) for number in range(self._patient.effort.neighbours)]

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._pool.shutdown()
        self.visits = sum(neighbour.result() for neighbour in self._neighbours)

    def _visit(self, number: int) -> int:
        rng, visits = random.Random(SEED + number), 0
        while not self._over.is_set():
            request = CompletionRequest.from_fields(self._body(rng))
            leaves_after = rng.randint(1, 8) if rng.random() < 1 / 3 else request.max_tokens * request.n + 1
            run = prepare(request, self._engine, self._patient.tokenizer, NAME)
            with closing(run.chunks()) as chunks:
                for read, _ in enumerate(chunks, 1):
                    if read == leaves_after or self._over.is_set():
                        break
            visits += 1
        return visits

    def _body(self, rng: random.Random) -> dict[str, Any]:
        vocab_size, longest = self._patient.config.vocab_size, self._patient.longest
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


# ---- speed

LIVE = 256  # positions that every slot holds when the timing of decode steps begins
LARGE = ModelConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    max_position_embeddings=1024,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    eos_token_ids=frozenset({0}),
    bos_token_id=None,
    family=Family.llama(num_hidden_layers=30, head_dim=64),
)


def speed(patient: Patient, found: Report, say: Say) -> list[str]:
    """The read bandwidth, and for every model how long a decode step takes beside its floor. Never a fault."""
    say("speed: the floor of a decode step is to read the weights and the live keys and values at this bandwidth")
    effort = patient.effort
    name = "embedded" if patient.embedded else "this model"
    benches = [Bench(name, patient.engine(dtype), effort.timings) for dtype in DTYPES]
    if effort.large_model:
        checkpoint = Checkpoint(Path(), LARGE, random_params(LARGE))
        for dtype in DTYPES:
            settings = replace(patient.settings(dtype), pool_tokens=4 * LARGE.max_position_embeddings)
            benches.append(Bench("135M, random", JaxEngine(checkpoint, settings), effort.timings))
    measure(benches, effort, found)
    b = found["bandwidth"]
    rate = f"{b['bytes_per_second'] / 1e9:,.1f} GB/s"
    say(row("read bandwidth", f"{rate}, best of {b['runs']} sums over {b['bytes'] >> 20:,} MiB"))
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


class Bench:
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


def measure(benches: Sequence[Bench], effort: Effort, found: Report) -> None:
    """Times reads and steps in turn, so that what else the machine does strikes all of them alike."""
    device = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    size = effort.cpu_bytes if device.platform == "cpu" or limit is None else min(effort.gpu_bytes, limit // 8)
    array = jnp.ones((size // 4096, 1024), jnp.float32)
    read = jax.jit(lambda x: x.sum(axis=-1))  # every row by itself: all cores have something to read
    steps = [call for bench in benches for call in (bench.step, bench.sampling)]
    reads, *seconds = interleaved([lambda: read(array).block_until_ready(), *steps], effort.timings)
    prefills = interleaved([bench.prefill for bench in benches], -(-effort.timings // 3))
    bandwidth = array.nbytes / min(reads)
    found["bandwidth"] = {"bytes_per_second": bandwidth, "bytes": array.nbytes, "runs": effort.timings}
    found["decode"] = [
        {
            "model": bench.name,
            "dtype": bench.dtype,
            "slots": bench.slots,
            "live_positions": bench.live,
            "step_bytes": bench.step_bytes,
            "step_ms": 1e3 * (step := statistics.median(seconds[2 * i])),
            "sampling_ms": 1e3 * statistics.median(seconds[2 * i + 1]),
            "floor_ms": 1e3 * (floor := bench.step_bytes / bandwidth),
            "share": floor / step,
            "tokens_per_second": bench.slots / step,
            "served_tokens_per_second": bench.served,
            "prefill_tokens_per_second": bench.chunk / statistics.median(prefills[i]),
        }
        for i, bench in enumerate(benches)
    ]


def interleaved(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of every call, `rounds` times each in turn, after one that does not count."""
    seconds: list[list[float]] = [[] for _ in calls]
    for i in range(rounds + 1):
        for call, times in zip(calls, seconds, strict=True):
            started = time.perf_counter()
            call()
            if i:
                times.append(time.perf_counter() - started)
    return seconds


def random_params(config: ModelConfig) -> dict[str, Any]:
    """Weights of a shape without a checkpoint, float32, seeded; embeddings are tied."""
    rng = np.random.default_rng(SEED)

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return rng.standard_normal((rows, columns), np.float32) / np.float32(np.sqrt(columns))

    D, F, H = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * H, config.num_key_value_heads * H
    ones = np.ones(D, np.float32)
    embed_tokens = matrix(config.vocab_size, D)
    layers = [
        {
            "input_layernorm": ones,
            "self_attn": {
                "q_proj": matrix(queries, D),
                "k_proj": matrix(keys, D),
                "v_proj": matrix(keys, D),
                "o_proj": matrix(D, queries),
            },
            "post_attention_layernorm": ones,
            "mlp": {"gate_proj": matrix(F, D), "up_proj": matrix(F, D), "down_proj": matrix(D, F)},
        }
        for _ in range(config.num_hidden_layers)
    ]
    return {"embed_tokens": embed_tokens, "layers": layers, "norm": ones, "lm_head": embed_tokens}


Section = Callable[[Patient, Report, Say], list[str]]
"""Fills the report, says its lines, returns what is wrong."""

SECTIONS: dict[str, Section] = {
    "environment": environment,
    "parity": parity,
    "same_bytes": same_bytes,
    "speed": speed,
}


if __name__ == "__main__":
    raise SystemExit("the examination is started by the command: gnomon doctor")
