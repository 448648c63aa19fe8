"""config.json → ModelConfig, by the row of families.py that the architecture's name has.

What is not supported is refused by name, before any weight is read, with the entry of config.json that decided.
generation_config.json gives end-of-sequence ids and nothing else: no sampling default is ever read from a model's
files.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gnomon.reference.body.shown import shown
from gnomon.reference.checkpoint.entries import Entries, positive, reachable_ids, size, switch
from gnomon.reference.checkpoint.errors import CheckpointError, ContextError, UnsupportedModel
from gnomon.reference.checkpoint.families import (
    ACTIVATIONS,
    ARCHITECTURES,
    BY_MODEL_TYPE,
    HEADLESS,
    Architecture,
    never,
)
from gnomon.reference.checkpoint.tensors import other_form, read_json
from gnomon.reference.model_config import Experts, Family, Layer, ModelConfig, Rope
from gnomon.reference.rope import LAYER_KINDS, RopeForms, check_kinds, rope_forms, rope_of


def read_config(
    directory: Path, max_model_len: int | None = None, warn: Callable[[str], None] = warnings.warn
) -> ModelConfig:
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


def model_config(
    raw: Entries, eos_token_ids: Any, max_model_len: int | None = None, warn: Callable[[str], None] = warnings.warn
) -> ModelConfig:
    """config.json as a ModelConfig. eos_token_ids: those of generation_config.json, which go before config.json's ·
    max_model_len: a context shorter than the model's own · warn: gets a line for every entry that has no effect.
    Raises CheckpointError, or UnsupportedModel."""
    name = architecture_of(raw)
    row = ARCHITECTURES[name]
    given = _in_our_words(raw, row)
    raw = {**row.defaults, **given}
    _refuse_unsupported(raw, row)
    if row.rope_by_kind:
        check_kinds(given, row.defaults)
    ropes = {kind: rope_forms(kind, given, row.defaults, row.rope_types, row.rope_by_kind) for kind in LAYER_KINDS}
    if not row.is_partly_rotated and row.has_rope is not never:
        _refuse_partly_rotated(ropes)
    hidden_size, heads = size(raw, "hidden_size"), size(raw, "num_attention_heads")
    kv_heads = size(raw, "num_key_value_heads", heads) if row.has_groups else heads
    if heads % kv_heads:
        raise CheckpointError(f"num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}")
    vocab_size, longest = size(raw, "vocab_size"), size(raw, "max_position_embeddings")
    if max_model_len is not None and not 1 <= max_model_len <= longest:
        allowed = f"the model's context is {longest}; allowed: 1 to {longest}"
        raise ContextError(f"max-model-len {max_model_len}: {allowed}")
    if isinstance(raw.get("bos_token_id"), list):
        raise CheckpointError(f"bos_token_id is {shown(raw['bos_token_id'])}, not a token id")
    bos = reachable_ids("bos_token_id", raw.get("bos_token_id"), vocab_size, "config.json", warn)
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": size(
            raw, "intermediate_size", 4 * hidden_size if "n_inner" in row.entries.values() else None
        ),
        "num_hidden_layers": size(raw, "num_hidden_layers", most=4096),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size(raw, "head_dim", hidden_size // heads),
        "max_position_embeddings": longest if max_model_len is None else max_model_len,
        "rms_norm_eps": positive(raw, "rms_norm_eps", 1e-6),
        "tie_word_embeddings": switch(raw, "tie_word_embeddings", False),
        "eos_token_ids": _eos_token_ids(raw, eos_token_ids, vocab_size, warn),
        "bos_token_id": min(bos, default=None),
    }
    return ModelConfig(**sizes, family=_family(name, row, raw, ropes, sizes, longest))


def architecture_of(raw: Entries) -> str:
    """The name by which the table knows the model. Raises UnsupportedModel.

    `architectures` decides; where it is left out, null or empty, `model_type` does, and a class without a head
    (LlamaModel) is the model that has it. transformers goes by model_type alone: where the two name different models,
    its numbers would be others than ours, and the model is refused.
    """
    named, kind = raw.get("architectures"), raw.get("model_type")
    by_type = BY_MODEL_TYPE.get(kind) if isinstance(kind, str) else None
    if named is None or named == []:
        if by_type is None:
            raise UnsupportedModel(
                f"config.json names no architectures, and model_type {shown(kind)} is not supported; "
                f"supported: {', '.join(BY_MODEL_TYPE)}"
            )
        return by_type
    models = {_supported(name) for name in (named if isinstance(named, list) else [named])}
    if by_type is not None:
        models.add(by_type)
    if len(models) > 1:
        both = f"architectures {shown(named)} and model_type {shown(kind)}"
        raise UnsupportedModel(f"config.json has {both}: different models, of which one is supported at a time")
    return models.pop()


def _supported(name: Any) -> str:
    was = name if isinstance(name, str) else shown(name)
    found = HEADLESS.get(was, was)
    if found not in ARCHITECTURES:
        raise UnsupportedModel(f"architecture {was} is not supported; supported: {', '.join(ARCHITECTURES)}")
    return found


QUANTISED_ENTRIES = ("quantization_config", "quantization", "compression_config")  # the second is mlx's name of it
MAY_BE_NULL = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")  # null means none, no default


OWN_NAME_ONLY = ("rms_norm_eps", "hidden_act", "rope_theta")  # where a class calls them otherwise


def _in_our_words(raw: Entries, row: Architecture) -> dict[str, Any]:
    """The entries that config.json has, under our names. What another class calls an entry says nothing in this one."""
    foreign = {our for our in OWN_NAME_ONLY if row.entries.get(our, our) != our}
    raw = {key: value for key, value in raw.items() if key not in foreign}
    named = {our: raw[their] for our, their in row.entries.items() if raw.get(their) is not None}
    is_left_out = {key for key, value in raw.items() if value is None and key in row.defaults} - {*MAY_BE_NULL}
    return {**{key: value for key, value in raw.items() if key not in is_left_out}, **named}


def _refuse_unsupported(raw: Entries, row: Architecture) -> None:
    needs = {"is_causal": (None, True), **row.needs}
    for entry, supported in needs.items():
        if raw.get(entry) not in supported:
            raise UnsupportedModel(f"config.json has {entry} {shown(raw[entry])}; supported: {shown(supported[-1])}")
    activation = raw.get("hidden_act", "silu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        entry = row.entries.get("hidden_act", "hidden_act")
        allowed = ", ".join(map(shown, ACTIVATIONS))
        raise UnsupportedModel(f"config.json has {entry} {shown(activation)}; supported: {allowed}")
    for entry in QUANTISED_ENTRIES:
        if raw.get(entry):
            raise UnsupportedModel(f"config.json has {entry}: quantised weights are not supported")


def _refuse_partly_rotated(ropes: Mapping[str, RopeForms]) -> None:
    """vLLM reads the entry in every class; transformers only where the models were trained so."""
    for form in (form for forms in ropes.values() for form in forms.values()):
        factor = form.get("partial_rotary_factor")
        if factor not in (None, 1):
            raise UnsupportedModel(
                f"config.json has partial_rotary_factor {shown(factor)}, and this architecture turns whole heads; "
                "supported: 1"
            )


def _eos_token_ids(raw: Entries, generation: Any, vocab_size: int, warn: Callable[[str], None]) -> frozenset[int]:
    if generation is None:
        return reachable_ids("eos_token_id", raw.get("eos_token_id"), vocab_size, "config.json", warn)
    return reachable_ids("eos_token_id", generation, vocab_size, "generation_config.json", warn)


def _family(
    name: str, row: Architecture, raw: Entries, ropes: Mapping[str, RopeForms], sizes: Mapping[str, Any], longest: int
) -> Family:
    """What the row and config.json declare."""
    layers = _layers(row, raw, ropes, sizes, longest)
    activation = row.activations.get(raw.get("hidden_act", "silu"), raw.get("hidden_act", "silu"))
    experts = None
    if any(layer.has_experts for layer in layers):
        per_token, is_normalized = size(raw, "num_experts_per_tok"), switch(raw, "norm_topk_prob", False)
        experts = Experts(size(raw, "num_experts"), per_token, is_normalized)
        if experts.per_token > experts.count:
            raise CheckpointError(f"num_experts_per_tok {experts.per_token} is more than the {experts.count} experts")
    return Family(
        architecture=name,
        layers=layers,
        norm=row.norm,
        activation=ACTIVATIONS[activation],
        is_gated=row.is_gated,
        query_key_norm=row.query_key_norm,
        experts=experts,
        biases=frozenset(_biased(row, raw)),
        expert_size=size(raw, "moe_intermediate_size", sizes["intermediate_size"]) if experts else 0,
        learned_positions=longest if "embed_positions" in row.names.outer else 0,
        **{"score_scale": sizes["head_dim"] ** -0.5, "placement": row.placement, **row.more(raw)},
    )


def _layers(
    row: Architecture, raw: Entries, forms: Mapping[str, RopeForms], sizes: Mapping[str, Any], longest: int
) -> tuple[Layer, ...]:
    kinds = raw.get("layer_types")
    if kinds is not None and (
        not isinstance(kinds, list)
        or len(kinds) != sizes["num_hidden_layers"]
        or not all(kind in LAYER_KINDS for kind in kinds)
    ):
        allowed = "a list of full_attention and sliding_attention, one for every layer"
        raise UnsupportedModel(f"config.json has layer_types {shown(kinds)}; supported: {allowed}")
    context = sizes["max_position_embeddings"]
    if kinds is not None and not row.reads_layer_types:
        _check_layer_types(kinds, row, raw, context)
    fraction = raw.get("partial_rotary_factor") or raw.get("rotary_fraction") or row.rotary_fraction
    ropes: dict[str, Rope | None] = dict.fromkeys(LAYER_KINDS)
    if row.has_rope is not never:
        ropes = {kind: rope_of(forms[kind], sizes["head_dim"], fraction, longest, context) for kind in LAYER_KINDS}
    layers = []
    for i in range(sizes["num_hidden_layers"]):
        slides = kinds[i] == "sliding_attention" if kinds is not None else row.is_windowed(i, raw)
        window = size(raw, "sliding_window") if slides else None
        if window is not None and window >= context:
            window = None  # it hides nothing
        rope = ropes["sliding_attention" if slides else "full_attention"] if row.has_rope(i, raw) else None
        layers.append(Layer(rope, window, row.has_experts(i, raw)))
    return tuple(layers)


def _check_layer_types(kinds: list[str], row: Architecture, raw: Entries, context: int) -> None:
    """transformers goes by sliding_window here, vLLM by layer_types: where the two differ, the model is refused."""
    window = raw.get("sliding_window")
    hides = window is not None and size(raw, "sliding_window") < context
    for i, kind in enumerate(kinds):
        slides = row.is_windowed(i, raw)
        if slides != (kind == "sliding_attention") and (hides or window is None):
            does = "slides" if slides else "sees all"
            raise UnsupportedModel(
                f"config.json has layer_types with {kind} at {i}, where this architecture {does} by sliding_window "
                f"{shown(window)}; supported: both alike, or no layer_types"
            )


def _biased(row: Architecture, raw: Entries) -> Iterator[str]:
    for projections, always in row.biases:
        if always is True or (isinstance(always, str) and switch(raw, always, False)):
            yield from projections
