"""The XLA form of the operations against what they mean, in NumPy's float64."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from gnomon.jax_engine.kernels import xla

PAGE, K, G, H = 4, 2, 3, 8


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear_is_the_product_with_the_weight_as_it_is_stored(rows: int, dtype: str) -> None:
    rng = np.random.default_rng(1)
    x, weight = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((rows, 33), (9, 33)))
    y, again = xla.linear_rows(x.astype(jnp.float32), [weight, weight[:2]], jnp.ones(rows, bool))
    assert (y.shape, y.dtype) == ((rows, 9), jnp.float32)
    np.testing.assert_allclose(y, np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T, atol=1e-5)
    np.testing.assert_allclose(again, y[:, :2], atol=1e-6)


@pytest.mark.parametrize("score_cap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 3])
def test_attention_over_pages_is_a_softmax_over_what_each_position_sees(
    window: int | None, score_cap: float | None
) -> None:
    """Two sequences of other lengths, their pages in no order; what nobody wrote is NaN."""
    rng = np.random.default_rng(2)
    q = rng.standard_normal((2, 2, K, G, H), np.float32)
    keys, values = (rng.standard_normal((9, PAGE, K, H), np.float32) for _ in range(2))
    tables = np.array([[5, 2, 7], [3, 0, 0]], np.int32)
    positions, lengths = np.array([[8, 9], [1, 2]], np.int32), np.array([10, 3], np.int32)
    for pages in (keys, values):
        pages[7, 2:] = pages[3, 3:] = pages[0] = np.nan
    cached = jnp.asarray(keys), jnp.asarray(values), jnp.asarray(tables)
    y = xla.attend(jnp.asarray(q), *cached, jnp.asarray(positions), jnp.asarray(lengths), window, score_cap)
    for b, t, k, g in np.ndindex(2, 2, K, G):
        last = int(positions[b, t])
        seen = range(0 if window is None else max(0, last - window + 1), last + 1)
        own_keys, own_values = (
            np.array([pages[tables[b, at // PAGE], at % PAGE, k] for at in seen], np.float64)
            for pages in (keys, values)
        )
        scores = own_keys @ q[b, t, k, g]
        scores = scores if score_cap is None else score_cap * np.tanh(scores / score_cap)
        weights = np.exp(scores - scores.max())
        np.testing.assert_allclose(y[b, t, k, g], weights @ own_values / weights.sum(), atol=1e-5)
