"""The page's controls in a real chromium: every parameter, its limits, its errors, the gap and the law."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from gnomon.http.app import create_app
from gnomon.http.page.document import FOLDER
from gnomon.http.settings import Settings
from gnomon.reference.request import FIELDS
from gnomon.reference.tokenizer import Tokenizer
from helpers.browser import CONTEXT, VALUES, Open, Serve
from helpers.fake import FakeEngine, hashed_logits
from helpers.live import MODEL

pytestmark = pytest.mark.slow


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


def test_more_candidates_than_choices_say_beside_stream_that_they_do_not_stream(open_page: Open) -> None:
    page = open_page()
    page.set("best_of", 3)
    assert (page["#say-stream"].text_content() or "").startswith("Not used now: best_of is more than n")
    assert "will not stream" in (page["#say-best_of"].text_content() or "")
    page.set("n", 3)
    for name in ("stream", "best_of"):
        assert "stream:" not in (page[f"#say-{name}"].text_content() or "").lower()
        assert "best_of is more" not in (page[f"#say-{name}"].text_content() or "")


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


def test_the_law_on_the_page_is_the_law(open_page: Open) -> None:
    page = open_page()
    text = (FOLDER.parents[1] / "reference" / "LAW.md").read_text(encoding="utf-8")
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


def test_a_gap_behind_a_space_is_said_to_be_in_the_wrong_place(open_page: Open) -> None:
    page = open_page()
    for at, says in ((4, True), (3, False)):
        page["#prompt"].fill("the  end")
        page["#prompt"].evaluate("(field, at) => field.setSelectionRange(at, at)", at)
        page["#gap"].click()
        assert ("right behind the word" in (page["#gap-note"].text_content() or "")) is says


def test_a_server_that_is_loading_is_asked_again(open_page: Open, serve: Serve, tokenizer: Tokenizer) -> None:
    app = create_app(None, None, Settings())
    base = serve(app)
    page = open_page(base, wait=False)
    page["#facts"].filter(has_text="still being loaded").wait_for()
    assert page["#run"].is_disabled()
    app.state.service.open(FakeEngine(hashed_logits, context=CONTEXT), tokenizer)
    page.page.get_by_role("button", name="Ask again").click()
    page["#run:not([disabled])"].wait_for()
    page.complaints.clear()  # the 503 that was asked for
