"""From a Hugging Face directory to a ModelConfig and params: config.json, then safetensors.

    1 config.json decides whether the model is supported: what is not is refused by name before any weight is read
    2 the config implies one table: the tensors of the checkpoint, and which place in params each part of them has
    3 the headers of the files are held against the table: everything missing, extra or misshapen is in one error; what
      may be there besides is compared with what it would repeat (surplus.py)
    4 tensors are read one after the other and put where they belong, so that no more than one is in memory beside what
      has been made of them: float64 for the reference, for another engine what it likes

generation_config.json gives end-of-sequence ids and nothing else: no sampling default is ever read from a model's
files. How files are read is in tensors.py.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gnomon.reference.checkpoint.entries import ContextError, UnsupportedModel
from gnomon.reference.checkpoint.families import model_config, stored_tensors
from gnomon.reference.checkpoint.surplus import fitted
from gnomon.reference.checkpoint.tensors import (
    ADAPTER,
    OTHER_FORMS,
    CheckpointError,
    Place,
    TensorFiles,
    other_form,
    read_json,
)
from gnomon.reference.model import ModelConfig
from gnomon.reference.system.files import absolute

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "UnsupportedModel",
    "default_model_path",
    "expected_tensors",
    "load_checkpoint",
    "read_config",
    "read_json",
    "stored_tensors",
]

PROGRESS_SECONDS = 5.0  # between two lines while weights are being read

T = TypeVar("T")
Say = Callable[[str], None]


def silently(line: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class Checkpoint:
    """A model ready to run: its shape, and its weights in checked files or, in tests, as params."""

    path: Path
    config: ModelConfig
    weights: TensorFiles | Mapping[str, Any]
    say: Say = silently  # gets a line every few seconds while weights are read, and one when they are

    @property
    def parameter_count(self) -> int:
        return sum(int(np.prod(stored.shape)) for stored in stored_tensors(self.config))

    @cached_property
    def params(self) -> Mapping[str, Any]:
        """The weights in float64, as the nested dict that model.py takes. Read when they are first asked for, and
        kept."""
        if isinstance(self.weights, TensorFiles):
            return self.read(lambda place, array: array.astype(np.float64, copy=False))
        return self.weights

    @property
    def changed(self) -> str | None:
        """Why the weights cannot be read any more as they were; None if they can."""
        return self.weights.changed if isinstance(self.weights, TensorFiles) else None

    def close(self) -> None:
        """The weights are not read from their files any more."""
        if isinstance(self.weights, TensorFiles):
            self.weights.close()

    def read(self, put: Callable[[Place, NDArray[Any]], T]) -> dict[str, Any]:
        """What `put` makes of every array of the params, nested as they are. Raises CheckpointError.

        `put` is given the array's place and the array as it is stored, which is let go afterwards. A head tied to the
        embedding is the embedding's result.
        """
        if isinstance(self.weights, TensorFiles):
            leaves = self._read(self.weights, put)
        else:
            leaves, params = {}, self.weights
            tied = params["lm_head"] is params["embed_tokens"]
            for place, array in _leaves(params):
                if not (tied and place == ("lm_head",)):
                    leaves[place] = put(place, array)
        leaves.setdefault(("lm_head",), leaves["embed_tokens",])
        nested: dict[str, Any] = _nested(leaves)
        return nested

    def _read(self, source: TensorFiles, put: Callable[[Place, NDArray[Any]], T]) -> dict[Place, T]:
        table = stored_tensors(self.config)
        whole, done, reading = sum(source.size(stored.name) for stored in table), 0, 0.0
        started = said = time.monotonic()
        leaves: dict[Place, T] = {}
        for count, stored in enumerate(table):
            began = time.monotonic()
            if began - said >= PROGRESS_SECONDS:
                said = began
                self.say(f"weights: {count} of {len(table)} tensors, {_mib(done)} of {_mib(whole)}")
            array = source.read(stored.name)
            reading += time.monotonic() - began
            for place, part in stored.parts:
                leaves[place] = put(place, part(array))
            done += source.size(stored.name)
            del array  # or it would still be there while the next one is read
        putting = time.monotonic() - started - reading
        self.say(f"weights: {len(table)} tensors, {_mib(whole)}, read in {reading:.1f} s, placed in {putting:.1f} s")
        return leaves


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _leaves(tree: Any, place: Place = ()) -> Iterator[tuple[Place, NDArray[Any]]]:
    """The arrays of nested params with their places."""
    if isinstance(tree, Mapping | list):
        for key, node in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _leaves(node, (*place, key))
    else:
        yield place, tree


def _nested(leaves: Mapping[Place, T]) -> Any:
    """Nested dicts from the leaves by their places; where the keys are numbers, lists."""
    groups: dict[str | int, dict[Place, T]] = {}
    for (key, *rest), leaf in leaves.items():
        groups.setdefault(key, {})[tuple(rest)] = leaf
    nodes = {key: group[()] if () in group else _nested(group) for key, group in groups.items()}
    return [nodes[i] for i in range(len(nodes))] if all(isinstance(key, int) for key in nodes) else nodes


def default_model_path() -> Path:
    """The directory of the embedded model."""
    return Path(str(files("gnomon.reference") / "default_model"))


def load_checkpoint(
    path: str | Path, max_model_len: int | None = None, say: Say = silently, warn: Say = warnings.warn
) -> Checkpoint:
    """Opens a local Hugging Face directory: its config is read and its files are checked, weights are read later.

    max_model_len: a shorter context than the model's own · say: gets lines while weights are read · warn: gets a line
    for whatever of the files is not taken as it says, once each. Raises CheckpointError, or UnsupportedModel for what
    this version does not run.
    """
    directory = absolute(Path(path))  # so that every message says which one
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory on this machine, and nothing is downloaded")
    if (directory / ADAPTER).exists():  # transformers applies it where peft is installed; others do not
        raise UnsupportedModel(f"{directory}: {ADAPTER} {OTHER_FORMS[ADAPTER]}")
    config, source = fitted(read_config(directory, max_model_len, warn), TensorFiles.open(directory, warn), warn)
    return Checkpoint(directory, config, source, say)


def read_config(directory: Path, max_model_len: int | None = None, warn: Say = warnings.warn) -> ModelConfig:
    """config.json as a ModelConfig. max_model_len: a shorter context than the model's own · warn: gets a line for
    every entry that has no effect. Raises CheckpointError, or UnsupportedModel, naming the entry that decided."""
    if not os.path.lexists(directory / "config.json"):
        raise CheckpointError(f"{directory / 'config.json'}: no such file{other_form(directory)}")
    raw = read_json(directory / "config.json")
    generation = read_json(directory / "generation_config.json", missing={}).get("eos_token_id")
    try:
        return model_config(raw, generation, max_model_len, warn)
    except (UnsupportedModel, ContextError):
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{directory / 'config.json'}: {error}") from None


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name in the checkpoint → shape."""
    return {stored.name: stored.shape for stored in stored_tensors(config)}
