"""One draw as a table for people: the tokens in it, what every stage of the law did to each, and why it ended so.

A `Trace` has every number of a draw, as arrays over the whole vocabulary. `explain` takes from it the tokens that
matter (the most probable before and after the stages, those with a bias, the winner, the runner-up), in the order
(−z, id) in which the nucleus ranks them, and says in a sentence what became of each. The endpoint that traces a
completion sends this table, and picture.py draws it; neither computes anything of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnomon.reference.arrays import F64
from gnomon.reference.engine import reported
from gnomon.reference.prng import step_key, token_words
from gnomon.reference.sampler import SamplingParams, Trace, report

TOP = 12  # of every ranking
DRAWN = ("report", "bias", "penalties", "temperature", "nucleus", "draw")
GREEDY = ("report", "bias", "penalties", "greedy")


@dataclass(frozen=True, slots=True)
class Row:
    """One token in one draw. logit + bias + penalty = z. What greedy decoding does not come to is None; so is a number
    that is −∞, since JSON has none: a `scaled` of nothing, and the `score` of what could not win."""

    id: int
    label: str
    rank: int  # in the order (−z, id)
    logit: float
    logprob: float
    bias: float
    penalty: float  # what was added in stage 3: negative where the token was made less likely
    z: float
    at_temperature_1: float  # softmax of z: the probability that the temperature starts from
    scaled: float | None
    probability: float | None  # softmax of scaled, before the nucleus
    mass_before: float | None  # the probability of all ranks before this one: what top_p is compared with
    kept: bool | None
    chance: float | None  # to be drawn: softmax of scaled over the kept ids, 0 for the others
    words: tuple[str, str] | None  # the random bits, in hexadecimal
    noise: float | None
    score: float | None
    count: int  # how often this candidate had sampled the token before
    why: str


@dataclass(frozen=True, slots=True)
class Others:
    """The tokens that have no row, taken together."""

    count: int
    probability: float | None
    kept: int | None
    chance: float | None
    best_score: float | None


@dataclass(frozen=True, slots=True)
class Draw:
    """What became of every token that mattered. Rows are in the order (−z, id)."""

    step: int
    candidate: int
    seed: int | None  # None under greedy decoding, which uses none
    key: tuple[str, str] | None  # of the step, in hexadecimal
    params: SamplingParams
    vocab_size: int
    rows: tuple[Row, ...]
    others: Others
    winner: int
    runner_up: int | None  # None: the winner was alone
    margin: float | None
    given: int | None  # the token to compare with, sampled by somebody else

    @property
    def is_greedy(self) -> bool:
        return self.params.temperature == 0

    def row(self, v: int) -> Row:
        return next(row for row in self.rows if row.id == v)

    def to_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "greedy": self.is_greedy,
            "seed": None if self.seed is None else str(self.seed),
            "candidate": self.candidate,
            "key": None if self.key is None else list(self.key),
            "stages": list(GREEDY if self.is_greedy else DRAWN),
            "candidates": [asdict(row) for row in self.rows],
            "others": asdict(self.others),
            "winner": self.winner,
            "runner_up": self.runner_up,
            "margin": self.margin,
        }


def explain(trace: Trace, labels: Sequence[str] | None = None, given: int | None = None) -> Draw:
    """labels [V]: the tokenizer's; without them tokens are called by their ids · given: a token that must have a row,
    whatever became of it: the one that another engine sampled."""
    z, score = trace.penalized, trace.score
    order = np.argsort(-z, kind="stable")
    rank = np.empty(len(z), np.int64)
    rank[order] = np.arange(len(z))
    probability, mass_before = _masses(trace, order)
    chance = _chances(trace)
    plain = np.exp(report(z))
    runner_up = _runner_up(z if score is None else score, trace.token)
    bias = dict(trace.params.logit_bias or {})
    biased = sorted((v for v in bias if bias[v]), key=lambda v: (-abs(bias[v]), v))[:TOP]
    chosen = {*_top(trace.logprobs), *order[:TOP].tolist(), *biased, trace.token}
    chosen |= set() if score is None else {v for v in _top(score) if np.isfinite(score[v])}
    chosen |= {v for v in (runner_up, given) if v is not None}
    ids = sorted(chosen, key=lambda v: int(rank[v]))
    words = None if trace.noise is None else _words(trace, ids)

    def one(array: F64 | None, v: int) -> float | None:
        return None if array is None or not math.isfinite(array[v]) else float(array[v])

    rows = tuple(
        Row(
            id=v,
            label=f"token_id:{v}" if labels is None else labels[v],
            rank=int(rank[v]),
            logit=float(trace.logits[v]),
            logprob=reported(trace.logprobs[v]),
            bias=float(bias.get(v, 0.0)),
            penalty=float(trace.penalized[v] - trace.biased[v]),
            z=float(z[v]),
            at_temperature_1=float(plain[v]),
            scaled=one(trace.scaled, v),
            probability=one(probability, v),
            mass_before=one(mass_before, v),
            kept=None if trace.kept is None else bool(trace.kept[v]),
            chance=one(chance, v),
            words=None if words is None else words[i],
            noise=one(trace.noise, v),
            score=one(score, v),
            count=int(trace.counts[v]),
            why=_why(trace, v, runner_up, mass_before),
        )
        for i, v in enumerate(ids)
    )
    rest = np.ones(len(z), bool)
    rest[ids] = False
    key = step_key(trace.key)
    return Draw(
        step=trace.key.step,
        candidate=trace.key.candidate,
        seed=None if score is None else trace.key.seed,
        key=None if score is None else (_hex(key[0][0]), _hex(key[1][0])),
        params=trace.params,
        vocab_size=len(z),
        rows=rows,
        others=_others(trace, rest, probability, chance),
        winner=trace.token,
        runner_up=runner_up,
        margin=trace.margin if math.isfinite(trace.margin) else None,
        given=given,
    )


def _top(values: F64) -> list[int]:
    return np.argsort(-values, kind="stable")[:TOP].tolist()


def _masses(trace: Trace, order: NDArray[np.int64]) -> tuple[F64 | None, F64 | None]:
    """The probabilities that the nucleus sees, and the mass of the ranks before each id: as `sampler.nucleus` has
    them, to the bit."""
    if trace.scaled is None:
        return None, None
    e = np.exp(trace.scaled)
    q = e / e.sum()
    before = np.empty(len(q))
    before[order] = np.concatenate([[0.0], np.cumsum(q[order])[:-1]])
    return q, before


def _chances(trace: Trace) -> F64 | None:
    """How likely each id is to win the draw: the probability of the kept ones, shared among them alone."""
    if trace.scaled is None or trace.kept is None:
        return None
    e = np.where(trace.kept, np.exp(trace.scaled), 0.0)
    return e / e.sum()


def _runner_up(score: F64, winner: int) -> int | None:
    others = score.copy()
    others[winner] = -np.inf
    second = int(np.argmax(others))
    return second if np.isfinite(others[second]) else None


def _words(trace: Trace, ids: Sequence[int]) -> list[tuple[str, str]]:
    high, low = token_words(trace.key, np.array(ids))
    return [(_hex(x0), _hex(x1)) for x0, x1 in zip(high, low, strict=True)]


def _hex(word: np.uint32) -> str:
    return f"{int(word):08x}"


def _others(trace: Trace, rest: NDArray[np.bool_], probability: F64 | None, chance: F64 | None) -> Others:
    count = int(rest.sum())
    if trace.kept is None or trace.score is None or probability is None or chance is None:
        return Others(count, None, None, None, None)
    kept = rest & trace.kept
    best = float(trace.score[kept].max()) if kept.any() else -math.inf
    mass, left = float(probability[rest].sum()), float(chance[rest].sum())
    return Others(count, mass, int(kept.sum()), left, best if math.isfinite(best) else None)


# ---- in words


def three_digits(x: float) -> str:
    """Three digits, with a real minus."""
    text = f"{x:.0f}" if 1000 <= abs(x) < 1e6 else f"{x:.3g}"
    return text.replace("-", "−") if float(text) else "0"


def percent(p: float) -> str:
    """A probability as one reads it: 12 %, 1.2 %, <0.1 %. What is not all or nothing is not written so."""
    if 0 < p < 0.0005:
        return "<0.1 %"
    if 0.9995 <= p < 1 - 1e-9:
        return ">99.9 %"
    shown = f"{100 * p:.1f}" if p < 0.0995 or 0.9 < p < 0.9995 else f"{100 * p:.0f}"
    return f"{shown.removesuffix('.0')} %"


def beside(mass: float, top_p: float) -> str:
    """A sum of probabilities beside the top_p it is compared with: with as many digits as show on which side it is."""
    for text in (percent(mass), *(f"{100 * mass:.{digits}f} %" for digits in range(1, 15))):
        shown = float(text.strip("<> %")) / 100
        if (shown < top_p) == (mass < top_p) and (0 < shown < 1 or shown == mass):
            return text
    return f"just {'under' if mass < top_p else 'over'} {percent(top_p)}"


def _why(trace: Trace, v: int, runner_up: int | None, mass_before: F64 | None) -> str:
    return "; ".join([*_moved(trace, v), _fate(trace, v, runner_up, mass_before)])


def _moved(trace: Trace, v: int) -> list[str]:
    said = []
    bias, count = float((trace.params.logit_bias or {}).get(v, 0.0)), int(trace.counts[v])
    penalty = float(trace.penalized[v] - trace.biased[v])
    for amount, cause in (
        (bias, "its logit_bias"),
        (penalty, f"a penalty for having come {count} time{'s' * (count != 1)}"),
    ):
        if amount:
            said.append(f"{'raised' if amount > 0 else 'lowered'} by {three_digits(abs(amount))}: {cause}")
    return said


def _fate(trace: Trace, v: int, runner_up: int | None, mass_before: F64 | None) -> str:
    margin, params = trace.margin, trace.params
    what = "z" if trace.score is None else "sum"
    if v == trace.token:
        if runner_up is None:
            return "won: no other token was left"
        if margin == 0:
            return f"won: of equal {what}s the lower id wins"
        return f"won: the largest {what}, {three_digits(margin)} ahead"
    if trace.score is None:
        behind = float(trace.penalized[trace.token] - trace.penalized[v])
        return (
            "lost a tie to a lower id" if behind == 0 else f"lost: its z is {three_digits(behind)} below the winner's"
        )
    assert trace.kept is not None
    assert mass_before is not None
    if not trace.kept[v]:
        if params.top_p == 0:
            return "removed: top_p 0 keeps the first token alone"
        return (
            f"removed by top_p {three_digits(params.top_p)}: the tokens before it have "
            f"{beside(float(mass_before[v]), params.top_p)} already"
        )
    behind = float(trace.score[trace.token] - trace.score[v])
    if not math.isfinite(behind):
        return "could not win: at this temperature its probability is 0"
    return "lost a tie to a lower id" if behind == 0 else f"stayed in, and lost by {three_digits(behind)}"
