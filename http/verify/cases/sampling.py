"""Section 4, stages 2 to 7: bias, penalties, temperature, nucleus and the draw itself.

All of it is seen on a coin: two tokens that a bias puts out of reach of all others, and whose logits' difference is
known to a twentieth since it was found by bisection at temperature 0 (probe.py). So a penalty of 2 can be seen to move
a logit by 2, and a temperature to give the shares that it must, on any model and without log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import NamedTuple

from gnomon.http.verify.ask.answer import Lists, Refused, SoundAnswer, Unclear, UnsoundAnswer
from gnomon.http.verify.ask.probe import ABSENT, FORCE, NO_TIE, PROMPT, TIE_PRECISION, Forced, Probe, side
from gnomon.http.verify.verdict import Case, Judgement, SharedFault, case, honoured, ignored, unclear, wrong

TOSSES = range(1, 33)
"""Seeds of 32 draws."""

TRIED = (97, 98, 66, 72, 110, 120, 10, 20)
"""Ids of which one at least should not be this model's own choice, nor behind that by more than a bias can add."""

FEW_VISIBLE = "a bias of +100 forces some tokens, but no two with visible texts of their own were found"

SLACK = 0.3
"""What a logit may differ by between equal requests on a server that computes in few bits, or in changing batches."""


# ---- bias


@case(
    "logit_bias.forces",
    "logit_bias",
    law="4.2",
    says="a bias of +100 makes the token the one that is chosen",
    needs=("logit_bias.accepted", "max_tokens.bounds"),
)
async def bias_forces(p: Probe) -> Judgement:
    forced = await p.forceable()
    if len(forced) >= 2:
        return honoured(f"ids {forced[0].id} and {forced[1].id} give {forced[0].text!r} and {forced[1].text!r}")
    plain = await p.complete(max_tokens=4)
    if plain.text.startswith(PROMPT):
        return unclear("the text begins with the prompt, though it is not to be echoed")
    return await _by_numbers(p) or await _by_texts(p, plain)


async def _by_numbers(p: Probe) -> Judgement | None:
    """Whether an id is chosen under a bias of 100, by its label, where the echo's numbers say that it must be. None
    where the server gives no such numbers."""
    told = False
    for v in TRIED:
        try:
            echoed = (await p.complete(prompt=[v, v], echo=True, logprobs=1)).logprobs()
            biased = (await p.complete(prompt=[v], logit_bias={str(v): 100}, logprobs=1)).logprobs()
            plain = (await p.complete(prompt=[v], logprobs=1)).logprobs()
        except (Refused, UnsoundAnswer, Unclear):
            continue
        behind = _behind(echoed)
        if behind is None or not (biased.tokens and plain.tokens):
            continue
        told = True
        if behind > 95:
            continue
        label = echoed.tokens[-2]
        if biased.tokens[-1] == label != plain.tokens[-1]:
            return unclear(FEW_VISIBLE)
        if biased.tokens[-1] != label:
            verdict = ignored if biased.tokens[-1] == plain.tokens[-1] else wrong
            words = (
                f"a bias of +100 does not make {label!r:.40} the token that is chosen, though it is {behind:.3g} behind"
            )
            return verdict(words, id=v, chosen=biased.tokens[-1])
    return (
        unclear("this model is so sure of its tokens that a bias of 100 makes no other the chosen one")
        if told
        else None
    )


def _behind(echoed: Lists) -> float | None:
    """How far the last token of an echoed prompt is behind the most probable one; None where that is not said."""
    if len(echoed.tokens) < 3 or not len(echoed.tokens) == len(echoed.token_logprobs) == len(echoed.top_logprobs):
        return None
    own, top = echoed.token_logprobs[-2], echoed.top_logprobs[-2]
    values = list(top.values()) if isinstance(top, dict) else []
    if not values or not all(isinstance(value, int | float) for value in (own, *values)):
        return None
    return max(values) - float(own)  # type: ignore[arg-type]


async def _by_texts(p: Probe, plain: SoundAnswer) -> Judgement:
    answers = [await p.complete(max_tokens=4, logit_bias={v: 100}) for v in ("97", "98")]
    texts = [answer.text for answer in answers]
    if texts == [plain.text, plain.text] and not plain.ended_before(4):
        return ignored("a bias of +100 on one token changes nothing", text=plain.text)
    if any(text == text[: len(text) // 4] * 4 for text in texts):
        return unclear(FEW_VISIBLE)
    if any(answer.ended_before(4) for answer in answers):
        return unclear("this model ends its text in spite of a bias, or at once")
    return wrong(
        "a bias of +100 on one token does not make it the one that is chosen", without=plain.text, with_bias=texts
    )


@case(
    "logit_bias.adds",
    "logit_bias",
    law="4.2",
    says="a bias is added to the logit as it is, neither clamped nor scaled",
    needs=("logit_bias.forces",),
)
async def bias_adds(p: Probe) -> Judgement:
    try:
        coin = await p.coin()
    except Unclear as reason:
        if str(reason) == NO_TIE:
            return wrong(NO_TIE)
        raise
    for shift in (38.0, -25.0):  # both biases move together: the same difference, so the same tie
        for lead, expected in ((SLACK, True), (-SLACK, False)):
            bias = {v: round(value + shift, 6) for v, value in coin.bias(lead).items()}
            if max(bias.values()) <= 100 and side(coin, await p.complete(logit_bias=bias)) is not expected:
                return wrong(
                    f"two tokens tie at another difference of their biases once both are moved by {shift:g}", bias=bias
                )
    scale = await _scale(p)
    if scale is not None and abs(scale - 1) > 0.1:
        return wrong(f"a bias counts {scale:.2f} times: where two tokens tie is not what their logits differ by")
    together = "two tokens tie at the same difference of their biases, wherever the two lie"
    return honoured(together if scale is None else f"{together}; that is what their logits differ by")


async def _scale(p: Probe) -> float | None:
    """How often a bias counts, by the reported logits of three tokens; None where these tell nothing.

    Two pairs must agree on it: values that are wrong for a reason of their own do not.
    """
    values = [(await _raw(p, token), token) for token in await p.forceable()]
    known = sorted((value, token) for value, token in values if value is not None)
    if len(known) < 3:
        return None
    (low, first), (middle, second), (high, third) = known[0], known[len(known) // 2], known[-1]
    scales = []
    for difference, other in ((middle - low, second), (high - low, third)):
        tie = (await p.coin(PROMPT, first, other)).tie
        if difference < 0.5 or tie < 0.1:
            return None
        scales.append(difference / tie)
    return scales[1] if abs(scales[0] / scales[1] - 1) < 0.1 else None


async def _raw(p: Probe, token: Forced) -> float | None:
    """The token's reported log-probability, if its bias is not in it."""
    values = []
    for bias in (100, 55):
        try:
            answer = await p.complete(logit_bias={str(token.id): bias}, logprobs=1)
            values.append(answer.logprobs().token_logprobs[0])
        except (Refused, Unclear, IndexError):
            return None
    first, second = values
    if not isinstance(first, int | float) or not isinstance(second, int | float) or abs(first - second) > 0.05:
        return None
    return float(first)


# ---- temperature


@case(
    "temperature.greedy",
    "temperature",
    law="4.4",
    says="at temperature 0 the answer is the same each time",
    needs=("prompt.accepted",),
)
async def greedy_repeats(p: Probe) -> Judgement:
    fields = await p.telling()
    texts = {(await p.complete(max_tokens=8, **fields)).text for _ in range(3)}
    if len(texts) == 1:
        return honoured("three times the same text of 8 tokens")
    return wrong(f"{len(texts)} texts in three tries", texts=sorted(texts))


@case(
    "temperature.zero_is_the_largest",
    "temperature",
    law="4.4",
    says="at temperature 0 the largest logit wins, by however little",
    needs=("temperature.accepted", "logit_bias.adds", "temperature.greedy"),
)
async def zero_is_the_largest(p: Probe) -> Judgement:
    coin = await p.coin()
    for lead in (SLACK, -SLACK):
        tosses = await p.toss(coin, lead, range(1, 13), temperature=0)
        if len(set(tosses)) > 1:
            return wrong(f"with one token ahead by {lead:g}, both come at temperature 0", firsts=sum(tosses), draws=12)
    return honoured(f"a token ahead by {SLACK:g} wins 12 times of 12")


@case(
    "temperature.divides",
    "temperature",
    law="4.5",
    says="the logits' differences are divided by the temperature",
    needs=("temperature.accepted", "logit_bias.adds"),
    odds="2 in 10,000",
)
async def temperature_divides(p: Probe) -> Judgement:
    coin = await p.coin()
    seen = []
    for temperature, lead in ((2.0, 2.5), (0.25, 1.0)):
        law, other = share(lead / temperature), share(lead)
        firsts, draws, odds = await p.share(coin, lead, law, other, temperature=temperature, top_p=1)
        seen.append(f"{firsts}/{draws} at {temperature:g} (the law: {law:.0%}, without: {other:.0%})")
        if odds < 0 and plausible(firsts, draws, other):
            return ignored(f"shares as if it were 1: {seen[-1]}")
        if not plausible(firsts, draws, law):
            return wrong(f"another share than the law's: {seen[-1]}")
    return honoured("; ".join(seen))


@case(
    "temperature.default_is_1",
    "temperature",
    law="1",
    says="without temperature it is 1, whatever a model's files say",
    needs=("temperature.divides", "seed.repeats"),
)
async def temperature_default(p: Probe) -> Judgement:
    fields = await p.telling()
    for seed in range(1, 9):
        given, left_out = [
            (await p.complete(temperature=temperature, seed=seed, max_tokens=12, **fields)).text
            for temperature in (1, ABSENT)
        ]
        if given != left_out:
            return wrong(f"with seed {seed} the text is another than at 1", given=given, left_out=left_out)
    return honoured("eight seeds have the same texts with 1 and without")


@case(
    "top_p.default_is_1",
    "top_p",
    law="1",
    says="without top_p every token can be drawn, whatever a model's files say",
    needs=("logit_bias.adds", "temperature.divides"),
    odds="2 in 10,000",
)
async def top_p_default(p: Probe) -> Judgement:
    coin = await p.coin()
    lead = math.log(49)  # the second has 2 in 100: within no usual top_p, min_p or top_k
    firsts, draws, _ = await p.share(coin, lead, 0.98, 0.9999, most=480, temperature=1)
    if firsts == draws:
        return wrong(f"a token of probability 0.02 never comes in {draws} draws")
    return honoured(f"a token of probability 0.02 comes {draws - firsts} times in {draws}")


def share(lead: float) -> float:
    """The probability of a token that is `lead` ahead of the only other."""
    return 1 / (1 + math.exp(-lead))


def plausible(firsts: int, draws: int, p: float, odds: float = 1e-6) -> bool:
    """Whether so many of so many draws are no stranger than `odds`; p may be off by what the tie's precision hides."""
    lead = math.log(p / (1 - p))
    low, high = share(lead - 2 * TIE_PRECISION), share(lead + 2 * TIE_PRECISION)
    return _tail(firsts, draws, low) > odds and _tail(draws - firsts, draws, 1 - high) > odds


def _tail(k: int, n: int, p: float) -> float:
    """P(at most k of n), for k above the mean 1."""
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


# ---- nucleus


@case(
    "top_p.drops",
    "top_p",
    law="4.6",
    says="a token is dropped if those before it have the mass top_p",
    needs=("top_p.accepted", "logit_bias.adds"),
    odds="1 in 10,000",
)
async def top_p_drops(p: Probe) -> Judgement:
    coin = await p.coin()
    tosses = await p.toss(coin, math.log(3), TOSSES, top_p=0.65)
    if all(tosses):
        return honoured("of two tokens with 75 % and 25 %, top_p 0.65 keeps one: 32 of 32 draws")
    return ignored(f"the second of two tokens with 75 % and 25 % comes {tosses.count(False)} times in 32 at top_p 0.65")


@case(
    "top_p.keeps_the_crossing_token",
    "top_p",
    law="4.6",
    says="the token that crosses top_p is kept",
    needs=("top_p.drops",),
    odds="1 in 10,000",
)
async def top_p_keeps(p: Probe) -> Judgement:
    coin = await p.coin()
    tosses = await p.toss(coin, math.log(3), TOSSES, top_p=0.85)
    if all(tosses):
        return wrong("of two tokens with 75 % and 25 %, top_p 0.85 keeps one: 32 of 32 draws")
    return honoured(f"of two tokens with 75 % and 25 %, top_p 0.85 keeps both: {tosses.count(False)} of 32 draws")


@case(
    "top_p.zero",
    "top_p",
    law="4.6",
    says="top_p 0 is legal and keeps one token",
    needs=("top_p.accepted", "logit_bias.adds"),
    odds="2 in 1,000,000,000",
)
async def top_p_zero(p: Probe) -> Judgement:
    coin = await p.coin()
    tosses = await p.toss(coin, 0.5, TOSSES, top_p=0)
    if all(tosses):
        return honoured("the largest wins 32 times of 32")
    return ignored(f"another than the largest comes {tosses.count(False)} times in 32")


@case(
    "top_p.after_temperature",
    "top_p",
    law="4.6",
    says="the mass is that of the probabilities after the temperature",
    needs=("top_p.drops", "top_p.keeps_the_crossing_token", "temperature.divides"),
    odds="1 in 10,000",
)
async def top_p_after_temperature(p: Probe) -> Judgement:
    coin = await p.coin()
    lead = math.log(9)  # 90 % at temperature 1, 75 % at temperature 2
    tosses = await p.toss(coin, lead, TOSSES, top_p=0.82, temperature=2)
    if all(tosses):
        return wrong("tokens of 90 % and 10 %, which are 75 % and 25 % at temperature 2: top_p 0.82 drops the second")
    return honoured(
        f"tokens of 75 % and 25 % after the temperature: the second comes {tosses.count(False)} times in 32"
    )


# ---- penalties


class _Ladder(NamedTuple):
    """Ids before the coin's tokens, and where the two tie after none, one and two of the first: known without a penalty
    since those are put into the prompt, where the law counts nothing."""

    base: tuple[int, ...]
    first: Forced
    second: Forced
    ties: tuple[float, float, float]

    def reach(self, step: int, moved: tuple[float, float, float]) -> float:
        """The least difference of biases at which the first token comes at every step before `step`, while a penalty
        takes `moved` from it."""
        return max(self.ties[k] + moved[k] for k in range(step)) + SLACK


async def _ladders(p: Probe) -> AsyncIterator[_Ladder]:
    a, b, c = await p.forced_tokens(3)
    for base in ((c.id,) * 3, (c.id,), (c.id, c.id, a.id, c.id), (c.id, b.id, c.id)):
        for first, second in ((a, b), (b, a)):
            ties = [(await p.coin((*base, *[first.id] * k), first, second)).tie for k in range(3)]
            yield _Ladder(base, first, second, (ties[0], ties[1], ties[2]))


async def _came(p: Probe, ladder: _Ladder, step: int, gap: float, **penalty: float) -> bool:
    """Whether the first token comes at `step` again, after it came at every step before."""
    bias = {str(ladder.first.id): FORCE, str(ladder.second.id): round(FORCE - gap, 6)}
    answer = await p.complete(prompt=list(ladder.base), max_tokens=step + 1, logit_bias=bias, **penalty)
    before = ladder.first.text * step
    rest = answer.text.removeprefix(before)
    if not answer.text.startswith(before) or rest not in (ladder.first.text, ladder.second.text):
        raise Unclear(f"two forced tokens and a penalty gave {answer.text!r:.60}")
    return rest == ladder.first.text


@case(
    "presence_penalty.once",
    "presence_penalty",
    law="4.3",
    says="is subtracted once from the logit of a token sampled before",
    needs=("presence_penalty.accepted", "logit_bias.adds", "prompt.ids"),
)
async def presence_once(p: Probe) -> Judgement:
    return await _penalty(p, "presence_penalty", (0, 2, 2))


@case(
    "frequency_penalty.each",
    "frequency_penalty",
    law="4.3",
    says="is subtracted for every time that the token was sampled before",
    needs=("frequency_penalty.accepted", "logit_bias.adds", "prompt.ids"),
)
async def frequency_each(p: Probe) -> Judgement:
    return await _penalty(p, "frequency_penalty", (0, 2, 4))


async def _penalty(p: Probe, field: str, moved: tuple[float, float, float]) -> Judgement:
    """A penalty of 2 must take `moved` from the token after none, one and two of it: after one no less and no more;
    after two as well, or, for what is taken once, not twice as much."""
    async for ladder in _ladders(p):
        tries = [(1, ladder.ties[1] + moved[1] + offset, offset > 0) for offset in (SLACK, -SLACK)]
        if moved[2] > moved[1]:
            tries += [(2, ladder.ties[2] + moved[2] + offset, offset > 0) for offset in (SLACK, -SLACK)]
        else:
            gap = max(ladder.ties[2] + moved[2] + SLACK, ladder.reach(2, moved))
            if gap > ladder.ties[2] + 2 * moved[2] - SLACK:
                continue
            tries.append((2, gap, True))
        if any(gap < ladder.reach(step, moved) for step, gap, _ in tries):
            continue
        for step, gap, stays in tries:
            if await _came(p, ladder, step, gap, **{field: 2}) is not stays:
                without = max(ladder.ties[1] + SLACK, ladder.reach(1, moved))
                if without < ladder.ties[1] + moved[1] and await _came(p, ladder, 1, without, **{field: 2}):
                    return ignored(f"{field} 2 does not move the logit of a token that was sampled before")
                return wrong(
                    f"{field} 2 moves the logit of a token that was sampled {step} times by other than {moved[step]:g}"
                )
        return honoured(f"2 moves the logit by {moved[1]:g} after one of the token, and by {moved[2]:g} after two")
    return unclear("this model's logits move too much from token to token to see a penalty of 2")


def not_the_prompt(field: str, echo: bool) -> Case:
    suffix, needs = ("_echoed", ("echo.accepted",)) if echo else ("", ())

    @case(
        f"{field}.not_the_prompt{suffix}",
        field,
        law="4.3",
        says="the prompt's tokens do not count" + (", if they are echoed neither" if echo else ""),
        needs=(f"{field}.accepted", "logit_bias.adds", "prompt.ids", *needs),
    )
    async def judge(p: Probe) -> Judgement:
        a, b, c = await p.forced_tokens(3)
        coin = await p.coin((c.id, a.id, a.id), a, b)
        for lead in (SLACK, -SLACK):
            winner = a if lead > 0 else b
            fields = {"prompt": coin.context, "logit_bias": coin.bias(lead), "echo": echo}
            with_penalty = await p.complete(**fields, **{field: 2})
            if with_penalty.text[-len(winner.text) :] != winner.text:
                judgement = wrong(f"{field} 2 moves the logit of a token that only the prompt has")
                return judgement.showing(SharedFault.counts_the_prompt)
        return honoured("a token that the prompt has twice keeps its logit")

    return judge


NOT_THE_PROMPT = tuple(
    not_the_prompt(field, echo) for field in ("presence_penalty", "frequency_penalty") for echo in (False, True)
)

CASES = (
    bias_forces,
    bias_adds,
    greedy_repeats,
    zero_is_the_largest,
    temperature_divides,
    temperature_default,
    top_p_drops,
    top_p_keeps,
    top_p_zero,
    top_p_after_temperature,
    top_p_default,
    presence_once,
    frequency_each,
    *NOT_THE_PROMPT,
)
