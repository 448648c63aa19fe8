"""The general transformer: what the families of families.py are made of, in NumPy, float64, for one sequence.

model.py is Llama, and what to read first. This file says it again with every difference that a family can declare, each
in one place: how a row is normed and where, biases, which coordinates of a head are rotated, how far back a position
sees, caps on scores and logits, feed-forwards that are gated or plain or one of several experts. A `Family` with
Llama's declarations gives what model.py gives.

As there: a weight is stored [out, in]; the bias of `x` is `x_bias` beside it, where there is one. Axis letters as in
model.py; E experts. Sources: Ba et al. 2016 (LayerNorm), Hendrycks & Gimpel 2016 (GELU), Shazeer et al. 2017 and Jiang
et al. 2024 (experts), Beltagy et al. 2020 (windows), Henry et al. 2020 (normed queries and keys), Gemma Team 2024
(caps).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gnomon.reference import model
from gnomon.reference.arrays import F64
from gnomon.reference.model import rms_norm, softmax
from gnomon.reference.model_config import Family, Layer, ModelConfig, Params, Rope


def linear(x: F64, params: Params, name: str) -> F64:
    """[..., in] → [..., out], with a bias where there is one."""
    y = x @ params[name].T
    return y + params[f"{name}_bias"] if f"{name}_bias" in params else y


def norm(x: F64, params: Params, name: str, config: ModelConfig) -> F64:
    """[..., D] → [..., D]: every row normed as the family does it."""
    weight, eps = params[name], config.rms_norm_eps
    match config.family.norm:
        case "rms":
            return rms_norm(x, weight, eps)
        case "rms_offset":
            return rms_norm(x, 1 + weight, eps)
        case "layer":
            x = x - x.mean(axis=-1, keepdims=True)
            return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight + params.get(f"{name}_bias", 0.0)


def rotate(x: F64, rope: Rope | None) -> F64:
    """x [T, N, H] → [T, N, H]: the first R coordinates turned by position, coordinate i paired with i + R/2."""
    if rope is None:
        return x
    R = 2 * len(rope.frequencies)
    angle = np.arange(len(x))[:, None] * np.array(rope.frequencies)
    turned = model.rotate(x[..., :R], angle) * rope.magnitude
    return np.concatenate([turned, x[..., R:]], axis=-1)


def cap(x: F64, most: float | None) -> F64:
    """Squeezes values softly into (−most, most)."""
    return x if most is None else most * np.tanh(x / most)


def attention(x: F64, params: Params, config: ModelConfig, layer: Layer) -> F64:
    """Causal self-attention with grouped queries, [T, D] → [T, D]."""
    family, T, K, H = config.family, len(x), config.num_key_value_heads, config.head_dim
    q, k, v = (linear(x, params, name) for name in ("q_proj", "k_proj", "v_proj"))
    if family.query_key_norm == "whole":
        q, k = norm(q, params, "q_norm", config), norm(k, params, "k_norm", config)
    q, k, v = (rows.reshape(T, -1, H) for rows in (q, k, v))
    if family.query_key_norm == "head":
        q, k = norm(q, params, "q_norm", config), norm(k, params, "k_norm", config)
    q, k = rotate(q, layer.rope).reshape(T, K, -1, H), rotate(k, layer.rope)
    scores = np.einsum("tkgh,skh->kgts", q, k, optimize=True) * family.score_scale
    scores = np.where(visible(T, layer.window), cap(scores, family.score_cap), -np.inf)
    mixed = np.einsum("kgts,skh->tkgh", softmax(scores), v, optimize=True)
    return linear(mixed.reshape(T, -1), params, "o_proj")


def visible(T: int, window: int | None) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[T, S]: whether position t sees position s."""
    seen = np.tri(T, dtype=bool)
    return seen if window is None else seen & ~np.tri(T, k=-window, dtype=bool)


def activate(x: F64, kind: str) -> F64:
    with np.errstate(over="ignore"):  # exp(−x) may overflow to ∞, and x / ∞ is the 0 it should be
        match kind:
            case "silu":
                return x / (1 + np.exp(-x))
            case "gelu":
                return 0.5 * x * (1 + _erf(x / math.sqrt(2)))
            case _:
                return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


_erf = np.vectorize(math.erf, otypes=[np.float64])  # NumPy has none


def feed_forward(x: F64, params: Params, family: Family) -> F64:
    """[..., D] → [..., D]; gate_proj, up_proj [F, D], down_proj [D, F]. Without a gate, up_proj's is activated."""
    if family.is_gated:
        hidden = activate(linear(x, params, "gate_proj"), family.activation) * linear(x, params, "up_proj")
    else:
        hidden = activate(linear(x, params, "up_proj"), family.activation)
    return linear(hidden, params, "down_proj")


def mixture(x: F64, params: Params, family: Family) -> F64:
    """[T, D] → [T, D]: every token goes to the experts that its router finds most probable, the lower number first on
    a tie; what they say is summed, weighted by those probabilities. router [E, D]."""
    experts = family.experts
    assert experts is not None
    probabilities = softmax(linear(x, params, "router"))
    chosen = np.argsort(-probabilities, axis=-1, kind="stable")[:, : experts.per_token]
    weights = np.take_along_axis(probabilities, chosen, axis=-1)
    if experts.is_normalized:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    y = np.zeros_like(x)
    for e, expert in enumerate(params["experts"]):
        tokens, places = np.nonzero(chosen == e)
        y[tokens] += weights[tokens, places, None] * feed_forward(x[tokens], expert, family)
    return y


def block(x: F64, params: Params, config: ModelConfig, layer: Layer) -> F64:
    """One layer, [T, D] → [T, D]: attention, then the feed-forward, each added to the stream.

    before   x + f(norm(x))               Llama
    after    x + norm(f(x))               OLMo 2
    around   x + norm(f(norm(x)))         Gemma 2
    beside   both halves read the same x  GPT-NeoX
    """
    family = config.family

    def mixed(x: F64) -> F64:
        return attention(x, params["self_attn"], config, layer)

    def fed(x: F64) -> F64:
        return mixture(x, params["mlp"], family) if layer.has_experts else feed_forward(x, params["mlp"], family)

    def normed(x: F64, name: str) -> F64:
        return norm(x, params, name, config)

    scale = family.residual_scale
    match family.placement:
        case "before":
            x = x + scale * mixed(normed(x, "input_layernorm"))
            return x + scale * fed(normed(x, "post_attention_layernorm"))
        case "after":
            x = x + normed(mixed(x), "post_attention_layernorm")
            return x + normed(fed(x), "post_feedforward_layernorm")
        case "around":
            x = x + normed(mixed(normed(x, "input_layernorm")), "post_attention_layernorm")
            return x + normed(fed(normed(x, "pre_feedforward_layernorm")), "post_feedforward_layernorm")
        case "beside":
            name = "post_attention_layernorm" if "post_attention_layernorm" in params else "input_layernorm"
            return x + mixed(normed(x, "input_layernorm")) + fed(normed(x, name))


_quietly = np.errstate(over="ignore", invalid="ignore")  # what overflows comes out as ∞ or NaN: the engine looks for it


@_quietly
def hidden_states(config: ModelConfig, params: Params, tokens: Sequence[int]) -> F64:
    """Token ids [T] → the last layer's output, normed, [T, D]. Row t depends on tokens 0 … t only."""
    family = config.family
    x = params["embed_tokens"][np.asarray(tokens)] * family.embedding_scale
    if "embed_positions" in params:
        x = x + params["embed_positions"][: len(tokens)]
    for layer, own in zip(family.layers, params["layers"], strict=True):
        x = block(x, own, config, layer)
    return norm(x, params, "norm", config)


@_quietly
def unembed(config: ModelConfig, params: Params, x: F64) -> F64:
    """[..., D] → raw logits [..., V]."""
    family = config.family
    return cap(linear(x, params, "lm_head") * family.logit_scale, family.logit_cap)


def forward(config: ModelConfig, params: Mapping[str, Any], tokens: Sequence[int]) -> F64:
    """Token ids [T] → raw logits [T, V]; row t scores the token at position t + 1."""
    return unembed(config, params, hidden_states(config, params, tokens))
