"""Loading a model directory, and the reference engine's two promises.

No other library's model is needed here; test_parity_transformers.py holds the whole against the canonical one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from gnomon.jax_engine.kernels.native import COMPILERS
from gnomon.jax_engine.sharding import ready
from gnomon.reference.checkpoint.config import read_config
from gnomon.reference.checkpoint.errors import CheckpointError, UnsupportedModel
from gnomon.reference.checkpoint.load import Checkpoint, load_checkpoint, silently
from gnomon.reference.checkpoint.tensor_table import Stored, expected_tensors
from gnomon.reference.checkpoint.tensors import TensorFiles
from gnomon.reference.engine import Done, Failed, JobRequest, PromptScored, ReferenceEngine, Token
from gnomon.reference.model import forward
from gnomon.reference.model_config import Family, Rope
from gnomon.reference.rope import rope_of
from gnomon.reference.sampler import SamplingParams, report
from helpers.models import TINY, tiny_llama

F64 = NDArray[np.float64]


def config_only(directory: Path, **changes: Any) -> Path:
    """A directory with config.json and no weights: whatever is refused here was refused before weights were read."""
    directory.mkdir(parents=True, exist_ok=True)
    entries = {**TINY, **changes}
    (directory / "config.json").write_text(json.dumps({k: v for k, v in entries.items() if v is not ...}))
    return directory


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    return str(caught.value)


def weights(path: Path) -> dict[str, NDArray[Any]]:
    return load_file(path / "model.safetensors")


def rewrite(path: Path, tensors: dict[str, NDArray[Any]]) -> None:
    save_file(tensors, path / "model.safetensors")


def leaf(checkpoint: Checkpoint, name: str) -> F64:
    """The parameter of a tensor's name."""
    node: Any = checkpoint.params
    for part in name.removeprefix("model.").removesuffix(".weight").split("."):
        node = node[int(part)] if part.isdigit() else node[part]
    return np.asarray(node)


# ---- what loads


def test_a_tiny_llama_loads_with_every_tensor_in_its_place(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m")
    checkpoint = load_checkpoint(path)
    stored = weights(path)
    assert stored.keys() == expected_tensors(checkpoint.config).keys()
    for name, tensor in stored.items():
        got = leaf(checkpoint, name)
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, tensor.astype(np.float64), err_msg=name)
    assert checkpoint.parameter_count == sum(tensor.size for tensor in stored.values())
    assert load_checkpoint(str(path)).config == checkpoint.config


def test_the_config_is_read_entry_by_entry(tmp_path: Path) -> None:
    config = read_config(config_only(tmp_path, bos_token_id=7))
    for entry, value in TINY.items():
        if hasattr(config, entry):
            assert getattr(config, entry) == value, entry
    assert config.bos_token_id == 7
    assert config.family == Family.llama(config.num_hidden_layers, config.head_dim)
    assert config.eos_token_ids == frozenset({TINY["eos_token_id"]})


def test_entries_that_may_be_left_out_have_their_defaults(tmp_path: Path) -> None:
    absent = ("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "eos_token_id")
    config = read_config(config_only(tmp_path, hidden_act=..., **dict.fromkeys(absent, ...)))
    assert config.num_key_value_heads == config.num_attention_heads == 4
    assert config.head_dim == 32 // 4
    assert (config.rms_norm_eps, config.tie_word_embeddings) == (1e-6, False)
    assert config.family.layers[0].rope == Rope.plain(10000.0, 8)
    assert config.eos_token_ids == frozenset()
    assert config.bos_token_id is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_weights_of_every_dtype_are_upcast_exactly(tmp_path: Path, dtype: Any) -> None:
    path = tiny_llama(tmp_path / "m")
    stored = {name: tensor.astype(dtype) for name, tensor in weights(path).items()}
    norm = stored["model.norm.weight"]
    norm[:4] = np.array([1 / 3, -65504, 6e-8, 0]).astype(dtype)
    rewrite(path, stored)
    checkpoint = load_checkpoint(path)
    for name, tensor in stored.items():
        np.testing.assert_array_equal(leaf(checkpoint, name), tensor.astype(np.float64), err_msg=name)


def test_the_sharded_form_loads_as_the_single_file(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m")
    whole = load_checkpoint(path)
    assert whole.params  # read while its file is there
    tensors = weights(path)
    (path / "model.safetensors").unlink()
    weight_map = {name: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    sharded = load_checkpoint(path)
    for name in tensors:
        np.testing.assert_array_equal(leaf(sharded, name), leaf(whole, name))
    assert ReferenceEngine(sharded).fingerprint == ReferenceEngine(whole).fingerprint


def test_tied_embeddings_are_the_head(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m", tie_word_embeddings=True)
    checkpoint = load_checkpoint(path)
    assert "lm_head.weight" not in weights(path)
    assert checkpoint.params["lm_head"] is checkpoint.params["embed_tokens"]
    untied = load_checkpoint(tiny_llama(tmp_path / "u"))
    assert (untied.params["lm_head"] != untied.params["embed_tokens"]).any()


# ---- a tensor at a time


def test_weights_are_read_when_they_are_first_asked_for_and_kept(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m")
    checkpoint, other = load_checkpoint(path), load_checkpoint(path)
    params = checkpoint.params
    os.truncate(path / "model.safetensors", 100)
    assert checkpoint.params is params
    with pytest.raises(CheckpointError, match=r"model\.safetensors: was written to"):
        _ = other.params


def test_read_puts_every_array_once_as_it_is_stored_with_its_place(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m", tie_word_embeddings=True)
    stored = {name: tensor.astype(np.float16) for name, tensor in weights(path).items()}
    rewrite(path, stored)
    seen: dict[str, NDArray[Any]] = {}

    def put(place: tuple[str | int, ...], array: NDArray[Any]) -> str:
        name = ".".join(map(str, place))
        assert name not in seen
        seen[name] = array
        return name

    tree = load_checkpoint(path).read(put)
    short = {name.removeprefix("model.").removesuffix(".weight"): tensor for name, tensor in stored.items()}
    assert seen.keys() == short.keys()
    for name, tensor in short.items():
        assert seen[name].dtype == np.float16
        np.testing.assert_array_equal(seen[name], tensor)
    assert tree["layers"][1]["mlp"]["up_proj"] == "layers.1.mlp.up_proj"
    assert tree["lm_head"] is tree["embed_tokens"]
    given = load_checkpoint(path)
    again = Checkpoint(given.path, given.config, given.params).read(lambda place, _: ".".join(map(str, place)))
    assert again == tree


def test_a_tensor_is_let_go_before_the_next_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_llama(tmp_path / "m")
    held: list[weakref.ref[NDArray[Any]]] = []
    alive = []
    plain = TensorFiles.read

    def read(files: TensorFiles, name: str) -> NDArray[Any]:
        alive.append(sum(ref() is not None for ref in held))
        array = plain(files, name)
        held.append(weakref.ref(array))
        return array

    monkeypatch.setattr(TensorFiles, "read", read)
    load_checkpoint(path).read(lambda place, array: place)
    assert alive == [0] * 21


def test_a_stored_tensor_may_have_several_parts_each_with_its_own_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GPT-2's c_attn, [D, 3 D], is three transposed projections."""
    path = tiny_llama(tmp_path / "m")
    fused = np.arange(2 * 6, dtype=np.float32).reshape(2, 6)
    rewrite(path, {"c_attn": fused, "wte": np.ones((3, 2), np.float32)})

    def third(i: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
        return lambda array: np.split(array, 3, axis=1)[i].T

    parts = tuple((("layers", 0, "attn", name), third(i)) for i, name in enumerate(("q", "k", "v")))
    table = [
        Stored("c_attn", (2, 6), parts),
        Stored("wte", (3, 2), ((("embed_tokens",), lambda array: array),)),
    ]
    for module in ("load", "surplus"):
        monkeypatch.setattr(f"gnomon.reference.checkpoint.{module}.stored_tensors", lambda config: table)
    checkpoint = load_checkpoint(path)
    assert checkpoint.parameter_count == 18
    attn = checkpoint.params["layers"][0]["attn"]
    np.testing.assert_array_equal(attn["q"], [[0, 6], [1, 7]])
    np.testing.assert_array_equal(attn["k"], [[2, 8], [3, 9]])
    np.testing.assert_array_equal(attn["v"], [[4, 10], [5, 11]])
    ready_made = checkpoint.read(lambda _, array: ready(array, np.float32))["layers"][0]["attn"]
    np.testing.assert_array_equal(ready_made["k"], [[2, 8], [3, 9]])
    assert ready_made["k"].flags.c_contiguous


def test_reading_says_what_it_has_read_and_on_the_way_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    path = tiny_llama(tmp_path / "m")
    _ = load_checkpoint(path, say=lines.append).params
    [line] = lines
    assert re.fullmatch(r"weights: 21 tensors, 0\.1 MiB, read in \d+\.\d s, placed in \d+\.\d s", line)
    monkeypatch.setattr("gnomon.reference.checkpoint.load.PROGRESS_SECONDS", 0.0)
    _ = load_checkpoint(path, say=lines.append).params
    assert re.fullmatch(r"weights: 3 of 21 tensors, 0\.\d MiB of 0\.1 MiB", lines[4])


PEAK = """
import sys
from pathlib import Path
import jax, numpy as np
from gnomon.jax_engine.device import place
from gnomon.jax_engine.kernels.native import load_native
from gnomon.jax_engine.sharding import layout
from gnomon.reference.checkpoint.load import load_checkpoint

def memory(what):
    [line] = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024

path, dtype, cache = sys.argv[1:]
packer = load_native(Path(cache)).packer() if cache else None
mesh = layout(load_checkpoint(path).config)
jax.block_until_ready(jax.device_put(np.zeros(8, np.float32), mesh.whole))
Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
before = memory("VmRSS")
checkpoint = load_checkpoint(path)
if dtype == "float64":
    held = checkpoint.params
else:
    held = place(checkpoint, mesh, jax.numpy.dtype(dtype), packer)
print(memory("VmHWM") - before)
"""
LARGE = {"vocab_size": 16384, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12,
           "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True}  # fmt: skip
SLACK = 16 * 2**20  # what the allocator and the reader keep


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 MB of float32, of which the embedding is 32 MiB."""
    return tiny_llama(tmp_path_factory.mktemp("large"), **LARGE)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["float64", "float32", "bfloat16", "float32 packed", "bfloat16 packed"])
def test_loading_takes_the_memory_of_the_weights_and_of_one_tensor(
    request: pytest.FixtureRequest, large: Path, form: str
) -> None:
    """In a process of its own, by the system's count of it: in no engine is there ever a second copy."""
    dtype, *packed = form.split()
    if packed and not any(shutil.which(name) for name in COMPILERS):
        pytest.skip("there is no C++ compiler")
    command = [
        sys.executable,
        "-c",
        PEAK,
        str(large),
        dtype,
        str(request.getfixturevalue("native_cache")) if packed else "",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    count, largest = load_checkpoint(large).parameter_count, 16384 * 512 * 4
    assert 4 * count > 190e6
    weights = count * {"float64": 8, "float32": 4, "bfloat16": 2}[dtype]
    assert 0.95 * weights < int(done.stdout) < weights + largest + SLACK


# ---- a shorter context


def test_the_context_can_be_lowered(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m")
    whole = load_checkpoint(path)
    for length in (1, 40, 128):
        checkpoint = load_checkpoint(path, max_model_len=length)
        assert checkpoint.config == replace(whole.config, max_position_embeddings=length)
        assert ReferenceEngine(checkpoint).context == length


@pytest.mark.parametrize("length", [0, -1, 129, 10**9])
def test_the_context_cannot_be_raised(tmp_path: Path, length: int) -> None:
    with pytest.raises(
        CheckpointError, match=rf"max-model-len {length}: the model's context is 128; allowed: 1 to 128"
    ):
        load_checkpoint(tiny_llama(tmp_path / "m"), max_model_len=length)


# ---- what does not


def test_missing_extra_and_misshapen_tensors_are_all_in_one_error(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m")
    tensors = weights(path)
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
    tensors["model.layers.0.self_attn.k_proj.weight"] = np.zeros((8, 32), np.float32)
    tensors["model.layers.1.mlp.down_proj.weight"] = np.zeros((48, 32), np.float32)
    rewrite(path, tensors)
    message = refusal(path)
    assert "model.norm.weight is missing" in message
    assert "model.layers.1.mlp.up_proj.weight is missing" in message
    assert "model.layers.0.self_attn.q_proj.bias is not part" in message
    assert "model.layers.0.self_attn.k_proj.weight has shape [8, 32], not [16, 32]" in message
    assert "model.layers.1.mlp.down_proj.weight has shape [48, 32], not [32, 48]" in message
    assert message.count(";") == 4


def test_a_missing_head_is_missing_unless_it_is_tied(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m")
    tensors = weights(path)
    del tensors["lm_head.weight"]
    rewrite(path, tensors)
    assert "lm_head.weight is missing" in refusal(path)


def test_integer_weights_are_refused_by_dtype(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m")
    rewrite(path, {**weights(path), "model.norm.weight": np.ones(32, np.int8)})
    message = refusal(path)
    assert "model.norm.weight has dtype I8" in message
    assert "BF16" in message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"architectures": None, "model_type": "mamba"}, "mamba"),
        ({"rope_scaling": {"rope_type": "proportional", "factor": 4.0}}, "proportional"),
        ({"hidden_act": "relu2"}, "hidden_act"),
        ({"layer_types": ["chunked_attention", "full_attention"]}, "layer_types"),
        (
            {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse",
        ),
        (
            {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "use_bidirectional_attention": True},
            "use_bidirectional_attention",
        ),
        ({"architectures": ["PhiForCausalLM"], "model_type": "phi", "qk_layernorm": True}, "qk_layernorm"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "has quantization: quantised"),
        ({"compression_config": {"format": "pack-quantized"}}, "has compression_config: quantised"),
    ],
)
def test_an_unsupported_model_is_refused_by_name_before_weights_are_read(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedModel, match=named) as caught:
        load_checkpoint(config_only(tmp_path, **changes))
    assert "support" in str(caught.value)


def test_a_supported_config_without_weights_gets_as_far_as_the_weights(tmp_path: Path) -> None:
    message = refusal(config_only(tmp_path))
    assert "model.safetensors" in message
    assert "model.safetensors.index.json" in message


def test_a_directory_of_pickles_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = config_only(tmp_path)
    (path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    message = refusal(path)
    assert "pytorch_model.bin" in message
    assert "pickle" in message


@pytest.mark.parametrize("gone", [(), ("config.json",), ("config.json", "model.safetensors")])
def test_an_adapter_is_not_left_out_in_silence_beside_a_model_or_alone(tmp_path: Path, gone: tuple[str, ...]) -> None:
    """transformers applies one that lies beside a model."""
    path = tiny_llama(tmp_path)
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "a/b"}))
    for name in gone:
        (path / name).unlink()
    assert "adapter_config.json is of an adapter, which is not applied here; merge it" in refusal(path)


def test_a_directory_of_gguf_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    assert "config.json: no such file; tiny.gguf is a GGUF file, which is not read here" in refusal(tmp_path)


def test_a_missing_directory_or_config_is_named(tmp_path: Path) -> None:
    assert "nowhere" in refusal(tmp_path / "nowhere")
    assert "config.json" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "nul", '{"a": }', "\xff"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "model.safetensors.index.json"])
def test_malformed_json_names_its_file(tmp_path: Path, file: str, text: str) -> None:
    (config_only(tmp_path) / file).write_bytes(text.encode("latin-1"))
    assert file in refusal(tmp_path)


@pytest.mark.parametrize(
    "entry", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
              "max_position_embeddings"],
)  # fmt: skip
def test_a_missing_entry_is_named(tmp_path: Path, entry: str) -> None:
    assert entry in refusal(config_only(tmp_path, **{entry: ...}))


@pytest.mark.parametrize("entry", [*TINY, "rope_parameters", "rope_scaling", "bos_token_id", "quantization_config"])
def test_junk_in_any_entry_is_a_checkpoint_error_and_no_other_exception(tmp_path: Path, entry: str) -> None:
    """There are no weights, so every directory is refused, whether or not the config could be read."""
    others = []
    for junk in ("x", "1e9", [], [1], {}, {"a": 1}, -1, 0, 1.5, True, float("inf"), float("nan")):
        try:
            load_checkpoint(config_only(tmp_path, **{entry: junk}), warn=silently)
        except CheckpointError:
            continue
        except Exception as error:
            others.append(f"{str(junk)[:20]}: {error!r}")
        else:
            others.append(f"{junk}: loaded")
    assert not others


def test_heads_that_cannot_be_grouped_are_refused_before_weights_are_read(tmp_path: Path) -> None:
    assert "num_key_value_heads" in refusal(config_only(tmp_path / "a", num_key_value_heads=3))
    assert "head_dim" in refusal(config_only(tmp_path / "b", head_dim=7))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a/../b"])
def test_an_index_that_leaves_its_directory_is_refused(tmp_path: Path, name: str) -> None:
    tiny_llama(tmp_path)
    path = config_only(tmp_path / "inner")
    index = {"weight_map": {"model.norm.weight": name}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    message = refusal(path)
    assert "model.safetensors.index.json" in message
    assert "not part" not in message


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    path = config_only(tmp_path)
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors" in refusal(path)


@pytest.mark.parametrize("weight_map", [None, [], "x"])
def test_an_index_without_a_weight_map_is_refused(tmp_path: Path, weight_map: object) -> None:
    (config_only(tmp_path) / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "weight_map" in refusal(tmp_path)


def test_a_truncated_or_senseless_weights_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m")
    sound = (path / "model.safetensors").read_bytes()
    for broken in (b"", sound[:5], sound[:100], sound[:-1], struct.pack("<Q", 2**60) + sound[8:], b"\x80\x04."):
        (path / "model.safetensors").write_bytes(broken)
        assert "model.safetensors" in refusal(path)


# ---- generation_config.json


@pytest.mark.parametrize(
    ("generation", "config", "ids"),
    [
        (5, 9, {5}),
        ([5, 6], 9, {5, 6}),
        (None, 9, {9}),
        (None, [9, 8], {9, 8}),
        (None, None, set()),
        (0, 9, {0}),
        ([], 9, set()),
    ],
)
def test_eos_ids_come_from_generation_config_before_config(
    tmp_path: Path, generation: object, config: object, ids: set[int]
) -> None:
    path = config_only(tmp_path, eos_token_id=config)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert read_config(path).eos_token_ids == frozenset(ids)


def test_no_sampling_default_is_taken_from_a_models_files(tmp_path: Path) -> None:
    """Same events with and without a generation_config.json full of sampling defaults."""
    path = tiny_llama(tmp_path / "m")
    plain = load_checkpoint(path)
    defaults = {"temperature": 0.01, "top_p": 0.1, "top_k": 1, "do_sample": False, "max_new_tokens": 1,
                "repetition_penalty": 5.0, "eos_token_id": TINY["eos_token_id"]}  # fmt: skip
    (path / "generation_config.json").write_text(json.dumps(defaults))
    loaded = load_checkpoint(path)
    assert loaded.config == plain.config
    params = SamplingParams(max_tokens=8)
    both = [
        list(ReferenceEngine(c).submit(JobRequest([[1, 2]], [3], params, 2, 0, False)).events())
        for c in (plain, loaded)
    ]
    assert both[0] == both[1]
    assert sum(isinstance(event, Token) for event in both[0]) == 16


# ---- rotary positions


@pytest.mark.parametrize("entry", ["rope_scaling", "rope_parameters"])
def test_llama3_scaling_is_read_in_its_old_and_new_place(tmp_path: Path, entry: str) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_theta": 500000.0}  # fmt: skip
    config = read_config(config_only(tmp_path, rope_theta=500000.0, **{entry: rope}))
    forms = {entry: rope}
    assert config.family.layers[0].rope == rope_of(forms, TINY["head_dim"], 1.0, 128, 128)
    assert config.family.layers[0].rope != Rope.plain(500000.0, TINY["head_dim"])


def test_an_incomplete_llama3_scaling_names_what_is_missing(tmp_path: Path) -> None:
    assert "low_freq_factor" in refusal(config_only(tmp_path, rope_scaling={"rope_type": "llama3", "factor": 8.0}))


# ---- the reference engine


def spoiled(checkpoint: Checkpoint, value: float) -> Checkpoint:
    norm = checkpoint.params["norm"].copy()
    norm[3] = value
    return replace(checkpoint, weights={**checkpoint.params, "norm": norm})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("score", [True, False])
def test_logits_that_are_not_finite_end_the_job_with_failed(tiny: Checkpoint, value: float, score: bool) -> None:
    engine = ReferenceEngine(spoiled(tiny, value))
    events = list(engine.submit(JobRequest([[1, 2, 3]], [0], SamplingParams(max_tokens=3), 2, 1, score)).events())
    assert len(events) == 1
    assert isinstance(events[0], Failed)
    assert "finite" in events[0].message


def test_logits_that_overflow_end_the_job_with_failed_and_no_warning(tiny: Checkpoint) -> None:
    layers = [{**layer, "mlp": {k: v * 1e200 for k, v in layer["mlp"].items()}} for layer in tiny.params["layers"]]
    head = np.full_like(tiny.params["lm_head"], 1e308)
    engine = ReferenceEngine(replace(tiny, weights={**tiny.params, "lm_head": head, "layers": layers}))
    events = list(engine.submit(JobRequest([[7]], [0], SamplingParams(max_tokens=1), 1, 0, False)).events())
    assert [type(event) for event in events] == [Failed]


def test_a_failed_job_does_not_touch_its_neighbour(tiny: Checkpoint) -> None:
    embed = tiny.params["embed_tokens"].copy()
    embed[7] = np.nan
    engine = ReferenceEngine(replace(tiny, weights={**tiny.params, "embed_tokens": embed}))
    params = SamplingParams(max_tokens=3)
    alone = list(engine.submit(JobRequest([[1, 2]], [0], params, 1, 0, False)).events())
    good = engine.submit(JobRequest([[1, 2]], [0], params, 1, 0, False)).events()
    first = next(good)
    assert isinstance(list(engine.submit(JobRequest([[7]], [0], params, 1, 0, False)).events())[-1], Failed)
    assert [first, *good] == alone


def test_the_engine_samples_scores_and_ends_by_the_law(tiny: Checkpoint) -> None:
    engine = ReferenceEngine(tiny)
    params = SamplingParams(max_tokens=4, temperature=0)
    events = list(engine.submit(JobRequest([[1, 2, 3]], [0], params, 1, 2, True)).events())
    scored = events[0]
    assert isinstance(scored, PromptScored)
    expected = report(forward(tiny.config, tiny.params, [1, 2, 3]))
    assert scored.logprobs[0] is None
    assert scored.logprobs[1] == pytest.approx(expected[0, 2], abs=1e-12)
    assert scored.logprobs[2] == pytest.approx(expected[1, 3], abs=1e-12)
    ids = [event.id for event in events if isinstance(event, Token)]
    assert len(ids) == 4
    for t, v in enumerate(ids):
        assert v == int(forward(tiny.config, tiny.params, [1, 2, 3, *ids[:t]])[-1].argmax())
    assert events[-1] == Done(0, 0)
    ended = replace(params, end_ids=frozenset({ids[1]}))
    stopped = list(engine.submit(JobRequest([[1, 2, 3]], [0], ended, 1, 2, False)).events())
    assert [event.id for event in stopped if isinstance(event, Token)] == ids[: ids.index(ids[1]) + 1]
    assert stopped[-1] == Done(0, 0)


def test_the_fingerprint_is_equal_for_two_loads_and_differs_with_one_weight(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m")
    checkpoint = load_checkpoint(path)
    first, second = ReferenceEngine(checkpoint), ReferenceEngine(load_checkpoint(path))
    assert first.fingerprint == second.fingerprint
    seen = {first.fingerprint}
    for name in weights(path):
        tensors = weights(path)
        flat = tensors[name].reshape(-1)
        flat[-1] = np.nextafter(flat[-1], np.float32(np.inf))
        rewrite(tiny_llama(tmp_path / "n"), tensors)
        if name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"):
            seen.add(ReferenceEngine(load_checkpoint(tmp_path / "n")).fingerprint)
    assert len(seen) == 4


def test_the_fingerprint_differs_with_the_config(tiny: Checkpoint) -> None:
    other = replace(tiny, config=replace(tiny.config, family=Family.llama(2, 8, Rope.plain(10001.0, 8))))
    assert ReferenceEngine(other).fingerprint != ReferenceEngine(tiny).fingerprint
    longer = replace(tiny, config=replace(tiny.config, max_position_embeddings=256))
    assert ReferenceEngine(longer).fingerprint != ReferenceEngine(tiny).fingerprint
