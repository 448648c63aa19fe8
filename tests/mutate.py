"""Changes the source on purpose, one mistake at a time, and expects a named test to turn red: who guards the guards.

    python tests/mutate.py               all mutations, a line each; exit 1 if one is not noticed
    python tests/mutate.py --list        what they are
    python tests/mutate.py --only TEXT   only those whose name contains it
    python tests/mutate.py --part 1/6    the first, seventh, … of them; `--part /6`: another sixth every day
    python tests/mutate.py --since REV   besides the part, those of every file that was touched since that commit
    python tests/mutate.py --most 90     no more than so many, but the part whole; how many are left out is said

How a mutation is tried:

    1 copy    source and tests go to a temporary folder for each core, from which steps 2 and 3 import (that is checked)
    2 green   on the copy as it is every named test passes
    3 red     one piece of text, which must occur exactly once, is replaced in the copy; the named test must now fail
              by an assertion of its own. An import error, a crash or a skip is not red.

Each copy has one process that has imported the libraries, and nothing of ours; steps 2 and 3 run in forks of it.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import date
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, NamedTuple

import pytest
from mutations import http, jax_engine, reference, verify
from mutations.mutation import Mutation

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("reference", "jax_engine", "http")
MUTATIONS = (*reference.MUTATIONS, *jax_engine.MUTATIONS, *http.MUTATIONS, *verify.MUTATIONS)
SECONDS = 300  # for one mutation; on an idle machine all of them together take some minutes
LIBRARIES = (
    "numpy",
    "hypothesis",
    "httpx",
    "starlette",
    "uvicorn",
    "typer",
    "rich",
    "tokenizers",
    "safetensors",
    "jax",
)


def patched(name: str, text: str, old: str, new: str) -> str:
    """The text with its one occurrence of `old` replaced."""
    count = text.count(old)
    if count != 1:
        raise SystemExit(f"mutate: {name!r}: the text to replace occurs {count} times, not once:\n{old}")
    return text.replace(old, new)


def named_test_exists(test: str, tests: Path = ROOT / "tests") -> bool:
    file, function = test.split("[")[0].split("::")
    return (tests / file).is_file() and function in functions_of(tests / file)


@cache
def functions_of(file: Path) -> frozenset[str]:
    nodes = ast.parse(file.read_text(encoding="utf-8")).body
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef))


# ---- which


def part_of(mutations: Sequence[Mutation], part: str) -> list[Mutation]:
    """`k/n`: every n-th, beginning with the k-th; `/n`: k is another one every day."""
    k, n = part.split("/")
    first = (int(k) - 1 if k else date.today().toordinal()) % int(n)
    return list(mutations[first :: int(n)])


def with_those_besides(
    named: Sequence[Mutation], part: Sequence[Mutation], besides: Sequence[Mutation], most: int
) -> list[Mutation]:
    """The whole part, or some mutation's turn would never come; and of those besides as many as make up `most`."""
    kept = {*part, *besides[: max(0, most - len(part))]}
    return [one for one in named if one in kept]


def touched_since(revision: str) -> set[str]:
    """The files of the source that differ from that commit. Where git knows no such commit (a source distribution, a
    shallow clone), it says so and none."""
    command = ["git", "-C", str(ROOT), "diff", "--name-only", revision, "--", *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"mutate: nothing counts as touched: {done.stderr.strip().splitlines()[0]}")
    return set(done.stdout.splitlines())


# ---- the copy


class Copy:
    """A folder with the source, the tests, and `path/gnomon`, a package of links to the copied folders; and the process
    that imports from there.

    `gnomon` has no __init__.py where it is installed; here it has one, so that Python cannot look for a module of it in
    any other place.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rubbish = shutil.ignore_patterns("__pycache__", ".hypothesis")
        for name in (*PACKAGES, "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=rubbish)
        for name in ("pyproject.toml", "README.md"):
            if (ROOT / name).exists():
                shutil.copy(ROOT / name, folder)
        package = folder / "path" / "gnomon"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        for name in PACKAGES:
            (package / name).symlink_to(folder / name)
        self._instant = itertools.count(int(time.time()) - 10**6)
        self._process: subprocess.Popen[str] | None = None

    @contextmanager
    def mutated(self, name: str, file: str, old: str, new: str) -> Iterator[None]:
        path = self.folder / file
        whole = path.read_text(encoding="utf-8")
        self._write(path, patched(name, whole, old, new))
        try:
            yield
        finally:
            self._write(path, whole)

    def _write(self, path: Path, text: str) -> None:
        """Python takes bytecode for current by the second and the size of the source: every text has its own second."""
        path.write_text(text, encoding="utf-8")
        os.utime(path, (instant := next(self._instant), instant))

    def run(self, tests: Sequence[str]) -> dict[str, Verdict]:
        """Runs tests of the copy in a process of its own, each to its first failure."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"tests": list(tests), "seconds": SECONDS + 2 * len(tests)}) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise SystemExit("mutate: the process that runs the tests is gone")
        answer = json.loads(line)
        if answer["late"]:
            return {test: Verdict(other=("took too long",)) for test in tests}
        if answer["verdicts"] is None:
            raise SystemExit(f"mutate: the tests could not be run:\n{answer['output']}")
        found = answer["verdicts"].items()
        return {test: Verdict(passed, asserted, tuple(other)) for test, (passed, asserted, other) in found}

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            unwanted = ("PYTHONDONTWRITEBYTECODE", "TESTS_DAY")  # and another day's test is one of those that are named
            environment = {name: value for name, value in os.environ.items() if name not in unwanted}
            environment |= {
                "PYTHONPATH": f"{self.folder / 'path'}",
                "PYTHONPYCACHEPREFIX": str(self.folder / "bytecode"),
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # halves the time it takes to start
                "TESTS_FUZZ_REQUESTS": "30",
                # what is compiled, by its hash: a mutation of a kernel compiles what it changes
                "TESTS_ENGINES": os.environ.get("TESTS_ENGINES", str(self.folder / "engines")),
                "OPENBLAS_NUM_THREADS": "1",  # a mutation on each core
            }
            self._process = subprocess.Popen(
                [sys.executable, str(self.folder / "tests" / "mutate.py"), "--serve", str(self.folder)],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()  # it ends where its input ends


@contextmanager
def copied() -> Iterator[Copy]:
    with tempfile.TemporaryDirectory(prefix="mutations-", ignore_cleanup_errors=True) as folder:
        copy = Copy(Path(folder).resolve())
        try:
            yield copy
        finally:
            copy.close()


# ---- running tests on it, in a process that has imported the libraries


class Verdict(NamedTuple):
    """What became of one named test: how many of its cases passed, failed by assertion, and ended in any other way."""

    passed: int = 0
    asserted: int = 0
    other: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        if self.other:
            return f"ERROR ({self.other[0]})"
        return "red" if self.asserted else "green" if self.passed else "NOT RUN"


def serve(folder: Path, asked: IO[str], answers: IO[str]) -> None:
    """A line in: the tests to run; a line out: what became of them. Each is run by a fork, with its own session: what
    takes too long ends with all that it has started."""
    for library in LIBRARIES:
        with suppress(ImportError):
            import_module(library)
    assert not any(name == "gnomon" or name.startswith("gnomon.") for name in sys.modules)
    result, output = folder / "result.json", folder / "output.txt"
    for line in asked:
        job = json.loads(line)
        result.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            in_the_fork(folder, job["tests"], result, output)
        late = not ended(child, job["seconds"])
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if late:
            os.waitpid(child, 0)
        verdicts = json.loads(result.read_text()) if result.exists() else None
        told = output.read_text(encoding="utf-8", errors="replace")[-4000:]
        answers.write(json.dumps({"late": late, "verdicts": verdicts, "output": told}) + "\n")
        answers.flush()


def ended(child: int, seconds: float) -> bool:
    end, pause = time.monotonic() + seconds, 0.01
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > end:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.2)
    return True


def in_the_fork(folder: Path, tests: Sequence[str], result: Path, output: Path) -> None:
    os.setsid()
    to = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    null = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((0, null), (1, to), (2, to)):
        os.dup2(new, old)
    try:
        recorder = run_pytest(folder, tests)
        partial = result.with_suffix(".partial")
        partial.write_text(json.dumps(recorder.verdicts))
        partial.rename(result)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def run_pytest(folder: Path, tests: Sequence[str]) -> Recorder:
    """Checks whose source it is and runs the tests."""
    for name in ("gnomon", "gnomon.reference"):
        spec = find_spec(name)
        expected = folder.joinpath("path", *name.split("."), "__init__.py")
        assert spec is not None
        assert spec.origin == str(expected), f"{name} would come from {spec.origin}"
    recorder = Recorder(tests)
    nodes = [str(folder / "tests" / test) for test in tests]
    options = ["-q", "-m", "", "-p", "no:cacheprovider", "--rootdir", str(folder), "-c", str(folder / "pyproject.toml")]
    if len(tests) == 1:
        options.append("-x")
    pytest.main([*options, *nodes], plugins=[recorder])
    return recorder


class Recorder:
    """A pytest plugin that counts how the cases of each named test end."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.verdicts = {test: Verdict() for test in tests}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = report.nodeid.removeprefix("tests/")
        if test not in self.verdicts:  # all cases of a function
            test = test.split("[")[0]
        verdict = self.verdicts[test]
        if report.failed:
            kind = str(getattr(report, "kind", report.when))  # as put there below
            if kind == "assertion":
                verdict = verdict._replace(asserted=verdict.asserted + 1)
            else:
                verdict = verdict._replace(other=(*verdict.other, kind))
        elif report.when == "call" and report.passed:
            verdict = verdict._replace(passed=verdict.passed + 1)
        self.verdicts[test] = verdict

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Any:
        report = yield
        if call.excinfo is not None:
            own = report.when == "call" and by_assertion(call.excinfo.value)
            report.kind = "assertion" if own else f"{report.when}: {call.excinfo.exconly()[:200]}"
        return report

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            for test in self.verdicts:
                self.verdicts[test] = Verdict(other=("cannot be collected",))


def by_assertion(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(by_assertion(part) for part in error.exceptions)
    return isinstance(error, AssertionError | pytest.fail.Exception)


# ---- all of it


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="only the mutations whose name contains this")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="every N-th, from the K-th on; /N: from today's")
    parser.add_argument("--since", metavar="REV", help="besides, those of files that were touched since a commit")
    parser.add_argument("--most", type=int, default=len(MUTATIONS), metavar="N", help="at most so many; the part whole")
    parser.add_argument("--list", action="store_true", help="what would be changed, and which test must notice")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve, sys.stdin, sys.stdout)
    named = [one for one in MUTATIONS if options.only in one.name]
    touched = touched_since(options.since) if options.since else set()
    part = part_of(named, options.part)
    besides = [one for one in named if one.file in touched and one not in part]
    chosen = with_those_besides(named, part, besides, options.most)
    if left_out := len(part) + len(besides) - len(chosen):
        print(f"mutate: {left_out} of files that were touched are left out: --most {options.most}")
    if not chosen:
        raise SystemExit(f"mutate: no mutation has {options.only!r} in its name")
    width = max(len(one.name) for one in chosen)
    if options.list:
        for one in chosen:
            print(f"{one.name:{width}}  {one.file:24}  {one.test}")
        return None
    begun, unnoticed = time.monotonic(), 0
    with ExitStack() as stack:
        os.environ["TESTS_ENGINES"] = stack.enter_context(tempfile.TemporaryDirectory())  # one for all copies
        copies = [stack.enter_context(copied()) for _ in range(min(os.cpu_count() or 1, len(chosen)))]
        for one in chosen:  # all are applied before any test is run
            with copies[0].mutated(*one[:4]):
                pass
        workers = stack.enter_context(ThreadPoolExecutor(len(copies)))
        tests = sorted({one.test for one in chosen})
        of_files = [list(group) for _, group in itertools.groupby(tests, lambda test: test.split("::")[0])]
        shares = [[test for group in of_files[i :: len(copies)] for test in group] for i in range(len(copies))]
        before: dict[str, str] = {}
        for verdicts in workers.map(lambda copy, share: copy.run(share) if share else {}, copies, shares):
            before |= {test: verdict.word for test, verdict in verdicts.items()}
        idle: SimpleQueue[Copy] = SimpleQueue()
        for copy in copies:
            idle.put(copy)

        def after(one: Mutation) -> str:
            if before[one.test] != "green":
                return "-"
            copy = idle.get()
            try:
                with copy.mutated(*one[:4]):
                    return copy.run([one.test])[one.test].word
            finally:
                idle.put(copy)

        for one, word in zip(chosen, workers.map(after, chosen), strict=True):
            noticed = (before[one.test], word) == ("green", "red")
            unnoticed += not noticed
            mark = "  " if noticed else "!!"
            print(f"{mark} {one.name:{width}}  {before[one.test]} → {word:6}  {one.test}", flush=True)
    print(f"{len(chosen)} of {len(MUTATIONS)} mutations, {unnoticed} not noticed, {time.monotonic() - begun:.0f} s")
    raise SystemExit(1 if unnoticed else 0)


if __name__ == "__main__":
    main()
