"""The model: Llama, a transformer in NumPy, float64, for one sequence of T tokens. Read it from top to bottom.

    token ids [T] → embedding [T, D] → L × (x + attention(norm(x)); x + swiglu(norm(x))) → norm → logits [T, V]

There is no batch and no cache: every call computes the whole sequence, and row t of the result depends on tokens 0 … t
only. Functions take arrays whose parameter names are the checkpoint's own; a weight is stored [out, in], so a product
is `x @ weight.T`. This file is to be read: what the engine runs is transformer.py, which says what other families do
otherwise, and which for a Llama gives what this file gives. Sources: Vaswani et al. 2017 (attention), Zhang & Sennrich
2019 (RMSNorm), Su et al. 2021 (rotary positions), Shazeer 2020 (SwiGLU), Ainslie et al. 2023 (grouped queries), Touvron
et al. 2023 (Llama).

Axis letters, here and everywhere in this project:
B sequences · T query positions · S cached positions · D model width · N query heads · K key/value heads · G = N/K ·
H head width · F feed-forward width · V vocabulary · L layers
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gnomon.reference.arrays import F64
from gnomon.reference.model_config import ModelConfig, Params


def rms_norm(x: F64, weight: F64, eps: float) -> F64:
    """[T, D] → [T, D]: every row divided by its root mean square, then scaled by weight [D]."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def inverse_frequencies(config: ModelConfig) -> F64:
    """The angle that each pair of a head's coordinates turns by per position, in radians, [H/2]: θ^(−2i/H), or what
    config.json makes of it for a longer context (rope.py). It is the same in every layer."""
    rope = config.family.layers[0].rope
    assert rope is not None
    return np.array(rope.frequencies)


def rotate(x: F64, angle: F64) -> F64:
    """Rotary positions: x [T, N, H], angle [T, H/2] → [T, N, H]. Coordinate i is paired with i + H/2."""
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def softmax(x: F64) -> F64:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention(x: F64, q_proj: F64, k_proj: F64, v_proj: F64, o_proj: F64, config: ModelConfig, angle: F64) -> F64:
    """Causal self-attention with grouped queries, [T, D] → [T, D]; G = N/K query heads share one key/value head.

    q_proj [N·H, D] · k_proj, v_proj [K·H, D] · o_proj [D, N·H]
    """
    T, K, H = len(x), config.num_key_value_heads, config.head_dim
    q = rotate((x @ q_proj.T).reshape(T, -1, H), angle).reshape(T, K, -1, H)
    k = rotate((x @ k_proj.T).reshape(T, K, H), angle)
    v = (x @ v_proj.T).reshape(T, K, H)
    scores = np.einsum("tkgh,skh->kgts", q, k, optimize=True) / np.sqrt(H)
    scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)  # position t sees s ≤ t
    mixed = np.einsum("kgts,skh->tkgh", softmax(scores), v, optimize=True)
    return mixed.reshape(T, -1) @ o_proj.T


def swiglu(x: F64, gate_proj: F64, up_proj: F64, down_proj: F64) -> F64:
    """The feed-forward half of a layer, [T, D] → [T, D]; gate_proj, up_proj [F, D], down_proj [D, F]."""
    gate = x @ gate_proj.T
    with np.errstate(over="ignore"):  # exp(−gate) may overflow to ∞, and gate / ∞ is the 0 it should be
        silu = gate / (1 + np.exp(-gate))
    return (silu * (x @ up_proj.T)) @ down_proj.T


def block(
    x: F64, input_layernorm: F64, self_attn: Params, post_attention_layernorm: F64, mlp: Params,
    config: ModelConfig, angle: F64,
) -> F64:  # fmt: skip
    """One layer, [T, D] → [T, D]: each half reads a normed copy of the stream and adds to it."""
    x = x + attention(rms_norm(x, input_layernorm, config.rms_norm_eps), **self_attn, config=config, angle=angle)
    return x + swiglu(rms_norm(x, post_attention_layernorm, config.rms_norm_eps), **mlp)


_quietly = np.errstate(over="ignore", invalid="ignore")  # what overflows comes out as ∞ or NaN: the engine looks for it


@_quietly
def hidden_states(config: ModelConfig, params: Params, tokens: Sequence[int]) -> F64:
    """Token ids [T] → the last layer's output, normed, [T, D]. Row t depends on tokens 0 … t only."""
    angle = np.arange(len(tokens))[:, None] * inverse_frequencies(config)
    x = params["embed_tokens"][np.asarray(tokens)]
    for layer in params["layers"]:
        x = block(x, **layer, config=config, angle=angle)
    return rms_norm(x, params["norm"], config.rms_norm_eps)


@_quietly
def unembed(x: F64, params: Params) -> F64:
    """[..., D] → raw logits [..., V]. With tied embeddings `lm_head` is `embed_tokens`."""
    return x @ params["lm_head"].T


def forward(config: ModelConfig, params: Params, tokens: Sequence[int]) -> F64:
    """Token ids [T] → raw logits [T, V]; row t scores the token at position t + 1. 1 ≤ T ≤ the context, ids in [0,
    V)."""
    return unembed(hidden_states(config, params, tokens), params)
