"""Section 6: when there are lists of log-probabilities, how long they are, and what a place lists in which order."""

from __future__ import annotations

import json
from typing import Any

from gnomon.http.verify.ask.answer import Lists, Refused, UnsoundAnswer
from gnomon.http.verify.ask.probe import ABSENT, PROMPT, Probe
from gnomon.http.verify.cases.entries import (
    MOST,
    NOISE,
    decimals,
    forcing,
    top_of,
)
from gnomon.http.verify.verdict import Judgement, case, honoured, ignored, unclear, wrong

END_IDS = (0, 2, 1, 50256, 128001, 151643, 151645, 100257)
"""Ids that end a text in many models."""


@case(
    "logprobs.lists",
    "logprobs",
    law="6",
    says="logprobs answers with lists of one length: tokens, token_logprobs, top_logprobs",
    needs=("logprobs.accepted",),
)
async def lists_of_one_length(p: Probe) -> Judgement:
    answer = await p.complete(max_tokens=3, logprobs=2)
    value = answer.choices[0].get("logprobs")
    if value is None:
        return ignored("logprobs 2 gives none")
    if answer.text.lstrip().startswith(PROMPT):
        return unclear("the prompt is echoed, unasked for, and perhaps its entries too")
    lists = Lists.read(value)
    if lists is None:
        return wrong(f"logprobs has not the lists tokens, token_logprobs and top_logprobs: {json.dumps(value)[:80]}")
    lengths = [len(items) for items in lists[:3]]
    if len(set(lengths)) > 1 or not lengths[0]:
        return wrong("tokens, token_logprobs and top_logprobs have {}, {} and {} places".format(*lengths))
    kinds: tuple[tuple[str, list[Any], Any], ...] = (
        ("tokens", lists.tokens, str),
        ("token_logprobs", lists.token_logprobs, int | float),
        ("top_logprobs", lists.top_logprobs, dict),
    )
    for name, items, kind in kinds:
        if not all(isinstance(item, kind) for item in items):
            return wrong(f"{name} has other values than it should: {json.dumps(items)[:80]}")
    return honoured(f"{lengths[0]} places each")


@case(
    "logprobs.off",
    "logprobs",
    law="6",
    says="without logprobs, or with null, there are none",
    needs=("logprobs.accepted",),
)
async def off(p: Probe) -> Judgement:
    for given, value in (("without logprobs", ABSENT), ("with null", None)):
        shown = (await p.complete(logprobs=value)).choices[0].get("logprobs")
        if shown is not None:
            return wrong(f"{given} there are some: {json.dumps(shown)[:80]}")
    return honoured("none without logprobs, and none with null")


@case(
    "logprobs.zero",
    "logprobs",
    law="6",
    says="logprobs 0 is not off: each place has the sampled token alone",
    needs=("logprobs.lists",),
)
async def zero(p: Probe) -> Judgement:
    choice = (await p.complete(max_tokens=4, logprobs=0, temperature=2, **await p.telling())).choices[0]
    if choice.get("logprobs") is None:
        return ignored("logprobs 0 gives none")
    lists = Lists.read(choice["logprobs"])
    if lists is None or not lists.tokens or len(lists.tokens) != len(lists.top_logprobs):
        return wrong(f"logprobs 0 gives other lists than logprobs 2: {json.dumps(choice['logprobs'])[:80]}")
    for label, top in zip(lists.tokens, lists.top_logprobs, strict=True):
        if not isinstance(top, dict) or list(top) != [label]:
            return wrong(f"where {label!r:.40} was sampled, logprobs 0 lists {json.dumps(top)[:80]}")
    return honoured("one token a place, the sampled one")


@case(
    "logprobs.length",
    "logprobs",
    law="6",
    says="the lists have a place for every sampled token",
    needs=("logprobs.lists", "max_tokens.exact"),
)
async def length(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    for k in (1, 3):
        places = len((await p.complete(logit_bias=forcing(token), max_tokens=k, logprobs=1)).logprobs().tokens)
        if places != k:
            return wrong(f"{k} sampled tokens have {places} places")
    return honoured("1 place for one token, 3 for three")


@case(
    "logprobs.empty",
    "logprobs",
    law="6",
    says="where nothing is sampled, the lists are there and empty",
    needs=("logprobs.lists", "max_tokens.zero"),
)
async def empty(p: Probe) -> Judgement:
    value = (await p.complete(max_tokens=0, logprobs=1)).choices[0].get("logprobs")
    lists = Lists.read(value)
    if lists is None or any(lists):
        return wrong(f"with max_tokens 0 logprobs is {json.dumps(value)[:80]}")
    return honoured("max_tokens 0 gives empty lists")


@case(
    "logprobs.end_token",
    "logprobs",
    law="3",
    says="an end token has its place in the lists",
    needs=("logprobs.length", "logit_bias.forces"),
)
async def end_token(p: Probe) -> Judgement:
    for v in END_IDS:
        try:
            answer = await p.complete(logit_bias={str(v): 100}, max_tokens=2, logprobs=1)
        except (Refused, UnsoundAnswer):
            continue
        if answer.finish_reason != "stop" or answer.text:
            continue
        places = len(answer.logprobs().tokens)
        if places == 1:
            return honoured(f"id {v} ends the text at once, and has a place")
        if places == 2 and answer.completion_tokens == 2:  # a token without text, and then an end
            continue
        return wrong(f"id {v} ends the text at once, and the lists have {places} places", id=v)
    return unclear("none of the ids that end a text in many models does so here")


@case(
    "logprobs.keeps_the_cut",
    "logprobs",
    law="5",
    says="a stop string cuts the text; the lists keep every token",
    needs=("logprobs.length", "stop.over_tokens"),
)
async def keeps_the_cut(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    answer = await p.complete(logit_bias=forcing(token), max_tokens=6, stop=token.text * 3, logprobs=1)
    places = len(answer.logprobs().tokens)
    if places != 3:
        return wrong(f"three tokens were sampled, all of which a stop string cuts, and the lists have {places} places")
    return honoured("three tokens, all of which a stop string cuts, have three places")


@case(
    "logprobs.count",
    "logprobs",
    law="6",
    says="logprobs k lists k tokens a place, and the sampled one after them if it is not among them",
    needs=("logprobs.lists", "temperature.greedy", "logit_bias.forces"),
)
async def count(p: Probe) -> Judgement:
    k, added = 3, 0
    plain = (await p.complete(logprobs=k)).logprobs()
    fault = _miscounted(plain, k)
    for token in await p.forced_tokens(2):
        lists = (await p.complete(logprobs=k, logit_bias=forcing(token))).logprobs()
        fault = fault or _miscounted(lists, k)
        if fault is not None:
            return wrong(fault)
        top = top_of(lists)
        if top[lists.tokens[0]] < min(top_of(plain).values()) - NOISE:
            if len(top) != k + 1:
                return wrong(f"the sampled token, which is less probable, stands in place of one of the {k}")
            added += 1
    return honoured(f"{k}, and {k + 1} with a sampled one") if added else unclear(f"forced tokens are among the {k}")


def _miscounted(lists: Lists, k: int) -> str | None:
    top, label = top_of(lists), lists.tokens[0]
    if label not in top:
        return f"the sampled token {label!r:.40} is not among those that its place lists"
    if len(top) == k or (len(top) == k + 1 and top[label] == min(top.values())):
        return None
    return f"logprobs {k} lists {len(top)} tokens, and the sampled one is not an additional one"


@case(
    "logprobs.order",
    "logprobs",
    law="6",
    says="the tokens of a place are listed by falling probability, a sampled one that is added last",
    needs=("logprobs.count",),
)
async def order(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    for fields in ({"max_tokens": 3}, {"logit_bias": forcing(token)}):
        lists = (await p.complete(logprobs=MOST, **fields)).logprobs()
        for place in range(len(lists.top_logprobs)):
            values = list(top_of(lists, place).values())
            if values != sorted(values, reverse=True):
                return wrong(f"place {place} lists them as {decimals(values)}")
    return honoured("falling at four places")


CASES = (
    off,
    lists_of_one_length,
    zero,
    length,
    empty,
    end_token,
    keeps_the_cut,
    count,
    order,
)
