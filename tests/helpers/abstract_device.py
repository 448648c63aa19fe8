"""The engine's programs for weights that are nowhere: of a model's shape alone, for devices that may only be described.

What makes them is Device itself, with its own way of placing weights, which is only traced: no array is put on a
device, and nothing is compiled before it is asked for. The weights that it is given are all one array of zeros that
nobody writes, which is no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

from gnomon.jax_engine import device
from gnomon.jax_engine.device import Device, Program
from gnomon.jax_engine.device import place as real_place
from gnomon.jax_engine.kernels.choice import choose_kernels
from gnomon.jax_engine.runtime.pins import pinned
from gnomon.jax_engine.runtime.programs import Programs
from gnomon.jax_engine.runtime.settings import EngineSettings, sized
from gnomon.reference.checkpoint.config import model_config
from gnomon.reference.checkpoint.load import Checkpoint
from gnomon.reference.checkpoint.tensor_table import stored_tensors
from gnomon.reference.model_config import ModelConfig
from helpers.models import TINY


class AbstractDevice(Device):
    """A device without arrays, of which programs can be asked and nothing else."""

    def programs(self) -> dict[str, Program]:
        with self.described():
            return super().programs()

    def lowered(self, program: Program) -> Any:
        """As the engine lowers it."""
        with self.described():
            return program.jitted(self.layout.whole).lower(*program.arguments)

    def compile(self, program: Program) -> Any:
        """As the engine compiles it, to be kept nowhere."""
        lowered = self.lowered(program)
        with self.described():
            return Programs(None, "", _silently).compile(lowered)

    @contextmanager
    def described(self) -> Iterator[None]:
        with on_gpus(list(self.layout.mesh.devices.flat)), pinned():
            yield

    def _compile(self, progress: Callable[[str], None], announce: Callable[[str], None]) -> dict[str, Any]:
        return {}

    def clear(self) -> None:
        """There is nothing to clear."""

    def _fingerprint(self) -> str:
        return ""


@contextmanager
def on_gpus(devices: Sequence[Any]) -> Iterator[None]:
    """To our code, which asks jax for them, these are the devices, and GPUs."""
    with (
        patch.object(jax, "devices", return_value=devices),
        patch.object(jax, "default_backend", return_value="gpu"),
    ):
        yield


def abstract_device(config: ModelConfig, settings: EngineSettings, devices: Sequence[Any]) -> AbstractDevice:
    """What an engine of XLA's operations with these settings, slots and pool given, would make of such a model."""
    assert settings.slots is not None  # else a device's memory decides
    assert settings.pool_tokens is not None
    with (
        on_gpus(devices),
        pinned(),
        patch.object(device, "place", _abstract_place),
        patch.object(jax, "device_put", lambda x, home: x),
    ):
        kernels = choose_kernels(False, len(devices), None, 1, _silently, _silently)
        checkpoint = Checkpoint(Path(), config, zeros(config, np.dtype(settings.dtype)))
        s = sized(settings, config, is_native=False)
        return AbstractDevice(checkpoint, s, kernels, s.pool_tokens // s.page_size, _silently, _silently)


def _abstract_place(*arguments: Any) -> device.Placed:
    """What `place` would put on devices: shape, dtype, and where it would live."""
    homes: dict[int, Any] = {}
    placed: list[Any] = []  # the leaves, so that each keeps its identity

    def put(x: Any, home: Any) -> Any:
        y = x if isinstance(x, jax.core.Tracer) else jnp.zeros(x.shape, x.dtype)
        homes[id(y)] = home
        placed.append(y)
        return y

    def params() -> Any:
        found = real_place(*arguments).params
        placed[:] = jax.tree.leaves(found)
        return found

    with patch.object(jax, "device_put", put):
        leaves, tree = jax.tree.flatten(jax.eval_shape(params))
    abstract: dict[int, Any] = {}
    for own, leaf in zip(placed, leaves, strict=True):
        home = homes[id(own)]
        like = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=home)  # type: ignore[no-untyped-call]
        abstract.setdefault(id(own), like)
    return device.Placed(jax.tree.unflatten(tree, [abstract[id(own)] for own in placed]), b"")


def _silently(line: str) -> None:
    """For whoever wants no lines."""


def llama_config(**entries: object) -> ModelConfig:
    """Of entries of config.json."""
    return model_config({**TINY, **entries}, None)


def zeros(config: ModelConfig, dtype: np.dtype[Any]) -> dict[str, Any]:
    """Params of zeros, matrices in `dtype` and the rest in float32; all of them share their memory."""
    table = stored_tensors(config)
    shared = np.zeros(max(int(np.prod(stored.shape)) for stored in table) * 4, np.uint8)
    params: dict[Any, Any] = {}
    for stored in table:
        kind = dtype if len(stored.shape) > 1 else np.dtype(np.float32)
        array = shared[: int(np.prod(stored.shape)) * kind.itemsize].view(kind).reshape(stored.shape)
        for place, part in stored.parts:
            node = params
            for key in place[:-1]:
                node = node.setdefault(key, {})
            node[place[-1]] = part(array)
    params.setdefault("lm_head", params["embed_tokens"])
    whole: dict[str, Any] = _lists(params)
    return whole


def _lists(node: Any) -> Any:
    """Dicts whose keys are numbers become lists."""
    if not isinstance(node, dict):
        return node
    below = {key: _lists(value) for key, value in node.items()}
    return [below[i] for i in range(len(below))] if all(isinstance(key, int) for key in below) else below
