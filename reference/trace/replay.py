"""A finished sequence once more: what the reference's own draws make of the tokens that an engine sampled.

    1 TraceRequest   the body of POST /v1/completions/trace: a request, one choice of its answer as labels, a step
    2 prepare_trace  held against the model: labels become ids, and whatever can be refused is refused here
    3 Replay         the model over prompt and tokens, once; then the logits and the draw of any step
    4 recount        which candidate it was, every step in short, and one step in full

The tokens are taken as given (teacher forcing, as parity.py judges): step t is drawn after the prompt and the given
tokens before t, so one token that differs does not make all that follow differ. The answer to a request with `best_of`
does not say which candidate a choice is; its draws do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import Any, NamedTuple

import numpy as np

from gnomon.reference.arrays import F64
from gnomon.reference.body.reading import check_names, integer, members, string
from gnomon.reference.body.shown import shown
from gnomon.reference.completion import prepare, system_fingerprint
from gnomon.reference.engine import Engine, ReferenceEngine, go_on, reported
from gnomon.reference.errors import InvalidRequest
from gnomon.reference.prng import DrawKey
from gnomon.reference.request import BY_NAME, CompletionRequest, Limits
from gnomon.reference.sampler import SamplingParams, Trace, trace_draw
from gnomon.reference.tokenizer import Tokenizer
from gnomon.reference.trace.explain import Draw, explain
from gnomon.reference.trace.picture import picture
from gnomon.reference.work import Work

TRACE_FIELDS = ("request", "index", "tokens", "step")
LOGITS_AT_ONCE = 2**22  # logits computed together: 32 MiB


# ---- 1. the request


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """request: the completion's own · index: of the choice in its answer · tokens: the labels of that choice's sampled
    tokens, the prompt's left out · step: the one to show in full, or None."""

    request: CompletionRequest
    index: int
    tokens: tuple[str, ...]
    step: int | None = None

    @classmethod
    def from_fields(cls, body: Mapping[str, Any], limits: Limits | None = None) -> TraceRequest:
        """Reads JSON values. Raises InvalidRequest, which names a field of the inner request as `request.seed`."""
        check_names(members(body), TRACE_FIELDS, {"request": BY_NAME})
        sent = body.get("request")
        if not isinstance(sent, dict):
            allowed = "the body of the completion's request, an object"
            raise InvalidRequest("request", f"request: {shown(sent)} is not allowed; give {allowed}")
        with inside("request"):
            request = CompletionRequest.from_fields(sent, limits)
            if request.seed is None and request.temperature > 0:
                raise InvalidRequest("seed", "seed: required here; without it the draws cannot be known")
        index, step = body.get("index"), body.get("step")
        return cls(
            request,
            0 if index is None else integer(0, None)("index", index),
            _labels(body.get("tokens")),
            None if step is None else integer(0, None)("step", step),
        )


def _labels(sent: object) -> tuple[str, ...]:
    if not isinstance(sent, list):
        allowed = "the labels of the sampled tokens, as logprobs.tokens has them, in a list"
        raise InvalidRequest("tokens", f"tokens: {shown(sent)} is not allowed; give {allowed}")
    return tuple(string(f"tokens[{i}]", label, "a token's label, a string") for i, label in enumerate(sent))


@contextmanager
def inside(field: str) -> Iterator[None]:
    """Errors of a request that is a field of another one name their place in that one."""
    try:
        yield
    except InvalidRequest as error:
        error.param, error.message = f"{field}.{error.param}", f"{field}.{error.message}"
        raise


# ---- 2. the request against the model


class Task(NamedTuple):
    """What is to be recomputed: all of it is valid. `candidates`: which of them the choice may be."""

    model: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    params: SamplingParams
    seed: int
    candidates: range
    step: int | None


def prepare_trace(
    asked: TraceRequest,
    engine: Engine,
    tokenizer: Tokenizer,
    model: str,
    most_tokens: int,
    limits: Limits | None = None,
    work: Work | None = None,
) -> Task:
    """Raises InvalidRequest. most_tokens: of prompt and tokens together, as many as this server traces."""
    request, count = asked.request, len(asked.tokens)
    with inside("request"):
        run = prepare(request, engine, tokenizer, model, limits, work)
    choices = len(request.prompts) * request.n
    if asked.index >= choices:
        allowed = f"the request has {choices} choice{'s' * (choices > 1)}, so give at most {choices - 1}"
        raise InvalidRequest("index", f"index: {shown(asked.index)} is not allowed; {allowed}")
    if count > request.max_tokens:
        raise InvalidRequest(
            "tokens", f"tokens: {count} of them, but request.max_tokens is {request.max_tokens}: no choice has so many"
        )
    j, rank = divmod(asked.index, request.n)
    prompt = tuple(run.prompts[j].ids)
    if len(prompt) + count > most_tokens:
        raise InvalidRequest(
            "tokens",
            f"tokens: {count} after a prompt of {len(prompt)} are {len(prompt) + count}; "
            f"this server traces at most {most_tokens}, prompt and completion together",
        )
    if asked.step is not None and asked.step >= count:
        allowed = f"give at most {count - 1}, or null" if count else "without tokens there is no step: give null"
        raise InvalidRequest("step", f"step: {shown(asked.step)} is not allowed; {allowed}")
    ids = []
    for i, label in enumerate(asked.tokens):
        if label not in tokenizer.ids:
            raise no_label(i, label)
        ids.append(tokenizer.ids[label])
    # greedy candidates are all alike, and so are ranked by their numbers
    is_known = request.candidates == request.n or request.temperature == 0
    candidates = range(rank, rank + 1) if is_known else range(request.candidates)
    return Task(model, prompt, tuple(ids), run.params, request.seed or 0, candidates, asked.step)


def no_label(i: int, label: str) -> InvalidRequest:
    place, allowed = f"tokens[{i}]", "give them as logprobs.tokens has them"
    return InvalidRequest(place, f"{place}: {shown(label)} is no label of this model; {allowed}")


# ---- 3. the model, once


class Replay:
    """The model over one sequence. Between two calls it keeps the last layer's output, [T, D], and one block of
    logits."""

    def __init__(
        self, engine: ReferenceEngine, prompt: Sequence[int], tokens: Sequence[int], check: Callable[[], None] = go_on
    ) -> None:
        """check: called before every layer, and before every draw of a search; what it raises ends the work."""
        self.prompt, self.tokens = tuple(prompt), tuple(tokens)
        self._engine = engine
        self._ids = np.array(self.tokens, np.int64)
        # a copy, so that the prompt's states are let go
        self._states = engine.states([*self.prompt, *self.tokens[:-1]], check)[len(self.prompt) - 1 :].copy()
        self._rows = max(1, LOGITS_AT_ONCE // engine.vocab_size)
        self._first, self._block = -1, np.empty(0)
        self._known: tuple[tuple[SamplingParams, int, range], Recount] | None = None

    def logits(self, step: int) -> F64:
        """Raw logits [V] before the token of that step. Computed in blocks of the same steps, whichever is asked for
        first, so that a step always has the same bits."""
        first = step // self._rows * self._rows
        if first != self._first:
            self._first, self._block = first, self._engine.logits(self._states[first : first + self._rows])
        logits: F64 = self._block[step - first]
        return logits

    def draw(self, params: SamplingParams, key: DrawKey) -> Trace:
        logits = self.logits(key.step)
        counts = np.bincount(self._ids[: key.step], minlength=len(logits))
        return trace_draw(logits, counts, params, key)

    def find(self, params: SamplingParams, seed: int, candidates: range, check: Callable[[], None] = go_on) -> int:
        """The candidate whose draws differ from the tokens the fewest times; of several the lowest.

        The one that has differed least is always taken a step further. So whoever comes to the end first is the best,
        and those that are not are left after a few steps.
        """
        if len(candidates) == 1:
            return candidates[0]
        line = [(0, c, 0) for c in candidates]  # how often it differed, its number, the next step
        heapify(line)
        while line[0][2] < len(self.tokens):
            check()
            differed, c, step = line[0]
            token = self.draw(params, DrawKey(seed, c, step)).token
            heapreplace(line, (differed + (token != self.tokens[step]), c, step + 1))
        return line[0][1]

    def recount(
        self, params: SamplingParams, seed: int, candidates: range, check: Callable[[], None] = go_on
    ) -> Recount:
        """Every step. Kept, so that asking for one step after the other costs no more than its own draw."""
        key = params, seed, candidates
        if self._known is None or self._known[0] != key:
            candidate = self.find(params, seed, candidates, check)
            steps = []
            for t, v in enumerate(self.tokens):
                check()
                drawn = self.draw(params, DrawKey(seed, candidate, t))
                steps.append(RecountedStep(t, v, drawn.token, reported(drawn.logprobs[v]), drawn.margin))
            self._known = key, Recount(candidate, tuple(steps))
        return self._known[1]


class RecountedStep(NamedTuple):
    """token: the given one · own: the reference's · logprob: of the given one · margin: of the reference's draw."""

    step: int
    token: int
    own: int
    logprob: float
    margin: float

    @property
    def agrees(self) -> bool:
        return self.token == self.own


class Recount(NamedTuple):
    candidate: int
    steps: tuple[RecountedStep, ...]

    @property
    def first_difference(self) -> int | None:
        return next((step.step for step in self.steps if not step.agrees), None)


# ---- 4. the answer


class TraceAnswer(NamedTuple):
    """A whole answer."""

    task: Task
    recount: Recount
    draw: Draw | None
    fingerprint: str
    labels: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        task, labels, steps = self.task, self.labels, self.recount.steps
        return {
            "object": "completion.trace",
            "model": task.model,
            "system_fingerprint": self.fingerprint,
            "candidate": self.recount.candidate,
            "prompt_tokens": [labels[v] for v in task.prompt],
            "agreement": {
                "tokens": len(steps),
                "agree": sum(step.agrees for step in steps),
                "first_difference": self.recount.first_difference,
            },
            "steps": [
                {
                    "step": step.step,
                    "token": labels[step.token],
                    "id": step.token,
                    "reference_token": labels[step.own],
                    "reference_id": step.own,
                    "logprob": step.logprob,
                    "margin": step.margin if math.isfinite(step.margin) else None,
                    "agrees": step.agrees,
                }
                for step in steps
            ],
            "draw": None if self.draw is None else {**self.draw.to_json(), "picture": picture(self.draw)},
        }


class Retracer:
    """Carries out tasks one at a time, and keeps the last sequence's states: step after step of one sequence is one
    pass of the model."""

    def __init__(self, engine: ReferenceEngine, tokenizer: Tokenizer) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        self._last: Replay | None = None

    def carry_out(self, task: Task, check: Callable[[], None] = go_on) -> TraceAnswer:
        """Raises NonFiniteLogits, or what `check` does."""
        replay = self._last
        if replay is None or (replay.prompt, replay.tokens) != (task.prompt, task.tokens):
            self._last = None  # let go before the next is there
            replay = Replay(self._engine, task.prompt, task.tokens, check)
            self._last = replay
        recount = replay.recount(task.params, task.seed, task.candidates, check)
        draw = None
        if task.step is not None:
            drawn = replay.draw(task.params, DrawKey(task.seed, recount.candidate, task.step))
            draw = explain(drawn, self._tokenizer.labels, task.tokens[task.step])
        fingerprint = system_fingerprint(self._engine, self._tokenizer)
        return TraceAnswer(task, recount, draw, fingerprint, self._tokenizer.labels)
