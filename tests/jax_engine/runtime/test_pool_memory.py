"""How much memory there is: the machine's, and what a control group allows of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gnomon.jax_engine.runtime import settings
from gnomon.jax_engine.runtime.memory import Memory, memory
from gnomon.jax_engine.runtime.settings import EngineSettings, check_memory, sized
from gnomon.reference.checkpoint.load import load_checkpoint
from helpers.models import tiny_llama

GIB = 2**30
WHOLE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine(root: Path, cgroup: str, files: dict[str, str], available: int = 3 * GIB) -> Memory:
    """The memory of a machine whose /proc and /sys have these files."""
    wanted = {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {available // 1024} kB\n", "proc/self/cgroup": cgroup}
    for name, text in (wanted | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return memory(root)


V2 = {"a/b/memory.max": f"{GIB}\n", "a/b/memory.current": f"{GIB // 2}\n", "a/b/memory.stat": "inactive_file 1024\n"}
ABOVE = V2 | {"a/b/memory.max": "max\n", "a/memory.max": f"{GIB}\n", "a/memory.current": f"{GIB // 4}\n"}
V1 = {
    "memory/a/memory.limit_in_bytes": f"{GIB}\n",
    "memory/a/memory.usage_in_bytes": f"{GIB // 2}\n",
    "memory/a/memory.stat": "inactive_file 7\ntotal_inactive_file 1024\n",
}
UNLIMITED = V1 | {"memory/a/memory.limit_in_bytes": "9223372036854771712\n"}


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/a/b\n", V2, Memory(GIB, GIB // 2 + 1024)),
        ("0::/a/b\n", ABOVE, Memory(GIB, 3 * GIB // 4)),
        ("3:cpu:/\n4:memory:/a\n0::/\n", V1, Memory(GIB, GIB // 2 + 1024)),
        ("4:memory:/a\n", UNLIMITED, Memory(WHOLE, 3 * GIB)),
        ("0::/\n", {"memory.max": f"{GIB}\n", "memory.current": "0\n"}, Memory(GIB, GIB)),
        ("0::/\n", {"memory.max": f"{GIB}\n", "memory.current": f"{2 * GIB}\n"}, Memory(GIB, 0)),
        ("0::/gone\n", {}, Memory(WHOLE, 3 * GIB)),
        ("nonsense\n", {}, Memory(WHOLE, 3 * GIB)),
    ],
)
def test_the_least_that_a_group_or_the_machine_allows_is_there(
    tmp_path: Path, cgroup: str, files: dict[str, str], expected: Memory
) -> None:
    assert machine(tmp_path, cgroup, files) == expected


def test_a_system_without_those_files_has_its_whole_memory(tmp_path: Path) -> None:
    assert memory(tmp_path) == Memory(WHOLE, WHOLE)


@pytest.mark.parametrize(
    ("free", "fits"), [(10 * 2**20, True), (2 * 2**20, False), (2 * 2**20 + 300_000, True), (0, False)]
)
def test_pool_weights_and_slots_together_are_held_against_the_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, fits: bool
) -> None:
    """The pool alone is 2 MiB: 8,192 tokens of 256 bytes."""
    monkeypatch.setattr(settings, "memory", lambda: Memory(16 * 2**20, free))
    checkpoint = load_checkpoint(tiny_llama(tmp_path))
    asked = sized(EngineSettings(slots=8, pool_tokens=8192), checkpoint.config, is_native=False)
    if fits:
        check_memory(checkpoint, asked)
        return
    numbers = r"8,192 tokens takes 2 MiB, the weights 1 and 8 slots 1, and there are 16 MiB of memory, \d of them free"
    with pytest.raises(ValueError, match=numbers):
        check_memory(checkpoint, asked)


@pytest.mark.parametrize(
    ("limit", "is_native", "slots"),
    [(16 * GIB, True, 32), (16 * GIB, False, 8), (2**21, True, 8), (2**20, True, 4), (1, True, 1)],
)
def test_there_are_as_many_slots_as_the_kernels_have_a_use_for_and_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, is_native: bool, slots: int
) -> None:
    """A slot of this model is 3,240 bytes; a 64th part of 2 MiB holds ten of them."""
    monkeypatch.setattr(settings, "memory", lambda: Memory(limit, limit))
    config = load_checkpoint(tiny_llama(tmp_path)).config
    assert config.vocab_size * settings.SLOT_BYTES == 3240
    assert sized(EngineSettings(), config, is_native).slots == slots
    assert sized(EngineSettings(slots=5), config, is_native).slots == 5


@pytest.mark.parametrize(("slots", "contexts"), [(1, 4), (8, 32), (9, 32), (32, 32), (40, 40)])
def test_the_pool_holds_a_context_a_slot_and_four_where_that_is_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slots: int, contexts: int
) -> None:
    """The context is 256 positions, each of 256 bytes."""
    config = load_checkpoint(tiny_llama(tmp_path, max_position_embeddings=256)).config
    monkeypatch.setattr(settings, "memory", lambda: Memory(GIB, GIB))
    assert sized(EngineSettings(slots=slots), config, is_native=True).pool_tokens == contexts * 256
    assert sized(EngineSettings(slots=slots, pool_tokens=64), config, is_native=True).pool_tokens == 64
    monkeypatch.setattr(settings, "memory", lambda: Memory(4 * 1000 * 256, GIB))
    assert sized(EngineSettings(slots=slots), config, is_native=True).pool_tokens == min(1000, contexts * 256)


START = """
import re, sys
from pathlib import Path
from gnomon.jax_engine.engine import EngineSettings, JaxEngine
from gnomon.reference.checkpoint.load import load_checkpoint

def resident(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

path, cache, pool = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
checkpoint = load_checkpoint(Path(path))
for tokens in (512, pool):  # the first finds out what is taken whatever the pool
    engine = JaxEngine(checkpoint, EngineSettings(slots=2, pool_tokens=tokens, native=False, compilation_cache=cache))
    engine.stop()
    print(resident("VmHWM"), resident("VmRSS"))
    del engine
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
def test_a_start_makes_its_pool_once(tmp_path: Path, engine_cache: Path) -> None:
    """A pool that is far larger than all else: two of them at a time would be seen."""
    path = tiny_llama(tmp_path / "model", max_position_embeddings=256)
    tokens = 2**20  # of 256 bytes
    command = [sys.executable, "-c", START, str(path), str(engine_cache), str(tokens)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    (_, before), (peak, after) = (map(int, line.split()) for line in done.stdout.splitlines())
    pool = tokens * 256
    assert 0.9 * pool < after - before < 1.2 * pool
    assert peak - after < 0.4 * pool
