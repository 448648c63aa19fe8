"""The JAX sampler's stages beside the reference's, on logits that float32 holds exactly, ties and all."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, lax
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


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(autouse=True, params=["cpu", "gpu"])
def platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The sampler takes itself to be on this platform, and finds boundaries in digits of other sizes."""
    name: str = request.param
    monkeypatch.setattr(jax, "default_backend", lambda: name)
    return name


@cache
def jitted(platform: str, name: str) -> Any:
    """A function of the sampler, compiled in the form for the platform, which must be that of the test."""
    function = getattr(sampler, name)
    return jax.jit(lambda *arguments: function(*arguments))


def rows(params: list[SamplingParams], seed: int = 5) -> sampler.Rows:
    each = [rows_of(p, DrawKey(seed + i, i % 3, 0)) for i, p in enumerate(params)]
    return sampler.Rows(*(np.stack(values) for values in zip(*each, strict=True)))


def assert_is_the_laws(kept: NDArray[np.bool_], z: NDArray[Any], s: NDArray[Any], top_p: float) -> None:
    """The first in the order (−z, id), as many as the law keeps; float32 may be off by ids before which the mass comes
    within rounding of top_p."""
    z, s = z.astype(np.float64), s.astype(np.float64)
    order = np.argsort(-z, kind="stable")
    count, wanted = int(kept.sum()), int(law.nucleus(z, s, top_p).sum())
    assert kept[order[:count]].all()
    q = np.exp(s)
    mass_before = np.concatenate([[0.0], np.cumsum(q[order] / q.sum())])
    unsure = mass_before[min(count, wanted) : max(count, wanted)]
    assert (np.abs(unsure - top_p) < 1e-6).all()
    assert count >= 1


@pytest.mark.parametrize("top_p", [0.0, 0.5, 1 - 2**-24, *map(slow, (1e-6, 0.1, 0.9, 0.999))])
def test_ties_at_the_nucleus_boundary_go_to_the_lower_ids(top_p: float, platform: str) -> None:
    z = tied_logits(1)
    s = np.array([law.temper(row, 1.0) for row in z.astype(np.float64)], np.float32)
    kept = jitted(platform, "nucleus")(z, s, np.full(ROWS, top_p, np.float32), np.ones(ROWS, bool))
    for row in zip(np.asarray(kept), z, s, strict=True):
        assert_is_the_laws(*row, top_p)


def logits_of_all_kinds(vocab_size: int) -> NDArray[np.float32]:
    """Rows whose best are far apart or side by side, alone or tied, at either end, or everywhere the same."""
    rng = np.random.default_rng(vocab_size)
    normal = rng.normal(0, 3, vocab_size)
    few = rng.integers(-2, 3, vocab_size) / 4
    zeros = np.where(rng.random(vocab_size) < 0.5, 0.0, -0.0)
    apart = np.where(np.arange(vocab_size) % max(1, vocab_size // sampler.TOP) == 0, 5 + normal / 9, normal / 9)
    peaked = np.where(np.arange(vocab_size) == vocab_size // 2, 40.0, normal)
    rows = [normal, few, zeros, apart, peaked, np.arange(vocab_size), -np.arange(vocab_size), np.full(vocab_size, -1.5)]
    return np.array(rows, np.float32)


@pytest.mark.parametrize("vocab_size", [641, *map(slow, (1, 2, 5, 19, 20, 21, 260, 4096, 49152, 50257, 151936))])
def test_the_nucleus_is_the_laws_whatever_the_size_of_the_vocabulary(vocab_size: int, platform: str) -> None:
    z = logits_of_all_kinds(vocab_size)
    s = np.asarray(sampler.temper(jnp.asarray(z), jnp.full(len(z), 1.5, jnp.float32)))
    for top_p in (1e-6, 0.3, 0.9, 0.999, 1 - 2**-23):
        kept = jitted(platform, "nucleus")(z, s, np.full(len(z), top_p, np.float32), np.ones(len(z), bool))
        for row in zip(np.asarray(kept), z, s, strict=True):
            assert_is_the_laws(*row, top_p)


def first_row_kept(platform: str, z: list[float], s: list[float], top_p: float) -> list[bool]:
    """Of so many ids; all others weigh nothing."""
    low = [-1e30] * (V - len(z))
    arrays = [np.tile(np.array(x + low, np.float32), (ROWS, 1)) for x in (z, s)]
    kept = jitted(platform, "nucleus")(*arrays, np.full(ROWS, top_p, np.float32), np.ones(ROWS, bool))
    assert not np.asarray(kept)[0, len(z) :].any()
    first: list[bool] = np.asarray(kept)[0, : len(z)].tolist()
    return first


@pytest.mark.parametrize(("ids", "top_p", "expected"), [
    (4, 0.25, 1), (4, 0.5, 2), (4, 0.75, 3), (4, 0.5 + 2**-20, 3), (8, 0.125, 1), (8, 0.5, 4), (8, 0.5 - 2**-20, 4),
])  # fmt: skip
def test_a_mass_of_just_top_p_before_an_id_leaves_it_out(ids: int, top_p: float, expected: int, platform: str) -> None:
    """Equal ids have masses that float32 has exactly: equality with top_p is no matter of rounding."""
    zeros = [0.0] * ids
    assert first_row_kept(platform, zeros, zeros, top_p) == [i < expected for i in range(ids)]


def test_a_larger_logit_with_just_top_p_of_the_mass_is_kept_alone(platform: str) -> None:
    """Above the smaller logit lies just top_p, and it may not be kept. At a high temperature the two weigh the same,
    which float32 has exactly."""
    assert first_row_kept(platform, [1.0, 0.5], [0.0, 0.0], 0.5) == [True, False]


def test_rows_that_are_no_nucleus_keep_everything(platform: str) -> None:
    z = tied_logits(2)
    kept = np.asarray(jitted(platform, "nucleus")(z, z, np.full(ROWS, 0.3, np.float32), np.arange(ROWS) % 2 == 0))
    assert kept[1::2].all()
    assert not kept[::2].all(axis=1).any()


@pytest.mark.parametrize("vocab_size", [1, 19, 20, 21, 320, 321, 2561, *map(slow, (5, 1000, 49152, 50257, 151936))])
def test_rankings_are_by_logit_and_then_by_id_and_zeros_are_equal(vocab_size: int, platform: str) -> None:
    """Of few ids, which are ranked at once, and of more."""
    z = logits_of_all_kinds(vocab_size)
    order = np.argsort(-z.astype(np.float64), axis=1, kind="stable")[:, : sampler.TOP]
    assert (np.asarray(jitted(platform, "ranked_ids")(z)) == order).all()


@pytest.mark.parametrize("vocab_size", [3, 321, slow(50257)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_ids_of_logits_that_are_not_finite_are_ids_all_the_same(vocab_size: int, bad: float, platform: str) -> None:
    z = np.random.default_rng(7).normal(0, 1, (4, vocab_size)).astype(np.float32)
    z[0], z[1, 1:], z[2, ::2], z[3, -1] = bad, bad, bad, bad
    ids = np.asarray(jitted(platform, "ranked_ids")(z))
    assert ((ids >= 0) & (ids < vocab_size)).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0, *map(slow, (0.5, 2.0))])
def test_every_row_draws_the_laws_token_whatever_the_other_rows_are(temperature: float, platform: str) -> None:
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
    bias = np.zeros((ROWS, V), np.float32)
    drawn = jitted(platform, "sample")(z, bias, counts, rows(params), np.ones(ROWS, bool))
    for i, one in enumerate(params):
        own = law.trace_draw(z[i].astype(np.float64), counts[i], one, DrawKey(5 + i, i % 3, 0))
        if own.margin > 1e-4 or one.temperature == 0:
            assert int(drawn.token[i]) == own.token
        assert float(drawn.logprob[i]) == pytest.approx(own.logprobs[int(drawn.token[i])], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_only_the_row_that_is_not_finite_says_so(bad: float, platform: str) -> None:
    z = tied_logits(6)
    z[1, 7] = bad
    drawn = jitted(platform, "sample")(z, *nothing(), rows([SamplingParams()] * ROWS), np.ones(ROWS, bool))
    assert np.flatnonzero(~np.asarray(drawn.finite)).tolist() == [1]


def nothing() -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """No bias, and no token that was sampled."""
    return np.zeros((ROWS, V), np.float32), np.zeros((ROWS, V), np.int32)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_dead_change_no_bit_of_the_others(temperature: float, platform: str) -> None:
    """Whatever their arrays hold: logits that are not finite, differences without bound, parameters without sense."""
    z, live = tied_logits(8), np.arange(ROWS) % 2 == 0
    own = rows([SamplingParams(temperature=temperature, top_p=(1.0, 0.5, 0.9)[i % 3]) for i in range(ROWS)])
    before = jitted(platform, "sample")(z, *nothing(), own, live)
    z[1::8], z[3::8, ::2], z[5::8, ::2], z[7::8] = np.nan, np.inf, 3e38, -3e38
    odd = np.array([np.nan, np.inf, 0, -1], np.float32)[np.arange(ROWS) % 16 // 4]
    others = own._replace(**{name: np.where(live, getattr(own, name), odd) for name in own._fields[:4]})
    after = jitted(platform, "sample")(z, *nothing(), others, live)
    for one, other in zip(before, after, strict=True):
        assert np.asarray(one)[live].tobytes() == np.asarray(other)[live].tobytes()
    token = np.asarray(after.token)
    assert ((token >= 0) & (token < V)).all()


# what makes a GPU wait for the host, in StableHLO and in XLA's own text
COSTLY = r"\b(?:stablehlo|chlo)\.(sort|top_k|while|if|case|custom_call)\b|\b(sort|topk|while|conditional|custom-call)\("


def costly_operations(text: str) -> set[str]:
    return {name for found in re.findall(COSTLY, text) for name in found if name}


def exported_for(platform: str, function: Any, *arguments: Any) -> str:
    targets = {"cpu": ["cpu"], "gpu": ["rocm", "cuda"]}[platform]
    return jax.export.export(jax.jit(lambda *a: function(*a)), platforms=targets)(*arguments).mlir_module()


def test_a_gpus_draw_has_no_sort_no_conditional_and_no_loop_and_a_cpus_skips_stages(platform: str) -> None:
    """Of so many ids that the best are not ranked at once."""
    z = np.zeros((2, 3000), np.float32)
    arguments = z, z, z.astype(np.int32), rows([SamplingParams()] * 2), np.ones(2, bool)
    exported = exported_for(platform, sampler.sample, *arguments)
    assert "stablehlo.reduce" in exported
    assert costly_operations(exported) == {"cpu": {"case"}, "gpu": set()}[platform]
    if platform == "cpu":
        compiled = jax.jit(sampler.sample).lower(*arguments).compile().as_text() or ""
        assert "fusion" in compiled
        assert costly_operations(compiled) == {"conditional"}


def test_sorts_conditionals_and_loops_are_found(platform: str) -> None:
    def all_of_them(x: Array) -> Array:
        branched = lax.cond(x[0] > 0, lambda: jnp.sort(x), lambda: lax.top_k(x, 3)[0].sum() + x)
        return lax.fori_loop(0, 10, lambda _, y: jnp.sin(y), branched)

    x = np.ones(1000, np.float32)
    assert costly_operations(exported_for(platform, all_of_them, x)) >= {"sort", "top_k", "while", "case"}
    compiled = jax.jit(lambda x: all_of_them(x)).lower(x).compile().as_text() or ""
    assert costly_operations(compiled) >= {"sort", "conditional", "while"}


def test_a_gpu_finds_boundaries_in_few_rounds(platform: str) -> None:
    """Digit by digit of 32 bits."""
    z = np.zeros((2, 1000), np.float32)
    exported = exported_for(platform, sampler.nucleus, z, z, z[:, 0], np.ones(2, bool))
    sums = re.findall(r"stablehlo\.compare +GT.*tensor<2x1000x\d+xui32>", exported)
    assert len(sums) == {"cpu": 32, "gpu": 4}[platform]
