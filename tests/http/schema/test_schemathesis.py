"""The running application against its own description, by schemathesis: whatever is sent, the answer is documented.

    coverage    every bound of every field, hit, missed and broken, and every method that a path does not have
    fuzzing     bodies drawn from the schema, and bodies that break it

Checked of every answer: no 500, a documented status, content type, headers and schema (of every event of a stream
too); what breaks the schema is refused, and what keeps it is answered. Some rules stand in words only, so `keep_words`
makes a body that the schema admits keep those as well; that they are the only ones is test_openapi.py's business.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator
from schemathesis import Case, GenerationMode

from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from helpers.described import description_of
from helpers.fake import FAKE_VOCAB, FakeEngine, fake_tokenizer, hashed_logits
from helpers.live import call, serving

CONTEXT = 40
SETTINGS = Settings(max_candidates=4, max_prompts=3)
COMPLETIONS = "/v1/completions"
TRACE = "/v1/completions/trace"
SLICE, LONG = 150, 3000  # cases of the default run and of the marked one

DESCRIBED = description_of(SETTINGS, context=CONTEXT)
ADMITTED, TRACED = (
    Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": DESCRIBED["components"]})
    for name in ("CompletionRequest", "TraceRequest")
)

schema = schemathesis.openapi.from_dict(DESCRIBED, config=schemathesis.Config(seed=1))
schema.config.max_stream_events = 10_000  # to the last


class Live(NamedTuple):
    """A real server, and one connection to it after the other."""

    base_url: str
    session: requests.Session

    def hold(self, case: Case[Any], stream: bool = False) -> schemathesis.Response:
        """Sends the case and checks the answer. stream: have it streamed, if it is one that can be."""
        if case.path == COMPLETIONS:
            case.body = keep_words(case.body, stream)
        elif case.path == TRACE:
            case.body = keep_words_of_trace(case.body)
        return case.call_and_validate(base_url=self.base_url, session=self.session)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    app = create_app(FakeEngine(hashed_logits, context=CONTEXT), fake_tokenizer(tmp_path_factory.mktemp("t")), SETTINGS)
    assert call(app, "GET", "/openapi.json").json() == json.loads(json.dumps(DESCRIBED))
    with serving(app, SETTINGS) as base_url, requests.Session() as session:
        yield Live(base_url, session)


def keep_words(body: Any, stream: bool) -> Any:
    """The body, keeping what the document says in words. One that breaks the schema goes on breaking it."""
    if not isinstance(body, dict):
        return body
    body = dict(body)
    options = body.get("stream_options")
    says = isinstance(options, dict) and any(value is not None for value in options.values())
    if says and (body.get("stream") is None or body["stream"] is False):
        body["stream"] = True
    if not ADMITTED.is_valid(body):
        return body
    if stream:
        body["stream"] = True
    n, best_of = body.get("n") or 1, body.get("best_of") or 0
    if best_of < n or (body.get("stream") and best_of > n):
        body["best_of"] = best_of = None
    if body.get("logit_bias"):
        body["logit_bias"] = {v: z for v, z in body["logit_bias"].items() if z is None or int(v) < FAKE_VOCAB}
    if isinstance(body.get("seed"), float):
        body["seed"] = 0
    prompt = body["prompt"]
    several = isinstance(prompt, list) and not isinstance(prompt[0], int | float)
    prompts = [short(one) for one in (prompt if several else [prompt])][
        : int(SETTINGS.max_candidates // (best_of or n))
    ]
    body["prompt"] = prompts if several else prompts[0]
    if body.get("suffix"):
        ids = any(isinstance(one, list) for one in prompts)
        body["suffix"] = None if ids or body.get("echo") else body["suffix"][:2]
    tokens = body.get("max_tokens")
    body["max_tokens"] = min(8, 8 if tokens is None else tokens)
    return body


def keep_words_of_trace(body: Any) -> Any:
    """The same for a trace: a seed, an index and a step that there are, and labels, of which drawn texts are none."""
    if not isinstance(body, dict) or not TRACED.is_valid(body):
        return body
    request = keep_words(body["request"], False)
    if request.get("seed") is None:
        request["seed"] = 1
    several = isinstance(request["prompt"], list) and not isinstance(request["prompt"][0], int)
    choices = (len(request["prompt"]) if several else 1) * int(request.get("n") or 1)
    tokens = [chr(97 + len(label) % 26) for label in body["tokens"]][: int(request["max_tokens"])]
    kept = {**body, "request": request, "tokens": tokens}
    for name, most in (("index", choices), ("step", len(tokens))):
        if kept.get(name) is not None:
            kept[name] = int(kept[name] % most) if most else None
    return kept


def short(prompt: Any) -> Any:
    """At most 20 tokens: a character has at most four."""
    if isinstance(prompt, list):
        return [int(v) for v in prompt[:20]]
    return prompt and prompt[:5]


def kind(case: Case[Any], response: schemathesis.Response) -> tuple[str, int, str]:
    return case.operation.label, response.status_code, response.headers.get("content-type", [""])[0]


def fuzz(live: Live, examples: int) -> Counter[tuple[str, int, str]]:
    """Half of the cases are completions, a quarter traces. What was sent and answered, counted."""
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    completions, traces = (
        st.one_of([schema[path]["POST"].as_strategy(generation_mode=mode) for mode in modes])
        for path in (COMPLETIONS, TRACE)
    )
    anything = st.one_of([schema.as_strategy(generation_mode=mode) for mode in modes])
    seen: Counter[tuple[str, int, str]] = Counter()

    @hypothesis_settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.sampled_from((completions, completions, traces, anything)).flatmap(lambda one: one), st.booleans())
    def every(case: Case[Any], stream: bool) -> None:
        seen[kind(case, live.hold(case, stream))] += 1

    every()
    return seen


@pytest.mark.slow
@schema.parametrize()
@hypothesis_settings(max_examples=1, deadline=None, derandomize=True, database=None)
def test_every_bound_and_every_method_is_answered_as_documented(case: Case[Any], live: Live) -> None:
    assert live.hold(case).status_code < 500


@pytest.mark.slow
def test_a_slice_of_drawn_cases_is_answered_as_documented(live: Live) -> None:
    seen = fuzz(live, SLICE)
    assert seen.total() >= SLICE
    for status, content in ((200, "application/json"), (200, "text/event-stream"), (400, "application/json")):
        assert seen[f"POST {COMPLETIONS}", status, content] >= 3, seen
    for status in (200, 400):
        assert seen[f"POST {TRACE}", status, "application/json"] >= 3, seen


@pytest.mark.weekly
def test_thousands_of_drawn_cases_are_answered_as_documented(live: Live) -> None:
    seen = fuzz(live, LONG)
    assert seen.total() >= LONG
    for status, content in ((200, "application/json"), (200, "text/event-stream"), (400, "application/json")):
        assert seen[f"POST {COMPLETIONS}", status, content] >= 50, seen
    assert len({label for label, _, _ in seen}) == sum(len(item) for item in DESCRIBED["paths"].values())
    print(f"{seen.total()} cases: {dict(seen)}")
