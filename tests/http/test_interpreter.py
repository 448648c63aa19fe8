"""One thread has the interpreter at a time: the largest request of every shape must leave it to the others.

A live server, and beside each request a client that asks `/livez` all the time. It is answered within LIMIT of what a
quiet server needs; and within the server no thread holds the interpreter for LIMIT of its own processor time, which a
loaded machine does not change. Where a whole answer was one call of `json.dumps` both took seconds.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gnomon.http.settings import Settings
from helpers.live import MODEL, eventually
from helpers.watched import CONTEXT

LIMIT = 0.25
MOST, BODY = Settings().max_answer_bytes, Settings().max_body_bytes
WATCHED = Path(__file__).parents[1] / "helpers" / "watched.py"


class Watched(NamedTuple):
    process: subprocess.Popen[bytes]
    port: int
    holds: Path

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, int]:
        """The status, and the bytes of the answer, which are read and not kept."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer, size = connection.getresponse(), 0
            while piece := answer.read(2**20):
                size += len(piece)
            return answer.status, size
        finally:
            connection.close()

    def is_ready(self) -> bool:
        try:
            return self.ask("GET", "/readyz")[0] == 200
        except ConnectionError:
            return False

    def held(self) -> tuple[float, float]:
        """Since the last time this was asked: the longest that one thread held the interpreter; and the seconds that
        the process waited for a processor, as far as the watching thread did."""
        lines = [line.split() for line in self.holds.read_text().splitlines()] if self.holds.exists() else []
        self.holds.write_text("")
        waits = [(float(waited), float(held)) for waited, held in lines]
        return max((held for _, held in waits), default=0.0), sum(waited - held for waited, held in waits)

    def peak(self) -> float:
        """MiB of memory that the process has had at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def slowest(self, stop: Callable[[], bool]) -> float:
        """The slowest of the answers of /livez until `stop`."""
        worst = 0.0
        while True:
            is_last = stop()
            begun = time.monotonic()
            assert self.ask("GET", "/livez")[0] == 200
            worst = max(worst, time.monotonic() - begun)
            if is_last:
                return worst
            time.sleep(0.02)


@contextmanager
def watched(folder: Path, *arguments: str) -> Iterator[Watched]:
    """A server of helpers/watched.py: with no arguments its own, else the one of `gnomon` with these."""
    port, holds = folder / "port", folder / "holds"
    paths = f"import sys; sys.path.insert(0, {str(WATCHED.parent.parent)!r}); from helpers.watched import main; main()"
    command = [sys.executable, "-c", paths, str(port), str(holds), *arguments]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        assert eventually(lambda: process.poll() is not None or (port.exists() and bool(port.read_text())), 300)
        running = Watched(process, int(port.read_text()), holds)
        assert eventually(running.is_ready, 300)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched(tmp_path_factory.mktemp("watched")) as running:
        yield running


def body(**fields: Any) -> bytes:
    return json.dumps({"model": MODEL, "prompt": [97], "max_tokens": 1, "seed": 1, **fields}).encode()


def filled(before: str, unit: str, after: str) -> bytes:
    """As many units as make a body of the largest size."""
    return (before + unit * ((BODY - len(before) - len(after)) // len(unit.encode())) + after).encode()


def ids(count: int) -> list[int]:
    return [97 + i % 26 for i in range(count)]


def prompt(unit: str, last: str) -> bytes:
    return filled(f'{{"model":"{MODEL}","prompt":[', unit + ",", last + "]}")


def members(count: int, value: str, before: str = "", after: str = "") -> bytes:
    inner = ",".join(f'"{i}":{value}' for i in range(count))
    return f'{{"model":"{MODEL}","prompt":"a"{before}{inner}{after}}}'.encode()


ENTRY = 32 * (20 + 3)  # bytes that answer_size.py counts for an entry of 20 labels
TEXT = 3  # and for each byte of the prompt's text, which is a character of the fake tokenizer

ANSWERS: dict[str, Callable[[], bytes]] = {
    "n choices that echo": lambda: body(prompt=[ids(MOST // 128 // (ENTRY + TEXT) - 3)], n=128, echo=True, logprobs=20),
    "whole contexts that echo": lambda: body(
        prompt=[ids(CONTEXT - 1)] * (MOST // CONTEXT // (ENTRY + TEXT)), echo=True, logprobs=20
    ),
    "many prompts, no n": lambda: body(prompt=[ids(3)] * 2048, logprobs=20, max_tokens=(MOST // 2048 - 160) // ENTRY),
    "many prompts that echo": lambda: body(prompt=[ids(MOST // 2048 // (96 + TEXT) - 3)] * 2048, echo=True, logprobs=0),
    "text alone": lambda: body(prompt="é" * (CONTEXT // 2 - 1), n=128, echo=True),
    "many tokens, one choice": lambda: body(logprobs=20, max_tokens=CONTEXT - 1),
}

REQUESTS: dict[str, Callable[[], bytes]] = {
    "ids": lambda: prompt("1000", "1"),
    "ids of many prompts": lambda: body(prompt=[ids(1000)] * 1500),
    "empty lists": lambda: prompt("[]", "[]"),
    "lists": lambda: prompt("[1]", "[1]"),
    "objects": lambda: prompt("{}", "{}"),
    "strings": lambda: prompt('""', '""'),
    "numbers": lambda: prompt("1.5", "1.5"),
    "truths": lambda: prompt("true", "true"),
    "a list for a string": lambda: filled('{"model":[', "1,", '1],"prompt":"a"}'),
    "escaped text": lambda: filled(f'{{"model":"{MODEL}","prompt":"', "\\u00e9", '"}'),
    "text of many prompts": lambda: body(prompt=["once upon a time " * 240] * 2000),
    "brackets": lambda: filled('{"prompt":', "[", ""),
    "digits": lambda: filled('{"prompt":', "1", "}"),
    "white space": lambda: filled('{"prompt":', " ", "1}"),
    "a bias for every id and more": lambda: members(700_000, "1", ',"logit_bias":{', "}"),
    "unknown names": lambda: members(700_000, "1", ","),
    "null names": lambda: members(500_000, "null", ","),
    "stop strings": lambda: body(stop=["a" * (BODY // 64 - 100)] * 64),
    "labels to trace": lambda: filled('{"request":{"model":"m","prompt":"a","seed":1},"tokens":[', '"a",', '"a"]}'),
}


def check(server: Watched, send: Callable[[], Any]) -> None:
    calm = max(server.slowest(iter([False] * 20 + [True]).__next__) for _ in range(2))
    server.held()
    sending = threading.Thread(target=send)
    sending.start()
    worst = server.slowest(lambda: not sending.is_alive())
    sending.join()
    held, lost = server.held()
    print(
        f"held {held:.3f} s, /livez {worst:.3f} s, calm {calm:.3f} s, lost {lost:.3f} s, peak {server.peak():.0f} MiB"
    )
    assert held <= LIMIT
    assert worst <= LIMIT + calm + lost


def largest_answers(server: Watched, shape: str, stream: bool) -> None:
    sent = body(**{**json.loads(ANSWERS[shape]()), "stream": stream})
    answers: list[tuple[int, int]] = []
    check(server, lambda: answers.append(server.ask("POST", "/v1/completions", sent)))
    [(status, size)] = answers
    assert status == 200
    assert size > 10 * 2**20 or shape == "text alone"


LONGEST = "many prompts, no n"  # a minute and more
streamed_and_not = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.mark.slow
@streamed_and_not
@pytest.mark.parametrize("shape", [shape for shape in ANSWERS if shape != LONGEST])
def test_the_largest_answers_leave_the_interpreter_to_others(server: Watched, shape: str, stream: bool) -> None:
    largest_answers(server, shape, stream)


@pytest.mark.weekly
@streamed_and_not
def test_the_longest_answer_leaves_the_interpreter_to_others(server: Watched, stream: bool) -> None:
    largest_answers(server, LONGEST, stream)


@pytest.mark.slow
@pytest.mark.parametrize("shape", REQUESTS)
def test_the_largest_bodies_leave_the_interpreter_to_others(server: Watched, shape: str) -> None:
    path = "/v1/completions/trace" if "trace" in shape else "/v1/completions"
    sent = REQUESTS[shape]()
    assert BODY // 2 < len(sent) <= BODY
    answers: list[tuple[int, int]] = []
    check(server, lambda: answers.append(server.ask("POST", path, sent)))
    assert answers[0][0] in (200, 400)


JAX = {
    # in 512 positions, of ids that stand for some characters each
    "n choices that echo": {"prompt": [ids(511)] * 16, "n": MOST // 16 // 512 // (ENTRY + 64), "echo": True},
    "whole contexts that echo": {"prompt": [ids(511)] * (MOST // 512 // (ENTRY + 64)), "echo": True},
    "many prompts, no n": {"prompt": [ids(3)] * 2048, "max_tokens": 32},
}


@pytest.fixture(scope="module")
def jax_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    pytest.importorskip("jax")
    with watched(tmp_path_factory.mktemp("jax"), "serve", "--engine", "jax", "--request-seconds", "3600") as running:
        yield running


@pytest.mark.weekly
@pytest.mark.parametrize("shape", JAX)
def test_the_jax_engines_largest_answers_do_so_too(jax_server: Watched, shape: str) -> None:
    answers: list[tuple[int, int]] = []
    sent = body(**{"logprobs": 20, **JAX[shape]})
    check(jax_server, lambda: answers.append(jax_server.ask("POST", "/v1/completions", sent)))
    assert answers[0][0] == 200
