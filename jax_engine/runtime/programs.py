"""XLA's compiled programs, kept for the next start; a cache that fails never fails a start.

jax decides what a program depends on and asks its cache for it by that key. Its own cache writes in place and believes
what it reads; ours is in checked.py's files. It is one for the whole process: ours for the time of one compilation, and
then let go, so that what else this process compiles is kept where its owner said, or nowhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
from jax._src import compilation_cache  # of 0.10.2 to 0.12: the public module cannot be given another cache
from jax._src.compilation_cache_interface import CacheInterface

from gnomon.jax_engine.runtime.backend import one_line
from gnomon.jax_engine.runtime.checked import discard, find, keep
from gnomon.jax_engine.runtime.pins import pinned
from gnomon.jax_engine.runtime.store import NOT_KEPT, Announce

PROGRAM_SUFFIX = ".program"


class ProgramFiles(CacheInterface):
    """A cache as jax wants it. `read`: the file that it gave last."""

    def __init__(self, directory: Path, say: Announce) -> None:
        self._path, self._say = directory, say
        self.read: Path | None = None

    def get(self, key: str) -> bytes | None:
        kept = find(self._path, key, PROGRAM_SUFFIX, self._say)
        self.read = None if kept is None else kept.path
        return None if kept is None else kept.content

    def put(self, key: str, value: bytes) -> None:
        keep(self._path, key, PROGRAM_SUFFIX, value)


class Programs:
    """The programs of one start.

    directory: where they are kept; None: nowhere by us. decides: all they depend on. say: is told of each that is
    damaged, and once why no more of them are kept.
    """

    def __init__(self, directory: Path | None, decides: str, say: Announce) -> None:
        if not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
            directory = None  # switched off, by its user or by `gnomon doctor`
        self._directory, self._say = directory, say
        name = f"compiled-{hashlib.sha256(decides.encode()).hexdigest()[:16]}"
        self._mark = None if directory is None else directory / name
        self.complete = self._mark is not None and self._mark.exists()  # an earlier start has compiled all of them

    def compile(self, lowered: Any) -> Any:
        """The compiled program of `jitted.lower(...)`, from the directory if it is there."""
        while self._directory is not None:
            files = ProgramFiles(self._directory, self._say)
            try:
                with _cache(files):
                    return lowered.compile()
            except Exception as error:
                if files.read is None:  # it cannot be written, or it is the program itself that fails
                    self._give_up(error)
                else:  # whole, but no program for this jaxlib
                    discard(files.read, one_line(error), self._say)
                    if files.read.exists():
                        self._give_up(error)
        if self._mark is None:
            return lowered.compile()  # with the cache that the process has of its own, if it has one
        _forget()
        try:
            with pinned({"jax_enable_compilation_cache": False}):
                return lowered.compile()
        finally:
            _forget()

    def finish(self) -> None:
        """All are compiled."""
        if self._mark is not None and self._directory is not None:
            with suppress(OSError):
                self._mark.touch()

    def _give_up(self, error: Exception) -> None:
        self._say(f"{NOT_KEPT}: {self._directory}: {getattr(error, 'strerror', None) or one_line(error)}")
        self._directory = None


@contextmanager
def _cache(files: ProgramFiles) -> Iterator[None]:
    """jax's cache is this one, for whatever this thread compiles; what fails in it is raised."""
    _forget()
    compilation_cache._cache = files
    options = {
        "jax_compilation_cache_dir": str(files._path),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
        "jax_raise_persistent_cache_errors": True,
    }
    if jax.default_backend() == "cpu":  # GPUs' caches, whose path is a part of the key: a directory could not be moved
        options["jax_persistent_cache_enable_xla_caches"] = "none"
    try:
        with pinned(options):
            yield
    finally:
        _forget()


def _forget() -> None:
    """jax decides once a process where its cache is and whether it has one; now it decides anew."""
    compilation_cache.reset_cache()
