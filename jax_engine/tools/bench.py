"""`python -m gnomon.jax_engine.tools.bench`: a table; a row is a ratio of two sides measured in turn, in the same run.

    1 side      something that is compared: a function that measures itself once
    2 rounds    every side once to warm up, then all in turn, round after round: what disturbs one disturbs the other
    3 row       the medians of both sides and their extremes; of the ratio, larger is always better for us
    4 group     rows that belong together (GROUPS), chosen with --only, once for every dtype
    5 report    a head (versions, device, cores, load before and after), then the rows: as a table, and as JSON

All sides run the same model: random weights in the shape of a 135M Llama, exact in bfloat16, or --checkpoint. No token
ends a completion early. The engine is asked through `submit`, the server over HTTP; `Bare` alone knows an engine's
insides. A row that cannot be measured here says so, and why.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import tokenizers
from safetensors.numpy import save_file

from gnomon.jax_engine.engine import EngineSettings, JaxEngine, bytes_per_token
from gnomon.jax_engine.runtime.backend import NoDevice, require_devices
from gnomon.reference.checkpoint.config import read_config
from gnomon.reference.checkpoint.errors import CheckpointError
from gnomon.reference.checkpoint.load import Checkpoint, default_model_path, load_checkpoint
from gnomon.reference.checkpoint.tensor_table import expected_tensors
from gnomon.reference.engine import Engine, Failed, Job, JobRequest, ReferenceEngine, Token
from gnomon.reference.sampler import SamplingParams

DTYPES = ("float32", "bfloat16")
SLOTS, CHUNK = EngineSettings().slots, EngineSettings().chunk
GREEDY = SamplingParams(temperature=0.0)  # end_ids is empty: nothing ends early
LOADS = {"greedy": GREEDY, "temperature 0.8 and top_p 0.95": SamplingParams(temperature=0.8, top_p=0.95)}
SERVE = (sys.executable, "-c", "from gnomon.http.cli.commands import main; main()", "serve")
SHAPE = (
    "vocab_size", "hidden_size", "intermediate_size",
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
)  # fmt: skip
MIB = 2**20


class BenchError(Exception):
    """What keeps a figure from being measured, in words for whoever asked for it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured; lengths in tokens."""

    shape: tuple[int, ...] = (49152, 576, 1536, 30, 9, 3)  # of the random model, see SHAPE
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
    read: int = 512 * MIB  # bytes, far more than the caches hold
    matrix: int = 2048  # the side of the matrices that are multiplied
    small_pool: int = 256  # MiB of keys and values


QUICK = Plan(
    (512, 64, 128, 2, 4, 2), context=512, rounds=1, new=24, new_of_peers=16, long=3 * CHUNK, prefix=3 * CHUNK + 1,
    clients=(1, 8), read=64 * MIB, matrix=256, small_pool=16,
)  # fmt: skip


# ---- rows


@dataclass(frozen=True, slots=True)
class Row:
    """A ratio. `ours` and `theirs` hold a figure of every round, in the same unit; `other` says what theirs is."""

    name: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float]
    other: str
    target: float | None = None  # what the ratio is to reach

    def to_json(self) -> dict[str, Any]:
        ours, theirs = median(self.ours), median(self.theirs)
        better = "larger" if self.unit.endswith("/s") else "smaller"
        ratio = ours / theirs if better == "larger" else theirs / ours
        met = None if self.target is None else ratio >= self.target
        figures = {"unit": self.unit, "better": better, "ours": ours, "theirs": theirs, "other": self.other}
        rounds = {"ours": list(self.ours), "theirs": list(self.theirs)}
        return {"row": self.name, **figures, "ratio": ratio, "target": self.target, "met": met, "rounds": rounds}


@dataclass(frozen=True, slots=True)
class NotMeasured:
    name: str
    reason: str
    failed: bool = False  # that it could not be measured is a fault, not a fact about this machine

    def to_json(self) -> dict[str, Any]:
        return {"row": self.name, "not measured": self.reason}


Rows = Iterator[Row | NotMeasured]


def interleaved(rounds: int, sides: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Every side's figures, one a round, measured in turn after a round that does not count."""
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, measure in sides.items():
            figure = measure()
            if number > 0:
                seen[name].append(figure)
    return seen


def render(report: Mapping[str, Any]) -> str:
    """The report as text: a line for every entry of the head, then the table."""
    lines = [f"{name}: {value}" for name, value in report["head"].items()]
    lines += ["", "| row | ours | the other side | ratio | target | met | rounds |", "|---|---|---|---|---|---|---|"]
    return "\n".join([*lines, *map(_line, report["rows"])])


def _line(row: Mapping[str, Any]) -> str:
    if "not measured" in row:
        return f"| {row['row']} | not measured: {row['not measured']} | | | | | |"
    ours, theirs = (f"{row[side]:.4g} {row['unit']}{_extremes(row['rounds'][side])}" for side in ("ours", "theirs"))
    target = "" if row["target"] is None else f"≥ {row['target']:g}"
    met = {None: "", True: "yes", False: "NO"}[row["met"]]
    rounds = len(row["rounds"]["ours"])
    return f"| {row['row']} | {ours} | {theirs}, {row['other']} | {row['ratio']:.3g} | {target} | {met} | {rounds} |"


def _extremes(figures: Sequence[float]) -> str:
    return f" ({min(figures):.4g} to {max(figures):.4g})" if len(figures) > 1 else ""


# ---- the model


def make_checkpoint(directory: Path, plan: Plan) -> Path:
    """A Hugging Face directory of seeded random weights, stored in bfloat16: every dtype means the same numbers."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}
    config |= {"tie_word_embeddings": True, "max_position_embeddings": plan.context, "rope_theta": 10000.0}
    config |= {"bos_token_id": None, "eos_token_id": None}  # left out, transformers would take its own
    directory.mkdir()
    shape = dict(zip(SHAPE, plan.shape, strict=True))
    (directory / "config.json").write_text(json.dumps(config | shape))
    rng = np.random.default_rng(0)
    tensors = {}
    for name, sizes in expected_tensors(read_config(directory)).items():
        random = 0.02 * rng.standard_normal(sizes, np.float32) if len(sizes) > 1 else np.ones(sizes)
        tensors[name] = random.astype(ml_dtypes.bfloat16)
    save_file(tensors, directory / "model.safetensors")
    tokens = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens += [f"Ġ{i}" for i in range(len(tokens), shape["vocab_size"])]  # entries that no text is encoded to
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


# ---- what the machine can do at most


class Limits:
    """Bytes/s read and operations/s, measured like any other side."""

    def __init__(self, plan: Plan, dtype: str) -> None:
        scale = 1 if jax.default_backend() == "cpu" else 4  # an accelerator is done with less before it has begun
        self._array = jnp.ones((scale, plan.read // 4 // 4096, 4096), jnp.float32)
        self._halves = jnp.split(self._array, 2, axis=1)
        self._sum = jax.jit(lambda x: x.sum(axis=-1))
        self._matrix = jnp.ones((scale * plan.matrix, scale * plan.matrix), dtype)
        self._product = jax.jit(lambda x: jnp.dot(x, x, precision="highest", preferred_element_type=jnp.float32))

    def read(self) -> float:
        """A sum over a large array, in one call and in two at once: the better of them."""
        with ThreadPoolExecutor(2) as pool:
            both = fastest(lambda: list(pool.map(self._sum, self._halves)))
        return self._array.nbytes / min(both, fastest(lambda: self._sum(self._array)))

    def multiply(self) -> float:
        """A product of two large square matrices in the dtype."""
        return 2 * len(self._matrix) ** 3 / fastest(lambda: self._product(self._matrix))


def fastest(work: Callable[[], object]) -> float:
    """Seconds; the best of three."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(work())  # type: ignore[no-untyped-call]
        taken.append(time.perf_counter() - began)
    return min(taken)


def against_limit(
    name: str, engine: JaxEngine, sequences: int, tokens: int, seen: float, head: bool,
    took: Sequence[float], limits: Mapping[str, Sequence[float]],
) -> Row:  # fmt: skip
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
    return Row(name, "ms", took, [1e3 * needs[which] / rate for rate in limits[which]], other)


# ---- the engine


class Streams(NamedTuple):
    """Completions asked for at once: when, and when each of their tokens was read, by completion."""

    began: float
    times: list[list[float]]

    def rate(self) -> float:
        """Tokens/s from the request to the last token: prefill is in it."""
        return sum(map(len, self.times)) / (max(map(max, self.times)) - self.began)

    def steady_rate(self) -> float:
        """Tokens/s while all of them run: from the last first token to the first last one."""
        begin, end = max(each[0] for each in self.times), min(each[-1] for each in self.times)
        return sum(begin < at <= end for each in self.times for at in each) / (end - begin)


def run(engine: Engine, prompts: Sequence[Sequence[int]], new: int, params: SamplingParams) -> Streams:
    """`new` tokens after every prompt, each prompt a job of its own, read by a thread of its own."""
    params = replace(params, max_tokens=new)
    began = time.perf_counter()
    jobs = [
        engine.submit(JobRequest([p], [seed], params, candidates=1, top=0, score=False))
        for seed, p in enumerate(prompts)
    ]
    with ThreadPoolExecutor(len(jobs)) as pool:
        arrivals = list(pool.map(lambda job: list(arriving(job)), jobs))
    assert all(len(each) == new for each in arrivals)
    return Streams(began, arrivals)


def arriving(job: Job) -> Iterator[float]:
    """When each token comes."""
    for event in job.events():
        if isinstance(event, Failed):
            raise BenchError(event.message)
        if isinstance(event, Token):
            yield time.perf_counter()


class Bare:
    """Compiled programs of an engine without the engine, called with what the engine itself passed in a real run.

    All that this file knows of an engine's insides is here: the dict name → compiled program that its calls go through,
    and `programs()[name].donated`, the arguments that a call consumes. A consumed argument is taken anew from the
    result: the part of the same shapes and dtypes.
    """

    STEP = ("decode", "sample")

    def __init__(self, engine: JaxEngine, names: Sequence[str], at: int, load: Callable[[], object]) -> None:
        """Runs `load`, and keeps the arguments of each program's call number `at`, from 1. The engine must be idle."""
        compiled, programs = engine.device.compiled, engine.programs()
        self._programs = {name: compiled[name] for name in names}
        self._donated = {name: programs[name].donated for name in names}
        self._arguments: dict[str, list[Any]] = {}

        def recorded(name: str, calls: list[None], *arguments: Any) -> Any:
            calls.append(None)
            if len(calls) == at:
                weights = programs[name].arguments[0]  # the only large thing that nothing consumes
                self._arguments[name] = [
                    a if a is weights else jax.tree.map(lambda leaf: leaf.copy(), a) for a in arguments
                ]
            return self._programs[name](*arguments)

        try:
            compiled.update({name: partial(recorded, name, []) for name in names})
            load()
        finally:
            compiled.update(self._programs)
        if missing := set(names) - set(self._arguments):
            raise BenchError(f"the engine did not call {', '.join(missing)} {at} times")

    def milliseconds(self, calls: int) -> float:
        """The mean time of a call of each program, added up. The calls of one program follow each other on the device
        without a pause: each takes what the one before gave back."""
        total = 0.0
        for name in self._programs:
            began = time.perf_counter()
            results = [self._call(name) for _ in range(calls)]
            jax.block_until_ready(results[-1])  # type: ignore[no-untyped-call]
            total += (time.perf_counter() - began) / calls
        return 1e3 * total

    def _call(self, name: str) -> Any:
        """The parts of the result that the next call does not take."""
        arguments = self._arguments[name]
        kinds = {i: _kind(arguments[i]) for i in self._donated[name]}
        parts = list(self._programs[name](*arguments))
        for i, kind in kinds.items():
            arguments[i] = parts.pop(next(j for j, part in enumerate(parts) if _kind(part) == kind))
        return parts


def _kind(tree: Any) -> tuple[Any, ...]:
    return jax.tree.structure(tree), *((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree))


# ---- HTTP


@dataclass(frozen=True, slots=True)
class Client:
    """Asks a server of POST /v1/completions, ours or a peer's. Whatever goes wrong is a BenchError that names it."""

    name: str
    url: str
    model: str
    no_end: Mapping[str, Any]  # the fields that keep an end-of-sequence token from ending a completion

    @classmethod
    def of_peer(cls, text: str) -> Client:
        """From NAME=URL[,model=ID]; without an id the server is asked for one."""
        found = re.fullmatch(r"([^=,]+)=(http://[^,]+?)/?(?:/v1/?)?(?:,model=(.+))?", text)
        if found is None:
            raise BenchError(f"--peer {text!r}: not NAME=URL[,model=ID]")
        client = cls(found[1], found[2], found[3] or "", {"ignore_eos": True})
        served = client._answer("GET", "/v1/models").get("data") or [{}]
        return replace(client, model=client.model or str(served[0].get("id", "")))

    def ask(self, prompt: Sequence[int], new: int, stream: bool = False) -> None:
        """`new` tokens after the prompt, greedily."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": new, "temperature": 0, **self.no_end}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        came = (self._answer("POST", "/v1/completions", body).get("usage") or {}).get("completion_tokens")
        if came != new:
            raise self._error(f"gave {came} tokens where {new} were asked for")

    def rate(self, prompts: Sequence[Sequence[int]], new: int, stream: bool = False) -> float:
        """Tokens/s of all prompts asked for at once, each on a connection of its own, until all are answered."""
        began = time.perf_counter()
        with ThreadPoolExecutor(len(prompts)) as pool:
            list(pool.map(lambda prompt: self.ask(prompt, new, stream), prompts))
        return len(prompts) * new / (time.perf_counter() - began)

    def _answer(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """The JSON of an answer, or the last event of a stream."""
        parts = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=600)
        try:
            connection.request(method, parts.path + path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            data = response.read().strip()
        except (OSError, http.client.HTTPException) as error:
            raise self._error(f"does not answer: {error}") from None
        finally:
            connection.close()
        try:
            last = data.removesuffix(b"data: [DONE]").rpartition(b"data: ")[2]
            answer = json.loads(last) if response.status == 200 else None
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self._error(f"answers {response.status}: {data[:300].decode(errors='replace')}")
        return answer

    def _error(self, what: str) -> BenchError:
        return BenchError(f"{self.name} at {self.url} {what}")


class Server(NamedTuple):
    """A running `gnomon serve`."""

    client: Client
    pid: int
    began: float
    ready: float  # when it said where it serves
    log: str  # what it had written to standard error by then


# ---- what the groups share


@dataclass
class Bench:
    """The model in one dtype, and what is made from it once a group asks for it."""

    plan: Plan
    dtype: str
    checkpoint: Checkpoint
    scratch: Path
    peers: Sequence[Client]
    said: set[str]  # what the engines say about themselves when they are made
    _engines: dict[tuple[int, int], JaxEngine] = field(default_factory=dict)
    _rng: np.random.Generator = field(default_factory=np.random.default_rng)  # unseeded: servers remember prompts

    def compare(
        self, name: str, unit: str, ours: Callable[[], float], other: str, theirs: Callable[[], float],
        target: float | None = None,
    ) -> Row:  # fmt: skip
        seen = interleaved(self.plan.rounds, {"ours": ours, "theirs": theirs})
        return Row(name, unit, seen["ours"], seen["theirs"], other, target)

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

    def streams(self, engine: Engine, count: int, params: SamplingParams = GREEDY) -> Streams:
        return run(engine, self.prompts(count, self.plan.prompt), self.plan.new, params)

    def step(self, engine: JaxEngine, rows: int, params: SamplingParams = GREEDY) -> Callable[[], float]:
        """The milliseconds of a decode step with `rows` busy slots, as in the middle of a run: all have begun, none
        has ended."""
        bare = Bare(engine, Bare.STEP, (rows + self.plan.new) // 2, lambda: self.streams(engine, rows, params))
        return partial(bare.milliseconds, self.plan.calls)

    def chunk(self, engine: JaxEngine, length: int) -> Callable[[], float]:
        """The milliseconds of the last chunk of a prompt's prefill."""
        number = -(-length // engine.settings.chunk)
        bare = Bare(engine, ["prefill"], number, lambda: run(engine, self.prompts(1, length), 1, GREEDY))
        return partial(bare.milliseconds, self.plan.calls)

    def http_rate(self, client: Client, count: int, stream: bool = False) -> float:
        return client.rate(self.prompts(count, self.plan.prompt), self.plan.new, stream)

    @contextmanager
    def serving(self, *options: object, cache: Path | None = None) -> Iterator[Server]:
        """`gnomon serve` on a free port; compiled programs are kept in `cache`, by default one of this run."""
        command = [*SERVE, self.checkpoint.path, "--engine", "jax", "--dtype", self.dtype, "--port", 0, *options]
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache or self.scratch / "cache")}
        no_end = {"logit_bias": {str(v): -100 for v in self.checkpoint.config.eos_token_ids}}
        with tempfile.TemporaryFile() as errors:
            began = time.perf_counter()
            process = subprocess.Popen(
                list(map(str, command)), stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
            try:
                assert process.stdout is not None
                found = re.search(r"(.+) is served at (http://\S+)/v1 ", process.stdout.readline())
                ready = time.perf_counter()
                log = os.pread(errors.fileno(), MIB, 0).decode(errors="replace")  # the server's place in it stays
                if found is None:
                    raise BenchError(f"gnomon serve did not start: {log[-500:]}")
                yield Server(Client("gnomon serve", found[2], found[1], no_end), process.pid, began, ready, log)
            finally:
                process.terminate()
                process.communicate()

    def close(self) -> None:
        for engine in self._engines.values():
            engine.stop()
        self._engines.clear()


# ---- the groups


def decode(bench: Bench) -> Rows:
    """Transformer, head and sampler with all slots busy against what memory and arithmetic allow."""
    plan, limits = bench.plan, Limits(bench.plan, bench.dtype)
    kinds = [(slots, load) for slots in (1, SLOTS) for load in LOADS]
    names = {f"decode step, {slots} of {slots} slots busy, {load}": (slots, load) for slots, load in kinds}
    steps = {name: bench.step(bench.engine(slots), slots, LOADS[load]) for name, (slots, load) in names.items()}
    seen = interleaved(plan.rounds, steps | {"read": limits.read, "multiply": limits.multiply})
    for name, (slots, _) in names.items():
        attended = plan.prompt + plan.new / 2
        yield against_limit(name, bench.engine(slots), slots, 1, attended, True, seen[name], seen)


def prefill(bench: Bench) -> Rows:
    """A whole chunk, the third of its prompt, without the head, against the same limits."""
    engine, limits = bench.engine(), Limits(bench.plan, bench.dtype)
    sides = {"chunk": bench.chunk(engine, 3 * CHUNK), "read": limits.read, "multiply": limits.multiply}
    seen = interleaved(bench.plan.rounds, sides)
    yield against_limit(f"prefill of a chunk of {CHUNK}", engine, 1, CHUNK, 2.5 * CHUNK, False, seen["chunk"], seen)


def overhead(bench: Bench) -> Rows:
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


def transformers(bench: Bench) -> Rows:
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
        lambda: plan.prefill * run(bench.engine(), bench.prompts(1, plan.prefill), 1, GREEDY).rate(),
        other,
        lambda: plan.prefill * theirs(1, plan.prefill, 1, GREEDY),
        1.0,
    )


def shapes(bench: Bench) -> Rows:
    """What the one compiled shape costs where a smaller one would do."""
    half, small = SLOTS // 2, CHUNK // 4
    exact = bench.engine(half, small)
    for rows, own in ((1, bench.engine(1)), (half, exact)):
        name = f"decode step of {SLOTS} slots, {rows} busy"
        sides = bench.step(bench.engine(), rows), f"of {rows} slots", bench.step(own, rows)
        yield bench.compare(name, "ms", *sides)
    name = f"prefill of {small} in a chunk of {CHUNK}"
    yield bench.compare(name, "ms", bench.chunk(bench.engine(), small), f"in one of {small}", bench.chunk(exact, small))


def first_token(bench: Bench) -> Rows:
    """The same prompt, unknown and then known."""
    length = bench.plan.prefix
    known = bench.prompts(1, length)

    def warm() -> float:
        streams = run(bench.engine(), known, 1, GREEDY)
        return 1e3 * (streams.times[0][0] - streams.began)

    def cold() -> float:
        known[:] = bench.prompts(1, length)
        return warm()

    seen = interleaved(bench.plan.rounds, {"cold": cold, "warm": warm})
    yield Row(f"first token of a prompt of {length}, warm prefix", "ms", seen["warm"], seen["cold"], "cold prefix")


def long_prefill(bench: Bench) -> Rows:
    """The time between two tokens of a stream while a long prompt is prefilled, and before."""
    engine, plan = bench.engine(), bench.plan

    def gaps() -> tuple[float, float]:
        params = replace(GREEDY, max_tokens=plan.new)
        stream = arriving(
            engine.submit(JobRequest(bench.prompts(1, plan.prompt), [0], params, candidates=1, top=0, score=False))
        )
        with ThreadPoolExecutor(1) as pool:
            alone = [next(stream) for _ in range(plan.new // 4)]
            beside = pool.submit(run, engine, bench.prompts(1, plan.long), 1, GREEDY)
            both = [alone[-1], *stream]
        steps = [1e3 * (after - before) for before, after in pairwise(both) if before < beside.result().times[0][0]]
        return median(steps), median(1e3 * (after - before) for before, after in pairwise(alone))

    ours, theirs = zip(*[gaps() for _ in range(plan.rounds + 1)][1:], strict=True)
    yield Row(f"between two tokens, prefill of {plan.long} under way", "ms", ours, theirs, "the same stream before")


def start_up(bench: Bench) -> Rows:
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
        yield Row(f"start-up until {what}, warm cache", "s", warm, cold, "cold cache")


def memory(bench: Bench) -> Rows:
    """The server's peak while it loads and answers long requests in all slots; one round, for it hardly varies."""
    if not Path("/proc/self/status").exists():
        yield NotMeasured("peak memory of the server", "there is no /proc here")
        return
    weights = [bench.checkpoint.parameter_count * jnp.dtype(bench.dtype).itemsize / MIB]
    small = bench.plan.small_pool
    for pool, options in (("default pool", ()), (f"pool of {small} MiB", ("--kv-cache-memory", small))):
        with bench.serving(*options) as server:
            server.client.rate(bench.prompts(SLOTS, bench.plan.prefill), 16)
            status = Path(f"/proc/{server.pid}/status").read_text()
            peak = [int(status.partition("VmHWM:")[2].split()[0]) / 1024]  # kB, the most that was resident at a time
        yield Row(f"peak memory of the server, {pool}", "MiB", peak, weights, "the weights alone")


def over_http(bench: Bench) -> Rows:
    """Clients at once, a request each, against the same through `submit`."""

    def theirs(count: int) -> float:
        return bench.streams(bench.engine(), count).rate()

    with bench.serving() as server:
        for count, stream in (*((count, False) for count in bench.plan.clients), (SLOTS, True)):
            name = f"HTTP, {count} at once" + (", streamed" if stream else "")
            ours = partial(bench.http_rate, server.client, count, stream)
            yield bench.compare(name, "tok/s", ours, "engine.submit", partial(theirs, count))


def embedded(bench: Bench) -> Rows:
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


def against_peers(bench: Bench) -> Rows:
    """Running servers of the same model against our own, with default slots and with one."""
    plan = bench.plan
    long = f"{plan.prompt} + {plan.new_of_peers} tokens"
    works = (  # name, requests at once, ids of a prompt, new tokens, tokens counted for each of them
        (f"one stream, {long}", 1, plan.prompt, plan.new_of_peers, 1),
        (f"eight at once, {long}", 8, plan.prompt, plan.new_of_peers, 1),
        (f"prefill of {plan.prefill} and a token", 1, plan.prefill, 1, plan.prefill),
    )

    def rate(client: Client, count: int, length: int, new: int, worth: int) -> float:
        return worth * client.rate(bench.prompts(count, length), new)

    with bench.serving() as default, bench.serving("--slots", 1) as single:
        for name, count, *work in works:
            ours = {f"default slots ({SLOTS})": default.client} | ({"--slots 1": single.client} if count == 1 else {})
            clients = ours | {peer.name: peer for peer in bench.peers}
            sides = {side: partial(rate, client, count, *work) for side, client in clients.items()}
            seen = interleaved(plan.rounds, sides)
            for peer in bench.peers:
                for side in ours:
                    yield Row(f"HTTP, {name}, {side}", "tok/s", seen[side], seen[peer.name], peer.name)


GROUPS: dict[str, Callable[[Bench], Rows]] = {
    "decode": decode, "prefill": prefill, "engine": overhead, "transformers": transformers, "shapes": shapes,
    "first-token": first_token, "long-prefill": long_prefill, "startup": start_up, "memory": memory,
    "http": over_http, "embedded": embedded, "peers": against_peers,
}  # fmt: skip


# ---- the report


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_average() -> str:
    return " ".join(f"{figure:.2f}" for figure in os.getloadavg())


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def head(options: argparse.Namespace, checkpoint: Checkpoint) -> dict[str, Any]:
    packages = ("gnomon", "jax", "jaxlib", "numpy", "torch", "transformers")
    device = jax.devices()[0]
    shape = " ".join(f"{name}={getattr(checkpoint.config, name)}" for name in SHAPE)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "versions": ", ".join([f"Python {platform.python_version()}", *map(_version, packages)]),
        "device": f"{device.platform} ({device.device_kind}, {platform.machine()}), {cores()} cores",
        "model": f"{checkpoint.parameter_count:,} parameters, {shape}",
        "rounds": options.plan.rounds,
        "load average before": load_average(),
    }


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[Client]]:
    """The options with their defaults filled in, and the peers, which have answered; else the process ends with 2."""
    parser = argparse.ArgumentParser(
        "python -m gnomon.jax_engine.tools.bench", description="One table of measured ratios."
    )
    parser.add_argument("--only", metavar="GROUP,…", help=f"some of {', '.join(GROUPS)}")
    parser.add_argument("--dtype", choices=DTYPES, help="one instead of both")
    parser.add_argument("--rounds", type=int, help=f"default: {Plan().rounds}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the report is to be written as JSON too")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="the model; default: random weights, 135M")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=URL[,model=ID]", help="may be repeated")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round, float32: does all of it work?")
    options = parser.parse_args(arguments)
    default = [group for group in GROUPS if group != "peers" or options.peer]
    options.only = options.only.split(",") if options.only else default
    if unknown := [group for group in options.only if group not in GROUPS]:
        parser.error(f"--only: there is no {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    if bool(options.peer) != ("peers" in options.only):
        parser.error("the group peers and the option --peer need each other")
    if options.peer and not (options.checkpoint and options.dtype):
        parser.error("--peer: what the peers serve is to be said with --checkpoint and --dtype")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: at least 1")
    options.plan = QUICK if options.quick else Plan()
    options.plan = replace(options.plan, rounds=options.rounds or options.plan.rounds)
    options.dtypes = [options.dtype] if options.dtype else DTYPES[: 1 if options.quick else 2]
    try:
        if options.json is not None:
            options.json.open("a").close()  # an hour later would be a bad time to find that it cannot be written
        peers = list(map(Client.of_peer, options.peer))
    except (BenchError, OSError) as error:
        parser.error(str(error))
    if len({peer.name for peer in peers}) < len(peers):
        parser.error("--peer: two have the same name")
    return options, peers


def measured(bench: Bench, group: str) -> Rows:
    """A group's rows, named with the dtype. What fails in it is a row too, and ends this group alone."""
    try:
        for row in GROUPS[group](bench):
            yield replace(row, name=f"{row.name}, {bench.dtype}")
    except Exception as error:
        traceback.print_exc()
        why = f"failed, {type(error).__name__}: {' '.join(str(error).split())}"
        yield NotMeasured(f"the rest of the group {group}, {bench.dtype}", why, failed=True)


def _checkpoint(path: Path, plan: Plan) -> Checkpoint:
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointError as error:
        sys.exit(str(error))
    if checkpoint.config.max_position_embeddings < plan.long + plan.new:
        sys.exit(f"{path}: the context is shorter than the {plan.long + plan.new} tokens that are measured")
    return checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 if a group failed."""
    options, peers = parse(arguments)
    try:
        require_devices()
    except NoDevice as error:
        sys.exit(str(error))
    failed, said = False, set[str]()
    with tempfile.TemporaryDirectory(prefix="gnomon-bench-") as name:
        scratch = Path(name)
        checkpoint = _checkpoint(options.checkpoint or make_checkpoint(scratch / "llama", options.plan), options.plan)
        report: dict[str, Any] = {"head": head(options, checkpoint), "rows": []}
        for dtype in options.dtypes:
            bench = Bench(options.plan, dtype, checkpoint, scratch, peers, said)
            for group in options.only:
                print(f"{group}, {dtype} …", file=sys.stderr, flush=True)
                for row in measured(bench, group):
                    report["rows"].append(row.to_json())
                    print(_line(row.to_json()), file=sys.stderr, flush=True)
                    failed |= isinstance(row, NotMeasured) and row.failed
            bench.close()
    report["head"]["engines here"] = "; ".join(sorted(said)) or "none"
    report["head"]["load average after"] = load_average()
    print(render(report))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
