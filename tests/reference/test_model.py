"""The teaching model against tiny hand values and plain loops, and the general transformer against it, bit for bit.

No other library's model is needed here; test_parity_transformers.py holds the whole against the canonical one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gnomon.reference import transformer
from gnomon.reference.arrays import F64
from gnomon.reference.checkpoint.load import Checkpoint, load_checkpoint
from gnomon.reference.model import attention, forward, inverse_frequencies, rms_norm, rotate, swiglu
from gnomon.reference.model_config import Family, ModelConfig, Rope
from gnomon.reference.rope import rope_of
from helpers.models import tiny_llama

SMALL = ModelConfig(
    vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, head_dim=4, max_position_embeddings=32, rms_norm_eps=1e-6, tie_word_embeddings=False,
    eos_token_ids=frozenset(), bos_token_id=None, family=Family.llama(1, 4, Rope.plain(100.0, 4)),
)  # fmt: skip


def test_rms_norm_of_hand_values() -> None:
    """Row (3, 4): mean square 12.5; with eps 3.5 the divisor is 4. Row (0, 0): 0, not NaN."""
    x, weight = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([2.0, -1.0])
    np.testing.assert_array_equal(rms_norm(x, weight, 3.5), [[1.5, -1.0], [0, 0]])


def test_swiglu_of_hand_values() -> None:
    """Gates ln 3 and −ln 3 have silu 3/4·ln 3 and −1/4·ln 3; ups are 2 and 4: in all 1.5 ln 3 and −ln 3."""
    ln3 = np.log(3.0)
    x = np.array([[1.0, 2.0]])
    gate, up, down = np.array([[ln3, 0], [0, -ln3 / 2]]), np.array([[2.0, 0], [0, 2.0]]), np.array([[1.0, 0], [1, 1]])
    np.testing.assert_allclose(swiglu(x, gate, up, down), [[1.5 * ln3, 0.5 * ln3]], rtol=1e-15)


def test_swiglu_of_a_very_negative_gate_is_0() -> None:
    one = np.ones((1, 1))
    assert swiglu(one, -5000 * one, one, one)[0, 0] == 0


def test_rotate_turns_the_pair_i_and_i_plus_half() -> None:
    x = np.array([[[1.0, 2.0, 3.0, 5.0]]])
    turned = rotate(x, np.array([[np.pi / 2, 0.0]]))
    np.testing.assert_allclose(turned, [[[-3, 2, 1, 5]]], atol=1e-15)
    np.testing.assert_array_equal(rotate(x, np.zeros((1, 2))), x)


def test_rotated_products_depend_on_the_distance_only() -> None:
    rng = np.random.default_rng(1)
    q, k, frequencies = rng.normal(size=4), rng.normal(size=4), inverse_frequencies(SMALL)

    def product(at_q: int, at_k: int) -> float:
        turned = [rotate(v[None, None], at * frequencies[None])[0, 0] for v, at in ((q, at_q), (k, at_k))]
        return float(turned[0] @ turned[1])

    for at in (0, 1, 7, 100):
        assert product(at + 3, at) == pytest.approx(product(3, 0), abs=1e-12)
    assert abs(product(3, 0) - product(4, 0)) > 1e-3
    assert abs(product(3, 0) - product(0, 3)) > 1e-3


def test_inverse_frequencies_are_powers_of_theta() -> None:
    np.testing.assert_allclose(inverse_frequencies(SMALL), [1, 0.1], rtol=1e-15)
    np.testing.assert_allclose(Rope.plain(16, 8).frequencies, [1, 0.5, 0.25, 0.125])


def test_llama3_scaling_keeps_fast_divides_slow_and_mixes_between() -> None:
    """A pair of frequency f turns 64·f/2π times in the trained context: 10.19, 1.59, 0.25 and 0.04 times here.

    With the limits 4 and 10 the first is kept and the others divided by 8; with the limits 9.19 and 13.19 the first
    is a quarter of the way up: a quarter of it kept, three quarters divided.
    """
    theta = 6.4**4
    plain = np.array(Rope.plain(theta, 8).frequencies)
    np.testing.assert_allclose(plain, [1, 1 / 6.4, 1 / 6.4**2, 1 / 6.4**3])

    def scaled(low: float, high: float) -> F64:
        form = {"rope_type": "llama3", "rope_theta": theta, "factor": 8.0, "low_freq_factor": low,
                "high_freq_factor": high, "original_max_position_embeddings": 64}  # fmt: skip
        return np.array(rope_of({"rope_parameters": form}, 8, 1.0, 128, 128).frequencies)

    fast = scaled(4.0, 10.0)
    assert fast[0] == plain[0]
    np.testing.assert_allclose(fast[1:], plain[1:] / 8, rtol=1e-15)
    middle = 64 / (2 * np.pi)
    np.testing.assert_allclose(scaled(middle - 1, middle + 3)[0], 0.25 * plain[0] + 0.75 * plain[0] / 8, rtol=1e-13)


def attend(config: ModelConfig, x: F64, q: F64, k: F64, v: F64, o: F64) -> F64:
    return attention(x, q, k, v, o, config, np.arange(len(x))[:, None] * inverse_frequencies(config))


def test_grouped_heads_equal_repeated_heads() -> None:
    """Two key/value heads for four query heads are four of which 0, 1 and 2, 3 are equal, in this order."""
    rng = np.random.default_rng(2)
    x, q, o = rng.normal(size=(6, 8)), rng.normal(size=(16, 8)), rng.normal(size=(8, 16))
    k, v = rng.normal(size=(2, 4, 8)), rng.normal(size=(2, 4, 8))
    grouped = attend(SMALL, x, q, k.reshape(8, 8), v.reshape(8, 8), o)
    full = replace(SMALL, num_key_value_heads=4)
    repeated = attend(full, x, q, k.repeat(2, 0).reshape(16, 8), v.repeat(2, 0).reshape(16, 8), o)
    tiled = attend(full, x, q, np.tile(k, (2, 1, 1)).reshape(16, 8), np.tile(v, (2, 1, 1)).reshape(16, 8), o)
    np.testing.assert_allclose(grouped, repeated, rtol=1e-12, atol=1e-12)
    assert abs(grouped - tiled).max() > 1e-3


def attention_by_loops(config: ModelConfig, x: F64, q: F64, k: F64, v: F64, o: F64, shift: int = 0) -> F64:
    """The same by plain loops; `shift` moves the mask: −1 hides a token from itself, 1 shows it the next."""
    T, N, H = len(x), config.num_attention_heads, config.head_dim
    frequencies, group = inverse_frequencies(config), N // config.num_key_value_heads
    result = np.zeros((T, N * H))

    def turned(vector: F64, at: int) -> F64:
        pairs = (vector[: H // 2] + 1j * vector[H // 2 :]) * np.exp(1j * at * frequencies)
        return np.concatenate([pairs.real, pairs.imag])

    for t in range(T):
        for head in range(N):
            rows, key_rows = slice(head * H, head * H + H), slice(head // group * H, head // group * H + H)
            seen = range(max(1, min(T, t + 1 + shift)))
            scores = [turned(q[rows] @ x[t], t) @ turned(k[key_rows] @ x[s], s) / H**0.5 for s in seen]
            shares = np.exp(scores) / np.exp(scores).sum()
            result[t, rows] = sum(share * (v[key_rows] @ x[s]) for share, s in zip(shares, seen, strict=True))
    return result @ o.T


def test_attention_is_the_plain_loop_and_a_shifted_mask_is_not() -> None:
    rng = np.random.default_rng(3)
    x, q, o = rng.normal(size=(5, 8)), rng.normal(size=(16, 8)), rng.normal(size=(8, 16))
    k, v = rng.normal(size=(8, 8)), rng.normal(size=(8, 8))
    np.testing.assert_allclose(attend(SMALL, x, q, k, v, o), attention_by_loops(SMALL, x, q, k, v, o), rtol=1e-10)
    for shift in (-1, 1):
        shifted = attention_by_loops(SMALL, x, q, k, v, o, shift)
        assert abs(shifted - attend(SMALL, x, q, k, v, o)).max() > 1e-2


def test_logits_of_a_position_do_not_change_with_later_tokens(tiny: Checkpoint) -> None:
    tokens = [5, 9, 200, 17, 3, 44, 8]
    whole = forward(tiny.config, tiny.params, tokens)
    assert whole.shape == (7, tiny.config.vocab_size)
    for t in range(1, 7):
        for rest in ([], [1], [250, 2, 6]):
            part = forward(tiny.config, tiny.params, [*tokens[:t], *rest])
            np.testing.assert_allclose(part[:t], whole[:t], rtol=1e-12, atol=1e-12)


def test_logits_of_a_position_change_with_every_earlier_token_and_its_own(tiny: Checkpoint) -> None:
    tokens = [5, 9, 200, 17, 3]
    last = forward(tiny.config, tiny.params, tokens)[-1]
    for t in range(5):
        changed = [v + (i == t) for i, v in enumerate(tokens)]
        assert abs(forward(tiny.config, tiny.params, changed)[-1] - last).max() > 1e-3
    assert abs(forward(tiny.config, tiny.params, [9, 5, 200, 17, 3])[-1] - last).max() > 1e-3


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "is_to_the_bit"),
    [
        ({"num_key_value_heads": 4}, False),
        ({"head_dim": 16}, True),
        ({"head_dim": 4, "tie_word_embeddings": True}, True),
        ({"head_dim": 16, "rope_parameters": LLAMA3, "rope_theta": 500.0}, True),
        ({"head_dim": 6, "num_key_value_heads": 1}, False),
    ],
    ids=str,
)
def test_a_llama_by_the_general_code_is_the_llama_of_model_py(
    tmp_path: Path, entries: dict[str, Any], is_to_the_bit: bool
) -> None:
    """To the last bit where √H is a power of two: model.py divides by it, the other file multiplies by its inverse."""
    checkpoint = load_checkpoint(tiny_llama(tmp_path, **entries))
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    expected = forward(checkpoint.config, checkpoint.params, ids)
    general = transformer.forward(checkpoint.config, checkpoint.params, ids)
    np.testing.assert_allclose(general, expected, rtol=0, atol=1e-12)
    assert (general == expected).all() or not is_to_the_bit
