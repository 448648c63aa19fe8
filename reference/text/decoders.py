"""What tokenizer.json's `decoder` makes of one token: the bytes it adds to a text (LAW.md, section 6).

The library's decoders answer for a whole list of tokens. Here a token has bytes of its own, so a decoder is one of

    Replace, Metaspace, WordPiece, Strip     text of a token → text
    ByteLevel, ByteFallback                  its characters, or itself, are bytes
    Fuse                                     from here on the text is one
    Strip                                    of that one text: what it begins with

in this order, each or none of them, in a Sequence or alone. No decoder at all joins tokens with spaces. What asks for
more than the token and whether it is the first one is refused: BPEDecoder and CTC, and these steps in another order.

What transformers may do to a text afterwards (clean_up_tokenization_spaces) is no part of it.

A token's place is one of two. A completion follows its prompt, so all of its tokens are `following` ones: the space
between two words is there. A prompt of ids is a text of its own, whose first token is `opening`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import decoders

from gnomon.reference.checkpoint.entries import Entries
from gnomon.reference.checkpoint.errors import UnsupportedModel

Step = Callable[[str, bool], str]  # a token's text, and whether it is the first → its text after the step

SUPPORTED = (
    "no decoder, or in this order: Replace, Metaspace, WordPiece or Strip; ByteLevel or ByteFallback; Fuse; Strip "
    "(none with `stop` above 0)"
)


def byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet (Radford et al. 2019): a printable character for every byte, so that vocabularies are plain
    text.

    The printable Latin-1 bytes stand for themselves; the 68 others are the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


ALPHABET = byte_alphabet()
FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")  # the library reads a number, which may have a sign


@dataclass(frozen=True)
class TokenDecoder:
    """A decoder that can be read token by token."""

    steps: tuple[Step, ...]
    to_bytes: str | None  # ByteLevel, ByteFallback, or neither
    stripped: tuple[bytes, int]  # what is cut from the beginning of a text, at most how often

    def following(self, token: str, is_added: bool = False) -> bytes:
        """The bytes of a token that follows another."""
        return self._bytes(self._text(token, False), is_added)

    def opening(self, token: str, is_added: bool = False) -> bytes:
        """The bytes of a token at the beginning of a text, before `stripped` is cut."""
        return self._bytes(self._text(token, True), is_added)

    def is_byte(self, token: str) -> bool:
        """Whether a token stands for a byte that the vocabulary had no other token for."""
        return self.to_bytes == "ByteFallback" and FALLBACK.fullmatch(self._text(token, False)) is not None

    def gap(self, literal: str) -> bytes:
        """The space that is put before a token that follows another, if one is: before a special token's literal too,
        where that is shown."""
        return b" " if self.following(literal) == b" " + self.opening(literal) else b""

    def without_beginning(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The pieces of a text without what is stripped from its beginning."""
        content, left = self.stripped
        for piece in pieces:
            while left and piece.startswith(content):
                piece, left = piece[len(content) :], left - 1
            left = 0 if piece else left
            yield piece

    def _text(self, token: str, is_first: bool) -> str:
        for step in self.steps:
            token = step(token, is_first)
        return token

    def _bytes(self, text: str, is_added: bool) -> bytes:
        if self.to_bytes == "ByteLevel":
            return text.encode() if is_added else _byte_level(text)
        match = FALLBACK.fullmatch(text) if self.to_bytes == "ByteFallback" else None
        return text.encode() if match is None else bytes([int(match[1], 16)])


def _byte_level(text: str) -> bytes:
    """A token of a byte-level vocabulary; one with characters beyond the alphabet was put in by hand and is plain
    text."""
    if all(char in ALPHABET for char in text):
        return bytes(ALPHABET[char] for char in text)
    return text.encode()


# ---- the steps that make text of a token's text


def _replace(step: Entries) -> Step:
    pattern, content = step["pattern"], step["content"]
    if literal := pattern.get("String"):
        return lambda token, _: token.replace(literal, content)
    library = decoders.Replace(tokenizers.Regex(pattern.get("Regex", "")), content)
    return lambda token, _: library.decode([token])


def _metaspace(step: Entries) -> Step:
    """The mark is a space, but nothing in the first token, where it stands for no space of the text."""
    mark, at_start = step["replacement"], " " if step["prepend_scheme"] == "never" else ""
    return lambda token, is_first: token.replace(mark, at_start if is_first else " ")


def _word_piece(step: Entries) -> Step:
    """A space before a token, or none if it begins with the prefix, which goes; `cleanup` works on each token."""
    library = decoders.WordPiece(step["prefix"], step["cleanup"])
    return lambda token, is_first: library.decode([token] if is_first else ["", token])


def _strip(step: Entries) -> Step:
    content, most = step["content"], step["start"]
    return lambda token, _: token[min(most, len(token) - len(token.lstrip(content))) :]


def _joined_with_spaces(token: str, is_first: bool) -> str:
    return token if is_first else " " + token


TEXT_STEPS: Mapping[str, Callable[[Entries], Step]] = {
    "Replace": _replace,
    "Metaspace": _metaspace,
    "WordPiece": _word_piece,
    "Strip": _strip,
}
BYTE_STEPS = ("ByteLevel", "ByteFallback")


# ---- reading


def read_decoder(spec: Entries, tokens: Collection[str]) -> TokenDecoder:
    """The decoder of a tokenizer.json. tokens: all that it can be given. Raises UnsupportedModel."""
    decoder = _as_the_library_reads_it(spec.get("decoder"))
    flat = list(_flat(decoder))
    kinds = [step["type"] for step in flat]
    _check_byte_level(spec, kinds)
    steps: list[Step] = [_joined_with_spaces] if decoder is None else []
    to_bytes, is_one, stripped = None, False, (b" ", 0)
    for i, step in enumerate(flat):
        kind = step["type"]
        if reason := _needs_more(step, tokens if len(flat) == 1 else None):
            raise UnsupportedModel(f"a decoder step {kind} is not supported: {reason}; supported: {SUPPORTED}")
        if kind in TEXT_STEPS and to_bytes is None and not is_one:
            steps.append(TEXT_STEPS[kind](step))
        elif kind in BYTE_STEPS and to_bytes is None and not is_one:
            to_bytes, is_one = kind, kind == "ByteLevel"
        elif kind == "Strip" and is_one and not stripped[1] and (to_bytes is None or step["content"].isascii()):
            stripped = (step["content"].encode(), step["start"])
        elif kind == "Fuse":
            is_one = True
        elif kind != "BPEDecoder":
            raise UnsupportedModel(
                f"a decoder step {kind} after {', '.join(kinds[:i])} is not supported: what a token adds would depend "
                f"on those around it; supported: {SUPPORTED}"
            )
    return TokenDecoder(tuple(steps), to_bytes, stripped)


def _check_byte_level(spec: Entries, kinds: list[str]) -> None:
    byte_level = any('"ByteLevel"' in json.dumps(spec.get(part)) for part in ("pre_tokenizer", "normalizer"))
    if byte_level and "ByteLevel" not in kinds:
        what = f"the decoder {', '.join(kinds)}" if kinds else "no decoder"
        raise UnsupportedModel(
            f"{what} for a byte-level vocabulary is not supported: texts would be in the alphabet of its bytes (Ġ for "
            'a space); supported: "decoder": {"type": "ByteLevel"}'
        )


def _needs_more(step: Entries, tokens: Collection[str] | None) -> str | None:
    """Why a step needs more than the token and its place, wherever it stands. tokens: all that reach it, if known."""
    match step:
        case {"type": "BPEDecoder", "suffix": suffix} if tokens is None or any(suffix in token for token in tokens):
            return f"the space it makes of {suffix} is there only if another token follows"
        case {"type": "CTC"}:
            return "it leaves out a token that repeats the one before it"
        case {"type": "Strip", "stop": stop} if stop > 0:
            return "it cuts the end of a text, which is not known while one is written"
    return None


def _as_the_library_reads_it(decoder: Any) -> Any:
    """With every field, also those that old files spell otherwise or leave out."""
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    read = tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", "decoder": decoder, "model": empty}))
    return json.loads(read.to_str())["decoder"]


def _flat(decoder: Entries | None) -> Iterator[Entries]:
    if decoder is None:
        return
    if decoder["type"] != "Sequence":
        yield decoder
    for part in decoder.get("decoders", []):
        yield from _flat(part)
