"""The operations that hardware decides, by XLA: on any device, and what every other form of them is tested against.

Attention walks over the pages in blocks of fixed size and order with a running maximum and sum (Milakov & Gimelshein
2018; Dao et al. 2022). A block in which a row sees nothing leaves that row's running values exactly as they were, so
the walk may stop at the longest live row without touching anyone's bits. Axis letters as in the reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def linear_rows(x: Array, weights: Sequence[Array], live: Array) -> list[Array]:
    """x [R, in] · each weight [out, in] → [R, out], accumulated in float32; all rows are computed, live [R] or not."""
    return [_product(x, weight) for weight in weights]


def _product(x: Array, weight: Array) -> Array:
    rows, count = x.astype(weight.dtype), len(x)
    if count == 1 and weight.dtype == jnp.bfloat16:  # for one row XLA's CPU backend writes out the weight in float32
        rows = jnp.pad(rows, ((0, 1), (0, 0)))
    y = lax.dot_general(rows, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return y[:count]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """[..., D] → [..., D] in float32."""
    return x * lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def norm(x: Array, weight: Array, bias: Array | None, kind: str, eps: float, live: Array) -> Array:
    """[..., D] → [..., D], kind as in `Family.norm`; all rows are computed, live or not, as by what follows."""
    match kind:
        case "rms":
            return rms_norm(x, weight, eps)
        case "rms_offset":
            return rms_norm(x, 1 + weight.astype(jnp.float32), eps)  # in bfloat16 the sum would be rounded
        case _:
            y = rms_norm(x - x.mean(axis=-1, keepdims=True), weight, eps)
            return y if bias is None else y + bias


def rotate(x: Array, cos: Array, sin: Array, live: Array) -> Array:
    """x [B, T, N, H] with its first R coordinates turned, i paired with i + R/2; cos, sin [B, T, R/2]."""
    R = 2 * cos.shape[-1]
    cos, sin = cos[:, :, None], sin[:, :, None]
    first, second = jnp.split(x[..., :R], 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, x[..., R:]], axis=-1)


def activate(factors: Sequence[Array], kind: str, live: Array) -> Array:
    """The first of one or two [..., F] as `Family.activation` says, times the second."""
    x, *gated = factors
    match kind:
        case "silu":
            y = x / (1 + jnp.exp(-x))
        case "gelu":
            y = 0.5 * x * (1 + lax.erf(x / math.sqrt(2)))
        case _:
            y = 0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return y * gated[0] if gated else y


def attend(
    q: Array,
    keys: Array,
    values: Array,
    tables: Array,
    positions: Array,
    lengths: Array,
    window: int | None,
    score_cap: float | None,
) -> Array:
    """Softmax of the scores of q [B, T, K, G, H], scaled, over what each position sees, times the values → the same
    shape. keys, values [pages, page size, K, H]; tables [B, P]; positions [B, T]; lengths [B]: how many positions of a
    sequence hold real keys and values."""
    (B, T, K, G, H), page_size = q.shape, keys.shape[1]
    q = q.transpose(0, 2, 3, 1, 4)  # [B, K, G, T, H]

    def add_block(i: Array, running: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, mixed = running
        at = i * page_size + jnp.arange(page_size)
        exists = at[None, :] < lengths[:, None]  # [B, S]
        seen = exists[:, None, :] & visible(positions, at, window)  # [B, T, S]
        pages = lax.dynamic_index_in_dim(tables, i, axis=1, keepdims=False)  # [B]
        # what is not there may hold anything, NaN too, and 0 · NaN is NaN: it is zeroed as well as masked
        k_block = jnp.where(exists[:, :, None, None], keys[pages].astype(jnp.float32), 0.0)
        v_block = jnp.where(exists[:, :, None, None], values[pages].astype(jnp.float32), 0.0)
        scores = cap(jnp.einsum("bkgth,bskh->bkgts", q, k_block), score_cap)
        scores = jnp.where(seen[:, None, None], scores, -jnp.inf)
        new_top = jnp.maximum(top, scores.max(axis=-1))
        shrink = jnp.exp(top - new_top)
        weights = jnp.exp(scores - new_top[..., None])
        total = total * shrink + weights.sum(axis=-1)
        mixed = mixed * shrink[..., None] + jnp.einsum("bkgts,bskh->bkgth", weights, v_block)
        return new_top, total, mixed

    # the lowest float, not −∞: for a row that sees nothing exp(top − new_top) is then exp(0), not exp(−∞ + ∞)
    start = (
        jnp.full((B, K, G, T), np.finfo(np.float32).min),
        jnp.zeros((B, K, G, T)),
        jnp.zeros((B, K, G, T, H)),
    )
    blocks = (lengths.max() + page_size - 1) // page_size
    _, total, mixed = lax.fori_loop(0, blocks, add_block, start)
    mixed = mixed / jnp.where(total == 0, 1.0, total)[..., None]
    return mixed.transpose(0, 3, 1, 2, 4)


def visible(positions: Array, at: Array, window: int | None) -> Array:
    """[B, T, S]: whether a position [B, T] sees the positions `at` [S]."""
    seen = at[None, None, :] <= positions[:, :, None]
    return seen if window is None else seen & (at[None, None, :] > positions[:, :, None] - window)


def cap(x: Array, most: float | None) -> Array:
    """Squeezes values softly into (−most, most)."""
    return x if most is None else most * jnp.tanh(x / most)
