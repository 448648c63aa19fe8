"""What goes wrong in a server's life: an engine that raises, a full queue, a signal under load, clients that leave or
do not read. On real sockets, with both engines where it matters which; signals go to a process of its own."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from load import Connection, Plan, Received, Server, choices_of, server

from gnomon.http.app import create_app
from gnomon.http.service import FAULTS
from gnomon.http.settings import Settings
from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.settings import EngineSettings
from gnomon.reference.checkpoint.load import Checkpoint, load_checkpoint
from gnomon.reference.engine import Done, Failed, JobRequest, Load, ReferenceEngine, Token
from gnomon.reference.sampler import SamplingParams
from gnomon.reference.tokenizer import Tokenizer, load_tokenizer
from helpers.fake import EOT, fake_tokenizer
from helpers.live import check_error, connection, events, eventually, request_body, serving
from helpers.models import tiny_llama

CONTEXT = 2048
SLOTS = 3
NO_END = {str(EOT): -100}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=CONTEXT)


@pytest.fixture(scope="module")
def model(path: Path) -> tuple[Checkpoint, Tokenizer]:
    checkpoint = load_checkpoint(path)
    return checkpoint, load_tokenizer(path, checkpoint.config.vocab_size)


@pytest.fixture(scope="module")
def jax_engine(model: tuple[Checkpoint, Tokenizer], by_xla: Callable[..., EngineSettings]) -> Iterator[JaxEngine]:
    engine = JaxEngine(model[0], by_xla(slots=SLOTS, pool_tokens=CONTEXT * 4))
    yield engine
    engine.stop()


@pytest.fixture
def jax(jax_engine: JaxEngine) -> Iterator[JaxEngine]:
    """The engine, and afterwards the check that a test has left nothing behind in it."""
    yield jax_engine
    assert eventually(lambda: is_idle(jax_engine))
    check_state(jax_engine)


def is_idle(engine: JaxEngine) -> bool:
    load = engine.load()
    return (load.busy_slots, load.held_pages) == (0, 0)


def check_state(engine: JaxEngine) -> None:
    """The scheduler's own check, in its own thread; nothing runs, and only the cache holds pages."""
    seen: list[object] = []
    looked = threading.Event()

    def look(scheduler: Any) -> None:
        try:
            scheduler.check()
            cached = {page for pages in scheduler.prefixes.held() for page in pages}
            seen.append((len(scheduler.waiting), len(scheduler.running), set(scheduler.pool.held()) - cached))
        except AssertionError as error:
            seen.append(error)
        looked.set()

    engine.post(look)
    assert looked.wait(20)
    assert seen == [(0, 0, set())]


def post(base: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{base}/v1/completions", json=request_body(**fields), timeout=60)


class Sometimes:
    """A function that raises in the calls whose numbers, from 0 on, are bad."""

    def __init__(self, function: Callable[..., Any], bad: Callable[[int], bool]) -> None:
        self.calls = 0
        self._function, self._bad = function, bad

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if self._bad(self.calls - 1):
            raise RuntimeError("the device is on fire")
        return self._function(*arguments)


# ---- a system that has no thread left


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("missing", ["prepare", "completions"])
def test_without_a_thread_left_a_request_is_a_503_and_the_engine_is_not_blamed(
    model: tuple[Checkpoint, Tokenizer],
    missing: str,
    stream: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A request has two kinds of threads: one prepares it, and others read the engine."""
    start = threading.Thread.start

    def none_left(thread: threading.Thread) -> None:
        if thread.name == missing:
            raise RuntimeError("can't start new thread")
        start(thread)

    app = create_app(ReferenceEngine(model[0]), model[1], Settings())
    with serving(app) as base:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", none_left)
            for _ in range(FAULTS + 1):
                assert "no thread left" in check_error(post(base, stream=stream), 503, code="too_busy")
                assert httpx.get(f"{base}/readyz").status_code == 200
        assert post(base, stream=stream).status_code == 200
    assert "the system starts no further thread" in caplog.text
    assert "Traceback" not in caplog.text
    assert not app.state.completions.admission.open


def test_a_readiness_probe_that_gets_no_thread_is_a_503_like_any_other(
    model: tuple[Checkpoint, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def no_probe(thread: threading.Thread) -> None:
        if thread.name == "probe":
            raise RuntimeError("can't start new thread")
        start(thread)

    app = create_app(ReferenceEngine(model[0]), model[1], Settings())
    app.state.service._faults = FAULTS
    monkeypatch.setattr(threading.Thread, "start", no_probe)
    with serving(app) as base:
        assert httpx.get(f"{base}/readyz").json()["error"]["code"] == "failing"


def test_a_text_at_which_the_tokenizer_panics_is_a_400_and_the_next_one_is_read(
    model: tuple[Checkpoint, Tokenizer], tmp_path: Path
) -> None:
    """What it raises is no Exception: it would pass by everything that makes an answer of an error."""
    evil = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    steps = {"type": "Sequence", "pretokenizers": [evil, byte_level]}
    app = create_app(ReferenceEngine(model[0]), fake_tokenizer(tmp_path, pre_tokenizer=steps), Settings())
    with serving(app) as base:
        for _ in range(2):
            message = check_error(post(base, prompt="a" * 40 + "!"), 400, "prompt")
            assert message.startswith(f'prompt: this model\'s tokenizer fails on "{"a" * 40}!" (')
            assert post(base, prompt="aab", max_tokens=1).status_code == 200


# ---- an engine that raises


class Breakable(NamedTuple):
    """An engine, and how one of its parts is made to raise."""

    engine: Any
    parts: Any  # a mapping of functions

    @contextmanager
    def broken(self, part: str, bad: Callable[[int], bool]) -> Iterator[Sometimes]:
        sound = self.parts[part]
        self.parts[part] = sometimes = Sometimes(sound, bad)
        try:
            yield sometimes
        finally:
            self.parts[part] = sound


@pytest.fixture(params=["reference", "jax"])
def breakable(request: pytest.FixtureRequest, model: tuple[Checkpoint, Tokenizer]) -> Breakable:
    if request.param == "jax":
        engine = request.getfixturevalue("jax")
        return Breakable(engine, engine.device.compiled)
    reference = ReferenceEngine(model[0])
    parts: dict[str, Any] = {"prefill": reference.last_logits, "score": reference.all_logits}
    parts["decode"] = lambda tokens: parts["prefill"](tokens)
    reference.last_logits = lambda tokens, *_: parts["decode" if len(tokens) > 1 else "prefill"](tokens)  # type: ignore[method-assign]
    reference.all_logits = lambda tokens, *_: parts["score"](tokens)  # type: ignore[method-assign]
    return Breakable(reference, parts)


PART = {"prefill": {}, "score": {"echo": True, "logprobs": 1}, "decode": {}}


def texts(response: httpx.Response) -> str | None:
    assert response.status_code == 200, response.text
    return choices_of(Received(200, response.headers, response.content, 0.0))


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("part", [*PART])
def test_a_fault_is_a_500_with_its_cause_in_the_log_and_changes_no_later_byte(
    breakable: Breakable, model: tuple[Checkpoint, Tokenizer], part: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(breakable.engine, model[1], Settings())
    fields = {"max_tokens": 8, "seed": 3, "stream": stream, "logit_bias": NO_END, "prompt": [7], **PART[part]}
    with serving(app) as base:
        if part == "score":
            fields["prompt"] = [7, 8]
        before = texts(post(base, **fields))
        with breakable.broken(part, lambda call: call == 0) as broken:
            message = (
                check_error(post(base, **fields), 500) if part != "decode" or not stream else broken_off(base, fields)
            )
            assert broken.calls >= 1
            assert "fire" not in message
            assert "the device is on fire" in caplog.text
            assert httpx.get(f"{base}/readyz").status_code == 200
            assert texts(post(base, **fields)) == before
        assert eventually(lambda: app.state.completions.open == [])


def broken_off(base: str, fields: dict[str, Any]) -> str:
    """The message of a stream's error, however far it came: the first token may have been on its way already."""
    response = post(base, **fields)
    if response.status_code == 500:
        return check_error(response, 500)
    assert response.status_code == 200
    *chunks, error = events(response.content)
    assert all(choice["finish_reason"] is None for chunk in chunks for choice in chunk["choices"])
    assert error["error"]["type"] == "server_error"
    return str(error["error"]["message"])


def test_a_fault_in_the_middle_of_a_stream_is_an_error_event_after_what_was_made(
    breakable: Breakable, model: tuple[Checkpoint, Tokenizer]
) -> None:
    fields = {"max_tokens": 30, "seed": 3, "stream": True, "logit_bias": NO_END, "logprobs": 0, "prompt": [7]}
    with serving(create_app(breakable.engine, model[1], Settings())) as base:
        whole = json.loads(texts(post(base, **fields)) or "")[0]["logprobs"]["tokens"]
        with breakable.broken("decode", lambda call: call == 20):
            *chunks, error = events(post(base, **fields).content)
    tokens = [token for chunk in chunks for choice in chunk["choices"] for token in choice["logprobs"]["tokens"]]
    assert tokens
    assert tokens == whole[: len(tokens)]
    assert error["error"]["type"] == "server_error"


@pytest.mark.slow
def test_a_fault_that_repeats_turns_readiness_off_and_an_answer_turns_it_on(
    breakable: Breakable, model: tuple[Checkpoint, Tokenizer]
) -> None:
    with serving(create_app(breakable.engine, model[1], Settings())) as base:
        with breakable.broken("prefill", lambda call: True):
            for i in range(FAULTS):
                assert httpx.get(f"{base}/readyz").status_code == 200, i
                check_error(post(base), 500)
            refused = httpx.get(f"{base}/readyz")
            check_error(refused, 503, code="failing")
            assert int(refused.headers["retry-after"]) >= 1
            assert httpx.get(f"{base}/livez").status_code == 200
        assert post(base).status_code == 200
        assert httpx.get(f"{base}/readyz").status_code == 200


def test_an_engine_that_hangs_after_it_failed_is_tried_by_one_thread_only(
    jax: JaxEngine, model: tuple[Checkpoint, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gnomon.http.service.PROBE_SECONDS", 0.0)
    hold = threading.Event()
    with serving(create_app(jax, model[1], Settings())) as base:
        with Breakable(jax, jax.device.compiled).broken("prefill", lambda call: True):
            for _ in range(FAULTS):
                check_error(post(base), 500)
        jax.post(lambda _: hold.wait(20))
        for _ in range(5):
            assert httpx.get(f"{base}/readyz").status_code == 503
        assert sum(thread.name == "probe" for thread in threading.enumerate()) == 1
        hold.set()
        assert eventually(lambda: httpx.get(f"{base}/readyz").status_code == 200)


def test_one_fault_that_hits_many_requests_is_no_repetition(
    jax: JaxEngine, model: tuple[Checkpoint, Tokenizer]
) -> None:
    """Some run, some wait in the engine; all of them fail, and all of them once."""
    app = create_app(jax, model[1], Settings())
    with serving(app) as base, ThreadPoolExecutor(8) as pool:
        hold = threading.Event()
        jax.post(lambda _: hold.wait(20))
        answers = [pool.submit(post, base, max_tokens=50, stream=i % 2 == 0, logit_bias=NO_END) for i in range(8)]
        assert eventually(lambda: jax._inbox.qsize() == 8)  # all of them are in the engine's hands
        with Breakable(jax, jax.device.compiled).broken("decode", lambda call: call == 0):
            hold.set()
            ended = [answer.result(30) for answer in answers]
        assert [answer.status_code for answer in ended if answer.status_code != 500] == []
        assert httpx.get(f"{base}/readyz").status_code == 200
        assert app.state.service._faults == 1
        assert post(base).status_code == 200


def test_a_device_that_cannot_be_cleared_fails_requests_until_it_can(
    jax: JaxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it not so, the engine's thread would be gone and every later request would wait for ever."""

    def ends() -> list[type]:
        job = jax.submit(JobRequest([[1, 2]], [0], SamplingParams(max_tokens=2), 1, 0, False))
        closing = threading.Timer(20, job.close)
        closing.start()
        kinds = [type(event) for event in job.events()]
        closing.cancel()
        return kinds

    with monkeypatch.context() as patch:
        patch.setattr(jax.device, "clear", Sometimes(jax.device.clear, lambda call: call < 2))
        patch.setitem(jax.device.compiled, "decode", Sometimes(jax.device.compiled["decode"], lambda call: call == 0))
        assert ends()[-1] is Failed  # at its second token
        assert [ends(), ends()] == [[Failed], [Failed]]
        assert ends() == [Token, Token, Done]
    assert ends() == [Token, Token, Done]


def test_an_inconsistent_state_ends_no_thread(jax: JaxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    job = jax.submit(JobRequest([[1, 2]], [0], SamplingParams(max_tokens=1500), 1, 0, False))
    next(job.events())

    def release_all(scheduler: Any) -> None:
        scheduler.pool._holders = [0] * len(scheduler.pool._holders)
        raise RuntimeError("inconsistent")

    jax.post(release_all)
    closing = threading.Timer(20, job.close)
    closing.start()
    assert isinstance([*job.events()][-1], Failed)
    closing.cancel()
    later = jax.submit(JobRequest([[1, 2]], [0], SamplingParams(max_tokens=2), 1, 0, False))
    assert [type(event) for event in later.events()] == [Token, Token, Done]


# ---- a full queue


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_refuses_the_rest_and_answers_all_that_it_let_in(
    jax: JaxEngine, model: tuple[Checkpoint, Tokenizer], stream: bool
) -> None:
    app = create_app(jax, model[1], Settings(max_queue=5))
    with serving(app) as base, ThreadPoolExecutor(40) as pool:
        hold = threading.Event()
        jax.post(lambda _: hold.wait(30))
        answers = [pool.submit(post, base, max_tokens=4, stream=stream, seed=i) for i in range(40)]
        assert eventually(lambda: sum(answer.done() for answer in answers) == 35, 25)
        assert len(app.state.completions.admission.waiting()) == 5
        hold.set()
        ended = [answer.result(30) for answer in answers]
        for answer in ended:
            if answer.status_code == 429:
                check_error(answer, 429, code="queue_full")
                assert int(answer.headers["retry-after"]) >= 1
            else:
                assert texts(answer)
        assert sum(answer.status_code == 200 for answer in ended) == 5
        assert post(base).status_code == 200


# ---- clients that leave


def send(client: socket.socket, **fields: Any) -> None:
    body = json.dumps(request_body(logit_bias=NO_END, **fields)).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: gnomon\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


class SteppedDevice:
    """The device's steps, no more of them than a test allows."""

    def __init__(self, step: Callable[..., Any]) -> None:
        self.begun = 0
        self._step = step
        self._permits = threading.Semaphore(0)

    def __call__(self, *arguments: Any) -> Any:
        self.begun += 1
        assert self._permits.acquire(timeout=20), "the test allowed too few steps"
        return self._step(*arguments)

    def allow(self, steps: int) -> None:
        for _ in range(steps):
            self._permits.release()


@pytest.fixture
def stepped(jax: JaxEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[SteppedDevice]:
    device = SteppedDevice(jax.device.step)
    with monkeypatch.context() as patch:
        patch.setattr(jax.device, "step", device)
        yield device
        device.allow(10_000)
        assert eventually(lambda: is_idle(jax))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slots_and_pages_within_one_step(
    jax: JaxEngine, stepped: SteppedDevice, model: tuple[Checkpoint, Tokenizer], stream: bool
) -> None:
    app = create_app(jax, model[1], Settings())
    with serving(app) as base:
        with connection(base) as client:
            send(client, stream=stream, max_tokens=1000, n=2)
            stepped.allow(4)
            assert eventually(lambda: stepped.begun == 5)
            assert jax.load() == Load(SLOTS, 2, jax.load().pages, jax.load().held_pages)
            assert jax.load().held_pages >= 2 * 1000 // 8
            if stream:
                assert client.recv(12) == b"HTTP/1.1 200"
        assert eventually(lambda: app.state.completions.open == [])
        assert eventually(lambda: not jax._inbox.empty())
        stepped.allow(1)
        assert eventually(lambda: is_idle(jax))
        assert stepped.begun == 5
        check_state(jax)


def test_a_client_that_leaves_the_engines_queue_never_starts_and_holds_nothing(
    jax: JaxEngine, stepped: SteppedDevice, model: tuple[Checkpoint, Tokenizer]
) -> None:
    app = create_app(jax, model[1], Settings())
    with serving(app) as base, connection(base) as first:
        send(first, max_tokens=20, n=SLOTS, prompt=[5])
        assert eventually(lambda: stepped.begun == 1)
        with connection(base) as second:
            send(second, max_tokens=1000, prompt=[6])
            assert eventually(lambda: len(app.state.completions.open) == 2)
            assert eventually(lambda: not jax._inbox.empty())
            stepped.allow(1)
            assert eventually(lambda: stepped.begun == 2)
            assert [answer.run.started is None for answer in app.state.completions.open] == [False, True]
            assert len(jax._scheduler.waiting) == 1
        assert eventually(lambda: len(app.state.completions.open) == 1)
        assert eventually(lambda: not jax._inbox.empty())
        stepped.allow(1)
        assert eventually(lambda: stepped.begun == 3)
        assert len(jax._scheduler.waiting) == 0
        stepped.allow(1000)
        assert first.recv(12) == b"HTTP/1.1 200"
        assert stepped.begun <= 21


# ---- clients that do not read


@pytest.mark.slow
def test_a_client_that_does_not_read_holds_no_slot_or_page_and_little_memory(
    jax: JaxEngine, model: tuple[Checkpoint, Tokenizer]
) -> None:
    """Its tokens are made as for anyone; what is written ahead of the client is bounded by buffers, not by the
    answer."""
    most = 1500
    app = create_app(jax, model[1], Settings(shutdown_seconds=1))
    with serving(app, small_buffers=True) as base, connection(base) as deaf:
        send(deaf, stream=True, max_tokens=most, logprobs=20)
        assert eventually(lambda: jax.load().busy_slots == 1)
        assert post(base, max_tokens=5, logit_bias=NO_END).json()["usage"]["completion_tokens"] == 5
        assert eventually(lambda: is_idle(jax), 40)
        [answer] = app.state.completions.open
        assert eventually(lambda: not answer.has_place)  # nor a place
        read = answer.run.usage.completion_tokens
        assert post(base, max_tokens=50, logit_bias=NO_END).status_code == 200
        assert answer.run.usage.completion_tokens == read < most / 2
        assert answer.run._job._queue.qsize() <= most + 1 - read
    assert eventually(lambda: app.state.completions.open == [])


# ---- a signal under load


class Ended(NamedTuple):
    streams: list[Received]
    wholes: list[Received]
    status: int
    seconds: float  # from the first signal to the process's end
    log: str


def under_signals(path: Path, engine: str, max_tokens: int, signals: int, drain_seconds: float) -> Ended:
    """16 streams and 16 others, more than the engine can run at one time; a signal when it is at work."""
    options: tuple[str, ...] = ("--drain-seconds", str(drain_seconds), "--ping-seconds", "0.05")
    if engine == "jax":
        options += ("--slots", "8")
    with server(Plan(engine=engine, model=path, max_queue=500, more=options)) as at:
        return asyncio.run(signalled(at, max_tokens, signals))


async def signalled(at: Server, max_tokens: int, signals: int) -> Ended:
    clients = [await Connection.open(at.port) for _ in range(32)]
    answers = []
    for i, client in enumerate(clients):
        body = request_body(
            model=at.model, prompt=[i], max_tokens=max_tokens, logit_bias=NO_END, stream=i >= 16, seed=i
        )
        await client.send(json.dumps(body).encode())
        answers.append(asyncio.create_task(client.receive()))
    for client in clients[16:]:  # a stream that waits for its turn says so by a comment
        await asyncio.wait_for(client.has_begun.wait(), 60)
    assert not all(answer.done() for answer in answers), "they should be longer"
    begun = time.monotonic()
    for _ in range(signals):
        at.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
    ended = await asyncio.wait_for(asyncio.gather(*answers), 120)
    for client in clients:
        client.close()
    status = await asyncio.to_thread(at.process.wait, 60)
    return Ended(ended[16:], ended[:16], status, time.monotonic() - begun, at.log.read_text())


def check_each_has_an_end(ended: Ended) -> tuple[int, int]:
    """How many streams were answered in full, and how many were told that the server ends; there is nothing else."""
    full = 0
    for answer in ended.wholes:
        if answer.status == 200:
            assert all(choice["finish_reason"] for choice in json.loads(answer.body)["choices"])
        else:
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert json.loads(answer.body)["error"]["code"] == "draining"
    for answer in ended.streams:
        assert answer.status == 200
        choices = choices_of(answer)
        if choices is None:
            assert events(re.sub(rb"(?m)^: .*\n\n", b"", answer.body))[-1]["error"]["code"] == "draining"
        else:
            assert all(choice["finish_reason"] for choice in json.loads(choices))
            full += 1
    assert ended.status == 0
    assert "Traceback" not in ended.log
    return full, len(ended.streams) - full


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "max_tokens"), [("reference", 60), ("jax", 500)])
def test_a_signal_under_load_lets_all_that_was_let_in_finish(path: Path, engine: str, max_tokens: int) -> None:
    assert check_each_has_an_end(under_signals(path, engine, max_tokens, signals=1, drain_seconds=90)) == (16, 0)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["reference", "jax"])
@pytest.mark.parametrize(("signals", "drain_seconds"), [(1, 1.0), (2, 90.0)], ids=["time is up", "a second signal"])
def test_what_is_not_finished_under_load_ends_with_an_error_and_nobody_is_cut(
    path: Path, engine: str, signals: int, drain_seconds: float
) -> None:
    ended = under_signals(path, engine, max_tokens=2000, signals=signals, drain_seconds=drain_seconds)
    _, told = check_each_has_an_end(ended)
    assert told >= 8
    assert ended.seconds < 25  # and not the minutes that it would have taken, nor the 90 seconds
