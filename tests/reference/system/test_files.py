"""Files that a user names: what is read, what is refused by what it is, and that neither is waited for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gnomon.reference.system.files import Opened, absolute, check_writable, open_regular, read_regular
from helpers.odd_files import broken_link, device, link_loop, unix_socket

KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a loop of links": (link_loop, "Too many levels of symbolic links"),
    "a link to nothing": (broken_link, "No such file or directory"),
    "a directory": (Path.mkdir, "Is a directory"),
    "a pipe": (os.mkfifo, "not a regular file"),
    "a device without end": (device, "not a regular file"),
    "a socket": (unix_socket, "not a regular file"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", [read_regular, open_regular, Opened])
def test_what_is_no_regular_file_is_refused_at_once_by_what_it_is(
    tmp_path: Path, kind: str, read: Callable[[Path], object]
) -> None:
    make, why = KINDS[kind]
    make(tmp_path / "x")
    with pytest.raises(OSError, match=r".") as error:
        read(tmp_path / "x")
    assert error.value.strerror == why
    assert error.value.filename == str(tmp_path / "x") or error.value.filename == tmp_path / "x"


def test_a_link_to_a_regular_file_is_read_to_its_bound_and_no_further(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link") == read_regular(tmp_path / "link", 3) == b"abc"
    with pytest.raises(OSError, match=r"larger than 2 bytes"):
        read_regular(tmp_path / "link", 2)


def test_a_file_that_is_refused_leaves_no_descriptor_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    free = os.dup(0)
    os.close(free)
    for _ in range(3):
        with pytest.raises(OSError, match="not a regular file"):
            Opened(tmp_path / "pipe")
    again = os.dup(0)
    os.close(again)
    assert again == free


def test_an_opened_file_is_read_from_any_byte_on_until_it_is_closed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(10)))
    opened, memory = Opened(tmp_path / "file"), np.zeros(4, np.uint8)
    assert (opened.read_into(memory, 3), memory.tolist()) == (4, [3, 4, 5, 6])
    assert (opened.read_into(memory, 8), memory.tolist()) == (2, [8, 9, 5, 6])
    opened.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        opened.read_into(memory, 0)


def test_a_pipe_that_nobody_reads_cannot_be_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device or address"):
        check_writable(tmp_path / "pipe")
    check_writable(tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == b""


def test_a_path_below_a_removed_directory_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    assert absolute(Path("x")) == tmp_path / "gone" / "x"
    (tmp_path / "gone").rmdir()
    assert absolute(Path("x")) == Path("x")


KEPT_TO_THE_END = """
import _io, pathlib
from gnomon.reference.system.files import Opened
_io.kept = Opened(pathlib.Path(__file__))  # until the modules that it uses have been emptied
"""


def test_a_file_that_is_open_when_its_process_ends_is_closed_without_a_word(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(KEPT_TO_THE_END, encoding="utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_what_was_closed_reads_nothing_of_the_file_that_gets_its_number(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).write_bytes(name.encode())
    opened = Opened(tmp_path / "first")
    opened.close()
    opened.close()
    other = Opened(tmp_path / "second")
    with pytest.raises(OSError, match="Bad file descriptor"):
        opened.read_into(np.zeros(4, np.uint8), 0)
    other.close()
