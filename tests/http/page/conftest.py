"""What the page's tests share: an application, its server, and a browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.applications import Starlette

from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from gnomon.reference.tokenizer import Tokenizer
from helpers.browser import CONTEXT, Open, Playground, Serve, SharedBrowser, slowly
from helpers.fake import FakeEngine, fake_tokenizer, hashed_logits
from helpers.live import serving


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return fake_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def app(tokenizer: Tokenizer) -> Starlette:
    return create_app(FakeEngine(hashed_logits, context=CONTEXT), tokenizer, Settings())


@pytest.fixture(scope="session")
def browser() -> Iterator[SharedBrowser]:
    shared = SharedBrowser()
    yield shared
    shared.close()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Function, nextitem: pytest.Function | None) -> None:
    """Closes the browser where its tests end: while playwright runs, no other test of the process has an event loop."""
    browser = item.funcargs.get("browser")
    if isinstance(browser, SharedBrowser) and "browser" not in getattr(nextitem, "fixturenames", ()):
        browser.close()


@pytest.fixture(scope="module")
def base(app: Starlette) -> Iterator[str]:
    with serving(app) as url:
        yield url


@pytest.fixture(scope="module")
def slow_base(tokenizer: Tokenizer) -> Iterator[str]:
    """A server that takes 30 ms for a token."""
    with serving(create_app(FakeEngine(slowly(hashed_logits), context=CONTEXT), tokenizer, Settings())) as url:
        yield url


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves an application until the pages have closed: a page that is open may still ask when its server ends."""
    with ExitStack() as servers:
        yield lambda app: servers.enter_context(serving(app))


@pytest.fixture
def open_page(browser: SharedBrowser, base: str, serve: Serve) -> Iterator[Open]:
    """Opens the page in a new profile. At the end the console must be silent but for the answers a test asked for."""
    opened: list[Playground] = []
    contexts = []
    served = base

    def open_one(
        base: str | None = None, fragment: str = "", before: str | None = None, wait: bool = True, **profile: Any
    ) -> Playground:
        context = browser.started().new_context(**{"viewport": {"width": 1360, "height": 950}, **profile})
        contexts.append(context)
        if before is not None:
            context.add_init_script(before)
        playground = Playground(context.new_page())
        opened.append(playground)
        if wait:
            playground.open(base or served, fragment)
        else:
            playground.page.goto(f"{base or served}/{fragment}")
        return playground

    yield open_one
    for context in contexts:
        context.close()
    for playground in opened:
        refusals = "error: Failed to load resource: the server responded with a status of 4"
        assert [said for said in playground.complaints if not said.startswith(refusals)] == []
