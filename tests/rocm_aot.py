"""Compiles every program of the JAX engine to an AMD GPU's machine code, with neither the GPU nor ROCm at hand.

    python tests/rocm_aot.py [--workdir DIR] [--target gfx942]

    1 jax's ROCm plugin, of the installed jax's version, is unpacked into the work directory (150 MB, on disk 500 MB);
      the Python environment stays as it is
    2 the plugin brings its compiler along and lacks only ROCm's shared libraries: stubs of them, every function of
      which answers "no device", let it load
    3 in a process of its own the engine is made on the CPU, but told by `jax.default_backend` that it is on a GPU; its
      programs are exported for ROCm and compiled for a GPU that is only described: those of the embedded model in
      float32, and those of a Llama of 135M random weights in bfloat16
    4 a table is printed, a row a program. A row fails if the program does not compile, if its code is for another
      machine than the target, or if it calls what EXPLAINED does not name; then the exit status is 1

What this proves: the AMD back end of XLA, the compiler that jax uses in the field, takes every program and makes code
for that GPU of it. What it does not prove: that the code runs, that its numbers are right, how fast it is, that it
works on several GPUs, and what XLA would choose where it sees the device. There it times its own kernels against
those of hipBLASLt, rocBLAS and MIOpen and may hand sorts to hipCUB; here it takes its own kernels, with their
defaults, for everything.

With --workdir everything stays there: the plugin for the next run, and each program's code objects
(DIR/code/MODEL/PROGRAM/*.hsaco) for a disassembler. Needs gcc, nm, objdump, and pip with a package index; it goes
through private modules of jax and undocumented settings of XLA, so it may break with a new version of jax.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import jax
from jax._src import xla_bridge
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from gnomon.jax_engine.device import Program
from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.settings import EngineSettings
from gnomon.reference.checkpoint.load import default_model_path, load_checkpoint
from helpers.models import tiny_llama

TOOLS = ("gcc", "nm", "objdump")
SLOTS = 8

# custom calls that are no kernels of a library: none at present
EXPLAINED: set[str] = set()

# the shape of a small Llama as people serve it
LLAMA_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


class Gpu(NamedTuple):
    """What XLA asks about a GPU beyond its instruction set; it steers the size of tiles and the like."""

    name: str
    cores: int
    clock_ghz: float
    memory: int  # bytes
    bandwidth: int  # bytes a second
    shared_memory: int  # bytes a core


# the figures with which XLA describes these GPUs for compilation without a device
TARGETS = {
    "gfx90a": Gpu("MI250", 110, 1.7, 67_628_957_696, 1_638_400_000_000, 64 * 1024),
    "gfx942": Gpu("MI300X", 304, 2.1, 270_566_162_432, 6_810_000_000_000, 64 * 1024),
    "gfx950": Gpu("MI350X", 256, 2.2, 270_566_162_432, 7_782_000_000_000, 160 * 1024),
}


# ---- the plugin and the libraries that it lacks


def fetch_plugin(workdir: Path) -> Path:
    """The shared library of jax's ROCm plugin, downloaded if it is not there yet."""
    wanted = f"jax-rocm7-pjrt=={version('jax')}.*"
    folder = workdir / wanted.replace("==", "-").removesuffix(".*")
    if not folder.exists():
        unpacked = folder.with_suffix(".part")
        shutil.rmtree(unpacked, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        if subprocess.run([*pip, "--only-binary=:all:", "--target", unpacked, wanted]).returncode:
            raise SystemExit(f"pip could not download {wanted}")
        unpacked.rename(folder)
    return next(folder.rglob("xla_rocm_plugin.so"))


# what every Linux machine has; any other library that the plugin needs is a part of ROCm
SYSTEM_LIBRARIES = re.compile(r"(libm|librt|libpthread|libdl|libstdc\+\+|libc|libgcc_s|ld-linux.*)\.so\.\d+")
SYSTEM_VERSIONS = ("GLIBC", "CXXABI", "GCC")
NO_DEVICE = 100  # hipErrorNoDevice; to the other libraries any number but 0 is an error
ANSWERS = {
    "hipGetDeviceCount": "int *n) { *n = 0; return 0;",
    "hipRuntimeGetVersion": "int *n) { *n = 70200000; return 0;",
    "hipDriverGetVersion": "int *n) { *n = 70200000; return 0;",
}


def build_stubs(library: Path, folder: Path) -> None:
    """One stub with all symbols that the library lacks, in `folder` under the name of every library that it needs."""
    folder.mkdir(exist_ok=True)
    symbols: dict[str, list[str]] = {}  # version → names
    for line in _output("nm", "-D", "--undefined-only", library).splitlines():
        kind, symbol = line.split()
        name, _, of = symbol.partition("@")
        if kind == "U" and not of.startswith(SYSTEM_VERSIONS):
            symbols.setdefault(of, []).append(name)
    source, versions = folder / "stub.c", folder / "stub.map"
    default = f"void) {{ return {NO_DEVICE};"
    functions = [f"int {name}({ANSWERS.get(name, default)} }}" for names in symbols.values() for name in names]
    source.write_text("\n".join(functions) + "\n")
    nodes = [f"{of} {{ global: {'; '.join(names)}; }};" for of, names in symbols.items() if of]
    versions.write_text("\n".join(nodes) + "\n")
    for needed in re.findall(r"NEEDED\s+(\S+)", _output("objdump", "-p", library)):
        if not SYSTEM_LIBRARIES.fullmatch(needed):
            flags = ["-shared", "-fPIC", "-fno-builtin", f"-Wl,-soname,{needed}", f"-Wl,--version-script={versions}"]
            _output("gcc", *flags, "-o", folder / needed, source)


def _output(*command: str | Path) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


# ---- the device that is only described


def described_device(library: Path, target: str) -> Any:
    """A device of jax on which programs can be compiled, and nothing else."""
    gpu = TARGETS[target]
    limits = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 64,
        "threads_per_core_limit": 2048,
        "shared_memory_per_block": gpu.shared_memory,
        "shared_memory_per_block_optin": gpu.shared_memory,
        "shared_memory_per_core": gpu.shared_memory,
        "registers_per_block_limit": 2**17,
        "registers_per_core_limit": 2**17,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16,
        "block_dim_limit_z": 2**16,
        "core_count": gpu.cores,
        "fpus_per_core": 128,
        "clock_rate_ghz": gpu.clock_ghz,
        "l2_cache_size": 4 * 2**20,
        "device_memory_size": gpu.memory,
        "memory_bandwidth": gpu.bandwidth,
    }
    entries = " ".join(f"{name}: {value}" for name, value in limits.items())
    architecture = f'rocm_compute_capability {{ gcn_arch_name: "{target}:sramecc+:xnack-" }}'
    names = f'platform_name: "ROCM" device_description_str: "{gpu.name}"'
    config = f"gpu_device_info {{ {entries} {architecture} }} {names}"
    xla_bridge.register_plugin("rocm", library_path=str(library))
    return topologies.get_topology_desc("", "rocm", target_config=config, topology="1x1x1").devices[0]


# ---- the programs


def models() -> Iterator[tuple[str, Mapping[str, Program], EngineSettings]]:
    """Name, programs and settings of every engine that is compiled."""
    settings = EngineSettings(slots=SLOTS)
    yield "embedded", _programs(default_model_path(), settings), settings
    settings = EngineSettings(slots=SLOTS, dtype="bfloat16", pool_tokens=SLOTS * LLAMA_135M["max_position_embeddings"])
    with tempfile.TemporaryDirectory() as directory:
        programs = _programs(tiny_llama(Path(directory), scale=0.02, **LLAMA_135M), settings)
    yield "llama-135m", programs, settings


def _programs(directory: Path, settings: EngineSettings) -> dict[str, Program]:
    engine = JaxEngine(load_checkpoint(directory), settings)
    engine.stop()
    return engine.programs()


class Compiled(NamedTuple):
    machines: set[str]  # that its code objects are for
    code: int  # bytes of instructions; a kernel that an earlier program has as well is compiled, and counted, there
    temporary: int  # bytes that a call needs beside its arguments and results
    custom_calls: set[str]
    seconds: float  # of tracing, lowering and compiling


def compile_program(program: Program, device: Any, cache: Path, keep: Path) -> Compiled:
    """Compiles for the device. cache: where XLA puts code objects; they are moved to `keep`."""

    def on_device(leaf: Any) -> Any:
        home = SingleDeviceSharding(device)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=home)  # type: ignore[no-untyped-call]

    shutil.rmtree(cache, ignore_errors=True)  # what a failed program has left
    cache.mkdir()
    started = time.monotonic()
    # the function itself may speak of the CPU on which the engine was made; what is exported names no device
    exported = jax.export.export(jax.jit(program.function), platforms=["rocm"])(*program.arguments)
    jitted = jax.jit(exported.call, donate_argnums=program.donated)
    compiled = jitted.lower(*jax.tree.map(on_device, program.arguments)).compile()
    seconds = time.monotonic() - started
    keep.mkdir(parents=True)
    objects = [Path(shutil.move(path, keep)).read_bytes() for path in sorted(cache.glob("*.hsaco"))]
    analysis = compiled.memory_analysis()
    assert analysis is not None
    calls = set(re.findall(r'custom_call_target="([^"]*)"', compiled.as_text() or ""))
    machines = {machine(data) for data in objects}
    return Compiled(machines, sum(map(code_bytes, objects)), analysis.temp_size_in_bytes, calls, seconds)


EM_AMDGPU = 224
SHF_EXECINSTR = 4


def machine(data: bytes) -> str:
    """The processor that an ELF file is for, such as gfx942: its header says AMD GPU, its notes say which."""
    (number,) = struct.unpack_from("<H", data, 18)
    named = re.search(rb"amdgcn-\w*-amdhsa-\w*-(gfx\w+)", data)
    if data[:4] != b"\x7fELF" or number != EM_AMDGPU or named is None:
        return f"ELF machine {number}"
    return named[1].decode()


def code_bytes(data: bytes) -> int:
    """The size of an ELF file's sections of instructions."""
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [data[at : at + size] for at in range(table, table + size * count, size)]
    flags_and_sizes = [(*struct.unpack_from("<Q", s, 8), *struct.unpack_from("<Q", s, 32)) for s in sections]
    return sum(length for flags, length in flags_and_sizes if flags & SHF_EXECINSTR)


# ---- the table

ROW = "| {:9} | {:10} | {:8} | {:7} | {:>10} | {:>11} | {:>7} | {:12} | {}"
HEADER = ROW.format(
    "program", "model", "dtype", "machine", "code bytes", "temp. bytes", "seconds", "custom calls", "verdict"
)


def compile_all(library: Path, workdir: Path, target: str) -> bool:
    """Prints the table. False: at least one row fails."""
    device = described_device(library, target)
    print(f"{device.device_kind} ({target}), jax {version('jax')}\n\n{HEADER}", flush=True)
    passed = True
    for model, programs, settings in models():
        for name, program in programs.items():
            try:
                done = compile_program(program, device, workdir / "cache", workdir / "code" / model / name)
            except Exception as error:  # whatever it is, the other programs have their turn
                traceback.print_exc()
                cells: tuple[object, ...] = ("", "", "", "", "")
                verdict = f"FAILED: {type(error).__name__}"
            else:
                machines, calls = ", ".join(sorted(done.machines)), ", ".join(sorted(done.custom_calls))
                cells = (machines, f"{done.code:,}", f"{done.temporary:,}", f"{done.seconds:.1f}", calls or "none")
                verdict = "ok"
                if done.machines != {target}:  # nothing at all, too
                    verdict = f"FAILED: the code is not for {target}"
                elif done.custom_calls - EXPLAINED:
                    verdict = "FAILED: an unexplained custom call"
            passed &= verdict == "ok"
            print(ROW.format(name, model, settings.dtype, *cells, verdict), flush=True)
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, help="kept for the next run; if not given, a temporary directory")
    parser.add_argument("--target", choices=TARGETS, default="gfx942")
    parser.add_argument("--library", type=Path, help=argparse.SUPPRESS)  # the second process, where stubs are found
    arguments = parser.parse_args()
    if arguments.library:
        with patch.object(jax, "default_backend", return_value="gpu"):
            raise SystemExit(not compile_all(arguments.library, arguments.workdir, arguments.target))
    with tempfile.TemporaryDirectory() as temporary:
        workdir: Path = arguments.workdir or Path(temporary)
        workdir.mkdir(parents=True, exist_ok=True)
        for folder in ("code", "stubs"):
            shutil.rmtree(workdir / folder, ignore_errors=True)
        library = fetch_plugin(workdir)
        build_stubs(library, workdir / "stubs")
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "TF_"))},
            "TF_CPP_MIN_LOG_LEVEL": "2",  # errors only
            "LD_LIBRARY_PATH": ":".join(filter(None, (str(workdir / "stubs"), os.environ.get("LD_LIBRARY_PATH")))),
            "JAX_PLATFORMS": "cpu",
            "TF_XLA_HSACO_CACHE_DIR": str(workdir / "cache"),
            "TF_XLA_HSACO_BITCODE_SIZE_THRESHOLD": "0",
        }
        command = [sys.executable, __file__, "--library", library, "--workdir", workdir, "--target", arguments.target]
        raise SystemExit(subprocess.run(command, env=environment).returncode)


if __name__ == "__main__":
    main()
