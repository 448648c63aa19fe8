"""Section 7: the prompt's text before the completion's, and its tokens with their values before the sampled ones."""

from __future__ import annotations

import json
from typing import Any

from gnomon.http.verify.ask.answer import Lists, Unclear
from gnomon.http.verify.ask.probe import ABSENT, ANOTHER, PROMPT, Forced, Probe
from gnomon.http.verify.cases.entries import (
    all_near,
    decimals,
    forcing,
    moved,
    top_of,
)
from gnomon.http.verify.verdict import Judgement, case, honoured, ignored, unclear, wrong

ODD = "Zoë’s  fox 🦊"
"""A prompt with characters of one to four bytes, and two spaces."""

ENDED = "this model ends its text in spite of a bias of 100"


@case(
    "echo.text",
    "echo",
    law="7",
    says="the text begins with the prompt as it was sent, and goes on as without echo",
    needs=("echo.accepted", "temperature.greedy"),
)
async def echo_text(p: Probe) -> Judgement:
    fields = {"max_tokens": 2, **await p.telling()}
    for prompt in (PROMPT, ODD):
        without, echoed = [await p.complete(prompt=prompt, echo=echo, **fields) for echo in (False, True)]
        if echoed.text == without.text:
            return ignored(f"the text begins with {echoed.text!r:.40}, as without echo")
        if not echoed.text.startswith(prompt):
            return wrong(f"the text begins with {echoed.text!r:.60}, and the prompt was {prompt!r}")
        rest = echoed.text[len(prompt) :]
        if rest.strip() != without.text.strip():  # whether texts are trimmed is not the echo's matter
            return wrong(f"{rest!r:.60} comes after the prompt, and without echo {without.text!r:.60}")
    return honoured(f"also with {ODD!r}")


@case(
    "echo.edges",
    "echo",
    law="7",
    says="spaces and line ends at the prompt's edges are echoed too",
    needs=("echo.text", "text.keeps_spaces"),
)
async def echo_edges(p: Probe) -> Judgement:
    prompt = f"  {PROMPT}\n"
    text = (await p.complete(prompt=prompt, echo=True)).text
    if not text.startswith(prompt):
        return wrong(f"the text begins with {text!r:.60}, and the prompt was {prompt!r}")
    return honoured(f"begins with {prompt!r}")


@case("echo.off", "echo", law="1", says="without echo the text has no prompt in it", needs=("echo.accepted",))
async def echo_off(p: Probe) -> Judgement:
    for given, value in (("without echo", ABSENT), ("with echo false", False), ("with echo null", None)):
        text = (await p.complete(echo=value)).text
        if text.lstrip().startswith(PROMPT) and (await p.complete(echo=True)).text != PROMPT + text:
            return wrong(f"{given} the text begins with the prompt", text=text)
    return honoured("neither without it, nor with false or null")


@case(
    "echo.max_tokens_zero",
    "echo",
    law="7",
    says="with max_tokens 0 the answer is the prompt, and nothing is sampled",
    needs=("echo.text", "max_tokens.zero"),
)
async def echo_zero(p: Probe) -> Judgement:
    answer = await p.complete(prompt=ODD, max_tokens=0, echo=True, **await p.telling())
    if answer.text != ODD:
        return wrong(f"the text is {answer.text!r:.60} for {ODD!r}")
    return honoured("the prompt")


@case(
    "echo.ids",
    "echo",
    law="7",
    says="a prompt of ids is echoed as its text",
    needs=("echo.text", "prompt.ids_verbatim"),
)
async def echo_ids(p: Probe) -> Judgement:
    a, b = await p.forced_tokens(2)
    text = (await p.complete(prompt=[a.id, b.id, a.id], echo=True)).text
    rest = b.text + a.text
    for opening in a.openings:
        if text.startswith(opening + rest):
            return honoured(f"begins with {opening + rest!r}")
    return wrong(f"the text begins with {text!r:.60}, and the ids are {a.text + rest!r}")


@case(
    "echo.each_choice",
    "echo",
    law="7",
    says="every choice begins with the prompt",
    needs=("echo.text", "n.count"),
)
async def echo_each_choice(p: Probe) -> Judgement:
    texts = (await p.complete(n=2, echo=True)).texts
    if not all(text.startswith(PROMPT) for text in texts):
        return wrong("with n = 2 not both choices begin with the prompt", texts=texts)
    return honoured("both choices of n = 2")


@case(
    "echo.each_prompt",
    "echo",
    law="7",
    says="in a list every choice begins with its own prompt",
    needs=("echo.text", "prompt.list"),
)
async def echo_each_prompt(p: Probe) -> Judgement:
    texts = (await p.complete(prompt=[PROMPT, ANOTHER], echo=True)).texts
    if not (texts[0].startswith(PROMPT) and texts[-1].startswith(ANOTHER)):
        return wrong("two prompts are not echoed at the start of their own choices", texts=texts)
    return honoured("two prompts, each before its own choice")


@case(
    "echo.stop",
    "echo",
    law="5",
    says="stop strings do not look at the echoed prompt",
    needs=("stop.over_tokens", "echo.text", "stop.cuts", "stop.not_in_the_prompt"),
)
async def echo_stop(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    for stop, expected in ((PROMPT[4:9], PROMPT + token.text * 2), (token.text * 2, PROMPT)):
        text = (await p.complete(logit_bias=forcing(token), max_tokens=2, stop=stop, echo=True)).text
        if text != expected:
            return wrong(f"with stop {stop!r} the text is {text!r:.60}, not {expected!r}")
    return honoured("a stop string that the prompt has changes nothing; one that is sampled cuts the completion alone")


@case(
    "echo.lengths",
    "echo",
    law="7",
    says="with echo the lists have the prompt's tokens before the sampled ones",
    needs=("echo.accepted", "logprobs.length", "prompt.ids"),
    follows="echo.text",
)
async def echo_lengths(p: Probe) -> Judgement:
    """One more than the ids is no fault of the echo where it is billed: then the server has put a token before them."""
    a, b = await p.forced_tokens(2)
    for ids, k in (([a.id, b.id], 1), ([a.id, b.id], 2), ([a.id, b.id, b.id, a.id], 1)):
        answer = await p.complete(prompt=ids, logit_bias=forcing(a), max_tokens=k, logprobs=1, echo=True)
        lists = answer.logprobs()
        if answer.ended_before(k):
            raise Unclear(ENDED)
        places = {len(items) for items in lists[:3]} | ({len(lists.text_offset)} if lists.text_offset else set())
        if places == {k}:
            return ignored(f"the lists have the {k} sampled alone, as without echo")
        added = answer.prompt_tokens == len(ids) + 1
        if places != {len(ids) + k} and not (places == {len(ids) + 1 + k} and added):
            return wrong(f"{len(ids)} ids and {k} sampled have {' or '.join(map(str, sorted(places)))} places")
    return honoured("prompts of 2 and 4 ids, 1 and 2 sampled")


@case(
    "echo.first_is_null",
    "echo",
    law="7",
    says="the prompt's first token has null in both lists, and no other has",
    needs=("echo.lengths",),
)
async def echo_first(p: Probe) -> Judgement:
    a, b = await p.forced_tokens(2)
    lists = (await p.complete(prompt=[a.id, b.id, a.id], logprobs=1, echo=True)).logprobs()
    if lists.token_logprobs[0] is not None or lists.top_logprobs[0] is not None:
        return wrong(
            f"the first has {json.dumps(lists.token_logprobs[0])[:40]} and {json.dumps(lists.top_logprobs[0])[:60]}"
        )
    for name, items in (("token_logprobs", lists.token_logprobs[1:]), ("top_logprobs", lists.top_logprobs[1:])):
        if None in items:
            return wrong(f"{name} has null beyond the first place", seen=items)
    return honoured("null and null, then values")


@case(
    "echo.scores",
    "echo",
    law="7",
    says="a prompt's token has the value that it has when it is sampled after the same tokens",
    needs=(
        "echo.lengths",
        "logprobs.greedy_is_first",
        "logprobs.larger_k",
        "logprobs.not_of_logit_bias",
        "logprobs.not_of_temperature",
    ),
)
async def echo_scores(p: Probe) -> Judgement:
    a, b = await p.forced_tokens(2)
    told_apart = False
    for first, then in ((a, b), (b, a)):
        sampled = await _sampled(p, first, then)
        known = sampled.token_logprobs
        echoed = (await _echoed(p, [first.id, *[then.id] * 3])).token_logprobs[-4:-1]
        if not all_near(echoed, known):
            shifted = all_near(echoed[1:], known[:-1]) or all_near(echoed[:-1], known[1:])
            return wrong(
                f"sampled, three tokens have {decimals(known)}; echoed {decimals(echoed)}"
                + (": those of a neighbouring place" if shifted else "")
            )
        told_apart |= not all_near(known[1:], known[:-1])
    if not told_apart:
        return unclear("neighbouring tokens have the same values here, so they could be of another place")
    return honoured(f"sampled as echoed: {decimals(known)}")


async def _sampled(p: Probe, first: Forced, then: Forced) -> Lists:
    """Three of one token after one of another, as the server samples them."""
    answer = await p.complete(prompt=[first.id], logit_bias=forcing(then), max_tokens=3, logprobs=3)
    if answer.has_ended and answer.text != then.text * 3:
        raise Unclear(ENDED)
    return answer.logprobs()


async def _echoed(p: Probe, ids: list[int], **fields: Any) -> Lists:
    """The prompt's entries, and one sampled."""
    return (await p.complete(prompt=ids, logprobs=3, echo=True, **fields)).logprobs()


@case(
    "echo.tops",
    "echo",
    law="7",
    says="a prompt's token has the list that it has when it is sampled after the same tokens",
    needs=("echo.scores", "logprobs.count", "logprobs.same_number"),
)
async def echo_tops(p: Probe) -> Judgement:
    a, b = await p.forced_tokens(2)
    sampled = await _sampled(p, a, b)
    echoed = await _echoed(p, [a.id, *[b.id] * 3])
    for place in range(3):
        at = len(echoed.tokens) - 4 + place
        top, own = top_of(echoed, at), echoed.tokens[at]
        difference = moved(top_of(sampled, place), top)
        if difference is not None:
            return wrong(f"place {place + 1} of an echoed prompt: {difference}")
        if len(top) != len(top_of(sampled, place)) or top.get(own) != echoed.token_logprobs[at]:
            return wrong(f"place {place + 1} of an echoed prompt lists {json.dumps(top)[:80]} for {own!r:.40}")
    return honoured("the same tokens and values at three places")


@case(
    "echo.raw",
    "echo",
    law="7",
    says="the prompt's values are raw: neither temperature nor bias nor top_p is in them",
    needs=(
        "echo.first_is_null",
        "temperature.greedy",
        "logit_bias.accepted",
        "temperature.accepted",
        "top_p.accepted",
    ),
)
async def echo_raw(p: Probe) -> Judgement:
    a, b = await p.forced_tokens(2)
    ids = [a.id, b.id, a.id, b.id]
    plain = (await _echoed(p, ids)).token_logprobs[-4:-1]
    for fields in ({"temperature": 2, "top_p": 0.1}, {"logit_bias": forcing(a)}):
        seen = (await _echoed(p, ids, **fields)).token_logprobs[-4:-1]
        if not all_near(plain, seen):
            return wrong(f"with {json.dumps(fields)[1:-1]} they are {decimals(seen)}, not {decimals(plain)}")
    return honoured("the same values with and without")


@case(
    "echo.repeats",
    "echo",
    law="10",
    says="a prompt that the server has seen before is scored as it was",
    needs=("echo.first_is_null", "temperature.greedy"),
)
async def echo_repeats(p: Probe) -> Judgement:
    """Twenty tokens: more than a block of the caches that answer the second time."""
    a, b = await p.forced_tokens(2)
    ids = [a.id, b.id] * 10
    first = (await _echoed(p, ids)).token_logprobs[1:-1]
    for again in (ids, [*ids, a.id]):
        seen = (await _echoed(p, again)).token_logprobs[1 : len(first) + 1]
        if not all_near(first, seen):
            return wrong(f"the first time {decimals(first)[:80]}, later {decimals(seen)[:80]}")
    return honoured("the same values three times")


@case(
    "echo.nothing",
    "echo",
    law="7",
    says="an empty prompt has an entry for the token that stands for it, and no text",
    needs=("echo.text", "echo.first_is_null", "prompt.empty"),
)
async def echo_nothing(p: Probe) -> Judgement:
    without = await p.complete(prompt="", logprobs=1)
    echoed = await p.complete(prompt="", logprobs=1, echo=True)
    if echoed.text != without.text:
        return wrong(f"the text is {echoed.text!r:.40} with echo, and {without.text!r:.40} without")
    lists = echoed.logprobs()
    if len(lists.tokens) != len(without.logprobs().tokens) + 1 or lists.token_logprobs[0] is not None:
        return wrong(f"an empty prompt and one token have the values {decimals(lists.token_logprobs)}")
    return honoured("one entry with null, and the same text as without")


CASES = (
    echo_text,
    echo_edges,
    echo_off,
    echo_zero,
    echo_ids,
    echo_each_choice,
    echo_each_prompt,
    echo_stop,
    echo_lengths,
    echo_first,
    echo_scores,
    echo_tops,
    echo_raw,
    echo_repeats,
    echo_nothing,
)
