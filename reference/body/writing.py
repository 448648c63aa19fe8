"""An answer's JSON in pieces: the same bytes as `json_bytes` of the whole, made a little at a time.

`json.dumps` of a large answer is one call that no other thread, no other connection and no signal interrupts: a
second for every 40 MB. Here a call encodes some thousand numbers or characters, and what a choice echoes is
encoded once a prompt: its pieces are the same objects in each of the prompt's choices.

    ReportedTokens    some tokens with what is reported of them
    Text       an encoded stretch of text and the four encoded arrays of its entries, without quotes and brackets
    choice     one choice's JSON, of one or two stretches: the echoed prompt, and sampled tokens
    framed     the object around the choices, without them
    answer     the object and its choices
    blocks     pieces joined to some size, for a socket
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from gnomon.reference.body.rankings import Ranking
from gnomon.reference.response import Completion, json_bytes

VALUES_AT_ONCE = 1024  # log-probabilities encoded by one call, which takes a millisecond or two
CHARACTERS_AT_ONCE = 2**16
BLOCK_BYTES = 2**16  # bytes


class ReportedTokens(NamedTuple):
    """Tokens in a row: ids, log-probabilities, rankings of `top` ids, offsets to each of which `shift` is added."""

    top: int
    ids: Sequence[int]
    logprobs: Sequence[float | None]
    tops: Sequence[Ranking | None]
    starts: Sequence[int]
    shift: int = 0


class EncodedStretch(NamedTuple):
    """An encoded stretch of a choice. arrays: tokens, token_logprobs, top_logprobs and text_offset, or none."""

    text: list[bytes]
    arrays: tuple[list[bytes], ...] = ()


ARRAYS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def encoded(text: str, entries: ReportedTokens | None, at: range, labels: Sequence[str]) -> EncodedStretch:
    """at: which of the entries."""
    parts = [json_bytes(text[i : i + CHARACTERS_AT_ONCE])[1:-1] for i in range(0, len(text), CHARACTERS_AT_ONCE)]
    if entries is None:
        return EncodedStretch(parts)
    arrays: tuple[list[bytes], ...] = ([], [], [], [])
    step = max(1, VALUES_AT_ONCE // (entries.top + 1))
    for begin in range(at.start, at.stop, step):
        here = slice(begin, min(begin + step, at.stop))
        ids, logprobs = entries.ids[here], entries.logprobs[here]
        tops = zip(ids, logprobs, entries.tops[here], strict=True)
        values = (
            [labels[v] for v in ids],
            list(logprobs),
            [top_logprobs(v, lp, top, labels) for v, lp, top in tops],
            [entries.shift + start for start in entries.starts[here]],
        )
        for array, value in zip(arrays, values, strict=True):
            array.append(json_bytes(value)[1:-1])
    return EncodedStretch(parts, arrays)


def top_logprobs(v: int, lp: float | None, top: Ranking | None, labels: Sequence[str]) -> Mapping[str, float] | None:
    """Section 6: the k most probable tokens by label, and the token itself after them if it is not among them."""
    if lp is None or top is None:
        return None
    return {labels[u]: value for u, value in top} | {labels[v]: lp}


def choice(
    index: int, stretches: Sequence[EncodedStretch], has_logprobs: bool, finish_reason: str | None
) -> Iterator[bytes]:
    yield b'{"index":%d,"text":"' % index
    for stretch in stretches:
        yield from stretch.text
    yield b'","logprobs":' + (b"{" if has_logprobs else b"null")
    if has_logprobs:
        for number, name in enumerate(ARRAYS):
            yield b'%s"%s":[' % (b"," if number else b"", name.encode())
            runs = (run for stretch in stretches for run in stretch.arrays[number])
            for i, run in enumerate(runs):
                if i:
                    yield b","
                yield run
            yield b"]"
        yield b"}"
    yield b',"finish_reason":%s}' % json.dumps(finish_reason).encode()


def framed(completion: Completion) -> tuple[bytes, bytes]:
    """The JSON of an answer that has no choices: what is before them, and what is after them."""
    head, _, tail = completion.to_bytes().partition(b'"choices":[]')
    return head + b'"choices":[', b"]" + tail


def answer(frame: tuple[bytes, bytes], choices: Iterable[Iterator[bytes]]) -> Iterator[bytes]:
    """frame: see `framed`; the chunks of one stream share it."""
    head, tail = frame
    yield head
    for i, pieces in enumerate(choices):
        if i:
            yield b","
        yield from pieces
    yield tail


def blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Small pieces joined to some `BLOCK_BYTES` bytes; a piece that is large by itself stays the object that it is."""
    small: list[bytes] = []
    size = 0
    for piece in pieces:
        is_large = len(piece) >= BLOCK_BYTES // 8
        if small and (is_large or size + len(piece) > BLOCK_BYTES):
            yield b"".join(small)
            small, size = [], 0
        if is_large:
            yield piece
        else:
            small.append(piece)
            size += len(piece)
    if small:
        yield b"".join(small)
