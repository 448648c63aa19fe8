"""A GGUF file that was written, read by its specification: are the checkpoint's numbers where llama.cpp looks?"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from gnomon.jax_engine.tools.gguf import write_gguf
from gnomon.jax_engine.tools.measure import LLAMA_135M, QWEN2_500M, RandomModel, make_checkpoint
from gnomon.reference.checkpoint.load import Checkpoint, load_checkpoint

SMALL = (300, 32, 48, 2, 4, 2)
SHAPES = {"llama": RandomModel(SMALL, LLAMA_135M.entries), "qwen2": RandomModel(SMALL, QWEN2_500M.entries)}
CODES = {4: "I", 5: "i", 6: "f", 7: "?"}  # of the types of entries
DTYPES = {0: np.dtype(np.float32), 30: np.dtype(ml_dtypes.bfloat16)}


class Read(NamedTuple):
    entries: dict[str, Any]
    tensors: dict[str, NDArray[Any]]


def read_gguf(file: Path) -> Read:
    data, at = file.read_bytes(), 0

    def number(code: str) -> Any:
        nonlocal at
        [value] = struct.unpack_from(f"<{code}", data, at)
        at += struct.calcsize(f"<{code}")
        return value

    def text() -> str:
        nonlocal at
        length = number("Q")
        at += length
        return data[at - length : at].decode()

    def value(kind: int) -> Any:
        if kind == 9:
            of, count = number("I"), number("Q")
            return [value(of) for _ in range(count)]
        return text() if kind == 8 else number(CODES[kind])

    assert (number("I"), number("I")) == (int.from_bytes(b"GGUF", "little"), 3)
    tensors, entries = number("Q"), number("Q")
    found = {text(): value(number("I")) for _ in range(entries)}
    table = []
    for _ in range(tensors):
        name, axes = text(), number("I")
        table.append((name, [number("Q") for _ in range(axes)][::-1], DTYPES[number("I")], number("Q")))
    start = at + -at % 32
    arrays = {
        name: np.frombuffer(data, dtype, int(np.prod(shape)), start + offset).reshape(shape)
        for name, shape, dtype, offset in table
    }
    assert all(offset % 32 == 0 for *_, offset in table)
    return Read(found, arrays)


def made(tmp_path: Path, kind: str, dtype: str) -> tuple[Checkpoint, Read]:
    checkpoint = load_checkpoint(make_checkpoint(tmp_path / kind, SHAPES[kind], 64))
    write_gguf(checkpoint, dtype, tmp_path / "model.gguf")
    return checkpoint, read_gguf(tmp_path / "model.gguf")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matrices_have_the_dtype_and_vectors_float32(tmp_path: Path, dtype: str) -> None:
    _, read = made(tmp_path, "qwen2", dtype)
    assert {str(array.dtype) for array in read.tensors.values() if array.ndim == 2} == {dtype}
    assert {str(array.dtype) for array in read.tensors.values() if array.ndim == 1} == {"float32"}


@pytest.mark.parametrize("kind", SHAPES)
def test_every_number_of_the_checkpoint_is_in_the_file(tmp_path: Path, kind: str) -> None:
    checkpoint, (entries, tensors) = made(tmp_path, kind, "float32")
    assert sum(array.size for array in tensors.values()) == checkpoint.parameter_count
    params, layer = checkpoint.params, checkpoint.params["layers"][1]
    assert np.array_equal(tensors["token_embd.weight"], params["embed_tokens"])
    assert "output.weight" not in tensors  # the head is the embedding
    assert np.array_equal(tensors["blk.1.attn_norm.weight"], layer["input_layernorm"])
    assert np.array_equal(tensors["blk.1.attn_v.weight"], layer["self_attn"]["v_proj"])
    assert np.array_equal(tensors["blk.1.ffn_down.weight"], layer["mlp"]["down_proj"])
    assert entries["general.architecture"] == kind
    assert entries[f"{kind}.attention.head_count_kv"] == 2
    rope = checkpoint.config.family.layers[0].rope
    assert rope is not None
    assert entries[f"{kind}.rope.freq_base"] == rope.theta
    assert len(entries["tokenizer.ggml.tokens"]) == len(entries["tokenizer.ggml.token_type"]) == 300


def test_a_llamas_heads_are_turned_in_neighbouring_pairs(tmp_path: Path) -> None:
    checkpoint, (_, tensors) = made(tmp_path, "llama", "float32")
    for name, leaf in (("attn_q", "q_proj"), ("attn_k", "k_proj")):
        stored = checkpoint.params["layers"][0]["self_attn"][leaf]
        for row in range(len(stored)):
            head, i = divmod(row, 8)
            where = 8 * head + 2 * (i % 4) + i // 4  # i and i + H/2 stand side by side
            assert np.array_equal(tensors[f"blk.0.{name}.weight"][where], stored[row])


def test_a_qwen2_keeps_its_rows_and_has_its_biases(tmp_path: Path) -> None:
    checkpoint, (_, tensors) = made(tmp_path, "qwen2", "float32")
    stored = checkpoint.params["layers"][0]["self_attn"]
    for name, leaf in (("attn_q", "q_proj"), ("attn_k", "k_proj"), ("attn_v", "v_proj")):
        assert np.array_equal(tensors[f"blk.0.{name}.weight"], stored[leaf])
        assert np.array_equal(tensors[f"blk.0.{name}.bias"], stored[f"{leaf}_bias"])
        assert stored[f"{leaf}_bias"].std() > 0


def test_a_family_without_a_gguf_form_is_refused_by_name(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "mistral", SHAPES["llama"], 64)
    config = (directory / "config.json").read_text()
    named = config.replace("LlamaForCausalLM", "MistralForCausalLM").replace('"llama"', '"mistral"')
    (directory / "config.json").write_text(named)
    with pytest.raises(ValueError, match="MistralForCausalLM is not written as GGUF"):
        write_gguf(load_checkpoint(directory), "float32", tmp_path / "model.gguf")
