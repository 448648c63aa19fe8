"""Section 6: where the tokens stand in the text, `text_offset`."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from gnomon.http.verify.ask.probe import ANOTHER, PROMPT, Probe
from gnomon.http.verify.cases.echo import ODD
from gnomon.http.verify.cases.entries import (
    forcing,
    is_plain,
)
from gnomon.http.verify.verdict import Judgement, case, honoured, unclear, wrong

SPLIT = "x🜚y🜚z"
"""A prompt with a character that hardly any tokenizer has a token for."""


@case(
    "text_offset.list",
    "text_offset",
    law="6",
    says="text_offset has an integer for every token",
    needs=("logprobs.length",),
)
async def offset_list(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    offsets = (await p.complete(logit_bias=forcing(token), max_tokens=3, logprobs=1)).logprobs().text_offset
    if len(offsets) != 3 or not all(isinstance(offset, int) for offset in offsets):
        return wrong(f"for three tokens it is {json.dumps(offsets)[:60]}")
    return honoured(f"three tokens have {offsets}")


@case(
    "text_offset.lengths",
    "text_offset",
    law="6",
    says="from one token to the next it grows by the token's text",
    needs=("text_offset.list", "max_tokens.exact"),
)
async def offset_lengths(p: Probe) -> Judgement:
    for token in await p.forced_tokens(2):
        offsets = (await p.complete(logit_bias=forcing(token), max_tokens=4, logprobs=1)).logprobs().text_offset
        steps = [later - offset for offset, later in pairwise(offsets)]
        if steps != [len(token.text)] * 3:
            return wrong(f"tokens of {len(token.text)} characters, {token.text!r:.40}, have {offsets}")
    return honoured("it grows by as many characters as the token has")


@case(
    "text_offset.from_the_prompt",
    "text_offset",
    law="6",
    says="it counts from the prompt's start, though the prompt is not echoed",
    needs=("text_offset.list",),
)
async def offset_from_the_prompt(p: Probe) -> Judgement:
    return await _begins(p, PROMPT, len(PROMPT))


@case(
    "text_offset.code_points",
    "text_offset",
    law="6",
    says="it counts Unicode code points, neither bytes nor UTF-16 units",
    needs=("text_offset.from_the_prompt",),
)
async def offset_code_points(p: Probe) -> Judgement:
    return await _begins(p, ODD, len(ODD))


@case(
    "text_offset.after_ids",
    "text_offset",
    law="6",
    says="it counts the text of a prompt of ids too",
    needs=("text_offset.from_the_prompt", "prompt.ids_verbatim"),
)
async def offset_after_ids(p: Probe) -> Judgement:
    a, b = await p.forced_tokens(2)
    lengths = {len(opening + b.text + a.text) for opening in a.openings}
    return await _begins(p, [a.id, b.id, a.id], *sorted(lengths, reverse=True))


async def _begins(p: Probe, prompt: Any, characters: int, *others: int) -> Judgement:
    """others: how many the prompt may have instead."""
    offset = (await p.complete(prompt=prompt, logprobs=1)).logprobs().text_offset[:1]
    if offset and offset[0] in (characters, *others):
        return honoured(f"{offset[0]} after a prompt of as many characters")
    counts = {}
    if isinstance(prompt, str):
        counts = {len(prompt.encode()): "its bytes", len(prompt.encode("utf-16-le")) // 2: "its UTF-16 units"}
    known = f": {counts[offset[0]]}" if offset and offset[0] in counts and offset[0] != characters else ""
    return wrong(f"{json.dumps(offset)[1:-1]} after a prompt of {characters} characters{known}")


@case(
    "text_offset.each_prompt",
    "text_offset",
    law="6",
    says="in a list it counts from the start of a choice's own prompt",
    needs=("text_offset.from_the_prompt", "prompt.list"),
)
async def offset_each_prompt(p: Probe) -> Judgement:
    answer = await p.complete(prompt=[PROMPT, ANOTHER], logprobs=1)
    seen = [next(iter(answer.logprobs(c).text_offset), None) for c in (0, 1)]
    if seen != [len(PROMPT), len(ANOTHER)]:
        return wrong(f"{seen[0]} and {seen[1]} after prompts of {len(PROMPT)} and {len(ANOTHER)} characters")
    return honoured(f"{seen[0]} and {seen[1]}")


@case(
    "text_offset.echoed",
    "text_offset",
    law="6",
    says="with echo it says where each token of the prompt begins, and the completion's are as without",
    needs=("text_offset.code_points", "echo.text", "echo.lengths", "logprobs.labels_are_texts"),
)
async def offset_echoed(p: Probe) -> Judgement:
    without = await p.complete(prompt=ODD, logprobs=1)
    echoed = await p.complete(prompt=ODD, logprobs=1, echo=True)
    lists = echoed.logprobs()
    sampled = without.logprobs().text_offset
    offsets = lists.text_offset
    if offsets[0] != 0 or offsets != sorted(offsets) or offsets[len(offsets) - len(sampled) :] != sampled:
        return wrong(f"with echo it is {json.dumps(offsets)[:80]}, and for what is sampled {sampled} without")
    for label, offset in list(zip(lists.tokens, offsets, strict=True))[1 : len(offsets) - len(sampled)]:
        if is_plain(label) and not _stands(label, offset):
            return wrong(f"{label!r:.40} of the prompt {ODD!r} is said to begin at {offset}")
    return honoured(f"{json.dumps(offsets)[:80]} for {ODD!r} and what is sampled")


def _stands(label: str, offset: int) -> bool:
    """Whether the token stands there in ODD. Some tokenizers put a space before a text, which the text has not."""
    is_opening = offset == 0 and label.startswith(" ") and ODD.startswith(label[1:])
    return is_opening or ODD[offset : offset + len(label)] == label


@case(
    "text_offset.split_character",
    "text_offset",
    law="6",
    says="the pieces of one character share its offset",
    needs=("text_offset.echoed",),
)
async def offset_split_character(p: Probe) -> Judgement:
    lists = (await p.complete(prompt=SPLIT, logprobs=1, echo=True)).logprobs()
    places = list(zip(lists.tokens, lists.text_offset, strict=True))[:-1]
    pieces = [offset for label, offset in places if not is_plain(label)]
    if len(pieces) < 4:
        return unclear("this model's tokenizer does not split the character 🜚, or does not say so")
    others = {label: offset for label, offset in places if label in ("y", "z")}
    if not set(pieces) <= {1, 3} or others.get("y", 2) != 2 or others.get("z", 4) != 4:
        return wrong(f"the tokens of {SPLIT!r} have {[offset for _, offset in places]}", tokens=lists.tokens)
    return honoured(f"the tokens of {SPLIT!r} have {[offset for _, offset in places]}")


@case(
    "text_offset.after_the_cut",
    "text_offset",
    law="6",
    says="tokens that a stop string cut off have offsets at or after the text's end",
    needs=("text_offset.from_the_prompt", "logprobs.keeps_the_cut"),
)
async def offset_after_the_cut(p: Probe) -> Judgement:
    token = (await p.forced_tokens(1))[0]
    answer = await p.complete(logit_bias=forcing(token), max_tokens=6, stop=token.text * 3, logprobs=1)
    offsets = answer.logprobs().text_offset
    if offsets != sorted(offsets) or len(offsets) != 3 or offsets[0] < len(PROMPT) + len(answer.text):
        return wrong(f"the text ends at {len(PROMPT) + len(answer.text)}, and three tokens after it have {offsets}")
    return honoured(f"the text ends at {len(PROMPT)}, and three tokens after it have {offsets}")


CASES = (
    offset_list,
    offset_lengths,
    offset_from_the_prompt,
    offset_code_points,
    offset_after_ids,
    offset_each_prompt,
    offset_echoed,
    offset_split_character,
    offset_after_the_cut,
)
