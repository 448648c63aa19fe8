"""What cannot fit is refused as soon as it is known, and nothing else is: by its bytes, before a text is encoded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from gnomon.reference.completion import Run, prepare
from gnomon.reference.errors import ContextExceeded, InvalidRequest
from gnomon.reference.prompt import MoreThanMayWait
from gnomon.reference.request import CompletionRequest
from gnomon.reference.tokenizer import Tokenizer
from helpers.fake import FakeEngine, always, hashed_logits
from helpers.live import check_error, post

CONTEXT = 64
LONGEST = len("<|fim_prefix|>")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is encoded."""
    texts: list[str] = []
    for name in ("encode", "encode_literal", "encode_following"):
        real = getattr(Tokenizer, name)

        def counted(self: Tokenizer, text: str, *others: Any, real: Any = real) -> Any:
            texts.append(text)
            return real(self, text, *others)

        monkeypatch.setattr(Tokenizer, name, counted)
    return texts


def prepared(tokenizer: Tokenizer, most_tokens: int | None = None, **fields: Any) -> Run:
    request = CompletionRequest.from_fields({"model": "m", "prompt": "a", "max_tokens": 1, **fields})
    return prepare(request, FakeEngine(hashed_logits, context=CONTEXT), tokenizer, "m", most_tokens=most_tokens)


TOO_LONG = "a" * (LONGEST * CONTEXT + 1)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": TOO_LONG}, "the prompt"),
        ({"prompt": ["a", TOO_LONG]}, r"prompt\[1\]"),
        ({"prompt": TOO_LONG, "suffix": "b"}, "the prompt"),
        ({"prompt": ["b", "a"], "suffix": TOO_LONG}, r"prompt\[0\]"),
        ({"prompt": "a" * (LONGEST * 40), "suffix": "b" * (LONGEST * 40)}, "the prompt"),
    ],
)
def test_a_text_that_cannot_fit_is_refused_before_any_is_encoded(
    tokenizer: Tokenizer, encoded: list[str], fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(ContextExceeded, match=rf"at least \d+ tokens \(at least \d+ in {named}, 1 in the") as error:
        prepared(tokenizer, **fields)
    assert (error.value.param, error.value.code, error.value.status) == ("prompt", "context_length_exceeded", 400)
    assert "maximum context length is 64 tokens" in error.value.message
    assert encoded == []


def test_a_text_whose_bytes_may_fit_is_encoded_and_then_judged(tokenizer: Tokenizer, encoded: list[str]) -> None:
    may_fit = TOO_LONG[:-1]
    with pytest.raises(ContextExceeded, match=r"requested 897 tokens \(896 in the prompt, 1 in the completion\)"):
        prepared(tokenizer, prompt=may_fit)
    assert encoded == [may_fit]
    assert len(prepared(tokenizer, prompt="<|fim_prefix|>" * (CONTEXT - 1)).prompts[0].ids) == CONTEXT - 1


@given(
    piece=st.sampled_from(("a", " the", "<|fim_prefix|>", "界", "\n", "ou", "<|fim_prefix|>a")),
    times=st.integers(1, 1500),
    max_tokens=st.integers(0, 70),
    suffix=st.sampled_from(("", "", "a", "界" * 200)),
)
def test_what_is_refused_by_its_size_is_refused_after_encoding_too(
    tokenizer: Tokenizer, piece: str, times: int, max_tokens: int, suffix: str
) -> None:
    """Exact: the same request, with and without what is known before."""
    outcomes: list[tuple[str | None, str | None]] = []
    for one in (tokenizer, replace(tokenizer, token_length=None)):
        try:
            run = prepared(one, prompt=piece * times, max_tokens=max_tokens, suffix=suffix)
            outcomes.append(("fits", str(run.prompts)))
        except InvalidRequest as error:
            outcomes.append((error.code, error.param))
    assert outcomes[0] == outcomes[1]


def test_a_suffix_that_cannot_be_is_refused_for_what_it_is(tokenizer: Tokenizer) -> None:
    """Its length says nothing that would help."""
    plain = replace(tokenizer, infill=None, infill_note="no tokens for it")
    for fields in ({"prompt": TOO_LONG}, {"prompt": [1]}):
        with pytest.raises(InvalidRequest, match="suffix: "):
            prepared(plain, suffix="b", **fields)


def test_a_suffix_is_encoded_once_for_all_prompts(tokenizer: Tokenizer, encoded: list[str]) -> None:
    assert len(prepared(tokenizer, prompt=["a", "b", "c"], suffix="suffix").prompts) == 3
    assert sorted(encoded) == ["a", "b", "c", "suffix"]


def test_prompts_that_together_are_more_than_may_wait_are_refused_unencoded(
    tokenizer: Tokenizer, encoded: list[str]
) -> None:
    texts = ["<|fim_prefix|>" * 10] * 20  # 200 tokens, and no fewer by their bytes
    with pytest.raises(MoreThanMayWait, match="at least 220 tokens; at most 219 on this server") as error:
        prepared(tokenizer, 219, prompt=texts)
    assert error.value.param == "max_tokens"
    assert encoded == []


def test_they_are_refused_as_soon_as_what_was_encoded_is_too_much(tokenizer: Tokenizer, encoded: list[str]) -> None:
    with pytest.raises(MoreThanMayWait):
        prepared(tokenizer, 300, prompt=["a" * 60] * 20)
    assert 3 <= len(encoded) <= 5


def test_the_server_refuses_them_by_its_own_bound(tokenizer: Tokenizer, encoded: list[str]) -> None:
    app = create_app(FakeEngine(always(*b"abc"), context=CONTEXT), tokenizer, Settings(max_queued_tokens=100))
    message = check_error(post(app, prompt=["a" * LONGEST * 10] * 20, max_tokens=1), 400, "max_tokens")
    assert "at most 100" in message
    message = check_error(post(app, prompt=TOO_LONG), 400, "prompt", "context_length_exceeded")
    assert "at least" in message
    assert encoded == []


def test_a_completion_beyond_the_context_is_told_of_the_context_first(tokenizer: Tokenizer) -> None:
    with pytest.raises(ContextExceeded, match=r"max_tokens: .* \(1 in the prompt, 1000 in the completion\)"):
        prepared(tokenizer, 500, prompt="a", max_tokens=1000)
