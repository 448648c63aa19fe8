"""Compiled programs on disk: what is broken there is made anew, what cannot be written ends no start, and jax's cache
stays its owner's."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax._src.lru_cache import LRUCache

from gnomon.jax_engine.programs import Programs


def lower() -> Any:
    """Anew: jax keeps what it has compiled with what it was lowered to."""

    def triple(x: Any) -> Any:
        return 3 * x

    return jax.jit(triple).lower(jnp.zeros(7))


def entries(directory: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in directory.glob("*-cache")}


def test_what_was_half_written_is_made_anew_without_a_word(tmp_path: Path) -> None:
    said: list[str] = []
    Programs(tmp_path, "", said.append).compile(lower())
    [(name, size)] = entries(tmp_path).items()
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[: size // 2])
    compiled = Programs(tmp_path, "", said.append).compile(lower())
    assert float(compiled(jnp.ones(7))[0]) == 3
    assert said == []
    assert entries(tmp_path) == {name: pytest.approx(size, rel=0.1)}


def test_a_disk_that_fills_up_is_told_once_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def half(self: LRUCache, key: str, value: bytes) -> None:
        (Path(self.path) / f"{key}-cache").write_bytes(value[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LRUCache, "put", half)
    said: list[str] = []
    programs = Programs(tmp_path, "", said.append)
    for _ in range(2):
        assert float(programs.compile(lower())(jnp.ones(7))[0]) == 3
    [line] = said
    assert line.endswith(f"not kept for the next start: {tmp_path}: No space left on device")
    assert entries(tmp_path) == {}
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
    theirs = len(entries(others))
    jax.jit(lambda x: 7 * x).lower(jnp.zeros(13)).compile()
    assert list(entries(tmp_path / "ours")) == [name for name in entries(tmp_path / "ours") if "triple" in name]
    assert len(entries(tmp_path / "ours")) == 1
    assert len(entries(others)) > theirs > 0
    assert not any("triple" in name for name in entries(others))
