"""Section 6: what tokens are called, and that the text is the decoding of all their bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from gnomon.http.verify.ask.answer import Refused, SoundAnswer, UnsoundAnswer
from gnomon.http.verify.ask.probe import Probe
from gnomon.http.verify.cases.entries import (
    forcing,
    is_plain,
)
from gnomon.http.verify.verdict import Judgement, case, honoured, unclear, wrong

SPACED_IDS = (262, 264, 270, 278, 300, 400, 259)
"""Ids that are words with a space before them in many vocabularies."""

BYTE_IDS = (140, 144, 150, 156, 160, 166, 170, 174, 180, 184)
"""Ids that are single bytes of 0x80 and above in many vocabularies, whose text alone is no character."""

BYTE_PAIRS = ((131, 106), (127, 102), (129, 104), (198, 172), (195, 169), (128, 103))
"""Ids that are C3 and A9, together an é, in many vocabularies; in others, two bytes that make another character."""


@case(
    "logprobs.labels_are_texts",
    "logprobs",
    law="6",
    says="a token's label is its text",
    needs=("max_tokens.exact", "logprobs.lists", "temperature.greedy"),
)
async def labels_are_texts(p: Probe) -> Judgement:
    answer = await p.complete(max_tokens=6, logprobs=1)
    labels = answer.logprobs().tokens
    telling = bool(labels) and all(map(is_plain, labels))
    if telling and not is_made_of(answer.text, labels):
        return wrong(f"the labels {json.dumps(labels)[:80]} do not make the text {answer.text!r:.60}")
    for token in await p.forced_tokens(2):
        answer = await p.complete(logit_bias=forcing(token), logprobs=1)
        labels = answer.logprobs().tokens
        if "".join(labels) not in (answer.text, token.text * len(labels)):
            return wrong(f"a token that adds {token.text!r:.40} to the text has the label {json.dumps(labels)[:60]}")
    return honoured("labels make the text" if telling else "forced tokens have their texts as labels")


@case(
    "logprobs.labels_differ",
    "logprobs",
    law="6",
    says="labels name ids one to one: tokens that are no characters have different ones",
    needs=("logprobs.lists", "logit_bias.forces"),
)
async def labels_differ(p: Probe) -> Judgement:
    seen: dict[str, tuple[int, str]] = {}
    told_apart = None
    for v in BYTE_IDS:
        try:
            answer = await p.complete(logit_bias={str(v): 100}, logprobs=1)
        except (Refused, UnsoundAnswer):
            continue
        label = next(iter(answer.logprobs().tokens), None)
        if label is None or answer.text not in ("", "\ufffd"):
            continue
        for other, text in seen.values():
            told_apart = told_apart or (other, v) if text == answer.text else told_apart
        if label in seen and seen[label][1] == answer.text:
            return wrong(f"ids {seen[label][0]} and {v} both have the label {label!r:.40}")
        seen[label] = (v, answer.text)
        if told_apart and len(seen) > 2:
            break
    if told_apart is None:
        return unclear("no two ids were found whose text alone is no character")
    return honoured(f"{len(seen)} ids whose text alone is no character, as many labels: {', '.join(seen)[:60]}")


@case(
    "text.whole_characters",
    "text",
    law="6",
    says="the text is the decoding of all bytes: tokens that are parts of one character make that character",
    needs=("logprobs.lists", "logit_bias.forces", "frequency_penalty.accepted"),
)
async def whole_characters(p: Probe) -> Judgement:
    for pair in BYTE_PAIRS:
        try:
            answer = await p.complete(**in_turn(pair), logprobs=1)
        except (Refused, UnsoundAnswer):
            continue
        if has_whole_character(answer):
            return honoured(f"ids {pair[0]} and {pair[1]} in turn make {answer.text!r:.60}")
        labels = answer.logprobs().tokens
        if ("bytes:\\xc3", "bytes:\\xa9") in pairwise(labels):
            return wrong(f"the bytes C3 and A9, an é, are shown as {answer.text!r:.60}", tokens=labels)
    return unclear("no two tokens were found that are parts of one character")


@case(
    "text.keeps_spaces",
    "text",
    law="6",
    says="the text is the decoding of all bytes: a space at its beginning is kept",
    needs=("logit_bias.forces",),
)
async def keeps_spaces(p: Probe) -> Judgement:
    for v in SPACED_IDS:
        try:
            one, three = [(await p.complete(logit_bias={str(v): 100}, max_tokens=k)).text for k in (1, 3)]
        except (Refused, UnsoundAnswer):
            continue
        word = one.lstrip(" ")
        if not word or three.removeprefix(one) != f" {word}" * 2:
            continue
        if one == word:
            return wrong(f"id {v} adds {f' {word}'!r} to a text, and {one!r} where it is the first", id=v)
        return honoured(f"id {v} adds {one!r}, the first time too")
    return unclear("no token was found that is a word with a space before it")


def is_made_of(text: str, labels: Sequence[str]) -> bool:
    """Whether labels make a text. Some may be left out: a special token has a name for its label, and adds no text."""
    made = {""}
    for label in labels:
        made |= {start + label for start in made if text.startswith(start + label)}
    return text in made


def in_turn(pair: tuple[int, int]) -> dict[str, Any]:
    """A request that samples two ids and no others; a penalty makes them take turns."""
    return {"logit_bias": {str(v): 60 for v in pair}, "max_tokens": 12, "frequency_penalty": 2}


def has_whole_character(answer: SoundAnswer) -> bool:
    """Whether two of the twelve tokens are one character."""
    return len(answer.text) < 12 and any(char > "\x7f" and char != "\ufffd" for char in answer.text)


CASES = (
    labels_are_texts,
    labels_differ,
    whole_characters,
    keeps_spaces,
)
