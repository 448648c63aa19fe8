"""A process short of file descriptors: how many connections it takes, and what it does when there is none left."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from gnomon.http.process import accept as acceptor
from gnomon.http.process.descriptors import COLLECTOR, OURS, ours
from gnomon.http.settings import AuthMode, AuthSettings, Settings
from gnomon.http.wire import REFUSED_AT_ONCE
from helpers.command import CODE
from helpers.fake import EOT
from helpers.live import eventually

BODY: dict[str, Any] = {"model": "tiny", "prompt": "a", "max_tokens": 4000, "logit_bias": {EOT: -100}}


class Served(NamedTuple):
    process: subprocess.Popen[str]
    base: str
    log: Path

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def started(hard: int, log: Path, model: Path, code: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, "serve", str(model), "--engine", "reference", "--port", "0", *options]
    with log.open("w") as err:
        shell = ["bash", "-c", f'ulimit -n {hard} && exec "$0" "$@"', *command]
        return subprocess.Popen(shell, stdout=subprocess.PIPE, stderr=err, text=True)


@contextmanager
def serving(hard: int, tmp_path: Path, model: Path, *options: str, code: str = CODE) -> Iterator[Served]:
    """A server that may have so many open files, and no more."""
    log = tmp_path / "log.txt"
    with started(hard, log, model, code, *options) as process:
        try:
            assert process.stdout is not None
            found = re.search(r" is served at (https?://\S+)/v1 ", process.stdout.readline())
            assert found, log.read_text()
            yield Served(process, found[1], log)
        finally:
            process.kill()


def connections(base: str, count: int, stack: ExitStack) -> None:
    """So many that send nothing; they are closed with the stack."""
    host, port = base.partition("://")[2].split(":")
    for _ in range(count):
        client = stack.enter_context(socket.socket())
        client.settimeout(20)
        client.connect((host, int(port)))


class Stream(threading.Thread):
    """Reads a long answer, and knows when its last event came."""

    def __init__(self, base: str) -> None:
        super().__init__(daemon=True)
        self.base, self.events = base, 0
        self.start()

    def run(self) -> None:
        body = {**BODY, "stream": True}
        with (
            suppress(httpx.HTTPError),  # the server ends before it
            httpx.stream("POST", f"{self.base}/v1/completions", json=body, timeout=60) as response,
        ):
            for _ in response.iter_lines():
                self.events += 1

    def goes_on(self) -> bool:
        before = self.events
        return eventually(lambda: self.events > before + 1, 30)


# ---- how many there may be


def in_a_process(hard: int, code: str) -> str:
    """In one of its own, since what it lowers cannot be raised again."""
    code = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (min({hard}, 256), {hard}))\n"
        "from gnomon.http.process.descriptors import TooFew, allowed\n"
        "from gnomon.http.settings import Settings\n" + code
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hard", "bound", "refused", "soft"),
    [
        (4000, 1024, REFUSED_AT_ONCE, 1024 + REFUSED_AT_ONCE + OURS),
        (1024, 1024 - OURS - REFUSED_AT_ONCE, REFUSED_AT_ONCE, 1024),
        (256, 256 - OURS - 54, 54, 256),
        (64, 18, 6, 64),
        (OURS + 2, 1, 1, OURS + 2),
    ],
)
def test_the_bound_is_what_the_system_gives_less_what_the_server_needs(
    hard: int, bound: int, refused: int, soft: int
) -> None:
    code = (
        "settings, refused, lowered = allowed(Settings())\n"
        "print(settings.max_connections, refused, resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
        "print(lowered)\n"
    )
    numbers, lowered, *_ = in_a_process(hard, code).splitlines()
    assert numbers == f"{bound} {refused} {soft}"
    if bound == 1024:
        assert lowered == "None"
    else:
        assert lowered.startswith(f"--max-connections 1024 is lowered to {bound}: this process may have {hard} open")


def test_a_process_that_can_serve_nobody_does_not_start(tmp_path: Path, model: Path) -> None:
    with started(OURS + 1, tmp_path / "log.txt", model, CODE) as process:
        assert process.wait(60) == 1
    line = f"gnomon: this process may have {OURS + 1} open files (ulimit -Hn), and the server itself needs {OURS}: "
    assert (tmp_path / "log.txt").read_text() == f"{line}allow {OURS + 2} at least\n"


def test_what_talks_to_others_needs_descriptors_of_its_own() -> None:
    asking = AuthSettings(mode=AuthMode.userinfo, issuer="https://a", max_parallel=10)
    assert ours(Settings()) == OURS
    assert ours(Settings(auth=asking)) == OURS + 21
    assert ours(Settings(otlp_endpoint="http://127.0.0.1:1/v1/traces")) == OURS + COLLECTOR


@pytest.mark.slow
@pytest.mark.parametrize("hard", [64, 256, 1024])
def test_a_flood_of_silent_connections_stops_no_stream_and_fills_no_log(tmp_path: Path, model: Path, hard: int) -> None:
    with serving(hard, tmp_path, model) as server, ExitStack() as stack:
        stream = Stream(server.base)
        assert stream.goes_on()
        connections(server.base, hard + 20, stack)
        assert all(stream.goes_on() for _ in range(3))
        assert server.descriptors < hard
        stack.close()
        assert eventually(lambda: httpx.get(f"{server.base}/livez", timeout=20).status_code == 200, 30)
        told = httpx.get(f"{server.base}/v1/capabilities").json()
        server.process.send_signal(signal.SIGINT)
        assert eventually(lambda: "draining" in server.log.read_text())  # two signals at once are one
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(60) == 0
        log = server.log.read_text()
    assert "Traceback" not in log
    found = re.search(r"--max-connections 1024 is lowered to (\d+): ", log)
    assert found
    assert f'"max_connections":{found[1]}' in json.dumps(told).replace(" ", "")
    assert log.count("\n") < 40 + REFUSED_AT_ONCE


# ---- when there is none left

TAKES_ALL = """
import errno, os, signal, threading
import gnomon.http.cli.serve as cli
announce, held = cli.announce, []
def take(sig, frame):
    "All descriptors that are left, or gives them back."
    if held:
        for one in held: os.close(one)
        held.clear()
        return
    try:
        while True: held.append(os.dup(0))
    except OSError: pass
def taking(*arguments):
    announce(*arguments)
cli.announce = taking
signal.signal(signal.SIGWINCH, take)
"""


@pytest.mark.slow
def test_without_a_descriptor_accepting_pauses_in_one_line_and_goes_on_later(tmp_path: Path, model: Path) -> None:
    with serving(128, tmp_path, model, code=TAKES_ALL + CODE) as server, ExitStack() as stack:
        stream = Stream(server.base)
        assert stream.goes_on()
        with httpx.Client(base_url=server.base, timeout=60) as client:
            assert client.get("/livez").status_code == 200  # this connection stays
            server.process.send_signal(signal.SIGWINCH)
            assert eventually(lambda: server.descriptors == 128, 30)
            connections(server.base, 30, stack)
            late = httpx.Client(base_url=server.base, timeout=60)
            statuses: list[int] = []

            def ask() -> None:
                with suppress(httpx.HTTPError):  # the server ends before it
                    statuses.append(late.get("/livez").status_code)

            waiting = threading.Thread(target=ask)
            waiting.start()
            assert eventually(
                lambda: "no connection can be accepted: Too many open files" in server.log.read_text(), 30
            )
            assert all(stream.goes_on() for _ in range(3))
            for path in (
                "/livez",
                "/readyz",
                "/version",
                "/metrics",
                "/openapi.json",
                "/v1/capabilities",
                "/v1/models",
            ):
                assert client.get(path).status_code == 200, path
            assert client.get("/nowhere").status_code == 404
            body = {"model": "tiny", "prompt": "a", "max_tokens": 2, "seed": 1, "logprobs": 0}
            answer = client.post("/v1/completions", json=body)
            tokens = answer.json()["choices"][0]["logprobs"]["tokens"]
            traced = client.post("/v1/completions/trace", json={"request": body, "tokens": tokens, "step": 0})
            assert (answer.status_code, traced.status_code) == (200, 200)
            assert client.post("/v1/completions", json={**body, "n": 0}).status_code == 400
            server.process.send_signal(signal.SIGHUP)
            assert eventually(lambda: "SIGHUP: nothing to read again" in server.log.read_text(), 30)
            assert waiting.is_alive()
            server.process.send_signal(signal.SIGWINCH)
            waiting.join(30)
            assert statuses == [200]
            late.close()
    log = server.log.read_text()
    assert log.count("no connection can be accepted") == 1
    assert "Traceback" not in log


@pytest.mark.slow
def test_keys_that_cannot_be_read_again_for_want_of_a_descriptor_stay_in_force(tmp_path: Path, model: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-sixteen-characters\n")
    options = ("--auth-mode", "api-key", "--auth-api-key-file", str(keys))
    with serving(128, tmp_path, model, *options, code=TAKES_ALL + CODE) as server:
        headers = {"Authorization": "Bearer a-key-of-sixteen-characters"}
        with httpx.Client(base_url=server.base, timeout=60, headers=headers) as client:
            assert client.get("/version").status_code == 200
            server.process.send_signal(signal.SIGWINCH)
            assert eventually(lambda: server.descriptors == 128, 30)
            keys.write_text("another-key-of-sixteen-characters\n")
            server.process.send_signal(signal.SIGHUP)
            line = f"SIGHUP: --auth-api-key-file: {keys}: Too many open files; what was read before stays in force"
            assert eventually(lambda: line in server.log.read_text(), 30)
            assert client.get("/version").status_code == 200
            server.process.send_signal(signal.SIGWINCH)
            assert eventually(lambda: server.descriptors < 128, 30)
            server.process.send_signal(signal.SIGHUP)
            assert eventually(lambda: client.get("/version").status_code == 401, 30)
    assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
def test_an_identity_service_that_no_socket_is_left_for_is_away_and_comes_back(tmp_path: Path, model: Path) -> None:
    """Nobody listens at its address: what counts is that asking without a descriptor is a 503, and not a fault."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        issuer = f"http://localhost:{nobody.getsockname()[1]}"
        options = ("--auth-mode", "userinfo", "--auth-issuer", issuer, "--auth-userinfo-url", f"{issuer}/me")
        with serving(
            160, tmp_path, model, *options, "--auth-allow-http-issuer", code=TAKES_ALL + CODE
        ) as server, httpx.Client(base_url=server.base, timeout=60) as client:  # fmt: skip
            assert client.get("/livez").status_code == 200
            server.process.send_signal(signal.SIGWINCH)
            assert eventually(lambda: server.descriptors == 160, 30)
            answer = client.get("/version", headers={"Authorization": f"Bearer {JWE}"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "identity_unavailable")
    assert "Traceback" not in server.log.read_text()


JWE = (
    "eyJhbGciOiAiUlNBLU9BRVAiLCAiZW5jIjogIkEyNTZHQ00iLCAia2lkIjogImEifQ."
    "a2tra2tra2tra2tra2traw.aWlpaWlpaWlpaWlp.Y2NjY2NjY2NjYw.dHR0dHR0dHR0dHR0dHR0dA"
)  # of that shape, and no more


IMPORTS_NOTHING = """
import sys
import gnomon.http.cli.serve as cli
announce = cli.announce
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        print("imported late:", name, file=sys.stderr, flush=True)
        raise ImportError(name)
def forbidding(*arguments):
    announce(*arguments)
    sys.meta_path.insert(0, Forbidden())
cli.announce = forbidding
"""
RAW = (
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nx: " + b"y" * 40_000 + b"\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "api-key", "userinfo"])
def test_nothing_is_imported_once_the_server_answers(tmp_path: Path, model: Path, mode: str) -> None:
    (tmp_path / "keys").write_text("a-key-of-sixteen-characters\n")
    away = ("--auth-issuer", "http://localhost:1", "--auth-userinfo-url", "http://localhost:1/me")
    options = {
        "none": (),
        "api-key": (
            "--auth-api-key-file",
            str(tmp_path / "keys"),
            "--cors-origins",
            "http://a",
            "--log-format",
            "json",
        ),
        "userinfo": (*away, "--auth-allow-http-issuer", "--otlp-endpoint", "http://localhost:1/v1/traces"),
    }[mode]
    with serving(400, tmp_path, model, "--auth-mode", mode, *options, code=IMPORTS_NOTHING + CODE) as server:
        key = JWE if mode == "userinfo" else "a-key-of-sixteen-characters"
        with httpx.Client(base_url=server.base, timeout=60, headers={"Authorization": f"Bearer {key}"}) as client:
            assert client.get("/livez").status_code == 200
            for path in ("/", "/readyz", "/version", "/metrics", "/openapi.json", "/v1/models", "/v1/models/x",
                         "/v1/capabilities", "/docs", "/nowhere"):  # fmt: skip
                client.get(path, headers={"Origin": "http://b"})
            client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
            body = {"model": "tiny", "prompt": "a", "max_tokens": 3, "seed": 1, "logprobs": 2}
            for fields in ({}, {"stream": True}, {"n": 0}, {"echo": True}, {"best_of": 3}, {"suffix": "b"}):
                client.post("/v1/completions", json={**body, **fields})
            client.post("/v1/completions", content=b"\xff", headers={"Content-Type": "application/json"})
            trace = {"request": body, "tokens": ["a"], "step": 0}
            client.post("/v1/completions/trace", json=trace)
            client.get("/version", headers={"Authorization": "Bearer wrong"})
            host, port = server.base.removeprefix("http://").split(":")
            for raw in RAW:
                with socket.create_connection((host, int(port)), timeout=20) as plain:
                    plain.sendall(raw)
                    assert plain.recv(12).startswith(b"HTTP/1.1 ")
            server.process.send_signal(signal.SIGHUP)
            server.process.send_signal(signal.SIGUSR1)
            assert eventually(lambda: "SIGUSR1 means nothing here" in server.log.read_text(), 30)
            assert eventually(lambda: "SIGHUP: " in server.log.read_text(), 30)
    assert "imported late" not in server.log.read_text()


# ---- accepting


def test_a_hangup_without_a_descriptor_is_not_taken_for_the_end_of_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gnomon.http import run as server

    failing = [0]

    def fails(*_: object) -> int:
        raise OSError(failing[0], os.strerror(failing[0]))

    monkeypatch.setattr(os, "open", fails)
    for failing[0], expected in ((24, True), (23, True), (6, False), (2, False)):
        assert server.has_terminal() is expected


def test_a_line_about_pauses_comes_once_in_a_while_with_their_number(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Loop:
        def remove_reader(self, number: int) -> None: ...

        def call_later(self, seconds: float, call: object) -> None: ...

    now = [1000.0]
    monkeypatch.setattr(acceptor, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))
    one = object.__new__(acceptor.Acceptor)
    with socket.socket() as one.listener:
        one.loop, one.told, one.pauses = Loop(), None, 0  # type: ignore[assignment]
        for at in (0.0, 1.0, 59.0, 61.0, 62.0, 130.0):
            now[0] = 1000 + at
            one.pause(OSError(24, "Too many open files"))
    counts = [re.search(r"has paused (\d+) times", record.getMessage()) for record in caplog.records]
    assert [found and found[1] for found in counts] == ["1", "3", "2"]
