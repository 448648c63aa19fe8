"""Sections 2, 3, 5 and 9: what goes in and when it ends. Prompts, max_tokens, stop strings, suffix, user."""

from __future__ import annotations

import json
from typing import Any

from gnomon.http.verify.ask.answer import Refused, SoundAnswer, whole
from gnomon.http.verify.ask.probe import ABSENT, ANOTHER, PROMPT, Forced, Probe
from gnomon.http.verify.cases.request import says_error
from gnomon.http.verify.verdict import Judgement, case, honoured, ignored, unclear, wrong
from gnomon.reference.stop import StopMatcher

# ---- prompts


@case("prompt.ids", "prompt", law="2", says="a prompt may be a list of token ids", needs=("logit_bias.forces",))
async def prompt_ids(p: Probe) -> Judgement:
    a, b, c = await p.forced_tokens(3)
    texts = [(await p.complete(prompt=ids, max_tokens=4)).text for ids in ([a.id, b.id], [b.id, c.id, a.id])]
    return honoured(f"accepted; two of them are continued with {texts[0]!r:.40} and {texts[1]!r:.40}")


@case(
    "prompt.ids_verbatim",
    "prompt",
    law="2",
    says="ids are used as they are: nothing is put before them",
    needs=("prompt.ids", "echo.lengths"),
)
async def prompt_ids_verbatim(p: Probe) -> Judgement:
    a, b, c = await p.forced_tokens(3)
    answer = await p.complete(prompt=[a.id, b.id, c.id], echo=True, logprobs=0)
    entries = len(answer.logprobs().tokens)
    if entries != 4:
        return wrong(f"three ids and one sampled token are shown as {entries} entries", tokens=answer.logprobs().tokens)
    return honoured("three ids are three entries of the echo")


@case(
    "prompt.list", "prompt", law="2", says="a list is the same as the separate requests", needs=("temperature.greedy",)
)
async def prompt_list(p: Probe) -> Judgement:
    prompts, fields = [PROMPT, ANOTHER], {"max_tokens": 4, **await p.telling()}
    alone = [(await p.complete(prompt=prompt, **fields)).text for prompt in prompts]
    for order in (prompts, prompts[::-1]):
        answer = await p.complete(prompt=order, **fields)
        expected = [alone[prompts.index(prompt)] for prompt in order]
        if len(answer.choices) != 2 or [choice.get("index") for choice in answer.choices] != [0, 1]:
            return wrong(f"two prompts have {len(answer.choices)} choices")
        if answer.texts != expected:
            return wrong(
                "two prompts in one request have other texts than alone", together=answer.texts, alone=expected
            )
    return honoured("two prompts in one request have the texts that each has alone")


@case(
    "prompt.list_seeded",
    "prompt",
    law="2",
    says="with a seed, element j of a list gives what it gives alone, and equal elements give equal choices",
    needs=("prompt.list", "seed.repeats"),
)
async def prompt_list_seeded(p: Probe) -> Judgement:
    prompts = [PROMPT, ANOTHER, ANOTHER]
    fields = {"max_tokens": 10, "temperature": 1.0, "seed": 5, **await p.telling()}
    alone = [(await p.complete(prompt=prompt, **fields)).text for prompt in prompts[:2]]
    together = (await p.complete(prompt=prompts, **fields)).texts
    if together != [alone[0], alone[1], alone[1]]:
        return wrong("with a seed, prompts in one request have other texts than alone", together=together, alone=alone)
    return honoured("three prompts, two of them equal, have the texts that each has alone")


@case("prompt.list_of_ids", "prompt", law="2", says="a prompt may be a list of lists of ids", needs=("prompt.ids",))
async def prompt_list_of_ids(p: Probe) -> Judgement:
    a, b = await p.forced_tokens(2)
    prompts = [[a.id, b.id, a.id], [b.id]]
    alone = [(await p.complete(prompt=prompt, max_tokens=4)).text for prompt in prompts]
    together = (await p.complete(prompt=prompts, max_tokens=4)).texts
    if together != alone:
        return wrong("two lists of ids in one request have other texts than alone", together=together, alone=alone)
    return honoured("two lists of ids have the texts that each has alone")


@case(
    "prompt.empty", "prompt", law="2", says='"" and null are the beginning of a document', needs=("temperature.greedy",)
)
async def prompt_empty(p: Probe) -> Judgement:
    fields = await p.telling()
    answers = [await p.complete(prompt=prompt, max_tokens=4, **fields) for prompt in ("", None)]
    if answers[0].text != answers[1].text:
        return wrong('"" and null have different texts', texts=[answer.text for answer in answers])
    return honoured("the same text for both")


# ---- max_tokens


@case(
    "max_tokens.bounds",
    "max_tokens",
    law="3",
    says="a larger max_tokens continues the same text",
    needs=("max_tokens.accepted", "temperature.greedy"),
)
async def max_tokens_bounds(p: Probe) -> Judgement:
    """A model may end every text at once, and its tokens may have no text: then another prompt is tried, and tokens
    that a bias makes it choose, until one and eight tokens differ in something."""
    tries: list[dict[str, Any]] = [{}, {"prompt": ANOTHER}]
    tries += [{"logit_bias": {str(v): 100}} for v in (97, 98, 300, 400, 66)]
    for fields in tries:
        try:
            one, eight = [await p.complete(max_tokens=k, **fields) for k in (1, 8)]
        except Refused:
            if "logit_bias" in fields:  # none of this server's, or no id of this vocabulary
                continue
            raise
        judgement = _bounded(one, eight)
        if judgement is not None:
            return judgement
    return unclear("this model ends every text at once, so that 1 and 8 tokens are the same")


def _bounded(one: SoundAnswer, eight: SoundAnswer) -> Judgement | None:
    """What answers of at most 1 and 8 tokens tell; None where the model ended both by itself."""
    if not eight.text.startswith(one.text.rstrip("\ufffd")):  # which the next token may make a character of
        return wrong("8 tokens do not begin with the text of 1", one=one.text, eight=eight.text)
    if one.text != eight.text or one.finish_reason != eight.finish_reason:
        return honoured(f"1: {one.text!r:.40}; 8: {eight.text!r:.60}")
    if (one.completion_tokens, eight.completion_tokens) == (1, 8):
        return honoured("1 and 8 tokens are billed; they have no text")
    billed = one.completion_tokens
    if one.has_ended and not (isinstance(billed, int) and billed > 1):
        return None
    return ignored("1 and 8 give the same text", text=one.text)


@case(
    "max_tokens.exact",
    "max_tokens",
    law="3",
    says="exactly max_tokens are sampled where nothing ends the text sooner",
    needs=("max_tokens.bounds", "logit_bias.forces"),
)
async def max_tokens_exact(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    for k in (1, 5):
        answer = await p.complete(logit_bias={str(token.id): 100}, max_tokens=k)
        if answer.text != token.text * k:
            return wrong(
                f"max_tokens {k} of a forced token gives {answer.text.count(token.text)} of it", text=answer.text
            )
    return honoured("1 and 5 of a forced token")


@case(
    "finish_reason.length",
    "finish_reason",
    law="3",
    says="finish_reason is length where max_tokens ends the text",
    needs=("max_tokens.exact",),
)
async def finish_reason_length(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    reason = (await p.complete(logit_bias={str(token.id): 100}, max_tokens=2)).finish_reason
    return honoured("length") if reason == "length" else wrong(f"it is {reason!r}")


@case(
    "finish_reason.stop",
    "finish_reason",
    law="3",
    says="finish_reason is stop where a stop string ends the text, on the last allowed token too",
    needs=("stop.cuts",),
)
async def finish_reason_stop(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    for most in (4, 1):
        answer = await p.complete(logit_bias={str(token.id): 100}, max_tokens=most, stop=token.text)
        if answer.finish_reason != "stop":
            return wrong(f"it is {answer.finish_reason!r} with max_tokens {most}")
    return honoured("stop")


@case(
    "max_tokens.default_is_16",
    "max_tokens",
    law="1",
    says="without max_tokens 16 are sampled",
    needs=("max_tokens.exact", "stop.over_tokens"),
)
async def max_tokens_default(p: Probe) -> Judgement:
    """With a stop string after 20, since a server could have no bound but its context."""
    token = (await p.forced_tokens(1))[0]
    answer = await p.complete(logit_bias={str(token.id): 100}, max_tokens=ABSENT, stop=token.text * 20)
    if answer.text == "":
        return wrong("20 tokens, and it would have gone on")
    if answer.text != token.text * 16:
        return wrong(f"{len(answer.text) / len(token.text):g} tokens")
    return honoured("16 of a forced token")


@case(
    "max_tokens.zero",
    "max_tokens",
    law="3",
    says="max_tokens 0 samples nothing",
    needs=(
        "echo.off",
        "max_tokens.bounds",
    ),
)
async def max_tokens_zero(p: Probe) -> Judgement:
    answer = await p.complete(max_tokens=0, **await p.telling())
    if answer.text:
        return wrong(f"max_tokens 0 gives the text {answer.text!r:.60}")
    return honoured('the text ""')


@case(
    "max_tokens.never_clamped",
    "max_tokens",
    law="1",
    says="a prompt and max_tokens beyond the context are refused, never cut short",
    needs=("max_tokens.accepted",),
    follows="max_tokens.bounds",
)
async def max_tokens_never_clamped(p: Probe) -> Judgement:
    """Streamed, and left after two events: a server that cuts in silence could send its whole context."""
    exchange = await p.send(p.body(max_tokens=10_000_000, stream=True), cost=64, first_events=2)
    if exchange.status == 200 and not says_error(exchange):
        return ignored("max_tokens 10,000,000 is answered with a text")
    if exchange.status is None or exchange.trouble is not None:
        return wrong(f"max_tokens 10,000,000: {exchange.trouble}")
    if exchange.names("max_tokens"):
        return honoured(f"HTTP {exchange.status}: {exchange.message}")
    return wrong(f"max_tokens 10,000,000 is refused without naming it: HTTP {exchange.status}: {exchange.message}")


# ---- stop


def cut(text: str, stops: list[str]) -> str | None:
    """The law's text for one that is generated without end, as long as `text` shows; None if nothing stops it."""
    matcher = StopMatcher(stops)
    for i, char in enumerate(text):
        matched = matcher.push(char)
        if matched:
            return text[: i + 1 - matched]
    return None


async def _stops(p: Probe, token: Forced, stop: Any, tokens: int = 8) -> Judgement | None:
    """None if the answer is the law's for a forced token under these stop strings."""
    answer = await p.complete(logit_bias={str(token.id): 100}, max_tokens=tokens, stop=stop)
    return _ended(answer, token.text * tokens, stop)


def _ended(answer: SoundAnswer, whole_text: str, stop: Any) -> Judgement | None:
    """None if a text that is `whole_text` without stop strings ends with these as the law has it."""
    expected = cut(whole_text, [stop] if isinstance(stop, str) else list(stop))
    shown = json.dumps(stop)
    if answer.text == whole_text and expected is not None:
        return ignored(f"stop {shown} does not end {whole_text!r:.60}")
    if answer.text != (whole_text if expected is None else expected):
        return wrong(f"{whole_text!r:.60} with stop {shown} ends as {answer.text!r:.60}, not as {expected!r:.60}")
    return None


@case(
    "stop.cuts",
    "stop",
    law="5",
    says="a completion ends where a stop string is complete, and is cut before it",
    needs=("stop.accepted", "max_tokens.exact"),
)
async def stop_cuts(p: Probe) -> Judgement:
    for token in await p.forced_tokens(2):
        for stop in (token.text, [token.text[-1]]):
            fault = await _stops(p, token, stop, tokens=3)
            if fault is not None:
                return fault
    return honoured("the text is cut before the first match")


@case(
    "stop.over_tokens",
    "stop",
    law="5",
    says="a stop string may begin in one token and end in another",
    needs=("stop.cuts",),
)
async def stop_over_tokens(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    for length in (2, 3):
        text = token.text * 4
        at = len(token.text) * 2 - 1
        fault = await _stops(p, token, text[at : at + length])
        if fault is not None:
            return fault
        fault = await _stops(p, token, token.text * length)
        if fault is not None:
            return fault
    return honoured("matched over the borders of two and three tokens")


@case(
    "stop.earliest",
    "stop",
    law="5",
    says="the match with the earliest end wins, then that with the earliest start",
    needs=("stop.over_tokens",),
)
async def stop_earliest(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    text = token.text * 8
    last = len(token.text) * 2
    lists = (
        [text[: last + 1], text[1:last]],
        [text[last - 1 : last + 1], text[: last + 1]],
        [token.text * 3, token.text * 2],
    )
    for stops in lists:
        for order in (stops, stops[::-1]):
            fault = await _stops(p, token, order)
            if fault is not None:
                return fault
    fields = await p.telling()
    text = (await p.complete(max_tokens=8, **fields)).text
    for stops in ([text[1:6], text[3:6]], [text[2:5], text[1:7]], [text[:5], text[4:5]]):
        for order in (stops, stops[::-1]) if len(text) >= 7 else ():
            fault = _ended(await p.complete(max_tokens=8, stop=order, **fields), text, order)
            if fault is not None:
                return fault
    return honoured("pairs of stop strings, in either order")


@case(
    "stop.not_in_the_prompt",
    "stop",
    law="5",
    says="a match neither lies in the prompt nor reaches across its end",
    needs=("stop.cuts",),
)
async def stop_not_in_the_prompt(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    for stop in (PROMPT[-1] + token.text[0], PROMPT[4:9]):
        fault = await _stops(p, token, stop, tokens=2)
        if fault is not None:
            return fault
    return honoured("the prompt's own text, and the border after it, match nothing")


@case("stop.empty", "stop", law="1", says='stop "" and [] mean none', needs=("stop.cuts",))
async def stop_empty(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    nothing: tuple[Any, ...] = ("", [], None)
    for stop in nothing:
        answer = await p.complete(logit_bias={str(token.id): 100}, max_tokens=2, stop=stop)
        if answer.text != token.text * 2:
            return wrong(f"stop {json.dumps(stop)} ends the text as {answer.text!r:.60}")
    return honoured('"", [] and null change nothing')


@case(
    "stop.counts_the_cut",
    "stop",
    law="5",
    says="only the text is cut: tokens that the cut hides are counted",
    needs=("stop.over_tokens", "usage.counts_tokens"),
)
async def stop_counts_the_cut(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    answer = await p.complete(logit_bias={str(token.id): 100}, max_tokens=8, stop=token.text * 3)
    if answer.completion_tokens != 3:
        return wrong(f"a stop string of three tokens, all cut: {answer.completion_tokens} are billed")
    return honoured("a stop string of three tokens is billed as 3")


# ---- suffix, user


@case(
    "suffix.honoured_or_refused",
    "suffix",
    law="9",
    says="a suffix is filled in before, or refused by name, never ignored",
    needs=("temperature.greedy",),
)
async def suffix_honoured_or_refused(p: Probe) -> Judgement:
    suffix = " and they all went home."
    plain = await p.complete(max_tokens=8)
    exchange = await p.send(p.body(max_tokens=8, suffix=suffix))
    try:
        filled = whole(exchange)
    except Refused:
        if exchange.names("suffix"):
            return honoured(f"this model does not fill in, and says so: {exchange.message}")
        raise
    if filled.text.endswith(suffix) and filled.text[: -len(suffix)] == plain.text:
        return wrong("the suffix is put after the completion, which does not change for it", text=filled.text)
    if filled.text == plain.text and filled.prompt_tokens == plain.prompt_tokens:
        return ignored("the same text as without it")
    return honoured(f"{filled.text!r:.60} in place of {plain.text!r:.60}")


@case("suffix.empty", "suffix", law="9", says='suffix "" and null have no effect', needs=("temperature.greedy",))
async def suffix_empty(p: Probe) -> Judgement:
    fields = await p.telling()
    plain = (await p.complete(max_tokens=4, **fields)).text
    for suffix in ("", None):
        text = (await p.complete(max_tokens=4, suffix=suffix, **fields)).text
        if text != plain:
            return wrong(f"suffix {json.dumps(suffix)} changes the text", without=plain, with_suffix=text)
    return honoured("the same text as without")


@case(
    "suffix.not_with_echo",
    "suffix",
    law="9",
    says="a suffix with echo, or with a prompt of ids, is refused by name",
    needs=("echo.text", "suffix.honoured_or_refused", "echo.accepted", "prompt.ids"),
)
async def suffix_not_with_echo(p: Probe) -> Judgement:
    a, b = await p.forced_tokens(2)
    for fields in ({"echo": True}, {"prompt": [a.id, b.id]}):
        exchange = await p.send(p.body(suffix=" end", **fields))
        if exchange.status == 200:
            return ignored(f"a suffix with {next(iter(fields))} is answered with a text")
        if exchange.status is None or not 400 <= exchange.status < 500 or not exchange.names("suffix"):
            return wrong(f"HTTP {exchange.status}: {exchange.trouble or exchange.message}")
    return honoured("both are refused, naming suffix")


@case("user.no_effect", "user", law="1", says="user has no effect", needs=("user.accepted", "temperature.greedy"))
async def user_no_effect(p: Probe) -> Judgement:
    fields = await p.telling()
    texts = {(await p.complete(max_tokens=4, user=user, **fields)).text for user in ("a", "somebody else", None)}
    return honoured("the same text for two users and none") if len(texts) == 1 else wrong("the text changes with user")


CASES = (
    prompt_ids,
    prompt_ids_verbatim,
    prompt_list,
    prompt_list_seeded,
    prompt_list_of_ids,
    prompt_empty,
    max_tokens_bounds,
    max_tokens_exact,
    finish_reason_length,
    finish_reason_stop,
    max_tokens_default,
    max_tokens_zero,
    max_tokens_never_clamped,
    stop_cuts,
    stop_over_tokens,
    stop_earliest,
    stop_not_in_the_prompt,
    stop_empty,
    stop_counts_the_cut,
    suffix_honoured_or_refused,
    suffix_empty,
    suffix_not_with_echo,
    user_no_effect,
)
