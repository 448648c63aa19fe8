"""The JAX engine under strain: long contexts, a full queue, a small pool, cancelling at every stage, faults."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gnomon.jax_engine.engine import WORKS_A_STEP, JaxEngine, Message
from gnomon.jax_engine.runtime.settings import EngineSettings
from gnomon.reference.checkpoint.load import Checkpoint, load_checkpoint
from gnomon.reference.completion import EngineFailed, RunClosed, prepare
from gnomon.reference.engine import Done, Failed, JobRequest, PromptScored, ReferenceEngine, Token
from gnomon.reference.parity import Tally
from gnomon.reference.request import CompletionRequest
from gnomon.reference.sampler import SamplingParams
from gnomon.reference.tokenizer import Tokenizer, load_tokenizer
from helpers.fake import EOT
from helpers.judge import held_against
from helpers.models import tiny_llama

CONTEXT = 256


Shapes = Callable[..., EngineSettings]


@pytest.fixture(scope="module")
def engine(model: tuple[Checkpoint, Tokenizer], by_xla: Shapes) -> Iterator[JaxEngine]:
    engine = JaxEngine(model[0], by_xla(slots=3))
    yield engine
    engine.stop()


@pytest.fixture(autouse=True)
def nothing_is_left_behind(engine: JaxEngine) -> Iterator[None]:
    yield
    settle(engine)
    seen = inspect(engine)
    assert seen == {"waiting": 0, "running": 0, "held by nobody": 0}


def inspect(engine: JaxEngine) -> dict[str, int]:
    """The scheduler's state, read in its own thread, after its own check."""
    seen: dict[str, int] = {}
    ready = threading.Event()

    def look(scheduler: Any) -> None:
        scheduler.check()
        cached = {page for pages in scheduler.prefixes.held() for page in pages}
        seen.update(waiting=len(scheduler.waiting), running=len(scheduler.running))
        seen["held by nobody"] = len(set(scheduler.pool.held()) - cached) if not seen["running"] else 0
        ready.set()

    engine.post(look)
    assert ready.wait(30)
    return seen


def settle(engine: JaxEngine) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        seen = inspect(engine)
        if not seen["waiting"] and not seen["running"]:
            return
        time.sleep(0.01)


def ask(engine: Any, tokenizer: Tokenizer, **fields: Any) -> Any:
    request = CompletionRequest.from_fields({"model": "m", "prompt": "a", **fields})
    return prepare(request, engine, tokenizer, "m")


@pytest.mark.slow
def test_a_prompt_up_to_the_contexts_end_is_scored_and_continued_as_by_the_reference(
    engine: JaxEngine, model: tuple[Checkpoint, Tokenizer]
) -> None:
    reference = ReferenceEngine(model[0])
    prompt = [(i * 37) % 251 for i in range(CONTEXT - 3)]
    fields = {"prompt": prompt, "max_tokens": 3, "temperature": 0, "echo": True, "logprobs": 1}
    mine = ask(engine, model[1], **fields).whole().choices[0]
    theirs = ask(reference, model[1], **fields).whole().choices[0]
    assert mine.text == theirs.text
    np.testing.assert_allclose(mine.logprobs.token_logprobs[1:], theirs.logprobs.token_logprobs[1:], atol=1e-4)


@pytest.mark.slow
def test_500_queued_requests_are_all_answered(engine: JaxEngine, model: tuple[Checkpoint, Tokenizer]) -> None:
    runs = [ask(engine, model[1], prompt=[i % 200], max_tokens=1 + i % 3, seed=i) for i in range(500)]
    with ThreadPoolExecutor(500) as pool:
        answers = list(pool.map(lambda run: run.whole(), runs))
    assert all(len(answer.choices) == 1 and answer.usage.completion_tokens >= 1 for answer in answers)


def test_more_candidates_than_slots_wait_and_are_the_same_as_alone(
    engine: JaxEngine, model: tuple[Checkpoint, Tokenizer]
) -> None:
    together = ask(engine, model[1], n=20, max_tokens=4, seed=3).whole().choices
    assert together[:2] == ask(engine, model[1], n=2, max_tokens=4, seed=3).whole().choices


@pytest.mark.parametrize("stage", ["queued", "prefilling", "running", "done"])
def test_closing_at_any_stage_frees_everything(engine: JaxEngine, stage: str) -> None:
    params = SamplingParams(max_tokens=40)
    blockers = (
        [engine.submit(JobRequest([[1]], [0], params, 3, 0, False)) for _ in range(2)] if stage == "queued" else []
    )
    prompt = list(range(200)) if stage == "prefilling" else [1, 2]
    job = engine.submit(JobRequest([prompt], [0], params, 2, 0, False))
    events = job.events()
    if stage in ("running", "done"):
        next(events)
    if stage == "done":
        assert sum(isinstance(event, Done) for event in events) == 2
    job.close()
    job.close()
    assert list(events) == []
    for blocker in blockers:
        blocker.close()
    settle(engine)


def test_closing_wakes_a_blocked_reader(engine: JaxEngine, model: tuple[Checkpoint, Tokenizer]) -> None:
    hold = threading.Event()
    engine.post(lambda _: hold.wait(20))
    run = ask(engine, model[1], max_tokens=30)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(run.whole)
        time.sleep(0.2)
        run.close()
        with pytest.raises(RunClosed):
            answer.result(5)
    hold.set()


def test_closing_one_candidate_leaves_the_others(engine: JaxEngine) -> None:
    job = engine.submit(JobRequest([[5, 6]], [1], SamplingParams(max_tokens=12), 3, 0, False))
    ended = set()
    counts = {0: 0, 1: 0, 2: 0}
    for event in job.events():
        assert isinstance(event, Token | Done)
        if isinstance(event, Done):
            ended.add(event.candidate)
        else:
            counts[event.candidate] += 1
            if event.candidate == 1 and counts[1] == 2:
                job.close(0, 1)
                assert job.open == {(0, 0), (0, 1), (0, 2)} - {(0, c) for c in ended | {1}}
    assert ended == {0, 2}
    assert counts == {0: 12, 1: 2, 2: 12}
    assert job.open == set()


def test_a_job_can_be_read_without_waiting_and_says_when_there_is_more(engine: JaxEngine) -> None:
    asked = JobRequest([[5, 6], [7]], [1, 2], SamplingParams(max_tokens=9), 3, 2, True)
    expected = [*engine.submit(asked).events()]
    hold, woken = threading.Event(), threading.Semaphore(0)
    engine.post(lambda _: hold.wait(20))
    job, seen = engine.submit(asked), []
    events = job.arrived(woken.release)
    assert next(events) is None
    assert next(events) is None
    hold.set()
    for event in events:
        if event is None:
            assert woken.acquire(timeout=20)
        else:
            seen.append(event)
    by_candidate = [
        [
            [e for e in some if (getattr(e, "prompt", None), getattr(e, "candidate", None)) == (j, c)]
            for j in (0, 1)
            for c in (None, 0, 1, 2)
        ]
        for some in (expected, seen)
    ]
    assert by_candidate[0] == by_candidate[1]
    assert len(seen) == 2 + 2 * 3 * 10


def test_nothing_of_what_was_closed_arrives_and_closing_says_so(engine: JaxEngine) -> None:
    woken = threading.Event()
    job = engine.submit(JobRequest([[5, 6]], [1], SamplingParams(max_tokens=30), 2, 0, False))
    events = job.arrived(woken.set)
    while next(events) is None:
        assert woken.wait(20)
        woken.clear()
    job.close(0, 1)
    assert woken.is_set()
    for event in events:
        if event is None:
            assert woken.wait(20)
            woken.clear()
        else:
            assert isinstance(event, Token | Done)
            assert event.candidate == 0
            if isinstance(event, Token) and job.open:
                job.close()
    assert job.open == set()


@pytest.mark.parametrize("is_read_to_its_end", [True, False])
def test_a_job_lets_go_of_its_reader_at_the_end_and_where_reading_is_given_up(
    engine: JaxEngine, is_read_to_its_end: bool
) -> None:
    class Reading(threading.Event):
        """Weakly known."""

    reading = Reading()
    is_known = weakref.ref(reading)
    job = engine.submit(JobRequest([[5, 6]], [1], SamplingParams(max_tokens=8), 1, 0, False))
    events = job.arrived(reading.set)
    for event in events:
        if not is_read_to_its_end:
            break
        if event is None:
            assert reading.wait(20)
            reading.clear()
    del events, reading
    assert is_known() is None
    job.close()


def test_what_a_step_gives_a_job_wakes_its_reader_once(engine: JaxEngine) -> None:
    hold, wakes = threading.Event(), []
    engine.post(lambda _: hold.wait(20))
    job = engine.submit(JobRequest([[5, 6]], [1], SamplingParams(max_tokens=8), 3, 0, False))
    events = job.arrived(lambda: wakes.append(threading.current_thread().name))
    assert next(events) is None
    hold.set()
    read = 0
    deadline = time.monotonic() + 20
    for event in events:
        read += event is not None
        assert time.monotonic() < deadline
    assert read == 3 * 9
    assert set(wakes[:8]) == {"gnomon-jax"}
    assert len(wakes) == 8


def test_max_tokens_0_with_scores_scores_and_without_does_nothing(engine: JaxEngine) -> None:
    nothing = engine.submit(JobRequest([[1, 2]], [0], SamplingParams(max_tokens=0), 2, 0, False))
    assert list(nothing.events()) == [Done(0, 0), Done(0, 1)]
    scored = list(engine.submit(JobRequest([[1, 2], [3]], [0, 0], SamplingParams(max_tokens=0), 1, 2, True)).events())
    assert [type(event) for event in scored].count(PromptScored) == 2
    assert [type(event) for event in scored].count(Done) == 2


@pytest.mark.parametrize("program", ["prefill", "decode", "sample", "score"])
def test_a_fault_in_a_program_fails_what_it_worked_on_and_the_next_request_works(
    engine: JaxEngine, model: tuple[Checkpoint, Tokenizer], program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask(engine, model[1], seed=1, max_tokens=5).whole().choices

    def broken(*_: object) -> None:
        raise RuntimeError("injected")

    with monkeypatch.context() as patch:
        patch.setitem(engine.device.compiled, program, broken)
        with pytest.raises(EngineFailed):
            ask(engine, model[1], seed=1, max_tokens=5, echo=True, logprobs=1).whole()
    assert ask(engine, model[1], seed=1, max_tokens=5).whole().choices == expected


def test_logits_that_are_not_finite_fail_their_request_and_touch_no_neighbour(
    model: tuple[Checkpoint, Tokenizer], by_xla: Shapes
) -> None:
    checkpoint = model[0]
    embed = checkpoint.params["embed_tokens"].copy()
    embed[7] = np.nan
    engine = JaxEngine(
        Checkpoint(checkpoint.path, checkpoint.config, {**checkpoint.params, "embed_tokens": embed}),
        by_xla(slots=3),
    )
    try:
        params = SamplingParams(max_tokens=6, logit_bias={7: -100.0})
        good, bad = (engine.submit(JobRequest([prompt], [0], params, 1, 0, False)) for prompt in ([1, 2], [1, 7]))
        assert [type(event) for event in bad.events()] == [Failed]
        assert [type(event) for event in good.events()] == [Token] * 6 + [Done]
        scored = engine.submit(JobRequest([[3, 7, 4]], [0], params, 1, 1, True))
        assert [type(event) for event in scored.events()] == [Failed]
    finally:
        engine.stop()


def test_an_end_token_ends_a_candidate_at_once(engine: JaxEngine) -> None:
    params = SamplingParams(max_tokens=9, temperature=0, logit_bias={EOT: 100.0}, end_ids=frozenset({EOT}))
    events = list(engine.submit(JobRequest([[1]], [0], params, 1, 0, False)).events())
    assert [type(event) for event in events] == [Token, Done]


def test_a_pool_smaller_than_one_context_is_refused_with_the_number_that_would_do(
    model: tuple[Checkpoint, Tokenizer],
) -> None:
    with pytest.raises(ValueError, match=f"at least {CONTEXT + 8}"):
        JaxEngine(model[0], EngineSettings(slots=1, page_size=8, chunk=32, pool_tokens=CONTEXT))


@pytest.mark.slow
def test_a_pool_larger_than_the_memory_is_refused_before_anything_is_made(
    model: tuple[Checkpoint, Tokenizer],
) -> None:
    with pytest.raises(
        ValueError, match=r"a key/value pool of [\d,]+ tokens takes [\d,]+ MiB, the weights .* there are [\d,]+ MiB"
    ):
        JaxEngine(model[0], EngineSettings(pool_tokens=10**13))


@pytest.mark.slow
def test_the_fingerprint_changes_with_weights_and_shapes_and_not_with_time(
    engine: JaxEngine, model: tuple[Checkpoint, Tokenizer], by_xla: Shapes
) -> None:
    checkpoint = model[0]
    prints = {engine.fingerprint}
    head = checkpoint.params["lm_head"].copy()
    head[0, 0] += 1e-3
    for params, slots in ((checkpoint.params, 3), ({**checkpoint.params, "lm_head": head}, 3), (checkpoint.params, 2)):
        other = JaxEngine(Checkpoint(checkpoint.path, checkpoint.config, params), by_xla(slots=slots))
        prints.add(other.fingerprint)
        other.stop()
    assert len(prints) == 3


@pytest.mark.slow
def test_stopping_ends_jobs_with_failed(model: tuple[Checkpoint, Tokenizer], by_xla: Shapes) -> None:
    engine = JaxEngine(model[0], by_xla(slots=2))
    job = engine.submit(JobRequest([[1]], [0], SamplingParams(max_tokens=100), 4, 0, False))
    events = job.events()
    next(events)
    engine.stop()
    assert isinstance(list(events)[-1], Failed)


@pytest.mark.slow
@pytest.mark.parametrize("context", [1, 2, 3, 33])
def test_a_context_of_a_few_positions_is_served_from_the_default_pool(
    model: tuple[Checkpoint, Tokenizer], context: int
) -> None:
    checkpoint = load_checkpoint(model[0].path, max_model_len=context)
    params = SamplingParams(max_tokens=context - 1, temperature=0)
    engine = JaxEngine(checkpoint, EngineSettings(slots=2, native=False))
    try:
        assert engine.context == context
        ids = [
            event.id
            for event in engine.submit(JobRequest([[1]], [0], params, 1, 0, False)).events()
            if isinstance(event, Token)
        ]
    finally:
        engine.stop()
    events = ReferenceEngine(checkpoint).submit(JobRequest([[1]], [0], params, 1, 0, False)).events()
    assert ids == [event.id for event in events if isinstance(event, Token)]
    assert len(ids) == context - 1


@pytest.mark.slow
def test_the_fingerprint_is_of_the_weights_as_they_are_placed(
    model: tuple[Checkpoint, Tokenizer], by_xla: Callable[..., EngineSettings]
) -> None:
    """From a file in float32 and from params in float64, which become the same numbers; and with one changed."""
    checkpoint, _ = model
    down = checkpoint.params["layers"][1]["mlp"]["down_proj"].copy()
    down[3, 5] += 1e-3
    layers = [checkpoint.params["layers"][0], {**checkpoint.params["layers"][1]}]
    layers[1]["mlp"] = {**layers[1]["mlp"], "down_proj": down}
    seen = []
    for weights in (checkpoint.weights, checkpoint.params, {**checkpoint.params, "layers": layers}):
        other = Checkpoint(checkpoint.path, checkpoint.config, weights)
        engine = JaxEngine(other, by_xla(slots=2))
        engine.stop()
        seen.append(engine.fingerprint)
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.weekly
def test_a_context_of_4096_is_the_references_up_to_its_last_position(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path, scale=0.15, max_position_embeddings=4096)
    checkpoint = load_checkpoint(path)
    tokenizer = load_tokenizer(path, checkpoint.config.vocab_size)
    engine = JaxEngine(checkpoint, EngineSettings(slots=2, page_size=32, chunk=128, pool_tokens=8192))
    fields = {"prompt": [(i * 37) % 251 for i in range(4000)], "max_tokens": 96, "logit_bias": {str(EOT): -100}}
    tally = Tally()
    for sampling in ({"temperature": 0}, {"temperature": 1, "top_p": 0.9, "seed": 1, "echo": True}):
        request = CompletionRequest.from_fields({"model": "m", "logprobs": 1, **fields, **sampling})
        held_against(ReferenceEngine(checkpoint), engine, tokenizer, request, tally, 5e-5, 1e-4)
    engine.stop()
    assert not tally.faults, tally.faults[:5]
    assert tally.tokens == 2 * 96
    assert tally.excused == 0


def test_after_a_fault_nothing_is_taken_from_what_the_device_held_before(
    engine: JaxEngine, model: tuple[Checkpoint, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"prompt": list(range(100)), "max_tokens": 3, "seed": 1}
    expected = ask(engine, model[1], **fields).whole()

    def broken(params: Any, cache: Any, batch: Any) -> None:
        for keys, values in cache:  # as a program does that fails after it was given its arguments to overwrite
            keys.delete()
            values.delete()
        raise RuntimeError("injected")

    with monkeypatch.context() as patch:
        patch.setitem(engine.device.compiled, "decode", broken)
        with pytest.raises(EngineFailed):
            ask(engine, model[1], **fields).whole()
    again = ask(engine, model[1], **fields).whole()
    assert again.choices == expected.choices
    assert again.usage.cached_tokens == 0


def test_an_end_token_is_the_last_and_the_step_asked_for_after_it_is_dropped(engine: JaxEngine) -> None:
    def tokens(**changes: Any) -> list[int]:
        params = SamplingParams(max_tokens=20, **changes)
        events = list(engine.submit(JobRequest([[9, 9]], [4], params, 1, 0, False)).events())
        assert isinstance(events.pop(), Done)
        return [event.id for event in events if isinstance(event, Token)]

    free = tokens()
    end = free[7]
    assert tokens(end_ids=frozenset([end])) == free[: free.index(end) + 1]
    assert tokens() == free  # in the slot that the dropped step had moved on


def test_a_fault_fails_also_those_who_left_their_slot_without_their_last_token(
    engine: JaxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill, calls = engine.device.compiled["prefill"], []

    def broken_at_the_second(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("injected")
        return prefill(*arguments)

    with monkeypatch.context() as patch:
        patch.setitem(engine.device.compiled, "prefill", broken_at_the_second)
        hold = threading.Event()
        engine.post(lambda _: hold.wait(20))
        jobs = [engine.submit(JobRequest([[7]], [0], SamplingParams(max_tokens=1), 1, 0, False)) for _ in range(2)]
        hold.set()
        assert [[type(event) for event in job.events()] for job in jobs] == [[Failed], [Failed]]


def test_a_message_that_fails_ends_neither_the_thread_nor_a_later_request(engine: JaxEngine) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("injected")

    engine.post(broken)
    events = list(engine.submit(JobRequest([[7]], [0], SamplingParams(max_tokens=2), 1, 0, False)).events())
    assert [type(event) for event in events] == [Token, Token, Done]


def test_a_step_takes_no_more_than_so_many_arrivals_and_closings(
    engine: JaxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many works are closed at once, the streams that run get their next token between them."""
    step, steps, seen, done = engine._step, 0, [], threading.Event()

    def counted() -> None:
        nonlocal steps
        steps += 1
        step()

    monkeypatch.setattr(engine, "_step", counted)
    engine.post_each([lambda _: seen.append(steps)] * (5 * WORKS_A_STEP))
    engine.post(lambda _: done.set())
    assert done.wait(30)
    assert seen == sorted(seen)
    assert len(seen) == 5 * WORKS_A_STEP
    assert max(Counter(seen).values()) <= WORKS_A_STEP


def test_a_job_is_closed_once_and_one_that_has_ended_not_at_all(
    engine: JaxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    post_each, posted = engine.post_each, 0

    def counted(messages: Iterable[Message]) -> bool:
        nonlocal posted
        posted += 1
        return post_each(messages)

    monkeypatch.setattr(engine, "post_each", counted)
    ended = engine.submit(JobRequest([[1], [2]], [0, 0], SamplingParams(max_tokens=2), 1, 0, False))
    assert sum(isinstance(event, Done) for event in ended.events()) == 2
    ended.close(1, 0)
    ended.close()
    assert posted == 1  # when it was submitted
    open_ = engine.submit(JobRequest([[1], [2]], [0, 0], SamplingParams(max_tokens=200), 1, 0, False))
    next(open_.events())
    for _ in range(4):
        open_.close()
    assert posted == 3


def test_what_is_left_to_arrive_of_a_job_that_failed_is_dropped(
    engine: JaxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill, calls = engine.device.compiled["prefill"], []

    def broken_at_first(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("injected")
        return prefill(*arguments)

    with monkeypatch.context() as patch:
        patch.setitem(engine.device.compiled, "prefill", broken_at_first)
        many = 2 * WORKS_A_STEP  # the second half arrives after the step that fails
        job = engine.submit(JobRequest([[7]] * many, [0] * many, SamplingParams(max_tokens=1), 1, 0, False))
        assert [type(event) for event in job.events()] == [Failed]
        settle(engine)
    assert len(calls) == 1


def test_the_load_is_that_of_what_runs_and_not_of_what_is_cached(engine: JaxEngine) -> None:
    hold, held = threading.Event(), threading.Event()

    def stand_still(_: object) -> None:
        held.set()
        hold.wait(20)

    job = engine.submit(JobRequest([list(range(100))], [0], SamplingParams(max_tokens=60), 1, 0, False))
    next(job.events())
    engine.post(stand_still)
    assert held.wait(20)
    slots, busy, pages, held_pages = engine.load()
    assert (slots, busy, pages) == (3, 1, CONTEXT * 2 // 8)
    assert held_pages == 20  # 100 + 60 positions, of which 96 are cached too
    hold.set()
    job.close()
    settle(engine)
    assert engine.load()[1::2] == (0, 0)


@pytest.mark.slow
def test_stopping_fails_what_is_under_way_and_what_comes_later(
    model: tuple[Checkpoint, Tokenizer], by_xla: Shapes
) -> None:
    engine = JaxEngine(model[0], by_xla(slots=2))
    job = engine.submit(JobRequest([[1, 2]], [0], SamplingParams(max_tokens=200), 1, 0, False))
    events = job.events()
    assert isinstance(next(events), Token)
    engine.stop()
    engine.stop()
    assert isinstance(list(events)[-1], Failed)
    late = engine.submit(JobRequest([[1, 2]], [0], SamplingParams(max_tokens=2), 1, 0, False))
    assert [type(event) for event in late.events()] == [Failed]
    late.close()


LEAVES = """
import sys
from pathlib import Path
from gnomon.jax_engine.engine import EngineSettings, JaxEngine
from gnomon.reference.checkpoint.load import load_checkpoint
from gnomon.reference.engine import JobRequest
from gnomon.reference.sampler import SamplingParams
shapes = {"slots": 3, "page_size": 8, "chunk": 32, "pool_tokens": 512}
settings = EngineSettings(**shapes, native=False, compilation_cache=Path(sys.argv[2]))
engine = JaxEngine(load_checkpoint(Path(sys.argv[1])), settings)
job = engine.submit(JobRequest([[1]], [7], SamplingParams(max_tokens=200), 1, 0, False))
next(job.events())
print("leaves in the middle of a request")
"""


@pytest.mark.slow
def test_a_process_that_ends_while_the_engine_works_ends_with_0(
    model: tuple[Checkpoint, Tokenizer], engine_cache: Path
) -> None:
    """Python ends threads that want the interpreter after its end; within a call of XLA that is an abort."""
    command = [sys.executable, "-c", LEAVES, str(model[0].path), str(engine_cache)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "leaves in the middle of a request\n", "")
