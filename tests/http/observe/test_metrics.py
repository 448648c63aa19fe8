"""What is counted adds up, whoever counts at the same time; names, forms and labels of GET /metrics."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector
from starlette.responses import PlainTextResponse

from gnomon.http.observe.access import METHODS, Observed
from gnomon.http.observe.metrics import OPENMETRICS, TEXT, Metrics, ServerLoad, wants_openmetrics
from gnomon.http.observe.record import Record, RequestOutcome
from gnomon.reference.engine import Load
from helpers.observed import IDLE, ROUTES, complete, drive, sample, world

ACCEPTS = {"": parse_text, "application/openmetrics-text; version=1.0.0": parse_openmetrics}


def metrics(load: Callable[[], ServerLoad] = lambda: IDLE) -> Metrics:
    made = Metrics("mine", load, "1.2")
    made.serving("fake", "print")
    return made


def ended(of: Metrics, outcome: RequestOutcome = "answered", status: int | None = 200, ran: bool = True) -> Record:
    record = Record("id", "POST", "/v1/completions", on_gap=of.gap)
    of.began(record)
    if ran:
        complete(record)
    record.ended, record.status, record.outcome = record.arrived + 4, status, outcome
    of.ended(record)
    return record


def families(of: Metrics, accept: str) -> dict[str, Metric]:
    parsed = ACCEPTS[accept](of.expose(accept)[0].decode())  # type: ignore[no-untyped-call]
    return {family.name: family for family in parsed}


# ---- meanings


def test_an_answered_completion_is_counted_in_tokens_seconds_and_finish_reasons() -> None:
    of = metrics()
    for _ in range(2):
        ended(of)
    per_request = {
        "prompt_tokens_total": 12,
        "generation_tokens_total": 3,
        "prefix_cache_queries_total": 12,
        "prefix_cache_hits_total": 8,
        "request_queue_time_seconds_sum": 1.5,
        "request_queue_time_seconds_count": 1,
        "time_to_first_token_seconds_sum": 3,
        "time_to_first_token_seconds_count": 1,
        "e2e_request_latency_seconds_sum": 4,
        "e2e_request_latency_seconds_count": 1,
        "request_prompt_tokens_sum": 12,
        "request_prompt_tokens_count": 1,
        "request_generation_tokens_sum": 3,
        "request_generation_tokens_count": 1,
        "inter_token_latency_seconds_sum": 0.5,  # of candidate 0; candidate 1 has one token
        "inter_token_latency_seconds_count": 1,
    }
    for name, value in per_request.items():
        assert sample(of, f"gnomon_{name}", model_name="mine") == pytest.approx(2 * value), name
    for reason in ("stop", "length"):
        assert sample(of, "gnomon_request_success_total", finished_reason=reason, model_name="mine") == 2


def test_a_completion_that_ran_and_was_not_answered_counts_its_tokens_and_no_success() -> None:
    of = metrics()
    ended(of, "cancelled")
    assert sample(of, "gnomon_generation_tokens_total") == 3
    assert sample(of, "gnomon_time_to_first_token_seconds_count") == 1
    for name in ("request_success_total", "e2e_request_latency_seconds_count", "request_prompt_tokens_count"):
        assert sample(of, f"gnomon_{name}") == 0


def test_a_completion_refused_in_the_queue_counts_no_tokens() -> None:
    of = metrics()
    record = Record("id", "POST", "/v1/completions", prompt_tokens=12, status=503, outcome="refused")
    of.began(record)
    of.ended(record)
    for name in ("prompt_tokens_total", "prefix_cache_queries_total", "request_queue_time_seconds_count"):
        assert sample(of, f"gnomon_{name}") == 0


def test_an_answer_without_the_engine_counts_its_prompt_and_no_look_into_the_cache() -> None:
    of = metrics()
    record = Record("id", "POST", "/v1/completions", prompt_tokens=12, status=200, outcome="answered")
    of.began(record)
    of.ended(record)
    assert sample(of, "gnomon_prompt_tokens_total") == sample(of, "gnomon_request_prompt_tokens_sum") == 12
    assert sample(of, "gnomon_prefix_cache_queries_total") == sample(of, "gnomon_request_queue_time_seconds_count") == 0


def test_only_posts_to_the_endpoint_are_completions() -> None:
    of = metrics()
    for method, route in (("GET", "/v1/completions"), ("POST", "/ok"), ("POST", "other")):
        record = Record("id", method, route, status=200, outcome="answered", prompt_tokens=5)
        of.began(record)
        of.ended(record)
    assert sample(of, "gnomon_http_requests_total", code="200") == 3
    assert sample(of, "gnomon_requests_received_total") == sample(of, "gnomon_requests_ended_total") == 0
    assert sample(of, "gnomon_prompt_tokens_total") == 0


def test_authentication_and_faults_are_counted() -> None:
    of = metrics()
    for outcome in ("accepted", "accepted", "rejected", None):
        record = Record("id", "GET", "/ok", status=200, outcome="answered", auth=outcome)
        of.began(record)
        of.ended(record)
    of.engine_fault()
    assert sample(of, "gnomon_auth_total", outcome="accepted") == 2
    assert sample(of, "gnomon_auth_total") == 3
    assert sample(of, "gnomon_engine_faults_total") == 1


def test_the_load_is_read_when_somebody_asks() -> None:
    now = ServerLoad(running=3, waiting=5, waiting_tokens=700, waiting_bytes=9000, engine=Load(8, 6, 40, 10))
    of = metrics(lambda: now)
    names = ("num_requests_running", "num_requests_waiting", "num_tokens_waiting", "num_bytes_waiting", "slots",
             "slots_busy", "kv_cache_pages", "kv_cache_pages_held", "kv_cache_usage_perc")  # fmt: skip
    assert [sample(of, f"gnomon_{name}", model_name="mine") for name in names] == [3, 5, 700, 9000, 8, 6, 40, 10, 0.25]
    now = now._replace(running=0, engine=Load(8, 6, 0, 0))
    assert [sample(of, f"gnomon_{name}") for name in names] == [0, 5, 700, 9000, 8, 6, 0, 0, 0]


def test_build_info_names_the_version_the_model_the_fingerprint_and_the_engine() -> None:
    labels = {"version": "1.2", "model": "mine", "fingerprint": "print", "engine": "fake"}
    assert sample(metrics(), "gnomon_build_info", **labels) == 1


# ---- adding up


def test_the_numbers_add_up_under_32_threads_in_every_scrape_and_at_the_end() -> None:
    of, each = metrics(), 50
    endings: list[tuple[RequestOutcome, int | None]] = [
        ("answered", 200),
        ("refused", 429),
        ("cancelled", None),
        ("failed", 500),
    ]
    begin, scrapes, done = threading.Barrier(33), [], threading.Event()

    def serve(thread: int) -> None:
        begin.wait()
        for i in range(each):
            outcome, status = endings[(thread + i) % 4]
            ended(of, outcome, status)

    def scrape() -> None:
        begin.wait()
        while not done.is_set():
            found = {family.name: family for family in parse_text(of.expose()[0].decode())}
            scrapes.append([total(found[f"gnomon_{name}"]) for name in
                            ("requests_received", "requests_ended", "requests_in_progress")])  # fmt: skip

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(32)]
    scraper = threading.Thread(target=scrape)
    for thread in (*threads, scraper):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    scraper.join()
    assert scrapes
    assert all(received == ended + under_way for received, ended, under_way in scrapes)
    assert sample(of, "gnomon_requests_received_total") == 32 * each
    for outcome, status in endings:
        assert sample(of, "gnomon_requests_ended_total", outcome=outcome) == 8 * each
        code = "none" if status is None else str(status)
        assert sample(of, "gnomon_http_requests_total", code=code) == 8 * each
    assert sample(of, "gnomon_requests_in_progress") == 0
    assert sample(of, "gnomon_generation_tokens_total") == 32 * each * 3
    assert sample(of, "gnomon_inter_token_latency_seconds_count") == 32 * each
    assert sample(of, "gnomon_request_success_total", finished_reason="stop") == 8 * each


def test_a_request_does_not_end_or_begin_in_the_middle_of_a_scrape() -> None:
    of = metrics()
    under_way, new = Record("id", "POST", "/v1/completions", outcome="failed"), Record("id", "POST", "/v1/completions")
    of.began(under_way)
    threads = [
        threading.Thread(target=of.ended, args=(under_way,)),
        threading.Thread(target=of.began, args=(new,)),
    ]
    waited: list[bool] = []

    class Probe(Collector):
        def collect(self) -> Iterator[Metric]:
            for thread in threads:
                thread.start()
                thread.join(0.1)
                waited.append(thread.is_alive())
            return iter(())

        def describe(self) -> Iterator[Metric]:
            return iter(())

    of._registry.register(Probe())
    body = of.expose()[0].decode()
    for thread in threads:
        thread.join()
    assert waited == [True, True]
    assert "gnomon_requests_in_progress 1.0" in body


def total(family: Metric) -> float:
    return sum(sample.value for sample in family.samples if not sample.name.endswith("_created"))


def test_a_request_under_way_is_received_and_in_progress() -> None:
    of = metrics()
    of.began(Record("id", "POST", "/v1/completions"))
    assert sample(of, "gnomon_requests_received_total") == sample(of, "gnomon_requests_in_progress") == 1
    assert sample(of, "gnomon_requests_ended_total") == 0


def test_two_applications_in_one_process_count_apart() -> None:
    first, second = world(), world()
    drive(first.app)
    assert first.sample("gnomon_requests_received_total") == 1
    assert second.sample("gnomon_requests_received_total") == 0


# ---- labels


def test_labels_are_bounded_whatever_1000_clients_send() -> None:
    here, random_ = world(), random.Random(5)
    letters = 'abcXYZ019/%._-~é\u2028\n"\\{}=, '

    def word(longest: int) -> str:
        return "".join(random_.choice(letters) for _ in range(random_.randrange(longest)))

    def series() -> int:
        return len(here.metrics.expose()[0].splitlines())

    methods = [*sorted(METHODS), "BREW", "get", "PROPFIND"]
    # every combination of labels that there may be: 3 routes, 10 methods, the codes of this application
    for path in (*sorted(ROUTES), "/nowhere"):
        for method in methods:
            drive(here.app, method, path)
    most = series()
    sent = [(word(12) or random_.choice(methods), "/" + word(60)) for _ in range(1000)]
    for method, path in sent:
        drive(here.app, method, path, headers=[(b"x-request-id", word(9).encode()), (b"user-agent", word(9).encode())])
    assert here.sample("gnomon_http_requests_total") == len(methods) * 3 + 1000
    assert series() == most
    found = families(here.metrics, "")["gnomon_http_requests"]
    for labels in (one.labels for one in found.samples):
        assert labels["route"] in {*ROUTES, "other"}
        assert labels["method"] in {*METHODS, "other"}
        assert labels["code"] == "none" or (len(labels["code"]) == 3 and labels["code"].isdecimal())


def test_all_models_asked_for_by_name_have_one_label() -> None:
    of = metrics()
    observed = Observed(PlainTextResponse("ok"), of, frozenset({*ROUTES, "/v1/models", "/v1/models/{model}"}))
    paths = ["/v1/models/a", "/v1/models/owner/name", *(f"/v1/models/{i}" for i in range(50)), "/v1/models/{model}"]
    for path in (*paths, "/v1/models", "/v1/models/", "/v1/modelsx", "/v1/model"):
        drive(observed, path=path)
    assert sample(of, "gnomon_http_requests_total", route="/v1/models/{model}") == len(paths)
    assert sample(of, "gnomon_http_requests_total", route="/v1/models") == 1
    assert sample(of, "gnomon_http_requests_total", route="other") == 3


def test_a_finish_reason_that_is_none_of_the_laws_is_other() -> None:
    of = metrics()
    record = Record("id", "POST", "/v1/completions", status=200, outcome="answered", finish_reasons=("what", "why"))
    of.began(record)
    of.ended(record)
    assert sample(of, "gnomon_request_success_total", finished_reason="other") == 2


# ---- the form


@pytest.mark.parametrize("accept", ACCEPTS)
def test_the_exposition_parses_and_every_metric_has_a_help_and_the_prefix(accept: str) -> None:
    of = metrics()
    ended(of)
    found = families(of, accept)
    for name, family in found.items():
        assert name.startswith(("gnomon_", "process_")), name
        assert family.type in ("counter", "gauge", "histogram", "info"), name
        if name.endswith("_created"):  # how the text form gives the time since when a counter counts
            continue
        assert family.documentation[0].isupper(), name
        assert family.documentation.endswith("."), name
        for suffix, unit in (("_seconds", "seconds"), ("_tokens", "tokens"), ("_bytes", "bytes")):
            assert not name.endswith(suffix) or unit in family.documentation.lower(), name
    names = {sample.name for family in found.values() for sample in family.samples}
    assert {
        "gnomon_num_requests_running", "gnomon_num_requests_waiting", "gnomon_kv_cache_usage_perc",
        "gnomon_prefix_cache_queries_total", "gnomon_prefix_cache_hits_total", "gnomon_prompt_tokens_total",
        "gnomon_generation_tokens_total", "gnomon_request_success_total", "gnomon_time_to_first_token_seconds_bucket",
        "gnomon_inter_token_latency_seconds_bucket", "gnomon_e2e_request_latency_seconds_bucket",
        "gnomon_request_queue_time_seconds_bucket", "gnomon_request_prompt_tokens_bucket",
        "gnomon_request_generation_tokens_bucket", "gnomon_requests_received_total", "gnomon_requests_ended_total",
        "gnomon_http_requests_total", "gnomon_engine_faults_total", "gnomon_build_info",
        "process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds",
    } <= names  # fmt: skip


def test_both_forms_hold_the_same_numbers() -> None:
    of = metrics()
    ended(of)
    ended(of, "refused", 400, ran=False)
    text, open_ = (
        {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families(of, accept).values()
            for sample in family.samples
            if sample.name.startswith("gnomon_")
        }
        for accept in ACCEPTS
    )
    assert text == open_
    assert text["gnomon_requests_ended_total", (("outcome", "refused"),)] == 1


def test_every_outcome_has_a_number_before_it_happens() -> None:
    (family,) = (f for f in parse_text(metrics().expose()[0].decode()) if f.name == "gnomon_requests_ended")
    assert {sample.labels["outcome"] for sample in family.samples} == set(get_args(RequestOutcome))


@pytest.mark.parametrize(
    ("accept", "open_"),
    [
        ("", False), ("*/*", False), ("text/plain", False), ("text/html, application/json;q=0.5", False),
        ("application/openmetrics-text", True), ("APPLICATION/OpenMetrics-Text; version=1.0.0", True),
        ("application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", True),
        ("application/openmetrics-text;version=1.0.0;q=0.4, text/plain;version=0.0.4;q=0.5", False),
        ("application/openmetrics-text;version=1.0.0;escaping=underscores;q=0.5,text/plain;q=0.5", True),
        ("application/openmetrics-text; version=9", False), ("application/openmetrics-text; version=x", False),
        ("application/openmetrics-text; q=x", False), ("application/openmetrics-text; q=0", False),
        ("application/openmetrics-text; q=nan", False),
    ],
)  # fmt: skip
def test_the_form_is_what_accept_prefers(accept: str, open_: bool) -> None:
    body, kind = metrics().expose(accept)
    assert kind == (OPENMETRICS if open_ else TEXT)
    assert body.endswith(b"# EOF\n") == open_


@given(st.text() | st.text(alphabet="aplictonexmr-/;,=q.10 vs").map("application/openmetrics-text;".__add__))
def test_no_accept_header_is_too_strange(accept: str) -> None:
    assert wants_openmetrics(accept) in (True, False)
