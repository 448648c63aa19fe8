"""Compiles every program of the JAX engine for a GPU, with neither the GPU nor its driver at hand, and counts in what
the compiler made of them what a run of each would cost there.

    python tests/gpu_aot.py [--target gfx942] [--only MODEL …] [--workdir DIR]

    1 jax's plugin for the target (AMD's or NVIDIA's), of the installed jax's version, is unpacked into the work
      directory (150 MB, on disk 500 MB); the Python environment stays as it is
    2 in a process of its own the programs are made from the shapes of a model's weights, lowered as the engine lowers
      them, for GPUs that are only described, and compiled: those of `models`, the last for eight GPUs
    3 a table is printed, a row a program, which fails if the program does not compile, if AMD code is for another
      machine than the target, or if it is above a bound of helpers/program_bounds.py; then the exit status is 1

It takes four minutes on two cores, so its test is a weekly one. The columns; helpers/hlo.py says how each is counted:

    kernels      launched in one run; a layer: in an inner layer; outside: in none
    loops        while loops, and those of unknown length: the host reads a condition at each of their iterations
    conditionals branches, which the host takes · sorts, also inside a fusion, and top_k by a sort · custom calls, into
                 a library
    bytes        read and written by the kernels, as their shapes say (these compilers give no cost analysis), over the
                 least: the weights that the program uses, each once, the embedding's rows aside, and the pages of keys
                 and values in tables of its width. A loop of unknown length counts as if it ran once, hence "≥"
    copied       bytes written by kernels that only copy, transpose or convert · temporaries, beside arguments and
                 results: both in parts of all weights
    collectives  all-reduces a layer, others a layer, all that are outside the layers · exchanged, bytes that a device
                 has from them, in parts of its weights
    (8)          in brackets, the aim where it is not reached yet; what is reached now may not grow

What this proves: the back end of XLA, the compiler that jax uses in the field, takes every program and makes code for
that GPU of it. What it does not prove: that the code runs, that its numbers are right, how fast it is, and what XLA
would choose where it sees the device. There it times its own kernels against those of libraries (hipBLASLt, rocBLAS,
MIOpen; cuBLAS, cuDNN) and may hand sorts to hipCUB or CUB; here it takes its own, with their defaults, for everything.

With --workdir everything stays there: the plugin for the next run, and of each program its optimised HLO and, for AMD,
its code objects for a disassembler (DIR/code/MODEL/PROGRAM). Needs pip with a package index; AMD's plugin also needs
gcc, nm and objdump.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax

from gnomon.jax_engine.device import Program
from gnomon.jax_engine.runtime.settings import EngineSettings
from gnomon.reference.checkpoint.load import default_model_path, load_checkpoint
from gnomon.reference.model_config import ModelConfig
from helpers import hlo
from helpers.abstract_device import AbstractDevice, abstract_device, llama_config
from helpers.described_gpu import TARGETS, code_bytes, described_devices, environment_of, fetch_plugin, machine
from helpers.program_bounds import MOST_PROGRAMS, REACHED, Bound, bounds, broken, kind_of, shown

SLOTS = 8

# the shape of a small Llama as people serve it, and of a large one
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
LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
}


# ---- the programs


class Model(NamedTuple):
    config: ModelConfig
    dtype: str
    devices: int = 1
    is_large: bool = False

    def device(self, devices: Sequence[Any]) -> AbstractDevice:
        pool = SLOTS * self.config.max_position_embeddings
        settings = EngineSettings(
            slots=SLOTS, dtype=self.dtype, pool_tokens=pool, tensor_parallel=self.devices, native=False
        )
        return abstract_device(self.config, settings, devices)


def models() -> Mapping[str, Model]:
    large = llama_config(**LLAMA_8B)
    return {
        "embedded": Model(load_checkpoint(default_model_path()).config, "float32"),
        "llama-135m": Model(llama_config(**LLAMA_135M), "bfloat16"),
        "llama-8b": Model(large, "bfloat16", is_large=True),
        "llama-8b x8": Model(large, "bfloat16", devices=8, is_large=True),
    }


class Compiled(NamedTuple):
    machines: set[str]  # that its code objects are for
    code: int  # bytes of instructions; a kernel that an earlier program has as well is compiled, and counted, there
    counts: hlo.Counts
    bytes: float | None  # over the least
    copied: int
    temporary: int  # bytes that a call needs beside its arguments and results
    seconds: float  # of tracing, lowering and compiling


def compile_program(device: AbstractDevice, name: str, program: Program, cache: Path, keep: Path) -> Compiled:
    """cache: where XLA puts code objects; they are moved to `keep`."""
    shutil.rmtree(cache, ignore_errors=True)  # what a failed program has left
    cache.mkdir()
    started = time.monotonic()
    compiled = device.compile(program)
    seconds = time.monotonic() - started
    keep.mkdir(parents=True)
    objects = [Path(shutil.move(path, keep)).read_bytes() for path in sorted(cache.glob("*.hsaco"))]
    text = compiled.as_text()
    (keep / "program.hlo").write_text(text)
    module = hlo.parse(text)
    least = least_bytes(module, table_entries(device, name))
    return Compiled(
        {machine(data) for data in objects},
        sum(map(code_bytes, objects)),
        hlo.count(module),
        hlo.traffic(module) / least if least else None,
        hlo.copied(module),
        compiled.memory_analysis().temp_size_in_bytes,
        seconds,
    )


ROWS_ONLY = ("embed_tokens", "embed_positions")  # weights of which a program reads a row a token


def table_entries(device: AbstractDevice, program: str) -> int:
    """How many pages its tables have room for. In a name with a number that is how many positions a row sees."""
    s, positions = device.settings, program.partition(" ")[2]
    whole = -(-device.config.max_position_embeddings // s.page_size) + 1
    width = int(positions) // s.page_size if positions else whole
    return width * (1 if kind_of(program) == "prefill" else s.slots)


def least_bytes(module: hlo.Module, entries: int) -> int:
    """What a program must read at least on one device: the weights that it uses, and so many pages of every layer. 0:
    it uses no weights. Arguments are known by jax's names of them."""
    weights = pages = 0
    for argument in module.computations[module.entry]:
        if argument.opcode == "parameter":
            name, size = argument.op_name, hlo.byte_size(argument.shape)
            if name.startswith("params[") and name.split("'")[-2] not in ROWS_ONLY:
                weights += size
            elif re.search(r"\bcache\[\d+\]", name):
                pages += size // hlo.dimensions(argument.shape)[0]
    return weights + pages * entries if weights else 0


def weight_bytes(device: AbstractDevice) -> int:
    """Of all weights, on one device; a head that is the embedding is there once."""
    leaves = {id(leaf): leaf for leaf in jax.tree.leaves(device.params)}.values()
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


# ---- the table

COLUMNS = {  # column → its width
    "kernels": 7,
    "kernels a layer": 15,
    "kernels outside": 15,
    "loops": 5,
    "unknown loops": 13,
    "conditionals": 12,
    "sorts": 6,
    "custom calls": 12,
    "bytes": 10,
    "copied": 13,
    "temporaries": 14,
    "all-reduces a layer": 19,
    "other collectives a layer": 25,
    "collectives outside": 19,
    "exchanged": 14,
}
ROW = " | ".join(("| {:10}", "{:11}", "{:7}", "{:>10}", "{:>7}", *(f"{{:>{w}}}" for w in COLUMNS.values()), "{}"))
HEADER = ROW.format("program", "model", "machine", "code bytes", "seconds", *COLUMNS, "verdict")


def costs(done: Compiled, weights: int) -> dict[str, float]:
    """Column → number; no bytes where the program uses no weights."""
    counts = done.counts
    in_layers, outside = Counter(counts.layer_collectives), counts.outer_collectives
    found: dict[str, float] = {
        "kernels": counts.kernels,
        "kernels a layer": counts.layer_kernels,
        "kernels outside": counts.outer_kernels,
        "loops": counts.loops,
        "unknown loops": counts.unknown_loops,
        "conditionals": counts.conditionals,
        "sorts": counts.sorts,
        "custom calls": sum(counts.custom_calls.values()),
        "copied": done.copied / weights,
        "temporaries": done.temporary / weights,
        "all-reduces a layer": in_layers.pop("all-reduce", 0),
        "other collectives a layer": sum(in_layers.values()),
        "collectives outside": sum(outside.values()),
        "exchanged": counts.exchanged / weights,
    }
    return found if done.bytes is None else {**found, "bytes": done.bytes}


def cell(column: str, found: Mapping[str, float], bound: Bound | None) -> str:
    if column not in found:
        return ""
    aim = f" ({shown(bound.aim)})" if bound is not None and found[column] > bound.aim else ""
    least = "≥ " if column == "bytes" and found["unknown loops"] else ""
    return least + shown(found[column]) + aim


def faults(done: Compiled, found: Mapping[str, float], own: Mapping[str, Bound], target: str) -> list[str]:
    """What is wrong with a program that compiled."""
    wrong = list(broken(found, own))
    if any(fault.startswith("custom calls") for fault in wrong):
        wrong.append(f"it calls {', '.join(sorted(done.counts.custom_calls))}")
    if TARGETS[target].platform == "rocm" and done.machines != {target}:  # no code at all, too
        wrong.append(f"the code is not for {target}")
    return wrong


def improved(found: Mapping[str, float], own: Mapping[str, Bound]) -> Iterator[str]:
    """Where a program is clearly better than what REACHED says."""
    for column, bound in own.items():
        if bound.in_force > bound.aim and column in found and found[column] < 0.98 * bound.in_force:
            yield f"{column} {shown(bound.in_force)} → {shown(found[column])}"


def compile_all(library: Path, workdir: Path, target: str, only: Collection[str]) -> bool:
    """Prints the table. False: at least one row fails."""
    print(f"{target}, jax {version('jax')}\n\n{HEADER}", flush=True)
    passed, hints = True, []
    for name, model in models().items():
        if only and name not in only:
            continue
        device = model.device(described_devices(library, target, model.devices))
        programs, weights = device.programs(), weight_bytes(device)
        for program in programs:
            own = bounds(name, kind_of(program), model.is_large, model.devices > 1)
            keep = workdir / "code" / name / program
            try:
                done = compile_program(device, program, programs[program], workdir / "cache", keep)
            except Exception as error:  # whatever it is, the other programs have their turn
                traceback.print_exc()
                cells, wrong = [""] * (3 + len(COLUMNS)), [type(error).__name__]
            else:
                found = costs(done, weights)
                cells = [", ".join(sorted(done.machines)), f"{done.code:,}", f"{done.seconds:.1f}"]
                cells += [cell(column, found, own.get(column)) for column in COLUMNS]
                wrong = faults(done, found, own, target)
                hints += [f"{name}, {program}: {better}" for better in improved(found, own)]
            passed &= not wrong
            print(ROW.format(program, name, *cells, f"FAILED: {'; '.join(wrong)}" if wrong else "ok"), flush=True)
        if len(programs) > MOST_PROGRAMS:
            passed = False
            print(f"FAILED: {name} has {len(programs)} programs; at most {MOST_PROGRAMS}")
        kinds = {kind_of(program) for program in programs}
        hints += [f"{name} has no {kind} any more" for of, kind in REACHED if of == name and kind not in kinds]
    if hints:
        print("\nREACHED of helpers/program_bounds.py can be lowered, where no other target or width needs it:")
        print(*hints, sep="\n")
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, help="kept for the next run; if not given, a temporary directory")
    parser.add_argument("--target", choices=TARGETS, default="gfx942")
    parser.add_argument("--only", nargs="+", default=[], help="models; if not given, all")
    parser.add_argument("--library", type=Path, help=argparse.SUPPRESS)  # the second process, where stubs are found
    arguments = parser.parse_args()
    if arguments.library:
        raise SystemExit(not compile_all(arguments.library, arguments.workdir, arguments.target, arguments.only))
    with tempfile.TemporaryDirectory() as temporary:
        workdir: Path = arguments.workdir or Path(temporary)
        workdir.mkdir(parents=True, exist_ok=True)
        for folder in ("code", "stubs"):
            shutil.rmtree(workdir / folder, ignore_errors=True)
        platform = TARGETS[arguments.target].platform
        library = fetch_plugin(workdir, platform)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "TF_"))},
            **environment_of(library, platform, workdir),
            "TF_CPP_MIN_LOG_LEVEL": "2",  # errors only
            "JAX_PLATFORMS": "cpu",
        }
        # the script that was started: one that imports this one is started again
        command = [sys.executable, *sys.argv, "--library", str(library), "--workdir", str(workdir)]
        raise SystemExit(subprocess.run(command, env=environment).returncode)


if __name__ == "__main__":
    main()
