"""Section 4 of the law: of these numbers exactly these remain, stage by stage.

The probabilities are powers of two wherever a boundary is at stake, so that every sum is exact. The statistical tests
use fixed seeds: they pass or fail for ever; the odds in their docstrings are those with which a right sampler would
have failed on fresh seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gnomon.reference.arrays import F64
from gnomon.reference.prng import DrawKey, step_key, threefry2x32, token_words
from gnomon.reference.sampler import (
    SamplingParams,
    add_bias,
    draw,
    greedy,
    gumbel,
    nucleus,
    penalize,
    report,
    sample,
    temper,
    trace_draw,
)

LN2 = math.log(2)


def f64(*values: float) -> F64:
    return np.array(values, np.float64)


def halves(*powers: int) -> F64:
    """Logits whose probabilities are 2⁻ᵖ."""
    return np.array(powers) * -LN2


def none(logits: F64) -> NDArray[np.int64]:
    return np.zeros(len(logits), np.int64)


def kept_ids(z: F64, top_p: float, temperature: float = 1.0) -> list[int]:
    return np.flatnonzero(nucleus(z, temper(z, temperature), top_p)).tolist()


def token(logits: F64, params: SamplingParams, seed: int = 0, candidate: int = 0, step: int = 0) -> int:
    return sample(logits, none(logits), params, DrawKey(seed, candidate, step))[0]


# ---- 1. report


def test_report_is_the_log_of_the_softmax() -> None:
    np.testing.assert_allclose(report(halves(1, 2, 3, 3)), halves(1, 2, 3, 3), rtol=0, atol=1e-15)
    np.testing.assert_allclose(report(f64(0, math.log(3))), [math.log(0.25), math.log(0.75)], rtol=0, atol=1e-15)


def test_report_does_not_overflow_and_does_not_depend_on_a_common_shift() -> None:
    np.testing.assert_allclose(report(f64(1000, 1000)), [-LN2, -LN2], rtol=0, atol=1e-13)
    np.testing.assert_allclose(report(f64(-1000, -1000)), [-LN2, -LN2], rtol=0, atol=1e-13)
    np.testing.assert_allclose(report(f64(0, -5000)), [0, -5000], rtol=0, atol=1e-9)


def test_report_takes_rows() -> None:
    rows = np.stack([halves(1, 1), halves(1, 2) + 5])
    np.testing.assert_array_equal(report(rows), np.stack([report(rows[0]), report(rows[1])]))


def test_reported_logprobs_are_raw_whatever_the_sampling() -> None:
    logits, counts = f64(1, 0.5, -2, 0.25), np.array([3, 0, 1, 0])
    for params in (
        SamplingParams(temperature=0.3),
        SamplingParams(temperature=0),
        SamplingParams(top_p=0.1),
        SamplingParams(frequency_penalty=2, presence_penalty=-2),
        SamplingParams(logit_bias={0: -100, 3: 100}),
        SamplingParams(temperature=2, top_p=0, frequency_penalty=1, presence_penalty=1, logit_bias={1: 7}),
    ):
        np.testing.assert_array_equal(sample(logits, counts, params, DrawKey(5, 1, 2))[1], report(logits))
        np.testing.assert_array_equal(trace_draw(logits, counts, params, DrawKey(5, 1, 2)).logprobs, report(logits))


# ---- 2. bias


def test_bias_is_plain_addition_to_the_named_ids_only() -> None:
    logits = f64(1, 2, 3, 4)
    np.testing.assert_array_equal(add_bias(logits, {0: 0.5, 3: -4.25}), [1.5, 2, 3, -0.25])
    np.testing.assert_array_equal(add_bias(logits, {}), logits)
    np.testing.assert_array_equal(add_bias(logits, None), logits)
    np.testing.assert_array_equal(logits, [1, 2, 3, 4])


def test_a_bias_of_minus_100_is_minus_100_and_not_never() -> None:
    logits = f64(150, 0)
    np.testing.assert_array_equal(add_bias(logits, {0: -100}), [50, 0])
    assert token(logits, SamplingParams(temperature=0, logit_bias={0: -100})) == 0
    assert token(logits, SamplingParams(logit_bias={0: -100})) == 0


def test_an_equal_bias_on_every_id_changes_no_draw() -> None:
    logits = f64(1, 0.5, 0.25)
    everything = SamplingParams(logit_bias=dict.fromkeys(range(3), 64.0))
    assert [token(logits, everything, s) for s in range(50)] == [token(logits, SamplingParams(), s) for s in range(50)]


def test_bias_applies_to_an_end_of_sequence_id_too() -> None:
    params = SamplingParams(temperature=0, end_ids=frozenset({2}), logit_bias={2: 10})
    assert token(f64(1, 0, 0), params) == 2
    assert token(f64(0, 0, 5), replace(params, logit_bias={2: -10})) == 0


# ---- 3. penalties


def test_frequency_counts_each_time_and_presence_once() -> None:
    z, counts = f64(1, 1, 1), np.array([0, 1, 3])
    np.testing.assert_array_equal(penalize(z, counts, 0.5, 0), [1, 0.5, -0.5])
    np.testing.assert_array_equal(penalize(z, counts, 0, 0.5), [1, 0.5, 0.5])
    np.testing.assert_array_equal(penalize(z, counts, 0.5, 0.25), [1, 0.25, -0.75])


def test_negative_penalties_reward() -> None:
    np.testing.assert_array_equal(penalize(f64(0, 0, 0), np.array([0, 1, 3]), -0.5, -0.25), [0, 0.75, 1.75])


def test_penalties_of_zero_and_counts_of_zero_change_nothing() -> None:
    z = f64(1.5, -2)
    np.testing.assert_array_equal(penalize(z, np.array([9, 1]), 0, 0), z)
    np.testing.assert_array_equal(penalize(z, np.array([0, 0]), 2, 2), z)


def test_penalties_see_only_the_counts_of_sampled_tokens_they_are_given() -> None:
    """`counts` is all that stages see: an id outside it is not penalised, at temperature 0 neither."""
    params = SamplingParams(temperature=0, frequency_penalty=1, presence_penalty=1)
    logits = f64(2, 1, 0.5)
    assert sample(logits, np.array([0, 0, 0]), params, DrawKey(0, 0, 0))[0] == 0
    assert sample(logits, np.array([1, 0, 0]), params, DrawKey(0, 0, 1))[0] == 1
    assert sample(logits, np.array([1, 1, 0]), params, DrawKey(0, 0, 2))[0] == 2
    assert sample(logits, np.array([1, 1, 1]), params, DrawKey(0, 0, 3))[0] == 0


# ---- 4. greedy


def test_greedy_takes_the_largest_and_the_lowest_id_on_a_tie() -> None:
    assert greedy(f64(0, 3, 2)) == 1
    assert greedy(f64(1, 3, 3, 3)) == 1
    assert greedy(f64(-1, -1)) == 0
    assert greedy(f64(7)) == 0


def test_temperature_zero_is_greedy_on_biased_and_penalised_logits() -> None:
    logits, counts = f64(3, 2, 1), np.array([2, 0, 0])
    assert sample(logits, counts, SamplingParams(temperature=0), DrawKey(0, 0, 0))[0] == 0
    assert sample(logits, counts, SamplingParams(temperature=0, frequency_penalty=1), DrawKey(0, 0, 0))[0] == 1
    assert sample(logits, counts, SamplingParams(temperature=0, presence_penalty=2), DrawKey(0, 0, 0))[0] == 1
    assert sample(logits, counts, SamplingParams(temperature=0, logit_bias={2: 2.5}), DrawKey(0, 0, 0))[0] == 2


def test_at_temperature_zero_nothing_below_is_used() -> None:
    logits = f64(0.5, 0.75, 0.75)
    for seed in range(20):
        for top_p in (0.0, 0.5, 1.0):
            drawn = trace_draw(
                logits, none(logits), SamplingParams(temperature=0, top_p=top_p), DrawKey(seed, seed, seed)
            )
            assert drawn.token == 1
            assert (drawn.scaled, drawn.kept, drawn.noise, drawn.score) == (None, None, None, None)


def test_a_negative_zero_temperature_is_greedy() -> None:
    assert {token(f64(0, 0.1), SamplingParams(temperature=-0.0), seed) for seed in range(30)} == {1}


# ---- 5. temperature


def test_temper_divides_the_distances_from_the_maximum() -> None:
    np.testing.assert_array_equal(temper(f64(3, 1, 2), 0.5), [0, -4, -2])
    np.testing.assert_array_equal(temper(f64(3, 1, 2), 2), [0, -1, -0.5])
    np.testing.assert_array_equal(temper(f64(3, 1, 2), 1), [0, -2, -1])


def test_every_maximum_is_exactly_0_at_every_temperature() -> None:
    for temperature in (5e-324, 1e-300, 2.0**-100, 0.7, 2):
        s = temper(f64(1.1, 1.1, 0, 1.1), temperature)
        assert s[[0, 1, 3]].tolist() == [0, 0, 0]
        assert s[2] < 0


def test_a_tiny_temperature_has_no_floor_and_minus_infinity_is_never() -> None:
    assert temper(f64(0, -1), 5e-324).tolist() == [0, -np.inf]
    assert temper(f64(0, -1), 1e-300).tolist() == [0, -1 / 1e-300]
    logits = f64(1, 1 + 1e-9, 1)
    for temperature in (5e-324, 1e-300, 1e-20):
        assert {token(logits, SamplingParams(temperature=temperature), seed) for seed in range(100)} == {1}
        assert {token(logits, SamplingParams(temperature=temperature, top_p=0.5), s) for s in range(100)} == {1}


def test_a_tiny_temperature_still_draws_among_equal_maxima() -> None:
    """Unlike greedy: both of two equal ids come up in 100 draws, or chance (2·2⁻¹⁰⁰) is at work."""
    assert {token(f64(0, 5, 5), SamplingParams(temperature=5e-324), seed) for seed in range(100)} == {1, 2}


# ---- 6. nucleus


def test_top_p_zero_keeps_one_token() -> None:
    assert kept_ids(halves(2, 1, 3, 3), 0.0) == [1]
    assert kept_ids(f64(0, 0, 0), 0.0) == [0]
    assert kept_ids(f64(0, 0, 0), -0.0) == [0]


def test_top_p_zero_is_greedy() -> None:
    rng = np.random.default_rng(0)
    for seed in range(50):
        logits = rng.integers(-2, 3, size=8).astype(np.float64)
        assert token(logits, SamplingParams(top_p=0), seed) == token(logits, SamplingParams(temperature=0), seed)


def test_top_p_one_skips_the_stage_and_keeps_all_even_those_without_mass() -> None:
    z = f64(0, -5000, -1e300)
    assert kept_ids(z, 1.0) == [0, 1, 2]
    assert kept_ids(z, math.nextafter(1, 0)) == [0]
    assert trace_draw(z, none(z), SamplingParams(temperature=5e-324), DrawKey(0, 0, 0)).kept is not None


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.0, [2]),
        (5e-324, [2]),
        (0.4999999, [2]),
        (0.5, [2]),  # the mass before rank 1 is exactly 0.5, and not below it
        (0.5000001, [0, 2]),
        (0.75, [0, 2]),
        (0.7500001, [0, 1, 2]),
        (0.875, [0, 1, 2]),
        (0.8750001, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_the_token_that_crosses_top_p_is_kept_and_the_one_after_equality_is_not(top_p: float, kept: list[int]) -> None:
    """Probabilities 1/4, 1/8, 1/2, 1/8: the masses before the ranks are 0, 1/2, 3/4, 7/8."""
    assert kept_ids(halves(2, 3, 1, 3), top_p) == kept


def test_equal_logits_are_ranked_by_id() -> None:
    assert kept_ids(f64(0, 0, 0, 0), 0.5) == [0, 1]
    assert kept_ids(halves(2, 1, 2), 0.6) == [0, 1]
    assert kept_ids(halves(2, 2, 1), 0.5) == [2]


@pytest.mark.parametrize("power", range(1, 14))
def test_of_equal_ids_exactly_the_share_top_p_is_kept(power: int) -> None:
    """2ᵏ equal logits: every q is 2⁻ᵏ and every mass exact, so top_p = j/2ᵏ keeps the j lowest ids, not j + 1."""
    size = 2**power
    for j in {1, 2, 3, size // 3, size // 2, size - 1}:
        if 0 < j < size:
            assert kept_ids(np.zeros(size), j / size) == list(range(j))


def test_the_order_is_that_of_z_even_where_temperature_makes_s_equal() -> None:
    """T = 5·10⁻³²⁴ sends all but the maximum to −∞: their ranks are still by z, and without mass none is kept."""
    z = f64(1, 3, 2)
    assert kept_ids(z, 0.999, 5e-324) == [1]
    tiny = f64(5e-324, 0, 0)  # halved distances vanish: s is equal for all, z is not
    assert kept_ids(tiny[::-1].copy(), 0.3, 2) == [2]
    assert kept_ids(tiny, 0.3, 2) == [0]


def test_the_mass_is_that_of_the_tempered_probabilities() -> None:
    z = halves(1, 2, 2)  # at T = 1/2: 2/3, 1/6, 1/6; at T = 2: 0.414, 0.293, 0.293
    assert kept_ids(z, 0.6) == [0, 1]
    assert kept_ids(z, 0.6, 0.5) == [0]
    assert kept_ids(z, 0.71, 2) == [0, 1, 2]


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=12), st.floats(0, 0.999), st.floats(0.05, 2))
def test_the_nucleus_is_the_shortest_prefix_that_reaches_top_p(logits: list[float], top_p: float, T: float) -> None:
    """Every kept set is a prefix of the ranking; without its last token the mass is below top_p, with it it is not.

    A wrong rule (one more, one fewer) is found by the first example with two ids of comparable mass.
    """
    z = np.array(logits)
    s = temper(z, T)
    q = np.exp(s) / np.exp(s).sum()
    ranking = sorted(range(len(z)), key=lambda v: (-z[v], v))
    kept = kept_ids(z, top_p, T)
    assert kept == sorted(ranking[: len(kept)])
    if len(kept) > 1:
        assert math.fsum(q[ranking[: len(kept) - 1]]) < top_p + 1e-12
    assert len(kept) == len(z) or math.fsum(q[kept]) >= top_p - 1e-12


# ---- 7. draw


def noise_of(x0: int, x1: int) -> float:
    return float(gumbel(np.array([x0], np.uint32), np.array([x1], np.uint32))[0])


ONES = 2**32 - 1


def test_gumbel_reaches_from_minus_3_81_to_45_06() -> None:
    """The smallest w is 2⁻⁶⁵: g = 65 ln 2 at its low end, −ln(65 ln 2) at its high end."""
    assert noise_of(0, 0) == pytest.approx(65 * LN2, abs=1e-12)
    assert noise_of(ONES, ONES) == pytest.approx(-math.log(65 * LN2), abs=1e-12)
    assert round(noise_of(0, 0), 2) == 45.05 or round(noise_of(0, 0), 2) == 45.06
    assert round(noise_of(ONES, ONES), 2) == -3.81
    assert -3.81 <= noise_of(ONES, ONES) < noise_of(0, 0) <= 45.06


def test_gumbel_is_continuous_where_the_complement_begins() -> None:
    below, above = noise_of(2**31 - 1, ONES), noise_of(2**31, 0)
    assert below == pytest.approx(-math.log(LN2), abs=1e-15)
    assert above == pytest.approx(-math.log(LN2), abs=1e-15)
    assert below >= above


def test_gumbel_falls_as_its_64_bits_rise() -> None:
    rng = np.random.default_rng(6)
    bits = np.unique(np.concatenate([
        rng.integers(0, 2**64, size=20_000, dtype=np.uint64),
        rng.integers(0, 2**20, size=5_000, dtype=np.uint64),
        np.uint64(2**64 - 1) - rng.integers(0, 2**20, size=5_000, dtype=np.uint64),
        np.uint64(2**63) + np.arange(2000, dtype=np.uint64),
        np.uint64(2**63) - np.arange(1, 2000, dtype=np.uint64),
    ]))  # fmt: skip
    g = gumbel((bits >> np.uint64(32)).astype(np.uint32), bits.astype(np.uint32))
    assert np.isfinite(g).all()
    assert np.isfinite(g.astype(np.float32)).all()
    assert (np.diff(g) <= 0).all()


def test_gumbel_uses_all_64_bits_at_both_ends() -> None:
    low = [noise_of(0, x1) for x1 in (0, 1, 2, 1000, 1001)]
    high = [noise_of(ONES, ONES - x1) for x1 in (0, 1, 2, 1000, 1001)]
    assert len(set(low)) == len(set(high)) == 5
    assert low == sorted(low, reverse=True)
    assert high == sorted(high)


def test_gumbel_of_the_laws_known_words() -> None:
    assert noise_of(0x551BC202, 0x844C86ED) == pytest.approx(0.90597369, abs=5e-9)


@pytest.mark.parametrize(
    ("x0", "x1"), [(1, 0), (0x40000000, 7), (0x7FFFFFFF, 5), (0x80000001, 9), (0xF0000000, 3), (0xFFFFFFFF, 0)]
)
def test_gumbel_is_minus_ln_of_minus_ln_of_one_minus_u(x0: int, x1: int) -> None:
    """u = (the 64 bits + 1/2)·2⁻⁶⁴; checked with the exact rational 1 − u."""
    one_minus_u = (2**65 - (2 * (x0 * 2**32 + x1) + 1)) / 2**65
    small_u = (2 * (x0 * 2**32 + x1) + 1) / 2**65
    exponential = -math.log1p(-small_u) if small_u < 0.25 else -math.log(one_minus_u)
    assert noise_of(x0, x1) == pytest.approx(-math.log(exponential), rel=1e-12)


def test_draw_takes_the_largest_sum_among_the_kept_and_the_lowest_id_on_a_tie() -> None:
    everything = np.array([True, True, True])
    assert draw(f64(0, -1, -2), f64(0, 2, 1), everything) == 1
    assert draw(f64(0, -1, -2), f64(0, 2, 1), np.array([True, False, True])) == 0
    assert draw(f64(0, -1, -2), f64(1, 2, 3), everything) == 0
    assert draw(f64(0, -1, -2), f64(1, 2, 3), np.array([False, True, True])) == 1


def test_a_token_not_kept_never_wins_however_lucky() -> None:
    assert draw(f64(-40, 0), f64(-3.8, 45), np.array([True, False])) == 0


def test_s_of_minus_infinity_never_wins() -> None:
    assert draw(f64(0, -np.inf), f64(-3.8, 45), np.array([True, True])) == 0


def test_the_noise_of_a_draw_belongs_to_seed_candidate_step_and_id_only() -> None:
    params = SamplingParams(temperature=0.5, top_p=0.9)
    one = trace_draw(f64(1, 2, 3), np.array([0, 1, 0]), params, DrawKey(-7, 3, 11))
    two = trace_draw(f64(-4, 0, 0, 9, 9), none(f64(0, 0, 0, 0, 0)), SamplingParams(), DrawKey(-7, 3, 11))
    assert one.noise is not None
    assert two.noise is not None
    np.testing.assert_array_equal(one.noise, two.noise[:3])
    np.testing.assert_array_equal(two.noise, gumbel(*token_words(DrawKey(-7, 3, 11), np.arange(5))))
    for seed, candidate, step in ((-8, 3, 11), (-7, 2, 11), (-7, 3, 10)):
        other = trace_draw(f64(1, 2, 3), none(f64(1, 2, 3)), params, DrawKey(seed, candidate, step))
        assert other.noise is not None
        assert (other.noise != one.noise).all()


# ---- the whole chain


def test_trace_keeps_every_stage_and_sample_is_its_end() -> None:
    rng = np.random.default_rng(8)
    for case in range(100):
        logits, counts = rng.normal(size=9) * 3, rng.integers(0, 3, size=9)
        params = SamplingParams(
            temperature=float(rng.choice([0, 0.3, 1, 2])),
            top_p=float(rng.choice([0, 0.4, 0.9, 1])),
            frequency_penalty=float(rng.uniform(-2, 2)),
            presence_penalty=float(rng.uniform(-2, 2)),
            logit_bias={2: 1.5, 5: -3.0},
        )
        drawn = trace_draw(logits, counts, params, DrawKey(case, 1, 2))
        chosen, logprobs = sample(logits, counts, params, DrawKey(case, 1, 2))
        assert chosen == drawn.token
        np.testing.assert_array_equal(logprobs, drawn.logprobs)
        np.testing.assert_array_equal(drawn.logits, logits)
        np.testing.assert_array_equal(drawn.biased, add_bias(logits, params.logit_bias))
        z = penalize(drawn.biased, counts, params.frequency_penalty, params.presence_penalty)
        np.testing.assert_array_equal(drawn.penalized, z)
        if params.temperature == 0:
            assert drawn.token == greedy(z)
            continue
        s = temper(z, params.temperature)
        assert drawn.scaled is not None
        assert drawn.kept is not None
        assert drawn.noise is not None
        assert drawn.score is not None
        np.testing.assert_array_equal(drawn.scaled, s)
        np.testing.assert_array_equal(drawn.kept, nucleus(z, s, params.top_p))
        np.testing.assert_array_equal(drawn.score, np.where(drawn.kept, s + drawn.noise, -np.inf))
        assert drawn.token == draw(s, drawn.noise, drawn.kept) == int(drawn.score.argmax())
        assert drawn.kept[drawn.token]


def test_the_margin_is_the_lead_over_the_runner_up() -> None:
    logits = f64(1, 3, 2.5)
    assert trace_draw(logits, none(logits), SamplingParams(temperature=0), DrawKey(0, 0, 0)).margin == 0.5
    assert trace_draw(f64(3, 3), none(f64(3, 3)), SamplingParams(temperature=0), DrawKey(0, 0, 0)).margin == 0
    drawn = trace_draw(logits, none(logits), SamplingParams(temperature=0.5), DrawKey(4, 0, 0))
    assert drawn.score is not None
    ordered = sorted(drawn.score, reverse=True)
    assert drawn.margin == ordered[0] - ordered[1] > 0


def test_the_margin_of_a_lone_token_is_infinite() -> None:
    assert trace_draw(f64(1), none(f64(1)), SamplingParams(temperature=0), DrawKey(0, 0, 0)).margin == math.inf
    assert trace_draw(f64(1), none(f64(1)), SamplingParams(), DrawKey(0, 0, 0)).margin == math.inf
    assert trace_draw(f64(1, 2), none(f64(1, 2)), SamplingParams(top_p=0), DrawKey(0, 0, 0)).margin == math.inf


def test_the_same_arguments_give_the_same_draw_and_leave_them_as_they_were() -> None:
    logits, counts = f64(0.5, 1, 1.5), np.array([1, 0, 2])
    params = SamplingParams(temperature=0.7, top_p=0.8, frequency_penalty=1, logit_bias={0: 1})
    first = [sample(logits, counts, params, DrawKey(s, 0, 0))[0] for s in range(30)]
    assert first == [sample(logits, counts, params, DrawKey(s, 0, 0))[0] for s in range(30)]
    np.testing.assert_array_equal(logits, [0.5, 1, 1.5])
    np.testing.assert_array_equal(counts, [1, 0, 2])


# ---- stages in another order


def run(stages: Sequence[Callable[[dict[str, F64]], None]], logits: F64) -> dict[str, F64]:
    """A chain over named vectors: `l` raw, `z` before and `s` after the temperature, `lp`, `kept` as 0 and 1."""
    state = {"l": logits, "z": logits.copy(), "s": logits - logits.max(), "kept": np.ones(len(logits))}
    for stage in stages:
        stage(state)
    return state


def outcome(state: dict[str, F64], noise: F64) -> int:
    return int(np.argmax(np.where(state["kept"] == 1, state["s"] + noise, -np.inf)))


def test_report_after_the_bias_would_report_another_number() -> None:
    logits, params = f64(0, 0), SamplingParams(logit_bias={0: 1})
    swapped = report(add_bias(logits, params.logit_bias))
    lawful = sample(logits, none(logits), params, DrawKey(0, 0, 0))[1]
    np.testing.assert_allclose(lawful, [-LN2, -LN2], rtol=0, atol=1e-15)
    assert abs(swapped[0] - lawful[0]) > 0.3


def test_penalties_before_the_bias_would_round_to_another_token() -> None:
    """Both add, so only rounding tells them apart: near 2⁵³, (l + 1) − 1 is 2⁵³ − 1 and (l − 1) + 1 is 2⁵³."""
    big = 2.0**53
    logits, counts = f64(big - 1, big), np.array([0, 1])
    params = SamplingParams(temperature=0, frequency_penalty=1, logit_bias={1: 1})
    lawful = trace_draw(logits, counts, params, DrawKey(0, 0, 0))
    swapped = add_bias(penalize(logits, counts, 1, 0), params.logit_bias)
    assert lawful.penalized.tolist() == [big - 1, big - 1]
    assert lawful.token == 0
    assert greedy(swapped) == 1


def test_presence_before_frequency_would_round_to_another_token() -> None:
    big = 2.0**53
    logits, counts = f64(big - 1, big), np.array([0, 1])
    params = SamplingParams(temperature=0, frequency_penalty=-1, presence_penalty=1)
    assert sample(logits, counts, params, DrawKey(0, 0, 0))[0] == 0
    assert greedy((logits - 1.0 * (counts > 0)) - -1.0 * counts) == 1


def test_greedy_before_the_penalties_would_take_another_token() -> None:
    logits, counts = f64(2, 1.5), np.array([1, 0])
    assert sample(logits, counts, SamplingParams(temperature=0, presence_penalty=1), DrawKey(0, 0, 0))[0] == 1
    assert greedy(logits) == 0


def test_temperature_before_greedy_would_lose_what_rounding_merges() -> None:
    """temperature == 0 never reaches stage 5. With 2 in its place, the smallest distance halves to 0: a false tie."""
    logits = f64(0, 5e-324)
    assert token(logits, SamplingParams(temperature=0)) == 1
    assert greedy(temper(logits, 2)) == 0


def test_temperature_before_the_penalties_would_draw_another_token() -> None:
    logits, counts = f64(2, 0), np.array([1, 0])
    params = SamplingParams(temperature=0.5, presence_penalty=2, top_p=0)  # top_p 0: the noise has no say
    lawful = trace_draw(logits, counts, params, DrawKey(0, 0, 0))
    assert lawful.penalized.tolist() == [0, 0]
    assert lawful.token == 0
    low = replace(params, presence_penalty=1.5, temperature=2.0)
    assert sample(f64(1, 0), counts, low, DrawKey(0, 0, 0))[0] == 1  # 1 − 1.5 < 0
    assert sample(f64(4, 0), counts, low, DrawKey(0, 0, 0))[0] == 0  # 4 − 1.5 > 0
    assert greedy(penalize(temper(f64(4, 0), 4), counts, 1.5, 0)) == 1  # (0, −1) − (1.5, 0)


def test_nucleus_before_temperature_would_keep_other_tokens() -> None:
    """At T = 1/2 the first has 2/3 of the mass and stands alone at 0.6; by the untempered 1/2 it would not."""
    logits, params = halves(1, 2, 2), SamplingParams(temperature=0.5, top_p=0.6)

    def temper_stage(state: dict[str, F64]) -> None:
        state["s"] = temper(state["z"], params.temperature)

    def nucleus_stage(state: dict[str, F64]) -> None:
        state["kept"] = nucleus(state["z"], state["s"], params.top_p).astype(np.float64)

    lawful, swapped = run([temper_stage, nucleus_stage], logits), run([nucleus_stage, temper_stage], logits)
    different = []
    for seed in range(200):
        drawn = trace_draw(logits, none(logits), params, DrawKey(seed, 0, 0))
        assert drawn.noise is not None
        assert drawn.token == outcome(lawful, drawn.noise) == 0
        different.append(outcome(swapped, drawn.noise) != drawn.token)
    assert sum(different) > 10  # 1/5 of 200 draws are expected to differ


def test_draw_before_nucleus_would_let_a_dropped_token_win() -> None:
    logits, params = halves(1, 2, 2), SamplingParams(top_p=0.5)
    unrestricted = [token(logits, replace(params, top_p=1.0), seed) for seed in range(200)]
    assert {token(logits, params, seed) for seed in range(200)} == {0}
    assert set(unrestricted) == {0, 1, 2}


# ---- statistics: 20,000 draws each

DRAWS = 20_000


def noise_over_seeds(seeds: NDArray[np.uint64], candidate: int, step: int, size: int) -> F64:
    """The noise [seeds, size] of many seeds at once; held against `trace` below, draw by draw."""
    key0 = (seeds >> np.uint64(32)).astype(np.uint32)[:, None], seeds.astype(np.uint32)[:, None]
    point = np.full((1, 1), candidate, np.uint32), np.full((1, 1), step, np.uint32)
    ids = np.arange(size, dtype=np.uint32)[None, :]
    x0, x1 = threefry2x32(threefry2x32(key0, point), (ids, np.zeros_like(ids)))
    return gumbel(x0, x1)


def draws(logits: F64, params: SamplingParams, candidate: int = 0, step: int = 0, first: int = 0) -> NDArray[np.int64]:
    """20,000 draws over consecutive seeds; the first 300 are held against `sample`."""
    seeds = np.arange(first, first + DRAWS, dtype=np.uint64)
    s = temper(logits, params.temperature)
    kept = nucleus(logits, s, params.top_p)
    scores = np.where(kept, s + noise_over_seeds(seeds, candidate, step, len(logits)), -np.inf)
    tokens = np.argmax(scores, axis=1)
    assert [token(logits, params, int(seed), candidate, step) for seed in seeds[:300]] == tokens[:300].tolist()
    return tokens


def chi_square(tokens: NDArray[np.int64], q: F64) -> float:
    counts = np.bincount(tokens, minlength=len(q))
    assert counts[q == 0].sum() == 0
    expected = q[q > 0] * len(tokens)
    return float(((counts[q > 0] - expected) ** 2 / expected).sum())


P5 = f64(0.4, 0.3, 0.2, 0.08, 0.02)


def test_draws_over_seeds_follow_softmax() -> None:
    """4 degrees of freedom: a fair sampler exceeds 28.5 with odds 10⁻⁵; swapping two of these ids exceeds 1,000."""
    assert chi_square(draws(np.log(P5), SamplingParams()), P5) < 28.5


def test_draws_at_another_temperature_follow_the_tempered_softmax() -> None:
    """Odds 10⁻⁵, as above. At T = 0.5 the probabilities are the squares, normalised."""
    assert chi_square(draws(np.log(P5), SamplingParams(temperature=0.5)), P5**2 / (P5**2).sum()) < 28.5


def test_draws_after_top_p_follow_the_renormalised_softmax() -> None:
    """2 degrees of freedom: odds 10⁻⁵ at 23.03. 0.85 keeps three ids; the others never come up."""
    kept = np.where(np.arange(5) < 3, P5, 0)
    assert chi_square(draws(np.log(P5), SamplingParams(top_p=0.85)), kept / kept.sum()) < 23.03


def test_rare_tokens_keep_their_due() -> None:
    """Mass 2⁻⁷ spread over 100 ids: 156 hits expected in 20,000; outside 88…225 with odds below 10⁻⁷."""
    q = np.concatenate([[1 - 2.0**-7], np.full(100, 2.0**-7 / 100)])
    hits = int((draws(np.log(q), SamplingParams()) > 0).sum())
    assert 88 <= hits <= 225


@pytest.mark.parametrize(
    ("one", "other"),
    [((0, 0), (1, 0)), ((0, 0), (0, 1)), ((0, 1), (1, 0))],
    ids=["candidates", "steps", "candidate and step"],
)
def test_draws_at_two_places_are_independent(one: tuple[int, int], other: tuple[int, int]) -> None:
    """The joint counts follow q·q: 8 degrees of freedom, odds 10⁻⁵ at 37.3; equal draws would exceed 10,000."""
    q = f64(0.5, 0.3, 0.2)
    first, second = (draws(np.log(q), SamplingParams(), *place) for place in (one, other))
    assert chi_square(3 * first + second, np.outer(q, q).ravel()) < 37.3


def test_consecutive_seeds_are_independent() -> None:
    """8 degrees of freedom, odds 10⁻⁵ at 37.3."""
    q = f64(0.5, 0.3, 0.2)
    tokens = draws(np.log(q), SamplingParams())
    assert chi_square(3 * tokens[:-1:2] + tokens[1::2], np.outer(q, q).ravel()) < 37.3


def test_gumbel_noise_has_the_distribution_of_gumbel() -> None:
    """Kolmogorov–Smirnov over 100,000 values: the distance exceeds 0.0078 with odds 2e^(−2·100,000·0.0078²) = 10⁻⁵."""
    g = np.sort(noise_over_seeds(np.arange(DRAWS, dtype=np.uint64), 1, 2, 5).ravel())
    distribution = np.exp(-np.exp(-g))
    steps = np.arange(len(g) + 1) / len(g)
    assert max((steps[1:] - distribution).max(), (distribution - steps[:-1]).max()) < 0.0078


def test_step_key_is_the_key_the_draws_use() -> None:
    k0, k1 = step_key(DrawKey(3, 1, 2))
    ids = np.arange(4, dtype=np.uint32)
    np.testing.assert_array_equal(
        gumbel(*threefry2x32((k0, k1), (ids, np.zeros_like(ids)))), gumbel(*token_words(DrawKey(3, 1, 2), np.arange(4)))
    )
