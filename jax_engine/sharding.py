"""Several devices of one host: the mesh, and the one table that says which axis of an array is cut over it.

Tensor parallelism as in Megatron-LM (Shoeybi et al. 2019): heads, feed-forward and vocabulary are cut, so that each
layer needs two sums over the devices; all that the sampler sees is whole on every device. Programs are written as for
one device; XLA's partitioner (GSPMD, Xu et al. 2021) inserts the sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from gnomon.reference.checkpoint.tensors import aligned
from gnomon.reference.model_config import ModelConfig

# logical axis → axis of the mesh; an axis that is not named here is whole on every device
RULES = {"heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}

# array → its logical axes
AXES: Mapping[str, tuple[str, ...]] = {
    "embed_tokens": ("vocab", "embed"),
    "q_proj": ("heads", "embed"),
    "k_proj": ("kv_heads", "embed"),
    "v_proj": ("kv_heads", "embed"),
    "o_proj": ("embed", "heads"),
    "gate_proj": ("mlp", "embed"),
    "up_proj": ("mlp", "embed"),
    "down_proj": ("embed", "mlp"),
    "lm_head": ("vocab", "embed"),
    "q_proj_bias": ("heads",),
    "k_proj_bias": ("kv_heads",),
    "v_proj_bias": ("kv_heads",),
    "gate_proj_bias": ("mlp",),
    "up_proj_bias": ("mlp",),
    "lm_head_bias": ("vocab",),
    "embed_positions": ("positions", "embed"),
    "router": ("experts", "embed"),
    "keys": ("pages", "positions", "kv_heads", "head_dim"),
    "values": ("pages", "positions", "kv_heads", "head_dim"),
}


@dataclass(frozen=True)
class Layout:
    """Where every array of a model lives."""

    mesh: Mesh
    whole_axes: frozenset[str]  # logical axes that this model cannot have cut into so many parts

    @property
    def size(self) -> int:
        return self.mesh.size

    @property
    def whole(self) -> NamedSharding:
        """A full copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())  # type: ignore[no-untyped-call]

    def sharding(self, name: str, is_stacked: bool = False) -> NamedSharding:
        """Of the array `name`, or of a stack of such; what AXES does not name (norms, most biases) is whole."""
        axes = [None if axis in self.whole_axes else RULES.get(axis) for axis in AXES.get(name, ())]
        return NamedSharding(self.mesh, PartitionSpec(*([None] if is_stacked else []), *axes))  # type: ignore[no-untyped-call]

    def put(self, name: str, array: NDArray[Any]) -> Array:
        """A weight on its devices, once it is there. On one CPU it may be the array itself, which nobody may change."""
        there: Array = jax.block_until_ready(jax.device_put(array, self.sharding(name)))  # type: ignore[no-untyped-call]
        return there

    def stack(self, name: str, arrays: Sequence[Array]) -> Array:
        """Weights of one shape as one array, with an axis before theirs."""
        there: Array = jax.device_put(jnp.stack(arrays), self.sharding(name, is_stacked=True))
        return there


def ready(array: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """A weight as a device takes it: a matrix in `dtype`, a norm in float32; the array itself if it is that already."""
    kind = np.dtype(dtype if array.ndim > 1 else np.float32)
    if array.dtype == kind and array.flags.c_contiguous:
        return array
    host = aligned(array.size * kind.itemsize).view(kind).reshape(array.shape)
    host[...] = array
    return host


def layout(config: ModelConfig, tensor_parallel: int = 1) -> Layout:
    """The first `tensor_parallel` devices as a mesh: the one place that builds it.

    Raises ValueError, with the numbers, if there are fewer devices or if heads or feed-forward do not divide. Keys and
    values are whole on every device where a device's heads share one of theirs; so is a vocabulary that does not
    divide: that costs memory, not meaning.
    """
    devices, n = jax.devices(), tensor_parallel
    if not 1 <= n <= len(devices):
        raise ValueError(
            f"tensor-parallel {n}: this host has {len(devices)} {devices[0].platform} "
            f"device{'s' if len(devices) > 1 else ''}; allowed: 1 to {len(devices)}"
        )
    K = config.num_key_value_heads
    for what, size in (
        ("attention heads", config.num_attention_heads),
        ("feed-forward width", config.intermediate_size),
    ):
        if size % n:
            raise ValueError(f"tensor-parallel {n} does not divide the model's {what}, {size}; {_allowed(config)}")
    if K % n and n % K:
        raise ValueError(
            f"tensor-parallel {n} neither divides the model's key/value heads, {K}, nor is a multiple of them; "
            f"{_allowed(config)}"
        )
    whole = {"kv_heads"} if K % n else set()
    if config.vocab_size % n:
        whole.add("vocab")
    mesh = jax.make_mesh((n,), ("tensor",), axis_types=(AxisType.Auto,), devices=devices[:n])
    return Layout(mesh, frozenset(whole))


def _allowed(config: ModelConfig) -> str:
    N, K, F = config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
    fitting = [n for n in range(1, N + 1) if N % n == 0 and F % n == 0 and (K % n == 0 or n % K == 0)]
    return f"this model allows {', '.join(map(str, fitting))}"
