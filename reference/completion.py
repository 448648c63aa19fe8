"""From a request to its answer: prompts, suffix, n, best_of, echo, stop, logprobs, usage, finish_reason, chunks.

Everything of the law that lies above token ids, written once for all engines (LAW.md, sections 2, 3 and 5 to 11):

    1 prepare      holds the request against the model, has prompt.py encode its prompts; what can be refused is refused
    2 Run          submits one job, reads its events, and feeds each token to its Candidate
    3 Candidate    one sequence on its way: text, offsets, stop strings, why it ended, and what of it may be streamed
    4 choices      the best n of the candidates, as a whole or in chunks whose joined text and arrays are the whole's
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

from gnomon.reference.body.answer_size import Size, check_size, text_bytes
from gnomon.reference.body.kept import KeptPrompt, held_bytes
from gnomon.reference.body.rankings import Ranking, Rankings
from gnomon.reference.body.writing import EncodedStretch, ReportedTokens, answer, choice, encoded, framed, top_logprobs
from gnomon.reference.engine import ArrivingJob, Done, Engine, Event, Failed, Job, JobRequest, PromptScored, Token
from gnomon.reference.errors import InvalidRequest, ModelNotFound, RequestError
from gnomon.reference.prng import fresh_seed
from gnomon.reference.prompt import encode_prompts
from gnomon.reference.request import CompletionRequest, Limits
from gnomon.reference.response import Choice, Completion, FinishReason, Logprobs, Usage
from gnomon.reference.sampler import SamplingParams
from gnomon.reference.stop import Fallbacks, StopMatcher, stop_ids
from gnomon.reference.text.utf8 import Decoder
from gnomon.reference.tokenizer import Effort, Tokenizer
from gnomon.reference.work import Work

EVENTS_AT_ONCE = 64  # that are taken before what they have released is written: a millisecond or two


class EngineFailed(RequestError):
    """500: the engine could not finish; the request was not at fault."""


class RunClosed(Exception):
    """The run was closed before its answer was whole."""


# ---- 1. the request against the model


def prepare(
    request: CompletionRequest,
    engine: Engine,
    tokenizer: Tokenizer,
    model: str,
    limits: Limits | None = None,
    work: Work | None = None,
    most_tokens: int | None = None,
) -> Run:
    """A run that is ready to start. Raises InvalidRequest for what this model cannot do, before anything is generated;
    Stopped if the work is stopped before.

    model: the id under which this engine is served · most_tokens: that the run may come to (MoreThanMayWait).
    """
    if request.model != model:
        raise ModelNotFound(request.model, model)
    for v in request.logit_bias or {}:
        if v >= engine.vocab_size:
            raise InvalidRequest(
                f"logit_bias.{v}", f"logit_bias.{v}: no token of this model; ids are below {engine.vocab_size}"
            )
    ends = end_ids(engine, tokenizer) | stop_ids(request.stop, tokenizer)
    prompts = encode_prompts(request, engine, tokenizer, Effort(engine.context, work), most_tokens)
    if request.suffix:
        ends |= tokenizer.infill_ends
    sizes = [Size(len(prompt.ids), text_bytes(prompt.text) if request.echo else 0) for prompt in prompts]
    check_size(request, sizes, (limits or Limits()).answer_bytes)
    params = SamplingParams(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        logit_bias=request.logit_bias,
        end_ids=ends,
    )
    return Run(request, engine, tokenizer, prompts, params)


def end_ids(engine: Engine, tokenizer: Tokenizer) -> frozenset[int]:
    """The end-of-sequence ids: those of the model's configuration, and the token that its tokenizer names as
    `eos_token`. Models that were taught to chat often name theirs in one of the two places only."""
    named = {tokenizer.eos_id} if tokenizer.eos_id is not None else set()
    return engine.eos_ids | named


def system_fingerprint(engine: Engine, tokenizer: Tokenizer) -> str:
    """Section 10: the engine's and the tokenizer's, since the same ids are another text with another tokenizer."""
    return f"{engine.fingerprint}-{tokenizer.fingerprint}"


# ---- 3. one candidate


class Candidate:
    """One candidate of one prompt. `text` is cut if a stop string ended it; the arrays keep every token."""

    def __init__(self, tokenizer: Tokenizer, matcher: StopMatcher, params: SamplingParams) -> None:
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.tops = Rankings()
        self.starts: list[int] = []  # code points of the completion before each token
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.sent_tokens = 0
        self._sent_text = 0
        self._ends: list[int] = []  # where the last character of each token ends, the pending one included
        self._decoder = Decoder()
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._params = params

    def push(self, token: Token) -> None:
        """One more token. Sets `finish_reason` by the first that holds: a stop string, an end token, max_tokens."""
        self.ids.append(token.id)
        self.logprobs.append(token.logprob)
        self.tops.append(token.top)
        self.starts.append(len(self.text))
        is_end = token.id in self._params.end_ids  # adds no text, even if the tokenizer has bytes for it
        stopped = self._append(self._decoder.push(b"" if is_end else self._tokenizer.token_bytes[token.id]))
        self._ends.append(len(self.text) + (1 if self._decoder.waiting else 0))
        if stopped:
            self.finish_reason = "stop"
        elif is_end:
            self.finish("stop")
        elif len(self.ids) == self._params.max_tokens:
            self.finish("length")

    def finish(self, reason: FinishReason) -> None:
        """The end of the tokens: the decoder is flushed; what comes out of that cannot complete a stop string."""
        self.text += self._decoder.flush()
        self.finish_reason = reason

    def _append(self, piece: str) -> bool:
        """Adds characters up to the first that completes a stop string, cuts that off, and says whether it did."""
        for i, char in enumerate(piece):
            matched = self._matcher.push(char)
            if matched:
                self.text = (self.text + piece[: i + 1])[:-matched]
                return True
        self.text += piece
        return False

    def score(self) -> float:
        """The mean log-probability of all sampled tokens, in nats; 0 if there are none."""
        total = 0.0
        for logprob in self.logprobs:  # in order, each sum rounded: `sum` compensates since Python 3.12
            total += logprob
        return total / max(len(self.logprobs), 1)

    def release(self) -> tuple[str, range] | None:
        """What can be streamed now: text, and the tokens it belongs to; None if nothing can.

        Whole tokens only, and only those whose characters are all decoded and are no beginning of a stop string; the
        last release has all that is left.
        """
        if self.finish_reason is not None:
            tokens, end = range(self.sent_tokens, len(self.ids)), len(self.text)
        else:
            safe = len(self.text) - self._matcher.held
            stop = self.sent_tokens
            while stop < len(self.ids) and self._ends[stop] <= safe:
                stop += 1
            if stop == self.sent_tokens:
                return None
            tokens, end = range(self.sent_tokens, stop), self._ends[stop - 1]
        text = self.text[self._sent_text : end]
        self.sent_tokens, self._sent_text = tokens.stop, end
        return text, tokens


def ranked(candidates: Sequence[Candidate], n: int) -> list[Candidate]:
    """Section 8: the n candidates to return, in order. All of them if there are n; else the best mean
    log-probabilities."""
    if len(candidates) == n:
        return list(candidates)
    return sorted(candidates, key=lambda candidate: -candidate.score())[:n]  # sorted is stable: ties by number


# ---- 2. and 4. the run


class Stretch(NamedTuple):
    """What of a choice is sent together: some of its tokens and their text; the first one, after the echoed prompt."""

    choice: int  # its index
    prompt: int
    candidate: Candidate
    text: str
    tokens: range
    first: bool


class Run:
    """One prepared request. Read it once, by `whole` or by `chunks`; both block, `close` may be called from
    anywhere. `whole_bytes` and `chunk_bytes` are the same in bytes, for a reader that has `woken` set and more than one
    run to read: both give None where going on may mean to wait.

    While it waits it keeps what its answer needs and nothing else: its `request` has no prompts, no suffix and no user
    any more (`prompts` is what is left of the prompts), and candidates are there when the engine is asked for them.
    """

    def __init__(
        self,
        request: CompletionRequest,
        engine: Engine,
        tokenizer: Tokenizer,
        prompts: tuple[KeptPrompt, ...],
        params: SamplingParams,
    ) -> None:
        self.request = replace(request, prompts=(), suffix="", user=None)
        self.prompts = prompts
        self.params = params
        self.id = f"cmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.on_token: Callable[[int, int, float], None] | None = None  # told (prompt, candidate, when it was made)
        self.on_submit: Callable[[], object] | None = None  # told that the engine is about to be given the job
        self.woken: Callable[[], object] | None = None  # told that there is more to read, if the job goes on by itself
        self.is_arriving = False  # it does, and has begun: reading never waits
        self._engine = engine
        self._tokenizer = tokenizer
        self._scored: dict[int, PromptScored] = {}
        self._echoes: dict[int, EncodedStretch] = {}  # of each prompt that is echoed, encoded once
        self._tables = [Fallbacks(stop) for stop in request.stop]  # they grow as the candidates that share them match
        self._candidates: dict[tuple[int, int], Candidate] = {}  # by prompt and number: those that have begun
        self._lock = threading.Lock()
        self._job: Job | None = None
        self._closed = False

    def whole(self) -> Completion:
        """The whole answer. Raises EngineFailed, or RunClosed if `close` came first."""
        for _ in self._events():
            pass
        return self._completion([self._choice(*stretch) for stretch in self._ended()], self.usage)

    def chunks(self) -> Generator[Completion, None, None]:
        """The answer in pieces as they come, one choice each, then the usage if asked for. Raises EngineFailed.

        Joined by index, texts and arrays are those of `whole`. After `close` the iterator ends.
        """
        with closing(self._released()) as released:
            for stretch in released:
                if stretch is not None:
                    yield self._completion([self._choice(*stretch)], None)
        if self.request.include_usage and self.is_complete:
            yield self._completion([], self.usage)

    def whole_bytes(self) -> Generator[Iterator[bytes] | None, None, None]:
        """The bytes of `whole`, in small pieces, each made when it is asked for, once the model has run."""
        for changed in self._events():
            if changed is None:
                yield None
        choices = (self._written(stretch) for stretch in self._ended())
        yield answer(framed(self._completion([], self.usage)), choices)

    def chunk_bytes(self) -> Generator[Iterator[bytes] | None, None, None]:
        """The bytes of each of `chunks`, in small pieces; what has come together is one chunk of its choice."""
        frame = framed(self._completion([], None))
        with closing(self._released()) as released:
            for stretch in released:
                yield None if stretch is None else answer(frame, [self._written(stretch)])
        if self.request.include_usage and self.is_complete:
            yield answer(framed(self._completion([], self.usage)), [])

    def _ended(self) -> list[Stretch]:
        """All choices in order, each as one stretch."""
        if not self.is_complete:
            raise RunClosed
        n = self.request.n
        return [
            Stretch(j * n + rank, j, candidate, candidate.text, range(len(candidate.ids)), first=True)
            for j in range(len(self.prompts))
            for rank, candidate in enumerate(ranked(self._candidates_of(j), n))
        ]

    def _released(self) -> Generator[Stretch | None, None, None]:
        """What can be streamed, as it comes; None where going on may mean to wait."""
        begun: set[int] = set()
        changed: dict[tuple[int, int], None] = {}
        with closing(self._events()) as events:
            try:
                for taken, at in enumerate(events, 1):
                    if at is not None:
                        changed[at] = None
                    if at is None or taken % EVENTS_AT_ONCE == 0:
                        yield from self._release(changed, begun)
                        changed.clear()
                    if at is None:
                        yield None
            except EngineFailed:  # after what came before
                yield from self._release(changed, begun)
                raise
        yield from self._release(changed, begun)

    def _release(self, changed: Iterable[tuple[int, int]], begun: set[int]) -> Iterator[Stretch]:
        for j, c in changed:
            candidate, index = self._candidates[j, c], j * self.request.n + c
            released = candidate.release()
            if released is not None:
                yield Stretch(index, j, candidate, *released, first=index not in begun)
                begun.add(index)

    @property
    def is_scored(self) -> bool:
        """Whether the prompts' own log-probabilities are wanted."""
        return self.request.echo and self.request.logprobs is not None

    @property
    def is_complete(self) -> bool:
        """Whether every candidate has ended."""
        return len(self.finish_reasons) == len(self.prompts) * self.request.candidates

    @property
    def started(self) -> float | None:
        """When the engine began (`time.monotonic`); None while the run waits, here or in the engine."""
        return None if self._job is None else self._job.started

    @property
    def largest_tokens(self) -> int:
        """The most tokens that this run can be: its prompts once, and every candidate at its longest."""
        sampled = len(self.prompts) * self.request.candidates * self.params.max_tokens
        return sum(len(prompt.ids) for prompt in self.prompts) + sampled

    @property
    def held_bytes(self) -> Mapping[str, int]:
        """An estimate of the memory that this run keeps while it waits, by the field that it comes from."""
        return held_bytes(self.prompts, self.request)

    @property
    def finish_reasons(self) -> list[FinishReason]:
        """Of the candidates that have ended."""
        all_of_them = (candidate.finish_reason for candidate in self._begun)
        return [reason for reason in all_of_them if reason is not None]

    @property
    def usage(self) -> Usage:
        """What has been used so far."""
        return Usage(
            sum(len(prompt.ids) for prompt in self.prompts),
            sum(len(candidate.ids) for candidate in self._begun),
            0 if self._job is None else self._job.cached_tokens,
        )

    def close(self) -> None:
        """Give up: the engine stops working on this request. Thread-safe, idempotent."""
        with self._lock:
            self._closed = True
            if self._job is not None:
                self._job.close()

    def _events(self) -> Generator[tuple[int, int] | None, None, None]:
        """Runs the job to its end; yields (prompt, candidate) whenever a candidate has changed, and None where going on
        may mean to wait."""
        with self._lock:
            if self._job is not None:
                raise RuntimeError("a run is read once; prepare another")
            if self._closed:
                return
            if self.on_submit is not None:
                self.on_submit()
            self._job = job = self._submit()
        try:
            for event in self._arrivals(job):
                if event is None:
                    yield None
                elif (changed := self._take(event, job)) is not None:
                    yield changed
        finally:
            job.close()

    def _arrivals(self, job: Job) -> Iterator[Event | None]:
        if self.woken is None or not isinstance(job, ArrivingJob):
            return (part for event in job.events() for part in (event, None))
        self.is_arriving = True
        return job.arrived(self.woken)

    def _submit(self) -> Job:
        request = self.request
        seeds = [fresh_seed() if request.seed is None else request.seed for _ in self.prompts]
        return self._engine.submit(
            JobRequest(
                [prompt.ids for prompt in self.prompts],
                seeds,
                self.params,
                candidates=request.candidates,
                top=request.logprobs or 0,
                score=self.is_scored,
            )
        )

    def _take(self, event: Event, job: Job) -> tuple[int, int] | None:
        if isinstance(event, Failed):
            raise EngineFailed(event.message)
        if isinstance(event, PromptScored):
            self._scored[event.prompt] = event
            return None
        candidate = self._candidate(event.prompt, event.candidate)
        if isinstance(event, Done):
            if candidate.finish_reason is not None:
                return None
            candidate.finish("length")  # max_tokens is 0
        else:
            candidate.push(event)
            if self.on_token is not None:
                self.on_token(event.prompt, event.candidate, job.made)
            if candidate.finish_reason is not None:
                job.close(event.prompt, event.candidate)
        return event.prompt, event.candidate

    def _candidate(self, j: int, c: int) -> Candidate:
        """Made for its first event, since it has a dozen lists: thousands may wait, and be closed before they begin."""
        if (j, c) not in self._candidates:
            matcher = StopMatcher(self.request.stop, self._tables)
            self._candidates[j, c] = Candidate(self._tokenizer, matcher, self.params)
        return self._candidates[j, c]

    @property
    def _begun(self) -> list[Candidate]:
        """A copy made at once: the thread that reads may just be adding one."""
        return list(self._candidates.values())

    def _candidates_of(self, j: int) -> list[Candidate]:
        return [self._candidates[j, c] for c in range(self.request.candidates)]

    def _completion(self, choices: Sequence[Choice], usage: Usage | None) -> Completion:
        request = self.request
        return Completion(
            self.id,
            self.created,
            request.model,
            system_fingerprint(self._engine, self._tokenizer),
            tuple(choices),
            usage,
            null_usage=request.stream and request.include_usage,
        )

    def _choice(self, index: int, j: int, candidate: Candidate, text: str, tokens: range, first: bool) -> Choice:
        """A choice, or the piece of it that holds `tokens`; the `first` one begins with the prompt if that is
        echoed."""
        echo = first and self.request.echo
        logprobs = None
        if self.request.logprobs is not None:
            logprobs = self._logprobs(j, candidate, tokens, echo)
        text = self.prompts[j].text + text if echo else text
        return Choice(index, text, logprobs, candidate.finish_reason)

    def _logprobs(self, j: int, candidate: Candidate, tokens: range, echo: bool) -> Logprobs:
        prompt = self.prompts[j]
        ids: list[int] = []
        lps: list[float | None] = []
        tops: list[Ranking | None] = []
        starts: list[int] = []
        if echo:
            ids += prompt.ids
            lps += self._scored[j].logprobs
            tops += self._scored[j].tops
            starts += prompt.starts
        ids += candidate.ids[tokens.start : tokens.stop]
        lps += candidate.logprobs[tokens.start : tokens.stop]
        tops += candidate.tops[tokens.start : tokens.stop]
        starts += [prompt.characters + start for start in candidate.starts[tokens.start : tokens.stop]]
        labels = self._tokenizer.labels
        return Logprobs(
            tuple(labels[v] for v in ids),
            tuple(lps),
            tuple(top_logprobs(v, lp, top, labels) for v, lp, top in zip(ids, lps, tops, strict=True)),
            tuple(starts),
        )

    def _written(self, stretch: Stretch) -> Iterator[bytes]:
        """The bytes of `_choice`."""
        request, candidate = self.request, stretch.candidate
        entries = None
        if request.logprobs is not None:
            shift = self.prompts[stretch.prompt].characters
            entries = ReportedTokens(
                request.logprobs, candidate.ids, candidate.logprobs, candidate.tops, candidate.starts, shift
            )
        own = encoded(stretch.text, entries, stretch.tokens, self._tokenizer.labels)
        stretches = [self._echo(stretch.prompt), own] if stretch.first and request.echo else [own]
        return choice(stretch.choice, stretches, request.logprobs is not None, candidate.finish_reason)

    def _echo(self, j: int) -> EncodedStretch:
        if j not in self._echoes:
            prompt, k = self.prompts[j], self.request.logprobs
            entries = None
            if k is not None:
                entries = ReportedTokens(k, prompt.ids, self._scored[j].logprobs, self._scored[j].tops, prompt.starts)
            self._echoes[j] = encoded(prompt.text, entries, range(len(prompt.ids)), self._tokenizer.labels)
        return self._echoes[j]
