"""The table: architecture → what differs from Llama, in config.json and in the names of tensors.

A row of ARCHITECTURES says what the architecture's name decides; what config.json decides is read under the names that
the row gives. config.py makes the ModelConfig of both, and tensor_table.py the list of the tensors to read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gnomon.reference.body.shown import shown
from gnomon.reference.checkpoint.entries import Entries, positive, positive_or_none, size, switch
from gnomon.reference.checkpoint.errors import CheckpointError
from gnomon.reference.checkpoint.tensor_names import (
    ATTENTION,
    EXPERTS,
    FEED_FORWARD_NORMS,
    GPT2,
    LLAMA,
    MIXTRAL_EXPERTS,
    MLP,
    NEOX,
    NORMED,
    PHI,
    PLAIN_MLP,
    QKV,
    SELF_ATTN,
    STARCODER2,
    Fused,
    TensorNames,
    llama_with,
)

OfLayer = Callable[[int, Entries], bool]


def never(i: int, raw: Entries) -> bool:
    return False


def always(i: int, raw: Entries) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Architecture:
    """What an architecture's name says. The defaults are Llama's."""

    model_type: str  # in config.json; what stands in for the name where that is left out
    names: TensorNames
    entries: Mapping[str, str] = field(default_factory=dict)  # our name of an entry → its name in config.json
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of entries that config.json leaves out
    needs: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # entries that are refused with other values
    biases: tuple[tuple[tuple[str, ...], bool | str], ...] = ()  # projections that have them: always, or the entry
    norm: Literal["rms", "rms_offset", "layer"] = "rms"
    placement: Literal["before", "after", "around", "beside"] = "before"
    is_gated: bool = True
    query_key_norm: Literal["none", "head", "whole"] = "none"
    is_windowed: OfLayer = never  # where layer_types does not say it
    has_rope: OfLayer = always
    has_experts: OfLayer = never
    rotary_fraction: float = 1.0
    more: Callable[[Entries], dict[str, Any]] = lambda raw: {}  # of Family, as config.json says
    has_groups: bool = True  # whether queries may share keys and values
    activations: Mapping[str, str] = field(default_factory=dict)  # names that mean something else here
    rope_types: Mapping[str, str] = field(default_factory=dict)  # the same
    headless: str = ""  # the name of the class without a head, where it is not formed like the others
    reads_layer_types: bool = False  # others go by sliding_window alone, whatever layer_types says
    is_partly_rotated: bool = False  # others turn whole heads, whatever partial_rotary_factor says
    rope_by_kind: bool = False  # rotary positions differ between full and sliding layers


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

# ---- windows, positions, experts, scales


def _if_sliding(i: int, raw: Entries) -> bool:
    return raw.get("sliding_window") is not None


def _slides_at_all(i: int, raw: Entries) -> bool:
    return switch(raw, "use_sliding_window", False)


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


def _gemma_scales(raw: Entries) -> dict[str, Any]:
    return {"embedding_scale": math.sqrt(size(raw, "hidden_size"))}


def _gemma2_scales(raw: Entries) -> dict[str, Any]:
    return {
        "embedding_scale": math.sqrt(size(raw, "hidden_size")),
        "score_scale": positive(raw, "query_pre_attn_scalar", 256) ** -0.5,
        "score_cap": positive_or_none(raw, "attn_logit_softcapping"),
        "logit_cap": positive_or_none(raw, "final_logit_softcapping"),
    }


def _neox_placement(raw: Entries) -> dict[str, Any]:
    return {"placement": "beside" if switch(raw, "use_parallel_residual", True) else "before"}


def _granite_scales(raw: Entries) -> dict[str, Any]:
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
        llama_with(MIXTRAL_EXPERTS, without=PLAIN_MLP),
        is_windowed=_if_sliding,
        has_experts=always,
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
        llama_with(NORMED),
        biases=((ATTENTION, "attention_bias"),),
        query_key_norm="head",
        is_windowed=_qwen_window,
        reads_layer_types=True,
        defaults={"head_dim": 128},
    ),
    "Qwen3MoeForCausalLM": Architecture(
        "qwen3_moe",
        llama_with(NORMED, EXPERTS, {"mlp.router": "mlp.gate"}),
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
        llama_with(FEED_FORWARD_NORMS),
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
        llama_with(FEED_FORWARD_NORMS, NORMED),
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
        llama_with(
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
        llama_with(NORMED, {"post_feedforward_layernorm": "post_feedforward_layernorm"}, without=("input_layernorm",)),
        biases=((ATTENTION, "attention_bias"),),
        placement="after",
        query_key_norm="whole",
        defaults={"rms_norm_eps": 1e-5},
    ),
    "Olmo3ForCausalLM": Architecture(
        "olmo3",
        llama_with(NORMED, {"post_feedforward_layernorm": "post_feedforward_layernorm"}, without=("input_layernorm",)),
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
        has_rope=never,
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
