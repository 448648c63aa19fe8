"""Keys, links and the two spellings of a request, on the page in a real chromium."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from gnomon.http.app import create_app
from gnomon.reference.tokenizer import Tokenizer
from helpers.browser import CONTEXT, GUARDED, KEY, VALUES, Open, Serve, answer
from helpers.fake import FakeEngine, hashed_logits

pytestmark = pytest.mark.slow


def test_with_authentication_it_asks_for_a_key_and_keeps_it_to_itself(
    open_page: Open, serve: Serve, tokenizer: Tokenizer
) -> None:
    base = serve(create_app(FakeEngine(hashed_logits, context=CONTEXT), tokenizer, GUARDED))
    page = open_page(base, wait=False)
    page["#key-wrong"].filter(has_text="asks who you are").wait_for()
    page["#key"].fill("a-wrong-key-of-this-kind")
    page["#key-use"].click()
    page["#key-wrong"].filter(has_text="is refused").wait_for()
    page["#key"].fill(KEY)
    page.page.keyboard.press("Enter")
    page["#run:not([disabled])"].wait_for()
    assert page["#key-box"].is_hidden()
    page.drawn()
    page["#share"].click()
    page["#same summary"].click()
    assert "$GNOMON_KEY" in (page["#code"].text_content() or "")
    page["#tab-python"].click()
    assert 'os.environ["GNOMON_KEY"]' in (page["#code"].text_content() or "")
    shown = page.page.content() + page.page.url + str(page.page.context.storage_state())
    assert KEY not in shown
    assert KEY not in page.page.evaluate("JSON.stringify(history.state)")
    assert page.page.evaluate("[sessionStorage.length, document.cookie]") == [0, ""]
    page.page.reload()
    page["#key-wrong"].filter(has_text="asks who you are").wait_for()
    page["#key"].fill(KEY)
    page["#key-keep"].check()
    page["#key-use"].click()
    page["#run:not([disabled])"].wait_for()
    page.page.reload()
    page["#run:not([disabled])"].wait_for()


def test_a_link_brings_the_request_back_to_the_byte(open_page: Open) -> None:
    page = open_page()
    for name in (
        "temperature",
        "top_p",
        "frequency_penalty",
        "logit_bias",
        "stop",
        "seed",
        "user",
        "stream",
        "logprobs",
    ):
        page.set(name, VALUES[name])
    page.set("prompt", 'é 🙂 "quoted" & = # % +\n⟦gap⟧ after')
    body = page.run()
    page["#share"].click()
    assert "#" in page.page.url
    other = open_page(fragment="#" + page.page.url.split("#")[1])
    assert other.run() == body
    ids = open_page()
    ids.set("prompt", VALUES["prompt"])
    body = ids.run()
    ids["#share"].click()
    other.page.evaluate("fragment => { location.hash = fragment }", ids.page.url.split("#")[1])
    other["#status"].filter(has_text="those of the link").wait_for(state="attached")
    assert other.run() == body


def test_a_link_that_names_nothing_or_nonsense_does_no_harm(open_page: Open) -> None:
    page = open_page(fragment="#key=abc&nonsense=1&top_p=%3Cimg%3E&seed=1.5&stop=%5B&prompt_json=%7B")
    assert page["#p-top_p"].input_value() == "<img>"
    page["#run"].click()
    page["#wrong-prompt"].filter(has_text="this is not JSON").wait_for()
    assert page["img"].count() == 0


@pytest.mark.parametrize("seed", [None, 5])
def test_coming_back_to_the_page_finds_everything_as_it_was_set(open_page: Open, base: str, seed: int | None) -> None:
    page = open_page()
    for name in ("prompt", "temperature", "top_p", "logit_bias", "stop", "max_tokens", "echo"):
        page.set(name, "the end" if name == "prompt" else VALUES[name])
    if seed is not None:
        page.set("seed", seed)
    body = json.loads(page.run())
    assert page.page.evaluate("location.hash") == ""
    page.page.goto(f"{base}/v1/models")
    page.page.go_back()
    page["#run:not([disabled])"].wait_for()
    page["#p-temperature"].wait_for(state="attached")
    assert page["#p-seed"].input_value() == ("" if seed is None else str(seed))
    page["#same summary"].click()
    assert json.loads((page["#code"].text_content() or "").split("-d '")[1].rstrip("'")) == body
    again = json.loads(page.run())
    assert (again.pop("seed") == body.pop("seed")) == (seed is not None)
    assert again == body


@pytest.mark.parametrize("stream", [True, False])
def test_the_shown_calls_are_the_same_request(open_page: Open, base: str, stream: bool) -> None:
    page = open_page()
    for name, value in (("prompt", "it's \"the\" $HOME `end` \\ é\n"), ("seed", -5), ("stream", stream),
                        ("logit_bias", {"7": 2.5}), ("stop", ["'", "\n"]), ("max_tokens", 30)):  # fmt: skip
        page.set(name, value)
    body = page.run()
    [choice] = answer(base, body)
    page["#same summary"].click()
    curl = page["#code"].text_content() or ""
    out = subprocess.run(["bash", "-c", curl], capture_output=True, check=True, timeout=60).stdout.decode()
    if stream:
        events = [json.loads(line[6:]) for line in out.splitlines() if line.startswith("data: {")]
        assert "".join(event["choices"][0]["text"] for event in events) == choice["text"]
    else:
        assert json.loads(out)["choices"][0] == choice
    page["#tab-python"].click()
    program = page["#code"].text_content() or ""
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, env=environment)
    assert ran.returncode == 0, ran.stderr.decode()
    assert ran.stdout.decode() == (choice["text"] if stream else f"0 {choice['text']}\n")
