"""The application on one screen: every route, every middleware and the lifespan.

    GET  /                  the page for people: page/document.py
    GET  /livez             the process answers
    GET  /readyz, /health   it can answer completions: service.py
    GET  /version           what is running
    GET  /metrics           what it does and did, for Prometheus: metrics.py
    GET  /openapi.json      all of this, for machines: openapi.py
    GET  /v1/models         the one model, in the API's list form
    GET  /v1/models/{model} the same by its id, which may have slashes
    GET  /v1/capabilities   what it honours, field by field: openapi.py
    POST /v1/completions    completions.py
    POST /v1/completions/trace   trace.py
    anything else           404 or 405, in the API's error form; paths.py knows what may have been meant

How an answer is made is decided in completions.py, how an error looks in errors.py, how the process ends in run.py.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gnomon.http.auth import Authentication, authenticator
from gnomon.http.completions import Completions
from gnomon.http.errors import ErrorForm, no_such_path, response, unknown_route
from gnomon.http.observe.access import Observed
from gnomon.http.observe.metrics import Metrics, ServerLoad
from gnomon.http.observe.otel import otel_spans
from gnomon.http.page.document import Page
from gnomon.http.schema.openapi import VERSION, capabilities, document
from gnomon.http.service import Service
from gnomon.http.settings import AuthMode, AuthSettings, Settings
from gnomon.http.trace import Retrace
from gnomon.reference.engine import ServedEngine
from gnomon.reference.errors import InvalidRequest, ModelNotFound
from gnomon.reference.response import json_bytes
from gnomon.reference.tokenizer import Tokenizer


def create_app(engine: ServedEngine | None, tokenizer: Tokenizer | None, settings: Settings) -> Starlette:
    """A server of one model. Without one it is loading, until `app.state.service.open` is told of it.

    Raises CannotSendSpans, or ConfigError for options of authentication that cannot be meant.
    """
    started = int(time.time())
    mode = settings.auth.mode or AuthMode.none  # who is to be asked beyond loopback was decided in cli/serve.py
    auth = authenticator(replace(settings.auth, mode=mode))
    otel = otel_spans(settings, settings.served_model_name)
    metrics = Metrics(settings.served_model_name, lambda: load_of(service, completions), VERSION)
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
        about = {"name": "gnomon", "version": VERSION, "model": settings.served_model_name}
        return _json({**about, "engine": service.engine_name, "system_fingerprint": service.fingerprint()})

    async def numbers(request: Request) -> Response:
        metrics.serving(service.engine_name, service.fingerprint())
        body, kind = metrics.expose(",".join(request.headers.getlist("accept")))
        return Response(body, headers={"content-type": kind})

    async def description(request: Request) -> Response:
        engine = service.engine
        context, vocab_size = (None, None) if engine is None else (engine.context, engine.vocab_size)
        return _json(document(settings, settings.served_model_name, context, mode, vocab_size))

    async def capable(request: Request) -> Response:
        engine, tokenizer = service.model()
        return _json(capabilities(engine.name, engine, tokenizer, settings, traced=retrace.offered))

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

    routes = [
        Route("/", page.answer, methods=["GET"]),
        Route("/livez", livez, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/health", readyz, methods=["GET"]),
        Route("/version", running_version, methods=["GET"]),
        Route("/metrics", numbers, methods=["GET"]),
        Route("/openapi.json", description, methods=["GET"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{model:path}", model, methods=["GET"]),
        Route("/v1/capabilities", capable, methods=["GET"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/completions/trace", retrace, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(Observed, metrics=metrics, routes=frozenset(route.path_format for route in routes), otel=otel),
            *cross_origin(settings),
            Middleware(ErrorForm),
            Middleware(Authentication, authenticator=auth, open_paths=open_paths(settings.auth)),
        ],
        exception_handlers={HTTPException: unknown_route},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a path is known or it is a 404; a redirect would lose a body
    app.state.service, app.state.completions, app.state.metrics = service, completions, metrics
    app.state.retrace, app.state.readers = retrace, auth.readers()
    return app


def open_paths(auth: AuthSettings) -> frozenset[str]:
    """What is answered to anybody: the page, which knows nothing; that the process lives; what the operator opened."""
    probes = {"/readyz", "/health"} if auth.open_probes else set()
    return frozenset({"/", "/livez"} | probes | ({"/metrics"} if auth.open_metrics else set()))


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
