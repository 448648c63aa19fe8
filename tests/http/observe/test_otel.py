"""One span a request, in the words of the conventions, without content; sending never gets in a request's way."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, http_attributes
from opentelemetry.semconv.attributes import error_attributes
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from gnomon.http.observe.otel import CannotSendSpans, OtelSpans, Reporting, attributes, otel_spans
from gnomon.http.observe.record import Record
from gnomon.http.settings import Settings
from helpers.observed import PROMPT, complete, drive, world

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01".encode()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(autouse=True)
def apart() -> Iterator[None]:
    """What a thread that was given up still has to say is not said in the next test."""
    yield
    threads_end()


def threads_end() -> None:
    for thread in threading.enumerate():
        if thread.name == "last spans":
            thread.join(30)
            assert not thread.is_alive()


def spans_of(*requests: dict[str, Any]) -> list[ReadableSpan]:
    """The spans of requests to the application."""
    exporter = InMemorySpanExporter()
    of = OtelSpans(exporter, "mine")
    here = world(of)
    for request in requests:
        drive(here.app, **request)
    of.stop(20)
    return list(exporter.get_finished_spans())


# ---- the span


def test_a_completion_is_named_and_described_by_the_generative_ai_conventions() -> None:
    (span,) = spans_of({"act": "stream", "headers": [(b"x-request-id", b"mine-1")]})
    assert (span.name, span.kind, span.status.status_code) == (
        "text_completion mine",
        SpanKind.SERVER,
        StatusCode.UNSET,
    )
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "http.response.body.size": 7,
        "gnomon.request_id": "mine-1",
        "gnomon.outcome": "answered",
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "gnomon",
        "gen_ai.request.model": "mine",
        "gen_ai.response.model": "mine",
        "gen_ai.request.max_tokens": 2,
        "gen_ai.request.stream": True,
        "gen_ai.response.id": "cmpl-1",
        "gen_ai.response.finish_reasons": ("length", "stop"),
        "gen_ai.response.time_to_first_chunk": pytest.approx(3),
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 8,
        "gnomon.prompts": 1,
        "gnomon.candidates": 2,
        "gnomon.queue_seconds": pytest.approx(1.5),
        "gnomon.first_token_seconds": pytest.approx(3),
    }
    assert span.resource.attributes["service.name"] == "gnomon"


def test_every_attribute_is_one_of_the_conventions_or_has_our_name_before_it() -> None:
    known = {
        value
        for module in (gen_ai_attributes, http_attributes, error_attributes)
        for value in vars(module).values()
        if isinstance(value, str)
    }
    record = Record("id", "POST", "/v1/completions", status=500, outcome="failed", auth="accepted", caller="ab")
    complete(record)
    names = set(attributes(record, "mine"))
    assert len(names) == 25
    assert {name for name in names if not name.startswith("gnomon.")} <= known


@pytest.mark.parametrize(
    ("request_", "name", "status", "error"),
    [
        ({"method": "GET", "path": "/ok"}, "GET /ok", 200, None),
        ({"method": "GET", "path": "/nowhere/secret"}, "GET", 404, None),
        ({"method": "BREW", "path": "/ok"}, "HTTP /ok", 405, None),
        ({"act": "refuse"}, "POST /v1/completions", 400, None),
        ({"act": "busy"}, "POST /v1/completions", 503, None),
        ({"act": "fault"}, "POST /v1/completions", 500, "500"),
        ({"act": "break"}, "text_completion mine", 200, "broken_off"),
        ({"act": "listen"}, "text_completion mine", 200, None),
        ({"leaves": True}, "POST /v1/completions", None, None),
    ],
)
def test_every_ending_has_a_span_and_only_our_faults_are_errors(
    request_: dict[str, Any], name: str, status: int | None, error: str | None
) -> None:
    (span,) = spans_of(request_)
    found = span.attributes or {}
    assert (span.name, found.get("http.response.status_code"), found.get("error.type")) == (name, status, error)
    assert span.status.status_code is (StatusCode.ERROR if error else StatusCode.UNSET)


def test_times_are_those_of_the_request_on_the_wall_clock() -> None:
    exporter = InMemorySpanExporter()
    of = OtelSpans(exporter, "mine")
    record = Record("id", "GET", "/ok", arrived=time.monotonic() - 100, status=200, outcome="answered")
    record.ended = record.arrived + 40
    of.request(record, [])
    now = time.time()
    of.stop(20)
    (span,) = exporter.get_finished_spans()
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.end_time - span.start_time == pytest.approx(40e9, abs=1e6)
    assert span.start_time / 1e9 == pytest.approx(now - 100, abs=30)  # far from the zero of any monotonic clock


def ids(headers: list[tuple[bytes, bytes]]) -> tuple[str, str | None]:
    (span,) = spans_of({"headers": headers})
    return format_trace_id(span.context.trace_id), span.parent and format_span_id(span.parent.span_id)


def test_a_callers_traceparent_is_honoured() -> None:
    assert ids([(b"traceparent", PARENT), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]) == (TRACE, SPAN)


@pytest.mark.parametrize(
    "sent",
    [[], [b""], [b"x"], [PARENT[:-1]], [PARENT + b"-x"], [b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01"],
     [PARENT.replace(b"0af", b"0AF")[:20]], [b"ff" + PARENT[2:]], [PARENT, PARENT], [b"\xff" * 55]],
)  # fmt: skip
def test_any_other_traceparent_begins_a_new_trace(sent: list[bytes]) -> None:
    trace, parent = ids([(b"traceparent", value) for value in sent])
    assert trace != TRACE
    assert parent is None


def test_a_caller_that_does_not_sample_its_trace_gets_no_span() -> None:
    assert spans_of({"headers": [(b"traceparent", PARENT[:-1] + b"0")]}) == []


@given(st.binary(max_size=80) | st.just(PARENT), st.lists(st.binary(max_size=80), max_size=3))
def test_no_header_breaks_a_request_or_costs_it_its_span(parent: bytes, states: list[bytes]) -> None:
    record = Record("id", "GET", "/ok", status=200, outcome="answered")
    KEPT.clear()
    SHARED.request(record, [(b"traceparent", parent), *((b"tracestate", state) for state in states)])
    SHARED._provider.force_flush()
    (span,) = KEPT.get_finished_spans()
    assert (format_trace_id(span.context.trace_id) == TRACE) == (parent == PARENT)


KEPT = InMemorySpanExporter()
SHARED = OtelSpans(KEPT, "mine")


# ---- sending


class Collector(ThreadingHTTPServer):
    """Keeps what it is sent; answers nothing while it is `stuck`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[bytes] = []
        self.stuck = threading.Event()
        self.released = threading.Event()

    @property
    def settings(self) -> Settings:
        return Settings(otlp_endpoint=f"http://127.0.0.1:{self.server_address[1]}/v1/traces")


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.stuck.is_set():
            self.server.released.wait(20)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


SECRET = b"Bearer sk-0123456789"


def test_a_collector_gets_every_span_and_no_content() -> None:
    with collector() as server:
        of = otel_spans(server.settings, "mine")
        assert of is not None
        here = world(of)
        for act in ("ok", "stream", "refuse", "fault", "break"):
            drive(here.app, act=act, headers=[(b"authorization", SECRET)], query_string=b"key=in-the-query")
        of.stop(20)
        spans = [
            span
            for body in server.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
    assert len(spans) == 5
    for body in server.bodies:
        for secret in (PROMPT.encode(), b"0123456789", b"in-the-query", b"the cause"):
            assert secret not in body


@pytest.mark.slow
def test_a_collector_that_is_down_breaks_nothing_and_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # as logging_config does
    try:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            settings = Settings(otlp_endpoint=f"http://127.0.0.1:{closed.getsockname()[1]}/v1/traces")
        of = otel_spans(settings, "mine")
        assert of is not None
        here = world(of)
        for _ in range(1100):  # more than two batches
            assert drive(here.app).sent[0]["status"] == 200
        of.stop(0.5)
        threads_end()  # before OpenTelemetry may speak again
        assert here.sample("gnomon_requests_ended_total", outcome="answered") == 1100
    finally:
        logging.getLogger("opentelemetry").setLevel(logging.NOTSET)
    said = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert {record.name for record in said} <= {"gnomon.otel"}
    assert len(said) <= 2  # that nothing gets through, and that the last spans did not


def test_stopping_does_not_wait_for_a_collector_that_does_not_answer(caplog: pytest.LogCaptureFixture) -> None:
    with collector() as server:
        server.stuck.set()
        of = otel_spans(server.settings, "mine")
        assert of is not None
        drive(world(of).app)
        of.stop(0.2)  # a batch is given 5 seconds
        assert "could not be sent in 0.2 s" in caplog.text


class Endless(SpanExporter):
    """Sends until it is shut down."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.over.wait(20)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.over.set()


def test_an_exporter_that_is_given_up_is_told_to_end() -> None:
    endless = Endless()
    of = OtelSpans(endless, "mine")
    of.request(Record("id", "GET", "/ok", status=200, outcome="answered"), [])
    of.stop(0.1)
    assert endless.over.is_set()


class Broken(SpanExporter):
    """Fails in both ways."""

    def __init__(self) -> None:
        self.raises = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.raises:
            raise OSError("broken")
        return SpanExportResult.FAILURE


def test_failures_are_reported_at_once_and_then_rarely_with_their_number(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("gnomon.http.observe.otel.time", SimpleNamespace(monotonic=lambda: now))
    broken = Broken()
    reporting = Reporting(broken)
    three: Sequence[Any] = (None, None, None)
    for _ in range(5):
        assert reporting.export(three) is SpanExportResult.FAILURE
        broken.raises = not broken.raises
        now += 50
    assert [record.getMessage() for record in caplog.records] == ["traces do not get through; 3 spans were dropped"]
    now += 51
    reporting.export(three)
    assert caplog.records[1].getMessage() == "traces do not get through; 15 spans were dropped"


# ---- asking for it


def test_without_an_endpoint_no_spans_are_sent() -> None:
    assert otel_spans(Settings(), "mine") is None


@pytest.mark.parametrize(
    "endpoint", ["", "x", "localhost:4318", "ftp://host/", "http://", "http://[::", "http://h:x/", "http://h:0/"]
)
def test_an_endpoint_that_is_no_url_is_refused_by_the_options_name(endpoint: str) -> None:
    with pytest.raises(CannotSendSpans, match=r"^--otlp-endpoint: it must be a URL such as "):
        otel_spans(Settings(otlp_endpoint=endpoint), "mine")


def test_a_password_in_the_endpoint_is_refused_and_not_shown() -> None:
    with pytest.raises(CannotSendSpans, match="OTEL_EXPORTER_OTLP_HEADERS") as raised:
        otel_spans(Settings(otlp_endpoint="http://me:hunter2@h/v1/traces"), "mine")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "lacking", ["opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk.trace"]
)
def test_without_the_packages_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    monkeypatch.setitem(sys.modules, lacking, None)
    with pytest.raises(CannotSendSpans, match=r"pip install '.\[tracing\]'"):
        otel_spans(Settings(otlp_endpoint="http://127.0.0.1:1/v1/traces"), "mine")


def test_opentelemetry_is_not_imported_before_spans_are_asked_for() -> None:
    seen = "any(m.startswith('opentelemetry') for m in sys.modules)"
    code = f"import sys, gnomon.http.observe.access; raise SystemExit({seen})"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
