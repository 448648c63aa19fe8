"""ModelConfig → the tensors of its checkpoint: a name there, its shape, and which parameters it holds.

Fused projections are taken apart here, and nowhere else. The names are rows of tensor_names.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from numpy.typing import NDArray

from gnomon.reference.checkpoint.families import ARCHITECTURES
from gnomon.reference.checkpoint.tensor_names import Fused, TensorNames
from gnomon.reference.model_config import ModelConfig

Array = NDArray[Any]
Cut = Callable[[Array], Array]
ParamPath = tuple[str | int, ...]


class Stored(NamedTuple):
    """A tensor of a checkpoint and what the model makes of it: each part has its place in the nested params and the
    function that takes it out of the stored array."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[tuple[ParamPath, Cut], ...]


def names_of(config: ModelConfig) -> TensorNames:
    return ARCHITECTURES[config.family.architecture].names


def stored_tensors(config: ModelConfig) -> list[Stored]:
    """The one table of a model's tensors: name in the checkpoint, shape, and the parameters that are in it."""
    family = config.family
    names = names_of(config)
    stored: list[Stored] = []
    for our, their in names.outer.items():
        is_tied = our == "lm_head" and config.tie_word_embeddings  # a bias it has of its own all the same
        stored += _with_bias((our,), their, _shape(our, config), config)[is_tied:]
    for i, layer in enumerate(family.layers):
        prefix, place = names.layers.format(i=i), ("layers", i)
        for our, their in names.layer.items():
            if our.startswith("mlp.") and layer.has_experts != our.startswith(("mlp.router", "mlp.experts")):
                continue
            if ".experts." not in our:
                stored += _with_bias((*place, *our.split(".")), prefix + their, _shape(our, config), config)
                continue
            for e in range(family.experts.count if family.experts else 0):
                mlp, experts, leaf = our.split(".")
                where = (*place, mlp, experts, e, leaf)
                stored += _with_bias(where, prefix + their.format(e=e), _shape(our, config), config)
        for fused in names.fused:
            stored += _taken_apart(fused, place, prefix, config)
    return stored


def _shape(our: str, config: ModelConfig) -> tuple[int, ...]:
    family = config.family
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    NH, KH = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    if ".experts." in our:
        F = family.expert_size
    leaf = our.rsplit(".", 1)[-1]
    whole = family.query_key_norm == "whole"
    shapes = {
        "embed_tokens": (V, D),
        "embed_positions": (family.learned_positions, D),
        "lm_head": (V, D),
        "q_proj": (NH, D),
        "k_proj": (KH, D),
        "v_proj": (KH, D),
        "o_proj": (D, NH),
        "q_norm": (NH if whole else config.head_dim,),
        "k_norm": (KH if whole else config.head_dim,),
        "router": (family.experts.count if family.experts else 0, D),
        "gate_proj": (F, D),
        "up_proj": (F, D),
        "down_proj": (D, F),
    }
    return shapes.get(leaf, (D,))


def _with_bias(place: ParamPath, their: str, shape: tuple[int, ...], config: ModelConfig) -> list[Stored]:
    """A weight, and its bias where it has one."""
    family, leaf = config.family, str(place[-1])
    transposed = len(shape) == 2 and "layers" in place and names_of(config).are_transposed
    stored = [Stored(f"{their}.weight", shape[::-1] if transposed else shape, ((place, _T if transposed else _as_is),))]
    if leaf in family.biases or (family.norm == "layer" and len(shape) == 1):
        stored.append(Stored(f"{their}.bias", shape[:1], (((*place[:-1], f"{leaf}_bias"), _as_is),)))
    return stored


def _taken_apart(fused: Fused, place: ParamPath, prefix: str, config: ModelConfig) -> list[Stored]:
    family = config.family
    transposed = names_of(config).are_transposed
    shapes = [_shape(our, config) for our in fused.of]
    rows = [shape[0] for shape in shapes]
    whole = (sum(rows), shapes[0][1])
    cuts = _cut_by_heads(config) if fused.by_heads else [_cut_rows(sum(rows[:k]), rows[k]) for k in range(len(rows))]
    places = [(*place, *our.split(".")) for our in fused.of]
    parts = tuple((where, _then(_T, cut) if transposed else cut) for where, cut in zip(places, cuts, strict=True))
    stored = [Stored(f"{prefix}{fused.name}.weight", whole[::-1] if transposed else whole, parts)]
    if str(places[0][-1]) in family.biases:
        biases = tuple(((*where[:-1], f"{where[-1]}_bias"), cut) for where, cut in zip(places, cuts, strict=True))
        stored.append(Stored(f"{prefix}{fused.name}.bias", whole[:1], biases))
    return stored


def _as_is(array: Array) -> Array:
    return array


def _T(array: Array) -> Array:
    return array.T


def _then(first: Cut, second: Cut) -> Cut:
    return lambda array: second(first(array))


def _cut_rows(begin: int, count: int) -> Cut:
    return lambda array: array[begin : begin + count]


def _cut_by_heads(config: ModelConfig) -> list[Cut]:
    """Queries, keys and values of rows that are grouped by key/value head: G queries' rows, its key's, its value's."""
    K, H = config.num_key_value_heads, config.head_dim
    G = config.num_attention_heads // K

    def cut(begin: int, end: int) -> Cut:
        def heads(array: Array) -> Array:
            return array.reshape(K, G + 2, H, *array.shape[1:])[:, begin:end].reshape(-1, *array.shape[1:])

        return heads

    return [cut(0, G), cut(G, G + 1), cut(G + 1, G + 2)]


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name in the checkpoint → shape."""
    return {stored.name: stored.shape for stored in stored_tensors(config)}
