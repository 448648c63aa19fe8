"""Random tiny checkpoints, written as Hugging Face directories without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from gnomon.reference.checkpoint.config import read_config
from gnomon.reference.checkpoint.tensor_table import expected_tensors
from helpers.fake import EOT, FAKE_VOCAB, tokenizer_files

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": FAKE_VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": EOT,
}


def tiny_llama(directory: Path, seed: int = 0, scale: float = 0.3, **config: object) -> Path:
    """A model directory with random float32 weights and the fake tokenizer; keyword arguments replace config
    entries. scale: the matrices' standard deviation; the larger, the more a rounding error grows on its way."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**TINY, **config}))
    rng = np.random.default_rng(seed)
    tensors = {
        name: (rng.normal(size=shape) * (scale if len(shape) > 1 else 0.1) + (len(shape) == 1)).astype(np.float32)
        for name, shape in expected_tensors(read_config(directory)).items()
    }
    save_file(tensors, directory / "model.safetensors")
    return tokenizer_files(directory)
