"""What a model is made of, apart from its weights: the sizes that config.json gives, and how it differs from Llama.

Read model.py first: it needs the sizes and the first layer's rotary positions only. What a `Family` declares is carried
out in transformer.py; config.json becomes a ModelConfig in checkpoint/config.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

Params = Mapping[str, Any]


class Rope(NamedTuple):
    """Rotary positions: the angle that each pair of coordinates turns by per position, in radians, [R/2]; the first R
    coordinates of a head are turned, the rest stay. `magnitude` stretches what is turned (YaRN, LongRoPE)."""

    frequencies: tuple[float, ...]
    theta: float  # the base of the plain frequencies, which `frequencies` may be a stretching of
    magnitude: float = 1.0

    @classmethod
    def plain(cls, theta: float, dim: int) -> Rope:
        """θ^(−2i/R), with R = dim (Su et al. 2021)."""
        return cls(tuple((theta ** -(np.arange(0, dim, 2) / dim)).tolist()), theta)

    @property
    def turning(self) -> tuple[tuple[float, ...], float]:
        """All that decides what a position does to a head."""
        return self.frequencies, self.magnitude


class Layer(NamedTuple):
    """What may differ from layer to layer."""

    rope: Rope | None  # None: this layer does not know positions
    window: int | None  # a position sees itself and the window − 1 before it; None: all before it
    has_experts: bool = False


@dataclass(frozen=True, slots=True)
class Experts:
    """The feed-forwards of a layer that has several, and sends every token to some of them."""

    count: int  # E
    per_token: int  # how many of them a token is sent to
    is_normalized: bool  # whether the weights of those sum to 1


@dataclass(frozen=True, slots=True)
class Family:
    """What a model is made of; the defaults are Llama's."""

    architecture: str  # the name in config.json
    layers: tuple[Layer, ...]
    score_scale: float  # a query's product with a key is multiplied by it
    norm: Literal["rms", "rms_offset", "layer"] = "rms"  # rms_offset: its weight is 1 + what is stored
    placement: Literal["before", "after", "around", "beside"] = "before"  # of the norms; see transformer.block
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    is_gated: bool = True
    query_key_norm: Literal["none", "head", "whole"] = "none"  # of each head, or of all heads' coordinates as one row
    score_cap: float | None = None
    logit_cap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # of what a half of a layer adds, where norms come before
    logit_scale: float = 1.0
    experts: Experts | None = None
    expert_size: int = 0  # an expert's feed-forward width
    biases: frozenset[str] = frozenset()  # projections that have one
    learned_positions: int = 0  # rows of embed_positions; 0: there is none

    @classmethod
    def llama(cls, num_hidden_layers: int, head_dim: int, rope: Rope | None = None) -> Family:
        """A Llama's: whole heads are rotated, by the plain frequencies of θ = 10,000 if no others are given."""
        layer = Layer(rope or Rope.plain(10000.0, head_dim), None)
        return cls("LlamaForCausalLM", (layer,) * num_hidden_layers, head_dim**-0.5)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a model, under the names of config.json, and its family."""

    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_hidden_layers: int  # L
    num_attention_heads: int  # N
    num_key_value_heads: int  # K
    head_dim: int  # H
    max_position_embeddings: int  # the context: prompt and completion together
    rms_norm_eps: float
    tie_word_embeddings: bool
    eos_token_ids: frozenset[int]  # of generation_config.json, else of config.json
    bos_token_id: int | None
    family: Family
