"""Section 11: a stream's events are sent as they are made. A proxy that buffers answers is what most often breaks it.

No clock says how fast a server is, so two kinds of streams are asked for in turn: long ones, and such of one token. In
a stream that is sent as it is made, the first event comes when it would come if the stream ended there; in one that is
held back, it comes with the last, and later than the first event of a stream of one token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from gnomon.http.verify.exchange import Exchange
from gnomon.http.verify.probe import Probe, Refused, joined
from gnomon.http.verify.verdict import Outcome, Unclear, case, honoured, unclear, wrong

FEWEST, MOST = 16, 512
"""Tokens of a long stream: doubled from the fewest on until an answer takes `LONG` seconds."""

LONG = 0.2
TRIES = 10
SPREAD, ENOUGH = 0.5, 3
"""A stream whose events come during half of its time was sent as it was made; so many are enough to say so."""

AT_ONCE, MOST_AT_ONCE = 0.1, 8
"""A stream of which all events come in the last tenth of its time was held back, if at least so many were."""

MOST_OUT_OF_ORDER = 3
"""Of 100 pairs of a long and a short stream, in so few may the short one's first event be the later one."""


class Timed(NamedTuple):
    """Seconds from a request to the first and to the last event that has text."""

    first: float
    last: float

    @property
    def spread(self) -> float:
        """The part of the time during which text came: 0 if all of it came at once."""
        return (self.last - self.first) / max(self.last, 1e-9)


def timed(exchange: Exchange) -> Timed:
    """Raises Refused and Broken as `joined`, and Unclear where no event has text."""
    joined(exchange)
    ends = [end for end, data in _events(exchange.content) if _has_text(data)]
    if not ends:
        raise Unclear("no event of the stream has a text")
    first, last = (
        next(piece.seconds for piece in exchange.arrived if piece.size >= end) for end in (ends[0], ends[-1])
    )
    return Timed(first, last)


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


async def _length(p: Probe, fields: dict[str, Any]) -> int:
    """How many tokens make an answer long enough to be timed, or as many as the model and `MOST` allow."""
    tokens = FEWEST
    seconds = (await _ask(p, fields, tokens)).last
    while seconds < LONG and tokens < MOST:
        try:
            seconds = (await _ask(p, fields, 2 * tokens)).last
        except Refused:  # beyond the context
            break
        tokens *= 2
    return tokens


@case(
    "stream.as_it_is_made",
    "stream",
    law="11",
    says="a stream is sent as it is made: its first event comes well before its last",
    needs=("stream.accepted",),
    alone=True,
    odds="1 in 26,000",
)
async def as_it_is_made(p: Probe) -> Outcome:
    """A sound server is accused only if the first events of ten long streams come later than those of ten short ones,
    3 of 100 pairs aside: whatever delays both alike, be it load or a slow machine, orders them so once in 26,394 times
    (7 of the 184,756 orders of ten and ten). And eight long streams must each have come within the last tenth of their
    time. One that holds back whole answers is missed only if in three of ten streams the burst at the end is torn apart
    by as long as the answer took to make; where answers are made faster than can be told apart, the verdict is unclear.
    """
    forced = await p.forceable()  # so that no end token makes the answer a short one
    fields = {"logit_bias": {str(forced[0].id): 100}} if forced else {}
    tokens = await _length(p, fields)
    long, short = [], []
    for _ in range(TRIES):
        long.append(await _ask(p, fields, tokens))
        if sum(one.spread >= SPREAD for one in long) == ENOUGH:
            spread = median(one.spread for one in long)
            return honoured(
                f"{tokens} tokens: their events come during {spread:.0%} of the answer's time", **_seen(long)
            )
        short.append(await _ask(p, fields, 1))
    out_of_order = sum(one.first >= other.first for one in short for other in long)
    at_once = sum(one.spread < AT_ONCE for one in long)
    first, last, alone = (
        median(one.first for one in long), median(one.last for one in long), median(one.first for one in short),
    )  # fmt: skip
    times = f"the first event of {tokens} tokens comes after {first:.3g} s and the last after {last:.3g} s"
    if out_of_order <= MOST_OUT_OF_ORDER and at_once >= MOST_AT_ONCE:
        held = "the server, or a proxy that buffers answers, holds events back"
        return wrong(f"{times}; of one token it comes after {alone:.3g} s: {held}", **_seen(long, short))
    return unclear(f"{times}: too fast, or too busy, to tell whether events are held back", **_seen(long, short))


def _seen(long: Sequence[Timed], short: Sequence[Timed] = ()) -> dict[str, Any]:
    return {
        "first": [round(one.first, 4) for one in long],
        "last": [round(one.last, 4) for one in long],
        "first_of_one_token": [round(one.first, 4) for one in short],
    }


CASES = (as_it_is_made,)
