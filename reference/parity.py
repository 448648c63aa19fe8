"""Which tokens an engine in lower precision may sample where the reference samples another (LAW.md, section 4).

Parity is judged teacher-forced: for every step the reference evaluates the prompt and the tokens the *engine*
sampled, and asks whether the engine's next token is admissible, given that the engine's logits are off by at most
δ₀. A token that is admissible but not the reference's own is excused, and counted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gnomon.reference.sampler import SamplingParams, trace

F64 = NDArray[np.float64]


class Verdict(NamedTuple):
    """admissible: the engine's token is in A · excused: it is, but is not the reference's own · margin: of the
    reference's draw, see Trace."""

    admissible: bool
    excused: bool
    margin: float


def judge(
    token: int,
    logits: F64,
    counts: NDArray[np.int64],
    params: SamplingParams,
    seed: int,
    candidate: int,
    step: int,
    logit_error: float,
) -> Verdict:
    """Judges one sampled token. logits [V]: the reference's own, float64 · logit_error: δ₀, the most by which any of
    the engine's logits may be off · the other arguments as in `sampler.trace`."""
    own = trace(logits, counts, params, seed, candidate, step)
    if own.token == token:
        return Verdict(True, False, own.margin)
    admissible = bool(admissible_tokens(logits, counts, params, seed, candidate, step, logit_error)[token])
    return Verdict(admissible, admissible, own.margin)


def admissible_tokens(
    logits: F64,
    counts: NDArray[np.int64],
    params: SamplingParams,
    seed: int,
    candidate: int,
    step: int,
    logit_error: float,
) -> NDArray[np.bool_]:
    """A of the law, [V] of bool."""
    own = trace(logits, counts, params, seed, candidate, step)
    z = own.penalized
    delta = logit_error + 2.0**-22 * np.abs(z).max()
    if params.temperature == 0:
        return z >= z.max() - 2 * delta
    assert own.scaled is not None
    assert own.noise is not None
    with np.errstate(over="ignore"):
        shift = 2 * delta / params.temperature
        eta = np.expm1(shift) + 1e-6
    b = own.scaled + own.noise
    if params.top_p == 1:
        possible = sure = np.ones(len(z), bool)
    else:
        surely_above, perhaps_above = _mass_bounds(z, own.scaled, 2 * delta)
        possible = (surely_above == 0) | (surely_above < params.top_p + eta)
        sure = (perhaps_above == 0) | (perhaps_above < params.top_p - eta)
    best = b[sure].max() if sure.any() else -np.inf
    return possible & (b >= best - (shift + 4e-6))


def _mass_bounds(z: F64, s: F64, gap: float) -> tuple[F64, F64]:
    """M⁻ and M⁺ of the law, [V] each: the mass surely, and perhaps, ranked before every id."""
    q = np.exp(s - s.max())
    q /= q.sum()
    order = np.argsort(z)
    sorted_z = z[order]
    mass = np.concatenate([np.cumsum(q[order][::-1])[::-1], [0.0]])  # [i]: the mass of sorted_z[i:]
    surely = mass[np.searchsorted(sorted_z, z + gap, side="right")]
    perhaps = mass[np.searchsorted(sorted_z, z - gap, side="left")] - q
    # what rounding leaves of "nothing else" is nothing
    alone = np.searchsorted(sorted_z, z - gap, side="left") == len(z) - 1
    return surely, np.where(alone, 0.0, np.maximum(perhaps, 0.0))
