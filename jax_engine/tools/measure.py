"""What bench and doctor measure with: sides in turn, the limits of the machine, a model of random weights."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import tokenizers
from safetensors.numpy import save_file

from gnomon.reference.checkpoint.config import read_config
from gnomon.reference.checkpoint.tensor_table import expected_tensors

DTYPES = ("float32", "bfloat16")
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size",
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
)  # fmt: skip


class RandomModel(NamedTuple):
    """What a random model looks like: entries of its config.json, the sizes in the order of SIZES."""

    sizes: tuple[int, int, int, int, int, int]
    entries: Mapping[str, Any]


LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0}
LLAMA_135M = RandomModel((49152, 576, 1536, 30, 9, 3), LLAMA)
QWEN2_500M = RandomModel((151936, 896, 4864, 24, 14, 2), QWEN2)  # queries, keys and values have biases
MEBIBYTE = 2**20


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- time


def interleaved(rounds: int, sides: Mapping[str, Callable[[], float]], warm_up: bool = True) -> dict[str, list[float]]:
    """Every side's figures, one a round, measured in turn; after a round that does not count, to warm up."""
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + warm_up):
        for name, measure in sides.items():
            figure = measure()
            if number >= warm_up:
                seen[name].append(figure)
    return seen


def seconds(work: Callable[[], object]) -> float:
    """How long it takes until the device is done with it."""
    began = time.perf_counter()
    jax.block_until_ready(work())  # type: ignore[no-untyped-call]
    return time.perf_counter() - began


def fastest(work: Callable[[], object]) -> float:
    """Seconds; the best of three."""
    return min(seconds(work) for _ in range(3))


# ---- what the machine can do at most


class ReadLimit:
    """Bytes/s read of an array far larger than the caches.

    On a CPU: a thread a core, each looking with the C library's memchr through its own part of one mapping for a byte
    that is not there. The mapping asks for huge pages, where the system has them to give: with pages of 4 KiB a
    processor waits for page tables too, and reads up to a third less. On another device: sums over rows.
    """

    def __init__(self, size: int) -> None:
        self._threads = cores() if jax.default_backend() == "cpu" else 0
        self.bytes = size
        if not self._threads:
            self._array = jnp.ones((size // 2**14, 4096), jnp.float32)
            self._sum = jax.jit(lambda x: x.sum(axis=-1))
            return
        self._map = mmap.mmap(-1, size)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._bytes[:] = 1  # a page that nobody has written is not there
        self._find = ctypes.CDLL(None).memchr  # the interpreter is free for other threads meanwhile
        self._find.argtypes, self._find.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), ctypes.c_void_p

    def once(self) -> object:
        if not self._threads:
            return self._sum(self._array)
        parts = np.array_split(self._bytes, self._threads)
        with ThreadPoolExecutor(self._threads) as pool:
            found = list(pool.map(lambda part: self._find(part.ctypes.data, 0, len(part)), parts))
        assert not any(found)
        return None

    def rate(self) -> float:
        return self.bytes / fastest(self.once)


class ArithmeticLimit:
    """Operations/s: a product of two large square matrices in a dtype."""

    def __init__(self, side: int, dtype: str) -> None:
        self._matrix = jnp.ones((side, side), dtype)
        self._product = jax.jit(lambda x: jnp.dot(x, x, precision="highest", preferred_element_type=jnp.float32))

    def rate(self) -> float:
        return 2 * len(self._matrix) ** 3 / fastest(lambda: self._product(self._matrix))


# ---- a model


def make_checkpoint(directory: Path, shape: RandomModel, context: int) -> Path:
    """A Hugging Face directory of seeded random weights, stored in bfloat16: every dtype means the same numbers. Its
    embedding is its head too; it has no end-of-sequence token."""
    sizes = dict(zip(SIZES, shape.sizes, strict=True))
    config = {**shape.entries, **sizes, "max_position_embeddings": context, "hidden_act": "silu"}
    config |= {"tie_word_embeddings": True}
    config |= {"head_dim": sizes["hidden_size"] // sizes["num_attention_heads"]}
    config |= {"bos_token_id": None, "eos_token_id": None}  # left out, transformers would take its own
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    tensors = {}
    for name, lengths in expected_tensors(read_config(directory)).items():
        is_norm = len(lengths) == 1 and name.endswith("weight")
        random = np.ones(lengths) if is_norm else 0.02 * rng.standard_normal(lengths, np.float32)
        tensors[name] = random.astype(ml_dtypes.bfloat16)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    tokens = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens += [f"Ġ{i}" for i in range(len(tokens), sizes["vocab_size"])]  # entries that no text is encoded to
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return directory
