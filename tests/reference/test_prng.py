"""The random function: known answers of Random123, the law's own, and a second implementation in Python's integers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gnomon.reference.prng import DrawKey, step_key, threefry2x32, token_words

Pair = tuple[int, int]
WORD = 2**32
ONES = WORD - 1


def u32(*words: int) -> NDArray[np.uint32]:
    return np.array(words, np.uint32)


def encrypted(key: Pair, counter: Pair) -> Pair:
    x0, x1 = threefry2x32((u32(key[0]), u32(key[1])), (u32(counter[0]), u32(counter[1])))
    assert x0.dtype == x1.dtype == np.uint32
    return int(x0[0]), int(x1[0])


def by_the_paper(key: Pair, counter: Pair) -> Pair:
    """Threefry-2x32-20 of the paper's section 3.3: 20 rounds of a mix, a subkey before the first and after each 4.

    The subkeys are s-th rotations of (k0, k1, k0 ^ k1 ^ C240's low word), with s added to the last word.
    """
    extended = [key[0], key[1], 0x1BD11BDA ^ key[0] ^ key[1]]
    state = list(counter)
    distances = [13, 15, 26, 6, 17, 29, 16, 24]
    for number in range(20):
        if number % 4 == 0:
            s = number // 4
            state = [(state[0] + extended[s % 3]) % WORD, (state[1] + extended[(s + 1) % 3] + s) % WORD]
        total, r = (state[0] + state[1]) % WORD, distances[number % 8]
        turned = (state[1] * 2**r) % WORD + state[1] // 2 ** (32 - r)
        state = [total, turned ^ total]
    return (state[0] + extended[5 % 3]) % WORD, (state[1] + extended[6 % 3] + 5) % WORD


KNOWN = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((ONES, ONES), (ONES, ONES), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("key", "counter", "answer"), KNOWN)
def test_threefry_gives_the_known_answers_of_random123(key: Pair, counter: Pair, answer: Pair) -> None:
    assert encrypted(key, counter) == answer
    assert by_the_paper(key, counter) == answer


def test_threefry_is_the_papers_on_random_inputs() -> None:
    """2,000 inputs; a wrong function agrees on one by chance with odds of 2⁻⁶⁴."""
    rng = random.Random(1)
    inputs = [[rng.getrandbits(32) for _ in range(4)] for _ in range(2000)]
    k0, k1, c0, c1 = (u32(*column) for column in zip(*inputs, strict=True))
    x0, x1 = threefry2x32((k0, k1), (c0, c1))
    for i, (a, b, c, d) in enumerate(inputs):
        assert (int(x0[i]), int(x1[i])) == by_the_paper((a, b), (c, d))


def test_threefry_does_not_change_its_arguments() -> None:
    arrays = [u32(1, 2), u32(3, 4), u32(5, 6), u32(7, 8)]
    before = [array.copy() for array in arrays]
    threefry2x32((arrays[0], arrays[1]), (arrays[2], arrays[3]))
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_key1_and_words_are_those_of_the_law() -> None:
    k0, k1 = step_key(DrawKey(-1, 2, 3))
    assert (int(k0[0]), int(k1[0])) == (0xD3DA3AC7, 0x40BA5D18)
    x0, x1 = token_words(DrawKey(-1, 2, 3), np.array([50256]))
    assert (int(x0[0]), int(x1[0])) == (0x551BC202, 0x844C86ED)


def chain_by_the_paper(seed: int, candidate: int, step: int, v: int) -> Pair:
    s = seed % 2**64
    return by_the_paper(by_the_paper((s >> 32, s & ONES), (candidate, step)), (v, 0))


def test_token_words_are_two_threefrys_seed_then_candidate_and_step_then_id() -> None:
    """1,000 random quadruples, every id among 5; odds of a chance agreement 2⁻⁶⁴ each."""
    rng = random.Random(2)
    for _ in range(200):
        seed = rng.randrange(-(2**63), 2**63)
        candidate, step = rng.randrange(2048), rng.randrange(10_000)
        ids = [rng.randrange(200_000) for _ in range(5)]
        x0, x1 = token_words(DrawKey(seed, candidate, step), np.array(ids))
        for i, v in enumerate(ids):
            assert (int(x0[i]), int(x1[i])) == chain_by_the_paper(seed, candidate, step, v)


def test_the_counter_is_candidate_then_step_and_not_the_other_way_round() -> None:
    first, second = step_key(DrawKey(5, 1, 2)), step_key(DrawKey(5, 2, 1))
    assert (int(first[0][0]), int(first[1][0])) == by_the_paper((0, 5), (1, 2))
    assert int(first[0][0]) != int(second[0][0])


def test_every_bit_of_the_seed_counts() -> None:
    keys = {
        tuple(int(half[0]) for half in step_key(DrawKey(seed, 0, 0))) for seed in [0, *(1 << bit for bit in range(64))]
    }
    assert len(keys) == 65


def test_a_negative_seed_is_its_value_modulo_two_to_the_64() -> None:
    for seed in (-1, -2, -(2**63), -(2**32), -12345678901234567):
        for half, other in zip(step_key(DrawKey(seed, 1, 2)), step_key(DrawKey(seed + 2**64, 1, 2)), strict=True):
            np.testing.assert_array_equal(half, other)
    assert int(step_key(DrawKey(-1, 0, 0))[0][0]) == by_the_paper((ONES, ONES), (0, 0))[0]
    assert int(step_key(DrawKey(-1, 0, 0))[0][0]) != int(step_key(DrawKey(1, 0, 0))[0][0])


def test_choice_1_of_seed_1_is_not_choice_0_of_seed_2() -> None:
    """And no (seed, candidate, step) of a small grid shares its key with another; chance: about 2⁻⁴⁵."""
    grid = [(seed, c, t) for seed in range(-5, 6) for c in range(8) for t in range(8)]
    keys = {tuple(int(half[0]) for half in step_key(DrawKey(*point))) for point in grid}
    assert len(keys) == len(grid)


def test_words_are_a_pure_function_and_do_not_depend_on_the_vectors_length_or_order() -> None:
    ids = np.arange(1000)
    x0, x1 = token_words(DrawKey(9, 3, 4), ids)
    again = token_words(DrawKey(9, 3, 4), ids)
    np.testing.assert_array_equal(x0, again[0])
    np.testing.assert_array_equal(x1, again[1])
    for some in (ids[:1], ids[:17], ids[::-1], ids[500:501], ids[::7], np.array([3, 3, 3])):
        y0, y1 = token_words(DrawKey(9, 3, 4), some)
        np.testing.assert_array_equal(y0, x0[some])
        np.testing.assert_array_equal(y1, x1[some])


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint32])
def test_words_do_not_depend_on_the_ids_dtype(dtype: type[np.integer[Any]]) -> None:
    got, want = (
        token_words(DrawKey(1, 0, 0), np.arange(300, dtype=dtype)),
        token_words(DrawKey(1, 0, 0), np.arange(300)),
    )
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])
    assert got[0].dtype == got[1].dtype == np.uint32


def test_keys_and_counters_broadcast() -> None:
    keys = u32(1, 2, 3)[:, None], u32(4, 5, 6)[:, None]
    counters = u32(7, 8, 9, 10)[None, :], u32(0, 0, 0, 0)[None, :]
    x0, x1 = threefry2x32(keys, counters)
    assert x0.shape == x1.shape == (3, 4)
    for i in range(3):
        for j in range(4):
            assert (int(x0[i, j]), int(x1[i, j])) == by_the_paper((1 + i, 4 + i), (7 + j, 0))


def test_bits_are_balanced() -> None:
    """Each of 64 bits over 2¹⁶ ids is 1 within 6 standard deviations of half.

    One fair bit fails with odds 2·10⁻⁹, any of 64 with 1.3·10⁻⁷.
    """
    x0, x1 = token_words(DrawKey(123, 0, 0), np.arange(2**16))
    for word in (x0, x1):
        for bit in range(32):
            assert abs(int(((word >> np.uint32(bit)) & np.uint32(1)).sum()) - 2**15) < 6 * 2**7


def test_jax_arrays_give_the_same_bits_eagerly_and_compiled() -> None:
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    rng = np.random.default_rng(4)
    arrays = [rng.integers(0, WORD, size=(3, 257), dtype=np.uint32) for _ in range(4)]
    arrays[0][0, :3] = [0, ONES, 2**31]
    want = threefry2x32((arrays[0], arrays[1]), (arrays[2], arrays[3]))

    def run(a: Any, b: Any, c: Any, d: Any) -> Any:
        return threefry2x32((a, b), (c, d))

    for function in (run, jax.jit(run)):
        got = function(*(jnp.asarray(array) for array in arrays))
        for half, wanted in zip(got, want, strict=True):
            assert half.dtype == jnp.uint32
            np.testing.assert_array_equal(np.asarray(half), wanted)


def test_jax_scalars_give_the_laws_words_inside_a_compiled_chain() -> None:
    jax = pytest.importorskip("jax")
    jnp = jax.numpy

    def chain(seed_high: Any, seed_low: Any, candidate: Any, step: Any, v: Any) -> Any:
        return threefry2x32(threefry2x32((seed_high, seed_low), (candidate, step)), (v, jnp.zeros_like(v)))

    x0, x1 = jax.jit(chain)(*(jnp.uint32(word) for word in (ONES, ONES, 2, 3, 50256)))
    assert (int(x0), int(x1)) == (0x551BC202, 0x844C86ED)
