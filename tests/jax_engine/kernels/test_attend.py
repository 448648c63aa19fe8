"""Attention over pages, natively: against NumPy's float64, and the bits of a query."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from numpy.typing import NDArray

from gnomon.jax_engine.kernels import native
from gnomon.jax_engine.kernels.native import Native

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]

pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in native.COMPILERS), reason="there is no C++ compiler"
)


@pytest.fixture(scope="module")
def built(native_cache: Path) -> Native:
    loaded = native.load_native(native_cache)
    assert isinstance(loaded, Native), loaded
    return loaded


@dataclass(frozen=True)
class Heads:
    """Of keys and values, of queries for each of those, their width; positions of a page."""

    K: int
    G: int
    H: int
    page_size: int


# the widths of 135M and of a small model; no multiple of the lanes; a head of its own for each query, one for many; pages
# that are small, odd, and larger than a piece
LLAMA = Heads(3, 3, 64, 32)
HEADS = (LLAMA, Heads(2, 1, 16, 8), Heads(1, 7, 33, 16), Heads(3, 2, 5, 3), Heads(1, 71, 17, 100), Heads(2, 5, 80, 64))


@dataclass(frozen=True)
class Arguments:
    """Of one call: sequences in pages in any order. What no query sees is NaN."""

    heads: Heads
    q: Floats  # [B, T, K, G, H]
    keys: Any  # [pages, page size, K, H]
    values: Any
    tables: Integers  # [B, P]
    positions: Integers  # [B, T]
    lengths: Integers  # [B]
    window: int | None = None
    score_cap: float | None = None

    @cached_property
    def live(self) -> NDArray[np.bool_]:
        return self.positions < self.lengths[:, None]

    def seen(self, position: int) -> range:
        return range(0 if self.window is None else max(0, position - self.window + 1), position + 1)

    def expected(self) -> NDArray[np.float64]:
        """A softmax in float64."""
        y = np.zeros(self.q.shape)
        keys, values = (np.asarray(pages, np.float64) for pages in (self.keys, self.values))
        for b, t in zip(*np.nonzero(self.live), strict=True):
            at = np.array(self.seen(int(self.positions[b, t])))
            place = self.tables[b, at // self.heads.page_size], at % self.heads.page_size
            scores = np.einsum("skh,kgh->kgs", keys[place], self.q[b, t].astype(np.float64))
            if self.score_cap is not None:
                scores = self.score_cap * np.tanh(scores / self.score_cap)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            y[b, t] = np.einsum("kgs,skh->kgh", weights / weights.sum(axis=-1, keepdims=True), values[place])
        return y


def arguments(
    seed: int, heads: Heads, starts: list[int], live: list[int], T: int = 1, window: int | None = None,
    score_cap: float | None = None, dtype: str = "float32",
) -> Arguments:  # fmt: skip
    """Sequence b has queries at starts[b], starts[b] + 1 and so on, of which the first live[b] live."""
    rng = np.random.default_rng(seed)
    B, (K, G, H, size) = len(starts), (heads.K, heads.G, heads.H, heads.page_size)
    positions = np.array(starts, np.int32)[:, None] + np.arange(T, dtype=np.int32)
    lengths = np.array([start + count if count else 0 for start, count in zip(starts, live, strict=True)], np.int32)
    P = int(positions.max()) // size + 1
    pages = int((-(-lengths // size)).sum()) + 1
    keys, values = (rng.standard_normal((pages, size, K, H), np.float32) for _ in range(2))
    order, taken = rng.permutation(np.arange(1, pages, dtype=np.int32)), 0
    tables = np.zeros((B, P), np.int32)
    exists = np.zeros((pages, size), bool)
    for b, length in enumerate(lengths):
        own = -(-length // size)
        tables[b, :own], taken = order[taken : taken + own], taken + own
        first = 0 if window is None else max(0, starts[b] - window + 1)
        at = np.arange(first, length)
        exists[tables[b, at // size], at % size] = True
    q = rng.standard_normal((B, T, K, G, H), np.float32) * np.float32(2 * H**-0.5)
    for unseen in (keys, values):
        unseen[~exists] = np.nan
    q[positions >= lengths[:, None]] = np.nan
    stored = (jnp.asarray(pages, dtype) for pages in (keys, values))
    return Arguments(heads, q, *stored, tables, positions, lengths, window, score_cap)


@cache
def jitted(built: Native) -> Callable[..., Array]:
    return jax.jit(built.attend, static_argnums=(6, 7))


def attend(built: Native, a: Arguments) -> Floats:
    return np.asarray(jitted(built)(a.q, a.keys, a.values, a.tables, a.positions, a.lengths, a.window, a.score_cap))


def same_bits(a: Floats, b: Floats) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


BORDERS = [0, 1, 31, 32, 63, 64, 255, 256, 257, 700]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("score_cap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 1, 40, 300])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_decode_is_a_softmax_over_what_each_query_sees(
    built: Native, heads: Heads, window: int | None, score_cap: float | None, dtype: str
) -> None:
    a = arguments(1, heads, BORDERS, [1, 1, 1, 0, 1, 1, 1, 1, 1, 1], 1, window, score_cap, dtype)
    np.testing.assert_allclose(attend(built, a), a.expected(), atol=2e-6, rtol=1e-5)
