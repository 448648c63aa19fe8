"""Which tokens an engine in lower precision may sample where the reference samples another (LAW.md, section 4).

Parity is judged teacher-forced: for every step the reference evaluates the prompt and the tokens the *engine*
sampled, and asks whether the engine's next token is admissible, given that the engine's logits are off by at most
δ₀. A token that is admissible but not the reference's own is excused, and counted.

    judge              one sampled token
    RecordingEngine    keeps what passes through an engine: every job as a Recording
    judge_recording    every token, log-probability and ranking of a recorded job, into a Tally

Two tolerances, stated by whoever judges, for a model and a dtype: `logit_error` is δ₀, the most by which a logit of the
engine may be off; `tolerance` is τ, the most by which a log-probability that it reports may be, in nats.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gnomon.reference.arrays import F64
from gnomon.reference.body.rankings import Ranking
from gnomon.reference.engine import Engine, Event, Failed, Job, JobRequest, PromptScored, ReferenceEngine, Token
from gnomon.reference.prng import DrawKey
from gnomon.reference.sampler import SamplingParams, report, trace_draw


class DrawCheck(NamedTuple):
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
    key: DrawKey,
    logit_error: float,
) -> DrawCheck:
    """Judges one sampled token. logits [V]: the reference's own, float64 · logit_error: δ₀, the most by which any of
    the engine's logits may be off · the other arguments as in `sampler.trace_draw`."""
    own = trace_draw(logits, counts, params, key)
    if own.token == token:
        return DrawCheck(True, False, own.margin)
    admissible = bool(admissible_tokens(logits, counts, params, key, logit_error)[token])
    return DrawCheck(admissible, admissible, own.margin)


def admissible_tokens(
    logits: F64,
    counts: NDArray[np.int64],
    params: SamplingParams,
    key: DrawKey,
    logit_error: float,
) -> NDArray[np.bool_]:
    """A of the law, [V] of bool."""
    own = trace_draw(logits, counts, params, key)
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


# ---- a whole job


@dataclass(slots=True)
class Recording:
    """One job as it was asked for, and all events that came out of it."""

    request: JobRequest
    events: list[Event] = field(default_factory=list)


class RecordingEngine:
    """Passes everything through to an engine, and keeps it, a recording a job."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.vocab_size, self.context = engine.vocab_size, engine.context
        self.eos_ids, self.fingerprint = engine.eos_ids, engine.fingerprint
        self.recordings: list[Recording] = []

    def submit(self, request: JobRequest) -> RecordingJob:
        self.recordings.append(Recording(request))
        return RecordingJob(self.engine.submit(request), self.recordings[-1])


class RecordingJob:
    """A job whose events are kept as they are read."""

    def __init__(self, job: Job, recording: Recording) -> None:
        self._job, self._recording = job, recording

    @property
    def open(self) -> AbstractSet[tuple[int, int]]:
        return self._job.open

    @property
    def cached_tokens(self) -> int:
        return self._job.cached_tokens

    @property
    def started(self) -> float | None:
        return self._job.started

    @property
    def made(self) -> float:
        return self._job.made

    def events(self) -> Iterator[Event]:
        for event in self._job.events():
            self._recording.events.append(event)
            yield event

    def close(self, prompt: int | None = None, candidate: int | None = None) -> None:
        self._job.close(prompt, candidate)


@dataclass(slots=True)
class Tally:
    """What many judged jobs came to."""

    requests: int = 0
    tokens: int = 0
    excused: int = 0
    logprobs: int = 0
    worst_logprob: float = 0.0  # the largest difference of a log-probability, in nats
    faults: list[str] = field(default_factory=list)

    @property
    def most_excused(self) -> int:
        """How many excused tokens the law lets pass."""
        return max(3, self.tokens // 1000)

    def add_logprob(self, mine: float, theirs: float, where: str, tolerance: float) -> None:
        self.logprobs += 1
        self.worst_logprob = max(self.worst_logprob, abs(mine - theirs))
        if not abs(mine - theirs) <= tolerance:
            self.faults.append(f"{where}: log-probability {theirs}, the reference has {mine}")


def judge_recording(
    reference: ReferenceEngine, recording: Recording, tally: Tally, logit_error: float, tolerance: float
) -> None:
    """Judges a whole job: the prompts' own scores, then every candidate. reference: of the same checkpoint."""
    tally.requests += 1
    for event in recording.events:
        if isinstance(event, Failed):
            tally.faults.append(f"{recording.request.params}: the engine failed: {event.message}")
        elif isinstance(event, PromptScored):
            judge_scores(reference, recording, event, tally, tolerance)
    for j in range(len(recording.request.prompts)):
        for c in range(recording.request.candidates):
            judge_candidate(reference, recording, j, c, tally, logit_error, tolerance)


def judge_candidate(
    reference: ReferenceEngine, recording: Recording, j: int, c: int, tally: Tally, logit_error: float, tolerance: float
) -> None:
    """Every token of candidate c of prompt j, its log-probability and its ranking."""
    tokens = [e for e in recording.events if isinstance(e, Token) and (e.prompt, e.candidate) == (j, c)]
    if not tokens:
        return
    asked = recording.request
    prompt, sampled = asked.prompts[j], [token.id for token in tokens]
    logits = reference.all_logits([*prompt, *sampled[:-1]])[len(prompt) - 1 :]
    logprobs = report(logits)
    counts = np.zeros(reference.vocab_size, np.int64)
    for t, token in enumerate(tokens):
        where = f"prompt {list(prompt)[:8]}… candidate {c} step {t} {asked.params}"
        key = DrawKey(asked.seeds[j], c, t)
        check = judge(token.id, logits[t], counts, asked.params, key, logit_error)
        tally.tokens += 1
        tally.excused += check.excused
        if not check.admissible:
            tally.faults.append(f"{where}: token {token.id} is not admissible; margin {check.margin}")
        tally.add_logprob(logprobs[t, token.id], token.logprob, where, tolerance)
        judge_ranking(logits[t], logprobs[t], token.top, asked.top, where, tally, tolerance)
        counts[token.id] += 1


def judge_scores(
    reference: ReferenceEngine, recording: Recording, event: PromptScored, tally: Tally, tolerance: float
) -> None:
    """The log-probabilities and rankings of a prompt's own tokens; the first has none."""
    prompt = recording.request.prompts[event.prompt]
    if not len(event.logprobs) == len(event.tops) == len(prompt) or event.logprobs[0] is not None:
        tally.faults.append(f"prompt {list(prompt)[:8]}…: {len(event.logprobs)} scores for {len(prompt)} tokens")
        return
    if len(prompt) == 1:
        return
    logits = reference.all_logits(prompt[:-1])
    logprobs = report(logits)
    for i, (lp, top) in enumerate(zip(event.logprobs[1:], event.tops[1:], strict=True)):
        where = f"prompt {list(prompt)[:8]}… position {i + 1}"
        if lp is None or top is None:
            tally.faults.append(f"{where}: no score")
            continue
        tally.add_logprob(logprobs[i, prompt[i + 1]], lp, where, tolerance)
        judge_ranking(logits[i], logprobs[i], top, recording.request.top, where, tally, tolerance)


def judge_ranking(logits: F64, logprobs: F64, top: Ranking, k: int, where: str, tally: Tally, tolerance: float) -> None:
    """Every id clearly above the k-th is there, none clearly below it, and all values agree; logits, logprobs [V]."""
    ids = [v for v, _ in top]
    if len(ids) != min(k, len(logits)):
        tally.faults.append(f"{where}: {len(ids)} ids in a ranking of {k}")
        return
    for v, lp in top:
        tally.add_logprob(logprobs[v], lp, where, tolerance)
    if ids:
        kth = np.sort(logits)[-len(ids)]
        clearly = set(np.flatnonzero(logits > kth + 2 * tolerance).tolist())
        if not clearly <= set(ids) or any(logits[v] < kth - 2 * tolerance for v in ids):
            tally.faults.append(f"{where}: the ranking {ids} has the wrong ids")
