"""One OpenTelemetry span for every request, made when it has ended; with the extra `tracing`, and only if asked for.

    the span      of a server, from arrival to end, a child of the caller's W3C traceparent if there is a valid one
    a completion  is named and described by the generative-AI conventions: counts, times and fixed words, no content
    sending       in batches, by a thread of its own, which drops what it cannot send and says so once in a while

OpenTelemetry is imported when spans are asked for. Its own environment variables (OTEL_SERVICE_NAME,
OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS and so on) hold.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from gnomon.http.observe.record import Record
from gnomon.http.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

logger = logging.getLogger("gnomon.otel")

EXPORT_SECONDS = 5.0  # for one batch, repeats and all
COMPLAINT_SECONDS = 300.0  # between two complaints that nothing gets through
Value = str | int | float | bool | Sequence[str]


class CannotSendSpans(Exception):
    """Spans are asked for and cannot be sent, with the reason."""


def otel_spans(settings: Settings, model: str) -> OtelSpans | None:
    """None if none are asked for."""
    endpoint = settings.otlp_endpoint
    if endpoint is None:
        return None
    try:
        parts = urlsplit(endpoint)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise CannotSendSpans("--otlp-endpoint: it must be a URL such as http://127.0.0.1:4318/v1/traces")
    if "@" in parts.netloc:
        raise CannotSendSpans("--otlp-endpoint: a URL with a password in it is refused; use OTEL_EXPORTER_OTLP_HEADERS")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OtelSpans(OTLPSpanExporter(endpoint, timeout=EXPORT_SECONDS), model)
    except ImportError as error:
        raise CannotSendSpans(
            f"--otlp-endpoint: traces need the extra tracing: pip install '.[tracing]' ({error})"
        ) from None


class OtelSpans:
    def __init__(self, exporter: SpanExporter, model: str) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        about = Resource({"service.name": "gnomon", "service.version": version("gnomon")})
        self._model = model
        self._exporter = exporter
        self._provider = TracerProvider(resource=about.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        # Only the methods are asked of it, and deriving from SpanExporter would import OpenTelemetry for everyone.
        reporting = cast("SpanExporter", Reporting(exporter))
        self._provider.add_span_processor(BatchSpanProcessor(reporting))
        self._tracer = self._provider.get_tracer("gnomon", version("gnomon"))
        self._propagator = TraceContextTextMapPropagator()

    def request(self, record: Record, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """A request has ended. Only puts its span in a queue; where that is full, the oldest span is dropped."""
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, Status, StatusCode

        carrier = {name: values for name in ("traceparent", "tracestate") if (values := _values(headers, name))}
        if len(carrier.get("traceparent", ())) > 1:
            carrier = {}  # nobody's child, rather than one of two
        to_wall = time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span(
            span_name(record, self._model),
            context=self._propagator.extract(carrier, Context()),
            kind=SpanKind.SERVER,
            attributes=attributes(record, self._model),
            start_time=to_wall + int(record.arrived * 1e9),
        )
        if record.outcome == "failed":
            span.set_status(Status(StatusCode.ERROR))
        span.end(to_wall + int((record.arrived + record.seconds) * 1e9))

    def stop(self, seconds: float) -> None:
        """Sends what is left, for at most `seconds`. Blocks: not for an event loop."""
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(seconds)
        if sending.is_alive():
            logger.warning("the last traces could not be sent in %g s", seconds)
            self._exporter.shutdown()  # no more attempts


class Reporting:
    """An exporter whose failures are ours to report: the first, and then one in COMPLAINT_SECONDS with the count."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._lost = 0
        self._complained: float | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        from opentelemetry.sdk.trace.export import SpanExportResult

        try:
            result = self._exporter.export(spans)
        except Exception:  # the thread that sends must live on
            result = SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS:
            self._lost += len(spans)
            now = time.monotonic()
            if self._complained is None or now - self._complained > COMPLAINT_SECONDS:
                logger.warning("traces do not get through; %d spans were dropped", self._lost)
                self._complained, self._lost = now, 0
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def span_name(record: Record, model: str) -> str:
    """Few names: what varies is in the attributes."""
    if record.prompts:
        return f"text_completion {model}"
    method = "HTTP" if record.method == "other" else record.method
    return method if record.route == "other" else f"{method} {record.route}"


def attributes(record: Record, model: str) -> dict[str, Value]:
    """By the conventions for HTTP servers and for generative AI; our own words have our name before them."""
    known: dict[str, Value | None] = {
        "http.request.method": "_OTHER" if record.method == "other" else record.method,
        "http.route": None if record.route == "other" else record.route,
        "http.response.status_code": record.status,
        "http.response.body.size": record.bytes_sent,
        "error.type": _error_type(record),
        "gnomon.request_id": record.request_id,
        "gnomon.outcome": record.outcome,
        "gnomon.auth": record.auth,
        "gnomon.caller": record.caller,
    }
    if record.prompts:
        known |= {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.provider.name": "gnomon",
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
            "gen_ai.request.max_tokens": record.max_tokens,
            "gen_ai.request.stream": record.stream,
            "gen_ai.response.id": record.completion_id,
            "gen_ai.response.finish_reasons": record.finish_reasons or None,
            "gen_ai.response.time_to_first_chunk": record.first_token_seconds if record.stream else None,
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.output_tokens": record.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
            "gnomon.prompts": record.prompts,
            "gnomon.candidates": record.candidates,
            "gnomon.queue_seconds": record.queue_seconds,
            "gnomon.first_token_seconds": record.first_token_seconds,
        }
    return {key: value for key, value in known.items() if value is not None}


def _error_type(record: Record) -> str | None:
    """Of faults of ours, as the conventions want it: the status, or a word where the answer broke off."""
    if record.outcome != "failed":
        return None
    return str(record.status) if record.status is not None and record.status >= 500 else "broken_off"


def _values(headers: Iterable[tuple[bytes, bytes]], name: str) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key == name.encode()]
