"""Where what is built is kept: a place that cannot be used never ends a start, and is told once with the reason."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gnomon.jax_engine import native, store
from helpers.models import tiny_llama

GNOMON = (sys.executable, "-c", "from gnomon.http.cli import main; main()")
KEPT_NOT = "compiled programs and the native library are not kept for the next start: "
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user, or mount")


def opened(directory: Path | str | None, environment: Mapping[str, str] | None = None) -> tuple[Path | None, list[str]]:
    """What was opened, and what was said."""
    said: list[str] = []
    with store.opened(None if directory is None else str(directory), environment or {}, said.append) as place:
        assert place is None or place.is_dir()
    return place, said


# ---- which directory


@pytest.mark.parametrize("value", ["", "relative/cache"])
def test_a_cache_home_that_is_no_absolute_path_does_not_count(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HOME", "/somebodys")
    assert store.default_directory({"XDG_CACHE_HOME": value}) == Path("/somebodys/.cache/gnomon")
    assert store.default_directory({"XDG_CACHE_HOME": "/caches"}) == Path("/caches/gnomon")


def test_a_user_without_a_home_builds_in_a_private_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    place, [line] = opened(None)
    reason = "no home directory: HOME is not set, and this user is not in the password file"
    assert line == f"{KEPT_NOT}{reason}; --cache-dir or GNOMON_CACHE_DIR names another directory"
    assert place is not None
    assert not place.exists()  # it was for one start


# ---- what can be used


def test_a_directory_is_made_for_this_user_alone_and_kept(tmp_path: Path) -> None:
    place, said = opened(tmp_path / "new" / "cache")
    assert (place, said) == (tmp_path / "new" / "cache" / "jax", [])
    assert place is not None
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert list(place.iterdir()) == []


def test_a_file_in_the_way_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    _, [line] = opened(tmp_path / "file")
    assert line.startswith(f"{KEPT_NOT}{tmp_path / 'file'}")
    assert "Not a directory" in line


@pytest.mark.parametrize("bit", [stat.S_IWGRP, stat.S_IWOTH])
def test_code_is_not_loaded_from_where_others_can_write(tmp_path: Path, bit: int) -> None:
    (tmp_path / "jax").mkdir(0o700)
    (tmp_path / "jax").chmod(0o700 | bit)
    place, lines = opened(tmp_path)
    assert [f"{tmp_path / 'jax'}: others can write to it (chmod go-w)" in line for line in lines] == [True]
    assert place not in (None, tmp_path / "jax")


@ROOT_ONLY
def test_code_is_not_loaded_from_another_users_directory(tmp_path: Path) -> None:
    (tmp_path / "jax").mkdir(0o700)
    os.chown(tmp_path / "jax", 12345, 12345)
    _, [line] = opened(tmp_path)
    assert f"{tmp_path / 'jax'}: belongs to user 12345, and this process runs as 0" in line


@ROOT_ONLY
def test_a_library_that_another_user_can_write_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(compiler: list[str], library: Path) -> None:
        library.write_bytes(b"")
        library.chmod(0o777)

    monkeypatch.setattr(native, "_build", planted)
    monkeypatch.setattr(native, "_registered", {})
    if any(shutil.which(name) for name in native.COMPILERS):
        assert "others can write to it" in str(native.load(tmp_path))


@ROOT_ONLY
def test_a_full_directory_is_told(tmp_path: Path) -> None:
    with_mount(tmp_path, "size=64k", "No space left on device")


@ROOT_ONLY
def test_a_read_only_directory_is_told_and_what_is_in_it_is_used(tmp_path: Path) -> None:
    with_mount(tmp_path, "ro", "Read-only file system")
    cache = tmp_path / "cache" / "jax"
    cache.mkdir(parents=True, mode=0o700)
    (cache / "library.so").write_text("built before")
    target = tmp_path / "private"
    target.mkdir()
    store.link(cache, target)
    assert (target / "library.so").read_text() == "built before"


def with_mount(folder: Path, options: str, reason: str) -> None:
    """Opens a directory in a small file system of its own."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        _, [line] = opened(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert line.startswith(f"{KEPT_NOT}{folder}")
    assert reason in line


def test_without_any_place_the_start_goes_on_with_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(**_: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("gnomon.jax_engine.store.tempfile.TemporaryDirectory", nowhere)
    (tmp_path / "jax").write_text("in the way")
    place, [line] = opened(tmp_path)
    assert place is None
    assert line.endswith("; and there is no temporary directory: No usable temporary directory found")


# ---- the whole command


@pytest.mark.slow
@ROOT_ONLY
def test_a_user_without_home_or_name_gets_a_completion_and_one_line(tmp_path: Path) -> None:
    """An arbitrary user id, as OpenShift gives one."""
    model = tiny_llama(tmp_path / "tiny", max_position_embeddings=64)
    for folder in [*tmp_path.parents[:-2], tmp_path, model, *model.iterdir()]:
        folder.chmod(0o755)
    command = [*GNOMON, "complete", "--engine", "jax", "--max-tokens", "2", "a", "--model", str(model)]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HOME", "XDG_", "GNOMON_"))
    }
    environment["TMPDIR"] = "/tmp"
    become: dict[str, Any] = {"user": 12345, "group": 12345, "extra_groups": [], "env": environment}
    try:
        subprocess.run([sys.executable, "-c", "import jax"], check=True, capture_output=True, **become)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this Python is not installed for other users")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **become)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr.count(KEPT_NOT) == 1
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
