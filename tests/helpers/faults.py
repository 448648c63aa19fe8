"""Our own server with one fault in it, to see that `gnomon verify` finds it and blames nothing else.

`InProcessServer` is the server; a `Fault` patches the one place that the mistake would be in. Faults are rows of the
tables in request_faults.py and answer_faults.py, together in fault_table.py. The functions below make such patches:
`request` reads another request, `choice` shows another choice, `draw` reports another token, …
"""

from __future__ import annotations

import asyncio
import json
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.datastructures import Headers

from gnomon.http import sse
from gnomon.http.body import check_content_type
from gnomon.http.errors import NotFound
from gnomon.http.verify.ask.client import Budget, Client
from gnomon.http.verify.ask.probe import Subject
from gnomon.http.verify.cases import CASES
from gnomon.http.verify.run import judge_all
from gnomon.http.verify.verdict import Case, Finding
from gnomon.reference import completion
from gnomon.reference import prompt as prompt_module
from gnomon.reference.body.kept import KeptPrompt
from gnomon.reference.body.rankings import Ranking
from gnomon.reference.body.reading import parse_json
from gnomon.reference.completion import Candidate, Run, prepare
from gnomon.reference.engine import PromptScored, ReferenceJob, Token, ranking
from gnomon.reference.errors import RequestError
from gnomon.reference.request import CompletionRequest, Limits
from gnomon.reference.response import Choice, Completion, Logprobs, json_bytes
from gnomon.reference.tokenizer import Tokenizer
from helpers.fake import EOT, FakeEngine, fake_tokenizer, hashed_logits
from helpers.live import MODEL

BUDGET = 60_000
END = 0  # an id that `logprobs.end_token` tries


@lru_cache(100_000)
def logits_of(tokens: tuple[int, ...]) -> NDArray[np.float64]:
    return hashed_logits(tokens)


class Model(NamedTuple):
    engine: FakeEngine
    tokenizer: Tokenizer


def small_model(directory: Path) -> Model:
    """A model whose every token is a byte or a known merge, and whose steps take microseconds."""
    fake = FakeEngine(lambda tokens: logits_of(tuple(tokens)), context=128, eos_ids=frozenset({EOT, END}))
    return Model(fake, fake_tokenizer(directory))


class StreamedBody(httpx.AsyncByteStream):
    """A body that is yet to be read, as one that comes over a wire is; each piece is made when it is read."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece


def slowly(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """So that the time an answer takes stands out on a busy machine."""
    for piece in pieces:
        time.sleep(0.002)
        yield piece


def answer(status: int, kind: str, content: bytes) -> httpx.Response:
    return httpx.Response(status, headers={"content-type": kind}, stream=StreamedBody([content]))


class InProcessServer(httpx.AsyncBaseTransport):
    """Answers as our server does, in its own thread and with nothing between: a hundred breaks are tried on it."""

    last = sse.DONE
    streams_errors = False
    holds_back = False

    def __init__(self, model: Model) -> None:
        self.model = model

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        streamed = b'"stream": true' in request.content
        try:
            if request.method == "GET":
                raise NotFound("no such path")
            check_content_type(Headers(raw=request.headers.raw))
            run = prepared(CompletionRequest.from_json(request.content), *self.model)
            if not run.request.stream:
                return self.reply(200, run.whole().to_bytes())
            chunks = run.chunks()
            first = list(islice(chunks, 1))  # what is refused, is refused before the stream begins
            return self.events(chunk.to_bytes() for chunk in chain(first, chunks))
        except RequestError as error:
            content = json_bytes(error.to_json())
            return self.events([content]) if streamed and self.streams_errors else self.reply(error.status, content)

    def reply(self, status: int, content: bytes) -> httpx.Response:
        return answer(status, "application/json", content)

    def events(self, lines: Iterable[bytes]) -> httpx.Response:
        pieces: Iterable[bytes] = chain(map(sse.event, lines), [self.last])
        stream = StreamedBody([b"".join(slowly(pieces))] if self.holds_back else pieces)
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=stream)


def prepared(sent: CompletionRequest, engine: FakeEngine, tokenizer: Tokenizer) -> Run:
    """A run that knows its whole request, so that a mistake can be one about any part of it."""
    run = prepare(sent, engine, tokenizer, MODEL)
    run.request, prompts = sent, []
    for prompt in sent.prompts:
        if sent.suffix:
            whole = prompt_module.InfillEncoder(sent, tokenizer).infill(prompt)
        else:
            whole = prompt_module.encode_prompt(prompt, engine, tokenizer)
        prompts.append(KeptPrompt(array("I", whole.ids), array("I", whole.starts), whole.text, len(whole.text)))
    run.prompts = tuple(prompts)
    return run


def judged(
    transport: httpx.AsyncBaseTransport, cases: Sequence[Case] = CASES, base: str = "http://gnomon"
) -> dict[str, Finding]:
    """What becomes of these cases on a server, by name."""

    async def run() -> list[Finding]:
        client = Client(f"{base}/v1", None, Budget(BUDGET), transport=transport)
        try:
            return await judge_all(cases, Subject(client, MODEL), lambda finding: None)
        finally:
            await client.close()

    return {finding.case.name: finding for finding in asyncio.run(run())}


Patch = pytest.MonkeyPatch
Apply = Callable[[Patch], None]


class Fault(NamedTuple):
    """A mistake in a server, and the case that must find it."""

    case: str
    name: str
    apply: Apply


def request(change: Callable[[CompletionRequest], CompletionRequest]) -> Apply:
    """Reads another request than the one that was sent."""

    def apply(patch: Patch) -> None:
        read = CompletionRequest.from_json

        def from_json(body: bytes, limits: Limits | None = None) -> CompletionRequest:
            return change(read(body, limits))

        patch.setattr(CompletionRequest, "from_json", from_json)

    return apply


def body(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Apply:
    """Reads another body than the one that was sent."""

    def apply(patch: Patch) -> None:
        read = CompletionRequest.from_json

        def from_json(body: bytes, limits: Limits | None = None) -> CompletionRequest:
            try:
                sent = parse_json(body)
            except RequestError:
                return read(body, limits)
            if getattr(sent, "repeated", None):
                return read(body, limits)
            return read(json.dumps(change(sent)).encode(), limits)

        patch.setattr(CompletionRequest, "from_json", from_json)

    return apply


def choice(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Apply:
    """Shows another choice, whole or in chunks."""

    def apply(patch: Patch) -> None:
        to_json = Choice.to_json
        patch.setattr(Choice, "to_json", lambda self: change(to_json(self)))

    return apply


def lists(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Apply:
    """Shows other lists, whole or in chunks."""

    def apply(patch: Patch) -> None:
        to_json = Logprobs.to_json
        patch.setattr(Logprobs, "to_json", lambda self: change(to_json(self)))

    return apply


class Listed(NamedTuple):
    """What the lists of a choice, or of a chunk, are made of."""

    run: Run
    j: int
    candidate: Candidate
    tokens: range
    echo: bool

    @property
    def prompt(self) -> KeptPrompt:
        return self.run.prompts[self.j]

    @property
    def is_last(self) -> bool:
        return self.candidate.finish_reason is not None and self.tokens.stop == len(self.candidate.ids)


def made_of(change: Callable[[Listed], Listed]) -> Apply:
    """Makes the lists of something else."""

    def apply(patch: Patch) -> None:
        original = Run._logprobs

        def _logprobs(self: Run, j: int, candidate: Candidate, tokens: range, echo: bool) -> Logprobs:
            return original(*change(Listed(self, j, candidate, tokens, echo)))

        patch.setattr(Run, "_logprobs", _logprobs)

    return apply


def sliced(part: Callable[[Listed], slice]) -> Apply:
    """Leaves places out of the lists."""

    def apply(patch: Patch) -> None:
        original = Run._logprobs

        def _logprobs(self: Run, j: int, candidate: Candidate, tokens: range, echo: bool) -> Logprobs:
            arrays = original(self, j, candidate, tokens, echo)
            at = part(Listed(self, j, candidate, tokens, echo))
            return Logprobs(
                arrays.tokens[at], arrays.token_logprobs[at], arrays.top_logprobs[at], arrays.text_offset[at]
            )

        patch.setattr(Run, "_logprobs", _logprobs)

    return apply


def offsets(change: Callable[[Listed, list[int]], Sequence[int]]) -> Apply:
    """Says other offsets."""

    def apply(patch: Patch) -> None:
        original = Run._logprobs

        def _logprobs(self: Run, j: int, candidate: Candidate, tokens: range, echo: bool) -> Logprobs:
            arrays = original(self, j, candidate, tokens, echo)
            changed = change(Listed(self, j, candidate, tokens, echo), list(arrays.text_offset))
            return replace(arrays, text_offset=tuple(changed))

        patch.setattr(Run, "_logprobs", _logprobs)

    return apply


class Draw(NamedTuple):
    job: ReferenceJob
    prompt: int
    context: list[int]
    sampled: list[int]
    token: Token

    def reported(self, logprobs: NDArray[np.float64]) -> Token:
        """The same token, with the values of these log-probabilities [V], which also rank."""
        top = ranking(logprobs, logprobs, self.job.request.top)
        return replace(self.token, logprob=max(float(logprobs[self.token.id]), -9999), top=top)

    @property
    def logits(self) -> NDArray[np.float64]:
        return self.job._engine.last_logits(self.context)


def draw(change: Callable[[Draw], Token]) -> Apply:
    """Reports something else about a token."""

    def apply(patch: Patch) -> None:
        original = ReferenceJob._sample

        def _sample(self: ReferenceJob, j: int, c: int, prompt_ids: tuple[int, ...], sampled: list[int]) -> Token:
            token = original(self, j, c, prompt_ids, sampled)
            return change(Draw(self, j, [*prompt_ids, *sampled], sampled, token))

        patch.setattr(ReferenceJob, "_sample", _sample)

    return apply


def scored(change: Callable[[ReferenceJob, tuple[int, ...], PromptScored], PromptScored]) -> Apply:
    """Scores a prompt otherwise."""

    def apply(patch: Patch) -> None:
        original = ReferenceJob._score_prompt

        def _score_prompt(self: ReferenceJob, j: int, prompt_ids: tuple[int, ...]) -> PromptScored:
            return change(self, prompt_ids, original(self, j, prompt_ids))

        patch.setattr(ReferenceJob, "_score_prompt", _score_prompt)

    return apply


def top(change: Callable[[dict[str, float], str, float], dict[str, float]]) -> Apply:
    """Lists other tokens at a place; the change is told the sampled one and its value."""

    def apply(patch: Patch) -> None:
        def _top_logprobs(
            v: int, lp: float | None, ranks: Ranking | None, labels: Sequence[str]
        ) -> dict[str, float] | None:
            if lp is None or ranks is None:
                return None
            return change({labels[u]: value for u, value in ranks}, labels[v], lp)

        patch.setattr(completion, "top_logprobs", _top_logprobs)

    return apply


def echoed(change: Callable[[Run, Choice, int, str], Choice]) -> Apply:
    """Shows a choice otherwise where the prompt belongs before it; the change is told the prompt's number and text."""

    def apply(patch: Patch) -> None:
        original = Run._choice

        def _choice(
            self: Run, index: int, j: int, candidate: Candidate, text: str, tokens: range, first: bool
        ) -> Choice:
            made = original(self, index, j, candidate, text, tokens, first)
            return change(self, made, j, self.prompts[j].text) if self.request.echo and first else made

        patch.setattr(Run, "_choice", _choice)

    return apply


def chunks(change: Callable[[Run, Iterator[Completion]], Iterator[Completion]]) -> Apply:
    """Streams otherwise."""

    def apply(patch: Patch) -> None:
        original = Run.chunks
        patch.setattr(Run, "chunks", lambda self: change(self, original(self)))

    return apply


def pieces(change: Callable[[Choice], Choice]) -> Apply:
    """Streams other choices."""
    return chunks(lambda run, events: (replace(event, choices=tuple(map(change, event.choices))) for event in events))


def of_streams(change: Callable[[CompletionRequest], CompletionRequest]) -> Apply:
    return request(lambda sent: change(sent) if sent.stream else sent)


def relabelled(change: Callable[[str], str]) -> Apply:
    def changed(arrays: dict[str, Any]) -> dict[str, Any]:
        tops = [found and {change(label): value for label, value in found.items()} for found in arrays["top_logprobs"]]
        return {**arrays, "tokens": list(map(change, arrays["tokens"])), "top_logprobs": tops}

    return lists(changed)
