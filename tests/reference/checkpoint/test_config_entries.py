"""Which model config.json names, where it says a thing twice, and ids that its vocabulary does not have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gnomon.reference.checkpoint.config import architecture_of, read_config
from gnomon.reference.checkpoint.errors import CheckpointError, UnsupportedModel
from gnomon.reference.checkpoint.families import ARCHITECTURES
from gnomon.reference.checkpoint.load import load_checkpoint
from gnomon.reference.completion import prepare
from gnomon.reference.engine import ReferenceEngine
from gnomon.reference.model_config import ModelConfig
from gnomon.reference.request import CompletionRequest
from gnomon.reference.tokenizer import load_tokenizer
from helpers.fake import EOT
from helpers.models import TINY, tiny_llama

GONE = object()


def config(directory: Path, generation: dict[str, Any] | None = None, **changes: Any) -> tuple[ModelConfig, list[str]]:
    """TINY with other entries, and the lines that it is read with."""
    entries = {name: value for name, value in {**TINY, **changes}.items() if value is not GONE}
    (directory / "config.json").write_text(json.dumps(entries))
    (directory / "generation_config.json").write_text(json.dumps(generation or {}))
    lines: list[str] = []
    return read_config(directory, warn=lines.append), lines


# ---- which model it is


@pytest.mark.parametrize("named", [GONE, None, []])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_without_architectures_the_model_type_decides(named: Any, name: str) -> None:
    raw = {"architectures": named, "model_type": ARCHITECTURES[name].model_type}
    assert architecture_of({key: value for key, value in raw.items() if value is not GONE}) == name


@pytest.mark.parametrize("kind", [None, "mamba", "gemma3", 3, ["llama"]])
def test_without_architectures_an_unknown_model_type_is_refused_with_those_known(kind: Any) -> None:
    with pytest.raises(UnsupportedModel, match=r"names no architectures, and model_type .* not supported.*llama"):
        architecture_of({"architectures": [], "model_type": kind})


@pytest.mark.parametrize(
    ("named", "kind", "model"),
    [
        (["LlamaModel"], "llama", "LlamaForCausalLM"),
        (["GPTNeoXModel"], None, "GPTNeoXForCausalLM"),
        (["Gemma3TextModel"], "gemma3_text", "Gemma3ForCausalLM"),
        (["LlamaModel", "LlamaForCausalLM"], "llama", "LlamaForCausalLM"),
        (["LlamaForCausalLM"], "internlm2_as_llama", "LlamaForCausalLM"),
        ("LlamaForCausalLM", "llama", "LlamaForCausalLM"),
    ],
)
def test_a_class_without_a_head_is_the_model_that_has_it(named: Any, kind: Any, model: str) -> None:
    assert architecture_of({"architectures": named, "model_type": kind}) == model


@pytest.mark.parametrize(
    ("named", "refused"),
    [
        (["TFLlamaForCausalLM"], "TFLlamaForCausalLM is not supported"),
        (["LlamaForSequenceClassification"], "LlamaForSequenceClassification is not supported"),
        (["LlamaForCausalLM", "SomethingElse"], "SomethingElse is not supported"),
        (["Gemma3Model"], "Gemma3Model is not supported"),
        ([None], "null is not supported"),
        ({}, "{} is not supported"),
        (["MistralForCausalLM"], 'architectures ["MistralForCausalLM"] and model_type "llama": different models'),
        (["LlamaModel", "MistralModel"], "different models"),
    ],
)
def test_an_unknown_name_or_another_models_is_refused_beside_a_known_type(named: Any, refused: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        architecture_of({"architectures": named, "model_type": "llama"})
    assert refused in str(caught.value)


# ---- rotary positions

LINEAR = {"type": "linear", "factor": 4.0}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
NESTED = {"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}
PHI3 = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"rope_scaling": LINEAR}, {"rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 1e4}}),
        ({"rope_scaling": LINEAR}, {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "linear", "factor": 4}}),
        ({"rope_scaling": LINEAR}, {"rope_scaling": LINEAR, "rope_parameters": NESTED}),
        ({}, {"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 1e4}}),
        ({}, {"rope_scaling": {"rope_type": None}, "rope_parameters": {}}),
        ({}, {"rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]}}),
        ({"rope_theta": 500}, {"rope_theta": GONE, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        ({"rope_theta": 500}, {"rope_theta": 500, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        (
            {"rope_scaling": {"type": "llama3", **LLAMA3}},
            {"original_max_position_embeddings": 64, "rope_parameters": {"rope_type": "llama3", **LLAMA3}},
        ),
        (
            {**PHI3, "rope_scaling": {"type": "longrope", **FACTORS}},
            {**PHI3, "rope_scaling": {"type": "su", **FACTORS}, "rope_parameters": {"rope_type": "yarn", **FACTORS}},
        ),
    ],
)
def test_rotary_positions_said_in_other_words_are_the_same(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any]
) -> None:
    (plain, _), (wordy, lines) = config(tmp_path, **one), config(tmp_path, **other)
    assert lines == []
    assert plain == wordy
    assert plain.family.layers[0].rope == wordy.family.layers[0].rope


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (
            {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "linear", "factor": 8.0}},
            "rope_parameters: factor is 8.0, but in rope_scaling it is 4.0; give one of them",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_parameters": {"rope_theta": 1e4}},
            'rope_parameters: rope_type is "default", but in rope_scaling it is "llama3"',
        ),
        (
            {"rope_theta": 500, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            "rope_parameters.rope_theta is 10000.0, but rope_theta is 500",
        ),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 4.0}},
            'rope_scaling.rope_type is "dynamic", but rope_scaling.type is "linear"',
        ),
        (
            {"original_max_position_embeddings": 32, "rope_scaling": {"type": "llama3", **LLAMA3}},
            "rope_scaling.original_max_position_embeddings is 64, but original_max_position_embeddings is 32",
        ),
        (
            {"rope_scaling": LINEAR, "rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
            'rope_parameters: rope_type is "default", but in rope_scaling it is "linear"',
        ),
    ],
)
def test_rotary_positions_that_contradict_are_refused_with_both_values(
    tmp_path: Path, entries: dict[str, Any], words: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        config(tmp_path, **entries)
    assert words in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)


# ---- ids that the vocabulary does not have

BEYOND = "but the vocabulary has 270 ids: ignored"


@pytest.mark.parametrize(
    ("generation", "eos", "kept", "lines"),
    [
        (None, 50256, set(), [f"config.json has eos_token_id 50256, {BEYOND}"]),
        (None, [5, 50256, 9, -1], {5, 9}, [f"config.json has eos_token_id [50256, -1], {BEYOND}"]),
        (270, 5, set(), [f"generation_config.json has eos_token_id 270, {BEYOND}"]),
        ([269, 10**30], 5, {269}, [f"generation_config.json has eos_token_id {10**30}, {BEYOND}"]),
        (7, 50256, {7}, []),
    ],
)
def test_an_end_id_that_no_token_has_is_ignored_with_a_line(
    tmp_path: Path, generation: Any, eos: Any, kept: set[int], lines: list[str]
) -> None:
    read, told = config(tmp_path, {"eos_token_id": generation}, eos_token_id=eos)
    assert (read.eos_token_ids, told) == (frozenset(kept), lines)


@pytest.mark.parametrize("bos", [-1, 270, 50256])
def test_a_bos_that_no_token_has_is_ignored_with_a_line(tmp_path: Path, bos: int) -> None:
    read, lines = config(tmp_path, bos_token_id=bos)
    assert read.bos_token_id is None
    assert lines == [f"config.json has bos_token_id {bos}, {BEYOND}"]


@pytest.mark.parametrize("entries", [{"eos_token_id": "x"}, {"eos_token_id": [True]}, {"eos_token_id": 1.0},
                                     {"bos_token_id": [1]}, {"bos_token_id": "x"}])  # fmt: skip
def test_an_id_that_is_no_integer_is_still_an_error(tmp_path: Path, entries: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=next(iter(entries))):
        config(tmp_path, **entries)


def test_a_model_without_a_reachable_end_runs_to_max_tokens(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m", eos_token_id=0)
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**raw, "eos_token_id": 50256, "bos_token_id": -1}))
    lines: list[str] = []
    checkpoint = load_checkpoint(path, warn=lines.append)
    assert len(lines) == 2
    named = json.loads((path / "tokenizer_config.json").read_text())  # its tokenizer's own eos_token would end it too
    (path / "tokenizer_config.json").write_text(json.dumps({**named, "eos_token": None}))
    tokenizer = load_tokenizer(path, checkpoint.config.vocab_size)
    body = {"model": "m", "prompt": "the", "max_tokens": 9, "logit_bias": {str(EOT): 100}, "temperature": 0}
    run = prepare(CompletionRequest.from_fields(body), ReferenceEngine(checkpoint), tokenizer, "m")
    [choice] = run.whole().choices
    assert choice.finish_reason == "length"
