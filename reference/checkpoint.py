"""From a Hugging Face directory to a ModelConfig and params: config.json, then safetensors.

    1 config.json decides whether the model is supported: what is not is refused by name before any weight is read
    2 the config implies one table: the tensors of the checkpoint, and which place in params each part of them has
    3 the headers of the files are held against the table: everything missing, extra or misshapen is in one error
    4 tensors are read one after the other and put where they belong, so that no more than one is in memory beside what
      has been made of them: float64 for the reference, for another engine what it likes

generation_config.json gives end-of-sequence ids and nothing else: no sampling default is ever read from a model's
files. How files are read is in tensors.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gnomon.reference.model import ModelConfig, RopeScaling
from gnomon.reference.request import shown
from gnomon.reference.tensors import FORMATS, CheckpointError, Place, Stored, TensorFiles, read_json

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

ARCHITECTURES = ("LlamaForCausalLM",)
ROPE_TYPES = ("default", "llama3")
PROGRESS_SECONDS = 5.0  # between two lines while weights are being read

T = TypeVar("T")
Say = Callable[[str], None]


class UnsupportedModel(CheckpointError):
    """A sound checkpoint of a model this version does not run."""


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


def load_checkpoint(path: str | Path, max_model_len: int | None = None, say: Say = silently) -> Checkpoint:
    """Opens a local Hugging Face directory: its config is read and its files are checked, weights are read later.

    max_model_len: a shorter context than the model's own. Raises CheckpointError, or UnsupportedModel for what this
    version does not run.
    """
    directory = Path(path).absolute()  # so that every message says which one
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory on this machine, and nothing is downloaded")
    config = read_config(directory)
    if max_model_len is not None:
        config = shortened(config, max_model_len)
    source = TensorFiles.open(directory)
    expected = {stored.name: stored.shape for stored in stored_tensors(config)}
    source.check(expected, lambda name: _may_be_left_out(name, expected))
    return Checkpoint(directory, config, source, say)


def shortened(config: ModelConfig, max_model_len: int) -> ModelConfig:
    """The config with a context of so many positions. Raises CheckpointError if the model's own is less."""
    own = config.max_position_embeddings
    if not 1 <= max_model_len <= own:
        raise CheckpointError(f"max-model-len {max_model_len}: the model's context is {own}; allowed: 1 to {own}")
    return replace(config, max_position_embeddings=max_model_len)


def stored_tensors(config: ModelConfig) -> list[Stored]:
    """The table of a checkpoint's tensors: what they are called, their shapes, and where their parts go."""
    return [Stored(name, shape, ((placed(name), _as_it_is),)) for name, shape in expected_tensors(config).items()]


def placed(name: str) -> Place:
    """The place in params of a tensor: `model.layers.3.mlp.up_proj.weight` is at layers, 3, mlp, up_proj."""
    return tuple(
        int(part) if part.isdecimal() else part
        for part in name.removeprefix("model.").removesuffix(".weight").split(".")
    )


def _as_it_is(array: NDArray[Any]) -> NDArray[Any]:
    return array


def read_config(directory: Path) -> ModelConfig:
    """config.json as a ModelConfig. Raises CheckpointError, or UnsupportedModel, naming the entry that decided."""
    raw = read_json(directory / "config.json")
    _refuse_unsupported(raw)
    try:
        return _model_config(directory, raw)
    except UnsupportedModel:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{directory / 'config.json'}: {error}") from None


def _model_config(directory: Path, raw: Mapping[str, Any]) -> ModelConfig:
    hidden_size, heads = _size(raw, "hidden_size"), _size(raw, "num_attention_heads")
    kv_heads = _size(raw, "num_key_value_heads", heads)
    head_dim = _size(raw, "head_dim", hidden_size // heads)
    if heads % kv_heads:
        raise CheckpointError(f"num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
    if head_dim % 2 or head_dim == 0:
        raise CheckpointError(f"head_dim {head_dim} is not an even number, as rotary positions need")
    # transformers 5 keeps all of this in rope_parameters, its predecessors in rope_theta and rope_scaling
    new, old = _mapping(raw, "rope_parameters"), _mapping(raw, "rope_scaling")
    if new and old and new != old:
        raise CheckpointError("rope_parameters and rope_scaling are both given, and differ")
    rope = {"rope_theta": raw.get("rope_theta", 10000.0), **(new or old)}
    vocab_size = _size(raw, "vocab_size")
    bos = raw.get("bos_token_id")
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=_size(raw, "intermediate_size"),
        num_hidden_layers=_size(raw, "num_hidden_layers", most=4096),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=_size(raw, "max_position_embeddings"),
        rms_norm_eps=_positive(raw, "rms_norm_eps", 1e-6),
        rope_theta=_positive(rope, "rope_theta", 10000.0),
        rope_scaling=_rope_scaling(rope),
        tie_word_embeddings=_flag(raw, "tie_word_embeddings", False),
        eos_token_ids=_eos_token_ids(directory, raw, vocab_size),
        bos_token_id=None if bos is None else _token_id("bos_token_id", bos, vocab_size),
    )


LARGEST = 2**24  # of any size in a config: beyond every model


def _size(raw: Mapping[str, Any], name: str, default: int | None = None, most: int = LARGEST) -> int:
    value = raw.get(name)
    if value is None:
        if default is None:
            raise CheckpointError(f"the entry {name} is missing")
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise CheckpointError(f"{name} is {shown(value)}, not an integer from 1 to {most}")
    return value


def _positive(raw: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = raw.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise CheckpointError(f"{name} is {shown(value)}, not a positive number")
    return float(value)


def _flag(raw: Mapping[str, Any], name: str, default: bool) -> bool:
    value = raw.get(name, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{name} is {shown(value)}, not true or false")
    return value


def _token_id(name: str, value: Any, vocab_size: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab_size:
        raise CheckpointError(f"{name} is {shown(value)}, not a token id below the vocabulary's size, {vocab_size}")
    return value


def _mapping(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = raw.get(name)
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(f"{name} is {shown(value)}, not an object")
    return value or {}


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The one table: name in the checkpoint → shape, [out, in]."""
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    NH, KH = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    table: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
    for i in range(config.num_hidden_layers):
        layer = {
            "input_layernorm": (D,),
            "self_attn.q_proj": (NH, D),
            "self_attn.k_proj": (KH, D),
            "self_attn.v_proj": (KH, D),
            "self_attn.o_proj": (D, NH),
            "post_attention_layernorm": (D,),
            "mlp.gate_proj": (F, D),
            "mlp.up_proj": (F, D),
            "mlp.down_proj": (D, F),
        }
        table |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    table["model.norm.weight"] = (D,)
    if not config.tie_word_embeddings:
        table["lm_head.weight"] = (V, D)
    return table


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    named = raw.get("architectures") or f"model_type {shown(raw.get('model_type'))}"
    architecture = named[0] if isinstance(named, list) else named
    if architecture not in ARCHITECTURES:
        raise UnsupportedModel(f"architecture {architecture} is not supported; supported: {', '.join(ARCHITECTURES)}")
    for entry, supported in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if raw.get(entry, supported) != supported:
            raise UnsupportedModel(f"config.json has {entry} {shown(raw[entry])}; supported: {shown(supported)}")
    if raw.get("quantization_config"):
        raise UnsupportedModel(f"quantised weights are not supported; supported dtypes: {', '.join(FORMATS)}")


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ROPE_TYPES:
        raise UnsupportedModel(f"rope_type {shown(kind)} is not supported; supported: {', '.join(ROPE_TYPES)}")
    if kind == "default":
        return None
    return RopeScaling(
        factor=_positive(rope, "factor"),
        low_freq_factor=_positive(rope, "low_freq_factor"),
        high_freq_factor=_positive(rope, "high_freq_factor"),
        original_max_position_embeddings=_size(rope, "original_max_position_embeddings"),
    )


def _eos_token_ids(directory: Path, raw: Mapping[str, Any], vocab_size: int) -> frozenset[int]:
    generation = directory / "generation_config.json"
    named = read_json(generation, missing={}).get("eos_token_id")
    if named is None:
        named = raw.get("eos_token_id")
    ids = [] if named is None else named if isinstance(named, list) else [named]
    return frozenset(_token_id("eos_token_id", v, vocab_size) for v in ids)


def _may_be_left_out(name: str, expected: Mapping[str, tuple[int, ...]]) -> bool:
    """Tensors that carry nothing of their own: a tied head stored twice, and the rotary table of old exports."""
    return name.endswith(".rotary_emb.inv_freq") or (name == "lm_head.weight" and name not in expected)
