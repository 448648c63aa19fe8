"""What the bench and the doctor measure with."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from gnomon.jax_engine.tools.measure import (
    LLAMA_135M,
    MEBIBYTE,
    QWEN2_500M,
    SIZES,
    RandomModel,
    ReadLimit,
    interleaved,
    make_checkpoint,
)
from gnomon.reference.checkpoint.config import model_config
from gnomon.reference.checkpoint.load import load_checkpoint
from gnomon.reference.checkpoint.tensor_table import expected_tensors
from gnomon.reference.tokenizer import load_tokenizer


def test_sides_are_measured_in_turn_after_a_round_that_does_not_count() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return len(order)

    sides = {"a": lambda: side("a"), "b": lambda: side("b")}
    assert interleaved(2, sides) == {"a": [3, 5], "b": [4, 6]}
    assert interleaved(1, sides, warm_up=False) == {"a": [7], "b": [8]}
    assert "".join(order) == "abababab"


@pytest.mark.parametrize("shape", [LLAMA_135M, QWEN2_500M], ids=["llama", "qwen2"])
def test_the_random_model_is_a_model_with_a_tokenizer_for_all_its_ids(shape: RandomModel, tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "model", RandomModel((512, 64, 128, 2, 4, 2), shape.entries), 64)
    loaded = load_checkpoint(directory)
    assert loaded.config.eos_token_ids == frozenset()
    assert loaded.config.tie_word_embeddings
    layer = loaded.params["layers"][1]
    biases = [leaf for name, leaf in layer["self_attn"].items() if name.endswith("_bias")]
    assert len(biases) == (3 if shape is QWEN2_500M else 0)
    for leaf in (loaded.params["embed_tokens"], layer["mlp"]["down_proj"], *biases):
        assert leaf.std() == pytest.approx(0.02, rel=0.3)
        assert np.array_equal(leaf, leaf.astype(ml_dtypes.bfloat16))
    assert np.all(layer["input_layernorm"] == 1)
    assert len(load_tokenizer(directory, 512).labels) == 512


def test_the_mid_sized_shape_has_as_many_parameters_as_qwen2_of_half_a_billion() -> None:
    sizes = dict(zip(SIZES, QWEN2_500M.sizes, strict=True))
    config = model_config(
        {**QWEN2_500M.entries, **sizes, "max_position_embeddings": 64, "tie_word_embeddings": True}, None
    )
    assert sum(math.prod(shape) for shape in expected_tensors(config).values()) == 494_032_768


def test_the_read_limit_reads_every_byte_of_its_array() -> None:
    limit = ReadLimit(MEBIBYTE)
    assert limit.bytes == MEBIBYTE
    assert 1e6 < limit.rate() < 1e13
    for at in (0, MEBIBYTE // 2 - 1, MEBIBYTE // 2, MEBIBYTE - 1):
        limit._bytes[at] = 0  # what it looks for, and must come upon wherever it is
        with pytest.raises(AssertionError):
            limit.once()
        limit._bytes[at] = 1
