"""The sampler: from the logits of one position to one token. This file is the law (LAW.md, section 4) as code.

    1 report        lp = l − logsumexp(l)                     every log-probability that is ever shown
    2 add_bias      z = l + bias                              −100 is minus 100, not −∞
    3 penalize      z = z − frequency·c − presence·[c > 0]    c counts this candidate's sampled tokens, never the prompt
    4 greedy        temperature == 0: the largest z           lowest id on a tie; nothing below is used
    5 temper        s = (z − max z) / temperature             s = 0 at the maximum
    6 nucleus       top_p < 1: keep the most probable ids     until the mass before the next one reaches top_p
    7 draw          argmax over the kept of s + g             g is Gumbel noise: a function of (seed, candidate, t, id)

Each number is one function on arrays over the vocabulary [V], in float64. `trace_draw` runs them in order and keeps
every intermediate; `sample` is the token at its end. Where the noise comes from is `prng.py`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gnomon.reference.arrays import F64
from gnomon.reference.prng import DrawKey, token_words


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one request are chosen, and when the engine (engine.py) stops choosing: no stage looks at
    `max_tokens` and `end_ids`. Every value is already valid, and a request without a seed has been given one
    (completion.py)."""

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None  # token id → what is added to its logit; None is {}
    end_ids: frozenset[int] = frozenset()  # a candidate ends after sampling one of these


def report(logits: F64) -> F64:
    """1. Log-probabilities in nats of the raw logits, [..., V] → [..., V]. Nothing below changes what is reported."""
    with np.errstate(over="ignore"):  # logits further apart than any float: then −∞
        below = logits - logits.max(axis=-1, keepdims=True)
    return below - np.log(np.exp(below).sum(axis=-1, keepdims=True))


def add_bias(logits: F64, logit_bias: Mapping[int, float] | None) -> F64:
    """2. Plain addition, to any id, the end-of-sequence token's too; [V] → [V]."""
    z = logits.copy()
    for v, bias in (logit_bias or {}).items():
        z[v] += bias
    return z


def penalize(z: F64, counts: NDArray[np.int64], frequency_penalty: float, presence_penalty: float) -> F64:
    """3. `counts` [V]: how often each id occurs among the tokens this candidate has sampled so far."""
    z = z - frequency_penalty * counts
    return z - presence_penalty * (counts > 0)


def greedy(z: F64) -> int:
    """4. The largest z, [V] → id; the lowest id on a tie."""
    return int(np.argmax(z))


def temper(z: F64, temperature: float) -> F64:
    """5. Scaled distances from the maximum, [V] → [V]: 0 at every maximum, negative elsewhere.

    −∞ is legal and means "never": it is what a tiny temperature gives. There is no floor under temperature.
    """
    with np.errstate(over="ignore"):
        distance = z - z.max()
        return np.where(distance == 0, 0.0, distance / temperature)


def nucleus(z: F64, s: F64, top_p: float) -> NDArray[np.bool_]:
    """6. Which ids may be drawn, [V] of bool (Holtzman et al. 2020, "The curious case of neural text degeneration").

    Ids are ranked by (−z, id): by z, since two of them may have one s. Rank 0 is kept; rank j is kept if the mass of
    the ranks before it is below `top_p`, as a running sum in that order. So the token that crosses top_p is kept and
    the next is not; 0 keeps one token; 1 skips the stage and keeps all.
    """
    if top_p == 1:
        return np.ones(len(z), bool)
    e = np.exp(s)  # s ≤ 0, and 0 at the maximum: nothing can overflow
    q = e / e.sum()
    order = np.argsort(-z, kind="stable")  # stable: equal z stay in the order of their ids
    mass_before = np.concatenate([[0.0], np.cumsum(q[order])[:-1]])
    kept_ranks = mass_before < top_p
    kept_ranks[0] = True
    kept = np.zeros(len(z), bool)
    kept[order[kept_ranks]] = True
    return kept


def gumbel(x0: NDArray[np.uint32], x1: NDArray[np.uint32]) -> F64:
    """Standard Gumbel noise in [−3.81, 45.06] from 64 random bits each, two arrays [V] → [V].

    With u the bits read as a fraction of 1 (centred, so never 0 or 1), E = −ln(1 − u) is exponential and g = −ln E
    Gumbel. Large g comes from small E, that is from small u, where u keeps all of its bits. Above ½ it is 1 − u that
    must keep them: there w = 1 − u is formed by complementing the bits (every 0 becomes 1, every 1 becomes 0).
    """
    high = x0 >= 2**31
    w = np.where(high, ~x0, x0) * 2.0**-32 + (np.where(high, ~x1, x1) + 0.5) * 2.0**-64
    E = np.where(high, -np.log(w), -np.log1p(-w))
    return -np.log(E)


def draw(s: F64, g: F64, kept: NDArray[np.bool_]) -> int:
    """7. Gumbel-max, [V] → id: the argmax of s + g is a draw from softmax(s) over the kept ids; lowest id on a tie."""
    return int(np.argmax(np.where(kept, s + g, -np.inf)))


@dataclass(frozen=True, slots=True)
class Trace:
    """Every stage of one draw, and what it was drawn with. Arrays are [V], in float64 but for `counts` and `kept`; the
    last four are None under greedy decoding."""

    counts: NDArray[np.int64]
    params: SamplingParams
    key: DrawKey
    logits: F64  # l
    logprobs: F64  # 1: lp
    biased: F64  # 2: z after the bias
    penalized: F64  # 3: z after the penalties
    token: int  # 4 or 7: the outcome
    # how far the winner is ahead of the runner-up: in z if greedy, in s + g otherwise; inf if it was alone
    margin: float
    scaled: F64 | None = None  # 5: s
    kept: NDArray[np.bool_] | None = None  # 6
    noise: F64 | None = None  # 7: g
    score: F64 | None = None  # 7: s + g, −∞ where not kept


def trace_draw(logits: F64, counts: NDArray[np.int64], params: SamplingParams, key: DrawKey) -> Trace:
    """One draw with all its stages.

    logits [V] float64: raw, finite · counts [V] int64: sampled tokens of this candidate so far · key: which draw it is.
    """
    logprobs = report(logits)
    biased = add_bias(logits, params.logit_bias)
    z = penalize(biased, counts, params.frequency_penalty, params.presence_penalty)
    given = (counts, params, key)
    if params.temperature == 0:
        token = greedy(z)
        return Trace(*given, logits, logprobs, biased, z, token, _lead(z, token))
    s = temper(z, params.temperature)
    kept = nucleus(z, s, params.top_p)
    g = gumbel(*token_words(key, np.arange(len(z))))
    token = draw(s, g, kept)
    score = np.where(kept, s + g, -np.inf)
    return Trace(*given, logits, logprobs, biased, z, token, _lead(score, token), s, kept, g, score)


def sample(logits: F64, counts: NDArray[np.int64], params: SamplingParams, key: DrawKey) -> tuple[int, F64]:
    """The token of one draw, and the log-probabilities [V] to report with it. Arguments as `trace_draw`."""
    drawn = trace_draw(logits, counts, params, key)
    return drawn.token, drawn.logprobs


def _lead(score: F64, winner: int) -> float:
    others = np.delete(score, winner)
    return float(score[winner] - others.max()) if len(others) else float("inf")
