"""The OpenAPI document as a server with these settings serves it, whatever its mode of authentication and its model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from starlette.applications import Starlette

from gnomon.http.app import create_app
from gnomon.http.schema.capabilities import capabilities
from gnomon.http.schema.openapi import document
from gnomon.http.schema.route import Facts
from gnomon.http.settings import AuthMode, AuthSettings, Settings
from gnomon.reference.engine import ServedEngine
from gnomon.reference.tokenizer import Tokenizer
from helpers.fake import FAKE_VOCAB
from helpers.live import MODEL

CONTEXT = 64


def application(settings: Settings) -> Starlette:
    """With the routes of those settings, and no identity service."""
    opened = AuthSettings(open_probes=settings.auth.open_probes, open_metrics=settings.auth.open_metrics)
    return create_app(None, None, replace(settings, auth=opened))


def description_of(
    settings: Settings = Settings(),  # noqa: B008
    mode: AuthMode = AuthMode.none,
    context: int | None = CONTEXT,
    vocab_size: int | None = FAKE_VOCAB,
) -> dict[str, Any]:
    return document(application(settings).routes, facts_of(settings, mode, context, vocab_size))


def facts_of(
    settings: Settings,
    mode: AuthMode = AuthMode.none,
    context: int | None = CONTEXT,
    vocab_size: int | None = FAKE_VOCAB,
) -> Facts:
    return Facts(settings, MODEL, context, mode, vocab_size)


def capabilities_of(engine: ServedEngine, tokenizer: Tokenizer, settings: Settings = Settings()) -> dict[str, Any]:  # noqa: B008
    """The table of a server that offers traces."""
    return capabilities(engine, tokenizer, settings, application(settings).routes, traced=True)
