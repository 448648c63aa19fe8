"""How much memory there is: the machine's, and what a control group allows of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gnomon.jax_engine.runtime import settings
from gnomon.jax_engine.runtime.memory import Memory, memory
from gnomon.jax_engine.runtime.settings import EngineSettings, check_memory
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
    if fits:
        check_memory(checkpoint, EngineSettings(), 8192)
        return
    numbers = r"8,192 tokens takes 2 MiB, the weights 1 and 8 slots 1, and there are 16 MiB of memory, \d of them free"
    with pytest.raises(ValueError, match=numbers):
        check_memory(checkpoint, EngineSettings(), 8192)
