"""A checkpoint as one GGUF file, which is what llama.cpp reads: of a Llama or a Qwen2, for the bench.

    1 header    magic, version, how many tensors, how many entries
    2 entries   key, type, value: the model's sizes, then its tokens and merges
    3 table     name, axes from the innermost, type and offset of every tensor
    4 tensors   each at a multiple of 32 bytes

Every number is little-endian. Vectors (norms, biases) are float32 always, as llama.cpp wants them. For a Llama it turns
neighbouring coordinates of a head where checkpoints pair i with i + H/2, so rows of q_proj and k_proj change places.
Source: the GGUF specification, docs/gguf.md in ggml-org/ggml.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gnomon.reference.checkpoint.load import Checkpoint
from gnomon.reference.checkpoint.tensor_table import ParamPath

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # types of entries
TENSOR_TYPES = {"float32": 0, "bfloat16": 30}
FILE_TYPES = {"float32": 0, "bfloat16": 32}
NORMAL, UNUSED = 1, 5  # types of tokens
KINDS = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip

Numbers = NDArray[Any]


def write_gguf(checkpoint: Checkpoint, dtype: str, file: Path) -> None:
    """Matrices in `dtype`. Raises ValueError for a model that is neither a Llama nor a Qwen2."""
    architecture = checkpoint.config.family.architecture
    if architecture not in KINDS:
        raise ValueError(f"{architecture} is not written as GGUF; {', '.join(KINDS)} are")
    tensors: dict[str, Numbers] = {}

    def put(place: ParamPath, array: Numbers) -> None:
        matrix = array.ndim > 1 and dtype == "bfloat16"
        tensors[_name(place)] = _placed(place, array, checkpoint).astype(ml_dtypes.bfloat16 if matrix else np.float32)

    checkpoint.read(put)
    entries = _entries(checkpoint, KINDS[architecture], dtype)
    with file.open("wb") as out:
        out.write(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(entries)))
        for key, (kind, value) in entries.items():
            out.write(_string(key) + struct.pack("<I", kind) + _value(kind, value))
        offset = 0
        for name, array in tensors.items():
            out.write(_string(name) + struct.pack(f"<I{array.ndim}Q", array.ndim, *array.shape[::-1]))
            out.write(struct.pack("<IQ", TENSOR_TYPES[str(array.dtype)], offset))
            offset += array.nbytes + -array.nbytes % ALIGNMENT
        for array in tensors.values():
            _pad(out)
            out.write(np.ascontiguousarray(array).view(np.uint8).data)
        _pad(out)


def _entries(checkpoint: Checkpoint, kind: str, dtype: str) -> Mapping[str, tuple[int, Any]]:
    """Key → type and value; of an array, the type of its elements and they."""
    c = checkpoint.config
    rope = c.family.layers[0].rope
    assert rope is not None
    sizes = {
        "context_length": c.max_position_embeddings, "embedding_length": c.hidden_size,
        "block_count": c.num_hidden_layers, "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads, "attention.head_count_kv": c.num_key_value_heads,
        "attention.key_length": c.head_dim, "attention.value_length": c.head_dim,
        "rope.dimension_count": c.head_dim, "vocab_size": c.vocab_size,
    }  # fmt: skip
    bpe = json.loads((checkpoint.path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = {i: token for token, i in bpe["vocab"].items()}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
    return {
        "general.architecture": (STRING, kind),
        "general.file_type": (UINT32, FILE_TYPES[dtype]),
        **{f"{kind}.{name}": (UINT32, size) for name, size in sizes.items()},
        f"{kind}.rope.freq_base": (FLOAT32, rope.theta),
        f"{kind}.attention.layer_norm_rms_epsilon": (FLOAT32, c.rms_norm_eps),
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.pre": (STRING, "gpt-2"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, [tokens.get(i, f"[{i}]") for i in range(c.vocab_size)])),
        "tokenizer.ggml.token_type": (
            ARRAY, (INT32, [NORMAL if i in tokens else UNUSED for i in range(c.vocab_size)])
        ),
        "tokenizer.ggml.merges": (ARRAY, (STRING, merges)),
        "tokenizer.ggml.add_bos_token": (BOOL, False),
    }  # fmt: skip


def _name(place: ParamPath) -> str:
    """("layers", 3, "self_attn", "q_proj_bias") → blk.3.attn_q.bias"""
    leaf = str(place[-1])
    block = f"blk.{place[1]}." if place[0] == "layers" else ""
    return f"{block}{NAMES[leaf.removesuffix('_bias')]}.{'bias' if leaf.endswith('_bias') else 'weight'}"


def _placed(place: ParamPath, array: Numbers, checkpoint: Checkpoint) -> Numbers:
    c = checkpoint.config
    heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}.get(str(place[-1]).removesuffix("_bias"))
    if heads is None or KINDS[c.family.architecture] != "llama":
        return array
    return array.reshape(heads, 2, c.head_dim // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _value(kind: int, value: Any) -> bytes:
    if kind == ARRAY:
        of, elements = value
        return struct.pack("<IQ", of, len(elements)) + _elements(of, elements)
    return _elements(kind, [value])


def _elements(kind: int, elements: Sequence[Any]) -> bytes:
    if kind == STRING:
        return b"".join(map(_string, elements))
    code = {UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "?"}[kind]
    return struct.pack(f"<{len(elements)}{code}", *elements)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _pad(out: BinaryIO) -> None:
    out.write(bytes(-out.tell() % ALIGNMENT))
