"""Every request is told of once, however it ends: its id, its line, its numbers, its span."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from gnomon.http.observe.access import Observed
from gnomon.http.observe.metrics import Metrics
from helpers.live import eventually
from helpers.observed import IDLE, JSON, PROMPT, ROUTES, TEXT, World, drive, formatted, line_of, lines, world

OURS = re.compile(rb"[0-9a-f]{32}")


@pytest.fixture(autouse=True)
def all_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gnomon")


@pytest.fixture
def here() -> World:
    return world()


# ---- every ending, once

ENDINGS: dict[str, tuple[dict[str, Any], int | None, str]] = {
    "a whole answer": ({}, 200, "answered"),
    "a stream": ({"act": "stream"}, 200, "answered"),
    "another route": ({"method": "GET", "path": "/ok"}, 200, "answered"),
    "HEAD": ({"method": "HEAD", "path": "/ok"}, 200, "answered"),
    "a refusal": ({"act": "refuse"}, 400, "refused"),
    "an unknown path": ({"path": "/nowhere"}, 404, "refused"),
    "a wrong method": ({"method": "GET"}, 405, "refused"),
    "a server too busy": ({"act": "busy"}, 503, "refused"),
    "a fault": ({"act": "fault"}, 500, "failed"),
    "an answer broken off by a fault": ({"act": "break"}, 200, "failed"),
    "no answer at all": ({"act": "silent"}, None, "failed"),
    "a client that leaves before its body is whole": ({"leaves": True}, None, "cancelled"),
    "a client that leaves in the middle of a stream": ({"act": "listen"}, 200, "cancelled"),
    "a client that cannot be sent to": ({"hung_up": True}, 200, "cancelled"),
    "a task cancelled before the answer": ({"act": "stuck", "cancel_after": 0}, None, "failed"),
    "a task cancelled in the middle of a stream": ({"act": "stuck halfway", "cancel_after": 2}, 200, "failed"),
}


@pytest.mark.parametrize("how", ENDINGS)
def test_every_ending_is_told_once_to_the_log_the_metrics_and_otel(
    here: World, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    request, status, outcome = ENDINGS[how]
    seen = drive(here.app, **request)
    (line,) = lines(caplog.records)
    (record,) = here.otel.records
    assert line.record is record
    assert (record.status, record.outcome) == (status, outcome)
    assert record.ended is not None
    method, path = request.get("method", "POST"), request.get("path", "/v1/completions")
    code = "none" if status is None else str(status)
    route = path if path in ROUTES else "other"
    assert here.sample("gnomon_http_requests_total") == 1
    assert here.sample("gnomon_http_requests_total", route=route, method=method, code=code) == 1
    counted = (method, path) == ("POST", "/v1/completions")
    assert here.sample("gnomon_requests_received_total") == counted
    assert here.sample("gnomon_requests_ended_total") == counted
    assert here.sample("gnomon_requests_ended_total", outcome=outcome) == counted
    assert here.sample("gnomon_requests_in_progress") == 0
    bodies = [message["body"] for message in seen.sent if message["type"] == "http.response.body"]
    assert record.bytes_sent == (0 if method == "HEAD" else sum(map(len, bodies)))


def test_an_answer_that_breaks_off_is_still_the_servers_to_break_off(here: World) -> None:
    assert isinstance(drive(here.app, act="break").raised, RuntimeError)
    assert isinstance(drive(here.app, act="stuck", cancel_after=0).raised, asyncio.CancelledError)


def test_an_exception_that_nobody_made_an_answer_of_is_a_500_with_an_id(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("the secret cause")

    seen = drive(Observed(broken, Metrics("mine", lambda: IDLE), ROUTES))
    assert seen.raised is None
    assert seen.sent[0]["status"] == 500
    assert b"the secret cause" not in seen.sent[1]["body"]
    assert len(seen.ids) == 1
    assert "the secret cause" in caplog.text
    assert [line.record.outcome for line in lines(caplog.records)] == ["failed"]


def test_the_times_between_tokens_reach_the_metrics(here: World) -> None:
    drive(here.app)
    assert here.sample("gnomon_inter_token_latency_seconds_sum") == 0.5


def test_an_outcome_that_somebody_has_judged_stands() -> None:
    here = world()

    async def judged(scope: Scope, receive: Receive, send: Send) -> None:
        scope["gnomon.record"].outcome = "failed"  # as after an error event in a stream
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    drive(Observed(judged, here.metrics, ROUTES))
    assert here.sample("gnomon_requests_ended_total", outcome="failed") == 1


def test_what_is_no_request_passes_untouched(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    drive(Observed(app, Metrics("mine", lambda: IDLE), ROUTES), type="lifespan")
    assert (seen, lines(caplog.records)) == (["lifespan"], [])


# ---- ids


@pytest.mark.parametrize("sent", [b"a", b"A-z_0.9", b"x" * 128])
def test_a_sound_request_id_is_returned_on_every_answer(here: World, sent: bytes) -> None:
    for how, (request, status, _) in ENDINGS.items():
        if status is not None and not request.get("hung_up"):
            assert drive(here.app, headers=[(b"x-request-id", sent)], **request).ids == [sent], how
    assert {record.request_id for record in here.otel.records} == {sent.decode()}


@pytest.mark.parametrize(
    "sent",
    [[], [b""], [b"x" * 129], [b"a b"], [b"a\n"], [b"a\r\nx: y"], [b"\xe9"], [b"a", b"a"], [b"a/b"], [b'"'],
     [b"\x1b[1m"]],
)  # fmt: skip
def test_any_other_request_id_is_replaced_by_a_new_one_of_ours(here: World, sent: list[bytes]) -> None:
    headers = [(b"x-request-id", value) for value in sent]
    first, second = (drive(here.app, headers=headers, act=act).ids for act in ("ok", "refuse"))
    assert len(first) == len(second) == 1
    assert OURS.fullmatch(first[0])
    assert OURS.fullmatch(second[0])
    assert first != second


def test_a_credential_sent_as_request_id_is_not_taken_up(here: World) -> None:
    headers = [(b"authorization", b"Bearer sk-0123456789"), (b"x-request-id", b"sk-0123456789")]
    assert OURS.fullmatch(drive(here.app, headers=headers).ids[0])


# ---- lines


def test_the_text_line_says_who_what_how_long_and_how_much(here: World, caplog: pytest.LogCaptureFixture) -> None:
    drive(here.app, headers=[(b"x-request-id", b"mine")])
    line = formatted(TEXT, lines(caplog.records)[0])
    assert re.fullmatch(
        r'\S+T\S+\+00:00 INFO 127\.0\.0\.1 "POST /v1/completions" 200 40B \d+\.\d{3}s answered id=mine '
        "completion_id=cmpl-1 stream=yes prompts=1 candidates=2 max_tokens=2 prompt=12 completion=3 cached=8 "
        r"finish=length:1,stop:1 queued=1\.500s first=3\.000s",
        line,
    )


def test_the_json_line_has_the_same_names_for_every_request(here: World, caplog: pytest.LogCaptureFixture) -> None:
    for request, _, _ in ENDINGS.values():
        drive(here.app, **request)
    objects = [json.loads(formatted(JSON, line)) for line in lines(caplog.records)]
    assert len(objects) == len(ENDINGS)
    assert {tuple(object) for object in objects} == {
        ("time", "level", "logger", "client", "method", "path", "route", "status", "bytes", "seconds", "outcome",
         "request_id", "auth", "caller", "reason", "completion_id", "stream", "prompts", "candidates", "max_tokens",
         "prompt_tokens", "completion_tokens", "cached_tokens", "finish_reasons", "queue_seconds",
         "first_token_seconds")
    }  # fmt: skip
    first = objects[0]
    assert (first["prompt_tokens"], first["completion_tokens"], first["cached_tokens"]) == (12, 3, 8)
    assert (first["queue_seconds"], first["first_token_seconds"]) == (1.5, 3.0)
    assert first["finish_reasons"] == {"length": 1, "stop": 1}


@given(st.binary(max_size=400), st.text(max_size=40))
def test_no_path_or_method_can_forge_a_line(path: bytes, method: str) -> None:
    line = line_of(method.encode(errors="replace").decode(), path)
    text, object = formatted(TEXT, line), formatted(JSON, line)
    for form in (text, object):
        assert form.isascii()
        assert form.isprintable()
    assert re.fullmatch(r'\S+ INFO ::1 "[!#-~]{0,20} [!#-~]{0,200}" - 0B \d+\.\d{3}s None id=id', text)
    assert len(json.loads(object)["path"]) <= 200


def test_a_path_is_shown_as_sent_without_the_query_and_cut_at_200_characters() -> None:
    assert line_of("GET", b"/a%0Ab?key=secret").path == "/a%0Ab"
    assert line_of("GET", b'/"\\\r\n\x1b[31m\xff').path == r"/\x22\x5c\x0d\x0a\x1b[31m\xff"
    assert line_of("GET", b"/" * 200).path == "/" * 200
    assert line_of("GET", b"/" * 201).path == "/" * 197 + "..."


@pytest.mark.parametrize("how", ENDINGS)
def test_no_line_shows_a_prompt_or_a_query(here: World, caplog: pytest.LogCaptureFixture, how: str) -> None:
    drive(here.app, **ENDINGS[how][0], query_string=b"api_key=in-the-query")
    for record in caplog.records:
        for form in (TEXT, JSON):
            assert PROMPT not in form.format(record)
            assert "in-the-query" not in form.format(record)
    exposed = here.metrics.expose()[0].decode()
    assert PROMPT not in exposed
    assert "in-the-query" not in exposed


# ---- on a socket


@contextmanager
def on_a_socket(app: Any) -> Iterator[int]:
    """The port of a real server."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http="h11", ws="none", log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert eventually(lambda: server.started)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
    assert not thread.is_alive()


def test_on_a_socket_the_servers_own_line_about_a_broken_answer_hides_the_credential(here: World) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TEXT)
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(handler)
    try:
        headers = {"x-act": "break", "authorization": "Bearer sk-0123456789"}
        with on_a_socket(here.app) as port:
            url = f"http://127.0.0.1:{port}/v1/completions"
            with pytest.raises(httpx.RemoteProtocolError):
                httpx.post(url, json={}, headers=headers, trust_env=False)
    finally:
        logger.removeHandler(handler)
    assert "RuntimeError: the cause, of [hidden]" in stream.getvalue()
    assert "0123456789" not in stream.getvalue()


def test_on_a_socket_every_answer_has_its_id_and_a_client_that_leaves_is_counted(here: World) -> None:
    with on_a_socket(here.app) as port:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            for act, status in (("ok", 200), ("stream", 200), ("refuse", 400), ("busy", 503), ("fault", 500)):
                headers = {"x-act": act, "x-request-id": f"id-{status}"}
                answer = client.post("/v1/completions", json={}, headers=headers)
                assert (answer.status_code, answer.headers.get_list("x-request-id")) == (status, [f"id-{status}"])
            assert OURS.fullmatch(client.get("/nowhere").headers["x-request-id"].encode())
        with socket.create_connection(("127.0.0.1", port)) as leaver:
            leaver.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Act: listen\r\nContent-Length: 0\r\n\r\n")
            assert leaver.recv(12) == b"HTTP/1.1 200"
            assert here.sample("gnomon_requests_in_progress") == 1
        assert eventually(lambda: here.sample("gnomon_requests_ended_total", outcome="cancelled") == 1)
        with socket.create_connection(("127.0.0.1", port)) as leaver:
            leaver.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            assert eventually(lambda: here.sample("gnomon_requests_in_progress") == 1)
        assert eventually(lambda: here.sample("gnomon_requests_ended_total", outcome="cancelled") == 2)
    assert here.sample("gnomon_requests_received_total") == here.sample("gnomon_requests_ended_total") == 7
    assert here.sample("gnomon_http_requests_total", code="none") == 1
