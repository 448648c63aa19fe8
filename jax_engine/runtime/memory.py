"""The memory that a CPU has for a model and its key/value pool: the machine's, or what a control group allows of it.

Files that the system only keeps to read them quicker count as free, in a group as in the machine.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gnomon.jax_engine.runtime.control_groups import ROOT, control_groups


class Memory(NamedTuple):
    """Bytes: all there may ever be, and those that nobody uses now."""

    limit: int
    free: int


class GroupFiles(NamedTuple):
    limit: str
    used: str
    reclaimable: str  # a line of memory.stat


FILES = {  # of a version of control groups
    1: GroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: GroupFiles("memory.max", "memory.current", "inactive_file"),
}


def memory(root: Path = ROOT) -> Memory:
    """root: where /proc and /sys are."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, free = whole, _entry(root / "proc/meminfo", "MemAvailable:", 1024, whole)
    for folder, version in control_groups("memory", root):
        files = FILES[version]
        with suppress(OSError, ValueError):  # "max", or no such file: this one has no limit
            allowed = int((folder / files.limit).read_text())
            used = int((folder / files.used).read_text())
            reclaimable = _entry(folder / "memory.stat", files.reclaimable, 1, 0)
            limit, free = min(limit, allowed), min(free, max(0, allowed - used + reclaimable))
    return Memory(limit, free)


def _entry(file: Path, name: str, unit: int, missing: int) -> int:
    """The number behind a name, of a file with one on each line."""
    with suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            words = line.split()
            if words[:1] == [name]:
                return int(words[1]) * unit
    return missing
