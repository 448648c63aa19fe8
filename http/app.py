"""The application on one screen: every route, every middleware and the lifespan.

    GET  /health            answers while the server can
    GET  /openapi.json      openapi.py: the server's description
    GET  /v1/models         the one model, in the API's list form
    GET  /v1/capabilities   openapi.py: every parameter, every limit
    POST /v1/completions    completions.py
    anything else           404 or 405, in the API's error form

How an answer is made is decided in completions.py, how an error looks in errors.py, how the process ends in server.py.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gnomon.http.completions import Completions
from gnomon.http.errors import ErrorForm, unknown_route
from gnomon.http.openapi import capabilities, document
from gnomon.http.settings import AuthMode, Settings
from gnomon.reference.engine import Engine
from gnomon.reference.response import json_bytes
from gnomon.reference.tokenizer import Tokenizer


def create_app(engine: Engine, tokenizer: Tokenizer, settings: Settings, engine_name: str = "reference") -> Starlette:
    """A server of one model. `app.state.completions.stop()` ends the answers under way."""
    started = int(time.time())
    readers = ThreadPoolExecutor(settings.max_running or 128, thread_name_prefix="reader")
    completions = Completions(engine, tokenizer, settings, readers)

    described = document(settings, settings.served_model_name, engine.context, AuthMode.none, engine.vocab_size)
    capable = capabilities(engine_name, engine, tokenizer, settings)

    async def health(request: Request) -> Response:
        return _json({"status": "ok"})

    async def models(request: Request) -> Response:
        model = {
            "id": settings.served_model_name,
            "object": "model",
            "created": started,
            "owned_by": "gnomon",
            "max_model_len": engine.context,
        }
        return _json({"object": "list", "data": [model]})

    async def openapi(request: Request) -> Response:
        return _json(described)

    async def capability_table(request: Request) -> Response:
        return _json(capable)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        readers.shutdown(wait=False, cancel_futures=True)

    app = Starlette(
        routes=[
            Route("/health", health, methods=["GET"]),
            Route("/openapi.json", openapi, methods=["GET"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/capabilities", capability_table, methods=["GET"]),
            Route("/v1/completions", completions, methods=["POST"]),
        ],
        middleware=[Middleware(ErrorForm)],
        exception_handlers={HTTPException: unknown_route},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a path is known or it is a 404; a redirect would lose a body
    app.state.completions = completions
    return app


def _json(value: object) -> Response:
    return Response(json_bytes(value), media_type="application/json")
