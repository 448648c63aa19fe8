"""The page in a real browser: Debian's chromium, driven by playwright (extra `browser`)."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.applications import Starlette

from gnomon.http.settings import AuthMode, AuthSettings, Settings
from helpers.fake import LogitsOf

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Request

ARGUMENTS = [
    "--no-sandbox",  # tests run as root in containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-lcd-text",  # grey edges: a screenshot is half as large
]
FLAGS = ("echo", "stream", "stream_options")
WAIT = 30_000  # milliseconds that a busy machine may take for anything
CONTEXT = 512
KEY = "a-key-of-twenty-letters"
GUARDED = Settings(auth=AuthSettings(mode=AuthMode.api_key, api_keys=(KEY,)))
VALUES: dict[str, Any] = {
    "model": "another",
    "prompt": [[5, 6], [7]],
    "suffix": "an end\nof two lines",
    "max_tokens": 3,
    "n": 2,
    "best_of": 4,
    "temperature": 0.25,
    "top_p": 0.5,
    "frequency_penalty": -1.5,
    "presence_penalty": 2,
    "logit_bias": {"7": 2.5, "8": -100},
    "logprobs": 0,
    "echo": True,
    "stop": ["\n\n", 'a "b"', "\\n", " é"],
    "seed": -(2**63),
    "stream": False,
    "stream_options": {"include_usage": True},
    "user": "somebody",
}
"""Of every parameter a value that is not its default."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Skips the test where there is no playwright or no chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no chromium on the PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class SharedBrowser:
    """One browser for the tests that follow each other."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._browser: Browser | None = None

    def started(self) -> Browser:
        if self._browser is None:
            self._browser = self._stack.enter_context(chromium())
        return self._browser

    def close(self) -> None:
        self._browser = None
        self._stack.close()


class Playground:
    """One open page, and what a user does with it. `complaints`: what the browser's console said."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))

    def open(self, base: str, fragment: str = "") -> Playground:
        self.page.goto(f"{base}/{fragment}")
        self.page.locator("#run:not([disabled])").wait_for()
        return self

    def __getitem__(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def set(self, name: str, value: Any) -> None:
        """Sets a parameter by its control."""
        if name == "prompt":
            self["#as-json"].set_checked(not isinstance(value, str))
            self["#prompt"].fill(value if isinstance(value, str) else json.dumps(value))
            return
        self.unfold("details.group")
        control = self[f"#p-{name}"]
        if name in FLAGS:
            control.set_checked(bool(value))
        elif name == "logit_bias":
            for id, bias in value.items():
                control.click()
                row = self[".bias"].last
                row.get_by_label("token id").fill(id)
                row.get_by_label("bias", exact=True).fill(str(bias))
        elif name == "stop":
            control.fill("\n".join(json.dumps(text)[1:-1] for text in value))
        else:
            control.fill(str(value))

    def unfold(self, folds: str = "details") -> None:
        self[folds].evaluate_all("all => all.forEach((one) => { one.open = true; })")

    def press_run(self) -> Request:
        """Presses the button and gives the request that this sends."""
        with self.page.expect_request(lambda request: request.url.endswith("/v1/completions")) as sent:
            self["#run"].click()
        return sent.value

    def run(self) -> str:
        """Runs to the end; the body that was sent."""
        body = self.press_run().post_data
        self["#status"].filter(has_text="Done").wait_for(state="attached")
        assert body is not None
        return body

    def best_of_five(self) -> dict[str, Any]:
        """Runs a request whose one choice is the best of five candidates, and gives the trace of that one."""
        for name, value in (("seed", 11), ("n", 1), ("best_of", 5), ("max_tokens", 6)):
            self.set(name, value)
        with self.page.expect_response("**/v1/completions/trace") as told:
            self.run()
        self.settled()
        return dict(told.value.json())

    def settled(self) -> None:
        """Waits until the reference has said what it thinks and a draw is shown."""
        self["#choices footer p:last-child"].filter(has_text="Reference agrees").first.wait_for()
        self["#trace:not([aria-busy]) #candidates tbody tr"].first.wait_for()

    def drawn(self, **parameters: Any) -> None:
        """A run with these parameters, as far as the draw that is shown after it."""
        for name, value in parameters.items():
            self.set(name, value)
        self.run()
        self.settled()

    @property
    def text(self) -> str:
        """Of the first choice, without the prompt's and the suffix's."""
        return "".join(self[".choice >> nth=0"].locator(".tokens").all_text_contents()).replace("↵", "")


Open = Callable[..., Playground]
Serve = Callable[[Starlette], str]


def slowly(logits_of: LogitsOf) -> LogitsOf:
    def slow(tokens: Sequence[int]) -> NDArray[np.float64]:
        time.sleep(0.03)
        return logits_of(tokens)

    return slow


def answer(base: str, body: str) -> list[dict[str, Any]]:
    """What the API says to a body, not streamed."""
    fields = {**json.loads(body), "stream": False}
    fields.pop("stream_options", None)
    response = httpx.post(f"{base}/v1/completions", json=fields, timeout=60)
    assert response.status_code == 200, response.text
    choices: list[dict[str, Any]] = response.json()["choices"]
    return choices
