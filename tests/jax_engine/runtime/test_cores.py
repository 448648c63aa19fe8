"""How many processors there are for the threads of the native operations."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gnomon.jax_engine.runtime.cores import usable_cores

V2, V1 = "0::/a/b\n", "2:cpu,cpuacct:/a\n"


def cores(root: Path, cgroup: str, files: dict[str, str]) -> int:
    """Those of a machine whose /proc and /sys have these files."""
    for name, text in {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{name}": files[name] for name in files}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return usable_cores(root)


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        (V2, {"a/b/cpu.max": "max 100000\n"}, 16),
        (V2, {"a/b/cpu.max": "300000 100000\n"}, 3),
        (V2, {"a/b/cpu.max": "250000 100000\n"}, 3),
        (V2, {"a/b/cpu.max": "1000 100000\n"}, 1),
        (V2, {"a/b/cpu.max": "9900000 100000\n"}, 16),
        (V2, {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        (V2, {"a/b/cpu.max": "nonsense\n"}, 16),
        (V1, {"cpu/a/cpu.cfs_quota_us": "200000\n", "cpu/a/cpu.cfs_period_us": "50000\n"}, 4),
        (V1, {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "50000\n"}, 16),
        ("4:memory:/a\n", {}, 16),
    ],
)
def test_cores_are_those_of_the_affinity_or_fewer_where_a_group_has_less_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(3, 19)))
    assert cores(tmp_path, cgroup, files) == expected


def test_a_system_without_affinity_or_groups_has_all_its_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores(tmp_path) == 7
