"""The application on one screen: every route with what it says of itself, every middleware and the lifespan.

The OpenAPI document, the endpoints of /v1/capabilities, the paths that are open to anybody, the routes that metrics
tell apart and the message of a 404 are made of the list of routes: nothing else knows them.

How an answer is made is decided in completions.py, how an error looks in errors.py, how the process ends in run.py.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from gnomon.http.auth import Authentication, authenticator
from gnomon.http.completions import Completions
from gnomon.http.errors import ErrorForm, no_such_path, response, unknown_route
from gnomon.http.observe.access import Observed
from gnomon.http.observe.metrics import Metrics, ServerLoad
from gnomon.http.observe.otel import otel_spans
from gnomon.http.page.document import Page
from gnomon.http.schema.capabilities import capabilities
from gnomon.http.schema.openapi import document
from gnomon.http.schema.route import JSON, DescribedRoute, Facts, Operation
from gnomon.http.service import SERVER_VERSION, Service, not_ready, not_serving
from gnomon.http.settings import AuthMode, Settings
from gnomon.http.trace import Retrace
from gnomon.reference.engine import ServedEngine
from gnomon.reference.errors import InvalidRequest, ModelNotFound, RequestError
from gnomon.reference.response import json_bytes
from gnomon.reference.tokenizer import Tokenizer

OK: dict[str, str | None] = {JSON: "Status"}


def create_app(engine: ServedEngine | None, tokenizer: Tokenizer | None, settings: Settings) -> Starlette:
    """A server of one model. Without one it is loading, until `app.state.service.open` is told of it.

    Raises CannotSendSpans, or ConfigError for options of authentication that cannot be meant.
    """
    started = int(time.time())
    mode = settings.auth.mode or AuthMode.none  # who is to be asked beyond loopback was decided in cli/serve.py
    auth = authenticator(replace(settings.auth, mode=mode))
    otel = otel_spans(settings, settings.served_model_name)
    metrics = Metrics(settings.served_model_name, lambda: load_of(service, completions), SERVER_VERSION)
    service = Service(engine, tokenizer, lambda: auth.ready, metrics.engine_fault)
    completions = Completions(service, settings)
    page = Page()
    retrace = Retrace(service, settings, completions.admission, completions.preparer)

    async def livez(request: Request) -> Response:
        return _json({"status": "ok"})

    async def readyz(request: Request) -> Response:
        trouble = service.trouble()
        if trouble is not None:
            raise trouble
        return _json({"status": "ok"})

    async def running_version(request: Request) -> Response:
        about = {"name": "gnomon", "version": SERVER_VERSION, "model": settings.served_model_name}
        return _json({**about, "engine": service.engine_name, "system_fingerprint": service.fingerprint()})

    async def numbers(request: Request) -> Response:
        metrics.serving(service.engine_name, service.fingerprint())
        body, kind = metrics.expose(",".join(request.headers.getlist("accept")))
        return Response(body, headers={"content-type": kind})

    async def description(request: Request) -> Response:
        engine = service.engine
        context, vocab_size = (None, None) if engine is None else (engine.context, engine.vocab_size)
        facts = Facts(settings, settings.served_model_name, context, mode, vocab_size)
        return _json(document(request.app.routes, facts))

    async def capable(request: Request) -> Response:
        engine, tokenizer = service.model()
        return _json(capabilities(engine, tokenizer, settings, request.app.routes, retrace.offered))

    def served_model() -> dict[str, object]:
        engine, _ = service.model()
        return {
            "id": settings.served_model_name,
            "object": "model",
            "created": started,
            "owned_by": "gnomon",
            "max_model_len": engine.context,
        }

    async def models(request: Request) -> Response:
        return _json({"object": "list", "data": [served_model()]})

    async def model(request: Request) -> Response:
        asked, described = request.path_params["model"], served_model()
        if not asked:
            raise no_such_path(request)
        if asked != settings.served_model_name:
            raise ModelNotFound(asked, settings.served_model_name)
        return _json(described)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await auth.start()
        yield
        await auth.stop()
        completions.close()
        retrace.close()
        if otel is not None:
            await run_in_threadpool(otel.stop, settings.shutdown_seconds)

    get, post = partial(DescribedRoute, "GET"), partial(DescribedRoute, "POST")
    opened = settings.auth  # what the operator opened to anybody
    routes = [
        get(
            "/",
            page.answer,
            Operation(
                "page",
                "The page for people: an HTML file that calls this API.",
                {"text/html": None},
                is_open=True,
                can_fail=False,
            ),
        ),
        get("/livez", livez, Operation("livez", "The process answers.", OK, is_open=True, can_fail=False)),
        get(
            "/readyz",
            readyz,
            Operation("readyz", "Requests would be served now.", OK, not_ready, is_open=opened.open_probes),
        ),
        get("/health", readyz, Operation("health", "The same as /readyz.", OK, not_ready, is_open=opened.open_probes)),
        get("/version", running_version, Operation("version", "What runs here.", {JSON: "Version"})),
        get(
            "/metrics",
            numbers,
            Operation(
                "metrics",
                "Counters and gauges for Prometheus; OpenMetrics to whom accepts that.",
                {"text/plain": None, "application/openmetrics-text": None},
                is_open=opened.open_metrics,
            ),
        ),
        get("/openapi.json", description, Operation("openapi", "This document.", {JSON: "Document"})),
        get("/v1/models", models, Operation("models", "The one model.", {JSON: "Models"}, not_serving)),
        get(
            "/v1/models/{model:path}",
            model,
            Operation("model", "The model by its id.", {JSON: "Model"}, no_such_model),
        ),
        get(
            "/v1/capabilities",
            capable,
            Operation(
                "capabilities",
                "Every parameter with its range on this server, the server's limits, and facts of the model.",
                {JSON: "Capabilities"},
                not_serving,
            ),
        ),
        post("/v1/completions", completions, completions.operation),
        post("/v1/completions/trace", retrace, retrace.operation),
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(Observed, metrics=metrics, routes=frozenset(route.path_format for route in routes), otel=otel),
            *cross_origin(settings),
            Middleware(ErrorForm),
            Middleware(
                Authentication,
                authenticator=auth,
                open_paths=frozenset(route.path for route in routes if route.operation.is_open),
            ),
        ],
        exception_handlers={HTTPException: unknown_route},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a path is known or it is a 404; a redirect would lose a body
    app.state.service, app.state.completions, app.state.metrics = service, completions, metrics
    app.state.retrace, app.state.readers = retrace, auth.readers()
    return app


def no_such_model(facts: Facts) -> list[RequestError]:
    return [*not_serving(facts), ModelNotFound("gpt-5", facts.model)]


def load_of(service: Service, completions: Completions) -> ServerLoad:
    """What the server is doing right now, for its metrics."""
    admission = completions.admission
    waiting = len(admission.waiting())
    return ServerLoad(
        running=len(admission.open) - waiting,
        waiting=waiting,
        waiting_tokens=admission.waiting_tokens(),
        waiting_bytes=admission.waiting_bytes(),
        engine=service.load(),
    )


class CrossOrigin(CORSMiddleware):
    def preflight_response(self, request_headers: Headers) -> Response:
        """Starlette's, with a refusal in the form of every other error."""
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        why = (
            f"{bytes(answer.body).decode()}; the origins of --cors-origins may send {' and '.join(self.allow_methods)}"
        )
        refused = response(InvalidRequest(None, why))
        refused.headers.update({name: value for name, value in answer.headers.items() if name not in refused.headers})
        return refused


def cross_origin(settings: Settings) -> list[Middleware]:
    """Lets pages of the named origins call; outside the errors' form, so that they can read an error too."""
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CrossOrigin,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", "www-authenticate"],
        )
    ]


def _json(value: object) -> Response:
    return Response(json_bytes(value), media_type="application/json")
