"""A trained model as a Hugging Face directory, which transformers loads, and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from gnomon.jax_engine.training.config import ModelShape
from gnomon.jax_engine.training.data import END_OF_TEXT, FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, MARKER_TOKENS, DataError
from gnomon.jax_engine.training.llama import FlaxParams, new_params
from gnomon.jax_engine.training.state import Arrays


def checkpoint_arrays(params: FlaxParams) -> Arrays:
    """The weights by their Hugging Face names, float32, matrices [out, in]; the tied head is not repeated."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {
        "model." + ".".join(str(key.key) for key in path): np.ascontiguousarray(leaf, np.float32)
        for path, leaf in leaves
    }


def params_from_arrays(config: ModelShape, arrays: Arrays) -> FlaxParams:
    """The inverse of `checkpoint_arrays`; names and shapes must be exactly the model's."""
    _, params = new_params(config, 0)
    expected = checkpoint_arrays(params)
    wrong = sorted(
        name for name in expected.keys() | arrays.keys()
        if name not in expected or name not in arrays or expected[name].shape != arrays[name].shape
    )  # fmt: skip
    if wrong:
        raise DataError(f"the weights do not fit config.json: {', '.join(wrong)}")
    _, tree = jax.tree_util.tree_flatten(params)
    return jax.tree_util.tree_unflatten(tree, [jnp.asarray(arrays[name]) for name in expected])


def export(config: ModelShape, params: FlaxParams, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a Hugging Face directory that transformers and other engines load unchanged."""
    folder.mkdir(parents=True, exist_ok=True)
    end = tokenizer.token_to_id(END_OF_TEXT)
    fields = dataclasses.asdict(config)
    rope_theta = fields.pop("rope_theta")
    files: dict[str, Any] = {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **fields,
            "hidden_act": "silu",
            "rope_theta": rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "pretraining_tp": 1,
            "use_cache": True,
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": None,
            "dtype": "float32",
            "torch_dtype": "float32",
        },
        "generation_config.json": {"bos_token_id": end, "eos_token_id": end, "do_sample": False},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.max_position_embeddings,
            "add_prefix_space": False,
            "add_bos_token": False,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "fim_prefix_token": FIM_PREFIX,
            "fim_suffix_token": FIM_SUFFIX,
            "fim_middle_token": FIM_MIDDLE,
            "additional_special_tokens": [FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE],
            "added_tokens_decoder": {
                str(tokenizer.token_to_id(token)): {
                    "content": token,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
                for token in MARKER_TOKENS
            },
        },
        "special_tokens_map.json": {
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "additional_special_tokens": [FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE],
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(checkpoint_arrays(params), folder / "model.safetensors", {"format": "pt"})


def load_export(folder: Path) -> tuple[ModelShape, FlaxParams, Tokenizer]:
    """Read a directory that `export` wrote: configuration, weights, tokenizer."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise DataError(f"no {name} in {folder}")
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if fields.get("model_type") != "llama" or not fields.get("tie_word_embeddings"):
        raise DataError(f"{folder} holds no Llama with tied embeddings")
    names = [field.name for field in dataclasses.fields(ModelShape)]
    missing = [name for name in names if name not in fields]
    if missing:
        raise DataError(f"config.json in {folder} lacks {', '.join(missing)}")
    config = ModelShape(**{name: fields[name] for name in names})
    params = params_from_arrays(config, load_file(folder / "model.safetensors"))
    return config, params, Tokenizer.from_file(str(folder / "tokenizer.json"))
