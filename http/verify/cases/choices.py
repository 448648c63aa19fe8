"""Section 8 and the usage of section 10: how many choices there are, which, in what order, and what they are billed."""

from __future__ import annotations

import json
from typing import Any

from gnomon.http.verify.cases.seed import _pairs
from gnomon.http.verify.probe import PROMPT, Answer, Coin, Probe
from gnomon.http.verify.verdict import Outcome, case, honoured, ignored, unclear, wrong


@case("n.count", "n", law="8", says="n choices come back, with the indices 0 to n − 1 in order", needs=("n.accepted",))
async def n_count(p: Probe) -> Outcome:
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
async def n_greedy(p: Probe) -> Outcome:
    texts = (await p.complete(n=2, max_tokens=4)).texts
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
async def n_independent(p: Probe) -> Outcome:
    pairs = await _pairs(p, await p.coin(), range(200, 220))
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
async def n_with_list(p: Probe) -> Outcome:
    prompts = [PROMPT, "Once upon a time"]
    alone = [(await p.complete(prompt=prompt, max_tokens=4)).text for prompt in prompts]
    answer = await p.complete(prompt=prompts, n=2, max_tokens=4)
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
    says="of best_of candidates those with the highest mean log-probability come back, best first",
    needs=(
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
async def best_of_returns_the_best(p: Probe) -> Outcome:
    """Candidates of different lengths, since a stop string ends them: so a sum in place of the mean is seen too."""
    coin = await p.coin()
    telling = 0
    for seed in range(1, 13):
        fields = _race(coin, seed)
        candidates = await p.complete(n=4, **fields)
        scores = [_mean(candidates, c) for c in range(4)]
        order = sorted(range(4), key=lambda c: -scores[c])
        totals = [_mean(candidates, c) * len(candidates.logprobs(c).token_logprobs) for c in range(4)]
        clear = scores[order[0]] - scores[order[1]] > 0.02 and scores[order[1]] - scores[order[2]] > 0.02
        differs = order[0] != 0 and totals.index(max(totals)) != order[0]
        if not clear or (telling and not differs):
            continue
        best = await p.complete(n=2, best_of=4, **fields)
        if [_essence(best, 0), _essence(best, 1)] != [_essence(candidates, c) for c in order[:2]]:
            first_two = [_essence(candidates, 0), _essence(candidates, 1)]
            if [_essence(best, 0), _essence(best, 1)] == first_two:
                return ignored("the first two of the candidates come back, not the best two", means=scores)
            return wrong("other candidates come back than those with the highest mean", means=scores)
        telling += differs
        if telling:
            return honoured(f"the two best of four, by the mean: {scores[order[0]]:.2f} and {scores[order[1]]:.2f}")
    return unclear("no seed gave candidates whose best could be told from the first and from the shortest")


def _race(coin: Coin, seed: int) -> dict[str, Any]:
    """A request whose candidates end after one to six tokens, when the second of the coin's tokens comes."""
    return {
        "prompt": coin.context,
        "logit_bias": coin.bias(0.7),
        "stop": coin.second.text,
        "max_tokens": 6,
        "temperature": 1,
        "seed": seed,
        "logprobs": 0,
    }


def _mean(answer: Answer, choice: int) -> float:
    values = [value for value in answer.logprobs(choice).token_logprobs if value is not None]
    return sum(values) / max(len(values), 1)


def _essence(answer: Answer, choice: int) -> str:
    return json.dumps([answer.choices[choice]["text"], answer.logprobs(choice).token_logprobs])


@case("best_of.zero", "best_of", law="1", says="best_of 0 and null mean n", needs=("best_of.accepted", "n.count"))
async def best_of_zero(p: Probe) -> Outcome:
    for value in (0, None):
        answer = await p.complete(n=2, best_of=value, temperature=1)
        if len(answer.choices) != 2:
            return wrong(f"best_of {json.dumps(value)} with n = 2 gives {len(answer.choices)} choices")
    return honoured("two choices with n = 2")


# ---- usage


@case(
    "usage.counts_tokens",
    "usage",
    law="10",
    says="completion_tokens is the number of sampled tokens",
    needs=("usage.present", "max_tokens.exact"),
)
async def usage_counts_tokens(p: Probe) -> Outcome:
    token = (await p.forced_tokens(1))[0]
    for k in (1, 3):
        billed = (await p.complete(logit_bias={str(token.id): 100}, max_tokens=k)).completion_tokens
        if billed != k:
            return wrong(f"{k} tokens are billed as {billed}")
    return honoured("1 is billed as 1, and 3 as 3")


@case(
    "usage.counts_the_prompt",
    "usage",
    law="10",
    says="prompt_tokens is the number of the prompt's tokens, of all prompts",
    needs=("usage.present", "prompt.ids_verbatim", "prompt.list_of_ids"),
)
async def usage_counts_the_prompt(p: Probe) -> Outcome:
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
async def usage_counts_choices(p: Probe) -> Outcome:
    token = (await p.forced_tokens(1))[0]
    fields = {"logit_bias": {str(token.id): 100}, "max_tokens": 2}
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
async def usage_counts_discarded(p: Probe) -> Outcome:
    token = (await p.forced_tokens(1))[0]
    answer = await p.complete(logit_bias={str(token.id): 100}, max_tokens=2, best_of=3)
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
    usage_counts_tokens,
    usage_counts_the_prompt,
    usage_counts_choices,
    usage_counts_discarded,
)
