"""Compiled programs on disk: what is broken there is made anew, what cannot be written ends no start, and jax's cache
stays its owner's."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from gnomon.jax_engine.runtime.checked import keep
from gnomon.jax_engine.runtime.programs import ProgramFiles, Programs
from helpers.damage import DAMAGES, Damage


def lower() -> Any:
    """Anew: jax keeps what it has compiled with what it was lowered to."""

    def triple(x: Any) -> Any:
        return 3 * x

    return jax.jit(triple).lower(jnp.zeros(7))


def entries(directory: Path, suffix: str = ".program") -> dict[str, int]:
    return {file.name: file.stat().st_size for file in directory.glob(f"*{suffix}")}


def compiled(directory: Path) -> list[str]:
    """Compiles in a new start, as it were, and returns what was said."""
    said: list[str] = []
    program = Programs(directory, "", said.append).compile(lower())
    assert float(program(jnp.ones(7))[0]) == 3
    return said


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs that XLA has compiled since."""
    made: list[str] = []
    put = ProgramFiles.put

    def noted(self: ProgramFiles, key: str, value: bytes) -> None:
        made.append(key)
        put(self, key, value)

    monkeypatch.setattr(ProgramFiles, "put", noted)
    return made


def test_a_program_is_compiled_once_and_kept_in_a_file_that_says_what_is_in_it(
    tmp_path: Path, compilations: list[str]
) -> None:
    assert compiled(tmp_path) == compiled(tmp_path) == []
    [path] = tmp_path.iterdir()
    [key] = compilations
    assert path.name == f"{key}-{hashlib.sha256(path.read_bytes()).hexdigest()}.program"


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_a_damaged_program_is_compiled_once_more_with_one_line(
    tmp_path: Path, compilations: list[str], damage: Damage
) -> None:
    assert compiled(tmp_path) == []
    [path] = tmp_path.iterdir()
    damage.do(path)
    said = compiled(tmp_path)
    assert len(said) == 1
    [line] = said
    assert line.startswith(f"{path} is damaged: ")
    assert damage.wrong in line
    assert compiled(tmp_path) == []
    assert len(compilations) == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_whole_and_yet_no_program_is_removed_with_jaxs_reason(tmp_path: Path, compilations: list[str]) -> None:
    """As another build of the same version of jaxlib may leave it."""
    assert compiled(tmp_path) == []
    [path] = tmp_path.iterdir()
    path.unlink()
    bad = keep(tmp_path, compilations[0], ".program", b"no program")
    [line] = compiled(tmp_path)
    assert line.startswith(f"{bad} is damaged: ")
    assert compiled(tmp_path) == []
    assert len(compilations) == 2


def test_a_program_is_found_wherever_its_directory_is(tmp_path: Path, compilations: list[str]) -> None:
    """So what lies in one that can only be read is used from the private one that links to it."""
    assert compiled(tmp_path / "here") == []
    (tmp_path / "here").rename(tmp_path / "there")
    assert compiled(tmp_path / "there") == []
    assert len(compilations) == 1


def test_programs_of_other_models_and_versions_are_left_alone(tmp_path: Path) -> None:
    others = [tmp_path / f"jit_triple-{64 * '0'}-{64 * '1'}.program", tmp_path / f"jit_triple-{64 * '0'}-cache"]
    for path in others:
        path.write_bytes(b"old")
    assert compiled(tmp_path) == compiled(tmp_path) == []
    assert [path.read_bytes() for path in others] == [b"old"] * 2


def test_a_disk_that_fills_up_is_told_once_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    said: list[str] = []
    programs = Programs(tmp_path, "", said.append)
    for _ in range(2):
        assert float(programs.compile(lower())(jnp.ones(7))[0]) == 3
    [line] = said
    assert line.endswith(f"not kept for the next start: {tmp_path}: No space left on device")
    assert list(tmp_path.iterdir()) == []
    assert not recwarn.list


def test_a_start_that_compiled_everything_is_known_by_all_that_it_depends_on(tmp_path: Path) -> None:
    first = Programs(tmp_path, "one model", print)
    assert not first.complete
    first.finish()
    assert Programs(tmp_path, "one model", print).complete
    assert not Programs(tmp_path, "another", print).complete
    assert not Programs(None, "one model", print).complete


@pytest.fixture
def others(tmp_path: Path) -> Iterator[Path]:
    """The cache of whoever else compiles in this process."""
    before = {name: jax.config.values[name] for name in ("jax_compilation_cache_dir", MINIMUM)}
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "others"))  # type: ignore[no-untyped-call]
    jax.config.update(MINIMUM, 0.0)  # type: ignore[no-untyped-call]
    yield tmp_path / "others"
    for name, value in before.items():
        jax.config.update(name, value)  # type: ignore[no-untyped-call]
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()


MINIMUM = "jax_persistent_cache_min_compile_time_secs"


def test_what_others_compile_goes_where_they_said(tmp_path: Path, others: Path) -> None:
    jax.jit(lambda x: 5 * x).lower(jnp.zeros(11)).compile()
    Programs(tmp_path / "ours", "", print).compile(lower())
    theirs = len(entries(others, "-cache"))
    jax.jit(lambda x: 7 * x).lower(jnp.zeros(13)).compile()
    assert list(entries(tmp_path / "ours")) == [name for name in entries(tmp_path / "ours") if "triple" in name]
    assert len(entries(tmp_path / "ours")) == 1
    assert len(entries(others, "-cache")) > theirs > 0
    assert not any("triple" in path.name for path in others.iterdir())
