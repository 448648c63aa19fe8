"""From a Hugging Face directory to a ModelConfig and params: config.json, then safetensors, all in float64.

    1 config.json decides whether the model is supported: what is not is refused by name before any weight is read
    2 the config implies one table, tensor name → shape
    3 the files (model.safetensors, or the shards of model.safetensors.index.json) are held against the table:
      everything missing, extra or misshapen is listed in one error
    4 tensors become float64, in the nested dict whose keys are the argument names of model.py

generation_config.json gives end-of-sequence ids and nothing else: no sampling default is ever read from a model's
files.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 — gives NumPy the bfloat16 that safetensors asks it for
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from gnomon.reference.entries import CheckpointError, UnsupportedModel, read_json
from gnomon.reference.families import model_config, stored_tensors
from gnomon.reference.model import ModelConfig

DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model ready to run: its shape and its weights, float64, as the nested dict that model.py takes."""

    path: Path
    config: ModelConfig
    params: Mapping[str, Any]

    @property
    def parameter_count(self) -> int:
        shapes = expected_tensors(self.config).values()
        return sum(int(np.prod(shape)) for shape in shapes)


def default_model_path() -> Path:
    """The directory of the embedded model."""
    return Path(str(files("gnomon.reference") / "default_model"))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Loads a local Hugging Face directory. Raises CheckpointError, or UnsupportedModel for what this version does
    not run."""
    directory = Path(path).absolute()  # so that every message says which one
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory on this machine, and nothing is downloaded")
    config = read_config(directory)
    tensors = _read_tensors(directory, expected_tensors(config))
    params: dict[str, Any] = {}
    for stored in stored_tensors(config):
        for place, cut in stored.parts:
            put(params, place, cut(tensors[stored.name]))
    params.setdefault("lm_head", params["embed_tokens"])
    return Checkpoint(directory, config, params)


def put(tree: Any, place: tuple[str | int, ...], leaf: Any) -> None:
    """Puts a leaf into nested dicts and lists, which grow as they must; a list's places come in order."""
    for part, following in zip(place, (*place[1:], None), strict=True):
        inner: Any = leaf if following is None else [] if isinstance(following, int) else {}
        if isinstance(part, int):
            if part == len(tree):
                tree.append(inner)
        elif part not in tree or following is None:
            tree[part] = inner
        tree = tree[part]


def read_config(directory: Path, max_model_len: int | None = None) -> ModelConfig:
    """config.json as a ModelConfig. Raises CheckpointError, or UnsupportedModel, naming the entry that decided."""
    raw = read_json(directory / "config.json")
    generation = read_json(directory / "generation_config.json", missing={}).get("eos_token_id")
    try:
        return model_config(raw, generation, max_model_len)
    except UnsupportedModel:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{directory / 'config.json'}: {error}") from None


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name in the checkpoint → shape."""
    return {stored.name: stored.shape for stored in stored_tensors(config)}


def _weight_files(directory: Path) -> list[Path]:
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        pickled = sorted(path.name for path in directory.glob("*.bin"))
        hint = f"; {pickled[0]} is a pickle, which can run code when read, and is refused" if pickled else ""
        raise CheckpointError(f"{directory}: neither {single.name} nor {index.name}{hint}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index}: weight_map is missing")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index}: {name!r} is no plain file name")
        if not (directory / name).is_file():
            raise CheckpointError(f"{index} names {name}, which is missing")
    return [directory / name for name in names]


def _read_tensors(directory: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float64]]:
    with ExitStack() as stack:
        found: dict[str, Any] = {}
        wrong: list[str] = []
        for path in _weight_files(directory):
            try:
                opened = stack.enter_context(safe_open(path, framework="np"))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path}: not a sound safetensors file: {error}") from None
            here = {name: opened for name in opened.keys() if not _may_be_left_out(name, expected)}  # noqa: SIM118
            wrong += [f"{name} is in {path.name} and in another file" for name in here.keys() & found.keys()]
            found |= here
        wrong += [f"{name} is missing" for name in expected if name not in found]
        wrong += [f"{name} is not part of this architecture" for name in found if name not in expected]
        for name in expected.keys() & found.keys():
            entry = found[name].get_slice(name)
            if tuple(entry.get_shape()) != expected[name]:
                wrong.append(f"{name} has shape {entry.get_shape()}, not {list(expected[name])}")
            if entry.get_dtype() not in DTYPES:
                wrong.append(f"{name} has dtype {entry.get_dtype()}, not one of {', '.join(DTYPES)}")
        if wrong:
            raise CheckpointError(f"{directory}: " + "; ".join(sorted(wrong)))
        return {name: found[name].get_tensor(name).astype(np.float64) for name in expected}


def _may_be_left_out(name: str, expected: Mapping[str, tuple[int, ...]]) -> bool:
    """Tensors that carry nothing of their own: a tied head stored twice, and the rotary table of old exports."""
    return name.endswith(".rotary_emb.inv_freq") or (name == "lm_head.weight" and name not in expected)
