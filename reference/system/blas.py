"""NumPy's BLAS: held to one thread while the reference computes, and what of it decides the bits.

Threads cut a product in other places than one thread does, and its sums then round otherwise. How many there are
depends on the CPUs that this process may run on, on half a dozen variables and on other libraries in the process. One
is the only number that can be had everywhere: with it the same bits come out whatever those say.

threadpoolctl asks the library itself and sets its threads. Where it does not know the library (Accelerate on macOS, a
BLAS that is linked into NumPy), threads cannot be held, and `decides` names all that may choose them instead.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

VARIABLES = re.compile(r"(OPENBLAS|GOTO|OMP|GOMP|KMP|MKL|BLIS|FLEXIBLAS|VECLIB|ATLAS|NVPL|ARMPL)_")  # that it may read


class Blas:
    """A BLAS, as threadpoolctl's controllers of the libraries that it is made of; none: threadpoolctl knows none."""

    def __init__(self, libraries: Sequence[Any]) -> None:
        self._libraries = libraries
        self._each_threads = [library for library in libraries if _is_each_threads(library)]
        self._shared = [library for library in libraries if not _is_each_threads(library)]
        self._lock = threading.Lock()
        self._inside = 0  # threads that are within `one_thread`
        self._before: list[int] = []  # of `_shared`, before the first of them came

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        """Within, this library computes in the calling thread alone. The number is one for the whole process, so it
        comes back when the last of several threads has left; who else sets it in the meantime is not heard."""
        with self._lock:
            before = _set(self._shared, [1] * len(self._shared))
            if not self._inside:
                self._before = before
            self._inside += 1
        own = _set(self._each_threads, [1] * len(self._each_threads))
        try:
            yield
        finally:
            _set(self._each_threads, own)
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    _set(self._shared, self._before)
                    _release(self._shared)

    @property
    def is_held(self) -> bool:
        """Whether `one_thread` does what it says; to be asked within it."""
        return bool(self._libraries) and all(library.num_threads == 1 for library in self._libraries)

    def decides(self) -> tuple[object, ...]:
        """What of it decides the bits; to be asked within `one_thread`."""
        build = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        known = [(each.internal_api, each.version, getattr(each, "architecture", None)) for each in self._libraries]
        found: tuple[object, ...] = (build["name"], build["version"], known)
        if self.is_held and all(architecture for _, _, architecture in known):
            return found
        variables = sorted(item for item in os.environ.items() if VARIABLES.match(item[0]))
        return *found, [library.num_threads for library in self._libraries], usable_cpus(), variables

    def __str__(self) -> str:
        """One line for the user; to be asked within `one_thread`."""
        name = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
        if not self.is_held:
            return f"products by {name}, whose threads cannot be held: other CPUs may give other bits and fingerprints"
        known = [f"{each.internal_api} {each.version} {getattr(each, 'architecture', '')}" for each in self._libraries]
        return f"products by {', '.join(known).rstrip()}, on one thread"


def usable_cpus() -> int:
    """How many CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_each_threads(library: Any) -> bool:
    """Whether every thread has a number of its own: OpenBLAS on OpenMP goes by that of the thread that calls it."""
    return bool(library.internal_api == "openblas" and library.threading_layer == "openmp")


def _set(libraries: Sequence[Any], numbers: Sequence[int]) -> list[int]:
    """Sets the libraries' threads; returns what they were."""
    before = [library.num_threads for library in libraries]
    _release(libraries)
    for library, number in zip(libraries, numbers, strict=True):
        library.set_num_threads(number)
    return before


def _release(libraries: Sequence[Any]) -> None:
    """threadpoolctl lets only one thread set OpenBLAS's number, the first that did, and does nothing, without a word,
    for all others."""
    for library in libraries:
        if library.internal_api == "openblas":
            library.clear_controlling_thread(force=True)


def _numpys() -> Blas:
    """Another package may have loaded a BLAS of its own (SciPy does): it is NumPy's that its wheel brought, if it
    brought one."""
    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    numpy = Path(np.__file__).resolve().parent
    brought = [numpy, numpy.with_name("numpy.libs")]
    own = [each for each in libraries if any(Path(each.filepath).resolve().is_relative_to(it) for it in brought)]
    return Blas(own or libraries)


NUMPYS = _numpys()
