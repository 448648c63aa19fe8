"""How many bytes of a text one token can stand for, read from a tokenizer.json: a text that is too long is then known
by its size.

A vocabulary's longest token says so only where no other rule makes a token of more. Such rules are many, so what is
known to have none is listed here, and anything else has no bound:

    a text gets shorter     a normalizer that drops or shortens, a pre-tokenizer that removes. NFC leaves more than a
                            quarter of any text (three bytes of a Kelvin sign are the one of a K, seven may be a ΐ)
    unknown characters      any number of them is one token, or none, unless the vocabulary has every byte, or each
                            becomes an unknown token of its own. WordPiece and WordLevel make one of a whole word
    added tokens            one that strips takes all the white space beside it; then only what is no white space counts
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import tokenizers

from gnomon.reference.checkpoint.entries import Entries
from gnomon.reference.text.decoders import ALPHABET

NFC_SHRINKS = 4
KEEPING = ("ByteLevel", "Metaspace", "Digits", "UnicodeScripts")  # pre-tokenizers that remove nothing
SPLITTING = ("Split", "Punctuation")  # nor do these, unless told to
NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
# Python's white space, which has what Rust's has: U+001C to U+001F are beyond.
WHITE_SPACE = tuple(c for c in map(chr, range(0x3001)) if c.isspace())


class TokenLength(NamedTuple):
    """longest: bytes of a text that one token can stand for · white_space_counts: or it counts for none of them."""

    longest: int
    white_space_counts: bool

    def least_tokens(self, text: str) -> int:
        """How many tokens the text has at least. Costs little: a text of megabytes takes milliseconds."""
        size = len(text.encode())
        if not self.white_space_counts:
            ascii_only = text.isascii()
            size -= sum(text.count(c) * len(c.encode()) for c in WHITE_SPACE if c.isascii() or not ascii_only)
        return -(-size // self.longest)


def token_length(spec: Entries, library: tokenizers.Tokenizer) -> TokenLength | None:
    """spec: a tokenizer.json that the library has read as `library`. None: one token may be of any length."""
    model = spec["model"]
    steps = list(_flat(spec.get("normalizer"), "normalizers"))
    cuts = list(_flat(spec.get("pre_tokenizer"), "pretokenizers"))
    shrinks = [_shrinks(step) for step in steps]
    if None in shrinks or not all(_keeps(cut) for cut in cuts):
        return None
    vocab = model["vocab"]
    pieces = set(vocab) if isinstance(vocab, dict) else {piece for piece, _ in vocab}
    if any(step["type"] == "ByteLevel" for step in steps + cuts):
        is_known = all(char in pieces for char, byte in ALPHABET.items() if byte not in NEVER_IN_UTF8)
        longest = max(map(len, pieces), default=0)
    else:
        is_known = bool(model.get("byte_fallback")) and all(f"<0x{byte:02X}>" in pieces for byte in range(256))
        longest = max((len(piece.encode()) for piece in pieces), default=0)
    # a character has another name with them
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    one_by_one = model.get("type", "BPE") == "BPE" and model.get("unk_token") in pieces and not model.get("fuse_unk")
    if model.get("type", "BPE") not in ("BPE", "Unigram") or affixes or not (is_known or one_by_one):
        return None
    added = spec.get("added_tokens") or []
    longest = max(longest, 4, *(_size(token, library) for token in added)) if added else max(longest, 4)
    for shrink in shrinks:
        longest *= shrink or 1
    return TokenLength(longest, not any(token.get("lstrip") or token.get("rstrip") for token in added))


def _flat(part: Entries | None, members: str) -> Iterable[Entries]:
    if part is None:
        return
    if part["type"] == "Sequence":
        for inner in part[members]:
            yield from _flat(inner, members)
    else:
        yield part


def _shrinks(step: Entries) -> int | None:
    """A text has at most so many times the bytes that the normalizer makes of it; None: there is no such number."""
    match step:
        case {"type": "NFC"}:
            return NFC_SHRINKS
        case {"type": "ByteLevel" | "Prepend"}:
            return 1
        case {"type": "Replace", "pattern": {"String": pattern}, "content": content}:
            return 1 if len(content.encode()) >= len(pattern.encode()) else None
    return None


def _keeps(cut: Entries) -> bool:
    kind = cut["type"]
    return kind in KEEPING or (kind in SPLITTING and cut.get("behavior") not in (None, "Removed"))


def _size(token: Entries, library: tokenizers.Tokenizer) -> int:
    """Bytes of an added token's literal; one that is looked for in the normalized text may be longer there."""
    content = token["content"]
    normal = library.normalizer.normalize_str(content) if library.normalizer is not None else content
    return max(len(content.encode()), len(normal.encode()))
