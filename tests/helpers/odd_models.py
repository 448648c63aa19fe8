"""Models and tokenizers that no case of `gnomon verify` may stumble over: a server of any of them keeps the law.

A row is a model: its logits, its tokenizer, its context and end tokens. Each is served by `InProcessServer`, which is
our own server, so whatever a case accuses one of is a fault of the case.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, normalizers, processors

from gnomon.reference.text.decoders import byte_alphabet
from gnomon.reference.tokenizer import load_tokenizer
from helpers.fake import EOT, MERGES, MID, PRE, SUF, FakeEngine, hashed_logits, puts_first, tokenizer_files
from helpers.faults import END, Model

Logits = NDArray[np.float64]
Change = Callable[[tuple[int, ...], Logits], Logits]

UNMOVED = 300.0
"""A lead that a bias of 100 on one token and of −100 on another does not take."""

LIMIT = 98.0
"""A lead that a bias of 100 just takes."""


@lru_cache(100_000)
def hashed(tokens: tuple[int, ...], vocab_size: int) -> Logits:
    return hashed_logits(tokens, vocab_size)


# ---- what becomes of the hashed logits


def as_they_are(tokens: tuple[int, ...], logits: Logits) -> Logits:
    return logits


def lead(*ids: int, by: float = 15.0) -> Change:
    """These tokens are far more probable than all others, the first of them the most."""

    def change(tokens: tuple[int, ...], logits: Logits) -> Logits:
        logits[list(ids)] += by
        logits[ids[0]] += 3
        return logits

    return change


def now_and_then(part: float, then: Change) -> Change:
    """After so much of all sequences of tokens."""
    return lambda tokens, logits: then(tokens, logits) if (hash(tokens) >> 8) % 1000 < part * 1000 else logits


def after(length: int, then: Change) -> Change:
    """After sequences of so many tokens and more."""
    return lambda tokens, logits: then(tokens, logits) if len(tokens) >= length else logits


def in_turn(*ids: int, by: float = 15.0) -> Change:
    """One after another, by how many tokens there are."""
    return lambda tokens, logits: lead(ids[len(tokens) % len(ids)], by=by)(tokens, logits)


def times(factor: float) -> Change:
    return lambda tokens, logits: logits * factor


def rounded(step: float) -> Change:
    """Logits of few values, so that most are tied."""
    return lambda tokens, logits: np.round(logits / step) * step


def without_context(tokens: tuple[int, ...], logits: Logits) -> Logits:
    return hashed((), len(logits)).copy()


def all_equal(tokens: tuple[int, ...], logits: Logits) -> Logits:
    return np.zeros_like(logits)


# ---- tokenizers


def byte_level(directory: Path) -> Path:
    """256 bytes, ten merges, four special tokens."""
    return tokenizer_files(directory)


def with_bos(directory: Path) -> Path:
    return tokenizer_files(directory, post_processor=puts_first(EOT))


def bytes_alone(directory: Path) -> Path:
    """256 bytes and nothing else: no merges, no special token, so no end of text either."""
    vocab = {char: v for v, char in enumerate(sorted(byte_alphabet(), key=byte_alphabet().__getitem__))}
    return tokenizer_files(directory, added_tokens=[], model={"type": "BPE", "vocab": vocab, "merges": []})


SPACED = [f"▁{word}" for word in ("the", "quick", "brown", "fox", "a", "of", "and", "to", "king", "time")]


def sentencepiece(directory: Path, strips: bool = True, bos: bool = True) -> Path:
    """As Llama 2's: a space is put before every text, words have theirs, bytes stand for what is not in it, and the
    decoder takes the first space of a text away."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(97, 123))]
    merges: list[tuple[str, str]] = []
    for word in SPACED:
        made = word[0]
        for char in word[1:]:
            merges.append((made, char))
            made += char
            words.append(made)
    vocab = {word: v for v, word in enumerate(dict.fromkeys(words))}
    made_of = models.BPE(vocab, list(dict.fromkeys(merges)), byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer = tokenizers.Tokenizer(made_of)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strips else steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return directory


def not_stripped(directory: Path) -> Path:
    return sentencepiece(directory, strips=False)


def without_bos(directory: Path) -> Path:
    return sentencepiece(directory, bos=False)


SIZES = {byte_level: 260 + len(MERGES), with_bos: 260 + len(MERGES), bytes_alone: 256}
S_UNK, S_BOS, S_END = 0, 1, 2
S_LEAD, S_NEXT, S_SPACE = 3 + 0xC3, 3 + 0xA9, 3 + 256


@dataclass(frozen=True)
class Odd:
    """A model to be served. rows: how many more the model has than the tokenizer has tokens. least: so many cases can
    be told on it."""

    change: Change = as_they_are
    tokenizer: Callable[[Path], Path] = byte_level
    rows: int = 0
    context: int = 128
    ends: frozenset[int] = frozenset({EOT, END})
    salt: int = 0
    least: int = 186

    def of(self, salt: int) -> Odd:
        """The same kind of model with other weights."""
        return replace(self, salt=salt)

    def serve(self, directory: Path) -> Model:
        self.tokenizer(directory)
        spec = json.loads((directory / "tokenizer.json").read_text())
        size = max([*spec["model"]["vocab"].values(), *(token["id"] for token in spec["added_tokens"])]) + 1 + self.rows

        def logits(tokens: Sequence[int]) -> Logits:
            known = (self.salt, *tokens) if self.salt else tuple(tokens)
            return self.change(tuple(tokens), hashed(known, size).copy())

        tokenizer = load_tokenizer(directory, size)
        return Model(FakeEngine(logits, vocab_size=size, context=self.context, eos_ids=self.ends), tokenizer)


FEW = 100  # cases that can be told where no bias moves the model

NONE: frozenset[int] = frozenset()
END_OF_S = frozenset({S_END})

ODD: dict[str, Odd] = {
    # ends
    "ends at once": Odd(lead(EOT)),
    "ends at once, whatever the bias": Odd(lead(EOT, by=UNMOVED), least=FEW),
    "ends at once, unless forced at temperature 0": Odd(lead(EOT, by=LIMIT), least=FEW),
    "ends after a token": Odd(after(19, lead(EOT))),
    "ends now and then": Odd(now_and_then(0.4, lead(EOT))),
    "ends now and then, whatever the bias": Odd(now_and_then(0.1, lead(EOT, by=UNMOVED)), least=FEW),
    "ends after 24 tokens, whatever the bias": Odd(after(24, lead(EOT, by=UNMOVED)), least=FEW),
    "may end at every token": Odd(lead(EOT, by=6)),
    "never ends": Odd(ends=NONE),
    # tokens without text
    "no text": Odd(lead(PRE, SUF, MID)),
    "no text, whatever the bias": Odd(lead(PRE, SUF, by=UNMOVED), least=FEW),
    "no text now and then": Odd(now_and_then(0.4, lead(MID))),
    "no text, then an end": Odd(after(20, lead(EOT)), salt=1),
    "tokens that the tokenizer has not": Odd(lead(271, 280), rows=30),
    "a vocabulary of 300": Odd(rows=30),
    # few tokens
    "one token": Odd(lead(97)),
    "one token, whatever the bias": Odd(lead(97, by=UNMOVED), least=FEW),
    "two tokens in turn": Odd(in_turn(97, 98)),
    "two tokens in turn, whatever the bias": Odd(in_turn(97, 98, by=UNMOVED), least=FEW),
    "blanks": Odd(lead(32, 220)),
    # parts of characters
    "half of a character": Odd(lead(140)),
    "half of a character, whatever the bias": Odd(lead(140, by=UNMOVED), least=FEW),
    "the first half of a character": Odd(lead(131)),
    "a half, then no text": Odd(
        lambda tokens, z: lead(131 if len(tokens) == 19 else MID, by=UNMOVED)(tokens, z), least=FEW
    ),
    "characters of two tokens": Odd(in_turn(131, 106)),
    "characters of two tokens, whatever the bias": Odd(in_turn(106, 131, by=UNMOVED), least=FEW),
    "parts of characters": Odd(lead(*range(128, 256), by=8)),
    # odd logits
    "all equal": Odd(all_equal),
    "all equal, without an end": Odd(all_equal, ends=NONE),
    "the same whatever came before": Odd(without_context, ends=frozenset({EOT})),
    "sure of every token": Odd(times(20), least=FEW),
    "very sure of every token": Odd(times(200), least=FEW),
    "hardly sure of any": Odd(times(1e-3)),
    "many ties": Odd(rounded(1.5)),
    # contexts
    **{f"a context of {size}": Odd(context=size, least=1) for size in (16, 24, 32)},
    **{f"a context of {size}": Odd(context=size) for size in (48, 64)},
    "a context of 32 that ends at once": Odd(lead(EOT), context=32, least=1),
    # tokenizers
    "a token before every text": Odd(tokenizer=with_bos),
    "bytes alone, without an end of text": Odd(tokenizer=bytes_alone, ends=NONE),
    "SentencePiece": Odd(tokenizer=sentencepiece, ends=END_OF_S),
    "SentencePiece, spaces kept": Odd(tokenizer=not_stripped, ends=END_OF_S),
    "SentencePiece without a BOS": Odd(tokenizer=without_bos, ends=END_OF_S),
    "SentencePiece that ends at once": Odd(lead(S_END), sentencepiece, ends=END_OF_S),
    "SentencePiece without text": Odd(lead(S_BOS, S_UNK), sentencepiece, ends=END_OF_S),
    "SentencePiece in bytes": Odd(in_turn(S_LEAD, S_NEXT), sentencepiece, ends=END_OF_S),
    "SentencePiece in spaces": Odd(lead(S_SPACE), sentencepiece, ends=END_OF_S),
    "SentencePiece in a context of 32": Odd(tokenizer=sentencepiece, ends=END_OF_S, context=32),
}
