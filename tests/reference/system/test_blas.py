"""NumPy's BLAS under the reference: whatever it is started with, equal fingerprints are equal bytes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from gnomon.reference.checkpoint.load import default_model_path, load_checkpoint
from gnomon.reference.engine import ReferenceEngine
from gnomon.reference.system import blas
from gnomon.reference.system.blas import Blas

ONE_CPU = "ONE_CPU"  # a variable of this file's: the affinity, which a cpuset sets too
THREADS: tuple[dict[str, str], ...] = (  # what it may be started with, to no effect
    {},
    {ONE_CPU: "first"},
    {ONE_CPU: "last"},
    {"OPENBLAS_NUM_THREADS": "1"},
    {"GOTO_NUM_THREADS": "1"},
    {"OMP_NUM_THREADS": "1"},
    {"MKL_NUM_THREADS": "1"},
    {"OPENBLAS_DEFAULT_NUM_THREADS": "1"},
)
INSTRUCTIONS = (  # what changes bits, here or on another machine
    {"OPENBLAS_CORETYPE": "Haswell"},
    {"OPENBLAS_CORETYPE": "Prescott"},
    {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"},
    {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F"},
)
START = f"""
import hashlib, os
if hasattr(os, "sched_setaffinity"):  # a worker of the tests has one CPU of them
    os.sched_setaffinity(0, map(int, os.environ["TESTS_CPUS"].split(",")))
which = os.environ.get({ONE_CPU!r})
if which:
    cpus = [int(cpu) for cpu in os.environ["TESTS_CPUS"].split(",")]
    os.sched_setaffinity(0, {{cpus[0] if which == "first" else cpus[-1]}})
from gnomon.reference.checkpoint.load import default_model_path, load_checkpoint
from gnomon.reference.engine import JobRequest, ReferenceEngine
from gnomon.reference.sampler import SamplingParams
engine = ReferenceEngine(load_checkpoint(default_model_path()))
prompt = [(7 * i + 1) % engine.vocab_size for i in range(450)]
events = list(engine.submit(JobRequest([prompt], [1], SamplingParams(max_tokens=2), 1, 3, True)).events())
print(engine.fingerprint, hashlib.sha256(repr(events).encode()).hexdigest())
"""
CHOOSE = (ONE_CPU, *(name for start in (*THREADS, *INSTRUCTIONS) for name in start))


def started(variables: dict[str, str]) -> tuple[str, str]:
    """The fingerprint of a process started so, and a hash of what it answers to a prompt that threads would share."""
    environment = {name: value for name, value in os.environ.items() if name not in CHOOSE} | variables
    command = [sys.executable, "-W", "ignore", "-c", START]  # NumPy warns of features that this CPU does not have
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    fingerprint, answer = done.stdout.split()
    return fingerprint, answer


@pytest.fixture(scope="module")
def plain() -> tuple[str, str]:
    return started({})


@pytest.fixture(scope="module")
def is_held() -> bool:
    with blas.NUMPYS.one_thread():
        return blas.NUMPYS.is_held


def answers(starts: tuple[dict[str, str], ...]) -> list[tuple[str, str]]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(started, starts))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinities")
def test_no_affinity_and_no_number_of_threads_changes_a_byte_or_the_fingerprint(is_held: bool) -> None:
    found = answers(THREADS)
    assert len({fingerprint for fingerprint, _ in found}) == len(set(found))  # never one with different bytes
    if is_held:
        assert len(set(found)) == 1


@pytest.mark.slow
def test_other_instructions_never_give_other_bytes_under_one_fingerprint(plain: tuple[str, str]) -> None:
    found = {plain, *answers(INSTRUCTIONS)}
    assert len({fingerprint for fingerprint, _ in found}) == len(found)


# ---- holding the threads


class Library:
    """What threadpoolctl's controllers offer; its number is the process's, or every thread's own."""

    internal_api, version, architecture, threading_layer = "some", "1.0", "Some", "pthreads"

    def __init__(self, threads: int, most: int = 64) -> None:
        self.num_threads, self.most = threads, most

    def set_num_threads(self, number: int) -> None:
        self.num_threads = min(number, self.most)


class EachThreads(Library):
    """OpenBLAS on OpenMP: `num_threads` is what the calling thread has set."""

    internal_api, threading_layer = "openblas", "openmp"

    def __init__(self) -> None:
        self.local = threading.local()

    @property
    def num_threads(self) -> int:  # type: ignore[override]
        return getattr(self.local, "number", 8)

    def set_num_threads(self, number: int) -> None:
        self.local.number = number

    def clear_controlling_thread(self, force: bool) -> None:
        pass


class Inside(NamedTuple):
    """A thread that is within `one_thread` until it is let go."""

    thread: threading.Thread
    leave: Callable[[], None]


@pytest.fixture
def enter() -> Iterator[Callable[[Blas], Inside]]:
    begun: list[Inside] = []

    def enter(library: Blas) -> Inside:
        entered, left = threading.Event(), threading.Event()

        def within() -> None:
            with library.one_thread():
                entered.set()
                left.wait()

        thread = threading.Thread(target=within)

        def leave() -> None:
            left.set()
            thread.join()

        begun.append(Inside(thread, leave))
        thread.start()
        assert entered.wait(60)
        return begun[-1]

    yield enter
    for inside in begun:
        inside.leave()


def test_threads_come_back_when_the_last_of_several_has_left(enter: Callable[[Blas], Inside]) -> None:
    library = Library(8)
    held = Blas([library])
    first = enter(held)
    second = enter(held)
    first.leave()
    assert library.num_threads == 1
    second.leave()
    assert library.num_threads == 8


def test_what_others_set_in_the_meantime_is_taken_back_by_the_next(enter: Callable[[Blas], Inside]) -> None:
    library = Library(8)
    held = Blas([library])
    first = enter(held)
    library.set_num_threads(4)
    with held.one_thread():
        assert held.is_held
    assert library.num_threads == 1
    first.leave()
    assert library.num_threads == 8


def test_a_number_that_every_thread_has_of_its_own_is_set_in_each(enter: Callable[[Blas], Inside]) -> None:
    library = EachThreads()
    held = Blas([library])
    inside = enter(held)
    assert library.num_threads == 8
    with held.one_thread():
        assert held.is_held
        inside.leave()
        assert held.is_held
    assert library.num_threads == 8


def test_numpys_own_threads_are_held_in_any_thread_and_come_back(enter: Callable[[Blas], Inside]) -> None:
    """Even while another thread has set them: threadpoolctl then does nothing for ours."""
    [*libraries] = blas.NUMPYS._libraries
    with threadpool_limits(2, user_api="blas"):
        before = [library.num_threads for library in libraries]
        inside = enter(blas.NUMPYS)
        assert [library.num_threads for library in libraries] == [1] * len(libraries)
        inside.leave()
        assert [library.num_threads for library in libraries] == before


# ---- a library that is not known, or does not obey


@pytest.mark.parametrize("libraries", [[], [Library(8, most=8)]], ids=["unknown", "deaf"])
def test_where_threads_cannot_be_held_all_that_chooses_them_decides(
    libraries: list[Library], monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in libraries:
        monkeypatch.setattr(library, "set_num_threads", lambda number: None)
    unknown = Blas(libraries)
    with unknown.one_thread():
        assert not unknown.is_held
        assert "cannot be held" in str(unknown)
        before = unknown.decides()
        for name in ("GOTO_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "BLIS_JC_NT"):
            monkeypatch.setenv(name, "7")
            assert unknown.decides() != before
            monkeypatch.delenv(name)
        assert unknown.decides() == before
        monkeypatch.setattr(blas, "usable_cpus", lambda: 1000)
        assert unknown.decides() != before


def test_where_threads_cannot_be_held_the_probe_is_long_enough_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[int] = []
    states = ReferenceEngine.__init__.__globals__["hidden_states"]

    def noted(config: object, params: object, tokens: list[int]) -> object:
        probed.append(len(tokens))
        return states(config, params, tokens)

    monkeypatch.setattr("gnomon.reference.engine.hidden_states", noted)
    checkpoint = load_checkpoint(default_model_path())
    said: list[str] = []
    held = ReferenceEngine(checkpoint, said.append)
    monkeypatch.setattr(blas, "NUMPYS", Blas([]))
    assert ReferenceEngine(checkpoint, said.append).fingerprint != held.fingerprint
    assert probed[1] == min(512, checkpoint.config.max_position_embeddings)
    assert "cannot be held" in said[1]


def test_a_pass_of_the_model_is_within(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ReferenceEngine(load_checkpoint(default_model_path()))
    library = Library(8)
    monkeypatch.setattr(blas, "NUMPYS", Blas([library]))
    threads: list[int] = []
    states = engine.states([1, 2], lambda: threads.append(library.num_threads))
    assert set(threads) == {1}
    unembed = ReferenceEngine.__init__.__globals__["unembed"]

    def noted(*arguments: object) -> object:
        threads.append(library.num_threads)
        return unembed(*arguments)

    monkeypatch.setattr("gnomon.reference.engine.unembed", noted)
    engine.logits(states)
    assert threads[-1] == 1
    assert library.num_threads == 8
