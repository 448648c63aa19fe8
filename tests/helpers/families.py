"""Random tiny checkpoints of every family and variant, made and saved by transformers.

Each has as many layers as its pattern needs, every switch of the family in some variant, and texts that go beyond
windows and the breakpoints of stretched rotary positions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is a local directory; nothing may be looked up

CONTEXT, VOCAB = 256, 300
LENGTH = 150  # of a text; windows are 16 to 48, original contexts 64

SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GPT2 = {
    **{name: SMALL[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")},
    "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT,
}  # fmt: skip


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"short_factor": [1.0 + 0.05 * i for i in range(8)], "long_factor": [1.0 + 0.7 * i for i in range(8)]}
SLIDING = {"sliding_window": 48}
GEMMA = {"head_dim": 24}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


class Variant(NamedTuple):
    """config: the class in transformers · entries: of it, beside SMALL or instead."""

    config: str
    entries: Mapping[str, Any] = {}
    base: Mapping[str, Any] = SMALL


VARIANTS: dict[str, Variant] = {
    "Llama": Variant("LlamaConfig"),
    "Llama, biases": Variant("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "Llama, linear": Variant("LlamaConfig", rope("linear", factor=4.0)),
    "Llama, dynamic": Variant("LlamaConfig", rope("dynamic", factor=4.0)),
    "Llama, llama3": Variant("LlamaConfig", rope("llama3", **LLAMA3)),
    "Llama, yarn": Variant("LlamaConfig", rope("yarn", **YARN)),
    "Llama, yarn with all its entries": Variant(
        "LlamaConfig",
        rope("yarn", **YARN, beta_fast=16.0, beta_slow=2.0, mscale=0.7, mscale_all_dim=0.9, truncate=False),
    ),
    "Mistral": Variant("MistralConfig", SLIDING),
    "Mistral, no window": Variant("MistralConfig", {"sliding_window": None}),
    "Mixtral": Variant("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Mixtral, window": Variant("MixtralConfig", {"num_local_experts": 3, "num_experts_per_tok": 1, **SLIDING}),
    "SmolLM3": Variant("SmolLM3Config", {"num_hidden_layers": 5}),
    "SmolLM3, every other layer": Variant(
        "SmolLM3Config", {"no_rope_layers": [1, 0], "tie_word_embeddings": False, "attention_bias": True}
    ),
    "Granite": Variant(
        "GraniteConfig",
        {"embedding_multiplier": 3.0, "attention_multiplier": 0.4, "residual_multiplier": 0.7, "logits_scaling": 2.5},
    ),
    "Qwen2": Variant("Qwen2Config"),
    "Qwen2, window": Variant(
        "Qwen2Config",
        {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 32, **rope("yarn", **YARN)},
    ),
    "Qwen3": Variant("Qwen3Config", {"head_dim": 24, "tie_word_embeddings": True}),
    "Qwen3, biases and window": Variant(
        "Qwen3Config",
        {"head_dim": 16, "attention_bias": True, "use_sliding_window": True, "max_window_layers": 1, **SLIDING},
    ),
    "Qwen3-MoE": Variant(
        "Qwen3MoeConfig",
        {"head_dim": 16, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 40,
         "norm_topk_prob": True},
    ),
    "Qwen3-MoE, some layers dense": Variant(
        "Qwen3MoeConfig",
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 3, "moe_intermediate_size": 40,
         "num_hidden_layers": 4, "mlp_only_layers": [1], "decoder_sparse_step": 2},
    ),
    "Gemma": Variant("GemmaConfig", GEMMA),
    "Gemma 2": Variant("Gemma2Config", {**GEMMA, "num_hidden_layers": 3, "sliding_window": 32,
                                        "query_pre_attn_scalar": 20}),
    "Gemma 2, no caps": Variant(
        "Gemma2Config", {**GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": None, **SLIDING}
    ),
    "Gemma 3": Variant("Gemma3TextConfig", {**GEMMA, "num_hidden_layers": 7, "sliding_window": 16,
                                            "rope_parameters": GEMMA3_ROPE}),
    "Gemma 3, its defaults": Variant("Gemma3TextConfig", {**GEMMA, "num_hidden_layers": 6, "sliding_window": 32}),
    "Phi-3": Variant("Phi3Config"),
    "Phi-3, window": Variant("Phi3Config", {"sliding_window": 40, "num_key_value_heads": 4}),
    "Phi-3, long": Variant("Phi3Config", {"original_max_position_embeddings": 64, **rope("longrope", **LONG)}),
    "Phi-4-mini, partly rotated": Variant(
        "Phi3Config",
        {
            "head_dim": 16,
            "original_max_position_embeddings": 64,
            "tie_word_embeddings": True,
            "partial_rotary_factor": 0.75,
            **rope("longrope", partial_rotary_factor=0.75, **{name: values[:6] for name, values in LONG.items()}),
        },
    ),
    "Phi-2": Variant("PhiConfig", {"num_key_value_heads": 4}),
    "OLMo 2": Variant("Olmo2Config"),
    "OLMo 3": Variant("Olmo3Config", {"num_hidden_layers": 5, "sliding_window": 32}),
    "StarCoder2": Variant("Starcoder2Config", SLIDING),
    "StarCoder2, no biases": Variant("Starcoder2Config", {"use_bias": False, "tie_word_embeddings": False}),
    "GPT-2": Variant("GPT2Config", {}, GPT2),
    "GPT-2, wide": Variant("GPT2Config", {"n_inner": 100, "activation_function": "gelu"}, GPT2),
    "GPT-NeoX": Variant("GPTNeoXConfig", {"num_key_value_heads": 4}),
    "GPT-NeoX, one after the other": Variant(
        "GPTNeoXConfig", {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True}
    ),
}  # fmt: skip


def save_random(directory: Path, variant: Variant, seed: int) -> Path:
    """A random model of a variant; weights that matter: matrices of ±0.1, norms around 1, biases of ±0.1."""
    import torch
    import transformers

    entries = {**variant.base, **variant.entries}
    config = getattr(transformers, variant.config)(**entries)
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.float32)
    torch.manual_seed(seed)
    offset = variant.config.startswith("Gemma")
    for name, parameter in model.named_parameters():
        is_norm = parameter.dim() == 1 and name.endswith("weight")
        parameter.data.normal_(0.0 if offset or not is_norm else 1.0, 0.2 if is_norm else 0.1)
    model.save_pretrained(directory)
    return directory


def architecture_in(directory: Path) -> str:
    return str(json.loads((directory / "config.json").read_text())["architectures"][0])
