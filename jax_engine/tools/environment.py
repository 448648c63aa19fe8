"""The examination's first section: versions, device, memory, the variables that matter; the engine is started."""

from __future__ import annotations

import os
import platform
import textwrap
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax

from gnomon.jax_engine.tools.examined import Examination, ExaminedModel, SayLine
from gnomon.jax_engine.tools.lines import row, without_names

PLUGIN_PACKAGES = ("jax-cuda12-plugin", "jax-cuda13-plugin", "jax-rocm60-plugin", "jax-rocm7-plugin", "libtpu")
SHOWN_VARIABLES = (
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


def environment(examined: ExaminedModel, found: Examination, say: SayLine) -> list[str]:
    """Versions, device, memory, variables; then the float32 engine is started. Never a fault, but it may raise."""
    say("environment")
    names = ("jax", "jaxlib", "numpy")
    found["python"] = platform.python_version()
    found["system"] = f"{platform.system()} {platform.machine()}"
    found["processors"] = os.cpu_count()
    found["processor"] = _processor()
    found["versions"] = {name: version(name) for name in names}
    found["plugins"] = {name: installed for name in PLUGIN_PACKAGES if (installed := _version(name))}
    found["variables"] = {name: without_names(os.environ[name]) for name in SHOWN_VARIABLES if name in os.environ}
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

    c, s = examined.config, examined.settings("float32")
    found["model"] = {
        "embedded": examined.embedded,
        "parameters": examined.checkpoint.parameter_count,
        "layers": c.num_hidden_layers,
        "width": c.hidden_size,
        "vocabulary": c.vocab_size,
        "context": c.max_position_embeddings,
    }
    which = "embedded" if examined.embedded else "of a directory"
    say(
        row(
            "model",
            f"{which}, {found['model']['parameters']:,} parameters, {c.num_hidden_layers} layers of width "
            f"{c.hidden_size}, {c.vocab_size:,} ids, context {c.max_position_embeddings:,}",
        )
    )
    started = time.monotonic()
    engine = examined.engine("float32")
    found["engine"] = {
        "slots": engine.settings.slots,
        "page_size": s.page_size,
        "chunk": s.chunk,
        "pool_tokens": engine.settings.pool_tokens,
        "start_seconds": round(time.monotonic() - started, 2),
        "notes": examined.notes,
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
