"""Files that are there whole or not at all, whatever ends whoever writes them."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gnomon.reference.system.atomic import replacing


def test_a_name_is_on_the_disk_after_its_content_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(number: int) -> None:
        done.append("directory" if stat.S_ISDIR(os.fstat(number).st_mode) else f"{os.fstat(number).st_size} bytes")
        fsync(number)

    def renamed(path: Path, target: Path) -> Path:
        done.append("renamed")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    with replacing(tmp_path / "file") as file:
        file.write(bytes(7))
    assert done == ["7 bytes", "renamed", "directory"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_what_cannot_be_written_to_its_end_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(type(error)), replacing(tmp_path / "file") as file:  # noqa: PT012 - half of it is written
        file.write(bytes(100_000))
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


WRITE = f"""
import sys
from pathlib import Path
from gnomon.reference.system.atomic import replacing
for byte in b"ab" * 10**6:
    with replacing(Path(sys.argv[1])) as file:
        for _ in range(64):
            file.write(bytes([byte]) * {2**14})
"""


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for attempt in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITE, str(path)])
        deadline = time.monotonic() + 60
        before = path.stat().st_ino if path.exists() else None
        while (path.stat().st_ino if path.exists() else None) == before and time.monotonic() < deadline:
            time.sleep(0.001 * (attempt + 1))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        content = path.read_bytes()
        assert (len(content), len(set(content))) == (2**20, 1)
