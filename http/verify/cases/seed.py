"""Sections 4 and 10: randomness is a function of seed, candidate, step and token; nothing else is in it.

The cases of the group `load` make load of their own: the same request alone, beside others, beside copies of itself.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import numpy as np

from gnomon.http.verify.ask.answer import Refused, SoundAnswer, Unclear
from gnomon.http.verify.ask.probe import Coin, Probe, side
from gnomon.http.verify.verdict import Judgement, SharedFault, case, honoured, ignored, wrong
from gnomon.reference.prng import DrawKey, token_words
from gnomon.reference.sampler import gumbel

EDGES = (-1, 0, 2**63 - 1, -(2**63))


async def _varied(p: Probe) -> dict[str, Any]:
    """Fields under which this model's texts differ from seed to seed. Raises Unclear where none do."""
    telling = await p.telling()
    for temperature in (1, 2):
        fields = {"max_tokens": 12, "temperature": temperature, **telling}
        texts = {(await p.complete(seed=seed, **fields)).text for seed in (1, 2, 3)}
        if len(texts) > 1:
            return fields
    raise Unclear("this model gives the same text for three seeds, at temperature 2 too")


@case(
    "seed.repeats",
    "seed",
    law="10",
    says="the same request with the same seed has the same choices",
    needs=("seed.accepted",),
)
async def seed_repeats(p: Probe) -> Judgement:
    fields = await _varied(p)
    for seed in (7, 8):
        texts = {(await p.complete(seed=seed, **fields)).text for _ in range(3)}
        if len(texts) > 1:
            return ignored(f"{len(texts)} texts in three tries with seed {seed}", texts=sorted(texts))
    return honoured("three tries with each of two seeds: one text a seed")


@case(
    "seed.differs",
    "seed",
    law="4",
    says="another seed is another draw",
    needs=("seed.accepted", "logit_bias.adds"),
    odds="1 in 2,000,000,000",
)
async def seed_differs(p: Probe) -> Judgement:
    tosses = await p.toss(await p.coin(), 0, range(100, 132), with_seeds=True)
    if len(set(tosses)) == 1:
        return wrong("two tokens of equal probability: 32 seeds draw the same one")
    return honoured(f"two tokens of equal probability: {sum(tosses)} and {32 - sum(tosses)} of 32 seeds")


@case(
    "seed.fresh_without",
    "seed",
    law="1",
    says="without a seed every request draws anew",
    needs=("logit_bias.adds",),
    odds="1 in 2,000,000,000",
)
async def seed_fresh(p: Probe) -> Judgement:
    tosses = await p.toss(await p.coin(), 0, [None] * 32)
    if len(set(tosses)) == 1:
        return wrong("two tokens of equal probability: 32 requests without a seed draw the same one")
    return honoured(f"two tokens of equal probability: {sum(tosses)} and {32 - sum(tosses)} of 32 requests")


@case(
    "seed.every_integer",
    "seed",
    law="1",
    says="every signed 64-bit integer is an ordinary seed, −1 too",
    needs=("seed.accepted", "seed.repeats"),
)
async def seed_every_integer(p: Probe) -> Judgement:
    fields = await _varied(p)
    for seed in EDGES:
        texts = {(await p.complete(seed=seed, **fields)).text for _ in range(2)}
        if len(texts) > 1:
            return wrong(f"seed {seed} does not repeat", texts=sorted(texts))
    return honoured("−1, 0 and both ends of the range repeat")


@case(
    "seed.all_bits",
    "seed",
    law="4",
    says="all 64 bits of a seed count: seeds that differ by 2³² are two seeds",
    needs=("seed.every_integer", "seed.differs", "logit_bias.adds"),
    odds="1 in 1,000,000",
)
async def seed_all_bits(p: Probe) -> Judgement:
    coin = await p.coin()
    low, high = (
        await p.toss(coin, 0, range(400, 420), with_seeds=True),
        await p.toss(coin, 0, range(2**32 + 400, 2**32 + 420), with_seeds=True),
    )
    if low == high:
        return wrong("20 seeds and those 2³² above them draw the same of two equally probable tokens")
    agree = sum(one == other for one, other in zip(low, high, strict=True))
    return honoured(f"20 seeds and those 2³² above them draw the same of two equal tokens {agree} times")


@case(
    "seed.choice_of_more",
    "seed",
    law="4",
    says="choice 1 of n = 2 is choice 1 of n = 4",
    needs=("seed.repeats", "n.count"),
)
async def choice_of_more(p: Probe) -> Judgement:
    fields = await _varied(p)
    for seed in (3, 4):
        two = (await p.complete(seed=seed, n=2, **fields)).texts
        four = (await p.complete(seed=seed, n=4, **fields)).texts
        if two != four[:2]:
            return wrong(f"with seed {seed} the first two of four choices are not those of two", two=two, four=four)
    return honoured("the first two choices of four are those of two")


@case(
    "seed.choices_are_no_seeds",
    "seed",
    law="4",
    says="choice 1 of a seed is not choice 0 of the next seed",
    needs=("seed.repeats", "n.count", "logit_bias.adds", "n.independent"),
    odds="1 in 500,000",
)
async def choices_are_no_seeds(p: Probe) -> Judgement:
    coin = await p.coin()
    pairs = await coin_pairs(p, coin, range(200, 220))
    same = [second == first_of_next for (_, second), (first_of_next, _) in itertools.pairwise(pairs)]
    if all(same):
        return wrong("choice 1 of a seed is choice 0 of the next one, for 19 seeds of 19")
    return honoured(f"they agree for {sum(same)} of 19 seeds, as two coins do")


async def coin_pairs(p: Probe, coin: Coin, seeds: range) -> list[tuple[bool, bool]]:
    """For every seed, which token choice 0 and choice 1 draw of two that are equally probable."""
    answers = await asyncio.gather(
        *(p.complete(prompt=coin.context, logit_bias=coin.bias(0), temperature=1, n=2, seed=seed) for seed in seeds)
    )
    return [(_drew(coin, answer, 0), _drew(coin, answer, 1)) for answer in answers]


def _drew(coin: Coin, answer: SoundAnswer, choice: int) -> bool:
    return side(coin, SoundAnswer(answer.body, (answer.choices[choice],), answer.exchange))


@case(
    "seed.is_the_law",
    "seed",
    law="4.7",
    says="the draw of a seed is the one of the law: Gumbel noise from threefry2x32 of (seed, candidate, step, id)",
    needs=("seed.repeats", "logit_bias.adds", "seed.differs"),
)
async def seed_is_the_law(p: Probe) -> Judgement:
    coin = await p.coin()
    ids = np.array([coin.first.id, coin.second.id])
    leads = {seed: gumbel(*token_words(DrawKey(seed, 0, 0), ids)) @ (1, -1) for seed in range(300, 340)}
    clear = {seed: lead > 0 for seed, lead in leads.items() if abs(lead) > 0.4}
    tosses = await p.toss(coin, 0, list(clear), with_seeds=True)
    agree = sum(toss == expected for toss, expected in zip(tosses, clear.values(), strict=True))
    if agree == len(clear):
        return honoured(f"{agree} of {agree} draws between two equally probable tokens are the law's")
    return wrong(f"another generator: {agree} of {len(clear)} draws between two equal tokens are the law's")


# ---- load


@case(
    "load.greedy",
    "determinism",
    law="10",
    says="at temperature 0 load changes no byte of the choices",
    alone=True,
    needs=("temperature.greedy",),
)
async def load_greedy(p: Probe) -> Judgement:
    return await _under_load(p, {"temperature": 0})


@case(
    "load.seeded",
    "determinism",
    law="10",
    says="with a seed load changes no byte of the choices",
    alone=True,
    needs=("seed.repeats",),
)
async def load_seeded(p: Probe) -> Judgement:
    return await _under_load(p, {"temperature": 1, "seed": 11})


async def _under_load(p: Probe, fields: dict[str, Any]) -> Judgement:
    """One request three times alone; then twice in a crowd of others of all lengths; then eight of it at once."""
    fields = {**fields, **await p.telling()}
    request = {**fields, "max_tokens": 24, "logprobs": 1}
    try:
        alone = [await p.complete(**request) for _ in range(3)]
    except Refused:
        request = {**fields, "max_tokens": 24}
        alone = [await p.complete(**request) for _ in range(3)]
    others = [
        {"prompt": f"{words} number {i}", "max_tokens": 8 + i % 24, "temperature": 1}
        for i, words in enumerate(("A short prompt", "The tale of a very old and very tired king") * 7)
    ]
    crowd = [request if i in (3, 10) else other for i, other in enumerate(others)]
    beside = await asyncio.gather(*(p.complete(**fields, _crowd=True) for fields in crowd))
    together = await asyncio.gather(*(p.complete(**request, _crowd=True) for _ in range(8)))
    for answers, when in (
        (alone, "in three tries alone"),
        ([alone[0], beside[3], beside[10]], "beside twelve other requests"),
        ([alone[0], *together], "beside copies of itself"),
    ):
        texts = {json.dumps(answer.texts) for answer in answers}
        if len(texts) > 1:
            return wrong(f"{len(texts)} texts {when}", texts=sorted(texts)).showing(SharedFault.varies_with_load)
        if len({json.dumps(answer.choices, sort_keys=True) for answer in answers}) > 1:
            return wrong(f"the text stays, but {_moved(answers)} {when}").showing(SharedFault.varies_with_load)
    return honoured("the same bytes alone, beside twelve others, and eight times at once")


def _moved(answers: list[SoundAnswer]) -> str:
    try:
        values = np.array([answer.logprobs().token_logprobs for answer in answers], float)
        return f"log-probabilities move by up to {np.ptp(values, axis=0).max():.1e}"
    except (Unclear, ValueError, TypeError):
        return "other members of the choices change"


CASES = (
    seed_repeats,
    seed_differs,
    seed_fresh,
    seed_every_integer,
    seed_all_bits,
    choice_of_more,
    choices_are_no_seeds,
    seed_is_the_law,
    load_greedy,
    load_seeded,
)
