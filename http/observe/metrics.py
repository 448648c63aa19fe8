"""What is counted, for Prometheus (GET /metrics): the names and meanings usual for model servers, under `gnomon_`.

    of the load        read when somebody asks, from whoever knows
    of every request   route, method, code; the outcome of authentication
    of completions     received, ended and under way, which add up in every answer; tokens and times of those that ran

Labels have few values, whatever clients send: access.py made them so. Tokens are counted when a request has ended, also
those of one that was given up; times between tokens as they happen. Each instance has a registry of its own.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from gnomon.http.observe.record import Record, RequestOutcome
from gnomon.reference.engine import Load

ENDPOINT = ("POST", "/v1/completions")
FINISH_REASONS = ("stop", "length")
TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

# The histograms' buckets: seconds that a request waits, seconds between two tokens, tokens.
WAITS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
GAPS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5, 10)
LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)


class ServerLoad(NamedTuple):
    """What the server is doing right now."""

    running: int  # requests that the engine works on
    waiting: int  # requests in the queue
    waiting_tokens: int  # that those may ask for, their prompts' too
    waiting_bytes: int  # of memory that they take, and bodies that are arriving
    engine: Load


class Metrics:
    def __init__(self, model: str, load: Callable[[], ServerLoad], version: str = "") -> None:
        self._load = load
        self._lock = Lock()  # an answer is taken between two requests' counts, never in the middle of one
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._build = Info("gnomon_build", "What is served, and by what.", registry=self._registry)
        self._version = version

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"gnomon_{name}", help, labels, registry=self._registry)

        def gauge(name: str, help: str) -> Gauge:
            return Gauge(f"gnomon_{name}", help, ("model_name",), registry=self._registry).labels(model)

        def tokens(name: str, help: str) -> Counter:
            return Counter(f"gnomon_{name}", help, ("model_name",), registry=self._registry).labels(model)

        def histogram(name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
            of = Histogram(f"gnomon_{name}", help, ("model_name",), registry=self._registry, buckets=buckets)
            return of.labels(model)

        self._running = gauge("num_requests_running", "Requests that the engine works on.")
        self._waiting = gauge("num_requests_waiting", "Requests that wait for the engine.")
        self._waiting_tokens = gauge(
            "num_tokens_waiting", "Tokens that waiting requests may ask for, their prompts' too."
        )
        self._waiting_bytes = gauge(
            "num_bytes_waiting", "Bytes of memory that waiting requests and arriving bodies take."
        )
        self._slots = gauge("slots", "Sequences that the engine can decode at a time.")
        self._busy_slots = gauge("slots_busy", "Sequences that the engine decodes now.")
        self._pages = gauge("kv_cache_pages", "Pages of the key/value cache; 0 where there is none.")
        self._held_pages = gauge("kv_cache_pages_held", "Pages of the key/value cache in use.")
        self._cache_usage = gauge("kv_cache_usage_perc", "Part of the key/value cache in use, 0 to 1.")

        self._http = counter(
            "http_requests",
            'Requests of any kind, when they have ended; code "none": no answer was sent.',
            "route",
            "method",
            "code",
        )
        self._auth = counter("auth", "Requests by the outcome of authentication, when they have ended.", "outcome")
        self._faults = counter("engine_faults", "Faults of the engine.")

        self._received = counter("requests_received", "Requests to POST /v1/completions: ended and in progress.")
        self._in_progress = Gauge(
            "gnomon_requests_in_progress",
            "Requests to POST /v1/completions that have not ended.",
            registry=self._registry,
        )
        self._ended = counter(
            "requests_ended",
            "Requests to POST /v1/completions that ended: answered in full, refused with an error that is not the "
            "server's fault, cancelled by the client's going, timed_out by --request-seconds, drained since the server "
            "was to end, or failed.",
            "outcome",
        )
        self._success = Counter(
            "gnomon_request_success",
            "Candidates of answered requests, by what ended them.",
            ("model_name", "finished_reason"),
            registry=self._registry,
        )
        self._model = model
        for outcome in get_args(RequestOutcome):
            self._ended.labels(outcome)
        for reason in FINISH_REASONS:
            self._success.labels(model, reason)

        self._prompt_tokens = tokens("prompt_tokens", "Tokens of the prompts of requests that ran.")
        self._generation_tokens = tokens("generation_tokens", "Tokens sampled, of all candidates.")
        self._cache_queries = tokens("prefix_cache_queries", "Tokens of prompts looked for in the prefix cache.")
        self._cache_hits = tokens("prefix_cache_hits", "Tokens of prompts found in the prefix cache.")

        self._queue = histogram("request_queue_time_seconds", "Seconds a request waited for the engine.", WAITS)
        self._first = histogram(
            "time_to_first_token_seconds", "Seconds from a request's arrival to its first token.", WAITS
        )
        self._gap = histogram(
            "inter_token_latency_seconds", "Seconds between two successive tokens of a candidate.", GAPS
        )
        self._whole = histogram(
            "e2e_request_latency_seconds", "Seconds from an answered request's arrival to its end.", WAITS
        )
        self._prompt_lengths = histogram("request_prompt_tokens", "Prompt tokens of an answered request.", LENGTHS)
        self._generation_lengths = histogram(
            "request_generation_tokens", "Tokens sampled for an answered request, of all candidates.", LENGTHS
        )

    def serving(self, engine: str | None, fingerprint: str | None) -> None:
        """What is known of the engine: nothing, while the model is being loaded."""
        about = {"version": self._version, "model": self._model}
        self._build.info({**about, "engine": engine or "", "fingerprint": fingerprint or ""})

    def began(self, record: Record) -> None:
        if (record.method, record.route) == ENDPOINT:
            with self._lock:
                self._received.inc()
                self._in_progress.inc()

    def ended(self, record: Record) -> None:
        """Once for every record that began, when it is complete."""
        with self._lock:
            code = "none" if record.status is None else f"{record.status:03}"
            self._http.labels(record.route, record.method, code).inc()
            if record.auth is not None:
                self._auth.labels(record.auth).inc()
            if (record.method, record.route) == ENDPOINT:
                self._in_progress.dec()
                self._ended.labels(record.outcome).inc()
                self._completion(record)

    def refused_at_the_socket(self, status: int) -> None:
        """An answer that was given before there was a request to keep a record of: wire.py."""
        with self._lock:
            self._http.labels("other", "other", str(status)).inc()

    def _completion(self, record: Record) -> None:
        answered = record.outcome == "answered"
        if answered or record.started is not None:  # some requests are answered without the engine
            self._prompt_tokens.inc(record.prompt_tokens)
            self._generation_tokens.inc(record.completion_tokens)
        if record.started is not None:
            self._cache_queries.inc(record.prompt_tokens)
            self._cache_hits.inc(record.cached_tokens)
        if record.queue_seconds is not None:
            self._queue.observe(record.queue_seconds)
        if record.first_token_seconds is not None:
            self._first.observe(record.first_token_seconds)
        if answered:
            self._whole.observe(record.seconds)
            self._prompt_lengths.observe(record.prompt_tokens)
            self._generation_lengths.observe(record.completion_tokens)
            for reason, n in Counts(record.finish_reasons).items():
                self._success.labels(self._model, reason if reason in FINISH_REASONS else "other").inc(n)

    def gap(self, seconds: float) -> None:
        """Between two tokens of a candidate; called in the thread that reads the engine."""
        self._gap.observe(seconds)

    def engine_fault(self) -> None:
        self._faults.inc()

    def expose(self, accept: str = "") -> tuple[bytes, str]:
        """The body and its type, in the form that the header Accept asks for."""
        load = self._load()
        engine = load.engine
        with self._lock:
            self._running.set(load.running)
            self._waiting.set(load.waiting)
            self._waiting_tokens.set(load.waiting_tokens)
            self._waiting_bytes.set(load.waiting_bytes)
            self._slots.set(engine.slots)
            self._busy_slots.set(engine.busy_slots)
            self._pages.set(engine.pages)
            self._held_pages.set(engine.held_pages)
            self._cache_usage.set(engine.held_pages / engine.pages if engine.pages else 0)
            if wants_openmetrics(accept):
                return openmetrics.generate_latest(self._registry), OPENMETRICS  # type: ignore[no-untyped-call]
            return generate_latest(self._registry), TEXT


def wants_openmetrics(accept: str) -> bool:
    """Whether a header Accept prefers OpenMetrics 1.0 to plain text; at equal weight it does.

    prometheus-client's own choice, `choose_encoder`, knows no weights: it takes OpenMetrics where it is named at all,
    with q=0 too, claims any version above 1.0.0 that was asked for, and raises an exception at one that is no number.
    """
    weights = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for item in accept.lower().split(","):
        media, *rest = (part.strip() for part in item.split(";"))
        parameters = dict(part.partition("=")[::2] for part in rest)
        if media in weights and parameters.get("version", "1.0.0") in ("0.0.1", "0.0.4", "1.0.0"):
            weights[media] = max(weights[media], _weight(parameters.get("q", "1")))
    return weights["application/openmetrics-text"] > 0 and max(weights, key=weights.__getitem__) != "text/plain"


def _weight(text: str) -> float:
    """A q that is none counts as nothing."""
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0
