"""The model run otherwise: another prompt, and what a variant with other weights is (precisions.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from gnomon.http.verify.weights.readings import Kind
from gnomon.http.verify.weights.trial import Trial
from gnomon.reference.engine import ReferenceEngine
from gnomon.reference.tokenizer import Tokenizer


class Variant(NamedTuple):
    """How the model may have been run; the defaults are the law. prompt: None where it does not apply to a trial."""

    kind: Kind = Kind.rounding
    words: str = "nothing but rounding"
    prompt: Callable[[Trial], tuple[int, ...] | None] = lambda trial: trial.prompt
    weights: Callable[[Any], Any] | None = None
    rounds_logits: bool = True  # where the weights are such that every product with them is rounded
    family: str = ""  # what a deviation of this size may be, in words


PLAIN = Variant()


def prompt_variants(trials: Sequence[Trial], tokenizer: Tokenizer, engine: ReferenceEngine) -> Iterator[Variant]:
    """Other ways to put the prompts into ids, each for the trials on which it makes a difference."""
    marks = dict.fromkeys(
        v
        for v in (tokenizer.bos_id, engine.config.bos_token_id, tokenizer.end_of_text_id, *sorted(engine.eos_ids))
        if v is not None and 0 <= v < engine.vocab_size
    )
    for v in marks:
        name = tokenizer.special.get(v, tokenizer.labels[v])
        yield _encoded(f"{name} (id {v}) before the prompt", partial(_begun_with, v))
        yield _encoded(f"{name} (id {v}) for an empty prompt", partial(_standing_for_nothing, v))
    yield _encoded(
        "the prompt without the token that begins a document",
        lambda trial: trial.prompt[1:] if len(trial.prompt) > 1 and trial.prompt[0] in marks else trial.prompt,
    )
    yield _encoded("the prompt as its echo shows it", lambda trial: trial.echoed or trial.prompt)

    def head(trial: Trial) -> tuple[int, ...]:
        return () if tokenizer.bos_id is None else (tokenizer.bos_id,)

    ways: tuple[tuple[str, Callable[[str], Sequence[int]]], ...] = (
        ("special tokens' literals as text", lambda text: tokenizer.encode_literal(text).ids),
        ("no space put before the prompt", lambda text: tokenizer.encode_following(text).ids),
        ("a space put before the prompt", lambda text: tokenizer.encode_literal(" " + text).ids),
        ("the prompt without spaces around it", lambda text: tokenizer.encode_literal(text.strip()).ids),
        ("the prompt cut into single bytes", lambda text: _single_bytes(tokenizer, text)),
    )
    for words, encode in ways:

        def prompt(trial: Trial, encode: Callable[[str], Sequence[int]] = encode) -> tuple[int, ...]:
            return (*head(trial), *encode(trial.text)) if trial.text else trial.prompt

        yield _encoded(words, prompt)


def _begun_with(v: int, trial: Trial) -> tuple[int, ...]:
    return (v, *trial.prompt)


def _standing_for_nothing(v: int, trial: Trial) -> tuple[int, ...]:
    return (v,) if trial.text == "" else trial.prompt


def _single_bytes(tokenizer: Tokenizer, text: str) -> list[int]:
    alone = {data: v for v, data in reversed(list(enumerate(tokenizer.token_bytes))) if len(data) == 1}
    ids = [alone.get(bytes([byte])) for byte in text.encode()]
    return [v for v in ids if v is not None] if None not in ids else []


def _encoded(words: str, prompt: Callable[[Trial], tuple[int, ...]]) -> Variant:
    def changed(trial: Trial) -> tuple[int, ...] | None:
        ids = prompt(trial)
        return None if not ids or ids == trial.prompt else ids

    return Variant(Kind.prompt, f"a prompt encoded otherwise: {words}", changed)
