"""How large a JAX engine is made, and the memory that takes: its slots, its chunk, its pool of keys and values."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import jax
import jax.numpy as jnp

from gnomon.jax_engine.runtime.memory import Memory, memory
from gnomon.reference.checkpoint.load import Checkpoint
from gnomon.reference.model_config import ModelConfig

SLOT_BYTES = 12  # a token of the vocabulary: its bias, its count and its logit
NATIVE_SLOTS, XLA_SLOTS = 32, 8  # by default
SLOTS_PART = 64  # by default slots have no more than the 64th part of the memory
MOST_CONTEXTS = 32  # that the default pool holds where there are no more slots


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The shapes of the compiled programs and the size of the pool."""

    slots: int | None = None  # the decode batch; None: see `default_slots`
    page_size: int = 32  # positions
    chunk: int = 128  # positions prefilled at once; a multiple of the page
    pool_tokens: int | None = None  # positions that the key/value pool holds; None: see `default_pool_tokens`
    dtype: str = "float32"  # of the weights: float32 or bfloat16
    tensor_parallel: int = 1  # devices over which heads, feed-forward and vocabulary are cut
    native: bool = True  # on a CPU, what kernels/cpu has if it can be built into the compilation cache; else XLA's
    threads: int | None = None  # of the native operations; None: as many as this process may use processors
    compilation_cache: Path | None = None  # where compiled programs are kept for the next start; None: nowhere


@dataclass(frozen=True, slots=True)
class SizedSettings(EngineSettings):
    """Settings that leave open neither the slots nor the pool: see `sized`."""

    slots: int = 0
    pool_tokens: int = 0


def cache_dtype(settings: EngineSettings) -> str:
    """The dtype of keys and values: that of the weights, but float32 on a CPU, which converts bfloat16 slowly."""
    return "float32" if jax.default_backend() == "cpu" else settings.dtype


def bytes_per_token(config: ModelConfig, settings: EngineSettings) -> int:
    """What one position costs in the key/value pool."""
    width = config.num_key_value_heads * config.head_dim
    return 2 * config.num_hidden_layers * width * jnp.dtype(cache_dtype(settings)).itemsize


def memory_bytes(devices: int = 1) -> Memory:
    """What so many devices have together; a CPU has no memory of its own, but the machine has, however many devices jax
    makes of it."""
    stats = jax.devices()[0].memory_stats() or {}
    limit, used = int(stats.get("bytes_limit", 0)), int(stats.get("bytes_in_use", 0))
    return Memory(devices * limit, devices * (limit - used)) if limit else memory()


def sized(settings: EngineSettings, config: ModelConfig, is_native: bool) -> SizedSettings:
    """is_native: whether the operations are."""
    given = {field.name: getattr(settings, field.name) for field in fields(settings)}
    if settings.slots is None:
        given["slots"] = default_slots(config, is_native)
    if settings.pool_tokens is None:
        given["pool_tokens"] = default_pool_tokens(config, settings, given["slots"])
    return SizedSettings(**given)


def default_slots(config: ModelConfig, is_native: bool) -> int:
    """As many as pay. Natively a slot that nobody is in costs little: with 32 of them one stream of a 135M Llama is a
    good sixth slower than with 8. With XLA's operations every slot costs all of a row. Half as many, or a quarter,
    where memory is short."""
    slots, most = NATIVE_SLOTS if is_native else XLA_SLOTS, memory_bytes().limit // SLOTS_PART
    while slots > 1 and slots * config.vocab_size * SLOT_BYTES > most:
        slots //= 2
    return slots


def check_memory(checkpoint: Checkpoint, settings: SizedSettings) -> None:
    """Raises ValueError, with the numbers, if the memory that is free does not hold the pool, the weights and what each
    slot has. Asked before any of it is made: a system that is out of memory ends the process without a word."""
    config = checkpoint.config
    weights = checkpoint.parameter_count * jnp.dtype(settings.dtype).itemsize
    slots = settings.slots * config.vocab_size * SLOT_BYTES
    pool = settings.pool_tokens * bytes_per_token(config, settings)
    whole, free = memory_bytes(settings.tensor_parallel)
    if pool + weights + slots > free:
        raise ValueError(
            f"a key/value pool of {settings.pool_tokens:,} tokens takes {_mib(pool)} MiB, the weights "
            f"{_mib(weights)} and {settings.slots:,} slots {_mib(slots)}, and there are {_mib(whole)} MiB of memory, "
            f"{_mib(free)} of them free; give less with --kv-cache-memory or --slots"
        )


def _mib(size: int) -> str:
    return f"{-(-size // 2**20):,}"


def default_pool_tokens(config: ModelConfig, settings: EngineSettings, slots: int = MOST_CONTEXTS) -> int:
    """Room for a full context a slot and, as far as that is no more than MOST_CONTEXTS, for four, so that prefixes stay
    cached; in at most a quarter of the device's memory."""
    affordable = memory_bytes().limit // 4 // bytes_per_token(config, settings)
    whole_pages = -(-config.max_position_embeddings // settings.page_size) * settings.page_size
    return min(affordable, max(slots, min(4 * slots, MOST_CONTEXTS)) * whole_pages)
