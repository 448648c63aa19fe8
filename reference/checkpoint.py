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

import json
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

from gnomon.reference.model import ModelConfig, RopeScaling
from gnomon.reference.request import shown

ARCHITECTURES = ("LlamaForCausalLM",)
ROPE_TYPES = ("default", "llama3")
DTYPES = ("F64", "F32", "F16", "BF16")


class CheckpointError(ValueError):
    """A model directory that cannot be loaded, with the reason."""


class UnsupportedModel(CheckpointError):
    """A sound checkpoint of a model this version does not run."""


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
    layers: list[dict[str, Any]] = [{} for _ in range(config.num_hidden_layers)]
    params: dict[str, Any] = {"layers": layers}
    for name, tensor in tensors.items():
        *parents, leaf, _ = name.removeprefix("model.").split(".")  # the last part is "weight"
        node = params
        if parents and parents[0] == "layers":
            node, parents = layers[int(parents[1])], parents[2:]
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = tensor
    params.setdefault("lm_head", params["embed_tokens"])
    return Checkpoint(directory, config, params)


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
        raise UnsupportedModel(f"quantised weights are not supported; supported dtypes: {', '.join(DTYPES)}")


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


def read_json(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object in a file; `missing`, if given, where there is no such file. Raises CheckpointError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


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
