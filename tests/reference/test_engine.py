"""The engine interface: what a job promises to its reader, and what a run promises whoever closes it."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gnomon.reference import engine as engine_module
from gnomon.reference import transformer
from gnomon.reference.checkpoint.load import load_checkpoint
from gnomon.reference.completion import Run, RunClosed, prepare
from gnomon.reference.engine import Done, Engine, Event, Failed, JobRequest, PromptScored, ReferenceEngine, Token
from gnomon.reference.parity import RecordingEngine
from gnomon.reference.request import CompletionRequest
from gnomon.reference.sampler import SamplingParams
from gnomon.reference.tokenizer import Tokenizer
from helpers.fake import EOT, FAKE_VOCAB, FakeEngine, StubJob, always, hashed_logits
from helpers.models import tiny_llama

SECONDS = 10  # how long a thread may take that should need none


def run_of(engine: Engine, tokenizer: Tokenizer, **fields: object) -> Run:
    request = CompletionRequest.from_fields({"model": "fake", "prompt": "ab", **fields})
    return prepare(request, engine, tokenizer, "fake")


def greedy(max_tokens: int, *end_ids: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, end_ids=frozenset(end_ids))


def of(events: Sequence[Event], prompt: int, candidate: int) -> list[Event]:
    return [e for e in events if isinstance(e, Token | Done) and (e.prompt, e.candidate) == (prompt, candidate)]


# ---- a job


def test_a_candidate_ends_with_done_after_max_tokens(engine: FakeEngine | ReferenceEngine) -> None:
    params = SamplingParams(max_tokens=4)
    events = list(engine.submit(JobRequest([[1, 2], [3]], [5, 6], params, candidates=3, top=0, score=False)).events())
    for j in range(2):
        for c in range(3):
            assert [type(event) for event in of(events, j, c)] == [Token] * 4 + [Done]
    assert len(events) == 2 * 3 * 5


def test_a_candidate_ends_with_done_after_an_end_id(engine: FakeEngine | ReferenceEngine) -> None:
    every = frozenset(range(engine.vocab_size))
    params = SamplingParams(max_tokens=4, end_ids=every)
    events = list(engine.submit(JobRequest([[1]], [5], params, candidates=2, top=0, score=False)).events())
    for c in range(2):
        assert [type(event) for event in of(events, 0, c)] == [Token, Done]


def test_with_max_tokens_0_every_candidate_is_done_at_once(engine: FakeEngine | ReferenceEngine) -> None:
    events = list(engine.submit(JobRequest([[1], [2]], [5, 5], greedy(0), candidates=2, top=0, score=False)).events())
    assert sorted((e.prompt, e.candidate) for e in events if isinstance(e, Done)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(events) == 4


def test_scores_come_before_their_prompts_tokens_and_only_if_wanted(engine: FakeEngine | ReferenceEngine) -> None:
    for score in (False, True):
        events = list(
            engine.submit(JobRequest([[1, 2, 3], [4]], [5, 5], greedy(2), candidates=2, top=3, score=score)).events()
        )
        scored = [e for e in events if isinstance(e, PromptScored)]
        assert [(e.prompt, len(e.logprobs), len(e.tops)) for e in scored] == ([(0, 3, 3), (1, 1, 1)] if score else [])
        for e in scored:
            tokens = [i for i, other in enumerate(events) if isinstance(other, Token) and other.prompt == e.prompt]
            assert events.index(e) < min(tokens)
            assert (e.logprobs[0], e.tops[0]) == (None, None)
            assert all(top is not None and len(top) == 3 for top in e.tops[1:])


def test_each_prompt_has_its_own_seed(engine: FakeEngine | ReferenceEngine) -> None:
    params = SamplingParams(max_tokens=8)
    events = list(
        engine.submit(JobRequest([[1], [1], [1]], [5, 6, 5], params, candidates=1, top=0, score=False)).events()
    )
    ids = [[e.id for e in of(events, j, 0) if isinstance(e, Token)] for j in range(3)]
    assert ids[0] == ids[2] != ids[1]


def test_the_engine_states_what_is_above_it_needs(model_directory: Path) -> None:
    engine = ReferenceEngine(load_checkpoint(model_directory))
    assert (engine.vocab_size, engine.context, engine.eos_ids) == (FAKE_VOCAB, 128, frozenset({EOT}))
    assert engine.fingerprint


def test_a_job_can_be_closed_before_it_is_read(engine: FakeEngine | ReferenceEngine) -> None:
    job = engine.submit(JobRequest([[1]], [5], greedy(4), candidates=2, top=0, score=True))
    job.close()
    job.close()
    assert list(job.events()) == []


@pytest.mark.parametrize("score", [False, True])
def test_closing_a_job_ends_its_pass_between_two_layers(
    model_directory: Path, monkeypatch: pytest.MonkeyPatch, score: bool
) -> None:
    """A pass over a long prompt takes many seconds, and nobody waits for it any more."""
    engine, passed = ReferenceEngine(load_checkpoint(model_directory)), []
    job = engine.submit(JobRequest([[1, 2, 3]], [0], greedy(2), candidates=1, top=0, score=score))
    real = transformer.hidden_states

    def counted(config: Any, params: Any, tokens: Sequence[int]) -> NDArray[np.float64]:
        def layers() -> Iterator[Any]:
            for layer in params["layers"]:
                passed.append(layer)
                job.close()
                yield layer

        return real(config, {**params, "layers": layers()}, tokens)

    assert len(engine.params["layers"]) > 1
    monkeypatch.setattr(engine_module, "hidden_states", counted)
    assert list(job.events()) == []
    assert len(passed) == 1


def test_no_event_of_a_closed_candidate_follows(engine: FakeEngine | ReferenceEngine) -> None:
    job = engine.submit(JobRequest([[1], [2]], [5, 5], greedy(4), candidates=3, top=0, score=False))
    events: list[Event] = []
    for event in job.events():
        events.append(event)
        if isinstance(event, Token) and event.prompt == 0 and event.candidate in (1, 2):
            job.close(0, event.candidate)
            job.close(0, event.candidate)
    assert [len(of(events, 0, c)) for c in range(3)] == [5, 1, 1]
    assert [len(of(events, 1, c)) for c in range(3)] == [5, 5, 5]


def test_no_event_follows_the_readers_own_close(engine: FakeEngine | ReferenceEngine) -> None:
    job = engine.submit(JobRequest([[1], [2]], [5, 5], greedy(4), candidates=2, top=0, score=True))
    events = job.events()
    for _ in range(3):
        next(events)
    job.close()
    assert list(events) == []


def test_a_job_says_which_candidates_have_events_to_come(engine: FakeEngine | ReferenceEngine) -> None:
    job = engine.submit(JobRequest([[1], [2]], [5, 5], greedy(2), candidates=2, top=0, score=False))
    assert job.open == {(0, 0), (0, 1), (1, 0), (1, 1)}
    job.close(1, 0)
    assert job.open == {(0, 0), (0, 1), (1, 1)}
    for event in job.events():
        assert isinstance(event, Token | Done)
        assert ((event.prompt, event.candidate) in job.open) == isinstance(event, Token)
    assert job.open == set()
    left = engine.submit(JobRequest([[1]], [5], greedy(2), candidates=2, top=0, score=False))
    left.close()
    assert left.open == set()


def test_closing_an_unread_prompt_leaves_the_others(engine: FakeEngine | ReferenceEngine) -> None:
    job = engine.submit(JobRequest([[1], [2]], [5, 5], greedy(2), candidates=1, top=0, score=False))
    job.close(1, 0)
    events = list(job.events())
    assert [len(of(events, j, 0)) for j in range(2)] == [3, 0]


def test_a_failure_is_the_last_event() -> None:
    engine = FakeEngine(lambda tokens: hashed_logits(tokens) * (np.nan if len(tokens) > 2 else 1))
    events = list(engine.submit(JobRequest([[1], [2]], [5, 5], greedy(9), candidates=2, top=0, score=False)).events())
    assert [isinstance(event, Failed) for event in events] == [False] * (len(events) - 1) + [True]
    assert len(events) == 5


# ---- fingerprints


def test_the_fingerprint_is_the_same_for_the_same_model(model_directory: Path, tmp_path: Path) -> None:
    again = tiny_llama(tmp_path / "again")
    first, second, third = (ReferenceEngine(load_checkpoint(d)) for d in (model_directory, model_directory, again))
    assert first.fingerprint == second.fingerprint == third.fingerprint


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"rms_norm_eps": 1e-6}, {"rope_theta": 5000.0}, {"eos_token_id": 3}], ids=str
)
def test_the_fingerprint_changes_with_weights_and_config(
    model_directory: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    other = tiny_llama(tmp_path / "other", **changed)
    fingerprints = {ReferenceEngine(load_checkpoint(d)).fingerprint for d in (model_directory, other)}
    assert len(fingerprints) == 2


# ---- what a run asks of an engine, and what it makes of the answer


def asked_of(engine: RecordingEngine) -> list[JobRequest]:
    return [recording.request for recording in engine.recordings]


def test_a_list_is_one_job_with_a_seed_for_every_prompt(tokenizer: Tokenizer) -> None:
    engine = RecordingEngine(FakeEngine(hashed_logits))
    run_of(engine, tokenizer, prompt=["a", "b", "a"], seed=-3, n=2, best_of=4, max_tokens=1).whole()
    assert [(asked.seeds, asked.candidates) for asked in asked_of(engine)] == [([-3] * 3, 4)]
    run_of(engine, tokenizer, prompt=["a", "b", "a"], max_tokens=1).whole()
    assert len(set(asked_of(engine)[1].seeds)) == 3
    assert all(0 <= seed < 2**64 for seed in asked_of(engine)[1].seeds)


@pytest.mark.parametrize(
    ("fields", "top", "score"),
    [({}, 0, False), ({"echo": True}, 0, False), ({"logprobs": 0, "echo": True}, 0, True), ({"logprobs": 5}, 5, False)],
)
def test_the_prompt_is_scored_only_for_echoed_logprobs(
    tokenizer: Tokenizer, fields: dict[str, Any], top: int, score: bool
) -> None:
    engine = RecordingEngine(FakeEngine(hashed_logits))
    run_of(engine, tokenizer, max_tokens=1, **fields).whole()
    assert (asked_of(engine)[0].top, asked_of(engine)[0].score) == (top, score)


class Ahead:
    """An engine that computes everything before the first event is read, hands events over in any order that keeps each
    candidate's, and found 3 tokens in its cache."""

    vocab_size, context, eos_ids, fingerprint = FAKE_VOCAB, 64, frozenset({EOT}), "fake"

    def __init__(self, inner: Engine, order: int) -> None:
        self.inner, self.order = inner, random.Random(order)

    def submit(self, request: JobRequest) -> AheadJob:
        return AheadJob(list(self.inner.submit(request).events()), self.order)


class AheadJob(StubJob):
    cached_tokens = 3

    def __init__(self, events: list[Event], order: random.Random) -> None:
        self.events_left, self.order = events, order
        self.closed: set[tuple[int, int]] = set()

    def events(self) -> Iterator[Event]:
        scores = [e for e in self.events_left if isinstance(e, PromptScored)]
        lines: dict[tuple[int, int], list[Event]] = {}
        for e in self.events_left:
            if isinstance(e, Token | Done):
                lines.setdefault((e.prompt, e.candidate), []).append(e)
        self.order.shuffle(scores)
        yield from scores
        while lines := {place: line for place, line in lines.items() if line and place not in self.closed}:
            yield lines[self.order.choice(list(lines))].pop(0)

    def close(self, prompt: int | None = None, candidate: int | None = None) -> None:
        if prompt is not None and candidate is not None:
            self.closed.add((prompt, candidate))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    order=st.integers(0, 2**32),
    seed=st.integers(0, 2**32),
    fields=st.fixed_dictionaries(
        {
            "prompt": st.sampled_from(["ab", ["a", "b", "é"], [[1], [2, 3]]]),
            "n": st.integers(1, 3),
            "best_of": st.sampled_from([None, 4]),
            "stop": st.sampled_from([None, ["e", "\ufffd"]]),
            "echo": st.booleans(),
            "logprobs": st.sampled_from([None, 2]),
            "max_tokens": st.integers(0, 6),
        }
    ),
)
def test_the_answer_does_not_depend_on_how_events_interleave_or_how_far_the_engine_ran(
    tokenizer: Tokenizer, order: int, seed: int, fields: dict[str, Any]
) -> None:
    """Exact. What the engine computed past a candidate's end is neither counted nor shown."""
    plain = FakeEngine(hashed_logits)
    expected = run_of(plain, tokenizer, seed=seed, **fields).whole()
    answer = run_of(Ahead(plain, order), tokenizer, seed=seed, **fields).whole()
    assert answer.choices == expected.choices
    assert answer.usage is not None
    assert expected.usage is not None
    assert answer.usage.completion_tokens == expected.usage.completion_tokens
    if fields["best_of"] is None:
        chunks = list(run_of(Ahead(plain, order), tokenizer, seed=seed, stream=True, **fields).chunks())
        for choice in expected.choices:
            parts = [piece for chunk in chunks for piece in chunk.choices if piece.index == choice.index]
            assert "".join(piece.text for piece in parts) == choice.text
            assert parts[-1].finish_reason == choice.finish_reason


def test_usage_reports_the_jobs_cached_tokens(tokenizer: Tokenizer) -> None:
    answer = run_of(Ahead(FakeEngine(hashed_logits), 0), tokenizer, n=2, max_tokens=1).whole()
    assert answer.usage is not None
    assert answer.usage.cached_tokens == 3
    assert answer.usage.to_json()["prompt_tokens_details"] == {"cached_tokens": 3}


def test_requests_of_many_threads_on_one_engine_are_the_same_as_alone(
    engine: FakeEngine | ReferenceEngine, tokenizer: Tokenizer
) -> None:
    def choices(seed: int) -> object:
        return run_of(engine, tokenizer, seed=seed, logprobs=2, max_tokens=6, n=2).whole().choices

    alone = [choices(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(choices, range(6))) == alone


# ---- closing a run


def test_a_run_closed_before_it_is_read_does_no_work(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(hashed_logits)
    run = run_of(engine, tokenizer, stream=True, stream_options={"include_usage": True})
    run.close()
    run.close()
    assert list(run.chunks()) == []
    run = run_of(engine, tokenizer)
    run.close()
    with pytest.raises(RunClosed):
        run.whole()
    assert engine.calls == 0


@pytest.mark.parametrize("n", [1, 3])
def test_closing_a_stream_midway_stops_the_engine_at_once(tokenizer: Tokenizer, n: int) -> None:
    engine = FakeEngine(always(*b"xyz"))
    run = run_of(
        engine, tokenizer, temperature=0, n=n, max_tokens=60, stream=True, stream_options={"include_usage": True}
    )
    chunks = run.chunks()
    for _ in range(4):
        next(chunks)
    calls = engine.calls
    run.close()
    run.close()
    assert list(chunks) == []
    assert engine.calls == calls == 4


def test_leaving_a_stream_midway_stops_the_engine_at_once(tokenizer: Tokenizer) -> None:
    """A reader that goes away closes the iterator; nothing is computed for it after that."""
    run = run_of(FakeEngine(always(*b"xyz")), tokenizer, temperature=0, n=2, max_tokens=60, stream=True)
    chunks = run.chunks()
    next(chunks)
    chunks.close()
    assert run._job is not None
    assert list(run._job.events()) == []


def test_closing_from_another_thread_stops_the_engine_within_a_step(tokenizer: Tokenizer) -> None:
    """The third forward pass is held up until the run is closed; at most that one is finished."""
    reached, closed = threading.Event(), threading.Event()

    def logits_of(tokens: Sequence[int]) -> NDArray[np.float64]:
        if len(tokens) == 4:
            reached.set()
            assert closed.wait(SECONDS)
        return always(*b"xyz")(tokens)

    engine = FakeEngine(logits_of)
    run = run_of(engine, tokenizer, temperature=0, max_tokens=50)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(run.whole)
        assert reached.wait(SECONDS)
        run.close()
        closed.set()
        with pytest.raises(RunClosed):
            answer.result(SECONDS)
    assert engine.calls == 3


class Silent:
    """An engine that never answers; its jobs block their readers until they are closed."""

    vocab_size, context, eos_ids, fingerprint = FAKE_VOCAB, 64, frozenset({EOT}), "silent"

    def __init__(self) -> None:
        self.job = SilentJob()

    def submit(self, request: JobRequest) -> SilentJob:
        return self.job


class SilentJob(StubJob):
    def __init__(self) -> None:
        self.queue: queue.Queue[Event | None] = queue.Queue()
        self.waiting = threading.Event()

    def events(self) -> Iterator[Event]:
        self.waiting.set()
        while (event := self.queue.get(timeout=SECONDS)) is not None:
            yield event

    def close(self, prompt: int | None = None, candidate: int | None = None) -> None:
        self.queue.put(None)


@pytest.mark.parametrize("stream", [False, True])
def test_closing_wakes_a_blocked_reader(tokenizer: Tokenizer, stream: bool) -> None:
    engine = Silent()
    run = run_of(engine, tokenizer, stream=stream)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lambda: list(run.chunks()) if stream else [run.whole()])
        assert engine.job.waiting.wait(SECONDS)
        run.close()
        if stream:
            assert answer.result(SECONDS) == []
        else:
            with pytest.raises(RunClosed):
                answer.result(SECONDS)


def test_many_threads_may_close_a_run_at_once(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(always(*b"xyz"))
    run = run_of(engine, tokenizer, temperature=0, max_tokens=60, stream=True)
    chunks = run.chunks()
    next(chunks)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: run.close(), range(32)))
    assert list(chunks) == []
    assert engine.calls == 1


def test_closing_a_finished_run_changes_nothing(tokenizer: Tokenizer) -> None:
    run = run_of(FakeEngine(hashed_logits), tokenizer, max_tokens=1)
    assert run.whole().choices
    run.close()
