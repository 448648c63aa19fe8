"""Servers that misbehave: verify ends with a clear line and a report, within bounds, and never with a traceback.

Each server misbehaves twice: from its first answer on, where there is no run (exit code 2), and only after the plain
request was answered, where the run goes on and says what was seen.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from gnomon.http.verify.ask.client import Budget, CannotReach, Client
from gnomon.http.verify.ask.exchange import MOST_ANSWER_BYTES, Exchange, Streamed
from gnomon.http.verify.ask.probe import Probe, Subject
from gnomon.http.verify.ask.reply import PIECE_BYTES
from gnomon.http.verify.command import run_verify
from gnomon.http.verify.options import Options
from gnomon.http.verify.run import judge_case
from gnomon.http.verify.verdict import Case, Judgement, Verdict, case, honoured
from helpers.certificate import certificate
from helpers.loopback import Tls, closed_port
from helpers.raw import Asked, RawServer, http, raw_server

MODELS = http(json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode())


def completed(text: str) -> bytes:
    """A sound answer with this text."""
    value = {
        "id": "c",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    }
    return http(json.dumps(value).encode())


SOUND = completed(" a")
EVENT = b'data: {"choices": [{"index": 0, "text": "a", "finish_reason": null}]}\n\n'
SECONDS = 40
"""No run here takes as long, however slow the machine: the default timeout alone would be 60."""


@case("plain.whole", "prompt", law="3", says="a prompt is continued")
async def plain_whole(p: Probe) -> Judgement:
    await p.complete(max_tokens=2)
    return honoured("it is")


@case("plain.streamed", "stream", law="11", says="a stream is an answer")
async def plain_streamed(p: Probe) -> Judgement:
    await p.stream(max_tokens=2)
    return honoured("it is")


CASES = (plain_whole, plain_streamed)


class Ended(NamedTuple):
    """What became of a run."""

    status: int
    out: str
    err: str
    report: dict[str, Any] | None

    def verdicts(self) -> dict[str, str]:
        assert self.report is not None
        return {finding["case"]: finding["verdict"] for finding in self.report["findings"]}

    def reason(self, name: str) -> str:
        assert self.report is not None
        [reason] = [finding["reason"] for finding in self.report["findings"] if finding["case"] == name]
        return str(reason)


Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the cases against an address, and checks what must be so whatever the server does."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)

    def go(url: str, cases: tuple[Case, ...] = CASES, **options: Any) -> Ended:
        file = tmp_path / "report.json"
        more = {"html": str(tmp_path / "report.html"), "junit": str(tmp_path / "report.xml")}
        began = time.monotonic()
        status = run_verify(Options(url, json=str(file), **{**more, **options}), cases)
        assert time.monotonic() - began < SECONDS
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        assert "\x1b" not in out + err
        report = json.loads(file.read_bytes()) if file.exists() else None
        assert (report is None) == (status == 2 and "did not come to its end" not in err)
        if report is not None:
            assert report["exit_code"] == status
        else:
            assert re.fullmatch(r"gnomon verify: [^\n]+\n", err), err
            assert not (tmp_path / "report.html").exists()
        return Ended(status, out, err, report)

    return go


# ---- what a server may do to one request


Misdeed = Callable[[RawServer, socket.socket, Asked], None]


def says(answer: bytes) -> Misdeed:
    def script(server: RawServer, client: socket.socket, asked: Asked) -> None:
        client.sendall(answer)

    return script


def hangs(server: RawServer, client: socket.socket, asked: Asked) -> None:
    server.hang()


def begins_and_hangs(server: RawServer, client: socket.socket, asked: Asked) -> None:
    client.sendall(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"id":')
    server.hang()


def drips(server: RawServer, client: socket.socket, asked: Asked) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
    while not server.stopped.wait(0.05):
        client.sendall(b" ")


def drips_headers(server: RawServer, client: socket.socket, asked: Asked) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\n")
    while not server.stopped.wait(0.02):
        client.sendall(b"X-More: and more\r\n")


def streams_for_ever(server: RawServer, client: socket.socket, asked: Asked) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    while not server.stopped.wait(0.01):
        client.sendall(EVENT)


def sends_without_end(server: RawServer, client: socket.socket, asked: Asked) -> None:
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n[")
    while not server.stopped.is_set():
        client.sendall(b"0," * 50_000)


def continues_for_ever(server: RawServer, client: socket.socket, asked: Asked) -> None:
    while not server.stopped.wait(0.001):
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


def closes(server: RawServer, client: socket.socket, asked: Asked) -> None:
    return


@cache
def bomb(levels: int) -> bytes:
    """Spaces that unpack to more than is read, packed so many times."""
    return gzip.compress(bomb(levels - 1)) if levels else b"{" + b" " * (3 * MOST_ANSWER_BYTES)


def packed(levels: int, coding: str) -> Misdeed:
    def script(server: RawServer, client: socket.socket, asked: Asked) -> None:
        client.sendall(http(bomb(levels), "200 OK", "application/json", f"Content-Encoding: {coding}"))

    return script


HTML = b"<!doctype html><title>It works!</title><script>alert(1)</script>"
CHOICES = {
    "choices_null": b'{"choices": null}',
    "empty_object": b"{}",
    "number_for_text": b'{"choices": [{"index": 0, "text": 5}]}',
    "nan_for_text": b'{"choices": [{"index": 0, "text": NaN}]}',
    "a_list": b"[1, 2, 3]",
    "a_string": b'"text"',
    "null": b"null",
    "choices_of_numbers": b'{"choices": [1, 2]}',
    "an_object_of_choices": b'{"choices": {"text": "a"}}',
    "error_in_a_200": b'{"error": {"message": "no"}}',
    "deep": b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "digits": b'{"choices": ' + b"9" * 100_000 + b"}",
    "utf16": '{"choices": [{"text": "a"}]'.encode("utf-16"),
}
MISDEEDS: dict[str, tuple[Misdeed, str]] = {
    "hangs": (hangs, "no whole answer within"),
    "begins_and_hangs": (begins_and_hangs, "no whole answer within"),
    "drips": (drips, "no whole answer within"),
    "drips_headers": (drips_headers, "no whole answer within"),
    "streams_for_ever": (streams_for_ever, "no whole answer within"),
    "sends_without_end": (sends_without_end, "more than 32 MiB|no whole answer within"),
    "continues_for_ever": (continues_for_ever, "no whole answer within"),
    "closes": (closes, "the connection broke: "),
    "closes_mid_body": (says(SOUND[:-20]), "the connection broke: .*incomplete|the connection broke: .*without"),
    "lies_short": (says(SOUND.replace(b"Content-Length: ", b"Content-Length: 1\r\nX: ")), "no JSON|connection broke"),
    "two_lengths": (says(SOUND.replace(b"Connection: close", b"Content-Length: 3")), "the connection broke: "),
    "negative_length": (says(SOUND.replace(b"Content-Length: ", b"Content-Length: -")), "the connection broke: "),
    "garbage": (says(b"\x00\xff\x1b[31m\r\n\r\n" * 50), "the connection broke: "),
    "bad_chunks": (
        says(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"),
        "the connection broke: ",
    ),
    "old_http": (says(b"HTTP/0.9 200 OK\r\n\r\n{}"), "the connection broke: |content type"),
    "switches_protocols": (says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"), "HTTP 101|broke"),
    "no_content": (says(b"HTTP/1.1 204 No Content\r\n\r\n"), "HTTP 204"),
    "error_500": (says(http(b'{"error": {"message": "boom"}}', "500 Internal Server Error")), "HTTP 500"),
    "html_500": (says(http(HTML, "502 Bad Gateway", "text/html")), "HTTP 502"),
    "html": (says(http(HTML, kind="text/html; charset=utf-8")), "HTTP 200 with the content type 'text/html'"),
    "plain_text": (says(SOUND.replace(b"application/json", b"text/plain")), "content type 'text/plain'"),
    "no_content_type": (says(SOUND.replace(b"Content-Type: application/json\r\n", b"")), "content type 'missing'"),
    "no_json": (says(http(b"{'choices': []}")), "no JSON"),
    "redirect": (
        says(http(b"", "307 Temporary Redirect", "text/plain", "Location: https://elsewhere.example/v1")),
        "HTTP 307: sends us on to 'https://elsewhere.example/v1', which is not followed",
    ),
    "redirect_to_itself": (says(http(b"", "302 Found", "text/plain", "Location: /v1/completions")), "HTTP 302: sends"),
    "gzip_bomb": (packed(1, "gzip"), "more than 32 MiB"),
    "gzip_in_gzip": (packed(2, "gzip, gzip"), "encoding 'gzip, gzip' cannot be read"),
    "no_gzip": (says(http(b"{}", "200 OK", "application/json", "Content-Encoding: gzip")), "encoding 'gzip' cannot be"),
    **{name: (says(http(body)), "no choices|no JSON|an error in it") for name, body in CHOICES.items()},
}


ENDLESS = ("hangs", "drips", "streams_for_ever", "sends_without_end", "continues_for_ever")


def patience(name: str, seconds: float) -> float:
    """A timeout that is reached on purpose, or by no machine however busy."""
    return seconds if any(word in name for word in ENDLESS) else 20


def script(misdeed: Misdeed, sound_first: bool) -> Misdeed:
    """Answers as a server should until the plain request is answered, if it does at all."""
    begun: list[Asked] = []

    def answer(server: RawServer, client: socket.socket, asked: Asked) -> None:
        if sound_first and "/models" in asked.line:
            client.sendall(MODELS)
        elif sound_first and not begun:
            begun.append(asked)
            client.sendall(SOUND)
        else:
            misdeed(server, client, asked)

    return answer


@pytest.mark.slow
@pytest.mark.parametrize("name", MISDEEDS)
def test_a_server_that_misbehaves_from_the_first_is_told_in_one_line(name: str, run: Run) -> None:
    misdeed, words = MISDEEDS[name]
    with raw_server(script(misdeed, sound_first=False)) as server:
        ended = run(server.base, model="m", timeout=patience(name, 0.4))
    assert ended.status == 2
    assert re.search(words, ended.err), ended.err
    assert ended.out == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", MISDEEDS)
def test_a_server_that_misbehaves_later_is_judged_for_it(name: str, run: Run) -> None:
    misdeed, words = MISDEEDS[name]
    with raw_server(script(misdeed, sound_first=True)) as server:
        ended = run(server.base, timeout=patience(name, 1.5))
    assert ended.status == 1
    assert ended.verdicts()["plain.whole"] == "wrong"
    assert re.search(words, ended.reason("plain.whole")), ended.reason("plain.whole")
    assert ended.verdicts()["plain.streamed"] in ("wrong", "refused")


def test_no_redirect_is_followed(run: Run) -> None:
    with raw_server(says(SOUND)) as elsewhere:
        there = http(b"", "308 Permanent Redirect", "text/plain", f"Location: {elsewhere.base}/v1/completions")
        with raw_server(says(there)) as server:
            ended = run(server.base, model="m", api_key="sk-a-key-of-somebody")
            assert ended.status == 2
            assert elsewhere.base in ended.err
        assert elsewhere.asked == []


def test_thousands_of_choices_are_an_answer(run: Run) -> None:
    many = [{"index": k, "text": "a", "logprobs": None, "finish_reason": "stop"} for k in range(20_000)]
    answer = http(json.dumps({"choices": many, "usage": {"prompt_tokens": 1, "completion_tokens": 10**12}}).encode())
    with raw_server(script(says(answer), sound_first=True)) as server:
        ended = run(server.base)
    assert ended.verdicts()["plain.whole"] == "honoured"
    assert ended.report is not None
    assert ended.report["cost"]["tokens"] < 1000  # what no request can cost is not believed


def test_a_bomb_is_not_unpacked_beyond_the_bound() -> None:
    exchange = asked_once(packed(1, "gzip"))
    assert MOST_ANSWER_BYTES < len(exchange.content) <= MOST_ANSWER_BYTES + PIECE_BYTES


def test_packed_answers_of_a_sound_size_are_read() -> None:
    answer = http(gzip.compress(b'{"choices": []}'), "200 OK", "application/json", "Content-Encoding: gzip")
    assert asked_once(says(answer)).json == {"choices": []}


def asked_once(misdeed: Misdeed, **how: Any) -> Exchange:
    with raw_server(misdeed) as server:

        async def go() -> Exchange:
            client = Client(f"{server.base}/v1", None, Budget(1000), timeout=20)
            try:
                return await client.send("POST", "/completions", b"{}", **how)
            finally:
                await client.close()

        return asyncio.run(go())


# ---- connections


def test_where_nobody_listens_one_line_says_so(run: Run) -> None:
    base = closed_port()
    ended = run(base)
    assert ended.status == 2
    assert f"{base}/v1 cannot be reached: " in ended.err


def test_a_certificate_of_its_own_is_refused_and_the_way_out_named(run: Run, tmp_path: Path) -> None:
    with raw_server(says(SOUND), tls=certificate(tmp_path, "self", "127.0.0.1")) as server:
        ended = run(server.base)
    assert ended.status == 2
    assert "certificate verify failed: self-signed certificate" in ended.err
    assert "SSL_CERT_FILE" in ended.err


def test_a_trusted_certificate_of_another_host_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = certificate(tmp_path, "other", "127.0.0.2")
    monkeypatch.setenv("SSL_CERT_FILE", str(files.certificate))
    with raw_server(says(SOUND), tls=files) as server:
        ended = run(server.base)
    assert ended.status == 2
    assert "IP address mismatch" in ended.err


def test_a_certificate_that_is_trusted_is_taken(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = certificate(tmp_path, "self", "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(files.certificate))
    with raw_server(says(SOUND), tls=files) as server:
        ended = run(server.base, model="m", cases=(plain_whole,))
    assert ended.status == 0


def test_tls_to_a_server_without_it_says_to_try_http(run: Run) -> None:
    with raw_server(says(SOUND)) as server:
        ended = run(server.base.replace("http:", "https:"))
    assert ended.status == 2
    assert "the server seems not to speak TLS: try http:// instead" in ended.err


def test_http_to_a_server_of_tls_is_one_line(run: Run, tmp_path: Path) -> None:
    tls: Tls = certificate(tmp_path, "self", "127.0.0.1")
    with raw_server(says(SOUND), tls=tls) as server:
        ended = run(server.base.replace("https:", "http:"))
    assert ended.status == 2
    assert "the connection broke" in ended.err


@pytest.mark.slow
def test_a_server_that_dies_midway_leaves_what_was_found(run: Run) -> None:
    @case("late.first", "prompt", law="3", says="the first is answered")
    async def first(p: Probe) -> Judgement:
        await p.complete()
        return honoured("it is")

    @case("late.second", "prompt", law="3", says="the second is answered", needs=("late.first",))
    async def second(p: Probe) -> Judgement:
        stack.close()
        await p.complete()
        return honoured("it is")

    with ExitStack() as stack:
        server = stack.enter_context(raw_server(says(SOUND)))
        ended = run(server.base, model="m", cases=(first, second))
    assert ended.status == 2
    assert "the run did not come to its end: " in ended.err
    assert "cannot be reached" in ended.err
    assert ended.verdicts() == {"late.first": "honoured"}
    assert ended.report is not None
    assert ended.report["totals"]["not_run"] == 1
    assert "1 not run" in ended.out


@pytest.mark.slow
def test_a_server_that_no_longer_answers_ends_the_run_long_before_every_case_has_waited(run: Run) -> None:
    waiting = tuple(
        case(f"wait.{k}", "prompt", law="3", says=f"number {k} is answered")(plain_whole.judge) for k in range(200)
    )
    with raw_server(script(hangs, sound_first=True)) as server:
        ended = run(server.base, cases=waiting, timeout=1)
    assert ended.status == 2
    assert "no longer answers" in ended.err
    assert ended.report is not None
    assert ended.report["totals"]["not_run"] > 150


def test_silence_for_some_requests_alone_does_not_end_the_run(run: Run) -> None:
    def some(server: RawServer, client: socket.socket, asked: Asked) -> None:
        if "/models" in asked.line:
            client.sendall(MODELS)
        elif b'"max_tokens": 2' in asked.body:
            closes(server, client, asked)
        else:
            client.sendall(SOUND)

    cases = tuple(
        case(f"some.{k}", "prompt", law="3", says=f"number {k} is answered")(plain_whole.judge) for k in range(40)
    )
    with raw_server(some) as server:
        ended = run(server.base, cases=cases)
    assert ended.status == 1
    assert set(ended.verdicts().values()) == {"wrong"}
    assert len(ended.verdicts()) == 40


def test_a_server_that_answers_between_two_silences_is_not_asked_whether_it_is_there(run: Run) -> None:
    @case("mixed.all", "prompt", law="3", says="twenty are answered, and twenty are not")
    async def mixed(p: Probe) -> Judgement:
        for _ in range(20):
            await p.send(p.body(max_tokens=2))
            await p.complete(max_tokens=3)
        return honoured("they are")

    def some(server: RawServer, client: socket.socket, asked: Asked) -> None:
        if b'"max_tokens": 2' not in asked.body:
            client.sendall(SOUND)

    with raw_server(some) as server:
        assert run(server.base, model="m", cases=(mixed,)).status == 0
        assert sum(b'"max_tokens": 1' in asked.body for asked in server.asked) == 1


def test_what_is_still_being_found_out_ends_before_the_connections_do(run: Run) -> None:
    closed: list[bool] = []

    @case("fact.first", "prompt", law="3", says="a fact is waited for")
    async def first(p: Probe) -> Judgement:
        async def find() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                closed.append(p.subject.client._http.is_closed)

        await p.subject.fact("slow", find)
        return honoured("it is known")

    @case("fact.second", "prompt", law="3", says="the server is there")
    async def second(p: Probe) -> Judgement:
        await asyncio.sleep(0.01)
        raise CannotReach("it is gone")

    with raw_server(says(SOUND)) as server:
        ended = run(server.base, model="m", cases=(first, second))
    assert ended.err == "gnomon verify: the run did not come to its end: it is gone\n"
    assert closed == [False]


def test_a_connection_closed_between_two_requests_is_no_finding() -> None:
    """A server may close an idle connection at any time, also while the next request is on its way."""
    kept = SOUND.replace(b"Connection: close\r\n", b"")

    def answers_once(server: RawServer, client: socket.socket, asked: Asked) -> None:
        client.sendall(kept)
        client.recv(100_000)  # the next request comes, and the connection is closed on it

    with raw_server(answers_once) as server:

        async def go() -> list[str | None]:
            client = Client(f"{server.base}/v1", None, Budget(1000), timeout=20)
            try:
                return [(await client.send("POST", "/completions", b"{}")).trouble for _ in range(4)]
            finally:
                await client.close()

        assert asyncio.run(go()) == [None] * 4


def test_a_server_that_asks_to_wait_is_asked_again(run: Run) -> None:
    busy = http(b'{"error": {"message": "slow down"}}', "429 Too Many Requests", "application/json", "Retry-After: 0")
    turns = iter((SOUND, busy, busy, SOUND))
    with raw_server(lambda server, client, asked: client.sendall(next(turns))) as server:
        ended = run(server.base, model="m", cases=(plain_whole,))
    assert ended.status == 0
    assert ended.verdicts() == {"plain.whole": "honoured"}


def test_a_server_that_asks_to_wait_for_ever_is_unclear_not_wrong(run: Run) -> None:
    busy = http(b'{"error": {"message": "slow down"}}', "429 Too Many Requests", "application/json", "Retry-After: 0")
    with raw_server(script(says(busy), sound_first=True)) as server:
        ended = run(server.base)
    assert ended.status == 0
    assert set(ended.verdicts().values()) == {"unclear"}
    assert "HTTP 429 after 5 tries" in ended.reason("plain.whole")


def test_a_server_that_names_a_long_wait_is_not_waited_for(run: Run) -> None:
    busy = http(b"{}", "503 Service Unavailable", "application/json", "Retry-After: 3600")
    with raw_server(says(busy)) as server:
        ended = run(server.base, model="m")
    assert ended.status == 2
    assert "HTTP 503 after 1 tries" in ended.err


# ---- what a server says


NASTY = "\x1b]0;owned\x07\x1b[2J <script>alert(1)</script> & \u202eevil\u2066 \x00\x9b31m \ud800"
KEY = "sk-4f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c"


def refusing(message: str) -> bytes:
    error = {"message": message, "type": "invalid_request_error", "param": "prompt", "code": None}
    return http(json.dumps({"error": error}).encode(), "400 Bad Request")


def test_what_a_server_says_reaches_no_terminal_and_no_page_raw(run: Run, tmp_path: Path) -> None:
    with raw_server(script(says(refusing(NASTY)), sound_first=True)) as server:
        ended = run(server.base, verbose=True)
    written = ended.out + (tmp_path / "report.html").read_text("utf-8") + (tmp_path / "report.xml").read_text("utf-8")
    assert "alert(1)" in written
    assert "<script" not in (tmp_path / "report.html").read_text("utf-8")
    for char in "\x1b\x07\x00\x9b\u202e\u2066":
        assert char not in written
    assert "<script" not in (tmp_path / "report.xml").read_text("utf-8")


@pytest.mark.parametrize("cut", [0, 100, 130, 135, 150])
def test_a_key_that_the_server_sends_back_is_in_no_output(cut: int, run: Run, tmp_path: Path) -> None:
    """Wherever a message is cut, and where the key is in a text, a header or the place of a redirect too."""

    @case("key.text", "prompt", law="3", says="a text has no key in it")
    async def in_a_text(p: Probe) -> Judgement:
        answer = await p.complete()
        return Judgement(Verdict.wrong, f"{answer.text!r:.60}", {"text": answer.text, answer.text: [answer.text]})

    @case("key.sent_on", "prompt", law="3", says="a redirect has no key in it")
    async def sent_on(p: Probe) -> Judgement:
        await p.complete(max_tokens=7)
        return honoured("it has none")

    def tells(server: RawServer, client: socket.socket, asked: Asked) -> None:
        assert f"authorization: Bearer {KEY}" in asked.headers.replace("Authorization", "authorization")
        if b'"max_tokens": 7' in asked.body:
            client.sendall(http(b"", "302 Found", "text/plain", f"Location: /{'z' * 113}{KEY}"))
        elif b'"max_tokens": 2' in asked.body:
            client.sendall(refusing("x" * cut + f" Incorrect API key: {KEY}; you said Bearer {KEY}. prompt"))
        else:
            client.sendall(completed(f"{'y' * cut} {KEY} z"))

    with raw_server(tells) as server:
        ended = run(server.base, model="m", cases=(*CASES, in_a_text, sent_on), api_key=KEY, verbose=True)
    files = [path.read_text("utf-8") for path in tmp_path.iterdir()]
    assert len(files) == 3
    for text in (ended.out, ended.err, *files):
        assert not any(KEY[at : at + 4] in text for at in range(len(KEY) - 3))
    assert "[key]" in ended.out
    assert "$GNOMON_KEY" in ended.out


def test_a_refusal_of_the_key_says_so_without_it(run: Run) -> None:
    answer = http(json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode(), "401 Unauthorized")
    with raw_server(says(answer)) as server:
        ended = run(server.base, api_key=KEY)
    assert "the server does not take this key" in ended.err
    assert KEY not in ended.err


# ---- every case, on answers of odd forms


def answering(value: Any, stream: bytes) -> httpx.AsyncBaseTransport:
    """The plain request is answered; every other one with this value, or with these events."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message.get("more_body"):
                break
        kind, content = b"application/json", json.dumps(value).encode()
        if b'"stream": true' in body:
            kind, content = b"text/event-stream", stream
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": content})

    return httpx.ASGITransport(app)


def completion(**choice: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    return {"id": "c", "object": "text_completion", "created": 1, "model": "m", "usage": usage, "choices": [choice]}


LISTS: dict[str, Any] = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0}], "text_offset": [0]}
FORMS: dict[str, Any] = {
    "only_a_text": {"choices": [{"text": "a"}]},
    "usage_of_strings": {**completion(index=0, text="a"), "usage": {"prompt_tokens": "3", "completion_tokens": None}},
    "usage_is_a_list": {**completion(index=0, text="a"), "usage": [1]},
    "usage_is_infinite": {**completion(index=0, text="a"), "usage": {"prompt_tokens": 1e999, "completion_tokens": -5}},
    "index_is_a_list": completion(index=[0], text="a", finish_reason={"a": 1}),
    "logprobs_is_a_number": completion(index=0, text="a", logprobs=5),
    "lists_are_null": completion(index=0, text="a", logprobs=dict.fromkeys(LISTS)),
    "lists_are_empty": completion(index=0, text="a", logprobs={name: [] for name in LISTS}),
    "lists_of_odd_things": completion(index=0, text="a", logprobs={name: [None, {}, "x", 5] for name in LISTS}),
    "lists_of_lists": completion(index=0, text="a", logprobs={name: [[1]] for name in LISTS}),
    "values_of_nan": completion(index=0, text="a", logprobs={**LISTS, "token_logprobs": [float("nan")]}),
    "values_of_text": completion(index=0, text="a", logprobs={**LISTS, "top_logprobs": [{"a": "b"}]}),
    "offsets_of_text": completion(index=0, text="a", logprobs={**LISTS, "text_offset": ["0"]}),
    "lone_surrogate": completion(index=0, text="\ud800", logprobs={**LISTS, "tokens": ["\ud800"]}),
    "no_text": completion(index=0, text="", logprobs=LISTS),
}
EVENTS: dict[str, bytes] = {
    "none": b"",
    "done_only": b"data: [DONE]\n\n",
    "index_is_an_object": b'data: {"choices": [{"index": {}, "text": "a"}]}\n\ndata: [DONE]\n\n',
    "indices_of_all_kinds": b'data: {"choices": [{"index": 0, "text": "a"}, {"index": "1", "text": "b"}]}\n\n',
    "choices_is_a_number": b'data: {"choices": 5}\n\n',
    "choices_is_an_object": b'data: {"choices": {"0": 1}}\n\n',
    "lists_change_their_kind": b'data: {"choices": [{"index": 0, "text": "a", "logprobs": {"tokens": 1}}]}\n\n'
    b'data: {"choices": [{"index": 0, "text": "b", "logprobs": {"tokens": ["b"]}}]}\n\ndata: [DONE]\n\n',
    "events_of_numbers": b"data: 5\n\ndata: null\n\n",
    "usage_is_a_list": b'data: {"choices": [{"index": 0, "text": "a"}], "usage": [1]}\n\ndata: [DONE]\n\n',
    "after_done": b'data: [DONE]\n\ndata: {"choices": []}\n\n',
    "endless_line": b"data: " + b"x" * 100_000,
}


async def findings(value: Any, stream: bytes) -> list[tuple[str, Verdict, str]]:
    from gnomon.http.verify.cases import CASES as ALL

    client = Client("http://odd/v1", None, Budget(10**9), timeout=5, transport=answering(value, stream))
    subject = Subject(client, "m")
    try:
        found = await asyncio.gather(*(judge_case(one, subject) for one in ALL))
        return [(finding.case.name, finding.judgement.verdict, finding.judgement.reason) for finding in found]
    finally:
        await subject.close()
        await client.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_no_case_falls_over_an_odd_answer(name: str) -> None:
    found = asyncio.run(asyncio.wait_for(findings(FORMS[name], EVENT), 60))
    assert any(verdict.is_finding for _, verdict, _ in found)
    assert all(reason for _, _, reason in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVENTS)
def test_no_case_falls_over_odd_events(name: str) -> None:
    plain = completion(index=0, text="a", logprobs=None, finish_reason="length")
    found = asyncio.run(asyncio.wait_for(findings(plain, EVENTS[name]), 60))
    verdicts = {case: verdict for case, verdict, _ in found}
    sound = name in ("lists_change_their_kind", "usage_is_a_list")  # as far as a text goes
    assert verdicts["stream.accepted"] is (Verdict.honoured if sound else Verdict.wrong)


def test_a_fault_within_a_case_is_unclear_and_names_its_place() -> None:
    @case("odd.fault", "prompt", law="3", says="a text is a text")
    async def fault(p: Probe) -> Judgement:
        answer = await p.complete()
        return honoured(answer.usage["prompt_tokens"] + 1)

    async def go() -> Judgement:
        value = {"choices": [{"text": "a"}], "usage": {"prompt_tokens": "3"}}
        client = Client("http://odd/v1", None, Budget(1000), transport=answering(value, b""))
        try:
            return (await judge_case(fault, Subject(client, "m"))).judgement
        finally:
            await client.close()

    judgement = asyncio.run(go())
    assert judgement.verdict is Verdict.unclear
    assert "TypeError" in judgement.reason
    assert judgement.evidence["place"].startswith("test_verify_misbehaviour.py:")


def test_a_server_that_is_gone_is_no_fault_of_a_case() -> None:
    async def go() -> None:
        client = Client(f"{closed_port()}/v1", None, Budget(1000))
        try:
            await judge_case(plain_whole, Subject(client, "m"))
        finally:
            await client.close()

    with pytest.raises(CannotReach):
        asyncio.run(go())


@pytest.mark.slow
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_stream_is_read_and_left_by_any_line_end_and_after_a_mark(mark: str, end: str) -> None:
    """The format allows all three, and one byte order mark at its beginning."""
    body = (mark + "".join(f"data: {one}{end}{end}" for one in ('{"a": 1}', '{"b": 2}', "[DONE]"))).encode()
    exchange = asked_once(says(http(body, kind="text/event-stream")))
    assert Streamed.read(exchange) == Streamed(({"a": 1}, {"b": 2}), True, None)

    def goes_on(server: RawServer, client: socket.socket, asked: Asked) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + body)
        client.recv(1)  # until the client has left

    left = asked_once(goes_on, first_events=2)
    assert left.trouble is None
