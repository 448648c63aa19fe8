"""The JAX sampler's stages beside the reference's, on logits that float32 holds exactly, ties and all."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from gnomon.jax_engine import sampler
from gnomon.jax_engine.device import rows_of
from gnomon.reference import sampler as law
from gnomon.reference.prng import DrawKey
from gnomon.reference.sampler import SamplingParams

V = 96
ROWS = 64


def tied_logits(seed: int, rows: int = ROWS) -> NDArray[np.float32]:
    """Quarters between −4 and 4, so that nearly every value is shared; some −0."""
    rng = np.random.default_rng(seed)
    z = (rng.integers(-16, 17, (rows, V)) / 4).astype(np.float32)
    return np.where((z == 0) & (rng.random(z.shape) < 0.5), np.float32(-0.0), z)


def slow(value: float) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


def rows(params: list[SamplingParams], seed: int = 5) -> sampler.Rows:
    each = [rows_of(p, DrawKey(seed + i, i % 3, 0)) for i, p in enumerate(params)]
    return sampler.Rows(*(np.stack(values) for values in zip(*each, strict=True)))


@pytest.mark.parametrize("top_p", [0.0, 0.5, 1 - 2**-24, *map(slow, (1e-6, 0.1, 0.9, 0.999))])
def test_ties_at_the_nucleus_boundary_go_to_the_lower_ids(top_p: float) -> None:
    z = tied_logits(1)
    s = [law.temper(row, 1.0) for row in z.astype(np.float64)]
    flags = jnp.ones(ROWS, bool)
    kept = np.asarray(
        sampler.nucleus(jnp.asarray(z), jnp.asarray(np.array(s, np.float32)), jnp.full(ROWS, top_p, jnp.float32), flags)
    )
    for i in range(ROWS):
        wanted = law.nucleus(z[i].astype(np.float64), s[i], top_p)
        # float32 sums may put the boundary one id further or nearer where the mass comes within rounding of top_p
        if kept[i].sum() == wanted.sum():
            assert (kept[i] == wanted).all()
        else:
            assert abs(int(kept[i].sum()) - int(wanted.sum())) == 1
            mass = np.exp(s[i])[wanted].sum() / np.exp(s[i]).sum()
            nearest = np.exp(s[i])[wanted].min() / np.exp(s[i]).sum()
            assert min(abs(mass - top_p), abs(mass - nearest - top_p)) < 1e-6
    assert kept.any(axis=1).all()


@pytest.mark.parametrize(("ids", "top_p", "expected"), [
    (4, 0.25, 1), (4, 0.5, 2), (4, 0.75, 3), (4, 0.5 + 2**-20, 3), (8, 0.125, 1), (8, 0.5, 4), (8, 0.5 - 2**-20, 4),
])  # fmt: skip
def test_a_mass_of_just_top_p_before_an_id_leaves_it_out(ids: int, top_p: float, expected: int) -> None:
    """Equal ids have masses that float32 has exactly: equality with top_p is no matter of rounding."""
    z = jnp.zeros((1, ids))
    kept = np.asarray(sampler.nucleus(z, z, jnp.full(1, top_p, jnp.float32), jnp.ones(1, bool)))
    assert kept[0].tolist() == [i < expected for i in range(ids)]


def test_a_larger_logit_with_just_top_p_of_the_mass_is_kept_alone() -> None:
    """The boundary is sought by halving: above the smaller logit lies just top_p, and it may not be kept. At a high
    temperature the two weigh the same, which float32 has exactly."""
    z, s = jnp.array([[1.0, 0.5]]), jnp.zeros((1, 2))
    kept = np.asarray(sampler.nucleus(z, s, jnp.full(1, 0.5, jnp.float32), jnp.ones(1, bool)))
    assert kept[0].tolist() == [True, False]


def test_rows_that_are_no_nucleus_keep_everything() -> None:
    z = jnp.asarray(tied_logits(2))
    flags = jnp.arange(ROWS) % 2 == 0
    kept = np.asarray(sampler.nucleus(z, z, jnp.full(ROWS, 0.3, jnp.float32), flags))
    assert kept[1::2].all()
    assert not kept[::2].all(axis=1).any()


def test_rankings_are_by_logit_and_then_by_id_and_zeros_are_equal() -> None:
    z = np.minimum(tied_logits(3), 0)  # the largest are zeros, of both signs
    z = np.where((z == 0) & (np.arange(V) % 3 == 0), np.float32(-0.0), z)
    order = np.argsort(-z.astype(np.float64), axis=1, kind="stable")[:, : sampler.TOP]
    assert (np.asarray(sampler.ranked_ids(jnp.asarray(z))) == order).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0, *map(slow, (0.5, 2.0))])
def test_every_row_draws_the_laws_token_whatever_the_other_rows_are(temperature: float) -> None:
    z = tied_logits(4)
    counts = np.random.default_rng(4).integers(0, 3, (ROWS, V)).astype(np.int32)
    params = [
        SamplingParams(
            temperature=temperature if i % 4 else 0.0,
            top_p=(1.0, 0.95, 0.5)[i % 3],
            frequency_penalty=(0.0, 0.25, -0.5)[i % 3],
            presence_penalty=(0.5, 0.0)[i % 2],
        )
        for i in range(ROWS)
    ]
    drawn = sampler.sample(
        jnp.asarray(z), jnp.zeros((ROWS, V)), jnp.asarray(counts), rows(params), jnp.ones(ROWS, bool)
    )
    for i, one in enumerate(params):
        own = law.trace_draw(z[i].astype(np.float64), counts[i], one, DrawKey(5 + i, i % 3, 0))
        if own.margin > 1e-4 or one.temperature == 0:
            assert int(drawn.token[i]) == own.token
        assert float(drawn.logprob[i]) == pytest.approx(own.logprobs[int(drawn.token[i])], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_only_the_row_that_is_not_finite_says_so(bad: float) -> None:
    z: Any = tied_logits(6, rows=3)
    z[1, 7] = bad
    params = [SamplingParams()] * 3
    drawn = sampler.sample(
        jnp.asarray(z), jnp.zeros((3, V)), jnp.zeros((3, V), jnp.int32), rows(params), jnp.ones(3, bool)
    )
    assert np.asarray(drawn.finite).tolist() == [True, False, True]
