"""Section 9 of the law: fill-in-the-middle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gnomon.reference.completion import prepare
from gnomon.reference.errors import InvalidRequest
from gnomon.reference.request import CompletionRequest
from gnomon.reference.response import Completion
from gnomon.reference.text.infill import Infill
from gnomon.reference.tokenizer import Tokenizer
from helpers.fake import (
    EOT,
    FAKE_VOCAB,
    MID,
    PRE,
    SUF,
    FakeEngine,
    always,
    fake_tokenizer,
    hashed_logits,
    puts_first,
    tokenizer_files,
)

THE = 258


@pytest.fixture(scope="module")
def bos_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return fake_tokenizer(tmp_path_factory.mktemp("bos"), post_processor=puts_first(EOT))


def ask(engine: FakeEngine, tokenizer: Tokenizer, prompt: object = "ab", **fields: object) -> Completion:
    request = CompletionRequest.from_fields({"model": "fake", "prompt": prompt, **fields})
    return prepare(request, engine, tokenizer, "fake").whole()


def seen(tokenizer: Tokenizer, prompt: object, suffix: str) -> list[int]:
    first: list[list[int]] = []

    def logits_of(tokens: Sequence[int]) -> NDArray[np.float64]:
        first.append(list(tokens))
        return np.zeros(FAKE_VOCAB)

    ask(FakeEngine(logits_of, context=256), tokenizer, prompt, suffix=suffix, max_tokens=1)
    return first[0]


def test_the_prompt_is_prefix_suffix_middle(tokenizer: Tokenizer) -> None:
    assert seen(tokenizer, "é the", "ab") == [PRE, 0xC3, 0xA9, THE, SUF, 97, 98, MID]


def test_a_bos_comes_first_and_once(bos_tokenizer: Tokenizer) -> None:
    assert seen(bos_tokenizer, "a", "b") == [EOT, PRE, 97, SUF, 98, MID]


@pytest.mark.parametrize("prompt", ["", None])
def test_an_empty_prompt_is_the_empty_text_before_the_gap(
    tokenizer: Tokenizer, bos_tokenizer: Tokenizer, prompt: object
) -> None:
    assert seen(tokenizer, prompt, "b") == [PRE, SUF, 98, MID]
    assert seen(bos_tokenizer, prompt, "b") == [EOT, PRE, SUF, 98, MID]


def test_literals_of_special_tokens_are_not_parsed_in_either_text(tokenizer: Tokenizer) -> None:
    ids = seen(tokenizer, "<|endoftext|>", "<|fim_middle|>")
    assert [v for v in ids if v >= EOT] == [PRE, SUF, MID]
    gap = ids.index(SUF)
    assert b"".join(tokenizer.token_bytes[v] for v in ids[1:gap]) == b"<|endoftext|>"
    assert b"".join(tokenizer.token_bytes[v] for v in ids[gap + 1 : -1]) == b"<|fim_middle|>"


@given(
    *[st.lists(st.sampled_from(["a", " the", "é", "<|fim_suffix|>", "<|endoftext|>", "界"]), max_size=4).map("".join)]
    * 2
)
def test_both_texts_can_be_read_back_from_what_the_model_sees(tokenizer: Tokenizer, before: str, after: str) -> None:
    """Exact: the markers stand once each, and between them are the bytes of the texts."""
    after += "!"
    ids = seen(tokenizer, before, after)
    assert (ids[0], ids[-1]) == (PRE, MID)
    assert [v for v in ids if v >= EOT] == [PRE, SUF, MID]
    gap = ids.index(SUF)
    assert b"".join(tokenizer.token_bytes[v] for v in ids[1:gap]).decode() == before
    assert b"".join(tokenizer.token_bytes[v] for v in ids[gap + 1 : -1]).decode() == after


def test_the_text_is_the_middle_alone(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(always(*b"xy", EOT, prompt=5))
    answer = ask(engine, tokenizer, "a", suffix="b", temperature=0)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("xy", "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 3)


@pytest.mark.parametrize("end", [PRE, SUF, MID, EOT])
def test_every_fill_in_the_middle_id_ends_the_middle(tokenizer: Tokenizer, end: int) -> None:
    engine = FakeEngine(always(ord("x"), end, ord("y"), prompt=5))
    answer = ask(engine, tokenizer, "a", suffix="b", temperature=0, logprobs=0, max_tokens=4)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("x", "stop")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ("x", tokenizer.labels[end])


@pytest.mark.parametrize("end", [PRE, SUF, MID])
def test_without_a_suffix_they_end_nothing(tokenizer: Tokenizer, end: int) -> None:
    for suffix in (None, ""):
        engine = FakeEngine(always(ord("x"), end, ord("y")))
        answer = ask(engine, tokenizer, "a", suffix=suffix, temperature=0, max_tokens=3)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("xy", "length")


def plain_markers(directory: Path) -> Tokenizer:
    """A tokenizer whose fill-in-the-middle tokens are added, but not special, as in some published files."""
    spec = json.loads((tokenizer_files(directory) / "tokenizer.json").read_text())
    added = [{**token, "special": token["id"] == EOT} for token in spec["added_tokens"]]
    tokenizer = fake_tokenizer(directory, added_tokens=added)
    assert tokenizer.infill == Infill(PRE, SUF, MID)
    return tokenizer


def test_declared_markers_in_the_texts_are_not_parsed_even_if_they_are_not_special(tmp_path: Path) -> None:
    ids = seen(plain_markers(tmp_path), "a<|fim_suffix|>", "b<|fim_middle|>")
    assert [v for v in ids if v >= EOT] == [PRE, SUF, MID]


def test_an_id_that_ends_the_middle_adds_no_text_even_if_it_is_not_special(tmp_path: Path) -> None:
    tokenizer = plain_markers(tmp_path)
    for end in (PRE, SUF, MID):
        engine = FakeEngine(always(ord("x"), end, ord("y"), prompt=5))
        choice = ask(engine, tokenizer, "a", suffix="b", temperature=0, max_tokens=4).choices[0]
        assert (choice.text, choice.finish_reason) == ("x", "stop")


def test_offsets_count_from_the_prompts_text(tokenizer: Tokenizer) -> None:
    """The prompt's text has two code points; markers and suffix have none of their own before the middle."""
    engine = FakeEngine(always(0xC3, 0xA9, ord("x"), EOT, prompt=9))
    answer = ask(engine, tokenizer, "aé", suffix="bcd", temperature=0, logprobs=1)
    choice = answer.choices[0]
    assert choice.logprobs is not None
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 9
    assert (choice.text, choice.logprobs.text_offset) == ("éx", (2, 2, 3, 4))


def test_stop_strings_do_not_look_at_prompt_or_suffix(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(always(*b"xy", prompt=5))
    answer = ask(engine, tokenizer, "a", suffix="b", temperature=0, stop=["ax", "yb", "b"], max_tokens=4)
    assert answer.choices[0].text == "xyxy"


@pytest.mark.parametrize("suffix", [None, ""])
@pytest.mark.parametrize("prompt", ["ab<|endoftext|>", [1, 2], "", ["a", "b"]])
def test_an_empty_suffix_has_no_effect(tokenizer: Tokenizer, suffix: object, prompt: object) -> None:
    engine = FakeEngine(hashed_logits)
    fields = {"seed": 1, "logprobs": 2, "echo": True, "n": 2}
    plain = ask(engine, tokenizer, prompt, **fields)
    answer = ask(engine, tokenizer, prompt, suffix=suffix, **fields)
    assert (answer.choices, answer.usage) == (plain.choices, plain.usage)


def test_suffix_works_for_a_list_with_n_and_best_of(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(hashed_logits)
    fields = {"suffix": "b", "seed": 1, "n": 2, "best_of": 3, "max_tokens": 4}
    together = ask(engine, tokenizer, ["a", "é"], **fields)
    alone = [choice for prompt in ("a", "é") for choice in ask(engine, tokenizer, prompt, **fields).choices]
    assert [choice.text for choice in together.choices] == [choice.text for choice in alone]


@pytest.mark.parametrize(
    ("prompt", "fields"),
    [([1, 2], {}), ([[1], [2]], {}), ("a", {"echo": True}), (["a", "b"], {"echo": True, "max_tokens": 0})],
)
def test_suffix_with_ids_or_echo_is_refused(tokenizer: Tokenizer, prompt: object, fields: dict[str, object]) -> None:
    engine = FakeEngine(hashed_logits)
    with pytest.raises(InvalidRequest) as error:
        ask(engine, tokenizer, prompt, suffix="b", **fields)
    assert (error.value.status, error.value.param) == (400, "suffix")
    assert engine.calls == 0


def test_suffix_is_refused_for_a_model_without_fill_in_the_middle_tokens(tmp_path: Path) -> None:
    spec = json.loads((tokenizer_files(tmp_path) / "tokenizer.json").read_text())
    model = {**spec["model"], "vocab": {token: v for token, v in spec["model"]["vocab"].items() if v < EOT}}
    tokenizer = fake_tokenizer(tmp_path, model=model, added_tokens=spec["added_tokens"][:1])
    engine = FakeEngine(hashed_logits)
    with pytest.raises(InvalidRequest, match="fill-in-the-middle") as error:
        ask(engine, tokenizer, "a", suffix="b")
    assert (error.value.status, error.value.param) == (400, "suffix")
    assert engine.calls == 0


def test_the_context_holds_prompt_suffix_and_markers(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(hashed_logits, context=8)
    ask(engine, tokenizer, "ab", suffix="cd", max_tokens=1)
    with pytest.raises(InvalidRequest) as error:
        ask(engine, tokenizer, "ab", suffix="cd", max_tokens=2)
    assert error.value.param == "max_tokens"
    with pytest.raises(InvalidRequest) as error:
        ask(engine, tokenizer, "ab", suffix="cdefgh", max_tokens=0)
    assert error.value.param == "prompt"
