"""Section 8 and the usage of section 10: how many choices there are, which, in what order, and what they are billed."""

from __future__ import annotations

import json
from typing import Any

from gnomon.http.verify.ask.answer import SoundAnswer
from gnomon.http.verify.ask.probe import PROMPT, Coin, Probe
from gnomon.http.verify.cases.request import not_refused
from gnomon.http.verify.cases.seed import coin_pairs
from gnomon.http.verify.verdict import Judgement, case, honoured, ignored, unclear, wrong


@case("n.count", "n", law="8", says="n choices come back, with the indices 0 to n − 1 in order", needs=("n.accepted",))
async def n_count(p: Probe) -> Judgement:
    answer = await p.complete(n=3, temperature=1)
    indices = [choice.get("index") for choice in answer.choices]
    if indices == [0, 1, 2]:
        return honoured("three choices: 0, 1, 2")
    verdict = ignored if len(indices) == 1 else wrong
    return verdict(f"n = 3 gives {len(indices)} choices, with the indices {indices}")


@case(
    "n.greedy",
    "n",
    law="8",
    says="n above 1 at temperature 0 is legal, and the choices are equal",
    needs=("n.count", "temperature.greedy"),
)
async def n_greedy(p: Probe) -> Judgement:
    texts = (await p.complete(n=2, max_tokens=4, **await p.telling())).texts
    if len(set(texts)) > 1:
        return wrong("two choices at temperature 0 differ", texts=texts)
    return honoured("two equal choices")


@case(
    "n.independent",
    "n",
    law="8",
    says="the choices of a request are drawn independently of one another",
    needs=("n.count", "logit_bias.adds", "seed.differs"),
    odds="1 in 500,000",
)
async def n_independent(p: Probe) -> Judgement:
    pairs = await coin_pairs(p, await p.coin(), range(200, 220))
    same = sum(first == second for first, second in pairs)
    if same in (0, len(pairs)):
        return wrong(f"two choices draw the same of two equally probable tokens {same} times in {len(pairs)}")
    return honoured(f"two choices draw the same of two equally probable tokens {same} times in {len(pairs)}")


@case(
    "n.with_list",
    "n",
    law="8",
    says="choices are ordered by prompt, then by number: index = prompt · n + number",
    needs=("n.count", "prompt.list", "n.greedy"),
)
async def n_with_list(p: Probe) -> Judgement:
    prompts = [PROMPT, "Once upon a time"]
    fields = {"max_tokens": 4, **await p.telling()}
    alone = [(await p.complete(prompt=prompt, **fields)).text for prompt in prompts]
    answer = await p.complete(prompt=prompts, n=2, **fields)
    indices = [choice.get("index") for choice in answer.choices]
    if indices != [0, 1, 2, 3]:
        return wrong(f"two prompts with n = 2 have the indices {indices}")
    if answer.texts != [alone[0], alone[0], alone[1], alone[1]]:
        return wrong("the choices of two prompts with n = 2 are in another order", texts=answer.texts, alone=alone)
    return honoured("two prompts with n = 2: both of the first, then both of the second")


# ---- best_of


@case(
    "best_of.returns_the_best",
    "best_of",
    law="8",
    says="of best_of candidates those with the highest mean log-probability come back",
    needs=(
        "logprobs.length",
        "logprobs.repeats",
        "logprobs.keeps_the_cut",
        "best_of.accepted",
        "n.count",
        "n.independent",
        "seed.choice_of_more",
        "logprobs.values",
        "stop.cuts",
        "logit_bias.adds",
        "temperature.divides",
    ),
)
async def best_of_returns_the_best(p: Probe) -> Judgement:
    """Ordinary candidates, then such as a stop string ends after one to six tokens: there a sum picks another."""
    first, second = await p.forced_tokens(2)
    coins = await p.coin(PROMPT, first, second), await p.coin(PROMPT, second, first)
    ordinary: list[dict[str, Any]] = [{"max_tokens": 6, "seed": seed} for seed in range(1, 7)]
    races = [_race(coin, seed) for seed in range(1, 9) for coin in coins]
    seen = ""
    for fields in ({"temperature": 1, "logprobs": 1, **fields} for fields in ordinary + races):
        candidates = await p.complete(n=4, **fields)
        scores = {_essence(candidates, c): _mean(candidates, c) for c in range(4)}
        totals = {_essence(candidates, c): sum(_values(candidates, c)) for c in range(4)}
        best, *others = sorted(scores, key=lambda essence: -scores[essence])
        not_the_sum = max(totals, key=lambda essence: totals[essence]) != best
        clear = all(scores[best] - scores[other] > 0.02 for other in others)
        if not clear or best == _essence(candidates, 0) or (seen and not not_the_sum):
            continue
        returned = _essence(await p.complete(best_of=4, **fields), 0)
        if returned == _essence(candidates, 0):
            return ignored("the first candidate comes back, not the best", means=list(scores.values()))
        if returned != best:
            return wrong("another candidate comes back than the one with the highest mean", means=list(scores.values()))
        seen = f"the best of four comes back: a mean of {scores[best]:.2f}, where the first has less"
        if not_the_sum:
            return honoured(f"{seen} and another has the largest sum")
    return (
        honoured(f"{seen}; no seed told the mean from the sum") if seen else unclear("no seed's best is not its first")
    )


def _race(coin: Coin, seed: int) -> dict[str, Any]:
    """A request whose candidates end when the second of the coin's tokens comes, after six tokens at the latest."""
    bias = coin.bias(0.7)
    return {"prompt": coin.context, "logit_bias": bias, "stop": coin.second.text, "max_tokens": 6, "seed": seed}


def _values(answer: SoundAnswer, choice: int) -> list[float]:
    return [value for value in answer.logprobs(choice).token_logprobs if value is not None]


def _mean(answer: SoundAnswer, choice: int) -> float:
    values = _values(answer, choice)
    return sum(values) / max(len(values), 1)


def _essence(answer: SoundAnswer, choice: int) -> str:
    return json.dumps([answer.choices[choice]["text"], answer.logprobs(choice).token_logprobs])


@case("best_of.zero", "best_of", law="1", says="best_of 0 and null mean n", needs=("best_of.accepted", "n.count"))
async def best_of_zero(p: Probe) -> Judgement:
    for value in (0, None):
        answer = await p.complete(n=2, best_of=value, temperature=1)
        if len(answer.choices) != 2:
            return wrong(f"best_of {json.dumps(value)} with n = 2 gives {len(answer.choices)} choices")
    return honoured("two choices with n = 2")


@case(
    "best_of.below_n",
    "best_of",
    law="1",
    says="best_of below n is refused by name",
    needs=("best_of.accepted", "n.count"),
    follows="best_of.returns_the_best",
)
async def best_of_below_n(p: Probe) -> Judgement:
    exchange = await p.send(p.body(best_of=1, n=2, temperature=1))
    return not_refused(exchange, "best_of", "best_of 1 with n = 2") or honoured(
        "best_of 1 with n = 2 is refused by name"
    )


# ---- usage


@case(
    "usage.counts_tokens",
    "usage",
    law="10",
    says="completion_tokens is the number of sampled tokens",
    needs=("usage.present", "max_tokens.exact"),
)
async def usage_counts_tokens(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    for k in (1, 3):
        billed = (await p.complete(logit_bias={str(token.id): 100}, max_tokens=k)).completion_tokens
        if billed != k:
            return wrong(f"{k} tokens are billed as {billed}")
    return honoured("1 is billed as 1, and 3 as 3")


@case(
    "usage.counts_nothing",
    "usage",
    law="10",
    says="max_tokens 0 bills no token",
    needs=("usage.counts_tokens", "max_tokens.zero"),
)
async def usage_counts_nothing(p: Probe) -> Judgement:
    billed = (await p.complete(max_tokens=0)).completion_tokens
    return honoured("0 are billed as 0") if billed == 0 else wrong(f"max_tokens 0 bills {billed} tokens")


@case(
    "usage.counts_the_empty_prompt",
    "usage",
    law="2",
    says="an empty prompt is one token",
    needs=("usage.counts_the_prompt", "prompt.empty"),
)
async def usage_counts_the_empty_prompt(p: Probe) -> Judgement:
    billed = (await p.complete(prompt="")).prompt_tokens
    return honoured("it is billed as 1") if billed == 1 else wrong(f"it is billed as {billed}")


@case(
    "usage.counts_the_prompt",
    "usage",
    law="10",
    says="prompt_tokens is the number of the prompt's tokens, of all prompts",
    needs=("usage.present", "prompt.ids_verbatim", "prompt.list_of_ids"),
)
async def usage_counts_the_prompt(p: Probe) -> Judgement:
    a, b = await p.forced_tokens(2)
    for prompt, tokens in ([a.id, b.id, a.id], 3), ([[a.id, b.id], [b.id] * 3], 5):
        billed = (await p.complete(prompt=prompt)).prompt_tokens
        if billed != tokens:
            return wrong(f"a prompt of {tokens} ids is billed as {billed}", prompt=prompt)
    return honoured("3 ids are billed as 3; lists of 2 and 3 as 5")


@case(
    "usage.counts_choices",
    "usage",
    law="10",
    says="the tokens of every choice are counted, the prompt once",
    needs=("usage.counts_tokens", "n.count"),
)
async def usage_counts_choices(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    fields = {"logit_bias": {str(token.id): 100}, "max_tokens": 2, "temperature": 1}
    one, three = await p.complete(**fields), await p.complete(**fields, n=3)
    if three.completion_tokens != 6:
        return wrong(f"three choices of 2 tokens are billed as {three.completion_tokens}")
    if three.prompt_tokens != one.prompt_tokens:
        return wrong(f"a prompt of {one.prompt_tokens} tokens is billed as {three.prompt_tokens} with n = 3")
    return honoured("three choices of 2 tokens are billed as 6, and the prompt once")


@case(
    "usage.counts_discarded",
    "usage",
    law="10",
    says="the tokens of candidates that best_of discards are counted too",
    needs=("usage.counts_tokens", "best_of.returns_the_best"),
)
async def usage_counts_discarded(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    answer = await p.complete(logit_bias={str(token.id): 100}, max_tokens=2, best_of=3, temperature=1)
    if answer.completion_tokens != 6:
        return wrong(f"three candidates of 2 tokens are billed as {answer.completion_tokens}")
    return honoured("three candidates of 2 tokens are billed as 6")


CASES = (
    n_count,
    n_greedy,
    n_independent,
    n_with_list,
    best_of_returns_the_best,
    best_of_zero,
    best_of_below_n,
    usage_counts_tokens,
    usage_counts_nothing,
    usage_counts_the_prompt,
    usage_counts_the_empty_prompt,
    usage_counts_choices,
    usage_counts_discarded,
)
