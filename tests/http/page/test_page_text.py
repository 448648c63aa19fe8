"""The text on the page in a real chromium: streamed, stopped, echoed, ranked, compared with the run before."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from gnomon.reference.tokenizer import Tokenizer
from helpers.browser import CONTEXT, Open, Serve, answer, slowly
from helpers.fake import FakeEngine, always, hashed_logits
from helpers.live import MODEL, eventually

pytestmark = pytest.mark.slow


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
    assert eventually(lambda: app.state.completions.open == [])
    assert page["[role=option]"].count() < 390


def test_a_server_that_is_gone_is_said_to_be(open_page: Open) -> None:
    page = open_page()
    page.page.route("**/v1/completions", lambda route: route.abort())
    page["#run"].click()
    page["#trouble"].filter(has_text="cannot be reached").wait_for()
    page.complaints.clear()  # the browser's own line about it


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


def test_texts_of_two_runs_are_compared_candidate_by_candidate(open_page: Open) -> None:
    page = open_page()
    candidate = page.best_of_five()["candidate"]
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


SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const shift of list.getEntries()) if (!shift.hadRecentInput) window.shifts.push(shift.value);
}).observe({ type: "layout-shift", buffered: true });
"""


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
