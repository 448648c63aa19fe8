"""The edge on the socket, attacked byte by byte: a real server, raw sockets, an engine of known logits.

Every attack ends in an answer or a closed connection, and after it a new connection is served as before. The log stays
free of warnings whatever a client sends. Clocks that must not strike are set far off, those that must, close by.
"""

from __future__ import annotations

import json
import logging
import random
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any, BinaryIO, NamedTuple

import h11
import pytest
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from gnomon.http.app import create_app
from gnomon.http.framing import MOST_FIELDS, SLICE, Connection
from gnomon.http.run import Server, bind
from gnomon.http.settings import Settings
from gnomon.http.wire import protocol
from gnomon.reference.tokenizer import Tokenizer
from helpers.certificate import certificate as make_certificate
from helpers.fake import EOT, FakeEngine, always
from helpers.live import Gate, eventually, request_body, serving
from helpers.loopback import Tls

SECONDS = 20  # a socket's patience: no answer within it is a hang
CONTEXT = 10_000
MOST = 4096  # bytes of a head
HEALTH = b"GET /health HTTP/1.1\r\nHost: gnomon\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: gnomon\r\n\r\n"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The message, after checking the error's form."""
        assert self.headers["content-type"] == "application/json"
        error = json.loads(self.body)["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert error["type"] == ("invalid_request_error" if self.status < 500 else "server_error")
        return str(error["message"])

    @property
    def text(self) -> str:
        """The text of a completion, streamed or not."""
        assert self.status == 200, self
        if self.headers["content-type"] == "application/json":
            return str(json.loads(self.body)["choices"][0]["text"])
        assert self.body.endswith(b"data: [DONE]\n\n")
        chunks = self.body.decode().split("\n\n")[:-2]
        return "".join(json.loads(chunk.removeprefix("data: "))["choices"][0]["text"] for chunk in chunks)


class Client:
    """A socket, and the answers that come out of it, each read to its own end and no further."""

    def __init__(self, raw: socket.socket) -> None:
        self.raw = raw
        self.file: BinaryIO = raw.makefile("rb")

    def close(self) -> None:
        self.file.close()
        self.raw.close()

    def send(self, data: bytes) -> None:
        self.raw.sendall(data)

    def answer(self, head: bool = False) -> Answer | None:
        """The next final answer; None where the connection has ended instead."""
        line = self.file.readline()
        if not line:
            return None
        status = int(line.split()[1])
        headers: dict[str, str] = {}
        while (field := self.file.readline()) != b"\r\n":
            assert field.endswith(b"\r\n"), field
            name, _, value = field.decode().partition(":")
            assert name.lower() not in headers
            headers[name.lower()] = value.strip()
        if 100 <= status < 200:
            return self.answer(head)
        if head:
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.file.readline(), 16):
                body += self.file.read(size)
                assert self.file.read(2) == b"\r\n"
            assert self.file.readline() == b"\r\n"
        else:
            body = self.file.read(int(headers["content-length"]) if "content-length" in headers else -1)
        return Answer(status, headers, body)

    def next(self, head: bool = False) -> Answer:
        answer = self.answer(head)
        assert answer is not None
        return answer

    @property
    def ended(self) -> bool:
        """Whether nothing follows: no answer, no stray byte. Waits for the end."""
        return self.file.read() == b""


@contextmanager
def client_of(base: str) -> Iterator[Client]:
    host, port = base.removeprefix("http://").split(":")
    with closing(Client(socket.create_connection((host, int(port)), timeout=SECONDS))) as client:
        yield client


def ask(base: str, data: bytes) -> Answer:
    with client_of(base) as client:
        client.send(data)
        return client.next()


def completion(**fields: object) -> bytes:
    body = json.dumps(request_body(temperature=0, **fields)).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: gnomon\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def is_served(base: str) -> bool:
    """The server is as it was: a new connection gets the right answer."""
    return ask(base, completion(max_tokens=3)).text == "abc"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(always(*b"abc"), context=CONTEXT)


@pytest.fixture
def app(engine: FakeEngine, tokenizer: Tokenizer) -> Starlette:
    return create_app(engine, tokenizer, Settings())


@pytest.fixture(autouse=True)
def _nothing_to_warn_of(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    records = [record for when in ("setup", "call") for record in caplog.get_records(when)]
    assert [record.getMessage() for record in records if record.levelno >= logging.WARNING] == []


@pytest.fixture(scope="module")
def base(tokenizer: Tokenizer) -> Iterator[str]:
    """A server whose clocks strike in no test."""
    app = create_app(FakeEngine(always(*b"abc"), context=CONTEXT), tokenizer, Settings())
    with serving(app, Settings(max_header_bytes=MOST, header_seconds=60, idle_seconds=60, shutdown_seconds=1)) as base:
        yield base


# ---- what is refused: one answer, and nothing after it is read as a request


def get(*lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([b"GET /health HTTP/1.1", b"Host: gnomon", *lines, b"", b""]) + body


def head_of(line: bytes) -> bytes:
    return line + b"\r\nHost: gnomon\r\n\r\n"


CHUNKED = b"Transfer-Encoding: chunked"
TINY = b"0\r\n\r\n"

REFUSED = {
    # two ends of one body
    "length twice": (400, get(b"Content-Length: 0", b"Content-Length: 40")),
    "length twice, the longer first": (400, get(b"Content-Length: 40", b"Content-Length: 0")),
    "lengths in a list": (400, get(b"Content-Length: 0, 40")),
    "length and chunked": (400, get(b"Content-Length: 5", CHUNKED, body=TINY)),
    "chunked and length": (400, get(CHUNKED, b"Content-Length: 5", body=TINY)),
    "chunked and a length of 0": (400, get(CHUNKED, b"Content-Length: 0", body=TINY)),
    "chunked and length in capitals": (400, get(b"TRANSFER-ENCODING: CHUNKED", b"content-length: 5", body=TINY)),
    "chunked in HTTP/1.0": (400, b"GET /health HTTP/1.0\r\nHost: a\r\n" + CHUNKED + b"\r\n\r\n" + TINY),
    # lengths
    "length +5": (400, get(b"Content-Length: +5", body=b"12345")),
    "length -5": (400, get(b"Content-Length: -5")),
    "length 0x5": (400, get(b"Content-Length: 0x5", body=b"12345")),
    "length 5 5": (400, get(b"Content-Length: 5 5", body=b"12345")),
    "length 5.0": (400, get(b"Content-Length: 5.0", body=b"12345")),
    "length 1_0": (400, get(b"Content-Length: 1_0", body=b"1234567890")),
    "length empty": (400, get(b"Content-Length:")),
    "length of 30 digits": (400, get(b"Content-Length: " + b"9" * 30)),
    "length of 3000 digits": (400, get(b"Content-Length: " + b"9" * 3000)),
    "length in other digits": (400, get("Content-Length: ٥".encode(), body=b"12345")),
    # spellings of chunked
    "coding gzip": (501, get(b"Transfer-Encoding: gzip")),
    "coding identity": (501, get(b"Transfer-Encoding: identity")),
    "coding xchunked": (501, get(b"Transfer-Encoding: xchunked", body=TINY)),
    "coding chunkedx": (501, get(b"Transfer-Encoding: chunkedx", body=TINY)),
    "coding gzip, chunked": (501, get(b"Transfer-Encoding: gzip, chunked", body=TINY)),
    "coding chunked, identity": (501, get(b"Transfer-Encoding: chunked, identity", body=TINY)),
    "coding chunked, chunked": (501, get(b"Transfer-Encoding: chunked, chunked", body=TINY)),
    "coding chunked;q=1": (501, get(b"Transfer-Encoding: chunked;q=1", body=TINY)),
    "coding in quotes": (501, get(b'Transfer-Encoding: "chunked"', body=TINY)),
    "coding empty": (501, get(b"Transfer-Encoding:")),
    "coding with a comma": (501, get(b"Transfer-Encoding: ,chunked", body=TINY)),
    "coding twice": (501, get(CHUNKED, CHUNKED, body=TINY)),
    "coding twice, one unknown": (501, get(CHUNKED, b"Transfer-Encoding: identity", body=TINY)),
    "coding after a vertical tab": (400, get(b"Transfer-Encoding: \x0bchunked", body=TINY)),
    "coding after a NUL": (400, get(b"Transfer-Encoding: \x00chunked", body=TINY)),
    "coding folded": (400, get(b"Transfer-Encoding:", b" chunked", body=TINY)),
    "coding after a space before the colon": (400, get(b"Transfer-Encoding : chunked", body=TINY)),
    "coding after a tab before the colon": (400, get(b"Transfer-Encoding\t: chunked", body=TINY)),
    "coding after a bare CR": (400, get(b"X: a\rTransfer-Encoding: chunked", body=TINY)),
    "coding after a bare LF": (400, get(b"X: a\nTransfer-Encoding: chunked", body=TINY)),
    # chunks
    "chunk size empty": (400, get(CHUNKED, body=b"\r\n\r\n")),
    "chunk size g": (400, get(CHUNKED, body=b"g\r\n\r\n")),
    "chunk size -1": (400, get(CHUNKED, body=b"-1\r\n\r\n")),
    "chunk size +1": (400, get(CHUNKED, body=b"+1\r\nx\r\n" + TINY)),
    "chunk size 0x1": (400, get(CHUNKED, body=b"0x1\r\nx\r\n" + TINY)),
    "chunk size after a space": (400, get(CHUNKED, body=b" 1\r\nx\r\n" + TINY)),
    "chunk size of 21 digits": (400, get(CHUNKED, body=b"0" * 20 + b"1\r\nx\r\n" + TINY)),
    "chunk size ended by LF": (400, get(CHUNKED, body=b"1\nx\r\n" + TINY)),
    "chunk extension with LF": (400, get(CHUNKED, body=b"1;a\nb\r\nx\r\n" + TINY)),
    "chunk longer than its size": (400, get(CHUNKED, body=b"1\r\nxyz\r\n" + TINY)),
    "chunk ended by LF": (400, get(CHUNKED, body=b"1\r\nx\n" + TINY)),
    "chunk extension without end": (400, get(CHUNKED, body=b"1;" + b"a" * 2 * MOST)),
    "chunk extensions without sense": (400, get(CHUNKED, body=(b"1;" + b"a" * 3000 + b"\r\nx\r\n") * 200 + TINY)),
    "trailer with NUL": (400, get(CHUNKED, body=b"0\r\nA: \x00\r\n\r\n")),
    "trailer without colon": (400, get(CHUNKED, body=b"0\r\nabc\r\n\r\n")),
    "trailers without end": (400, get(CHUNKED, body=b"0\r\n" + b"A: b\r\n" * MOST)),
    # headers
    "Host missing": (400, b"GET /health HTTP/1.1\r\n\r\n"),
    "Host missing in HTTP/1.9": (400, b"GET /health HTTP/1.9\r\n\r\n"),
    "Host twice": (400, get(b"Host: other")),
    "Host twice, the same": (400, get(b"Host: gnomon")),
    "Host with a path": (400, b"GET /health HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    "Host with a space": (400, b"GET /health HTTP/1.1\r\nHost: a b\r\n\r\n"),
    "Host with a user": (400, b"GET /health HTTP/1.1\r\nHost: a@b\r\n\r\n"),
    "header without name": (400, get(b": x")),
    "header without colon": (400, get(b"abc")),
    "header folded": (400, get(b"A: b", b"  c")),
    "header folded with a tab": (400, get(b"A: b", b"\tc")),
    "first header folded": (400, b"GET /health HTTP/1.1\r\n Host: a\r\n\r\n"),
    "header name with a space": (400, get(b"A b: c")),
    "header name with a bracket": (400, get(b"A(b): c")),
    "header name beyond ASCII": (400, get("Ä: c".encode())),
    "header with NUL": (400, get(b"A: b\x00c")),
    "header with BEL": (400, get(b"A: b\x07c")),
    "header with DEL": (400, get(b"A: b\x7fc")),
    "header ended by LF": (400, b"GET /health HTTP/1.1\r\nHost: a\nA: b\r\n\r\n"),
    "header ended by CR": (400, b"GET /health HTTP/1.1\r\nHost: a\rA: b\r\n\r\n"),
    "header ended by CR CR LF": (400, b"GET /health HTTP/1.1\r\nHost: a\r\r\n\r\n"),
    "head ended by LF LF": (400, b"GET /health HTTP/1.1\nHost: a\n\n"),
    "head ended by LF CR LF": (400, b"GET /health HTTP/1.1\r\nHost: a\n\r\n"),
    "headers of 1 MiB": (431, get(b"A: " + b"b" * 2**20)),
    "headers of one byte too many": (431, get(b"A: " + b"b" * (MOST - len(get(b"A: ")) + 1))),
    "10,000 headers": (431, get(*[b"a: b"] * 10_000)),
    "a header without end": (431, b"GET /health HTTP/1.1\r\nA: " + b"b" * 2 * MOST),
    # request lines
    "a very long path": (431, head_of(b"GET /" + b"a" * 10**6 + b" HTTP/1.1")),
    "a very long method": (431, head_of(b"G" * 10**5 + b" / HTTP/1.1")),
    "HTTP/0.9": (400, b"GET /health\r\n"),
    "HTTP/0.9 by name": (505, head_of(b"GET /health HTTP/0.9")),
    "HTTP/2.0": (505, head_of(b"GET /health HTTP/2.0")),
    "HTTP/3.0": (505, head_of(b"GET /health HTTP/3.0")),
    "HTTP/2 preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/11.1": (400, head_of(b"GET /health HTTP/11.1")),
    "http/1.1": (400, head_of(b"GET /health http/1.1")),
    "HTTP 1.1": (400, head_of(b"GET /health HTTP 1.1")),
    "no version": (400, head_of(b"GET /health ")),
    "two spaces": (400, head_of(b"GET  /health HTTP/1.1")),
    "a tab": (400, head_of(b"GET\t/health HTTP/1.1")),
    "a leading space": (400, head_of(b" GET /health HTTP/1.1")),
    "a trailing space": (400, head_of(b"GET /health HTTP/1.1 ")),
    "a path with a space": (400, head_of(b"GET /hea lth HTTP/1.1")),
    "a path beyond ASCII": (400, head_of("GET /é HTTP/1.1".encode())),
    "a path with NUL": (400, head_of(b"GET /\x00 HTTP/1.1")),
    "a method with a colon": (400, head_of(b"GET: /health HTTP/1.1")),
    "a target without slash": (400, head_of(b"GET health HTTP/1.1")),
    "a target of another scheme": (400, head_of(b"GET ftp://gnomon/health HTTP/1.1")),
    "a target without host": (400, head_of(b"GET http:///health HTTP/1.1")),
    "a target with a user": (400, head_of(b"GET http://a@gnomon/health HTTP/1.1")),
    "* with GET": (400, head_of(b"GET * HTTP/1.1")),
    "host and port with GET": (400, head_of(b"GET gnomon:80 HTTP/1.1")),
    # no HTTP
    "TLS hello": (400, bytes.fromhex("16030100c8010000c40303") + bytes(range(190))),
    "SSLv2 hello": (400, b"\x80\x2e\x01\x03\x01" + bytes(40)),
    "NULs": (400, bytes(1000)),
    "LFs": (400, b"\n" * 1000),
    "SSH": (400, b"SSH-2.0-OpenSSH_9.6\r\n"),
    "SMTP": (400, b"EHLO gnomon\r\n"),
    "Redis": (400, b"*1\r\n$4\r\nPING\r\n"),
    "PROXY protocol": (400, b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + HEALTH),
    "JSON": (400, b'{"model": "gnomon-stories"}\r\n'),
    **{f"garbage {seed}": (400, b"\x00" + random.Random(seed).randbytes(3000)) for seed in range(8)},
}


@pytest.mark.parametrize("attack", REFUSED)
def test_what_is_refused_gets_one_answer_and_nothing_after_it_is_a_request(base: str, attack: str) -> None:
    status, sent = REFUSED[attack]
    with client_of(base) as client:
        client.send(sent + SMUGGLED)
        answer = client.next()
        assert answer.status == status, answer
        assert answer.error
        assert answer.headers["connection"] == "close"
        assert "date" in answer.headers
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
        client.send(SMUGGLED)
        client.raw.shutdown(socket.SHUT_WR)
        assert client.ended
    assert is_served(base)


@pytest.mark.parametrize("attack", ["length twice", "coding gzip", "HTTP/2.0", "headers of 1 MiB", "Host missing"])
def test_a_refused_head_request_gets_no_body(base: str, attack: str) -> None:
    status, sent = REFUSED[attack]
    with client_of(base) as client:
        client.send(sent.replace(b"GET ", b"HEAD ", 1))
        answer = client.next(head=True)
        assert (answer.status, int(answer.headers["content-length"]) > 0) == (status, True)
        client.raw.shutdown(socket.SHUT_WR)
        assert client.ended


@pytest.mark.parametrize("at", ["head", "path", "chunk"])
def test_a_refusal_does_not_repeat_a_token(base: str, at: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = b"gn0m0n-s3cret"
    sent = {
        "head": get(b"Authorization Bearer " + token),
        "path": head_of(b"GET /health HTTP/1.1 " + token),
        "chunk": get(CHUNKED, body=b"x" + token + b"\r\n"),
    }[at]
    answer = ask(base, sent)
    assert answer.status == 400
    assert token not in answer.body
    assert token.decode() not in caplog.text


def test_a_refusal_is_a_line_of_the_log_under_the_id_of_its_answer(base: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    refused = ask(base, b"GARBAGE\r\n\r\n").headers["x-request-id"]
    assert f"127.0.0.1 refused at the socket: 400 id={refused}" in caplog.messages
    with client_of(base) as client:  # its head was whole: the application knows it, by the caller's name
        lines = [b"POST /v1/completions HTTP/1.1", b"Host: gnomon", b"X-Request-Id: mine", b"Content-Length: 9"]
        client.send(b"\r\n".join([*lines, b"Content-Type: application/json", b"", b"{"]))
        client.raw.shutdown(socket.SHUT_WR)
        assert client.next().headers["x-request-id"] == "mine"


# ---- what is not: answered, and the connection goes on

SERVED = {
    "lengths that agree": (200, get(b"Content-Length: 5", b"Content-Length: 5", body=b"12345")),
    "a length with zeros": (200, get(b"Content-Length: 005", body=b"12345")),
    "a body nobody asked for": (200, get(b"Content-Length: 40", body=SMUGGLED[:40])),
    "chunks": (200, get(CHUNKED, body=b"5\r\n12345\r\n" + TINY)),
    "chunks in capitals": (200, get(b"tRANSFER-eNCODING:CHUNKED  ", body=b"A\r\n1234567890\r\n" + TINY)),
    "chunk extensions": (200, get(CHUNKED, body=b'5;a="b";c\r\n12345\r\n' + TINY)),
    "a request in a chunk": (200, get(CHUNKED, body=b"%x\r\n%b\r\n" % (len(SMUGGLED), SMUGGLED) + TINY)),
    "trailers": (200, get(CHUNKED, body=b"0\r\nContent-Length: 99\r\nHost: x\r\n\r\n")),
    "many small chunks": (200, get(CHUNKED, body=b"1\r\nx\r\n" * 1000 + TINY)),
    "the longest head": (200, get(b"A: " + b"b" * (MOST - len(get(b"A: "))))),
    "600 headers": (200, get(*[b"a: b"] * 600)),
    "empty lines before": (200, b"\r\n\r\n" + HEALTH),
    "Host empty": (200, b"GET /health HTTP/1.1\r\nHost:\r\n\r\n"),
    "Host with a port": (200, b"GET /health HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n"),
    "HTTP/1.2": (200, head_of(b"GET /health HTTP/1.2")),
    "absolute form": (200, head_of(b"GET http://gnomon:8000/health HTTP/1.1")),
    "absolute form of another host": (200, b"GET HTTP://other/health?a=b HTTP/1.1\r\nHost: gnomon\r\n\r\n"),
    "absolute form without path": (200, head_of(b"GET http://gnomon HTTP/1.1")),
    "absolute form with a query only": (200, head_of(b"GET http://gnomon?a HTTP/1.1")),
    "h2c": (200, get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAoAAA")),
    "websocket": (200, get(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13")),
    "OPTIONS": (405, head_of(b"OPTIONS /health HTTP/1.1")),
    "OPTIONS *": (404, head_of(b"OPTIONS * HTTP/1.1")),
    "TRACE": (405, head_of(b"TRACE /health HTTP/1.1")),
    "CONNECT": (404, head_of(b"CONNECT example.org:443 HTTP/1.1")),
    "CONNECT to a path": (405, head_of(b"CONNECT /health HTTP/1.1")),
    "DELETE": (405, head_of(b"DELETE /v1/completions HTTP/1.1")),
    "an unknown method": (405, head_of(b"BREW /health HTTP/1.1")),
    "a method in small letters": (405, head_of(b"get /health HTTP/1.1")),
    "a path that climbs": (404, head_of(b"GET /../../etc/passwd HTTP/1.1")),
    "a path with an encoded NUL": (404, head_of(b"GET /%00%0d%0aA:%20b HTTP/1.1")),
    "a path with a bad escape": (404, head_of(b"GET /%zz%ff HTTP/1.1")),
    "a path with //": (404, head_of(b"GET //health HTTP/1.1")),
    "an underscore in a framing header": (200, get(b"Transfer_Encoding: chunked", b"Content_Length: 5")),
    "an expectation without a body": (200, get(b"Expect: 100-continue")),
    "an unknown expectation": (200, get(b"Expect: 200-maybe")),
    "header values beyond ASCII": (200, get("A: é☃".encode())),
}


@pytest.mark.parametrize("attack", SERVED)
def test_what_is_not_refused_leaves_the_connection_in_step(base: str, attack: str) -> None:
    status, sent = SERVED[attack]
    with client_of(base) as client:
        for _ in range(2):
            client.send(sent)
            answer = client.next()
            assert answer.status == status, answer
            client.send(completion(max_tokens=2))
            assert client.next().text == "ab"


@pytest.mark.parametrize("path", [b"/health", b"/nope"])
def test_head_is_answered_without_a_body_and_in_step(base: str, path: bytes) -> None:
    with client_of(base) as client:
        client.send(head_of(b"HEAD " + path + b" HTTP/1.1") + completion(max_tokens=1))
        assert client.next(head=True).status == (200 if path == b"/health" else 404)
        assert client.next().text == "a"


def test_http_1_0_is_answered_and_closed(base: str) -> None:
    with client_of(base) as client:
        client.send(b"GET /health HTTP/1.0\r\n\r\n" + SMUGGLED)
        assert json.loads(client.next().body) == {"status": "ok"}
        assert client.ended


def test_a_stream_to_http_1_0_ends_with_the_connection(base: str) -> None:
    with client_of(base) as client:
        client.send(completion(max_tokens=4, stream=True).replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = client.next()
        assert "transfer-encoding" not in answer.headers
        assert answer.text == "abca"


def test_the_host_of_an_absolute_target_replaces_the_host_header(engine: FakeEngine, tokenizer: Tokenizer) -> None:
    app = create_app(engine, tokenizer, Settings())
    seen: list[bytes] = []
    inner = app.middleware_stack = app.build_middleware_stack()

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(value for name, value in scope.get("headers", []) if name == b"host")
        await inner(scope, receive, send)

    app.middleware_stack = watched
    with serving(app) as base:
        assert ask(base, b"GET http://other:99/health HTTP/1.1\r\nHost: gnomon\r\n\r\n").status == 200
    assert seen == [b"other:99"]


# ---- bytes that come slowly, and bodies that are not read


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_comes_byte_by_byte_is_answered(base: str, stream: bool) -> None:
    with client_of(base) as client:
        client.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in completion(max_tokens=5, stream=stream):
            client.send(bytes([byte]))
        assert client.next().text == "abcab"


def test_the_end_of_a_head_is_found_wherever_it_is_cut(base: str) -> None:
    end = HEALTH.index(b"\r\n\r\n")
    for cut in range(end + 1, end + 4):
        with client_of(base) as client:
            client.send(HEALTH[:cut])
            time.sleep(0.1)
            client.send(HEALTH[cut:])
            assert client.next().status == 200


@pytest.mark.slow
def test_a_long_body_in_chunks_of_one_byte_is_answered(base: str) -> None:
    """Five times as much framing as data, and more than one read gives: no attack yet."""
    head, body = completion(max_tokens=3).split(b"\r\n\r\n")
    head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length"))
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body + b" " * 100_000)
    answer = ask(base, head + b"\r\n" + CHUNKED + b"\r\n\r\n" + chunks + TINY)
    assert answer.text == "abc"


def test_of_a_read_full_of_tiny_chunks_a_turn_looks_at_a_bounded_part() -> None:
    """A read gives up to 256 KiB, which are 43,000 such chunks: looked at in one turn, they hold up every client."""
    connection = Connection(MOST)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: gnomon\r\n" + CHUNKED + b"\r\n\r\n")
    assert isinstance(connection.next_event(), h11.Request)
    connection.receive_data(b"1\r\nx\r\n" * (3 * SLICE + 5) + b"0\r\n\r\n")
    turns: list[int] = []
    while not turns or connection.more:
        turns.append(0)
        while (event := connection.next_event()) is not h11.NEED_DATA and not isinstance(event, h11.EndOfMessage):
            assert isinstance(event, h11.Data)
            turns[-1] += len(event.data)
    assert turns == [SLICE, SLICE, SLICE, 5]
    assert isinstance(event, h11.EndOfMessage)


def test_blank_lines_before_a_request_are_taken_away_at_once() -> None:
    """One by one, those of a read of 256 KiB take a time that every other client waits."""
    connection = Connection(MOST)
    lines: list[str] = []

    def count(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_name == "next_request":
            lines.append(event)
        return count

    connection.receive_data(b"\r\n" * 100_000 + HEALTH)
    sys.settrace(count)
    try:
        event = connection.next_event()
    finally:
        sys.settrace(None)
    assert isinstance(event, h11.Request)
    assert 0 < len(lines) < 100


@pytest.mark.parametrize("more", [0, 1])
def test_a_head_has_at_most_a_thousand_fields(app: Starlette, more: int) -> None:
    with serving(app, Settings(max_header_bytes=8 * MOST)) as base:
        answer = ask(base, get(*[b"A: b"] * (MOST_FIELDS - 1 + more)))  # Host is one of them
    assert answer.status == (431 if more else 200)
    if more:
        assert answer.error == "the request has 1001 header fields; at most 1000 are allowed"


def test_a_refusal_does_not_depend_on_how_the_bytes_are_cut(base: str) -> None:
    """32 places: a cut that hid the error from the scan would let one of them pass."""
    sent = b"GET /health HTTP/1.1\r\nHost: a\r\nA: b\nC: d\r\n\r\n"
    for cut in range(4, len(sent) - 4):
        with client_of(base) as client:
            client.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.send(sent[:cut])
            time.sleep(0.002)
            client.send(sent[cut:])
            assert client.next().status == 400, cut


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_far_too_large_is_sent_to_its_end_and_the_413_is_read_after_it(base: str, chunked: bool) -> None:
    """A closed socket would be reset by the rest of the body, and the reset would take the answer with it."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: gnomon\r\nContent-Type: application/json\r\n"
    size = 2**20
    with client_of(base) as client:
        client.send(head + (CHUNKED if chunked else b"Content-Length: %d" % (24 * size)) + b"\r\n\r\n")
        for _ in range(24):
            client.send(b"%x\r\n%b\r\n" % (size, b" " * size) if chunked else b" " * size)
        answer = client.next()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert answer.error
        client.raw.shutdown(socket.SHUT_WR)
        assert client.ended
    assert is_served(base)


def test_an_unread_body_of_a_404_is_no_request(base: str) -> None:
    with client_of(base) as client:
        client.send(b"POST /nope HTTP/1.1\r\nHost: gnomon\r\nContent-Length: 1000\r\n\r\n")
        answer = client.next()
        assert (answer.status, answer.headers["connection"]) == (404, "close")
        client.send(SMUGGLED)
        client.raw.shutdown(socket.SHUT_WR)
        assert client.ended


def test_a_client_that_goes_on_sending_after_its_refusal_is_cut(base: str) -> None:
    with client_of(base) as client:
        client.send(get(b"Host: other"))
        assert client.next().status == 400

        def pour() -> None:
            for _ in range(200):
                client.send(bytes(2**20))

        with pytest.raises(OSError, match=r"reset|pipe"):
            pour()
    assert is_served(base)


@pytest.mark.slow
@pytest.mark.parametrize("last", [b"GET /health HTTP/1.0\r\n\r\n", get(b"Host: other")], ids=["answered", "refused"])
def test_a_client_that_does_not_close_a_closed_connection_is_left(app: Starlette, last: bytes) -> None:
    with serving(app, Settings(max_connections=1)) as base, client_of(base) as client:
        client.send(last)
        assert client.next().status in (200, 400)
        assert client.ended
        assert eventually(lambda: ask(base, HEALTH).status == 200)


def test_expect_100_continue_is_answered_before_the_body(base: str) -> None:
    whole = completion(max_tokens=3)
    head, body = whole.split(b"\r\n\r\n")
    with client_of(base) as client:
        client.send(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert client.file.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert client.file.readline() == b"\r\n"
        client.send(body + HEALTH)
        assert client.next().text == "abc"
        assert client.next().status == 200


def test_expect_100_continue_is_refused_before_the_body_and_the_body_is_no_request(base: str) -> None:
    with client_of(base) as client:
        client.send(
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"
        )
        assert client.next().status == 413
        client.send(SMUGGLED)
        client.raw.shutdown(socket.SHUT_WR)
        assert client.ended


# ---- several requests in one segment


def test_pipelined_requests_are_answered_in_order_also_after_a_stream(base: str) -> None:
    with client_of(base) as client:
        client.send(
            b"".join(
                [
                    completion(max_tokens=9, stream=True),
                    HEALTH,
                    completion(max_tokens=2),
                    b"\r\n" + head_of(b"GET /nope HTTP/1.1"),
                    get(CHUNKED, body=b"5\r\n12345\r\n" + TINY),
                    completion(max_tokens=7, stream=True),
                    completion(max_tokens=1)[:100],
                ]
            )
        )
        assert client.next().text == "abcabcabc"
        assert json.loads(client.next().body) == {"status": "ok"}
        assert client.next().text == "ab"
        assert client.next().status == 404
        assert client.next().status == 200
        assert client.next().text == "abcabca"
        client.send(completion(max_tokens=1)[100:])
        assert client.next().text == "a"


@pytest.mark.slow
def test_300_pipelined_requests_beyond_every_buffer_are_answered_in_order(base: str) -> None:
    lengths = [i % 5 + 1 for i in range(300)]
    with client_of(base) as client:
        sending = threading.Thread(
            target=client.send, args=(b"".join(completion(max_tokens=n, stop=["x" * 1000] * 3) for n in lengths),)
        )
        sending.start()
        assert [client.next().text for _ in lengths] == ["abcab"[:n] for n in lengths]
        sending.join(SECONDS)


@pytest.mark.parametrize("stream", [False, True])
def test_a_malformed_request_among_pipelined_ones_is_answered_in_turn_and_ends_them(base: str, stream: bool) -> None:
    with client_of(base) as client:
        client.send(completion(max_tokens=5, stream=stream) + HEALTH + get(b"Host: other") + SMUGGLED)
        assert client.next().text == "abcab"
        assert client.next().status == 200
        assert client.next().status == 400
        client.raw.shutdown(socket.SHUT_WR)
        assert client.ended


def test_nothing_after_connection_close_is_a_request(app: Starlette, engine: FakeEngine) -> None:
    gate = engine.logits_of = Gate(engine.logits_of)
    with serving(app) as base, client_of(base) as client:
        client.send(completion(max_tokens=3).replace(b"Host", b"Connection: close\r\nHost") + SMUGGLED)
        assert eventually(lambda: gate.begun == 1)
        client.send(SMUGGLED)
        time.sleep(0.1)
        client.send(SMUGGLED)
        gate.allow(100)
        assert client.next().text == "abc"
        client.raw.shutdown(socket.SHUT_WR)
        assert client.ended


# ---- a client that sends no more


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
def test_a_half_closed_client_gets_its_answers(base: str, stream: bool, version: bytes) -> None:
    with client_of(base) as client:
        client.send(completion(max_tokens=500, stream=stream).replace(b"HTTP/1.1", version))
        client.raw.shutdown(socket.SHUT_WR)
        assert len(client.next().text) == 500
        assert client.ended


def test_a_half_closed_client_gets_the_answers_to_all_it_has_pipelined(base: str) -> None:
    with client_of(base) as client:
        client.send(completion(max_tokens=50, stream=True) + completion(max_tokens=2) + HEALTH)
        client.raw.shutdown(socket.SHUT_WR)
        assert len(client.next().text) == 50
        assert client.next().text == "ab"
        assert client.next().status == 200
        assert client.ended


@pytest.mark.slow
@pytest.mark.parametrize("extra", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"], ids=["plain", "with an upgrade"])
@pytest.mark.parametrize("more", [b"", HEALTH], ids=["alone", "pipelined"])
def test_the_engine_stops_when_a_client_leaves_whatever_it_offered_or_pipelined(
    app: Starlette, engine: FakeEngine, extra: bytes, more: bytes
) -> None:
    gate = engine.logits_of = Gate(engine.logits_of)
    with serving(app) as base:
        with client_of(base) as client:
            client.send(completion(max_tokens=1000).replace(b"Host", extra + b"Host"))
            assert eventually(lambda: gate.begun == 1)
            client.send(more)
            time.sleep(0.1)
            client.send(more)
        assert eventually(lambda: not app.state.completions.open)
        gate.allow(2000)
        time.sleep(0.1)
        assert gate.begun == 1


TRUNCATED = {
    "request line": b"GET /hea",
    "headers": b"GET /health HTTP/1.1\r\nHost: gn",
    "headers before the empty line": b"GET /health HTTP/1.1\r\nHost: gnomon\r\n",
    "body": completion(max_tokens=3)[:-1],
    "body before its first byte": completion(max_tokens=3).split(b"\r\n\r\n")[0] + b"\r\n\r\n",
    "chunk size": b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5",
    "chunk": b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    "trailer": b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n",
}


@pytest.mark.parametrize("at", TRUNCATED)
@pytest.mark.parametrize("before", [b"", HEALTH], ids=["first", "second"])
def test_a_truncated_request_is_a_400_that_a_half_closed_client_still_reads(base: str, at: str, before: bytes) -> None:
    with client_of(base) as client:
        client.send(before + TRUNCATED[at])
        client.raw.shutdown(socket.SHUT_WR)
        if before:
            assert client.next().status == 200
        answer = client.next()
        assert answer.status == 400
        assert "before it was whole" in answer.error
        assert client.ended
    assert is_served(base)


# ---- the clocks


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"\r\n", b"G", b"GET /health HTTP/1.1\r\nHost: a\r\n"])
@pytest.mark.parametrize("before", [b"", HEALTH], ids=["first", "second"])
def test_a_head_that_is_not_whole_in_time_is_a_408(app: Starlette, sent: bytes, before: bytes) -> None:
    with serving(app, Settings(header_seconds=0.4, idle_seconds=60)) as base, client_of(base) as client:
        if before:
            client.send(before)
            assert client.next().status == 200
            time.sleep(0.6)  # what lies between two requests is no slow head
            if not sent:
                sent = b"GET /"
        client.send(sent)
        answer = client.next()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert "0.4 seconds" in answer.error
        client.raw.shutdown(socket.SHUT_WR)
        assert client.ended


def test_a_head_that_trickles_is_a_408(app: Starlette) -> None:
    with serving(app, Settings(header_seconds=0.5)) as base, client_of(base) as client:
        stopped = threading.Event()

        def trickle() -> None:
            client.send(b"GET /health HTTP/1.1\r\n")
            while not stopped.wait(0.05):
                try:
                    client.send(b"A: b\r\n")
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        assert client.next().status == 408
        stopped.set()
        thread.join()


def test_a_pipelined_head_that_is_not_whole_in_time_is_a_408(app: Starlette) -> None:
    with serving(app, Settings(header_seconds=0.4, idle_seconds=60)) as base, client_of(base) as client:
        client.send(completion(max_tokens=3, stream=True) + HEALTH[:10])
        assert client.next().text == "abc"
        assert client.next().status == 408


@pytest.mark.slow
def test_the_clock_of_the_head_does_not_strike_while_the_answer_is_made(app: Starlette, engine: FakeEngine) -> None:
    gate = engine.logits_of = Gate(engine.logits_of)
    with serving(app, Settings(header_seconds=0.3, idle_seconds=0.3)) as base, client_of(base) as client:
        client.send(completion(max_tokens=2))
        assert eventually(lambda: gate.begun == 1)
        time.sleep(0.8)
        gate.allow(2)
        assert client.next().text == "ab"


@pytest.mark.parametrize("request_", [HEALTH, completion(max_tokens=3, stream=True)], ids=["health", "stream"])
def test_a_connection_that_idles_between_requests_is_closed_without_a_word(app: Starlette, request_: bytes) -> None:
    with serving(app, Settings(idle_seconds=0.3)) as base, client_of(base) as client:
        client.send(request_)
        assert client.next().status == 200
        assert client.ended


@pytest.mark.slow
@pytest.mark.parametrize("request_", [HEALTH, completion(max_tokens=3, stream=True)], ids=["health", "stream"])
def test_an_answer_says_for_how_long_its_connection_stays(app: Starlette, request_: bytes) -> None:
    with serving(app, Settings(idle_seconds=1.9)) as base, client_of(base) as client:
        for _ in range(2):  # the second goes through what is set anew between two requests
            client.send(request_)
            headers = client.next().headers
            assert (headers["connection"], headers["keep-alive"]) == ("keep-alive", "timeout=1")
        begun = time.monotonic()
        assert client.ended
        assert time.monotonic() - begun > 1  # as promised at least


def test_by_default_a_connection_stays_longer_than_a_proxy_keeps_it() -> None:
    assert Settings().idle_seconds >= 60 + 15  # nginx and ALB let go after 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_", "idle_seconds"),
    [
        (HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), 60),
        (HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: x, Close\r\n\r\n"), 60),
        (HEALTH.replace(b"HTTP/1.1", b"HTTP/1.0"), 60),
        (HEALTH.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"), 60),
        (completion(max_tokens=3)[:-1].replace(b"Content-Length: ", b"Content-Length: 9999999"), 60),  # 413
        (HEALTH, 0.9),  # no whole second
    ],
    ids=["close", "in a list", "HTTP/1.0", "1.0 keep-alive", "before the body", "under a second"],
)
def test_where_the_connection_closes_no_time_is_promised(app: Starlette, request_: bytes, idle_seconds: float) -> None:
    with serving(app, Settings(idle_seconds=idle_seconds)) as base, client_of(base) as client:
        client.send(request_)
        answer = client.next()
        assert "keep-alive" not in answer.headers
        assert answer.headers.get("connection") == (None if idle_seconds < 1 else "close")
        client.raw.shutdown(socket.SHUT_WR)
        assert client.ended


@pytest.mark.parametrize("request_", [HEALTH, completion(max_tokens=3), completion(stream=True)])
def test_while_it_drains_every_answer_is_its_connections_last(
    app: Starlette, engine: FakeEngine, request_: bytes
) -> None:
    """Else a client with an open connection would be told 503 on it for as long as draining lasts."""
    gate = engine.logits_of = Gate(engine.logits_of)
    with serving(app) as base, client_of(base) as client, client_of(base) as unfinished:
        client.send(HEALTH)
        assert client.next().headers["connection"] == "keep-alive"
        unfinished.send(completion(max_tokens=1))
        assert eventually(lambda: gate.begun == 1)  # so that draining lasts
        app.state.service.draining = True
        client.send(request_)
        answer = client.next()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert client.ended
        gate.allow(1)
        assert unfinished.next().headers["connection"] == "close"


# ---- as many as are allowed


def refused_for_now(answer: Answer) -> bool:
    return answer.status == 503 and int(answer.headers["retry-after"]) > 0 and "3 connections" in answer.error


@pytest.mark.slow
def test_one_connection_beyond_the_bound_is_a_503_and_disturbs_no_other(app: Starlette) -> None:
    with serving(app, Settings(max_connections=3)) as base, ExitStack() as stack:
        clients = [stack.enter_context(client_of(base)) for _ in range(3)]
        for client in clients:
            client.send(HEALTH)
            assert client.next().status == 200
        for _ in range(3):
            with client_of(base) as beyond:
                beyond.send(completion(max_tokens=3) + SMUGGLED)
                answer = beyond.next()
                assert refused_for_now(answer)
                assert answer.headers["connection"] == "close"
                beyond.raw.shutdown(socket.SHUT_WR)
                assert beyond.ended
        with client_of(base) as beyond:
            beyond.send(head_of(b"HEAD /health HTTP/1.1"))
            assert beyond.next(head=True).status == 503
            assert beyond.ended
        with client_of(base) as silent:
            assert refused_for_now(silent.next())
        for client in clients:
            client.send(completion(max_tokens=3))
            assert client.next().text == "abc"
        clients[0].close()
        assert eventually(lambda: ask(base, HEALTH).status == 200)


@pytest.mark.slow
def test_a_flood_of_connections_is_refused_or_cut_and_disturbs_no_other(app: Starlette) -> None:
    with serving(app, Settings(max_connections=3)) as base, ExitStack() as stack:
        clients = [stack.enter_context(client_of(base)) for _ in range(3)]
        for client in clients:
            client.send(HEALTH)
            assert client.next().status == 200
        flood = [stack.enter_context(client_of(base)) for _ in range(200)]
        told = 0
        for client in flood:
            try:
                answer = client.answer()
            except ConnectionError:
                continue
            if answer is not None:
                assert refused_for_now(answer)
                told += 1
        assert 64 <= told < 200
        for client in clients:
            client.send(completion(max_tokens=3))
            assert client.next().text == "abc"


# ---- a client that does not read


def wide(tokens: int = CONTEXT - 1, **fields: object) -> bytes:
    """An answer of some megabytes."""
    return completion(max_tokens=tokens, logprobs=20, logit_bias={str(EOT): -100}, **fields)


def stall(base: str, request: bytes, stack: ExitStack) -> Client:
    host, port = base.removeprefix("http://").split(":")
    raw = socket.socket()
    client = stack.enter_context(closing(Client(raw)))
    raw.settimeout(SECONDS)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((host, int(port)))
    client.send(request)
    return client


def some_of(client: Client, most: int) -> bytes:
    data = client.raw.recv(most)
    assert data, "the connection was cut"
    return data


def rest_of(client: Client) -> bytes:
    data = b""
    try:
        while piece := client.raw.recv(2**16):
            data += piece
    except ConnectionError:
        return data
    return data


def is_whole(answer: bytes) -> bool:
    assert answer.startswith(b"HTTP/1.1 200")
    end = b"data: [DONE]\n\n" if b"text/event-stream" in answer else b'"system_fingerprint":'
    return end in answer


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"], ids=["keep-alive", "closing"])
def test_a_client_that_takes_nothing_is_cut_and_its_connection_is_free(
    tokenizer: Tokenizer, stream: bool, version: bytes
) -> None:
    """The bound of one connection tells: the next client is refused until the deaf one is gone."""
    engine = FakeEngine(always(*b"abc"), context=1000)
    app = create_app(engine, tokenizer, Settings())
    settings = Settings(max_connections=1, write_seconds=0.5, idle_seconds=60, shutdown_seconds=1)
    with serving(app, settings, small_buffers=True) as base, ExitStack() as stack:
        deaf = stall(base, wide(900, stream=stream).replace(b"HTTP/1.1", version), stack)
        assert eventually(lambda: engine.calls > 0)
        assert eventually(lambda: ask(base, HEALTH).status == 200, 20)
        assert eventually(lambda: not app.state.completions.open)
        assert not is_whole(rest_of(deaf))


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_reads_slowly_is_not_cut(tokenizer: Tokenizer, stream: bool) -> None:
    """Some 2 kB at a time, for several times as long as a client may take nothing, then all of it."""
    app = create_app(FakeEngine(always(*b"abc"), context=1000), tokenizer, Settings())
    with serving(app, Settings(write_seconds=1.5), small_buffers=True) as base, ExitStack() as stack:
        slow = stall(base, wide(900, stream=stream), stack)
        data = b""
        end = time.monotonic() + 4
        while time.monotonic() < end:
            data += some_of(slow, 2048)
            time.sleep(0.05)
        while not is_whole(data):
            data += some_of(slow, 2**16)
        assert len(data) > 500_000


# ---- under TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_certificate(tmp_path_factory.mktemp("tls"), "gnomon", "127.0.0.1")


@contextmanager
def serving_tls(
    app: Starlette, settings: Settings, certificate: Tls, refusals: list[int] | None = None
) -> Iterator[int]:
    listener = bind("127.0.0.1", 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ready = threading.Event()
    settings = replace(settings, tls_certificate=certificate.certificate, tls_key=certificate.key)
    server = Server(app, settings, ready.set)
    server.config.http = protocol(settings, refusals.append) if refusals is not None else server.config.http
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    assert ready.wait(10)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@contextmanager
def tls_client(port: int, certificate: Tls) -> Iterator[Client]:
    context = ssl.create_default_context(cafile=certificate.certificate)
    with socket.socket() as plain:
        plain.settimeout(SECONDS)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.connect(("127.0.0.1", port))
        with closing(Client(context.wrap_socket(plain, server_hostname="127.0.0.1"))) as client:
            yield client


@pytest.mark.slow
def test_under_tls_requests_refusals_and_slow_heads_are_answered_and_counted(app: Starlette, certificate: Tls) -> None:
    refusals: list[int] = []
    with serving_tls(app, Settings(header_seconds=1, shutdown_seconds=1), certificate, refusals) as port:
        with tls_client(port, certificate) as client:
            client.send(completion(max_tokens=4, stream=True) + HEALTH + completion(max_tokens=2))
            assert client.next().text == "abca"
            assert client.next().status == 200
            assert client.next().text == "ab"
            client.send(HEALTH[:20])
            assert client.next().status == 408
            assert client.ended
        with tls_client(port, certificate) as client:
            client.send(get(b"Host: other") + SMUGGLED)
            assert client.next().status == 400
            assert client.ended
        with tls_client(port, certificate) as client:
            client.send(b"GET /health HTTP/1.0\r\n\r\n")
            assert client.next().status == 200
            assert client.ended
        with tls_client(port, certificate) as client:
            size = 9 * 2**20
            head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            client.send(head + b"Content-Length: %d\r\n\r\n" % size + b" " * size)
            assert client.next().status == 413
    assert refusals == [408, 400]  # what the application answers, it knows itself


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"], ids=["keep-alive", "closing"])
def test_under_tls_a_client_that_takes_nothing_is_cut(
    tokenizer: Tokenizer, certificate: Tls, stream: bool, version: bytes
) -> None:
    app = create_app(FakeEngine(always(*b"abc"), context=1000), tokenizer, Settings())
    settings = Settings(max_connections=1, write_seconds=0.5, idle_seconds=60, shutdown_seconds=1)
    with serving_tls(app, settings, certificate) as port, tls_client(port, certificate) as deaf:
        deaf.send(wide(900, stream=stream).replace(b"HTTP/1.1", version))

        def is_free() -> bool:
            with tls_client(port, certificate) as client:
                client.send(HEALTH)
                return client.next().status == 200

        assert not is_free()
        assert eventually(is_free, 20)
        assert eventually(lambda: not app.state.completions.open)


@pytest.mark.slow
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"], ids=["keep-alive", "closing"])
def test_under_tls_a_client_that_reads_slowly_is_not_cut(
    tokenizer: Tokenizer, certificate: Tls, version: bytes
) -> None:
    app = create_app(FakeEngine(always(*b"abc"), context=1000), tokenizer, Settings())
    with serving_tls(app, Settings(write_seconds=1.5), certificate) as port, tls_client(port, certificate) as slow:
        slow.send(wide(900).replace(b"HTTP/1.1", version))
        data = b""
        end = time.monotonic() + 4
        while time.monotonic() < end:
            data += some_of(slow, 2048)
            time.sleep(0.05)
        assert not is_whole(data)
        while not is_whole(data):
            data += some_of(slow, 2**16)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", HEALTH, bytes(100), bytes.fromhex("1603010005010000")], ids=repr)
def test_a_broken_handshake_disturbs_nobody(app: Starlette, certificate: Tls, sent: bytes) -> None:
    with ExitStack() as stack:
        port = stack.enter_context(serving_tls(app, Settings(shutdown_seconds=1), certificate))
        stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=SECONDS)).sendall(sent)
        client = stack.enter_context(tls_client(port, certificate))
        client.send(HEALTH)
        assert client.next().status == 200
