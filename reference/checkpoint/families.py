"""The table: architecture → what differs from Llama, in config.json and in the names of tensors.

A row of ARCHITECTURES says what the architecture's name decides; what config.json decides is read under the names that
the row gives. From both come the ModelConfig that every engine runs on, and the list of the tensors to read: a
checkpoint's name, its shape, and which parameters it holds. Fused projections are taken apart here, and nobody else
knows of them.

What is not supported is refused by name, before any weight is read, with the entry of config.json that decided.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray

from gnomon.reference.checkpoint.entries import (
    ContextError,
    Entries,
    UnsupportedModel,
    flag,
    positive,
    positive_or_none,
    reachable_ids,
    size,
)
from gnomon.reference.checkpoint.tensors import CheckpointError, Place, Stored
from gnomon.reference.model import ModelConfig, RopeScaling
from gnomon.reference.request import shown
from gnomon.reference.rope import LAYER_KINDS, RopeForms, check_kinds, rope_forms, rope_of
from gnomon.reference.transformer import Experts, Family, Layer, Rope, family_of

Array = NDArray[Any]
Cut = Callable[[Array], Array]
OfLayer = Callable[[int, Entries], bool]


# ---- what a row can say


class Fused(NamedTuple):
    """Several projections in one tensor: one below the other, or by groups of heads, each with its queries, its key
    and its value."""

    name: str
    of: tuple[str, ...]
    by_heads: bool = False


@dataclass(frozen=True, slots=True)
class Names:
    """Where a checkpoint keeps what: our name → its name, `.weight` and `.bias` aside."""

    layers: str  # what comes before the names of layer {i}
    outer: Mapping[str, str]
    layer: Mapping[str, str]
    fused: tuple[Fused, ...] = ()
    are_transposed: bool = False  # matrices of layers are stored [in, out]
    masks: tuple[str, ...] = ()  # ends of names under which older files keep attention's masks
    other_head: str = ""  # another name of the head

    @property
    def prefix(self) -> str:
        """What files of a class without a head leave out before every name, and GPT-2's first files did."""
        return self.layers.partition(".")[0] + "."


def _never(i: int, raw: Entries) -> bool:
    return False


def _always(i: int, raw: Entries) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Architecture:
    """What an architecture's name says. The defaults are Llama's."""

    model_type: str  # in config.json; what stands in for the name where that is left out
    names: Names
    entries: Mapping[str, str] = field(default_factory=dict)  # our name of an entry → its name in config.json
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of entries that config.json leaves out
    needs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # entries that are refused with other values
    biases: tuple[tuple[tuple[str, ...], bool | str], ...] = ()  # projections that have them: always, or the entry
    norm: Literal["rms", "rms_offset", "layer"] = "rms"
    placement: Literal["before", "after", "around", "beside"] = "before"
    is_gated: bool = True
    query_key_norm: Literal["none", "head", "whole"] = "none"
    is_windowed: OfLayer = _never  # where layer_types does not say it
    has_rope: OfLayer = _always
    has_experts: OfLayer = _never
    rotary_fraction: float = 1.0
    more: Callable[[Entries, ModelConfig], dict[str, Any]] = lambda raw, config: {}  # of Family, as config.json says
    has_groups: bool = True  # whether queries may share keys and values
    activations: Mapping[str, str] = field(default_factory=dict)  # names that mean something else here
    rope_types: Mapping[str, str] = field(default_factory=dict)  # the same
    headless: str = ""  # the name of the class without a head, where it is not formed like the others
    reads_layer_types: bool = False  # others go by sliding_window alone, whatever layer_types says
    is_partly_rotated: bool = False  # others turn whole heads, whatever partial_rotary_factor says
    rope_by_kind: bool = False  # rotary positions differ between full and sliding layers


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
QKV = ATTENTION[:3]
MLP = ("gate_proj", "up_proj", "down_proj")
LLAMA_BIASES = ((ATTENTION, "attention_bias"), (MLP, "mlp_bias"))
ALL_BIASES = ((ATTENTION, True), (MLP, True))

ACTIVATIONS: Mapping[str, Literal["silu", "gelu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

# ---- names


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


SELF_ATTN = tuple(f"self_attn.{name}" for name in ATTENTION)
LLAMA_OUTER = {"embed_tokens": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}
LLAMA = Names(
    "model.layers.{i}.",
    LLAMA_OUTER,
    _same("input_layernorm", *SELF_ATTN, "post_attention_layernorm", *(f"mlp.{name}" for name in MLP)),
)
NORMED = _same("self_attn.q_norm", "self_attn.k_norm")
FEED_FORWARD_NORMS = _same("pre_feedforward_layernorm", "post_feedforward_layernorm")


def _llama_with(*more: Mapping[str, str], without: tuple[str, ...] = (), fused: tuple[Fused, ...] = ()) -> Names:
    layer = {our: their for our, their in LLAMA.layer.items() if our not in without}
    for names in more:
        layer |= names
    return Names(LLAMA.layers, LLAMA_OUTER, layer, fused)


EXPERTS = {f"mlp.experts.{name}": f"mlp.experts.{{e}}.{name}" for name in MLP}
MIXTRAL_EXPERTS = {
    "mlp.router": "block_sparse_moe.gate",
    "mlp.experts.gate_proj": "block_sparse_moe.experts.{e}.w1",
    "mlp.experts.down_proj": "block_sparse_moe.experts.{e}.w2",
    "mlp.experts.up_proj": "block_sparse_moe.experts.{e}.w3",
}
PLAIN_MLP = tuple(f"mlp.{name}" for name in MLP)
GPT2 = Names(
    "transformer.h.{i}.",
    {"embed_tokens": "transformer.wte", "embed_positions": "transformer.wpe", "norm": "transformer.ln_f",
     "lm_head": "lm_head"},
    {"input_layernorm": "ln_1", "self_attn.o_proj": "attn.c_proj", "post_attention_layernorm": "ln_2",
     "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"},
    (Fused("attn.c_attn", tuple(f"self_attn.{name}" for name in QKV)),),
    are_transposed=True,
    masks=("attn.bias", "attn.masked_bias"),
)  # fmt: skip
NEOX = Names(
    "gpt_neox.layers.{i}.",
    {"embed_tokens": "gpt_neox.embed_in", "norm": "gpt_neox.final_layer_norm", "lm_head": "embed_out"},
    {**_same("input_layernorm", "post_attention_layernorm"), "self_attn.o_proj": "attention.dense",
     "mlp.up_proj": "mlp.dense_h_to_4h", "mlp.down_proj": "mlp.dense_4h_to_h"},
    (Fused("attention.query_key_value", tuple(f"self_attn.{name}" for name in QKV), by_heads=True),),
    masks=("attention.bias", "attention.masked_bias"),
    other_head="lm_head",
)  # fmt: skip
STARCODER2 = Names(
    LLAMA.layers,
    LLAMA_OUTER,
    {**_same("input_layernorm", *SELF_ATTN, "post_attention_layernorm"), "mlp.up_proj": "mlp.c_fc",
     "mlp.down_proj": "mlp.c_proj"},
)  # fmt: skip
PHI = Names(
    LLAMA.layers,
    {**LLAMA_OUTER, "norm": "model.final_layernorm"},
    {**_same("input_layernorm", *SELF_ATTN[:3]), "self_attn.o_proj": "self_attn.dense", "mlp.up_proj": "mlp.fc1",
     "mlp.down_proj": "mlp.fc2"},
)  # fmt: skip

# ---- windows, positions, experts, scales


def _if_sliding(i: int, raw: Entries) -> bool:
    return raw.get("sliding_window") is not None


def _slides_at_all(i: int, raw: Entries) -> bool:
    return flag(raw, "use_sliding_window", False)


def _qwen_window(i: int, raw: Entries) -> bool:
    return _slides_at_all(i, raw) and i >= size(raw, "max_window_layers", 28, least=0)


def _every(n: int) -> OfLayer:
    """All layers but each n-th."""
    return lambda i, raw: (i + 1) % n != 0


def _smollm3_rope(i: int, raw: Entries) -> bool:
    given = raw.get("no_rope_layers")  # 1 where a layer has them, in spite of its name
    if given is None:
        return (i + 1) % size(raw, "no_rope_layer_interval", 4) != 0
    if not isinstance(given, list) or len(given) <= i or given[i] not in (0, 1):
        raise CheckpointError(f"no_rope_layers is {shown(given)}, not a list of a 0 or 1 for every layer")
    return bool(given[i])


def _qwen3_moe_experts(i: int, raw: Entries) -> bool:
    dense = raw.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise CheckpointError(f"mlp_only_layers is {shown(dense)}, not a list of layers")
    return i not in dense and (i + 1) % size(raw, "decoder_sparse_step", 1) == 0


def _gemma_scales(raw: Entries, config: ModelConfig) -> dict[str, Any]:
    return {"embedding_scale": math.sqrt(config.hidden_size)}


def _gemma2_scales(raw: Entries, config: ModelConfig) -> dict[str, Any]:
    return {
        "embedding_scale": math.sqrt(config.hidden_size),
        "score_scale": positive(raw, "query_pre_attn_scalar", 256) ** -0.5,
        "score_cap": positive_or_none(raw, "attn_logit_softcapping"),
        "logit_cap": positive_or_none(raw, "final_logit_softcapping"),
    }


def _neox_placement(raw: Entries, config: ModelConfig) -> dict[str, Any]:
    return {"placement": "beside" if flag(raw, "use_parallel_residual", True) else "before"}


def _granite_scales(raw: Entries, config: ModelConfig) -> dict[str, Any]:
    return {
        "embedding_scale": positive(raw, "embedding_multiplier", 1.0),
        "score_scale": positive(raw, "attention_multiplier", 1.0),
        "residual_scale": positive(raw, "residual_multiplier", 1.0),
        "logit_scale": 1 / positive(raw, "logits_scaling", 1.0),
    }


# ---- the table

GEMMA = {"tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh", "head_dim": 256}

ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": Architecture("llama", LLAMA, biases=LLAMA_BIASES),
    "MistralForCausalLM": Architecture(
        "mistral", LLAMA, is_windowed=_if_sliding, defaults={"sliding_window": 4096}, reads_layer_types=True
    ),
    "MixtralForCausalLM": Architecture(
        "mixtral",
        _llama_with(MIXTRAL_EXPERTS, without=PLAIN_MLP),
        is_windowed=_if_sliding,
        has_experts=_always,
        entries={"num_experts": "num_local_experts"},
        defaults={"num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True, "rope_theta": 1e6,
                  "rms_norm_eps": 1e-5},
    ),
    "SmolLM3ForCausalLM": Architecture(
        "smollm3",
        LLAMA,
        biases=LLAMA_BIASES,
        has_rope=_smollm3_rope,
        reads_layer_types=True,
        is_windowed=lambda i, raw: _slides_at_all(i, raw) and not _smollm3_rope(i, raw),
        defaults={"tie_word_embeddings": True, "rope_theta": 2e6},
    ),
    "GraniteForCausalLM": Architecture("granite", LLAMA, biases=LLAMA_BIASES, more=_granite_scales),
    "Qwen2ForCausalLM": Architecture(
        "qwen2", LLAMA, biases=((QKV, True),), is_windowed=_qwen_window, reads_layer_types=True
    ),
    "Qwen3ForCausalLM": Architecture(
        "qwen3",
        _llama_with(NORMED),
        biases=((ATTENTION, "attention_bias"),),
        query_key_norm="head",
        is_windowed=_qwen_window,
        reads_layer_types=True,
        defaults={"head_dim": 128},
    ),
    "Qwen3MoeForCausalLM": Architecture(
        "qwen3_moe",
        _llama_with(NORMED, EXPERTS, {"mlp.router": "mlp.gate"}),
        biases=((ATTENTION, "attention_bias"),),
        query_key_norm="head",
        is_windowed=_slides_at_all,
        has_experts=_qwen3_moe_experts,
        entries={"num_experts": "num_local_experts"},  # as transformers 5 writes it
        defaults={"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": False},
    ),
    "GemmaForCausalLM": Architecture(
        "gemma",
        LLAMA,
        biases=((ATTENTION, "attention_bias"),),
        norm="rms_offset",
        more=_gemma_scales,
        defaults=GEMMA,
        needs={"use_bidirectional_attention": (None, False)},
        activations={"gelu": "gelu_pytorch_tanh"},
    ),
    "Gemma2ForCausalLM": Architecture(
        "gemma2",
        _llama_with(FEED_FORWARD_NORMS),
        biases=((ATTENTION, "attention_bias"),),
        norm="rms_offset",
        placement="around",
        is_windowed=_every(2),
        reads_layer_types=True,
        more=_gemma2_scales,
        entries={"hidden_act": "hidden_activation"},
        defaults={**GEMMA, "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        needs={"use_bidirectional_attention": (None, False)},
    ),
    "Gemma3ForCausalLM": Architecture(
        "gemma3_text",
        _llama_with(FEED_FORWARD_NORMS, NORMED),
        biases=((ATTENTION, "attention_bias"),),
        norm="rms_offset",
        placement="around",
        query_key_norm="head",
        is_windowed=lambda i, raw: (i + 1) % size(raw, "sliding_window_pattern", 6) != 0,
        reads_layer_types=True,
        rope_by_kind=True,
        more=_gemma2_scales,
        entries={"hidden_act": "hidden_activation"},
        defaults={**GEMMA, "sliding_window": 4096, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
        needs={"use_bidirectional_attention": (None, False), "attn_logit_softcapping": (None,)},
        headless="Gemma3TextModel",
    ),
    "Phi3ForCausalLM": Architecture(
        "phi3",
        _llama_with(
            without=(*SELF_ATTN[:3], "mlp.gate_proj", "mlp.up_proj"),
            fused=(
                Fused("self_attn.qkv_proj", tuple(f"self_attn.{name}" for name in QKV)),
                Fused("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
            ),
        ),
        is_windowed=_if_sliding,
        defaults={"rms_norm_eps": 1e-5},
        rope_types={"yarn": "longrope"},  # as its first files called it
        is_partly_rotated=True,
    ),
    "PhiForCausalLM": Architecture(
        "phi",
        PHI,
        biases=(*ALL_BIASES, (("lm_head",), True)),
        norm="layer",
        placement="beside",
        is_gated=False,
        rotary_fraction=0.5,
        is_partly_rotated=True,
        entries={"rms_norm_eps": "layer_norm_eps"},
        defaults={"hidden_act": "gelu_new", "rms_norm_eps": 1e-5},
        needs={"qk_layernorm": (None, False)},
    ),
    "Olmo2ForCausalLM": Architecture(
        "olmo2",
        _llama_with(NORMED, {"post_feedforward_layernorm": "post_feedforward_layernorm"}, without=("input_layernorm",)),
        biases=((ATTENTION, "attention_bias"),),
        placement="after",
        query_key_norm="whole",
        defaults={"rms_norm_eps": 1e-5},
    ),
    "Olmo3ForCausalLM": Architecture(
        "olmo3",
        _llama_with(NORMED, {"post_feedforward_layernorm": "post_feedforward_layernorm"}, without=("input_layernorm",)),
        biases=((ATTENTION, "attention_bias"),),
        placement="after",
        query_key_norm="whole",
        is_windowed=_every(4),
        reads_layer_types=True,
        rope_by_kind=True,
        defaults={"rms_norm_eps": 1e-5, "sliding_window": 4096, "rope_theta": 5e5},
    ),
    "Starcoder2ForCausalLM": Architecture(
        "starcoder2",
        STARCODER2,
        biases=((ATTENTION, "use_bias"), (MLP, "use_bias")),
        norm="layer",
        is_gated=False,
        is_windowed=_if_sliding,
        entries={"rms_norm_eps": "norm_epsilon"},
        defaults={"tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-5,
                  "use_bias": True, "num_key_value_heads": 2},
    ),
    "GPT2LMHeadModel": Architecture(
        "gpt2",
        GPT2,
        biases=ALL_BIASES,
        has_groups=False,
        norm="layer",
        is_gated=False,
        has_rope=_never,
        entries={
            "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions", "intermediate_size": "n_inner",
            "rms_norm_eps": "layer_norm_epsilon", "hidden_act": "activation_function",
        },
        defaults={"tie_word_embeddings": True, "hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "hidden_size": 768,
                  "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 1024,
                  "vocab_size": 50257},
        needs={"scale_attn_weights": (None, True), "scale_attn_by_inverse_layer_idx": (None, False),
               "add_cross_attention": (None, False)},
    ),
    "GPTNeoXForCausalLM": Architecture(
        "gpt_neox",
        NEOX,
        biases=((ATTENTION, "attention_bias"), (MLP, True)),
        norm="layer",
        more=_neox_placement,
        has_groups=False,
        is_gated=False,
        rotary_fraction=0.25,
        is_partly_rotated=True,
        entries={"rms_norm_eps": "layer_norm_eps", "rope_theta": "rotary_emb_base", "rotary_fraction": "rotary_pct"},
        defaults={"hidden_act": "gelu", "rms_norm_eps": 1e-5, "attention_bias": True},
    ),
}  # fmt: skip


def _headless(name: str, row: Architecture) -> str:
    return row.headless or f"{name.removesuffix('ForCausalLM').removesuffix('LMHeadModel')}Model"


BY_MODEL_TYPE = {row.model_type: name for name, row in ARCHITECTURES.items()}
HEADLESS = {_headless(name, row): name for name, row in ARCHITECTURES.items()}

# ---- config.json → ModelConfig


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
    if not row.is_partly_rotated and row.has_rope is not _never:
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
    rope = next(iter(ropes["full_attention"].values()))
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=size(
            raw, "intermediate_size", 4 * hidden_size if "n_inner" in row.entries.values() else None
        ),
        num_hidden_layers=size(raw, "num_hidden_layers", most=4096),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=size(raw, "head_dim", hidden_size // heads),
        max_position_embeddings=longest if max_model_len is None else max_model_len,
        rms_norm_eps=positive(raw, "rms_norm_eps", 1e-6),
        rope_theta=positive(rope, "rope_theta"),
        rope_scaling=_llama3_scaling(rope, longest),
        tie_word_embeddings=flag(raw, "tie_word_embeddings", False),
        eos_token_ids=_eos_token_ids(raw, eos_token_ids, vocab_size, warn),
        bos_token_id=min(bos, default=None),
    )
    return _with_family(name, row, raw, ropes, config, longest)


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


QUANTISED = ("quantization_config", "quantization", "compression_config")  # the second is mlx's name of it
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
    for entry in QUANTISED:
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


def _llama3_scaling(rope: Entries, longest: int) -> RopeScaling | None:
    """What model.py itself knows of scaling."""
    if rope["rope_type"] != "llama3":
        return None
    return RopeScaling(
        factor=positive(rope, "factor"),
        low_freq_factor=positive(rope, "low_freq_factor"),
        high_freq_factor=positive(rope, "high_freq_factor"),
        original_max_position_embeddings=size(rope, "original_max_position_embeddings", longest),
    )


def _eos_token_ids(raw: Entries, generation: Any, vocab_size: int, warn: Callable[[str], None]) -> frozenset[int]:
    if generation is None:
        return reachable_ids("eos_token_id", raw.get("eos_token_id"), vocab_size, "config.json", warn)
    return reachable_ids("eos_token_id", generation, vocab_size, "generation_config.json", warn)


def _with_family(
    name: str, row: Architecture, raw: Entries, ropes: Mapping[str, RopeForms], config: ModelConfig, longest: int
) -> ModelConfig:
    """The config with what differs from Llama; a plain Llama as it is."""
    layers = _layers(row, raw, ropes, config, longest)
    activation = row.activations.get(raw.get("hidden_act", "silu"), raw.get("hidden_act", "silu"))
    experts = None
    if any(layer.has_experts for layer in layers):
        per_token, is_normalized = size(raw, "num_experts_per_tok"), flag(raw, "norm_topk_prob", False)
        experts = Experts(size(raw, "num_experts"), per_token, is_normalized)
        if experts.per_token > experts.count:
            raise CheckpointError(f"num_experts_per_tok {experts.per_token} is more than the {experts.count} experts")
    family = Family(
        architecture=name,
        layers=layers,
        norm=row.norm,
        activation=ACTIVATIONS[activation],
        is_gated=row.is_gated,
        query_key_norm=row.query_key_norm,
        experts=experts,
        biases=frozenset(_biased(row, raw)),
        expert_size=size(raw, "moe_intermediate_size", config.intermediate_size) if experts else 0,
        learned_positions=longest if "embed_positions" in row.names.outer else 0,
        **{"score_scale": config.head_dim**-0.5, "placement": row.placement, **row.more(raw, config)},
    )
    return config if family == family_of(config) else replace(config, family=family)


def _layers(
    row: Architecture, raw: Entries, forms: Mapping[str, RopeForms], config: ModelConfig, longest: int
) -> tuple[Layer, ...]:
    kinds = raw.get("layer_types")
    if kinds is not None and (
        not isinstance(kinds, list)
        or len(kinds) != config.num_hidden_layers
        or not all(kind in LAYER_KINDS for kind in kinds)
    ):
        allowed = "a list of full_attention and sliding_attention, one for every layer"
        raise UnsupportedModel(f"config.json has layer_types {shown(kinds)}; supported: {allowed}")
    context = config.max_position_embeddings
    if kinds is not None and not row.reads_layer_types:
        _check_layer_types(kinds, row, raw, context)
    fraction = raw.get("partial_rotary_factor") or raw.get("rotary_fraction") or row.rotary_fraction
    ropes: dict[str, Rope | None] = dict.fromkeys(LAYER_KINDS)
    if row.has_rope is not _never:
        ropes = {kind: rope_of(forms[kind], config.head_dim, fraction, longest, context) for kind in LAYER_KINDS}
    layers = []
    for i in range(config.num_hidden_layers):
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
        if always is True or (isinstance(always, str) and flag(raw, always, False)):
            yield from projections


# ---- ModelConfig → the tensors of its checkpoint


def names_of(config: ModelConfig) -> Names:
    return ARCHITECTURES[family_of(config).architecture].names


def stored_tensors(config: ModelConfig) -> list[Stored]:
    """The one table of a model's tensors: name in the checkpoint, shape, and the parameters that are in it."""
    family = family_of(config)
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
    family = family_of(config)
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


def _with_bias(place: Place, their: str, shape: tuple[int, ...], config: ModelConfig) -> list[Stored]:
    """A weight, and its bias where it has one."""
    family, leaf = family_of(config), str(place[-1])
    transposed = len(shape) == 2 and "layers" in place and names_of(config).are_transposed
    stored = [Stored(f"{their}.weight", shape[::-1] if transposed else shape, ((place, _T if transposed else _as_is),))]
    if leaf in family.biases or (family.norm == "layer" and len(shape) == 1):
        stored.append(Stored(f"{their}.bias", shape[:1], (((*place[:-1], f"{leaf}_bias"), _as_is),)))
    return stored


def _taken_apart(fused: Fused, place: Place, prefix: str, config: ModelConfig) -> list[Stored]:
    family = family_of(config)
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
