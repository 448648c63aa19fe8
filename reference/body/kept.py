"""What a prepared request keeps while it waits, and how many bytes that is.

Bounds in tokens do not bound memory: an entry of `logit_bias` and the text of a prompt that is to be echoed are no
tokens, and a thousand prompts of one token are more than one of a thousand. So what waits is also counted in bytes,
where it lies. The estimate is of Python's objects as they are; what the operating system gives a process for them may
be a little more.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gnomon.reference.request import CompletionRequest

RUN_BYTES = 2048
"""Of any run, whatever it was asked: its objects, its parameters, its lock and its id."""

BIAS_ENTRY_BYTES = sys.getsizeof(2**20) + sys.getsizeof(0.5)
"""Of an entry of `logit_bias`, beside its place in the table."""


@dataclass(frozen=True, slots=True)
class KeptPrompt:
    """A prompt, as far as an answer needs it: `ids` are P of the law.

    starts: P's text offsets, if the answer shows them · text: if it is echoed, else "" · characters: of the text,
    which are what the completion's own offsets begin at.
    """

    ids: array[int]
    starts: array[int]
    text: str
    characters: int

    @property
    def held_bytes(self) -> int:
        return sum(map(sys.getsizeof, (self, self.ids, self.starts, self.characters))) + _own(self.text)


def held_bytes(prompts: Sequence[KeptPrompt], request: CompletionRequest) -> Mapping[str, int]:
    """Bytes by field; what belongs to none is counted with the prompts, which are always there."""
    bias = request.logit_bias or {}
    return {
        "prompt": RUN_BYTES + sum(prompt.held_bytes for prompt in prompts) + sys.getsizeof(prompts),
        "stop": sum(map(_own, request.stop)),
        "logit_bias": sys.getsizeof(bias) + len(bias) * BIAS_ENTRY_BYTES if bias else 0,
    }


def _own(text: str) -> int:
    """Of a text; those of at most one character are Python's own and shared by all."""
    return sys.getsizeof(text) if len(text) > 1 else 0
