"""What may stand where a file is expected, and is none: each is made at a path."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path


def link_loop(path: Path) -> None:
    path.symlink_to(path.name)


def broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def unix_socket(path: Path) -> None:
    """Bound below a directory of a short name: the address of a socket has room for some 100 characters."""
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{short}/socket")
        os.link(f"{short}/socket", path)
