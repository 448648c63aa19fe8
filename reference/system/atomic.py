"""Files that are there whole or not at all, whatever ends the process or the machine while they are written.

1 write    under another name beside the file, which ends in `.partial`
2 sync     so that no crash leaves the name of a file without its content
3 rename   over what was there
4 sync     the directory, so that a name that is there stays there
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A new file to write to, which takes the name `path` if nothing is raised, and is removed if something is.

    mode: its permissions, less the umask. Raises OSError.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    number = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(number, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Has the disk hold what was written to a file by others' code."""
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_directory(directory: Path) -> None:
    """Has the disk hold the names in a directory, where its file system can do that."""
    with suppress(OSError):
        sync_file(directory)
