"""A model cut over several devices: what is cut, what is refused, and that neither meaning nor exactness suffers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest

from gnomon.jax_engine.sharding import AXES, layout
from gnomon.reference.checkpoint.load import load_checkpoint
from gnomon.reference.model_config import ModelConfig
from helpers.models import tiny_llama

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8}


def in_a_process_of_its_own(path: Path, *devices: int) -> Any:
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(TESTS)}
    script = TESTS / "helpers" / "sharded.py"
    command = [sys.executable, str(script), str(path), *map(str, devices)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """By number of devices. 2 divides everything; 8 is more than the key/value heads, and leaves a rest of the
    vocabulary."""
    path = tiny_llama(tmp_path_factory.mktemp("model"), scale=0.15, **HEADS)
    return dict(zip((1, 2, 8), in_a_process_of_its_own(path, 1, 2, 8), strict=True))


@pytest.mark.parametrize("devices", [2, 8])
def test_every_token_of_a_cut_model_is_the_references(examined: dict[int, Any], devices: int) -> None:
    assert examined[devices]["faults"] == []
    assert examined[devices]["tokens"] > 200
    assert examined[devices]["excused"] == 0


@pytest.mark.parametrize("devices", [2, 8])
def test_neighbours_change_no_byte_of_a_cut_models_answers(examined: dict[int, Any], devices: int) -> None:
    assert examined[devices]["differing"] == 0


def test_every_device_holds_its_part_and_no_more(examined: dict[int, Any]) -> None:
    cut = {"q_proj": 2, "k_proj": 2, "v_proj": 2, "o_proj": 2, "gate_proj": 2, "up_proj": 2, "down_proj": 2}
    assert examined[2]["parts"] == {**cut, "embed_tokens": 2, "keys": 2, "counts": 1}
    assert set(examined[1]["parts"].values()) == {1}


def test_heads_and_a_vocabulary_that_do_not_divide_are_whole_on_every_device(
    examined: dict[int, Any],
) -> None:
    parts = examined[8]["parts"]
    assert parts["q_proj"] == parts["o_proj"] == parts["down_proj"] == 8
    assert parts["k_proj"] == parts["v_proj"] == parts["keys"] == parts["embed_tokens"] == 1


def test_the_number_of_devices_is_in_the_fingerprint(examined: dict[int, Any]) -> None:
    assert len({one["fingerprint"] for one in examined.values()}) == 3


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    return load_checkpoint(tiny_llama(tmp_path, **HEADS)).config


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight devices, as far as can be seen before one is used."""
    monkeypatch.setattr(jax, "devices", lambda: [jax.local_devices()[0]] * 8)


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("changes", "n", "message"),
    [
        ({}, 3, r"tensor-parallel 3 does not divide the model's attention heads, 8; this model allows 1, 2, 4, 8"),
        ({"intermediate_size": 50}, 4, r"does not divide the model's feed-forward width, 50; this model allows 1, 2$"),
        (
            {"num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 96},
            2,
            r"tensor-parallel 2 neither divides the model's key/value heads, 3, nor is a multiple .* allows 1, 3, 6",
        ),
        ({}, 9, r"tensor-parallel 9: this host has 8 cpu devices; allowed: 1 to 8"),
        ({}, 0, r"tensor-parallel 0: .* allowed: 1 to 8"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_numbers(
    config: ModelConfig, changes: dict[str, Any], n: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        layout(replace(config, **changes), n)


def test_the_table_knows_every_weight(config: ModelConfig, tmp_path: Path) -> None:
    params = load_checkpoint(tmp_path).params
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    for path, leaf in paths:
        assert len(AXES.get(path[-1].key, ("whole",))) == leaf.ndim, path  # norms are named nowhere
