"""Section 11: a stream's events are sent as they are made. A proxy that buffers answers is what most often breaks it.

No clock says how fast a server is, so two kinds of streams are asked for in turn: long ones, and such of one token. In
a stream that is sent as it is made, the first event comes when it would come if the stream ended there; in one that is
held back, it comes with the last, and later than the first event of a stream of one token.
"""

from __future__ import annotations

import json
import re
from statistics import median
from typing import Any, NamedTuple

from gnomon.http.verify.ask.answer import Refused, Unclear, joined
from gnomon.http.verify.ask.exchange import Exchange
from gnomon.http.verify.ask.probe import Probe
from gnomon.http.verify.verdict import Judgement, case, honoured, unclear, wrong

SIZES = (16, 64, 256, 512)
"""Tokens of the long streams: each is tried until one shows the matter. Proxies hold back some kilobytes at a time, so
a short one shows it best; a fast server needs a long one."""

LONG = 0.2
"""Seconds that an answer must take before its events can be said to come as they are made: no burst is torn so far."""

TRIES = 10
SPREAD, ENOUGH = 0.5, 3
"""A stream whose events come during half of its time was sent as it was made; so many are enough to say so."""

AT_ONCE, MOST_AT_ONCE = 0.1, 8
"""A stream of which all events come in the last tenth of its time was held back, if at least so many were."""

MOST_OUT_OF_ORDER = 1
"""Of 100 pairs of a long and a short stream, in so few may the short one's first event be the later one."""


class Timed(NamedTuple):
    """Seconds from a request to the first and to the last event that has text."""

    first: float
    last: float
    text: str

    @property
    def spread(self) -> float:
        """The part of the time during which text came: 0 if all of it came at once."""
        return (self.last - self.first) / max(self.last, 1e-9)


def timed(exchange: Exchange) -> Timed:
    """Raises Refused and UnsoundAnswer as `joined`, and Unclear where no event has text."""
    text = joined(exchange).text
    ends = [end for end, data in _events(exchange.content) if _has_text(data)]
    if not ends:
        raise Unclear("no event of the stream has a text")
    first, last = (
        next(piece.seconds for piece in exchange.arrived if piece.size >= end) for end in (ends[0], ends[-1])
    )
    return Timed(first, last, text)


def _events(content: bytes) -> list[tuple[int, bytes]]:
    """The data of every event, and how many bytes of the answer there must be to have it: to the end of its line."""
    lines = re.finditer(rb"^data:(.*?)\r?$", content, re.MULTILINE)
    return [(line.end(), line.group(1).strip()) for line in lines]


def _has_text(data: bytes) -> bool:
    try:
        event = json.loads(data)
    except ValueError:
        return False
    choices = event.get("choices") if isinstance(event, dict) else None
    return any(isinstance(choice, dict) and choice.get("text") for choice in choices or ())


async def _ask(p: Probe, fields: dict[str, Any], tokens: int) -> Timed:
    return timed(await p.send(p.body(**fields, max_tokens=tokens, stream=True)))


class Tries(NamedTuple):
    """Streams of `tokens` tokens, and as many of one token, asked for in turn."""

    tokens: int
    long: list[Timed]
    short: list[Timed]

    @property
    def is_spread(self) -> bool:
        return sum(one.spread >= SPREAD for one in self.long) >= ENOUGH

    @property
    def is_long(self) -> bool:
        return median(one.last for one in self.long) >= LONG

    @property
    def is_held_back(self) -> bool:
        if not all(one.text and "\ufffd" not in one.text for one in self.short):
            return False  # the first token has no character that could be sent before the next ones
        out_of_order = sum(one.first >= other.first for one in self.short for other in self.long)
        at_once = sum(one.spread < AT_ONCE for one in self.long)
        return len(self.short) == TRIES and out_of_order <= MOST_OUT_OF_ORDER and at_once >= MOST_AT_ONCE

    def evidence(self) -> dict[str, Any]:
        return {
            "first": [round(one.first, 4) for one in self.long],
            "last": [round(one.last, 4) for one in self.long],
            "first_of_one_token": [round(one.first, 4) for one in self.short],
        }


async def _tried(p: Probe, fields: dict[str, Any], tokens: int) -> Tries:
    tries = Tries(tokens, [], [])
    for _ in range(TRIES):
        tries.long.append(await _ask(p, fields, tokens))
        if tries.is_spread:
            break
        tries.short.append(await _ask(p, fields, 1))
    return tries


@case(
    "stream.as_it_is_made",
    "stream",
    law="11",
    says="a stream is sent as it is made: its first event comes well before its last",
    needs=("stream.accepted",),
    alone=True,
    odds="1 in 23,000",
)
async def as_it_is_made(p: Probe) -> Judgement:
    """A sound server is accused only if the first events of ten long streams come later than those of ten short ones,
    one of 100 pairs aside: whatever delays both alike, be it load or a slow machine, orders them so once in 92,378
    times (2 of the 184,756 orders of ten and ten), with each of four lengths. And eight of the ten must have come
    within the last tenth of their time. One that holds back whole answers is missed only if in three of ten streams
    the burst at the end is torn apart by as long as the answer took to make, 0.1 s or more; where answers are made
    faster than can be told apart, the verdict is unclear.
    """
    forced = await p.forceable()  # so that no end token makes the answer a short one
    fields = {"logit_bias": {str(forced[0].id): 100}} if forced else {}
    tries = await _tried(p, fields, SIZES[0])
    for tokens in SIZES[1:]:
        if tries.is_held_back or (tries.is_spread and tries.is_long):
            break
        try:
            tries = await _tried(p, fields, tokens)
        except Refused:  # beyond the context
            break
    if tries.is_spread:
        spread = median(one.spread for one in tries.long)
        words = f"the events of {tries.tokens} tokens come during {spread:.0%} of the answer's time"
        return honoured(words, **tries.evidence())
    first, last = median(one.first for one in tries.long), median(one.last for one in tries.long)
    times = f"the first event of {tries.tokens} tokens comes after {first:.3g} s and the last after {last:.3g} s"
    if tries.is_held_back:
        alone = median(one.first for one in tries.short)
        held = "the server, or a proxy that buffers answers, holds events back"
        return wrong(f"{times}; of one token it comes after {alone:.3g} s: {held}", **tries.evidence())
    return unclear(f"{times}: too fast, or too busy, to tell whether events are held back", **tries.evidence())


CASES = (as_it_is_made,)
