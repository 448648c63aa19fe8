"""What bench and doctor measure with: sides in turn, the limits of the machine, a model of random weights."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import tokenizers
from safetensors.numpy import save_file

from gnomon.reference.checkpoint.config import read_config
from gnomon.reference.checkpoint.tensor_table import expected_tensors

DTYPES = ("float32", "bfloat16")
SHAPE = (
    "vocab_size", "hidden_size", "intermediate_size",
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
)  # fmt: skip
LLAMA_135M = (49152, 576, 1536, 30, 9, 3)  # see SHAPE
MEBIBYTE = 2**20


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- time


def interleaved(rounds: int, sides: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Every side's figures, one a round, measured in turn after a round that does not count."""
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, measure in sides.items():
            figure = measure()
            if number > 0:
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
    """Bytes/s read: sums over an array far larger than the caches, a row by itself, so that all cores have something
    to read."""

    def __init__(self, size: int) -> None:
        self._array = jnp.ones((size // 2**14, 4096), jnp.float32)
        self._halves = jnp.split(self._array, 2)
        self._sum = jax.jit(lambda x: x.sum(axis=-1))
        self.bytes = int(self._array.nbytes)

    def once(self) -> object:
        """In one call."""
        return self._sum(self._array)

    def rate(self) -> float:
        """In one call and in two at once: the better of them."""
        with ThreadPoolExecutor(2) as pool:
            both = fastest(lambda: list(pool.map(self._sum, self._halves)))
        return self.bytes / min(both, fastest(self.once))


class ArithmeticLimit:
    """Operations/s: a product of two large square matrices in a dtype."""

    def __init__(self, side: int, dtype: str) -> None:
        self._matrix = jnp.ones((side, side), dtype)
        self._product = jax.jit(lambda x: jnp.dot(x, x, precision="highest", preferred_element_type=jnp.float32))

    def rate(self) -> float:
        return 2 * len(self._matrix) ** 3 / fastest(lambda: self._product(self._matrix))


# ---- a model


def make_checkpoint(directory: Path, sizes: Sequence[int], context: int) -> Path:
    """A Hugging Face directory of seeded random weights, stored in bfloat16: every dtype means the same numbers. sizes:
    see SHAPE."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}
    config |= {"tie_word_embeddings": True, "max_position_embeddings": context, "rope_theta": 10000.0}
    config |= {"bos_token_id": None, "eos_token_id": None}  # left out, transformers would take its own
    directory.mkdir()
    shape = dict(zip(SHAPE, sizes, strict=True))
    (directory / "config.json").write_text(json.dumps(config | shape))
    rng = np.random.default_rng(0)
    tensors = {}
    for name, lengths in expected_tensors(read_config(directory)).items():
        random = 0.02 * rng.standard_normal(lengths, np.float32) if len(lengths) > 1 else np.ones(lengths)
        tensors[name] = random.astype(ml_dtypes.bfloat16)
    save_file(tensors, directory / "model.safetensors")
    tokens = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens += [f"Ġ{i}" for i in range(len(tokens), shape["vocab_size"])]  # entries that no text is encoded to
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory
