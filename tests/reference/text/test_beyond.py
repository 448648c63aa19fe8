"""Added tokens at or beyond the model's V rows, as published models have them: they load, are never sampled, and a
prompt that holds one is refused with its name, the same above every engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.settings import EngineSettings
from gnomon.reference.checkpoint.errors import CheckpointError
from gnomon.reference.checkpoint.load import load_checkpoint
from gnomon.reference.completion import prepare
from gnomon.reference.engine import Engine, ReferenceEngine
from gnomon.reference.errors import InvalidRequest
from gnomon.reference.request import CompletionRequest
from gnomon.reference.response import Completion
from gnomon.reference.text.infill import InfillOptions
from gnomon.reference.tokenizer import Tokenizer, load_tokenizer
from gnomon.reference.trace.replay import TraceRequest, prepare_trace
from helpers.fake import EOT, FAKE_VOCAB, MID, FakeEngine, always, hashed_logits, puts_first, tokenizer_files
from helpers.models import tiny_llama

V = FAKE_VOCAB
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
PAD, IMAGE = "<pad>", "<image_soft_token>"  # special, and not


def with_added(directory: Path) -> Path:
    """A tokenizer with a special and an ordinary added token right behind the model's last row."""
    spec = json.loads((tokenizer_files(directory) / "tokenizer.json").read_text())
    spec["added_tokens"] += [
        {"id": V, "content": PAD, **PLAIN, "special": True},
        {"id": V + 1, "content": IMAGE, **PLAIN, "special": False},
    ]
    (directory / "tokenizer.json").write_text(json.dumps(spec))
    return directory


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return load_tokenizer(with_added(tmp_path), V)


def complete(tokenizer: Tokenizer, engine: Engine | None = None, **fields: Any) -> Completion:
    body = {"model": "m", "max_tokens": 3, "temperature": 0, **fields}
    engine = engine or FakeEngine(hashed_logits)
    return prepare(CompletionRequest.from_fields(body), engine, tokenizer, "m").whole()


def refusal(tokenizer: Tokenizer, engine: Engine | None = None, **fields: Any) -> tuple[str | None, str]:
    with pytest.raises(InvalidRequest) as caught:
        complete(tokenizer, engine, **fields)
    return caught.value.param, caught.value.message


def test_a_tokenizer_with_added_tokens_beyond_the_model_loads(tokenizer: Tokenizer) -> None:
    assert tokenizer.beyond == {V: PAD, V + 1: IMAGE}
    assert len(tokenizer.labels) == len(tokenizer.token_bytes) == V
    assert {PAD, IMAGE}.isdisjoint(tokenizer.labels)
    assert max(tokenizer.special) == MID == V - 1
    assert complete(tokenizer, prompt="the other").choices[0].text


@pytest.mark.parametrize("prompt", [f"one {PAD}", ["fine", f"{PAD}two"], [1, V], [[1], [2, V, V + 1]]])
def test_a_prompt_with_a_token_beyond_the_model_is_a_400_that_names_it(tokenizer: Tokenizer, prompt: Any) -> None:
    words = f'prompt: {V} ("{PAD}") is no token id of this model; ids are below {V}'
    assert refusal(tokenizer, prompt=prompt) == ("prompt", words)


def test_an_ordinary_added_token_beyond_the_model_is_refused_too(tokenizer: Tokenizer) -> None:
    words = f'"{IMAGE}") is no token id of this model; ids are below {V}'
    assert words in refusal(tokenizer, prompt=f"one {IMAGE}")[1]
    for named, prompt, suffix in (("prompt", f"a {IMAGE}", "b"), ("suffix", "a", f"b {IMAGE}")):
        param, message = refusal(tokenizer, prompt=prompt, suffix=suffix)
        assert param == named
        assert words in message


def test_an_id_that_nobody_has_is_refused_without_a_name(tokenizer: Tokenizer) -> None:
    words = f"prompt: {V + 2} is no token id of this model; ids are below {V}"
    assert refusal(tokenizer, prompt=[V + 2]) == ("prompt", words)


def test_a_bias_of_a_token_beyond_the_model_is_refused(tokenizer: Tokenizer) -> None:
    param, message = refusal(tokenizer, prompt="a", logit_bias={str(V): 5})
    assert param == f"logit_bias.{V}"
    assert f"ids are below {V}" in message


@pytest.mark.slow
def test_every_engine_and_the_trace_refuse_alike(tmp_path: Path) -> None:
    path = with_added(tiny_llama(tmp_path / "m"))
    checkpoint = load_checkpoint(path)
    tokenizer = load_tokenizer(path, checkpoint.config.vocab_size)
    jax = JaxEngine(checkpoint, EngineSettings(slots=1, page_size=8, chunk=8, native=False))
    try:
        for prompt in (f"a{PAD}", [3, V]):
            ours, theirs = (refusal(tokenizer, engine, prompt=prompt) for engine in (ReferenceEngine(checkpoint), jax))
            assert ours == theirs
            sent = {"model": "m", "prompt": prompt, "max_tokens": 3, "temperature": 0}
            asked = TraceRequest.from_fields({"request": sent, "tokens": []})
            with pytest.raises(InvalidRequest) as caught:
                prepare_trace(asked, jax, tokenizer, "m", 100)
            assert (caught.value.param, caught.value.message) == (f"request.{ours[0]}", f"request.{ours[1]}")
        assert (
            complete(tokenizer, jax, prompt="a").choices[0].text
            == complete(tokenizer, ReferenceEngine(checkpoint), prompt="a").choices[0].text
        )
    finally:
        jax.stop()


# ---- what the model must have


def changed(directory: Path, config: Mapping[str, Any], **spec: Any) -> Path:
    with_added(directory)
    for file, entries in (("tokenizer.json", spec), ("tokenizer_config.json", config)):
        kept = json.loads((directory / file).read_text())
        (directory / file).write_text(json.dumps({**kept, **entries}))
    return directory


def test_a_piece_of_the_vocabulary_itself_beyond_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf'tokenizer\.json has id {EOT - 1}, "ll", but .* has {EOT - 3} ids'):
        load_tokenizer(with_added(tmp_path), EOT - 3)


def test_a_tokenizer_that_begins_strings_beyond_the_model_is_refused(tmp_path: Path) -> None:
    path = changed(tmp_path, {"add_bos_token": True, "bos_token": PAD})
    with pytest.raises(CheckpointError, match=rf'tokenizer\.json has id {V}, "<pad>", but .* has {V} ids'):
        load_tokenizer(path, V)
    first = changed(tmp_path, {"add_bos_token": None}, post_processor=puts_first(EOT))
    assert load_tokenizer(first, V).bos_id == EOT


def test_an_end_of_text_beyond_the_model_begins_no_document(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(changed(tmp_path, {"eos_token": PAD, "bos_token": IMAGE}), V)
    assert tokenizer.end_of_text_id is None
    engine = FakeEngine(always(5), eos_ids=frozenset())
    assert refusal(tokenizer, engine, prompt="")[1].endswith("this model has no end-of-text token to begin from; "
                                                             "give a text")  # fmt: skip
    assert complete(tokenizer, FakeEngine(always(5)), prompt=None).usage is not None  # the model's own end token


def test_fill_in_the_middle_beyond_the_model_is_not_available_in_words(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(with_added(tmp_path), MID)  # one row fewer: <|fim_middle|> is beyond
    assert tokenizer.infill is None
    assert tokenizer.infill_ends == frozenset()
    engine = FakeEngine(lambda tokens: np.zeros(MID), vocab_size=MID)
    reason = f'"<|fim_middle|>" has id {MID}, and the model\'s ids are below {MID}'
    words = f"this model has no fill-in-the-middle tokens: {reason}"
    assert refusal(tokenizer, engine, prompt="a", suffix="b") == ("suffix", f"suffix: {words}; leave it out")
    with pytest.raises(CheckpointError, match=rf'--fim-middle: "<pad>" has id {V}, and the model\'s ids are below {V}'):
        load_tokenizer(tmp_path, V, InfillOptions("<|fim_prefix|>", "<|fim_suffix|>", PAD))


def test_an_end_of_a_middle_beyond_the_model_ends_nothing_and_hinders_nothing(tmp_path: Path) -> None:
    spec = json.loads((tokenizer_files(tmp_path) / "tokenizer.json").read_text())
    spec["added_tokens"].append({"id": V, "content": "<|file_separator|>", **PLAIN, "special": True})
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = load_tokenizer(tmp_path, V)
    assert tokenizer.infill is not None
    assert max(tokenizer.infill_ends) < V
    assert complete(tokenizer, prompt="a", suffix="b").choices[0].finish_reason
