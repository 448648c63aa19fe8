"""Attention over pages, natively: against NumPy's float64, and the bits of a query."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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

from gnomon.jax_engine.kernels import native, xla
from gnomon.jax_engine.kernels.native import Native

REFUSED = (jax.errors.JaxRuntimeError, ValueError)  # the first where the call is made, the second where y is read
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


# 135M; a key/value head for each query's; widths that are no multiple of the lanes; one for many; pages that are small,
# odd, and larger than a piece
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
    positions = (np.array(starts)[:, None] + np.arange(T)).astype(np.int32)
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
    stored = jnp.asarray(keys, dtype), jnp.asarray(values, dtype)
    return Arguments(heads, q, stored[0], stored[1], tables, positions, lengths, window, score_cap)


@cache
def jitted(built: Native) -> Callable[..., Array]:
    return jax.jit(built.attend, static_argnums=(6, 7))


def attend(built: Native, a: Arguments) -> Floats:
    """Zeros where a query does not live, of which nothing is written."""
    y = jitted(built)(a.q, a.keys, a.values, a.tables, a.positions, a.lengths, a.window, a.score_cap)
    return np.where(a.live[..., None, None, None], y, np.float32(0))


def same_bits(a: Floats, b: Floats) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


BORDERS = [0, 1, 31, 32, 63, 64, 255, 256, 257, 700]  # of lanes, pages, pieces and spans
ONE_IS_DEAD = [1, 1, 1, 0, 1, 1, 1, 1, 1, 1]


# ---- what it computes


@pytest.mark.parametrize(
    ("window", "score_cap", "dtype"),
    [(None, None, "float32"), (1, None, "bfloat16"), (40, 2.0, "float32"), (300, None, "float32")],
)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_decode_is_a_softmax_over_what_each_query_sees(
    built: Native, heads: Heads, window: int | None, score_cap: float | None, dtype: str
) -> None:
    a = arguments(1, heads, BORDERS, ONE_IS_DEAD, 1, window, score_cap, dtype)
    np.testing.assert_allclose(attend(built, a), a.expected(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("window", "score_cap", "dtype"), [(None, 2.0, "bfloat16"), (7, None, "float32"), (290, 20.0, "float32")]
)
@pytest.mark.parametrize("heads", HEADS[:4], ids=str)
def test_a_chunk_is_a_softmax_over_what_each_query_sees(
    built: Native, heads: Heads, window: int | None, score_cap: float | None, dtype: str
) -> None:
    """Chunks that begin a sequence, end in a span, begin in one, lie over several, and of which nothing or less than
    all is alive."""
    a = arguments(2, heads, [0, 200, 500, 0, 3], [96, 70, 96, 0, 1], 96, window, score_cap, dtype)
    np.testing.assert_allclose(attend(built, a), a.expected(), atol=2e-6, rtol=1e-5)


def test_it_agrees_with_xlas_form(built: Native) -> None:
    a = arguments(3, LLAMA, [300, 5, 90], [3, 3, 3], 3, window=77, score_cap=5.0)
    clean = replace(a, keys=jnp.nan_to_num(a.keys), values=jnp.nan_to_num(a.values))
    y = xla.attend(
        jnp.asarray(a.q), clean.keys, clean.values, jnp.asarray(a.tables), jnp.asarray(a.positions),
        jnp.asarray(a.lengths), a.window, a.score_cap,
    )  # fmt: skip
    np.testing.assert_allclose(attend(built, a), y, atol=2e-6, rtol=1e-5)


def test_who_sees_one_position_gets_its_value(built: Native) -> None:
    a = arguments(4, LLAMA, [0, 40, 600], [1, 1, 1], 1, window=1)
    own = np.asarray(a.values)[a.tables[np.arange(3), a.positions[:, 0] // 32], a.positions[:, 0] % 32]
    assert same_bits(attend(built, a)[:, 0], np.broadcast_to(own[:, :, None], (3, 3, 3, 64)).copy())


def test_large_scores_of_either_sign_neither_overflow_nor_vanish(built: Native) -> None:
    a = arguments(5, LLAMA, BORDERS, ONE_IS_DEAD)
    for factor in (1e4, -1e4):
        large = replace(a, q=a.q * np.float32(factor))
        np.testing.assert_allclose(attend(built, large), large.expected(), atol=2e-2)


def test_what_is_seen_and_no_number_is_not_hidden(built: Native) -> None:
    a = arguments(6, LLAMA, [70, 300], [1, 1])
    page, slot = a.tables[0, 1], 5
    for broken in (
        replace(a, keys=a.keys.at[page, slot, 1, 63].set(np.nan)),
        replace(a, values=a.values.at[page, slot, 1].set(np.nan)),
    ):
        y, clean = attend(built, broken), attend(built, a)
        assert np.isnan(y[0, 0, 1]).all()
        assert same_bits(y[1], clean[1])
        assert same_bits(y[0, 0, ::2], clean[0, 0, ::2])


# ---- the bits of a query


def only(a: Arguments, b: int, t: slice) -> Arguments:
    """Some queries of one sequence, alone."""
    return replace(
        a, q=a.q[b : b + 1, t], tables=a.tables[b : b + 1], positions=a.positions[b : b + 1, t],
        lengths=a.lengths[b : b + 1],
    )  # fmt: skip


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_every_sequence_alone_has_the_bits_it_has_among_all(built: Native, heads: Heads, window: int | None) -> None:
    a = arguments(7, heads, BORDERS, ONE_IS_DEAD, 1, window)
    together = attend(built, a)
    for b in range(len(BORDERS)):
        assert same_bits(attend(built, only(a, b, slice(None)))[0], together[b])
        alone = replace(a, lengths=np.where(np.arange(len(BORDERS)) == b, a.lengths, 0).astype(np.int32))
        assert same_bits(attend(built, alone)[b], together[b])


@pytest.mark.parametrize("window", [None, 40, 300])
@pytest.mark.parametrize("heads", HEADS[:4], ids=str)
def test_a_query_has_the_same_bits_in_whatever_chunk(built: Native, heads: Heads, window: int | None) -> None:
    """Alone, in halves of the chunk and in the whole of it: in blocks of other queries, in one task or in several."""
    a = arguments(8, heads, [470], [90], 90, window)
    together = attend(built, a)[0]
    for length in (1, 17, 45):
        for first in (0, 40, 89):
            part = slice(first, min(90, first + length))
            assert same_bits(attend(built, only(a, 0, part))[0], together[part])


def test_a_query_has_the_same_bits_whatever_follows_it(built: Native) -> None:
    """In a chunk that ends with it, everything later is NaN."""
    a = arguments(9, LLAMA, [230], [60], 60)
    together = attend(built, a)[0]
    for count in (1, 2, 25, 26, 27, 59):
        length = 230 + count
        exists = np.zeros(a.keys.shape[:2], bool)
        exists[a.tables[0, np.arange(length) // 32], np.arange(length) % 32] = True
        cut = replace(
            a, keys=jnp.where(exists[:, :, None, None], a.keys, np.nan),
            values=jnp.where(exists[:, :, None, None], a.values, np.nan), lengths=np.array([length], np.int32),
        )  # fmt: skip
        y = attend(built, cut)[0]
        assert same_bits(y[:count], together[:count])
        assert not y[count:].any()


def test_where_pages_lie_and_how_large_they_are_touches_no_bit(built: Native) -> None:
    a = arguments(10, LLAMA, [700, 3, 255], [1, 1, 1])
    shuffled = np.random.default_rng(1).permutation(len(a.keys)).astype(np.int32)
    moved = replace(
        a, keys=a.keys[np.argsort(shuffled)], values=a.values[np.argsort(shuffled)], tables=shuffled[a.tables]
    )
    halves = replace(
        a, keys=a.keys.reshape(-1, 16, 3, 64), values=a.values.reshape(-1, 16, 3, 64),
        tables=np.stack([2 * a.tables, 2 * a.tables + 1], axis=-1).reshape(3, -1),
    )  # fmt: skip
    for other in (moved, halves):
        assert same_bits(attend(built, other), attend(built, a))


def test_neither_the_number_of_threads_nor_calls_beside_it_touch_a_bit(built: Native) -> None:
    decode = arguments(11, LLAMA, [*BORDERS, 1500], [*ONE_IS_DEAD, 1])
    chunk = arguments(12, LLAMA, [300], [128], 128)
    try:
        seen = []
        for threads in (1, 2, 3, 5):
            built.share_between(threads)
            seen.append([attend(built, decode), attend(built, chunk)])
    finally:
        built.share_between(2)
    with ThreadPoolExecutor(8) as pool:
        seen += pool.map(lambda _: [attend(built, decode), attend(built, chunk)], range(20))
    assert all(same_bits(y, first) for one in seen for y, first in zip(one, seen[0], strict=True))


# ---- what is not read


def test_nothing_is_read_of_sequences_of_no_length(built: Native) -> None:
    """A page that is not there is an error where it is looked for."""
    a = arguments(13, LLAMA, BORDERS, [i % 2 for i in range(len(BORDERS))])
    nowhere = np.where(a.lengths[:, None] > 0, a.tables, np.int32(-1))
    assert (nowhere < 0).any()
    assert same_bits(attend(built, replace(a, tables=nowhere)), attend(built, a))


@pytest.mark.parametrize(("window", "first"), [(None, 0), (40, 660 // 32), (1, 699 // 32)])
def test_pages_that_no_query_sees_need_not_be_there(built: Native, window: int | None, first: int) -> None:
    a = arguments(14, LLAMA, [699], [1], 1, window)
    table = np.full((1, 40), -1, np.int32)
    table[:, first:22] = a.tables[:, first:]
    assert same_bits(attend(built, replace(a, tables=table)), attend(built, a))
    table[:, 21] = len(a.keys)
    with pytest.raises(REFUSED, match="sees a page that is not there"):
        attend(built, replace(a, tables=table))


def test_a_position_beyond_the_table_is_an_error_not_a_crash(built: Native) -> None:
    a = arguments(15, LLAMA, [64], [1])
    with pytest.raises(REFUSED, match="sees a page that is not there"):
        attend(built, replace(a, tables=a.tables[:, :2]))
    with pytest.raises(REFUSED, match="sees a page that is not there"):
        attend(built, replace(a, positions=a.positions - 65))


def test_arguments_that_do_not_fit_are_an_error_not_a_crash(built: Native) -> None:
    a = arguments(16, LLAMA, [64, 3], [1, 1])
    with pytest.raises(REFUSED, match="shapes are not"):
        attend(built, replace(a, lengths=a.lengths[:1]))
    with pytest.raises(REFUSED, match="shapes are not"):
        attend(built, replace(a, values=a.values[:, :, :, :63]))
    with pytest.raises(REFUSED, match="float32 or both bfloat16"):
        attend(built, replace(a, values=a.values.astype(jnp.bfloat16)))
