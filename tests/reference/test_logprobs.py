"""Section 6 of the law: text, the four arrays, the ranking, and the numbers themselves."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gnomon.reference.completion import prepare
from gnomon.reference.engine import Engine, ReferenceEngine, ranking
from gnomon.reference.request import CompletionRequest
from gnomon.reference.response import Choice, Completion, Logprobs
from gnomon.reference.tokenizer import Tokenizer
from helpers.fake import (
    EOT,
    FAKE_VOCAB,
    PRE,
    SPECIALS,
    FakeEngine,
    LogitsOf,
    always,
    fake_tokenizer,
    hashed_logits,
)

C3, A9 = 0xC3, 0xA9  # é
THE = 258  # " the"


def ask(engine: Engine, tokenizer: Tokenizer, prompt: object = "ab", **fields: object) -> Completion:
    request = CompletionRequest.from_fields({"model": "fake", "prompt": prompt, "logprobs": 0, **fields})
    return prepare(request, engine, tokenizer, "fake").whole()


def arrays(choice: Choice) -> Logprobs:
    assert choice.logprobs is not None
    return choice.logprobs


def golden(tokenizer: Tokenizer, prompt: object, script: Sequence[int], **fields: object) -> tuple[str, list[int]]:
    """Text and offsets of a model that writes `script` after the prompt, which has `m` tokens."""
    encoded = tokenizer.encode(prompt).ids if isinstance(prompt, str) else prompt
    m = max(len(list(encoded)), 1) if isinstance(encoded, Sequence) else 1
    engine = FakeEngine(always(*script, prompt=m))
    choice = ask(engine, tokenizer, prompt, temperature=0, max_tokens=len(script), **fields).choices[0]
    return choice.text, list(arrays(choice).text_offset)


# ---- text and offsets, by hand

SPLIT = [ord("h"), C3, A9, 0xE7, 0x95, 0x8C, PRE, 0xF0, 0x9F, 0x98, 0x80, 0xFF, THE, EOT]
"""h · the two bytes of é · the three of 界 · a special token · the four of 😀 · a byte that is never valid · " the" ·
the end: the text is "hé界😀\N{REPLACEMENT CHARACTER} the", of 1 + 1 + 1 + 1 + 1 + 4 = 9 code points.
"""
SPLIT_TEXT = "hé界😀\ufffd the"
SPLIT_OFFSETS = [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 4, 5, 9]


def test_pieces_of_a_split_character_share_its_offset(tokenizer: Tokenizer) -> None:
    """After the prompt "b", of one code point, everything is one further:

    token   h  c3 a9  e7 95 8c  PRE  f0 9f 98 80  ff  " the"  EOT
    offset  1   2  2   3  3  3    4   4  4  4  4   5       6   10
    """
    assert golden(tokenizer, "b", SPLIT) == (SPLIT_TEXT, [1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 5, 6, 10])


@pytest.mark.parametrize(
    ("prompt", "text", "starts"),
    [
        # "é the界": c3 a9 | " the" | e7 95 8c → é is code point 0, " the" 1 to 4, 界 5: six in all
        ("é the界", "é the界", [0, 0, 1, 5, 5, 5]),
        # a literal of 13 characters between a and b, as a string and as ids
        ("a<|endoftext|>b", "a<|endoftext|>b", [0, 1, 14]),
        ([97, EOT, 98], "a<|endoftext|>b", [0, 1, 14]),
        # the emoji whole; its first two bytes only, one U+FFFD at the prompt's end; a byte that is never valid
        ([0xF0, 0x9F, 0x98, 0x80, 97], "😀a", [0, 0, 0, 0, 1]),
        ([97, 0xF0, 0x9F], "a\ufffd", [0, 1, 1]),
        ([0xFF, C3, A9, C3], "\ufffdé\ufffd", [0, 1, 1, 2]),
        # c3 c3 a9: the first c3 is known to be invalid only when the second comes
        ([C3, C3, A9], "\ufffdé", [0, 0, 1]),
    ],
)
@pytest.mark.parametrize("echo", [False, True])
def test_offsets_count_from_the_prompts_start_echo_or_not(
    tokenizer: Tokenizer, prompt: object, text: str, starts: list[int], echo: bool
) -> None:
    offsets = [len(text) + offset for offset in SPLIT_OFFSETS]
    expected = (text + SPLIT_TEXT, starts + offsets) if echo else (SPLIT_TEXT, offsets)
    assert golden(tokenizer, prompt, SPLIT, echo=echo) == expected


@pytest.mark.parametrize("echo", [False, True])
def test_an_added_bos_has_an_empty_span(bos_tokenizer: Tokenizer, echo: bool) -> None:
    offsets = [2 + offset for offset in SPLIT_OFFSETS]
    expected = ("né" + SPLIT_TEXT, [0, 0, 1, 1, *offsets]) if echo else (SPLIT_TEXT, offsets)
    bos_and_text = FakeEngine(always(*SPLIT, prompt=4))
    choice = ask(bos_and_text, bos_tokenizer, "né", temperature=0, max_tokens=len(SPLIT), echo=echo).choices[0]
    assert (choice.text, list(arrays(choice).text_offset)) == expected


@pytest.mark.parametrize("prompt", ["", None])
@pytest.mark.parametrize("echo", [False, True])
def test_the_token_of_an_empty_prompt_has_an_empty_span(
    tokenizer: Tokenizer, bos_tokenizer: Tokenizer, prompt: object, echo: bool
) -> None:
    for each in (tokenizer, bos_tokenizer):
        choice = ask(FakeEngine(always(*SPLIT)), each, prompt, temperature=0, max_tokens=len(SPLIT), echo=echo).choices[
            0
        ]
        assert choice.text == SPLIT_TEXT
        assert list(arrays(choice).text_offset) == [0] * echo + SPLIT_OFFSETS


def test_the_decoder_is_reset_at_the_prompts_end(tokenizer: Tokenizer) -> None:
    """The prompt ends with é's first byte and the completion begins with its second: two U+FFFD, each its own."""
    assert golden(tokenizer, [97, C3], [A9, 98], echo=True) == ("a\ufffd\ufffdb", [0, 1, 2, 3])


def test_a_character_that_never_completes_is_one_replacement_character(tokenizer: Tokenizer) -> None:
    """e7 95 waits for a third byte, gets a: U+FFFD at 0 for both, a at 1. What is waiting at the end is flushed."""
    assert golden(tokenizer, [1], [0xE7, 0x95, 97, 0xF0, 0x9F]) == ("\ufffda\ufffd", [1, 1, 1, 3, 3])


IDS = st.lists(
    st.sampled_from([97, C3, A9, 0xE7, 0x95, 0x8C, 0xF0, 0x9F, 0x98, 0x80, 0xFF, THE, PRE]), min_size=1, max_size=12
)


@given(prompt=IDS, script=IDS, echo=st.booleans())
def test_texts_are_one_shot_decodings_and_offsets_count_what_is_decided(
    tokenizer: Tokenizer, prompt: list[int], script: list[int], echo: bool
) -> None:
    """Exact. Two thirds of the drawn scripts hold a beginning of a character that may or may not be completed."""

    def text_of(ids: Sequence[int]) -> bytes:
        return b"".join(bytes([v]) if v < 256 else b" the" if v == THE else b"" for v in ids)

    def literal_of(ids: Sequence[int]) -> bytes:
        return b"".join(SPECIALS[1].encode() if v == PRE else text_of([v]) for v in ids)

    def decided(data: bytes) -> int:
        """Code points that no further byte can change: equal whichever byte may follow."""
        futures = [
            (data + tail).decode(errors="replace") for tail in (b"a", b"\x80", b"\x90", b"\x98\x80", b"\x95\x8c")
        ]
        futures += [(data + b"\xa9").decode(errors="replace"), (data + b"\x9f\x98\x80").decode(errors="replace")]
        return len(data.decode(errors="replace")) if not data else common(futures)

    def common(texts: list[str]) -> int:
        return next(
            (i for i, chars in enumerate(zip(*texts, strict=False)) if len(set(chars)) > 1), min(map(len, texts)) - 1
        )

    text, offsets = golden(tokenizer, prompt, script, echo=echo)
    before, after = literal_of(prompt).decode(errors="replace"), text_of(script).decode(errors="replace")
    assert text == (before if echo else "") + after
    expected = [decided(literal_of(prompt[:i])) for i in range(len(prompt))] if echo else []
    expected += [len(before) + decided(text_of(script[:t])) for t in range(len(script))]
    assert offsets == sorted(offsets) == expected


# ---- the arrays


@given(
    fields=st.fixed_dictionaries(
        {
            "echo": st.booleans(),
            "logprobs": st.integers(0, 20),
            "max_tokens": st.integers(0, 6),
            "n": st.integers(1, 3),
            "stop": st.sampled_from([None, "a", ["\ufffd", "e"]]),
            "seed": st.integers(-5, 5),
            "prompt": st.sampled_from(["", "ab", "é the", [97, C3], [EOT, 1, 2]]),
        }
    )
)
def test_the_four_arrays_have_a_place_for_every_token(tokenizer: Tokenizer, fields: dict[str, Any]) -> None:
    """Exact: len(Y), plus m with echo. usage tells the sum of len(Y), and m."""
    answer = ask(FakeEngine(hashed_logits), tokenizer, **fields)
    assert answer.usage is not None
    total = 0
    for choice in answer.choices:
        got = arrays(choice)
        lengths = {len(got.tokens), len(got.token_logprobs), len(got.top_logprobs), len(got.text_offset)}
        assert len(lengths) == 1
        total += lengths.pop() - (answer.usage.prompt_tokens if fields["echo"] else 0)
    assert total == answer.usage.completion_tokens


@pytest.mark.parametrize("k", [0, 1, 2, 5, 20])
def test_every_token_has_the_k_most_probable_ids_and_itself(
    engine: FakeEngine | ReferenceEngine, tokenizer: Tokenizer, k: int
) -> None:
    """In the order (−l, id), the token itself behind if it is not among them; against logits asked of the engine."""
    prompt = [5, 9, 200]
    got = arrays(ask(engine, tokenizer, prompt, logprobs=k, seed=11, max_tokens=8).choices[0])
    ids = [tokenizer.labels.index(label) for label in got.tokens]
    outside = 0
    for t, v in enumerate(ids):
        logits = engine.last_logits([*prompt, *ids[:t]])
        best = sorted(range(FAKE_VOCAB), key=lambda u: (-logits[u], u))[:k]
        outside += v not in best
        expected = [tokenizer.labels[u] for u in [*best, *([] if v in best else [v])]]
        top = got.top_logprobs[t]
        assert top is not None
        assert list(top) == expected
        assert len(top) in (k, k + 1)
    assert k == 20 or outside > 0


def test_logprobs_0_has_the_sampled_token_alone(tokenizer: Tokenizer) -> None:
    got = arrays(ask(FakeEngine(hashed_logits), tokenizer, logprobs=0, seed=1).choices[0])
    assert [dict(top or {}) for top in got.top_logprobs] == [
        {label: value} for label, value in zip(got.tokens, got.token_logprobs, strict=True)
    ]


def test_without_logprobs_there_are_no_arrays(tokenizer: Tokenizer) -> None:
    for echo in (False, True):
        answer = ask(FakeEngine(hashed_logits), tokenizer, logprobs=None, echo=echo, max_tokens=2)
        assert answer.choices[0].logprobs is None


def test_equal_logits_are_ranked_by_id(tokenizer: Tokenizer) -> None:
    logits = np.zeros(FAKE_VOCAB)
    logits[[98, 120]] = 5.0
    engine = FakeEngine(lambda _: logits)
    got = arrays(ask(engine, tokenizer, "a", logprobs=4, temperature=0, max_tokens=1, echo=True).choices[0])
    assert [list(top or ()) for top in got.top_logprobs] == [[], ["b", "x", "\x00", "\x01"]]
    got = arrays(ask(engine, tokenizer, "az", logprobs=4, max_tokens=0, echo=True).choices[0])
    assert list(got.top_logprobs[1] or ()) == ["b", "x", "\x00", "\x01", "z"]


@given(st.lists(st.sampled_from([-1.5, 0.0, 0.25, 3.0]), min_size=1, max_size=12), st.integers(0, 20))
def test_the_ranking_is_by_falling_logit_and_rising_id(values: list[float], k: int) -> None:
    """Exact; four values on up to twelve ids, so ties are the rule. A vocabulary smaller than k is ranked whole."""
    logits = np.array(values)
    got = ranking(logits, logits, k)
    assert [v for v, _ in got] == sorted(range(len(values)), key=lambda v: (-values[v], v))[:k]


# ---- the numbers


def exact_logprob(logits: NDArray[np.float64], v: int) -> float:
    """l − logsumexp(l), with every sum exact to the last rounding."""
    top = max(logits)
    return float(logits[v] - top) - math.log(math.fsum(math.exp(l - top) for l in logits))


def test_reported_numbers_are_the_raw_log_probabilities(
    engine: FakeEngine | ReferenceEngine, tokenizer: Tokenizer
) -> None:
    """Whatever the sampling is: temperature, nucleus, penalties and bias are chosen to change every probability."""
    prompt = [5, 9, 200]
    fields = {"temperature": 1.7, "top_p": 0.9, "frequency_penalty": 2, "presence_penalty": -2}
    bias = {str(v): (-1) ** v * 3 for v in range(100)}
    got = arrays(ask(engine, tokenizer, prompt, logprobs=5, seed=2, echo=True, logit_bias=bias, **fields).choices[0])
    ids = [tokenizer.labels.index(label) for label in got.tokens]
    assert ids[:3] == prompt
    assert len(ids) > 5
    for i in range(1, len(ids)):
        logits = engine.last_logits(ids[:i])
        top = got.top_logprobs[i]
        assert top is not None
        for label, value in top.items():
            assert value == pytest.approx(exact_logprob(logits, tokenizer.labels.index(label)), abs=1e-12)


def test_a_tokens_two_values_are_the_same_json_number(engine: Engine, tokenizer: Tokenizer) -> None:
    body = ask(engine, tokenizer, "the ab", logprobs=3, n=3, seed=5, echo=True).to_bytes()
    compared = 0
    for choice in json.loads(body, parse_float=lambda digits: f"{digits}!")["choices"]:
        got = choice["logprobs"]
        for label, value, top in zip(got["tokens"], got["token_logprobs"], got["top_logprobs"], strict=True):
            if value is not None:
                assert value.endswith("!")
                assert top[label] == value
                compared += 1
    assert compared >= 50 - 2 * 3


def test_json_restores_every_float(engine: Engine, tokenizer: Tokenizer) -> None:
    answer = ask(engine, tokenizer, logprobs=20, n=2, seed=5, echo=True)
    for choice, sent in zip(answer.choices, json.loads(answer.to_bytes())["choices"], strict=True):
        assert sent["logprobs"] == arrays(choice).to_json()


def test_numbers_are_written_as_the_shortest_decimal_that_restores_them(tokenizer: Tokenizer) -> None:
    """Exact: no decimal of one digit less reads as the same float."""
    answer = ask(FakeEngine(hashed_logits), tokenizer, logprobs=5, seed=5)
    written: list[str] = []

    def read(digits: str) -> float:
        written.append(digits)
        return float(digits)

    json.loads(answer.to_bytes(), parse_float=read)
    assert len(written) >= 16
    for digits in written:
        size = len(digits.split("e")[0].lstrip("-").replace(".", "").strip("0"))
        assert size <= 17
        assert size == 1 or float(f"{float(digits):.{size - 2}e}") != float(digits)


VARIED: list[dict[str, object]] = [
    {"logprobs": 0}, {"logprobs": 20}, {"echo": True}, {"n": 3}, {"stream": True}, {"temperature": 2},
    {"temperature": 0.1, "top_p": 0.2}, {"presence_penalty": 2, "frequency_penalty": -2}, {"logit_bias": {"7": 50}},
    {"prompt": [[1, 2], [5, 9, 200]]},
]  # fmt: skip


@pytest.mark.parametrize("changed", VARIED, ids=str)
def test_values_do_not_depend_on_how_the_token_was_chosen_or_is_shown(
    engine: Engine, tokenizer: Tokenizer, changed: dict[str, object]
) -> None:
    """Both requests sample the same first token, by its bias; its values must have the same bits in both."""
    forced = {"prompt": [5, 9, 200], "max_tokens": 1, "seed": 4, "logprobs": 2}
    fields: dict[str, Any] = {"model": "fake", **forced, **changed}
    fields["logit_bias"] = {"65": 100, **fields.get("logit_bias", {})}
    request = CompletionRequest.from_fields(fields)
    run = prepare(request, engine, tokenizer, "fake")
    choices = [c for chunk in run.chunks() for c in chunk.choices] if request.stream else run.whole().choices
    plain = arrays(ask(engine, tokenizer, **{**forced, "logit_bias": {"65": 100}}).choices[0])
    got = arrays(choices[-1])
    assert got.tokens[-1] == plain.tokens[-1] == "A"
    assert got.token_logprobs[-1] == plain.token_logprobs[-1]
    shared = dict(got.top_logprobs[-1] or {}).keys() & dict(plain.top_logprobs[-1] or {}).keys()
    assert "A" in shared
    assert all((got.top_logprobs[-1] or {})[label] == (plain.top_logprobs[-1] or {})[label] for label in shared)


def steep(distance: float) -> LogitsOf:
    """Every id is `distance` below x."""

    def logits_of(tokens: Sequence[int]) -> NDArray[np.float64]:
        logits = np.full(FAKE_VOCAB, -distance)
        logits[ord("x")] = 0.0
        return logits

    return logits_of


@pytest.mark.parametrize(
    ("distance", "shown"), [(9998.5, -9998.5), (9999.0, -9999.0), (1e4, -9999.0), (1e300, -9999.0)]
)
def test_numbers_below_minus_9999_are_minus_9999(tokenizer: Tokenizer, distance: float, shown: float) -> None:
    """In the echoed prompt and among the most probable. (No parameter can make a token so improbable be sampled.)"""
    engine = FakeEngine(steep(distance))
    got = arrays(ask(engine, tokenizer, "ay", logprobs=2, max_tokens=1, temperature=0, echo=True).choices[0])
    assert got.token_logprobs == (None, shown, 0.0)
    assert got.top_logprobs == (None, {"x": 0.0, "\x00": shown, "y": shown}, {"x": 0.0, "\x00": shown})
    assert b"Infinity" not in ask(engine, tokenizer, "ay", logprobs=20).to_bytes()
    assert f"{shown}" in json.dumps(got.to_json())


def test_numbers_are_finite_and_never_positive(engine: Engine, tokenizer: Tokenizer) -> None:
    answer = ask(engine, tokenizer, "abc", logprobs=20, n=3, seed=1, echo=True)
    values = itertools.chain.from_iterable(
        (top or {}).values() for choice in answer.choices for top in arrays(choice).top_logprobs
    )
    assert all(math.isfinite(value) and value <= 0 for value in values)


def test_tokens_and_keys_are_the_tokenizers_labels(tmp_path: Path) -> None:
    """With a vocabulary larger than the tokenizer's, two ids have no bytes and are still told apart."""
    tokenizer = fake_tokenizer(tmp_path, FAKE_VOCAB + 2)
    script = [C3, FAKE_VOCAB + 1, FAKE_VOCAB, A9, EOT]
    engine = FakeEngine(always(*script, vocab_size=FAKE_VOCAB + 2), vocab_size=FAKE_VOCAB + 2)
    choice = ask(engine, tokenizer, "a", logprobs=1, temperature=0).choices[0]
    expected = ("bytes:\\xc3", f"token_id:{FAKE_VOCAB + 1}", f"token_id:{FAKE_VOCAB}", "bytes:\\xa9", "<|endoftext|>")
    assert arrays(choice).tokens == expected
    assert tuple(next(iter(top or {})) for top in arrays(choice).top_logprobs) == expected
    assert (choice.text, arrays(choice).text_offset) == ("é", (1, 1, 1, 1, 2))
