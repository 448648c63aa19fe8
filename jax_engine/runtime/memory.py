"""The memory that a CPU has for a model and its key/value pool: the machine's, or what a control group allows of it.

A container's limit is its control group's, in version 1 or 2 of them; any group above it may allow less still. Files
that the system only keeps to read them quicker count as free, in a group as in the machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")


class Memory(NamedTuple):
    """Bytes: all there may ever be, and those that nobody uses now."""

    limit: int
    free: int


class ControlGroup(NamedTuple):
    """Names of a version's files."""

    limit: str
    used: str
    reclaimable: str  # a line of memory.stat


V2 = ControlGroup("memory.max", "memory.current", "inactive_file")
V1 = ControlGroup("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def memory(root: Path = ROOT) -> Memory:
    """root: where /proc and /sys are."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, free = whole, _entry(root / "proc/meminfo", "MemAvailable:", 1024, whole)
    for folder, group in _groups(root):
        with suppress(OSError, ValueError):  # "max", or no such file: this one has no limit
            allowed = int((folder / group.limit).read_text())
            used = int((folder / group.used).read_text())
            reclaimable = _entry(folder / "memory.stat", group.reclaimable, 1, 0)
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


def _groups(root: Path) -> Iterator[tuple[Path, ControlGroup]]:
    """The folders of this process's group and of those above it; in a container, which shows its own as the root, that
    one."""
    lines: list[str] = []
    with suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    base = root / "sys/fs/cgroup"
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        top, group = (base / "memory", V1) if controllers else (base, V2)
        folder = top / name.lstrip("/")
        for one in (folder, *folder.parents):
            yield one, group
            if one == top:
                break
