"""The control groups that a process is in, in version 1 or 2 of them: a container's limits are its group's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")


class ControlGroup(NamedTuple):
    folder: Path
    version: int  # 1 or 2, which have files of other names


def control_groups(controller: str, root: Path = ROOT) -> Iterator[ControlGroup]:
    """Those that limit what `controller` ("memory", "cpu") is for: this process's group and all above it, of which any
    may allow less; in a container, which shows its own as the root, that one. root: where /proc and /sys are."""
    lines: list[str] = []
    with suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    base = root / "sys/fs/cgroup"
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top, version = (base / controller, 1) if controllers else (base, 2)
        folder = top / name.lstrip("/")
        for one in (folder, *folder.parents):
            yield ControlGroup(one, version)
            if one == top:
                break
