"""Where what is built for this machine is kept for the next start: the native library, and XLA's compiled programs.

What lies there is code that will run, so the directory must be this user's, and no other user may write to it. Where
that cannot be had, the start goes on: with a private temporary directory for as long as it takes, which links to what
a directory that can only be read has. One line says what is not kept, and why: before it is built, or after it where
something was there to link to.

This file does not import jax.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from gnomon.jax_engine.runtime.backend import one_line
from gnomon.reference.system.atomic import PARTIAL
from gnomon.reference.system.files import absolute

PROBE_BYTES = 2**20  # more than the library or one of the embedded model's programs takes
ABANDONED_SECONDS = 3600  # nothing is being written for so long

Announce = Callable[[str], None]


class Unsafe(OSError):
    """A place that another user could have put code in."""


def default_directory(environment: Mapping[str, str]) -> Path:
    """gnomon in $XDG_CACHE_HOME, or in ~/.cache. Raises OSError where there is neither.

    A path there that is not absolute does not count, as the XDG specification has it.
    """
    base = environment.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "gnomon"
    try:
        return Path.home() / ".cache" / "gnomon"
    except RuntimeError:
        raise OSError("no home directory: HOME is not set, and this user is not in the password file") from None


def is_new(directory: str | None, environment: Mapping[str, str]) -> bool:
    """Whether no start has left its compiled programs there."""
    with suppress(OSError):
        return not any(_place(directory, environment).glob("compiled-*"))
    return True


def _place(directory: str | None, environment: Mapping[str, str]) -> Path:
    return (default_directory(environment) if directory is None else absolute(Path(directory))) / "jax"


@contextmanager
def opened(directory: str | None, environment: Mapping[str, str], say: Announce) -> Iterator[Path | None]:
    """The place to build in, for one start; `say` is told once if nothing of it is kept. None: there is no place.

    directory: the user's choice; None: the default one.
    """
    kept: Path | None = None
    try:
        kept = _place(directory, environment)
        prepare_directory(kept)
    except OSError as error:
        why = f"{error.filename or kept or ''}: {error.strerror}" if error.strerror else one_line(error)
        try:
            temporary = tempfile.TemporaryDirectory(prefix="gnomon-", ignore_cleanup_errors=True)
        except OSError as no_place:
            say(f"{NOT_KEPT}: {why}; and there is no temporary directory: {no_place.strerror or no_place}")
            yield None
            return
        line = f"{NOT_KEPT}: {why}; --cache-dir or GNOMON_CACHE_DIR names another directory"
        with temporary as name:
            linked = link(kept, Path(name))
            if not linked:
                say(line)
            yield Path(name)
            if linked and any(not file.is_symlink() for file in Path(name).iterdir()):
                say(line)  # not all that was needed was there
    else:
        yield kept


NOT_KEPT = "compiled programs and the native library are not kept for the next start"


def prepare_directory(directory: Path) -> None:
    """Makes the directory if it is not there. Raises OSError, if it cannot be used, with the reason."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_owner(directory)
    try:
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(directory)) from None
    sweep(directory)


def sweep(directory: Path) -> None:
    """Removes what a process that was killed while it wrote has left behind."""
    with suppress(OSError):
        for path in directory.glob(f".*{PARTIAL}"):
            with suppress(OSError):
                if time.time() - path.lstat().st_mtime < ABANDONED_SECONDS:
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def check_owner(path: Path) -> None:
    """Raises Unsafe if another user than this one and root could write here, or has made it."""
    found = path.stat()
    if found.st_uid not in (0, os.geteuid()):
        raise Unsafe(f"{path}: belongs to user {found.st_uid}, and this process runs as {os.geteuid()}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Unsafe(f"{path}: others can write to it (chmod go-w)")


def link(source: Path | None, target: Path) -> int:
    """Makes the files of a directory that can be read and trusted reachable from another one; returns their number."""
    files: list[Path] = []
    with suppress(OSError):  # what cannot be read is built anew
        if source is not None:
            check_owner(source)
            files = [file for file in source.iterdir() if file.is_file() and file.suffix != PARTIAL]
    for file in files:
        (target / file.name).symlink_to(file.absolute())
    return len(files)
