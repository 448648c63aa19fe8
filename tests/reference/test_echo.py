"""Section 7 of the law: the prompt before the completion, its values, and who must not look at it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gnomon.reference.completion import prepare
from gnomon.reference.engine import ReferenceEngine
from gnomon.reference.request import CompletionRequest
from gnomon.reference.response import Choice, Completion, Logprobs
from gnomon.reference.tokenizer import Tokenizer
from helpers.fake import EOT, FAKE_VOCAB, PRE, FakeEngine, always, fake_tokenizer, hashed_logits

THE = 258
PROMPTS: list[object] = ["é the", "a", "", "a<|endoftext|>b", [97, 0xC3], [EOT, 1, 2, THE], [PRE]]


def ask(
    engine: FakeEngine | ReferenceEngine, tokenizer: Tokenizer, prompt: object = "a the", **fields: object
) -> Completion:
    request = CompletionRequest.from_fields({"model": "fake", "prompt": prompt, **fields})
    return prepare(request, engine, tokenizer, "fake").whole()


def arrays(choice: Choice) -> Logprobs:
    assert choice.logprobs is not None
    return choice.logprobs


def entries(logprobs: Logprobs) -> list[tuple[object, ...]]:
    return list(zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset, strict=True))


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("é the", "é the"), ("", ""), (None, ""), (" \n", " \n"), ("a<|endoftext|>b", "a<|endoftext|>b"),
        ([97, EOT, 98], "a<|endoftext|>b"), ([97, 0xC3], "a\ufffd"), ([0xFF, THE], "\ufffd the"),
    ],
)  # fmt: skip
def test_a_string_is_echoed_as_it_was_sent_and_ids_as_decoded(tokenizer: Tokenizer, prompt: object, text: str) -> None:
    answer = ask(FakeEngine(always(*b"x")), tokenizer, prompt, echo=True, temperature=0, max_tokens=2)
    assert answer.choices[0].text == text + "xx"
    assert answer.choices[0].logprobs is None


def test_a_string_is_echoed_as_sent_even_if_the_tokenizer_changes_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    lowercase = fake_tokenizer(tmp_path_factory.mktemp("lower"), normalizer={"type": "Lowercase"})
    answer = ask(FakeEngine(always(*b"x")), lowercase, "A THE", echo=True, logprobs=0, max_tokens=0)
    assert answer.choices[0].text == "A THE"
    assert arrays(answer.choices[0]).tokens == ("a", " the")


@pytest.mark.parametrize("prompt", PROMPTS, ids=repr)
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_echo_adds_the_prompts_text_and_entries_before_the_same_completion(
    engine: FakeEngine | ReferenceEngine, tokenizer: Tokenizer, prompt: object, max_tokens: int
) -> None:
    fields = {"seed": 6, "logprobs": 2, "max_tokens": max_tokens, "n": 2}
    plain, echoed = (ask(engine, tokenizer, prompt, echo=echo, **fields) for echo in (False, True))
    assert echoed.usage == plain.usage
    assert plain.usage is not None
    for without, with_it in zip(plain.choices, echoed.choices, strict=True):
        assert with_it.text.endswith(without.text)
        assert with_it.finish_reason == without.finish_reason
        assert entries(arrays(with_it))[plain.usage.prompt_tokens :] == entries(arrays(without))
    prompts = [entries(arrays(choice))[: plain.usage.prompt_tokens] for choice in echoed.choices]
    assert prompts[0] == prompts[1]


def test_the_first_position_has_null_for_both_fields(
    engine: FakeEngine | ReferenceEngine, tokenizer: Tokenizer
) -> None:
    for prompt in PROMPTS:
        for k in (0, 3):
            got = arrays(ask(engine, tokenizer, prompt, echo=True, logprobs=k, max_tokens=1).choices[0])
            assert (got.token_logprobs[0], got.top_logprobs[0]) == (None, None)
            assert None not in got.token_logprobs[1:]
            assert None not in got.top_logprobs[1:]
            assert got.to_json()["token_logprobs"][0] is None


def test_scores_are_those_of_each_token_given_the_ones_before_it(
    engine: FakeEngine | ReferenceEngine, tokenizer: Tokenizer
) -> None:
    """Against the logits after P[:i], asked of the engine one position at a time. A shift by one would be seen: the
    values of neighbours differ by far more than 1e-9."""
    ids = [5, 9, 200, 5, THE, EOT, 97]
    got = arrays(ask(engine, tokenizer, ids, echo=True, logprobs=3, max_tokens=0).choices[0])
    assert got.tokens == tuple(tokenizer.labels[v] for v in ids)
    for i in range(1, len(ids)):
        logits = engine.last_logits(ids[:i])
        lp = logits - max(logits)
        lp -= math.log(math.fsum(np.exp(lp)))
        best = sorted(range(FAKE_VOCAB), key=lambda v: (-logits[v], v))[:3]
        assert got.token_logprobs[i] == pytest.approx(lp[ids[i]], abs=1e-9)
        expected = {tokenizer.labels[v]: pytest.approx(lp[v], abs=1e-9) for v in [*best, ids[i]]}
        assert dict(got.top_logprobs[i] or {}) == expected
        assert list(got.top_logprobs[i] or {}) == list(expected)
        assert (got.top_logprobs[i] or {})[got.tokens[i]] == got.token_logprobs[i]


def test_scoring_needs_no_sampling(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(hashed_logits)
    answer = ask(engine, tokenizer, "the é", echo=True, logprobs=1, max_tokens=0)
    assert engine.calls == 0
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("the é", "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(arrays(answer.choices[0]).tokens), 0)


def test_a_prompt_that_fills_the_context_can_be_scored(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(hashed_logits, context=5)
    got = arrays(ask(engine, tokenizer, [1, 2, 3, 4, 5], echo=True, logprobs=0, max_tokens=0).choices[0])
    assert len(got.token_logprobs) == 5
    assert None not in got.token_logprobs[1:]


def test_echo_works_for_every_prompt_of_a_list(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(hashed_logits)
    prompts: list[Any] = [[97, 98], [0xC3], [EOT, 99]]
    answer = ask(engine, tokenizer, prompts, echo=True, logprobs=1, n=2, seed=0, max_tokens=2)
    for j, (prompt, text) in enumerate(zip(prompts, ["ab", "\ufffd", "<|endoftext|>c"], strict=True)):
        for choice in answer.choices[2 * j : 2 * j + 2]:
            assert choice.text.startswith(text)
            assert arrays(choice).tokens[: len(prompt)] == tuple(tokenizer.labels[v] for v in prompt)


def test_echo_works_with_best_of_and_does_not_change_the_order(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(hashed_logits)
    for seed in range(8):
        fields = {"n": 2, "best_of": 5, "seed": seed, "logprobs": 0, "max_tokens": 4}
        plain, echoed = (ask(engine, tokenizer, "a the", echo=echo, **fields) for echo in (False, True))
        assert [c.text for c in echoed.choices] == ["a the" + c.text for c in plain.choices]
        assert [arrays(c).tokens[2:] for c in echoed.choices] == [arrays(c).tokens for c in plain.choices]


def test_stop_strings_do_not_look_at_the_echoed_prompt(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(always(*b"xyz", prompt=2))
    answer = ask(engine, tokenizer, "ab", echo=True, temperature=0, max_tokens=3, stop=["a", "bx", "y"])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("abx", "stop")


def test_penalties_do_not_look_at_the_echoed_prompt(tokenizer: Tokenizer) -> None:
    logits: NDArray[np.float64] = np.full(FAKE_VOCAB, -50.0)
    logits[[ord("x"), ord("y")]] = 3, 2

    def logits_of(tokens: Sequence[int]) -> NDArray[np.float64]:
        return logits

    fields = {"presence_penalty": 2, "frequency_penalty": 2, "temperature": 0, "max_tokens": 2, "echo": True}
    assert ask(FakeEngine(logits_of), tokenizer, "xxx", **fields).choices[0].text == "xxxxy"


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    ids=st.lists(st.sampled_from([97, 98, 0xC3, 0xA9, 0xFF, EOT, THE]), min_size=1, max_size=8),
    k=st.integers(0, 20),
    temperature=st.sampled_from([0, 1, 2]),
    bias=st.sampled_from([{}, {"97": 100}]),
)
def test_prompt_scores_depend_on_the_prompt_alone(
    tokenizer: Tokenizer, ids: list[int], k: int, temperature: float, bias: dict[str, int]
) -> None:
    """Exact: k, temperature, bias and the number of sampled tokens change no bit of a score."""
    engine = FakeEngine(hashed_logits)
    plain = ask(engine, tokenizer, ids, echo=True, logprobs=0, max_tokens=0)
    changed = ask(engine, tokenizer, ids, echo=True, logprobs=k, max_tokens=2, temperature=temperature, logit_bias=bias)
    assert arrays(changed.choices[0]).token_logprobs[: len(ids)] == arrays(plain.choices[0]).token_logprobs
