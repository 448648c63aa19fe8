"""What a case asks with, and what all cases know of the server between them.

    Subject   the server under test: its client, its model's name, what has been learned of the model (each fact once)
    Probe     one case's own view of it: every request it sends is kept for its finding

Any model will do. Where a case needs a token it can rely on, it takes one that a bias of +100 forces (`forced_tokens`);
where it needs a draw whose odds it knows, it takes two of those and the difference of their biases at which they tie
(`tie`, found by bisection at temperature 0). From then on the model is a coin with a known side, whatever it is.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from gnomon.http.verify.ask.answer import Refused, SoundAnswer, Unclear, UnsoundAnswer, joined, whole
from gnomon.http.verify.ask.client import Client
from gnomon.http.verify.ask.exchange import Exchange

T = TypeVar("T")
PROMPT = "The quick brown fox"
ANOTHER = "Once upon a time"

ABSENT = object()
"""A value that takes a default out of a request."""

SURELY = 70.0
"""The bias that already forces a token, so that 100 leaves no other a chance, at a temperature of 1 neither."""

GOES_ON = 20
"""So many tokens a case has of a forced one at most: the model must not end its text within them."""

FORCE = 60.0
"""The bias of the two tokens of a coin: far above all others, and below 100 by enough to set one against the other."""

TIE_PRECISION = 0.05
NO_TIE = "the biases of two forced tokens, moved against each other by 30 either way, do not change which one wins"


class Forced(NamedTuple):
    """A token that a bias of +100 makes the model repeat: `text` is what one of it adds to the answer."""

    id: int
    text: str

    @property
    def openings(self) -> set[str]:
        """What it is where a text begins with it: some tokenizers take the space before a word away there."""
        return {self.text, self.text.removeprefix(" ")}


class Coin(NamedTuple):
    """Two tokens whose odds are known after `context`: they tie where the second's bias is `tie` below the first's."""

    first: Forced
    second: Forced
    context: str | tuple[int, ...]
    tie: float

    def bias(self, lead: float) -> dict[str, float]:
        """A logit_bias under which the first's logit is `lead` above the second's, and all others are out of reach."""
        return {str(self.first.id): FORCE, str(self.second.id): round(FORCE - self.tie - lead, 6)}


class Subject:
    """The server under test."""

    def __init__(self, client: Client, model: str) -> None:
        self.client = client
        self.model = model
        self._facts: dict[object, asyncio.Future[Any]] = {}

    async def fact(self, key: object, find: Callable[[], Awaitable[T]]) -> T:
        """What `find` finds; once for all cases, its exception included."""
        known = self._facts.get(key)
        if known is None:
            known = self._facts[key] = asyncio.ensure_future(find())
        try:
            return await asyncio.shield(known)
        finally:
            if known.done() and not known.cancelled():
                known.exception()  # seen: no warning about a failure that every waiter has had

    async def close(self) -> None:
        """Ends what is still being found out, for nobody."""
        for known in self._facts.values():
            known.cancel()
        await asyncio.gather(*self._facts.values(), return_exceptions=True)


class Probe:
    """One case at work."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.exchanges: list[Exchange] = []

    # ---- asking

    async def send(self, body: Mapping[str, Any] | bytes, **how: Any) -> Exchange:
        """POST /completions with a body, whatever it is; what comes back is not judged."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        cost = how.pop("cost", None)
        if cost is None:
            cost = _most_tokens(body) if not isinstance(body, bytes) else 64
        exchange = await self.subject.client.send("POST", "/completions", content, cost=cost, **how)
        self.exchanges.append(exchange)
        return exchange

    async def get(self, path: str) -> Exchange:
        exchange = await self.subject.client.send("GET", path)
        self.exchanges.append(exchange)
        return exchange

    def body(self, **fields: Any) -> dict[str, Any]:
        """A small legal request: greedy, one token, with these fields over the defaults; ABSENT takes one out."""
        defaults = {"model": self.subject.model, "prompt": PROMPT, "max_tokens": 1, "temperature": 0}
        return {name: value for name, value in {**defaults, **fields}.items() if value is not ABSENT}

    async def complete(self, **fields: Any) -> SoundAnswer:
        """The answer to `body(**fields)`. Raises Refused, UnsoundAnswer."""
        crowd = fields.pop("_crowd", False)
        return whole(await self.send(self.body(**fields), crowd=crowd))

    async def stream(self, **fields: Any) -> SoundAnswer:
        """The same, streamed and joined. Raises Refused, UnsoundAnswer."""
        return joined(await self.send(self.body(**fields, stream=True)))

    # ---- what is known of the model

    async def forceable(self) -> list[Forced]:
        """Tokens with different, visible ASCII texts that a bias of +100 makes the model repeat; maybe none."""
        return await self.subject.fact("forced tokens", lambda: _find_forced(Probe(self.subject)))

    async def forced_tokens(self, wanted: int = 2) -> list[Forced]:
        """`wanted` of these. Raises Unclear where there are fewer."""
        found = await self.forceable()
        if len(found) < wanted:
            raise Unclear(
                f"only {len(found)} of the tokens tried could be forced by a bias of 100 and have a text of their own"
            )
        return found[:wanted]

    async def telling(self) -> dict[str, Any]:
        """Fields under which this model's texts can be told apart: none where its own can; else, for one that ends at
        once, repeats itself or has tokens without text, a bias that leaves it the tokens that can be forced."""
        return await self.subject.fact("telling", lambda: _find_telling(Probe(self.subject)))

    async def coin(
        self, context: str | tuple[int, ...] = PROMPT, first: Forced | None = None, second: Forced | None = None
    ) -> Coin:
        """Two tokens, the first two that can be forced if none are given, and where they tie after a prompt."""
        if first is None or second is None:
            first, second = await self.forced_tokens(2)
        one, other = first, second
        key = ("tie", one.id, other.id, context)
        tie = await self.subject.fact(key, lambda: _find_tie(Probe(self.subject), one, other, context))
        return Coin(one, other, context, tie)

    async def toss(
        self, coin: Coin, lead: float, seeds: Sequence[int | None], with_seeds: bool = False, **fields: Any
    ) -> list[bool]:
        """One draw a seed, or without any where seeds are not told apart: whether the coin's first token came."""
        bias = coin.bias(lead)
        if not with_seeds and not await self.subject.fact("seeds", lambda: _tells_seeds(Probe(self.subject))):
            seeds = [None] * len(seeds)
        answers = await asyncio.gather(
            *(
                self.complete(prompt=coin.context, logit_bias=bias, seed=seed, **{"temperature": 1, **fields})
                for seed in seeds
            )
        )
        return [side(coin, answer) for answer in answers]

    async def share(
        self, coin: Coin, lead: float, law: float, other: float, most: int = 256, **fields: Any
    ) -> tuple[int, int, float]:
        """Draws until it is 10,000 : 1 which of two shares of the first token holds; (firsts, draws, log odds for
        `law`). Wald's sequential test: either error has odds of at most 1 in 10,000."""
        firsts = draws = 0
        odds = 0.0
        while draws < most and abs(odds) < math.log(1e4):
            tosses = await self.toss(coin, lead, range(1 + draws, 17 + draws), **fields)
            draws += len(tosses)
            firsts += sum(tosses)
            odds = firsts * math.log(law / other) + (draws - firsts) * math.log((1 - law) / (1 - other))
        return firsts, draws, odds


def side(coin: Coin, answer: SoundAnswer) -> bool:
    if answer.text == coin.first.text:
        return True
    if answer.text == coin.second.text:
        return False
    raise Unclear(f"with both biases at {FORCE:g} neither of the two tokens came, but {answer.text!r:.40}")


async def _tells_seeds(probe: Probe) -> bool:
    """Whether twelve seeds are taken and draw both of two equally probable tokens."""
    coin = await probe.coin()
    try:
        answers = [await probe.complete(logit_bias=coin.bias(0), temperature=1, seed=seed) for seed in range(1, 13)]
    except (Refused, UnsoundAnswer):
        return False
    return len({side(coin, answer) for answer in answers}) == 2


async def _find_forced(probe: Probe) -> list[Forced]:
    """Tries ids that are ordinary tokens in most vocabularies, a few at a time, until six serve."""
    found: list[Forced] = []
    ids = (300, 400, 500, 600, 700, 800, 1000, 1200, 1500, 1800, 264, 270, 65, 66, 97, 98, 110, 120, 72, 80)
    for at in range(0, len(ids), 4):
        for forced in await asyncio.gather(*(_force(probe, v) for v in ids[at : at + 4])):
            if forced is not None and forced.text not in {known.text for known in found}:
                found.append(forced)
        if len(found) >= 4:
            break
    return found


async def _force(probe: Probe, v: int) -> Forced | None:
    """What two tokens more add to the text: so neither a wrong count of tokens nor a wrong usage can mislead."""
    try:
        two, four = [(await probe.complete(logit_bias={str(v): 100}, max_tokens=k)).text for k in (2, 4)]
    except (Refused, UnsoundAnswer):
        return None
    if not four.startswith(two):
        return None
    added = four[len(two) :]
    piece = added[: len(added) // 2]
    if added != piece * 2 or two != piece * (len(two) // max(len(piece), 1)):
        return None
    is_visible = piece.strip() and piece.isascii() and piece.isprintable()
    return Forced(v, piece) if is_visible and await _goes_on(probe, v, four) else None


async def _goes_on(probe: Probe, v: int, text: str) -> bool:
    """Whether the token also comes by a smaller bias, and again and again: some models end a text in spite of a bias.
    A server that says `stop` of every answer does not say so of one that ended."""
    try:
        four = await probe.complete(logit_bias={str(v): SURELY}, max_tokens=4)
        more = await probe.complete(logit_bias={str(v): SURELY}, max_tokens=GOES_ON)
    except Refused:  # beyond a short context: the few tokens of most cases have room
        return True
    except UnsoundAnswer:
        return False
    return four.text == text and (four.has_ended or not more.has_ended)


async def _find_telling(probe: Probe) -> dict[str, Any]:
    try:
        texts = [(await probe.complete(prompt=prompt, max_tokens=8)).text for prompt in (PROMPT, ANOTHER)]
    except (Refused, UnsoundAnswer):
        return {}
    if texts[0] != texts[1] and all(len(set(text.replace("\ufffd", ""))) > 1 for text in texts):
        return {}
    others = [token for token in await probe.forceable() if token.text not in texts[0]]  # what it repeats would win
    return {"logit_bias": {str(token.id): FORCE for token in others}} if len(others) > 1 else {}


async def _find_tie(probe: Probe, first: Forced, second: Forced, context: str | tuple[int, ...]) -> float:
    async def first_wins(gap: float) -> bool:
        bias = {str(first.id): FORCE, str(second.id): round(FORCE - gap, 6)}
        answer = await probe.complete(prompt=context, logit_bias=bias)
        return side(Coin(first, second, context, gap), answer)

    guess = await _reported_tie(probe, first, second, context)
    if guess is not None and await first_wins(guess + TIE_PRECISION) and not await first_wins(guess - TIE_PRECISION):
        return guess
    low, high = -FORCE / 2, FORCE / 2
    if await first_wins(low) or not await first_wins(high):
        raise Unclear(NO_TIE)
    while high - low > TIE_PRECISION:
        middle = (low + high) / 2
        if await first_wins(middle):
            high = middle
        else:
            low = middle
    return (low + high) / 2


async def _reported_tie(probe: Probe, first: Forced, second: Forced, context: str | tuple[int, ...]) -> float | None:
    """Where the two tie by the log-probabilities that the server reports, to be believed only if they do tie there."""
    try:
        answers = [
            await probe.complete(prompt=context, logit_bias={str(one.id): 100}, logprobs=1) for one in (first, second)
        ]
        values = [answer.logprobs().token_logprobs[0] for answer in answers]
    except (Refused, UnsoundAnswer, Unclear, IndexError):
        return None
    if not all(isinstance(value, int | float) for value in values):
        return None
    gap = float(values[1]) - float(values[0])  # type: ignore[arg-type]
    return gap if abs(gap) < FORCE / 2 else None


def _most_tokens(body: Mapping[str, Any]) -> int:
    """What a request may cost at most: a generous guess for texts."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        prompts: list[Any] = prompt
    else:
        prompts = [prompt]
    read = sum(len(one) if isinstance(one, str | list) else 1 for one in prompts)
    candidates = max((body.get(name) or 1 for name in ("n", "best_of") if isinstance(body.get(name), int)), default=1)
    sampled = body.get("max_tokens", 16)
    return read + len(prompts) * candidates * (sampled if isinstance(sampled, int) else 16)
