"""Files that a user names: a regular one is read, and what would be waited or read for ever is refused by what it is.

    read_regular   a whole file, of a bounded size
    check_writable whether a file can be written, before the work whose result it is to hold
    Opened         a file that stays open, so that replacing or removing it changes nothing of what is read of it

A link may lead anywhere, but must lead to a regular file: a pipe has nobody who writes to it, a device no end.
"""

from __future__ import annotations

import errno
import os
import stat
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 256 * 2**20
"""Of a file that is read whole: several times the largest tokenizer.json there is."""


def absolute(path: Path) -> Path:
    """The path with its directory, for a message; as it is, where the current directory has been removed."""
    try:
        return path.absolute()
    except OSError:
        return path


def open_regular(path: Path) -> int:
    """A descriptor to read the file by. Raises OSError, for what is no regular file too, with its name."""
    _check_regular(os.stat(path), path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # it may be a pipe by now
    try:
        _check_regular(os.fstat(descriptor), path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(found: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_regular(path: Path, most: int = MOST_BYTES) -> bytes:
    """All of a regular file. Raises OSError."""
    with os.fdopen(open_regular(path), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most:,} bytes", str(path))
    return content


def check_writable(path: Path) -> None:
    """Raises OSError if the file cannot be written; it is made if it is not there. A pipe that nobody reads is one that
    cannot, since writing would wait for ever."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o666))


class Opened:
    """A regular file that is kept open to be read from later. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._descriptor = open_regular(path)
        self._closing = weakref.finalize(self, os.close, self._descriptor)  # at the latest where the process ends
        self._state = self._now()

    def _now(self) -> tuple[int, ...]:
        """What differs when the file has been written to."""
        found = os.fstat(self._descriptor)
        return found.st_size, found.st_mtime_ns

    @property
    def is_changed(self) -> bool:
        """Whether it was written to since it was opened, which no file that stays open is safe from."""
        return self._state != self._now()

    def read_into(self, memory: NDArray[np.uint8], start: int) -> int:
        """Fills the memory from the byte `start` on; how many bytes there were."""
        filled = 0
        while filled < len(memory) and (count := os.preadv(self._descriptor, [memory[filled:].data], start + filled)):
            filled += count
        return filled

    def close(self) -> None:
        self._descriptor = -1  # its number is soon another file's
        self._closing()
