"""Randomness as a function: threefry2x32, and the 64 bits that belong to one (seed, candidate, step, token id).

There is no generator and no state. The bits of a token are a pure function of the seed the request gave, the
candidate's number, the step and the token's id, so no neighbour, batch, slot or cache can change them.

`threefry2x32` is written with operators only: NumPy and JAX arrays of uint32 both pass through it unchanged, and the
fast engines call this very function. Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3"
(2011), with the argument and output order of their Random123 library.
"""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Words = tuple[Any, Any]  # two equally shaped arrays of uint32, NumPy's or JAX's

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA  # the key schedule's third word is k0 ^ k1 ^ PARITY


def threefry2x32(key: Words, counter: Words) -> Words:
    """Encrypts a 2×32-bit counter under a 2×32-bit key, in 20 rounds. Arrays broadcast; uint32 in, uint32 out.

    Give it arrays of at least one dimension: sums are meant to wrap around, and NumPy warns when a *scalar* does.
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    x0, x1 = counter[0] + schedule[0], counter[1] + schedule[1]
    for block in range(5):
        for r in ROTATIONS[block % 2]:
            x0 = x0 + x1
            x1 = ((x1 << r) | (x1 >> (32 - r))) ^ x0
        x0 = x0 + schedule[(block + 1) % 3]
        x1 = x1 + schedule[(block + 2) % 3] + (block + 1)
    return x0, x1


class DrawKey(NamedTuple):
    """Which draw it is: all that its randomness depends on, beside the token's id."""

    seed: int  # the request's; any int, taken mod 2⁶⁴
    candidate: int  # c: its number among the candidates of its prompt, in [0, 2³²)
    step: int  # t: how many tokens it has sampled before, in [0, 2³²)


def step_key(key: DrawKey) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """key₁ of the law: the key of one step of one candidate. Two arrays of shape [1]."""
    s = key.seed % 2**64
    key0 = np.array([s >> 32], np.uint32), np.array([s & 0xFFFFFFFF], np.uint32)
    x0, x1 = threefry2x32(key0, (np.array([key.candidate], np.uint32), np.array([key.step], np.uint32)))
    return x0, x1


def token_words(key: DrawKey, ids: NDArray[np.integer[Any]]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The 64 random bits of every token id in `ids` [V]: two arrays [V] of uint32 (the high word, the low word)."""
    counter = np.asarray(ids).astype(np.uint32)
    x0, x1 = threefry2x32(step_key(key), (counter, np.zeros_like(counter)))
    return x0, x1


def fresh_seed() -> int:
    """The seed of a request that gives none, 64 bits, another one for each of its prompts. Nobody can foresee it."""
    return secrets.randbits(64)
