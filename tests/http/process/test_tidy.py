"""Memory that requests have left free goes back to the system."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest
from starlette.applications import Starlette

from gnomon.http.app import create_app
from gnomon.http.life import SHORT_BODY
from gnomon.http.process import tidy
from gnomon.http.process.tidy import Tidy
from gnomon.http.settings import Settings
from gnomon.http.threads import Threads
from helpers.fake import FakeEngine, always, fake_tokenizer
from helpers.live import eventually, request_body, serving


def test_it_is_done_once_for_many_requests_and_again_for_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidy, "DELAY_SECONDS", 0.01)
    done: list[tuple[int, str]] = []

    async def scene() -> None:
        threads = Threads("tidy", idle_seconds=0.01)
        one = Tidy(threads, lambda spare: done.append((spare, threading.current_thread().name)))
        for count in (1, 2):
            for _ in range(20):
                one.soon()
            while len(done) < count:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        threads.close()

    asyncio.run(scene())
    assert done == [(0, "tidy")] * 2


def test_a_system_without_the_call_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidy, "DELAY_SECONDS", 0.0)
    threads = Threads("tidy")
    called: list[object] = []
    monkeypatch.setattr(threads, "submit", called.append)

    async def scene() -> None:
        Tidy(threads, None).soon()
        await asyncio.sleep(0.05)

    asyncio.run(scene())
    assert called == []


@pytest.fixture
def app(tmp_path_factory: pytest.TempPathFactory) -> Starlette:
    return create_app(FakeEngine(always(*b"abc")), fake_tokenizer(tmp_path_factory.mktemp("tokenizer")), Settings())


def test_requests_that_were_not_small_ask_for_it_however_they_end(
    app: Starlette, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[None] = []
    monkeypatch.setattr(app.state.completions.tidy, "soon", lambda: asked.append(None))
    headers = {"Content-Type": "application/json"}
    with serving(app) as base:
        url = f"{base}/v1/completions"
        assert httpx.post(url, json=request_body(max_tokens=1)).status_code == 200
        assert asked == []
        for count, (body, status) in enumerate(((request_body(max_tokens=1), 200), (request_body(n=0), 400)), 1):
            content = httpx.Request("POST", url, json=body).content + b" " * SHORT_BODY
            assert httpx.post(url, content=content, headers=headers).status_code == status
            assert eventually(lambda count=count: len(asked) == count)  # type: ignore[misc]
