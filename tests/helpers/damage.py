"""What can happen to a file on a disk between two starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Damage(NamedTuple):
    name: str
    do: Callable[[Path], object]
    wrong: str  # what the line about it says


def _half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").touch()


def _nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


NOT_THOSE = "bytes are not those that were written"
DAMAGES = (
    Damage("half of it", _half, NOT_THOSE),
    Damage("empty", lambda path: os.truncate(path, 0), f"its 0 {NOT_THOSE}"),
    Damage("a bit", _flip, NOT_THOSE),
    Damage("a byte more", _longer, NOT_THOSE),
    Damage("a directory", _directory, "it is no file"),
    Damage("a link to nowhere", _nowhere, "No such file or directory"),
    Damage("a pipe", _pipe, "it is no file"),
    Damage("others can write", lambda path: path.chmod(0o666), "others can write to it"),
)
