"""Files that one start leaves to the next: what is damaged is never loaded, and is made anew.

    jit_decode-<jax's key>-<SHA-256>.program    gnomon_native_<what decides it>-<SHA-256>.so

A file's name ends in the SHA-256 of what must be in it. So half a file, an empty one and one with a bit that fell over
are found before they are used; and two processes that make the same file at the same time do no harm. Files of other
versions have other names and stay.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from gnomon.jax_engine.runtime.backend import one_line
from gnomon.jax_engine.runtime.store import Announce, check_owner
from gnomon.reference.system.atomic import replacing


class Kept(NamedTuple):
    path: Path
    content: bytes


def keep(directory: Path, name: str, suffix: str, content: bytes) -> Path:
    """Leaves a file for later starts, for this user alone. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{name}-{hashlib.sha256(content).hexdigest()}{suffix}"
    with replacing(path, 0o600) as file:
        file.write(content)
    return path


def find(directory: Path, name: str, suffix: str, say: Announce) -> Kept | None:
    """What an earlier start has left under that name, whole. What is damaged is removed; `say` gets a line for each."""
    form = re.compile(re.escape(name) + r"-([0-9a-f]{64})" + re.escape(suffix))
    for file in sorted(os.listdir(directory) if directory.exists() else ()):
        if found := form.fullmatch(file):
            path = directory / file
            try:
                content = _read(path)
            except OSError as error:
                if not os.path.lexists(path):
                    continue  # another process has removed it
                wrong = error.strerror or str(error).removeprefix(f"{path}: ")
            else:
                if hashlib.sha256(content).hexdigest() == found[1]:
                    return Kept(path, content)
                wrong = f"its {len(content):,} bytes are not those that were written"
            discard(path, wrong, say)
    return None


def _read(path: Path) -> bytes:
    """Raises OSError if that is no file, cannot be read, or others could write to it."""
    check_owner(path)
    if not path.is_file():
        raise OSError("it is no file")
    return path.read_bytes()


def discard(path: Path, wrong: str, say: Announce) -> None:
    """Removes a file, or whatever stands in its place."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        say(f"{path} is damaged: {wrong}; it cannot be removed, and is made anew at every start: {one_line(error)}")
    else:
        say(f"{path} is damaged: {wrong}; it is removed and made anew")
