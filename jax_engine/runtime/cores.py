"""How many processors this process may use: those it is bound to, or fewer if a control group allows less time."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from gnomon.jax_engine.runtime.control_groups import ROOT, ControlGroup, control_groups


def usable_cores(root: Path = ROOT) -> int:
    """At least 1. A part of a core counts as one. root: where /proc and /sys are."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = [float(bound)]
    for group in control_groups("cpu", root):
        with suppress(OSError, ValueError):  # "max", or no such file: this one has no limit
            quota, period = _time(group)
            if quota > 0 and period > 0:  # -1: no limit
                allowed.append(quota / period)
    return max(1, -int(-min(allowed) // 1))


def _time(group: ControlGroup) -> tuple[int, int]:
    """Microseconds of processor time in every so many. Raises OSError or ValueError."""
    if group.version == 2:
        quota, period = (group.folder / "cpu.max").read_text().split()
    else:
        quota, period = ((group.folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    return int(quota), int(period)
