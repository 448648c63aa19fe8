"""Directories as they are met in the field, each loaded by transformers and here: the same log-probabilities, or a
refusal by name where transformers makes numbers up. What is told about them is in test_surplus.py and
test_config_entries.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from gnomon.reference.checkpoint.errors import UnsupportedModel
from gnomon.reference.checkpoint.families import ARCHITECTURES, HEADLESS
from gnomon.reference.checkpoint.load import load_checkpoint, silently
from gnomon.reference.sampler import report
from gnomon.reference.transformer import forward
from helpers.extras import extra
from helpers.families import VARIANTS, architecture_in, save_random

torch = extra("parity", "torch", "transformers")


Tensors = dict[str, NDArray[Any]]
IDS = [3, 1, 4, 1, 5, 9, 2, 6]
GONE = object()
TOLERANCE = 2e-5


class Case(NamedTuple):
    variant: str
    config: Mapping[str, Any] = {}  # entries instead of those that transformers wrote; GONE takes one out
    tensors: Callable[[Tensors], Tensors] = lambda tensors: tensors


def saved(directory: Path, case: Case) -> Path:
    path = save_random(directory, VARIANTS[case.variant], seed=3)
    raw = {**json.loads((path / "config.json").read_text()), **case.config}
    (path / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not GONE}))
    file = path / "model.safetensors"
    save_file(case.tensors(load_file(file)), file, {"format": "pt"})
    return path


def ours(path: Path) -> NDArray[np.float64]:
    checkpoint = load_checkpoint(path, warn=silently)
    return report(forward(checkpoint.config, checkpoint.params, IDS))


def theirs(path: Path) -> NDArray[np.float64]:
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    with torch.no_grad():
        logits = auto.from_pretrained(path, dtype=torch.float64)(torch.tensor([IDS])).logits[0]
    return np.asarray(torch.log_softmax(logits.double(), -1))


def other(tensors: Tensors, name: str, like: str) -> Tensors:
    random = np.random.default_rng(5).normal(size=tensors[like].shape).astype(np.float32) * 0.1
    return {**tensors, name: random}


def only(tensors: Tensors, name: str, instead_of: str) -> Tensors:
    return {name if key == instead_of else key: tensor for key, tensor in tensors.items()}


def without_prefix(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


LLAMA, WTE, EMBED_IN = "model.embed_tokens.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight"
NEOX = "GPT-NeoX, one after the other"  # which is tied
LINEAR = {"type": "linear", "factor": 4.0}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
FACTORS = {"short_factor": [1.0 + 0.05 * i for i in range(8)], "long_factor": [2.0] * 8}
PHI3 = {"rope_parameters": GONE, "max_position_embeddings": 64, "rope_theta": 1e4}
PARAMETERS: dict[str, Any] = {"rope_parameters": GONE}  # what transformers 5 wrote is taken out

CASES = {
    # ---- a head beside the embedding, or instead of it
    "Qwen3, a head that differs": Case("Qwen3", {}, lambda t: other(t, "lm_head.weight", LLAMA)),
    "Gemma, tied by default": Case(
        "Gemma", {"tie_word_embeddings": GONE}, lambda t: other(t, "lm_head.weight", LLAMA)
    ),
    "StarCoder2, tied by default": Case(
        "StarCoder2", {"tie_word_embeddings": GONE}, lambda t: other(t, "lm_head.weight", LLAMA)
    ),
    "GPT-2, a head that differs": Case("GPT-2", {}, lambda t: other(t, "lm_head.weight", WTE)),
    "GPT-NeoX, a head that differs": Case(NEOX, {}, lambda t: other(t, "embed_out.weight", EMBED_IN)),
    "GPT-NeoX, a head by its other name": Case(NEOX, {}, lambda t: other(t, "lm_head.weight", EMBED_IN)),
    "Qwen3, the same head twice": Case("Qwen3", {}, lambda t: {**t, "lm_head.weight": t[LLAMA].copy()}),
    "Qwen3, only the head": Case("Qwen3", {}, lambda t: only(t, "lm_head.weight", LLAMA)),
    "GPT-2, only the head": Case("GPT-2", {}, lambda t: only(t, "lm_head.weight", WTE)),
    "GPT-2, without prefix, a head that differs": Case(
        "GPT-2", {}, lambda t: without_prefix("transformer.")(other(t, "lm_head.weight", WTE))
    ),
    "GPT-NeoX, only the head": Case(NEOX, {}, lambda t: only(t, "embed_out.weight", EMBED_IN)),
    "Phi-2, tied, with the head's bias": Case(
        "Phi-2", {"tie_word_embeddings": True}, lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"}
    ),
    # ---- what old files hold besides
    "Llama, another rotary table": Case(
        "Llama",
        {},
        lambda t: {**t, "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)},
    ),
    "GPT-2, masks that hide nothing": Case(
        "GPT-2",
        {},
        lambda t: {**without_prefix("transformer.")(t), "h.0.attn.bias": np.ones((1, 1, 8, 8), np.float32)},
    ),
    "GPT-NeoX, masks that hide nothing": Case(
        "GPT-NeoX", {}, lambda t: {**t, "gpt_neox.layers.0.attention.bias": np.ones((1, 1, 8, 8), np.float32)}
    ),
    "Llama, more layers than its config": Case("Llama", {"num_hidden_layers": 1}),
    "GPT-2, more layers than its config": Case("GPT-2", {"n_layer": 1}, without_prefix("transformer.")),
    # ---- which model it is
    "no architectures": Case("Mistral", {"architectures": GONE}),
    "architectures null": Case("Gemma 2", {"architectures": None}),
    "architectures empty": Case("GPT-NeoX", {"architectures": []}),
    "LlamaModel with a head": Case("Llama", {"architectures": ["LlamaModel"]}),
    "Qwen3Model, tied, without prefix": Case(
        "Qwen3", {"architectures": ["Qwen3Model"]}, without_prefix("model.")
    ),
    "GPT2Model without prefix": Case("GPT-2", {"architectures": ["GPT2Model"]}, without_prefix("transformer.")),
    "GPTNeoXModel, tied, without prefix": Case(
        NEOX, {"architectures": ["GPTNeoXModel"]}, without_prefix("gpt_neox.")
    ),
    "Gemma3TextModel, tied, without prefix": Case(
        "Gemma 3, its defaults", {"architectures": ["Gemma3TextModel"]}, without_prefix("model.")
    ),
    # ---- rotary positions in several wordings
    "rope_scaling and rope_parameters alike": Case(
        "Llama", {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 1e4}}
    ),
    "rope_theta beside rope_parameters": Case(
        "Llama", {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 500000}}
    ),
    "rope_theta beside rope_scaling": Case("Llama", {**PARAMETERS, "rope_theta": 5e5, "rope_scaling": LINEAR}),
    "rope_scaling of nulls and defaults": Case(
        "Llama", {**PARAMETERS, "rope_scaling": {"type": "default", "factor": None}, "rope_theta": 5e5}
    ),
    "rope_scaling null": Case("Llama", {"rope_scaling": None, "rope_parameters": LINEAR}),
    "both names of the type": Case("Llama", {**PARAMETERS, "rope_scaling": {**LINEAR, "rope_type": "linear"}}),
    "yarn, one with its defaults spelt out": Case(
        "Llama",
        {
            "rope_scaling": {"type": "yarn", **YARN},
            "rope_parameters": {"rope_type": "yarn", **YARN, "beta_fast": 32.0, "beta_slow": 1, "rope_theta": 1e4},
        },
    ),
    "llama3, its original context left out": Case(
        "Llama",
        {
            **PARAMETERS,
            "rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        },
    ),
    "Phi-3's first name for longrope": Case(
        "Phi-3, long",
        {**PHI3, "rope_scaling": {"type": "su", "original_max_position_embeddings": 64, **FACTORS}},
    ),
    "Phi-3's other name for longrope": Case("Phi-3, long", {**PHI3, "rope_scaling": {"type": "yarn", **FACTORS}}),
    "GPT-NeoX, rotary_emb_base": Case("GPT-NeoX", {**PARAMETERS, "rotary_emb_base": 500, "rotary_pct": 0.5}),
    "Gemma 3, its local base beside the rest": Case(
        "Gemma 3, its defaults",
        {**PARAMETERS, "rope_theta": 1e5, "rope_local_base_freq": 1e3,
         "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "OLMo 3, stretched as it is published: full layers only": Case(
        "OLMo 3", {**PARAMETERS, "rope_theta": 5e5, "rope_scaling": {"rope_type": "yarn", **YARN}}
    ),
    "GPT-NeoX, a rope_theta that it does not read": Case("GPT-NeoX", {**PARAMETERS, "rope_theta": 500}),
    # ---- entries by the name that they have in other classes, which says nothing in this one
    "StarCoder2, rms_norm_eps": Case("StarCoder2", {"norm_epsilon": GONE, "rms_norm_eps": 0.1}),
    "Phi-2, rms_norm_eps": Case("Phi-2", {"layer_norm_eps": GONE, "rms_norm_eps": 0.1}),
    "Gemma 2, hidden_act": Case("Gemma 2", {"hidden_activation": GONE, "hidden_act": "gelu"}),
    "GPT-2, hidden_size": Case("GPT-2", {"n_embd": GONE, "hidden_size": 64}),
    # ---- which layers slide
    "Qwen2, from layer 0 on": Case(
        "Qwen2, window", {"max_window_layers": 0, "layer_types": GONE, "sliding_window": 3}
    ),
    "Llama, layer_types that say what it does": Case("Llama", {"layer_types": ["full_attention"] * 2}),
    "StarCoder2, layer_types that say what it does": Case(
        "StarCoder2", {"layer_types": ["sliding_attention"] * 2, "sliding_window": 3}
    ),
    # ---- ids that no vocabulary of this size has
    "eos and bos of the class's defaults": Case("GPT-2", {"eos_token_id": 50256, "bos_token_id": 50256}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_directory_of_the_field_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path, CASES[name])
    expected = theirs(path)
    assert np.ptp(expected) > 0.5  # a model that says nothing would agree with any other
    assert abs(ours(path) - expected).max() < TOLERANCE


FULL, SLIDING = ["full_attention"] * 2, ["sliding_attention"] * 2
DISPUTED: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {"is_causal": False}),
    ("Gemma 2", {"is_causal": False}),
    ("GPT-2", {"is_causal": False}),
    ("Llama", {"layer_types": SLIDING, "sliding_window": 3}),
    ("OLMo 2", {"layer_types": [*FULL[:1], *SLIDING[:1]], "sliding_window": 3}),
    ("Mixtral, window", {"layer_types": FULL, "sliding_window": 3}),
    ("Phi-3, window", {"layer_types": FULL, "sliding_window": 3}),
    ("StarCoder2", {"layer_types": FULL, "sliding_window": 3}),
    ("Llama", {"partial_rotary_factor": 0.5}),
    ("Qwen3", {"partial_rotary_factor": 0.5}),
    ("Gemma 3", {"attn_logit_softcapping": 0.01}),
    ("OLMo 3", {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}),
    ("OLMo 3", {"rope_theta": 777.0, "rope_parameters": GONE}),
]


@pytest.mark.parametrize(("variant", "entries"), DISPUTED, ids=[f"{v}: {', '.join(e)}" for v, e in DISPUTED])
def test_an_entry_that_engines_read_differently_is_refused_by_name(
    variant: str, entries: dict[str, Any], tmp_path: Path
) -> None:
    """Each of them changes what transformers computes, or what vLLM does and transformers does not."""
    path = saved(tmp_path, Case(variant, entries))
    with pytest.raises(UnsupportedModel, match=rf"config\.json has {next(iter(entries))} "):
        ours(path)


def test_the_names_of_models_and_of_classes_without_a_head_are_transformers() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as heads
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES as bare

    assert {row.model_type: name for name, row in ARCHITECTURES.items()}.items() <= dict(heads).items()
    assert {bare[row.model_type]: name for name, row in ARCHITECTURES.items()} == HEADLESS


@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "GPT-2", "Phi-2", NEOX])
def test_a_bare_model_that_transformers_saves_is_the_model_if_it_is_tied(name: str, tmp_path: Path) -> None:
    """`LlamaModel.save_pretrained` and the like; without tying, the head it lacks is named."""
    import transformers

    whole = save_random(tmp_path / "whole", VARIANTS[name], seed=1)
    auto: Any = transformers.AutoModel
    auto.from_pretrained(whole).save_pretrained(tmp_path / "bare")
    bare = tmp_path / "bare"
    assert architecture_in(bare) in HEADLESS
    raw = json.loads((bare / "config.json").read_text())
    if raw["tie_word_embeddings"]:
        assert abs(ours(bare) - theirs(bare)).max() < TOLERANCE
        assert abs(ours(bare) - ours(whole)).max() == 0
    else:
        head = "embed_out" if "NeoX" in name else "lm_head"
        with pytest.raises(ValueError, match=rf"{head}\.weight is missing"):
            ours(bare)


def test_a_tied_model_as_safetensors_saves_it_is_the_model(tmp_path: Path) -> None:
    """`save_model` keeps the name that comes first in the alphabet: the head's, but for GPT-NeoX."""
    import transformers
    from safetensors.torch import save_model

    for name in ("Qwen3", "GPT-2", "Gemma", NEOX):
        path = save_random(tmp_path / name.replace(" ", "-"), VARIANTS[name], seed=2)
        expected = ours(path)
        auto: Any = transformers.AutoModelForCausalLM
        save_model(auto.from_pretrained(path), str(path / "model.safetensors"), {"format": "pt"})
        assert ("lm_head.weight" in load_file(path / "model.safetensors")) == (name != NEOX)
        assert (ours(path) == expected).all()
