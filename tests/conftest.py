"""What several test files share; how a whole run is spread over the CPUs; which skips CI does not excuse."""

from __future__ import annotations

import fcntl
import os
import random
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # gw0, gw1, …; nothing in a run without workers


def prepare_process() -> None:
    """This process and all that it starts keep their bytecode, in a folder that git does not see: where the environment
    forbids that, each would compile the source anew (a second each). A worker has one core of its own, and XLA, which
    would take one thread there, two, as the tests of products that threads share need them.

    It comes before the first import of anything that starts threads.
    """
    if sys.dont_write_bytecode and sys.pycache_prefix is None:
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(ROOT / ".pytest_cache" / "bytecode")
        del os.environ["PYTHONDONTWRITEBYTECODE"]
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    if not hasattr(os, "sched_getaffinity"):
        return
    if not WORKER:
        os.environ["TESTS_CPUS"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    elif os.environ.get("TESTS_PIN", "1") == "1":
        cpus = [int(cpu) for cpu in os.environ["TESTS_CPUS"].split(",")]
        os.sched_setaffinity(0, {cpus[int(WORKER.removeprefix("gw")) % len(cpus)]})
        os.environ.setdefault("NPROC", "2")


prepare_process()

from hypothesis import settings  # noqa: E402

from helpers.identity import FakeIdentity, FakeTime  # noqa: E402
from helpers.loopback import Loopback, loopback  # noqa: E402
from helpers.today import IS_TOLD, is_for_another_day  # noqa: E402

settings.register_profile("quick", deadline=None, derandomize=True, database=None, max_examples=100)
settings.register_profile("thorough", deadline=None, database=None, max_examples=1000)
settings.load_profile("quick")  # `--hypothesis-profile=thorough` comes after it


# ---- a run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips-for-extras",
        action="store_true",
        help="a skip for want of an extra, of chromium, nginx or a compiler is a failure: CI has them all",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Whole folders are run by a worker a CPU, file by file; `-n` says otherwise. A single file is quicker without."""
    options = config.option
    if not config.pluginmanager.hasplugin("xdist") or WORKER:
        return
    by_user = options.numprocesses is not None or options.usepdb or options.collectonly or options.tx
    if by_user or not all(Path(argument).is_dir() for argument in config.args):
        return
    cpus = len(os.environ.get("TESTS_CPUS", "").split(",")) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if (cpus or 1) > 1:
        options.numprocesses, options.dist, options.loadscopereorder = cpus, "loadfile", False


FILES_MARK = re.compile(r"^pytestmark = .*\bpytest\.mark\.(slow|weekly)\b", re.MULTILINE)
A_TEST = re.compile(r"((?:^@.*\n(?:^[ )\]].*\n)*)*)^def test_", re.MULTILINE)  # and its decorators
ITS_MARK = re.compile(r"^@pytest\.mark\.(slow|weekly)\b", re.MULTILINE)


def has_none_of_the_default_run(source: str) -> bool:
    """Whether every test of a file is marked slow or weekly, as far as its text tells."""
    tests = A_TEST.findall(source)
    return FILES_MARK.search(source) is not None or (bool(tests) and all(map(ITS_MARK.search, tests)))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of whole folders, what would be deselected to the last test is not even imported, which takes seconds."""
    if config.option.markexpr != "not slow and not weekly" or not all(Path(each).is_dir() for each in config.args):
        return None
    is_test = collection_path.match("test_*.py") and collection_path.is_file()
    return True if is_test and has_none_of_the_default_run(collection_path.read_text(encoding="utf-8")) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is another day's is left out. Files that take long come first, so that no worker is left with one at the
    end: those that compile models."""
    both = [item.nodeid for item in items if item.get_closest_marker("slow") and item.get_closest_marker("weekly")]
    if both:
        raise pytest.UsageError(f"slow or weekly, and not both: {both[0]}")
    if IS_TOLD:
        others = {item for item in items if item.get_closest_marker("slow") and is_for_another_day(item.nodeid)}
        config.hook.pytest_deselected(items=list(others))
        items[:] = [item for item in items if item not in others]
    order = [ROOT / "tests" / folder for folder in ("jax_engine", "http", "project")]
    items.sort(key=lambda item: [item.path.is_relative_to(folder) for folder in order], reverse=True)


# ---- skips

LACKS = re.compile(r"extra|could not import|chromium|nginx|compiler", re.IGNORECASE)  # what CI installs


def _fail_if_excused(config: pytest.Config, report: Any) -> None:
    if config.getoption("--no-skips-for-extras") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if LACKS.search(reason):
            report.outcome, report.longrepr = "failed", f"{reason} (and --no-skips-for-extras was given)"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    _fail_if_excused(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Any:
    report = yield
    _fail_if_excused(collector.config, report)
    return report


# ---- fixtures


@pytest.fixture(autouse=True)
def seeds_of_its_own(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process draws for requests without a seed depends on the test alone: one that fails for some draws
    fails always or never, and not once in a hundred runs."""
    drawn = random.Random(request.node.nodeid)
    monkeypatch.setattr("gnomon.reference.completion.fresh_seed", lambda: drawn.getrandbits(64))


@pytest.fixture(scope="session")
def engine_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where programs are compiled once a run: the workers share it. What is in it is named by hashes of all that
    decides it, so that runs may share it, too: those of mutations do. A command is given its parent."""
    base = tmp_path_factory.getbasetemp()
    shared = Path(os.environ.get("TESTS_ENGINES", (base.parent if WORKER else base) / "engines"))
    shared.mkdir(mode=0o700, exist_ok=True)
    directory = shared / "jax"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


@pytest.fixture(scope="session")
def native_cache(engine_cache: Path) -> Path:
    """The same, and in it the native library, if it can be built: by one worker, on all CPUs; the others wait."""
    import jax

    from gnomon.jax_engine.kernels.native import load_native

    jax.default_backend()  # the threads of XLA keep to this worker's CPU
    with engine_cache.with_suffix(".lock").open("w") as lock, on_all_cpus():
        fcntl.flock(lock, fcntl.LOCK_EX)
        load_native(engine_cache)
    return engine_cache


@contextmanager
def on_all_cpus() -> Iterator[None]:
    """What this thread begins meanwhile is not kept to the one CPU of its worker."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {int(cpu) for cpu in os.environ["TESTS_CPUS"].split(",")})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@pytest.fixture(scope="session")
def identity_address() -> Iterator[Loopback]:
    """Where the fake identity services of all tests are served, one after another."""
    with loopback() as served:
        yield served


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def identity(identity_address: Loopback, time: FakeTime) -> FakeIdentity:
    """A fake identity service of this test's own, on a real port."""
    service = FakeIdentity(identity_address.base, time)
    identity_address.app = service
    return service
