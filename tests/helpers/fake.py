"""An engine with logits one can predict by hand, and a real tokenizer small enough to know by heart."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnomon.reference.engine import ReferenceEngine, _finite, go_on
from gnomon.reference.text.decoders import byte_alphabet
from gnomon.reference.tokenizer import Tokenizer, load_tokenizer

LogitsOf = Callable[[Sequence[int]], NDArray[np.float64]]

SPECIALS = ("<|endoftext|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
MERGES = ("Ġ t", "h e", "Ġt he", "Ġ a", "i n", "e r", "Ġ s", "o n", "o u", "l l")
EOT, PRE, SUF, MID = 256 + len(MERGES), 257 + len(MERGES), 258 + len(MERGES), 259 + len(MERGES)
FAKE_VOCAB = 260 + len(MERGES)  # ids 0…255 are the bytes, in order


class FakeEngine(ReferenceEngine):
    """The reference's own loop and sampler over `logits_of(ids)` [V], the logits after a sequence of ids."""

    def __init__(
        self,
        logits_of: LogitsOf,
        vocab_size: int = FAKE_VOCAB,
        context: int = 64,
        eos_ids: frozenset[int] = frozenset({EOT}),
        fingerprint: str = "fake",
    ) -> None:
        self.logits_of = logits_of
        self.vocab_size = vocab_size
        self.context = context
        self.eos_ids = eos_ids
        self.fingerprint = fingerprint
        self.turn = threading.Lock()
        self.calls = 0

    def last_logits(self, tokens: Sequence[int], check: Callable[[], None] = go_on) -> NDArray[np.float64]:
        with self.turn:
            self.calls += 1
        return _finite(self.logits_of(tokens))

    def all_logits(self, tokens: Sequence[int], check: Callable[[], None] = go_on) -> NDArray[np.float64]:
        return self.logits(self.states(tokens, check))

    def states(self, tokens: Sequence[int], check: Callable[[], None] = go_on) -> NDArray[np.float64]:
        """The logits themselves: there is no layer that they would come from."""
        rows = []
        for i in range(len(tokens)):
            check()
            rows.append(self.logits_of(tokens[: i + 1]))
        return np.stack(rows)

    def logits(self, states: NDArray[np.float64]) -> NDArray[np.float64]:
        return _finite(states)


class StubJob:
    """All of a job but its events, for doubles that have nothing at work."""

    open: AbstractSet[tuple[int, int]] = frozenset()
    cached_tokens = 0
    started: float | None = None
    made = 0.0

    def close(self, prompt: int | None = None, candidate: int | None = None) -> None:
        """Nothing is at work."""


def hashed_logits(tokens: Sequence[int], vocab_size: int = FAKE_VOCAB, scale: float = 2.0) -> NDArray[np.float64]:
    """Logits that depend on the whole sequence, look random, and are the same everywhere."""
    state = 17
    for v in tokens:
        state = (state * 1000003 + v + 1) % 2**63
    return np.random.default_rng(state).normal(size=vocab_size) * scale


def always(*ids: int, vocab_size: int = FAKE_VOCAB, prompt: int = 1) -> LogitsOf:
    """Logits under which the greedy continuation of a prompt of `prompt` tokens is `ids`, again and again."""

    def logits_of(tokens: Sequence[int]) -> NDArray[np.float64]:
        logits = np.zeros(vocab_size)
        logits[ids[max(len(tokens) - prompt, 0) % len(ids)]] = 20.0
        return logits

    return logits_of


def tokenizer_files(directory: Path, **changes: object) -> Path:
    """Writes tokenizer.json and tokenizer_config.json of a byte-level BPE tokenizer: 256 bytes, ten merges, four
    specials."""
    alphabet = sorted(byte_alphabet().items(), key=lambda item: item[1])
    tokens = [char for char, _ in alphabet] + [merge.replace(" ", "") for merge in MERGES] + list(SPECIALS)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    spec: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [{"id": EOT + i, "content": literal, **special} for i, literal in enumerate(SPECIALS)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: v for v, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in MERGES],
        },
        **changes,
    }
    names = ("eos_token", "fim_prefix_token", "fim_suffix_token", "fim_middle_token")
    (directory / "tokenizer.json").write_text(json.dumps(spec))
    has = {*spec["model"]["vocab"], *(token["content"] for token in spec["added_tokens"])}
    declared = {name: literal for name, literal in zip(names, SPECIALS, strict=True) if has.issuperset(SPECIALS)}
    (directory / "tokenizer_config.json").write_text(json.dumps(declared))
    return directory


def puts_first(v: int) -> dict[str, Any]:
    """A post-processor that puts the special token `v` before every string, as those of models with a BOS do."""
    literal = SPECIALS[v - EOT]
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": literal, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {literal: {"id": literal, "ids": [v], "tokens": [literal]}},
    }


def fake_tokenizer(directory: Path, vocab_size: int = FAKE_VOCAB, **changes: object) -> Tokenizer:
    return load_tokenizer(tokenizer_files(directory, **changes), vocab_size)
