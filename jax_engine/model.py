"""The model in JAX: reference/transformer.py, function by function, over a batch [B, T] and a cache of keys and values
in pages.

What differs: rows carry their own positions, and a layer writes its keys and values into pages before it attends. The
caller chooses the form of what hardware decides (kernels/): every product with a weight goes through `linear`,
attention over the pages is `kernels.attend`, and what is done to a row by itself is `kernels.norm`, `rotate` and
`activate`. Experts are stacked, [E, …], and a row that an expert is not asked about adds nothing of it. Axis letters as
in the reference; P pages of a sequence, page size in positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Sharding

from gnomon.jax_engine.cache import SCRATCH_PAGE
from gnomon.jax_engine.kernels.choice import Kernels, LinearKernel
from gnomon.jax_engine.kernels.panels import of_stack
from gnomon.jax_engine.kernels.xla import cap
from gnomon.reference.model_config import Family, Layer, ModelConfig, Rope

Params = Mapping[str, Any]
Times = Callable[..., list[Array]]  # see `over`, which makes one
Cache = list[tuple[Array, Array]]  # per layer: keys and values, each [pages, page size, K, H]


class Batch(NamedTuple):
    """The tokens of one step and where they belong. T is 1 in decode, the chunk's length in prefill (where B is 1).

    Arrays of NumPy on the host, of jax inside a program.
    """

    tokens: Any  # [B, T] int32
    positions: Any  # [B, T] int32: absolute, consecutive
    live: Any  # [B, T] bool: False for idle rows and padding, which write to the scratch page
    tables: Any  # [B, P] int32: the page of every block of the sequence; SCRATCH_PAGE beyond its end


def over(live: Array, product: LinearKernel) -> Times:
    """`times(x [..., in], *weights)` → [..., out] for each weight [out, in]; rows that are not live [...] do not
    matter."""

    def times(x: Array, *weights: Any) -> list[Array]:
        rows = x.reshape(-1, x.shape[-1])
        return [y.reshape(*x.shape[:-1], -1) for y in product(rows, weights, live.reshape(-1))]

    return times


def linear_each(x: Array, params: Params, names: Sequence[str], times: Times) -> list[Array]:
    """[..., in] → [..., out] for each name, with a bias where there is one."""
    results = zip(names, times(x, *(params[name] for name in names)), strict=True)
    return [y + params[f"{name}_bias"] if f"{name}_bias" in params else y for name, y in results]


def linear(x: Array, params: Params, name: str, times: Times) -> Array:
    """[..., in] → [..., out], with a bias where there is one."""
    [y] = linear_each(x, params, (name,), times)
    return y


def norm(x: Array, params: Params, name: str, config: ModelConfig, kernels: Kernels, live: Array) -> Array:
    """[..., D] → [..., D]: every row normed as the family does it; rows that are not live do not matter."""
    bias = params.get(f"{name}_bias")
    return kernels.norm(x, params[name], bias, config.family.norm, config.rms_norm_eps, live)


def rotate(x: Array, rope: Rope | None, positions: Array, kernels: Kernels, live: Array) -> Array:
    """Rotary positions: x [B, T, N, H], positions [B, T] → [B, T, N, H]. The first R coordinates are turned, coordinate
    i paired with i + R/2."""
    if rope is None:
        return x
    angle = positions[:, :, None].astype(jnp.float32) * jnp.asarray(rope.frequencies, jnp.float32)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if rope.magnitude != 1:
        cos, sin = cos * rope.magnitude, sin * rope.magnitude
    return kernels.rotate(x, cos, sin, live)


def attention(
    x: Array, params: Params, config: ModelConfig, layer: Layer, kernels: Kernels, batch: Batch,
    keys: Array, values: Array,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Causal self-attention over the pages, [B, T, D] → [B, T, D]; also returns the pages with this step's k and v."""
    B, T, _ = x.shape
    family, live = config.family, batch.live
    times = over(live, kernels.linear)
    K, H, page_size = config.num_key_value_heads, config.head_dim, keys.shape[1]
    q, k, v = linear_each(x, params, ("q_proj", "k_proj", "v_proj"), times)
    if family.query_key_norm == "whole":
        q, k = (norm(y, params, name, config, kernels, live) for y, name in ((q, "q_norm"), (k, "k_norm")))
    q, k, v = (rows.reshape(B, T, -1, H) for rows in (q, k, v))
    if family.query_key_norm == "head":
        q, k = (norm(y, params, name, config, kernels, live) for y, name in ((q, "q_norm"), (k, "k_norm")))
    q = rotate(q, layer.rope, batch.positions, kernels, live).reshape(B, T, K, -1, H)
    k = rotate(k, layer.rope, batch.positions, kernels, live)

    block = batch.positions // page_size
    page = jnp.where(batch.live, jnp.take_along_axis(batch.tables, block, axis=1), SCRATCH_PAGE)
    slot = batch.positions % page_size
    keys = keys.at[page, slot].set(k.astype(keys.dtype))
    values = values.at[page, slot].set(v.astype(values.dtype))

    lengths = jnp.where(batch.live, batch.positions + 1, 0).max(axis=1)  # [B]: how many positions hold real k and v
    window, score_cap = layer.window, family.score_cap
    rows = kernels.attend(
        q * family.score_scale, keys, values, batch.tables, batch.positions, lengths, window, score_cap
    ).reshape(B, T, -1)
    return linear(rows, params, "o_proj", times), keys, values


def feed_forward(x: Array, params: Params, family: Family, kernels: Kernels, live: Array) -> Array:
    """[..., D] → [..., D]; gate_proj, up_proj [F, D], down_proj [D, F]. Without a gate, up_proj's is activated."""
    times = over(live, kernels.linear)
    names = ("gate_proj", "up_proj") if family.is_gated else ("up_proj",)
    hidden = kernels.activate(linear_each(x, params, names, times), family.activation, live)
    return linear(hidden, params, "down_proj", times)


def mixture(x: Array, params: Params, family: Family, kernels: Kernels, live: Array) -> Array:
    """[B, T, D] → [B, T, D]: every token goes to the experts that its router finds most probable, the lower number
    first on a tie. router [E, D]; the experts' weights are stacked, [E, out, in]."""
    experts = family.experts
    assert experts is not None
    probabilities = jax.nn.softmax(linear(x, params, "router", over(live, kernels.linear)))  # [B, T, E]
    _, chosen = lax.top_k(probabilities, experts.per_token)
    is_sent = jax.nn.one_hot(chosen, experts.count, dtype=bool).any(axis=-2) & live[..., None]
    weights = jnp.where(is_sent, probabilities, 0.0)
    if experts.is_normalized:
        weights = weights / jnp.where(live, weights.sum(axis=-1), 1.0)[..., None]

    def add_expert(e: Array, y: Array) -> Array:
        own = {name: of_stack(stack, e) for name, stack in params["experts"].items()}
        sent = lax.dynamic_index_in_dim(is_sent, e, axis=-1, keepdims=False)
        weight = lax.dynamic_index_in_dim(weights, e, axis=-1)
        # what an expert makes of rows that are not its own may be anything, NaN too
        return y + jnp.where(sent[..., None], weight * feed_forward(x, own, family, kernels, sent), 0.0)

    return lax.fori_loop(0, experts.count, add_expert, jnp.zeros_like(x))


def block(
    x: Array, params: Params, config: ModelConfig, layer: Layer, kernels: Kernels, batch: Batch,
    keys: Array, values: Array,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """One layer, [B, T, D] → [B, T, D], and its pages. The norms' places as in the reference."""
    family = config.family

    def mixed(x: Array) -> Array:
        nonlocal keys, values
        y, keys, values = attention(x, params["self_attn"], config, layer, kernels, batch, keys, values)
        return y

    def fed(x: Array) -> Array:
        if layer.has_experts:
            return mixture(x, params["mlp"], family, kernels, batch.live)
        return feed_forward(x, params["mlp"], family, kernels, batch.live)

    def normed(x: Array, name: str) -> Array:
        return norm(x, params, name, config, kernels, batch.live)

    scale = family.residual_scale
    match family.placement:
        case "before":
            x = x + scale * mixed(normed(x, "input_layernorm"))
            x = x + scale * fed(normed(x, "post_attention_layernorm"))
        case "after":
            x = x + normed(mixed(x), "post_attention_layernorm")
            x = x + normed(fed(x), "post_feedforward_layernorm")
        case "around":
            x = x + normed(mixed(normed(x, "input_layernorm")), "post_attention_layernorm")
            x = x + normed(fed(normed(x, "pre_feedforward_layernorm")), "post_feedforward_layernorm")
        case "beside":
            name = "post_attention_layernorm" if "post_attention_layernorm" in params else "input_layernorm"
            x = x + mixed(normed(x, "input_layernorm")) + fed(normed(x, name))
    return x, keys, values


def hidden_states(
    config: ModelConfig, kernels: Kernels, params: Params, batch: Batch, cache: Cache
) -> tuple[Array, Cache]:
    """Tokens [B, T] → the last layer's output, normed, [B, T, D] in float32, and the cache with their keys and
    values."""
    family = config.family
    x = params["embed_tokens"][batch.tokens].astype(jnp.float32) * family.embedding_scale
    if "embed_positions" in params:
        x = x + params["embed_positions"][batch.positions].astype(jnp.float32)
    written: Cache = []
    for i, (layer, own) in enumerate(zip(family.layers, params["layers"], strict=True)):
        with jax.named_scope(f"layer_{i}"):
            x, keys, values = block(x, own, config, layer, kernels, batch, *cache[i])
            written.append((keys, values))
    return norm(x, params, "norm", config, kernels, batch.live), written


def unembed(config: ModelConfig, params: Params, x: Array, times: Times) -> Array:
    """[..., D] → raw logits [..., V] in float32."""
    family = config.family
    return cap(linear(x, params, "lm_head", times) * family.logit_scale, family.logit_cap)


def empty_cache(config: ModelConfig, pages: int, page_size: int, dtype: Any, home: Sharding) -> Cache:
    """Pages for every layer, the scratch page included."""
    shape = (pages, page_size, config.num_key_value_heads, config.head_dim)

    def empty() -> Array:
        return jnp.zeros(shape, dtype, device=home)

    return [(empty(), empty()) for _ in range(config.num_hidden_layers)]
