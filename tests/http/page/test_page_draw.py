"""A draw on the page in a real chromium: chosen, shown stage by stage, made again with other parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from gnomon.reference.tokenizer import Tokenizer
from helpers.browser import CONTEXT, Open, Playground, Serve
from helpers.fake import FakeEngine, hashed_logits

pytestmark = pytest.mark.slow


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


def test_what_is_random_has_one_name(open_page: Open) -> None:
    page = open_page()
    page.drawn()
    page.unfold()
    assert re.findall(r"dice|\bluck|noise|\bscore|andidate by", page["body"].inner_text()) == []


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


def test_a_draw_of_a_returned_candidate_is_made_again_as_that_candidate(open_page: Open) -> None:
    page = open_page()
    told = page.best_of_five()
    candidate = told["candidate"]
    with page.page.expect_response("**/v1/completions/trace") as again:
        page["#knob-temperature"].fill("0.9")
    assert again.value.json()["candidate"] == candidate > 0
    assert again.value.json()["draw"]["key"] == told["draw"]["key"]


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
