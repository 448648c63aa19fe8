"""A model of real size, the 135M Llama shape with random bfloat16 weights: loaded and served by both engines, with
what that takes. Run it with -s to see the figures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from gnomon.reference.checkpoint.config import read_config
from gnomon.reference.checkpoint.load import load_checkpoint
from gnomon.reference.checkpoint.tensor_table import expected_tensors
from helpers.models import tiny_llama

SHAPE: dict[str, Any] = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "max_position_embeddings": 2048,
    "rope_theta": 10000.0, "tie_word_embeddings": True,
}  # fmt: skip
SERVE = (sys.executable, "-c", "from gnomon.http.cli.main import main; main()", "serve")
POOL = 64 * 2**20
LARGEST = 49152 * 576 * 2  # the embedding, as it is stored
BESIDE = {"reference": 250 * 2**20, "jax": POOL + 700 * 2**20}  # Python, libraries, activations, compiling


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files and an index, as downloads of this size have."""
    path = tiny_llama(tmp_path_factory.mktemp("large") / "smol", num_hidden_layers=1)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **SHAPE}))
    (path / "model.safetensors").unlink()
    rng, files = np.random.default_rng(1), ("a.safetensors", "b.safetensors")
    parts: dict[str, dict[str, Any]] = {name: {} for name in files}
    for i, (name, shape) in enumerate(expected_tensors(read_config(path)).items()):
        weights = rng.standard_normal(shape, np.float32) * 0.04 if len(shape) > 1 else np.ones(shape, np.float32)
        parts[files[i % 2]][name] = weights.astype(ml_dtypes.bfloat16)
    weight_map = {name: file for file, tensors in parts.items() for name in tensors}
    for file, tensors in parts.items():
        save_file(tensors, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


@pytest.mark.weekly
@pytest.mark.parametrize(("engine", "dtype"), [("reference", "float64"), ("jax", "float32"), ("jax", "bfloat16")])
def test_the_135m_shape_is_served_in_the_memory_of_its_weights(
    smol: Path, engine: str, dtype: str, tmp_path: Path
) -> None:
    count = load_checkpoint(smol).parameter_count
    assert 130e6 < count < 140e6
    options = ["--engine", engine, "--port", "0"]
    if engine == "jax":
        options += ["--dtype", dtype, "--kv-cache-memory", str(POOL >> 20), "--max-model-len", "512"]
    started = time.monotonic()
    process = subprocess.Popen(
        [*SERVE, str(smol), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        found = re.search(r" is served at (http://\S+)/v1 ", process.stdout.readline())
        assert found, process.communicate()
        seconds = time.monotonic() - started
        status = Path(f"/proc/{process.pid}/status")
        peak = int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024  # type: ignore[index]
        body = {"model": "smol", "prompt": [1, 2, 3], "max_tokens": 3, "logprobs": 2, "seed": 1}
        answer = httpx.post(f"{found[1]}/v1/completions", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 3
    finally:
        process.kill()
        _, log = process.communicate()
    weights = count * {"float64": 8, "float32": 4, "bfloat16": 2}[dtype]
    print(f"\n{engine} {dtype}: weights {weights >> 20} MiB, peak {peak >> 20} MiB, ready in {seconds:.1f} s\n{log}")
    assert weights < peak < weights + LARGEST + BESIDE[engine]
    assert "weights: 272 tensors, 256.6 MiB, read in " in log
