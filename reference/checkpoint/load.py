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

from gnomon.reference.checkpoint.config import read_config
from gnomon.reference.checkpoint.errors import CheckpointError, UnsupportedModel
from gnomon.reference.checkpoint.surplus import fitted
from gnomon.reference.checkpoint.tensor_table import ParamPath, stored_tensors
from gnomon.reference.checkpoint.tensors import ADAPTER, OTHER_FORMS, TensorFiles
from gnomon.reference.model_config import ModelConfig
from gnomon.reference.system.files import absolute

PROGRESS_SECONDS = 5.0  # between two lines while weights are being read

T = TypeVar("T")
Say = Callable[[str], None]


def silently(line: str) -> None:
    """A `say` for whoever wants no lines."""


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

    def read(self, put: Callable[[ParamPath, NDArray[Any]], T]) -> dict[str, Any]:
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

    def _read(self, source: TensorFiles, put: Callable[[ParamPath, NDArray[Any]], T]) -> dict[ParamPath, T]:
        table = stored_tensors(self.config)
        whole, done, reading = sum(source.size(stored.name) for stored in table), 0, 0.0
        started = said = time.monotonic()
        leaves: dict[ParamPath, T] = {}
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


def _leaves(tree: Any, place: ParamPath = ()) -> Iterator[tuple[ParamPath, NDArray[Any]]]:
    """The arrays of nested params with their places."""
    if isinstance(tree, Mapping | list):
        for key, node in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _leaves(node, (*place, key))
    else:
        yield place, tree


def _nested(leaves: Mapping[ParamPath, T]) -> Any:
    """Nested dicts from the leaves by their places; where the keys are numbers, lists."""
    groups: dict[str | int, dict[ParamPath, T]] = {}
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
