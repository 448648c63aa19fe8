"""How tests are run: on workers with a core each, and in CI with no skip for want of an extra."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.today import SUBJECTS, is_for_another_day, is_touched, share_of_the_day

TESTS = Path(__file__).resolve().parents[1]


def run(tmp_path: Path, source: str, *options: str, at: str = "test_it.py", of: str = "") -> str:
    """What pytest says of a file, or of the folder `of` with that file, with our conftest."""
    (tmp_path / at).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / at).write_text(f"import os, pytest\n{source}", encoding="utf-8")
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
        "--rootdir=.",
        *options,
        of or at,
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


def test_what_a_share_of_is_run_each_day_is_all_run_within_three_and_at_once_when_its_subject_was_touched() -> None:
    tests = [f"tests/http/page/test_page.py::test_a[{i}]" for i in range(50)]
    days = [[test for test in tests if not is_for_another_day(test, day, ())] for day in range(20_000, 20_003)]
    assert sorted(test for day in days for test in day) == sorted(tests)
    assert all(5 < len(day) < 30 for day in days)
    for touched in ("http/page/style.css", "tests/http/page/conftest.py"):
        assert not any(is_for_another_day(test, day, {touched}) for test in tests for day in range(3))
    assert not any(is_for_another_day("tests/http/test_http.py::test_a", day, ()) for day in range(3))


def test_what_the_subjects_name_is_there() -> None:
    for begins, subjects in SUBJECTS.items():
        for path in (begins, *subjects):
            assert (TESTS.parent / path).exists(), path


def test_a_file_of_slow_tests_is_not_imported_by_a_run_that_has_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_other.py").write_text("def test_b(): pass\n", encoding="utf-8")
    source, at = "pytestmark = pytest.mark.slow\nprint('imported')\ndef test_a(): pass\n", "tests/test_it.py"
    default = run(tmp_path, source, "-s", "-m", "not slow and not weekly", at=at, of="tests")
    assert "imported" not in default
    assert "= 1 passed in" in default.splitlines()[-1]
    assert "imported" in run(tmp_path, source, "-s", "-m", "slow", at=at, of="tests")
    assert "1 deselected" in run(tmp_path, source, "-m", "not slow and not weekly", at=at)  # who names it is told


ONE_OF_TWO = """
@pytest.mark.slow
def test_a(): pass
def test_b(): pass
"""


def test_a_run_that_is_told_the_day_has_no_slow_test_of_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def passed() -> str:
        return run(tmp_path, ONE_OF_TWO, "-m", "", at=at).splitlines()[-1]

    at = "tests/http/page/test_it.py"
    [todays, *others] = sorted(range(3), key=lambda day: is_for_another_day(f"{at}::test_a", day, ()))
    monkeypatch.delenv("TESTS_TOUCHED", raising=False)
    monkeypatch.delenv("TESTS_DAY", raising=False)
    assert "2 passed" in passed()
    for day in (todays, others[0]):
        monkeypatch.setenv("TESTS_DAY", str(day))
        assert ("2 passed" if day == todays else "1 passed, 1 deselected") in passed()


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
