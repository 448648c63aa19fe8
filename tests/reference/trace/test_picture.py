"""The picture of a draw: sound SVG, whatever the labels are; the same text every time; nothing told by colour alone."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnomon.reference import explain, picture, show
from gnomon.reference.prng import DrawKey
from gnomon.reference.sampler import SamplingParams, Trace, trace_draw
from gnomon.reference.tokenizer import Tokenizer
from gnomon.reference.trace.explain import Draw, percent, three_digits
from gnomon.reference.trace.picture import Picture
from gnomon.reference.trace.svg import printable, shortened
from gnomon.reference.trace.words import rows_to_show, sentences
from helpers.fake import FAKE_VOCAB, hashed_logits

SVG = "{http://www.w3.org/2000/svg}"
LIVES: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0},
    {"temperature": 0.6, "top_p": 0.8},
    {"temperature": 1.4, "frequency_penalty": 2, "presence_penalty": -1},
    {"logit_bias": {5: 9.5, 6: -100}, "top_p": 0.999},
    {"top_p": 0},
    {"temperature": 1e-308},
    {"temperature": 1e-5, "top_p": 0.5, "logit_bias": {3: 100}},
)


def drawn(seed: int = 4, labels: int = FAKE_VOCAB, **params: Any) -> Trace:
    counts = np.arange(labels) % 5
    return trace_draw(hashed_logits([seed], labels), counts, SamplingParams(**params), DrawKey(seed, 1, 6))


def labelled(label: str) -> Draw:
    """A draw that this label wins."""
    of = drawn(temperature=0)
    labels = [f"w{v}" for v in range(FAKE_VOCAB)]
    labels[of.token] = label
    return explain(of, labels)


def parsed(markup: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(markup)
    except ElementTree.ParseError as error:
        pytest.fail(f"no sound XML: {error}")


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parsed(svg).iter(f"{SVG}text")]


# ---- sound


@pytest.mark.parametrize("params", LIVES, ids=str)
@pytest.mark.parametrize("size", [1, 2, 30, FAKE_VOCAB])
def test_it_is_sound_svg_that_needs_nothing_around_it(params: dict[str, Any], size: int) -> None:
    if any(v >= size for v in params.get("logit_bias", ())):
        params = {**params, "logit_bias": {0: 3}}
    svg = picture(explain(drawn(labels=size, **params), given=size - 1))
    root = parsed(svg)
    assert (root.tag, root.get("role")) == (f"{SVG}svg", "img")
    assert root.get("viewBox", "").startswith("0 0 720 ")
    assert root.find(f"{SVG}title") is not None
    described = root.find(f"{SVG}desc")
    assert described is not None
    assert "nan" not in svg
    assert "inf" not in svg
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert tags <= {"svg", "title", "desc", "g", "text", "rect", "line", "path"}
    for element in root.iter():
        assert not {"id", "style", "class", "href", "onclick"} & {*element.keys()}
        for name in ("x", "x1", "x2", "y", "width", "height"):
            assert -1 <= float(element.get(name, "0").removesuffix("%")) <= 1000, ElementTree.tostring(element)


@pytest.mark.parametrize(
    "label",
    ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "&lt;", "]]>", "<!--", "a\x00\x1b[31m", "\u202eabc",
     "\ufffe", "\n\t ", "\u0301x", "漢" * 30, "'\"&<>"],
)  # fmt: skip
def test_a_label_is_text_and_never_markup(label: str) -> None:
    draw = labelled(label)
    shown = Picture(draw)
    for markup in (shown._repr_svg_(), shown._repr_html_()):
        root = parsed(markup)
        tags = {element.tag.removeprefix(SVG).lower() for element in root.iter()}
        assert not tags & {"script", "img"}
        for element in root.iter():
            assert not any(name.startswith("on") for name in element.keys())  # noqa: SIM118 - it is no dict
    assert shortened(printable(label), 13) in texts(shown._repr_svg_())


@given(label=st.text(min_size=1, max_size=40).filter(lambda text: "\ud800" not in text))
def test_any_label_at_all_leaves_the_svg_sound(label: str) -> None:
    parsed(Picture(labelled(label))._repr_html_())


@pytest.mark.parametrize(
    ("label", "seen"),
    [(" the", "␣the"), ("\n\n", "⏎⏎"), ("a\tb", "a⇥b"), ("\x1b", "\\x1b"), ("\u200d", "\\u200d"), ("\u0301", "◌\u0301"),
     ("bytes:\\xf0", "bytes:\\xf0"), ("\U000e0001", "\\U000e0001")],
)  # fmt: skip
def test_what_cannot_be_seen_is_written_out(label: str, seen: str) -> None:
    assert printable(label) == seen


def test_a_long_label_ends_with_an_ellipsis_and_wide_characters_count_twice() -> None:
    assert shortened("a" * 13, 13) == "a" * 13
    assert shortened("a" * 14, 13) == "a" * 12 + "…"
    assert shortened("漢" * 7, 13) == "漢" * 6 + "…"


# ---- what it says


def test_rows_stand_in_the_order_of_the_nucleus_with_the_winner_and_the_given_token() -> None:
    draw = explain(drawn(temperature=1.5, top_p=0.9), given=77)
    rows = rows_to_show(draw)
    assert [row.rank for row in rows] == sorted(row.rank for row in rows)
    assert {draw.winner, draw.runner_up, 77} <= {row.id for row in rows}
    assert [row.rank for row in rows[:7]] == list(range(7))
    seen = texts(picture(draw))
    assert [text for text in seen if text.startswith("token_id:")] == [row.label for row in rows]


@pytest.mark.parametrize("params", LIVES, ids=str)
def test_rows_and_what_is_between_them_are_all_tokens(params: dict[str, Any]) -> None:
    draw = explain(drawn(**params))
    more = [int(text.split()[1].replace(",", "")) for text in texts(picture(draw)) if text.startswith("⋮")]
    assert sum(more) + len(rows_to_show(draw)) == FAKE_VOCAB


def test_removed_tokens_are_struck_and_say_so_in_words_and_the_rest_is_not() -> None:
    draw = explain(drawn(top_p=0.5))
    root = parsed(picture(draw))
    struck = 0
    for group, row in zip(root.findall(f"{SVG}g"), rows_to_show(draw), strict=True):
        through = [line for line in group.findall(f"{SVG}line") if line.get("x1") == "18"]
        words = [text.text for text in group.findall(f"{SVG}text")]
        assert bool(through) == (row.kept is False)
        assert ("out" in words) == (row.kept is False)
        assert group.findtext(f"{SVG}title") == f"{row.label}: {row.why}"
        struck += bool(through)
    assert struck >= 2


def test_the_line_of_top_p_stands_where_the_kept_end() -> None:
    """Every bar of a kept token begins before the line, and that of every removed one at or behind it."""
    draw = explain(drawn(top_p=0.6))
    root = parsed(picture(draw))
    [path] = root.findall(f"{SVG}path")
    found = re.match(r"M([\d.]+) ", path.get("d", ""))
    assert found
    line = float(found[1])
    assert "60 %" in [text.text for text in root.iter(f"{SVG}text")]
    judged = 0
    for group, row in zip(root.findall(f"{SVG}g"), rows_to_show(draw), strict=True):
        assert row.mass_before is not None
        bars = [float(rect.get("x", "0")) for rect in group.findall(f"{SVG}rect") if rect.get("height") in ("7", "8")]
        in_column = [x for x in bars if abs(x - (line - 104 * (0.6 - row.mass_before))) < 1.1]
        assert in_column
        assert (in_column[0] < line) == (row.kept is True)
        judged += 1
    assert judged == len(rows_to_show(draw))


def test_no_kept_token_shows_a_sum_that_looks_like_top_p_before_the_last_kept_one() -> None:
    """79.7 % is not written as 80 % beside top_p 0.8, or the next token would seem to be kept by mistake."""
    sums = [(row.mass_before or 0) + (row.probability or 0) for row in explain(drawn(5)).rows[:6]]
    last = next(i for i in range(5) if float(percent(sums[i]).removesuffix(" %")) > 100 * sums[i] + 0.01)
    top_p = sums[last] + 1e-6  # the next is kept, by very little
    draw = explain(drawn(5, top_p=top_p))
    assert draw.rows[last + 1].kept
    shown = [float(t.removeprefix("up to ").rstrip(" %")) for t in texts(picture(draw)) if t.startswith("up to")]
    assert shown[last] < 100 * top_p <= shown[last + 1]


def test_the_numbers_of_the_last_column_are_said_to_be_what_they_are() -> None:
    seen = " ".join(texts(picture(explain(drawn(temperature=0.5, logit_bias={5: 1}, presence_penalty=1)))))
    z = "z: the model’s raw number (logit) + bias + penalties."
    assert f"draw: how far z is below the largest, ÷ temperature, + a random number. {z}" in seen
    assert "Bars of log-prob and of the draw do not begin at 0" in seen
    greedy = texts(picture(explain(drawn(temperature=0))))
    assert z in greedy
    assert "draw:" not in " ".join(greedy)


def test_the_margin_is_written_and_is_as_long_as_it_says() -> None:
    for params in ({}, {"temperature": 0}):
        draw = explain(drawn(**params))
        assert draw.margin is not None
        assert f"margin {three_digits(draw.margin)}" in texts(picture(draw))
        assert three_digits(draw.margin) in " ".join(sentences(draw))


def test_noise_is_added_in_stripes_or_taken_away() -> None:
    draw = explain(drawn())
    root = parsed(picture(draw))
    signs = set()
    for group, row in zip(root.findall(f"{SVG}g"), rows_to_show(draw), strict=True):
        assert row.noise is not None
        dashed = [e for e in group if e.get("stroke-dasharray")]
        assert [e.tag.removeprefix(SVG) for e in dashed] == ["line" if row.noise >= 0 else "rect"]
        signs.add(row.noise >= 0)
    assert signs == {True, False}


@pytest.mark.parametrize("params", LIVES, ids=str)
def test_the_description_says_what_became_of_every_row(params: dict[str, Any]) -> None:
    draw = explain(drawn(**params))
    described = parsed(picture(draw)).findtext(f"{SVG}desc") or ""
    for row in rows_to_show(draw):
        assert f"{row.label}, log-probability {three_digits(row.logprob)}: {row.why}." in described


def test_the_stages_that_do_nothing_say_so() -> None:
    def unused(**params: Any) -> int:
        return texts(picture(explain(drawn(**params)))).count("not used")

    assert unused(logit_bias={5: 1}, presence_penalty=1) == 0
    bare = picture(explain(drawn()))
    assert texts(bare).count("not used") + texts(bare).count("not") == 2
    assert {"log-prob", "bias", "penalties", "temperature 1", "top_p 1", "draw"} <= set(texts(bare))


@pytest.mark.parametrize(
    ("p", "text"),
    [(0, "0 %"), (1e-9, "<0.1 %"), (0.0012, "0.1 %"), (0.051, "5.1 %"), (0.5, "50 %"), (0.924, "92.4 %"),
     (0.9, "90 %"), (0.9996, ">99.9 %"), (1, "100 %"), (1 - 1e-16, "100 %")],
)  # fmt: skip
def test_a_probability_is_never_rounded_to_all_or_nothing(p: float, text: str) -> None:
    assert percent(p) == text


# ---- in a notebook


@pytest.mark.parametrize("params", LIVES, ids=str)
def test_the_same_draw_is_the_same_text(params: dict[str, Any], tokenizer: Tokenizer) -> None:
    first, second = (show(drawn(**params), tokenizer, given=9) for _ in range(2))
    assert first._repr_svg_() == second._repr_svg_() == picture(explain(drawn(**params), tokenizer.labels, 9))
    assert first._repr_html_() == second._repr_html_()
    assert repr(first) == repr(second)


def test_without_a_tokenizer_tokens_are_called_by_their_ids(tokenizer: Tokenizer) -> None:
    of = drawn()
    assert f"token_id:{of.token}" in repr(show(of))
    assert printable(tokenizer.labels[of.token]) in repr(show(of, tokenizer))


def test_the_table_has_every_row_with_headings(tokenizer: Tokenizer) -> None:
    shown = show(drawn(top_p=0.8), tokenizer)
    root = parsed(shown._repr_html_())
    assert root.find(f".//{SVG}svg") is not None
    body = root.findall(".//tbody/tr")
    assert [row.findtext("th/code") for row in body] == [printable(row.label) for row in shown.draw.rows]
    headings = root.findall(".//thead/tr/th")
    assert all(heading.get("scope") == "col" for heading in headings)
    assert all(len(row) == len(headings) for row in body)
    assert [row.findall("td")[-1].text for row in body] == [row.why for row in shown.draw.rows]
