"""The model in JAX: reference/model.py, function by function, over a batch [B, T] and a cache of keys and values in
pages.

What differs: rows carry their own positions, a layer writes its keys and values into pages before it attends, and
attention walks over those pages in blocks of fixed size and order with a running maximum and sum (Milakov & Gimelshein
2018; Dao et al. 2022). A block in which a row sees nothing leaves that row's running values exactly as they were, so
the walk may stop at the longest live row without touching anyone's bits. Every product with a weight goes through
`linear`, and how it is computed is the caller's choice. Axis letters as in the reference; P pages of a sequence, page
size in positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Sharding

from gnomon.reference.model import ModelConfig, inverse_frequencies

Params = Mapping[str, Any]
Product = Callable[[Array, Array, Array], Array]  # see `product`, which is one
Linear = Callable[[Array, Array], Array]  # see `over`, which makes one
Cache = list[tuple[Array, Array]]  # per layer: keys and values, each [pages, page size, K, H]

SCRATCH_PAGE = 0  # where idle rows and padding write; never part of a sequence


class Batch(NamedTuple):
    """The tokens of one step and where they belong. T is 1 in decode, the chunk's length in prefill (where B is 1).

    Arrays of NumPy on the host, of jax inside a program.
    """

    tokens: Any  # [B, T] int32
    positions: Any  # [B, T] int32: absolute, consecutive
    live: Any  # [B, T] bool: False for idle rows and padding, which write to the scratch page
    tables: Any  # [B, P] int32: the page of every block of the sequence; SCRATCH_PAGE beyond its end


def product(x: Array, weight: Array, live: Array) -> Array:
    """x [R, in] · weight [out, in] → [R, out], accumulated in float32: every product with a weight, by XLA, which
    computes all rows, live [R] or not."""
    rows, count = x.astype(weight.dtype), len(x)
    if count == 1 and weight.dtype == jnp.bfloat16:  # for one row XLA's CPU backend writes out the weight in float32
        rows = jnp.pad(rows, ((0, 1), (0, 0)))
    y = lax.dot_general(rows, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return y[:count]


def over(live: Array, product: Product) -> Linear:
    """`linear(x [..., in], weight [out, in])` → [..., out] for rows of which only those that are live [...] matter."""

    def linear(x: Array, weight: Array) -> Array:
        return product(x.reshape(-1, x.shape[-1]), weight, live.reshape(-1)).reshape(*x.shape[:-1], -1)

    return linear


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """[B, T, D] → [B, T, D] in float32."""
    return x * lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def rotate(x: Array, angle: Array) -> Array:
    """Rotary positions: x [B, T, N, H], angle [B, T, H/2] → [B, T, N, H]. Coordinate i is paired with i + H/2."""
    cos, sin = jnp.cos(angle)[:, :, None, :], jnp.sin(angle)[:, :, None, :]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(
    x: Array, q_proj: Array, k_proj: Array, v_proj: Array, o_proj: Array,
    config: ModelConfig, linear: Linear, angle: Array, batch: Batch, keys: Array, values: Array,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Causal self-attention over the pages, [B, T, D] → [B, T, D]; also returns the pages with this step's k and v."""
    B, T, _ = x.shape
    K, H, page_size = config.num_key_value_heads, config.head_dim, keys.shape[1]
    q = rotate(linear(x, q_proj).reshape(B, T, -1, H), angle).reshape(B, T, K, -1, H)
    k = rotate(linear(x, k_proj).reshape(B, T, K, H), angle)
    v = linear(x, v_proj).reshape(B, T, K, H)

    block = batch.positions // page_size
    page = jnp.where(batch.live, jnp.take_along_axis(batch.tables, block, axis=1), SCRATCH_PAGE)
    slot = batch.positions % page_size
    keys = keys.at[page, slot].set(k.astype(keys.dtype))
    values = values.at[page, slot].set(v.astype(values.dtype))

    lengths = jnp.where(batch.live, batch.positions + 1, 0).max(axis=1)  # [B]: how many positions hold real k and v
    G = q.shape[3]
    q = (q / np.sqrt(H)).transpose(0, 2, 3, 1, 4)  # [B, K, G, T, H]

    def add_block(i: Array, running: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, mixed = running
        at = i * page_size + jnp.arange(page_size)
        exists = at[None, :] < lengths[:, None]  # [B, S]
        seen = exists[:, None, :] & (at[None, None, :] <= batch.positions[:, :, None])  # [B, T, S]
        pages = lax.dynamic_index_in_dim(batch.tables, i, axis=1, keepdims=False)  # [B]
        # what is not there may hold anything, NaN too, and 0 · NaN is NaN: it is zeroed as well as masked
        k_block = jnp.where(exists[:, :, None, None], keys[pages].astype(jnp.float32), 0.0)
        v_block = jnp.where(exists[:, :, None, None], values[pages].astype(jnp.float32), 0.0)
        scores = jnp.einsum("bkgth,bskh->bkgts", q, k_block)
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
    return linear(mixed.transpose(0, 3, 1, 2, 4).reshape(B, T, -1), o_proj), keys, values


def swiglu(x: Array, gate_proj: Array, up_proj: Array, down_proj: Array, linear: Linear) -> Array:
    """The feed-forward half of a layer, [B, T, D] → [B, T, D]."""
    gate = linear(x, gate_proj)
    return linear(gate / (1 + jnp.exp(-gate)) * linear(x, up_proj), down_proj)


def block(
    x: Array, input_layernorm: Array, self_attn: Params, post_attention_layernorm: Array, mlp: Params,
    config: ModelConfig, linear: Linear, angle: Array, batch: Batch, keys: Array, values: Array,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """One layer, [B, T, D] → [B, T, D], and its pages."""
    normed = rms_norm(x, input_layernorm, config.rms_norm_eps)
    mixed, keys, values = attention(
        normed, **self_attn, config=config, linear=linear, angle=angle, batch=batch, keys=keys, values=values
    )
    x = x + mixed
    x = x + swiglu(rms_norm(x, post_attention_layernorm, config.rms_norm_eps), **mlp, linear=linear)
    return x, keys, values


def hidden_states(
    config: ModelConfig, product: Product, params: Params, batch: Batch, cache: Cache
) -> tuple[Array, Cache]:
    """Tokens [B, T] → the last layer's output, normed, [B, T, D] in float32, and the cache with their keys and
    values."""
    linear = over(batch.live, product)
    frequencies = jnp.asarray(inverse_frequencies(config), jnp.float32)
    angle = batch.positions[:, :, None].astype(jnp.float32) * frequencies
    x = params["embed_tokens"][batch.tokens].astype(jnp.float32)
    written: Cache = []
    for i, layer in enumerate(params["layers"]):
        with jax.named_scope(f"layer_{i}"):
            keys, values = cache[i]
            x, keys, values = block(
                x, **layer, config=config, linear=linear, angle=angle, batch=batch, keys=keys, values=values
            )
            written.append((keys, values))
    return rms_norm(x, params["norm"], config.rms_norm_eps), written


def unembed(x: Array, params: Params, linear: Linear) -> Array:
    """[..., D] → raw logits [..., V] in float32."""
    return linear(x, params["lm_head"])


def empty_cache(config: ModelConfig, pages: int, page_size: int, dtype: Any, home: Sharding) -> Cache:
    """Pages for every layer, the scratch page included."""
    shape = (pages, page_size, config.num_key_value_heads, config.head_dim)

    def empty() -> Array:
        return jnp.zeros(shape, dtype, device=home)

    return [(empty(), empty()) for _ in range(config.num_hidden_layers)]
