"""The operations natively on a CPU: the sources in cpu/, built on first use and called through XLA.

    1 compiler   $CXX, else the first of c++, g++, clang++; asked for its version and what it knows of this CPU
    2 name       a hash of all that decides the machine code; also part of the calls' names in compiled programs
    3 build      into the cache directory, unless it is there and whole (see checked.py); a library that another user
                 may have written is not loaded. Objects are kept beside it, each under a hash of its source and of the
                 headers that it includes: after a change only what may differ is compiled again
    4 register   with XLA, for the platform cpu

Where a step fails, `load_native` says why and XLA's own product is to be used. Whether a program contains the call is
decided in Python while it is traced, so one that is lowered for another platform is traced without it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gnomon.jax_engine.kernels.panels import Packer, Panels
from gnomon.jax_engine.runtime.checked import find, keep
from gnomon.jax_engine.runtime.cores import usable_cores
from gnomon.jax_engine.runtime.store import check_owner
from gnomon.jax_engine.sampler import TOP, Reported, Rows, Sampled
from gnomon.reference.system.atomic import PARTIAL

SOURCES = Path(__file__).resolve().with_name("cpu")  # its *.cc are compiled together
CALLS = (
    "linear",
    "attend",
    "norm",
    "rotate",
    "activate",
    "draw",
    "report",
)  # what the library is to have, as gnomon_linear and so on
COMPILERS = ("c++", "g++", "clang++")
CPU_FLAG = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
COMPILER_FLAGS = ("-std=c++20", "-O3", CPU_FLAG, "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-w")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh")  # as rows.h numbers them
EVERYTHING = 2**31  # a window of so many positions hides none
LIBRARY_SUFFIX, OBJECT_SUFFIX = ".so", ".o"
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
COMPILER_SECONDS = 300  # for one run of the compiler
BUILD_SECONDS = 24  # that the compilers of a build took, all together; each has a core, as far as there are some

_registered: dict[str, ctypes.CDLL] = {}  # XLA's table of calls is the process's, and so is this one


class NoNativeKernels(Exception):
    """Why there are no native operations; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Native:
    """A registered library. `description` names the compiler, its flags and the hash: all that decides the bits."""

    name: str  # gnomon_native_<hash>
    description: str

    def target(self, call: str) -> str:
        """What XLA knows one of CALLS by."""
        return self.name.replace("native", call)

    def share_between(self, threads: int) -> None:
        """So many threads of this process compute from now on; it decides no bits. It is the library's, whichever
        engine asks."""
        _registered[self.name].gnomon_threads(threads)

    def packer(self) -> Packer:
        """Makes panels for `linear`."""
        library = _registered[self.name]
        size = ctypes.c_size_t
        library.gnomon_lanes.restype = size
        library.gnomon_pack.argtypes = (ctypes.c_void_p, size, size, size, ctypes.c_void_p)
        library.gnomon_pack.restype = None
        return Packer(library.gnomon_lanes(), library.gnomon_pack)

    def linear(self, x: Array, weights: Sequence[Panels], live: Array, rounded: bool = False) -> list[Array]:
        """x [R, in] float32 · each weight [out, in], all float32 or all bfloat16 → [R, out] float32; rows that are not
        `live` [R] are neither read nor written: what comes out there is what the memory held.

        A row's bits depend on nothing but that row, the weight and `rounded`. With bfloat16 weights x stays float32
        unless `rounded`, which rounds it to bfloat16 too where the CPU has an instruction for that (AVX512_BF16), for
        up to twice the speed with many rows.
        """
        shapes = [jax.ShapeDtypeStruct((x.shape[0], weight.out), jnp.float32) for weight in weights]  # type: ignore[no-untyped-call]
        at = np.int32(0) if weights[0].at is None else weights[0].at
        call = jax.ffi.ffi_call(self.target("linear"), shapes)
        return list(call(x, live, at, *(weight.words for weight in weights), rounded=rounded))

    def attend(
        self,
        q: Array,
        keys: Array,
        values: Array,
        tables: Array,
        positions: Array,
        lengths: Array,
        window: int | None,
        score_cap: float | None,
    ) -> Array:
        """See `xla.attend`; keys and values are float32 or bfloat16. Queries at or beyond their sequence's length are
        neither read nor written, as in `linear`; pages that no query sees are not read.

        The bits of a query depend on nothing but q, its position, the keys and values that it sees, window and cap.
        """
        shape = jax.ShapeDtypeStruct(q.shape, jnp.float32)  # type: ignore[no-untyped-call]
        y: Array = jax.ffi.ffi_call(self.target("attend"), shape)(
            q, keys, values, tables, positions, lengths,
            window=np.int64(EVERYTHING if window is None else window),
            score_cap=np.float32(np.inf if score_cap is None else score_cap),
        )  # fmt: skip
        return y

    def norm(self, x: Array, weight: Array, bias: Array | None, kind: str, eps: float, live: Array) -> Array:
        """See `xla.norm`. Of this and the two operations below the bits of a row depend on nothing but that row and, of
        course, the weight; rows that are not live are neither read nor written, as in `linear`."""
        like = jax.ShapeDtypeStruct((live.size, x.size // live.size), jnp.float32)  # type: ignore[no-untyped-call]
        vectors = [vector.astype(jnp.float32) for vector in (weight, bias) if vector is not None]
        y: Array = jax.ffi.ffi_call(self.target("norm"), like)(
            x.reshape(like.shape), live.reshape(-1), *vectors,
            offset=np.float32(kind == "rms_offset"), is_centred=kind == "layer", eps=np.float32(eps),
        )  # fmt: skip
        return y.reshape(x.shape)

    def rotate(self, x: Array, cos: Array, sin: Array, live: Array) -> Array:
        """See `xla.rotate`."""
        like = jax.ShapeDtypeStruct((live.size, *x.shape[2:]), jnp.float32)  # type: ignore[no-untyped-call]
        turns = (turn.reshape(live.size, -1) for turn in (cos, sin))
        call = jax.ffi.ffi_call(self.target("rotate"), like)
        y: Array = call(x.reshape(like.shape), live.reshape(-1), *turns)
        return y.reshape(x.shape)

    def activate(self, factors: Sequence[Array], kind: str, live: Array) -> Array:
        """See `xla.activate`."""
        like = jax.ShapeDtypeStruct((live.size, factors[0].shape[-1]), jnp.float32)  # type: ignore[no-untyped-call]
        call = jax.ffi.ffi_call(self.target("activate"), like)
        rows = (factor.reshape(like.shape) for factor in factors)
        y: Array = call(live.reshape(-1), *rows, kind=np.int32(ACTIVATIONS.index(kind)))
        return y.reshape(factors[0].shape)

    def draw(self, logits: Array, bias: Array, counts: Array, rows: Rows, live: Array) -> Sampled:
        """`sampler.sample`: a row's token and report, which depend on that row alone. Of a row that is not live nothing
        is read; it comes out as zeros, and so does one that is not finite."""
        token = jax.ShapeDtypeStruct(live.shape, jnp.int32)  # type: ignore[no-untyped-call]
        call = jax.ffi.ffi_call(self.target("draw"), Sampled(token, *_reported(*logits.shape)))
        return Sampled(*call(logits, bias, counts, live, *rows))

    def report(self, logits: Array, ids: Array, live: Array) -> Reported:
        """`sampler.report_ids`: of what `draw` computes, the report alone."""
        call = jax.ffi.ffi_call(self.target("report"), _reported(*logits.shape))
        return Reported(*call(logits, ids, live))


def _reported(B: int, V: int) -> Reported:
    """The shapes of a report."""
    shape, top = jax.ShapeDtypeStruct, (B, min(TOP, V))
    return Reported(shape((B,), jnp.float32), shape(top, jnp.int32), shape(top, jnp.float32), shape((B,), jnp.bool_))  # type: ignore[no-untyped-call]


def load_native(cache: Path | None, announce: Callable[[str], None] = lambda line: None) -> Native | NoNativeKernels:
    """The native operations, built into `cache` if it is not there yet, or why there are none.

    announce: is told before the compiler begins, and of a library that is there and damaged.
    """
    try:
        if jax.default_backend() != "cpu":
            raise NoNativeKernels(f"the device is not a CPU but {jax.default_backend()}")
        if cache is None:
            raise NoNativeKernels("there is no cache directory to build it in")
        return _load(cache, announce)
    except NoNativeKernels as reason:
        return reason
    except (OSError, ValueError, AttributeError, jax.errors.JaxRuntimeError) as error:
        return NoNativeKernels(f"the library cannot be used: {error}")


def _load(cache: Path, announce: Callable[[str], None]) -> Native:
    compiler = _compiler()
    sources = [(file.name, file.read_bytes()) for file in sorted(SOURCES.iterdir())]
    about = _run([*compiler, "--version"]).partition("\n")[0]
    cpu = _run(
        [*compiler, *COMPILER_FLAGS, "-dM", "-E", "-x", "c++", os.devnull]
    )  # every macro: instructions, compiler
    tools = (about, cpu, COMPILER_FLAGS, version("jaxlib"))
    name = _name("native", sources, tools)
    native = Native(name, f"{name}, {about}, {' '.join(COMPILER_FLAGS)}")
    if name not in _registered:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_owner(cache)
        kept = find(cache, name, LIBRARY_SUFFIX, announce)
        if kept is None:
            seconds = BUILD_SECONDS / min(usable_cores(), len(list(SOURCES.glob("*.cc"))))
            announce(f"building the native operations with {compiler[0]}: about {seconds:.0f} s, the first time only")
        library = ctypes.CDLL(str(_build(compiler, cache, name, tools, announce) if kept is None else kept.path))
        handlers = {call: getattr(library, f"gnomon_{call}") for call in CALLS}
        for call, handler in handlers.items():
            capsule = jax.ffi.pycapsule(handler)  # type: ignore[no-untyped-call]
            jax.ffi.register_ffi_target(native.target(call), capsule, platform="cpu")
        _registered[name] = library
    return native


def _compiler() -> list[str]:
    named = os.environ.get("CXX", "").strip()
    for command in [named] if named else COMPILERS:
        words = shlex.split(command)
        if shutil.which(words[0]):
            return words
    raise NoNativeKernels(f"there is no C++ compiler: {named or ', '.join(COMPILERS)} not found")


def _name(of: str, *decides: object) -> str:
    return f"gnomon_{of}_{hashlib.sha256(repr(decides).encode()).hexdigest()[:16]}"


def _build(compiler: list[str], cache: Path, name: str, tools: object, announce: Callable[[str], None]) -> Path:
    """Compiles the sources beside each other, as far as there are processors, and links them."""
    command = [*compiler, *COMPILER_FLAGS, f"-I{jax.ffi.include_dir()}"]
    with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=PARTIAL, dir=cache) as folder:

        def compiled(source: Path) -> Path:
            own = _name(source.stem, _with_headers(source), tools)
            if kept := find(cache, own, OBJECT_SUFFIX, announce):
                return kept.path
            made = Path(folder) / f"{source.stem}{OBJECT_SUFFIX}"
            _run([*command, "-c", "-o", str(made), str(source)])
            return keep(cache, own, OBJECT_SUFFIX, made.read_bytes())

        with ThreadPoolExecutor(usable_cores()) as pool:
            objects = list(pool.map(compiled, sorted(SOURCES.glob("*.cc"))))
        library = Path(folder) / f"built{LIBRARY_SUFFIX}"
        _run([*command, "-o", str(library), *map(str, objects)])
        return keep(cache, name, LIBRARY_SUFFIX, library.read_bytes())


def _with_headers(source: Path) -> dict[str, bytes]:
    """What a source says, and what all those of SOURCES say that it includes, by name."""
    texts, names = {}, [source.name]
    while names:
        name = names.pop()
        if name not in texts and (SOURCES / name).is_file():
            texts[name] = (SOURCES / name).read_bytes()
            names += INCLUDE.findall(texts[name].decode())
    return texts


def _run(command: list[str]) -> str:
    """What a compiler's run prints; NoNativeKernels with the first error it names if it fails."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMPILER_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise NoNativeKernels(f"{command[0]} was not done after {COMPILER_SECONDS} s") from None
    if done.returncode != 0:
        lines = done.stderr.splitlines() or [f"exit status {done.returncode}"]
        raise NoNativeKernels(f"{command[0]} failed: {next((line for line in lines if 'error' in line), lines[-1])}")
    return done.stdout
