"""Sections 4.1 and 6: the values are those of the raw logits, whatever else is asked for, and of their own place."""

from __future__ import annotations

import json
import math
from typing import Any

from gnomon.http.verify.ask.answer import Lists
from gnomon.http.verify.ask.probe import ANOTHER, PROMPT, Probe
from gnomon.http.verify.cases.entries import (
    MOST,
    NOISE,
    all_near,
    decimals,
    forcing,
    is_number,
    moved,
    near,
    top_of,
)
from gnomon.http.verify.verdict import Case, Judgement, case, honoured, unclear, wrong


@case(
    "logprobs.same_number",
    "logprobs",
    law="6",
    says="the sampled token's number in top_logprobs is that of token_logprobs, to the last digit",
    needs=("logprobs.lists",),
)
async def same_number(p: Probe) -> Judgement:
    lists = (await p.complete(max_tokens=4, logprobs=2, temperature=1, **await p.telling())).logprobs()
    for place, (label, value) in enumerate(zip(lists.tokens, lists.token_logprobs, strict=True)):
        listed = top_of(lists, place).get(label)
        if listed != value:
            return wrong(f"{label!r:.40} at place {place} has {value!r:.40} and {listed!r:.40}")
    return honoured(f"equal at {len(lists.tokens)} places")


@case(
    "logprobs.values",
    "logprobs",
    law="4.1",
    says="the values are logarithms of probabilities: finite, at most 0, and a place's add up to 1 at most",
    needs=("logprobs.lists",),
)
async def values(p: Probe) -> Judgement:
    lists = (await p.complete(max_tokens=4, logprobs=MOST)).logprobs()
    for place, value in enumerate(lists.token_logprobs):
        listed = list(top_of(lists, place).values())
        if not all(is_number(number) and math.isfinite(number) and number <= 1e-5 for number in (value, *listed)):
            return wrong(f"place {place} has {decimals([value])} and lists {decimals(listed)}")
        total = math.fsum(map(math.exp, listed))
        if total > 1.01:
            return wrong(f"the probabilities that place {place} lists add up to {total:.3f}")
    return honoured(f"at {len(lists.tokens)} places")


@case(
    "logprobs.greedy_is_first",
    "logprobs",
    law="4.4",
    says="at temperature 0 no token is listed as more probable than the sampled one",
    needs=("logprobs.lists", "temperature.greedy"),
)
async def greedy_is_first(p: Probe) -> Judgement:
    lists = (await p.complete(max_tokens=6, logprobs=2)).logprobs()
    for place, (label, value) in enumerate(zip(lists.tokens, lists.token_logprobs, strict=True)):
        top = top_of(lists, place)
        first = max(top, key=top.__getitem__)
        if value is None or value < top[first] - 1e-4:
            return wrong(
                f"{label!r:.40} was sampled at place {place}, and {first!r:.40} is listed as more probable",
                top=dict(top),
            )
    return honoured(f"at {len(lists.tokens)} places")


@case(
    "logprobs.larger_k",
    "logprobs",
    law="6",
    says="a larger logprobs lists more tokens and changes no value",
    needs=("logprobs.lists", "temperature.greedy"),
)
async def larger_k(p: Probe) -> Judgement:
    ks = (1, 3, MOST)
    by_k = [(await p.complete(max_tokens=4, logprobs=k)).logprobs() for k in ks]
    for k, lists in zip(ks[:-1], by_k[:-1], strict=True):
        if not all_near(lists.token_logprobs, by_k[-1].token_logprobs):
            return wrong(
                f"with logprobs {k} the sampled tokens have {decimals(lists.token_logprobs)}, with {MOST} "
                f"{decimals(by_k[-1].token_logprobs)}"
            )
        for place in range(len(lists.tokens)):
            difference = moved(top_of(by_k[-1], place), top_of(lists, place))
            if difference is not None:
                return wrong(f"logprobs {k} against {MOST}, at place {place}: {difference}")
    if all(near(value, 0) for value in by_k[-1].token_logprobs):
        return unclear("this model is too sure of every token: values made of the listed ones alone would be the same")
    return honoured("the same values with 1, 3 and 5")


@case(
    "logprobs.no_effect",
    "logprobs",
    law="6",
    says="logprobs does not change what is sampled",
    needs=("logprobs.lists", "temperature.greedy"),
)
async def no_effect(p: Probe) -> Judgement:
    fields = {"max_tokens": 6, **await p.telling()}
    without, with_them = await p.complete(**fields), await p.complete(**fields, logprobs=3)
    if without.text != with_them.text:
        return wrong("the text is another with logprobs", without=without.text, with_logprobs=with_them.text)
    return honoured("the same text with and without")


@case(
    "logprobs.repeats",
    "determinism",
    law="10",
    says="the same request at temperature 0 has the same numbers, to the last digit",
    needs=("logprobs.lists", "temperature.greedy"),
)
async def repeats(p: Probe) -> Judgement:
    fields = await p.telling()
    answers = [await p.complete(max_tokens=4, logprobs=2, **fields) for _ in range(3)]
    if len({json.dumps(answer.body.get("system_fingerprint")) for answer in answers}) > 1:
        return unclear("the system_fingerprint differs between the answers")
    seen = [answer.logprobs()[1:3] for answer in answers]
    for later in seen[1:]:
        if later != seen[0]:
            return wrong(f"{json.dumps(later[0])[:90]} after {json.dumps(seen[0][0])[:90]}")
    return honoured("three times the same")


def raw(field: str, changes: tuple[dict[str, Any], ...]) -> Case:
    @case(
        f"logprobs.not_of_{field}",
        "logprobs",
        law="4.1",
        says=f"log-probabilities are those of the raw logits: {field} is not in them",
        needs=("logprobs.lists", "temperature.greedy", f"{field}.accepted"),
    )
    async def judge(p: Probe) -> Judgement:
        for prompt in (PROMPT, ANOTHER, "1, 2, 3,", "def f(x):"):
            plain = top_of((await p.complete(prompt=prompt, logprobs=MOST)).logprobs())
            if max(plain.values()) - min(plain.values()) >= 4 * NOISE:
                break
        else:
            return unclear("the five most probable tokens are too close to one another, whatever the prompt")
        for fields in changes:
            top = top_of((await p.complete(prompt=prompt, logprobs=MOST, **fields)).logprobs())
            difference = moved(plain, top)
            if difference is not None:
                return wrong(f"with {json.dumps(fields)[1:-1]}: {difference}", raw=plain, seen=top)
        return honoured("the same values with " + " and with ".join(json.dumps(fields)[1:-1] for fields in changes))

    return judge


RAW = (
    raw("temperature", ({"temperature": 2}, {"temperature": 0.5})),
    raw("top_p", ({"temperature": 1, "top_p": 0.05},)),
)


@case(
    "logprobs.not_of_logit_bias",
    "logprobs",
    law="4.1",
    says="log-probabilities are those of the raw logits: logit_bias is not in them",
    needs=("logprobs.lists", "temperature.greedy", "logit_bias.forces"),
)
async def not_of_bias(p: Probe) -> Judgement:
    """Seen on the tokens without a bias: one that is forced would take nearly all probability from them."""
    token = (await p.forced_tokens(1))[0]
    plain = top_of((await p.complete(logprobs=MOST)).logprobs())
    lists = (await p.complete(logprobs=MOST, logit_bias=forcing(token))).logprobs()
    top, own = top_of(lists), lists.token_logprobs[0]
    difference = moved(plain, top)
    if difference is not None:
        return wrong(f"with a bias of 100 on another token: {difference}", raw=plain, seen=top)
    others = math.fsum(math.exp(value) for label, value in top.items() if label != lists.tokens[0])
    if is_number(own) and others + math.exp(own) > 1.05:
        return wrong(f"a forced token has {own:.3f}, beside others that have {others:.0%} of the probability")
    return honoured(f"a forced token has {own}, and the others what they have without the bias")


@case(
    "logprobs.not_of_penalties",
    "logprobs",
    law="4.1",
    says="log-probabilities are those of the raw logits: penalties are not in them",
    needs=("logprobs.length", "temperature.greedy", "frequency_penalty.accepted", "presence_penalty.accepted"),
)
async def not_of_penalties(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    fields: dict[str, Any] = {"logit_bias": forcing(token), "max_tokens": 3, "logprobs": MOST}
    plain = (await p.complete(**fields)).logprobs()
    penalized = (await p.complete(**fields, frequency_penalty=2, presence_penalty=2)).logprobs()
    if penalized.tokens != plain.tokens:
        return unclear("penalties of 2 undo a bias of 100, so the two answers have other tokens")
    for place in (1, 2):
        difference = moved(top_of(plain, place), top_of(penalized, place))
        if difference is not None:
            return wrong(f"with both penalties at 2, after {place} of the token: {difference}")
    if all(abs(_penalized(value, 2 + 2 * place) - value) < 2 * NOISE for place, value in _numbers(plain)[1:]):
        return unclear("the repeated token is so probable that penalties would hardly move its value")
    return honoured("a repeated token and the others have the same values with both penalties at 2")


def _numbers(lists: Lists) -> list[tuple[int, float]]:
    return [(place, value) for place, value in enumerate(lists.token_logprobs) if value is not None]


def _penalized(value: float, penalty: float) -> float:
    """The log-probability of a token once its logit is `penalty` lower."""
    return value - penalty - math.log1p(math.exp(min(value, 0)) * math.expm1(-penalty))


@case(
    "logprobs.each_choice",
    "logprobs",
    law="6",
    says="every choice has lists of its own",
    needs=("logprobs.length", "temperature.greedy", "n.count"),
)
async def each_choice(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    answer = await p.complete(logit_bias=forcing(token), max_tokens=2, n=2, logprobs=1)
    for choice in answer.choices:
        lists = Lists.read(choice.get("logprobs"))
        if lists is None or len(lists.tokens) != 2:
            return wrong(f"choice {choice.get('index')} of 2 tokens has {json.dumps(choice.get('logprobs'))[:80]}")
    first, second = (answer.logprobs(c).token_logprobs for c in (0, 1))
    if not all_near(first, second):
        return wrong(f"two choices of the same tokens have {decimals(first)} and {decimals(second)}")
    return honoured(f"two choices of the same tokens both have {decimals(first)}")


@case(
    "logprobs.each_prompt",
    "logprobs",
    law="2",
    says="in a list of prompts each has the values that it has alone",
    needs=("logprobs.lists", "temperature.greedy", "logit_bias.forces", "prompt.list"),
)
async def each_prompt(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    fields: dict[str, Any] = {"logit_bias": forcing(token), "logprobs": 1}
    alone = [(await p.complete(prompt=prompt, **fields)).logprobs().token_logprobs[:1] for prompt in (PROMPT, ANOTHER)]
    together = await p.complete(prompt=[PROMPT, ANOTHER], **fields)
    seen = [together.logprobs(c).token_logprobs[:1] for c in (0, 1)]
    if not all(all_near(*pair) for pair in zip(alone, seen, strict=True)):
        return wrong(f"alone two prompts have {decimals(alone[0] + alone[1])}, together {decimals(seen[0] + seen[1])}")
    if all_near(*alone):
        return unclear("the forced token has the same value after both prompts")
    return honoured(f"{decimals(alone[0] + alone[1])}, alone and together")


CASES = (
    same_number,
    values,
    greedy_is_first,
    larger_k,
    no_effect,
    repeats,
    *RAW,
    not_of_bias,
    not_of_penalties,
    each_choice,
    each_prompt,
)
