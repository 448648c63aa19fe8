"""Section 2 of the law: what becomes of a prompt, in all its forms; and what of it is refused before any work."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gnomon.reference.completion import prepare
from gnomon.reference.errors import InvalidRequest
from gnomon.reference.request import CompletionRequest
from gnomon.reference.response import Completion
from gnomon.reference.tokenizer import Tokenizer, load_tokenizer
from helpers.fake import (
    EOT,
    FAKE_VOCAB,
    PRE,
    SPECIALS,
    SUF,
    FakeEngine,
    fake_tokenizer,
    hashed_logits,
    tokenizer_files,
)

THE = 258


def ask(engine: FakeEngine, tokenizer: Tokenizer, prompt: object, **fields: object) -> Completion:
    request = CompletionRequest.from_fields({"model": "fake", "prompt": prompt, **fields})
    return prepare(request, engine, tokenizer, "fake").whole()


def seen(tokenizer: Tokenizer, prompt: object, eos_ids: frozenset[int] = frozenset()) -> list[int]:
    """The ids the model is first run on: P of the law."""
    first: list[list[int]] = []

    def logits_of(tokens: Sequence[int]) -> NDArray[np.float64]:
        first.append(list(tokens))
        return np.zeros(FAKE_VOCAB)

    ask(FakeEngine(logits_of, eos_ids=eos_ids), tokenizer, prompt, max_tokens=1)
    return first[0]


# ---- what the model sees


def test_a_string_is_encoded_by_the_models_tokenizer(tokenizer: Tokenizer) -> None:
    assert seen(tokenizer, "é the") == [0xC3, 0xA9, THE]


def test_literals_of_special_tokens_in_a_string_are_parsed_as_those_tokens(tokenizer: Tokenizer) -> None:
    assert seen(tokenizer, "a<|fim_suffix|>b<|endoftext|>") == [ord("a"), SUF, ord("b"), EOT]


def test_ids_are_used_verbatim(tokenizer: Tokenizer) -> None:
    assert seen(tokenizer, [ord(" "), ord("t"), EOT, 0xFF, ord("h")]) == [ord(" "), ord("t"), EOT, 0xFF, ord("h")]


def test_nothing_is_prepended_to_ids(bos_tokenizer: Tokenizer) -> None:
    assert seen(bos_tokenizer, [7, 8]) == [7, 8]


def test_a_bos_the_tokenizer_adds_to_strings_is_first(bos_tokenizer: Tokenizer) -> None:
    assert seen(bos_tokenizer, "a") == [PRE, ord("a")]
    assert seen(bos_tokenizer, "<|fim_prefix|>a") == [PRE, PRE, ord("a")]


@pytest.mark.parametrize("prompt", [None, "", [""]])
def test_null_and_the_empty_string_are_the_end_of_text_token(tokenizer: Tokenizer, prompt: object) -> None:
    assert seen(tokenizer, prompt) == [EOT]


def test_null_is_the_bos_where_there_is_no_end_of_text_token(tmp_path: Path) -> None:
    tokenizer_files(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": SPECIALS[2]}))
    assert seen(load_tokenizer(tmp_path, FAKE_VOCAB), None) == [SUF]


def test_null_is_the_bos_alone_for_a_tokenizer_that_puts_one_before_strings(bos_tokenizer: Tokenizer) -> None:
    """Decided in prompt.py, where the law leaves room: such a model's documents begin with that token."""
    assert seen(bos_tokenizer, None) == seen(bos_tokenizer, "") == [PRE]


def test_null_is_the_lowest_end_id_of_the_engine_if_the_tokenizer_names_no_token(tmp_path: Path) -> None:
    tokenizer_files(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(tmp_path, FAKE_VOCAB)
    assert seen(tokenizer, None, eos_ids=frozenset({9, 200})) == [9]
    with pytest.raises(InvalidRequest, match="no end-of-text token") as error:
        seen(tokenizer, None, eos_ids=frozenset())
    assert error.value.param == "prompt"


def test_a_string_that_encodes_to_nothing_is_refused(tmp_path: Path) -> None:
    strip = {"type": "Strip", "strip_left": True, "strip_right": True}
    with pytest.raises(InvalidRequest, match="encodes to no tokens") as error:
        seen(fake_tokenizer(tmp_path, normalizer=strip), "  ")
    assert error.value.param == "prompt"


# ---- what usage and the arrays say of it


def test_an_added_bos_is_counted_and_stands_in_the_arrays_with_an_empty_span(bos_tokenizer: Tokenizer) -> None:
    answer = ask(FakeEngine(hashed_logits), bos_tokenizer, "né", max_tokens=0, echo=True, logprobs=0)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 4
    assert answer.choices[0].text == "né"
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ("<|fim_prefix|>", "n", "bytes:\\xc3", "bytes:\\xa9")
    assert logprobs.text_offset == (0, 0, 1, 1)


def test_the_end_of_text_token_of_an_empty_prompt_is_counted_and_has_an_empty_span(tokenizer: Tokenizer) -> None:
    answer = ask(FakeEngine(hashed_logits), tokenizer, "", max_tokens=0, echo=True, logprobs=0)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 1
    assert answer.choices[0].text == ""
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.text_offset) == (("<|endoftext|>",), (0,))


SMALL_TEXT = st.text(st.sampled_from("a the<|>é界"), min_size=1, max_size=8)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(text=SMALL_TEXT, seed=st.integers(-(2**63), 2**63 - 1))
def test_a_string_and_its_ids_have_the_same_completions(tokenizer: Tokenizer, text: str, seed: int) -> None:
    """Exact: equal ids, equal logits, equal noise. Two unrelated answers of 6 tokens agree with odds near 270⁻⁶."""
    engine = FakeEngine(hashed_logits)
    fields = {"seed": seed, "logprobs": 3, "max_tokens": 6, "n": 2}
    assert (
        ask(engine, tokenizer, text, **fields).choices
        == ask(engine, tokenizer, list(tokenizer.encode(text).ids), **fields).choices
    )


# ---- lists

FORMS: list[list[object]] = [["a", "the é", "", "a"], [[1, 2], [3], [EOT, 0xC3], [1, 2]]]


@pytest.mark.parametrize("prompts", FORMS)
@pytest.mark.parametrize("extra", [{}, {"n": 2}, {"n": 2, "best_of": 3}, {"echo": True}, {"stop": "e"}])
def test_with_a_seed_each_element_of_a_list_gives_what_it_gives_alone(
    tokenizer: Tokenizer, prompts: list[object], extra: dict[str, object]
) -> None:
    engine = FakeEngine(hashed_logits)
    fields = {"seed": 5, "logprobs": 2, "max_tokens": 5, **extra}
    n = int(str(extra.get("n", 1)))
    together = ask(engine, tokenizer, prompts, **fields)
    alone = [ask(engine, tokenizer, prompt, **fields) for prompt in prompts]
    assert [choice.index for choice in together.choices] == list(range(len(prompts) * n))
    for j, answer in enumerate(alone):
        for rank in range(n):
            ours, theirs = together.choices[j * n + rank], answer.choices[rank]
            assert (ours.text, ours.logprobs, ours.finish_reason) == (
                theirs.text,
                theirs.logprobs,
                theirs.finish_reason,
            )
    assert together.usage is not None
    assert together.usage.prompt_tokens == sum(a.usage.prompt_tokens for a in alone if a.usage)
    assert together.usage.completion_tokens == sum(a.usage.completion_tokens for a in alone if a.usage)


def test_with_a_seed_equal_elements_give_equal_choices(tokenizer: Tokenizer) -> None:
    """16 tokens of 270 that look random: unequal draws would agree with odds near 270⁻¹⁶."""
    first, second = ask(FakeEngine(hashed_logits), tokenizer, ["ab", "ab"], seed=0, logprobs=1).choices
    assert (first.text, first.logprobs) == (second.text, second.logprobs)


def test_without_a_seed_every_element_of_a_list_draws_its_own(tokenizer: Tokenizer) -> None:
    """Every step draws nearly evenly from 270 ids: two elements agree in 16 tokens with odds near 270⁻¹⁶."""
    answer = ask(FakeEngine(lambda _: np.zeros(FAKE_VOCAB), eos_ids=frozenset()), tokenizer, ["ab"] * 3, logprobs=0)
    assert len({choice.logprobs.tokens for choice in answer.choices if choice.logprobs}) == 3


def test_a_list_of_one_is_its_element(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(hashed_logits)
    for one, many in (("ab", ["ab"]), ([1, 2], [[1, 2]])):
        assert (
            ask(engine, tokenizer, one, seed=1, logprobs=0).choices
            == ask(engine, tokenizer, many, seed=1, logprobs=0).choices
        )


# ---- refusals


@pytest.mark.parametrize(
    "prompt",
    [
        [], [[]], [[1], []], ["a", 1], [1, "a"], [[1], "a"], ["a", [1]], [[1], 2], [1, [2]], True, [True], [1, False],
        [[True]], [None], ["a", None], [1, None], 1, 1.0, [1.0], [[1, 2.0]], [-1], [[3, -1]], {}, [{}], [[[1]]],
        [FAKE_VOCAB], [[1], [FAKE_VOCAB]], [2**70],
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_prompt_is_refused_under_its_name(tokenizer: Tokenizer, prompt: object) -> None:
    engine = FakeEngine(hashed_logits)
    with pytest.raises(InvalidRequest) as error:
        ask(engine, tokenizer, prompt)
    assert (error.value.status, error.value.param) == (400, "prompt")
    assert error.value.message.startswith("prompt")
    assert engine.calls == 0


def test_the_last_id_of_the_vocabulary_is_a_prompt(tokenizer: Tokenizer) -> None:
    assert seen(tokenizer, [FAKE_VOCAB - 1]) == [FAKE_VOCAB - 1]


def test_prompt_and_max_tokens_may_fill_the_context(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(hashed_logits, context=8, eos_ids=frozenset())
    answer = ask(engine, tokenizer, [1] * 3, max_tokens=5)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert ask(engine, tokenizer, [1] * 8, max_tokens=0, echo=True).choices[0].text == "\x01" * 8


@pytest.mark.parametrize(
    ("length", "max_tokens", "param"), [(3, 6, "max_tokens"), (8, 1, "max_tokens"), (9, 0, "prompt"), (9, 5, "prompt")]
)
def test_prompt_and_max_tokens_beyond_the_context_are_refused_never_clamped(
    tokenizer: Tokenizer, length: int, max_tokens: int, param: str
) -> None:
    engine = FakeEngine(hashed_logits, context=8)
    for prompt in ([1] * length, "a" * length):
        with pytest.raises(InvalidRequest) as error:
            ask(engine, tokenizer, prompt, max_tokens=max_tokens)
        assert (error.value.status, error.value.param) == (400, param)
        assert error.value.code == "context_length_exceeded"
        assert engine.calls == 0


CONTEXT_WORDS = re.compile(  # what clients search and what they read the numbers with
    r"(prompt|max_tokens): This model's maximum context length is (\d+) tokens\. However, you requested (\d+) tokens "
    r"\((\d+) in (.+), (\d+) in the completion\)\. Please reduce the length of the prompt"
    r"(, or give max_tokens of at most (\d+))?\."
)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "said"),
    [
        ("a" * 9, 0, ("prompt", "8", "9", "9", "the prompt", "0", None)),
        ("a" * 9, 5, ("prompt", "8", "14", "9", "the prompt", "5", None)),
        ([1] * 8, 1, ("max_tokens", "8", "9", "8", "the prompt", "1", "0")),
        ("abc", 10**12, ("max_tokens", "8", str(10**12 + 3), "3", "the prompt", str(10**12), "5")),
        (["a", "b" * 7, "c" * 9], 2, ("max_tokens", "8", "9", "7", "prompt[1]", "2", "1")),
        ([[1], [2] * 9], 2, ("prompt", "8", "11", "9", "prompt[1]", "2", None)),
        (["a" * 9], 2, ("prompt", "8", "11", "9", "the prompt", "2", None)),
    ],
    ids=str,
)
def test_a_prompt_beyond_the_context_is_told_in_the_words_that_clients_look_for(
    tokenizer: Tokenizer, prompt: Any, max_tokens: int, said: tuple[str | None, ...]
) -> None:
    with pytest.raises(InvalidRequest) as error:
        ask(FakeEngine(hashed_logits, context=8), tokenizer, prompt, max_tokens=max_tokens)
    found = CONTEXT_WORDS.fullmatch(error.value.message)
    assert found is not None, error.value.message
    assert (*found.groups()[:6], found[8]) == said


def test_a_middle_beyond_the_context_counts_its_markers_and_the_suffix(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match=r"requested 9 tokens \(8 in the prompt, 1 in") as error:
        ask(FakeEngine(hashed_logits, context=8), tokenizer, "abc", suffix="de", max_tokens=1)
    assert (error.value.param, error.value.code) == ("max_tokens", "context_length_exceeded")


def test_one_prompt_beyond_the_context_refuses_the_list_before_anything_is_generated(
    tokenizer: Tokenizer,
) -> None:
    engine = FakeEngine(hashed_logits, context=8)
    with pytest.raises(InvalidRequest) as error:
        ask(engine, tokenizer, ["a", "abcdefghi"], max_tokens=1)
    assert error.value.param == "prompt"
    assert engine.calls == 0


def test_an_added_bos_counts_against_the_context(bos_tokenizer: Tokenizer) -> None:
    engine = FakeEngine(hashed_logits, context=4)
    with pytest.raises(InvalidRequest) as error:
        ask(engine, bos_tokenizer, "abc", max_tokens=1)
    assert error.value.param == "max_tokens"
    ask(engine, bos_tokenizer, "abc", max_tokens=0)
