"""What glibc keeps of freed memory is given back when that is asked."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from gnomon.reference.system.heap import TRIM, give_back

BLOCK, BLOCKS = 100 * 2**10, 1000  # smaller than what the system is asked for and given back by itself


def resident() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.skipif(TRIM is None or not Path("/proc/self/status").exists(), reason="no glibc, or a silent system")
def test_what_is_free_below_a_block_in_use_goes_back_to_the_system() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    blocks = [libc.malloc(BLOCK) for _ in range(BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    for block in blocks[:-1]:  # the last one keeps the heap from shrinking
        libc.free(block)
    before = resident()
    give_back()
    assert before - resident() > BLOCK * BLOCKS / 2
    libc.free(blocks[-1])
