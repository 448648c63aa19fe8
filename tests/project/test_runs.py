"""How tests are run: on workers with a core each, and in CI with no skip for want of an extra."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.today import is_touched, share_of_the_day

TESTS = Path(__file__).resolve().parents[1]


def run(tmp_path: Path, source: str, *options: str) -> str:
    """What pytest says of a file with our conftest."""
    (tmp_path / "test_it.py").write_text(f"import os, pytest\n{source}", encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "conftest",
        "-p",
        "no:cacheprovider",
        "-rA",
        *options,
        "test_it.py",
    ]
    environment |= {"PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout


def test_the_shares_of_all_days_are_everything_once_and_what_is_always_run_daily() -> None:
    def slow(day: int, always: str) -> str:
        rows = share_of_the_day("abcdefgh", 3, always, day)
        assert [row.values for row in rows] == [(letter,) for letter in "abcdefgh"]
        assert {mark.name for row in rows for mark in row.marks} == {"slow", "weekly"}
        return "".join(row.values[0] for row in rows if row.marks[0].name == "slow")

    assert sorted("".join(slow(day, "") for day in range(20_000, 20_003))) == list("abcdefgh")
    assert all("h" in slow(day, "h") for day in range(3))


def test_what_begins_with_a_folders_name_and_a_slash_is_touched_with_it() -> None:
    assert is_touched("http/", "reference/body/", paths={"README.md", "reference/body/json.py"})
    assert not is_touched("http/", paths={"tests/http/test_app.py", "httpx.py"})
    assert not is_touched("http/", paths=())


SKIPS = """
def test_a(): pytest.importorskip("no_such_package", reason="needs the extra `parity`")
def test_b(): pytest.skip("only root can mount")
"""


@pytest.mark.slow
def test_a_skip_for_want_of_an_extra_is_said_and_in_ci_a_failure(tmp_path: Path) -> None:
    assert "2 skipped" in run(tmp_path, SKIPS)
    strict = run(tmp_path, SKIPS, "--no-skips-for-extras")
    assert "1 failed, 1 skipped" in strict
    assert "needs the extra `parity`" in strict


@pytest.mark.slow
def test_a_file_that_is_skipped_for_want_of_an_extra_is_an_error_in_ci(tmp_path: Path) -> None:
    whole = 'pytest.importorskip("no_such_package", reason="needs the extra `train`")\ndef test_a(): pass\n'
    assert "1 skipped" in run(tmp_path, whole)
    assert "1 error" in run(tmp_path, whole, "--no-skips-for-extras")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinities")
def test_every_worker_has_one_core_and_all_cores_are_had(tmp_path: Path) -> None:
    source = "def test_a(n):\n    print('core', os.sched_getaffinity(0), 'of', os.environ['TESTS_CPUS'])\n"
    told = run(
        tmp_path, f'@pytest.mark.parametrize("n", range(8))\n{source}', "-p", "xdist", "-n", "2", "--dist", "load"
    )
    assert "8 passed" in told
    lines = {line for line in told.splitlines() if line.startswith("core ")}
    cpus = sorted(os.sched_getaffinity(0))  # one, where this test has a worker of its own
    assert lines == {f"core {{{cpu}}} of {','.join(map(str, cpus))}" for cpu in cpus[:2]}
