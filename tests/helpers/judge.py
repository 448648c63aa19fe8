"""Holds a fast engine against the reference, teacher-forced, by the admissible sets of the law (section 4)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gnomon.reference.completion import prepare
from gnomon.reference.engine import Engine, Event, Failed, Job, PromptScored, ReferenceEngine, Token
from gnomon.reference.parity import judge
from gnomon.reference.request import CompletionRequest
from gnomon.reference.response import Completion
from gnomon.reference.sampler import SamplingParams, report
from gnomon.reference.tokenizer import Tokenizer


@dataclass
class Recording:
    """One job as it was submitted, and all that came out of it."""

    prompts: list[tuple[int, ...]]
    seeds: list[int]
    params: SamplingParams
    candidates: int
    top: int
    score: bool
    events: list[Event] = field(default_factory=list)


class RecordingEngine:
    """Passes everything through to an engine, and keeps it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.vocab_size, self.context = engine.vocab_size, engine.context
        self.eos_ids, self.fingerprint = engine.eos_ids, engine.fingerprint
        self.recordings: list[Recording] = []

    def submit(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        params: SamplingParams,
        candidates: int,
        top: int,
        score: bool,
    ) -> RecordingJob:
        recording = Recording([tuple(p) for p in prompts], list(seeds), params, candidates, top, score)
        self.recordings.append(recording)
        return RecordingJob(self.engine.submit(prompts, seeds, params, candidates, top, score), recording)


class RecordingJob:
    def __init__(self, job: Job, recording: Recording) -> None:
        self._job, self._recording = job, recording

    @property
    def cached_tokens(self) -> int:
        return self._job.cached_tokens

    def events(self) -> Iterator[Event]:
        for event in self._job.events():
            self._recording.events.append(event)
            yield event

    def close(self, prompt: int | None = None, candidate: int | None = None) -> None:
        self._job.close(prompt, candidate)


class ReplayEngine:
    """Gives a recorded job's events again, in another order: prompt by prompt, candidate by candidate."""

    def __init__(self, engine: Engine, recording: Recording) -> None:
        self.vocab_size, self.context = engine.vocab_size, engine.context
        self.eos_ids, self.fingerprint = engine.eos_ids, engine.fingerprint
        self.recording = recording

    def submit(self, *_: object, **__: object) -> ReplayJob:
        return ReplayJob(self.recording.events)


class ReplayJob:
    cached_tokens = 0

    def __init__(self, events: list[Event]) -> None:
        self._events = events

    def events(self) -> Iterator[Event]:
        def place(event: Event) -> tuple[int, int]:
            assert not isinstance(event, Failed)
            return event.prompt, -1 if isinstance(event, PromptScored) else event.candidate

        yield from sorted(self._events, key=place)

    def close(self, prompt: int | None = None, candidate: int | None = None) -> None:
        """Nothing is at work."""


@dataclass
class Tally:
    """What many judged requests came to."""

    requests: int = 0
    tokens: int = 0
    excused: int = 0
    worst_logprob: float = 0.0
    faults: list[str] = field(default_factory=list)

    def add_logprob(self, mine: float, theirs: float, where: str, tolerance: float) -> None:
        self.worst_logprob = max(self.worst_logprob, abs(mine - theirs))
        if abs(mine - theirs) > tolerance:
            self.faults.append(f"{where}: log-probability {theirs}, the reference has {mine}")


def held_against(
    reference: ReferenceEngine,
    engine: Engine,
    tokenizer: Tokenizer,
    request: CompletionRequest,
    tally: Tally,
    logit_error: float,
    tolerance: float,
) -> Completion:
    """Runs a request on `engine` and judges every token, every log-probability and every ranking of it."""
    recorder = RecordingEngine(engine)
    answer = prepare(request, recorder, tokenizer, request.model).whole()
    recording = recorder.recordings[0]
    tally.requests += 1
    for event in recording.events:
        assert not isinstance(event, Failed), event
        if isinstance(event, PromptScored):
            judge_scores(reference, recording, event, tally, tolerance)
    for j in range(len(recording.prompts)):
        for c in range(recording.candidates):
            judge_candidate(reference, recording, j, c, tally, logit_error, tolerance)
    replayed = prepare(request, ReplayEngine(engine, recording), tokenizer, request.model).whole()
    if (replayed.choices, replayed.usage) != (answer.choices, answer.usage) and answer.usage is not None:
        uncached = replayed.usage is not None and replayed.usage.completion_tokens == answer.usage.completion_tokens
        if replayed.choices != answer.choices or not uncached:
            tally.faults.append(f"{request}: the answer is not what its own tokens come to")
    return answer


def judge_candidate(
    reference: ReferenceEngine, recording: Recording, j: int, c: int, tally: Tally, logit_error: float, tolerance: float
) -> None:
    tokens = [e for e in recording.events if isinstance(e, Token) and (e.prompt, e.candidate) == (j, c)]
    if not tokens:
        return
    prompt, sampled = recording.prompts[j], [token.id for token in tokens]
    logits = reference.all_logits([*prompt, *sampled[:-1]])[len(prompt) - 1 :]
    logprobs = report(logits)
    counts = np.zeros(reference.vocab_size, np.int64)
    for t, token in enumerate(tokens):
        where = f"prompt {list(prompt)[:8]}… candidate {c} step {t} {recording.params}"
        verdict = judge(token.id, logits[t], counts, recording.params, recording.seeds[j], c, t, logit_error)
        tally.tokens += 1
        tally.excused += verdict.excused
        if not verdict.admissible:
            tally.faults.append(f"{where}: token {token.id} is not admissible; margin {verdict.margin}")
        tally.add_logprob(logprobs[t, token.id], token.logprob, where, tolerance)
        judge_ranking(logits[t], logprobs[t], token.top, recording.top, where, tally, tolerance)
        counts[token.id] += 1


def judge_scores(
    reference: ReferenceEngine, recording: Recording, event: PromptScored, tally: Tally, tolerance: float
) -> None:
    prompt = recording.prompts[event.prompt]
    assert event.logprobs[0] is None
    assert len(event.logprobs) == len(event.tops) == len(prompt)
    if len(prompt) == 1:
        return
    logits = reference.all_logits(prompt[:-1])
    logprobs = report(logits)
    for i, (lp, top) in enumerate(zip(event.logprobs[1:], event.tops[1:], strict=True)):
        where = f"prompt {list(prompt)[:8]}… position {i + 1}"
        assert lp is not None
        assert top is not None
        tally.add_logprob(logprobs[i, prompt[i + 1]], lp, where, tolerance)
        judge_ranking(logits[i], logprobs[i], top, recording.top, where, tally, tolerance)


def judge_ranking(logits: Any, logprobs: Any, top: Any, k: int, where: str, tally: Tally, tolerance: float) -> None:
    """Every id clearly above the k-th is there, none clearly below it, and all values agree."""
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


def random_request(rng: random.Random, vocab_size: int, context: int, infill: bool = True) -> dict[str, Any]:
    """A request's body from the whole parameter space, prompts of 1 token up to the context's end."""

    def length() -> int:
        return min(rng.choice([1, 2, 3, rng.randint(1, 40), rng.randint(1, context)]), context)

    def text() -> str:
        return "".join(rng.choice("abc the é界😀\n<|endoftext|>.,") for _ in range(rng.randint(0, 60)))

    def ids() -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(length())]

    forms: list[Callable[[], Any]] = [
        text,
        ids,
        lambda: [text() for _ in range(rng.randint(1, 3))],
        lambda: [ids() for _ in range(rng.randint(1, 3))],
    ]
    prompt = rng.choice(forms)()
    lengths = [len(p) * 4 for p in prompt if isinstance(p, str)] if isinstance(prompt, list) else []
    if isinstance(prompt, str):
        lengths = [len(prompt) * 4]
    elif isinstance(prompt[0], int):
        lengths = [len(prompt)]
    elif isinstance(prompt[0], list):
        lengths = [len(p) for p in prompt]
    room = max(context - max(lengths) - 4, 0)
    body: dict[str, Any] = {
        "model": "m",
        "prompt": prompt,
        "max_tokens": min(rng.choice([0, 1, 2, rng.randint(1, 24), rng.randint(1, 64)]), room),
        "temperature": rng.choice([0, 0, 1, 0.3, 2, rng.random() * 2, 1e-3, 1e-300]),
        "top_p": rng.choice([1, 1, 0, 0.5, 0.9, 0.95, rng.random()]),
        "frequency_penalty": rng.choice([0, 0, rng.uniform(-2, 2)]),
        "presence_penalty": rng.choice([0, 0, rng.uniform(-2, 2)]),
        "n": rng.choice([1, 1, 2, 3]),
        "echo": rng.random() < 0.3,
        "logprobs": rng.choice([None, 0, 1, 5, 20]),
        "seed": rng.choice([rng.randint(-(2**63), 2**63 - 1), rng.randint(-3, 3)]),
        "stop": rng.choice([None, ["a"], ["the", "b"], ["\n"]]),
    }
    if rng.random() < 0.3:
        body["logit_bias"] = {str(rng.randrange(vocab_size)): rng.uniform(-100, 100) for _ in range(rng.randint(1, 8))}
    if rng.random() < 0.2:
        body["best_of"] = body["n"] + rng.randint(0, 3)
    if infill and isinstance(prompt, str) and not body["echo"] and rng.random() < 0.3:
        body["suffix"] = "the end"
        body["max_tokens"] = max(0, body["max_tokens"] - 12)
    return body
