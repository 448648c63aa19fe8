"""Memory on huge pages: where it lies, whose it is, and that no byte of it moves."""

from __future__ import annotations

import gc
import mmap
import sys
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest

from gnomon.jax_engine.runtime import huge_pages
from gnomon.jax_engine.runtime.huge_pages import HUGE_PAGE, MAP_BYTES, HugePages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
needs_huge_pages = pytest.mark.skipif(
    not SETTING.exists() or "[never]" in SETTING.read_text(), reason="this system has no huge pages"
)


def huge_bytes(first: int, last: int) -> int:
    """Bytes of this process on huge pages between two addresses, in whole maps."""
    total, is_within = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            begin, end = (int(word, 16) for word in words[0].split("-"))
            is_within = begin < last and first < end
        elif words[0] == "AnonHugePages:" and is_within:
            total += int(words[1]) * 1024
    return total


def test_arrays_of_a_map_are_zeros_one_after_the_other_and_xla_takes_them_as_they_are() -> None:
    memory = HugePages()
    first, second = memory.array((3, 5), np.float32), memory.array((7,), np.uint16)
    for array in (first, second):
        assert not array.any()
        assert jax.device_put(array).unsafe_buffer_pointer() == array.ctypes.data
    assert second.ctypes.data - first.ctypes.data == 64  # 60 bytes, and what XLA asks for


def test_an_array_larger_than_a_map_has_one_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "MAP_BYTES", 2**12)
    memory = HugePages()
    small, large = memory.array((16,), np.uint8), memory.array((2**13,), np.uint8)
    large[:] = small[:] = 1
    assert large.all()
    assert small.all()


def test_a_map_is_given_back_when_its_last_array_is_gone() -> None:
    memory = HugePages()
    array = memory.array((1000,), np.float32)
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    there = weakref.ref(base)
    del memory, base
    gc.collect()
    assert there() is not None
    del array
    gc.collect()
    assert there() is None


@needs_huge_pages
def test_weights_lie_on_huge_pages() -> None:
    array = HugePages().array((MAP_BYTES // 8,), np.uint8)
    assert array.ctypes.data % HUGE_PAGE == 0
    array[:] = 1
    assert huge_bytes(array.ctypes.data, array.ctypes.data + array.nbytes) > array.nbytes // 2


def test_a_system_without_huge_pages_has_memory_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "linux":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    monkeypatch.setattr(huge_pages, "MAP_BYTES", 2**12)
    array = HugePages().array((10,), np.float32)
    assert not array.any()
