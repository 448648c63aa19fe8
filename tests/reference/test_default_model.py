"""The embedded model as it is shipped: what its card shows is what the reference computes."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest

from gnomon.reference import CompletionRequest, ReferenceEngine, Tokenizer, default_model_path, load, prepare


def samples() -> list[dict[str, Any]]:
    card = (default_model_path() / "MODEL_CARD.md").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(re.findall(r"```json\n(.*?)```", card, re.DOTALL)[0])["samples"]
    return found


@cache
def model() -> tuple[ReferenceEngine, Tokenizer]:
    return load()


def text(**fields: Any) -> str:
    request = CompletionRequest.from_fields({"model": "gnomon-stories", **fields})
    return prepare(request, *model(), "gnomon-stories").whole().choices[0].text


def test_the_card_shows_three_samples() -> None:
    assert len(samples()) == 3


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_the_reference_writes_the_cards_greedy_samples(number: int) -> None:
    sample = samples()[number]
    assert text(prompt=sample["prompt"], max_tokens=sample["max_tokens"], temperature=0) == sample["text"]


def test_it_begins_a_story_with_whole_words_from_nothing() -> None:
    story = text(prompt=None, max_tokens=30, temperature=0)
    assert re.fullmatch(r"[A-Z][a-z]+( [a-z]+)* [\s\S]*", story)


def test_it_declares_the_tokens_that_suffix_needs_and_adds_no_bos() -> None:
    tokenizer = model()[1]
    assert tokenizer.infill is not None
    assert tokenizer.bos_id is None
    assert tokenizer.end_of_text_id in model()[0].eos_ids


def test_suffix_changes_what_it_writes() -> None:
    fields = {"prompt": "Tom had a red ball. ", "max_tokens": 12, "temperature": 0}
    assert text(**fields, suffix=" Then they went home.") != text(**fields)
