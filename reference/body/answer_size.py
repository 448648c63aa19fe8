"""How many bytes an answer may come to, told before any of it is made, from what was asked alone.

    a choice                              160
    what it echoes of the prompt          its text's bytes in JSON; three times these with logprobs, whose arrays have
                                          it again, in `tokens` and in `top_logprobs`
    a token without logprobs              8, if it is sampled
    a token with logprobs k               32 · (k + 3), echoed or sampled: its label and offset, its log-probability,
                                          and k + 1 entries of its ranking

Every candidate is counted at `max_tokens`, the discarded too: they are kept until the best are known. The figures are
those of labels of up to a dozen characters; an answer of the embedded model has about half as many bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from gnomon.reference.errors import InvalidRequest
from gnomon.reference.request import CompletionRequest
from gnomon.reference.response import json_bytes

CHOICE_BYTES = 160
TEXT_BYTES = 8  # of a sampled token
PART_BYTES = 32  # of a label, of a log-probability with its offset, and of each entry of a ranking
CHARACTERS_MEASURED = 2**16  # measured by one call


class Size(NamedTuple):
    """A prompt, as the size of an answer depends on it."""

    tokens: int
    text_bytes: int


def text_bytes(text: str) -> int:
    """The bytes of a text in JSON, without the quotes."""
    return sum(len(json_bytes(text[i : i + CHARACTERS_MEASURED])) - 2 for i in range(0, len(text), CHARACTERS_MEASURED))


def answer_bytes(request: CompletionRequest, prompts: Sequence[Size]) -> int:
    tokens, text = len(prompts) * request.max_tokens, 0
    per_token = TEXT_BYTES
    if request.echo:
        text = sum(prompt.text_bytes for prompt in prompts)
    if request.logprobs is not None:
        per_token = PART_BYTES * (request.logprobs + 3)
        text *= 3
        if request.echo:
            tokens += sum(prompt.tokens for prompt in prompts)
    return request.candidates * (len(prompts) * CHOICE_BYTES + text + tokens * per_token)


def check_size(request: CompletionRequest, prompts: Sequence[Size], most: int) -> None:
    """Raises InvalidRequest for an answer of more than `most` bytes: it names the first field that alone, at its
    smallest, would make the answer small enough; else `prompt`."""
    size = answer_bytes(request, prompts)
    if size <= most:
        return
    smaller = {
        "best_of" if request.candidates > request.n else "n": replace(request, n=1, best_of=None),
        "logprobs": replace(request, logprobs=None),
        "echo": replace(request, echo=False),
        "max_tokens": replace(request, max_tokens=0),
    }
    large = {name: other for name, other in smaller.items() if answer_bytes(other, prompts) < size}
    param = next((name for name, other in large.items() if answer_bytes(other, prompts) <= most), "prompt")
    what = [f"{len(prompts)} prompts", f"{request.candidates} candidates of each", f"max_tokens {request.max_tokens}"]
    if request.echo:
        what.append(f"{sum(prompt.tokens for prompt in prompts)} prompt tokens echoed by each")
    if request.logprobs is not None:
        what.append(f"logprobs {request.logprobs}")
    raise InvalidRequest(
        param,
        f"{param}: the answer may come to {size} bytes ({', '.join(what)}); at most {most} on this server: lower "
        f"or leave out {', '.join(large)}, or send fewer prompts",
    )
