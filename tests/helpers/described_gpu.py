"""GPUs that are not there: jax's plugin for one, without its driver, and devices on which programs can be compiled.

The plugin for NVIDIA opens CUDA's libraries when it first needs them, and to compile it needs none, only NVIDIA's
assembler and library of functions for devices, which pip has. The plugin for AMD brings its compiler along and lacks
ROCm's shared libraries: stubs of them, every function of which answers "no device", let it load. All this goes through
private modules of jax and undocumented settings of XLA, so it may break with a new version of jax.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from jax._src import xla_bridge
from jax.experimental import topologies

TOOLS = ("gcc", "nm", "objdump")  # with which stubs are made


class Platform(NamedTuple):
    packages: tuple[str, ...]  # of pip, the plugin's first; {jax} is the installed jax's version
    library: str  # the plugin's shared library


PLATFORMS: Mapping[str, Platform] = {
    "rocm": Platform(("jax-rocm7-pjrt=={jax}.*",), "xla_rocm_plugin.so"),
    "cuda": Platform(
        ("jax-cuda13-pjrt=={jax}.*", "nvidia-cuda-nvcc==13.0.*", "nvidia-nvvm==13.0.*"), "xla_cuda_plugin.so"
    ),
}


class Gpu(NamedTuple):
    """What XLA asks about a GPU; what is not its instruction set steers the size of tiles and the like."""

    name: str
    platform: str
    architecture: str  # in the words of XLA's description
    cores: int
    clock_ghz: float
    memory: int  # bytes
    bandwidth: int  # bytes a second
    cache: int  # bytes, of the second level
    warp: int  # threads
    registers: int  # a core
    shared_memory: int  # bytes a core
    shared_memory_of_block: int  # without asking for more
    shared_memory_optin: int  # at most

    @classmethod
    def amd(cls, target: str, name: str, cores: int, clock_ghz: float, memory: int, bandwidth: int, shared: int) -> Gpu:
        architecture = f'rocm_compute_capability {{ gcn_arch_name: "{target}:sramecc+:xnack-" }}'
        sizes = (cores, clock_ghz, memory, bandwidth, 4 * 2**20, 64, 2**17)
        return cls(name, "rocm", architecture, *sizes, shared, shared, shared)


# the figures with which XLA describes these GPUs for compilation without a device
TARGETS: Mapping[str, Gpu] = {
    "gfx90a": Gpu.amd("gfx90a", "MI250", 110, 1.7, 67_628_957_696, 1_638_400_000_000, 64 * 1024),
    "gfx942": Gpu.amd("gfx942", "MI300X", 304, 2.1, 270_566_162_432, 6_810_000_000_000, 64 * 1024),
    "gfx950": Gpu.amd("gfx950", "MI350X", 256, 2.2, 270_566_162_432, 7_782_000_000_000, 160 * 1024),
    "sm_90": Gpu(
        *("H200", "cuda", "cuda_compute_capability { major: 9 }", 132, 1.98, 151_397_597_184, 4_800_000_000_000),
        *(50 * 2**20, 32, 2**16, 228 * 1024, 48 * 1024, 227 * 1024),
    ),
}


# ---- the plugins, and the libraries that one lacks


def fetch_plugin(workdir: Path, platform: str) -> Path:
    """The shared library of jax's plugin, downloaded if it is not there yet."""
    wanted = [package.format(jax=version("jax")) for package in PLATFORMS[platform].packages]
    folder = workdir / wanted[0].replace("==", "-").removesuffix(".*")
    if not folder.exists():
        unpacked = folder.with_suffix(".part")
        shutil.rmtree(unpacked, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        if subprocess.run([*pip, "--only-binary=:all:", "--target", unpacked, *wanted]).returncode:
            raise SystemExit(f"pip could not download {', '.join(wanted)}")
        unpacked.rename(folder)
    return next(folder.rglob(PLATFORMS[platform].library))


def environment_of(library: Path, platform: str, workdir: Path) -> dict[str, str]:
    """What a process needs that compiles with this plugin, besides what every process has."""
    if platform == "cuda":
        [toolkit] = library.parents[2].glob("nvidia/cu*")
        return {
            "XLA_FLAGS": f"--xla_gpu_cuda_data_dir={toolkit}",
            "PATH": f"{toolkit / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }
    build_stubs(library, workdir / "stubs")
    return {
        "LD_LIBRARY_PATH": ":".join(filter(None, (str(workdir / "stubs"), os.environ.get("LD_LIBRARY_PATH")))),
        "TF_XLA_HSACO_CACHE_DIR": str(workdir / "cache"),
        "TF_XLA_HSACO_BITCODE_SIZE_THRESHOLD": "0",
    }


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


# ---- the devices that are only described


def described_devices(library: Path, target: str, number: int) -> list[Any]:
    """Devices of jax, of one host, on which programs can be compiled, and nothing else."""
    gpu = TARGETS[target]
    limits = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": gpu.warp,
        "threads_per_core_limit": 2048,
        "shared_memory_per_block": gpu.shared_memory_of_block,
        "shared_memory_per_block_optin": gpu.shared_memory_optin,
        "shared_memory_per_core": gpu.shared_memory,
        "registers_per_block_limit": gpu.registers,
        "registers_per_core_limit": gpu.registers,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "core_count": gpu.cores,
        "fpus_per_core": 128,
        "clock_rate_ghz": gpu.clock_ghz,
        "l2_cache_size": gpu.cache,
        "device_memory_size": gpu.memory,
        "memory_bandwidth": gpu.bandwidth,
    }
    entries = " ".join(f"{name}: {value}" for name, value in limits.items())
    names = f'platform_name: "{gpu.platform.upper()}" device_description_str: "{gpu.name}"'
    config = f"gpu_device_info {{ {entries} {gpu.architecture} }} {names}"
    if gpu.platform == "cuda":
        config += " dnn_version_info { major: 9 minor: 10 } runtime_version { major: 12 minor: 8 }"
    if gpu.platform not in xla_bridge._backend_factories:
        xla_bridge.register_plugin(gpu.platform, library_path=str(library))
    topology = topologies.get_topology_desc("", gpu.platform, target_config=config, topology=f"1x1x{number}")
    return list(topology.devices)


# ---- what the compiler wrote

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
