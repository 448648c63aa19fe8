"""The page at GET /: what it is sent with, and, marked `browser`, what a user can do with it in a real chromium."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.applications import Starlette

from gnomon.http.app import create_app
from gnomon.http.page.page import FILE, policy
from gnomon.http.settings import AuthMode, AuthSettings, Settings
from gnomon.reference.request import FIELDS
from gnomon.reference.tokenizer import Tokenizer, load_tokenizer
from helpers.browser import Playground, chromium
from helpers.fake import (
    FAKE_VOCAB,
    MID,
    PRE,
    SUF,
    FakeEngine,
    always,
    fake_tokenizer,
    hashed_logits,
    tokenizer_files,
)
from helpers.live import MODEL, call, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HTML = FILE.read_text(encoding="utf-8")
KEY = "a-key-of-twenty-letters"
GUARDED = Settings(auth=AuthSettings(mode=AuthMode.api_key, api_keys=(KEY,)))
CONTEXT = 512
Open = Callable[..., Playground]
Serve = Callable[[Starlette], str]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return fake_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def app(tokenizer: Tokenizer) -> Starlette:
    return create_app(FakeEngine(hashed_logits, context=CONTEXT), tokenizer, Settings())


# ---- what is sent


def test_it_is_one_html_file_and_head_is_the_same_without_it(app: Starlette) -> None:
    got, head = call(app, "GET", "/"), call(app, "HEAD", "/")
    assert (got.status_code, got.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert got.text == HTML
    assert (head.status_code, head.content) == (200, b"")
    differing = {"x-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in differing} == {
        k: v for k, v in got.headers.items() if k not in differing
    }


@pytest.mark.parametrize("element", ["script", "style"])
def test_the_policy_admits_this_script_and_this_style_sheet_and_no_other(app: Starlette, element: str) -> None:
    sent = dict(part.split(" ", 1) for part in call(app, "GET", "/").headers["content-security-policy"].split("; "))
    [text] = re.findall(f"<{element}[^>]*>(.*?)</{element}>", HTML, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert sent[f"{element}-src"] == f"'sha256-{digest}'"
    assert policy(HTML.replace(text, text + " ").encode()) != policy(HTML.encode())


def test_the_policy_lets_it_talk_to_its_own_server_alone(app: Starlette) -> None:
    headers = call(app, "GET", "/").headers
    sent = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert sent["default-src"] == sent["base-uri"] == sent["form-action"] == sent["frame-ancestors"] == "'none'"
    assert (sent["connect-src"], sent["img-src"]) == ("'self'", "data:")
    assert sent["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in headers["content-security-policy"]
    assert "*" not in headers["content-security-policy"]
    assert (headers["referrer-policy"], headers["x-content-type-options"]) == ("no-referrer", "nosniff")


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_it_loads_nothing_and_names_no_other_host() -> None:
    assert set(re.findall(r"https?://[^\s\"'<>]*", HTML)) == {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert re.findall(r"@import|\burl\(", HTML.split("<script")[0]) == []
    elements = Elements()
    elements.feed(HTML)
    fetching = [attrs for tag, attrs in elements.found for name in ("src", "href", "srcset", "action") if name in attrs]
    assert [str(attrs.get("href")).split(",")[0] for attrs in fetching] == ["data:image/svg+xml"]


def test_no_text_can_become_markup_or_a_program() -> None:
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", HTML) == []
    elements = Elements()
    elements.feed(HTML)
    assert len(elements.found) > 50
    assert [attrs for _, attrs in elements.found for name in attrs if name.startswith("on") or name == "style"] == []


def test_it_is_small() -> None:
    assert len(HTML.encode()) < 128 * 1024


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_parameter_has_its_sentence(field: Any) -> None:
    said = HTML.split("const SAY = {")[1].split("\n};")[0]
    assert re.search(rf'^  {field.name}: ".{{20,}}",$', said, re.MULTILINE)


def test_it_is_open_and_the_api_behind_it_is_not(tokenizer: Tokenizer) -> None:
    guarded = create_app(FakeEngine(hashed_logits), tokenizer, GUARDED)
    assert call(guarded, "GET", "/").text == HTML
    for path in ("/v1/capabilities", "/openapi.json", "/v1/models", "/version"):
        assert call(guarded, "GET", path).status_code == 401, path
    for path in ("/v1/completions", "/v1/completions/trace"):
        assert call(guarded, "POST", path, json={}).status_code == 401, path


def test_it_is_there_while_the_model_is_loading() -> None:
    assert call(create_app(None, None, Settings()), "GET", "/").status_code == 200


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def base(app: Starlette) -> Iterator[str]:
    with serving(app) as url:
        yield url


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves an application until the pages have closed: a page that is open may still ask when its server ends."""
    with ExitStack() as servers:
        yield lambda app: servers.enter_context(serving(app))


@pytest.fixture
def open_page(browser: Browser, base: str, serve: Serve) -> Iterator[Open]:
    """Opens the page in a new profile. At the end the console must be silent but for the answers a test asked for."""
    opened: list[Playground] = []
    contexts = []
    served = base

    def open_one(
        base: str | None = None, fragment: str = "", before: str | None = None, wait: bool = True, **profile: Any
    ) -> Playground:
        context = browser.new_context(**{"viewport": {"width": 1360, "height": 950}, **profile})
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


def slowly(logits_of: Callable[[Sequence[int]], NDArray[np.float64]]) -> Callable[[Sequence[int]], NDArray[np.float64]]:
    def slow(tokens: Sequence[int]) -> NDArray[np.float64]:
        time.sleep(0.03)
        return logits_of(tokens)

    return slow


@pytest.fixture(scope="module")
def slow_base(tokenizer: Tokenizer) -> Iterator[str]:
    with serving(create_app(FakeEngine(slowly(hashed_logits), context=CONTEXT), tokenizer, Settings())) as url:
        yield url


def answer(base: str, body: str) -> list[dict[str, Any]]:
    """What the API says to a body, not streamed."""
    fields = {**json.loads(body), "stream": False}
    fields.pop("stream_options", None)
    response = httpx.post(f"{base}/v1/completions", json=fields, timeout=60)
    assert response.status_code == 200, response.text
    choices: list[dict[str, Any]] = response.json()["choices"]
    return choices


@pytest.mark.slow
def test_a_text_streams_and_is_the_one_that_the_api_gives(open_page: Open, slow_base: str) -> None:
    page = open_page(slow_base)
    page.set("prompt", "the end\nof")
    page.press_run()
    page["[role=option] >> nth=4"].wait_for()
    assert page["#run"].text_content() == "Stop"
    assert page["[role=option]"].count() < 40
    page["#status"].filter(has_text="Done").wait_for(state="attached")
    page.settled()
    seed = re.search(r"Seed (-?\d+)", page["#summary"].text_content() or "")
    assert seed is not None
    body = {"model": MODEL, "prompt": "the end\nof", "max_tokens": 40, "logprobs": 5, "seed": int(seed[1])}
    [choice] = answer(slow_base, json.dumps(body))
    labels = page["[role=option]"].evaluate_all("all => all.map((one) => one.getAttribute('aria-label'))")
    assert len(labels) == len(choice["logprobs"]["tokens"])
    mean = np.mean(choice["logprobs"]["token_logprobs"])
    said = (page["#choices footer"].text_content() or "").replace("−", "-")
    assert said == (
        f"{len(labels)} tokens, mean log-probability {mean:.3f}: like choosing one of {np.exp(-mean):.1f} each time."
        f"Reference agrees on {len(labels)} of {len(labels)} tokens."
    )
    assert page.complaints == []
    assert page.hosts == {slow_base.removeprefix("http://")}


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


@pytest.mark.slow
@pytest.mark.parametrize("name", [field.name for field in FIELDS])
def test_every_parameter_has_a_control_that_reaches_the_body(open_page: Open, name: str) -> None:
    page = open_page()
    page.set("seed", 5)
    page.set(name, VALUES[name])
    body = page.press_run().post_data
    assert body is not None
    assert f'"seed":{VALUES["seed"] if name == "seed" else 5}' in body  # every digit of it, as no double would have
    default = next(field.default for field in FIELDS if field.name == name)
    assert json.loads(body).get(name, default) == VALUES[name]
    untouched = {"max_tokens": 40, "logprobs": 5, "stream": True, "seed": 5, "model": MODEL}
    sent = {key: value for key, value in json.loads(body).items() if key not in (name, "prompt")}
    expected = {key: value for key, value in untouched.items() if key != name}
    if name == "best_of":  # more candidates than choices cannot be streamed
        del expected["stream"]
    assert sent == expected


@pytest.mark.slow
def test_the_sliders_end_where_this_server_does(open_page: Open, serve: Serve, tokenizer: Tokenizer) -> None:
    narrow = create_app(
        FakeEngine(hashed_logits, context=80), tokenizer, Settings(openai_limits=True, max_candidates=3)
    )
    base = serve(narrow)
    page = open_page(base)
    page.unfold()
    found = {}
    for name in ("max_tokens", "n", "logprobs", "temperature", "presence_penalty"):
        slider = page[f"[data-control={name}] input[type=range]"]
        found[name] = slider.get_attribute("min"), slider.get_attribute("max")
    assert found == {
        "max_tokens": ("0", "79"),
        "n": ("1", "3"),
        "logprobs": ("0", "5"),
        "temperature": ("0", "2"),
        "presence_penalty": ("-2", "2"),
    }


@pytest.mark.slow
def test_choosing_a_token_opens_the_trace_of_its_draw(open_page: Open) -> None:
    page = open_page()
    page.drawn(seed=3, top_p=0.5)
    with page.page.expect_response("**/v1/completions/trace") as told:
        page["[role=option] >> nth=6"].click()
    draw = told.value.json()["draw"]
    page["#trace-title"].filter(has_text="Draw 7").wait_for()
    assert page["[role=option] >> nth=6"].get_attribute("aria-selected") == "true"
    whys = page["#candidates td.why"].all_text_contents()
    assert whys[: len(draw["candidates"])] == [one["why"] for one in draw["candidates"]]
    assert page["#stages li > :first-child"].all_text_contents() == list("1234567")
    gone = sum(not one["kept"] for one in draw["candidates"]) + (draw["others"]["kept"] == 0)
    assert page["#candidates tr.gone"].count() == gone > 0
    assert page["#candidates tr.won"].count() == 1
    assert page["#picture svg text"].count() > 20
    assert "is reached by the first" in (page["#stages li >> nth=5"].text_content() or "")
    page["#after"].click()
    page["#trace-title"].filter(has_text="Draw 8").wait_for()


@pytest.mark.slow
def test_moving_top_p_makes_the_same_draw_again_at_once(open_page: Open) -> None:
    page = open_page()
    page.drawn(seed=3)
    noise = page["#candidates tr.won td >> nth=5"].text_content()
    assert page["#candidates tr.gone"].count() == 0
    before = page["#picture"].inner_html()
    with page.page.expect_response("**/v1/completions/trace") as told:
        page["#knob-top_p"].fill("0.1")
    assert json.loads(told.value.request.post_data or "")["request"]["top_p"] == 0.1
    page["#candidates tr.gone"].first.wait_for()
    assert page["#p-top_p"].input_value() == "0.1"
    assert page["#picture"].inner_html() != before
    draw = told.value.json()["draw"]
    assert "top_p 0.1 instead of 1" in (page["#knobs-say"].text_content() or "")
    page["#back"].click()
    page["#candidates tr.gone"].first.wait_for(state="detached")
    assert page["#candidates tr.won td >> nth=5"].text_content() == noise
    assert (draw["seed"], draw["candidate"]) == ("3", 0)


def traced(page: Playground, act: Callable[[], None]) -> dict[str, Any]:
    """The draw that is shown after `act`."""
    with page.page.expect_response("**/v1/completions/trace") as told:
        act()
    page["#trace:not([aria-busy]) #candidates tbody tr"].first.wait_for()
    draw: dict[str, Any] = told.value.json()["draw"]
    return draw


def cells(page: Playground, heading: str) -> list[str]:
    """A column of the table of a draw, the row of the others left out."""
    at = page["#candidates thead th"].all_text_contents().index(heading)
    return page[f"#candidates tbody tr:has(th) > :nth-child({at + 1})"].all_text_contents()


def number(text: str) -> float:
    return float(text.replace("−", "-").removesuffix(" %"))


@pytest.mark.slow
def test_the_chance_in_this_draw_is_shared_among_the_tokens_that_top_p_left(open_page: Open) -> None:
    page = open_page()
    page.drawn(seed=3, temperature=0.5)
    draw = traced(page, lambda: page["#knob-top_p"].fill("0.4"))
    page["#candidates tr.gone"].first.wait_for()
    assert draw["others"]["kept"] == 0
    left = sum(one["probability"] for one in draw["candidates"] if one["kept"])
    assert left < 0.9
    shown, before = cells(page, "chance in this draw"), cells(page, "after temperature")
    for one, chance, after in zip(draw["candidates"], shown, before, strict=True):
        if one["kept"]:
            assert number(chance) == pytest.approx(100 * one["probability"] / left, abs=0.5)
            assert number(after) == pytest.approx(100 * one["probability"], abs=0.5)
        else:
            assert chance == "0 %"
    won = shown[next(i for i, one in enumerate(draw["candidates"]) if one["id"] == draw["winner"])]
    assert f"with a chance of {won}," in (page["#trace-lead"].text_content() or "")
    traced(page, lambda: page["#knob-top_p"].fill("0"))
    page["#trace-lead"].filter(has_text="with a chance of 100 %. No other token could come.").wait_for()


@pytest.mark.slow
def test_a_running_sum_below_top_p_is_never_written_as_if_it_had_reached_it(open_page: Open) -> None:
    page = open_page()
    page.drawn(seed=3)
    draw = traced(page, lambda: page["[role=option] >> nth=2"].click())
    page["#trace-title"].filter(has_text="Draw 3:").wait_for()
    sums = [one["mass_before"] + one["probability"] for one in draw["candidates"]]
    last = next(i for i in range(1, 9) if round(100 * sums[i]) > 100 * sums[i] + 0.01)  # whole percents would round up
    top_p = round(sums[last] + 3e-5, 5)  # the next is kept, though those before it have nearly all of it
    traced(page, lambda: page["#p-top_p"].fill(str(top_p)))
    page["#candidates tr.gone"].first.wait_for()
    assert "gone" not in (page["#candidates tbody tr"].nth(last + 1).get_attribute("class") or "")
    assert "gone" in (page["#candidates tbody tr"].nth(last + 2).get_attribute("class") or "")
    shown = [number(text) for text in cells(page, "running sum")]
    assert [sum < 100 * top_p for sum in shown[:12]] == [i <= last for i in range(12)]


@pytest.mark.slow
def test_the_sum_of_every_token_adds_up_in_the_table(open_page: Open) -> None:
    page = open_page()
    page.drawn(seed=3, temperature=0.7)
    columns = [cells(page, name) for name in ("distance ÷ temp.", "random number", "sum")]
    assert len(columns[0]) >= 12
    for distance, noise, sum in zip(*columns, strict=True):
        assert number(distance) + number(noise) == pytest.approx(number(sum), abs=0.0151)
    assert "how far a token’s z is below the largest z" in (page["#candidates-say"].text_content() or "")
    traced(page, lambda: page["#knob-temperature"].fill("0"))
    page["#candidates-say"].filter(has_text="The largest z wins: z is the model’s raw number").wait_for()
    assert page["#stages li > :first-child"].all_text_contents() == list("1234567")
    assert page["#stages li.idle"].all_text_contents()[-1] == "7the drawNot used at temperature 0."


@pytest.mark.slow
def test_what_is_random_has_one_name(open_page: Open) -> None:
    page = open_page()
    page.drawn()
    page.unfold()
    assert re.findall(r"dice|\bluck|noise|\bscore|andidate by", page["body"].inner_text()) == []


@pytest.mark.slow
@pytest.mark.parametrize("then", [{"echo": False}, {"echo": False, "max_tokens": 3}])
def test_the_prompts_tokens_take_no_part_in_the_comparison_with_the_run_before(
    open_page: Open, then: dict[str, Any]
) -> None:
    page = open_page()
    page.set("seed", 3)
    page.set("echo", True)
    page.run()
    for name, value in then.items():
        page.set(name, value)
    page.run()
    words = "As far as both go, the same text as" if "max_tokens" in then else "The same text as"
    page["#summary"].filter(has_text=f"{words} the run before.").wait_for()
    page.set("echo", True)
    page.set("suffix", " end")
    page.set("echo", False)
    page.run()
    page["#summary"].filter(has_text="first difference is at token").wait_for()
    [was, now] = re.findall("“([^”]*)” instead of “([^”]*)”", page["#summary"].text_content() or "")[0][::-1]
    assert was != now


@pytest.mark.slow
def test_running_again_keeps_the_draw_that_was_looked_at(open_page: Open) -> None:
    page = open_page()
    page.drawn(seed=3, n=2)
    page[".choice >> nth=1"].locator("[role=option] >> nth=17").click()
    page["#trace-title"].filter(has_text="Draw 18:").wait_for()
    page["#knob-temperature"].fill("0.9")
    page["#knobs-say"].filter(has_text="0.9 instead of").wait_for()
    page["#again"].click()
    page["#status"].filter(has_text="Done").wait_for(state="attached")
    for choice in page[".choice"].all():
        choice.locator("footer", has_text="Reference agrees on 40 of 40").wait_for()
    page["#trace:not([aria-busy])"].wait_for()
    assert (page["#trace-title"].text_content() or "").startswith("Draw 18:")
    assert page[".choice >> nth=1"].locator('[aria-selected="true"]').count() == 1
    page["#knob-temperature"].fill("0.8")
    page.set("max_tokens", 9)
    page["#again"].click()
    page["#trace-title"].filter(has_not_text="Draw 18:").wait_for()


@pytest.mark.slow
def test_more_candidates_than_choices_say_beside_stream_that_they_do_not_stream(open_page: Open) -> None:
    page = open_page()
    page.set("best_of", 3)
    assert (page["#say-stream"].text_content() or "").startswith("Not used now: best_of is more than n")
    assert "will not stream" in (page["#say-best_of"].text_content() or "")
    page.set("n", 3)
    for name in ("stream", "best_of"):
        assert "stream:" not in (page[f"#say-{name}"].text_content() or "").lower()
        assert "best_of is more" not in (page[f"#say-{name}"].text_content() or "")


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_law_on_the_page_is_the_law(open_page: Open) -> None:
    page = open_page()
    text = (FILE.parents[2] / "reference" / "LAW.md").read_text(encoding="utf-8")
    section = text.split("## 4. One draw\n")[1].split("\n\n")[0]
    steps = [" ".join(step.replace("`", "").split()) for step in re.split(r"(?:^|\n)\d\. ", section)[1:]]
    assert len(steps) == 7
    assert [" ".join((step or "").split()) for step in page["#law li"].all_text_contents()] == steps
    page.unfold("details.group, .exact")
    exactly = page["[data-control=top_p] .exact p"]
    assert "one is kept if the mass before it is below top_p" in (exactly.text_content() or "")
    exactly.locator("button").click()
    page["#law[open]"].wait_for()
    said = page[".exact p"].all_text_contents()
    assert [text for text in said if "null." in text] == []
    assert "It is required." in (page["[data-control=model] .exact p"].text_content() or "")


@pytest.mark.slow
def test_a_gap_behind_a_space_is_said_to_be_in_the_wrong_place(open_page: Open) -> None:
    page = open_page()
    for at, says in ((4, True), (3, False)):
        page["#prompt"].fill("the  end")
        page["#prompt"].evaluate("(field, at) => field.setSelectionRange(at, at)", at)
        page["#gap"].click()
        assert ("right behind the word" in (page["#gap-note"].text_content() or "")) is says


@pytest.mark.slow
def test_on_a_phone_the_names_stay_while_the_rest_is_swiped(open_page: Open) -> None:
    page = open_page(viewport={"width": 390, "height": 800}, has_touch=True)
    page.drawn(seed=3)
    assert page[".group > summary >> nth=0"].evaluate("one => getComputedStyle(one).listStylePosition") == "inside"
    for box, names in (("#candidates", "tbody th >> nth=2"), ("#picture", "svg.names")):
        frame = page[f".swipe:has({box})"]
        assert page[f".swipe-say:has(+ .swipe {box})"].is_visible()
        assert frame.evaluate("one => one.classList.contains('more')")
        before = page[box].locator(names).bounding_box()
        page[box].evaluate("one => { one.scrollLeft = 300; }")
        page[f".swipe.slid:has({box})"].wait_for()
        assert page[box].locator(names).bounding_box() == before
        assert page[box].locator(names).is_visible()
        page[box].evaluate("one => { one.scrollLeft = 9999; }")
        page[f".swipe:not(.more):has({box})"].wait_for()
    assert page.page.evaluate("document.scrollingElement.scrollWidth") <= 390


@pytest.mark.slow
def test_the_next_run_with_the_same_seed_says_where_it_differs(open_page: Open) -> None:
    page = open_page()
    page.set("seed", 3)
    first = json.loads(page.run())
    page.settled()
    page["#knob-top_p"].fill("0.3")
    with page.page.expect_request(lambda request: request.url.endswith("/v1/completions")) as sent:
        page["#again"].click()
    assert sent.value.post_data_json == {**first, "top_p": 0.3}
    page["#summary"].filter(has_text="first difference").wait_for()
    one, two = (answer(page.page.url.split("/#")[0].rstrip("/"), json.dumps(body))[0]["logprobs"]["tokens"]
                for body in (first, sent.value.post_data_json))  # fmt: skip
    at = next(i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    assert f"the first difference is at token {at + 1}," in (page["#summary"].text_content() or "")


@pytest.mark.slow
def test_what_the_reference_says_is_what_the_server_answered(open_page: Open) -> None:
    page = open_page()

    def disagree(route: Any) -> None:
        told = route.fetch().json()
        told["agreement"] = {"tokens": 40, "agree": 37, "first_difference": 2}
        told["steps"][2].update(agrees=False, reference_token="quite another")
        route.fulfill(json=told)

    page.page.route("**/v1/completions/trace", disagree)
    page.drawn()
    said = page["#choices footer p:last-child"].text_content()
    assert said == "Reference agrees on 37 of 40 tokens, first not at token 3."
    assert "quite another" in (page["[role=option] >> nth=2"].get_attribute("title") or "")
    assert page[".t.differs"].count() == 1


@pytest.mark.slow
def test_without_the_trace_the_reason_is_said_and_the_reported_tokens_are_shown(
    open_page: Open, serve: Serve, tokenizer: Tokenizer
) -> None:
    untraced = create_app(FakeEngine(hashed_logits, context=CONTEXT), tokenizer, Settings(trace_memory=0))
    base = serve(untraced)
    page = open_page(base)
    page.run()
    page["#choices footer"].filter(has_text="--trace-memory is 0").wait_for()
    page["[role=option] >> nth=3"].click()
    page["#trace-lead"].filter(has_text="--trace-memory is 0").wait_for()
    assert page["#candidates tbody tr"].count() >= 5
    assert page["#knobs"].is_hidden()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("temperature", "3", "temperature: 3 is not allowed; give a number from 0 to 2"),
        ("temperature", "warm", 'temperature: "warm" is not allowed; give a number from 0 to 2'),
        ("seed", str(2**63), f"seed: {2**63} is not allowed"),
        ("max_tokens", "600", "maximum context length is 512 tokens"),
        ("logit_bias", {"9999": 1}, "logit_bias.9999: no token of this model"),
        ("model", "gpt-5", "gpt-5"),
        ("prompt", [], "prompt: [] is not allowed"),
    ],
)
def test_an_error_is_shown_in_words_beside_the_field_it_names(
    open_page: Open, name: str, value: Any, words: str
) -> None:
    page = open_page()
    page.run()
    shown = page.text
    page.set(name, value)
    page["details.group[open] > summary"].first.click()  # the error opens the fold that its field is in
    page.press_run()
    wrong = page[f"#wrong-{name}"]
    wrong.filter(has_text=words).wait_for()
    control = page["#prompt" if name == "prompt" else f"#p-{name}"]
    assert control.get_attribute("aria-invalid") == "true"
    assert f"wrong-{name}" in (control.get_attribute("aria-describedby") or "")
    assert page["#run"].text_content() == "Complete"
    assert page.text == shown  # what was there stays
    page.set(name, VALUES["prompt"] if name == "prompt" else {} if name == "logit_bias" else "1")
    if name == "logit_bias":
        page[".bias button"].click()
    assert wrong.is_hidden()
    assert control.get_attribute("aria-invalid") is None


@pytest.mark.slow
def test_a_server_that_is_gone_is_said_to_be(open_page: Open) -> None:
    page = open_page()
    page.page.route("**/v1/completions", lambda route: route.abort())
    page["#run"].click()
    page["#trouble"].filter(has_text="cannot be reached").wait_for()
    page.complaints.clear()  # the browser's own line about it


@pytest.mark.slow
def test_stop_ends_the_request(open_page: Open, serve: Serve, tokenizer: Tokenizer) -> None:
    app = create_app(FakeEngine(slowly(hashed_logits), context=CONTEXT), tokenizer, Settings())
    base = serve(app)
    page = open_page(base)
    page.set("max_tokens", 400)
    page.press_run()
    page["[role=option] >> nth=2"].wait_for()
    page["#run"].click()
    page["#summary"].filter(has_text=re.compile(r"Stopped after \d+ tokens?\. Seed -?\d+\.")).wait_for()
    assert page["#run"].text_content() == "Complete"
    end = time.monotonic() + 10
    while app.state.completions.open and time.monotonic() < end:
        time.sleep(0.02)
    assert app.state.completions.open == []
    assert page["[role=option]"].count() < 390


@pytest.mark.slow
def test_candidates_that_best_of_left_out_are_shown_and_the_returned_ones_marked(open_page: Open, base: str) -> None:
    page = open_page()
    for name, value in (("seed", 11), ("n", 2), ("best_of", 5), ("max_tokens", 6)):
        page.set(name, value)
    body = page.run()
    assert "stream" not in json.loads(body)
    returned = [choice["text"] for choice in answer(base, body)]
    with page.page.expect_request(lambda request: request.url.endswith("/v1/completions")) as sent:
        page.page.get_by_role("button", name="See all 5 candidates").click()
    everyone_sent = json.loads(sent.value.post_data or "")
    assert (everyone_sent["n"], everyone_sent["seed"]) == (5, 11)
    assert "best_of" not in everyone_sent
    page[".choice >> nth=4"].locator("footer", has_text="Reference").wait_for()
    everyone = [choice["text"] for choice in answer(base, sent.value.post_data or "")]
    page["#summary"].filter(has_text="drawn").wait_for()
    assert everyone[0] not in returned[:1]  # so comparing the first shown with the first shown would be wrong
    assert "difference" not in (page["#summary"].text_content() or "")
    call = json.loads((page["#code"].text_content() or "").split("-d '")[1].rstrip("'"))
    assert call == everyone_sent
    titles = page[".choice h3 b"].all_text_contents()
    for rank, text in enumerate(returned):
        assert titles[everyone.index(text)] == f"Candidate {everyone.index(text)}, returned as choice {rank}"
    assert page[".choice.returned"].count() == 2
    assert len(titles) == 5


@pytest.mark.slow
def test_texts_of_two_runs_are_compared_candidate_by_candidate(open_page: Open) -> None:
    page = open_page()
    for name, value in (("seed", 11), ("n", 1), ("best_of", 5), ("max_tokens", 6)):
        page.set(name, value)
    with page.page.expect_response("**/v1/completions/trace") as told:
        page.run()
    page.settled()
    candidate = told.value.json()["candidate"]
    assert candidate > 0
    page.set("best_of", "")
    page.run()  # candidate 0 alone: nothing to compare it with
    assert "run before" not in (page["#summary"].text_content() or "")
    assert "as before" not in (page["#summary"].text_content() or "")
    page.drawn(best_of=5)
    page.set("best_of", "")
    page.set("n", candidate + 1)
    page.run()
    page["#summary"].filter(has_text="Once the same text as the run before.").wait_for()


@pytest.mark.slow
def test_a_draw_of_a_returned_candidate_is_made_again_as_that_candidate(open_page: Open) -> None:
    page = open_page()
    for name, value in (("seed", 11), ("n", 1), ("best_of", 5), ("max_tokens", 6)):
        page.set(name, value)
    with page.page.expect_response("**/v1/completions/trace") as told:
        page.run()
    page.settled()
    candidate = told.value.json()["candidate"]
    with page.page.expect_response("**/v1/completions/trace") as again:
        page["#knob-temperature"].fill("0.9")
    assert again.value.json()["candidate"] == candidate > 0
    assert again.value.json()["draw"]["key"] == told.value.json()["draw"]["key"]


@pytest.mark.slow
def test_a_gap_in_the_text_is_filled(open_page: Open, tokenizer: Tokenizer, base: str) -> None:
    page = open_page()
    page["#prompt"].fill("the  end")
    page["#prompt"].evaluate("field => field.setSelectionRange(4, 4)")
    page["#gap"].click()
    page.unfold()
    assert page["#p-suffix"].input_value() == " end"
    page["#p-suffix"].fill(" finish")
    assert page["#prompt"].input_value() == "the ⟦gap⟧ finish"
    body = json.loads(page.run())
    assert (body["prompt"], body["suffix"]) == ("the ", " finish")
    assert page[".text"].text_content() == f"the {page['.tokens'].text_content()} finish"
    page["#gap"].click()
    assert page["#prompt"].input_value() == "the  finish"
    assert page["#p-suffix"].input_value() == ""


@pytest.mark.slow
def test_echoed_tokens_show_their_surprise_and_were_not_drawn(open_page: Open, base: str) -> None:
    page = open_page()
    page.set("prompt", "the end")
    page.set("seed", 4)
    page.set("echo", True)
    body = page.run()
    page.settled()
    [choice] = answer(base, body)
    given = sum(offset < len("the end") for offset in choice["logprobs"]["text_offset"])
    assert page["[role=option]"].count() == len(choice["logprobs"]["tokens"]) == given + 40
    assert "nothing before it" in (page["[role=option] >> nth=0"].get_attribute("title") or "")
    assert page[".text .t.begins"].count() == 1  # the border between what was given and what was drawn
    assert page[f"[role=option] >> nth={given}"].evaluate("one => one.classList.contains('begins')")
    assert page["#legend-echo"].is_visible()
    of_prompt, of_text = (
        f"{np.mean(part):.3f}".replace("-", "−")
        for part in (choice["logprobs"]["token_logprobs"][1:given], choice["logprobs"]["token_logprobs"][given:])
    )
    assert (page["#choices footer .sure"].text_content() or "").startswith(
        f"Prompt: {given - 1} token{'s' * (given != 2)}, mean log-probability {of_prompt} after its first. "
        f"Completion: 40 tokens, mean log-probability {of_text}: like choosing one of "
    )
    page["[role=option] >> nth=1"].click()
    page["#trace-lead"].filter(has_text="It was given, not drawn.").wait_for()
    page[f"[role=option] >> nth={given}"].click()
    page["#trace-title"].filter(has_text="Draw 1:").wait_for()


@pytest.mark.slow
def test_a_stop_string_cuts_the_text_and_its_tokens_are_shown_as_cut(
    open_page: Open, serve: Serve, tokenizer: Tokenizer
) -> None:
    a, b, c = (tokenizer.labels.index(letter) for letter in "abc")
    base = serve(create_app(FakeEngine(always(a, b, c), context=CONTEXT), tokenizer, Settings()))
    page = open_page(base)
    page.set("prompt", "x")
    page.set("temperature", 0)
    page.set("stop", ["bc"])
    page.run()
    assert page[".t"].locator("visible=true").count() >= 3
    assert page[".text .t.cut"].all_text_contents() == ["b", "c"]
    assert page[".choice h3 span"].text_content() == "ended at a stop string"
    assert "cut off by a stop string" in (page[".text .t.cut >> nth=0"].get_attribute("aria-label") or "")


@pytest.mark.slow
def test_several_prompts_have_choices_of_their_own(open_page: Open, base: str) -> None:
    page = open_page()
    page.set("prompt", ["the", "a e"])
    for name, value in (("n", 2), ("seed", 1), ("max_tokens", 4)):
        page.set(name, value)
    body = page.run()
    page[".choice >> nth=3"].locator("footer", has_text="Reference agrees on 4 of 4").wait_for()
    for shown, choice in zip(page[".choice"].all(), answer(base, body), strict=True):
        assert (shown.locator(".tokens").text_content() or "").replace("↵\n", "\n") != ""
        labels = shown.locator("[role=option]").evaluate_all("all => all.map((one) => one.title)")
        assert [label.split("”: ")[0][1:].replace("\u00a0", " ") for label in labels] == [
            label.replace("\n", "↵").replace("\t", "⇥") for label in choice["logprobs"]["tokens"]
        ]
    assert page[".choice .given"].all_text_contents() == ["the", "the", "a e", "a e"]


# ---- keys and links


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_link_that_names_nothing_or_nonsense_does_no_harm(open_page: Open) -> None:
    page = open_page(fragment="#key=abc&nonsense=1&top_p=%3Cimg%3E&seed=1.5&stop=%5B&prompt_json=%7B")
    assert page["#p-top_p"].input_value() == "<img>"
    page["#run"].click()
    page["#wrong-prompt"].filter(has_text="this is not JSON").wait_for()
    assert page["img"].count() == 0


@pytest.mark.slow
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


# ---- for everybody


@pytest.mark.slow
def test_markup_stays_text_wherever_it_comes_from(
    open_page: Open, serve: Serve, tmp_path_factory: pytest.TempPathFactory
) -> None:
    attack, second = "<img src=x onerror=window.hit=1>", "</text></svg><script>window.hit=1</script>"
    directory = tokenizer_files(tmp_path_factory.mktemp("hostile"))
    for file in directory.iterdir():
        text = file.read_text(encoding="utf-8").replace("<|fim_prefix|>", attack).replace("<|fim_suffix|>", second)
        file.write_text(text, encoding="utf-8")
    hostile = load_tokenizer(directory, FAKE_VOCAB)
    app = create_app(FakeEngine(always(PRE, SUF, MID), context=CONTEXT), hostile, Settings())
    base = serve(app)
    page = open_page(base)
    page.set("prompt", f"</textarea>{attack.replace('img', 'IMG')}")
    page.set("echo", True)
    page.drawn()
    assert page["[role=option]"].filter(has_text=attack).count() > 0
    page["[role=option]"].filter(has_text=attack).last.click()
    page["#trace-title"].filter(has_text=attack).wait_for()
    page["#candidates th"].filter(has_text=attack).first.wait_for()
    page.set("temperature", attack)
    page.press_run()
    page["#wrong-temperature"].filter(has_text="<img").wait_for()
    assert page["img"].count() == page["body script"].count() - 1 == 0
    assert page.page.evaluate("'hit' in window") is False


@pytest.mark.slow
def test_the_keyboard_is_enough(open_page: Open) -> None:
    page = open_page()
    keys = page.page.keyboard

    def tab_to(selector: str) -> None:
        for _ in range(80):
            keys.press("Tab")
            if page.page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"{selector} is not reached by the tab key")

    keys.press("Tab")
    keys.press("Enter")  # the link that skips to the text
    assert page.page.evaluate("document.activeElement.id") == "prompt"
    keys.press("Control+A")
    keys.type("the end")
    keys.press("Control+Enter")
    page.settled()
    tab_to("[role=option]")
    keys.press("Home")
    keys.press("ArrowRight")
    keys.press("ArrowRight")
    keys.press("Enter")
    page["#trace-title"].filter(has_text="Draw 3:").wait_for()
    tab_to("#knob-top_p")
    keys.press("Home")
    page["#candidates tr.gone"].first.wait_for()
    assert page["#p-top_p"].input_value() == "0"
    tab_to("#candidates")
    assert page.complaints == []


def violations(page: Playground) -> list[str]:
    """axe-core's, every rule it has."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra `browser`").Axe()
    found = axe.run(page.page).response["violations"]
    return [f"{rule['id']}: {node['html'][:160]}" for rule in found for node in rule["nodes"]]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_complain_of(open_page: Open, serve: Serve, tokenizer: Tokenizer, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    assert violations(page) == []
    page.drawn(n=2, seed=8, logit_bias={"5": 1})
    page.unfold()
    page["#key-open"].click()
    page["#knob-top_p"].fill("0.4")
    page["#candidates tr.gone"].first.wait_for()
    assert violations(page) == []
    page.set("temperature", "3")
    page.press_run()
    page["#wrong-temperature"].filter(has_text="not allowed").wait_for()
    assert violations(page) == []
    guarded = serve(create_app(FakeEngine(hashed_logits), tokenizer, GUARDED))
    asking = open_page(guarded, wait=False, color_scheme=scheme)
    asking["#key-wrong"].filter(has_text="asks who you are").wait_for()
    assert violations(asking) == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 700, 1000])
def test_nothing_is_wider_than_the_screen(open_page: Open, width: int) -> None:
    page = open_page(viewport={"width": width, "height": 740}, has_touch=width == 360)
    page.drawn(n=3, logit_bias={"5": 1}, prompt="a" * 60)
    page.unfold()
    assert page.page.evaluate("document.scrollingElement.scrollWidth") <= width
    smallest = page["button:visible, summary:visible, input:visible"].evaluate_all(
        "all => Math.min(...all.map((one) => one.getBoundingClientRect().height))"
    )
    assert smallest >= 18


@pytest.mark.slow
def test_dark_is_dark_as_the_system_has_it_or_as_one_chooses(open_page: Open) -> None:
    def lightness(page: Playground) -> float:
        colour = page.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3

    light, dark = open_page(color_scheme="light"), open_page(color_scheme="dark")
    assert lightness(light) > 200
    assert lightness(dark) < 60
    dark["#theme"].click()
    assert lightness(dark) > 200
    dark["#theme"].click()
    assert lightness(dark) < 60
    light["#theme"].click()
    light["#theme"].click()
    assert lightness(light) < 60
    light.page.reload()
    assert lightness(light) < 60


SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const shift of list.getEntries()) if (!shift.hadRecentInput) window.shifts.push(shift.value);
}).observe({ type: "layout-shift", buffered: true });
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1360])
@pytest.mark.parametrize("n", [1, 3])
def test_nothing_moves_while_the_text_streams(
    open_page: Open, serve: Serve, tokenizer: Tokenizer, width: int, n: int
) -> None:
    """The words are short: half a long one at a line's end moves down when its other half comes, as in any text."""
    words = slowly(always(tokenizer.labels.index(" the"), tokenizer.labels.index(" a")))
    base = serve(create_app(FakeEngine(words, context=CONTEXT), tokenizer, Settings()))
    page = open_page(base, before=SHIFTS, viewport={"width": width, "height": 950})
    page.set("n", n)
    page["#text-title"].scroll_into_view_if_needed()
    page.page.evaluate("window.shifts = []")
    page.drawn()
    assert page["[role=option]"].count() == 40 * n
    assert sum(page.page.evaluate("window.shifts")) < 0.001


@pytest.mark.slow
def test_who_asked_for_less_motion_gets_none(open_page: Open, slow_base: str) -> None:
    for motion, names in (("reduce", "none"), ("no-preference", "blink")):
        page = open_page(slow_base, reduced_motion=motion)
        page.press_run()
        page[".caret"].wait_for()
        assert page[".caret"].evaluate("one => getComputedStyle(one, '::after').animationName") == names


@pytest.mark.slow
def test_a_server_that_is_loading_is_asked_again(open_page: Open, serve: Serve, tokenizer: Tokenizer) -> None:
    app = create_app(None, None, replace(Settings()))
    base = serve(app)
    page = open_page(base, wait=False)
    page["#facts"].filter(has_text="still being loaded").wait_for()
    assert page["#run"].is_disabled()
    app.state.service.open(FakeEngine(hashed_logits, context=CONTEXT), tokenizer)
    page.page.get_by_role("button", name="Ask again").click()
    page["#run:not([disabled])"].wait_for()
    page.complaints.clear()  # the 503 that was asked for
