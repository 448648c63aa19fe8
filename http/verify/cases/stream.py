"""Section 11: the form of a stream's events, and that they are, joined, the answer that is not streamed.

Each case of the second kind asks for the same thing twice, whole and streamed, and needs the case by which the whole
answer is sound: what is found here is the stream's own fault. The joined text shows all that a client was ever shown,
so it is also what tells whether a chunk showed half of a character, or what a stop string should have hidden.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gnomon.http.verify.ask.answer import Lists, Refused, SoundAnswer, UnsoundAnswer, joined
from gnomon.http.verify.ask.exchange import Streamed
from gnomon.http.verify.ask.probe import ANOTHER, PROMPT, Probe
from gnomon.http.verify.cases.echo import ODD
from gnomon.http.verify.cases.entries import MOST, all_near, decimals, forcing, moved
from gnomon.http.verify.cases.labels import BYTE_PAIRS, has_whole_character, in_turn
from gnomon.http.verify.verdict import Judgement, case, honoured, ignored, unclear, wrong


class Chunks(NamedTuple):
    """A stream as it came, and joined."""

    answer: SoundAnswer
    events: tuple[Mapping[str, Any], ...]

    def pieces(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        for event in self.events:
            for piece in event.get("choices") or []:
                yield piece.get("index", 0), piece


async def streamed(p: Probe, **fields: Any) -> Chunks:
    """Raises Refused, UnsoundAnswer."""
    exchange = await p.send(p.body(**fields, stream=True))
    answer = joined(exchange)
    return Chunks(answer, Streamed.read(exchange).events)


async def compared(p: Probe, **fields: Any) -> Judgement | None:
    """None if the whole answer and the joined one are the same."""
    whole, stream = await p.complete(**fields), await p.stream(**fields)
    for name in ("index", "text", "finish_reason"):
        one, other = [[choice.get(name) for choice in answer.choices] for answer in (whole, stream)]
        if one != other:
            return wrong(f"{name} is {_brief(other)} streamed, {_brief(one)} whole", whole=one, streamed=other)
    for c, choice in enumerate(stream.choices):
        lists, others = Lists.read(whole.choices[c].get("logprobs")), Lists.read(choice.get("logprobs"))
        if lists is None:
            continue
        difference = "there are none streamed" if others is None else _unlike(lists, others)
        if difference is not None:
            return wrong(f"logprobs of choice {c}: {difference}")
    return None


def _unlike(one: Lists, other: Lists) -> str | None:
    """What two answers' lists disagree on, in words."""
    for name in ("tokens", "text_offset"):
        mine, theirs = getattr(one, name), getattr(other, name)
        if mine != theirs:
            return f"{name} is {_brief(theirs)} streamed, {_brief(mine)} whole"
    values, others = [[0.0 if value is None else value for value in lists.token_logprobs] for lists in (one, other)]
    if not all_near(values, others) or _nulls(one) != _nulls(other):
        return f"token_logprobs is {decimals(other.token_logprobs)} streamed, {decimals(one.token_logprobs)} whole"
    for place, (top, theirs) in enumerate(zip(one.top_logprobs, other.top_logprobs, strict=False)):
        difference = moved(top, theirs) if top and theirs else None
        if difference is not None or len(top or ()) != len(theirs or ()):
            return f"place {place} of top_logprobs: {difference or 'another number of tokens is listed'}"
    return None


def _nulls(lists: Lists) -> list[list[bool]]:
    return [[value is None for value in items] for items in (lists.token_logprobs, lists.top_logprobs)]


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 70 else text[:69] + "…"


# ---- the events


@case("stream.done", "stream", law="11", says="the stream ends with [DONE], once", needs=("stream.accepted",))
async def done(p: Probe) -> Judgement:
    exchange = (await streamed(p, max_tokens=2)).answer.exchange
    times = sum(line.strip() == b"data: [DONE]" for line in exchange.content.splitlines())
    if times != 1:
        return wrong(f"{times} times [DONE]")
    return honoured("once, at the end")


@case(
    "stream.one_answer",
    "stream",
    law="11",
    says="every chunk has the form of an answer, and all have one id, created, model and system_fingerprint",
    needs=(
        "answer.is_a_completion",
        "stream.accepted",
    ),
)
async def one_answer(p: Probe) -> Judgement:
    events = (await streamed(p, max_tokens=3, **await p.telling())).events
    for event in events:
        if not isinstance(event.get("choices"), list) or event.get("object") != "text_completion":
            return wrong(f"a chunk is {_brief(event)}")
        if not all({"index", "text", "logprobs", "finish_reason"} <= piece.keys() for piece in event["choices"]):
            return wrong(f"a chunk's choice lacks a member: {_brief(event['choices'])}")
    for name in ("id", "created", "model", "system_fingerprint"):
        seen = {json.dumps(event.get(name)) for event in events}
        if len(seen) > 1 or (seen == {"null"} and name != "system_fingerprint"):
            return wrong(f"{name} is {' and '.join(sorted(seen))[:80]} in one stream")
    return honoured(f"in {len(events)} chunks")


@case(
    "stream.one_choice",
    "stream",
    law="11",
    says="a chunk has one choice",
    needs=("stream.accepted", "n.count", "logit_bias.forces"),
)
async def one_choice(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    stream = await streamed(p, logit_bias=forcing(token), max_tokens=2, n=2)
    for event in stream.events:
        if len(event.get("choices") or []) > 1:
            return wrong(f"a chunk has {len(event['choices'])} choices")
    indices = sorted({index for index, _ in stream.pieces()})
    if indices != [0, 1]:
        return wrong(f"the choices of n = 2 have the indices {indices}")
    return honoured("with n = 2 too")


@case(
    "stream.finish_reason",
    "stream",
    law="11",
    says="finish_reason is null in every chunk of a choice but its last",
    needs=("stream.accepted", "answer.is_a_completion"),
)
async def finish_reason(p: Probe) -> Judgement:
    stream = await streamed(p, max_tokens=4, **await p.telling())
    reasons = [piece.get("finish_reason") for _, piece in stream.pieces()]
    if not reasons or any(reason is not None for reason in reasons[:-1]) or not isinstance(reasons[-1], str):
        return wrong(f"chunk by chunk it is {_brief(reasons)}")
    return honoured(f"{_brief(reasons)}")


# ---- the same as whole


@case(
    "stream.text",
    "stream",
    law="11",
    says="joined, the chunks are the answer that is not streamed",
    needs=("stream.accepted", "answer.is_a_completion", "temperature.greedy"),
)
async def stream_text(p: Probe) -> Judgement:
    fields = await p.telling()
    for prompt in (PROMPT, ANOTHER):
        fault = await compared(p, prompt=prompt, max_tokens=6, **fields)
        if fault is not None:
            return fault
    return honoured("two prompts, six tokens each")


@case(
    "stream.logprobs",
    "stream",
    law="11",
    says="joined, the lists of the chunks are those of the answer that is not streamed",
    needs=("stream.text", "logprobs.lists", "logprobs.no_effect"),
)
async def stream_logprobs(p: Probe) -> Judgement:
    return await compared(p, max_tokens=4, logprobs=MOST, **await p.telling()) or honoured("four tokens")


@case(
    "stream.forced",
    "stream",
    law="11",
    says="bias and penalties act in a stream as they do without",
    needs=("stream.logprobs", "logit_bias.forces", "frequency_penalty.accepted", "presence_penalty.accepted"),
)
async def stream_forced(p: Probe) -> Judgement:
    """With lists, which are raw: so a stream that reports other values than the whole answer is seen too."""
    token = (await p.forced_tokens(1))[0]
    fields = {"frequency_penalty": 1, "presence_penalty": 1, "logprobs": 2}
    return await compared(p, logit_bias=forcing(token), max_tokens=3, **fields) or honoured("three forced tokens")


@case(
    "stream.seeded",
    "stream",
    law="11",
    says="with a seed every choice is drawn as it is without stream",
    needs=("stream.text", "seed.choice_of_more"),
)
async def stream_seeded(p: Probe) -> Judgement:
    for seed in (7, 8):
        fault = await compared(p, max_tokens=8, temperature=1, seed=seed, n=2, **await p.telling())
        if fault is not None:
            return fault
    return honoured("two choices with each of two seeds")


@case(
    "stream.each_prompt",
    "stream",
    law="11",
    says="the choices of a list of prompts are told apart by their index",
    needs=("stream.text", "prompt.list"),
)
async def stream_each_prompt(p: Probe) -> Judgement:
    return await compared(p, prompt=[PROMPT, ANOTHER], max_tokens=3, **await p.telling()) or honoured("two prompts")


@case(
    "stream.echo",
    "stream",
    law="11",
    says="a prompt is echoed in a stream as it is without",
    needs=("stream.text", "echo.text"),
)
async def stream_echo(p: Probe) -> Judgement:
    fields = {"max_tokens": 3, **await p.telling()}
    return await compared(p, prompt=ODD, echo=True, **fields) or honoured(f"{ODD!r} and three tokens")


@case(
    "stream.echo_logprobs",
    "stream",
    law="11",
    says="the lists of an echoed prompt are in the stream",
    needs=("stream.echo", "stream.logprobs", "echo.first_is_null", "echo.repeats"),
)
async def stream_echo_logprobs(p: Probe) -> Judgement:
    return await compared(p, max_tokens=2, echo=True, logprobs=1) or honoured("the prompt's places and two more")


@case(
    "stream.echo_alone",
    "stream",
    law="11",
    says="an echo with max_tokens 0 is a stream of the prompt",
    needs=("stream.echo", "echo.max_tokens_zero"),
)
async def stream_echo_alone(p: Probe) -> Judgement:
    return await compared(p, prompt=ODD, max_tokens=0, echo=True) or honoured("the prompt, finish_reason length")


@case(
    "stream.nothing",
    "stream",
    law="11",
    says="with max_tokens 0 a chunk says that the choice has ended",
    needs=("stream.text", "max_tokens.zero"),
)
async def stream_nothing(p: Probe) -> Judgement:
    return await compared(p, max_tokens=0) or honoured('the text "", finish_reason length')


@case(
    "stream.stop",
    "stream",
    law="11",
    says="no chunk shows what a stop string cuts, and what only began like one is shown in the end",
    needs=("stop.earliest", "stream.text", "stop.over_tokens"),
)
async def stream_stop(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    over = (token.text * 4)[len(token.text) - 1 : len(token.text) * 2 + 1]
    for stop in (over, token.text * 3, token.text * 3 + "\x01"):
        fault = await compared(p, logit_bias=forcing(token), max_tokens=6, stop=stop)
        if fault is not None:
            return fault
    return honoured("two stop strings that cut, and one that does not")


@case(
    "stream.stop_logprobs",
    "stream",
    law="11",
    says="the lists of a stream keep the tokens that a stop string cuts",
    needs=("stream.stop", "stream.logprobs", "logprobs.keeps_the_cut"),
)
async def stream_stop_logprobs(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    fields = {"logit_bias": forcing(token), "max_tokens": 6, "stop": token.text * 3, "logprobs": 1}
    return await compared(p, **fields) or honoured("three tokens, all of which a stop string cuts")


@case(
    "stream.tokens_with_text",
    "stream",
    law="11",
    says="a chunk carries whole tokens: its text is that of the tokens it lists",
    needs=("stream.logprobs", "logprobs.labels_are_texts", "logprobs.length"),
)
async def tokens_with_text(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    stream = await streamed(p, logit_bias=forcing(token), max_tokens=4, logprobs=1)
    for _, piece in stream.pieces():
        lists = Lists.read(piece.get("logprobs"))
        labels = "" if lists is None else "".join(lists.tokens)
        if labels != piece.get("text", ""):
            return wrong(f"a chunk has the text {piece.get('text')!r:.40} and the tokens {labels!r:.40}")
    return honoured(f"in {len(list(stream.pieces()))} chunks of four tokens")


@case(
    "stream.whole_characters",
    "stream",
    law="11",
    says="a character made of several tokens comes whole",
    needs=("stream.text", "text.whole_characters"),
)
async def stream_whole_characters(p: Probe) -> Judgement:
    for pair in BYTE_PAIRS:
        try:
            whole = await p.complete(**in_turn(pair))
        except (Refused, UnsoundAnswer):
            continue
        if not has_whole_character(whole):
            continue
        other = (await p.stream(**in_turn(pair))).text
        if other != whole.text:
            return wrong(f"the text is {other!r:.60} streamed, and {whole.text!r:.60} whole")
        return honoured(f"{whole.text!r:.60}, streamed as whole")
    return unclear("no two tokens were found that are parts of one character")


@case(
    "stream.refusal",
    "stream",
    law="12",
    says="a request that is refused is refused without a stream",
    needs=("stream.accepted",),
)
async def refused_without_a_stream(p: Probe) -> Judgement:
    faulty: tuple[dict[str, Any], ...] = ({"max_tokens": -1}, {"temperature": 3}, {"prompt": []})
    for fields in faulty:
        plain, exchange = [await p.send(p.body(**fields, stream=stream)) for stream in (False, True)]
        if plain.status is None or not 400 <= plain.status < 500:
            continue
        if exchange.status != plain.status or exchange.json is None:
            return wrong(
                f"{_brief(fields)} is refused with HTTP {plain.status}, and streamed with HTTP {exchange.status}"
            )
        return honoured(f"HTTP {exchange.status}, in JSON")
    return unclear("none of three faulty requests is refused")


@case(
    "stream.best_of",
    "best_of",
    law="1",
    says="best_of above n cannot be streamed, and is refused by name",
    needs=("stream.refusal", "best_of.accepted"),
    follows="best_of.returns_the_best",
)
async def stream_best_of(p: Probe) -> Judgement:
    exchange = await p.send(p.body(best_of=2, temperature=1, stream=True))
    if exchange.status == 200:
        return ignored("best_of 2 with stream is answered")
    if exchange.status is None or not 400 <= exchange.status < 500:
        return wrong(f"best_of 2 with stream: {exchange.trouble}")
    if not exchange.names("best_of"):
        return wrong(f"it is refused without naming best_of: HTTP {exchange.status}: {exchange.message}")
    return honoured(f"HTTP {exchange.status}: {exchange.message}")


# ---- stream_options


@case(
    "stream_options.off",
    "stream_options",
    law="11",
    says="without include_usage no chunk has a usage",
    needs=("stream.accepted",),
)
async def usage_off(p: Probe) -> Judgement:
    for given, fields in (("no options", {}), ("null", {"stream_options": None})):
        for event in (await streamed(p, max_tokens=2, **fields)).events:
            if "usage" in event:
                return wrong(f"with {given} a chunk has the usage {_brief(event['usage'])}")
    return honoured("none without stream_options, and none with null")


@case(
    "stream_options.false",
    "stream_options",
    law="11",
    says="include_usage false and {} mean none",
    needs=("stream_options.off", "stream_options.accepted"),
)
async def usage_false(p: Probe) -> Judgement:
    for options in ({"include_usage": False}, {}):
        for event in (await streamed(p, max_tokens=2, stream_options=options)).events:
            if "usage" in event:
                return wrong(f"with {json.dumps(options)} a chunk has the usage {_brief(event['usage'])}")
    return honoured("no usage with either")


@case(
    "stream_options.include_usage",
    "stream_options",
    law="11",
    says="include_usage puts null on every chunk and adds a last one with the usage and no choice",
    needs=(
        "usage.present",
        "stream_options.accepted",
    ),
)
async def include_usage(p: Probe) -> Judgement:
    events = (await streamed(p, max_tokens=3, stream_options={"include_usage": True})).events
    *before, last = events
    if not any(event.get("usage") for event in events):
        return ignored("no chunk has a usage")
    if last.get("choices") != [] or not isinstance(last.get("usage"), dict):
        return wrong(f"the last chunk is {_brief(last)}")
    for event in before:
        if event.get("usage", "missing") is not None:
            return wrong(f"a chunk before the last has the usage {_brief(event.get('usage', 'missing'))}")
        if not event.get("choices"):
            return wrong(f"a chunk before the last has no choice: {_brief(event)}")
    return honoured(f"null on {len(before)} chunks, then {_brief(last['usage'])}")


@case(
    "stream_options.same_usage",
    "stream_options",
    law="11",
    says="the usage of a stream is that of the answer not streamed",
    needs=("n.accepted", "stream_options.include_usage", "stream.text", "usage.present"),
)
async def same_usage(p: Probe) -> Judgement:
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    for fields in ({"max_tokens": 3}, {"max_tokens": 2, "n": 2}):
        whole = (await p.complete(**fields)).usage
        stream = (await p.stream(**fields, stream_options={"include_usage": True})).usage
        one, other = [[usage.get(name) for name in names] for usage in (whole, stream)]
        if one != other:
            return wrong(f"{_brief(fields)}: {other} streamed, {one} whole")
    return honoured("for one choice and for two")


CASES = (
    done,
    one_answer,
    one_choice,
    finish_reason,
    stream_text,
    stream_logprobs,
    stream_forced,
    stream_seeded,
    stream_each_prompt,
    stream_echo,
    stream_echo_logprobs,
    stream_echo_alone,
    stream_nothing,
    stream_stop,
    stream_stop_logprobs,
    tokens_with_text,
    stream_whole_characters,
    refused_without_a_stream,
    stream_best_of,
    usage_off,
    usage_false,
    include_usage,
    same_usage,
)
