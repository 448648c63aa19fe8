"""The model in flax.nnx, with the names and shapes of a Hugging Face Llama checkpoint.

B sequences, T positions, D width, N heads, K key/value heads, G = N/K, H head width, F, V as everywhere.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gnomon.jax_engine.training.config import ModelShape

FlaxParams = Any  # the nested dict of arrays that nnx.split gives, as a pytree
QUERY_BLOCK = 128  # positions whose attention is computed together; changes the speed only


class Linear(nnx.Module):
    """y = x Wᵀ without a bias; weight [out, in], as checkpoints store it and as XLA's CPU products like it."""

    def __init__(self, fan_in: int, fan_out: int, rngs: nnx.Rngs, scale: float = 1.0) -> None:
        std = scale / math.sqrt(fan_in)
        self.weight = nnx.Param(std * jax.random.normal(rngs.params(), (fan_out, fan_in), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.lax.dot_general(x, self.weight[...], (((1,), (1,)), ((), ())))


class RMSNorm(nnx.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019), weight [D]."""

    def __init__(self, width: int, eps: float) -> None:
        self.weight = nnx.Param(jnp.ones((width,), jnp.float32))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        return x * scale * self.weight[...]


class Embedding(nnx.Module):
    """Token embeddings [V, D], used at both ends of the model."""

    def __init__(self, vocab: int, width: int, rngs: nnx.Rngs) -> None:
        self.weight = nnx.Param(0.02 * jax.random.normal(rngs.params(), (vocab, width), jnp.float32))


def rotary_tables(context: int, head_dim: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [T, H/2] of the rotary embedding (Su et al. 2021), float32, computed in float64."""
    rates = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    angles = np.arange(context)[:, None] * rates
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def turn(x: jax.Array, cos: np.ndarray, sin: np.ndarray) -> jax.Array:
    """Turn x [B, T, heads, H] by its positions; the pairs are (i, i + H/2), as in Hugging Face checkpoints."""
    low, high = jnp.split(x, 2, axis=-1)
    c, s = cos[:, None, :], sin[:, None, :]
    return jnp.concatenate([low * c - high * s, high * c + low * s], axis=-1)


class Attention(nnx.Module):
    """Causal grouped-query attention (Ainslie et al. 2023)."""

    def __init__(self, config: ModelShape, rngs: nnx.Rngs) -> None:
        d, h = config.hidden_size, config.head_dim
        self.shape = (config.num_attention_heads, config.num_key_value_heads, h)
        self.theta = config.rope_theta
        self.q_proj = Linear(d, config.num_attention_heads * h, rngs)
        self.k_proj = Linear(d, config.num_key_value_heads * h, rngs)
        self.v_proj = Linear(d, config.num_key_value_heads * h, rngs)
        out_scale = 1 / math.sqrt(2 * config.num_hidden_layers)
        self.o_proj = Linear(config.num_attention_heads * h, d, rngs, out_scale)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x [B*T, D] and mask [B, T, T] (True: visible) to [B*T, D]."""
        n, k, h = self.shape
        b, t = mask.shape[:2]
        cos, sin = rotary_tables(t, h, self.theta)
        query = turn(self.q_proj(x).reshape(b, t, n, h), cos, sin) * h**-0.5
        key = turn(self.k_proj(x).reshape(b, t, k, h), cos, sin)
        value = self.v_proj(x).reshape(b, t, k, h)
        grouped = query.reshape(b, t, k, n // k, h)
        blocks = []
        for start in range(0, t, QUERY_BLOCK):  # later keys are masked anyway: leave them out by the block
            stop = min(start + QUERY_BLOCK, t)
            scores = jnp.einsum("btkgh,bskh->bkgts", grouped[:, start:stop], key[:, :stop])
            scores = jnp.where(mask[:, None, None, start:stop, :stop], scores, -1e30)
            weights = jax.nn.softmax(scores, axis=-1)
            blocks.append(jnp.einsum("bkgts,bskh->btkgh", weights, value[:, :stop]))
        mixed = jnp.concatenate(blocks, axis=1)
        return self.o_proj(mixed.reshape(b * t, n * h))


class FeedForward(nnx.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelShape, rngs: nnx.Rngs) -> None:
        d, f = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(d, f, rngs)
        self.up_proj = Linear(d, f, rngs)
        self.down_proj = Linear(f, d, rngs, 1 / math.sqrt(2 * config.num_hidden_layers))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nnx.Module):
    """Pre-norm block: attention, then the feed-forward part, each added to the stream."""

    def __init__(self, config: ModelShape, rngs: nnx.Rngs) -> None:
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config, rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.self_attn(self.input_layernorm(x), mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nnx.Module):
    """Llama (Touvron et al. 2023) with tied embeddings: tokens and segments, int32 [B, T], to logits."""

    def __init__(self, config: ModelShape, rngs: nnx.Rngs) -> None:
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, rngs)
        self.layers = nnx.List([DecoderLayer(config, rngs) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def hidden(self, tokens: jax.Array | np.ndarray, segments: jax.Array | np.ndarray) -> jax.Array:
        """The normed last hidden states [B*T, D]; attention is causal and stays within a segment."""
        t = tokens.shape[1]
        mask = jnp.tril(jnp.ones((t, t), bool)) & (segments[:, :, None] == segments[:, None, :])
        x = self.embed_tokens.weight[...][tokens.reshape(-1)]
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)

    def head(self, x: jax.Array) -> jax.Array:
        """Hidden states [..., D] to logits [..., V]."""
        return jax.lax.dot_general(x, self.embed_tokens.weight[...], (((x.ndim - 1,), (1,)), ((), ())))

    def __call__(self, tokens: jax.Array | np.ndarray, segments: jax.Array | np.ndarray) -> jax.Array:
        """Logits [B*T, V]."""
        return self.head(self.hidden(tokens, segments))


def new_params(config: ModelShape, seed: int) -> tuple[nnx.GraphDef[Llama], FlaxParams]:
    """A freshly drawn model, split into its structure and its float32 arrays."""
    graph, state = nnx.split(Llama(config, nnx.Rngs(params=seed)))
    return graph, nnx.to_pure_dict(state)


def token_losses(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Nats of each target [M] under logits [M, V]; the pick is a masked sum, whose gradient is no scatter."""
    hit = targets[:, None] == jnp.arange(logits.shape[-1])
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
