"""The page for everybody, in a real chromium: hostile texts, keyboard, screen readers, phones, dark, less motion."""

from __future__ import annotations

import re

import pytest

from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from gnomon.reference.tokenizer import Tokenizer, load_tokenizer
from helpers.browser import CONTEXT, GUARDED, Open, Playground, Serve
from helpers.fake import FAKE_VOCAB, MID, PRE, SUF, FakeEngine, always, hashed_logits, tokenizer_files

pytestmark = pytest.mark.slow


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


def test_who_asked_for_less_motion_gets_none(open_page: Open, slow_base: str) -> None:
    for motion, names in (("reduce", "none"), ("no-preference", "blink")):
        page = open_page(slow_base, reduced_motion=motion)
        page.press_run()
        page[".caret"].wait_for()
        assert page[".caret"].evaluate("one => getComputedStyle(one, '::after').animationName") == names
