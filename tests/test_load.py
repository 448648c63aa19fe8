"""The load program's invariants, on both engines: a slice of some seconds by default, the whole where `long` is asked
for. What a slice is too short for is said here: memory that has not levelled out yet may grow by 24 MiB between rounds
(Python's and the C library's arenas, some hundred kB for each thread's first use)."""

from __future__ import annotations

import pytest
from load import Plan, Report, run

SLICES = {
    "jax": Plan(engine="jax", clients=32, seconds=4, pool=16, longest=256, max_queue=8, memory_slack=24),
    "reference": Plan(engine="reference", clients=16, seconds=3, pool=8, longest=24, max_queue=2, memory_slack=24),
}
WHOLE = {
    "jax": Plan(engine="jax"),
    "reference": Plan(engine="reference", clients=8, pool=16, longest=48, max_queue=2, more=("--max-running", "4")),
}


def check(report: Report) -> None:
    """Nothing failed, and there was something that could have."""
    assert list(report.failures) == [], "\n".join(f"{name}: {value}" for name, value in report.rows.items())
    for kind in ("completed", "cancelled", "refused", "invalid"):
        assert report.tally.counts[kind] >= 3, (kind, report.rows)


@pytest.mark.parametrize("engine", ["jax", pytest.param("reference", marks=pytest.mark.slow)])
def test_under_load_no_byte_differs_and_nothing_is_left_behind(engine: str) -> None:
    check(run(SLICES[engine]))


@pytest.mark.long
@pytest.mark.parametrize("engine", WHOLE)
def test_under_two_minutes_of_load_twice_no_byte_differs_and_nothing_is_left_behind(engine: str) -> None:
    check(run(WHOLE[engine]))
