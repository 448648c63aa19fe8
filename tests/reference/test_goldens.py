"""Draws worked out by hand: 64-bit integers and 60-digit decimals, no line of this project.

Each golden passes through every stage of the law, and each was chosen so that most stages decide its outcome: without
the bias, the penalties, the temperature, the nucleus or the noise another token would have come out.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from gnomon.reference.prng import DrawKey, step_key, token_words
from gnomon.reference.sampler import SamplingParams, Trace, sample, trace_draw

A_LOGITS, A_COUNTS = np.array([1.0, 0.5, -0.25, 2.0, 0.0]), np.array([0, 2, 0, 1, 0])
A = SamplingParams(
    temperature=0.5, top_p=0.9, frequency_penalty=0.5, presence_penalty=0.25, logit_bias={1: 1.5, 3: -2.0, 4: 0.25}
)
A_DRAW = DrawKey(seed=-24, candidate=0, step=0)

B_LOGITS, B_COUNTS = np.array([0.75, 1.5, 0.0, -1.0]), np.array([1, 3, 0, 2])
B = SamplingParams(
    temperature=0.75, top_p=0.85, frequency_penalty=-0.25, presence_penalty=1.5, logit_bias={0: -0.5, 2: 1.25, 3: 0.5}
)
B_DRAW = DrawKey(2**40 + 140, 2, 5)


def close(got: NDArray[np.float64] | None, derived: list[float]) -> None:
    assert got is not None
    np.testing.assert_allclose(got, derived, rtol=0, atol=1e-12)


def words(draw: DrawKey, vocabulary: int) -> list[tuple[int, int]]:
    x0, x1 = token_words(draw, np.arange(vocabulary))
    return list(zip(x0.tolist(), x1.tolist(), strict=True))


def check_noise_and_outcome(drawn: Trace, noise: list[float], score: list[float], token: int, margin: float) -> None:
    close(drawn.noise, noise)
    close(drawn.score, score)
    assert drawn.token == token
    assert drawn.margin == pytest.approx(margin, abs=1e-12)


def test_golden_a_every_stage_of_one_draw() -> None:
    """Five ids, l = (1, 0.5, −0.25, 2, 0), c = (0, 2, 0, 1, 0), seed −24, candidate 0, step 0.

    1  Σ e^l = 2.718281828 + 1.648721271 + 0.778800783 + 7.389056099 + 1 = 13.534859981, its ln 2.605268578067150:
       lp = (−1.605268578, −2.105268578, −2.855268578, −0.605268578, −2.605268578)
    2  + (0, 1.5, 0, −2, 0.25)                 = (1, 2, −0.25, 0, 0.25)
    3  − 0.5 · (0, 2, 0, 1, 0)                 = (1, 1, −0.25, −0.5, 0.25)
       − 0.25 · (0, 1, 0, 1, 0)                = (1, 0.75, −0.25, −0.75, 0.25)
    5  max 1; (z − 1) / 0.5                    = (0, −0.5, −2.5, −3.5, −1.5)
    6  e^s = (1, 0.606530660, 0.082084999, 0.030197383, 0.223130160), sum 1.941943202
       in the order 0, 1, 4, 2, 3 the mass before each is 0, 0.514948120, 0.827279942, 0.942180399, 0.984449914:
       below 0.9 for 0, 1, 4: these are kept
    7  S = 2⁶⁴ − 24: key₀ = (ffffffff, ffffffe8), key₁ = threefry(key₀, (0, 0)) = (cb8fd75e, e9e0ff79)
       words and g = −ln E of the ids, e.g. id 0: aa1352c4 is above 2³¹, complemented 55ecad3b,
       w = 0.335642650, E = −ln w = 1.091708228, g = −0.087743651; id 4: 323280e4 is below,
       w = 0.196083122, E = −ln(1 − w) = 0.218259401, g = 1.522071012
       s + g = (−0.087743651, −2.291089710, dropped, dropped, 0.022071012): token 4, ahead by 0.109814662.
       Dropped id 2 would have won with 0.381948184.
    """
    drawn = trace_draw(A_LOGITS, A_COUNTS, A, A_DRAW)
    close(drawn.logprobs, [-1.605268578067150, -2.105268578067150, -2.855268578067150,
                           -0.605268578067150, -2.605268578067150])  # fmt: skip
    close(drawn.biased, [1, 2, -0.25, 0, 0.25])
    close(drawn.penalized, [1, 0.75, -0.25, -0.75, 0.25])
    close(drawn.scaled, [0, -0.5, -2.5, -3.5, -1.5])
    assert drawn.kept is not None
    assert drawn.kept.tolist() == [True, True, False, False, True]
    assert [int(half[0]) for half in step_key(A_DRAW)] == [0xCB8FD75E, 0xE9E0FF79]
    assert words(A_DRAW, 5) == [
        (0xAA1352C4, 0x85F04501), (0xFF5CE60A, 0x9512F9E5), (0x0DF2BA54, 0x56EF6EC2), (0x19460616, 0xDD5CE735),
        (0x323280E4, 0x9B34AB0C),
    ]  # fmt: skip
    check_noise_and_outcome(
        drawn,
        [-0.087743650805500, -1.791089709886627, 2.881948183656648, 2.263897695795428, 1.522071011594341],
        [-0.087743650805500, -2.291089709886627, -np.inf, -np.inf, 0.022071011594341],
        token=4,
        margin=0.109814662399841,
    )


def test_golden_b_every_stage_of_one_draw() -> None:
    """Four ids, l = (0.75, 1.5, 0, −1), c = (1, 3, 0, 2), seed 2⁴⁰ + 140, candidate 2, step 5.

    1  ln Σ e^l = 2.075253851547729: lp = (−1.325253852, −0.575253852, −2.075253852, −3.075253852)
    2  + (−0.5, 0, 1.25, 0.5)                  = (0.25, 1.5, 1.25, −0.5)
    3  + 0.25 · (1, 3, 0, 2), a negative penalty adds = (0.5, 2.25, 1.25, 0)
       − 1.5 · (1, 1, 0, 1)                    = (−1, 0.75, 1.25, −1.5)
    5  max 1.25; (z − 1.25) / 0.75             = (−3, −2/3, 0, −11/3)
    6  e^s = (0.049787068, 0.513417119, 1, 0.025561533), sum 1.588765721
       in the order 2, 1, 0, 3 the mass before each is 0, 0.629419421, 0.952574127, 0.983911075:
       below 0.85 for 2 and 1: these are kept
    7  key₀ = (00000100, 0000008c), key₁ = threefry(key₀, (2, 5)) = (ad019db4, 8a17b46a)
       s + g = (dropped, −1.389308528, −1.268172929, dropped): token 2, ahead by 0.121135599.
       Dropped id 0 would have won with 1.930755897.
    """
    drawn = trace_draw(B_LOGITS, B_COUNTS, B, B_DRAW)
    close(drawn.logprobs, [-1.325253851547729, -0.575253851547729, -2.075253851547729, -3.075253851547729])
    close(drawn.biased, [0.25, 1.5, 1.25, -0.5])
    close(drawn.penalized, [-1, 0.75, 1.25, -1.5])
    close(drawn.scaled, [-3, -2 / 3, 0, -11 / 3])
    assert drawn.kept is not None
    assert drawn.kept.tolist() == [False, True, True, False]
    assert [int(half[0]) for half in step_key(B_DRAW)] == [0xAD019DB4, 0x8A17B46A]
    assert words(B_DRAW, 4) == [
        (0x01D788A2, 0xB55629BF), (0xDF5E12C1, 0x2280F507), (0xF8ADAD8C, 0x078AD0AE), (0x88A53510, 0x87AB358A),
    ]  # fmt: skip
    check_noise_and_outcome(
        drawn,
        [4.930755897221330, -0.722641861004327, -1.268172929134257, 0.270394952013480],
        [-np.inf, -1.389308527670994, -1.268172929134257, -np.inf],
        token=2,
        margin=0.121135598536737,
    )


def test_golden_greedy_draw() -> None:
    """The penalised logits of golden A are (1, 0.75, −0.25, −0.75, 0.25): id 0, ahead by 0.25, whatever the seed."""
    for seed in (-24, 0, 1):
        drawn = trace_draw(A_LOGITS, A_COUNTS, replace(A, temperature=0.0), DrawKey(seed, 0, 0))
        close(drawn.penalized, [1, 0.75, -0.25, -0.75, 0.25])
        assert (drawn.token, drawn.margin) == (0, 0.25)
        assert (drawn.scaled, drawn.kept, drawn.noise, drawn.score) == (None, None, None, None)


@pytest.mark.parametrize(
    ("without", "token"),
    [
        ({"logit_bias": None}, 3),
        ({"frequency_penalty": 0.0}, 0),
        ({"temperature": 1.0}, 2),
        ({"top_p": 1.0}, 2),
        ({"temperature": 0.0}, 0),
    ],
)
def test_golden_a_without_a_stage_is_another_token(without: dict[str, float | None], token: int) -> None:
    """The tokens were derived like the golden itself, with the stage left out; with all stages it is token 4."""
    params = replace(A, **without)  # type: ignore[arg-type]
    assert sample(A_LOGITS, A_COUNTS, params, A_DRAW)[0] == token


@pytest.mark.parametrize(
    ("without", "token"),
    [({"logit_bias": None}, 1), ({"presence_penalty": 0.0}, 1), ({"temperature": 1.0}, 1), ({"top_p": 1.0}, 0)],
)
def test_golden_b_without_a_stage_is_another_token(without: dict[str, float | None], token: int) -> None:
    """The tokens were derived like the golden itself, with the stage left out; with all stages it is token 2."""
    params = replace(B, **without)  # type: ignore[arg-type]
    assert sample(B_LOGITS, B_COUNTS, params, B_DRAW)[0] == token


def test_the_laws_known_draw() -> None:
    """Seed −1, candidate 2, t 3, v 50256: the numbers printed in the law."""
    assert [int(half[0]) for half in step_key(DrawKey(-1, 2, 3))] == [0xD3DA3AC7, 0x40BA5D18]
    x0, x1 = token_words(DrawKey(-1, 2, 3), np.array([50256]))
    assert (int(x0[0]), int(x1[0])) == (0x551BC202, 0x844C86ED)
    drawn = trace_draw(np.zeros(50257), np.zeros(50257, np.int64), SamplingParams(), DrawKey(-1, 2, 3))
    assert drawn.noise is not None
    assert drawn.noise[50256] == pytest.approx(0.90597369, abs=5e-9)
