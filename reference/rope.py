"""Rotary frequencies as config.json declares them: plain ones, and the ways to stretch them over a longer context.

    default   θ^(−2i/R)                                                    Su et al. 2021
    linear    all of them divided by `factor`                              Chen et al. 2023
    dynamic   plain within the context that the model has, and none of ours is longer
    llama3    slow turns divided by `factor`, fast ones kept, a ramp between                Llama 3.1
    yarn      the same by another ramp, and what is turned is stretched    Peng et al. 2023
    longrope  a factor of its own for every frequency; one set if the context is longer than the original one, another
              if it is not                                                 Ding et al. 2024

Rotary positions must be a function of the position alone, or a token's logits would change when the text grows. That is
why the context, and not the length of a text, decides in the last one.
"""

from __future__ import annotations

import math

import numpy as np

from gnomon.reference.entries import (
    Entries,
    UnsupportedModel,
    flag,
    positive,
    positive_or_none,
    positives,
    size,
)
from gnomon.reference.model import F64
from gnomon.reference.request import shown
from gnomon.reference.transformer import Rope

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


def rope_of(rope: Entries, dim: int, longest: int, context: int) -> Rope:
    """rope: the entries rope_type, rope_theta and what the type needs · dim: how many coordinates of a head are turned
    (R) · longest: the positions that the model's files allow · context: those that it is served with."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    kind = "longrope" if kind == "su" else kind  # as Phi-3's first files call it
    if kind not in ROPE_TYPES:
        raise UnsupportedModel(f"rope_type {shown(kind)} is not supported; supported: {', '.join(ROPE_TYPES)}")
    plain = positive(rope, "rope_theta", 10000.0) ** -(np.arange(0, dim, 2) / dim)
    magnitude = 1.0
    match kind:
        case "linear":
            plain = plain / positive(rope, "factor")
        case "llama3":
            plain = _llama3(plain, rope)
        case "yarn":
            plain, magnitude = _yarn(plain, rope, longest)
        case "longrope":
            plain, magnitude = _longrope(plain, rope, longest, context)
    return Rope(tuple(plain.tolist()), magnitude)


def _llama3(plain: F64, rope: Entries) -> F64:
    low, high = positive(rope, "low_freq_factor"), positive(rope, "high_freq_factor")
    turns = size(rope, "original_max_position_embeddings") * plain / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return keep * plain + (1 - keep) * plain / positive(rope, "factor")


def _yarn(plain: F64, rope: Entries, longest: int) -> tuple[F64, float]:
    original = size(rope, "original_max_position_embeddings", longest)
    factor = positive(rope, "factor", longest / original)
    dim, theta = 2 * len(plain), positive(rope, "rope_theta", 10000.0)

    def pair_that_turns(times: float) -> float:
        """Which pair of coordinates turns so many times within the original context."""
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(positive(rope, "beta_fast", 32.0)), pair_that_turns(positive(rope, "beta_slow", 1.0))
    if flag(rope, "truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(len(plain)) - low) / (high - low if high != low else 0.001), 0.0, 1.0)
    return plain / factor * ramp + plain * (1 - ramp), _yarn_magnitude(rope, factor)


def _yarn_magnitude(rope: Entries, factor: float) -> float:
    def stretched(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    given = positive_or_none(rope, "attention_factor")
    one, other = rope.get("mscale"), rope.get("mscale_all_dim")
    if given is not None:
        return given
    if one and other:
        return stretched(positive(rope, "mscale")) / stretched(positive(rope, "mscale_all_dim"))
    return stretched(1.0)


def _longrope(plain: F64, rope: Entries, longest: int, context: int) -> tuple[F64, float]:
    original = size(rope, "original_max_position_embeddings", longest)
    which = "long_factor" if context > original else "short_factor"
    factor = positive(rope, "factor", longest / original)
    magnitude = positive_or_none(rope, "attention_factor")
    if magnitude is None:
        magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return plain / np.array(positives(rope, which, len(plain))), magnitude
