"""The engine's programs for weights that are nowhere: of a model's shape alone, for devices that may only be described.

What makes them is Device itself, with its own way of placing weights: only what would compile a program or put an array
on a device is left out. The weights that it is given are all one array of zeros that nobody writes, which is no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import numpy as np
from numpy.typing import NDArray

from gnomon.jax_engine.device import Device, Program, Slots
from gnomon.jax_engine.kernels.choice import choose_kernels
from gnomon.jax_engine.runtime.pins import pinned
from gnomon.jax_engine.runtime.settings import EngineSettings, sized
from gnomon.jax_engine.sharding import Layout
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

    def _empty_slots(self) -> Slots:
        return self._nobody()


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
        patch.object(Layout, "put", _abstract_put),
        patch.object(Layout, "stack", _abstract_stack),
    ):
        kernels = choose_kernels(False, len(devices), None, 1, _silently, _silently)
        checkpoint = Checkpoint(Path(), config, zeros(config, np.dtype(settings.dtype)))
        s = sized(settings, config, is_native=False)
        return AbstractDevice(checkpoint, s, kernels, s.pool_tokens // s.page_size, _silently, _silently)


def _abstract_put(layout: Layout, name: str, array: NDArray[Any]) -> Any:
    home = layout.sharding(name)
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=home)  # type: ignore[no-untyped-call]


def _abstract_stack(layout: Layout, name: str, arrays: Sequence[Any]) -> Any:
    home = layout.sharding(name, is_stacked=True)
    shape = (len(arrays), *arrays[0].shape)
    return jax.ShapeDtypeStruct(shape, arrays[0].dtype, sharding=home)  # type: ignore[no-untyped-call]


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
