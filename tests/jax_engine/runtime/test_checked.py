"""Files that one start leaves to the next: whole or not there, and what is damaged is found before it is used."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gnomon.jax_engine.runtime import store
from gnomon.jax_engine.runtime.checked import find, keep
from gnomon.reference.system.atomic import PARTIAL
from helpers.damage import DAMAGES, Damage

CONTENT = bytes(range(256)) * 40


def found(directory: Path, name: str = "name") -> tuple[bytes | None, list[str]]:
    """The content that is found, and what was said."""
    said: list[str] = []
    kept = find(directory, name, ".so", said.append)
    return (None if kept is None else kept.content), said


def test_what_was_kept_is_found_and_nothing_is_said(tmp_path: Path) -> None:
    path = keep(tmp_path, "name", ".so", CONTENT)
    assert found(tmp_path) == (CONTENT, [])
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_what_is_damaged_is_removed_with_one_line_that_names_it(tmp_path: Path, damage: Damage) -> None:
    path = keep(tmp_path, "name", ".so", CONTENT)
    damage.do(path)
    content, said = found(tmp_path)
    assert (content, len(said)) == (None, 1)
    [line] = said
    assert line.startswith(f"{path} is damaged: ")
    assert damage.wrong in line
    assert line.endswith("; it is removed and made anew")
    assert found(tmp_path) == (None, [])
    assert keep(tmp_path, "name", ".so", CONTENT) == path
    assert found(tmp_path) == (CONTENT, [])


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_what_cannot_be_read_is_made_anew_too(tmp_path: Path) -> None:
    keep(tmp_path, "name", ".so", CONTENT).chmod(0)
    content, [line] = found(tmp_path)
    assert content is None
    assert "Permission denied" in line


def test_a_whole_file_is_used_beside_a_damaged_one(tmp_path: Path) -> None:
    for build in (CONTENT, b"another build"):
        keep(tmp_path, "name", ".so", build)
    os.truncate(min(tmp_path.iterdir()), 3)
    content, [_] = found(tmp_path)
    assert content in (CONTENT, b"another build")
    assert len(list(tmp_path.iterdir())) == 1


def test_files_of_other_names_and_versions_are_left_alone(tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("name.so", f"name-{64 * 'g'}.so", f"name2-{64 * 'a'}.so", "name-cache")]
    others += [tmp_path / f"name-more-{64 * 'a'}.so", tmp_path / f"name-{64 * 'a'}.program"]
    for path in others:
        path.write_bytes(b"old")
    assert found(tmp_path) == (None, [])
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_what_cannot_be_removed_is_told_and_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    path = keep(tmp_path, "name", ".so", CONTENT)
    os.truncate(path, 3)
    monkeypatch.setattr(Path, "unlink", refused)
    content, [line] = found(tmp_path)
    assert content is None
    assert line.startswith(f"{path} is damaged: its 3 bytes are not those that were written; it cannot be removed")


def test_many_that_keep_and_find_at_once_see_it_whole_or_not_at_all(tmp_path: Path) -> None:
    def work(_: int) -> tuple[bytes | None, list[str]]:
        keep(tmp_path, "name", ".so", CONTENT)
        return found(tmp_path)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(64))) == [(CONTENT, [])] * 64
    assert len(list(tmp_path.iterdir())) == 1


# ---- how a file is written


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        with pytest.raises(OSError, match="No space left on device"):
            keep(tmp_path, "name", ".so", bytes(200_000))
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_what_killed_writers_left_is_swept_once_it_is_old(tmp_path: Path) -> None:
    left: list[Path] = [tmp_path / f".old{PARTIAL}", tmp_path / f".new{PARTIAL}", tmp_path / "kept.so"]
    for path in left:
        path.write_bytes(b"x")
    (tmp_path / f".folder{PARTIAL}").mkdir()
    (tmp_path / f".folder{PARTIAL}" / "built.so").touch()
    hours_ago = time.time() - 2 * store.ABANDONED_SECONDS
    for path in (left[0], left[2], tmp_path / f".folder{PARTIAL}"):
        os.utime(path, (hours_ago, hours_ago))
    store.prepare_directory(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(left[1:])


def test_what_is_half_written_is_not_linked_to(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir(0o700)
    target.mkdir()
    (source / f".half{PARTIAL}").touch()
    path = keep(source, "name", ".so", CONTENT)
    assert store.link(source, target) == 1
    assert [link.name for link in target.iterdir()] == [path.name]


def test_damage_behind_a_link_takes_the_link_away_and_no_more(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir(0o700)
    target.mkdir(0o700)
    path = keep(source, "name", ".so", CONTENT)
    os.truncate(path, 3)
    store.link(source, target)
    content, [_] = found(target)
    assert content is None
    assert path.stat().st_size == 3
    keep(target, "name", ".so", CONTENT)
    assert found(target) == (CONTENT, [])
