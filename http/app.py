"""The application on one screen: every route, every middleware and the lifespan.

    GET  /livez             the process answers
    GET  /readyz, /health   it can answer completions: service.py
    GET  /version           what is running
    GET  /v1/models         the one model, in the API's list form
    POST /v1/completions    completions.py
    anything else           404 or 405, in the API's error form

How an answer is made is decided in completions.py, how an error looks in errors.py, how the process ends in server.py.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gnomon.http.completions import Completions
from gnomon.http.errors import ErrorForm, unknown_route
from gnomon.http.service import Service
from gnomon.http.settings import Settings
from gnomon.reference.engine import ServedEngine
from gnomon.reference.response import json_bytes
from gnomon.reference.tokenizer import Tokenizer


def create_app(engine: ServedEngine | None, tokenizer: Tokenizer | None, settings: Settings) -> Starlette:
    """A server of one model. Without one it is loading, until `app.state.service.open` is told of it."""
    started = int(time.time())
    service = Service(engine, tokenizer)
    completions = Completions(service, settings)

    async def livez(request: Request) -> Response:
        return _json({"status": "ok"})

    async def readyz(request: Request) -> Response:
        trouble = service.trouble()
        if trouble is not None:
            raise trouble
        return _json({"status": "ok"})

    async def running_version(request: Request) -> Response:
        about = {"name": "gnomon", "version": version("gnomon"), "model": settings.served_model_name}
        return _json({**about, "engine": service.engine_name, "system_fingerprint": service.fingerprint()})

    async def models(request: Request) -> Response:
        engine, _ = service.model()
        model = {
            "id": settings.served_model_name,
            "object": "model",
            "created": started,
            "owned_by": "gnomon",
            "max_model_len": engine.context,
        }
        return _json({"object": "list", "data": [model]})

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        completions.close()

    app = Starlette(
        routes=[
            Route("/livez", livez, methods=["GET"]),
            Route("/readyz", readyz, methods=["GET"]),
            Route("/health", readyz, methods=["GET"]),
            Route("/version", running_version, methods=["GET"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/completions", completions, methods=["POST"]),
        ],
        middleware=[*cross_origin(settings), Middleware(ErrorForm)],
        exception_handlers={HTTPException: unknown_route},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a path is known or it is a 404; a redirect would lose a body
    app.state.service, app.state.completions = service, completions
    return app


def cross_origin(settings: Settings) -> list[Middleware]:
    """Lets pages of the named origins call; outside the errors' form, so that they can read an error too."""
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", "www-authenticate"],
        )
    ]


def _json(value: object) -> Response:
    return Response(json_bytes(value), media_type="application/json")
