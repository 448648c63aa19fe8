"""The native draw: the bits of a row, the law's token and report, and what it passes over without looking."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gnomon.jax_engine import sampler
from gnomon.jax_engine.device import rows_of
from gnomon.jax_engine.kernels import native
from gnomon.jax_engine.kernels.native import Native
from gnomon.jax_engine.sampler import TOP, Reported, Rows, Sampled
from gnomon.reference import sampler as law
from gnomon.reference.parity import judge
from gnomon.reference.prng import DrawKey, token_words
from gnomon.reference.sampler import SamplingParams

F32 = NDArray[np.float32]
COMPILER = next((name for name in native.COMPILERS if shutil.which(name)), None)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module")
def built(native_cache: Path) -> Native:
    loaded = native.load_native(native_cache)
    assert isinstance(loaded, Native), loaded
    return loaded


# ---- rows


class Batch:
    """Logits and all that a draw of them is asked for, from a seed; of every kind of row one."""

    def __init__(self, seed: int, V: int, count: int = 12) -> None:
        rng = np.random.default_rng(seed)
        self.logits = np.stack([logits(rng, V, i % 4) for i in range(count)])
        self.params = [params(rng, V, i) for i in range(count)]
        self.keys = [DrawKey(int(rng.integers(-(2**63), 2**63)), i % 3, int(rng.integers(2**32))) for i in range(count)]
        self.counts = rng.integers(0, 3, (count, V)).astype(np.int32)
        self.bias = np.zeros((count, V), np.float32)
        for own, asked in zip(self.bias, self.params, strict=True):
            for v, value in (asked.logit_bias or {}).items():
                own[v] = value

    def rows(self) -> Rows:
        each = [rows_of(asked, key) for asked, key in zip(self.params, self.keys, strict=True)]
        return Rows(*(np.stack(values) for values in zip(*each, strict=True)))

    def take(self, places: Sequence[int] | NDArray[np.integer[Any]]) -> Batch:
        """The rows at these places, in that order."""
        taken = object.__new__(Batch)
        taken.logits, taken.bias, taken.counts = self.logits[places], self.bias[places], self.counts[places]
        taken.params, taken.keys = [self.params[i] for i in places], [self.keys[i] for i in places]
        return taken


def logits(rng: np.random.Generator, V: int, kind: int) -> F32:
    """Like a model's, all of a size, with ties everywhere (zeros of both signs), far apart."""
    if kind == 0:
        return (2 * rng.standard_normal(V) + 8 * (rng.random(V) < 0.05) * rng.random(V)).astype(np.float32)
    if kind == 1:
        return (rng.standard_normal(V) / 100).astype(np.float32)
    if kind == 2:
        tied = (rng.integers(-8, 9, V) / 4).astype(np.float32)
        return np.where((tied == 0) & (rng.random(V) < 0.5), np.float32(-0.0), tied)
    return (rng.standard_normal(V) * 10.0 ** rng.integers(0, 5)).astype(np.float32)


def params(rng: np.random.Generator, V: int, i: int) -> SamplingParams:
    ids = rng.integers(0, V, 5)
    return SamplingParams(
        temperature=float(rng.choice([0, 2.0**-100, 0.01, 0.3, 0.8, 1, 2])),
        top_p=float(rng.choice([0, 1e-6, 0.3, 0.5, 0.95, 0.999, 1 - 2**-24, 1])),
        frequency_penalty=float(rng.choice([0, 0, 0.25, -0.5, 2])),
        presence_penalty=float(rng.choice([0, 0, 0.5, -2])),
        logit_bias={int(v): float(rng.choice([-100, 100, 0.3])) for v in ids} if i % 3 == 2 else None,
    )


@cache
def jitted(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function)


def drawn(built: Native, batch: Batch, live: NDArray[np.bool_] | None = None) -> Sampled:
    live = np.ones(len(batch.logits), bool) if live is None else live
    call = jitted(built.draw)
    return Sampled(*map(np.asarray, call(batch.logits, batch.bias, batch.counts, batch.rows(), live)))


def same_bits(a: Sequence[NDArray[Any]], b: Sequence[NDArray[Any]]) -> bool:
    return all(x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def picked(sampled: Sampled, places: Sequence[int] | NDArray[Any]) -> Sampled:
    return Sampled(*(each[places] for each in sampled))


# tails of vectors, parts and rankings; enough that threads share the rows
SIZES = (1, 2, 3, 15, 16, 17, 19, 20, 21, 511, 513, 5003)


# ---- the law


def check_against_the_law(batch: Batch, sampled: Sampled) -> int:
    """How many tokens are others than the reference's own, which the margins must allow."""
    logits, excused = batch.logits.astype(np.float64), 0
    lp, order = law.report(logits), np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
    assert sampled.finite.all()
    assert sampled.top_ids.tolist() == order.tolist()
    for ids, own in ((order, sampled.top_logprobs), (sampled.token[:, None], sampled.logprob[:, None])):
        np.testing.assert_allclose(own, np.take_along_axis(lp, ids, axis=1), rtol=3e-7, atol=1e-6)
    for i, (l, asked, key) in enumerate(zip(logits, batch.params, batch.keys, strict=True)):
        checked = judge(int(sampled.token[i]), l, batch.counts[i].astype(np.int64), asked, key, 0.0)
        assert checked.admissible, (i, asked, key)
        excused += checked.excused
    return excused


@pytest.mark.parametrize("V", SIZES)
def test_every_token_and_report_is_the_laws(built: Native, V: int) -> None:
    excused = sum(check_against_the_law(batch, drawn(built, batch)) for batch in (Batch(s, V, 48) for s in range(4)))
    assert excused <= 3


@pytest.mark.slow
@pytest.mark.parametrize("V", [1, 7, 20, 96, 1000, 49152])
def test_every_token_of_many_draws_is_the_laws(built: Native, V: int) -> None:
    """Of a draw whose margin is wide the two agree, so what is excused is where two scores nearly meet."""
    count = 5000 // 48 if V < 49152 else 8
    excused = sum(
        check_against_the_law(batch, drawn(built, batch)) for batch in (Batch(s, V, 48) for s in range(count))
    )
    print(f"{48 * count} tokens of {V} ids, {excused} excused")
    assert excused <= max(1, 48 * count // 1000)


@pytest.mark.slow
def test_the_forms_draw_the_same_tokens_but_where_scores_nearly_meet(built: Native) -> None:
    for seed in range(4):
        batch = Batch(seed, 1500, 64)
        own, live = drawn(built, batch), np.ones(64, bool)
        xla = jitted(sampler.sample)(batch.logits, batch.bias, batch.counts, batch.rows(), live)
        assert (own.top_ids == xla.top_ids).all()
        np.testing.assert_allclose(own.top_logprobs, xla.top_logprobs, rtol=1e-6, atol=4e-6)
        assert (own.token != np.asarray(xla.token)).sum() <= 1


# ---- the bits of a row


@pytest.mark.parametrize("V", SIZES)
def test_every_row_alone_has_the_bits_it_has_among_others(built: Native, V: int) -> None:
    batch = Batch(7, V)
    together = drawn(built, batch)
    for i in range(len(batch.logits)):
        assert same_bits(picked(drawn(built, batch.take([i])), [0]), picked(together, [i]))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_neither_place_nor_neighbours_nor_threads_touch_a_row(built: Native, threads: int) -> None:
    batch = Batch(8, 20_011, 24)
    together = drawn(built, batch)
    built.share_between(threads)
    try:
        for seed in range(5):
            rng = np.random.default_rng(seed)
            places, live = rng.permutation(24), rng.random(24) < 0.6
            moved = drawn(built, batch.take(places), live)
            assert same_bits(picked(moved, live), picked(together, places[live]))
    finally:
        built.share_between(1)


def test_rows_that_are_not_live_are_not_read_and_come_out_as_zeros(built: Native) -> None:
    batch = Batch(9, 3001)
    clean, kind = drawn(built, batch), np.arange(len(batch.logits)) % 3
    live = kind == 1
    batch.logits[kind == 0] = np.nan  # the others could be drawn from
    batch.bias[~live] = np.inf
    batch.counts[~live] = -1
    sampled = drawn(built, batch, live)
    assert same_bits(picked(sampled, live), picked(clean, live))
    assert not any(each[~live].any() for each in sampled)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 100, 3000])
def test_a_row_that_is_not_finite_says_so_and_touches_no_other(built: Native, bad: float, place: int) -> None:
    batch = Batch(10, 3001)
    clean = drawn(built, batch)
    batch.logits[::2, place] = bad
    sampled = drawn(built, batch)
    assert same_bits(picked(sampled, slice(1, None, 2)), picked(clean, slice(1, None, 2)))  # type: ignore[arg-type]
    assert not any(each[::2].any() for each in sampled)


def test_the_largest_and_smallest_floats_are_finite(built: Native) -> None:
    most = np.finfo(np.float32).max
    batch = Batch(11, 40, 8)
    for i, pair in enumerate([(most, most), (-most, -most), (most, -most), (1e-45, -1e-45)]):
        batch.logits[2 * i : 2 * i + 2] = np.tile(np.array(pair, np.float32), 20)
    batch.params = [SamplingParams(temperature=(1.0, 0.0)[i % 2], top_p=0.9) for i in range(8)]
    batch.bias[:] = 0
    sampled = drawn(built, batch)
    assert sampled.finite.all()
    assert (sampled.top_ids[:4] == np.arange(TOP)).all()
    assert (sampled.top_ids[4:6] == np.arange(0, 40, 2)).all()
    assert (sampled.token[1::2] == 0).all()
    assert (sampled.token % 2 == 0)[4:6].all()


# ---- the report alone


@pytest.mark.parametrize("V", SIZES)
def test_the_report_of_given_ids_has_the_bits_of_the_draws(built: Native, V: int) -> None:
    batch = Batch(12, V)
    live = np.arange(len(batch.logits)) % 4 != 2
    batch.logits[0, V // 2] = np.inf
    sampled = drawn(built, batch, live)
    reported = jitted(built.report)(batch.logits, sampled.token, live)
    assert same_bits(Reported(*map(np.asarray, reported)), sampled[1:])


def test_the_report_of_every_id_is_the_laws(built: Native) -> None:
    batch = Batch(13, 300, 4)
    for i, lp in enumerate(law.report(batch.logits.astype(np.float64))):
        repeated = np.repeat(batch.logits[i : i + 1], 300, axis=0)
        reported = jitted(built.report)(repeated, np.arange(300, dtype=np.int32), np.ones(300, bool))
        np.testing.assert_allclose(np.asarray(reported.logprob), lp, rtol=3e-7, atol=1e-6)


def test_an_id_out_of_range_is_not_followed(built: Native) -> None:
    batch = Batch(14, 30, 2)
    given = jitted(built.report)(batch.logits, np.array([-1, 2**31 - 1], np.int32), np.ones(2, bool))
    wanted = jitted(built.report)(batch.logits, np.array([0, 29], np.int32), np.ones(2, bool))
    assert same_bits([np.asarray(given.logprob)], [np.asarray(wanted.logprob)])


def test_arguments_that_do_not_fit_are_an_error_not_a_crash(built: Native) -> None:
    batch, live = Batch(15, 30, 2), jnp.ones(2, bool)
    logits, bias, counts = jnp.asarray(batch.logits), jnp.asarray(batch.bias), jnp.asarray(batch.counts)
    with pytest.raises(jax.errors.JaxRuntimeError, match="shapes are not"):
        built.draw(logits, bias[:, :29], counts, batch.rows(), live)
    with pytest.raises(jax.errors.JaxRuntimeError, match="shapes are not"):
        built.draw(logits, bias, counts, batch.take([0]).rows(), live)
    with pytest.raises(jax.errors.JaxRuntimeError, match="shapes are not"):
        built.report(logits, jnp.zeros(3, jnp.int32), live)


# ---- the stages, compiled for this CPU and for others whose instructions it has

SOURCE = """#include "draw.h"
using namespace gnomon;

static Parameters keyed(const uint32_t* key, float temperature = 1) {
  return {temperature, 1, 0, 0, false, false, false, key[0], key[1], key[2], key[3]};
}

extern "C" void words_of(const uint32_t* key, uint32_t first, uint32_t* x0, uint32_t* x1) {
  const TokenWords words(StepKey(keyed(key)), first);
  std::memcpy(x0, &words.x0, sizeof words.x0), std::memcpy(x1, &words.x1, sizeof words.x1);
}

extern "C" void noise_of(const uint32_t* x0, const uint32_t* x1, size_t n, float* g, float* most) {
  for (size_t i = 0; i < n; i += W) {
    Words a, b;
    std::memcpy(&a, x0 + i, sizeof a), std::memcpy(&b, x1 + i, sizeof b);
    const Lanes own = gumbel(a, b), bound = most_gumbel(a);
    std::memcpy(g + i, &own, sizeof own), std::memcpy(most + i, &bound, sizeof bound);
  }
}

extern "C" float most_noise() { return MOST_GUMBEL; }
extern "C" size_t width() { return W; }

// boundary, and how many of those at it; weights as they are, z in an array of n + W
extern "C" void kept_of(float* z, float* e, size_t n, double enough, float* above, size_t* tied) {
  const auto [low, high] = std::minmax_element(z, z + n);
  const Kept kept = nucleus(z, e, n, *low, *high, enough);
  *above = kept.above, *tied = kept.tied;
}

// the token where nothing is passed over, and where what cannot win is
extern "C" void tokens_of(const float* z, size_t V, float temperature, float above, size_t tied, const uint32_t* key,
                          int32_t* plain, int32_t* quick) {
  Ranked largest;
  rank(z, V, &largest, 1);
  float best = -INFINITE;
  size_t left = tied;
  for (size_t v = 0; v < V; v++) {
    if (!(z[v] > above) && !(z[v] == above && left > 0 && left--)) continue;
    const TokenWords words(StepKey(keyed(key)), uint32_t(v));
    const Lanes score = (everywhere(z[v]) - largest.value) / temperature + gumbel(words.x0, words.x1);
    if (score[0] > best) best = score[0], *plain = int32_t(v);
  }
  *quick = draw(z, V, largest, {above, tied}, keyed(key, temperature));
}

// the first step of this seed at which two of the first ids, a and b, have the same score, where their z are these
extern "C" uint32_t tie_of(float z_of_a, float z_of_b, uint32_t seed, uint32_t* a, uint32_t* b) {
  const float largest = std::max(z_of_a, z_of_b), s_of_a = z_of_a - largest, s_of_b = z_of_b - largest;
  for (uint32_t step = 0;; step++) {
    const TokenWords words(StepKey({1, 1, 0, 0, false, false, false, 0, seed, 0, step}), 0);
    const Lanes g = gumbel(words.x0, words.x1);
    for (*a = 0; *a < W; ++*a)
      for (*b = *a + 1; *b < W; ++*b)
        if (s_of_a + g[*a] == s_of_b + g[*b]) return step;
  }
}
"""
X86 = platform.machine() in ("x86_64", "AMD64")
OTHERS = ("-march=haswell", "-march=x86-64") if X86 else ()  # any x86 CPU of the last ten years has those
SLOWER = [pytest.param(flag, marks=pytest.mark.slow) for flag in OTHERS]


@pytest.fixture(scope="module", params=[native.CPU_FLAG, *SLOWER])
def stages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("draw")
    (folder / "stages.cc").write_text(SOURCE)
    flags = [request.param if flag == native.CPU_FLAG else flag for flag in native.COMPILER_FLAGS]
    files = [str(folder / name) for name in ("stages.so", "stages.cc")]
    subprocess.run([str(COMPILER), *flags, f"-I{native.SOURCES}", "-o", *files], check=True)
    library = ctypes.CDLL(files[0])
    library.most_noise.restype, library.width.restype = ctypes.c_float, ctypes.c_size_t
    library.tie_of.restype = ctypes.c_uint32
    return library


def pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return array.ctypes.data_as(ctypes.c_void_p)


def key_words(key: DrawKey) -> NDArray[np.uint32]:
    s = key.seed % 2**64
    return np.array([s >> 32, s % 2**32, key.candidate, key.step], np.uint32)


@given(seed=st.integers(-(2**63), 2**64 - 1), candidate=st.integers(0, 2**32 - 1), step=st.integers(0, 2**32 - 1))
def test_the_random_words_are_the_references_exactly(stages: ctypes.CDLL, seed: int, candidate: int, step: int) -> None:
    key, W = DrawKey(seed, candidate, step), stages.width()
    for first in (0, 16, 50256, 2**31, 2**32 - W):
        x0, x1 = np.empty((2, W), np.uint32)
        stages.words_of(pointer(key_words(key)), ctypes.c_uint32(first), pointer(x0), pointer(x1))
        wanted = token_words(key, first + np.arange(W))
        assert (x0 == wanted[0]).all()
        assert (x1 == wanted[1]).all()


def noise(stages: ctypes.CDLL, x0: NDArray[np.uint32], x1: NDArray[np.uint32]) -> tuple[F32, F32]:
    g, most = np.empty((2, len(x0)), np.float32)
    stages.noise_of(pointer(x0), pointer(x1), ctypes.c_size_t(len(x0)), pointer(g), pointer(most))
    return g, most


def words(seed: int = 1, count: int = 2**18) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Random ones; both ends of every power of two, a step around; all ones, all zeros, and the middle."""
    rng = np.random.default_rng(seed)
    x0, x1 = rng.integers(0, 2**32, (2, count), dtype=np.uint32)
    x0[: count // 4] >>= rng.integers(0, 32, count // 4).astype(np.uint32)  # small ones, of which large noise is made
    ends = np.array([2**k + d for k in range(32) for d in (-2, -1, 0, 1, 2)] + [0, -1, -2], np.int64).astype(np.uint32)
    x0[-2 * len(ends) :] = np.concatenate([ends, ends])
    x1[-2 * len(ends) :] = np.repeat(np.array([0, 2**32 - 1], np.uint32), len(ends))
    return x0, x1


def test_the_noise_is_the_references_to_a_few_units_in_the_last_place(stages: ctypes.CDLL) -> None:
    x0, x1 = words()
    g, _ = noise(stages, x0, x1)
    exact = law.gumbel(x0, x1)
    assert np.abs(g - exact).max() < 4e-6
    assert (np.abs(g - exact) / np.maximum(1, np.abs(exact))).max() < 4e-7
    assert (g.min(), g.max()) == pytest.approx((exact.min(), exact.max()), rel=1e-6)


def test_no_noise_is_more_than_it_is_taken_for_before_it_is_computed(stages: ctypes.CDLL) -> None:
    """That the bound is also near: an id of ordinary noise is not looked at in vain but once in a while."""
    for seed in range(8):
        x0, x1 = words(seed)
        g, most = noise(stages, x0, x1)
        assert (g < most).all()
        assert (g < stages.most_noise()).all()
        assert (most - g)[(x0 > 2**10) & (x0 < 2**24)].max() < 0.07


def token(
    stages: ctypes.CDLL, z: F32, temperature: float, above: np.float32, tied: int, key: DrawKey
) -> tuple[int, int]:
    """That of the largest score of all, and the one that is drawn."""
    plain, quick = np.full(2, -1, np.int32)[:, None]
    stages.tokens_of(
        pointer(z), ctypes.c_size_t(len(z)), ctypes.c_float(temperature), ctypes.c_float(float(above)),
        ctypes.c_size_t(tied), pointer(key_words(key)), pointer(plain), pointer(quick),
    )  # fmt: skip
    return int(plain[0]), int(quick[0])


@pytest.mark.parametrize("temperature", [2.0**-100, 0.05, 0.8, 30])
def test_what_is_passed_over_could_not_have_won(stages: ctypes.CDLL, temperature: float) -> None:
    rng = np.random.default_rng(3)
    for i in range(200):
        V = int(rng.choice([1, 5, 17, 400]))
        z = logits(rng, V, i % 4)
        above = np.float32(-np.inf) if i % 3 else np.sort(z)[V // 2]
        tied = 0 if i % 3 else int(rng.integers(0, 1 + (z == above).sum()))
        tied = max(tied, 1) if above == z.max() else tied
        plain, quick = token(stages, z, temperature, above, tied, DrawKey(int(rng.integers(2**63)), 0, i))
        assert plain == quick


@pytest.mark.parametrize("z", [(0, 0), (-1, 0), (0, -1)])
def test_of_equal_scores_the_lower_id_wins(stages: ctypes.CDLL, z: tuple[float, float]) -> None:
    """Whichever of the two is looked at first. Two scores are the same once in some millions."""
    a, b = np.empty((2, 1), np.uint32)
    step = stages.tie_of(*map(ctypes.c_float, z), ctypes.c_uint32(9), pointer(a), pointer(b))
    values = np.full(stages.width(), -1e9, np.float32)
    values[[int(a[0]), int(b[0])]] = z
    assert token(stages, values, 1, np.float32(-np.inf), 0, DrawKey(9, 0, step)) == (a[0], a[0])


def kept(stages: ctypes.CDLL, z: F32, e: F32, top_p: float) -> NDArray[np.bool_]:
    n, room = len(z), stages.width()
    left, weights = np.full((2, n + room), np.nan, np.float32)
    left[:n], weights[:n] = z, e
    above, tied = np.empty(1, np.float32), np.empty(1, np.uintp)
    enough = ctypes.c_double(float(np.float32(top_p)) * float(e.astype(np.float64).sum()))
    stages.kept_of(pointer(left), pointer(weights), ctypes.c_size_t(n), enough, pointer(above), pointer(tied))
    at_boundary = z == above[0]
    return (z > above[0]) | (at_boundary & (np.cumsum(at_boundary) <= int(tied[0])))


@pytest.mark.parametrize(("ids", "top_p", "expected"), [
    (4, 0.25, 1), (4, 0.5, 2), (4, 0.75, 3), (4, 0.5 + 2**-20, 3), (8, 0.125, 1), (8, 0.5, 4), (8, 0.5 - 2**-20, 4),
    (1024, 0.5, 512), (1024, 0.0, 1), (1, 0.5, 1),
])  # fmt: skip
def test_a_mass_of_just_top_p_before_an_id_leaves_it_out(
    stages: ctypes.CDLL, ids: int, top_p: float, expected: int
) -> None:
    ones, zeros = np.ones(ids, np.float32), np.zeros(ids, np.float32)
    assert kept(stages, zeros, ones, top_p).tolist() == [i < expected for i in range(ids)]
    zeros[::2] = -0.0  # equal to the others
    assert kept(stages, zeros, ones, top_p).tolist() == [i < expected for i in range(ids)]


@pytest.mark.parametrize(("top_p", "expected"), [(0.5, 1), (0.5 + 2**-20, 2), (0.75, 2), (0.875, 3), (0.9, 4)])
def test_smaller_values_are_kept_while_the_mass_before_them_is_below_top_p(
    stages: ctypes.CDLL, top_p: float, expected: int
) -> None:
    """Weights of 1/2, 1/4, 1/8, 1/16, 1/16 in an order that is not theirs: sums without rounding."""
    order = np.array([3, 0, 4, 2, 1])
    z, e = -order.astype(np.float32), np.array([8, 4, 2, 1, 1], np.float32)[order]
    assert sorted(order[kept(stages, z, e, top_p)]) == list(range(expected))


@pytest.mark.parametrize("V", [1, 16, 97, 2000])
@pytest.mark.parametrize("kind", range(4))
def test_what_is_kept_is_what_the_reference_keeps(stages: ctypes.CDLL, V: int, kind: int) -> None:
    """In float64 the reference sums the same weights; one id further or nearer only where a sum meets top_p."""
    rng = np.random.default_rng(4)
    for top_p in (0.0, 1e-6, 0.1, 0.5, 0.9, 0.999, 1 - 2**-24):
        z = logits(rng, V, kind)
        s = law.temper(z.astype(np.float64), 1.3)
        own, wanted = kept(stages, z, np.exp(s).astype(np.float32), top_p), law.nucleus(z.astype(np.float64), s, top_p)
        order = np.argsort(-z.astype(np.float64), kind="stable")
        assert own[order].tolist() == sorted(own, reverse=True)  # the first ones of that order
        mass_before = np.concatenate([[0], np.cumsum(np.exp(s)[order])]) / np.exp(s).sum()
        between = sorted((int(own.sum()), int(wanted.sum())))
        assert all(abs(mass_before[j] - top_p) < 1e-6 for j in range(between[0], between[1]))


def test_a_range_that_halves_hundreds_of_times_ends(stages: ctypes.CDLL) -> None:
    """Powers of two from the smallest float to the largest: halving takes off one of them at a time."""
    powers = np.ldexp(np.float32(1), np.arange(-149, 128)).astype(np.float32)
    z = np.concatenate([powers, -powers, [0, -0.0]]).astype(np.float32)
    e = np.ones_like(z)
    order = np.argsort(-z.astype(np.float64), kind="stable")
    for count in (1, 2, 277, 278, 279, 280, len(z)):
        own = kept(stages, z, e, (count - 0.5) / len(z))
        assert sorted(np.flatnonzero(own)) == sorted(order[:count])
