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

from gnomon.jax_engine.kernels import native
from gnomon.jax_engine.runtime import store
from gnomon.jax_engine.runtime.checked import keep
from helpers.damage import DAMAGES
from helpers.models import tiny_llama

GNOMON = (sys.executable, "-c", "from gnomon.http.cli.main import main; main()")
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
    """It is built anew, and one line says why."""
    monkeypatch.setattr(native, "_registered", {})
    monkeypatch.setattr(native, "_build", lambda compiler, cache, target, *rest: keep(cache, target, ".so", b"built"))
    if any(shutil.which(name) for name in native.COMPILERS):
        native.load_native(tmp_path)
        [library] = tmp_path.iterdir()
        library.write_bytes(b"planted")
        library.chmod(0o777)
        said: list[str] = []
        native.load_native(tmp_path, said.append)
        assert said[0] == f"{library} is damaged: others can write to it (chmod go-w); it is removed and made anew"
        assert library.read_bytes() == b"built"


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

    monkeypatch.setattr("gnomon.jax_engine.runtime.store.tempfile.TemporaryDirectory", nowhere)
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


def completed(model: Path, cache: Path) -> subprocess.Popen[str]:
    command = [*GNOMON, "complete", "--engine", "jax", "--max-tokens", "4", "--seed", "7", "a", "--model", str(model)]
    environment = {**os.environ, "GNOMON_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def text_of(process: subprocess.Popen[str]) -> tuple[str, list[str]]:
    """What a completion is, and the lines beside it."""
    text, lines = process.communicate(timeout=600)
    assert process.returncode == 0, (process.returncode, lines)
    return text, lines.splitlines()


@pytest.mark.weekly
def test_starts_at_once_from_one_empty_directory_leave_it_whole(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "tiny", max_position_embeddings=64)
    starts = [completed(model, tmp_path / "cache") for _ in range(3)]
    texts = {text_of(process)[0] for process in starts}
    assert len(texts) == 1
    text, lines = text_of(completed(model, tmp_path / "cache"))
    assert {text} == texts
    assert not any("building" in line or "compiling" in line or "damaged" in line for line in lines)


@pytest.mark.weekly
def test_a_start_mends_whatever_is_damaged_and_answers_the_same(tmp_path: Path) -> None:
    model, cache = tiny_llama(tmp_path / "tiny", max_position_embeddings=64), tmp_path / "cache"
    text, _ = text_of(completed(model, cache))
    files = sorted(path for path in (cache / "jax").iterdir() if path.suffix in (".so", ".program"))
    for i, path in enumerate(files):
        DAMAGES[i % len(DAMAGES)].do(path)
    again, lines = text_of(completed(model, cache))
    assert again == text
    assert sorted(line.partition(" is damaged: ")[0] for line in lines if " is damaged: " in line) == [
        f"{path}" for path in files
    ]
    last, lines = text_of(completed(model, cache))
    assert last == text
    assert not any("damaged" in line or "building" in line for line in lines)
