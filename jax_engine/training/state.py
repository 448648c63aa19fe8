"""Weights, optimiser and data position, and their checkpoint: an interrupted run goes on bit for bit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from gnomon.jax_engine.training.config import ModelShape, TrainConfig
from gnomon.jax_engine.training.data import DataError
from gnomon.jax_engine.training.llama import FlaxParams, new_params
from gnomon.jax_engine.training.optimizer import optimizer
from gnomon.reference.system.atomic import sync_directory, sync_file

Arrays = dict[str, np.ndarray]


class Position(NamedTuple):
    """Where a run stands: steps done, tokens seen, and the next row (of an epoch packed for a context)."""

    step: int
    tokens: int
    epoch: int
    row: int
    context: int


class TrainState(NamedTuple):
    """All that training needs to go on."""

    params: FlaxParams
    moments: Any  # optax's state
    position: Position


def fresh_state(config: TrainConfig) -> TrainState:
    """The state before the first step."""
    _, params = new_params(config.model, config.seed)
    return TrainState(params, optimizer(config).init(params), Position(0, 0, 0, 0, config.short_context))


def _named_arrays(params: FlaxParams, moments: Any) -> tuple[Arrays, Any]:
    leaves, tree = jax.tree_util.tree_flatten_with_path({"params": params, "moments": moments})
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}, tree


def save_state(folder: Path, config: TrainConfig, state: TrainState) -> None:
    """Write checkpoint.safetensors: a crash while writing, of the machine too, leaves the previous one whole."""
    arrays, _ = _named_arrays(state.params, state.moments)
    metadata = {
        "position": json.dumps(state.position._asdict()),
        "config": json.dumps(dataclasses.asdict(config)),
        "sha256": _digest(arrays),
    }
    partial_file = folder / "checkpoint.partial"
    save_file(arrays, partial_file, metadata)
    sync_file(partial_file)
    os.replace(partial_file, folder / "checkpoint.safetensors")
    sync_directory(folder)


def _digest(arrays: Arrays) -> str:
    """Of every array's name and bytes."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(name.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def load_state(folder: Path) -> tuple[TrainConfig, TrainState]:
    """The configuration and the state that `save_state` wrote. Raises DataError for anything else."""
    path = folder / "checkpoint.safetensors"
    if not path.is_file():
        raise DataError(f"no checkpoint.safetensors in {folder}")
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
        stored = load_file(path)
        fields = json.loads(metadata["config"])
        config = TrainConfig(**{**fields, "model": ModelShape(**fields["model"])})
        position = Position(**json.loads(metadata["position"]))
        digest = metadata["sha256"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no checkpoint of this program: {error}") from error
    if _digest(stored) != digest:
        raise DataError(f"{path} is damaged: its arrays are not those that were written")
    fresh = fresh_state(config)
    named, tree = _named_arrays(fresh.params, fresh.moments)
    wrong = sorted(
        name for name in named.keys() | stored.keys()
        if name not in named or name not in stored or named[name].shape != stored[name].shape
    )  # fmt: skip
    if wrong:
        raise DataError(f"{path} does not fit its configuration: {', '.join(wrong)}")
    loaded = jax.tree_util.tree_unflatten(tree, [jnp.asarray(stored[name]) for name in named])
    return config, TrainState(loaded["params"], loaded["moments"], position)
