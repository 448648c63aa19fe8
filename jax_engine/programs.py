"""XLA's compiled programs, kept by jax's own cache in a directory of ours; a cache that fails never fails a start.

jax's cache is one for the whole process. It is ours for the time of one compilation and is then let go, so that what
else this process compiles is kept where its owner said, or nowhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from gnomon.jax_engine.backend import one_line
from gnomon.jax_engine.pins import pinned
from gnomon.jax_engine.store import NOT_KEPT


class Programs:
    """The programs of one start.

    directory: where they are kept; None: nowhere by us. decides: all they depend on. say: is told once why no more of
    them are kept.
    """

    def __init__(self, directory: Path | None, decides: str, say: Callable[[str], None]) -> None:
        if not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
            directory = None  # switched off, by its user or by `gnomon doctor`
        self._directory, self._say = directory, say
        name = f"compiled-{hashlib.sha256(decides.encode()).hexdigest()[:16]}"
        self._mark = None if directory is None else directory / name
        self.complete = self._mark is not None and self._mark.exists()  # an earlier start has compiled all of them

    def compile(self, lowered: Any) -> Any:
        """The compiled program of `jitted.lower(...)`, from the directory if it is there."""
        if self._directory is not None:
            for attempt in range(2):
                try:
                    with _cache(self._directory):
                        return lowered.compile()
                except OSError as error:  # it cannot be written
                    self._drop(lowered)
                    self._give_up(error)
                    break
                except Exception as error:  # what is there cannot be read, or it is the program itself that fails
                    self._drop(lowered)
                    if attempt:
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

    def _drop(self, lowered: Any) -> None:
        """Removes what may be half written: jax would neither read it nor write it again."""
        name = lowered.as_text().partition("module @")[2].split()[0]
        with suppress(OSError):
            for file in self._directory.glob(f"{name}-*-cache") if self._directory else ():
                file.unlink(missing_ok=True)


@contextmanager
def _cache(directory: Path) -> Iterator[None]:
    """jax's cache is in this directory, for whatever this thread compiles; what fails in it is raised."""
    _forget()
    options = {
        "jax_compilation_cache_dir": str(directory),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
        "jax_raise_persistent_cache_errors": True,
    }
    try:
        with pinned(options):
            yield
    finally:
        _forget()


def _forget() -> None:
    """jax decides once a process where its cache is and whether it has one; now it decides anew."""
    compilation_cache.reset_cache()
